"""Environments beside GRPO: tools in a chat, tables that are kept, evaluation, and prompts that an environment brings."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from rl_lightning import DAPO, DPO, RFT, SFT, DemonstrationDataModule, RewardDataModule, RolloutDataModule
from rl_lightning.algorithms import OptimizerOptions
from rl_lightning.callbacks import DynamicSampling, OverlongShaping, PredictionWriter, RejectionSampling, SampleTable
from rl_lightning.data import ChainSum, EnvironmentExamples
from rl_lightning.errors import UserError
from rl_lightning.functional import overlong_penalty
from rl_lightning.generation import NativeGenerator, Sampling
from rl_lightning.generation.base import Generator, Responses
from tests.checks import cases
from tests.support import trainer
from tests.tokenizers import policy
from tests.unit.data.test_episodes import Keep, data, episodes, fit, grpo
from tests.unit.test_dialogue import TOOLS

CHAT = {"function": "tests.games.chat", "stop": [";"]}
SAMPLING = Sampling(max_new_tokens=24, max_turns=5, max_turn_tokens=4)


class Scripted(Generator):
    """Says what is written down for each turn, a text a response, spelt as no tokenizer would: one token a byte."""

    def __init__(self, turns: list):
        self.turns, self.asked = turns, []

    def update(self, model, files, version):
        self.tokenizer = files.tokenizer

    def generate(self, model, request, progress=None, finished=None):
        turn = len(self.asked)
        self.asked.append([prompt.input_ids for prompt in request.row_prompts])
        end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        texts = self.turns[turn][: len(request.streams)]
        rows = [torch.tensor([*self.tokenizer(text, add_special_tokens=False)["input_ids"], end]) for text in texts]
        ids = pad_sequence(rows, batch_first=True, padding_value=request.pad_id)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        return Responses(ids[:, :1], mask[:, :1], ids, mask, -mask.float(), torch.zeros(len(rows), dtype=torch.bool))


def test_tools_are_called_in_a_chat_and_rewards_judge_the_last_turn(tmp_path):
    where, tokenizer = policy("qwen-base", tmp_path / "policy", context=4096)
    (tmp_path / "tools.jinja").write_text(TOOLS["hermes"])
    call = '<tool_call>{"arguments":{"b":4,"a":3},  "name":"add"}</tool_call>'  # as the template would not write it
    generator = Scripted(
        turns=[
            [call, "7", '<tool_call>{"name": "add"', '<tool_call>{"name": "sub", "arguments": {}}</tool_call>'],
            ["7", "?"],
        ]
    )
    module = grpo(where)
    seen = fit(
        module,
        tmp_path,
        {"tools": ["tests.games.add"]},
        prompts=[{"prompt": "3+4=?", "answer": "7"}] * 2,
        prompt_options={"chat_template": str(tmp_path / "tools.jinja")},
        sampling={"max_new_tokens": 512, "max_turn_tokens": None},
        rewards="tests.games.sums",
        generator=generator,
        prompts_per_rollout=1,
    )
    (rollout,) = seen.rollouts
    assert "add" in rollout.prompts[0] and rollout.prompts[0].endswith("<|im_start|>assistant\n")
    assert rollout.turns.amax(1).tolist() == [2, 1, 1, 2]
    assert rollout.responses == ["7", "7", '<tool_call>{"name": "add"', "?"]
    assert rollout.rewards.tolist() == [1.0, 1.0, 0.0, 0.0] == rollout.reward_components["sums"].tolist()
    assert (
        rollout.reward_components["use_tools"].isnan().all() and "reward_inapplicable/use_tools" not in rollout.metrics
    )
    ids = rollout.response_ids[0][rollout.response_attention[0]].tolist()
    heard = "\n<|im_start|>user\n<tool_response>\n7\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == f"{call}<|im_end|>{heard}7<|im_end|>"
    assert "there is no tool 'sub'" in rollout.text(3)
    prompt = rollout.input_ids[0, : -rollout.response_length][
        rollout.attention_mask[0, : -rollout.response_length]
    ].tolist()
    assert generator.asked[1][0] == prompt + ids[:-2]  # what was sampled and said, not tokenised again


def test_an_environment_brings_its_prompts_and_their_seeds(tiny_policy, tmp_path):
    seen = fit(grpo(tiny_policy), tmp_path, "tests.games.Game", prompts=None)
    (rollout,) = seen.rollouts
    source = EnvironmentExamples("tests.games.Game", train_size=200, val_size=4)
    known = {example.prompt: example.metadata["seed"] for example in source.load("train")}
    assert set(rollout.prompts) <= set(known) and len(set(rollout.prompts)) > 1
    assert [example.metadata["seed"] for example in source.load("val")] == [2**28 + place for place in range(4)]
    for function, complaint in (
        ("tests.games.chat", "yields nothing first"),
        ("tests.games.yields_a_number", "with seed 0: .*it yielded 5"),
    ):
        with pytest.raises(UserError, match=complaint):
            EnvironmentExamples(function, train_size=2).load("train")


def test_dynamic_sampling_and_overlong_shaping_know_whole_episodes(tiny_policy, tmp_path):
    keep, trained = Keep(), DAPO(policy=tiny_policy, optimizer=OptimizerOptions(lr=1e-3))
    run = trainer(tmp_path, [DynamicSampling(max_chunks=2), OverlongShaping(cache_length=8), keep])
    run.fit(trained, datamodule=data("tests.games.counts"))
    (rollout,) = keep.rollouts
    assert rollout.turns is not None and rollout.turn_rewards.shape == rollout.turns.shape
    penalty = overlong_penalty(rollout.lengths, 24, 8)
    assert torch.allclose(rollout.rewards, rollout.raw_rewards + penalty)
    assert (rollout.lengths > rollout.policy_lengths).any()


@pytest.mark.parametrize("algorithm", cases([DPO, RFT], soon=lambda algorithm: algorithm is DPO))
def test_tables_are_made_of_episodes_and_follow_from_the_environment(algorithm, tiny_policy, tmp_path, monkeypatch):
    import tests.games

    def table(**more):
        module = algorithm(policy=tiny_policy, optimizer=OptimizerOptions(lr=1e-3))
        callbacks = [RejectionSampling(threshold=0.5)] if algorithm is RFT else []
        made = RewardDataModule(prompts=ChainSum(train_size=8, val_size=8), sampling=SAMPLING, environment=CHAT | more, group_size=4,
                                cache_dir=str(tmp_path / "cache"), batch_size=2, seed=1)  # fmt: skip
        trainer(tmp_path, callbacks, online=False, max_steps=1).fit(module, datamodule=made)
        return made.table.rows

    rows = table()
    assert rows.turns.amax() > 1 and torch.equal(rows.response_mask, rows.turns > 0)
    files = set((tmp_path / "cache").glob("responses-*"))
    table()
    assert set((tmp_path / "cache").glob("responses-*")) == files
    table(unfinished=-1.0)
    other = 'def chat(seed, turns=5):\n    yield\n    said = yield "+"\n    return 1.0\n'
    (tmp_path / "other.py").write_text(other)
    space: dict = {"__name__": "tests.games"}
    exec(compile(other, str(tmp_path / "other.py"), "exec"), space)
    monkeypatch.setattr(tests.games, "chat", space["chat"])
    table()
    assert len(set((tmp_path / "cache").glob("responses-*"))) == 3 * len(files)


def test_evaluation_does_not_depend_on_the_batch_and_predictions_have_all_turns(tiny_policy, tmp_path):
    found = []
    for size in (3, 8):
        run = trainer(tmp_path, [PredictionWriter(str(tmp_path / f"{size}.jsonl"))], limit_val_batches=1.0)
        whole = data(evaluation={"samples_per_prompt": 2, "prompts_per_batch": size})
        run.validate(grpo(tiny_policy), datamodule=whole, verbose=False)
        run.predict(
            grpo(tiny_policy),
            datamodule=data(evaluation={"samples_per_prompt": 2, "prompts_per_batch": size, "max_prompts": 6}),
        )
        lines = [json.loads(line) for line in (tmp_path / f"{size}.jsonl").read_text().splitlines()]
        found.append(({name: float(value) for name, value in run.callback_metrics.items()}, lines))
    assert found[0] == found[1]
    lines = found[0][1]
    assert len(lines) == 12 and max(len(line["turns"]) for line in lines) == 9
    assert all(line["response"] == line["turns"][-1]["content"] for line in lines)
    assert all(line["length"] >= len(line["turns"]) // 2 + 1 for line in lines)


def test_a_table_of_samples_shows_transcripts(tiny_policy, tmp_path):
    (rollout,) = fit(grpo(tiny_policy), tmp_path).rollouts
    table = SampleTable().samples(rollout)
    said = [row[table.columns.index("response")] for row in table.rows]
    assert all(text.startswith("assistant:") for text in said) and any("\nuser: +" in text for text in said)
    assert table.rows[0][table.columns.index("length")] == int(rollout.policy_lengths[0])


def test_a_policy_that_learns_from_demonstrations_is_measured_in_its_environment(tiny_policy, tmp_path):
    run = trainer(tmp_path, online=False, limit_val_batches=1.0)
    source = ChainSum(train_size=8, val_size=8)
    made = DemonstrationDataModule(prompts=source, sampling=SAMPLING, environment=CHAT, batch_size=4, seed=1,
                                   evaluation={"samples_per_prompt": 2})  # fmt: skip
    run.fit(SFT(policy=tiny_policy, optimizer=OptimizerOptions(lr=1e-3)), datamodule=made)
    assert float(run.callback_metrics["val/reward_mean"]) > 0


def test_what_the_generator_did_is_added_up_over_turns(tiny_policy, tmp_path):
    (rollout,) = fit(grpo(tiny_policy), tmp_path).rollouts
    assert rollout.metrics["work/steps"] > 4 and rollout.metrics["work/tokens"] == int(rollout.policy_attention.sum())


def ranked(where):
    """Train on this rank; return its episodes."""
    seen = fit(grpo(where["policy"]), where["folder"], trained={"devices": 2, "strategy": "ddp"}, minibatch_size=16)
    return episodes(seen)


def test_two_ranks_play_the_episodes_of_one(ranks, tiny_policy, tmp_path):
    alone = episodes(fit(grpo(tiny_policy), tmp_path))
    parts = ranks(ranked, {"policy": tiny_policy, "folder": str(tmp_path)})
    assert sorted(one for part in parts for one in part) == sorted(alone)


def test_a_rollout_needs_an_environment_for_caps_on_turns():
    with pytest.raises(UserError, match="expected"):
        RolloutDataModule(sampling={"max_turns": "many"})
    assert NativeGenerator().metrics() == {}
