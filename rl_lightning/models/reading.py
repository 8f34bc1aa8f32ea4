"""Reading files of models through transformers: its errors in one line, and its reports only where they are news."""

from __future__ import annotations

import contextlib
import difflib
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

from rl_lightning.errors import UserError


@contextlib.contextmanager
def reading(what: str, whose: str, known: str) -> Iterator[None]:
    """Turn any error inside this context into a `UserError` that says what cannot be read, and why.

    Args:
        what: is read, such as `the weights`.
        whose: it is; the message begins with it.
        known: what may be named in the place of `whose`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # parsers raise anything for a file of another kind
        reason = _reason(error)
        if "trust_remote_code" in str(error):
            reason = (
                "it needs Python code that comes with the model: read that code, then set "
                "model.init_args.load.trust_remote_code to true"
            )
        raise UserError(f"{whose}: cannot read {what}: {reason} ({known})") from error


def _reason(error: Exception) -> str:
    """Return a parser's error in one line."""
    if isinstance(error, pickle.UnpicklingError):  # torch's own message advises to run the code in the file
        return "it is no file of weights, or holds code, which is never run: save the weights as safetensors"
    text = str(error).strip()
    # Some errors hold no more than a key or a number: put their type in front.
    return text.splitlines()[0] if " " in text else f"{type(error).__name__} {text}".strip()


@contextlib.contextmanager
def without_load_report() -> Iterator[None]:
    """Silence transformers' load report inside this context: a new head, and an old one that is not loaded, are intended."""
    reporters = [
        logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "distributed.tensor_parallel")
    ]
    levels = [reporter.level for reporter in reporters]
    for reporter in reporters:
        reporter.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for reporter, level in zip(reporters, levels, strict=True):
            reporter.setLevel(level)


def near_misses(path: Path) -> str:
    """Return the end of a message about a path that does not exist: the most similar name beside it, if there is one."""
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, siblings)
    return f"; did you mean {path.parent / close[0]}?" if close else ""
