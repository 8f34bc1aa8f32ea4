"""Where the files of a model are, and a hash of what is in them."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import TypedDict

from rl_lightning.errors import UserError
from rl_lightning.models.adapter_files import AdapterFiles
from rl_lightning.models.reading import near_misses

#: The name of the small policy that comes with the package.
EMBEDDED = "embedded"

#: Files that are not part of a model's fingerprint: state of training, and texts for people.
_NO_PART_OF_IT = ("*.md", "*.pt", "*.ckpt", "training_args*", "optimizer*", "trainer_state*", ".*")


class Location(TypedDict, total=False):
    """The arguments of transformers' `from_pretrained` that say where files are."""

    pretrained_model_name_or_path: str
    gguf_file: str
    trust_remote_code: bool


def locate(name: str, role: str, adapter: AdapterFiles | None, trust_remote_code: bool) -> Location:
    """Return where the files of a model are.

    Args:
        name: `embedded`, a local directory in Hugging Face format, a `.gguf` file, or a name on the hub.
        role: what the model is called in messages.
        adapter: what the directory holds instead of a model; its base model is taken.
        trust_remote_code: whether Python code that comes with the model may run.

    Raises:
        UserError: if there is no such file, or no such directory, or it holds no model.
    """
    if name == EMBEDDED:
        return {
            "pretrained_model_name_or_path": str(files("rl_lightning") / "assets" / "chain_sum"),
            "trust_remote_code": trust_remote_code,
        }
    path = Path(name).expanduser()
    if adapter is not None:
        return {
            "pretrained_model_name_or_path": adapter.settings().base,
            "trust_remote_code": trust_remote_code,
        }
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{role}: there is no file {path}{near_misses(path)}")
        return {
            "pretrained_model_name_or_path": str(path.parent),
            "gguf_file": path.name,
            "trust_remote_code": trust_remote_code,
        }
    if path.is_dir() and (path / "adapter_config.json").is_file():
        raise UserError(
            f"{role}: {path} holds a model and an adapter, and would be read as both together: move one of them to another directory"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{role}: the directory {path} has no config.json: give a Hugging Face model directory")
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~"))):
        raise UserError(f"{role}: there is no directory {path}{near_misses(path)}")
    return {
        "pretrained_model_name_or_path": str(path) if path.is_dir() else name,
        "trust_remote_code": trust_remote_code,
    }


def fingerprint_of(location: Location, commit: str | None, adapter: AdapterFiles | None) -> str:
    """Return a hash of the files of configuration, tokenizer and weights.

    Args:
        location: of the files. For a name on the hub, the name and the commit stand for them.
        commit: of a model on the hub, if it is known.
        adapter: that goes with them.
    """
    place = Path(location["pretrained_model_name_or_path"])
    whole = hashlib.sha256()
    if not place.is_dir():
        name = f"{place}@{commit}"
        if adapter is None:
            return name
        whole.update(name.encode())
    only = location.get("gguf_file")
    places = ([place] if place.is_dir() else []) + ([] if adapter is None else [adapter.directory])
    paths = [place / only] if only else sorted(path for one in places for path in one.iterdir() if path.is_file())
    for path in paths:
        if not any(path.match(pattern) for pattern in _NO_PART_OF_IT):
            with path.open("rb") as file:
                whole.update(f"{path.name}:{path.stat().st_size}:".encode())
                while block := file.read(1 << 22):
                    whole.update(block)
    return whole.hexdigest()[:16]
