"""A CUDA device that is not there: its tensors are kept on the CPU, but they say `cuda:0` and refuse what CUDA refuses.

`install` makes it for the rest of a process. Real are: device types, autograd, autocast("cuda") with torch's own lists, Lightning's
CUDAAccelerator, branches on `device.type`. Refused, as on CUDA: operations on tensors of two devices (but CPU tensors without
dimensions in pointwise operations, and CPU indices), CPU generators, `.numpy()`, what has no deterministic kernel. Counted: every wait
of the host, every launch, and which attention kernel CUDA would take (`counts.py`). `torch.cuda.graph` records operations, and a
replay runs them on the same memory again; a wait within is an error.

Not to be seen here: wrong strides for a kernel, races of non-blocking copies, NCCL, memory and speed.

A CPU build of torch has neither guard nor hooks for CUDA devices: `device.cpp`, which g++ builds once in ten seconds, has some that do
nothing. The kernels of the dispatch key CUDA are Python's.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tests.simulated_gpu import rules
from tests.simulated_gpu.attention import KERNELS, attend
from tests.simulated_gpu.counts import SEEN, Seen

aten = torch.ops.aten
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

#: Why there can be no simulated device in this environment; empty if there can.
MISSING = (
    "torch is built with CUDA: a real device would be in its way"
    if torch.backends.cuda.is_built()
    else "g++ is not installed, which builds the simulated device"
    if shutil.which("g++") is None
    else ""
)

#: Operations that reach the device without a tensor of it, or past `__torch_dispatch__`.
_REACHED = (
    "empty.memory_format", "empty_strided", "copy_", "_local_scalar_dense", "arange", "arange.start", "arange.start_step", "full",
    "zeros", "ones", "eye", "eye.m", "linspace", "rand", "randn", "randint", "randint.low", "randperm", "tril_indices",
    "triu_indices", "scalar_tensor",
)  # fmt: skip


class CudaTensor(Tensor):
    """A tensor that says it is on `cuda:0`; `elem` is what it holds, on the CPU."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> CudaTensor:
        made = Tensor._make_wrapper_subclass(
            cls, elem.size(), strides=elem.stride(), storage_offset=elem.storage_offset(), dtype=elem.dtype, device=CUDA
        )
        made.elem = elem
        return made

    def __init__(self, elem: Tensor) -> None:
        pass

    def __repr__(self, **_: Any) -> str:
        return f"Cuda{self.elem!r}"

    def tolist(self) -> Any:
        _no_capture("tolist")
        SEEN.wait("to host", "tolist")
        return self.elem.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def data_ptr(self) -> int:
        return self.elem.data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:  # saved as what map_location="cpu" would make of it
        if isinstance(self, torch.nn.Parameter):
            return torch.nn.Parameter(self.elem, self.requires_grad).__reduce_ex__(protocol)
        return self.elem.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> CudaTensor:
        if id(self) not in memo:
            copied = CudaTensor(self.elem.detach().clone()).requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copied = torch.nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        found: CudaTensor = memo[id(self)]
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return execute(func, args, kwargs or {})


def _plain(value: Any) -> Any:
    return value.elem if isinstance(value, CudaTensor) else CPU if isinstance(value, torch.device) else value


