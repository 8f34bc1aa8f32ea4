"""Handing weights to an engine of vLLM in the GPU's memory, with the calls that vLLM has for it."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import reduce_tensor
from transformers import PreTrainedModel

from rl_lightning.errors import UserError
from rl_lightning.models import is_stored_by_name, plain_weights
from rl_lightning.strategies import WholeWeights, agreed, together

#: Bytes of the weights that are handed over at a time. They need about three times as much of the GPU: here for those with a merged adapter and
#: for what is shared, and in the engine.
_AT_A_TIME = 2**28

Piece = list[tuple[str, Tensor]]


class Receiver(Protocol):
    """Where weights go to."""

    def begin(self) -> None:
        """Get ready for new weights."""

    def take(self, piece: Piece) -> None:
        """Take a copy of some of them."""

    def end(self) -> None:
        """Use what was taken, which is all of them."""


def obstacle(model: nn.Module) -> str | None:
    """Return why the weights of a model cannot be handed over in a GPU's memory; None if they can. All ranks call this together.

    A rank that was handed its weights by the first one knows less of how they are stored.
    """
    return next((reason for reason in together(lambda: _obstacle_here(model)) if reason is not None), None)


def _obstacle_here(model: nn.Module) -> str | None:
    if next(model.parameters()).device.type != "cuda":
        return "the policy is not on a GPU"
    if not is_stored_by_name(cast(PreTrainedModel, model)):
        return "vLLM reads other tensors than the policy has, as its files do (layers of experts)"
    return None


def hand_over(model: nn.Module, receiver: Receiver | None) -> None:
    """Give all weights of a model to this rank's receiver, piece by piece. All ranks call this together.

    Args:
        model: the policy, on a GPU; gathered, if it is sharded. Adapters are merged a piece at a time.
        receiver: None on a rank that has none, which takes part in the gathering.

    Raises:
        UserError: on every rank, if a receiver of one of them failed.
    """
    agreed(lambda: receiver.begin() if receiver else None)
    for piece in in_pieces(model):
        agreed(partial(receiver.take, piece) if receiver else lambda: None)
        piece.clear()
    agreed(lambda: receiver.end() if receiver else None)


def in_pieces(model: nn.Module) -> Iterator[Piece]:
    """Yield all weights under the names that Hugging Face files have, in pieces of about 256 MiB."""
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
    """A `Receiver`: an engine of vLLM on the trainer's own GPU. Weights are copied into a buffer, of which it is told where it lies (CUDA IPC).

    Args:
        ask: calls a method of the engine's workers with keyword arguments.
    """

    def __init__(self, ask: Callable[[str, dict[str, object]], object]) -> None:
        self._ask = ask
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._place: dict[str, tuple[object, ...]] = {}
        ask("init_weight_transfer_engine", {"init_info": {"packed": True}})

    def begin(self) -> None:
        """Let the engine begin an update of its weights; see `Receiver`."""
        self._ask("start_weight_update", {})

    def take(self, piece: Piece) -> None:
        """See `Receiver`.

        Raises:
            UserError: if the GPU's memory cannot be shared with another process.
        """
        # Wide numbers first, so that each weight begins at a multiple of its own width.
        ordered = sorted(piece, key=lambda named: -named[1].element_size())
        sizes = [weight.nbytes for _, weight in ordered]
        self._make_room(sum(sizes), ordered[0][1].device)
        torch.cat([weight.reshape(-1).view(torch.uint8) for _, weight in ordered], out=self._buffer[: sum(sizes)])
        _wait_for_kernels(self._buffer.device)
        place = base64.b64encode(pickle.dumps(self._place)).decode()
        self._ask(
            "update_weights",
            {"update_info": described(ordered) | {"tensor_sizes": sizes, "ipc_handles_pickled": place}},
        )

    def _make_room(self, size: int, device: torch.device) -> None:
        if self._buffer.nbytes >= size:
            return
        self._buffer = torch.empty(max(size, _AT_A_TIME), dtype=torch.uint8, device=device)
        try:
            self._place = _place(self._buffer)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"this GPU's memory cannot be shared with vLLM ({reason}): set generator.directory, so that weights are handed over as files"
            ) from error

    def end(self) -> None:
        """Let the engine finish its update, and free the buffer that it copied from; see `Receiver`."""
        self._ask("finish_weight_update", {})
        self._buffer = torch.empty(0, dtype=torch.uint8)
        _collect()


def _place(buffer: Tensor) -> dict[str, tuple[object, ...]]:
    """Return the GPU's number for life, and what another process needs to find a tensor in its memory."""
    return {str(torch.cuda.get_device_properties(buffer.device).uuid): reduce_tensor(buffer)[1]}


def _wait_for_kernels(device: torch.device) -> None:
    """Wait until what was copied is there: the other process knows nothing of this one's streams."""
    torch.cuda.synchronize(device)


def _collect() -> None:
    """Free memory that the other process has let go of."""
    torch.cuda.ipc_collect()
