"""Which rows an algorithm learns from: without an option where they say it, and refused in one line where it cannot."""

import logging
from collections import Counter

import pytest

from rl_lightning.algorithms import DPO, GRPO, RFT, SFT, RewardModel
from rl_lightning.callbacks import GroupNormalize, RejectionSampling
from rl_lightning.data import (
    ChainSum,
    DemonstrationDataModule,
    PairOptions,
    RewardDataModule,
    RolloutDataModule,
    TableExamples,
)
from rl_lightning.data.sampling import PromptOptions
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.options.parser import Parser
from tests.rewards_light import sum_of_digits
from tests.support import trainer

PAIRS = [{"prompt": f"{n}+1=", "chosen": f"{n + 1}", "rejected": f"{n}#"} for n in range(6)]
LABELLED = [{"prompt": f"{n}+1=", "completion": f"{n + 1}", "label": n % 2 == 0} for n in range(6)]
PROMPTS = [{"prompt": f"{n}+1="} for n in range(6)]
WRITTEN = [{"prompt": f"{n}+1=", "completion": f"{n + 1}"} for n in range(6)]
ANSWERED = "rl_lightning.rewards.functions.answer_correct"


def fit(kind, module, rows, directory, *callbacks, **options):
    data = kind(prompts=rows, seed=0, **options)
    online = kind is RolloutDataModule
    trainer(directory, list(callbacks), online=online, max_steps=1, limit_val_batches=1).fit(module, datamodule=data)
    return data


