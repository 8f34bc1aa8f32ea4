"""Sending weights to servers of vLLM over the network, by NCCL, with the endpoints that vLLM has for it."""

from __future__ import annotations

import contextlib
import socket
import urllib.parse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor

from rl_lightning.errors import UserError
from rl_lightning.generation.background import at_once
from rl_lightning.generation.connection import Connection, Lost, Refused
from rl_lightning.generation.transfer import Piece, described

#: Option of `vllm serve` without which it takes no weights this way.
OPTION = """--weight-transfer-config '{"backend": "nccl"}'"""
#: The other way for weights.
_DIRECTORY = "data.generator.init_args.directory to a directory that the servers see too"


class Channel(Protocol):
    """A group of this process, the first, and the workers of one server."""

    def send(self, weight: Tensor) -> None:
        """Send a tensor to all of them; may return before it is there."""

    def wait(self) -> None:
        """Wait until all that was sent is there."""

    def close(self) -> None:
        """Leave the group, also in the middle of a tensor that somebody no longer takes."""


class Broadcast:
    """A `Receiver`: the servers of vLLM that take part in a run. One rank has it, and sends each weight once to every server.

    Args:
        servers: returns those that are to have the next weights.
        lose: is told of one that cannot be reached.
        device: the GPU that the policy is on.
    """

    def __init__(
        self, servers: Callable[[], list[Connection]], lose: Callable[[Connection, Lost], None], device: torch.device
    ) -> None:
        self.device = device
        self._wanted = servers
        self._lose = lose
        self._channels: dict[str, Channel] = {}
        self._servers: list[Connection] = []

    def forget(self, server: Connection) -> None:
        """Have the next update connect with a server anew: it was lost."""
        channel = self._channels.pop(server.url, None)
        if channel is not None:
            channel.close()

    def close(self) -> None:
        """Leave all servers."""
        while self._channels:
            self._channels.popitem()[1].close()

    def begin(self) -> None:
        """See `Receiver`. A server that is new, or was lost, is connected with."""
        self._servers = []
        for server in self._wanted():
            # A request that is repeated would begin an update within another.
            once = Connection(server.url, server.timeout_s, retries=0)
            try:
                if server.url not in self._channels:
                    self._channels[server.url] = _connect(once, self.device)
                _start(once)
                self._servers.append(once)
            except Lost as error:
                self.forget(server)
                self._lose(server, error)

    def take(self, piece: Piece) -> None:
        """See `Receiver`.

        Raises:
            UserError: if a server is lost, or refuses the weights. NCCL itself would wait for it for ever.
        """
        body = {"update_info": described(piece)}
        asking = [partial(_ask, server, "POST", "/update_weights", body) for server in self._servers]
        try:
            at_once(*asking, partial(self._send, piece))
        except UserError as error:
            for server in self._servers:
                self.forget(server)
            raise UserError(
                f"{error}; weights were on their way to the vLLM servers, which have lost theirs: start them anew, and the run from its last checkpoint"
            ) from error

    def _send(self, piece: Piece) -> None:
        channels = [self._channels[server.url] for server in self._servers]
        for _, weight in piece:
            for channel in channels:
                channel.send(weight)
        for channel in channels:
            channel.wait()

    def end(self) -> None:
        """Let every server finish its update, after which it answers with the new weights; see `Receiver`."""
        for server in self._servers:
            _ask(server, "POST", "/finish_weight_update")


def _connect(server: Connection, device: torch.device) -> Channel:
    """Found a group with the workers of a server.

    Raises:
        UserError: if that fails on either side, which says why.
    """
    found = communicators()
    size = 1 + int(cast(dict[str, int], _ask(server, "GET", "/get_world_size"))["world_size"])
    try:
        host, port = _address_towards(server.url), _free_port()
        asked = {"master_address": host, "master_port": port, "rank_offset": 1, "world_size": size}
        asking = partial(_ask, server, "POST", "/init_weight_transfer_engine", {"init_info": asked})
        _, channel = at_once(asking, partial(found, host, port, size, device))
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"no NCCL group with the vLLM server at {server.url} ({reason}): it needs GPUs other than the trainer's, the same NCCL, and a direct way to "
            f"this machine; or set {_DIRECTORY}"
        ) from error
    return cast(Channel, channel)


def _start(server: Connection) -> None:
    try:
        server.ask("POST", "/start_weight_update")
    except Refused:
        # An earlier run was stopped within an update, which has to end.
        with contextlib.suppress(Refused):
            server.ask("POST", "/finish_weight_update")
        _ask(server, "POST", "/start_weight_update")


def _ask(server: Connection, method: str, path: str, body: Mapping[str, object] | None = None) -> object:
    try:
        return cast(object, server.ask(method, path, body))
    except Refused as refusal:
        raise UserError(
            f"{refusal}; to take weights over the network it is started with {OPTION} and VLLM_SERVER_DEV_MODE=1; or set {_DIRECTORY}"
        ) from refusal


def communicators() -> Callable[[str, int, int, torch.device], Channel]:
    """Return a function of address, port, number of processes and GPU: it founds a group, and returns when all have joined.

    Raises:
        UserError: without vLLM, whose groups these are.
    """
    try:
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.distributed.utils import StatelessProcessGroup
    except ImportError as error:
        raise UserError(
            "sending weights to a vLLM server over the network needs vLLM beside the trainer too: pip install 'rl_lightning[vllm]', or set "
            f"{_DIRECTORY} ({error})"
        ) from error

    def join(host: str, port: int, size: int, device: torch.device) -> Channel:
        group = StatelessProcessGroup.create(host=host, port=port, rank=0, world_size=size)
        communicator = PyNcclCommunicator(group, device=device)
        if communicator.disabled:
            raise RuntimeError("vLLM finds no NCCL beside the trainer")
        return _NCCL(communicator.broadcast, communicator.destroy, device)

    return join


class _NCCL:
    """A `Channel` of vLLM's communicator; it sends in a stream of its own."""

    def __init__(self, broadcast: Callable[..., object], close: Callable[[], None], device: torch.device) -> None:
        self._broadcast = broadcast
        self.close = close
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def send(self, weight: Tensor) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(weight.device))
        weight.record_stream(self._stream)
        # A new thread is on the first GPU.
        with torch.cuda.device(self._device):
            self._broadcast(weight, src=0, stream=self._stream)

    def wait(self) -> None:
        self._stream.synchronize()


def _address_towards(url: str) -> str:
    """Return the address of this machine from which it reaches a server, and under which the server reaches it."""
    parts = urllib.parse.urlsplit(url)
    # Nothing is sent: connecting a datagram socket looks up the way.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname or "localhost", parts.port or 80))
        return str(probe.getsockname()[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
