"""An epoch loader on its own: where it is, and where it goes on."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from rl_lightning.data.epochs import EpochLoader
from rl_lightning.hooks import Watch


class Batch(NamedTuple):
    """A microbatch that is its place; every second one ends an optimizer step."""

    epoch: int
    number: int

    @property
    def ends_step(self):
        return self.number % 2 == 1


class Numbers:
    """Epochs whose microbatches are (epoch, number); remembers what it made, and what it was asked at boundaries."""

    def __init__(self):
        self.made, self.asked = [], []
        self.stops_at = -1
        self.watch = Watch(on_boundary=self.on_boundary)

    def on_boundary(self, together):
        if len(self.asked) == self.stops_at:
            raise InterruptedError
        self.asked.append(together)

    def microbatches_per_epoch(self):
        return 3

    trainer = None

    def epoch(self, number, state):
        self.made.append((number, state))
        return NumberedEpoch(number)


class NumberedEpoch:
    def __init__(self, number):
        self.number = number

    def microbatches(self, start):
        return iter([Batch(self.number, position) for position in range(start, 3)])

    def state_dict(self):
        return {"number": self.number}


def restored(progress):
    source = Numbers()
    loader = EpochLoader(source)
    loader.restore(progress, rank=0, ranks=1)
    return source, loader


def batches(loader):
    return [sealed.batch for sealed in loader]


def test_a_checkpoint_from_before_the_first_epoch_starts_with_it():
    source, loader = restored(EpochLoader(Numbers()).progress())
    assert batches(loader) == [(0, 0), (0, 1), (0, 2)]
    assert source.made == [(0, None)]


def test_from_the_middle_the_epoch_itself_is_restored():
    loader = EpochLoader(Numbers())
    iterator = iter(loader)
    next(iterator), next(iterator)
    source, resumed = restored(loader.progress())
    assert batches(resumed) == [(0, 2)]
    assert source.made == [(0, {"number": 0})]
    assert batches(resumed) == [(1, 0), (1, 1), (1, 2)]


def test_from_the_end_the_next_epoch_follows():
    loader = EpochLoader(Numbers())
    assert len(batches(loader)) == 3
    source, resumed = restored(loader.progress())
    assert batches(resumed) == [(1, 0), (1, 1), (1, 2)]
    assert source.made == [(1, None)]


def test_it_asks_before_every_epoch_and_every_optimizer_step():
    source = Numbers()
    loader = EpochLoader(source)
    iterator = iter(loader)
    asked = []
    for _ in range(3):
        next(iterator)
        asked.append(len(source.asked))
    assert asked == [1, 1, 2]
    batches(loader)
    assert source.asked == [True] * 4


@pytest.mark.parametrize(("stop", "seen"), [(0, 0), (1, 2), (2, 3), (3, 5)])
def test_stopped_at_a_boundary_it_goes_on_with_what_was_not_seen(stop, seen):
    source = Numbers()
    source.stops_at = stop
    loader = EpochLoader(source)
    everything = [(epoch, number) for epoch in range(3) for number in range(3)]
    got = []
    with pytest.raises(InterruptedError):
        for _ in range(3):
            for sealed in loader:
                got.append(sealed.batch)
    assert got == everything[:seen]
    _, resumed = restored(loader.progress())
    rest = []
    while len(rest) < len(everything) - seen:
        rest += batches(resumed)
    assert rest == everything[seen:]


def test_within_an_optimizer_step_it_goes_on_with_the_steps_first_microbatch():
    """Steps end after two microbatches; the gradients of one alone are in no checkpoint."""
    loader = EpochLoader(Numbers())
    iterator = iter(loader)
    next(iterator)
    source, resumed = restored(loader.progress())
    assert batches(resumed) == [(0, 0), (0, 1), (0, 2)]
    assert source.made == [(0, {"number": 0})]


def test_stopped_again_before_anything_was_asked_for_it_still_has_the_epoch():
    loader = EpochLoader(Numbers())
    iterator = iter(loader)
    next(iterator), next(iterator)
    source, resumed = restored(loader.progress())
    source.stops_at = 0
    with pytest.raises(InterruptedError):
        batches(resumed)
    source, again = restored(resumed.progress())
    assert batches(again) == [(0, 2)]
    assert source.made == [(0, {"number": 0})]
