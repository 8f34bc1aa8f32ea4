"""An epoch loader on its own: where it is, and where it goes on."""

from __future__ import annotations

from rl_lightning.data.loader import EpochLoader


class Numbers:
    """Epochs whose microbatches are (epoch, number); remembers what it made."""

    def __init__(self):
        self.made = []

    def microbatches_per_epoch(self):
        return 3

    def epoch(self, number, state):
        self.made.append((number, state))
        return NumberedEpoch(number)


class NumberedEpoch:
    def __init__(self, number):
        self.number = number

    def microbatches(self, start):
        return iter([(self.number, position) for position in range(start, 3)])

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
