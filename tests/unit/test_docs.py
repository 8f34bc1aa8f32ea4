"""The documentation: its links lead somewhere, its code is code, and nothing that is logged or can be set is missing."""

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from examples.site import options
from rl_lightning import errors, manual
from rl_lightning.cli import main, run
from rl_lightning.cli.main import COMMANDS
from rl_lightning.errors import UserError, page_of
from tests.glossary import ROWS, unexplained

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
#: Run by tests of their own: see test_readme.py, test_starts.py.
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)


def blocks(language, *pages):
    """Return (page, code) of all fenced blocks of a language."""
    return [
        (page, re.sub(rf"^{indent}", "", code, flags=re.M))
        for page, text in TEXTS.items()
        if not pages or page in pages
        for indent, name, code in _FENCE.findall(text)
        if name == language
    ]


def commands():
    """Return (page, command) of all lines of shell blocks, continued lines joined."""
    lines = [(page, line) for page, code in blocks("bash") for line in code.replace("\\\n", " ").splitlines()]
    return [(page, shlex.split(line, comments=True)) for page, line in lines if shlex.split(line, comments=True)]


# ---------------------------------------------------------------------- links


def anchor(heading):
    """Return the anchor that mkdocs and GitHub give a heading."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain))


def dead_links(page, text):
    """Return the targets of a page's links and pictures that do not exist."""
    prose = _FENCE.sub("", text)
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose)):
        name, _, part = target.partition("#")
        if name.startswith(("http://", "https://")):
            continue
        path = (ROOT / page).parent / name if name else ROOT / page
        if not path.exists() or (
            part
            and part not in {anchor(one) for one in re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)}
        ):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", TEXTS)
def test_no_link_is_dead(page):
    assert dead_links(page, TEXTS[page]) == []


def test_a_dead_link_would_be_seen():
    text = "[a](own-data.md) [b](nowhere.md) [c](own-data.md#nowhere) [d](#here)\n## here\n"
    assert dead_links("docs/start/x.md", text) == ["nowhere.md", "own-data.md#nowhere", "#here"]


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]))
    assert named == {page.removeprefix("docs/") for page in TEXTS if page.startswith("docs/")}


def test_files_and_names_that_pages_speak_of_exist():
    for page, text in TEXTS.items():
        for path in re.findall(r"`((?:rl_lightning|examples|tests|configs)/[\w/.-]+)`", text):
            assert (ROOT / path).exists(), (page, path)
        for name in re.findall(r"`(rl_lightning(?:\.\w+)+)`", text):
            module, _, last = name.rpartition(".")
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:
                assert hasattr(importlib.import_module(module), last), (page, name)


# ----------------------------------------------------------------------- code


def test_shell_commands_are_ones_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page, words in commands():
        if words[0] == "rl-lightning":
            assert words[1] in COMMANDS, (page, words)
        elif words[0] == "make":
            assert f"\n{words[1]}:" in makefile, (page, words)
        elif words[0] == "python":
            module = words[2] if words[1] == "-m" else None
            path = Path(*module.split(".")) if module else Path(words[1])
            exists = (ROOT / path).exists() or (ROOT / path.with_suffix(".py")).exists()
            assert exists or module in ("pytest", "venv"), (page, words)
        else:
            assert words[0] in ("pip", "git", "export", "cd", ".venv/bin/python") or "=" in words[0], (page, words)


def runs():
    found = {
        " ".join(words[1:]): words[1:]
        for page, words in commands()
        if words[0] == "rl-lightning" and "--config" in words
    }
    return first_of_each(
        [(" ".join(words[: words.index("--config") + 2]), line[:60], words) for line, words in sorted(found.items())]
    )


def first_of_each(listed):
    """Return the parameters of (kind, name, *values): the first of a kind, and all others slowly, for to parse takes a third of a second."""
    kinds = [kind for kind, *_ in listed]
    return [
        pytest.param(*values, id=name, marks=() if kinds.index(kind) == place else pytest.mark.slow)
        for place, (kind, name, *values) in enumerate(listed)
    ]


