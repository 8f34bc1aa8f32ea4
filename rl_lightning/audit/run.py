"""Answers for an audit, from a policy and its DataModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import lightning.pytorch as pl
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import Tensor

from rl_lightning.audit.report import draw, figure_for, report
from rl_lightning.audit.verdicts import TRAINED, Answers, Verdict, check_sizes, judge
from rl_lightning.callbacks import PredictionWriter
from rl_lightning.callbacks.verifier import find_verifier
from rl_lightning.data.evaluation import Evaluation
from rl_lightning.data.sampling import SamplingDataModule
from rl_lightning.data.sources.base import Split
from rl_lightning.errors import UserError
from rl_lightning.hooks import RolloutCallback, Stages
from rl_lightning.strategies import from_every_rank
from rl_lightning.types import Rollout

#: Columns beside the rewards, under names that no reward has.
_LENGTH, _PROMPT = " length", " prompt"


class Audits(pl.Trainer):
    """A Trainer that can audit rewards."""

    #: What the last audit said of each reward.
    verdicts: Sequence[Verdict] = ()

    def audit(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        verifier: str | None = None,
        prompts: int = 32,
        answers: int = 32,
        best_of: Sequence[int] = (1, 4, 16),
        picture: str | None = None,
        ckpt_path: str | None = None,
    ) -> Sequence[Verdict]:
        """Judge rewards before training: sample answers to held-out prompts, score them, and ask a verifier about the best.

        Prints a table with a line for each reward, and one for what training would maximise if that is something else: all rewards by
        weight, as callbacks have shaped them. A reward alarms if the verifier at the best of 16 answers by it is lower than that of the
        average answer, by more than two standard errors over prompts. Nothing is trained.

        Args:
            model: with the policy that is to be trained.
            datamodule: with prompts and rewards; answers are sampled as in training.
            verifier: name of a reward at weight 0 that knows the truth; the only one at weight 0 if null.
            prompts: held-out prompts, from the split `test`, or `val` if there is no test data.
            answers: to each prompt; at least twice the largest n.
            best_of: n of "best of n".
            picture: file for a picture of the verifier against n; none if null.
            ckpt_path: a checkpoint whose policy is audited.

        Returns:
            What was said of each reward.

        Raises:
            UserError: without held-out prompts or a verifier, and for a verifier that is trained on or has no spread.
        """
        if not isinstance(datamodule, SamplingDataModule) or (rewarder := datamodule.rewards.settle()) is None:
            raise UserError("audit: the data have no rewards to judge: list them under data.init_args.rewards")
        if "responses" not in getattr(model, "evaluates_on", ("responses",)):
            raise UserError(
                f"audit: {type(model).__name__} answers no prompts: audit a reward model as a reward of the policy that is to be trained"
            )
        weights = {reward.name: reward.weight for reward in rewarder.rewards}
        verifier = find_verifier("audit", verifier, weights, self.callbacks)  # type: ignore[has-type]
        held_out: tuple[Split, ...] = ("test", "val")
        split = next((name for name in held_out if datamodule.source.has(name)), None)
        if split is None:
            raise UserError("audit: the data have neither test nor validation prompts: `val: 0.02` holds a share out")
        check_sizes(prompts, answers, best_of)
        if picture is not None:
            figure_for(picture)
        kept = datamodule.evaluation, datamodule.predicts
        how = datamodule.sampling
        # Answers as training samples them, in batches as evaluation has them.
        size = datamodule.evaluation.prompts_per_batch
        datamodule.evaluation = Evaluation(
            answers, size, prompts, temperature=how.temperature, top_k=how.top_k, top_p=how.top_p, min_p=how.min_p
        )
        datamodule.predicts = split
        scored, callbacks = _Scored(), self.callbacks  # type: ignore[has-type]
        self.callbacks = [one for one in callbacks if not isinstance(one, PredictionWriter)] + [scored]
        try:
            self.predict(model, datamodule=datamodule, return_predictions=False, ckpt_path=ckpt_path)
        finally:
            self.callbacks = callbacks
            datamodule.evaluation, datamodule.predicts = kept
        found = scored.answers(answers, weights)
        self.verdicts = judge(found, verifier, best_of)
        if self.is_global_zero:
            print(report(self.verdicts, verifier, found))
            if picture is not None:
                draw(self.verdicts, verifier, picture)
        return self.verdicts


class _Scored(Callback):
    """Keeps what rewards make of the answers that are sampled."""

    def __init__(self) -> None:
        self.parts: list[dict[str, Tensor]] = []

    def on_predict_start(self, trainer: pl.Trainer, pl_module: LightningModule) -> None:
        """Have callbacks that shape rewards read their settings."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RolloutCallback):
                callback.check_settings(trainer)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: Rollout,
        batch_idx: int,
        *_: object,
    ) -> None:
        """Shape the rewards of a batch as in training, and keep its scores."""
        Stages(trainer).rewards(batch)
        columns = {
            **batch.reward_components,
            TRAINED: batch.rewards,
            _LENGTH: batch.lengths,
            _PROMPT: batch.prompt_index,
        }
        self.parts.append({name: column.cpu() for name, column in columns.items()})

    def answers(self, count: int, weights: Mapping[str, float]) -> Answers:
        """Return the answers of all ranks, prompt by prompt; the trained reward apart only if it is none of the others."""
        every = cast(list[dict[str, Tensor]], [part for parts in from_every_rank(self.parts) for part in parts])
        joined = {name: torch.cat([part[name] for part in every]) for name in every[0]}
        order = joined.pop(_PROMPT).argsort(stable=True)
        table = {name: column[order].view(-1, count) for name, column in joined.items()}
        lengths, trained = table.pop(_LENGTH), table.pop(TRAINED)
        same = [
            name
            for name, score in table.items()
            if weights.get(name) and torch.equal(*map(torch.nan_to_num, (score, trained)))
        ]
        return Answers(table, lengths, same[0]) if same else Answers(table | {TRAINED: trained}, lengths, TRAINED)
