"""What only a GPU has, for vLLM on a CPU: another process's memory, and NCCL. All else of handing weights over is vLLM's own."""

from vllm.distributed.utils import StatelessProcessGroup

#: Option `worker_extension_cls` of vLLM.
EXTENSION = "tests.unit.generation.vllm_worker_on_cpu.Worker"


class Group:
    """A group of the trainer, the first, and a worker; tensors go through its store, one object each.

    Args:
        rank: 0 for the trainer.
    """

    def __init__(self, host, port, size, rank):
        self.group = StatelessProcessGroup.create(host=host, port=port, rank=rank, world_size=size)

    def send(self, weight):
        self.group.broadcast_obj(weight.detach().clone(), 0)

    def wait(self):
        pass

    def broadcast(self, weight, src, stream):
        weight.copy_(self.group.broadcast_obj(None, src))

    def destroy(self):
        pass


def place(weight):
    """Stands for the place of a tensor in a GPU's memory: the tensor itself. The seventh entry is the number of the GPU."""
    return {"cpu": (weight.clone(), *range(6))}
