"""Responses of both generators, on several families of models."""

from functools import partial

import pytest
import torch
from transformers import GenerationConfig

from rl_lightning.errors import UserError
from rl_lightning.functional import logprobs_from_logits
from rl_lightning.generation import NativeGenerator, Sampling, TransformersGenerator
from rl_lightning.models import response_logits
from rl_lightning.models.families import cache_argument
from tests.checks import assert_same, cases, holds_only_for
from tests.support import request_for
from tests.tiny import EOS, PAD
from tests.unit.generation.families import VOCABULARY, family

PROMPTS = [[3, 4, 5], [6, 7, 8, 9, 10, 11], [12], [13, 14, 15, 16]]
STOPS = frozenset({EOS, 5})
SAMPLES = 4
STREAMS = [(7, number) for number in range(len(PROMPTS) * SAMPLES)]
#: What most tests ask for.
ASKED = request_for(PROMPTS, STREAMS, Sampling(10, 1.3), STOPS, pad_id=PAD)
#: Every pair that works.
PAIRS = [(NativeGenerator, name) for name in ("llama", "gpt2", "lfm2")]
PAIRS += [pytest.param(NativeGenerator, "falcon_h1", marks=pytest.mark.slow)]  # a state beside attention, as lfm2
PAIRS += [(TransformersGenerator, name) for name in ("llama", "gpt2", "mamba")]
everywhere = pytest.mark.parametrize(("generator", "name"), PAIRS, ids=lambda part: getattr(part, "__name__", part))
both = pytest.mark.parametrize("generator", [NativeGenerator, TransformersGenerator])


def sample(generator, name="llama", prompts=PROMPTS, streams=STREAMS, stop_ids=STOPS, pad_id=PAD, **options):
    options = {"max_new_tokens": 10, "temperature": 1.3} | options
    progress, max_rows = options.pop("progress", None), options.pop("max_rows", 512)
    asked = request_for(prompts, streams, Sampling(**options), stop_ids, pad_id=pad_id)
    return generator(max_rows=max_rows).generate(family(name), asked, progress)


def rows(responses):
    """Return the responses as lists of ids."""
    return [ids[mask].tolist() for ids, mask in zip(responses.response_ids, responses.response_mask, strict=True)]


def next_logits(name, ids):
    """Return what the model predicts after each of these ids, from one pass over them without cache or padding."""
    with torch.no_grad():
        return family(name)(torch.tensor([ids])).logits[0]


def gaps(name, responses):
    """Return how far the log-probabilities are from those of a teacher-forced pass in float32."""
    for row, response in enumerate(rows(responses)):
        prompt = PROMPTS[row // SAMPLES]
        logits = next_logits(name, prompt + response)[len(prompt) - 1 : -1]
        expected = logprobs_from_logits(logits, torch.tensor(response), 1.3)
        yield float((responses.logprobs[row, : len(response)] - expected).abs().max())


def same(first, second):
    """Equal to the last bit in what was sampled, and to rounding in its log-probabilities."""
    assert rows(first) == rows(second)
    for field in ("prompt_ids", "prompt_mask", "response_ids", "response_mask", "truncated"):
        assert torch.equal(getattr(first, field), getattr(second, field)), field
    assert float((first.logprobs - second.logprobs).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("name", "options"),
    cases(
        ["llama", "gpt2", "lfm2", "falcon_h1"],
        [{}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.6, "temperature": 0.8}],
        soon=lambda name, options: name == "llama" or not options,
    ),
)
def test_both_generators_draw_the_same(name, options):
    native, other = (sample(generator, name, **options) for generator in (NativeGenerator, TransformersGenerator))
    same(native, other)
    if not options:
        lengths = native.response_mask.sum(1)
        assert len(lengths.unique()) > 2 and 0 < int(native.truncated.sum()) < len(STREAMS), "too easy a case"


