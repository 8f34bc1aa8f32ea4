"""Callbacks that write something down."""

import json
import random
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard import plugin_util
from transformers import PreTrainedTokenizerBase

from rl_lightning.algorithms import GRPO, OptimizerOptions
from rl_lightning.callbacks import HFExport, PredictionWriter, RNGState, RunCard, SampleTable
from rl_lightning.callbacks.run_card import _formula, _parameters
from rl_lightning.callbacks.samples import SampleRows, markdown
from rl_lightning.data import ChainSum, RolloutDataModule
from rl_lightning.errors import UserError
from rl_lightning.generation import Sampling
from rl_lightning.models import LoraOptions, PolicyFiles
from tests.checks import assert_same, holds_only_for
from tests.support import StoredRollouts, random_rollout, trainer

# ------------------------------------------------------------------------------------------------------ SampleTable


class Cells(HTMLParser):
    """Reads the rows of an HTML table, a line break as a newline."""

    def __init__(self, page):
        super().__init__()
        self.rows = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True
        elif tag == "br":
            self.rows[-1][-1] += "\n"
        elif tag not in ("table", "thead", "tbody", "code"):
            raise AssertionError(f"<{tag}> in the table")

    def handle_endtag(self, tag):
        self.inside &= tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def shown(markdown):
    """Return the cells as TensorBoard shows them."""
    return Cells(plugin_util.markdown_to_safe_html(markdown)).rows


def table_of(responses, **settings):
    rollout = random_rollout(groups=len(responses), group_size=1)
    rollout.responses = list(responses)
    rollout.prompts = [f"prompt {row}" for row in range(len(responses))]
    return markdown(SampleTable(**settings).samples(rollout))


HOSTILE = [
    "a | b || c",
    "first\nsecond\r\nthird\rfourth",
    "<b>bold</b> <script>alert(1)</script> </code> &amp; &lt;",
    "2*3*4 = _24_ __x__ **y** `code` ~~z~~",
    "[link](http://example.com) ![image](x.png) <http://example.com>",
    "\\boxed{\\frac{1}{2}} $x^2$ \\| \\* #1",
    "# heading",
    "| --- | --- |",
    "naïve 数学 “quoted” 'single' \"double\"",
]


def unescaped(responses, **settings):
    escaped = table_of(["@@"] * len(responses), **settings)
    for response in responses:
        escaped = escaped.replace("<code>&#64;&#64;</code>", f"<code>{response}</code>", 1)
    return escaped


def escapes_html_only(responses, **settings):
    return unescaped([r.replace("&", "&amp;").replace("<", "&lt;").replace("\n", "<br>") for r in responses])


@holds_only_for(table_of, unescaped=unescaped, escapes_html_only=escapes_html_only)
def test_responses_are_shown_as_they_are(implementation):
    rows = shown(implementation(HOSTILE, groups=len(HOSTILE)))
    assert rows[0] == ["prompt", "gold", "response", "length", "cut", "reward", "advantage"]
    assert [row[2] for row in rows[1:]] == [text.replace("\r\n", "\n").replace("\r", "\n") for text in HOSTILE]
    assert {len(row) for row in rows} == {7}


@pytest.mark.parametrize("max_chars", [1, 10, 11, 400])
def test_long_texts_are_cut_in_the_middle(max_chars):
    half = max_chars // 2
    whole = shown(table_of(["a" * max_chars, "ab" * 500], max_chars=max_chars))
    assert whole[1][2] == "a" * max_chars
    start, end = whole[2][2].split("…")
    assert start == ("ab" * 500)[:half] + " " and end == " " + ("ab" * 500)[1000 - half :]