@pytest.mark.parametrize("words", runs())
def test_commands_parse(words, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_file.py").write_text(next(code for page, code in blocks("python") if "class Unclipped" in code))
    stands_for = {"runs/grpo/tensorboard/config.yaml": "grpo", "mine.yaml": "grpo", "my_run.yaml": "grpo", "&": ""}
    stands_for |= {"my_rewards.": "tests.rewards_light."}
    given = words
    for written, known in stands_for.items():
        given = [word.replace(written, known) for word in given if word != written or known]
    with pytest.raises(SystemExit) as stopped:
        run([*given, "--print_config"])
    assert stopped.value.code == 0
    assert "class_path:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("page", "code"), first_of_each([(one[0], f"{one[0]}-{n}", *one) for n, one in enumerate(blocks("yaml"))])
)
def test_yaml_is_an_overlay_that_parses(page, code, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["rl_lightning"])
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, names in {"my_rewards": ("close", "polite"), "my_package/rewards": ("politeness",)}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text("".join(f"def {one}(response): return 0.0\n" for one in names))
    (tmp_path / "my_callbacks.py").write_text(
        dict(blocks("python", "docs/how-to/callback.md"))["docs/how-to/callback.md"]
    )
    path = tmp_path / "overlay.yaml"
    path.write_text(code)
    assert set(yaml.safe_load(code)) <= {"model", "data", "trainer", "seed_everything"}, page
    base = next((name for name in ("dapo", "sft") if page.endswith(f"/{name}.md")), "grpo")
    with pytest.raises(SystemExit) as stopped:
        run(["fit", "--config", base, f"--config={path}", "--print_config"])
    assert stopped.value.code == 0, capsys.readouterr().err


#: Pages whose Python is run by another test, and why.
RUN_ELSEWHERE = {
    "README.md": "tests/integration/test_readme.py",
    "docs/start/recipes.md": "tests/integration/test_starts.py",
    "docs/start/python.md": "tests/integration/test_readme.py",
    "docs/how-to/export.md": "tests/integration/test_readme.py",
    "docs/inside/tests.md": "it is a sketch of a test",
}


@pytest.mark.parametrize(
    ("page", "code"),
    [pytest.param(*one, id=f"{one[0]}-{n}") for n, one in enumerate(blocks("python")) if one[0] not in RUN_ELSEWHERE],
)
def test_python_runs(page, code, capsys):
    exec(compile(code, page, "exec"), {"__name__": "a_page"})


# ------------------------------------------------------------------- reference


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if re.search("<!-- (options|classes): ", text)])
def test_tables_of_options_are_those_of_the_code(page):
    assert options.page(TEXTS[page]) == TEXTS[page], "run: python -m examples.site.options"


def test_every_public_class_has_its_options_in_the_reference():
    import rl_lightning

    text = TEXTS["docs/reference/options.md"] + TEXTS["docs/reference/callbacks.md"]
    told = set(re.findall(r"^### (\w+)$", text, re.M))
    bases = {"OnlineModule", "PairModule", "PolicyModule", "ReferencedPairModule", "RolloutCallback"}
    others = {"Trainer", "UserError", "Microbatch", "Rollout", "load"}
    assert set(rl_lightning.__all__) - bases - others <= told


# -------------------------------------------------------------------- glossary


def logged_in_the_code():
    """Return names in the package's source that look like metrics: `policy/entropy`, `reward/{name}`."""
    rooms = {row[0].strip("`").partition("/")[0] for row in ROWS} | {"test"}
    names = set()
    for path in (ROOT / "rl_lightning").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            elif isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            if re.fullmatch(r"[a-z_]+/[\w@]+", text) and text.partition("/")[0] in rooms:
                names.add(text)
    return names


#: Charts, tables and numbers that never reach a logger as a scalar of this name.
NO_SCALAR = {
    "policy/ratio", "policy/ratio_square", "sampler/ratio_square", "rollout/advantage", "rollout/length", "rollout/reward", "rollout/samples",
    "val/samples", "rollout/yield_X", "rollout/yield_",
}  # fmt: skip


def test_every_metric_of_the_code_is_in_the_glossary():
    names = logged_in_the_code() - NO_SCALAR
    assert len(names) > 60
    assert unexplained(names) == set()
    assert unexplained({"policy/entropies", "rollout/new", "own/thing"}) == {
        "policy/entropies",
        "rollout/new",
        "own/thing",
    }
    assert unexplained({"test/pass@8", "reward/mine/part", "reward_failures/raised", "work/tokens"}) == set()


def test_every_row_of_the_glossary_has_a_unit_and_says_what_it_is():
    for name, unit, what, *_ in ROWS:
        assert unit and len(what) > 3, name
    assert all(len(row) == 5 for row in ROWS)
    told = [row[0] for row in ROWS]
    assert len(set(told)) == len(told)


