"""What can be counted in the text of the package's files.

- Import cycles: strongly connected components of the graph of files. Every import of a module of the package counts, also under
  `if TYPE_CHECKING` and inside functions. `from a.b import c` leads to a/b/c.py where that is a file, else to a/b.
- Methods: functions defined in the body of a class, private ones and properties included, a name once.
- `Any`: uses of the name in code; imports of it do not count.
- Comment share: lines with a comment per line of code. `#:` descriptions count, remarks for tools (`noqa`, `type:`, `fmt:`) and
  docstrings do not; a line of code has a token that is neither a comment nor part of a docstring.
- Docstrings: public functions, methods and classes, without nested functions and names like `__len__`. A docstring says nothing
  if it is one line with fewer than two words that its own name, its class's name and a list of empty words do not have. It is
  a heuristic: it sees neither a longer paraphrase, nor whether a statement is true.
- Length of a function: its lines without decorators and docstring; of a file: all lines.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_PACKAGE = "rl_lightning"
_TOOLS = re.compile(r"#\s*(noqa|type:|fmt:)")
_BLANK = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
_EMPTY = frozenset(
    re.findall(
        r"\w+",
        "a an and any are as at be by can do does for from get give given gives has have how if in into is it its method of on one "
        "or return returns see self set sets tell that the their them these this to what when whether which with",
    )
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One file of the package.

    Args:
        name: path relative to the folder rl_lightning.
        text: what it holds.
    """

    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse(self.text)

    @property
    def lines(self) -> int:
        """All lines, blank ones included."""
        return len(self.text.splitlines())

    @property
    def classes(self) -> list[ast.ClassDef]:
        """Every class defined in the file."""
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)]

    @property
    def functions(self) -> list[Function]:
        """Every function and method, nested ones included."""
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    def called(self, first_lines: set[int]) -> dict[str, int]:
        """Return function → all of its lines, for the functions whose code begins at one of some lines.

        Code begins at the first decorator. Lambdas and comprehensions belong to the function around them, code that dataclasses
        generate to none.
        """
        starts = {min([node.lineno, *(one.lineno for one in node.decorator_list)]): node for node in self.functions}
        found = {start: starts[start] for start in first_lines & starts.keys()}
        return {node.name: (node.end_lineno or node.lineno) - start + 1 for start, node in sorted(found.items())}

    @property
    def any_places(self) -> int:
        """How often the type `Any` is used."""
        return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(self.tree))

    def comment_and_code_lines(self) -> tuple[int, int]:
        """Return the number of lines with a comment, and with code."""
        comments, code = self._comments_and_code
        return len(comments), len(code)

    def code_lines(self, node: ast.ClassDef | Function | None = None) -> int:
        """Return the number of lines with code, of the file or of a class or function in it."""
        _, code = self._comments_and_code
        return len(code if node is None else code & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))

    @cached_property
    def _comments_and_code(self) -> tuple[set[int], set[int]]:
        comments: set[int] = set()
        code: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT and not _TOOLS.match(token.string):
                comments.add(token.start[0])
            elif token.type not in _BLANK:
                code.update(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(self.tree):
            docstring = _docstring_node(node)
            if docstring is not None:
                code.difference_update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
        return comments, code

    def silent_docstrings(self) -> list[str]:
        """Return the public functions and classes whose docstring is missing or says nothing."""
        return [".".join(path) for path, node in _public(self.tree) if says_nothing(ast.get_docstring(node), path)]


@dataclass(frozen=True)
class House:
    """The package in a checkout.

    Args:
        sources: its files by name.
    """

    sources: dict[str, Source]

    @classmethod
    def read(cls, root: Path) -> House:
        """Read a checkout."""
        folder = root / _PACKAGE
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
        return cls({name: Source(name, (folder / name).read_text()) for name in names})

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """File → the files of the package that it imports, anywhere in it."""
        return {name: set(self._imported(source.tree, name)) - {name} for name, source in self.sources.items()}

    def type_checking_imports(self) -> list[tuple[str, str]]:
        """Return (file, imported file) for the package's own modules that are imported under `if TYPE_CHECKING`."""
        found = set()
        for name, source in self.sources.items():
            for node in ast.walk(source.tree):
                if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                    found.update((name, other) for other in self._imported(node, name))
        return sorted(found)

    def circles(self) -> list[list[str]]:
        """Return the import cycles: sets of two or more files that each import one another, directly or through others."""
        reach = {name: reachable(self.imports, name) for name in self.imports}
        circles = {frozenset(o for o in reach[name] if name in reach[o]) for name in reach if name in reach[name]}
        return sorted(sorted(circle) for circle in circles)

    def _imported(self, tree: ast.AST, name: str) -> Iterator[str]:
        package = [_PACKAGE, *name.split("/")[:-1]]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted = [(alias.name,) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *filter(None, [node.module])])
                wanted = [(f"{module}.{alias.name}", module) for alias in node.names]
            else:
                continue
            for candidates in wanted:
                files = (file for candidate in candidates if (file := self._file(candidate)) is not None)
                yield from list(files)[:1]

    def _file(self, module: str) -> str | None:
        parts = module.split(".")
        if parts[0] != _PACKAGE:
            return None
        stem = "/".join(parts[1:])
        options = [f"{stem}.py", f"{stem}/__init__.py".lstrip("/")]
        return next((option for option in options if option in self.sources), None)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return all that can be reached from a node by one edge or more; the node itself only if it is on a cycle."""
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def says_nothing(docstring: str | None, path: tuple[str, ...]) -> bool:
    """Tell whether a docstring is missing, or is one line with fewer than two words beyond its own name and its class's.

    Args:
        docstring: None if there is none.
        path: names of the class, if any, and of what is documented.

    Example:
        >>> says_nothing("Return the counts.", ("Tally", "counts")), says_nothing("Undo `state_dict`.", ("from_state_dict",))
        (True, True)
    """
    if docstring is None:
        return True
    if len(docstring.strip().splitlines()) > 1:
        return False
    known = {_stem(word) for name in path for word in _words(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))}
    return len({_stem(word) for word in _words(docstring)} - known - _EMPTY) < 2


def methods(node: ast.ClassDef) -> set[str]:
    """Return the names of the functions in the body of a class."""
    return {item.name for item in node.body if isinstance(item, Function)}


def length(node: Function) -> int:
    """Return the lines of a function without its decorators and its docstring."""
    docstring = _docstring_node(node)
    described = 0 if docstring is None else (docstring.end_lineno or 0) - docstring.lineno + 1
    return (node.end_lineno or node.lineno) - node.lineno + 1 - described


def _public(tree: ast.AST, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], ast.ClassDef | Function]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield (*path, node.name), node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, (*path, node.name))


def _docstring_node(node: ast.AST) -> ast.Expr | None:
    if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node) is not None:
        first = node.body[0]
        return first if isinstance(first, ast.Expr) else None
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def _stem(word: str) -> str:
    return word if word in _EMPTY else re.sub(r"(?<=\w{3})(s|ed|ing)$", "", word)