def test_a_table_has_some_groups_some_members_and_their_numbers():
    rollout = random_rollout(groups=3, group_size=4)
    rollout.prompts = [f"p{row // 4}" for row in range(12)]
    rollout.responses = [f"r{row}" for row in range(12)]
    rollout.answers = ["7", *[None] * 11]
    rollout.truncated[:] = False
    rollout.truncated[1] = True
    rollout.rewards[0], rollout.rewards[1] = 0.126, torch.nan
    rollout.advantages[0, 0] = -1.239
    table = SampleTable(groups=2, per_group=3).samples(rollout)
    assert table.columns == ["prompt", "gold", "response", "length", "cut", "reward", "advantage"]
    # The prompt and the gold answer stand once a group.
    assert [row[:3] for row in table.rows] == [
        ["p0", "7", "r0"], [None, None, "r1"], [None, None, "r2"], ["p1", None, "r4"], [None, None, "r5"], [None, None, "r6"],
    ]  # fmt: skip
    rows = shown(markdown(table))[1:]
    assert rows[0] == ["p0", "7", "r0", str(int(rollout.lengths[0])), "", "0.13", "-1.24"]
    assert rows[1][:2] == ["", ""] and rows[1][4:6] == ["yes", "nan"]
    rollout.advantages = None
    assert "advantage" not in SampleTable().samples(rollout).columns


def test_each_reward_has_its_part_where_there_are_several():
    rollout = random_rollout(groups=1, group_size=2)
    rollout.reward_components = {"answer": torch.tensor([1.0, 0.0])}
    assert "answer" not in SampleTable().samples(rollout).columns
    rollout.reward_components["a|_style_"] = torch.tensor([0.25, torch.nan])
    table = SampleTable().samples(rollout)
    assert dict(zip(table.columns, table.rows[0], strict=True))["a|_style_"] == 0.25
    heads, *rows = shown(markdown(table))
    assert heads[6:8] == ["answer", "a|_style_"] and [row[6:8] for row in rows] == [["1.00", "0.25"], ["0.00", "nan"]]


def test_what_rewards_noted_has_columns_of_its_own():
    rollout = random_rollout(groups=1, group_size=2)
    rollout.notes = [
        {"right": {"read": "4|2", "why": "another value"}},
        {"right": {"read": None}, "style": {"why": "x" * 900}},
    ]
    table = SampleTable().samples(rollout)
    first, second = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert table.columns[:3] == ["prompt", "gold", "response"]
    assert {name: first[name] for name in ("read", "right why", "style why")} == {
        "read": "4|2", "right why": "another value", "style why": None,
    }  # fmt: skip
    assert second["read"] is None and len(second["style why"]) < 500
    rollout.notes = None
    assert "read" not in SampleTable().samples(rollout).columns


def test_what_was_read_stands_before_why_it_is_wrong():
    rollout = random_rollout(groups=1, group_size=2)
    for notes in (
        [{"a": {"why": "x"}}, {"a": {"read": "4", "other": "y"}}],
        [{"a": {"other": "y", "read": "4"}}, {"a": {"why": "x"}}],
    ):
        rollout.notes = notes
        columns = SampleTable().samples(rollout).columns
        assert columns[columns.index("response") + 1 :][:3] == ["read", "why", "other"]


def test_a_cell_may_be_anything():
    table = SampleRows(["a", "b"], [[None, True], [False, 3], [0.125, "x|y"]])
    assert shown(markdown(table)) == [["a", "b"], ["", "yes"], ["", "3"], ["0.12", "x|y"]]


# ---------------------------------------------------------------------------------------------------------- RNGState


def numbers():
    return [
        random.random(),
        random.gauss(0, 1),
        *np.random.rand(2),
        np.random.standard_normal(),
        *torch.rand(2).tolist(),
    ]


def test_random_states_survive_a_checkpoint(tmp_path):
    for _ in range(2):
        random.gauss(0, 1)  # each keeps a second number for later
        np.random.standard_normal()
    torch.save(RNGState().state_dict(), tmp_path / "state.pt")
    expected = numbers()
    assert numbers() != expected
    callback = RNGState()
    callback.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert numbers() != expected, "restored only once training starts"
    callback.on_train_start(None, None)
    assert numbers() == expected
    following = numbers()
    callback.on_train_start(None, None)
    assert numbers() != following, "restored a second time"


# ---------------------------------------------------------------------------------------------------------- HFExport


def train(policy, directory, callbacks, **options):
    module = GRPO(policy=policy, optimizer=OptimizerOptions(lr=1e-2))
    data = StoredRollouts(random_rollout(dtype=torch.float32), group_size=4)
    trainer(directory, callbacks, **options).fit(module, datamodule=data)
    return module


