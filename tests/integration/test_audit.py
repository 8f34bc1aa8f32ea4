"""An audit of the embedded policy's rewards, from Python and from the command line."""

import pytest
import torch

from rl_lightning import GRPO, RewardModel, RolloutDataModule, Trainer
from rl_lightning.audit import TRAINED
from rl_lightning.callbacks import OverlongShaping, PredictionWriter
from rl_lightning.cli import run
from rl_lightning.data import FileExamples
from rl_lightning.errors import UserError
from rl_lightning.generation import NativeGenerator
from tests.rewards_of_audits import is_right, right_and_short, short

SIZES = {"prompts": 8, "answers": 8, "best_of": (1, 4)}


def rewards(*trained):
    return [{"function": is_right, "weight": 0}, *({"function": one, "weight": 1.0} for one in trained)]


def quiet(directory, **options):
    return Trainer(
        default_root_dir=directory, enable_progress_bar=False, logger=False, enable_checkpointing=False, **options
    )


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """An audit of several rewards and their sum, with the state that it leaves behind."""
    directory = tmp_path_factory.mktemp("audit")
    writer = PredictionWriter(str(directory / "predictions.jsonl"))
    trainer = quiet(directory, callbacks=[writer, OverlongShaping(cache_length=8)])
    data = RolloutDataModule(rewards=rewards(short, right_and_short), sampling={"max_new_tokens": 24})
    before = data.evaluation
    found = trainer.audit(GRPO(policy="embedded"), data, picture=str(directory / "picture.png"), **SIZES)
    return {
        "found": {one.reward: one for one in found},
        "trainer": trainer,
        "data": data,
        "before": before,
        "directory": directory,
    }


def test_every_reward_and_what_is_trained_on_are_judged(audited):
    found = audited["found"]
    assert list(found) == ["is_right", "short", "right_and_short", TRAINED]
    assert [name for name, one in found.items() if one.trained] == [TRAINED]
    assert found["short"].with_length < -0.9
    assert found["is_right"].best_of[4][0] > found["is_right"].best_of[1][0]
    assert found["right_and_short"].best_of[4] == pytest.approx(found["is_right"].best_of[4], abs=1e-6)
    assert found["short"].best_of[1] == pytest.approx(found["is_right"].best_of[1])


def test_callbacks_shape_the_trained_reward(audited):
    """The sum alone ranks as `short` nearly does; the penalty of responses near the cap of 24 tokens changes its spread."""
    without = quiet(audited["directory"]).audit(GRPO(policy="embedded"), audited["data"], **SIZES)
    plain = {one.reward: one for one in without}
    assert plain["short"].spread == pytest.approx(audited["found"]["short"].spread)
    assert plain[TRAINED].spread != pytest.approx(audited["found"][TRAINED].spread)


def test_an_audit_leaves_nothing_behind_but_its_picture(audited):
    assert audited["data"].evaluation == audited["before"] and audited["data"].predicts == "test"
    assert any(isinstance(one, PredictionWriter) for one in audited["trainer"].callbacks)
    assert not (audited["directory"] / "predictions.jsonl").exists()
    assert (audited["directory"] / "picture.png").stat().st_size > 1000


def test_it_samples_as_training_does(tmp_path):
    ties = {}
    for temperature in (0.4, 1.0):
        data = RolloutDataModule(rewards=rewards(short), sampling={"max_new_tokens": 16, "temperature": temperature})
        (_, verdict) = quiet(tmp_path).audit(GRPO(policy="embedded"), data, **SIZES)
        assert verdict.reward == "short" and verdict.trained
        ties[temperature] = verdict.ties
    assert ties[0.4] > ties[1.0] + 0.1


