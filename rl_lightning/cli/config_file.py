"""The option `--config`: a file, the name of a shipped configuration, or YAML text."""

from __future__ import annotations

from typing import Any

import yaml
from jsonargparse import ActionConfigFile

from rl_lightning.shipped import configuration


class NamedConfigFile(ActionConfigFile):
    """Lightning's `--config`, which also takes the name of a shipped configuration."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: Any) -> None:
        """Read the configuration into `cfg`.

        Raises:
            UserError: for a name that is neither a file nor a shipped configuration.
        """
        ActionConfigFile.apply_config(parser, cfg, dest, str(configuration(value)) if _is_name(value) else value)


def _is_name(value: Any) -> bool:
    """Return whether a value names a file, so that it is neither YAML text nor an address."""
    if not isinstance(value, str) or "\n" in value or "://" in value:
        return False
    try:
        return isinstance(yaml.safe_load(value), str)
    except yaml.YAMLError:  # such as an unclosed bracket: let the parser say where
        return False
