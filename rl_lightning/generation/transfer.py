"""Handing weights to an engine of vLLM in the GPU's memory, with the calls that vLLM has for it."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable, Iterator
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import reduce_tensor
from transformers import PreTrainedModel

from rl_lightning.models import is_stored_by_name, plain_weights
from rl_lightning.strategies import WholeWeights, agreed

#: Bytes of the weights that are handed over at a time. Those that are made for it, gathered or with an adapter merged into them, need so
#: much of the GPU.
_AT_A_TIME = 2**30

Piece = list[tuple[str, Tensor]]


class Receiver(Protocol):
    """Where weights go to."""

    def begin(self) -> None:
        """Get ready for new weights."""

    def take(self, piece: Piece) -> None:
        """Take some of them. They may change as soon as this returns."""

    def end(self) -> None:
        """Use what was taken, which is all of them."""


def obstacle(model: nn.Module) -> str | None:
    """Return why the weights of a model cannot be handed over in a GPU's memory; None if they can."""
    if next(model.parameters()).device.type != "cuda":
        return "the policy is not on a GPU"
    if not is_stored_by_name(cast(PreTrainedModel, model)):
        return "vLLM reads other tensors than the policy has, as its files do (layers of experts)"
    return None


def hand_over(model: nn.Module, receiver: Receiver | None) -> None:
    """Give all weights of a model to this rank's receiver, piece by piece. All ranks call this together.

    Args:
        model: the policy, on a GPU; adapters are merged, and what is sharded is gathered, a piece at a time.
        receiver: None on a rank that has none, which takes part in the gathering.

    Raises:
        UserError: on every rank, if a receiver of one of them failed.
    """
    agreed(lambda: receiver.begin() if receiver else None)
    for piece in in_pieces(model):
        agreed(lambda piece=piece: receiver.take(piece) if receiver else None)  # type: ignore[misc]
    agreed(lambda: receiver.end() if receiver else None)


def in_pieces(model: nn.Module) -> Iterator[Piece]:
    """Yield all weights under the names that Hugging Face files have, in pieces of about a GiB."""
    piece: Piece = []
    for name, weight in plain_weights(model, WholeWeights(model)):
        piece.append((name, weight.contiguous()))
        if sum(one.nbytes for _, one in piece) >= _AT_A_TIME:
            yield piece
            piece = []
    if piece:
        yield piece


def described(piece: Piece) -> dict[str, object]:
    """Return what vLLM is told of weights before it gets them."""
    return {
        "names": [name for name, _ in piece],
        "dtype_names": [str(weight.dtype).removeprefix("torch.") for _, weight in piece],
        "shapes": [list(weight.shape) for _, weight in piece],
    }


class SameGPU:
    """An engine of vLLM on the trainer's own GPU: it is told where weights lie, and reads them there (CUDA IPC).

    Args:
        ask: calls a method of the engine's workers with keyword arguments.
    """

    def __init__(self, ask: Callable[[str, dict[str, object]], object]) -> None:
        self._ask = ask
        ask("init_weight_transfer_engine", {"init_info": {"packed": False}})

    def begin(self) -> None:
        """See `Receiver`."""
        self._ask("start_weight_update", {})

    def take(self, piece: Piece) -> None:
        """See `Receiver`."""
        places = [_place(weight) for _, weight in piece]
        _wait_for_kernels(piece[0][1].device)
        said = described(piece) | {"ipc_handles_pickled": base64.b64encode(pickle.dumps(places)).decode()}
        self._ask("update_weights", {"update_info": said})

    def end(self) -> None:
        """See `Receiver`."""
        self._ask("finish_weight_update", {})


def _place(weight: Tensor) -> dict[str, tuple[object, ...]]:
    """Return the GPU's number for life, and what another process needs to find a tensor in its memory."""
    return {str(torch.cuda.get_device_properties(weight.device).uuid): reduce_tensor(weight)[1]}


def _wait_for_kernels(device: torch.device) -> None:
    """Wait until weights that are being merged or gathered are there: the other process knows nothing of this one's streams."""
    torch.cuda.synchronize(device)