@pytest.mark.parametrize(
    ("reward", "status"), [("wrong", 3), pytest.param("right_and_short", None, marks=pytest.mark.slow)]
)
def test_the_command_ends_with_status_3_on_an_alarm_of_what_is_trained_on(
    reward, status, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    place = "tests.rewards_of_audits"
    listed = f"[{{function: {place}.is_right, weight: 0}}, {{function: {place}.{reward}}}]"
    arguments = [
        "audit",
        "--config=grpo",
        f"--data.rewards={listed}",
        "--prompts=12",
        "--answers=8",
        "--best_of=[1,4]",
        "--data.sampling.max_new_tokens=24",
    ]
    if status is None:
        run(arguments)
    else:
        with pytest.raises(SystemExit) as end:
            run(arguments)
        assert end.value.code == status
    said = capsys.readouterr().out
    assert ("ALARM" in said) == (status is not None)
    assert f"{reward} *" in said and "12 prompts × 8 answers" in said


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ([short], {}, "none of the rewards (short) can be it: list one that knows the truth at `weight: 0`"),
        (rewards(short), {"verifier": "truth"}, "there is no reward 'truth'; there are is_right, short"),
        (rewards(short), {"verifier": "short"}, "audit: 'short' has weight 1, so it is trained on"),
        (rewards(short), {"answers": 4, "best_of": (1, 4)}, "take 8 or more"),
        (rewards(short), {"prompts": 1}, "two prompts or more, not 1"),
        (rewards(short), {"answers": 8, "best_of": (1, 4), "picture": "a.docx"}, "picture a.docx: matplotlib writes no docx, but"),
    ],
)  # fmt: skip
def test_what_cannot_be_audited_is_refused_before_anything_is_sampled(given, options, message, tmp_path):
    data = RolloutDataModule(rewards=given, sampling={"max_new_tokens": 4})
    with pytest.raises(UserError) as refusal:
        quiet(tmp_path).audit(GRPO(policy="embedded"), data, **{"prompts": 2, **options})
    assert message in str(refusal.value)
    assert not hasattr(data, "sampler")


def test_a_reward_model_answers_no_prompts(tmp_path):
    data = RolloutDataModule(rewards=rewards(short), sampling={"max_new_tokens": 4})
    with pytest.raises(UserError, match="RewardModel answers no prompts: audit a reward model as a reward"):
        quiet(tmp_path).audit(RewardModel(policy="embedded"), data, prompts=2, answers=8, best_of=(1, 4))


def test_it_samples_as_many_prompts_at_a_time_as_evaluation_does(tmp_path):
    asked = []

    class Counting(NativeGenerator):
        def generate(self, model, request, progress=None, finished=None):
            asked.append(len(request.prompts))
            return super().generate(model, request, progress, finished)

    data = RolloutDataModule(
        rewards=rewards(short),
        sampling={"max_new_tokens": 16},
        evaluation={"prompts_per_batch": 3},
        generator=Counting(),
    )
    quiet(tmp_path).audit(GRPO(policy="embedded"), data, **SIZES)
    assert asked == [3, 3, 2]


def test_data_without_held_out_prompts_are_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    data = RolloutDataModule(prompts=FileExamples(str(tmp_path / "train.jsonl")), rewards=rewards(short))
    with pytest.raises(UserError, match="neither test nor validation prompts"):
        quiet(tmp_path).audit(GRPO(policy="embedded"), data)


def audited_on_a_rank(directory):
    data = RolloutDataModule(rewards=rewards(short), sampling={"max_new_tokens": 16})
    trainer = quiet(directory, accelerator="cpu", devices=2, strategy="ddp", callbacks=[])
    found = trainer.audit(GRPO(policy="embedded"), data, **SIZES)
    return [(one.reward, one.best_of, one.spread) for one in found]


def test_two_ranks_judge_as_one_does(ranks, tmp_path):
    torch.set_num_threads(1)
    data = RolloutDataModule(rewards=rewards(short), sampling={"max_new_tokens": 16})
    alone = quiet(tmp_path).audit(GRPO(policy="embedded"), data, **SIZES)
    for found in ranks(audited_on_a_rank, str(tmp_path)):
        for (name, best_of, spread), one in zip(found, alone, strict=True):
            assert name == one.reward and spread == pytest.approx(one.spread)
            assert {n: pytest.approx(pair) for n, pair in best_of.items()} == one.best_of
