"""What the simulated device was asked to do: waits of the host, launches, attention kernels."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator

#: Package whose innermost frame a wait is put down to.
PACKAGE = f"{os.sep}rl_lightning{os.sep}"


class Seen:
    """Counts since the last `clear`, by phase: see `phase`.

    Attributes:
        waits: (phase, kind, operation, site) → how often the host waited for the device there.
        kernels: (phase, operation) → how many times it was launched.
        attention: (phase, kernel, why not a better one) → calls.
        refused: what CUDA would have refused, with the site.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.waits: Counter[tuple[str, str, str, str]] = Counter()
        self.kernels: Counter[tuple[str, str]] = Counter()
        self.attention: Counter[tuple[str, str, str]] = Counter()
        self.refused: list[str] = []
        self.phase = "other"

    def wait(self, kind: str, operation: str) -> None:
        """Count a wait."""
        self.waits[self.phase, kind, operation, site()] += 1

    def waits_in(self, phase: str) -> int:
        """Return how often the host waited in a phase."""
        return sum(count for (where, *_), count in self.waits.items() if where == phase)

    def launches_in(self, phase: str) -> int:
        """Return how many kernels were launched in a phase."""
        return sum(count for (where, _), count in self.kernels.items() if where == phase)

    def places(self, phase: str) -> str:
        """Return the waits of a phase, a line a place, for messages."""
        found = [(count, *rest) for (where, *rest), count in self.waits.items() if where == phase]
        return "\n".join(
            f"{count:4d} {kind}: {name} at {place}" for count, kind, name, place in sorted(found, reverse=True)
        )


SEEN = Seen()


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Put counts down to a phase inside this."""
    before, SEEN.phase = SEEN.phase, name
    try:
        yield
    finally:
        SEEN.phase = before


def site() -> str:
    """Return where the package stands: its innermost frame, and the library that it called from there."""
    frame, inner = sys._getframe(1), None
    while frame is not None:
        path = frame.f_code.co_filename
        if PACKAGE in path:
            own = f"{path.rsplit(PACKAGE, 1)[1]}:{frame.f_lineno}"
            return f"{own} (in {inner})" if inner else own
        if "site-packages" in path:
            library = path.rsplit("site-packages" + os.sep, 1)[1]
            if not library.startswith("torch" + os.sep):
                inner = inner or f"{library}:{frame.f_lineno}"
        frame = frame.f_back
    return inner or "?"
