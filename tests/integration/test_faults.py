"""What goes wrong in a run, and what then happens: a test for each row of docs/inside/faults.md."""

import ast
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from examples.drill.results import first_difference
from rl_lightning.callbacks.graceful_stop import STOPPED_EARLY
from rl_lightning.callbacks.run_lock import LOCK_FILE
from rl_lightning.cli import main, run
from rl_lightning.rewards import Rewarder, RewardSample, RewardSpec
from rl_lightning.strategies import load_plain
from tests.checks import cases
from tests.processes import Warm, command_line
from tests.rewards_that_fail import TERRIBLE
from tests.waiting_rewards import FOLDER

ROOT = Path(__file__).parents[2]
LENGTH = "--data.rewards=[{function: tests.waiting_rewards.length}]"


@pytest.fixture(autouse=True)
def _clean(monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])
    caplog.set_level(logging.INFO)


def fit(policy, directory, *extra, command="fit"):
    """Return the arguments of a run of three rollouts, a checkpoint each."""
    return [
        command, f"--config={ROOT / 'configs' / 'grpo.yaml'}", f"--model.policy={policy}", f"--trainer.default_root_dir={directory}",
        "--data.prompts.init_args.train_size=24", "--data.prompts.init_args.val_size=4",
        "--data.prompts.init_args.test_size=4", "--data.sampling.max_new_tokens=6",
        "--data.evaluation.samples_per_prompt=2", "--data.prompts_per_rollout=4", "--data.group_size=2",
        "--trainer.max_epochs=3", "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", "--trainer.callbacks.init_args.every_n_epochs=1",
        "--model.optimizer.lr=0.01", LENGTH, *extra,
    ]  # fmt: skip


def refused(arguments, capsys):
    """Return the one line that a run ends with, and hold that it is one line, and the status 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert printed.count("rl_lightning: error:") == 1 and "Traceback" not in printed
    return printed.partition("rl_lightning: error: ")[2].strip()


def weights(directory):
    return load_plain(Path(directory) / "checkpoints" / "last.ckpt")["state_dict"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole_run(tiny_policy, tmp_path_factory):
    """The directory of a run without a fault."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rl_lightning"])
        run(fit(tiny_policy, directory))
    return directory


@pytest.fixture(scope="module")
def whole(whole_run):
    """Its weights."""
    return weights(whole_run)


# --------------------------------------------------------------------------- rewards

#: What a reward does at each fourth call → how that is counted, and what is said of it.
REWARDS = {
    "raise": ("raised", "RuntimeError: no reward for you"), "long error": ("raised", "xxx"),
    "exit": ("raised", "SystemExit: 3"), "recursion": ("raised", "RecursionError"),
    "loop": ("timeout", "The call took longer than 1 s"), "sleep": ("timeout", "The call took longer than 1 s"),
    "nan": ("nan", "It returned 'nan', not a finite number"), "inf": ("nan", "It returned '-inf', not a finite number"),
    "none": ("none", "It returned None: no reward with a weight applies"), "text": ("nan", "It returned '1.0', not a finite number"),
    "memory": ("raised", "MemoryError"), "die": ("died", "The call ended its process with status 3"),
    "segfault": ("died", "The call ended its process by signal SIGSEGV"),
    "huge text": ("raised", "bytes, more than 65536"), "huge number": ("raised", "OverflowError: int too large"),
    "pickle bomb": ("raised", "it returned an object of class Bomb, not a number"),
}  # fmt: skip


def test_every_terrible_reward_is_tried():
    assert {*REWARDS, "print"} == TERRIBLE.keys()


def fit_with_reward(how, policy, directory):
    reward = f"[{{function: tests.rewards_that_fail.every_fourth, arguments: {{how: {how}}}}}]"
    # Only what hangs is to run into it: on a busy machine half a GiB or a deep traceback takes more than a second.
    timeout_s = 1 if REWARDS.get(how, ("",))[0] == "timeout" else 60
    limits = [f"--data.reward_limits.timeout_s={timeout_s}", "--data.reward_limits.memory_limit_gb=0.5"]
    return run(fit(policy, directory, "--trainer.max_epochs=1", f"--data.rewards={reward}", *limits)).trainer


