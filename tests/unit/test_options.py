"""Options in Python: read, checked and refused as those of a YAML file are."""

import copy
from typing import ClassVar

import pytest
import torch

from rl_lightning.algorithms import DAPO, DPO, GRPO, GSPO, PPO, SFT
from rl_lightning.algorithms.optimizer import OptimizerOptions
from rl_lightning.data import DemonstrationDataModule, RewardDataModule, RolloutDataModule
from rl_lightning.data.sources import ChainSum
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.options import Checked, plain_options
from rl_lightning.options.parser import Parser


class Tuned(GRPO):
    """A user's algorithm with an option of its own, and one without a type."""

    def __init__(self, tau: float = 1.0, table=None, **options):
        super().__init__(**options)
        self.tau, self.table = tau, table


def test_a_dict_becomes_the_options_that_it_names():
    module = GRPO(policy="embedded", kl_coef=0.1, optimizer={"lr": 1e-3, "schedule": "cosine"})
    assert module.optimizer_options == OptimizerOptions(lr=1e-3, schedule="cosine")
    data = RolloutDataModule(prompts={"class_path": "ChainSum", "init_args": {"train_size": 7}}, sampling={"top_k": 0})
    assert isinstance(data.source, ChainSum) and len(data.source.load("train")) == 7
    assert data.sampling == Sampling(top_k=0)


def test_objects_pass_as_they_are():
    options, source = OptimizerOptions(lr=2e-3), ChainSum()
    assert GRPO(optimizer=options).optimizer_options is options
    assert RolloutDataModule(prompts=source).source is source


def test_options_without_names_are_those_of_the_signature():
    assert GSPO(0.5, 0.1).clip_low == 0.1
    with pytest.raises(UserError, match="kl_coef is given twice"):
        GSPO(0.5, kl_coef=0.1)
    with pytest.raises(UserError, match="takes 3 options without their names, not 4"):
        GSPO(0.5, 0.1, 0.2, "embedded")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (GRPO, {"kl_coef": "much"}, "GRPO: kl_coef: expected float"),
        (GRPO, {"kl_coeff": 0.1}, "GRPO has no option 'kl_coeff'; did you mean 'kl_coef'"),
        (GRPO, {"learning_rate": 0.1}, "did you mean 'optimizer.lr'"),
        (DAPO, {"optimizer": {"learning_rate": 0.1}}, "OptimizerOptions has no option 'learning_rate'"),
        (PPO, {"optimizer": ChainSum()}, "PPO: optimizer: expected OptimizerOptions, not an object of class ChainSum"),
        (DPO, {"reduction": "mean"}, "DPO: reduction: .*seq_mean"),
        (SFT, {"policy": None}, "SFT: policy: expected str, not None"),
        (SFT, {"policy": torch.nn.Linear(1, 1)}, "SFT: policy: expected str, not an object of class Linear"),
        (RolloutDataModule, {"group_size": 4.5}, "RolloutDataModule: group_size: expected int"),
        (RolloutDataModule, {"sampling": {"max_tokens": 4}}, "Sampling has no option 'max_tokens'.*max_new_tokens"),
        (RolloutDataModule, {"prompts": {"class_path": "ChainSumm"}}, "did you mean 'ChainSum'"),
        (RewardDataModule, {"origin": "file"}, "RewardDataModule: origin"),
        (DemonstrationDataModule, {"sampling": OptimizerOptions()}, "sampling: expected Sampling, not an object of"),
        (Tuned, {"tau": "cold"}, "Tuned: tau: expected float"),
        (Tuned, {"tua": object()}, "Tuned has no option 'tua'; did you mean 'tau'"),
    ],
)
def test_a_mistake_ends_in_one_line_that_names_it(kind, options, message):
    with pytest.raises(UserError, match=message) as caught:
        kind(**options)
    assert "\n" not in str(caught.value)


def test_a_users_subclass_has_options_of_its_own():
    table = object()
    module = Tuned(tau=2, table=table, kl_coef=0.0)
    assert (module.tau, module.table) == (2.0, table)


def test_a_class_without_readable_text_takes_the_options_of_its_ancestors():
    names: dict = {"GRPO": GRPO}
    text = "class Typed(GRPO):\n  def __init__(self, tau: float = 1.0, **o):\n    super().__init__(**o)\n    self.tau = tau\n"
    exec(text, names)  # as a line typed into `python -c`
    typed = names["Typed"]
    assert typed(tau=3.0, optimizer={"lr": 1.0}).optimizer_options.lr == 1.0
    with pytest.raises(UserError, match="Typed: kl_coef: expected float"):
        typed(kl_coef="x")
    with pytest.raises(UserError, match="Typed has no option 'tua'"):
        typed(tua=1.0)


def test_what_an_object_was_made_from_can_be_written_down():
    module = Tuned(tau=2.0, table=object(), optimizer=OptimizerOptions(lr=1.0), kl_coef=0.0)
    written = plain_options(module)
    assert "table" not in written, "no file can hold an object"
    assert written["tau"] == 2.0 and written["optimizer"]["lr"] == 1.0
    again = Tuned(**written)
    assert again.optimizer_options == module.optimizer_options and again.kl_coef == 0.0


def test_data_can_be_printed_before_a_run():
    assert str(RolloutDataModule()) == "RolloutDataModule(ChainSum)"


def test_copies_are_made_without_options():
    assert copy.deepcopy(RolloutDataModule(group_size=2)).group_size == 2


def test_a_class_may_turn_what_people_hold_into_what_an_option_takes():
    class Counted(metaclass=Checked):
        accepts: ClassVar = {"size": lambda value: len(value) if isinstance(value, str) else value}

        def __init__(self, size: int = 0) -> None:
            self.size = size

    assert Counted(size="four").size == 4
    assert Counted(size=3).size == 3


def test_the_source_of_a_class_is_read_once_for_all_of_its_objects(monkeypatch):
    class Again(metaclass=Checked):
        def __init__(self, size: int = 0, table: object = None) -> None:
            self.size = size

    read = []
    real = Parser.add_class_arguments
    monkeypatch.setattr(Parser, "add_class_arguments", lambda *a, **options: read.append(a) or real(*a, **options))
    assert [Again(size=size).size for size in (1, 2, 3)] == [1, 2, 3]
    with pytest.raises(UserError, match="Again: size: expected int"):
        Again(size="x")
    assert Again().size == 0, "nothing stays of the objects before"
    assert len(read) == 1
