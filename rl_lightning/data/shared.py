"""Encoding once for all ranks of a machine: one writes a file, and all map it into their memory."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

from rl_lightning.data.encoded import EncodedPrompts
from rl_lightning.data.sources.base import Example
from rl_lightning.data.sources.problems import Problems
from rl_lightning.errors import UserError
from rl_lightning.strategies import atomic_save, from_every_rank, load_plain
from rl_lightning.text.day import today, writes_the_day

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

#: What renders and tokenises: another release may do it otherwise.
_PACKAGES = ("transformers", "tokenizers", "jinja2")
#: Counts up whenever the same settings give other arrays, or arrays of another layout.
_LAYOUT = 1


def encoded_once(
    trainer: Trainer,
    folder: Path,
    examples: Sequence[Example],
    unread: Problems,
    tokenizer: PreTrainedTokenizerBase,
    settings: object,
    encode: Callable[[], EncodedPrompts],
) -> EncodedPrompts:
    """Return the encoded prompts of a split; of several ranks on a machine, the first encodes them for all. All ranks call this.

    A file that is there already is used again, and one that cannot be read is made anew. It appears whole or not at all, so a run
    may be killed at any time.

    Args:
        trainer: knows the ranks.
        folder: of the file.
        examples: of the split, the same on every rank.
        unread: gets what was left out, if the encoding was made before.
        tokenizer: of the policy, with the chat template that is used.
        settings: everything else that the encoding follows from, as values with a faithful `repr`.
        encode: does the work.

    Raises:
        UserError: on every rank, if the examples are refused.
    """
    if trainer.world_size == 1:
        return encode()
    told: tuple[str, str] | None = None
    if trainer.local_rank == 0:
        path = folder / f"encoded-{encoding_key(examples, tokenizer, settings)}.pt"
        try:
            told = ("at", str(_kept(path, examples, unread, encode)))
        except UserError as error:
            told = ("refused", str(error))
    heard = from_every_rank(told)
    refused = [said[1] for said in heard if said is not None and said[0] == "refused"]
    if refused:
        raise UserError(refused[0])
    said = heard[trainer.global_rank - trainer.local_rank]
    assert said is not None  # of the first rank of this machine
    return _mapped(Path(said[1]), examples, unread)


def _kept(path: Path, examples: Sequence[Example], unread: Problems, encode: Callable[[], EncodedPrompts]) -> Path:
    """Return the path of a file that holds the encoding, which is made if need be."""
    if path.exists():
        try:
            _mapped(path, examples, unread)
        except UserError as error:
            log.warning("%s; it is made anew", error)
        else:
            log.info("Encoded prompts are taken from %s", path)
            return path
    made = encode().state_dict()  # which adds what it leaves out to the unread rows
    atomic_save(made | {"dropped": unread.rows}, path)
    return path


def _mapped(path: Path, examples: Sequence[Example], unread: Problems) -> EncodedPrompts:
    """Return the encoding that a file holds, whose arrays stay in the file until they are read."""
    found = load_plain(path, mmap=True, map_location="cpu")
    if not isinstance(found, dict) or "dropped" not in found:
        raise UserError(f"{path} holds no encoded prompts: delete it")
    unread.rows.update(found["dropped"])
    return EncodedPrompts.from_state_dict(found, examples)


def encoding_key(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, settings: object) -> str:
    """Return a hash of what an encoding follows from.

    Args:
        examples: what is encoded.
        tokenizer: of the policy, with the chat template that is used.
        settings: everything else; counts by its `repr`.
    """
    whole = hashlib.sha256()
    template = str(tokenizer.chat_template)
    parts = [_LAYOUT, *map(version, _PACKAGES), type(tokenizer).__qualname__, template, settings]
    # A template that writes the date writes another one tomorrow.
    parts.append(today() if writes_the_day(template) else None)
    parts.append(tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items()))
    parts.append(sorted(tokenizer.special_tokens_map.items()))
    for part in parts:
        whole.update(repr(part).encode("utf-8", "surrogatepass"))
    for example in examples:
        read = (example.prompt, example.plain, example.response, example.rejected, example.answer, example.template)
        whole.update(repr((*read, example.max_new_tokens)).encode("utf-8", "surrogatepass"))
    return whole.hexdigest()[:16]
