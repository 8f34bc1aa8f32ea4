"""A worker of vLLM on a CPU imports this as its `worker_extension_cls`, before it makes its engine for weights. The trainer does not."""

from types import SimpleNamespace

import torch
from torch.multiprocessing import reductions
from vllm.distributed.weight_transfer import nccl_engine

from tests.unit.generation.vllm_on_cpu import Group

torch.accelerator.synchronize = lambda *_: None
torch.cuda.current_stream = lambda *_: None
torch.cuda.get_device_properties = lambda _: SimpleNamespace(uuid="cpu")
reductions.rebuild_cuda_tensor = lambda contents, *_: torch.frombuffer(bytearray(contents), dtype=torch.uint8)
nccl_engine.worker_init_process_group = lambda said, _: Group(
    said.master_address, said.master_port, said.world_size, said.rank_offset
)


class Worker:
    """Adds nothing to vLLM's."""
