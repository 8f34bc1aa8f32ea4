"""What a stream of training data is a function of; kept with how far it has come, since its position means nothing in another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import date

from transformers import PreTrainedTokenizerBase

from rl_lightning.data.encoded import EncodedPrompts
from rl_lightning.errors import UserError
from rl_lightning.text.day import today, writes_the_day

#: Names the day in a record.
DAY = "the day that the chat template writes"

#: Begins the values that are hashes; messages leave their digits out.
_HASH = "sha256:"


def digest(parts: Iterable[object]) -> str:
    """Return a hash of some values that have a faithful `repr`, such as numbers, texts, lists and tuples of them."""
    return text_digest(map(repr, parts))


def text_digest(parts: Iterable[str]) -> str:
    """Return a hash of a text, given part by part."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.encode("utf-8", "surrogatepass"))
    return _HASH + whole.hexdigest()[:32]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of a tokenizer's vocabulary, special tokens and chat template."""
    return digest([sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids), tokenizer.chat_template])


def prompt_digests(prompts: EncodedPrompts | None, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return what every run learns from, in words → its hash.

    Args:
        prompts: of training; None if there are none.
        tokenizer: of the policy.
    """
    known = list(zip(prompts.ids, prompts.examples, strict=True)) if prompts is not None else []
    return {
        "the training prompts or their answers (data.init_args.prompts, prompt_options)": digest(
            (ids.tolist(), example.answer) for ids, example in known
        ),
        "what rewards read of the training rows besides (their other columns), or their own caps on new tokens": digest(
            (_plain(example.metadata), example.max_new_tokens) for _, example in known
        ),
        "the tokenizer": tokenizer_digest(tokenizer),
        **({DAY: today().isoformat()} if writes_the_day(tokenizer.chat_template) else {}),
    }


def day_of(checkpoint: Mapping[str, object]) -> date:
    """Return the day that the chat template wrote in the run of a checkpoint; today if it wrote none."""
    for state in checkpoint.values():
        record = state.get("record") if isinstance(state, dict) else None
        if isinstance(record, dict) and DAY in record:
            return date.fromisoformat(str(record[DAY]))
    return date.today()


def _plain(value: object) -> object:
    """Return a value of which everything has a faithful `repr`: the type of what has none, such as an object of a source's own."""
    if isinstance(value, dict):
        return [(_plain(key), _plain(one)) for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (str, int, float)) else type(value).__qualname__


def refuse_changes(saved: Mapping[str, object], own: Mapping[str, object]) -> None:
    """Refuse to go on with other data than a checkpoint was made with.

    Args:
        saved: the checkpoint's record; names of options or things, and numbers, texts or hashes.
        own: this run's.

    Raises:
        UserError: naming all that has changed.
    """
    changes = [_change(name, saved[name], own[name]) for name in own if name in saved and saved[name] != own[name]]
    if changes:
        raise UserError(
            f"the checkpoint cannot go on, for the run is another one: {'; '.join(changes)}. Set that back; or begin a new run from the "
            "trained weights, with the exported model as model.policy and without --ckpt_path"
        )


def _change(name: str, was: object, now: object) -> str:
    return f"{name} changed" if str(was).startswith(_HASH) else f"{name} was {was} and is {now}"
