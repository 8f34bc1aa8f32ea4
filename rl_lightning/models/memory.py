"""Memory that a run keeps from step to step, counted from the parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

#: AdamW keeps a step count, one float32 number, per parameter tensor.
STEP_BYTES = 4


@dataclass(frozen=True)
class Held:
    """Memory of one model of an algorithm, trained or frozen.

    Args:
        name: its attribute of the module: `policy`, `reference`, `critic` and so on.
        parameters: number of parameters.
        trained: number of trained parameters: with LoRA, those of the adapter.
        weights, gradients, optimizer: bytes. Gradients and AdamW's two moments exist for trained parameters only.
    """

    name: str
    parameters: int
    trained: int
    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Bytes of weights, gradients and optimizer state together."""
        return self.weights + self.gradients + self.optimizer


def held(module: nn.Module) -> list[Held]:
    """Return the memory of every model of a module on this rank, in the order in which they were loaded.

    Parameters that two models share count once, for the first. Of sharded parameters, this rank's share counts. Activations,
    caches and data are not included: they depend on the size of microbatches.
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
                optimizer=2 * gradients + STEP_BYTES * len(trained),
            )
        )
    return result


def _own_bytes(parameter: Tensor) -> int:
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).nbytes


def in_units(count: float, unit: str = "B") -> str:
    """Return a number with three digits and a decimal prefix, such as `2.1 MB`; 1 kB is 1000 B."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999.5 and more would be printed as 1e+03 of the smaller unit.
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {prefix}{unit}"
    return f"{count:.0f} {unit}"