# ---------------------------------------------------------------------- errors


def mistakes(source):
    """Return the calls in a source that make a `UserError`."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "UserError"]


def pages_named(call, module):
    """Return the pages that a mistake of a module may name; none if that is computed."""
    given = [word.value for word in call.keywords if word.arg == "page"]
    if not given:
        return {page_of(module)}
    return {node.value for node in ast.walk(given[0]) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_every_mistake_names_a_page_of_its_own():
    known, found = set(manual.pages()), 0
    for path in (ROOT / "rl_lightning").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for call in mistakes(path.read_text(encoding="utf-8")):
            named, found = pages_named(call, module), found + 1
            assert named <= known, f"{module}, line {call.lineno}: there is no page {named - known}"
            assert "index" not in named, f"{module}, line {call.lineno} names the front page: add its room to PAGES"
    assert found > 300
    assert set(errors.PAGES.values()) <= known
    for module in errors.PAGES:
        importlib.import_module(module)


def test_a_mistake_without_a_page_of_its_own_is_found():
    (call,) = mistakes("raise UserError('x', page='start/nowhere')")
    assert pages_named(call, "rl_lightning.data") == {"start/nowhere"}
    (call,) = mistakes("raise UserError('x')")
    assert pages_named(call, "rl_lightning.new") == {"index"}
    assert pages_named(call, "rl_lightning.data.cuts") == {"concepts/rollout"}


def test_a_mistake_names_the_page_of_the_room_that_found_it():
    from rl_lightning.algorithms import GRPO, PPO

    for make, page in (
        (lambda: PPO(gamma=2.0), "algorithms/ppo"),
        (lambda: GRPO(kl_coeff=1), "reference/options"),
        (lambda: UserError("said"), "index"),
    ):
        try:
            error = make()
        except UserError as raised:
            error = raised
        assert error.page == page
        assert error.__notes__ == [f"more: rl-lightning docs {page}"]


def test_a_mistake_that_is_said_again_keeps_its_page():
    try:
        try:
            raise UserError("first", page="start/own-data")
        except UserError as error:
            raise UserError(f"again: {error}") from error
    except UserError as error:
        assert error.page == "start/own-data"


def test_the_command_line_names_the_page(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", "grpo", "--model.klcoef=0.1"])
    said = capsys.readouterr().err
    assert said.startswith("rl_lightning: error: ") and said.endswith(" (more: rl-lightning docs reference/options)\n")
    assert said in TEXTS["README.md"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", "grpo", "--data.num_generations=4"])
    assert capsys.readouterr().err in TEXTS["docs/reference/command-line.md"]


@pytest.mark.parametrize(
    ("given", "hint"),
    [("sft", "to train: fit --config sft"), ("GRPO", "to train: fit --config grpo"), ("fitt", "did you mean 'fit'?"), ("eval", "there are init")],
)  # fmt: skip
def test_a_command_that_there_is_not_is_told_another(given, hint, capsys):
    with pytest.raises(SystemExit):
        main([given, "--model_name_or_path", "x"])
    said = capsys.readouterr().err
    assert f"there is no command '{given}'; {hint}" in said and said.count("\n") == 1


def test_the_version_that_is_cited_is_the_one_that_is_there():
    import rl_lightning

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == rl_lightning.__version__ and cited["license"] == "Apache-2.0"


# ----------------------------------------------------------------- in a terminal


def test_pages_are_read_in_a_terminal(capsys):
    main(["docs"])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in manual.pages())
    for question in ("start/own-data", "own-data", "docs/start/own-data.md"):
        main(["docs", question])
        assert capsys.readouterr().out.startswith("# Your data\n")
    main(["docs", "algorithms"])
    assert capsys.readouterr().out.startswith("# Algorithms\n")
    main(["docs", "policy/approx_kl"])
    assert "concepts/metrics: | `policy/approx_kl` | nats a token |" in capsys.readouterr().out
    main(["docs", "the"])
    assert len(capsys.readouterr().out.splitlines()) == 21


def test_words_that_are_nowhere_are_refused():
    with pytest.raises(UserError, match="did you mean 'start/own-data'"):
        manual.asked("start/own-dataa")
    with pytest.raises(UserError, match="lists the pages"):
        manual.asked("zzqqzz")
