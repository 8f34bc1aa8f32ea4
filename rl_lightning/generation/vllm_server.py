"""Sampling through a server of vLLM, over HTTP."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from rl_lightning.errors import UserError
from rl_lightning.generation.background import in_background
from rl_lightning.generation.base import Progress, Request
from rl_lightning.generation.broadcast import Broadcast
from rl_lightning.generation.connection import Connection, Lost, Refused
from rl_lightning.generation.copies import Answer, CopyGenerator, Question
from rl_lightning.generation.snapshots import Snapshots
from rl_lightning.generation.transfer import hand_over, obstacle
from rl_lightning.generation.vllm_settings import HOW_TO_START, served_name
from rl_lightning.measures import Sum
from rl_lightning.models import PolicyFiles
from rl_lightning.strategies import own_rank, together

log = logging.getLogger(__name__)

#: Seconds between two calls of `progress`, which may stop the run, while no response arrives.
_LOOK_EVERY_S = 0.1


class VLLMServerGenerator(CopyGenerator):
    """Samples with servers of vLLM that are running already, on this machine or others; all ranks use the same ones.

    Requests are spread over the servers. What a server that is lost was asked for, the others are asked for; when it is back it is given
    the weights at the next update, and takes part again.

    Weights are handed over through a directory that trainer and server both see: rank 0 writes it, and the server's workers
    read it. Without such a directory rank 0 sends them from its GPU to the servers' (NCCL); that needs vLLM beside the trainer too. The
    server has the endpoints for either in its development mode only. That mode gives anybody who reaches the server
    full control of it: keep it off public networks.

        python -m rl_lightning.generation.export POLICY DIRECTORY
        VLLM_SERVER_DEV_MODE=1 vllm serve DIRECTORY --logprobs-mode processed_logprobs --generation-config vllm
        ... --weight-transfer-config '{"backend": "nccl"}'

    Args:
        url: address of the server, such as http://localhost:8000.
        directory: where weights are handed over; the servers must see it under the same path. Null to send them over the network.
        concurrency: requests of each rank at a time, to all servers together.
        timeout_s: seconds to wait for one response, or for an update.
        retries: times that a request is sent again after a lost connection; counted as `generator/retries`.
        urls: addresses of further servers.
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        directory: str | None = None,
        concurrency: int = 64,
        timeout_s: float = 600.0,
        retries: int = 3,
        urls: list[str] | None = None,
    ) -> None:
        super().__init__()
        if concurrency < 1 or timeout_s <= 0 or retries < 0:
            raise UserError(
                f"concurrency and timeout_s must be above 0 and retries at least 0, not {concurrency}, {timeout_s:g} and {retries}"
            )
        self.concurrency = concurrency
        self.servers = [Connection(one, timeout_s, retries) for one in dict.fromkeys([url, *(urls or [])])]
        self.snapshots = None if directory is None else Snapshots(directory, shared=True)
        self._broadcast: Broadcast | None = None
        #: The servers that have the weights → the name that each has given the model.
        self._models: dict[Connection, str] = {}
        self._losing = threading.Lock()

    # ------------------------------------------------------------------- weights

    def take_over(self, model: nn.Module, files: PolicyFiles) -> None:
        """Have the servers take the weights, and drop what they have kept of the old ones; check the settings of those that are new, or back."""
        everywhere = set.intersection(*together(lambda: {server.url for server in self._models}))
        self._models = {server: name for server, name in self._models.items() if server.url in everywhere}
        together(lambda: self._look_at_all(model))
        given = self._over_the_network(model) if self.snapshots is None else self._through_files(model, self.snapshots)
        urls = {url for urls in given for url in urls}
        self._models = {server: name for server, name in self._models.items() if server.url in urls}

    def _through_files(self, model: nn.Module, snapshots: Snapshots) -> list[list[str]]:
        """Return, by rank, the addresses of the servers that have read the weights."""
        snapshot, writes = snapshots.write(model)
        given = together(lambda: self._give(lambda server: self._reload(server, snapshot)) if writes else [])
        snapshots.forget(snapshot)
        return given

    def _over_the_network(self, model: nn.Module) -> list[list[str]]:
        """Return, by rank, the addresses of the servers that were sent the weights."""
        reason = obstacle(model)
        if reason is not None:
            raise UserError(
                f"weights cannot be sent to the vLLM servers over the network: {reason}; set data.generator.init_args.directory to a "
                "directory that the trainer and the servers see"
            )
        hand_over(model, self._sender(model) if own_rank() == 0 else None)
        return together(lambda: self._give(self._drop_kept) if own_rank() == 0 else [])

    def _sender(self, model: nn.Module) -> Broadcast:
        if self._broadcast is None:
            device = next(model.parameters()).device
            self._broadcast = Broadcast(lambda: list(self._models), self._lose, device)
        return self._broadcast

    def _look_at_all(self, model: nn.Module) -> None:
        """Check the settings of every server that has no weights yet.

        Raises:
            Lost: if none can be reached.
        """
        missing: Lost | None = None
        for server in self.servers:
            if server not in self._models:
                if self._broadcast is not None:
                    self._broadcast.forget(server)
                try:
                    self._models[server] = served_name(partial(self._ask, server), server, model)
                except Lost as error:
                    missing = error
                    log.warning("The vLLM server at %s takes no part: %s", server.url, error)
        if missing is not None and not self._models:
            raise missing

    def _give(self, action: Callable[[Connection], None]) -> list[str]:
        """Do something with every server; return the addresses of those that are there after it."""
        for server in list(self._models):
            try:
                action(server)
            except Lost as error:
                self._lose(server, error)
        return [server.url for server in self._models]

    def _lose(self, server: Connection, error: Lost) -> None:
        """Go on without a server until the next update.

        Raises:
            Lost: if there is no other.
        """
        with self._losing:
            if self._models.pop(server, None) is not None:
                log.warning("Going on without the vLLM server at %s: %s", server.url, error)
                self.count("generator/lost_servers", Sum(1))
            if not self._models:
                raise error

    def _reload(self, server: Connection, snapshot: Path) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(snapshot)}}
        self._ask(
            server,
            "POST",
            "/collective_rpc",
            f"it could not load {snapshot}: check that it sees that directory and serves this policy, and restart it, because its "
            "weights are lost",
            body,
        )
        self._drop_kept(server)

    def _drop_kept(self, server: Connection) -> None:
        # Cached keys and values of prompts come from the old weights.
        if not self._ask(server, "POST", "/reset_prefix_cache")["success"]:
            raise UserError(
                f"the vLLM server at {server.url} could not drop its cache of prompts after an update, because it is "
                "answering others: it can serve one run at a time"
            )

    def _ask(
        self, server: Connection, method: str, path: str, hint: str = "", body: Mapping[str, object] | None = None
    ) -> Any:
        try:
            return server.ask(method, path, body)
        except Refused as refusal:
            what = hint if not hint.startswith("its") else f"{hint}: {HOW_TO_START}"
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
                lambda number: self._answer(number, questions[number], request), len(questions), self.concurrency
            ) as ended:
                while len(answers) < len(questions):
                    answers |= ended(_LOOK_EVERY_S)
                    if progress is not None:
                        progress(len(answers), len(questions))
        finally:
            self._count_retries()
        return [answers[number] for number in range(len(questions))]

    def _answer(self, number: int, question: Question, request: Request) -> Answer:
        sampling, strings = request.sampling, request.stop_strings
        body = {
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
        (choice,) = self._completed(number, body)["choices"]
        ids, said = choice["token_ids"], choice["logprobs"] or {}
        logprobs = said.get("token_logprobs") or [None] * len(ids)
        # The server may look for stop strings only every few tokens: cut off what it sampled behind one.
        length = None if strings is None else strings.end(ids)
        return Answer(ids[:length], logprobs[:length])

    def _completed(self, number: int, body: dict[str, object]) -> Any:
        """Return what a server answers; where it is lost, what another one does. Request `number` begins with its own server."""
        while True:
            with self._losing:
                serving = list(self._models.items())
            if not serving:
                raise Lost("no vLLM server is left to answer: start one, and the run again from its last checkpoint")
            server, name = serving[number % len(serving)]
            try:
                return server.ask("POST", "/v1/completions", {"model": name, **body})
            except Refused as refusal:
                raise UserError(str(refusal)) from refusal
            except Lost as error:
                self._lose(server, error)

    def _count_retries(self) -> None:
        for server in self.servers:
            lost = server.take_lost()
            if lost:
                log.warning("The connection to the vLLM server at %s was lost %d time(s)", server.url, lost)
                self.count("generator/retries", Sum(lost))

    def close(self) -> None:
        """Remove the weights that were handed over. A later `update` checks the server again."""
        super().close()
        if self._broadcast is not None:
            self._broadcast.close()
        self._models, self._broadcast = {}, None
        if self.snapshots is not None:
            self.snapshots.close()
