"""One run at a time in a directory; see also tests/integration/test_faults.py."""

import errno
import fcntl
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from rl_lightning.algorithms import GRPO
from rl_lightning.callbacks import HFExport, RunLock
from rl_lightning.callbacks.run_lock import LOCK_FILE
from rl_lightning.errors import UserError
from tests.support import StoredRollouts, random_rollout, trainer


def stub(directory, rank=0, step=1, callbacks=()):
    return SimpleNamespace(
        default_root_dir=str(directory),
        is_global_zero=rank == 0,
        global_step=step,
        loggers=[],
        callbacks=list(callbacks),
    )


def test_one_holds_it_and_others_are_refused_until_it_lets_go(tmp_path):
    first, second = RunLock(), RunLock()
    first.acquire(stub(tmp_path / "new"))
    first.acquire(stub(tmp_path / "new"))  # again is nothing
    with pytest.raises(UserError, match="is in use by process") as error:
        second.acquire(stub(tmp_path / "new"))
    assert "\n" not in str(error.value)
    second.acquire(stub(tmp_path / "other"))
    first.release(stub(tmp_path / "new"))
    RunLock().acquire(stub(tmp_path / "new"))


def test_runs_in_directories_of_their_own_may_not_share_a_third(tmp_path):
    """The second keeps no lock at all, and the lock of the third goes with the run that had it."""
    shared = [ModelCheckpoint(dirpath=tmp_path / "shared"), HFExport()]
    first, second = RunLock(), RunLock()
    first.acquire(stub(tmp_path / "first", callbacks=shared))
    for callbacks in (shared, [HFExport(str(tmp_path / "shared"))], [HFExport(str(tmp_path / "first" / "hf"))]):
        with pytest.raises(UserError, match=r"is in use by process .* dirpath"):
            second.acquire(stub(tmp_path / "second", callbacks=callbacks))
        RunLock().acquire(stub(tmp_path / "second"))
    first.release(stub(tmp_path / "first"))
    assert not (tmp_path / "shared").exists() and (tmp_path / "first" / LOCK_FILE).exists()
    second.acquire(stub(tmp_path / "second", callbacks=shared))


def test_a_directory_that_became_read_only_hides_no_other_error_and_keeps_no_lock(tmp_path, monkeypatch):
    shared = [ModelCheckpoint(dirpath=tmp_path / "shared"), HFExport(str(tmp_path / "exports"))]
    lock = RunLock()
    lock.acquire(stub(tmp_path / "run", step=0, callbacks=shared))

    def refused(path, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        lock.release(stub(tmp_path / "run", step=0))
    RunLock().acquire(stub(tmp_path / "run", callbacks=shared))


def test_a_process_cannot_take_it_either(tmp_path):
    lock = RunLock()
    lock.acquire(stub(tmp_path))
    command = [sys.executable, "-c", "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"]
    assert subprocess.run([*command, str(tmp_path / LOCK_FILE)], capture_output=True).returncode == 1
    lock.release(stub(tmp_path))
    assert subprocess.run([*command, str(tmp_path / LOCK_FILE)], capture_output=True).returncode == 0


def test_other_ranks_and_remote_places_take_none(tmp_path, monkeypatch):
    first, other, remote = RunLock(), RunLock(), RunLock()
    first.acquire(stub(tmp_path))
    other.acquire(stub(tmp_path, rank=1))
    monkeypatch.chdir(tmp_path)
    remote.acquire(stub("s3://bucket/run"))
    assert first._files and not other._files and not remote._files
    assert not (tmp_path / "s3:").exists()


def test_only_a_run_that_took_a_step_leaves_a_sign(tmp_path):
    for step, sign in ((0, ""), (1, "pid"), (0, "pid")):
        lock = RunLock()
        lock.acquire(stub(tmp_path))
        assert "pid" in json.loads((tmp_path / LOCK_FILE).read_text())
        lock.release(stub(tmp_path, step=step))
        assert sign in (tmp_path / LOCK_FILE).read_text() and (sign or not (tmp_path / LOCK_FILE).read_text())


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def without(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    RunLock().acquire(stub(tmp_path))
    assert "is on a file system without locks" in caplog.text


class Broken(GRPO):
    def objective(self, batch, logprobs):
        raise RuntimeError("broken")


def test_from_python_it_is_held_during_a_fit_and_not_after_whatever_its_end(tiny_policy, tmp_path):
    class Look(RunLock):
        def on_train_start(self, trainer, pl_module):
            super().on_train_start(trainer, pl_module)
            with pytest.raises(UserError, match="is in use"):
                RunLock().acquire(trainer)

    data = StoredRollouts(random_rollout(), group_size=4, minibatch_size=8)
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, [Look()]).fit(Broken(policy=tiny_policy), datamodule=data)
    for _ in range(2):
        trainer(tmp_path, [Look()]).fit(GRPO(policy=tiny_policy, kl_coef=0), datamodule=data)
