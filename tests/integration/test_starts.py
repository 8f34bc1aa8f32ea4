"""The seven starts of docs/start/recipes.md, as they stand there, on files of the shapes that it names and a policy with a chat template."""

import contextlib
import json
import re
import shlex
from pathlib import Path

import pytest

from rl_lightning.cli import run
from rl_lightning.shipped import shipped
from tests.tokenizers import policy

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "start" / "recipes.md").read_text()
BLOCKS = dict(re.findall(r"^## (.+?)$.*?^```\w+\n(.*?)^```", TEXT, re.M | re.S))
#: What makes a run short, whatever the start is about.
SHORT = ["--trainer.max_epochs=1", "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]  # fmt: skip
SMALL = {
    "sft": ["--data.batch_size=4", "--data.sampling.max_new_tokens=4"],
    "dpo": ["--data.batch_size=4", "--data.sampling.max_new_tokens=4"],
    "reward_model": ["--data.batch_size=4"],
    "ppo": ["--data.prompts_per_rollout=4", "--data.sampling.max_new_tokens=4"],
    "grpo": ["--data.prompts_per_rollout=2", "--data.group_size=2", "--data.sampling.max_new_tokens=4"],
}
#: Beside these, a prompt and its answer leave nothing to be sampled in validation, which reads few prompts.
EVALUATION = ["--data.evaluation.max_prompts=2", "--data.evaluation.samples_per_prompt=2"]


def conversation(number):
    question = {"role": "user", "content": f"{number}+1=?"}
    again = {"role": "user", "content": "sure?"}
    return [question, {"role": "assistant", "content": str(number + 1)}, again, {"role": "assistant", "content": "yes"}]


def answered(number, said):
    return [{"role": "user", "content": f"{number}+1=?"}, {"role": "assistant", "content": said}]


SHAPES = {
    "chats": lambda n: {"messages": conversation(n)},
    "pairs": lambda n: {
        "prompt": f"{n}+1=?", "prompt_id": str(n), "messages": answered(n, str(n + 1)), "score_chosen": 8.0, "score_rejected": 2.0,
        "chosen": answered(n, str(n + 1)), "rejected": answered(n, "no idea"),
    },
    "prompts": lambda n: {"prompt": [{"role": "user", "content": f"{n}+1=?"}]},
    "labelled": lambda n: {"prompt": f"{n}+1=?", "completion": str(n + 1), "label": n % 2 == 0},
    "problems": lambda n: {"question": f"What is {n} plus 1?", "answer": f"{n} and 1 are {n + 1}.\n#### {n + 1}"},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a file of each shape, and a policy with a chat template."""
    folder = tmp_path_factory.mktemp("starts")
    for name, row in SHAPES.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row(n)) + "\n" for n in range(100)))
    policy("qwen-base", folder / "MODEL", context=1024)
    return folder


def start(title):
    return next(block for name, block in BLOCKS.items() if name.startswith(title))


def commands(title):
    lines = start(title).replace("\\\n", " ").strip().splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("rl-lightning")]


def test_every_start_is_at_most_six_lines():
    assert len(BLOCKS) == 7
    for title, block in BLOCKS.items():
        assert len(block.strip().splitlines()) <= 7 and sum(bool(line) for line in block.splitlines()) <= 6, title


@pytest.mark.parametrize(
    ("title", "says"),
    [
        ("Fine-tuning on conversations", ["val/loss", "val/token_accuracy"]),
        ("DPO on preference pairs", ["val/accuracy", "val/margin", "val/loss"]),
        # `test_from_pairs_to_a_reward` and the README's commands do what these do.
        pytest.param("A reward model, then PPO", ["rollout/reward_mean"], marks=pytest.mark.slow),
        pytest.param("GRPO on problems", ["rollout/reward_mean", "val/pass@1"], marks=pytest.mark.slow),
    ],
)
def test_a_start_from_the_command_line(title, says, place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    for arguments in commands(title):
        name = arguments[arguments.index("--config") + 1]
        evaluation = EVALUATION if name != "reward_model" else []
        cli = run([*arguments, *SHORT, *SMALL[name], *evaluation])
    assert cli.trainer.global_step >= 1
    assert set(says) <= set(cli.trainer.callback_metrics), sorted(cli.trainer.callback_metrics)


#: Every configuration that is shipped → a file that it learns from. `problems` have gold answers, which are a reward.
FILES = {
    **dict.fromkeys(("sft",), "chats"),
    **dict.fromkeys(("dpo", "ipo", "simpo", "orpo", "kto", "robust_dpo", "conservative_dpo", "reward_model"), "pairs"),
    **dict.fromkeys(("rft", "labelled_kto"), "labelled"),
    **dict.fromkeys(("ppo", "grpo", "dapo", "rloo", "dr_grpo", "reinforce_plus_plus", "gspo", "cispo", "sapo", "dppo", "rft_online"), "problems"),
    **dict.fromkeys(("distillation",), "prompts"),
}  # fmt: skip
#: Those whose way no other one takes; DAPO takes that of GRPO, with other defaults.
SOON = ("rft", "labelled_kto", "reward_model")


def test_every_shipped_configuration_has_its_one_line():
    assert set(FILES) == {name for name in shipped() if "/" not in name}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SOON else [pytest.mark.slow]) for name in FILES]
)
def test_one_line_is_enough(name, place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    line = ["fit", "--config", name, "--data.prompts=FileExamples", f"--data.prompts.train={FILES[name]}.jsonl"]
    teacher = ["--model.teacher=MODEL"] if name == "distillation" else []
    quick = ["--trainer.max_steps=1", "--data.sampling.max_new_tokens=10", "--trainer.enable_progress_bar=false"]
    cli = run([*line, *teacher, *quick, "--model.policy=MODEL", f"--trainer.default_root_dir={tmp_path}"])
    assert cli.trainer.global_step == 1
    if FILES[name] == "problems":
        assert [reward.name for reward in cli.datamodule.rewarder.rewards] == ["answer_correct"]


def test_the_start_in_a_notebook(place, monkeypatch):
    monkeypatch.chdir(place)
    code = start("GRPO with a reward from a notebook")
    for long, short in (("max_new_tokens\": 256}", "max_new_tokens\": 4}, prompts_per_rollout=2, group_size=2"), ("max_epochs=100", "max_epochs=1, accelerator='cpu'")):  # fmt: skip
        assert long in code
        code = code.replace(long, short)
    names = {"rows": [SHAPES["prompts"](n) for n in range(8)]}
    with contextlib.chdir(place) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
        exec(code, names)
    assert names["trainer"].global_step == 1


@pytest.mark.slow  # test_loggers holds what Weights & Biases gets
def test_the_start_with_weights_and_biases(place, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.chdir(place)
    (arguments,) = commands("Weights & Biases")
    cli = run([*arguments, *SHORT, *SMALL["grpo"], *EVALUATION, "--trainer.default_root_dir=runs/wandb"])
    assert cli.trainer.global_step == 1
    assert list(place.rglob("offline-run-*/*.wandb"))
