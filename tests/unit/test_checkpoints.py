"""Files that are whole or not there."""

import signal
import subprocess
import sys
import time

import pytest
import torch

from rl_lightning.errors import UserError
from rl_lightning.strategies.checkpoints import AtomicCheckpointIO, atomic_save, load_plain

OLD, NEW = {"step": 1, "weight": torch.ones(3)}, {"step": 2, "weight": torch.zeros(200_000)}


def check_old(path):
    loaded = load_plain(path)
    assert loaded["step"] == 1 and torch.equal(loaded["weight"], OLD["weight"])


def test_what_is_saved_is_loaded_and_replaces(tmp_path):
    path = tmp_path / "new folder" / "last.ckpt"
    writer = AtomicCheckpointIO()
    writer.save_checkpoint(OLD, path)
    check_old(path)
    writer.save_checkpoint(NEW, path)
    assert writer.load_checkpoint(path)["step"] == 2
    assert [one.name for one in path.parent.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    atomic_save(OLD, path)

    def full(value, file):
        file.write(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left on device; the file that was there before is as it was"):
        atomic_save(NEW, path)
    monkeypatch.undo()
    check_old(path)
    assert [one.name for one in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.ckpt"
    atomic_save(OLD, path)
    code = (
        "import sys, time, torch\n"
        "from rl_lightning.strategies.checkpoints import atomic_save\n"
        "def slow(value, file):\n"
        "    file.write(b'half of'); file.flush(); print('writing', flush=True); time.sleep(60)\n"
        "torch.save = slow\n"
        "atomic_save({}, sys.argv[1])\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    check_old(path)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, share):
    path = tmp_path / "cut.ckpt"
    atomic_save(NEW, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"cut.ckpt cannot be read, it is damaged"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_nothing_in_a_checkpoint_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (time.sleep, (0,))

    torch.save({"bomb": Bomb()}, tmp_path / "bomb.ckpt")
    with pytest.raises(UserError, match="cannot be read"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "bomb.ckpt")
    with pytest.raises(UserError, match="weights_only=True"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "bomb.ckpt", weights_only=False)
