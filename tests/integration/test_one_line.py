"""What cannot work is one line, whichever command meets it first; and what only looks odd works in all of them."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl_lightning import load
from rl_lightning.cli import main
from rl_lightning.errors import UserError
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DATA_COMMANDS = ("fit", "validate", "test", "predict", "audit")
COMMANDS = (*DATA_COMMANDS, "chat", "generate")
#: One that is trained on, and a verifier for the audit.
REWARDS = [
    {"function": "rl_lightning.rewards.functions.answer_correct", "name": "trained"},
    {"function": "rl_lightning.rewards.functions.response_length", "name": "truth", "weight": 0},
]


def arguments(command, policy, directory, *extra):
    """Return the arguments of a small run of a command."""
    if command == "chat":
        return ["chat", str(policy), "1+1=", "--max_new_tokens=4"]
    given = [
        command, f"--config={ROOT / 'configs' / 'grpo.yaml'}", f"--model.policy={policy}", f"--trainer.default_root_dir={directory}",
        "--data.prompts.init_args.train_size=8", "--data.prompts.init_args.val_size=4", "--data.prompts.init_args.test_size=4",
        "--data.sampling.max_new_tokens=4", "--data.evaluation.samples_per_prompt=2", "--data.prompts_per_rollout=4",
        "--data.group_size=2", f"--data.rewards={json.dumps(REWARDS)}", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    ]  # fmt: skip
    given += ["--trainer.max_epochs=1", "--trainer.limit_val_batches=0"] if command == "fit" else []
    given += ["--prompts=12", "--answers=32"] if command == "audit" else []
    if any(one.startswith("--config=") for one in extra):  # another source, which has other options
        given = [one for one in given if ".prompts.init_args." not in one]
    return [*given, *extra]


def outcome(command, policy, directory, capsys, *extra):
    """Run a command; return the line that it ends with, None if it works, and hold that there is nothing else."""
    if command == "generate":
        try:
            load(policy).generate("1+1=", max_new_tokens=4)
        except UserError as error:
            assert "\n" not in str(error)
            return str(error)
        return None
    status = 0
    try:
        main(arguments(command, policy, directory, *extra))
    except SystemExit as stopped:
        status = stopped.code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if status in (0, 3):  # 3: an audit that alarms
        assert "rl_lightning: error:" not in said
        return None
    assert status == 2 and said.count("rl_lightning: error:") == 1, said
    line = said.partition("rl_lightning: error: ")[2].strip()
    assert line.count("\n") <= 3, line  # bad rows are named line by line
    return line


def rewrite(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def weight(value):
    def spoil(policy, tmp_path):
        state = load_file(policy / "model.safetensors")
        state["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        save_file(state, policy / "model.safetensors", metadata={"format": "pt"})

    return spoil


def weights_of(content, name):
    def spoil(policy, tmp_path):
        (policy / "model.safetensors").unlink()
        if content is None:
            torch.save({"model": Exception}, policy / name)
        else:
            (policy / name).write_bytes(content)

    return spoil


def more_tokens(policy, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(policy)


def config(**changes):
    return lambda policy, tmp_path: rewrite(policy / "config.json", **changes)


def nothing(policy, tmp_path):
    pass


#: Fault → what spoils a policy, a part of the line that it ends with (None if it works), and which commands meet it.
POLICIES = {
    "a weight that is NaN": (weight(float("nan")), "logits are not finite", COMMANDS),
    "a weight that is infinite": (weight(float("inf")), "logits are not finite", COMMANDS),
    "a pickle as weights": (weights_of(None, "pytorch_model.bin"), "cannot read the weights", COMMANDS),
    "a short file as weights": (weights_of(b"\x08\0\0", "model.safetensors"), "cannot read the weights", COMMANDS),
    "a text as weights": (weights_of(b"no weights", "pytorch_model.bin"), "cannot read the weights", COMMANDS),
    "tokens beyond the embedding": (more_tokens, "2 tokens beyond the model's 18 embeddings", COMMANDS),
    "a pad token of -1": (config(pad_token_id=-1), None, COMMANDS),
    "outputs of a router": (config(output_router_logits=True), None, COMMANDS),
    "a configuration that is cut off": (lambda policy, tmp_path: (policy / "config.json").write_text("{"), "cannot read the configuration", COMMANDS),
    "a tokenizer that is cut off": (lambda policy, tmp_path: (policy / "tokenizer.json").write_text("{"), "cannot read the tokenizer", COMMANDS),
}  # fmt: skip

#: One command that trains, one that measures, one that asks; `make check-all` has the others.
SOON = {("a weight that is NaN", "predict"), ("a pickle as weights", "chat"), ("tokens beyond the embedding", "audit")}
SOON |= {("a short file as weights", "generate"), ("a pad token of -1", "predict"), ("outputs of a router", "chat")}
SOON |= {("a text as weights", "validate"), ("a pad token of -1", "generate")}


def matrix(faults):
    """Return a parameter for every fault and command that meets it; those that are not in `SOON` are slow."""
    return [
        pytest.param(fault, command, marks=() if (fault, command) in SOON else pytest.mark.slow)
        for fault, (*_, commands) in faults.items()
        for command in commands
    ]


@pytest.fixture(autouse=True)
def _program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])


@pytest.mark.parametrize(("fault", "command"), matrix(POLICIES))
def test_a_policy_that_is_spoiled(fault, command, tiny_policy, tmp_path, capsys):
    spoil, said, _ = POLICIES[fault]
    policy = Path(shutil.copytree(tiny_policy, tmp_path / "policy"))
    spoil(policy, tmp_path)
    line = outcome(command, policy, tmp_path / "run", capsys)
    assert line is None if said is None else line is not None and said in line, line


def overlay(tmp_path, name):
    """Return the argument that reads all splits from a file."""
    files = {split: str(tmp_path / name) for split in ("train", "val", "test")}
    prompts = {"class_path": "rl_lightning.data.FileExamples", "init_args": files}
    (tmp_path / "overlay.yaml").write_text(json.dumps({"data": {"init_args": {"prompts": prompts}}}))
    return [f"--config={tmp_path / 'overlay.yaml'}"]


def rows(*lines):
    def write(tmp_path):
        (tmp_path / "rows.jsonl").write_text("".join(line + "\n" for line in lines))
        return overlay(tmp_path, "rows.jsonl")

    return write


GOOD = [json.dumps({"prompt": f"{number}+1=", "answer": str(number + 1)}) for number in range(10, 20)]
DEEP = '{"prompt": "1=", "answer": ' + "[" * 5000 + "]" * 5000 + "}"
DIGITS = json.dumps({"prompt": "1=", "answer": "7" * 5000})
#: Fault → what makes the data, and a part of the line.
DATA = {
    "deep nesting": (rows(*GOOD, DEEP), "rows.jsonl:11", DATA_COMMANDS),
    "an answer of many digits": (rows(*GOOD, DIGITS), "rows.jsonl:11", DATA_COMMANDS),
    "half of a character": (rows(*GOOD, '{"prompt": "1\\ud835=", "answer": "1"}'), "rows.jsonl:11", DATA_COMMANDS),
    "no JSON": (rows(*GOOD, "{"), "rows.jsonl:11", DATA_COMMANDS),
    "no file": (lambda tmp_path: overlay(tmp_path, "gone.jsonl"), "gone.jsonl", DATA_COMMANDS),
}


SOON |= {("deep nesting", "predict"), ("half of a character", "audit"), ("no file", "test")}


@pytest.mark.parametrize(("fault", "command"), matrix(DATA))
def test_data_that_are_spoiled(fault, command, tiny_policy, tmp_path, capsys):
    make, said, _ = DATA[fault]
    extra = make(tmp_path)
    line = outcome(command, tiny_policy, tmp_path / "run", capsys, *extra)
    assert line is not None and said in line, line


def a_text(tmp_path):
    (tmp_path / "text.ckpt").write_text("hello")
    return tmp_path / "text.ckpt"


def of_others(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "others.ckpt")
    return tmp_path / "others.ckpt"


def a_folder(tmp_path):
    (tmp_path / "folder.ckpt").mkdir()
    return tmp_path / "folder.ckpt"


CHECKPOINTS = {
    "a text": (a_text, "damaged or no checkpoint", DATA_COMMANDS),
    "saved by others": (of_others, "no checkpoint of a run", DATA_COMMANDS),
    "a folder": (a_folder, "not a checkpoint that a run has saved", DATA_COMMANDS),
    "no file": (lambda tmp_path: tmp_path / "none.ckpt", "there is no checkpoint", DATA_COMMANDS),
}
SOON |= {("a text", "predict"), ("saved by others", "fit"), ("a folder", "audit")}


@pytest.mark.parametrize(("fault", "command"), matrix(CHECKPOINTS))
def test_a_checkpoint_that_is_none(fault, command, tiny_policy, tmp_path, capsys):
    make, said, _ = CHECKPOINTS[fault]
    line = outcome(command, tiny_policy, tmp_path / "run", capsys, f"--ckpt_path={make(tmp_path)}")
    assert line is not None and said in line, line


@pytest.mark.parametrize("make", [a_text, of_others, a_folder, lambda tmp_path: tmp_path / "none"])
def test_a_model_that_is_none_to_chat_with(make, tmp_path, capsys):
    path = make(tmp_path)
    assert outcome("chat", path, tmp_path, capsys)
    assert outcome("generate", path, tmp_path, capsys)


PLACES = {
    "a file": (lambda place: place.write_text(""), "it is a file", DATA_COMMANDS),
    "below a file": (lambda place: place.parent.write_text(""), "it is a file", DATA_COMMANDS),
}
SOON |= {("a file", "fit"), ("a file", "predict"), ("below a file", "audit")}


@pytest.mark.parametrize(("fault", "command"), matrix(PLACES))
def test_a_run_directory_that_is_none(fault, command, tiny_policy, tmp_path, capsys):
    make, _, _ = PLACES[fault]
    place = tmp_path / "place" / "run" if fault == "below a file" else tmp_path / "run"
    make(place)
    line = outcome(command, tiny_policy, place, capsys)
    assert line is not None and os.fspath(tmp_path) in line, line
