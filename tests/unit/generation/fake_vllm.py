"""A server that says what a real one of vLLM said, word for word, about a model of its own."""

import copy
import json
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.unit.generation.vllm_contract import ANSWERS, COMPLETION, PROBE

RECORDED = json.loads(ANSWERS.read_text())


class FakeVLLM:
    """Speaks the protocol of `vllm_answers.json`, and refuses every request that the real server was not asked like.

    Args:
        served: the directory that it starts from.
        logprobs_mode, device: what it says of itself.
        drop: connections to cut off without an answer, before the first one that gets one.
        slow: seconds before an answer.
        busy: others are using it, so its cache cannot be dropped.
        development: whether the endpoints for updates are there.
        faults: changes to every choice of a completion.
        takes_weights: whether it was started with the option that lets weights be sent to it.
    """

    def __init__(
        self,
        served,
        logprobs_mode="processed_logprobs",
        device="cpu",
        drop=0,
        slow=0.0,
        busy=False,
        development=True,
        faults=None,
        takes_weights=True,
    ):
        self.takes_weights = takes_weights
        #: Weights on their way: what `Broadcast` sends through the channel that stands for NCCL.
        self.sent = queue.SimpleQueue()
        self.connected, self.begun, self.taken = False, False, {}
        self.served, self.logprobs_mode, self.device = str(served), logprobs_mode, device
        self.drop, self.slow, self.busy, self.development, self.faults = drop, slow, busy, development, faults or {}
        self.model = AutoModelForCausalLM.from_pretrained(self.served).eval()
        self.cached = False
        #: What was asked: (path, body) each.
        self.asked = []
        self.most_at_a_time = 0
        self._at_a_time = 0
        self._lock = threading.Lock()

    def __enter__(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                fake.handle(self)

            def do_POST(self):
                fake.handle(self)

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        # Looks every 10 ms, not every half second, whether it is to end.
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request):
        length = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(length)) if length else None
        with self._lock:
            self.asked.append((request.path, body))
            self._at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self._at_a_time)
            dropped, self.drop = self.drop > 0, self.drop - 1
        time.sleep(self.slow)
        status, answer = (0, None) if dropped else self.answer(request.command, request.path, body)
        with self._lock:
            self._at_a_time -= 1
        if dropped:
            request.connection.close()
            return
        text = json.dumps(answer).replace("SERVED", self.served).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        request.wfile.write(text)

    def answer(self, method, path, body):
        """Return status and answer, made from the recorded ones."""
        if (method, path) == ("GET", "/v1/models"):
            return copy.deepcopy(RECORDED["models"])
        if (method, path) == ("POST", "/v1/completions"):
            return self.complete(body)
        if not self.development:
            return copy.deepcopy(RECORDED["no_such_path"])
        if (method, path) == ("GET", "/server_info?config_format=json"):
            status, answer = copy.deepcopy(RECORDED["info"])
            answer["vllm_config"]["model_config"]["logprobs_mode"] = self.logprobs_mode
            answer["vllm_config"]["device_config"]["device"] = self.device
            return status, answer
        if (method, path) == ("POST", "/reset_prefix_cache"):
            self.cached = self.cached and self.busy
            return RECORDED["reset"][0], {"success": not self.busy}
        if (method, path) == ("POST", "/collective_rpc"):
            assert body["method"] == "reload_weights" and body["kwargs"].keys() == {"weights_path"}
            directory = Path(body["kwargs"]["weights_path"])
            if not (directory / "config.json").is_file():
                return copy.deepcopy(RECORDED["reload_nothing"])
            self.model = AutoModelForCausalLM.from_pretrained(directory).eval()
            return copy.deepcopy(RECORDED["reload"])
        if (method, path) == ("GET", "/get_world_size"):
            return 200, {"world_size": 1}
        if method == "POST" and path in self.WEIGHTS:
            return self.take_weights(path, body)
        return copy.deepcopy(RECORDED["no_such_path"])

    #: Endpoints for weights that are sent over the network.
    WEIGHTS = ("/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update")

    def take_weights(self, path, body):
        """Do what a server does that was started with `--weight-transfer-config`, and refuse what it refuses."""
        begins, ends = path == "/start_weight_update", path == "/finish_weight_update"
        if not self.takes_weights or (path == "/update_weights" and not self.connected):
            return 500, {"error": {"message": "Weight transfer not configured"}}
        if path == "/init_weight_transfer_engine":
            assert body["init_info"].keys() == {"master_address", "master_port", "rank_offset", "world_size"}
            assert (body["init_info"]["rank_offset"], body["init_info"]["world_size"]) == (1, 2)
            self.connected = True
            return 200, {"message": "Weight transfer initialized"}
        if self.begun == begins:
            return 500, {"error": {"message": "start_weight_update called while a weight update is already active"}}
        if path == "/update_weights":
            said = body["update_info"]
            for name, dtype, shape in zip(said["names"], said["dtype_names"], said["shapes"], strict=True):
                weight = self.sent.get(timeout=10)
                assert (str(weight.dtype), list(weight.shape)) == (f"torch.{dtype}", shape)
                self.taken[name] = weight
        if ends:
            self.model.load_state_dict(self.model.state_dict() | self.taken)
            self.taken = {}
        self.begun = not ends
        return 200, {"message": "done"}

    @torch.no_grad()
    def complete(self, body):
        """Sample one token after the other, from the seed of the request."""
        assert body.keys() in (COMPLETION.keys(), PROBE.keys()), "no such request was recorded"
        kinds = {name: type(value) for name, value in COMPLETION.items()}
        assert all(type(value) is kinds[name] for name, value in body.items()), "a value of another kind"
        if body["model"] != self.served:
            return copy.deepcopy(RECORDED["other_model"])
        if max(body["prompt"]) >= self.model.config.vocab_size:
            return copy.deepcopy(RECORDED["unknown"])
        if body["max_tokens"] + len(body["prompt"]) > self.model.config.max_position_embeddings:
            return copy.deepcopy(RECORDED["too_long"])
        if body.keys() == PROBE.keys():
            return copy.deepcopy(RECORDED["known"])
        generator = torch.Generator().manual_seed(body["seed"])
        ids, logprobs = list(body["prompt"]), []
        while len(logprobs) < body["max_tokens"] and (not logprobs or ids[-1] not in body["stop_token_ids"]):
            logits = self.model(torch.tensor([ids])).logits[0, -1]
            distribution = (logits / (body["temperature"] or 1.0)).log_softmax(0)
            if body["temperature"] == 0:
                token = int(distribution.argmax())
            else:
                token = int(torch.multinomial(distribution.exp(), 1, generator=generator))
            ids.append(token)
            logprobs.append(float(distribution[token]))
        new = ids[len(body["prompt"]) :]
        stopped = new[-1] in body["stop_token_ids"]
        status, answer = copy.deepcopy(RECORDED["stopped" if stopped else "cut"])
        choice = answer["choices"][0]
        choice["logprobs"]["token_logprobs"] = logprobs
        choice |= {"token_ids": new, "prompt_token_ids": body["prompt"]} | self.faults
        return status, answer