def execute(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation of which some tensors, or the result, are on the device."""
    name = func._schema.name.removeprefix("aten::")
    if torch.is_inference_mode_enabled():  # what torch would have taken apart before it came here
        if name == "scaled_dot_product_attention":
            return attend(*args, **kwargs)
        if name not in KERNELS and func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            return func.decompose(*args, **kwargs)
    flat, spec = tree_flatten((args, kwargs))
    tensors = [one for one in flat if isinstance(one, Tensor)]
    there = [one for one in tensors if isinstance(one, CudaTensor)]
    here = [one for one in tensors if not isinstance(one, CudaTensor)]
    rules.refuse(func, name, args, kwargs, there, here)
    before = sum(SEEN.waits.values()) if _GRAPHS else 0
    rules.count(func, name, args, kwargs, there, here, is_pinned)
    if _GRAPHS and sum(SEEN.waits.values()) > before:
        _no_capture(name)
    plain_args, plain_kwargs = tree_unflatten([_plain(one) for one in flat], spec)
    plain_kwargs.pop("pin_memory", None)
    target = kwargs.get("device")
    to_cpu = target is not None and torch.device(target).type == "cpu"
    if name == "_to_copy" and target is not None and not to_cpu:
        plain_kwargs["non_blocking"] = False
    run = KERNELS.get(name, func)
    if _GRAPHS:
        _GRAPHS[-1].guard(func, plain_args)
    result = run(*plain_args, **plain_kwargs)
    if _GRAPHS:
        _GRAPHS[-1].record(run, plain_args, plain_kwargs, result)
    if torch.Tag.inplace_view in func.tags and there:  # sizes of the wrapper follow
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)
    if name == "copy_" and not isinstance(args[0], CudaTensor):
        return args[0]
    return _wrapped(name, result, there, to_cpu or (name == "_to_copy" and target is None and not there))


def _wrapped(name: str, result: Any, there: list[CudaTensor], stays: bool) -> Any:
    """Return results as tensors of the device; what was changed in place is the argument itself."""
    known = {id(one.elem): one for one in there}

    def wrap(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        same = known.get(id(one))
        assert same is None or same.shape == one.shape, f"{name} changed a size in place, which is not simulated"
        return same if same is not None else one if stays else CudaTensor(one)

    return tree_map(wrap, result)


# ------------------------------------------------------------------------------------------------------------------ graphs


class CUDAGraph:
    """`torch.cuda.CUDAGraph`: operations, and the memory that they read and write."""

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def guard(self, func: Any, args: Any) -> None:
        """Keep what an operation writes to as it is: to capture it is not to run it."""
        for argument, value in zip(func._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            for one in tree_flatten(value)[0] if written else ():
                whole = _whole(one)
                self._before.setdefault(one.untyped_storage()._cdata, (whole, whole.clone()))

    def restore(self) -> None:
        """Undo what was written while operations were captured."""
        for memory, before in self._before.values():
            memory.copy_(before)
        self._before.clear()

    def record(self, run: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> None:
        """Note an operation and where its results lie."""
        self._steps.append((run, args, kwargs, result))

    def pool(self) -> None:
        """Return the name of its memory, which has none here: what is captured keeps what it has made."""

    def replay(self) -> None:
        """Run all of it again; one launch."""
        SEEN.kernels[SEEN.phase, "replay"] += 1
        for run, args, kwargs, result in self._steps:
            again, _ = tree_flatten(run(*args, **kwargs))
            for one, other in zip(tree_flatten(result)[0], again, strict=True):
                if isinstance(one, Tensor) and one is not other and one.data_ptr() != other.data_ptr():
                    one.copy_(other)


def _whole(tensor: Tensor) -> Tensor:
    """Return all of the memory that a CPU tensor is a part of, as numbers of its dtype."""
    return tensor.detach().as_strided((tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)


_GRAPHS: list[CUDAGraph] = []


@contextlib.contextmanager
def capture(graph: CUDAGraph, **_: Any) -> Iterator[None]:
    """`torch.cuda.graph`: operations inside are recorded, and what they change is changed back."""
    _GRAPHS.append(graph)
    try:
        yield
    finally:
        _GRAPHS.pop()
        graph.restore()


def _no_capture(name: str) -> None:
    if _GRAPHS:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing [{name}]")


# ------------------------------------------------------------------------------------------------------------ pinned memory

_PINNED: dict[int, StorageWeakRef] = {}


def is_pinned(tensor: Tensor, *_: Any) -> bool:
    """Tell whether a CPU tensor lies in pinned memory."""
    if isinstance(tensor, CudaTensor):
        return False
    kept = _PINNED.get(tensor.untyped_storage()._cdata)
    return kept is not None and not kept.expired()


def _pin(tensor: Tensor, *_: Any) -> Tensor:
    if isinstance(tensor, CudaTensor):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    if is_pinned(tensor):
        return tensor
    copy = tensor.clone()
    reference = StorageWeakRef(copy.untyped_storage())
    _PINNED[reference.cdata] = reference
    return copy


_plain_empty = torch.empty


def _empty(*size: Any, pin_memory: bool = False, **settings: Any) -> Tensor:
    made = _plain_empty(*size, **settings)
    return _pin(made) if pin_memory else made


# ---------------------------------------------------------------------------------------------------------------- the device


def build() -> Path:
    """Compile the guard and the hooks, once a version of torch and of the source; about ten seconds."""
    source = Path(__file__).with_suffix(".cpp")
    version = hashlib.sha256(source.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rl_lightning_tests"
    built = cache / f"device-{version}.so"
    if not built.exists():
        cache.mkdir(parents=True, exist_ok=True)
        root, part = Path(torch.__file__).parent, built.with_suffix(f".{os.getpid()}")
        where = [f"-I{root / 'include'}", f"-L{root / 'lib'}"]
        command = ["g++", "-std=c++20", "-shared", "-fPIC", "-w", *where, source, "-o", part, "-ltorch_cpu", "-lc10"]
        subprocess.run(command, check=True)
        part.replace(built)
    return built


def _fused_rms_norm(states: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> Any:
    """One kernel, as on CUDA; with gradients it is made of several here."""
    given = [one for one in (states, weight) if one is not None]
    if torch.is_grad_enabled() and any(one.requires_grad for one in given):
        squares = states.float().square().mean(-1, keepdim=True)
        scale = (squares + (torch.finfo(states.dtype).eps if eps is None else eps)).rsqrt()
        normed = (states.float() * scale).to(states.dtype)
        return normed if weight is None else normed * weight, scale
    return execute(aten._fused_rms_norm.default, (states, shape, weight, eps), {})


_KEPT: list[object] = []


def install() -> Seen:
    """Make `cuda:0` exist in this process, for good."""
    if _KEPT:
        return SEEN
    assert not MISSING, MISSING
    with contextlib.suppress(
        ImportError
    ):  # what it imports looks for functions of a build for CUDA where it finds a device
        importlib.import_module("peft")
    native = ctypes.CDLL(str(build()))
    native.simulate()
    library = torch.library.Library("aten", "IMPL")
    for overload in _REACHED:
        name, _, kind = overload.partition(".")
        func = getattr(getattr(aten, name), kind or "default")
        library.impl(overload, lambda *args, _func=func, **kwargs: execute(_func, args, kwargs), "CUDA")
    library.impl("scaled_dot_product_attention", attend, "AutogradCUDA")
    library.impl("_fused_rms_norm", _fused_rms_norm, "AutogradCUDA")
    _KEPT.extend([native, library])
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay who they are, as on the way to CUDA
    torch.autograd.set_multithreading_enabled(False)  # backward passes of a device have a thread of their own
    Tensor.pin_memory, Tensor.is_pinned = _pin, is_pinned  # type: ignore[method-assign, assignment]
    torch.empty = _empty
    for name, function in _functions().items():
        setattr(torch.cuda, name, function)
    torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
    torch._C._cuda_clearCublasWorkspaces = lambda: None
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    return SEEN


class _Stream:
    """The one stream that there is."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        pass


def _functions() -> dict[str, Any]:
    """Return what stands in `torch.cuda` instead of what asks a driver."""
    state = torch.zeros(16, dtype=torch.uint8)
    limits = {"total_memory": 80 << 30, "multi_processor_count": 132, "warp_size": 32, "major": 9, "minor": 0}
    found = SimpleNamespace(name="Simulated", **limits)

    @contextlib.contextmanager
    def stream(_: object) -> Iterator[None]:
        yield

    nothing = {"init", "_lazy_init", "empty_cache", "set_device", "manual_seed", "manual_seed_all", "set_rng_state",
               "set_rng_state_all", "reset_peak_memory_stats"}  # fmt: skip
    numbers = {"device_count": 1, "current_device": 0, "memory_allocated": 0, "max_memory_allocated": 0, "memory_reserved": 0,
               "_exchange_device": 0, "_maybe_exchange_device": 0, "is_initialized": True, "is_available": True,
               "is_bf16_supported": True, "get_device_capability": (9, 0), "get_device_name": found.name,
               "get_device_properties": found, "memory_stats": {}, "mem_get_info": (70 << 30, 80 << 30)}  # fmt: skip
    return {
        **{name: lambda *_, **__: None for name in nothing},
        **{name: lambda *_, _value=value, **__: _value for name, value in numbers.items()},
        "synchronize": lambda device=None: SEEN.wait("synchronize", "synchronize"),
        "get_rng_state": lambda device=0: state.clone(),
        "get_rng_state_all": lambda: [state.clone()],
        "is_current_stream_capturing": lambda: bool(_GRAPHS),
        "CUDAGraph": CUDAGraph,
        "graph": capture,
        "Stream": _Stream,
        "current_stream": _Stream,
        "stream": stream,
    }
