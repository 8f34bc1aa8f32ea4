"""Where the responses of a `RewardDataModule` come from, and which options that rules out."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Literal

from rl_lightning.data.offline.pairs import PairOptions
from rl_lightning.data.sources.shape import Shape
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.hooks import Stages
from rl_lightning.learner import Learner

log = logging.getLogger(__name__)

#: Responses to each prompt, unless asked for otherwise.
_GROUP_SIZE = 8

_NEEDS_A_NUMBER = "train_temperature: as_sampled, but with origin: files nothing is sampled: set a number"


@dataclass(frozen=True)
class Pairs:
    """What a module wants of preference pairs.

    Args:
        learnt: training steps get pairs; samples otherwise.
        judged: it is measured on held-out pairs.
        alone: it is measured on nothing else.
    """

    learnt: bool
    judged: bool
    alone: bool

    @classmethod
    def of(cls, module: Learner) -> Pairs:
        """Return what a module asks for by `learns_from` and `evaluates_on`."""
        kinds = module.evaluates_on
        return cls(module.learns_from == "preferences", "preferences" in kinds, kinds == ("preferences",))

    @property
    def any(self) -> bool:
        """Whether pairs are learnt from or judged."""
        return self.learnt or self.judged


@dataclass(frozen=True)
class Origin:
    """Where responses come from, and how they are sampled if they are.

    Args:
        asked: the option `origin`.
        sampler, group_size, max_prompts, pairs, mix_demonstrations, train_temperature: see `RewardDataModule`.
        found: the source brings what is learnt from, or judged, and no option said otherwise.

    Raises:
        UserError: for options that contradict one another.
    """

    asked: Literal["sampled", "files"] | None
    sampler: str | None
    group_size: int | None
    max_prompts: int | None
    pairs: PairOptions | None
    mix_demonstrations: bool
    train_temperature: float | Literal["as_sampled"]
    found: bool = False

    def __post_init__(self) -> None:
        sampled: dict[str, object] = {
            "sampler": self.sampler,
            "group_size": self.group_size,
            "max_prompts": self.max_prompts,
            "pairs": self.pairs,
            "mix_demonstrations": self.mix_demonstrations or None,
        }
        for name, value in sampled.items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
            if value is not None and self.asked == "files":
                raise UserError(f"{name} is set, but with origin: files nothing is sampled: leave it out")
        if self.train_temperature == "as_sampled":
            if self.asked == "files":
                raise UserError(_NEEDS_A_NUMBER)
        elif not 0 < self.train_temperature < math.inf:
            raise UserError(f"train_temperature must be above 0, or as_sampled, not {self.train_temperature}")

    @property
    def samples(self) -> bool:
        """Whether responses are sampled; they are the source's own otherwise. Known for sure once `settled`."""
        return not self.found and self.asked != "files"

    @property
    def responses(self) -> int:
        """Responses that are sampled to each prompt, G."""
        return self.group_size or _GROUP_SIZE

    def settled(self, wanted: Pairs, shape: Shape | None, idle_rewards: bool) -> Origin:
        """Take the source's own responses if no option says otherwise and they are what is learnt from, or judged.

        Options that have no effect then are said, and left out.

        Args:
            wanted: by the module.
            shape: of the rows; None if the source has none.
            idle_rewards: rewards are listed that pairs of the source have no use for.

        Raises:
            UserError: for an option that means nothing without sampling.
        """
        brings = "pairs" if wanted.any else "labels"
        if self.asked is not None or shape is None or brings not in shape.offers:
            return self
        idle: dict[str, object] = {
            "sampler": self.sampler,
            "max_prompts": self.max_prompts,
            "pairs": self.pairs,
            "mix_demonstrations": self.mix_demonstrations,
            "rewards": idle_rewards,
            "group_size": self.responses != _GROUP_SIZE,
        }
        if any(idle.values()):
            names = ", ".join(name for name, value in idle.items() if value)
            log.info("The rows bring %s (origin: files), so these options have no effect: %s", shape, names)
        if self.train_temperature == "as_sampled":
            raise UserError(_NEEDS_A_NUMBER)
        return replace(self, found=True, sampler=None, max_prompts=None, pairs=None, mix_demonstrations=False)

    def check(self, module: Learner, sampling: Sampling, limited: bool, keeps: bool) -> None:
        """Refuse what contradicts the algorithm or the other options.

        Args:
            module: the algorithm.
            sampling: how responses would be sampled.
            limited: written text is cut, or left out where it is too long, by an option.
            keeps: a folder for the cache was named.

        Raises:
            UserError: naming the option.
        """
        pairs = Pairs.of(module).any
        for name, given in (
            ("pairs", not pairs and self.pairs),
            ("mix_demonstrations", pairs and self.mix_demonstrations),
        ):
            if given:
                served = "preference pairs" if pairs else "samples"
                raise UserError(f"{name} is set, but {type(module).__name__} learns from {served}: leave it out")
        if not self.samples:
            if keeps and not module.wants_reference:
                raise UserError("cache_dir is set, but there is nothing to keep: leave it out")
            return
        if pairs and self.responses < 2:
            raise UserError(f"group_size={self.responses} makes no pairs: set it to at least 2")
        if sampling.temperature == 0 and self.responses > 1:
            raise UserError("sampling.temperature: 0 makes the same response again and again: set it above 0")
        sampling.check(training=False)
        if limited and not self.mix_demonstrations:
            raise UserError(
                "max_length and truncation are of written text, and with origin: sampled none is learnt from: leave them out, and "
                "set sampling.max_new_tokens"
            )

    def check_callbacks(self, stages: Stages, wanted: Pairs) -> None:
        """Refuse callbacks that would do nothing.

        Raises:
            UserError: naming the callback.
        """
        stages.refuse(["keep_groups"], "drops groups while sampling for training, which is over before it begins")
        if wanted.any:
            stages.refuse(["on_rollout_advantages"], "makes advantages, and preference pairs have none")
        if wanted.any and not self.samples:
            stages.refuse(["on_rollout_rewards"], "changes rewards, and pairs from files have none")
