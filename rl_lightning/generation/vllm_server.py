"""Sampling through a server of vLLM, over HTTP."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from rl_lightning.errors import UserError
from rl_lightning.generation.background import in_background
from rl_lightning.generation.base import Progress, Request
from rl_lightning.generation.connection import Connection, Refused
from rl_lightning.generation.copies import Answer, CopyGenerator, Question
from rl_lightning.generation.snapshots import Snapshots, together
from rl_lightning.measures import Sum
from rl_lightning.models import PolicyFiles

log = logging.getLogger(__name__)

#: Seconds between two calls of `progress`, which may stop the run, while no response arrives.
_LOOK_EVERY_S = 0.1

_HOW_TO_START = "start it as VLLM_SERVER_DEV_MODE=1 vllm serve DIRECTORY --logprobs-mode processed_logprobs --generation-config vllm"


class VLLMServerGenerator(CopyGenerator):
    """Samples with a server of vLLM that is running already, on this machine or another; all ranks use the same one.

    Weights are handed over through a directory that trainer and server both see: rank 0 writes it, and the server's workers
    read it. The server has the endpoints for that in its development mode only. That mode gives anybody who reaches the server
    full control of it: keep it off public networks.

        python -m rl_lightning.generation.export POLICY DIRECTORY
        VLLM_SERVER_DEV_MODE=1 vllm serve DIRECTORY --logprobs-mode processed_logprobs --generation-config vllm

    Args:
        url: address of the server, such as http://localhost:8000.
        directory: where weights are handed over; the server must see it under the same path.
        concurrency: requests of each rank at a time.
        timeout_s: seconds to wait for one response, or for an update.
        retries: times that a request is sent again after a lost connection; counted as `generator/retries`.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        directory: str | None = None,
        concurrency: int = 64,
        timeout_s: float = 600.0,
        retries: int = 3,
    ) -> None:
        super().__init__()
        if directory is None:
            raise UserError(
                "VLLMServerGenerator needs a directory for the weights that the trainer and the server both see: set "
                "data.generator.init_args.directory"
            )
        if concurrency < 1 or timeout_s <= 0 or retries < 0:
            raise UserError(
                f"concurrency and timeout_s must be above 0 and retries at least 0, not {concurrency}, {timeout_s:g} and {retries}"
            )
        self.concurrency = concurrency
        self.server = Connection(url, timeout_s, retries)
        self.snapshots = Snapshots(directory, shared=True)
        self._model = ""

    # ------------------------------------------------------------------- weights

    def take_over(self, model: nn.Module, files: PolicyFiles) -> None:
        """Write the weights to the directory and have the server reload them; the first time, check the server's settings."""
        if not self._model:
            (self._model, *_) = together(lambda: self._look(model))
        snapshot, writes = self.snapshots.write(model)
        together(lambda: self._reload(snapshot) if writes else None)
        self.snapshots.forget(snapshot)

    def _look(self, model: nn.Module) -> str:
        """Check the server's settings; return the name of the served model.

        Raises:
            UserError: for a server that serves another model, or reports log-probabilities before the temperature.
        """
        served = self._ask("GET", "/v1/models")["data"][0]
        info = self._ask("GET", "/server_info?config_format=json", "its development mode is off")["vllm_config"]
        mode = info["model_config"]["logprobs_mode"]
        if mode != "processed_logprobs":
            raise UserError(
                f"the vLLM server at {self.server.url} reports {mode}, not log-probabilities at the sampling temperature: {_HOW_TO_START}"
            )
        self._check_vocabulary(served["id"], model)
        self._check_head(served["root"], info["device_config"]["device"], model)
        return str(served["id"])

    def _check_vocabulary(self, name: str, model: nn.Module) -> None:
        """Compare vocabularies: the server must know the policy's last token id, V - 1, and refuse V."""
        size = cast(PreTrainedModel, model).config.get_text_config().vocab_size
        for token, known in ((size - 1, True), (size, False)):
            body = {"model": name, "prompt": [token], "max_tokens": 1}
            try:
                self.server.ask("POST", "/v1/completions", body)
                answers = True
            except Refused as refusal:
                if "out of vocabulary" not in refusal.reason:
                    raise UserError(f"{refusal}") from refusal
                answers = False
            if answers != known:
                raise UserError(
                    f"the vLLM server at {self.server.url} has {'more' if answers else 'fewer'} than the {size} tokens of the "
                    "policy: have it serve the policy"
                )

    def _check_head(self, root: str, device: str, model: nn.Module) -> None:
        """Refuse a server on a CPU whose language-model head would keep its first weights; see `save_snapshot`."""
        tied = cast(PreTrainedModel, model).config.get_text_config().tie_word_embeddings
        config = Path(root) / "config.json"
        if device != "cpu" or not tied or not config.is_file():
            return
        if json.loads(config.read_text()).get("tie_word_embeddings", True):
            raise UserError(
                f"the vLLM server at {self.server.url} runs on a CPU with a head that shares the weights of the embeddings, "
                "and updates would not reach that head: start it from a directory that python -m rl_lightning.generation.export has written"
            )

    def _reload(self, snapshot: Path) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(snapshot)}}
        self._ask(
            "POST",
            "/collective_rpc",
            f"it could not load {snapshot}: check that it sees that directory and serves this policy, and restart it, because its "
            "weights are lost",
            body,
        )
        # Cached keys and values of prompts come from the old weights.
        if not self._ask("POST", "/reset_prefix_cache")["success"]:
            raise UserError(
                f"the vLLM server at {self.server.url} could not drop its cache of prompts after an update, because it is "
                "answering others: it can serve one run at a time"
            )

    def _ask(self, method: str, path: str, hint: str = "", body: Mapping[str, object] | None = None) -> Any:
        try:
            return self.server.ask(method, path, body)
        except Refused as refusal:
            what = hint if not hint.startswith("its") else f"{hint}: {_HOW_TO_START}"
            raise UserError(f"{refusal}{'; ' if what else ''}{what}") from refusal
        finally:
            self._count_retries()

    # ------------------------------------------------------------------ responses

    def answers(
        self,
        questions: Sequence[Question],
        request: Request,
        progress: Progress | None,
    ) -> list[Answer]:
        """See `CopyGenerator.answers`. One HTTP request a response: the server would give all prompts of a list the same seed."""
        answers: dict[int, Answer] = {}
        try:
            with in_background(
                lambda number: self._answer(questions[number], request), len(questions), self.concurrency
            ) as ended:
                while len(answers) < len(questions):
                    answers |= ended(_LOOK_EVERY_S)
                    if progress is not None:
                        progress(len(answers), len(questions))
        finally:
            self._count_retries()
        return [answers[number] for number in range(len(questions))]

    def _answer(self, question: Question, request: Request) -> Answer:
        sampling, strings = request.sampling, request.stop_strings
        body = {
            "model": self._model,
            "prompt": question.prompt,
            "seed": question.seed,
            "max_tokens": question.longest,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            # All of these are needed: the served model's own defaults replace what a request leaves out.
            "min_p": sampling.min_p,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": sorted(request.stop_ids),
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        if strings is not None:
            body |= {"stop": list(strings.strings), "include_stop_str_in_output": True}
        try:
            (choice,) = self.server.ask("POST", "/v1/completions", body)["choices"]
        except Refused as refusal:
            raise UserError(str(refusal)) from refusal
        ids, said = choice["token_ids"], choice["logprobs"] or {}
        logprobs = said.get("token_logprobs") or [None] * len(ids)
        # The server may look for stop strings only every few tokens: cut off what it sampled behind one.
        length = None if strings is None else strings.end(ids)
        return Answer(ids[:length], logprobs[:length])

    def _count_retries(self) -> None:
        lost = self.server.take_lost()
        if lost:
            log.warning("The connection to the vLLM server at %s was lost %d time(s)", self.server.url, lost)
            self.count("generator/retries", Sum(lost))

    def close(self) -> None:
        """Remove the weights that were handed over. A later `update` checks the server again."""
        super().close()
        self._model = ""
        self.snapshots.close()
