"""Every public class that takes options says in one line what is wrong with one, whatever is given for it."""

import importlib
import inspect

import pytest

from rl_lightning.environments import EnvironmentSpec
from rl_lightning.errors import UserError
from rl_lightning.options import Checked
from rl_lightning.rewards import RewardSpec
from rl_lightning.typed import Typed, constructor

ROOMS = ("", ".callbacks", ".data", ".data.sources", ".generation", ".rewards", ".algorithms", ".models")
#: What a class cannot be made without.
NEEDED = {
    "DatasetExamples": {"path": "data"},
    "FileExamples": {"train": "rows.jsonl"},
    "TableExamples": {"train": [{"prompt": "1="}]},
    "BatchReward": {"function": len},
}


def public(kind):
    found = {}
    for room in ROOMS:
        module = importlib.import_module(f"rl_lightning{room}")
        for name in module.__all__:
            one = getattr(module, name)
            if inspect.isclass(one) and isinstance(one, kind) and not inspect.isabstract(one):
                found[name] = one
    return found


class Other:
    """No option takes one."""


WRONG = ["wrong", -1, 3.5, True, [Other()], {"a": Other()}, Other(), b"x", {1}, float("nan"), None, "", [], {}]
TYPED = public(Typed)


def made(kind, /, **options):
    """Return what is said of options; None if nothing is."""
    try:
        kind(**{**NEEDED.get(kind.__name__, {}), **options})
    except UserError as error:
        return str(error)
    return None


def test_what_takes_options_is_looked_at():
    assert {"FileExamples", "GroupNormalize", "HFExport", "Sampling", "PromptOptions", "RewardLimits"} <= TYPED.keys()
    assert {"PolicyFiles", "ClassifierFiles", "CriticFiles", "Critic", "Judge", "WorkerPool"} <= TYPED.keys()
    plain = {name for name in public(type) if name.endswith(("Options", "Examples", "Limits", "Callback", "Generator"))}
    assert plain <= TYPED.keys() | public(Checked).keys()


@pytest.mark.parametrize("name", sorted(TYPED))
def test_a_wrong_value_is_one_line(name):
    kind = TYPED[name]
    assert [*inspect.signature(kind).parameters] == [*inspect.signature(constructor(kind)).parameters][1:]
    said = made(kind, no_such_option=1)
    assert said is not None and f"{name} has no option 'no_such_option'" in said
    for option in inspect.signature(kind).parameters.values():
        for value in WRONG if option.kind in (option.POSITIONAL_OR_KEYWORD, option.KEYWORD_ONLY) else ():
            said = made(kind, **{option.name: value})
            assert said is None or "\n" not in said, (option, value)
        if option.kind == option.POSITIONAL_OR_KEYWORD and option.annotation not in ("Any", "object"):
            assert made(kind, **{option.name: Other()}) is not None, f"{option} takes anything"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda all: all["Judge"]("nowhere"), "Judge: files: expected ClassifierFiles, not 'nowhere'"),
        (lambda all: all["Critic"]("nowhere"), "Critic: backbone: expected PreTrainedModel, not 'nowhere'"),
        (lambda all: all["PolicyFiles"](5), "PolicyFiles: policy: expected str or os.PathLike[str], not 5"),
        (lambda all: all["WorkerPool"]("two"), "WorkerPool: workers: expected int, not 'two'"),
        (lambda all: RewardSpec(function=5), "function of a reward cannot be 5"),
        (lambda all: EnvironmentSpec(function=5), "environment: its function and tools are functions"),
        (
            lambda all: all["FileExamples"](promt_column="q"),
            "FileExamples has no option 'promt_column'; did you mean 'prompt_column'?",
        ),
        (lambda all: all["FileExamples"](train="a", limit="3"), "FileExamples: limit: expected int, not '3'"),
        (
            lambda all: all["FileExamples"](train="a", val=True),
            "FileExamples: val: expected int or float or str or list[str], not True",
        ),
        (lambda all: all["FileExamples"](train="a", val=1.0), "val: 1.0 is neither a share between 0 and 1"),
        (lambda all: all["FileExamples"](train="a", share=0.1), "FileExamples has no option 'share'"),
        (lambda all: all["DatasetExamples"](), "DatasetExamples needs path"),
        (lambda all: all["GroupNormalize"]("std", 1, 2, 3, 4, 5), "GroupNormalize takes "),
        (lambda all: all["Sampling"](max_new_tokens=True), "Sampling: max_new_tokens: expected int, not True"),
        (lambda all: all["Sampling"](5, max_new_tokens=5), "Sampling: max_new_tokens is given twice"),
    ],
)
def test_what_is_said(make, message):
    with pytest.raises(UserError) as caught:
        make(TYPED)
    assert str(caught.value).startswith(message)
