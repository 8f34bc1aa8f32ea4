"""Command that writes the directory a server of vLLM starts from: `python -m rl_lightning.generation.export POLICY DIRECTORY`."""

from __future__ import annotations

import argparse
from pathlib import Path

import transformers

from rl_lightning.errors import UserError
from rl_lightning.generation.snapshots import save_snapshot
from rl_lightning.models import PolicyFiles
from rl_lightning.strategies import full_state_dict


def main(arguments: list[str] | None = None) -> None:
    """Write a policy and its tokenizer in a form that a server of vLLM can start from, and reload."""
    parser = argparse.ArgumentParser(prog="python -m rl_lightning.generation.export", description=main.__doc__)
    parser.add_argument("policy", help="embedded, a model directory, a .gguf file or a name on the hub")
    parser.add_argument("directory", type=Path)
    given = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    files = PolicyFiles(given.policy)
    try:
        model = files.load(trainable=False)
        save_snapshot(model, full_state_dict(model), given.directory)
        files.tokenizer.save_pretrained(given.directory)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
