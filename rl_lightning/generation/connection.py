"""JSON over HTTP.

It needs the standard library alone. The HTTP client that comes with huggingface_hub is httpx with its releases 1.x and httpx2
with 2.x, and both are within the versions of transformers that this package takes.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from rl_lightning.errors import UserError

#: Seconds before a lost request is sent again for the first time; doubled each time.
_PATIENCE_S = 0.5


class Refused(Exception):
    """The server answered with an error.

    Args:
        url: address of the request.
        status: HTTP status, not 200.
        reason: what the server said, on one line.
    """

    def __init__(self, url: str, status: int, reason: str) -> None:
        super().__init__(f"{url} answered {status}: {reason}")
        self.status = status
        self.reason = reason


class Lost(UserError):
    """The server cannot be reached, or did not answer in time."""


class Connection:
    """A client of a server that speaks JSON. Threads may use it at the same time.

    Args:
        url: address of the server, without a path.
        timeout_s: seconds to wait for an answer.
        retries: times that a request is sent again after its connection is lost. A request that timed out is not sent again.
    """

    def __init__(self, url: str, timeout_s: float, retries: int) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"generator.url must begin with http:// or https://, not {url!r}")
        self.timeout_s = timeout_s
        self.retries = retries
        self._lost = 0
        self._lock = threading.Lock()

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        """Send a request; return the answer's JSON, or None if the answer is empty.

        Args:
            method: of HTTP.
            path: behind the server's address.
            body: sent as JSON; nothing is sent if None.

        Raises:
            Refused: if the server answers with an error.
            Lost: if it cannot be reached or takes too long.
            UserError: if it does not answer in JSON.
        """
        for attempt in range(self.retries + 1):
            try:
                return self._once(method, path, body)
            except TimeoutError as error:
                raise Lost(
                    f"{self.url}{path} did not answer within {self.timeout_s:g} s: raise generator.timeout_s, or check whether "
                    "the server hangs"
                ) from error
            except (ConnectionError, http.client.HTTPException, urllib.error.URLError) as error:
                if attempt == self.retries:
                    raise Lost(
                        f"cannot reach {self.url} ({_reason(error)}): is the server running, and is generator.url its address?"
                    ) from error
                with self._lock:
                    self._lost += 1
                time.sleep(_PATIENCE_S * 2**attempt)
        raise AssertionError("unreachable")

    def _once(self, method: str, path: str, body: Mapping[str, object] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(self.url + path, error.code, _said(error.read())) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise error.reason from error
            raise
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise UserError(
                f"{self.url}{path} does not answer in JSON: set generator.url to the address of a vLLM server"
            ) from error

    def take_lost(self) -> int:
        """Return how many connections were lost since this was last called."""
        with self._lock:
            lost, self._lost = self._lost, 0
        return lost


def _said(text: bytes) -> str:
    """Return the message of an error response, in the formats of vLLM and FastAPI, on one line of at most 300 characters."""
    try:
        content = json.loads(text)
    except ValueError:
        content = text.decode(errors="replace")
    if isinstance(content, dict):
        content = content.get("error", content.get("detail", content))
    if isinstance(content, dict):
        content = content.get("message", content)
    return " ".join(str(content).split())[:300]


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", error)) or type(error).__name__
