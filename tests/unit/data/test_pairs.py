"""Preference pairs from scored responses."""

from itertools import permutations
from types import SimpleNamespace

import pytest
import torch

from rl_lightning.data import PairOptions
from rl_lightning.data.encoded import EncodedPrompt, PromptRows
from rl_lightning.data.offline.pairs import PairTable, choose_pairs, paired
from rl_lightning.data.offline.samples import rows_digest
from rl_lightning.data.offline.written import written_rollout
from rl_lightning.data.offline.written_pairs import WrittenRows
from rl_lightning.data.sources import Example
from rl_lightning.errors import UserError
from tests.checks import assert_same, holds_only_for
from tests.support import random_rollout

REWARDS = [0.5, 2.0, -1.0, 2.0, 0.25, -1.0]
TEXTS = ["a", "b", "c", "b", "d", "e"]


def worst_first(rewards, texts, options, key):
    return choose_pairs([-reward for reward in rewards], texts, options, key)


def any_text(rewards, texts, options, key):
    return choose_pairs(rewards, [f"{text}{row}" for row, text in enumerate(texts)], options, key)


def blind_to_gaps(rewards, texts, options, key):
    return choose_pairs(rewards, texts, PairOptions(options.pairs_per_prompt), key)


@holds_only_for(choose_pairs, worst_first=worst_first, any_text=any_text, blind_to_gaps=blind_to_gaps)
def test_pairs_are_the_largest_gaps_of_different_texts(choose):
    """Against all ordered pairs, listed one by one; "b" was sampled twice."""
    possible = {}
    for better, worse in permutations(range(len(TEXTS)), 2):
        if TEXTS[better] != TEXTS[worse] and REWARDS[better] - REWARDS[worse] > 1.0:
            possible[TEXTS[better], TEXTS[worse]] = REWARDS[better] - REWARDS[worse]
    for wanted in (1, 2, 3, 5, 99):
        chosen = choose(REWARDS, TEXTS, PairOptions(wanted, min_gap=1.0), (0, wanted))
        named = [(TEXTS[better], TEXTS[worse]) for better, worse in chosen]
        assert len(set(named)) == len(named) == min(wanted, len(possible))
        gaps = [REWARDS[better] - REWARDS[worse] for better, worse in chosen]
        assert gaps == sorted(possible.values(), reverse=True)[:wanted]


def test_a_gap_must_exceed_the_smallest():
    assert choose_pairs([1.0, 0.0], ["a", "b"], PairOptions(min_gap=1.0), (0,)) == []
    assert choose_pairs([1.0, 0.0], ["a", "b"], PairOptions(min_gap=0.99), (0,)) == [(0, 1)]
    assert choose_pairs([1.0, 1.0], ["a", "b"], PairOptions(), (0,)) == []
    assert choose_pairs([1.0, 0.0], ["a", "a"], PairOptions(), (0,)) == []
    assert choose_pairs([], [], PairOptions(), (0,)) == []


def test_equals_are_drawn_by_the_key_and_all_get_their_turn():
    rewards, texts = [1.0, 1.0, 0.0, 0.0], ["a", "b", "c", "d"]
    drawn = [choose_pairs(rewards, texts, PairOptions(), (7, number)) for number in range(40)]
    assert drawn == [choose_pairs(rewards, texts, PairOptions(), (7, number)) for number in range(40)]
    assert {pair for (pair,) in drawn} == {(0, 2), (0, 3), (1, 2), (1, 3)}