@pytest.mark.parametrize("named", [False, True])
def test_the_exported_policy_is_the_trained_one(tiny_policy, tmp_path, named):
    target = tmp_path / "exported" if named else tmp_path / "hf"
    module = train(tiny_policy, tmp_path, [HFExport(str(target) if named else None)])
    files = PolicyFiles(str(target))
    batch = random_rollout().microbatch(torch.arange(16))
    with torch.no_grad():
        trained = module.logprobs(batch, module.policy.eval())
        assert_same(module.logprobs(batch, files.load().eval()), trained)
        before = module.logprobs(batch, PolicyFiles(tiny_policy).load().eval())
    assert float((trained - before).abs().max()) > 0.01, "training changed nothing"
    assert files.stop_ids == module.policy_files.stop_ids
    assert files.tokenizer("1+2=").input_ids == module.policy_files.tokenizer("1+2=").input_ids


def test_an_export_replaces_another_one_whole_or_not_at_all(tiny_policy, tmp_path, monkeypatch):
    """Weights of another number of files go, other files stay; who has the old ones open goes on with them."""
    target = Path(shutil.copytree(tiny_policy, tmp_path / "hf"))
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "notes.md"):
        (target / name).write_text(name)
    before = (target / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerBase, "save_pretrained", lambda *given, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tiny_policy, tmp_path, [HFExport(str(target))])
    assert (target / "model.safetensors").read_bytes() == before
    assert (target / "model.safetensors.index.json").exists() and not [*target.glob(".*")]
    with (target / "model.safetensors").open("rb") as old:
        train(tiny_policy, tmp_path, [HFExport(str(target))])
        assert old.read() == before != (target / "model.safetensors").read_bytes()
    assert not [*target.glob("model*00001*"), *target.glob("*.index.json"), *target.glob(".*")]
    assert (target / "notes.md").exists() and PolicyFiles(str(target)).load() is not None


@pytest.mark.parametrize("merged_first", [False, True])
def test_a_model_and_an_adapter_are_not_exported_into_one_directory(merged_first, tiny_policy, tmp_path):
    """transformers would read both together; and a model that lies there may be the adapter's own base."""

    def export(merge):
        module = GRPO(policy=tiny_policy, optimizer=OptimizerOptions(lr=1e-2), lora=LoraOptions(rank=2))
        data = StoredRollouts(random_rollout(dtype=torch.float32), group_size=4)
        trainer(tmp_path, [HFExport(str(tmp_path / "hf"), merge=merge)]).fit(module, datamodule=data)
        return {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}

    before = export(merged_first)
    with pytest.raises(
        UserError, match=r"hf holds .* beside it would be read together with it: set dirpath, or move it"
    ):
        export(not merged_first)
    assert {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()} == before
    assert export(merged_first).keys() == before.keys()  # the same kind takes its place


def test_a_trial_run_exports_nothing(tiny_policy, tmp_path):
    train(tiny_policy, tmp_path, [HFExport(str(tmp_path / "hf"))], fast_dev_run=True)
    assert not (tmp_path / "hf").exists()


# -------------------------------------------------------------------------------------------------- PredictionWriter


def lines(file):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


def predictions(path, batches, **ranks):
    run = SimpleNamespace(**({"world_size": 1, "global_rank": 0, "default_root_dir": "."} | ranks))
    writer = PredictionWriter(str(path))
    writer.on_predict_start(run, None)
    for number, batch in enumerate(batches):
        writer.on_predict_batch_end(run, None, batch, batch, number)
    writer.on_predict_end(run, None)


