"""The command line: Lightning's, with a message of one line for every mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rl_lightning.cli.main import USAGE_ERROR, main

if TYPE_CHECKING:
    from rl_lightning.cli.command import CLI, run

__all__ = ["CLI", "USAGE_ERROR", "main", "run"]


def __getattr__(name: str) -> Any:
    # Looked up when asked for: `rl-lightning --version` should not wait for torch.
    if name not in ("CLI", "run"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rl_lightning.cli import command

    return getattr(command, name)
