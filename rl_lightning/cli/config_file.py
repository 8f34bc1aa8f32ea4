"""The option `--config`: a file, the name of a shipped configuration, or YAML text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace

from rl_lightning.options.yaml_files import read_text
from rl_lightning.shipped import configuration

_LOGGER = "trainer.logger"


class NamedConfigFile(ActionConfigFile):
    """Lightning's `--config`, which also takes the name of a shipped configuration."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: Any) -> None:
        """Read the configuration into `cfg`.

        Raises:
            UserError: for a name that is neither a file nor a shipped configuration.
        """
        text = value
        if _is_name(value):
            value = str(configuration(value))
            text = read_text(value)
        if cfg.get(_LOGGER) is not None and _names_another_logger(_logger_in(text), cfg[_LOGGER]):
            cfg[_LOGGER] = None
        ActionConfigFile.apply_config(parser, cfg, dest, value)


def _is_name(value: Any) -> bool:
    """Return whether a value names a file, so that it is neither YAML text nor an address."""
    if not isinstance(value, str) or "\n" in value or "://" in value:
        return False
    try:
        return isinstance(yaml.safe_load(value), str)
    except yaml.YAMLError:  # such as an unclosed bracket: let the parser say where
        return False


def loggers_replaced(arguments: Sequence[str]) -> Iterator[str]:
    """Yield arguments of the command line, with `--trainer.logger=null` before one that sets another logger.

    jsonargparse would hand the options of the configuration's logger on to it, such as TensorBoard's `name`.
    """
    for place, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        value = value if given else arguments[place + 1] if place + 1 < len(arguments) else ""
        if name == f"--{_LOGGER}" and value.split(".")[-1] != "TensorBoardLogger":
            yield f"--{_LOGGER}=null"
        yield argument


def _logger_in(text: Any) -> Any:
    """Return what YAML text says of the logger; None if nothing, or if it is no YAML, which the parser will say."""
    try:
        settings = yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError:
        return None
    trainer = settings.get("trainer") if isinstance(settings, Mapping) else None
    return trainer.get("logger") if isinstance(trainer, Mapping) else None


def _names_another_logger(new: Any, old: Any) -> bool:
    """Return whether an overlay replaces the logger of a configuration, in place of changing its options."""
    if not isinstance(new, Mapping):
        return isinstance(new, list)
    kind, before = (
        str(one.get("class_path", "")).split(".")[-1] if isinstance(one, (Mapping, Namespace)) else ""
        for one in (new, old)
    )
    return bool(kind) and kind != before
