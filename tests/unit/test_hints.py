"""What the command line says of a name that it does not know: from the class that refused, with what that class accepts."""

from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf.errors import OmegaConfBaseException

from rl_lightning.algorithms import GRPO, SFT, ObjectiveModule
from rl_lightning.cli import CLI, main, run
from rl_lightning.cli.mistakes import mistake_behind
from rl_lightning.cli.saved_config import absolute_interpolations
from rl_lightning.data import SamplingDataModule
from rl_lightning.data.sources.base import ExampleSource
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.models import LoadOptions, LoraOptions
from rl_lightning.options.hints import _inner, _subclasses
from rl_lightning.options.parser import Parser
from rl_lightning.options.renamed import RENAMED
from rl_lightning.rewards import RewardSpec

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def parser():
    """The parser of the commands, which nothing is made with."""
    found = []

    def keep(cli, parser, arguments):
        found.append(parser)
        raise UserError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CLI, "parse_arguments", keep)
        with pytest.raises(UserError, match="enough"):
            run(["fit"])
    return found[0]


@pytest.fixture
def refusal(parser, monkeypatch):
    """Returns the one line that arguments are refused with."""
    monkeypatch.chdir(ROOT)

    def refused(*arguments):
        with pytest.raises(UserError) as raised:
            parser.parse_args(["fit", "--config=configs/grpo.yaml", *arguments])
        line = str(raised.value)
        assert "\n" not in line
        return line

    return refused


@pytest.fixture
def yaml_refusal(refusal, tmp_path):
    """Returns what a YAML is refused with, behind its name."""

    def refused(text):
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        line = refusal(f"--config={path}")
        assert line.startswith(str(path))
        return line.removeprefix(str(path))

    return refused


OPTIONS = {
    "of a dataclass": ("--data.sampling.max_tokens=5", "data.sampling: Sampling has no option 'max_tokens'", "max_new_tokens"),
    "in the class around it": (
        "--data.max_tokens=5", "data: RolloutDataModule has no option 'max_tokens'", "sampling.max_new_tokens"),
    "of another library, in a module": ("--model.learning_rate=1", "model: GRPO has no option 'learning_rate'", "optimizer.lr"),
    "of another library, in its place": (
        "--model.optimizer.learning_rate=1", "model.optimizer: OptimizerOptions has no option 'learning_rate'", "lr"),
    "of another library, at the top": ("--learning_rate=1", "unrecognized arguments", "model.init_args.optimizer.lr"),
    "of a group": ("--data.num_generations=1", "data: RolloutDataModule has no option 'num_generations'", "group_size"),
    "of a source": ("--data.prompts.init_args.trainsize=5", "data.prompts: ChainSum has no option 'trainsize'", "train_size"),
    "of a reward": ("--data.rewards=[{function: a, weigth: 3}]", "data.rewards: RewardSpec has no option 'weigth'", "weight"),
    "of a callback in a list": (
        "--trainer.callbacks.init_args.every_n_epoch=5", "trainer.callbacks: ModelCheckpoint has no option", "every_n_epochs"),
    "of a logger": ("--trainer.logger.init_args.savedir=x", "trainer.logger: TensorBoard has no option", "save_dir"),
    "of an adapter": ("--model.lora={lora_alpha: 3}", "model.lora: LoraOptions has no option 'lora_alpha'", "alpha"),
    "of the trainer": ("--trainer.output_dir=x", "unrecognized arguments: --trainer.output_dir=x", "default_root_dir"),
    "a misspelt class": ("--model=GRPOO", "model: GRPOO is no class that this takes", "GRPO"),
    "a misspelt class in a list": ("--trainer.callbacks+=SampleTabel", "SampleTabel is no class", "SampleTable"),
    "a misspelt strategy": ("--trainer.strategy.class_path=rl_lightning.strategies.FSDP2Strateg", "is no class", "FSDP2Strategy"),
}  # fmt: skip


@pytest.mark.parametrize("case", OPTIONS)
def test_a_hint_comes_from_what_refused(case, refusal):
    argument, said, meant = OPTIONS[case]
    line = refusal(argument)
    assert said in line and line.endswith(f"; did you mean '{meant}'?")


