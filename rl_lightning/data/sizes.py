"""Whether the sizes of a run add up, and what Lightning is told of them; before anything is sampled."""

from __future__ import annotations

from lightning.pytorch import Trainer

from rl_lightning.data.steps import StepSizes
from rl_lightning.errors import UserError


def check_cuts(microbatch_size: int | None, max_tokens: int | None) -> None:
    """Refuse two ways to cut an optimizer step up, and an impossible one.

    Raises:
        UserError: for both options, or a budget below one token.
    """
    if microbatch_size is not None and max_tokens is not None:
        raise UserError(
            "microbatch_size and max_tokens_per_microbatch both say what goes into a forward pass: drop one of them"
        )
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_tokens_per_microbatch must be at least 1, not {max_tokens}")


def bound_line(max_tokens: int | None) -> str:
    """Return what the run card says of the size of microbatches, after their number."""
    return "" if max_tokens is None else f" of up to {max_tokens:,} tokens"


def share_of_rank(minibatch_size: int, ranks: int, unit: int = 1) -> int:
    """Return how many rows of an optimizer step each rank has.

    Args:
        minibatch_size: rows in an optimizer step, over all ranks.
        ranks: data-parallel ranks.
        unit: rows that must stay together, such as the members of a group.

    Raises:
        UserError: if the ranks cannot have as many.
    """
    if minibatch_size < 1 or minibatch_size % (ranks * unit):
        together = f" whole groups of {unit}" if unit > 1 else ""
        raise UserError(
            f"minibatch_size={minibatch_size} must be a multiple of {ranks * unit}:{together} on {ranks} rank(s)"
        )
    return minibatch_size // ranks


def equal_cuts(minibatch: int, microbatch_size: int | None) -> StepSizes:
    """Cut an optimizer step into microbatches of as many rows.

    Args:
        minibatch: rows that one rank has of an optimizer step.
        microbatch_size: rows in one forward pass of one rank; all that the rank has if None.

    Raises:
        UserError: naming the two sizes that do not divide.
    """
    microbatch = minibatch if microbatch_size is None else microbatch_size
    if microbatch < 1 or minibatch % microbatch:
        raise UserError(
            f"microbatch_size={microbatch_size} must divide the {minibatch} rows that each rank has of an optimizer step"
        )
    return StepSizes(minibatch, microbatch, minibatch // microbatch)


def accumulate(trainer: Trainer, sizes: StepSizes) -> StepSizes:
    """Tell Lightning how many forward passes make an optimizer step, and return the sizes.

    Args:
        trainer: its `accumulate_grad_batches` is set, as Lightning's own scheduler of accumulation does.
        sizes: of an optimizer step.

    Raises:
        UserError: if the trainer was given another number.
    """
    if trainer.accumulate_grad_batches not in (1, sizes.accumulate):
        raise UserError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} contradicts the {sizes.accumulate} microbatches "
            "that an optimizer step is cut into; leave it out, it follows from the sizes"
        )
    trainer.accumulate_grad_batches = sizes.accumulate
    return sizes


def refuse_partial_epochs(trainer: Trainer, microbatches: int) -> None:
    """Refuse to train on part of an epoch: optimizer steps would lack tokens that their weights count.

    Raises:
        UserError: for `limit_train_batches` or `overfit_batches` between none and all; `fast_dev_run` may.
    """
    limit = trainer.limit_train_batches
    whole = limit in (0, 1.0) if isinstance(limit, float) else limit == 0 or limit >= microbatches
    if not whole and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise UserError(
            f"limit_train_batches={limit} would cut an epoch of {microbatches} microbatches short, in the middle of an optimizer "
            "step: use fewer prompts, or trainer.max_steps"
        )