def test_a_table_leaves_out_failures_and_counts_prompts_without_a_pair():
    nan = torch.nan
    rollout = random_rollout(groups=3, group_size=3)
    rollout.rewards = torch.tensor([0.0, nan, 2.5, 1.0, 1.0, 1.0, nan, 4.0, nan], dtype=torch.float64)
    rollout.raw_rewards = rollout.rewards.clone()
    rollout.responses = list("abcdefghi")
    table = PairTable.of(rollout, PairOptions(), seed=0, longest=5)
    assert (len(table), table.without, table.rows.responses) == (1, 2, ["c", "a"])
    assert_same(table.margins, torch.tensor([2.5]).double())
    assert torch.equal(table.rows.group_ids, torch.tensor([0, 0]))
    assert table.metrics == {"pairs/number": 1.0, "pairs/prompts_without": 2.0, "pairs/gap_mean": 2.5}
    assert str(table) == "1 pairs, mean gap 2.5; 2 prompts without a pair"


@pytest.mark.parametrize("setting", [{"pairs_per_prompt": 0}, {"min_gap": -0.5}, {"min_gap": float("nan")}])
def test_impossible_options(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        PairOptions(**setting)


# ---------------------------------------------------------------------------------------------------- pairs from files


def written(pairs=5):
    """Return pairs of random lengths, some of whose tokens are not learnt; and the same as one padded table."""
    random = torch.Generator().manual_seed(0)

    def ids(longest):
        return torch.randint(3, 90, (int(torch.randint(1, longest, (), generator=random)),), generator=random).tolist()

    grown = PromptRows()
    for number in range(pairs):
        both = (ids(7), ids(12))
        learnt = (None, [place % 3 > 0 or place == 0 for place in range(len(both[1]))])
        grown.add(EncodedPrompt(Example(prompt="q", location=""), ids(9), "q", None, both, learnt), number)
    prompts = grown.done(None, chat=False)
    ends = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0), text=str)
    return WrittenRows(prompts, pad_id=0), paired(written_rollout(prompts, (0, 1), ends))


ORDER = torch.tensor([8, 9, 2, 3])


def sides_swapped(table):
    return WrittenRows.microbatch(table, ORDER ^ 1)


def one_width(table):
    return WrittenRows.microbatch(table, torch.arange(len(table))).select(ORDER)


@holds_only_for(lambda table: table.microbatch(ORDER), sides_swapped=sides_swapped, one_width=one_width)
def test_written_pairs_are_batches_of_the_padded_table(batch):
    table, whole = written()
    got, wanted = batch(table), whole.microbatch(ORDER)
    for name in ("input_ids", "attention_mask", "response_mask", "group_ids"):
        assert got.__dict__[name].tolist() == wanted.__dict__[name].tolist(), name


def test_written_pairs_measure_and_hash_as_the_padded_table(monkeypatch):
    table, whole = written()
    assert torch.equal(table.lengths, whole.lengths) and torch.equal(table.prompt_lengths, whole.prompt_lengths)
    assert table.digest() == rows_digest(whole)
    monkeypatch.setattr("rl_lightning.data.offline.written_pairs._AT_A_TIME", 3)
    assert table.digest() == rows_digest(whole)
    whole.input_ids[3, -1] += 1
    assert table.digest() != rows_digest(whole)
    pairs, padded = (PairTable(rows, None, 9) for rows in written())
    assert torch.equal(pairs.tokens(), padded.tokens()) and pairs.mean_length == padded.mean_length


def test_a_references_log_probabilities_come_back_to_their_tokens():
    table, whole = written()
    logprobs = torch.where(whole.response_attention, torch.randn(whole.response_mask.shape), 0.0)
    passes = list(torch.tensor([2, 3, 0, 1, 8, 9, 6, 7, 4, 5]).split([4, 2, 4]))
    parts = {number: logprobs[rows, : int(whole.lengths[rows].max())] for number, rows in enumerate(passes)}
    table.ref_logprobs = table.joined(passes, parts)
    assert table.ref_logprobs.shape == (int(whole.lengths.sum()),)
    whole.ref_logprobs = logprobs
    for rows in (ORDER, torch.arange(len(table))):
        assert torch.equal(table.microbatch(rows).ref_logprobs, whole.microbatch(rows).ref_logprobs)
    assert not torch.equal(table.microbatch(ORDER).ref_logprobs, whole.microbatch(ORDER ^ 1).ref_logprobs)