#: `test_rewarder` has each kind that a failure is counted as; `make check-all` tries the others in runs. What sleeps costs no processor.
COMMON_REWARDS = ("raise", "sleep")


@pytest.mark.parametrize("how", cases(REWARDS, soon=lambda how: how in COMMON_REWARDS))
def test_reward_fails_on_some_samples(how, tiny_policy, tmp_path, caplog):
    """Two of the eight samples have no reward; the run goes on with the others, and says so."""
    trainer = fit_with_reward(how, tiny_policy, tmp_path)
    kind, said = REWARDS[how]
    assert trainer.global_step == 1
    assert trainer.callback_metrics["rollout/failed_fraction"] == 2 / 8
    assert trainer.callback_metrics[f"reward_failures/{kind}"] == 2
    warning = next(text for text in caplog.messages if text.startswith("Reward every_fourth failed on 2 of 8 samples"))
    assert said in warning and len(warning) < 1 << 15
    assert all(bool(value.isfinite().all()) for value in weights(tmp_path).values())


def test_reward_prints_a_lot(tiny_policy, tmp_path, capfd):
    """It reaches standard error and nothing else."""
    trainer = fit_with_reward("print", tiny_policy, tmp_path)
    assert trainer.callback_metrics["rollout/failed_fraction"] == 0
    assert capfd.readouterr().err.count("x" * 1_000_000) == 2


def test_reward_fails_on_most_samples(tiny_policy, tmp_path, capsys):
    line = refused(fit(tiny_policy, tmp_path, "--data.rewards=[{function: tests.rewards_that_fail.always}]"), capsys)
    assert line.startswith("8 of 8 samples got no reward (8 raised), more than the allowed fraction 0.5.")
    assert "RuntimeError: the grader is out of order" in line


# ---------------------------------------------------------------------- grader bombs

BOMBS = {
    "tower": r"\boxed{9**9**9}", "latex tower": r"\boxed{9^{9^{9}}}", "factorials": r"\boxed{10!!!!}",
    "nested factorials": r"\boxed{((9!)!)!}", "long answer": r"\boxed{" + "7" * 1_000_000 + "}",
    "long expression": r"\boxed{" + "x+" * 500_000 + "1}", "parentheses": r"\boxed{" + "(" * 100_000 + ")" * 100_000 + "}",
    "braces": r"\boxed{" + "{" * 100_000 + "}" * 100_000 + "}", "fractions": r"\boxed{" + r"\frac{1}{" * 5_000 + "1" + "}" * 5_000 + "}",
    "integral": r"\boxed{\int_0^\infty e^{x^{x^x}} dx}", "sum": r"\boxed{\sum_{n=1}^{10^{10}} n!}",
    "power": r"\boxed{(x+y+z)^{9999}}", "roots": r"\boxed{" + r"\sqrt{" * 19 + "x+1" + "}" * 19 + "}",
    "derivatives": r"\boxed{\frac{d^{99}}{dx^{99}} \tan^{99}(x)}", "matrix": r"\boxed{\begin{pmatrix}" + "1&" * 50_000 + r"1\end{pmatrix}}",
    "code": r"\boxed{__import__('os')._exit(9)}",
}  # fmt: skip


