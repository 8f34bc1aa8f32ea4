"""What the rest of the house needs to know of how the work is spread."""

from rl_lightning.strategies.checkpoints import AtomicCheckpointIO, atomic_save, load_plain
from rl_lightning.strategies.parallel import (
    data_parallel_rank,
    data_parallel_size,
    from_every_rank,
    mean_over_ranks,
    sum_over_ranks,
)

__all__ = [
    "AtomicCheckpointIO",
    "atomic_save",
    "data_parallel_rank",
    "data_parallel_size",
    "from_every_rank",
    "load_plain",
    "mean_over_ranks",
    "sum_over_ranks",
]