@everywhere
def test_log_probabilities_are_those_of_a_teacher_forced_pass(generator, name):
    responses = sample(generator, name)
    assert max(gaps(name, responses)) < 1e-5
    assert responses.logprobs.dtype == torch.float32


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_log_probabilities_are_those_that_the_trainer_computes(name):
    responses = sample(NativeGenerator, name)
    with torch.no_grad():
        logits = response_logits(
            family(name),
            torch.cat([responses.prompt_ids, responses.response_ids], 1),
            torch.cat([responses.prompt_mask, responses.response_mask], 1),
            responses.response_ids.shape[1],
        )
    scored = logprobs_from_logits(logits, responses.response_ids, 1.3)
    difference = (responses.logprobs - scored)[responses.response_mask].abs()
    assert float(difference.max()) < 1e-5
    untempered = logprobs_from_logits(logits, responses.response_ids)
    assert float((responses.logprobs - untempered)[responses.response_mask].abs().max()) > 0.05


@pytest.mark.parametrize("name", ["llama", "mamba"])
def test_bf16_rounds_only_while_it_samples(name):
    responses = sample(partial(NativeGenerator, bf16=True), name)
    assert 1e-4 < max(gaps(name, responses)) < 0.1
    assert responses.logprobs.dtype == torch.float32
    assert max(gaps(name, sample(NativeGenerator, name))) < 1e-5


def test_only_bf16_makes_the_sampler_another_policy():
    assert NativeGenerator(bf16=True).samples_from_copy and not NativeGenerator().samples_from_copy


@everywhere
def test_the_number_of_rows_side_by_side_changes_nothing(generator, name):
    whole = sample(generator, name)
    for max_rows in (1, 6):
        same(whole, sample(generator, name, max_rows=max_rows))


@everywhere
def test_the_other_prompts_change_nothing(generator, name):
    whole = rows(sample(generator, name))
    for prompt in range(len(PROMPTS)):
        own = slice(prompt * SAMPLES, (prompt + 1) * SAMPLES)
        assert rows(sample(generator, name, [PROMPTS[prompt]], STREAMS[own])) == whole[own]
    order = [2, 0, 3, 1]
    streams = [STREAMS[prompt * SAMPLES + k] for prompt in order for k in range(SAMPLES)]
    moved = rows(sample(generator, name, [PROMPTS[prompt] for prompt in order], streams))
    assert moved == [whole[prompt * SAMPLES + k] for prompt in order for k in range(SAMPLES)]


@both
def test_a_stream_decides_a_response_alone(generator):
    first, second, third, again = rows(
        sample(generator, prompts=[PROMPTS[1]], streams=[(7, 0), (7, 1), (8, 0), (7, 0)])
    )
    assert first == again and len({tuple(first), tuple(second), tuple(third)}) == 3
    torch.manual_seed(99)
    assert rows(sample(generator, prompts=[PROMPTS[1]], streams=[(7, 1), (7, 0)])) == [second, first]


@both
def test_sampling_leaves_the_global_random_state_alone(generator):
    family("llama")  # random weights, made once
    before = torch.get_rng_state()
    sample(generator)
    assert torch.equal(torch.get_rng_state(), before)


def one_short(responses):
    """The stop token does not count."""
    mask = responses.response_mask
    return mask & torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)


def no_pads(responses):
    """Found from the pad id instead of the first stop token."""
    return responses.response_ids != EOS


@pytest.mark.parametrize("generator", [NativeGenerator, TransformersGenerator])
@pytest.mark.parametrize("pad_id", [PAD, EOS, 5])
def test_the_mask_ends_with_the_first_stop_token(generator, pad_id):
    @holds_only_for(lambda responses: responses.response_mask, one_short=one_short, no_pads=no_pads)
    def check(mask_of):
        responses = sample(generator, pad_id=pad_id)
        mask = mask_of(responses)
        for row in range(len(STREAMS)):
            ids, length = responses.response_ids[row].tolist(), int(mask[row].sum())
            assert mask[row].tolist() == [column < length for column in range(len(ids))]
            stops = [column for column, token in enumerate(ids[:length]) if token in STOPS]
            assert stops == ([] if responses.truncated[row] else [length - 1])
            assert length == 10 or not responses.truncated[row]
            assert set(ids[length:]) <= {pad_id}
            assert responses.logprobs[row, length:].eq(0).all() and responses.logprobs[row, :length].lt(0).all()

    for name in ("real", "one_short", "no_pads"):
        check(name)


