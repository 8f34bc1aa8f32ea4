"""Proxies: reward models of three sizes, from some pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import rl_lightning as rl
from examples.overoptimization.gold import features, linear
from examples.overoptimization.samples import trainer
from examples.overoptimization.settings import Proxy
from rl_lightning.data.sources.base import Example
from rl_lightning.data.sources.handed import ListedExamples
from rl_lightning.functional import bradley_terry
from rl_lightning.models import ClassifierFiles, Judge, PolicyFiles, Text

#: Pairs of an optimizer step, fewest steps, and passes over the pairs.
_BATCH, _FEWEST, _PASSES = 32, 60, 2
_LR = {"tiny": 3e-3, "big": 3e-4}
#: What the name of a linear proxy's file ends in; others are directories.
_LINEAR = ".json"

Row = tuple[str, str, bool]


def train(proxy: Proxy, pairs: Sequence[Example], seed: int, place: Path) -> str:
    """Train a proxy, and return where it is.

    Args:
        proxy: says the kind.
        pairs: all of them are learnt from.
        seed: of the run; a proxy's own number is added.
        place: of its files.
    """
    if proxy.kind == "linear":
        return _linear(pairs, place)
    policy = "embedded" if proxy.kind == "big" else _tiny(place.parent / "tiny")
    steps = max(_FEWEST, _PASSES * len(pairs) // _BATCH)
    module = rl.RewardModel(
        policy=policy,
        centring=0.01,
        optimizer={"lr": _LR[proxy.kind], "warmup_steps": 10, "schedule": "cosine"},
    )
    source = ListedExamples({"train": list(pairs)})
    data = rl.RewardDataModule(prompts=source, origin="files", batch_size=min(_BATCH, len(pairs)))
    run = trainer(
        place.parent / f"{place.name}.run",
        seed * 100 + proxy.number,
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        callbacks=[rl.HFExport(str(place))],
    )
    run.fit(module, data)
    return str(place)


def _linear(pairs: Sequence[Example], place: Path) -> str:
    """Fit the weights of `features` to pairs: a logistic regression with a small penalty, which has one solution."""
    gaps = torch.tensor(
        [
            [more - less for more, less in zip(features(str(one.response)), features(str(one.rejected)), strict=True)]
            for one in pairs
        ]
    )
    weights = torch.zeros(gaps.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -bradley_terry(gaps @ weights).mean() + 1e-3 * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    target = place.with_suffix(_LINEAR)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(weights.tolist()))
    return str(target)


def _tiny(place: Path) -> str:
    """Make a language model of one layer with random weights, and return where it is."""
    if not (place / "tokenizer_config.json").exists():
        embedded = PolicyFiles("embedded")
        like = embedded.config
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=like.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
            pad_token_id=like.pad_token_id,
            eos_token_id=like.eos_token_id,
            bos_token_id=None,
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).save_pretrained(place)
        embedded.tokenizer.save_pretrained(place)
    return str(place)


def reward(name: str, where: str, weight: float) -> dict[str, object]:
    """Return a proxy as an entry of `rewards`."""
    if where.endswith(_LINEAR):
        function = "examples.overoptimization.gold.linear"
        return {"function": function, "arguments": {"path": where}, "name": name, "weight": weight}
    return {"model": where, "name": name, "weight": weight, "arguments": {"batch_size": 256}}


def scores(where: str, rows: Sequence[Row]) -> Tensor:
    """Return the scores of responses, (N,); each different text is scored once."""
    different = list(dict.fromkeys(rows))
    if where.endswith(_LINEAR):
        values = [linear(response, where) for _, response, _ in different]
    else:
        texts = [Text(prompt, response, not cut) for prompt, response, cut in different]
        values, _ = Judge(ClassifierFiles(where), batch_size=512).score(texts, "cpu")
    known = dict(zip(different, values, strict=True))
    return torch.tensor([known[row] for row in rows])


def accuracy(where: str, pairs: Sequence[Example]) -> float:
    """Return the share of pairs that a proxy ranks as the gold reward does."""
    better = scores(where, [(str(one.prompt), str(one.response), False) for one in pairs])
    worse = scores(where, [(str(one.prompt), str(one.rejected), False) for one in pairs])
    return float((better > worse).float().mean())
