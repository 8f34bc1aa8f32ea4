"""Options of classes: read from YAML, the command line and Python alike, with one message of one line for every mistake."""

from rl_lightning.options.checked import Checked, plain_options, read_options
from rl_lightning.options.hints import class_hint, option_hint
from rl_lightning.options.inherited import inherited
from rl_lightning.options.parser import Parser

__all__ = ["Checked", "Parser", "class_hint", "inherited", "option_hint", "plain_options", "read_options"]