@both
def test_what_pads_does_not_matter(generator):
    assert (
        rows(sample(generator, pad_id=PAD)) == rows(sample(generator, pad_id=EOS)) == rows(sample(generator, pad_id=9))
    )


@both
def test_every_stop_id_stops(generator):
    unstopped = sample(generator, stop_ids=frozenset())
    assert unstopped.truncated.all() and unstopped.response_mask.all()
    for stop_ids in (frozenset({EOS}), frozenset({5}), frozenset({4, 8, 9})):
        cut = []
        for row in rows(unstopped):
            end = next((column + 1 for column, token in enumerate(row) if token in stop_ids), len(row))
            cut.append(row[:end])
        responses = sample(generator, stop_ids=stop_ids)
        assert rows(responses) == cut
        assert responses.truncated.tolist() == [row[-1] not in stop_ids for row in cut]


@both
def test_a_cap_only_cuts_and_a_stop_token_at_the_cap_is_no_truncation(generator):
    whole = rows(sample(generator, max_new_tokens=10))
    for cap in (1, 2, 5):
        responses = sample(generator, max_new_tokens=cap)
        assert rows(responses) == [row[:cap] for row in whole]
        assert responses.truncated.tolist() == [row[:cap][-1] not in STOPS for row in whole]
    at_cap = [row for row in whole if len(row) == 2 and row[-1] in STOPS]
    assert at_cap, "no response ends at the cap of 2"


@both
def test_responses_of_one_token(generator):
    responses = sample(generator, stop_ids=frozenset(range(VOCABULARY)))
    assert responses.response_ids.shape == (len(STREAMS), 1)
    assert responses.response_mask.all() and not responses.truncated.any()


