"""What holds when groups are dropped: which are trained on, with which policy, on how many ranks, and after a resume."""

import itertools

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rl_lightning.algorithms import DAPO
from rl_lightning.callbacks import DynamicSampling, RolloutCallback
from tests.checks import cases
from tests.invariants.dynamic import SCENARIOS, FirstOfChunk, KeepAll, Never, run, same


def groups_of(rollout):
    """Return (prompt, responses, correct, rewards) of every group of a rollout, in the order in which they were sampled."""
    groups = []
    for group in rollout.group_ids.unique():
        rows = (rollout.group_ids == group).nonzero()[:, 0].tolist()
        texts, right = [rollout.responses[row] for row in rows], int(rollout.correct[rows].sum())
        groups.append((int(rollout.prompt_index[rows[0]]), texts, right, rollout.raw_rewards[rows].tolist()))
    return groups


@pytest.fixture(scope="module")
def sampled(tiny_policy, tmp_path_factory):
    """Every group that an unchanging policy samples, in the order of the prompts over the run."""
    watch = run(tiny_policy, tmp_path_factory.mktemp("stream"), lr=0.0, max_epochs=8)
    return [group for rollout in watch.rollouts for group in groups_of(rollout)]


def expected_rollouts(sampled, chunk, surplus):
    """Return, rollout by rollout, the groups that are trained on, and how many were sampled for it."""
    rollouts, waiting, cursor = [], [], 0
    for _ in range(3):
        first = cursor
        while len(waiting) < 8:
            waiting += [group for group in sampled[cursor : cursor + chunk] if 0 < group[2] < 4]
            cursor += chunk
        rollouts.append((waiting[:8], sampled[first:cursor], len(waiting) - 8 if surplus == "keep" else 0))
        waiting = waiting[8:] if surplus == "keep" else []
    return rollouts


# ---------------------------------------------------------------------------------------------- which groups are trained on


@pytest.mark.parametrize(
    ("chunk", "surplus"),
    cases([None, 2, 12], ["keep", "drop"], soon=lambda chunk, surplus: chunk == 12),
)
def test_rollouts_are_the_mixed_groups_of_the_stream_in_its_order(chunk, surplus, sampled, tiny_policy, tmp_path):
    """And their metrics are over everything that was sampled."""
    assert {0, 1, 2, 3, 4} == {group[2] for group in sampled}
    dropping = DynamicSampling(max_chunks=32, prompts_per_chunk=chunk, surplus=surplus)
    watch = run(tiny_policy, tmp_path, dropping, lr=0.0)
    size = chunk or 8
    for rollout, (trained, seen, waiting) in zip(
        watch.rollouts, expected_rollouts(sampled, size, surplus), strict=True
    ):
        assert sorted(groups_of(rollout)) == sorted(trained)
        metrics = rollout.metrics
        assert metrics["rollout/surplus"] == waiting
        assert metrics["rollout/chunks"] == len(seen) / size
        mixed = sum(0 < group[2] < 4 for group in seen)
        assert metrics["rollout/kept_fraction"] == pytest.approx(mixed / len(seen))
        assert metrics["rollout/all_right_fraction"] == pytest.approx(sum(g[2] == 4 for g in seen) / len(seen))
        assert metrics["rollout/all_wrong_fraction"] == pytest.approx(sum(g[2] == 0 for g in seen) / len(seen))
        assert metrics["rollout/correct_fraction"] == pytest.approx(sum(g[2] for g in seen) / len(seen) / 4)
        rewards = torch.tensor([g[3] for g in seen])
        assert metrics["rollout/reward_mean"] == pytest.approx(float(rewards.mean()))
        assert metrics["rollout/reward_std"] == pytest.approx(float(rewards.std()), rel=1e-5)


def test_a_rollout_that_the_surplus_fills_samples_nothing(tiny_policy, tmp_path):
    watch = run(tiny_policy, tmp_path, KeepAll(prompts_per_chunk=16), lr=0.0)
    first, second, third = watch.rollouts
    assert [r.metrics["rollout/chunks"] for r in watch.rollouts] == [1, 0, 1]
    assert [r.metrics["rollout/stale_fraction"] for r in watch.rollouts] == [0, 1, 0]
    assert "rollout/reward_mean" in first.metrics and "rollout/reward_mean" not in second.metrics
    prompts = [set(rollout.prompt_index.tolist()) for rollout in (first, second, third)]
    assert len(set.union(*prompts)) == 24