def test_a_line_for_every_response(tmp_path, capsys):
    rollout = random_rollout(groups=2, group_size=2)
    rollout.responses = ["one\ntwo", "数学", 'a "quoted" \\ text', "\u2028"]
    rollout.prompts = ["p", "p", "q", "q"]
    rollout.answers = ["3", "3", None, None]
    rollout.rewards = torch.tensor([1.0, 0.5, torch.nan, 0.0])
    rollout.correct = torch.tensor([True, False, False, False])
    rollout.truncated[3] = True
    rollout.prompt_index = torch.tensor([8, 8, 6, 6])
    file = tmp_path / "new" / "answers.jsonl"
    for _ in range(2):  # a second run begins anew
        predictions(file, [rollout.select(torch.arange(3)), rollout.select(torch.arange(3, 4))])
    written = lines(file)
    assert [line["response"] for line in written] == rollout.responses
    assert [line["reward"] for line in written] == [1.0, 0.5, None, 0.0]
    assert [line["length"] for line in written] == rollout.lengths.tolist()
    assert written[0] == {
        "prompt_index": 8, "prompt": "p", "response": "one\ntwo", "answer": "3", "reward": 1.0, "correct": True,
        "length": int(rollout.lengths[0]), "truncated": False,
    }  # fmt: skip
    assert written[3]["truncated"] is True and written[3]["answer"] is None
    assert "数学" in file.read_text(encoding="utf-8") and str(file) in capsys.readouterr().out


def test_half_a_surrogate_pair_is_written_as_its_escape(tmp_path):
    rollout = random_rollout(groups=1, group_size=2)
    rollout.responses, rollout.answers = ["a\ud800", "數"], ["\udfff", None]
    predictions(tmp_path / "answers.jsonl", [rollout])
    assert [line["response"] for line in lines(tmp_path / "answers.jsonl")] == rollout.responses
    assert "\\ud800" in markdown(SampleTable().samples(rollout)).encode().decode().replace("&#92;", "\\")


def test_every_rank_writes_a_file_of_its_own(tmp_path):
    for rank in range(2):
        part = random_rollout(groups=rank + 1, group_size=2)
        predictions(tmp_path / "answers.jsonl", [part], world_size=2, global_rank=rank)
    assert len(lines(tmp_path / "answers.0.jsonl")) == 2 and len(lines(tmp_path / "answers.1.jsonl")) == 4


# ----------------------------------------------------------------------------------------------------------- RunCard


def test_the_run_card_has_the_numbers(tiny_policy, tmp_path, capsys):
    module = GRPO(policy=tiny_policy, optimizer=OptimizerOptions(lr=3e-4, schedule="linear"), kl_coef=0.07)
    data = RolloutDataModule(
        prompts=ChainSum(train_size=24, val_size=4), sampling=Sampling(max_new_tokens=6, temperature=0.9),
        prompts_per_rollout=8, group_size=4, epochs_per_rollout=2, minibatch_size=16, microbatch_size=8,
    )  # fmt: skip
    trainer(tmp_path, [RunCard()], max_epochs=3, max_steps=1, gradient_clip_val=0.5).fit(module, datamodule=data)
    card = capsys.readouterr().out
    parameters = sum(parameter.numel() for parameter in module.policy.parameters())
    for part in (
        "GRPO", f"{parameters / 1000:.3g} k parameters", "float32", tiny_policy, "ChainSum: 24 train",
        "8 prompts × 4 responses = 32, up to 6 tokens each, temperature 0.9",
        "4 a rollout, 16 responses (up to 96 tokens) each in 2 microbatch(es)", "kl_coef 0.07",
        "1 steps, lr 0.0003 (linear)", "clip 0.5", f"reference {4 * parameters / 1000:.3g} kB", "1 × cpu", str(tmp_path),
    ):  # fmt: skip
        assert part in card, f"{part!r} is not in\n{card}"


class Renamed(GRPO):
    pass


class Unclipped(GRPO):
    def surrogate(self, batch, logprobs):
        return self.ratio(batch, logprobs) * batch.advantages


class Said(Unclipped):
    formula = "J = ρ A"


def test_a_formula_is_that_of_the_objective():
    assert _formula(Renamed) == _formula(GRPO) == GRPO.formula
    assert _formula(Unclipped).startswith("J by Unclipped.surrogate")
    assert _formula(Said) == "J = ρ A"


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999"), (12_345, "12.3 k"), (999_400, "999 k"), (999_999, "1 M"), (134_515_008, "135 M"), (2e9, "2 B")],
)
def test_parameters_are_counted_in_three_digits(count, text):
    assert _parameters(int(count)) == text
