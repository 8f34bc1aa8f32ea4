"""What the system refuses is one line, wherever it was refused; output that cannot be written harms nothing."""

import errno
import os
import resource
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch.utils.tensorboard import SummaryWriter

from rl_lightning.cli import main as program
from rl_lightning.cli.mistakes import mistake_behind
from rl_lightning.cli.system import of_the_system
from rl_lightning.errors import UserError, chain
from rl_lightning.quiet import _thread_failed
from rl_lightning.strategies import atomic_save

ROOT = Path(__file__).parents[2]


def refused(number, place=None):
    return OSError(number, os.strerror(number), place) if place else OSError(number, os.strerror(number))


SAID = [
    (refused(errno.ENOSPC), "cannot write, the disk is full"),
    (refused(errno.EDQUOT, "/a/b"), "cannot write /a/b, the disk is full"),
    (refused(errno.EFBIG, "/a/b"), "cannot write /a/b, no file may become larger here"),
    (refused(errno.EMFILE, "/a/b"), "cannot open /a/b, too many are open: close others, or raise ulimit -n, which is "),
    (refused(errno.ENFILE), "cannot open a file, too many are open"),
    (refused(errno.EIO), "the disk or the network behind it fails (Input/output error)"),
    (refused(errno.ESTALE, "/a/b"), "cannot read or write /a/b, the disk or the network behind it fails"),
    (refused(errno.EACCES, "/a/b"), "cannot read or write /a/b: Permission denied"),
    (refused(errno.EROFS, b"/a/b"), "cannot read or write /a/b: Read-only file system"),
    (refused(errno.ENOENT, "/a/b"), "there is no /a/b, or it was removed while the run went on"),
    (refused(errno.ENOENT), "the folder that this was started in is gone"),
    (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "set TMPDIR to one"),
    (refused(errno.EAGAIN), "grants no further process or thread"),
    (RuntimeError("can't start new thread"), "grants no further process or thread"),
    (RuntimeError("ThreadPoolBuildError { kind: IOError(Os { message: \"Resource temporarily unavailable\" }) } thread pool: Resource temporarily unavailable"), "no further process or thread"),
    (MemoryError(), "the memory of this machine or of this job is used up"),
    (refused(errno.ENOMEM), "the memory of this machine"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "the memory of this"),
    (RuntimeError("std::bad_alloc"), "the memory of this machine"),
    (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "the memory of this machine"),
    (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 79 GiB"), "the GPU has no memory left (CUDA out of memory): lower microbatch_size"),
    (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "said"), SAID)
def test_what_the_system_refuses_says_what_to_do(error, said):
    found = of_the_system(error)
    assert found is not None and said in found and "\n" not in found


@pytest.mark.parametrize(
    "error",
    [
        ValueError("too many values to unpack"),
        RuntimeError("expected scalar type Float but found Half"),
        KeyError("memory"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        refused(errno.EACCES),  # a socket, say
        SafetensorError("header too large"),
    ],
)
def test_other_errors_are_left_alone(error):
    assert of_the_system(error) is None and mistake_behind(error) is None


def test_a_limit_is_named_with_its_value(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2048 * 1024, 2048 * 1024))
    assert of_the_system(MemoryError()).endswith(", or raise ulimit -v, which is 2048")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert "ulimit" not in of_the_system(MemoryError())


def raised(*errors, explicit):
    """Return the last of some errors, each of which was raised from the one before, or while that one was handled."""
    for before, error in pairwise(errors):
        error.__cause__ = before if explicit else None
        error.__context__ = before
    return errors[-1]


def test_a_question_whether_a_file_is_there_is_no_reason_for_what_fails_then():
    gone, bug = refused(errno.ENOENT, "/a"), ZeroDivisionError("1/0")
    assert mistake_behind(raised(gone, bug, explicit=False)) is None
    assert "there is no /a" in str(mistake_behind(raised(refused(errno.ENOENT, "/a"), bug, explicit=True)))
    full = raised(refused(errno.ENOSPC, "/a"), ZeroDivisionError(), explicit=False)
    assert "disk is full" in str(mistake_behind(full))


def test_memory_that_runs_out_while_something_is_read_is_no_fault_of_what_is_read():
    read = UserError("policy 'a': cannot read the weights: can't start new thread")
    for shortage, said in (
        (RuntimeError("can't start new thread"), "no further process or thread"),
        (MemoryError(), "memory of this"),
    ):
        assert said in str(mistake_behind(raised(shortage, read, explicit=True)))
    for other in (ValueError("header too large"), refused(errno.EMFILE, "/a")):  # whose own words say more
        assert mistake_behind(raised(other, read, explicit=True)) is read


def test_errors_that_go_round_in_circles_come_to_an_end():
    first, second = KeyError(1), UserError("the mistake", page="index")
    first.__cause__, second.__cause__ = second, first
    assert [*chain(first)] == [first, second]
    assert mistake_behind(first) is second
    third, fourth = KeyError(1), KeyError(2)
    third.__context__, fourth.__context__ = fourth, third
    assert mistake_behind(third) is None
    try:
        raise first
    except KeyError:
        assert UserError("another").page == "index"


# ------------------------------------------------------------------------------------------------------------- checkpoints


def fsize(limit):
    """Limit the size of files, as `ulimit -f` does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_checkpoint_that_is_not_written_says_what_was_refused(tmp_path):
    """torch's own error does not say it."""
    atomic_save({"old": 1}, tmp_path / "last.ckpt")
    before, limits = (tmp_path / "last.ckpt").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    for value in ({"new": "x" * 50_000}, {"new": torch.zeros(50_000)}):
        fsize(20_000)
        try:
            with pytest.raises(UserError) as stopped:
                atomic_save(value, tmp_path / "last.ckpt")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        said = f"last.ckpt: [Errno {errno.EFBIG}] File too large; the file that was there before is as it was: mend that or"
        assert said in str(stopped.value)
        assert (tmp_path / "last.ckpt").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*last.ckpt: .*(Not a directory|File exists)"):
        atomic_save({}, tmp_path / "file" / "below" / "last.ckpt")


# ------------------------------------------------------------------------------------------------------------------ output


def shell(command, **variables):
    """Run a command of the shell, in which `$R` is `rl-lightning`."""
    environment = os.environ | {"R": f"{sys.executable} -m rl_lightning", "PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize("command", ["--version", "docs index", "docs nowhere-to-be-found"])
def test_output_that_is_full_is_one_line(command):
    done = shell(f"$R {command} > /dev/full")
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("rl_lightning: error: "), done.stderr


def test_output_that_is_closed_or_no_longer_read_is_no_error():
    assert shell("$R docs index >&-").returncode == 0
    assert shell("$R docs index >&- 2>&- <&-").returncode == 0
    done = shell("$R docs reference/options | true; echo ${PIPESTATUS[0]}")
    assert done.stdout.strip() in ("0", "141") and done.stderr == ""


def test_a_pipe_of_the_run_that_breaks_is_no_reader_that_has_had_enough(monkeypatch):
    """Such as a connection to a server."""

    def breaks(args):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys.modules["rl_lightning.cli.main"], "_obey", breaks)
    with pytest.raises(BrokenPipeError):
        program(["--version"])


def test_a_table_that_nobody_reads_ends_as_all_other_output_does(monkeypatch):
    """rich, which prints it, would end the process with status 1."""

    def prints(args):
        try:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        except BrokenPipeError:
            sys.exit(1)

    monkeypatch.setattr(sys.modules["rl_lightning.cli.main"], "_obey", prints)
    with pytest.raises(SystemExit) as stopped:
        program(["--version"])
    assert stopped.value.code == 141


def test_curves_that_cannot_be_written_are_one_line_and_errors_of_other_threads_stay_tracebacks(
    tmp_path, capsys, caplog, monkeypatch
):
    monkeypatch.setattr(threading, "excepthook", _thread_failed)
    before = set(threading.enumerate())
    writer, limits = SummaryWriter(tmp_path, max_queue=1), resource.getrlimit(resource.RLIMIT_FSIZE)
    fsize(100)
    try:
        writer.add_text("a", "b" * 1000)
        with pytest.raises(OSError, match="File too large"):
            writer.flush() or writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for thread in set(threading.enumerate()) - before:  # `flush` raises before the line is written
        thread.join()
    assert (
        "Traceback" not in capsys.readouterr().err
        and "TensorBoard's curves cannot be written: [Errno 27]" in caplog.text
    )
    other = threading.Thread(target=lambda: 1 / 0)
    other.start()
    other.join()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_no_file_gets_the_number_of_an_output_that_is_closed():
    """What is printed would be written into it."""
    code = "from rl_lightning.cli import main; import os; main(['--version']); print(os.open('/dev/null', os.O_RDONLY), file=open('/proc/self/fd/3', 'w'))"
    done = shell(f'{sys.executable} -c "{code}" 3>&1 >&- 2>&-')
    assert int(done.stdout) > 2


def test_characters_that_the_terminal_does_not_have_are_written_otherwise():
    done = shell("$R docs concepts/divergence", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0 and "\\u" in done.stdout and done.stderr == ""


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    done = shell(f"cd {tmp_path / 'gone'} && rmdir {tmp_path / 'gone'} && $R fit --config grpo")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "the folder that this was started in is gone" in done.stderr
