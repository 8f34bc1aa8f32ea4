"""Every command and every block of Python in the README is run, shortened; it is short itself, and what it shows is what is there."""

import contextlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from rl_lightning import cli
from tests.tokenizers import policy

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = (ROOT / "docs" / "start" / "python.md").read_text(encoding="utf-8")
#: What makes a command short.
FIT = [
    "--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true", "--data.prompts_per_rollout=2",
    "--data.group_size=2", "--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false",
]  # fmt: skip
#: Commands that other tests run: in .ci/run, in tests/integration/test_wheel.py, or where there is a GPU.
ELSEWHERE = ("pip install", "make ", "python -m pytest -m gpu")


def commands():
    """Return the lines of the README's shell blocks, continued lines joined, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in (line.partition("  #")[0].strip() for line in lines) if not line.startswith(ELSEWHERE)]


def ctrl_c(seconds):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a reader's files: rows, a reward, a model."""
    folder = tmp_path_factory.mktemp("reader")
    row = json.loads(re.search(r"`(\{\"question\".*?\})`", README)[1])
    rows = [row | {"question": f"What is {n} plus 4?", "answer": str(n + 4)} for n in range(40)]
    (folder / "problems.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    (folder / "my_rewards.py").write_text(re.search(r"```python\n(def brief.*?)```", README, re.S)[1])
    policy("qwen-base", folder / "MODEL", context=1024)
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


@pytest.fixture
def reader(place, monkeypatch):
    """The reader's folder, as the command finds it."""
    monkeypatch.chdir(place)
    # `main` puts the folder there; the test takes it away again.
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(place)])
    monkeypatch.setattr(sys, "argv", ["rl-lightning"])
    return place


def test_every_command_runs_as_it_is_written(reader, monkeypatch, capsys):
    monkeypatch.setattr("tensorboard.program.TensorBoard.launch", lambda self: "http://localhost:6006/")
    seen = []
    for line in commands():
        words = shlex.split(line)
        assert words[0] == "rl-lightning", line
        seen.append(words[1])
        short = (
            [*FIT, "--data.sampling.max_new_tokens=6"]
            if words[1] == "fit"
            else ["--max_new_tokens=4"]
            if words[1] == "chat"
            else []
        )
        if words[1] == "fit" and not any(word.startswith("--data.prompts=") for word in words):
            short.append(
                "--data.prompts.init_args.train_size=64"
            )  # of 20,000, which take two seconds to draw and encode
        with contextlib.ExitStack() as stack:
            if words[1] == "tensorboard":
                interrupted = stack.enter_context(monkeypatch.context())
                interrupted.setattr("rl_lightning.cli.board.time.sleep", ctrl_c)
                stack.enter_context(pytest.raises(SystemExit))
            cli.main([*words[1:], *short])
    assert seen == ["fit", "tensorboard", "init", "fit", "chat", "fit", "fit"]
    assert (reader / "runs" / "grpo" / "hf" / "config.json").exists()
    assert "http://localhost:6006/" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README", "python.md"])
def test_python_runs_as_it_is_written(page, reader):
    code = re.search(r"```python\n(import rl_lightning as rl.*?)```", README if page == "README" else PYTHON, re.S)[1]
    names = {}
    exec(compile(code, page, "exec"), names)
    assert names["trainer"].global_step == 2
    assert isinstance(names["policy"].generate("3+4="), str)


def test_the_run_that_export_speaks_of_is_loaded(reader):
    page = (ROOT / "docs" / "how-to" / "export.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.S)[1]
    if not (reader / "runs" / "grpo").exists():
        cli.main(["fit", "--config", "grpo", *FIT, "--data.sampling.max_new_tokens=6"])
    exec(compile(code, "export.md", "exec"), {})


def test_it_is_short():
    assert len(README.split()) <= 1200
    assert README.index("## Your data and your reward") < README.index("## From one core to many GPUs")


def test_every_target_file_and_picture_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)[`\s]", README):
        assert f"\n{target}:" in makefile, target


def test_the_example_in_the_readme_is_the_file():
    code = re.search(r"```python\n(class TOPR.*?)```", README, re.S).group(1)
    lines = [line.strip() for line in code.splitlines() if line.strip()]
    source = (ROOT / "examples" / "new_objective.py").read_text()
    assert len(lines) <= 15
    for line in lines:
        assert line in source, line


def test_numbers_are_those_of_the_results():
    """A number that the README repeats stands in the page that has its command."""
    results = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "results").glob("*.md"))
    assert "**3.41**" in results and "17.8 and 57.1" in results and "0.37" in results
    assert "3.4 times as fast with 0.37" in README and "18 s" in README and "57 s" in README
    assert "0.450" in results and "0.932" in results and "45 %" in README and "93 %" in README
