"""`python -m examples.house` counts what it says it counts."""

from collections import Counter
from pathlib import Path
from textwrap import dedent

import pytest

from examples.house import __main__ as command
from examples.house import sources
from examples.house.algorithms import algorithms
from examples.house.path import Run
from examples.house.report import measure_text, table
from examples.house.sources import House, Source, says_nothing
from examples.house.traced import Trace, fit
from tests.checks import cases, holds_only_for

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole():
    """The package."""
    return House.read(ROOT)


def house(**files: str) -> House:
    """A package of a few files, named a_b for a/b.py."""
    texts = {f"{name.replace('_', '/', 1)}.py": dedent(text) for name, text in files.items()}
    return House({name: Source(name, text) for name, text in texts.items()})


class OnlyAtTheTop(House):
    """Overlooks imports in functions and under conditions."""

    def _imported(self, tree, name):
        for node in tree.body:
            yield from super()._imported(node, name) if not hasattr(node, "body") else ()


@holds_only_for(House, only_at_the_top=OnlyAtTheTop)
def test_imports_that_hide_make_a_cycle_too(kind):
    three = house(
        data_a="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rl_lightning.data.b import B\n",
        data_b="def f():\n    from . import c\n",
        data_c="import rl_lightning.data.a\nfrom rl_lightning.data import d\n",
        data_d="import torch\n",
    )
    measured = measure_text(kind(three.sources))
    assert measured["circles"] == [["data/a.py", "data/b.py", "data/c.py"]]
    assert measured["type_checking_imports"] == measured["that_hide_a_cycle"] == ["data/a.py → data/b.py"]


CODE = '''
"""A docstring is no comment."""
from typing import Any  # noqa: F401

#: Described.
WIDTH = 3  # columns


class Wide:
    """# Neither is this."""

    def one(self, value: Any) -> Any:
        """Return half of a value, rounded down."""
        # why
        return value // 2

    @property
    def two(self): ...

    @two.setter
    def two(self, value): ...
'''


#: The notebook's six and the reward model, which came before there was a core to build on.
FIRST = {"SFT", "RFT", "DPO", "PPO", "GRPO", "DAPO", "RewardModel"}


def test_an_algorithm_after_dapo_has_at_most_twenty_lines():
    sizes = {name: own for name, (own, _, _) in algorithms().items() if name not in FIRST}
    assert {"GSPO", "CISPO", "SAPO", "DPPO", "KTO", "LabelledKTO", "SimPO", "Distillation"} <= set(sizes)
    assert {name: own for name, own in sizes.items() if own > 20} == {}


def test_counts_of_one_file():
    source = Source("types.py", CODE)
    assert source.code_lines() == 9 and source.code_lines(source.classes[0]) == 7
    assert source.comment_and_code_lines() == (3, 9)
    assert source.any_places == 2
    assert sources.methods(source.classes[0]) == {"one", "two"}
    assert [sources.length(one) for one in source.functions] == [3, 1, 1]
    assert source.silent_docstrings() == ["Wide", "Wide.two", "Wide.two"]
    first = {node.name: node.lineno for node in source.functions if node.name == "one"}["one"]
    assert source.called({first, first + 5, 1}) == {"one": 4, "two": 2}


def missing_only(docstring, path):
    return docstring is None


@holds_only_for(says_nothing, missing_only=missing_only, always=lambda docstring, path: True)
def test_a_docstring_that_repeats_its_name_says_nothing(check):
    for docstring, path in (
        (None, ("Tally", "counts")),
        ("Return the counts.", ("Tally", "counts")),
        ("Return the tally's counts.", ("Tally", "counts")),
        ("See `evaluation_step`.", ("validation_step",)),
    ):
        assert check(docstring, path), docstring
    for docstring, path in (
        ("Return groups per outcome, over all ranks.", ("Tally", "counts")),
        ("Return the counts.\n\nReturns:\n    (B,) long.", ("Tally", "counts")),
    ):
        assert not check(docstring, path), docstring


def test_a_path_has_the_rooms_of_a_rollout_and_no_libraries():
    files = ("data/collect.py", "types.py", "hooks.py", "models/head.py", "data_of_others.py")
    rollout = frozenset(files[1:])
    run = Run("algorithms/grpo.py", rollout, frozenset((file, 1) for file in files), frozenset())
    assert run.path == ["algorithms/grpo.py", "hooks.py", "types.py"]
    assert run.step == ["algorithms/grpo.py", "data/collect.py", "hooks.py", "types.py"]
    assert run.everything == sorted(files)


