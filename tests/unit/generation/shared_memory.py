"""Stands for a GPU's memory that another process reads: what lies there travels whenever the place is told."""


class Contents:
    """Is pickled as the bytes that a tensor has then."""

    def __init__(self, buffer):
        self.buffer = buffer

    def __reduce__(self):
        return bytes, (self.buffer.numpy().tobytes(),)


def place(buffer):
    """Return the number of the GPU for life, and a place in it; the seventh entry of a real one is the GPU's number in the process."""
    return {"cpu": (Contents(buffer), *range(6))}


def as_on_a_gpu(transfer, at_a_time=50_000):
    """Have a process share what lies in the host's memory, in small pieces; `transfer` is the module or, of it, a test's own patch."""
    for name, value in {
        "_AT_A_TIME": at_a_time,
        "_place": place,
        "_wait_for_kernels": lambda device: None,
        "_collect": lambda: None,
    }.items():
        transfer(name, value)
