"""What generators with a copy of the policy share, and what they refuse before there is an engine."""

import sys

import pytest

from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling, VLLMGenerator
from rl_lightning.generation.copies import Answer, assembled, check_answer, seeds
from rl_lightning.generation.export import main as export
from rl_lightning.generation.snapshots import Snapshots, together
from rl_lightning.models import PolicyFiles
from tests.checks import holds_only_for
from tests.support import request_for


def one_seed_for_all(streams):
    return [5 for _ in streams]


def number_alone(streams):
    return [number for _, number in streams]


def by_position(streams):
    return seeds([(0, position) for position, _ in enumerate(streams)])


@holds_only_for(seeds, one_seed_for_all=one_seed_for_all, number_alone=number_alone, by_position=by_position)
def test_seeds_are_a_function_of_the_stream_and_fit_64_bits(implementation):
    streams = [(0, 0), (0, 1), (1, 0), (-1, 0), (2**40, 2**50)]
    found = implementation(streams)
    assert len(set(found)) == 5 and all(0 <= seed < 2**63 for seed in found)
    assert implementation(streams[::-1]) == found[::-1]


def test_answers_become_the_same_tensors_as_a_hand_writes():
    answers = [Answer([7, 8, 1], [-0.5, -1.0, -2.0]), Answer([9], [-3.0])]
    asked = request_for([[3, 4], [5]], [(0, 0), (0, 1)], Sampling(3), frozenset({1}))
    responses = assembled(answers, asked)
    assert responses.prompt_ids.tolist() == [[3, 4], [0, 5]]
    assert responses.prompt_mask.tolist() == [[True, True], [False, True]]
    assert responses.response_ids.tolist() == [[7, 8, 1], [9, 0, 0]]
    assert responses.response_mask.tolist() == [[True] * 3, [True, False, False]]
    assert responses.logprobs.tolist() == [[-0.5, -1.0, -2.0], [-3.0, 0.0, 0.0]]
    assert responses.truncated.tolist() == [False, True]
    check_answer(answers[0], asked, 3)


def test_what_an_engine_did_not_say_is_not_a_number():
    answers = [Answer([7, 8, 1], [-0.5, None, float("nan")]), Answer([9, 1], [None, -3.0])]
    asked = request_for([[3], [5]], [(0, 0), (0, 1)], Sampling(3), frozenset({1}))
    for answer in answers:
        check_answer(answer, asked, 3)
    logprobs = assembled(answers, asked).logprobs
    assert logprobs.nan_to_num(9.0).tolist() == [[-0.5, 9.0, 9.0], [9.0, -3.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kv_cache_gib": 0.0}, "kv_cache_gib"),
        ({"max_rows": 0}, "max_rows"),
        ({"engine": {"logprobs_mode": "raw_logprobs"}}, "logprobs_mode is not to be set there"),
        ({"engine": {"model": "another"}}, "model is not to be set there"),
    ],
)
def test_impossible_settings_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        VLLMGenerator(**options)


def test_without_vllm_it_says_what_to_install(tiny_policy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    files = PolicyFiles(tiny_policy)
    generator = VLLMGenerator(directory=str(tmp_path))
    with pytest.raises(UserError, match=r"pip install 'rl_lightning\[vllm\]'") as error:
        generator.update(files.load(), files, 0)
    assert "\n" not in str(error.value)
    generator.close()
    assert not any(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_named(tiny_policy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"generator\.directory .*file"):
        Snapshots(str(tmp_path / "file"), shared=True).write(PolicyFiles(tiny_policy).load())


def test_what_one_rank_refuses_all_do():
    def refuse():
        raise UserError("no")

    assert together(lambda: 3) == [3]
    with pytest.raises(UserError, match="no"):
        together(refuse)


def test_export_of_what_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        export([str(tmp_path / "nothing"), str(tmp_path / "out")])
    assert stopped.value.code == 2 and "there is no directory" in capsys.readouterr().err