class Silent(RolloutCallback):
    """Has a say in what is kept, and says nothing."""

    def keep_groups(self, trainer, module, rollout):
        return None


@pytest.mark.parametrize("dropping", cases([KeepAll, Silent], soon=lambda dropping: dropping is KeepAll))
def test_where_nothing_is_dropped_the_run_is_the_same_to_the_last_bit(dropping, tiny_policy, tmp_path):
    plain, kept = (run(tiny_policy, tmp_path, given, max_epochs=2) for given in (None, dropping()))
    assert plain.steps == kept.steps and same(plain.after[-1], kept.after[-1])
    for one, other in zip(plain.rollouts, kept.rollouts, strict=True):
        assert torch.equal(one.group_ids, other.group_ids) and one.responses == other.responses
        for name in set(one.metrics) - {name for name in one.metrics if name.startswith("time/")}:
            assert other.metrics[name] == pytest.approx(one.metrics[name], rel=1e-6), name
    assert run(tiny_policy, tmp_path, DynamicSampling(), max_epochs=2).steps != plain.steps


class Even(RolloutCallback):
    """Keeps the groups with even numbers."""

    def keep_groups(self, trainer, module, rollout):
        return rollout.group_ids % 2 == 0


def test_a_group_is_kept_if_every_callback_keeps_it(sampled, tiny_policy, tmp_path):
    both = [g for place, g in enumerate(sampled) if place % 2 == 0 and 0 < g[2] < 4]
    for order in ([Even(), DynamicSampling()], [DynamicSampling(), Even()]):
        watch = run(tiny_policy, tmp_path, order, lr=0.0, max_epochs=1)
        assert sorted(groups_of(watch.rollouts[0])) == sorted(both[:8])


# -------------------------------------------------------------------------------------------------- groups that have waited


def logprobs_under(weights, policy, rollout):
    module = DAPO(policy=policy)
    module.configure_model()
    with torch.no_grad():
        for parameter, value in zip(module.policy.parameters(), weights, strict=True):
            parameter.copy_(value)
        return module.logprobs(rollout.microbatch(torch.arange(len(rollout))))