@pytest.mark.parametrize(
    "argument", ["--trainer.learning_rate=1", "--model.num_generations=4", "--data.sampling.beta=1"]
)
def test_no_hint_leads_to_what_the_section_does_not_take(argument, refusal):
    assert "did you mean" not in refusal(argument)


def test_what_another_section_has_is_named_with_its_whole_path(refusal):
    assert refusal("--trainer.max_tokens=5").endswith("; data.init_args.sampling.max_new_tokens sets that")
    assert refusal("--trainer.learning_rate=1").endswith("; model.init_args.optimizer.lr sets that")


def test_a_data_set_in_the_place_of_a_source_is_told_its_source(refusal):
    said = refusal("--data.prompts=trl-lib/tldr")
    assert said.endswith(
        "; a file is FileExamples with train: trl-lib/tldr, a data set of the hub DatasetExamples with path: trl-lib/tldr"
    )


def test_what_the_data_module_has_is_named_in_python_too(refusal):
    assert refusal("--model.train_dataset=a.jsonl").endswith("; prompts of the DataModule sets that")
    with pytest.raises(UserError, match=r"SFT has no option 'train_dataset'; prompts of the DataModule sets that"):
        SFT(train_dataset=[])
    with pytest.raises(UserError, match=r"GRPO has no option 'model'; did you mean 'policy'\?"):
        GRPO(model="embedded")


@pytest.mark.parametrize(
    ("argument", "options"), [("model.optimizer=adamw", "lr, betas"), ("data.sampling=greedy", "max_new_tokens")]
)
def test_a_word_in_the_place_of_options_is_told_which_there_are(argument, options, refusal):
    place, _, word = argument.partition("=")
    said = f"{place}: {word} is no class that this takes; it takes the options {options}"
    assert refusal(f"--{argument}").startswith(said)


INTERPOLATIONS = {
    "${trainer.nope}": "refers to trainer.nope, which is not set: set it, or refer to an option that is",
    "${data.init_args.nope}": "refers to data.init_args.nope, which is not set: set it, or refer to an option that is",
    "${oc.env:NOPE_OF_THIS_TEST}": "Environment variable 'NOPE_OF_THIS_TEST' not found",
    "${trainer.max_epochs": "it is written as ${trainer.max_epochs}, with both braces",
}


