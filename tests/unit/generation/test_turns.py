"""Responses of several turns, whoever answers, and what a generator keeps between them."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from rl_lightning.errors import UserError
from rl_lightning.generation import NativeGenerator, Sampling, TransformersGenerator
from rl_lightning.generation.base import Stream
from rl_lightning.generation.copies import seeds
from rl_lightning.generation.kept import closed_up
from rl_lightning.generation.sampling import uniforms
from rl_lightning.generation.turns import Answer, Turns
from tests.support import request_for
from tests.tiny import EOS
from tests.unit.generation.families import SIZES, family

PROMPTS = [[3, 4, 5], [6, 7, 8, 9, 10, 11], [12]]
STREAMS: list[Stream] = [(7, number) for number in range(6)]
STOPS = frozenset({EOS, 5, 6, 7})
SAYS = [8, 9, 10]


class Echo:
    """Answers every turn with as many tokens as the turn has, at most three; the episode ends with a token above 12."""

    def __init__(self):
        self.heard = []

    def hear(self, row, ids, last):
        self.heard.append((row, list(ids), last))

    def answer(self, row, room):
        _, ids, last = next(one for one in reversed(self.heard) if one[0] == row)
        assert last == (room < 0)
        said = SAYS[: len(ids)]
        if ids[-1] > 12:
            return Answer()
        return Answer(said) if len(said) <= room else Answer(truncated=True)


def talk(generator, name="llama", sampling=None, model=None):
    asked = request_for(PROMPTS, STREAMS, sampling or Sampling(20, max_turns=5, max_turn_tokens=4), STOPS)
    partner, ended = Echo(), []
    said = Turns(
        generator, model or family(name), asked, partner, finished=lambda row, ids: ended.append((row, ids))
    ).to_the_end()
    return said, partner, ended


def test_rows_hold_what_was_said_in_its_order_and_end_with_the_policy():
    said, partner, ended = talk(NativeGenerator())
    assert said.turns.max() > 2 and len({row for row, _ in ended}) == len(ended) == 6
    assert torch.equal(said.response_mask, said.turns > 0) and not said.logprobs[~said.response_mask].any()
    for row in range(6):
        mine = [ids for number, ids, _ in partner.heard if number == row]
        parts = [mine[0], *(part for ids in mine[1:] for part in (None, ids))]
        parts = [SAYS[: len(parts[place - 1])] if part is None else part for place, part in enumerate(parts)]
        ids = [token for part in parts for token in part]
        assert said.response_ids[row][said.attention[row]].tolist() == ids
        numbers = [0 if place % 2 else place // 2 + 1 for place, part in enumerate(parts) for _ in part]
        assert said.turns[row][said.attention[row]].tolist() == numbers
        assert len(mine) <= 5 and all(len(one) <= 4 for one in mine) and len(ids) <= 20
        assert dict(ended)[row] == mine[-1]
        assert bool(said.truncated[row]) == (mine[-1][-1] <= 12)


def test_log_probabilities_are_those_of_a_pass_over_the_whole_conversation():
    said, _, _ = talk(NativeGenerator())
    for row in range(6):
        prompt, ids = PROMPTS[row // 2], said.response_ids[row][said.attention[row]]
        with torch.no_grad():
            logits = family("llama")(torch.tensor([[*prompt, *ids.tolist()]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
        mine = said.turns[row][said.attention[row]] > 0
        assert float((said.logprobs[row][said.attention[row]] - expected)[mine].abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_is_kept_changes_no_token_and_spares_reading_again(name):
    kept, without, some = NativeGenerator(), NativeGenerator(max_tokens=26), NativeGenerator(max_tokens=150)
    said, partner, _ = talk(kept, name)
    work = kept.metrics()
    for generator in (without, some, NativeGenerator(max_rows=2), TransformersGenerator()):
        other, _, _ = talk(generator, name)
        for field in ("response_ids", "turns", "attention", "truncated"):
            assert torch.equal(getattr(said, field), getattr(other, field)), field
        assert float((said.logprobs - other.logprobs).abs().max()) < 1e-5
    # Read are the prompts, and before each later turn what was said and the last token before it, and nothing else.
    heard = int((said.attention & (said.turns == 0)).sum())
    later = len(partner.heard) - 6
    assert work["work/prefill_rows"] == sum(map(len, PROMPTS)) + heard + later
    assert without.metrics()["work/prefill_rows"] > some.metrics()["work/prefill_rows"] > work["work/prefill_rows"]


class Long(Echo):
    """Answers first turns, by two tokens or by thirty."""

    def answer(self, row, room):
        first = sum(one[0] == row for one in self.heard) == 1
        return Answer([8] * (2 if row == 0 else 30)) if first else Answer()


def uneven(generator, model, caps=(14, 40)):
    """A long prompt with short turns beside a short prompt with long ones: no row is longer than 54 tokens."""
    asked = request_for(
        [[3] * 40, [4] * 4], STREAMS[:2], Sampling(40, max_turns=3, max_turn_tokens=8), STOPS - {EOS}, caps=list(caps)
    )
    return Turns(generator, model, asked, Long()).to_the_end()


def windowed(width):
    torch.manual_seed(5)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=width, initializer_range=0.2)).eval()


@pytest.mark.parametrize("width", [56, 64, None])
def test_what_is_kept_beside_what_is_new_stays_within_an_attention_window(width):
    """Padded each for itself, they are wider than any row: a window of as many tokens would hide what it must not."""
    model = windowed(width)
    said = uneven(NativeGenerator(), model)
    other = uneven(TransformersGenerator(), model)
    assert torch.equal(said.response_ids, other.response_ids) and int(said.attention.sum(1).max()) > 36
    assert float((said.logprobs - other.logprobs).abs().max()) < 1e-5


def test_rows_that_do_not_fit_beside_each_other_are_read_apart(caplog):
    """Padded to the longest prompt, a long response to a short one would go beyond the window."""
    model = windowed(50)
    asked = request_for([[3] * 40, [4] * 4], STREAMS[:2], Sampling(40), frozenset(), caps=[4, 40])
    said, other = (generator.generate(model, asked) for generator in (NativeGenerator(), TransformersGenerator()))
    assert torch.equal(said.response_ids, other.response_ids) and said.response_mask.sum(1).tolist() == [4, 40]
    assert not caplog.records, "sampled by its own generate, which is slower"


def test_room_for_the_longest_row_is_room_for_every_turn():
    whole, least = (uneven(NativeGenerator(most), family("llama")) for most in (None, 54))
    assert torch.equal(whole.response_ids, least.response_ids) and torch.equal(whole.turns, least.turns)
    with pytest.raises(UserError, match="make 48 tokens, and the key-value cache holds 47"):
        uneven(NativeGenerator(47), family("llama"))


def test_nothing_is_kept_from_one_request_to_the_next():
    generator, model = NativeGenerator(), family("llama")
    talk(generator)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.5)
    try:
        changed, fresh = talk(generator)[0], talk(NativeGenerator())[0]
    finally:
        model.load_state_dict(state)
    assert torch.equal(changed.response_ids, fresh.response_ids)
    assert generator._kept is None, "keys and values take memory from training"
    talk(generator, sampling=Sampling(20))
    assert generator._kept is None


def test_padding_between_columns_is_closed_up():
    mask = torch.tensor([[False, True, False, True], [True, True, True, False]])
    keys = torch.arange(8.0).view(2, 1, 4, 1)
    (layer,), real = closed_up([(keys, -keys)], mask)
    assert real.tolist() == [[False, True, True], [True, True, True]]
    assert layer[0][0, 0, 1:, 0].tolist() == [1, 3] and layer[0][1, 0, :, 0].tolist() == [4, 5, 6]
    assert torch.equal(layer[1], -layer[0])


def test_a_later_turn_goes_on_in_its_stream():
    whole, later = uniforms([(3, 5)], 10), uniforms([(3, 5, 4)], 6)
    assert torch.equal(whole[:, 4:], later)
    assert seeds([(3, 5)]) == seeds([(3, 5, 0)]) != seeds([(3, 5, 4)])


def test_progress_counts_episodes_and_every_turn_can_be_stopped():
    seen = []
    asked = request_for(PROMPTS, STREAMS, Sampling(20, max_turns=5, max_turn_tokens=4), STOPS)
    Turns(
        NativeGenerator(), family("llama"), asked, Echo(), lambda done, total: seen.append((done, total))
    ).to_the_end()
    done = [one for one, _ in seen]
    assert done == sorted(done) and {total for _, total in seen} == {6} and done[0] == 0 < done[-1]
