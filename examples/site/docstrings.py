"""Docstrings as the pages of the reference show them: an extension of griffe, which mkdocstrings reads the package with."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_EXAMPLE = re.compile(r"^Example:$", re.M)
#: A table in reStructuredText: rules of `=` above, between and below its rows.
_TABLE = re.compile(r"^( *)=+(?: +=+)+\n(?:.*\n)*?\1=+(?: +=+)+\n(?:.*\n)*?\1=+(?: +=+)+$", re.M)
_ROLE = re.compile(r":(?:func|class|mod|meth|attr):`~?([^`]+)`")


def shown(text: str) -> str:
    """Return a docstring with its example as code, its tables as they were typed, and names in place of roles."""
    text = _ROLE.sub(r"`\1`", _EXAMPLE.sub("Examples:", text))
    return _TABLE.sub(lambda table: f"{table[1]}```text\n{table[0]}\n{table[1]}```", text)


class Docstrings(Extension):
    """Changes every docstring before it is parsed."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Change the docstring of a module, a class, a function or an attribute."""
        if obj.docstring:
            obj.docstring.value = shown(obj.docstring.value)
