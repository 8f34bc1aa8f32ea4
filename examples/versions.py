"""Run the suite on the oldest and on the newest releases that pyproject.toml admits, or see what it resolves to today.

    python -m examples.versions suite
    python -m examples.versions suite --only oldest -- tests/unit
    python -m examples.versions resolve

Oldest: every package at its lower bound, on the oldest Python of the classifiers. Newest: what pip installs today, on the newest Python.
Each gets its own environment in `--directory`. `resolve` installs nothing: uv resolves every extra, and all of them together.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SHOWN = ("torch", "lightning", "transformers")


@dataclass(frozen=True)
class Project:
    """The releases that pyproject.toml declares as supported.

    Args:
        requirements: extra → its requirements; `""` for those of the package itself.
        pythons: Python versions of the classifiers, oldest first.
        bounds: `requires-python`.
    """

    requirements: dict[str, list[Requirement]]
    pythons: list[str]
    bounds: str

    @classmethod
    def read(cls, path: Path = ROOT / "pyproject.toml") -> Project:
        """Read a pyproject.toml."""
        project: dict[str, Any] = tomllib.loads(path.read_text())["project"]
        lists = {"": project["dependencies"], **project["optional-dependencies"]}
        requirements = {extra: [Requirement(line) for line in lines] for extra, lines in lists.items()}
        versions = (
            re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in project["classifiers"]
        )
        return cls(requirements, [found[1] for found in versions if found], project["requires-python"])

    def direct(self) -> list[Requirement]:
        """All requirements on other packages, those of every extra included."""
        return [item for items in self.requirements.values() for item in items if item.name != "rl_lightning"]

    def oldest(self) -> list[str]:
        """Every lower bound as a pip constraint, such as `torch==2.9`."""
        bounds = {
            f"{item.name}=={bound.version}"
            for item in self.direct()
            for bound in item.specifier
            if bound.operator == ">="
        }
        return sorted(bounds)


def interpreter(version: str) -> str:
    """Return the path of a Python of this version, from the PATH or from pyenv.

    Raises:
        SystemExit: if there is none.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [sys.executable, shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    for path in filter(None, found):
        # pyenv's own command on the PATH fails if its version is not activated.
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        if said.startswith(f"Python {version}."):
            return str(path)
    raise SystemExit(
        f"no Python {version} on this machine: put python{version} on the PATH (or `pyenv install {version}`)"
    )


def suite(name: str, project: Project, arguments: argparse.Namespace) -> bool:
    """Create an environment, run the suite in it and print its row of the table; return whether all tests passed."""
    directory = arguments.directory.resolve() / name
    python = interpreter(project.pythons[0 if name == "oldest" else -1])
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run([python, "-m", "venv", directory], check=True)
    constraints = directory / "constraints.txt"
    constraints.write_text("\n".join(project.oldest() if name == "oldest" else []))
    python = str(directory / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    torch = next(str(item) for item in project.direct() if item.name == "torch")
    subprocess.run([*pip, torch, "--extra-index-url", arguments.torch_index], check=True)
    subprocess.run([*pip, "--editable", ".[dev]"], cwd=ROOT, check=True)
    log = directory / "pytest.txt"
    print(f"{name}: the suite runs in {directory}, its output goes to {log}", file=sys.stderr, flush=True)
    with log.open("w") as file:
        run = subprocess.run(
            [python, "-m", "pytest", *arguments.pytest], cwd=ROOT, stdout=file, stderr=file, check=False
        )
    print(row(name, python, log.read_text()), flush=True)
    return run.returncode == 0


def row(name: str, python: str, output: str) -> str:
    """Return a row of the table in docs/inside/versions.md, from pytest's output."""
    code = "import sys, importlib.metadata as m; print(sys.version.split()[0], *map(m.version, sys.argv[1:]))"
    versions = subprocess.run([python, "-c", code, *SHOWN], capture_output=True, text=True, check=True).stdout.split()
    ends = dict(
        reversed(pair)
        for pair in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", output.strip().splitlines()[-1])
    )
    failed = int(ends.get("failed", 0)) + int(ends.get("error", ends.get("errors", 0)))
    counts = [ends.get("passed", 0), failed, ends.get("skipped", 0)]
    return "| " + " | ".join(map(str, [name, *versions, *counts, datetime.date.today()])) + " |"


def resolve(project: Project) -> bool:
    """Print what each extra, and all together, would install today on every Python; return whether all can be installed."""
    if importlib.util.find_spec("uv") is None:
        raise SystemExit("resolving needs uv: pip install uv, or make resolve")
    fine = True
    for version in project.pythons:
        for extra in [*project.requirements, "all"]:
            chosen = {"": [], "all": ["--all-extras"]}.get(extra, ["--extra", extra])
            command = ["uv", "pip", "compile", "pyproject.toml", *chosen, "--python-version", version]
            command = [sys.executable, "-m", *command, "--quiet", "--no-header", "--no-annotate"]
            run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            names = {item.name for item in project.direct()}
            direct = [line for line in run.stdout.splitlines() if line.partition("==")[0] in names]
            print(f"Python {version} [{extra}]: {' '.join(direct) or run.stderr}", flush=True)
            fine = fine and run.returncode == 0
    return fine


def main() -> None:
    """Run the command; exit with status 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("resolve")
    run = commands.add_parser("suite")
    run.add_argument("--only", choices=["oldest", "newest"], help="one of the two")
    run.add_argument(
        "--directory", type=Path, default=ROOT / ".venv" / "versions", help="where the environments are made"
    )
    run.add_argument(
        "--torch-index", default="https://download.pytorch.org/whl/cpu", help="where CPU builds of torch are"
    )
    run.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    arguments = parser.parse_args()
    project = Project.read()
    if arguments.command == "resolve":
        raise SystemExit(not resolve(project))
    names = [arguments.only] if arguments.only else ["oldest", "newest"]
    print("| | Python | " + " | ".join(SHOWN) + " | passed | failed | skipped | date |\n" + "|---" * 9 + "|")
    passed = [suite(name, project, arguments) for name in names]
    raise SystemExit(not all(passed))


if __name__ == "__main__":
    main()
