"""What a run holds in memory from step to step, counted from the parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

#: AdamW keeps its step count as one float32 number a parameter tensor.
_STEP_BYTES = 4


@dataclass(frozen=True)
class Held:
    """Bytes that one model keeps while it is trained, or while it only scores.

    Args:
        name: what the module calls it: `policy`, `reference`, `critic` and so on.
        parameters: how many numbers.
        trained: how many of them are trained; those of an adapter alone, where there is one.
        weights, gradients, optimizer: bytes. Gradients and AdamW's two moments exist for trainable parameters only.
    """

    name: str
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.gradients + self.optimizer


def held(module: nn.Module) -> list[Held]:
    """Return what every model of a module holds on this rank, in the order in which they were loaded; shared parameters count
    once, and of sharded ones this rank's share.

    Activations, caches and the data are not in it; they depend on the sizes of microbatches, not on the algorithm.
    """
    seen: set[Tensor] = set()
    result = []
    for name, child in module.named_children():
        own = [parameter for parameter in child.parameters() if parameter not in seen]
        seen.update(own)
        if not own:
            continue
        trained = [parameter for parameter in own if parameter.requires_grad]
        gradients = sum(map(_own_bytes, trained))
        result.append(
            Held(
                name,
                parameters=sum(parameter.numel() for parameter in own),
                trained=sum(parameter.numel() for parameter in trained),
                weights=sum(map(_own_bytes, own)),
                gradients=gradients,
                optimizer=2 * gradients + _STEP_BYTES * len(trained),
            )
        )
    return result


def _own_bytes(parameter: Tensor) -> int:
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).nbytes


def in_units(count: float, unit: str = "B") -> str:
    """Return a number of bytes with a prefix, such as 2.1 MB; powers of 1000."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # From here on three digits round up to the unit.
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {prefix}{unit}"
    return f"{count:.0f} {unit}"
