"""Online data: the policy's own samples, one rollout a Lightning epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from rl_lightning.data.loader import StepSizes, permutation, plan_steps, refuse_partial_epochs, step_weights
from rl_lightning.data.sampling import SamplingDataModule
from rl_lightning.errors import UserError
from rl_lightning.functional import masked_mean
from rl_lightning.hooks import RolloutCallback
from rl_lightning.strategies import data_parallel_rank, data_parallel_size, mean_over_ranks
from rl_lightning.types import Minibatch, Rollout


class RolloutDataModule(SamplingDataModule):
    """Samples the policy, scores the samples, and serves them as minibatches.

    Every size is counted over all ranks, so the same YAML means the same on one device and on eight.

    Args:
        prompts_per_rollout: prompts that a rollout answers.
        group_size: responses to each of them, G.
        epochs_per_rollout: times that a rollout is gone through.
        minibatch_size: responses in an optimizer step, whole groups; the whole rollout if null (strictly on-policy).
        microbatch_size: responses in one forward pass of one device; as many as the step has there if null. Changes
            memory and speed, never the gradient.
        **sampling_options: prompts, sampling, rewards and so on: see `SamplingDataModule`.
    """

    serves = ("rollouts",)

    def __init__(
        self,
        prompts_per_rollout: int = 32,
        group_size: int = 8,
        epochs_per_rollout: int = 1,
        minibatch_size: int | None = None,
        microbatch_size: int | None = None,
        **sampling_options: Any,
    ) -> None:
        super().__init__(**sampling_options)
        for name, value in (
            ("prompts_per_rollout", prompts_per_rollout),
            ("group_size", group_size),
            ("epochs_per_rollout", epochs_per_rollout),
        ):
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        self.prompts_per_rollout = prompts_per_rollout
        self.group_size = group_size
        self.epochs_per_rollout = epochs_per_rollout
        self.minibatch_size = prompts_per_rollout * group_size if minibatch_size is None else minibatch_size
        self.microbatch_size = microbatch_size

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer steps that one rollout serves."""
        return self.epochs_per_rollout * (self.prompts_per_rollout * self.group_size // self.minibatch_size)

    def describe(self) -> dict[str, str]:
        """Return the lines of the run card that speak of the data."""
        rows, updates = self.prompts_per_rollout * self.group_size, self.updates_per_rollout
        policy = "strictly on-policy" if updates == 1 else "off-policy after the first update of each rollout"
        return super().describe() | {
            "rollout": f"{self.prompts_per_rollout} prompts × {self.group_size} responses = {rows}, up to "
            f"{self.sampling.max_new_tokens} tokens each, temperature {self.sampling.temperature:g}",
            "update": f"{updates} a rollout, {self.minibatch_size} responses (up to "
            f"{self.minibatch_size * self.sampling.max_new_tokens:,} tokens) each in {self.sizes.accumulate} "
            f"microbatch(es); {policy}",
        }

    def setup(self, stage: str) -> None:
        """Check sizes and callbacks before anything is sampled, then set up prompts and rewards."""
        assert self.trainer is not None
        if stage == "fit":
            self.sampling.check(training=True)
            rows = self.prompts_per_rollout * self.group_size
            if self.minibatch_size < 1 or rows % self.minibatch_size:
                raise UserError(
                    f"minibatch_size={self.minibatch_size} must divide prompts_per_rollout × group_size = {rows}"
                )
            self.sizes = plan_steps(self.trainer, self.minibatch_size, self.microbatch_size, unit=self.group_size)
            refuse_partial_epochs(self.trainer, self.microbatches_per_epoch())
            self._check_callbacks()
        super().setup(stage)
        if stage == "fit" and len(self._encoded["train"]) < self.prompts_per_rollout:
            raise UserError(
                f"prompts_per_rollout={self.prompts_per_rollout} but there are only "
                f"{len(self._encoded['train'])} training prompts"
            )

    def _check_callbacks(self) -> None:
        """Refuse to start without a callback that the algorithm relies on, or with one that cannot work."""
        assert self.trainer is not None
        supplied = {name for callback in self._rollout_callbacks() for name in callback.supplies}
        for name, class_path in self.module.needs.items():
            if name not in supplied:
                raise UserError(
                    f"{type(self.module).__name__} needs {name}, which no callback supplies: add "
                    f"'- class_path: {class_path}' under trainer.callbacks"
                )
        for callback in self._rollout_callbacks():
            for name in set(callback.supplies) & set(self.module.fills):
                raise UserError(
                    f"{type(self.module).__name__} computes {name} itself, and {type(callback).__name__} would overwrite them: "
                    "take it out of trainer.callbacks"
                )
            callback.check_settings(self.trainer)

    def microbatches_per_epoch(self) -> int:
        """Return the number of forward passes that a rollout is trained with on each rank."""
        return self.updates_per_rollout * self.sizes.accumulate

    def epoch(self, number: int, state: dict[str, Any] | None) -> RolloutEpoch:
        """Sample rollout `number`, or restore it."""
        assert self.trainer is not None
        rollout = self.collect(number) if state is None else Rollout.from_state_dict(state).to(self.module.device)
        return RolloutEpoch(self, number, rollout, self.sizes)

    # ------------------------------------------------------------- one rollout

    def collect(self, number: int) -> Rollout:
        """Sample, score and shape rollout `number`, ready to be trained on."""
        positions, first = self._positions(number)
        prompts = [self._encoded["train"][position] for position in positions]
        streams = self.streams("train", first * self.group_size, len(prompts) * self.group_size)
        rollout = self.respond(prompts, positions, streams, self.sampling)
        # The order of the first epoch is the order of the rows; groups stay whole. See `OnlineModule.score`.
        order = permutation(len(prompts), self.seed, number, 0)
        rollout = rollout.select(self._rows_of_groups(order))
        assert self.trainer is not None
        for callback in self._rollout_callbacks():
            callback.on_rollout_rewards(self.trainer, self.module, rollout)
        rollout = self._score_by_policy(rollout)
        self.module.on_rollout_scored(rollout)
        for callback in self._rollout_callbacks():
            callback.on_rollout_advantages(self.trainer, self.module, rollout)
        rollout.metrics.update(self._metrics(rollout))
        rollout = replace(rollout, metrics=mean_over_ranks(rollout.metrics))
        for callback in self._rollout_callbacks():
            callback.on_rollout_end(self.trainer, self.module, rollout)
        return rollout

    def _positions(self, number: int) -> tuple[list[int], int]:
        """Return the prompts that this rank answers in a rollout, and the number of the first over the whole run.

        The run goes through all prompts in a random order, then through all in another one, and so on.
        """
        assert self.trainer is not None
        share = self.prompts_per_rollout // data_parallel_size(self.trainer)
        first = number * self.prompts_per_rollout + data_parallel_rank(self.trainer) * share
        count = len(self._encoded["train"])
        passes = range(first // count, (first + share - 1) // count + 1)
        order = {turn: permutation(count, self.seed, turn) for turn in passes}
        return [int(order[place // count][place % count]) for place in range(first, first + share)], first

    def _rows_of_groups(self, groups: torch.Tensor) -> torch.Tensor:
        """Return the row numbers of whole groups, for rows that stand group by group."""
        return (groups[:, None] * self.group_size + torch.arange(self.group_size)).flatten()

    def _rollout_callbacks(self) -> list[RolloutCallback]:
        assert self.trainer is not None
        return [callback for callback in self.trainer.callbacks if isinstance(callback, RolloutCallback)]  # type: ignore[attr-defined]

    def _score_by_policy(self, rollout: Rollout) -> Rollout:
        """Let the algorithm look at the rollout before the policy changes, in the microbatches of the first epoch."""
        started = time.perf_counter()
        parts: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
        with self.module.rollout_mode():
            for rows in torch.arange(len(rollout)).split(self.sizes.microbatch):
                batch = rollout.microbatch(rows)
                parts.append((rows, self.module.score(batch, single_update=self.updates_per_rollout == 1)))
        scored: dict[str, Any] = {}
        for rows, part in parts:
            for name, value in part.items():
                shape = rollout.response_mask.shape if value.dim() == 2 else rollout.truncated.shape
                whole = scored.setdefault(name, value.new_zeros(shape))
                if value.dim() == 2:
                    whole[rows, : value.shape[1]] = value
                else:
                    whole[rows] = value
        rollout = replace(rollout, **scored)
        rollout.metrics["time/score_s"] = time.perf_counter() - started
        return rollout

    def _metrics(self, rollout: Rollout) -> dict[str, float]:
        scored = rollout.scored
        groups = [rollout.correct[(rollout.group_ids == group) & scored] for group in rollout.group_ids.unique()]
        groups = [group for group in groups if len(group)] or [torch.zeros(1, dtype=torch.bool)]
        values = {
            "rollout/reward_mean": masked_mean(rollout.rewards, scored),
            "rollout/reward_std": rollout.rewards[scored].std() if int(scored.sum()) > 1 else torch.zeros(()),
            "rollout/correct_fraction": masked_mean(rollout.correct.float(), scored),
            "rollout/length_mean": rollout.lengths.float().mean(),
            "rollout/truncated_fraction": rollout.truncated.float().mean(),
            "rollout/all_right_fraction": torch.tensor([float(group.all()) for group in groups]).mean(),
            "rollout/all_wrong_fraction": torch.tensor([float(not group.any()) for group in groups]).mean(),
        }
        values |= {
            f"reward/{name}": masked_mean(component, ~component.isnan())
            for name, component in rollout.reward_components.items()
        }
        return {name: float(value) for name, value in values.items()}


class RolloutEpoch:
    """The microbatches of one rollout: epochs × minibatches × microbatches.

    Args:
        data: knows the sizes and the seed.
        number: of the rollout in the run, from 0.
        rollout: this rank's rows, in the order of the first epoch.
        sizes: how an optimizer step is cut up.
    """

    def __init__(self, data: RolloutDataModule, number: int, rollout: Rollout, sizes: StepSizes) -> None:
        self.data = data
        self.number = number
        self.rollout = rollout
        self.sizes = sizes

    def microbatches(self, start: int) -> Iterator[Minibatch]:
        """Yield the microbatches from number `start` on."""
        data, size = self.data, self.sizes.microbatch
        assert data.trainer is not None
        steps = [
            rows for epoch in range(data.epochs_per_rollout) for rows in self._order(epoch).split(self.sizes.minibatch)
        ]
        masks = [(self.rollout.response_mask[rows], self.rollout.group_ids[rows]) for rows in steps]
        weights = step_weights(data.trainer, masks, data.module.reduction, data.sampling.max_new_tokens)
        for number in range(start, len(steps) * self.sizes.accumulate):
            step, part = divmod(number, self.sizes.accumulate)
            cut = slice(part * size, (part + 1) * size)
            yield self.rollout.microbatch(
                steps[step][cut],
                weights[step][cut],
                ends_step=part + 1 == self.sizes.accumulate,
                metrics=self.rollout.metrics if number == 0 else {},
            )

    def _order(self, epoch: int) -> torch.Tensor:
        """Return all row numbers in the order of an epoch, groups whole."""
        groups = len(self.rollout) // self.data.group_size
        order = torch.arange(groups) if epoch == 0 else permutation(groups, self.data.seed, self.number, epoch)
        return self.data._rows_of_groups(order)

    def state_dict(self) -> dict[str, Any]:
        """Return the rollout as it is trained on."""
        return self.rollout.state_dict()
