"""Ranks, sharded models and checkpoints, whatever strategy the Trainer has."""

from rl_lightning.strategies.checkpoints import (
    AtomicCheckpointIO,
    atomic_save,
    check_origin,
    checkpoint_steps,
    load_plain,
    read_states,
)
from rl_lightning.strategies.fsdp2 import FSDP2Strategy
from rl_lightning.strategies.handing_out import is_given_weights, whole_here
from rl_lightning.strategies.parallel import (
    StopSign,
    agreed,
    data_parallel_rank,
    data_parallel_size,
    from_every_rank,
    metrics_of_all_ranks,
    number_of_ranks,
    own_rank,
    sum_over_ranks,
    together,
)
from rl_lightning.strategies.sharding import (
    WholeWeights,
    clip_gradients,
    full_state_dict,
    gathered,
    gradient_norm,
    place,
)

__all__ = [
    "AtomicCheckpointIO",
    "FSDP2Strategy",
    "StopSign",
    "WholeWeights",
    "agreed",
    "atomic_save",
    "check_origin",
    "checkpoint_steps",
    "clip_gradients",
    "data_parallel_rank",
    "data_parallel_size",
    "from_every_rank",
    "full_state_dict",
    "gathered",
    "gradient_norm",
    "is_given_weights",
    "load_plain",
    "metrics_of_all_ranks",
    "number_of_ranks",
    "own_rank",
    "place",
    "read_states",
    "sum_over_ranks",
    "together",
    "whole_here",
]
