"""pyproject, README, Makefile and docs promise the same releases, and those that the suite ran on."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from examples.versions import SHOWN, Project, interpreter, row, tomllib
from tests.checks import holds_only_for

ROOT = Path(__file__).parents[2]
PROJECT = Project.read()
TABLE = (ROOT / "docs" / "inside" / "versions.md").read_text()
#: oldest, newest → the releases of the last column-by-column run.
RAN = {
    cells[0]: cells[1:]
    for line in TABLE.splitlines()
    if (cells := line.strip("| ").split(" | "))[0] in ("oldest", "newest")
}


def bounded(name: str, bound: str) -> Project:
    """The project with another bound of ``name``."""
    needed = [Requirement(name + bound) if item.name == name else item for item in PROJECT.requirements[""]]
    return replace(PROJECT, requirements={**PROJECT.requirements, "": needed})


@holds_only_for(
    PROJECT,
    older=bounded("torch", ">=2.8,<2.15"),
    wider=bounded("torch", ">=2.9,<2.16"),
    narrower=bounded("transformers", ">=5.18,<5.19"),
    unbounded=bounded("lightning", "<2.7"),
    older_python=replace(PROJECT, bounds=">=3.9,<3.14"),
    newer_python=replace(PROJECT, bounds=">=3.10"),
    another_classifier=replace(PROJECT, pythons=[*PROJECT.pythons, "3.14"]),
)
def test_the_bounds_are_what_the_suite_ran_on(project):
    oldest, newest = (dict(zip(("Python", *SHOWN), RAN[name], strict=False)) for name in ("oldest", "newest"))
    assert [oldest["Python"].rpartition(".")[0], newest["Python"].rpartition(".")[0]] == [
        project.pythons[0],
        project.pythons[-1],
    ]
    above = f"3.{int(project.pythons[-1].split('.')[1]) + 1}"
    assert SpecifierSet(project.bounds) == SpecifierSet(f">={project.pythons[0]},<{above}")
    lowest = dict(bound.split("==") for bound in project.oldest())
    for item in project.requirements[""]:
        if item.name not in SHOWN:
            continue
        assert Version(oldest[item.name].partition("+")[0]) == Version(lowest.get(item.name, "0"))
        ran = Version(newest[item.name].partition("+")[0])
        (bound,) = (Version(spec.version) for spec in item.specifier if spec.operator == "<")
        assert ran in item.specifier
        # Nothing is admitted beyond what ran but releases of the same minor version; of transformers, of the same major one.
        depth = 1 if item.name == "transformers" else 2
        above = (*ran.release[: depth - 1], ran.release[depth - 1] + 1)
        assert bound.release == above


def test_every_requirement_has_a_lower_bound():
    for item in PROJECT.direct():
        assert any(bound.operator == ">=" for bound in item.specifier), item


def test_readme_and_tools_name_the_same_pythons():
    oldest, newest = PROJECT.pythons[0], PROJECT.pythons[-1]
    assert f"Python {oldest} to {newest}" in (ROOT / "README.md").read_text()
    assert f"from {oldest} to {newest}" in (ROOT / "Makefile").read_text().splitlines()[0].replace("any Python ", "")
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tools["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert tools["mypy"]["python_version"] == oldest


def test_make_takes_a_cpu_build_that_is_admitted():
    makefile = (ROOT / "Makefile").read_text()
    version, index = re.search(r"^TORCH \?= torch==(\S+) --extra-index-url (\S+)$", makefile, re.M).groups()
    torch = next(item for item in PROJECT.direct() if item.name == "torch")
    assert Version(version) in torch.specifier
    assert index.endswith("/whl/cpu") and index in (ROOT / "README.md").read_text()
    # It is there before the package is installed, which would take PyPI's build.
    core = makefile.partition("$(VENV)/core: ")[2]
    assert core.index("$(TORCH)") < core.index("--editable")


def test_a_python_that_is_not_there_is_named():
    with pytest.raises(SystemExit, match=r"no Python 3\.99 on this machine"):
        interpreter("3.99")


def test_a_row_says_what_pytest_counted(monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *a, **k: type("Said", (), {"stdout": "3.13.0 2.14.1 2.6.6 5.24.0\n"}))
    line = row("newest", "python", "..F\n2 failed, 1234 passed, 5 skipped, 9 deselected, 1 error in 60.00s\n")
    assert line.startswith("| newest | 3.13.0 | 2.14.1 | 2.6.6 | 5.24.0 | 1234 | 3 | 5 | 20")
