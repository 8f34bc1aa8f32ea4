"""Held-out prompts, answered and scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from lightning.pytorch import Trainer

from rl_lightning.data.encoded import EncodedPrompt
from rl_lightning.data.sampler import Sampler
from rl_lightning.data.sources.base import Split
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.learner import SampledPolicy
from rl_lightning.strategies import data_parallel_rank, data_parallel_size
from rl_lightning.typed import Typed
from rl_lightning.types import Sealed


@dataclass
class Evaluation(metaclass=Typed):
    """How held-out prompts are answered in `validate`, `test` and `predict`; responses end as in training.

    Args:
        samples_per_prompt: k answers each; pass@1 to pass@k are estimated from them.
        prompts_per_batch: prompts answered side by side.
        max_prompts: use only the first prompts of the split; all if null.
        temperature, top_k, top_p, min_p: see `Sampling`.
        max_new_tokens: as in training if null.
    """

    samples_per_prompt: int = 8
    prompts_per_batch: int = 64
    max_prompts: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be."""
        for name in ("samples_per_prompt", "prompts_per_batch", "max_prompts", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"evaluation.{name} must be at least 1, not {value}")

    def sampling(self, training: Sampling) -> Sampling:
        """Return how to sample, given how training samples: as there, but for the options that this has too."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        shared = {item.name: own.get(item.name) for item in fields(training)}
        return replace(training, **{name: value for name, value in shared.items() if value is not None})


def batches_of_rank(trainer: Trainer, count: int, size: int) -> list[list[int]]:
    """Return the numbers below `count` that this rank looks at, in batches.

    Every rank has as many batches, none of them empty: sharded models are gathered by all ranks together.

    Args:
        trainer: knows the ranks.
        count: of all things, at least one a rank; none at all is fine too.
        size: most things in a batch; one more where the ranks could not have as many batches otherwise.

    Raises:
        UserError: if there are fewer things than ranks.
    """
    rank, ranks = data_parallel_rank(trainer), data_parallel_size(trainer)
    if count == 0:
        return []
    if count < ranks:
        raise UserError(f"there are {count} things to evaluate on, too few for {ranks} ranks: use fewer devices")
    batches = min(-(-count // (ranks * size)), count // ranks)
    return [part.tolist() for part in torch.arange(rank, count, ranks).tensor_split(batches)]


@dataclass
class EvaluationLoader:
    """Samples k answers to every held-out prompt; a sized, lazy iterable of rollouts.

    An answer's random stream is named by its prompt, so evaluation disturbs no training and two evaluations of one
    policy agree, whatever the batch size.

    Args:
        trainer: knows the ranks.
        source: gives answers. Lightning takes a loader's `sampler` for something else.
        policy: returns what is sampled, once the strategy has placed it.
        split: of the prompts.
        prompts: all of the split, on every rank.
        evaluation: how many answers, and how many prompts at a time.
        sampling: how.
    """

    trainer: Trainer
    source: Sampler
    policy: Callable[[], SampledPolicy]
    split: Split
    prompts: Sequence[EncodedPrompt]
    evaluation: Evaluation
    sampling: Sampling
    _batches: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self._batches = batches_of_rank(self.trainer, len(self.prompts), self.evaluation.prompts_per_batch)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Sealed]:
        for chosen in self._batches:
            prompts = [self.prompts[position] for position in chosen]
            size = self.evaluation.samples_per_prompt
            with self.source.watch.agreed():
                rollout = self.source.respond(self.policy(), self.split, prompts, chosen, size, self.sampling)
            yield Sealed(rollout)