@pytest.mark.parametrize("written", INTERPOLATIONS)
def test_an_interpolation_that_leads_nowhere_is_named_with_its_place(written, parser, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: {{init_args: {{policy: '{written}'}}}}\n")
    with pytest.raises(OmegaConfBaseException) as raised:
        parser.parse_args(["fit", "--config=configs/grpo.yaml", f"--config={path}"])
    said = str(mistake_behind(raised.value))
    assert said.startswith("model.init_args.policy: ") and said.endswith(INTERPOLATIONS[written])


def test_where_nothing_is_near_the_options_are_listed(refusal):
    assert refusal("--data.sampling.foo=1").endswith("; it takes " + ", ".join(sorted(vars(Sampling()))))


FILES = {
    "a tab": ("trainer:\n\tmax_epochs: 3\n", ":2: a tab: YAML is indented by spaces"),
    "indentation": ("trainer:\n  max_epochs: 3\n max_steps: 4\n", ":3: no YAML: "),
    "a bracket": ("trainer: {max_epochs: 3\n", ":2: no YAML: "),
    "a key that stands twice": (
        "trainer:\n  max_epochs: 3\n  max_epochs: 4\n", ":3: max_epochs stands here again, after line 2: keep one of them"),
    "a section of nothing": ("optimizer:\n", ": there is no section 'optimizer'; did you mean 'model.init_args.optimizer'?"),
    "an empty section": ("optimizer: {}\n", ": there is no section 'optimizer'; did you mean 'model.init_args.optimizer'?"),
    "a misspelt section": ("trainr:\n  max_epochs: 3\n", ": there is no section 'trainr'; did you mean 'trainer'?"),
    "no indentation": ("trainer:\nmax_epochs: 3\n", ": there is no section 'max_epochs'; did you mean 'trainer.max_epochs'?"),
    "an empty section inside": (
        "data: {init_args: {samplng: {}}}\n", ": data: RolloutDataModule has no option 'samplng'; did you mean 'sampling'?"),
    "an empty option of the trainer": ("trainer: {max_epoch: {}}\n", ": trainer has no option 'max_epoch'; did you mean"),
    "options beside the class": (
        "model:\n  class_path: GRPO\n  policy: embedded\n", ": model.policy: options of a class stand under init_args"),
    "init_args misspelt": (
        "data: {init_args: {prompts: {class_path: ChainSum, initargs: {train_size: 1}}}}\n",
        ": data.prompts: ChainSum has no option 'initargs'; did you mean 'init_args'?"),
    "a list for a section": ("trainer: [1, 2]\n", ": trainer is a section: it takes names and values, not [1, 2]"),
    "a list for a class": ("model: [1, 2]\n", ": model: expected class_path and init_args of a LightningModule"),
    "a list for all": ("- a\n- b\n", " holds a list: it takes sections"),
    "a word for all": ("hello\n", " holds a single value: it takes sections"),
    "nothing": ("", " is empty: it takes sections"),
    "a comment alone": ("# soon\n", " is empty: it takes sections"),
    "another encoding": ("trainer:\n  # ü\n".encode("latin-1"), ":2: a byte that is no UTF-8"),
    "a number for a name": ("3: 4\n", ": 3 is no name of a section"),
    "nothing for a name": ("~: 4\n", ": None is no name of a section"),
    "a set": ("!!set {model, data}\n", ": {"),
    "no date": ("trainer:\n  max_epochs: 3\nname: 2026-13-45\n", ":3: month must be in 1..12: put a text into quotes"),
    "no number": ("trainer: &a\n  max_epochs: !!int many\nother: *a\n", ":2: invalid literal for int()"),
    "too many digits": (f"seed: {'9' * 5000}\n", ":1: Exceeds the limit (4300 digits)"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_yaml_is_named_with_the_line_that_is_wrong(case, yaml_refusal):
    text, said = FILES[case]
    assert yaml_refusal(text).startswith(said)


def test_a_file_of_a_section_is_looked_at_too(tmp_path, refusal):
    (tmp_path / "model.yaml").write_text("class_path: rl_lightning.algorithms.GRPO\ninit_args:\n\tpolicy: embedded\n")
    assert (
        refusal(f"--model={tmp_path / 'model.yaml'}")
        == f"{tmp_path / 'model.yaml'}:3: a tab: YAML is indented by spaces"
    )


def test_every_hint_for_another_librarys_name_exists():
    """In some class of this library, or of Lightning's that its YAMLs name."""
    kinds = [Trainer, ModelCheckpoint, LoadOptions, LoraOptions, Sampling, RewardSpec]
    for base in (ObjectiveModule, SamplingDataModule, ExampleSource):
        kinds += [kind for kind in _subclasses(base) if kind.__module__.startswith("rl_lightning")]
    known = {"ckpt_path", "seed_everything"}  # of the commands themselves
    for kind in kinds:
        parser = Parser()
        parser.add_class_arguments(kind, fail_untyped=False)
        inner = list(_inner(kind, parser.options()))
        known |= {*parser.options(), *inner, *(path.split(".")[1] for path in inner)}
    assert {target for targets in RENAMED.values() for target in targets} - known == set()


def test_interpolations_name_keys_from_the_top_again():
    written = {
        "trainer": {
            "default_root_dir": "runs/a",
            "logger": {"init_args": {"save_dir": "${...default_root_dir}", "other": "x/${.save_dir}"}},
            "callbacks": [{"init_args": {"dirpath": "${....default_root_dir}/checkpoints"}}],
            "name": "${.default_root_dir}",
        }
    }
    assert absolute_interpolations(written)["trainer"] == {
        "default_root_dir": "runs/a",
        "logger": {
            "init_args": {"save_dir": "${trainer.default_root_dir}", "other": "x/${trainer.logger.init_args.save_dir}"}
        },
        "callbacks": [{"init_args": {"dirpath": "${trainer.default_root_dir}/checkpoints"}}],
        "name": "${trainer.default_root_dir}",
    }


def test_rows_in_the_place_of_options(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "1+1=", "answer": "2"}\n' * 2)
    with pytest.raises(SystemExit):
        main(["fit", "--config", "grpo", f"--data.prompts={rows}"])
    assert (
        f"{rows} holds rows and no options: give them as --data.prompts=FileExamples --data.prompts.train={rows}"
        in capsys.readouterr().err
    )
