"""What a server of vLLM must be like before a run uses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from rl_lightning.errors import UserError
from rl_lightning.generation.connection import Connection, Refused

HOW_TO_START = "start it as VLLM_SERVER_DEV_MODE=1 vllm serve DIRECTORY --logprobs-mode processed_logprobs --generation-config vllm"


def served_name(ask: Callable[..., Any], server: Connection, model: nn.Module) -> str:
    """Check a server's settings; return the name of the served model.

    Args:
        ask: asks the server, of HTTP's method, path and what is said of a refusal.
        server: for what it may refuse.
        model: the policy.

    Raises:
        UserError: for a server that serves another model, or reports log-probabilities before the temperature.
    """
    served = ask("GET", "/v1/models")["data"][0]
    info = ask("GET", "/server_info?config_format=json", "its development mode is off")["vllm_config"]
    mode = info["model_config"]["logprobs_mode"]
    if mode != "processed_logprobs":
        raise UserError(
            f"the vLLM server at {server.url} reports {mode}, not log-probabilities at the sampling temperature: {HOW_TO_START}"
        )
    config = cast(PreTrainedModel, model).config.get_text_config()
    _check_vocabulary(server, served["id"], config.vocab_size)
    if info["device_config"]["device"] == "cpu" and config.tie_word_embeddings:
        _check_head(server, Path(served["root"]) / "config.json")
    return str(served["id"])


def _check_vocabulary(server: Connection, name: str, size: int) -> None:
    """Compare vocabularies: the server must know the policy's last token id, V - 1, and refuse V."""
    for token, known in ((size - 1, True), (size, False)):
        body = {"model": name, "prompt": [token], "max_tokens": 1}
        try:
            server.ask("POST", "/v1/completions", body)
            answers = True
        except Refused as refusal:
            if "out of vocabulary" not in refusal.reason:
                raise UserError(f"{refusal}") from refusal
            answers = False
        if answers != known:
            raise UserError(
                f"the vLLM server at {server.url} has {'more' if answers else 'fewer'} than the {size} tokens of the "
                "policy: have it serve the policy"
            )


def _check_head(server: Connection, config: Path) -> None:
    """Refuse a server on a CPU whose language-model head would keep its first weights; see `save_snapshot`."""
    if config.is_file() and json.loads(config.read_text()).get("tie_word_embeddings", True):
        raise UserError(
            f"the vLLM server at {server.url} runs on a CPU with a head that shares the weights of the embeddings, "
            "and updates would not reach that head: start it from a directory that python -m rl_lightning.generation.export has written"
        )
