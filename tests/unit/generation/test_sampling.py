"""Random streams, and the tokens that are drawn with them."""

import math
from dataclasses import replace

import pytest
import torch

from rl_lightning.data.evaluation import Evaluation
from rl_lightning.errors import UserError
from rl_lightning.functional import logprobs_from_logits
from rl_lightning.generation import NativeGenerator, Sampling, TransformersGenerator
from rl_lightning.generation.sampling import check_drawn, draw, inverse_cdf, uniforms
from tests.checks import assert_same, holds_only_for
from tests.support import request_for
from tests.tiny import EOS, PAD, tiny_model

#: Narrow, one full block, the first of two levels, a last block that is not full.
WIDTHS = (7, 256, 257, 1000)
DRAWS = 20_000
LARGEST = 1 - 2**-24


def distribution(vocabulary, dtype=torch.float32):
    """Return probabilities from large to tiny, with exact zeros at both ends and in a whole block of the widest."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 2 * torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    logits[::3] = -torch.inf
    logits[-2:] = -torch.inf
    if vocabulary > 900:
        logits[256:512] = -torch.inf
    return logits.softmax(0).to(dtype)


def grid(draws=DRAWS):
    return (torch.arange(draws) + 0.5) / draws


def counts(implementation, probs, numbers):
    drawn = torch.cat([implementation(probs.expand(len(part), -1), part) for part in numbers.split(2000)])
    return torch.bincount(drawn, minlength=len(probs)).double()


def closed(probs, uniform):
    """Takes the first token whose cumulative probability *reaches* the number, of whatever probability."""
    return torch.searchsorted(probs.cumsum(1), uniform[:, None])[:, 0].clamp(max=probs.shape[1] - 1)


def leans(probs, uniform):
    return inverse_cdf(probs, uniform**1.05)


def same_number_twice(probs, uniform):
    """Uses a number for the block, and the same one again inside: the two are not independent."""
    blocks = torch.nn.functional.pad(probs, (0, -probs.shape[1] % 4)).unflatten(1, (-1, 4))
    block = inverse_cdf(blocks.sum(2), uniform)
    inside = blocks[torch.arange(len(probs)), block]
    return block * 4 + inverse_cdf(inside / inside.sum(1, keepdim=True), uniform)


@holds_only_for(inverse_cdf, leans=leans, same_number_twice=same_number_twice)
def test_evenly_spaced_numbers_give_every_token_its_share(implementation):
    """With n numbers at equal distances, a token of probability p comes n·p times, give or take one."""
    for vocabulary in WIDTHS:
        probs = distribution(vocabulary)
        expected = DRAWS * probs.double()
        # Rounding in float32 moves a border by 1e-6 of the numbers at the most.
        assert float((counts(implementation, probs, grid()) - expected).abs().max()) < 1.05


@holds_only_for(inverse_cdf, leans=leans, same_number_twice=same_number_twice)
def test_frequencies_are_the_probabilities(implementation):
    """χ² of 20,000 draws, tokens that are expected fewer than 10 times taken together."""
    for vocabulary in WIDTHS:
        probs = distribution(vocabulary)
        numbers = uniforms([(11, stream) for stream in range(DRAWS // 100)], 100).flatten()
        seen, expected = counts(implementation, probs, numbers), DRAWS * probs.double()
        rare = expected < 10
        seen = torch.cat([seen[~rare], seen[rare].sum()[None]])
        expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
        present = expected > 0
        statistic = float(((seen - expected)[present].square() / expected[present]).sum())
        freedom = int(present.sum()) - 1
        assert statistic < freedom + 5 * math.sqrt(2 * freedom), f"{vocabulary}: χ² {statistic:.1f} of {freedom}"


def includes_neighbour(probs, uniform):
    return (inverse_cdf(probs, uniform) + 1).clamp(max=probs.shape[1] - 1)


@holds_only_for(inverse_cdf, closed=closed, includes_neighbour=includes_neighbour)
def test_a_token_of_probability_zero_never_comes(implementation):
    numbers = torch.cat([torch.tensor([0.0, 1e-12, 0.5, LARGEST, 1.0]), grid(2000)])
    for vocabulary in WIDTHS:
        # Rows need not sum to exactly 1.
        for total in (1.0, 1 - 1e-6, 1 + 1e-6):
            probs = (distribution(vocabulary) * total).expand(len(numbers), -1)
            drawn = implementation(probs, numbers)
            assert (probs.gather(1, drawn[:, None]) > 0).all()


@pytest.mark.parametrize("vocabulary", WIDTHS)
def test_the_only_possible_token_always_comes(vocabulary):
    for token in (0, vocabulary // 2, vocabulary - 1):
        probs = torch.zeros(3, vocabulary)
        probs[:, token] = 1.0
        assert inverse_cdf(probs, torch.tensor([0.0, 0.5, LARGEST])).tolist() == [token] * 3


def test_inverse_cdf_by_hand():
    probs = torch.tensor([[0.25, 0.0, 0.25, 0.5]]).expand(6, -1)
    assert inverse_cdf(probs, torch.tensor([0.0, 0.2499, 0.25, 0.4999, 0.5, 0.99])).tolist() == [0, 0, 2, 2, 3, 3]


def test_a_stream_is_a_function_of_its_name_and_the_position():
    numbers = uniforms([(3, 0), (3, 1), (4, 0), (3, 0), (0, 3), (-1, 2)], 50)
    assert numbers.dtype == torch.float32 and numbers.shape == (6, 50)
    assert torch.equal(numbers[0], numbers[3])
    assert len({tuple(row) for row in numbers.tolist()}) == 5
    assert torch.equal(uniforms([(3, 1)], 20)[0], numbers[1, :20])
    assert numbers.min() >= 0 and numbers.max() < 1


def test_streams_are_uniform_along_and_across():
    numbers = uniforms([(0, stream) for stream in range(300)], 300).double()
    assert abs(float(numbers.mean()) - 0.5) < 5 / math.sqrt(12 * numbers.numel())
    assert abs(float(numbers.var()) - 1 / 12) < 5 * math.sqrt(1 / 180 / numbers.numel())
    centred = numbers - 0.5
    for neighbours in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1]):
        assert abs(float(neighbours.mean())) < 5 / 12 / math.sqrt(neighbours.numel())


# ------------------------------------------------------------------------------------------------------------- draw


def by_hand(row, number, sampling):
    """A slow loop in plain Python: token, and its log-probability over the whole vocabulary."""
    temperature = sampling.temperature or 1.0
    weights = [math.exp(x / temperature) for x in row]
    probs = [weight / sum(weights) for weight in weights]
    order = sorted(range(len(row)), key=lambda token: -probs[token])
    if sampling.temperature == 0:
        return order[0], math.log(probs[order[0]])
    kept = order[: sampling.top_k or len(row)]
    mass, nucleus = 0.0, []
    for token in kept:
        if mass < sampling.top_p * sum(probs[t] for t in kept):
            nucleus.append(token)
        mass += probs[token]
    nucleus = [token for token in nucleus if probs[token] >= sampling.min_p * max(probs)]
    target, cumulative = number * sum(probs[token] for token in nucleus), 0.0
    for token in sorted(nucleus):
        cumulative += probs[token]
        if cumulative > target:
            return token, math.log(probs[token])
    raise AssertionError("no token")


def ignores_temperature(logits, uniform, sampling):
    return draw(logits, uniform, replace(sampling, temperature=1.0))


def ignores_min_p(logits, uniform, sampling):
    return draw(logits, uniform, replace(sampling, min_p=0.0))


def share_of_all(logits, uniform, sampling):
    """Takes min_p for the least probability itself, not for a share of the largest."""
    probs = (logits / (sampling.temperature or 1.0)).softmax(1)
    out = probs < sampling.min_p * probs.amax(1, keepdim=True).square()
    return draw(logits.masked_fill(out, -torch.inf), uniform, replace(sampling, min_p=0.0))


def ignores_top_p(logits, uniform, sampling):
    return draw(logits, uniform, replace(sampling, top_p=1.0))


def ignores_top_k(logits, uniform, sampling):
    return draw(logits, uniform, replace(sampling, top_k=0))


def reports_the_truncated_distribution(logits, uniform, sampling):
    tokens, logprobs = draw(logits, uniform, sampling)
    if sampling.top_k:
        kept = logits.topk(sampling.top_k).values / (sampling.temperature or 1.0)
        logprobs = logits.gather(1, tokens[:, None])[:, 0] / (sampling.temperature or 1.0) - kept.logsumexp(1)
    return tokens, logprobs


def reports_temperature_one(logits, uniform, sampling):
    tokens, _ = draw(logits, uniform, sampling)
    return tokens, logprobs_from_logits(logits, tokens)


@holds_only_for(
    draw,
    ignores_temperature=ignores_temperature,
    ignores_min_p=ignores_min_p,
    share_of_all=share_of_all,
    ignores_top_p=ignores_top_p,
    ignores_top_k=ignores_top_k,
    reports_the_truncated_distribution=reports_the_truncated_distribution,
    reports_temperature_one=reports_temperature_one,
)
def test_draw_is_the_slow_loop(implementation):
    logits, numbers = 2 * torch.randn(300, 12), torch.rand(300)
    for temperature in (1.0, 0.5, 2.0, 0):
        for top_k, top_p, min_p in (
            (0, 1.0, 0), (3, 1.0, 0), (12, 1.0, 0), (50, 1.0, 0), (0, 0.7, 0), (0, 1e-9, 0), (5, 0.6, 0),
            (0, 1.0, 0.1), (0, 1.0, 0.999), (6, 0.9, 0.2),
        ):  # fmt: skip
            sampling = Sampling(8, temperature, top_k, top_p, min_p=min_p)
            tokens, logprobs = implementation(logits, numbers, sampling)
            expected = [by_hand(*pair, sampling) for pair in zip(logits.tolist(), numbers.tolist(), strict=True)]
            assert tokens.tolist() == [token for token, _ in expected]
            assert_same(logprobs, [logprob for _, logprob in expected])


def test_half_precision_logits_are_drawn_from_in_float32():
    logits = torch.randn(50, 1000).bfloat16()
    tokens, logprobs = draw(logits, torch.rand(50), Sampling())
    assert logprobs.dtype == torch.float32
    assert_same(logprobs, logits.double().log_softmax(1).gather(1, tokens[:, None])[:, 0].float())


# --------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("setting", "training", "message"),
    [
        ({"max_new_tokens": 0}, False, "max_new_tokens must be at least 1, not 0"),
        ({"temperature": -0.5}, False, "temperature .* not -0.5"),
        ({"temperature": 0}, True, "temperature must be above 0 in training"),
        ({"top_k": -1}, False, "top_k must be at least 0"),
        ({"top_p": 0.0}, False, r"top_p in \(0, 1\], not 0 and 0.0"),
        ({"top_p": 1.5}, False, "1.5"),
        ({"min_p": 1.0}, False, r"min_p must be in \[0, 1\), not 1.0"),
        ({"min_p": 0.1}, True, r"and min_p \(0.0\)"),
        ({"top_k": 5}, True, "top_k and top_p must be off"),
        ({"top_p": 0.9}, True, "importance ratio would be biased"),
    ],
)
def test_impossible_settings_are_refused_on_one_line(setting, training, message):
    with pytest.raises(UserError, match=message) as error:
        Sampling(**setting).check(training)
    assert "\n" not in str(error.value)


def test_possible_settings_are_not():
    Sampling().check(training=True)
    Sampling(1, 0.0).check(training=False)
    Sampling(1, 0.7, 5, 0.9, min_p=0.1).check(training=False)


def test_evaluation_has_options_of_its_own_and_the_rest_from_training():
    training = Sampling(8, 0.7, stop=["#"], stop_token_ids=[3])
    assert Evaluation().sampling(training) == replace(training, temperature=1.0)
    own = Evaluation(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, max_new_tokens=4)
    assert own.sampling(training) == Sampling(4, 0.5, 3, 0.9, ["#"], [3], 0.1)


@pytest.mark.parametrize("vocabulary", WIDTHS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_give_some_token_and_are_told(vocabulary, temperature, value):
    logits = torch.zeros(2, vocabulary)
    sampling = Sampling(4, temperature=temperature)
    tokens, logprobs = draw(logits, torch.tensor([0.3, LARGEST]), sampling)
    check_drawn(logprobs)
    logits[1] = value
    tokens, logprobs = draw(logits, torch.tensor([0.3, LARGEST]), sampling)
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary
    with pytest.raises(UserError, match="the policy's logits are not finite"):
        check_drawn(logprobs)


@pytest.mark.parametrize("generator", [NativeGenerator(), TransformersGenerator()])
def test_a_policy_whose_logits_overflow_says_so_while_it_samples(generator):
    model = tiny_model().eval()
    asked = request_for([[3, 4]], [(1, 0)], Sampling(4), frozenset({EOS}), pad_id=PAD)
    generator.generate(model, asked)
    torch.nn.init.constant_(model.lm_head.weight, 3e38)
    with pytest.raises(UserError, match="the policy's logits are not finite"):
        generator.generate(model, asked)
