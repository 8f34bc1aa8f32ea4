"""Both sides do the same work."""

import json
import statistics

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from examples.bench.forced import ForceEnds
from examples.bench.forced_native import ForcedLengths
from examples.bench.forward import Group, packed_loss, padded_loss
from examples.bench.ours import overlay_for
from examples.bench.processes import ROOT
from examples.bench.work import MAX_ROW, Work, forced_lengths
from rl_lightning.algorithms import GRPO
from rl_lightning.data.steps import permutation
from rl_lightning.generation import NativeGenerator, Sampling
from rl_lightning.models import LoadOptions, PolicyFiles
from tests.checks import gradient_difference, holds_only_for
from tests.support import request_for

CAP = 12


def test_lengths_are_log_normal_and_always_the_same():
    lengths = forced_lengths(4000, 128, 1)
    assert lengths == forced_lengths(4000, 128, 1) != forced_lengths(4000, 128, 2)
    assert (min(lengths), max(lengths)) == (4, 128)
    assert statistics.median(lengths) == pytest.approx(0.4 * 128, rel=0.05)
    # P(0.4 exp(0.8 z) >= 1) = P(z >= 1.145)
    assert lengths.count(128) / 4000 == pytest.approx(0.126, abs=0.015)


def sampled(generator, policy):
    files = PolicyFiles(policy)
    streams = [(0, row) for row in range(12)]
    prompts = [[5, 6], [7, 8, 9], [5]]
    asked = request_for(prompts, streams, Sampling(CAP), files.stop_ids, pad_id=files.tokenizer.pad_token_id)
    return generator.generate(files.load(trainable=False), asked)


def has_the_lengths_of_the_table(generator, policy):
    for call in (1, 2):
        responses = sampled(generator, policy)
        lengths = forced_lengths(12, CAP, call)
        assert responses.response_mask.sum(1).tolist() == lengths
        assert responses.truncated.tolist() == [length == CAP for length in lengths]


@pytest.mark.parametrize("rows", [None, 5])
def test_our_responses_have_the_lengths_of_the_table(tiny_policy, rows):
    has_the_lengths_of_the_table(ForcedLengths(max_rows=rows), tiny_policy)
    with pytest.raises(AssertionError):
        has_the_lengths_of_the_table(NativeGenerator(max_rows=rows), tiny_policy)


def test_the_peers_responses_have_the_lengths_of_the_table(tiny_policy):
    model, lengths = AutoModelForCausalLM.from_pretrained(tiny_policy), forced_lengths(12, CAP, 1)
    ids = torch.full((12, 3), 5)
    processor = ForceEnds(lengths, CAP, [1])
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": CAP, "pad_token_id": 0}
    new = model.generate(ids, attention_mask=torch.ones_like(ids), logits_processor=[processor], **options)[:, 3:]
    ended = (new == 1).int()
    assert (ended.cumsum(1) - ended == 0).sum(1).tolist() == lengths
    assert ended.any(1).tolist() == [length < CAP for length in lengths]


def group():
    return Group.random([[5, 6, 7], [8]], size=4, new_tokens=CAP, vocabulary=18, step=3)


def gradient(loss, module):
    module.zero_grad()
    loss.backward()
    return {name.removeprefix("policy."): one.grad.clone() for name, one in module.named_parameters()}


def blind_to_padding(model, group):
    class Blind(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return model(input_ids=input_ids, attention_mask=torch.ones_like(attention_mask))

    return padded_loss(Blind(), group)


def by_token(model, group):
    """The mean over all tokens, not over each response's first."""
    lengths = [len(response) for response in group.responses]
    scaled = [a * length * len(lengths) / sum(lengths) for a, length in zip(group.advantages, lengths, strict=True)]
    return padded_loss(model, Group(group.prompts, group.responses, scaled, group.size))


@holds_only_for(padded_loss, blind_to_padding=blind_to_padding, by_token=by_token)
def test_packed_and_padded_are_the_same_work(padded):
    module = GRPO(kl_coef=0.0)
    module.configure_model()
    model = PolicyFiles("embedded", LoadOptions(pack=False)).load()
    own, theirs = packed_loss(module, group()), padded(model, group())
    assert float(own.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert gradient_difference(gradient(own, module), gradient(theirs, model)) < 1e-5


class Letters:
    """A tokenizer of one token a character."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [ord(letter) for letter in text]}


def test_rows_come_in_the_order_in_which_we_go_through_them(tmp_path):
    work = Work("demonstrations", directory=str(tmp_path), steps=3, batch=4)
    work.prepare(Letters())
    rows = [json.loads(line) for line in work.ours.read_text().splitlines()]
    assert work.rows() == [rows[place] for place in permutation(12, 0, 0).tolist()] != rows
    assert all(len(row["prompt"]) + len(row["completion"]) + 1 <= MAX_ROW for row in rows)


@pytest.mark.parametrize(
    ("kind", "keys"), [("pairs", {"prompt", "chosen", "rejected"}), ("sums", {"prompt", "answer"})]
)
def test_there_are_rows_for_every_step(tmp_path, kind, keys):
    work = Work(kind, directory=str(tmp_path), steps=5, batch=2 if kind == "pairs" else 0, prompts=2)
    work.prepare(Letters())
    assert len(work.rows()) == 10
    assert all(row.keys() == keys for row in work.rows())


def test_prompts_are_nearly_as_long_as_wanted(tmp_path):
    work = Work("prompts", directory=str(tmp_path), steps=5, prompts=2, prompt_tokens=256)
    work.prepare(Letters())
    assert all(250 <= len(row["prompt"]) <= 256 for row in work.rows())
    first = work.rows()[0]
    assert sum(map(int, first["prompt"].split(": ")[1].rstrip(" =").split(" + "))) == int(first["answer"])


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "sft", "dpo"])
def test_nothing_but_checkpoints_is_left_out_of_our_runs(algorithm):
    base = yaml.safe_load((ROOT / "configs" / f"{algorithm}.yaml").read_text())
    kind, size = {"sft": ("demonstrations", 8), "dpo": ("pairs", 8)}.get(algorithm, ("prompts", 0))
    overlay = overlay_for(Work(kind, prompts=2, batch=size, algorithm=algorithm), base)
    kept = [one["class_path"] for one in overlay["trainer"]["callbacks"]]
    listed = [one["class_path"] for one in base["trainer"]["callbacks"]]
    assert [*kept[:-1], "lightning.pytorch.callbacks.ModelCheckpoint"] == listed
    assert kept[-1] == "examples.bench.ours.TakeTurns"
    assert "logger" not in overlay["trainer"] and "gradient_clip_val" not in overlay["trainer"]
    assert base["trainer"]["gradient_clip_val"] == 1.0