@pytest.mark.parametrize("algorithm", cases(["GRPO", "PPO"], soon=lambda algorithm: algorithm == "GRPO"))
def test_the_trace_holds_the_way_from_sampling_to_the_first_step(algorithm, whole):
    trace = Trace()
    fit(algorithm, trace)
    names = {name for file, line in trace.functions for name in whole.sources[file].called({line})}
    assert {"collect", "generate", "score", "objective", "training_step"} <= names
    assert not names & {"setup", "configure_optimizers", "load", "restore"}  # before the first batch
    files = {file for file, _ in trace.functions}
    assert "data/collect.py" in trace.rollout
    assert trace.rollout < files
    assert {"surrogate", "observed"} <= names
    if algorithm == "GRPO":  # what a stranger has to read
        run = Run("algorithms/grpo.py", frozenset(trace.rollout), frozenset(trace.functions), frozenset(trace.calls))
        lines = sum(whole.sources[file].lines for file in run.path)
        assert len(run.path) <= 12 and lines <= 2000
        page = (ROOT / "docs" / "inside" / "architecture.md").read_text()
        assert f"{len(run.path)} files of {lines:,} lines" in page and f"| {len(run.path)}, {lines:,}, " in page
    assert ("callbacks/group_normalize.py" in files) == (algorithm == "GRPO")
    assert ("algorithms/critic.py" in files) == (algorithm == "PPO")


def test_the_page_counts_what_there_is(whole):
    page = (ROOT / "docs" / "inside" / "architecture.md").read_text()
    found = measure_text(whole)
    assert (
        f"| {len(found['large_classes'])} |" in page.split("| classes with more than 10 methods |")[1].splitlines()[0]
    )
    assert f"| {len(found['long_functions'])} |" in page.split("| functions over 40 lines |")[1].splitlines()[0]
    assert not found["silent_docstrings"]
    for large in found["large_classes"]:
        assert f"`{large.split(': ')[1].split()[0]}`" in page, "why it has more than ten methods"


#: Uses of `Any` by room; docs/inside/architecture.md says which library forces each kind.
ANY = {
    "data": 43,
    "environments": 6,
    "algorithms": 33,
    "options": 19,
    "callbacks": 12,
    "strategies": 12,
    "models": 12,
    "generation": 9,
    "text": 18,
    "cli": 5,
    "rewards": 5,
    "defaults.py": 3,
    "trainer.py": 3,
    "typed.py": 3,
    "padding.py": 2,
    "types.py": 2,
    "__init__.py": 1,
    "loading.py": 1,
}


def test_any_only_becomes_rarer(whole):
    found = Counter()
    for name, source in whole.sources.items():
        found[name.split("/")[0]] += source.any_places
    more = {room: count for room, count in found.items() if count > ANY.get(room, 0)}
    assert not more, f"give these a type: {more}, where {ANY} are allowed"
    fewer = {room: count for room, count in ANY.items() if found[room] < count}
    assert not fewer, f"write the smaller numbers down: {[(room, found[room]) for room in fewer]}"


def test_the_table_has_a_column_for_each_checkout(tmp_path):
    size = {"files": {"types.py": 320}, "lines": 320, "classes": 6, "functions": {"types.py": {"select": 3, "to": 4}}}
    paths = {name: dict.fromkeys(("path", "step", "everything"), size) for name in ("GRPO", "PPO")}
    measured = measure_text(house(types=CODE)) | {"paths": paths}
    lines = table([measured | {"root": "/a/before"}, measured | {"root": "/a/after"}]).splitlines()
    assert lines[0] == "|  | before | after |"
    assert any(
        line.startswith("| GRPO, path") and line.endswith("| 1, 320, 6; 2, 7 | 1, 320, 6; 2, 7 |") for line in lines
    )
    assert "- path of GRPO: types.py 320 (select, to)" in lines


@pytest.mark.slow
def test_the_picture_is_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    calls = frozenset({("types.py", "algorithms/grpo.py"), ("algorithms/grpo.py", "types.py")})
    functions = frozenset((file, 1) for pair in calls for file in pair)
    run = Run("algorithms/grpo.py", frozenset({"types.py"}), functions, calls)
    monkeypatch.setattr(command, "run_algorithm", lambda root, algorithm: run)
    monkeypatch.setattr("sys.argv", ["house", "picture", str(tmp_path / "path.svg")])
    command.main()
    assert "<svg" in (tmp_path / "path.svg").read_text()


@pytest.mark.parametrize(("arguments", "complaint"), [(["--root", "."], "no checkout"), (["picture"], "needs a file")])
def test_mistakes_are_said(arguments, complaint, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["house", *arguments])
    with pytest.raises(SystemExit):
        command.main()
    assert complaint in capsys.readouterr().err
