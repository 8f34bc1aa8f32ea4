"""What a run prints: lines, a bar's numbers, the summary at the end; and what it does not print."""

import io
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rl_lightning.callbacks import RolloutLines, RolloutProgressBar, RunSummary
from rl_lightning.callbacks.progress import short
from rl_lightning.cli import main, run
from rl_lightning.cli.chat import _converse
from rl_lightning.errors import UserError
from rl_lightning.quiet import calm
from tests.processes import Warm, command_line_into, imports_printed

ROOT = Path(__file__).parents[3]
SMALL = [
    "--data.prompts.init_args.train_size=24", "--data.prompts.init_args.val_size=4", "--data.prompts.init_args.test_size=4",
    "--data.sampling.max_new_tokens=6", "--data.evaluation.samples_per_prompt=2", "--trainer.accelerator=cpu",
]  # fmt: skip
ONLINE = ["--config=grpo", *SMALL, "--data.prompts_per_rollout=4", "--data.group_size=2"]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["rl-lightning"])
    monkeypatch.chdir(tmp_path)


def lines_of(capsys, *arguments):
    run(["fit", *arguments])
    out = capsys.readouterr().out
    assert "\r" not in out
    assert "FLOPs" not in out
    return out.splitlines()


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.000"), (0.4321, "0.432"), (23.06, "23.1"), (1.234e-5, "1.23e-05"), (-0.5, "-0.500"), (1200.0, "1.2e+03")]
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert short(value) == text


def test_a_rollout_is_a_line_and_the_end_a_summary_whose_commands_work(tiny_policy, capsys):
    lines = lines_of(
        capsys, *ONLINE, f"--model.policy={tiny_policy}", "--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=2",
        "--data.rewards=[{function: tests.rewards_for_runs.length}]", "--trainer.default_root_dir=a run/ü",
    )  # fmt: skip
    rollouts = [line for line in lines if line.startswith("rollout ")]
    assert len(rollouts) == 3
    number = r"-?[\d.e+-]+"
    assert re.fullmatch(
        rf"rollout 3/3  reward {number}  kl {number}  entropy {number}  len {number}  [\d.]+ s", rollouts[2]
    )
    assert "pass@1" in rollouts[1]
    assert any(line.startswith("before training  pass@1 ") for line in lines)

    start = next(place for place, line in enumerate(lines) if line.startswith("finished: 3 rollouts, 3 steps, 0:0"))
    facts = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines[start + 1 :])
    for name in ("reward", "pass@1", "length, tokens", "KL, nats a token", "entropy"):
        assert re.fullmatch(rf"{number} → {number}", facts[name]), name
    assert "loss" not in facts  # 0 by construction
    first = re.search(r"reward (\S+)", rollouts[0])[1]
    assert facts["reward"].startswith(f"{first} → ")
    assert Path(facts["model"], "config.json").is_file()
    assert Path(facts["checkpoint"]).is_file()

    command = shlex.split(facts["test"])
    assert command[0] == "rl-lightning"
    metrics = run(command[1:]).trainer.callback_metrics
    assert 0 <= float(metrics["test/pass@1"]) <= 1
    go_on = shlex.split(facts["go on"])
    assert go_on[-1] == "--trainer.max_epochs=6"
    assert run([*go_on[1:-1], "--trainer.max_epochs=4"]).trainer.current_epoch == 4
    checkpoints = Path(facts["checkpoint"]).parent.glob("last*.ckpt")
    assert [path.name for path in checkpoints] == ["last.ckpt"], "written over by the run that went on from it"
    out = capsys.readouterr().out
    assert f"{facts['reward'].split()[0]} → " in out  # the first value is that of the whole run's first rollout
    main([*shlex.split(facts["chat"])[1:], "3+4=", "--max_new_tokens=3"])
    assert capsys.readouterr().out.strip()


def test_what_was_measured_before_training_alone_has_no_end():
    summary = RunSummary()
    trainer = SimpleNamespace(callback_metrics={"val/pass@1": 0.4, "rollout/reward_mean": 0.3}, global_step=0)
    summary.on_validation_end(trainer, None)
    trainer.global_step, trainer.callback_metrics["rollout/reward_mean"] = 5, 0.6
    numbers = summary._numbers(trainer, online=True)
    assert numbers == {"reward": "0.300 → 0.600", "pass@1": "0.400 before training, and not measured again"}
    trainer.callback_metrics["val/pass@1"] = 0.5
    summary.on_validation_end(trainer, None)
    assert summary._numbers(trainer, online=True)["pass@1"] == "0.400 → 0.500"


