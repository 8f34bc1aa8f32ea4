"""What CUDA refuses, and what the host waits for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from tests.simulated_gpu.counts import SEEN, site

INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
COPIES = {"copy_", "_to_copy", "_copy_from"}
#: Operations other than pointwise ones in which a CPU tensor without dimensions may stand.
_TAKES_SCALARS = {"where", "masked_fill", "masked_fill_", "fill_", "fill", "lerp", "addcmul", "addcdiv", "_fused_adamw_",
                  "_fused_adam_", "_foreach_mul_", "_foreach_div_", "clamp", "scatter_", "index_fill", "index_fill_"}  # fmt: skip
#: Operations whose result has a shape, or whose host code a branch, that only the device knows.
_WAITS = {"_local_scalar_dense": "item", "nonzero": "nonzero", "masked_select": "nonzero", "unique_dim": "unique",
          "_unique2": "unique", "unique_consecutive": "unique", "bincount": "bincount", "equal": "equal", "item": "item",
          "is_nonzero": "item", "repeat_interleave": "repeats", "_unique": "unique", "histc": "histc"}  # fmt: skip
_NO_KERNEL = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_local_scalar_dense", "detach", "alias",
              "lift_fresh", "_fused_sdp_choice", "set_", "resize_", "_unsafe_view"}  # fmt: skip
#: Products that cuBLAS has for floats alone.
_PRODUCTS = {"mm", "bmm", "addmm", "addmm_", "baddbmm", "mv", "dot", "linear"}
#: Sums whose order differs from run to run: refused under `torch.use_deterministic_algorithms`.
_UNORDERED = {"cumsum", "cumsum_", "histc", "kthvalue", "put_", "cumprod"}

IsThere = Callable[[object], bool]


def refuse(
    func: Any, name: str, args: Sequence[Any], kwargs: Any, there: Sequence[Tensor], here: Sequence[Tensor]
) -> None:
    """Raise what CUDA raises.

    Args:
        func, name, args, kwargs: the operation.
        there, here: its tensors on the device, and on the CPU.
    """
    generator = kwargs.get("generator")
    if generator is not None and there and generator.device.type == "cpu":
        _raise(f"Expected a 'cuda' device type for generator but found 'cpu' [{name}]")
    if there and torch.are_deterministic_algorithms_enabled() and name in _UNORDERED and there[0].is_floating_point():
        _raise(f"{name}_cuda_kernel does not have a deterministic implementation [{name}]")
    if name in _PRODUCTS and there and not (there[0].is_floating_point() or there[0].is_complex()):
        _raise(f'"addmm_cuda" not implemented for integers [{name}]')
    if not there or not here or name in COPIES:
        return
    on_device = {id(one) for one in there}
    if name in INDEXING:
        if id(args[0]) not in on_device:
            _raise(f"indices should be either on cpu or on the same device as the indexed tensor (cpu) [{name}]")
        value = args[2] if len(args) > 2 else None
        if isinstance(value, Tensor) and id(value) not in on_device and value.dim():
            _raise(f"Expected all tensors to be on the same device, values on cpu [{name}]")
        return
    if all(not one.dim() for one in here):
        if name == "where" and id(args[0]) not in on_device:
            _raise(f"Expected condition, x and y to be on the same device [{name}]")
        writes = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
        if writes and isinstance(args[0], Tensor) and id(args[0]) not in on_device:
            _raise(f"Expected all tensors to be on the same device: written to cpu from cuda [{name}]")
        if torch.Tag.pointwise in func.tags or name in _TAKES_SCALARS:
            return
    _raise(f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! [{name}]")


def _raise(message: str) -> NoReturn:
    SEEN.refused.append(f"{message} at {site()}")
    raise RuntimeError(message)


def count(
    func: Any,
    name: str,
    args: Sequence[Any],
    kwargs: Any,
    there: Sequence[Tensor],
    here: Sequence[Tensor],
    pinned: IsThere,
) -> None:
    """Count the wait of an operation, and its launch.

    Args:
        func, name, args, kwargs, there, here: see `refuse`.
        pinned: tells of a CPU tensor whether its memory is pinned.
    """
    on_device = {id(one) for one in there}
    if name in _WAITS:
        if name != "repeat_interleave" or kwargs.get("output_size") is None:
            SEEN.wait(_WAITS[name], name)
    elif name in INDEXING:
        for index in args[1]:
            if isinstance(index, Tensor) and id(index) not in on_device:
                SEEN.wait("index from host", name)
            elif isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                SEEN.wait("mask to index", name)
    elif name in COPIES:
        _count_copy(name, args, kwargs, on_device, here, pinned)
    returns = func._schema.returns
    view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
    if not view and name not in _NO_KERNEL:
        SEEN.kernels[SEEN.phase, name] += 1


def _count_copy(
    name: str, args: Sequence[Any], kwargs: Any, on_device: set[int], here: Sequence[Tensor], pinned: IsThere
) -> None:
    asks = bool(kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
    if name == "copy_":
        crosses, to_host = bool(on_device and here), id(args[0]) not in on_device
    else:
        device = kwargs.get("device")
        target = "" if device is None else torch.device(device).type
        to_host = target == "cpu" and bool(on_device)
        crosses = to_host or (target == "cuda" and bool(here))
    # A copy runs beside the host if it is asked to, and the host's memory is pinned.
    if crosses and not (asks and not to_host and all(pinned(one) for one in here)):
        said = ", non-blocking but pageable" if asks else ""
        SEEN.wait(("to host" if to_host else "from host") + said, name)
