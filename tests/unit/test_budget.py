"""What tests cost is counted in processor seconds, and too much is said."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import budget

ROOT = Path(__file__).parents[2]


def report(name, seconds, *keywords):
    return SimpleNamespace(nodeid=name, cpu_s=seconds, keywords=dict.fromkeys(keywords, 1))


def test_what_is_dear_and_not_slow_is_named():
    reports = [report("a", 1.0), report("a", budget.MOST_S), report("b", 2.0), report("c", 99.0, "slow")]
    reports += [report(f"d{number}", 0.1) for number in range(12)]
    said = budget.lines(*budget.costs(reports))
    assert said[0] == "111 s in 15 tests"
    assert said[1:4] == ["99.0 s c", "9.0 s a", "2.0 s b"] and len(said) == 12
    assert said[-1].startswith("over 8 s") and said[-1].endswith(": a")
    reports.append(report("many", budget.MOST_ALL_S - 12.2 + 1.0))
    assert f"{budget.MOST_ALL_S + 1:g} s in those that are not slow, more than {budget.MOST_ALL_S:g}" in budget.lines(
        *budget.costs(reports)
    )


def test_long_files_begin_and_one_that_has_become_long_is_named():
    first, second = budget.LONG[:2]
    names = [f"tests/a.py::{first}", f"{second}::test_b", f"{first}::test_z", "tests/b.py::test_a", f"{first}::test_a"]
    items = [SimpleNamespace(nodeid=name) for name in names]
    budget.pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == [names[2], names[4], names[1], names[0], names[3]]
    assert all((ROOT / name).is_file() for name in budget.LONG)
    long = [report(f"{name}::{number}", 4.0) for name in (first, "tests/a.py") for number in range(4)]
    long += [report(f"tests/b.py::{number}", 4.0, "slow") for number in range(4)]
    assert budget.lines(*budget.costs(long))[-1] == "16 s, to begin the run (LONG in tests/budget.py): tests/a.py"


def test_files_are_units_and_all_of_two_processes_is_one():
    of_files = ["tests/unit/data/test_reward.py::test_a", "tests/integration/test_command_line.py::test_mistake[ran]"]
    assert [budget.unit_of(name) for name in of_files] == [name.partition("::")[0] for name in of_files]
    together = [
        "tests/unit/data/test_reward.py::test_two_ranks_have_one_table",
        "tests/integration/test_faults.py::test_a",
    ]
    together += ["tests/invariants/test_metric_ranks.py::test_a", "tests/invariants/test_strategies.py::test_a"]
    together += ["tests/simulated_gpu/test_device.py::test_a", "tests/simulated_gpu/test_runs.py::test_a"]
    assert len({budget.unit_of(name) for name in together}) == 1


@pytest.mark.slow
def test_seconds_come_from_the_workers_and_not_from_the_clock(tmp_path):
    """One test uses the processor for 0.3 s, another sleeps for as long, and of a third the process that it left behind works."""
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.budget import *\n"
    )
    (tmp_path / "test_two.py").write_text(
        "import time\n"
        "def test_first(): pass\n"
        "def test_sleeps(): time.sleep(0.3)\n"
        "def test_works():\n    until = time.process_time() + 0.3\n    while time.process_time() < until: pass\n"
        "WORK = 'import sys, time\\nwhile time.process_time() < 0.3: pass\\nprint(flush=True)\\nsys.stdin.read()'\n"
        "def test_leaves():\n    import subprocess, sys\n    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}\n"
        "    global left\n    left = subprocess.Popen([sys.executable, '-c', WORK], **pipes)\n    left.stdout.readline()\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n1",
        "--durations=1",
        "-c",
        "/dev/null",
        "--rootdir",
        str(tmp_path),
    ]
    done = subprocess.run([*command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    spent = {line.split("::")[1]: float(line.split()[0]) for line in done.stdout.splitlines() if " s test_two" in line}
    assert min(spent["test_works"], spent["test_leaves"]) >= 0.3 > 0.2 > spent["test_sleeps"], done.stdout + done.stderr