@both
def test_prompts_come_back_repeated_and_padded_on_the_left(generator):
    responses = sample(generator)
    for row in range(len(STREAMS)):
        prompt, mask = PROMPTS[row // SAMPLES], responses.prompt_mask[row]
        assert responses.prompt_ids[row][mask].tolist() == prompt
        assert mask.tolist() == [False] * (6 - len(prompt)) + [True] * len(prompt)
        assert responses.prompt_ids[row][~mask].eq(PAD).all()


@everywhere
def test_temperature_zero_takes_the_most_probable_token(generator, name):
    responses = sample(generator, name, temperature=0)
    for row in range(0, len(STREAMS), SAMPLES):
        prompt = PROMPTS[row // SAMPLES]
        ids, logprobs = list(prompt), []
        while len(ids) < len(prompt) + 10 and (len(ids) == len(prompt) or ids[-1] not in STOPS):
            distribution = next_logits(name, ids)[-1].log_softmax(0)
            ids.append(int(distribution.argmax()))
            logprobs.append(distribution.max())
        assert rows(responses)[row : row + SAMPLES] == [ids[len(prompt) :]] * SAMPLES
        assert float((responses.logprobs[row, : len(logprobs)] - torch.stack(logprobs)).abs().max()) < 1e-5


@both
def test_top_k_and_top_p_keep_the_tail_out(generator):
    def ranks(**options):
        """Return per sampled token its rank and the mass before it."""
        found = []
        for row, response in enumerate(rows(sample(generator, stop_ids=frozenset(), **options))):
            prompt = PROMPTS[row // SAMPLES]
            probs = (next_logits("llama", prompt + response)[len(prompt) - 1 : -1] / 1.3).softmax(1)
            for distribution, token in zip(probs, response, strict=True):
                larger = distribution[distribution > distribution[token]]
                found.append((len(larger), float(larger.sum())))
        return found

    assert max(rank for rank, _ in ranks()) > 9 and max(mass for _, mass in ranks()) > 0.8
    assert {rank for rank, _ in ranks(top_k=3)} == {0, 1, 2}
    nucleus = [mass for _, mass in ranks(top_p=0.5)]
    assert 0.25 < max(nucleus) < 0.5
    whole = sample(generator, top_k=1, stop_ids=frozenset())
    assert whole.logprobs.lt(-0.1).any(), "log-probabilities are over the whole vocabulary"


@both
def test_progress_counts_up_to_all(generator):
    seen = []
    sample(generator, max_rows=6, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] <= len(STREAMS) and {total for _, total in seen} == {len(STREAMS)}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and len({done for done, _ in seen}) > 4
    sample(generator, stop_ids=frozenset(range(VOCABULARY)), progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (len(STREAMS), len(STREAMS))


def test_the_defaults_of_a_model_do_not_touch_the_distribution():
    """`generate` would fill in everything of this that it is not told."""
    plain = sample(TransformersGenerator)
    model = family("llama")
    own = model.generation_config
    biased = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=1, top_p=0.1, min_p=0.5, repetition_penalty=5.0, no_repeat_ngram_size=1,
        suppress_tokens=[4, 6, 8], begin_suppress_tokens=[3, 5], forced_eos_token_id=7, min_new_tokens=4, num_beams=3,
        bad_words_ids=[[9]], sequence_bias=[[[10], 9.0]], max_new_tokens=2, renormalize_logits=True, max_time=0.0,
        eos_token_id=12, pad_token_id=13, exponential_decay_length_penalty=(1, 3.0), guidance_scale=2.0,
    )  # fmt: skip
    before = biased.to_dict()
    model.generation_config = biased
    try:
        same(sample(TransformersGenerator), plain)
        with pytest.raises(IndexError):
            sample(TransformersGenerator, prompts=[[VOCABULARY]], streams=[(0, 0)])
        assert model.generation_config is biased and biased.to_dict() == before
    finally:
        model.generation_config = own


@pytest.mark.parametrize(("name", "reason"), [("mamba", "attention of its own"), ("lfm2", "LinearAttentionLayer")])
def test_a_model_that_is_not_plain_attention_is_sampled_by_its_own_generate(name, reason, caplog):
    generator = NativeGenerator(max_tokens=3 * 16)
    for _ in range(2):
        found = generator.generate(family(name), ASKED)
    same(found, sample(TransformersGenerator, name))
    (said,) = [one.getMessage() for one in caplog.records if one.name.startswith("rl_lightning")]
    assert "slower" in said and reason in said
    assert generator.metrics() == {}


def test_the_cache_has_room_for_so_many_tokens():
    whole = sample(NativeGenerator)
    with pytest.raises(UserError, match="max_tokens=15"):
        NativeGenerator(max_tokens=15).generate(family("llama"), ASKED)
    widest = []
    hook = family("llama").register_forward_pre_hook(
        lambda _, args, given: (
            widest.append(given["input_ids"].shape[0]) if cache_argument(family("llama")) in given else None
        ),
        with_kwargs=True,
    )
    generator = NativeGenerator(max_tokens=5 * 16 + 15)
    try:
        few = generator.generate(family("llama"), ASKED)
    finally:
        hook.remove()
    same(few, whole)
    work = generator.metrics()
    assert max(widest) == 5
    assert work["work/prefill_rows"] == sum(map(len, PROMPTS))
    # The first token of a response comes from its prompt's pass; every other one is a row of a step.
    assert work["work/rows"] == int(few.response_mask.sum()) - len(STREAMS)
    # One after the other the longest of each five would take longer: the next begin where the shorter ones ended.
    lengths = few.response_mask.sum(1).tolist()
    in_turns = sum(max(lengths[start : start + 5]) - 1 for start in range(0, len(lengths), 5))
    assert work["work/steps"] < in_turns
    assert generator.metrics() == {}


def test_each_response_is_reported_as_it_ends():
    reported = {}
    responses = NativeGenerator(max_rows=6).generate(
        family("llama"), ASKED, finished=lambda row, ids: reported.setdefault(row, []).append(ids)
    )
    assert reported == {row: [ids] for row, ids in enumerate(rows(responses))}
    assert list(reported) != sorted(reported)


def test_a_subclass_may_constrain_what_is_drawn():
    class Counting(NativeGenerator):
        def draw(self, logits, uniform, sampling, rows, columns):
            _, logprobs = super().draw(logits, uniform, sampling, rows, columns)
            return 6 + (rows + columns) % 5, logprobs

    generator = Counting(max_rows=3)
    asked = request_for(PROMPTS, STREAMS, Sampling(4), frozenset({10}), pad_id=PAD)
    found = generator.generate(family("gpt2"), asked)
    for row, ids in enumerate(rows(found)):
        expected = [6 + (row + column) % 5 for column in range(4)]
        assert ids == expected[: expected.index(10) + 1 if 10 in expected else None]


@both
def test_progress_ends_at_all_when_the_cap_ends_responses(generator):
    """Or a bar would never close."""
    seen = []
    responses = sample(generator, stop_ids=frozenset(), max_rows=4, progress=lambda *counts: seen.append(counts))
    assert responses.truncated.all()
    assert seen[-1] == (len(responses.truncated), len(responses.truncated))


def capped(generator, name, caps, stop_ids=STOPS, strings=None, **options):
    asked = request_for(PROMPTS, STREAMS, Sampling(10, 1.3), stop_ids, strings, PAD, caps)
    return generator(**options).generate(family(name), asked)


def capped_all(generator, name, caps, **options):
    """Gives every response the largest cap."""
    return capped(generator, name, [max(caps)] * len(caps), **options)


def cut_but_not_said(generator, name, caps, **options):
    responses = capped(generator, name, caps, **options)
    responses.truncated = responses.response_mask.sum(1) == max(caps)
    return responses


@pytest.mark.parametrize(
    ("generator", "name", "options"),
    [
        (NativeGenerator, "llama", {"max_rows": 3}),
        (TransformersGenerator, "gpt2", {"max_rows": 3}),
        (NativeGenerator, "mamba", {}),
        *(
            pytest.param(*of, marks=pytest.mark.slow)
            for of in (
                (NativeGenerator, "llama", {}),
                (TransformersGenerator, "gpt2", {}),
                (NativeGenerator, "mamba", {"max_rows": 3}),
            )
        ),
    ],
)
def test_a_cap_of_the_prompt_cuts_its_responses_and_no_others(generator, name, options):
    @holds_only_for(capped, capped_all=capped_all, cut_but_not_said=cut_but_not_said)
    def check(implementation):
        caps = [3, 10, 1, 6]
        whole, cut = capped(generator, name, None, **options), implementation(generator, name, caps, **options)
        of_row = [cap for cap in caps for _ in range(SAMPLES)]
        assert rows(cut) == [ids[:cap] for ids, cap in zip(rows(whole), of_row, strict=True)]
        ended = [ids[-1] in STOPS for ids in rows(cut)]
        assert cut.truncated.tolist() == [not end for end in ended] and any(ended) and not all(ended)
        assert_same(
            cut.logprobs[cut.response_mask], whole.logprobs[:, : cut.logprobs.shape[1]][cut.response_mask], 1e-5
        )

    for kind in ("real", "capped_all", "cut_but_not_said"):
        check(kind)


def test_progress_counts_responses_that_their_cap_has_ended():
    told = []
    asked = request_for(PROMPTS, STREAMS, Sampling(10, 1.3), STOPS, None, PAD, [3, 10, 1, 6])
    for generator in (NativeGenerator(), TransformersGenerator()):
        generator.generate(family("llama"), asked, lambda done, total: told.append((done, total)))
        assert told[-1] == (len(STREAMS), len(STREAMS))
        told.clear()
