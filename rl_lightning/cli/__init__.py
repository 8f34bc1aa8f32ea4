"""The command line: Lightning's, with a message of one line for every mistake."""

from rl_lightning.cli.command import CLI, USAGE_ERROR, main, run

__all__ = ["CLI", "USAGE_ERROR", "main", "run"]
