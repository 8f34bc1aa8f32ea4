"""TensorBoard with the curves that matter pinned at the top: `rl-lightning tensorboard runs`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from rl_lightning.errors import UserError

#: Metrics that are pinned, in this order; TensorBoard leaves out those that no run has.
PINNED = (
    "rollout/reward_mean", "val/pass@1", "val/loss", "val/accuracy", "val/token_accuracy", "kl/k3", "policy/entropy",
    "rollout/length_mean", "rollout/truncated_fraction",
)  # fmt: skip


def pinned() -> str:
    """Return the end of TensorBoard's address that pins the curves."""
    cards = [{"plugin": "scalars", "tag": tag} for tag in PINNED]
    return f"?pinnedCards={quote(json.dumps(cards, separators=(',', ':')))}#timeseries"


def board(parser: argparse.ArgumentParser, args: Sequence[str]) -> None:
    """Start TensorBoard, and print an address that opens on the curves that matter. It runs until it is interrupted.

    Args:
        parser: to add the options to.
        args: of the command line, after `tensorboard`; those that the parser does not know go to TensorBoard.

    Raises:
        UserError: if there is no such directory, or TensorBoard refuses its options.
    """
    parser.add_argument("logdir", nargs="?", default="runs", help="directory of one run or of many; `runs` by default")
    chosen, others = parser.parse_known_args(args)
    if not Path(chosen.logdir).is_dir():
        raise UserError(f"there is no directory {chosen.logdir}: give that of a run, or one that holds runs")

    from tensorboard.program import TensorBoard, TensorBoardServerException

    server = TensorBoard()
    server.configure(argv=["tensorboard", "--logdir", chosen.logdir, *others])
    try:
        address = server.launch()
    except TensorBoardServerException as error:
        raise UserError(f"tensorboard: {error}") from error
    print(f"TensorBoard shows {chosen.logdir}; Ctrl-C ends it:\n{address}{pinned()}", flush=True)
    while True:
        time.sleep(3600)