@pytest.mark.parametrize("minibatch", [16, 32])
def test_the_ratio_of_a_group_that_waited_is_to_the_policy_that_sampled_it(minibatch, tiny_policy, tmp_path):
    """Also where the rollout serves a single update and fresh groups would need no old log-probabilities."""
    dropping = DynamicSampling(prompts_per_chunk=12)
    watch = run(tiny_policy, tmp_path, dropping, sizes={"minibatch_size": minibatch}, max_epochs=2)
    assert (watch.rollouts[0].old_logprobs is None) == (minibatch == 32)
    rollout = watch.rollouts[1]
    stale = rollout.sampled_in == 0
    assert 0 < int(stale.sum()) < len(rollout)
    assert rollout.metrics["rollout/stale_fraction"] == float(stale.float().mean())
    earlier, present = (logprobs_under(weights, tiny_policy, rollout) for weights in watch.before)
    difference = (rollout.old_logprobs - torch.where(stale[:, None], earlier, present))[rollout.response_attention]
    assert float(difference.abs().max()) < 1e-5
    assert float((earlier - present)[stale].abs().max()) > 1e-2, "the policies do not differ here"
    per_rollout = len(watch.batches) // 2
    first = torch.cat(watch.ratios[per_rollout : per_rollout + minibatch // 8])
    rows = rollout.response_mask[:minibatch]
    waited = stale[:minibatch, None].expand_as(rows)[rows]
    assert bool((first[~waited] == 1).all()) and float((first[waited] - 1).abs().max()) > 1e-2


# --------------------------------------------------------------------------------------------------------------- exhaustion


def rollouts_said(caplog):
    return [r.message for r in caplog.records if "cannot be filled" in r.message]


class MomentumMoves(DAPO):
    def training_step(self, batch, batch_idx):
        batch.idle = False
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("then", "clip"),
    cases(["smaller", "skip"], [None, 1.0], soon=lambda then, clip: then == "smaller" and clip == 1.0),
)
def test_a_rollout_without_groups_moves_nothing(then, clip, tiny_policy, tmp_path, caplog):
    """Adam has momentum from the first rollout, and weights decay; two microbatches a step."""
    settings = {"max_chunks": 3, "on_exhaustion": then}
    watch = run(tiny_policy, tmp_path, Never(1, **settings), gradient_clip_val=clip)
    assert len(watch.after) == 6 and not same(watch.before[0], watch.after[1])
    assert all(same(watch.after[1], later) for later in watch.after[2:])
    assert [batch.idle for batch in watch.batches] == [False] * 4 + [True] * 8
    assert len(rollouts_said(caplog)) == 2
    assert "rollout 2 cannot be filled: of 24 prompts in 3 chunk(s)" in rollouts_said(caplog)[0]
    assert all(value == value for logged in watch.logged for value in logged.values()), "something logged is NaN"
    moved = run(tiny_policy, tmp_path, Never(1, **settings), algorithm=MomentumMoves)
    assert not same(moved.after[1], moved.after[-1])


def test_a_smaller_rollout_is_spread_over_the_steps(tiny_policy, tmp_path, caplog):
    """Three groups, four steps of two groups, twice through: three steps of each pass learn, with all of their weight."""
    sizes = {"minibatch_size": 8, "microbatch_size": 4, "epochs_per_rollout": 2}
    watch = run(tiny_policy, tmp_path, FirstOfChunk(max_chunks=3), sizes=sizes, max_epochs=1)
    assert "3 groups were kept: training on 3 of 8 groups" in rollouts_said(caplog)[0]
    (rollout,) = watch.rollouts
    assert len(rollout) == 32 and int(rollout.response_mask.any(1).sum()) == 12
    assert not rollout.advantages[~rollout.response_mask.any(1)].any()
    steps = [watch.batches[first : first + 2] for first in range(0, 16, 2)]
    totals = [float(sum(batch.weights.sum() for batch in step)) for step in steps]
    for half in (totals[:4], totals[4:]):
        assert sorted(half) == pytest.approx([0.0, 1.0, 1.0, 1.0])
    assert [step[0].idle for step in steps] == [total == 0 for total in totals]
    states = [watch.before[0], *watch.after]
    assert [same(*pair) for pair in itertools.pairwise(states)] == [total == 0 for total in totals]


def test_a_skipped_rollout_trains_on_none_of_its_groups(tiny_policy, tmp_path, caplog):
    watch = run(tiny_policy, tmp_path, FirstOfChunk(max_chunks=3, on_exhaustion="skip"), max_epochs=2)
    assert all(same(watch.before[0], after) for after in watch.after)
    assert rollouts_said(caplog)[0].endswith("3 groups were kept: skipping the rollout")
    assert [rollout.metrics["rollout/surplus"] for rollout in watch.rollouts] == [0, 0]


def test_a_run_can_end_when_there_is_nothing_left_to_learn(tiny_policy, tmp_path, caplog):
    watch = run(tiny_policy, tmp_path, Never(1, max_chunks=2, on_exhaustion="stop"), max_epochs=9)
    assert len(watch.rollouts) == 2 and all(same(watch.after[1], after) for after in watch.after[2:])
    assert len(rollouts_said(caplog)) == 1 and rollouts_said(caplog)[0].endswith("stopping the run")


@pytest.mark.parametrize(("threshold", "right", "wrong"), [(-1.0, 24, 0), (99.0, 0, 24)])
def test_prompts_all_solved_or_all_failed_are_reported(threshold, right, wrong, tiny_policy, tmp_path, caplog):
    """And every prompt is tried once a rollout, however many chunks there may be."""
    dropping = DynamicSampling(max_chunks=1000)
    watch = run(tiny_policy, tmp_path, dropping, threshold=threshold, prompts=24, max_epochs=2)
    assert all(same(watch.before[0], after) for after in watch.after)
    assert rollouts_said(caplog) == [
        f"rollout {number} cannot be filled: of 24 prompts in 3 chunk(s) the samples of {right} were all right and of {wrong} all "
        "wrong, 0 groups were kept: training on 0 of 8 groups"
        for number in (1, 2)
    ]


# ------------------------------------------------------------------------------------------------------------ resume, ranks


PLACES = [("epochs", 4), ("steps", 5), ("steps", 1), ("epochs", 2), ("steps", 2)]


LONG = {"max_epochs": 4}


@pytest.fixture(scope="module")
def whole(tiny_policy, tmp_path_factory):
    """A run that nobody has stopped, and the directory of its checkpoints."""
    place = tmp_path_factory.mktemp("whole")
    every = {"steps": {"every_n_train_steps": 1}, "epochs": {"every_n_epochs": 1, "save_on_train_epoch_end": True}}
    keep = [ModelCheckpoint(place / by, save_top_k=-1, filename="{step}", **cadence) for by, cadence in every.items()]
    return run(
        tiny_policy, place, DynamicSampling(prompts_per_chunk=12), callbacks=keep, enable_checkpointing=True, **LONG
    ), place


@pytest.mark.parametrize(
    ("by", "stop"), [pytest.param(*one, marks=pytest.mark.slow) if one != ("steps", 5) else one for one in PLACES]
)
def test_resumed_is_uninterrupted(by, stop, whole, tiny_policy, tmp_path):
    """From the end and the middle of rollouts, with groups waiting and the cursor where no rollout number says."""
    whole, kept = whole
    assert all(rollout.metrics["rollout/surplus"] for rollout in whole.rollouts[:2])
    assert sum(rollout.metrics["rollout/chunks"] for rollout in whole.rollouts) != 4
    torch.manual_seed(12345)
    checkpoint = kept / by / f"step={stop}.ckpt"
    resumed = run(tiny_policy, tmp_path, DynamicSampling(prompts_per_chunk=12), ckpt_path=checkpoint, **LONG)
    assert resumed.steps == whole.steps[2 * stop :]
    assert same(resumed.after[-1], whole.after[-1])


@pytest.mark.parametrize("lost", cases(["cursor", "surplus"], soon=lambda lost: lost == "surplus"))
def test_a_checkpoint_without_cursor_or_surplus_would_go_on_elsewhere(lost, whole, tiny_policy, tmp_path):
    """The comparison above can fail."""
    whole, kept = whole
    checkpoint = torch.load(kept / "steps" / "step=2.ckpt", weights_only=True)
    (state,) = [value for name, value in checkpoint.items() if name.startswith("RolloutDataModule")]
    state["supply"][lost] = {"cursor": 8, "surplus": None}[lost]
    path = tmp_path / "lost.ckpt"
    torch.save(checkpoint, path)
    resumed = run(tiny_policy, tmp_path, DynamicSampling(prompts_per_chunk=12), ckpt_path=path, **LONG)
    assert len(resumed.steps) == len(whole.steps[4:]) and resumed.steps != whole.steps[4:]


def seen_of(name, policy, directory, **options):
    """Return what the run of a scenario was made of on this rank, and the weights at its end."""
    watch = run(policy, directory, dtype="float64", **options, **SCENARIOS[name]())
    return {
        "prompts": [rollout.prompt_index.tolist() for rollout in watch.rollouts],
        "counted": [rollout.response_mask.any(1).tolist() for rollout in watch.rollouts],
        "metrics": [rollout.metrics for rollout in watch.rollouts],
        "batches": len(watch.batches),
        "weights": watch.after[-1],
    }


@pytest.mark.parametrize("name", cases(SCENARIOS, soon=lambda name: name == "smaller"))
def test_two_ranks_train_on_what_one_trains_on(name, ranks, tiny_policy, tmp_path):
    """Their shares of a chunk keep different numbers of groups; also when a rollout cannot be filled."""
    one = run(tiny_policy, tmp_path, dtype="float64", **SCENARIOS[name]())
    two = ranks(seen_of, name, tiny_policy, tmp_path, devices=2, strategy="ddp")
    assert two[0]["batches"] == two[1]["batches"] == len(one.batches) // 2
    uneven = False
    for number, rollout in enumerate(one.rollouts):
        counted = [
            [p for p, counts in zip(rank["prompts"][number], rank["counted"][number], strict=True) if counts]
            for rank in two
        ]
        assert len(two[0]["prompts"][number]) == len(two[1]["prompts"][number]) == 16
        assert sorted(counted[0] + counted[1]) == sorted(rollout.prompt_index[rollout.response_mask.any(1)].tolist())
        uneven |= len(counted[0]) != len(counted[1])
        for metric in ("rollout/kept_fraction", "rollout/chunks", "rollout/surplus", "rollout/stale_fraction"):
            assert two[0]["metrics"][number][metric] == two[1]["metrics"][number][metric]
            assert two[0]["metrics"][number][metric] == rollout.metrics[metric], metric
    assert uneven or name != "smaller"
    for mine, theirs in zip(one.after[-1], two[0]["weights"], strict=True):
        assert float((mine - theirs).abs().max()) < 1e-9
    assert same(two[0]["weights"], two[1]["weights"])
    assert same(one.before[0], one.after[-1]) == (name == "skip")