def test_answer_is_a_bomb(tmp_path, monkeypatch):
    """With sympy on: each is wrong, or given up, within the time of two comparisons, and what follows is graded."""
    monkeypatch.chdir(tmp_path)
    reward = RewardSpec(
        "rl_lightning.rewards.functions.answer_correct", arguments={"symbolic": True, "wrong": -1.0, "timeout_s": 1.0}
    )
    rewarder = Rewarder([reward], timeout_s=20.0)
    golds = ["(x+y+z)^{9998}", r"2\sqrt{3}", "7"]
    right = {gold: f"so \\boxed{{{gold}}}" for gold in golds}
    right[r"2\sqrt{3}"] = r"\boxed{\sqrt{12}}"  # only sympy sees this
    samples = []
    for bomb in BOMBS.values():
        for gold in golds:
            samples += [RewardSample("", bomb, gold, {}), RewardSample("", right[gold], gold, {})]
    started = time.monotonic()
    scores = rewarder.score(samples)
    rewarder.close()
    assert scores.total == [-1.0, 1.0] * (len(samples) // 2)
    assert set(scores.failures) <= {"grader_timeout"}
    assert time.monotonic() - started < 60
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- policies and prompts


def test_tokenizer_without_eos(tiny_policy, tmp_path, capsys):
    policy = shutil.copytree(tiny_policy, tmp_path / "policy")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (policy / name).exists():
            settings = json.loads((policy / name).read_text())
            settings.pop("eos_token", None)
            (policy / name).write_text(json.dumps(settings))
    line = refused(fit(policy, tmp_path / "run"), capsys)
    assert "its tokenizer has no end-of-sequence token, so no response would ever end; set eos_token in" in line


# `test_bad_rows` leaves prompts out.
@pytest.mark.parametrize("on_bad", cases(["refuse", "drop"], soon=lambda on_bad: on_bad == "refuse"))
def test_prompt_longer_than_the_context(on_bad, tiny_policy, tmp_path, capsys, caplog):
    file = tmp_path / "prompts.jsonl"
    texts = [f"{number}+1=" for number in range(10, 18)] + ["1+" * 40 + "1="]
    file.write_text("".join(json.dumps({"prompt": text, "answer": "7"}) + "\n" for text in texts))
    overlay = tmp_path / "overlay.yaml"
    prompts = {"class_path": "rl_lightning.data.FileExamples", "init_args": {"train": str(file)}}
    overlay.write_text(yaml.safe_dump({"data": {"init_args": {"prompts": prompts}}}))
    arguments = [one for one in fit(tiny_policy, tmp_path, f"--config={overlay}") if ".prompts.init_args." not in one]
    if on_bad == "refuse":
        line = refused(arguments, capsys)
        assert "1 of 9 prompts cannot be used (on_bad: drop leaves them out)" in line
        assert (
            "prompts.jsonl:9: the prompt's 82 tokens and max_new_tokens: 6 are together more than the 64 tokens" in line
        )
        return
    assert run([*arguments, "--data.prompt_options.on_bad=drop", "--trainer.max_epochs=1"]).trainer.global_step == 1
    assert "dropped 1 of 9 prompts: 1 too long for the context" in caplog.text


@pytest.mark.parametrize("trusted", cases([False, True], soon=lambda trusted: not trusted))
def test_code_that_comes_with_a_model(trusted, tiny_policy, tmp_path, capsys, caplog):
    """Refused unless asked for, and said where it is."""
    policy = shutil.copytree(tiny_policy, tmp_path / "policy")
    settings = json.loads((policy / "config.json").read_text())
    settings |= {"model_type": "other", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (policy / "config.json").write_text(json.dumps(settings))
    (policy / "code.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'other'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    arguments = fit(policy, tmp_path / "run", "--trainer.max_epochs=1")
    if not trusted:
        line = refused(arguments, capsys)
        assert "read that code, then set model.init_args.load.trust_remote_code to true" in line
        assert "trust_remote_code is on" not in caplog.text
        return
    assert run([*arguments, "--model.load.trust_remote_code=true"]).trainer.global_step == 1
    said = [
        text for text in caplog.messages if "trust_remote_code is on, so Python code that comes with it may run" in text
    ]
    assert len(said) == 1 and str(policy) in said[0]


# ------------------------------------------------------------------------------- disk


@pytest.fixture
def small_disk(tmp_path):
    """Makes a file system of a given size; and lets it grow."""
    place = tmp_path / "small disk"
    place.mkdir()

    def mount(kilobytes, *, again=False):
        options = f"size={kilobytes}k" + (",remount" if again else "")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"mounting a small disk is not permitted here: {done.stderr.strip()}")
        return place

    yield mount
    # Lazily: TensorBoard keeps its file open.
    subprocess.run(["umount", "-l", str(place)], capture_output=True)


def test_disk_full_at_a_checkpoint(tiny_policy, tmp_path, small_disk, capsys, whole):
    """There is room for one checkpoint of two; with more room, the run goes on from that one."""
    place = small_disk(400)
    line = refused(fit(tiny_policy, place), capsys)
    assert re.match(r"cannot write .*last.ckpt: .*No space left on device: make room or choose another place", line)
    (left,) = (place / "checkpoints").iterdir()  # nothing unfinished stays behind
    small_disk(10_000, again=True)
    run(fit(tiny_policy, place, f"--ckpt_path={left}"))
    assert same(weights(place), whole)


@pytest.mark.slow  # `test_checkpoints` has it of a single file
def test_disk_full_at_a_second_checkpoint(tiny_policy, small_disk, capsys):
    """The file that is to be replaced stays as it was."""
    place = small_disk(10_000)
    only_last = "--trainer.callbacks.init_args.save_top_k=0"
    run(fit(tiny_policy, place, "--trainer.max_epochs=1", only_last))
    before = weights(place)
    used = sum(path.stat().st_blocks for path in place.rglob("*")) // 2
    small_disk(used + 150, again=True)
    line = refused(fit(tiny_policy, place, "--ckpt_path=last", only_last), capsys)
    assert "last.ckpt: [Errno 28] No space left on device; the file that was there before is as it was" in line
    assert same(weights(place), before)


WRITERS = {
    "curves": (16, ["--trainer.logger.init_args.save_dir={place}", "--trainer.max_epochs=30"]),
    "export": (40, ["--trainer.callbacks+=rl_lightning.callbacks.HFExport", "--trainer.callbacks.dirpath={place}/hf"]),
    "lock": (0, ["--trainer.default_root_dir={place}"]),
}


@pytest.mark.parametrize("writer", cases(WRITERS, soon=lambda writer: writer != "export"))
def test_disk_full_elsewhere(writer, tiny_policy, tmp_path, small_disk, capsys):
    size, extra = WRITERS[writer]
    place = small_disk(max(4, size))
    if not size:
        (place / "filler").write_bytes(bytes(4096))
    line = refused(fit(tiny_policy, tmp_path / "run", *(one.format(place=place) for one in extra)), capsys)
    assert "the disk is full: make room or choose another place" in line


@pytest.mark.parametrize("share", cases([0.0, 0.5, 0.999], soon=lambda share: share == 0.5))
def test_checkpoint_truncated(share, tiny_policy, whole_run, tmp_path, capsys):
    """Named by its path, or as the last one."""
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    complete = (whole_run / "checkpoints" / "last.ckpt").read_bytes()
    last.write_bytes(complete[: int(share * len(complete))])
    line = refused(fit(tiny_policy, tmp_path, f"--ckpt_path={'last' if share == 0.5 else last}"), capsys)
    assert "last.ckpt cannot be read, it is damaged or no checkpoint" in line


def test_checkpoint_that_would_run_code(tiny_policy, tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            return os._exit, (9,)

    torch.save({"state_dict": {}, "bomb": Bomb()}, tmp_path / "bomb.ckpt")
    line = refused(fit(tiny_policy, tmp_path, f"--ckpt_path={tmp_path / 'bomb.ckpt'}"), capsys)
    assert "bomb.ckpt cannot be read" in line


def damaged(path, copy):
    """Write a copy of a checkpoint in which one bit of a weight is another."""
    whole = path.read_bytes()
    place = whole.index(next(iter(load_plain(path)["state_dict"].values())).numpy().tobytes())
    copy.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    return copy


@pytest.mark.parametrize("command", cases(["fit", "validate", "predict"], soon=lambda command: command == "predict"))
def test_checkpoint_with_a_flipped_bit(command, tiny_policy, whole_run, tmp_path, capsys):
    """Whatever loads it; and nothing is written."""
    path = damaged(whole_run / "checkpoints" / "last.ckpt", tmp_path / "flipped.ckpt")
    arguments = fit(tiny_policy, tmp_path / "new", f"--ckpt_path={path}", command=command)
    arguments = [
        one for one in arguments if command == "fit" or not one.startswith(("--trainer.max", "--trainer.limit"))
    ]
    assert "is not what was written (CRC-32)" in refused(arguments, capsys)
    assert not (tmp_path / "new").exists()


OTHERS = {
    "text": "text cannot be read, it is damaged or no checkpoint: ", "empty": "empty cannot be read, it is damaged or no",
    "folder": "folder is a directory, but not a checkpoint that a run has saved",
    "weights": "weights is no checkpoint of a run: --ckpt_path takes", "list": "list is no checkpoint of a run",
    "no version": "no version is no checkpoint of a run",
    "no optimizer": "no optimizer holds no training state (save_weights_only): training cannot go on from it",
    "other": "the checkpoint does not fit GRPO",
}  # fmt: skip


# `test_checkpoints` has each kind of file.
@pytest.mark.parametrize("name", cases(OTHERS, soon=lambda name: name in ("weights", "other")))
def test_checkpoint_of_others(name, tiny_policy, whole_run, tmp_path, capsys):
    """A text, nothing, a directory, weights alone, another module's: one line each, and nothing is written."""
    own, path = load_plain(whole_run / "checkpoints" / "last.ckpt"), tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name in ("text", "empty"):
        path.write_text("hello" if name == "text" else "")
    else:
        lost = {"no optimizer": "optimizer_states", "no version": "pytorch-lightning_version"}.get(name)
        changed = {
            "weights": own["state_dict"], "list": [1, 2], "other": own | {"state_dict": {"layer.weight": torch.ones(2)}},
        }  # fmt: skip
        torch.save(changed.get(name, {key: value for key, value in own.items() if key != lost}), path)
    assert OTHERS[name] in refused(fit(tiny_policy, tmp_path / "new", f"--ckpt_path={path}"), capsys)
    assert name == "other" or not (tmp_path / "new").exists()


def test_saved_config_that_cannot_be_written(tiny_policy, tmp_path, capsys):
    """A directory has its name."""
    (tmp_path / "config.yaml").mkdir()
    assert refused(fit(tiny_policy, tmp_path, "--trainer.logger=false"), capsys).startswith(
        f"cannot write {tmp_path / 'config.yaml'}: it is no file of this user's"
    )


@pytest.mark.parametrize("place", cases(["file", "file/below", "curves"], soon=lambda place: place == "file/below"))
def test_run_directory_that_cannot_be_written(place, tiny_policy, tmp_path, capsys):
    """A file, a place below a file; the directory of any writer."""
    (tmp_path / "file").write_text("")
    if place == "curves":
        curves = f"--trainer.logger.init_args.save_dir={tmp_path / 'file'}"
        line = refused(fit(tiny_policy, tmp_path / "run", curves), capsys)
        assert "it is a file: mend that, or choose another with the TensorBoard's save_dir" in line
        return
    line = refused(fit(tiny_policy, tmp_path / place), capsys)
    assert line.startswith(
        f"cannot write to {tmp_path / place}, it is a file: mend that, or choose another with --trainer.default_root_dir"
    )


@pytest.mark.parametrize("command", cases(["fit", "predict"], soon=lambda command: command == "fit"))
def test_run_directory_that_is_read_only(command, tiny_policy, small_disk, capsys):
    place = small_disk(1000)
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    arguments = fit(tiny_policy, place / "run", command=command)
    arguments = [
        one for one in arguments if command == "fit" or not one.startswith(("--trainer.max", "--trainer.limit"))
    ]
    said = "Read-only file system: mend that, or choose another" if command == "fit" else "Read-only file system"
    assert said in refused(arguments, capsys)


# ---------------------------------------------------------------------------- signals


class Paused:
    """A run in a process of its own that waits at some moment; a new interpreter only where that is asked for."""

    def __init__(self, arguments, folder, new=False):
        self.folder = folder
        folder.mkdir()
        self.log = (folder / "log").open("w+")
        waits = {FOLDER: str(folder)}
        if new:
            command = [sys.executable, "-m", "rl_lightning", *arguments]
            kept = {"cwd": ROOT, "stdout": self.log, "stderr": self.log}
            self.process = subprocess.Popen(command, env={**os.environ, **waits}, **kept)
        else:
            self.process = Warm(command_line, *arguments, output=folder / "log", environment=waits)
        until = time.monotonic() + 300
        while not (folder / "there").exists():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                raise AssertionError(self.printed())
            time.sleep(0.02)

    def printed(self):
        self.log.seek(0)
        return self.log.read()

    def go_on(self):
        """Let it go on, and return its exit status."""
        (self.folder / "go").touch()
        return self.process.wait(120)

    def wait_for(self, text, within_s=120):
        """Wait until it has printed something."""
        until = time.monotonic() + within_s
        while text not in self.printed():
            assert time.monotonic() < until, self.printed()
            time.sleep(0.02)

    def end(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


MOMENTS = {
    "generation": ["--trainer.callbacks+=tests.waiting.Wait", "--trainer.callbacks.moment=generation"],
    "reward": [  # the third sample of the second rollout
        LENGTH[:-2] + ", arguments: {wait_at: 11}}]",
        "--data.reward_limits.timeout_s=1000",
    ],
    "backward": ["--trainer.callbacks+=tests.waiting.Wait", "--trainer.callbacks.moment=backward"],
}


# `test_stopping` has every moment, in this process. A new interpreter takes ten seconds to start.
@pytest.mark.parametrize(
    ("moment", "new"),
    [
        ("reward", False),
        pytest.param("backward", False, marks=pytest.mark.slow),
        pytest.param("generation", False, marks=pytest.mark.slow),
        pytest.param("reward", True, marks=pytest.mark.slow),
    ],
)
def test_sigterm(moment, new, tiny_policy, tmp_path, whole):
    """Status 75, and then on to the same weights. A reward is not waited for."""
    directory = tmp_path / "run"
    paused = Paused(fit(tiny_policy, directory, *MOMENTS[moment]), tmp_path / "signs", new)
    try:
        paused.process.send_signal(signal.SIGTERM)
        status = paused.process.wait(50) if moment == "reward" else paused.go_on()
        assert status == STOPPED_EARLY, paused.printed()
        assert "stopped by SIGTERM after optimizer step" in paused.printed()
    finally:
        paused.end()
    assert not same(weights(directory), whole)
    trainer = run(fit(tiny_policy, directory, "--ckpt_path=last")).trainer
    assert trainer.global_step == 3
    last = max((directory / "checkpoints").glob("last*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert same(load_plain(last)["state_dict"], whole)


@pytest.mark.slow  # `test_stopping` sends both in this process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_second_signal(number, tiny_policy, tmp_path):
    """It ends a run that does not get to its next boundary."""
    paused = Paused(fit(tiny_policy, tmp_path / "run", *MOMENTS["backward"]), tmp_path / "signs")
    try:
        paused.process.send_signal(number)
        paused.wait_for("stopping at the next opportunity")
        time.sleep(0.5)  # two signals at once are one
        assert paused.process.poll() is None
        paused.process.send_signal(number)
        assert paused.process.wait(40) in (1, 128 + number), paused.printed()  # what waits would wait for 300 s
    finally:
        paused.end()


def pairs(policy, directory, *extra):
    """Return the arguments of a run of DPO on pairs that are sampled in four chunks."""
    return [
        "fit", f"--config={ROOT / 'configs' / 'dpo.yaml'}", f"--model.policy={policy}", f"--trainer.default_root_dir={directory}",
        "--data.prompts.init_args.train_size=32", "--data.prompts.init_args.val_size=4", "--data.max_prompts=32",
        "--data.group_size=4", "--data.sampling.max_new_tokens=6", "--data.batch_size=8", "--trainer.max_epochs=1",
        "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
        LENGTH[:-2] + ", arguments: {wait_at: 70}}]", "--data.reward_limits.timeout_s=1000", *extra,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole_table(tiny_policy, tmp_path_factory):
    """The sampled responses of a run without a fault."""
    directory = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rl_lightning"])
        run(pairs(tiny_policy, directory))
    return table(directory)


def table(directory):
    (path,) = (directory / "cache").glob("responses-*.pt")
    assert not list((directory / "cache").glob("*.parts"))
    return load_plain(path)["value"]


@pytest.mark.slow  # `test_a_table_whose_sampling_was_cut_is_gone_on_with` is without signals
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_signal_while_responses_are_sampled_for_training(number, tiny_policy, tmp_path, whole_table, caplog):
    """What was sampled so far, two chunks of four, is gone on with, to the same table."""
    directory = tmp_path / "run"
    paused = Paused(pairs(tiny_policy, directory), tmp_path / "signs")
    try:
        paused.process.send_signal(number)
        status = paused.process.wait(50)
        assert status == (STOPPED_EARLY if number == signal.SIGTERM else -number), paused.printed()
        if number == signal.SIGTERM:
            assert "stopped by SIGTERM before training began; what was sampled so far is kept" in paused.printed()
    finally:
        paused.end()
    assert not list(directory.rglob("*.ckpt"))
    assert len(list((directory / "cache").glob("*.parts/*.pt"))) == 2
    run(pairs(tiny_policy, directory))
    assert "2 of 4 chunks of train responses are kept from before" in caplog.text
    again = table(directory)
    assert again.keys() == whole_table.keys()
    for name, value in whole_table.items():
        assert first_difference(again[name], value) is None, name


@pytest.mark.parametrize(
    "number",
    cases([signal.SIGTERM, signal.SIGINT], soon=lambda number: number == signal.SIGTERM),
    ids=lambda number: number.name,
)
def test_signal_during_evaluation(number, tiny_policy, tmp_path):
    """One is enough, while a reward hangs."""
    waits = [LENGTH[:-2] + ", arguments: {wait_at: 3}}]", "--data.reward_limits.timeout_s=1000"]
    paused = Paused(fit(tiny_policy, tmp_path / "run", *waits, command="predict"), tmp_path / "signs")
    try:
        paused.process.send_signal(number)
        assert paused.process.wait(50) == STOPPED_EARLY, paused.printed()
        assert f"stopped by {number.name} during evaluation" in paused.printed()
    finally:
        paused.end()


# -------------------------------------------------------------- runs beside each other


def contents(directory):
    return {path: path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()}


def added(directory, before):
    """Return the files that are new, and hold that the others are as they were.

    Of its curves the run that is paused may write at any time what it had noted before.
    """
    after = contents(directory)
    for path, content in before.items():
        assert after[path].startswith(content) if "events" in path.name else after[path] == content, path
    return [path.relative_to(directory) for path in after.keys() - before.keys()]


@pytest.fixture(scope="module")
def paused(tiny_policy, tmp_path_factory):
    """A run that waits in the middle of its second rollout, and its directory."""
    place = tmp_path_factory.mktemp("paused")
    run = Paused(fit(tiny_policy, place / "run", *MOMENTS["reward"]), place / "signs")
    yield run, place / "run"
    run.end()


@pytest.mark.parametrize("extra", [[], pytest.param(["--ckpt_path=last"], marks=pytest.mark.slow)], ids=["new", "last"])
def test_two_runs_in_one_directory(extra, paused, tiny_policy, capsys):
    """The second one changes nothing; `test_runs_that_share_one_directory` runs in another one."""
    first, directory = paused
    before = contents(directory)
    assert len(before) >= 5
    line = refused(fit(tiny_policy, directory, *extra), capsys)
    assert line.startswith(f"{directory} is in use by process {first.process.pid} on {os.uname().nodename}, since 20")
    assert line.endswith(
        "or give this one a directory of its own with --trainer.default_root_dir (more: rl-lightning docs inside/faults)"
    )
    assert added(directory, before) == []


@pytest.mark.parametrize("command", cases(["validate", "test", "predict"], soon=lambda command: command == "predict"))
def test_evaluation_beside_a_run(command, paused, tiny_policy):
    """It takes no lock, and leaves checkpoints and configuration of the run alone."""
    _, directory = paused
    before = contents(directory)
    arguments = [
        one
        for one in fit(tiny_policy, directory, command=command)
        if "max_epochs" not in one and "limit_val" not in one
    ]
    run([*arguments, "--ckpt_path=last"])
    new = {path.parts[0] for path in added(directory, before)}
    assert new == {"tensorboard", *(["predictions.jsonl"] if command == "predict" else [])}


@pytest.mark.slow  # `test_run_lock` has it without runs
def test_runs_that_share_one_directory(tiny_policy, tmp_path, capsys):
    """Each directory that is written to has a lock, whoever names it; none is left behind by a run that has ended."""
    shared = tmp_path / "shared"
    writers = {
        "--trainer.callbacks.dirpath={}": shared, "--trainer.logger.init_args.save_dir={}": shared / "tensorboard",
    }  # fmt: skip
    for argument, place in writers.items():
        place.mkdir(parents=True, exist_ok=True)
        holder = hold(place)
        line = refused(fit(tiny_policy, tmp_path / "run", argument.format(shared)), capsys)
        assert line.startswith(f"{place} is in use by process {holder.pid} on here")
        holder.kill()
        holder.wait()
        (place / LOCK_FILE).unlink()
    run(fit(tiny_policy, tmp_path / "run", "--trainer.max_epochs=1"))
    assert [path.parent.name for path in tmp_path.rglob(LOCK_FILE)] == ["run"]


def test_saved_config_in_another_directory(tiny_policy, tmp_path):
    """All that a run writes moves with `default_root_dir`, overrides of the command line hold, and the numbers are the same."""
    first, second = tmp_path / "first", tmp_path / "second"
    run(fit(tiny_policy, first, "--trainer.max_epochs=1", "--data.seed=5"))
    config = first / "tensorboard" / "config.yaml"
    saved = yaml.safe_load(config.read_text())
    assert saved["trainer"]["logger"]["init_args"]["save_dir"] == "${trainer.default_root_dir}"
    assert saved["data"]["init_args"]["seed"] == 5
    before = contents(first)
    run(["fit", f"--config={config}", f"--trainer.default_root_dir={second}"])
    assert contents(first) == before
    names = {path.relative_to(first) for path in before if "events" not in path.name}
    assert names == {path.relative_to(second) for path in contents(second) if "events" not in path.name}
    assert same(weights(first), weights(second))


def hold(directory):
    """Return a process that holds the lock, as a run does."""
    code = (
        "import fcntl, json, os, sys, time\n"
        "file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write(json.dumps({'pid': os.getpid(), 'host': 'here', 'since': 'now'})); file.flush()\n"
        "print('held', flush=True); time.sleep(100)\n"
    )
    Path(directory).mkdir(exist_ok=True)
    holder = subprocess.Popen([sys.executable, "-c", code, str(Path(directory) / LOCK_FILE)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    return holder


@pytest.mark.slow  # `test_run_lock` takes a lock from another process, and `test_two_runs_in_one_directory` a run's
def test_run_killed(tiny_policy, tmp_path, capsys, caplog):
    """Its lock dies with it."""
    holder = hold(tmp_path / "run")
    line = refused(fit(tiny_policy, tmp_path / "run"), capsys)
    assert f"is in use by process {holder.pid} on here, since now" in line
    holder.kill()
    holder.wait()
    assert run(fit(tiny_policy, tmp_path / "run", "--trainer.max_epochs=1")).trainer.global_step == 1
    assert f"holds an earlier run (process {holder.pid} on here" in caplog.text


def test_directory_of_a_finished_run(tiny_policy, whole_run, tmp_path, caplog):
    """It is said; the old checkpoint stays under its name, and the new one gets another."""
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path / "checkpoints")
    run(fit(tiny_policy, tmp_path, "--trainer.max_epochs=1"))
    assert "this one begins anew beside it: their curves mix in TensorBoard" in caplog.text
    after = contents(tmp_path / "checkpoints")
    assert {path: after[path] for path in before} == before
    assert {path.name for path in after.keys() - before.keys()} == {"last-v1.ckpt", "rollout-epoch=0.ckpt"}


@pytest.mark.slow
def test_directory_of_a_run_that_goes_on(tiny_policy, tmp_path, capsys, caplog):
    """Nothing is said of it, nor of one that took no step."""
    refused(fit(tiny_policy, tmp_path, "--data.prompt_options.max_length=2"), capsys)  # this one takes no step
    run(fit(tiny_policy, tmp_path, "--trainer.max_epochs=1"))
    assert "holds an earlier run" not in caplog.text
    run(fit(tiny_policy, tmp_path, "--trainer.max_epochs=2", "--ckpt_path=last"))
    assert "holds an earlier run" not in caplog.text


# ------------------------------------------------------------------------- the table


def rows():
    """Return the rows of the table: fault → the name of the test, a file before it where that is not this one."""
    table = (ROOT / "docs" / "inside" / "faults.md").read_text().splitlines()
    cells = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in table if line.startswith("| ")]
    assert {len(row) for row in cells} == {5}
    return {row[0]: row[-1] for row in cells[1:]}


def test_every_row_names_a_test_and_every_test_here_has_a_row():
    named = set()
    for fault, test in rows().items():
        path, _, name = test.rpartition("::")
        path = path or "tests/integration/test_faults.py"
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (fault, test)
        named.add((path, name))
    own = {node.name for node in ast.parse(Path(__file__).read_text()).body if isinstance(node, ast.FunctionDef)}
    own = {name for name in own if name.startswith("test_") and name not in NOT_A_ROW}
    assert own == {name for path, name in named if path.endswith("test_faults.py")}


NOT_A_ROW = {
    "test_every_terrible_reward_is_tried",
    "test_directory_of_a_run_that_goes_on",
    "test_every_row_names_a_test_and_every_test_here_has_a_row",
}
