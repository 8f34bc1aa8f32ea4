"""Tables of labelled responses: sampled and scored, or read from a source with what it says of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from rl_lightning.data.cuts import Stretches, require_fit
from rl_lightning.data.encoded import EncodedPrompts
from rl_lightning.data.offline.frozen import FrozenSampling, FrozenTables
from rl_lightning.data.offline.pairs import PairOptions, PairTable, written_pairs
from rl_lightning.data.offline.samples import ResponseTable, with_demonstrations
from rl_lightning.data.offline.written import written_rollout
from rl_lightning.data.sampler import Sampler, reward_sample
from rl_lightning.data.sources.base import Split
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.hooks import Stages
from rl_lightning.learner import Learner, PolicyLearner, ReferenceLearner
from rl_lightning.measures import rollout_metrics
from rl_lightning.stopping import Ends
from rl_lightning.types import Rollout

log = logging.getLogger(__name__)

#: The reward that the data bring themselves, as metrics and tables call it.
_LABEL = "label"


@dataclass(frozen=True)
class LabelledTables:
    """Makes the tables of a `RewardDataModule`.

    Args:
        module: learns from them, and says whether it wants a reference.
        sampler: asks for responses and rewards.
        frozen: samples with frozen models, and keeps what they make.
        stages: the callbacks that act on scored responses.
        ends: of written responses.
        asked: split → what is sampled for it; None where responses come from the source.
        sampling: how responses are sampled.
        pairs: how pairs are made of sampled responses.
        mix_demonstrations: demonstrations join the samples.
        train_temperature: τ that rows are learnt at, or `as_sampled`.
        seed: of the choice among equal pairs.
    """

    module: Learner
    sampler: Sampler
    frozen: FrozenTables
    stages: Stages
    ends: Ends
    asked: FrozenSampling | None
    sampling: Sampling
    pairs: PairOptions
    mix_demonstrations: bool
    train_temperature: float | Literal["as_sampled"]
    seed: int

    def pair_table(self, split: Split, prompts: EncodedPrompts) -> tuple[PairTable, Rollout | None]:
        """Return the pairs of a split, and the scored responses that they were made of, if they were.

        Raises:
            UserError: if there is no pair.
        """
        rollout = None if self.asked is None else self._scored(split, prompts)
        if rollout is None:
            temperature = 1.0 if self.train_temperature == "as_sampled" else self.train_temperature
            table = written_pairs(prompts, self.ends.tokenizer.pad_token_id, temperature)
        else:
            table = PairTable.of(rollout, self.pairs, self.seed, self.sampling.max_new_tokens)
        if not len(table):
            raise UserError(
                f"there are no {split} pairs: none of {len(prompts)} prompts has two different responses whose rewards differ by "
                f"more than {self.pairs.min_gap:g}; raise group_size or sampling.temperature, lower pairs.min_gap, or choose "
                "another reward"
            )
        log.info("%s: %s", split, table)
        return table, rollout

    def add_reference(self, table: PairTable | ResponseTable, size: int | None, budget: int | None, units: str) -> None:
        """Add the reference's log-probabilities to pairs or responses, if the module wants them.

        Args:
            table: of them.
            size: pairs or responses in a forward pass of the reference, where there is no budget.
            budget: tokens in a pass at most.
            units: what messages call them.
        """
        if not self.module.wants_reference:
            return
        passes = reference_passes(table, size, budget, units)
        module = cast(ReferenceLearner, self.module)
        table.rows = replace(table.rows, ref_logprobs=self.frozen.reference_logprobs(module, table.rows, passes))

    def sample_table(self, prompts: EncodedPrompts) -> tuple[ResponseTable, Rollout]:
        """Return the training samples that have something to teach, and all scored responses.

        Raises:
            UserError: if none has.
        """
        rollout = self._scored("train", prompts)
        cast(PolicyLearner, self.module).on_rollout_scored(rollout)
        self.stages.advantages(rollout)
        rollout.metrics.update(rollout_metrics(rollout))
        longest = rollout.response_length if self.asked is None else self.sampling.max_new_tokens
        if not len(ResponseTable.of(rollout, longest)):
            raise UserError(
                f"none of {len(rollout)} responses to {len(prompts)} prompts is accepted, so there is nothing to "
                "learn: raise group_size, choose easier prompts or a better sampler, or lower the threshold"
            )
        whole = with_demonstrations(rollout, prompts, self.ends) if self.mix_demonstrations else rollout
        table = ResponseTable.of(whole, longest)
        log.info("Samples: %s", table)
        return table, rollout

    def _scored(self, split: Split, prompts: EncodedPrompts) -> Rollout:
        """Return the responses to the prompts of a split, with rewards that callbacks have changed, the same on all ranks."""
        if self.asked is not None:
            rollout = self.frozen.responses(replace(self.asked, split=split, prompts=prompts))
        else:
            rollout = written_rollout(prompts, (0,), self.ends)
            if self.sampler.rewarder is None:
                rollout = self._labelled(rollout, prompts)
            else:
                rows = zip(prompts, rollout.responses, rollout.truncated.tolist(), rollout.unpadded_ids(), strict=True)
                rollout = self.sampler.reward(rollout, [reward_sample(*row) for row in rows])
        self.stages.rewards(rollout)
        return self._learnt(rollout)

    def _labelled(self, rollout: Rollout, prompts: EncodedPrompts) -> Rollout:
        """Return written responses with their labels as rewards.

        Raises:
            UserError: for responses without a label.
        """
        labels = [example.label for example in prompts.examples]
        missing = [example.location for example in prompts.examples if example.label is None]
        if missing:
            what = (
                "no response has a label"
                if len(missing) == len(labels)
                else f"{missing[0]} has no label, and {len(missing) - 1} more"
            )
            raise UserError(
                f"origin: files without rewards learns from the labels of the source, and {what}: set the source's label_column, or "
                "give the DataModule a reward"
            )
        values = torch.tensor([float(label or 0.0) for label in labels])
        return replace(
            rollout,
            raw_rewards=values,
            rewards=values.clone(),
            correct=values >= self.sampler.correct_threshold,
            reward_components={_LABEL: values.clone()},
        )

    def _learnt(self, rows: Rollout) -> Rollout:
        """Return rows at the temperature that they are learnt at."""
        if self.train_temperature == "as_sampled":
            return rows
        return replace(rows, temperature=self.train_temperature)


def reference_passes(
    table: PairTable | ResponseTable, size: int | None, budget: int | None, units: str
) -> list[Tensor]:
    """Return the rows of the forward passes in which a frozen model looks at all of a table.

    Args:
        table: of pairs, or of responses.
        size: pairs or responses in a pass, where there is no budget.
        budget: tokens in a pass at most.
        units: what messages call them.
    """
    rows, order = table.rows, torch.arange(len(table.rows))
    # Rows 2i and 2i + 1 are a pair and stay together, so that their prompt is read once.
    unit = len(order) // len(table)
    if budget is None:
        assert size is not None
        return list(order.split(unit * size))
    require_fit(budget, int(table.tokens().max()), f"the longest of the {units} has")
    stretches = Stretches(rows.prompt_lengths, rows.lengths, rows.group_ids, unit=unit)
    return list(order.split([unit * number for number in stretches.filled(budget)]))
