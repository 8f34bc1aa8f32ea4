"""What a server of vLLM is asked and what it answers: `vllm_answers.json` is what a real one said.

To record it anew: python -m tests.unit.generation.vllm_contract URL SERVED_DIRECTORY OTHER_DIRECTORY
"""

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

ANSWERS = Path(__file__).with_name("vllm_answers.json")
#: Those parts of a long answer that are read.
READ = {"model_config": ("logprobs_mode", "dtype", "max_model_len"), "device_config": ("device",)}
#: A request as the generator makes it.
COMPLETION = {
    "model": "SERVED", "prompt": [3, 4, 5, 6], "seed": 5, "max_tokens": 10, "temperature": 1.3, "top_k": 0, "top_p": 1.0,
    "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "stop_token_ids": [1],
    "ignore_eos": True, "logprobs": 0, "return_token_ids": True, "skip_special_tokens": False,
}  # fmt: skip
PROBE = {"model": "SERVED", "prompt": [26], "max_tokens": 1}
#: Name → method, path, body; in this order.
QUESTIONS = {
    "models": ("GET", "/v1/models", None),
    "info": ("GET", "/server_info?config_format=json", None),
    "known": ("POST", "/v1/completions", PROBE),
    "unknown": ("POST", "/v1/completions", PROBE | {"prompt": [27]}),
    "stopped": ("POST", "/v1/completions", COMPLETION),
    "cut": ("POST", "/v1/completions", COMPLETION | {"max_tokens": 2}),
    "other_model": ("POST", "/v1/completions", COMPLETION | {"model": "nobody"}),
    "too_long": ("POST", "/v1/completions", COMPLETION | {"max_tokens": 1000}),
    "reload": ("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": "OTHER"}}),
    "reset": ("POST", "/reset_prefix_cache", None),
    "reload_nothing": (
        "POST",
        "/collective_rpc",
        {"method": "reload_weights", "kwargs": {"weights_path": "/no/such/directory"}},
    ),
    "no_such_path": ("GET", "/no/such/path", None),
}


def ask(url, method, path, body):
    """Return the status and the answer, whatever they are."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")


def record(url, served, other):
    """Return name → [status, answer] of every question; directories are called SERVED and OTHER."""

    def named(value, back=False):
        text = json.dumps(value)
        for name, directory in (("SERVED", served), ("OTHER", other)):
            text = text.replace(*((name, directory) if back else (directory, name)))
        return json.loads(text)

    answers = {}
    for name, (method, path, body) in QUESTIONS.items():
        status, answer = ask(url, method, path, named(body, back=True))
        if name == "info":
            config = answer["vllm_config"]
            answer = {"vllm_config": {part: {key: config[part][key] for key in keys} for part, keys in READ.items()}}
        answers[name] = [status, named(answer)]
    return answers


def shape(value):
    """Return what two answers of one kind have in common: the keys, and the kinds of values that are never absent."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value and not isinstance(value[0], dict) else [shape(entry) for entry in value]
    return type(value).__name__


if __name__ == "__main__":
    ANSWERS.write_text(json.dumps(record(*sys.argv[1:]), indent=1) + "\n")