def test_pairs_in_the_rows_are_learnt_from_without_an_option(tiny_policy, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        data = fit(
            RewardDataModule, DPO(policy=tiny_policy), PAIRS, tmp_path, batch_size=4, group_size=3, pairs=PairOptions(2)
        )
    assert (data.origin, len(data.table)) == ("files", 6)
    assert "train data: preference pairs; 6 rows" in caplog.text
    assert "these options have no effect: pairs, group_size" in caplog.text
    assert "No validation: TableExamples has no validation data; `val: 0.02` holds a share out" in caplog.text


def test_a_reward_model_needs_no_reward_where_pairs_are_there(tiny_policy, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        data = fit(RewardDataModule, RewardModel(policy=tiny_policy), PAIRS, tmp_path, batch_size=4, rewards=[ANSWERED])
    assert data.rewarder is None
    assert "no effect: rewards" in caplog.text


def test_labels_are_the_rewards_of_written_responses(tiny_policy, tmp_path):
    data = fit(RewardDataModule, RFT(policy=tiny_policy), LABELLED, tmp_path, RejectionSampling(), batch_size=3)
    assert data.origin == "files"
    assert sorted(data.table.rows.prompts) == ["0+1=", "2+1=", "4+1="]
    assert data.table.rows.rewards.tolist() == [1.0] * 3


def test_rewards_that_are_listed_go_before_labels(tiny_policy, tmp_path):
    options = {"batch_size": 1, "rewards": [sum_of_digits]}
    data = fit(RewardDataModule, RFT(policy=tiny_policy), LABELLED, tmp_path, RejectionSampling(threshold=5), **options)
    assert data.table.rows.prompts == ["4+1=", "5+1="]


@pytest.mark.parametrize(
    ("kind", "make", "rows", "options", "message"),
    [
        (RolloutDataModule, GRPO, PAIRS, {"rewards": [sum_of_digits]}, "GRPO samples its own responses to prompts, and TableExamples holds preference pairs"),
        (RolloutDataModule, GRPO, [{"text": "1+1=2"}] * 3, {"rewards": [sum_of_digits]}, "holds texts to learn whole .* it needs prompts"),
        (RolloutDataModule, GRPO, PROMPTS, {"rewards": [ANSWERED]}, "no train example has a gold answer, and a reward compares with one"),
        (DemonstrationDataModule, SFT, PAIRS, {}, "SFT imitates written responses.*response_column: chosen"),
        (DemonstrationDataModule, SFT, PROMPTS, {}, "SFT imitates written responses.*it needs responses beside the prompts"),
        (DemonstrationDataModule, SFT, LABELLED, {}, "take RFT or LabelledKTO, or name them to imitate bad ones too"),
        (RewardDataModule, DPO, LABELLED, {"origin": "files"}, "DPO learns from pairs .* holds labelled responses .*: take LabelledKTO"),
        (RewardDataModule, DPO, WRITTEN, {}, "DPO learns from pairs .* holds demonstrations .* it needs pairs"),
        (RewardDataModule, DPO, PROMPTS, {"origin": "files"}, "DPO learns from pairs .* holds prompts"),
        (RewardDataModule, RFT, PAIRS, {}, "RFT learns from responses that are sampled to prompts, and .* holds preference pairs"),
    ],
)  # fmt: skip
def test_what_an_algorithm_cannot_learn_from_is_one_line(kind, make, rows, options, message, tiny_policy, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        fit(kind, make(policy=tiny_policy), rows, tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_pairs_whose_prompt_is_named_are_prompts(tiny_policy, tmp_path):
    source = TableExamples(PAIRS, prompt_column="prompt")
    options = {
        "rewards": [sum_of_digits],
        "prompts_per_rollout": 2,
        "group_size": 2,
        "sampling": Sampling(max_new_tokens=3),
    }
    assert fit(RolloutDataModule, GRPO(policy=tiny_policy), source, tmp_path, **options).train_prompts == 6


def test_what_was_dropped_is_said_with_what_was_understood(tiny_policy, tmp_path, caplog):
    rows = [*WRITTEN, {"prompt": "1+1=", "completion": None}, {"prompt": "1+1+1+1+1+1=", "completion": "6"}]
    options = {"batch_size": 2, "max_length": 10, "prompt_options": PromptOptions(on_bad="drop")}
    with caplog.at_level(logging.INFO):
        fit(DemonstrationDataModule, SFT(policy=tiny_policy), rows, tmp_path, **options)
    said = "train data: demonstrations; 8 rows, 2 dropped: 1 column 'completion' is null, 1 longer than max_length: 10"
    assert said in caplog.text


def test_null_on_the_command_line_is_null():
    parser = Parser()
    parser.add_subclass_arguments(RolloutDataModule, "data")
    given = ["--data=RolloutDataModule", "--data.prompts=FileExamples", "--data.prompts.train=[a.jsonl, b.jsonl]"]
    given += ["--data.prompts.answer_column=null", "--data.prompts.val=0.02"]
    options = parser.parse_args(given).data.init_args.prompts.init_args
    assert (options.answer_column, options.val, options.train) == (None, 0.02, ["a.jsonl", "b.jsonl"])


SUMS = [{"question": f"{n}+1=", "answer": f"{n} and 1 are {n + 1}.\n#### {n + 1}"} for n in range(6)]
FEW = {"prompts_per_rollout": 2, "group_size": 2, "sampling": Sampling(max_new_tokens=3)}


@pytest.mark.parametrize("listed", [None, "own", [{"function": "own", "arguments": {"wrong": -1.0}}]])
def test_rows_with_gold_answers_bring_the_reward(listed, tiny_policy, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        data = fit(RolloutDataModule, GRPO(policy=tiny_policy), SUMS, tmp_path, GroupNormalize(), rewards=listed, **FEW)
    (reward,) = data.rewarder.rewards
    assert (reward.name, reward.weight) == ("answer_correct", 1.0)
    assert "The rows hold gold answers, so the reward is whether a response gives them" in caplog.text


def test_the_reward_of_a_source_stands_in_a_list_of_others(tiny_policy, tmp_path):
    rewards = ["own", {"function": sum_of_digits, "weight": 0.5}]
    source = ChainSum(train_size=8, val_size=8, test_size=8)
    data = fit(RolloutDataModule, GRPO(policy=tiny_policy), source, tmp_path, GroupNormalize(), rewards=rewards, **FEW)
    assert [(one.name, one.weight) for one in data.rewarder.rewards] == [("final_answer", 1.0), ("sum_of_digits", 0.5)]


def test_a_reward_that_the_rows_do_not_bring_is_left_out_where_it_counts_for_nothing(tiny_policy, tmp_path):
    rewards = [{"function": "own", "weight": 0.0}, sum_of_digits]
    data = fit(RolloutDataModule, GRPO(policy=tiny_policy), PROMPTS, tmp_path, GroupNormalize(), rewards=rewards, **FEW)
    assert [one.name for one in data.rewarder.rewards] == ["sum_of_digits"]
    for rewards in (None, "own", ["own", sum_of_digits]):
        with pytest.raises(UserError, match=r"no reward of its own, and its rows hold no gold answers .*answer_column"):
            fit(RolloutDataModule, GRPO(policy=tiny_policy), PROMPTS, tmp_path, rewards=rewards, **FEW)


def test_imitation_asks_for_no_reward_though_rows_have_gold_answers(tiny_policy, tmp_path):
    data = fit(DemonstrationDataModule, SFT(policy=tiny_policy), SUMS, tmp_path, batch_size=2)
    assert data.rewarder is None


@pytest.mark.parametrize(("size", "microbatch", "taken"), [(64, None, 6), (64, 4, 4), (6, None, 6)])
def test_a_step_takes_what_there_is(size, microbatch, taken, tiny_policy, tmp_path, caplog):
    options = {"batch_size": size, "microbatch_size": microbatch}
    data = fit(DemonstrationDataModule, SFT(policy=tiny_policy), WRITTEN, tmp_path, **options)
    assert (data.batch_size, data.steps_per_epoch()) == (taken, 1)
    assert (f"batch_size is 64, and there are 6 demonstrations: a step takes {taken}" in caplog.text) == (size == 64)


class Asked(RolloutCallback):
    """Keeps the prompt and the responses of each group."""

    def on_rollout_end(self, trainer, module, rollout):
        width = rollout.input_ids.shape[1] - rollout.response_mask.shape[1]
        self.groups = [(rows[0, :width].tolist(), rows[:, width:].tolist()) for rows in rollout.input_ids.split(4)]


def test_a_rollout_may_answer_a_prompt_several_times(tiny_policy, tmp_path, caplog):
    asked, options = Asked(), {**FEW, "prompts_per_rollout": 16, "group_size": 4, "rewards": [sum_of_digits]}
    fit(RolloutDataModule, GRPO(policy=tiny_policy), PROMPTS, tmp_path, GroupNormalize(), asked, **options)
    assert "There are 6 training prompts, and a rollout answers 16" in caplog.text
    times = Counter(str(prompt) for prompt, _ in asked.groups)
    assert len(asked.groups) == 16 and sorted(times.values()) == [2, 2, 3, 3, 3, 3]
    answers = {str(responses) for _, responses in asked.groups}
    assert len(answers) > 12, "each time by draws of its own"
