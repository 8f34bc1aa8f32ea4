"""What SFT and DPO are measured by on held-out data, against loops over tokens and pairs."""

import math

import pytest
import torch

from rl_lightning.algorithms import DPO, SFT
from rl_lightning.algorithms.metrics import TokenMean
from rl_lightning.models import LoadOptions, read_responses
from rl_lightning.models import head as head_module
from rl_lightning.types import Microbatch
from tests.checks import assert_same
from tests.pairs import part_of, random_pairs


def module_of(kind, tiny_policy, **options):
    module = kind(policy=tiny_policy, load=LoadOptions(dtype="float64"), **options)
    module.configure_model()
    module.policy.eval()
    return module


def demonstrations():
    pairs = random_pairs(4)
    return Microbatch(pairs.input_ids, pairs.attention_mask, pairs.response_mask, pairs.group_ids, 1.0)


def evaluated(module, batches):
    with torch.no_grad():
        for batch in batches:
            module.evaluation_step(batch, "val")
    return {name: value for key in module._evaluation for name, value in module._evaluation[key].compute().items()}


def rows_of(batch, rows):
    return batch.select(torch.tensor(rows))


@torch.no_grad()
def by_loop(model, batch):
    """Mean −log p and share of argmax tokens, token by token, from whole logits of one row at a time."""
    total, right, count = 0.0, 0, 0
    for row in range(len(batch)):
        ids = batch.input_ids[row][batch.attention_mask[row]]
        logits = model(ids[None]).logits[0].double()
        answer = int(batch.response_attention[row].sum())
        for place in range(len(ids) - answer, len(ids)):
            if not batch.response_mask[row][place - (len(ids) - answer)]:
                continue
            scores = logits[place - 1]
            total -= float(scores[ids[place]] - scores.exp().sum().log())
            right += int(scores.argmax() == ids[place])
            count += 1
    return total / count, right / count


@pytest.mark.parametrize("plain_head", [True, False])
def test_sft_is_measured_token_by_token(tiny_policy, plain_head, monkeypatch):
    module, batch = module_of(SFT, tiny_policy), demonstrations()
    # A turn of someone else in the midst of a response does not count.
    batch.response_mask = batch.response_mask.clone()
    batch.response_mask[1, 1] = False
    expected = by_loop(module.policy, batch)
    if not plain_head:
        module.policy.lm_head = torch.nn.Sequential(module.policy.lm_head)
    monkeypatch.setattr(head_module, "LOGITS_AT_ONCE", 64)  # several chunks
    parts = [rows_of(batch, range(3)), rows_of(batch, range(3, 8))]
    found = evaluated(module, parts)
    assert set(found) == {"val/loss", "val/token_accuracy"}
    assert math.isclose(found["val/loss"], expected[0], rel_tol=1e-6)
    assert math.isclose(found["val/token_accuracy"], expected[1], rel_tol=1e-6)
    means = [float(evaluated(module_of(SFT, tiny_policy), [part])["val/loss"]) for part in parts]
    assert abs(sum(means) / 2 - expected[0]) > 1e-6, "a mean of batches' means is another number"


def test_the_most_probable_token_is_that_of_the_logits(tiny_policy):
    module, batch = module_of(SFT, tiny_policy), demonstrations()
    with torch.no_grad():
        top = read_responses(module.policy, batch, entropy="top").entropy
        plain = read_responses(module.policy, batch).logprobs
        assert torch.equal(read_responses(module.policy, batch, entropy="top").logprobs, plain)
    assert set(top.unique().tolist()) <= {0.0, 1.0}
    assert not top[~batch.response_attention].any()


def test_the_mean_over_nothing_is_none():
    metric = TokenMean("logprobs")
    metric.update(torch.zeros(2, 3, dtype=torch.bool), logprobs=torch.ones(2, 3))
    assert metric.compute().isnan()


@pytest.mark.parametrize("normalize", [True, False])
def test_dpo_is_measured_pair_by_pair(tiny_policy, normalize):
    module, batch = (
        module_of(DPO, tiny_policy, beta=0.5, length_normalize=normalize, label_smoothing=0.1),
        random_pairs(6),
    )
    with torch.no_grad():
        logprobs = read_responses(module.policy, batch).logprobs
    gains = []
    for row in range(len(batch)):
        mask = batch.response_mask[row]
        difference = (logprobs[row] - batch.ref_logprobs[row])[mask]
        gains.append(0.5 * float(difference.mean() if normalize else difference.sum()))
    gaps = [gains[row] - gains[row + 1] for row in range(0, len(gains), 2)]

    def log_sigma(gap):
        return -math.log1p(math.exp(-gap))

    found = evaluated(module, [part_of(batch, [0, 1]), part_of(batch, [2, 3, 4, 5])])
    assert set(found) == {"val/accuracy", "val/margin", "val/loss"}
    assert_same(found["val/accuracy"], sum(gap > 0 for gap in gaps) / 6)
    assert_same(found["val/margin"], sum(gaps) / 6)
    loss = -sum(0.9 * log_sigma(gap) + 0.1 * log_sigma(-gap) for gap in gaps) / 6
    assert_same(found["val/loss"], loss)
    assert abs(float(found["val/loss"]) + sum(map(log_sigma, gaps)) / 6) > 1e-4, "smoothing is part of the loss"
