"""Checks before anything is sampled: whether algorithm, data, rewards and policy fit together."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from rl_lightning.data.sources.base import Example, ExampleSource, Split
from rl_lightning.data.sources.problems import Problems
from rl_lightning.data.sources.shape import Offer, Shape
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.learner import Learner
from rl_lightning.models import PolicyFiles
from rl_lightning.rewards import Rewarder

log = logging.getLogger(__name__)

_SPLITS: tuple[Split, ...] = ("train", "val", "test")

#: What training steps are given → what the rows must bring for it, and what the algorithm does.
_NEEDS: dict[str, tuple[Offer, str]] = {
    "rollouts": ("prompts", "samples its own responses to prompts"),
    "sampled": ("prompts", "learns from responses that are sampled to prompts"),
    "demonstrations": ("responses", "imitates written responses"),
    "preferences": ("pairs", "learns from pairs of a better and a worse response"),
    "samples": ("responses", "learns from written responses and their rewards"),
}
#: What is given, what it is offered instead of → what to do.
_ADVICE: dict[tuple[str, Offer], str] = {
    ("rollouts", "pairs"): "take DPO or RewardModel, or name the prompts alone: prompt_column",
    ("sampled", "pairs"): "set origin: files, or name the prompts alone: prompt_column",
    ("demonstrations", "pairs"): "take DPO or RewardModel, or name the responses to imitate: response_column: chosen",
    ("preferences", "labels"): "take LabelledKTO (--config labelled_kto)",
    (
        "demonstrations",
        "labels",
    ): "take RFT or LabelledKTO, or name them to imitate bad ones too: response_column: completion",
}


def check_serves(module: Learner, data: str, serves: Sequence[str]) -> None:
    """Refuse an algorithm that learns from what a DataModule does not serve.

    Args:
        module: the algorithm.
        data: class of the DataModule.
        serves: what it serves.

    Raises:
        UserError: with both.
    """
    if module.learns_from not in (None, *serves):
        raise UserError(
            f"{type(module).__name__} learns from {module.learns_from}, but {data} serves "
            f"{' and '.join(serves) or 'nothing'}: change data.class_path or model.class_path"
        )


def check_stop_ids(sampling: Sampling, files: PolicyFiles) -> None:
    """Refuse stop tokens that the policy does not have.

    Raises:
        UserError: naming the first.
    """
    known = files.config.get_text_config().vocab_size
    unknown = [number for number in sampling.stop_token_ids or () if number >= known]
    if unknown:
        raise UserError(f"sampling.stop_token_ids: {unknown[0]} is none of the policy's {known} token ids")


def shapes(source: ExampleSource) -> list[Shape]:
    """Return what the rows of each split hold; nothing for a source that makes its examples itself."""
    found = [source.shape(split) for split in _SPLITS if source.has(split)]
    return [shape for shape in found if shape is not None]


def without_reward(source: ExampleSource) -> str:
    """Return the message that a source has no reward, and what to do."""
    no_gold = (
        ", and its rows hold no gold answers (answer, solution, ground_truth, or answer_column)"
        if shapes(source)
        else ""
    )
    return (
        f"{type(source).__name__} has no reward of its own{no_gold}: give the DataModule one, such as "
        "rewards: rl_lightning.rewards.functions.answer_correct where examples have answers, or a function of yours"
    )


def check_fit(algorithm: str, given: str, source: ExampleSource, shape: Shape) -> None:
    """Refuse rows that an algorithm cannot learn from.

    Args:
        algorithm: its name.
        given: what training steps are given: `rollouts`, `demonstrations`, and `preferences` or `samples` from files or `sampled`.
        source: of the rows.
        shape: of the rows.

    Raises:
        UserError: with what the algorithm does, what the rows hold, and what to do.
    """
    needed, does = _NEEDS[given]
    offers = shape.offers
    unwanted = given == "demonstrations" and "labels" in offers
    if not unwanted and (needed in offers or (given == "demonstrations" and "texts" in offers)):
        return
    held = next(one for one in ("labels", "pairs", "texts", "prompts") if one in offers)
    columns = ", ".join(shape.columns)
    general = f"it needs {_WANTED[needed]}" if not unwanted else "good and bad ones alike"
    advice = _ADVICE.get((given, held), general)
    raise UserError(f"{algorithm} {does}, and {type(source).__name__} holds {shape} (columns: {columns}): {advice}")


_WANTED: dict[Offer, str] = {
    "prompts": "prompts (prompt, question, or messages that end with the user)",
    "responses": "responses beside the prompts (completion, response, output or solution; or messages; or set response_column)",
    "pairs": "pairs (chosen and rejected, or response_column and rejected_column)",
}


def require_answers(rewarder: Rewarder, split: Split, source: ExampleSource, examples: Sequence[Example]) -> None:
    """Refuse a split without any gold answer if a reward compares with one: once, and not for each row.

    Args:
        rewarder: of the split's responses.
        split: of the examples.
        source: of the examples; nothing is said of one that makes them itself.
        examples: all of the split.

    Raises:
        UserError: with the columns, and what to do.
    """
    shape = source.shape(split) if examples and all(example.answer is None for example in examples) else None
    (complaint,) = rewarder.check_answers([None]) if shape is not None else (None,)
    if shape is not None and complaint is not None:
        raise UserError(
            f"no {split} example has a gold answer, and a reward compares with one: {type(source).__name__} holds {shape} (columns: "
            f"{', '.join(shape.columns)}); set its answer_column, or choose another reward"
        )


def say_what_was_read(split: Split, source: ExampleSource, kept: int, dropped: Problems) -> None:
    """Log in one line what was understood of a split's rows.

    Args:
        split: of the rows.
        source: of the rows; nothing is said of one that makes its examples itself.
        kept: how many there are to learn from.
        dropped: those that were left out.
    """
    shape = source.shape(split)
    if shape is None:
        return
    kinds = Counter(dropped.rows.values()).most_common()
    out = f", {len(dropped.rows):,} dropped: {', '.join(f'{count:,} {kind}' for kind, count in kinds)}" if kinds else ""
    rows = kept + len(dropped.rows)
    log.info("%s data: %s; %s%s", split, shape, f"{rows:,} row{'' if rows == 1 else 's'}", out)
