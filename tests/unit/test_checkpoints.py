"""Files that are whole or not there."""

import contextlib
import pickle
import signal
import tempfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as distributed

from rl_lightning.errors import UserError
from rl_lightning.strategies.checkpoints import AtomicCheckpointIO, atomic_save, check_records, load_plain
from rl_lightning.strategies.checksums import CHECKSUMS, check_directory, write_checksums
from tests.checks import holds_only_for
from tests.processes import Warm

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


def write_slowly(path):
    def slow(value, file):
        file.write(b"half of")
        file.flush()
        print("writing", flush=True)
        time.sleep(60)

    torch.save = slow
    atomic_save({}, path)


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    path, log = tmp_path / "last.ckpt", tmp_path / "log"
    atomic_save(OLD, path)
    writer = Warm(write_slowly, path, output=log)
    while not (log.exists() and log.read_text() == "writing\n"):
        assert writer.poll() is None, log.read_text()
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    assert writer.wait(60) == -signal.SIGKILL
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
    with pytest.raises(UserError, match="weights_only: false would let a checkpoint run code"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "bomb.ckpt", weights_only=False)


def flipped(raw, place, bit=0):
    """Return some bytes with one bit changed."""
    return raw[:place] + bytes([raw[place] ^ (1 << bit)]) + raw[place + 1 :]


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
        )
    return one == other


def unseen_damage(load, path, value):
    """Return the bits that change what is loaded and are not refused."""
    path = Path(path)
    whole = path.read_bytes()
    unseen = []
    for place, bit in bits(whole):
        path.write_bytes(flipped(whole, place, bit))
        with contextlib.suppress(UserError):
            if not equal(load(path), value):
                unseen.append((place, bit))
    path.write_bytes(whole)
    return unseen


def bits(whole):
    """Yield which bits to flip: one of every fifth byte, and all of an entry in the directory at the end."""
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"data/0"))  # of a tensor
    for place in range(len(whole)):
        if entry <= place < entry + 46:
            yield from ((place, bit) for bit in range(8))
        elif place % 5 == 0:
            yield place, place // 5 % 8


def without_checksums(path):
    """The mutant: what `torch.load` itself sees."""
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:
        raise UserError("damaged") from error


@holds_only_for(load_plain, torchs_own=without_checksums)
def test_a_flipped_bit_is_refused_or_changes_nothing(load):
    """Records, names, the directory at the end and the padding between."""
    with tempfile.TemporaryDirectory() as folder:
        value = {
            "step": 3,
            "weight": torch.linspace(-1, 1, 70),
            "moments": {"mean": torch.ones(9).bfloat16(), "name": "Ω"},
        }
        atomic_save(value, Path(folder) / "last.ckpt")
        assert not unseen_damage(load, Path(folder) / "last.ckpt", value)


def test_a_record_that_is_marked_as_a_directory_is_refused(tmp_path):
    """torch would load whatever is in memory, and Python's reader sees nothing wrong."""
    path = tmp_path / "last.ckpt"
    atomic_save({"weight": torch.ones(99)}, path)
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"data/0")) + 38, 4))
    assert zipfile.ZipFile(path).testzip() is None
    with pytest.raises(UserError, match="its record archive/data/0 is none that torch has written"):
        load_plain(path)


def test_a_zeroed_block_is_refused(tmp_path):
    path = tmp_path / "last.ckpt"
    atomic_save({"weight": torch.randn(50_000)}, path)
    whole = path.read_bytes()
    for start in range(4096, len(whole) - 8192, 20_000):
        path.write_bytes(whole[:start] + bytes(4096) + whole[start + 4096 :])
        with pytest.raises(UserError, match=r"its record archive/data/0 is not what was written \(CRC-32\)"):
            load_plain(path)


def test_checking_takes_no_memory(tmp_path):
    path = tmp_path / "large.ckpt"
    torch.save({"weight": torch.zeros(8_000_000)}, path)
    tracemalloc.start()
    with path.open("rb") as file:
        check_records(file, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20 < path.stat().st_size


OTHERS = {
    "a text": lambda path: path.write_text("hello"),
    "nothing": lambda path: path.write_bytes(b""),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"state_dict": {}})),
    "torch's old format": lambda path: torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False),
    "a zip": lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "hello"),
    "a directory": lambda path: path.mkdir(),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_no_checkpoint_is_named(other, tmp_path):
    OTHERS[other](tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other.ckpt cannot be read"):
        load_plain(tmp_path / "other.ckpt")


def test_a_checkpoint_that_is_elsewhere_is_checked_too(tmp_path):
    """`file://` stands for all places that Lightning reads by fsspec."""
    path, url = tmp_path / "last.ckpt", f"file://{tmp_path}/last.ckpt"
    atomic_save(OLD, path)
    assert AtomicCheckpointIO().load_checkpoint(url)["step"] == 1
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, whole.index(OLD["weight"].numpy().tobytes())))
    with pytest.raises(UserError, match=r"is not what was written"):
        AtomicCheckpointIO().load_checkpoint(url)


def shares(folder):
    """Return a directory such as FSDP2Strategy saves, by torch's own writer."""
    folder.mkdir()
    state = {"weight": torch.linspace(0, 1, 50), "bias": torch.ones(4)}
    distributed.save(state, storage_writer=distributed.FileSystemWriter(folder))
    torch.save({"epoch": 1}, folder / "meta.pt")
    write_checksums(folder)
    return folder


def test_a_directory_of_shares_is_checked(tmp_path):
    """Shares, their metadata, the rest, and the checksums themselves."""
    folder = shares(tmp_path / "last.ckpt")
    check_directory(folder)
    names = {path.name for path in folder.iterdir()}
    assert {".metadata", "meta.pt", "__0_0.distcp", CHECKSUMS} <= names
    for name in names:
        whole = (folder / name).read_bytes()
        for place in (0, len(whole) // 3, len(whole) - 2):
            (folder / name).write_bytes(flipped(whole, place))
            with pytest.raises(UserError, match=r"last.ckpt cannot be read, it is damaged or no checkpoint"):
                check_directory(folder)
        (folder / name).write_bytes(whole)
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(UserError, match=r"its files are not those that were written: __0_0.distcp"):
        check_directory(folder)
    with pytest.raises(UserError, match="without the shares of a checkpoint"):
        check_directory(tmp_path)
