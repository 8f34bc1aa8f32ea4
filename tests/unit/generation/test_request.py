"""What a generator is asked for."""

from dataclasses import replace

import pytest
import torch

from rl_lightning.algorithms import GRPO
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.errors import UserError
from rl_lightning.generation import Generator, Request, Responses, Sampling
from rl_lightning.hooks import RolloutCallback
from rl_lightning.padding import pad_left, pad_right
from rl_lightning.rewards import RewardSpec
from tests.support import Tokens, trainer

GROUP = 3


class Oracle(Generator):
    """Answers with the gold answer of each example.

    Args:
        tokenizer: of the policy.
        shift: answers each prompt with the answer to the one so many places further.
    """

    def __init__(self, tokenizer, shift):
        self.tokenizer = tokenizer
        self.shift = shift

    def generate(self, model, request, progress=None, finished=None):
        tokenizer, rows = self.tokenizer, request.row_prompts
        answering = rows[self.shift * request.group_size :] + rows[: self.shift * request.group_size]
        ids = [
            [*tokenizer(prompt.example.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            for prompt in answering
        ]
        prompt_ids, prompt_mask = pad_left([prompt.input_ids for prompt in rows], request.pad_id)
        response_ids, response_mask = pad_right(ids, request.pad_id)
        return Responses(
            prompt_ids, prompt_mask, response_ids, response_mask,
            logprobs=torch.zeros(response_ids.shape), truncated=torch.zeros(len(ids), dtype=torch.bool),
        )  # fmt: skip


class Watch(RolloutCallback):
    """Keeps the rewards of every rollout."""

    def __init__(self):
        self.rewards = []

    def on_rollout_end(self, trainer, module, rollout):
        self.rewards += rollout.raw_rewards.tolist()


def rewards(policy, tmp_path, shift):
    module, watch = GRPO(policy=policy, kl_coef=0.0), Watch()
    data = RolloutDataModule(
        prompts=ChainSum(train_size=8, val_size=4), prompts_per_rollout=4, group_size=GROUP,
        generator=Oracle(module.policy_files.tokenizer, shift), sampling=Sampling(max_new_tokens=8),
        rewards=[RewardSpec("rl_lightning.rewards.functions.answer_correct")], seed=5,
    )  # fmt: skip
    trainer(tmp_path, [watch]).fit(module, datamodule=data)
    return watch.rewards


def test_a_generator_of_ones_own_sees_the_examples(tiny_policy, tmp_path):
    found = rewards(tiny_policy, tmp_path, shift=0)
    assert found == [1.0] * len(found) and len(found) == 4 * GROUP
    assert rewards(tiny_policy, tmp_path, shift=1) != found, "any answer would do"


def asked(prompts=2, group_size=GROUP, streams=2 * GROUP):
    return Request(
        [Tokens([3] * (n + 1)) for n in range(prompts)], group_size, [(0, n) for n in range(streams)],
        Sampling(max_new_tokens=5), stop_ids=frozenset(), stop_strings=None, pad_id=0,
    )  # fmt: skip


def test_a_request_says_which_prompt_a_row_answers_and_how_long_rows_get():
    request = asked()
    assert request.row_prompts == [request.prompts[0]] * GROUP + [request.prompts[1]] * GROUP
    assert request.longest_row == 2 + 5 == request.widest_rows
    uneven = replace(request, caps=[5, 2])
    assert uneven.longest_row == 1 + 5 and uneven.widest_rows == 2 + 5


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"streams": 5}, "2 prompts × group_size=3 need 6 random streams, one a response, not 5"),
        ({"streams": 4, "group_size": 3}, "not 4"),
        ({"prompts": 0, "streams": 0}, "not 0 prompts and group_size=3"),
        ({"group_size": 0, "streams": 0}, "not 2 prompts and group_size=0"),
    ],
)
def test_a_request_whose_parts_do_not_fit_is_refused(sizes, said):
    with pytest.raises(UserError, match=said):
        asked(**sizes)
