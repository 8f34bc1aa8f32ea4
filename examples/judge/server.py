"""A judge for trials without a model: python -m examples.judge.server [PORT]. It likes short answers, and is busy now and then."""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Judge(BaseHTTPRequestHandler):
    """Answers `POST /v1/chat/completions` as OpenAI's service does."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Give a mark of 10 minus the length of the answer; 503 to every `server.busy_every`-th request."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked += 1
            busy = server.busy_every and server.asked % server.busy_every == 0
        if self.path != "/v1/chat/completions" or busy:
            self._answer(503 if busy else 404, {"error": {"message": "busy" if busy else "no such path"}})
            return
        time.sleep(server.seconds)
        answer = body["messages"][-1]["content"].rpartition("Answer:\n")[2]
        text = "I would rather not say." if "?" in answer else f"Short is good.\nMark: {max(0, 10 - len(answer))}"
        self._answer(200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})

    def _answer(self, status: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class JudgeServer(ThreadingHTTPServer):
    """The judge on localhost.

    Args:
        port: 0 for any that is free.
        busy_every: the judge is busy at every n-th request; 0 for never.
        seconds: time that it takes for each answer.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0, busy_every: int = 0, seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", port), Judge)
        self.busy_every, self.seconds, self.asked = busy_every, seconds, 0
        self.lock = threading.Lock()


if __name__ == "__main__":
    JudgeServer(int(sys.argv[1]) if len(sys.argv) > 1 else 8000, busy_every=7, seconds=0.1).serve_forever()
