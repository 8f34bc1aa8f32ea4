"""NCCL for vLLM on a CPU. All else of sending weights over the network is vLLM's own."""

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

    close = destroy
