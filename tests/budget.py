"""What tests cost: the ten that use most of a processor, all together, and those that use too much of it; and who begins.

Wall time says little on a machine that does something else too. Counted are this process and all below it, also those that
live on, such as ranks; where there is no /proc, only those that it has waited for.
"""

import os
import re

import pytest

from examples.bench import meter

#: Processor seconds that a test may use; one that needs more is `slow`. A busy machine makes up to a half more of them.
MOST_S = 8.0
#: And all that are not slow together: with lint beside them they take eight minutes on two cores.
MOST_ALL_S = 600.0
#: Files that need more processor seconds than this begin the run.
LONG_S = 12.0
#: They, the longest first: a worker takes whole files in the order of the run, and so all workers end together.
LONG = (
    # Slow ones.
    "tests/integration/test_learning.py",
    "tests/invariants/test_killed.py",
    # Those of `make test`.
    "tests/integration/test_faults.py",
    "tests/integration/test_command_line.py",
    "tests/invariants/test_strategies.py",
    "tests/unit/generation/test_vllm_server.py",
    "tests/unit/test_docs.py",
    "tests/unit/callbacks/test_loggers.py",
    "tests/unit/data/test_reward.py",
    "tests/invariants/test_resume.py",
    "tests/invariants/test_stopping.py",
    "tests/invariants/test_dynamic_sampling.py",
    "tests/unit/generation/test_generators.py",
    "tests/invariants/test_metric_ranks.py",
    "tests/unit/algorithms/test_lora.py",
    "tests/unit/data/test_episodes.py",
    "tests/unit/models/test_loading.py",
    "tests/unit/algorithms/test_ppo.py",
    "tests/integration/test_readme.py",
    "tests/unit/models/test_quantized.py",
    "tests/unit/callbacks/test_progress.py",
    "tests/unit/data/test_environments.py",
    "tests/invariants/test_token_budget.py",
    "tests/unit/rewards/test_pool.py",
    "tests/unit/callbacks/test_shapes.py",
    "tests/integration/test_lora.py",
    "tests/invariants/test_splits.py",
    "tests/invariants/test_rollouts.py",
    "tests/unit/test_house.py",
)

#: Tests of two ranks, of warm processes and of the simulated GPU, which one worker runs: to start what these processes come from takes
#: ten seconds.
TOGETHER = re.compile(
    r"ranks|_rank_|/simulated_gpu/|through_a_pipe|/test_(strategies|family_runs|faults|checkpoints|background)\.py::"
)

_last = [0.0]


def pytest_collection_modifyitems(items):
    """Let the long files begin; within a file, and among the others, the order stays."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(file_of(item.nodeid), len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deal out whole files, and those in `TOGETHER` as one."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return unit_of(nodeid)

    return Scheduling(config, log)


def unit_of(test):
    """Return what a worker takes a test with: its file, or all of `TOGETHER`."""
    return "together" if TOGETHER.search(test) else file_of(test)


def file_of(test):
    """Return the file of a test's name."""
    return test.partition("::")[0]


def _used() -> float:
    return max(sum(os.times()[:4]), meter.cpu_seconds(os.getpid()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Note the processor seconds since the test before; a report from another process brings them along."""
    report = yield
    report.cpu_s = 0.0
    if report.when == "teardown":
        now = _used()
        report.cpu_s, _last[0] = (now - _last[0] if _last[0] else 0.0), now
    return report


def costs(reports):
    """Return test → processor seconds, of its set-up, call and tear-down, and the tests that are marked `slow`."""
    spent, slow = {}, set()
    for report in reports:
        spent[report.nodeid] = spent.get(report.nodeid, 0.0) + report.cpu_s
        slow |= {report.nodeid} if "slow" in report.keywords else set()
    return spent, slow


def lines(spent, slow):
    """Return what is said of the costs: the sum, the ten largest, and each test that ought to be marked `slow`."""
    largest = sorted(spent, key=spent.__getitem__, reverse=True)
    said = [f"{sum(spent.values()):.0f} s in {len(spent)} tests"]
    said += [f"{spent[name]:.1f} s {name}" for name in largest[:10]]
    over = [name for name in largest if spent[name] > MOST_S and name not in slow]
    quick = sum(seconds for name, seconds in spent.items() if name not in slow)
    said += [f"{quick:.0f} s in those that are not slow, more than {MOST_ALL_S:g}"] if quick > MOST_ALL_S else []
    files: dict[str, float] = {}
    for name, seconds in spent.items():
        if name not in slow:
            files[file_of(name)] = files.get(file_of(name), 0.0) + seconds
    said += [
        f"{files[name]:.0f} s, to begin the run (LONG in tests/budget.py): {name}"
        for name in files
        if files[name] > LONG_S and name not in LONG
    ]
    return said + [f"over {MOST_S:g} s, so to be cut or marked slow (docs/inside/tests.md): {name}" for name in over]


def pytest_terminal_summary(terminalreporter, config):
    """Say it where the slowest tests are asked for (--durations)."""
    if not config.option.durations:
        return
    reports = [one for kind in terminalreporter.stats.values() for one in kind if hasattr(one, "cpu_s")]
    terminalreporter.section("processor seconds")
    for line in lines(*costs(reports)):
        terminalreporter.write_line(line)
