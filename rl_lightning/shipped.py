"""The configurations that come with the package: found by name, and copied to be edited."""

from __future__ import annotations

import difflib
from pathlib import Path

from rl_lightning.errors import UserError

_PACKAGE = Path(__file__).parent
#: In a wheel they are a folder of the package; in a checkout, also an editable one, they stand beside it.
FOLDER = next(
    (place for place in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if place.is_dir()), _PACKAGE / "configs"
)


def shipped() -> dict[str, Path]:
    """Return name → file of every shipped configuration: `grpo`, `trainer/gpu` and so on."""
    return {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))}


def summary() -> list[str]:
    """Return two lines: the names of the configurations, and those of the overlays."""
    names = list(shipped())
    overlays = [name for name in names if "/" in name]
    alone = [name for name in names if "/" not in name]
    return [f"configurations: {', '.join(alone)}", f"overlays: {', '.join(overlays)}"]


def configuration(name: str) -> Path:
    """Return the file that `--config NAME` means: a file of the user, otherwise a shipped configuration.

    Raises:
        UserError: if it is neither, with the most similar name.
    """
    if Path(name).is_file():
        return Path(name)
    return named(name, f"there is no file {name}")


def named(name: str, missing: str | None = None) -> Path:
    """Return a shipped configuration.

    Args:
        name: such as `grpo` or `trainer/gpu`.
        missing: how the message begins if there is none of this name.

    Raises:
        UserError: with the most similar name, or all of them.
    """
    known = shipped()
    if name in known:
        return known[name]
    said = f"{missing}, and no shipped configuration of that name" if missing else f"no shipped configuration {name}"
    raise UserError(f"{said}{_suggestion(name, known)}")


def _suggestion(name: str, known: dict[str, Path]) -> str:
    """Return the end of the message: the name that was meant, also by a path or by the last part of an overlay's name."""
    bare = name.removesuffix(".yaml").removesuffix(".yml").removeprefix("./").removeprefix("configs/")
    parts = {one.rsplit("/", 1)[-1]: one for one in known}
    close = difflib.get_close_matches(bare.lower(), known, n=1) or [
        parts[part] for part in difflib.get_close_matches(bare.rsplit("/", 1)[-1].lower(), parts, n=1)
    ]
    return f"; did you mean '{close[0]}'?" if close else f"; {'; '.join(summary())}"


def copy(name: str, target: str | None = None, overwrite: bool = False) -> Path:
    """Copy a shipped configuration with its comments; the command in them then names the copy.

    Args:
        name: such as `grpo`.
        target: the new file, or a folder for it; the configuration's own name in the current folder if None.
        overwrite: whether a file that exists is replaced.

    Returns:
        The new file.

    Raises:
        UserError: for an unknown name, a file that exists, or a place that cannot be written to.
    """
    source = named(name)
    path = Path(target or source.name)
    path = path / source.name if path.is_dir() else path
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: choose another file, or replace it with --force")
    shown = f"'{path}'" if " " in str(path) else str(path)
    text = source.read_text(encoding="utf-8").replace(f"fit --config {name}\n", f"fit --config {shown}\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}: choose another file") from error
    return path
