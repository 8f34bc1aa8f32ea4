"""The chat template as an option: a file, values, a prefix; and what is exported."""

import json
import logging

import pytest
import torch
from transformers import AutoTokenizer

from rl_lightning.algorithms import RFT, SFT
from rl_lightning.callbacks import HFExport, RejectionSampling
from rl_lightning.data import DemonstrationDataModule, PromptOptions, RewardDataModule
from rl_lightning.data.sources import FileExamples
from rl_lightning.errors import UserError
from tests.support import trainer
from tests.tokenizers import CHATML, build
from tests.unit.data.test_chat_runs import policy

TEMPLATE = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ '/no_think' if thinking is defined and not thinking }}")
TURNS = [{"role": "user", "content": "1+2="}, {"role": "assistant", "content": "3"}]
TURNS += [{"role": "user", "content": "+4="}, {"role": "assistant", "content": "7"}]


def source(tmp_path, rows, **columns):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileExamples(train=str(path), **columns)


def fit(module, data, directory, *callbacks):
    run = trainer(directory, list(callbacks), online=False, limit_val_batches=0, max_steps=1)
    run.fit(module, datamodule=data)
    return data


def test_the_template_of_training_is_exported(tmp_path):
    path, _ = policy("gpt2", tmp_path / "policy")  # which has no template of its own
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    options = PromptOptions(
        chat_template=str(tmp_path / "chat.jinja"),
        chat_template_kwargs={"thinking": False},
        assistant_prefix="<think>\n",
    )
    rows = [{"messages": TURNS[:2]}, {"messages": TURNS[:2], "chat_template_kwargs": {"thinking": True}}] * 2
    data = DemonstrationDataModule(prompts=source(tmp_path, rows), prompt_options=options, batch_size=2, seed=0)
    fit(SFT(policy=path), data, tmp_path, HFExport(str(tmp_path / "hf")))
    train = data.encoded["train"]
    assert train[0].text == "<|im_start|>user\n1+2=/no_think<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert train[1].text == "<|im_start|>user\n1+2=<|im_end|>\n<|im_start|>assistant\n<think>\n"
    exported = AutoTokenizer.from_pretrained(tmp_path / "hf")
    asked = exported.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    assert asked == train[0].text
    # Training that goes on from it does not write the prefix twice.
    again = DemonstrationDataModule(prompts=source(tmp_path, rows), prompt_options=options, batch_size=2, seed=0)
    fit(SFT(policy=str(tmp_path / "hf")), again, tmp_path / "again")
    assert again.encoded["train"][0].text == asked


def test_the_last_turn_alone_is_learnt_if_asked_for(tmp_path):
    path, tokenizer = policy("qwen-base", tmp_path / "policy")
    learnt = {}
    for learn in ("all", "last"):
        rows = source(tmp_path, [{"messages": TURNS}, {"messages": TURNS[:2]}])
        data = DemonstrationDataModule(prompts=rows, batch_size=2, learn=learn, seed=0)
        fit(SFT(policy=path), data, tmp_path / learn)
        batch = data.table.batch(torch.tensor([0, 1]))
        learnt[learn] = [
            tokenizer.decode(ids[mask]) for ids, mask in zip(batch.response_ids, batch.response_mask, strict=True)
        ]
    assert learnt == {"all": ["3<|im_end|>7<|im_end|>", "3<|im_end|>"], "last": ["7<|im_end|>", "3<|im_end|>"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template": "no.jinja"}, "chat_template: there is no file no.jinja"),
        ({"chat_template": "bad.jinja"}, r"chat_template: bad.jinja:2 is no chat template"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs is set, and there is no chat template"),
        ({"assistant_prefix": "<think>"}, "assistant_prefix is set, and there is no chat template"),
    ],
)
def test_templates_that_are_not_there(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jinja").write_text("{{ messages }}\n{% for %}")
    with pytest.raises(UserError, match=message):
        PromptOptions(**options).prepare(build("gpt2"))


def test_options_that_mean_nothing_alone():
    with pytest.raises(UserError, match="truncation: left without a limit"):
        PromptOptions(truncation="left")
    with pytest.raises(UserError, match="'a-b' is no name"):
        PromptOptions(chat_template_kwargs={"a-b": 1})


def test_one_line_says_what_the_rows_are_and_why_some_are_left_out(tmp_path, caplog):
    path, _ = policy("qwen-base", tmp_path / "policy")
    rows = [{"messages": TURNS}, {"messages": TURNS[:2]}, {"messages": TURNS[:2]}]
    data = DemonstrationDataModule(prompts=source(tmp_path, rows), batch_size=2, max_length=25, seed=0)
    with caplog.at_level(logging.INFO):
        fit(SFT(policy=path), data, tmp_path)
    assert "train data: demonstrations, conversational; 3 rows, 1 dropped: 1 longer than max_length: 25" in caplog.text


# ------------------------------------------------------------------------------------------------------------- labels


LABELLED = [{"prompt": f"{n}+1=", "completion": str(n + 1), "label": n % 2 == 0} for n in range(8)]


def test_labels_are_rewards_where_none_are_listed(tmp_path):
    path, _ = policy("qwen-base", tmp_path / "policy")
    data = RewardDataModule(prompts=source(tmp_path, LABELLED), origin="files", batch_size=4, seed=0)
    fit(RFT(policy=path), data, tmp_path, RejectionSampling())
    rows = data.table.rows
    assert len(rows) == 4 and all(rows.rewards == 1.0) and list(rows.reward_components) == ["label"]
    assert sorted(int(text) % 2 for text in rows.responses) == [1, 1, 1, 1]


def test_responses_without_labels_or_rewards(tmp_path):
    path, _ = policy("qwen-base", tmp_path / "policy")
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in LABELLED]
    data = RewardDataModule(prompts=source(tmp_path, rows), origin="files", batch_size=4, seed=0)
    with pytest.raises(
        UserError, match=r"has no reward of its own, and its rows hold no gold answers .*: give the DataModule one"
    ):
        fit(RFT(policy=path), data, tmp_path, RejectionSampling())
