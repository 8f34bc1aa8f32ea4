"""Memory that a run keeps from step to step, counted from the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rl_lightning.models.quantized import beside, count

#: What AdamW's moments are kept in; see `OptimizerOptions`.
Moments = Literal["full", "8bit"]


def adamw_bytes(count: int, itemsize: int, moments: Moments = "full") -> int:
    """Return the bytes that AdamW keeps of one tensor: two moments, and a step count in float32 or scales of 8-bit numbers.

    Args:
        count: numbers in the tensor.
        itemsize: bytes of each.
        moments: what they are kept in. In 8 bits, bitsandbytes has a float32 scale for each 256 numbers, and keeps tensors of fewer
            than 4,096 whole.
    """
    if moments == "full":
        return 2 * count * itemsize + 4
    return 8 * count if count < 4096 else 2 * (count + 4 * -(-count // 256))


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


def held(module: nn.Module, moments: Moments = "full") -> list[Held]:
    """Return the memory of every model of a module on this rank, in the order in which they were loaded.

    Parameters that two models share count once, for the first. Of sharded parameters, this rank's share counts. Activations,
    caches and data are not included: they depend on the size of microbatches.

    Args:
        module: with its models as its children.
        moments: what those of AdamW are kept in.
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
                parameters=sum(map(count, own)),
                trained=sum(parameter.numel() for parameter in trained),
                weights=sum(map(_own_bytes, own)),
                gradients=gradients,
                optimizer=sum(adamw_bytes(_local(one).numel(), one.itemsize, moments) for one in trained),
            )
        )
    return result


def _own_bytes(parameter: Tensor) -> int:
    return _local(parameter).nbytes + sum(scale.nbytes for scale in beside(parameter))


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def in_units(count: float, unit: str = "B") -> str:
    """Return a number with three digits and a decimal prefix, such as `2.1 MB`; 1 kB is 1000 B."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999.5 and more would be printed as 1e+03 of the smaller unit.
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {prefix}{unit}"
    return f"{count:.0f} {unit}"
