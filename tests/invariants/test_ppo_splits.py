"""One gradient of policy and critic, however the optimizer batch is split into microbatches and ranks."""

import pytest
import torch

from rl_lightning.functional import gae, masked_whiten
from tests.checks import cases, gradient_difference
from tests.invariants.ppo_gradients import KINDS, make, scored_rollout, step_gradient

RELATIVE = [("float64", 1e-12), ("float32", 2e-6)]


def apart(gradients):
    """Return the gradients of the policy and of the critic: each must agree by itself, though one may be far larger."""
    return [{name: grad for name, grad in gradients.items() if name.startswith(part)} for part in ("policy", "critic")]


def largest_difference(actual, expected):
    """Return the larger of the relative differences of policy and critic; where one must not move, it must be exactly 0."""
    assert actual.keys() == expected.keys()
    differences = []
    for own, other in zip(apart(actual), apart(expected), strict=True):
        if all(float(grad.abs().max()) == 0 for grad in other.values()):
            differences.append(float(any(float(grad.abs().max()) for grad in own.values())))
        else:
            differences.append(gradient_difference(own, other))
    return max(differences)


def slow_objective(module, rollout, reduction, clip):
    """PPO and its value loss, response by response and token by token, each response alone and without padding."""
    rewards = torch.zeros_like(rollout.values)
    for i, length in enumerate(rollout.response_mask.sum(1).tolist()):
        for t in range(length):
            score = rollout.rewards[i] if t == length - 1 else 0.0
            rewards[i, t] = score - 0.3 * (rollout.old_logprobs[i, t] - rollout.ref_logprobs[i, t])
    advantages, returns = gae(rewards, rollout.values, rollout.response_mask, 1.0, 0.95)
    if module.whiten_advantages:
        advantages = masked_whiten(advantages, rollout.response_mask)
    responses = []
    for i in range(len(rollout)):
        if not rollout.response_mask[i].any():
            continue
        ids = rollout.input_ids[i][rollout.attention_mask[i]][None]
        length = int(rollout.lengths[i])
        output = module.policy(input_ids=ids, output_hidden_states=True)
        if module.reads_hidden:
            values = module.critic(output.hidden_states[-1])[0]
        else:
            critic = module.critic
            values = critic.head(critic.backbone(input_ids=ids).last_hidden_state)[0]
        tokens = []
        for t in range(length):
            position = ids.shape[1] - length + t
            logprob = output.logits[0, position - 1].log_softmax(-1)[ids[0, position]]
            ratio, advantage = (logprob - rollout.old_logprobs[i, t]).exp(), advantages[i, t]
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.7, 1.3) * advantage)
            value, old, target = values[position - 1], rollout.values[i, t], returns[i, t]
            loss = (value - target) ** 2 / 2
            if clip:
                loss = torch.maximum(loss, (old + (value - old).clamp(-clip, clip) - target) ** 2 / 2)
            tokens.append(surrogate - 0.5 * loss)
        responses.append(torch.stack(tokens))
    if reduction == "token_mean":
        return torch.cat(responses).mean()
    return torch.stack([tokens.mean() for tokens in responses]).mean()


@pytest.mark.parametrize("kind", ["own", "shared", "whitened"])
def test_the_gradient_is_that_of_a_slow_loop(kind, tiny_policy, tmp_path):
    module = make(tiny_policy, kind, "float64")
    (-slow_objective(module, scored_rollout("float64"), module.reduction, module.value_clip)).backward()
    expected = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    # transformers normalises in float32 somewhere, so sums in another order differ by more than float64 does.
    assert largest_difference(step_gradient(tiny_policy, tmp_path, kind, "float64"), expected) < 1e-6


@pytest.mark.parametrize(("of", "kind"), cases(RELATIVE, KINDS, soon=lambda dtype, kind: dtype == RELATIVE[0]))
def test_microbatches_do_not_change_the_gradient(of, kind, tiny_policy, tmp_path):
    dtype, relative = of
    whole = step_gradient(tiny_policy, tmp_path, kind, dtype)
    for part in apart(whole):
        moves = any(float(grad.abs().max()) > 1e-3 for grad in part.values())
        assert moves == ("warming up" not in kind or "critic" in next(iter(part)))
    split = step_gradient(tiny_policy, tmp_path, kind, dtype, 4)
    assert largest_difference(split, whole) < relative


@pytest.mark.slow
def test_microbatches_of_one_response(tiny_policy, tmp_path):
    whole = step_gradient(tiny_policy, tmp_path, "own", "float64")
    for size in (2, 1):
        assert largest_difference(step_gradient(tiny_policy, tmp_path, "own", "float64", size), whole) < 1e-12


def test_a_mean_of_microbatch_means_is_another_gradient_of_the_critic(tiny_policy, tmp_path, monkeypatch):
    """The value loss shares the weights of the objective; without them this file sees it."""
    from rl_lightning.algorithms.critic import CriticModule

    whole = step_gradient(tiny_policy, tmp_path, "own", "float64")
    exact = CriticModule.value_losses

    def unweighted(self, batch, outputs):
        loss, clipped = exact(self, batch, outputs)
        mean = loss[batch.response_mask].mean() if batch.response_mask.any() else 0
        return torch.where(batch.response_mask, mean / batch.weights.sum() / 4, 0), clipped

    monkeypatch.setattr(CriticModule, "value_losses", unweighted)
    split = step_gradient(tiny_policy, tmp_path, "own", "float64", 4)
    assert gradient_difference(apart(split)[0], apart(whole)[0]) < 1e-12
    assert gradient_difference(apart(split)[1], apart(whole)[1]) > 1e-3


@pytest.mark.parametrize("kind", cases(KINDS, soon=lambda kind: kind in ("whitened", "warming up")))
def test_two_ranks_have_the_gradient_of_one(kind, ranks, tiny_policy, tmp_path):
    """Two microbatches each: whitening sums over ranks, and a policy that does not learn stays in step."""
    one = step_gradient(tiny_policy, tmp_path, kind, "float64")
    for two in ranks(step_gradient, tiny_policy, tmp_path, kind, "float64", 4, devices=2, strategy="ddp"):
        assert largest_difference(two, one) < 1e-12
