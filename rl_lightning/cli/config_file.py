"""The option `--config`: a file, the name of a shipped configuration, or YAML text."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping, Sequence

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from lightning.pytorch import LightningModule

from rl_lightning.errors import UserError
from rl_lightning.options import inherited
from rl_lightning.options.yaml_files import load, read_text
from rl_lightning.shipped import configuration

_LOGGER = "trainer.logger"
#: The list of rewards; on the command line its name may leave `init_args` out.
_REWARDS = "data.init_args.rewards"

log = logging.getLogger(__name__)


class NamedConfigFile(ActionConfigFile):
    """Lightning's `--config`, which also takes the name of a shipped configuration."""

    @staticmethod
    def apply_config(parser: ArgumentParser, cfg: Namespace, dest: str, value: str) -> None:
        """Read the configuration into `cfg`.

        Raises:
            UserError: for a name that is neither a file nor a shipped configuration.
        """
        text = value
        if _is_name(value):
            value = str(configuration(value))
            text = read_text(value)
        if cfg.get(_LOGGER) is not None and _names_another_logger(_said_of(text, "trainer", "logger"), cfg[_LOGGER]):
            cfg[_LOGGER] = None
        if cfg.get(_REWARDS) is not None and _said_of(text, "data", "init_args", "rewards") is not None:
            cfg[_REWARDS] = None
        _hand_on(cfg.get("model"), _model(_said_of(text, "model", "class_path")))
        ActionConfigFile.apply_config(parser, cfg, dest, value)


def _is_name(value: object) -> bool:
    """Return whether a value names a file, so that it is neither YAML text nor an address."""
    if not isinstance(value, str) or "\n" in value or "://" in value:
        return False
    try:
        return isinstance(load(value), str)
    except yaml.YAMLError:  # such as an unclosed bracket: let the parser say where
        return False


def replacements_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of the command line, with one that prepares the configuration before each that names another class.

    jsonargparse would hand the options of the configuration's logger on to another one, such as TensorBoard's `name`, those of its
    rewards, such as a weight, to the rewards that take their places, and those of its algorithm to another algorithm: null lets go
    of the first two, and YAML text that names the algorithm of the third, as an overlay does. What the command line itself gives
    to `model` is meant for the class that it names.
    """
    result: list[str] = []
    own = None  # where the options begin that the command line gives after the last configuration
    for place, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        value = value if given else arguments[place + 1] if place + 1 < len(arguments) else ""
        if name == f"--{_LOGGER}" and _kind(value) != _kind("TensorBoard"):
            result.append(f"--{_LOGGER}=null")
        if name in (f"--{_REWARDS}", f"--{_REWARDS.replace('init_args.', '')}"):
            result.append(f"--{_REWARDS}=null")
        named = _class_named(value) if name in ("--model", "--model.class_path") else None
        if own is not None and _model(named) is not None:
            result.insert(own, f"--config={json.dumps({'model': {'class_path': named}})}")
        result.append(argument)
        if name in ("--config", "-c"):
            own = len(result) + (not given)
    return result


def _class_named(value: str) -> object:
    """Return the class path in a value of `--model`: the value itself, or what it says as YAML, or as the name of a YAML file."""
    try:
        said = load(read_text(value) if value.endswith((".yaml", ".yml")) else value)
    except (yaml.YAMLError, UserError):  # the parser will say it
        return None
    return said.get("class_path") if isinstance(said, Mapping) else said


def _said_of(text: object, *place: str) -> object:
    """Return what YAML text says at a place; None if nothing, or if it is no YAML, which the parser will say."""
    try:
        said = load(text) if isinstance(text, str) else None
    except yaml.YAMLError:
        return None
    for name in place:
        said = said.get(name) if isinstance(said, Mapping) else None
    return said


def _model(name: object) -> type | None:
    """Return the algorithm that a class path, or the bare name of an imported class, names; None if there is none."""
    if not isinstance(name, str):
        return None
    home, _, bare = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(home), bare, None) if home else _imported(LightningModule, bare)
    except Exception:  # whatever the user's module raises, the parser will say it
        return None
    return found if isinstance(found, type) and issubclass(found, LightningModule) else None


def _imported(kind: type, name: str) -> type | None:
    """Return the subclass of a name among those that have been imported."""
    if kind.__name__ == name:
        return kind
    subclasses: list[type] = kind.__subclasses__()
    return next(filter(None, (_imported(one, name) for one in subclasses)), None)


def _hand_on(before: object, after: type | None) -> None:
    """Take from the options of a configuration's algorithm what another one, which takes its place, does not inherit, and say so.

    Args:
        before: `class_path` and `init_args` so far, changed in place; None if there are none yet.
        after: the other one; None if none is named.
    """
    if not isinstance(before, Namespace) or not before.get("init_args"):
        return
    old = _model(before.get("class_path"))
    if old is None or after is None or old is after:
        return
    kept, dropped = inherited(old, after, vars(before["init_args"]))
    for name in dropped:
        del before["init_args"][name]
    if kept or dropped:
        log.warning(
            "model: %s takes the place of the configuration's %s: it keeps %s, and not %s; name with it what else it is to have",
            after.__name__,
            old.__name__,
            ", ".join(kept) or "nothing",
            ", ".join(dropped) or "anything else",
        )


def _names_another_logger(new: object, old: object) -> bool:
    """Return whether an overlay replaces the logger of a configuration, in place of changing its options."""
    if not isinstance(new, Mapping):
        return isinstance(new, list)
    kind, before = (
        _kind(str(one.get("class_path", ""))) if isinstance(one, (Mapping, Namespace)) else "" for one in (new, old)
    )
    return bool(kind) and kind != before


def _kind(name: str) -> str:
    """Return the class that a class path names; Lightning's logger for TensorBoard takes the options of the library's own."""
    return name.split(".")[-1].removesuffix("Logger")