def test_a_run_from_demonstrations_shows_its_loss(tiny_policy, capsys):
    lines = lines_of(
        capsys, "--config=sft", *SMALL, "--data.batch_size=8", f"--model.policy={tiny_policy}", "--trainer.callbacks=[]",
        "--trainer.logger=false", "--trainer.max_epochs=1", "--trainer.enable_checkpointing=false",
    )  # fmt: skip
    (epoch,) = [line for line in lines if line.startswith("epoch ")]
    assert re.match(r"epoch 1/1  loss \d", epoch)
    assert any(re.match(r"  loss +\d.* → \d", line) for line in lines)
    assert not any(line.strip().startswith(("model", "chat", "curves")) for line in lines)


def test_long_epochs_and_long_rollouts_have_lines_in_between(capsys):
    lines = RolloutLines(every_s=0.0)
    lines._sampled(3, 1200)
    lines._sampled(1200, 1200)
    assert capsys.readouterr().out == "  3 of 1,200 responses sampled\n"
    RolloutLines()._sampled(3, 1200)
    silent = RolloutLines(every_s=0.0)
    silent.disable()
    silent._sampled(3, 1200)
    assert capsys.readouterr().out == ""


def test_the_bar_shows_what_moves_and_no_loss_of_an_online_run(tiny_policy):
    cli = run(
        ["fit", *ONLINE, f"--model.policy={tiny_policy}", "--trainer.max_epochs=1", "--trainer.logger=false",
         "--trainer.callbacks=[GroupNormalize, RolloutProgressBar]", "--trainer.enable_checkpointing=false"]
    )  # fmt: skip
    (bar,) = [one for one in cli.trainer.callbacks if isinstance(one, RolloutProgressBar)]
    shown = bar.get_metrics(cli.trainer, cli.model)
    assert list(shown) == ["reward", "pass@1", "kl", "entropy", "len"]


def in_a_new_interpreter(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "rl_lightning", *arguments], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout, done.stderr


def in_a_warm_process(arguments):
    """The same in a fork of an interpreter that has the imports done; what these print counts too."""
    errors, output = Path("errors").absolute(), Path("output").absolute()
    assert Warm(command_line_into, str(output), *arguments, output=errors).wait(300) == 0, errors.read_text()
    return output.read_text(), imports_printed().read_text() + errors.read_text()


# In a process of its own: under pytest, warnings are recorded instead of shown.
@pytest.mark.parametrize("ran", [in_a_warm_process, pytest.param(in_a_new_interpreter, marks=pytest.mark.slow)])
def test_a_run_through_a_pipe_prints_nothing_to_standard_error(ran, tiny_policy, tmp_path):
    arguments = [
        "fit",
        *ONLINE,
        f"--model.policy={tiny_policy}",
        "--trainer.max_epochs=1",
        "--data.sampling.max_new_tokens=40",  # most responses of a policy that has learnt nothing end before
        f"--trainer.default_root_dir={tmp_path}",
    ]
    output, errors = ran(arguments)
    assert errors == ""
    assert "rollout 1/1" in output and "\r" not in output


def test_real_warnings_are_shown(caplog):
    calm()
    with caplog.at_level(logging.INFO):
        logging.getLogger("lightning.pytorch.utilities.rank_zero").warning("the loss is not finite")
        logging.getLogger("lightning.pytorch.utilities.rank_zero").info("Seed set to 0")
    assert [record.getMessage() for record in caplog.records] == ["the loss is not finite"]


def test_a_chat_goes_on_with_the_conversation_and_ends_with_an_empty_line(monkeypatch, capsys):
    asked = []

    def answer(question):
        asked.append(list(question))
        if len(question) == 3:
            raise UserError("too long")
        return f"answer {len(question)}"

    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nmore\nagain\n\nnever read\n"))
    _converse(answer, remembers=True)
    out, err = capsys.readouterr()
    assert out == "answer 1\n"
    assert err == "rl_lightning: too long\n" * 2
    assert [len(one) for one in asked] == [1, 3, 3]
    assert asked[2][-1] == {"role": "user", "content": "again"}


def test_without_a_template_each_line_is_a_text_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("1+1=\n2+2="))
    _converse(lambda text: text[::-1], remembers=False)
    assert capsys.readouterr().out == "=1+1\n=2+2\n"


def test_a_chat_without_an_input_is_one_line(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="there is no input to read questions from"):
        _converse(lambda text: text, remembers=False)


def test_there_is_nothing_to_chat_with(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["chat", str(tmp_path)])
    assert "holds neither an exported model" in capsys.readouterr().err
