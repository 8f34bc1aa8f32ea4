"""Errors for which neither a user's options nor the code is to blame: what the system or its limits refused."""

from __future__ import annotations

import errno
import os
import re
import resource

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Errors of a path that the user can correct: no permission, a directory in place of a file, a name that is too long.
_OUT_OF_REACH = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
#: A disk that fails, and a network file system that does not answer or has replaced what was open.
_FAILING = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN)

#: How numpy, torch, safetensors and the dynamic linker say that memory is used up; none of them has a class for it.
_NO_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|cannot allocate memory|unable to allocate|failed to map segment|bad_alloc",
    re.I,
)
_NO_GPU_MEMORY = re.compile(r"(CUDA|HIP|MPS|XPU)\b.*out of memory", re.I)
_NO_THREAD = re.compile(
    r"can't start new thread|thread(pool)? .*(resource temporarily unavailable|would ?block)", re.I | re.S
)


def of_the_system(error: BaseException) -> str | None:
    """Return a message for an error of the disk, of a path, of memory, or of a limit of the system; None for other errors."""
    number, place = _number(error), ""
    if isinstance(error, OSError) and isinstance(error.filename, str | bytes | os.PathLike):
        place = " " + os.fsdecode(error.filename)
    if number in _FULL:
        return f"cannot write{place}, the disk is full: make room or choose another place"
    if number == errno.EFBIG:
        return f"cannot write{place}, no file may become larger here: choose another place{_or_raise('-f', 'RLIMIT_FSIZE', 1024)}"
    if number in (errno.EMFILE, errno.ENFILE):
        return f"cannot open{place or ' a file'}, too many are open: close others{_or_raise('-n', 'RLIMIT_NOFILE')}"
    if number in _FAILING:
        return f"cannot read or write{place}, the disk or the network behind it fails ({os.strerror(number)}): run again once it works"
    # What has no name may as well be a socket or a pipe.
    if place and number in _OUT_OF_REACH:
        return f"cannot read or write{place}: {os.strerror(number)}: mend that or choose another place"
    if number == errno.ENOENT:
        return _of_what_is_gone(place, str(error))
    return _of_memory_or_threads(error, number)


def _of_what_is_gone(place: str, said: str) -> str:
    if place:
        return f"there is no{place}, or it was removed while the run went on: put it back, or name another"
    if "temporary" in said:
        return "there is no folder for temporary files that can be written to: set TMPDIR to one"
    return "the folder that this was started in is gone: change to one that exists"


def _of_memory_or_threads(error: BaseException, number: int | None) -> str | None:
    said = str(error)
    if number == errno.EAGAIN or _NO_THREAD.search(said):
        raised = _or_raise("-u", "RLIMIT_NPROC") + _or_raise("-v", "RLIMIT_AS", 1024)
        return f"the system grants no further process or thread, or no memory for one: end others{raised}"
    if _NO_GPU_MEMORY.search(said):
        return (
            f"the GPU has no memory left ({said.split('. ')[0]}): lower microbatch_size, group_size or sampling.max_new_tokens, "
            "train an adapter (model.lora), or shard the model over more devices"
        )
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _NO_MEMORY.search(said):
        return (
            "the memory of this machine or of this job is used up: lower microbatch_size, the number of prompts or "
            f"reward_limits.workers{_or_raise('-v', 'RLIMIT_AS', 1024)}"
        )
    return None


def _number(error: BaseException) -> int | None:
    """Return the system's number for an error. The writer of safetensors has its words, but not its number."""
    if isinstance(error, OSError):
        return error.errno
    if type(error).__name__ == "SafetensorError":
        known = (*_FULL, *_FAILING, errno.EFBIG, *_OUT_OF_REACH)
        return next((one for one in known if os.strerror(one) in str(error)), None)
    return None


def _or_raise(flag: str, name: str, unit: int = 1) -> str:
    """Return the end of a message that names a limit of this process, if there is one.

    Args:
        flag: of the shell's `ulimit`.
        name: of the limit in `resource`.
        unit: bytes to the shell's number.
    """
    soft, _ = resource.getrlimit(getattr(resource, name))
    return "" if soft == resource.RLIM_INFINITY else f", or raise ulimit {flag}, which is {soft // unit}"
