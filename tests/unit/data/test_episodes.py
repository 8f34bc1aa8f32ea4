"""Episodes: rollouts of several turns in an environment, as the algorithms get them."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM

from rl_lightning import GRPO, PPO, RolloutDataModule
from rl_lightning.algorithms import OptimizerOptions
from rl_lightning.callbacks import RNGState
from rl_lightning.data import ChainSum
from rl_lightning.errors import UserError
from rl_lightning.generation import NativeGenerator, Sampling, TransformersGenerator
from rl_lightning.hooks import RolloutCallback
from tests.checks import assert_same
from tests.support import KeepGradients, trainer
from tests.tiny import CHARACTERS

PLUS, MINUS = 3 + CHARACTERS.index("+"), 3 + CHARACTERS.index("-")


class Keep(RolloutCallback):
    """Keeps rollouts, first microbatches and losses."""

    def __init__(self):
        self.rollouts, self.batches, self.losses = [], [], []

    def on_rollout_end(self, trainer, module, rollout):
        self.rollouts.append(rollout)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.batches.append(batch)
        self.losses.append(float(outputs["loss"]).hex())


def data(environment="tests.games.chat", **options):
    settings = {"function": environment, "stop": [";"]} if isinstance(environment, str) else environment
    sampling = Sampling(**{"max_new_tokens": 24, "max_turns": 5, "max_turn_tokens": 4} | options.pop("sampling", {}))
    sizes = {"prompts_per_rollout": 4, "group_size": 4, "seed": 1, "reward_limits": {"timeout_s": 20.0}}
    sizes["prompts"] = ChainSum(train_size=16, val_size=8)
    return RolloutDataModule(sampling=sampling, environment=settings, **sizes | options)


def grpo(policy, **options):
    return GRPO(policy=policy, kl_coef=0.0, optimizer=OptimizerOptions(lr=1e-2), **options)


def fit(module, folder, environment="tests.games.chat", callbacks=(), resume=None, trained=None, **options):
    """Train, and return what a `Keep` has seen."""
    seen = Keep()
    settings = {"online": not isinstance(module, PPO)} | (trained or {})
    run = trainer(folder, [RNGState(), seen, *callbacks], **settings)
    run.fit(module, datamodule=data(environment, **options), ckpt_path=resume, weights_only=resume is None or None)
    return seen


@pytest.fixture(scope="module")
def plain(tiny_policy, tmp_path_factory):
    """A rollout of the tiny policy, and what it was trained with."""
    return fit(grpo(tiny_policy), tmp_path_factory.mktemp("plain"))


def episodes(seen):
    """Return ids, turns and reward of every response."""
    return [
        (
            rollout.response_ids[row][rollout.response_attention[row]].tolist(),
            rollout.turns[row][rollout.response_attention[row]].tolist(),
            float(rollout.rewards[row]),
        )
        for rollout in seen.rollouts
        for row in range(len(rollout))
    ]


# ------------------------------------------------------------------------------------------------- what is whose


def test_the_environments_tokens_are_its_own_and_count_nowhere(plain):
    (rollout,), batch = plain.rollouts, plain.batches[0]
    heard = rollout.response_attention & (rollout.turns == 0)
    assert int(heard.sum()) > 20 and int(rollout.turns.max()) == 5
    assert set(rollout.response_ids[heard].tolist()) <= {PLUS, MINUS}
    assert torch.equal(rollout.response_mask, rollout.turns > 0)
    width = batch.response_length
    for table in (rollout.advantages, rollout.rollout_logprobs, rollout.turn_rewards):
        assert not table[heard].any()
    order = [
        int((batch.input_ids[row, -width:] == rollout.response_ids[:, :width]).all(1).nonzero()[0])
        for row in range(len(batch))
    ]
    assert not batch.weights[heard[order][:, :width]].any()
    assert rollout.metrics["rollout/turns_mean"] == rollout.turns.amax(1).float().mean().item()
    assert rollout.metrics["rollout/reply_tokens_mean"] == heard.sum(1).float().mean().item()
    assert rollout.metrics["rollout/length_mean"] == rollout.response_mask.sum(1).float().mean().item()
    assert rollout.metrics["reward/chat/length"] > 0  # what it measured of its turns


def test_every_weight_is_one_over_the_policys_own_tokens(plain):
    batch = plain.batches[0]
    own = batch.response_mask.sum(1, keepdim=True)
    assert_same(batch.weights, batch.response_mask / own / 16, relative=1e-6)


def test_rewards_stand_at_the_last_token_of_their_turn_and_add_up(plain):
    (rollout,) = plain.rollouts
    assert_same(rollout.turn_rewards.sum(1), rollout.rewards)
    assert_same(rollout.reward_components["chat"], rollout.rewards)
    places = rollout.turn_rewards.nonzero()
    assert len(places) > 30
    for row, column in places.tolist():
        turn = int(rollout.turns[row, column])
        assert turn and int((rollout.turns[row] == turn).nonzero()[-1]) == column


def test_the_response_is_the_last_turn_and_the_transcript_has_all(plain):
    (rollout,) = plain.rollouts
    for row, said in enumerate(rollout.transcripts):
        assert rollout.responses[row] == said[-1]["content"] and said[-1]["role"] == "assistant"
        mine = [one["content"] for one in said if one["role"] == "assistant"]
        assert len(mine) == int(rollout.turns[row].max()) and len(said) == 2 * len(mine) - 1
        assert rollout.text(row).count("\n") == len(said) - 1


# ------------------------------------------------------------------------------------------------- exact gradients


def test_the_gradient_is_that_of_each_turn_as_a_response_to_all_before_it(tiny_policy, tmp_path):
    module, grads, ratios = grpo(tiny_policy), KeepGradients(), []
    plain_ratio = module.ratio

    def ratio(batch, logprobs):
        value = plain_ratio(batch, logprobs)
        ratios.append((module.trainer.global_step, value.detach()[batch.response_mask]))
        return value

    module.ratio = ratio
    seen = fit(module, tmp_path, callbacks=[grads], trained={"precision": "64-true"}, epochs_per_rollout=2)
    (rollout,), batch = seen.rollouts, seen.batches[0]
    assert all((value == 1).all() for step, value in ratios if step == 0)
    assert all((value != 1).any() for step, value in ratios if step > 0)
    model = AutoModelForCausalLM.from_pretrained(tiny_policy, dtype=torch.float64).eval()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(rollout)):
        prompt = rollout.input_ids[row, : -rollout.response_length][
            rollout.attention_mask[row, : -rollout.response_length]
        ]
        for turn in range(1, int(rollout.turns[row].max()) + 1):
            columns = (rollout.turns[row] == turn).nonzero()[:, 0]
            context = torch.cat([prompt, rollout.response_ids[row, : columns[0]]])
            ids = rollout.response_ids[row, columns]
            logits = model(input_ids=torch.cat([context, ids])[None]).logits[0, len(context) - 1 : -1]
            logprobs = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
            total = total - (logprobs * batch.advantages[row, columns] * batch.weights[row, columns]).sum()
    total.backward()
    expected = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    largest = max(float(one.abs().max()) for one in expected.values())
    worst = max(float((grads.steps[0][name] - one).abs().max()) for name, one in expected.items())
    assert worst < 1e-12 * largest
    assert grads.steps[0]["lm_head.weight"].abs().max() > 1e-3  # the comparison above can fail


# --------------------------------------------------------------------------------------- the same whoever samples


@pytest.mark.parametrize("options", [
    {"reward_limits": {"timeout_s": 20.0, "workers": 2}},
    {"generator": NativeGenerator(max_rows=5)},
    pytest.param({"generator": TransformersGenerator(max_rows=6)}, marks=pytest.mark.slow),
], ids=["workers", "rows", "transformers"])  # fmt: skip
def test_episodes_are_the_same_on_other_workers_slots_and_generators(options, plain, tiny_policy, tmp_path):
    assert episodes(fit(grpo(tiny_policy), tmp_path, **options)) == episodes(plain)


def test_other_seeds_are_other_episodes(plain, tiny_policy, tmp_path):
    assert episodes(fit(grpo(tiny_policy), tmp_path, seed=2)) != episodes(plain)


def test_going_on_in_the_middle_of_a_rollout_is_the_same_run(tiny_policy, tmp_path):
    sizes = {"epochs_per_rollout": 2, "minibatch_size": 8}
    keep = ModelCheckpoint(str(tmp_path / "kept"), save_top_k=-1, filename="{step}", every_n_train_steps=1)
    whole = grpo(tiny_policy)
    trained = {"max_epochs": 2, "enable_checkpointing": True}
    seen = fit(whole, tmp_path, callbacks=[keep], trained=trained, **sizes)
    for step in (1, 4, 6):
        other = grpo(tiny_policy)
        again = fit(
            other, tmp_path, resume=str(tmp_path / f"kept/step={step}.ckpt"), trained={"max_epochs": 2}, **sizes
        )
        assert again.losses == seen.losses[step:]
        for name, value in whole.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    with pytest.raises(UserError, match="max_turns was 5 and is 4"):
        changed = {"sampling": {"max_turns": 4}}
        fit(grpo(tiny_policy), tmp_path, resume=str(tmp_path / "kept/step=1.ckpt"), **sizes | changed)


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("how", "kind"), [("raise", "raised"), pytest.param("hang", "timeout", marks=pytest.mark.slow), ("die", "died")]
)
def test_an_episode_that_fails_counts_nowhere_and_its_neighbours_are_played_again(
    how, kind, tiny_policy, tmp_path, caplog
):
    def run(flag, **more):
        spec = {"function": "tests.games.fails", "arguments": {"how": how, "flag": str(flag)}, "stop": [";"]} | more
        (rollout,) = fit(grpo(tiny_policy), tmp_path, spec, reward_limits={"timeout_s": 2.0}).rollouts
        return rollout

    whole = run(__file__)  # the file exists: nothing fails
    broken = run(tmp_path / "flag")
    (row,) = broken.rewards.isnan().nonzero()[:, 0].tolist()
    assert not broken.response_mask[row].any() and not broken.advantages[row].any()
    assert int(broken.turns[row].max()) == 2
    assert broken.metrics[f"environment_failures/{kind}"] == 1
    assert "After the policy had said" in caplog.text
    others = [other for other in range(16) if other != row]
    width = whole.response_length
    assert torch.equal(broken.response_ids[others, :width], whole.response_ids[others])
    assert torch.equal(broken.rewards[others], whole.rewards[others])
    if how == "raise":
        (tmp_path / "flag").unlink()
        worth = run(tmp_path / "flag", failed=-1.0)
        assert worth.response_mask[row].any() and float(worth.rewards[row]) < -0.5
        assert worth.metrics["environment_failures/raised"] == 1


def test_episodes_that_run_out_are_closed_and_worth_what_is_set(tiny_policy, tmp_path):
    spec = {"function": "tests.games.closes", "arguments": {"log": str(tmp_path / "log")}, "unfinished": -0.25}
    for sampling in ({"max_turns": 2}, {"max_turns": None, "max_new_tokens": 20}):
        (tmp_path / "log").write_text("")
        (rollout,) = fit(grpo(tiny_policy), tmp_path, spec, sampling=sampling).rollouts
        assert rollout.truncated.all()
        assert len((tmp_path / "log").read_text().splitlines()) == 17  # one was tried out beforehand
        turns = rollout.turns.amax(1)
        assert_same(rollout.rewards, 0.5 * turns - 0.25)
        ends = rollout.lengths - 1  # a reply that does not fit is dropped: the last token is the policy's
        assert (rollout.turns[torch.arange(16), ends] == turns).all()
    # Some had room for a part of the reply, and did not get it.
    assert set(rollout.lengths.tolist()) - {20}


# ------------------------------------------------------------------------------------------------------- algorithms


def test_ppo_credits_each_turn_and_adds_what_else_there_is_at_the_end(tiny_policy, tmp_path):
    class Shaped(RolloutCallback):
        def on_rollout_rewards(self, trainer, module, rollout):
            rollout.rewards = rollout.rewards + 0.5

    module = PPO(policy=tiny_policy, kl_coef=0.0, gae_lambda=1.0, optimizer=OptimizerOptions(lr=1e-3))
    (rollout,) = fit(module, tmp_path, {"function": "tests.games.chat", "weight": 2.0}, [Shaped()]).rollouts
    given = rollout.turn_rewards.clone()
    given[torch.arange(16), rollout.lengths - 1] += 0.5
    assert_same(rollout.turn_rewards.sum(1), 2 * rollout.reward_components["chat"])
    to_go = given.flip(1).cumsum(1).flip(1)
    assert_same(rollout.returns[rollout.response_mask], to_go[rollout.response_mask])
    assert not rollout.returns[~rollout.response_mask].any()
    assert len({round(float(one), 4) for one in rollout.returns[0][rollout.response_mask[0]]}) > 3


def test_gae_crosses_what_was_said_to_the_policy_without_decay():
    from rl_lightning.functional import gae

    mask = torch.tensor([[True, True, False, False, True, True]])
    rewards, values = torch.rand(1, 6, dtype=torch.float64), torch.rand(1, 6, dtype=torch.float64)
    advantages, returns = gae(rewards, values, mask, 0.9, 0.7)
    kept = mask[0].nonzero()[:, 0].tolist()
    expected, after, following = {}, 0.0, 0.0
    for column in reversed(kept):
        value, reward = float(values[0, column]), float(rewards[0, column])
        after = reward + 0.9 * following - value + 0.9 * 0.7 * after
        expected[column], following = after, value
    assert_same(advantages[0, kept], [expected[column] for column in kept])
    assert not returns[0, 2:4].any()


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"function": "tests.games.yields_a_number"}, "it yielded 5: yield a text, a message"),
        ({"function": "tests.games.no_generator"}, "is no generator function"),
        ({"function": "tests.games.returns_a_text"}, "it returned 'won', not a finite number"),
        ({"function": "tests.games.never_hears"}, "before its first `yield`, so it never heard the policy"),
        ({"function": "tests.games.nowhere"}, "tests.games has no 'nowhere'"),
        ({"function": "tests.games.fails"}, "needs 'how', 'flag'"),
        ({"function": "tests.games.chat", "arguments": {"turn": 3}}, "no argument 'turn': did you mean 'turns'"),
        ({"function": "tests.games.chat", "stop": ["12"]}, "'12' is 2 tokens of this tokenizer, and must be one"),
        ({"function": "tests.games.chat", "stop": ["x"]}, "must be one that it knows"),
        ({"tools": ["tests.games.unhinted"]}, "Argument a is missing a type hint"),
        ({"tools": ["tests.games.add"]}, "environment.tools need a chat template"),
        ({}, "give its function"),
        ({"function": "tests.games.chat", "role": 3}, "environment.role cannot be 3"),
        ({"function": "tests.games.chat", "stop": ";"}, "environment.stop cannot be ';'"),
        ({"funktion": "tests.games.chat"}, "no option 'funktion'"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_sampled(environment, complaint, tiny_policy, tmp_path):
    with pytest.raises(UserError) as caught:
        fit(grpo(tiny_policy), tmp_path, environment, rewards="tests.games.sums")
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sampling", "environment", "complaint"),
    [
        ({"max_turn_tokens": 25}, "tests.games.chat", "max_turn_tokens=25 caps a turn of a response"),
        ({"max_turns": 0}, "tests.games.chat", "max_turns must be at least 1"),
        ({}, None, "sampling.max_turns is of an environment, and there is none"),
    ],
)
def test_caps_that_mean_nothing_are_refused(sampling, environment, complaint, tiny_policy, tmp_path):
    with pytest.raises(UserError, match=complaint):
        fit(grpo(tiny_policy), tmp_path, environment, sampling=sampling)
