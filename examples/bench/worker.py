"""One side of a benchmark, run in its own process: `python -m examples.bench.worker MODULE:FUNCTION WORK.json`."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import warnings
from pathlib import Path

import torch

from examples.bench.turns import turns
from examples.bench.work import Work


def main() -> None:
    """Do the work, one step per command."""
    target, path = sys.argv[1:]
    sys.argv = sys.argv[:1]  # Lightning's command line must not see this script's arguments
    turns()  # from here on standard output is for the protocol alone
    work = Work(**json.loads(Path(path).read_text()))
    torch.set_num_threads(work.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    module, function = target.split(":")
    getattr(importlib.import_module(module), function)(work)


if __name__ == "__main__":
    main()
