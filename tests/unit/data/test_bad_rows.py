"""Rows that nobody can learn from: named, or dropped and counted by reason; and texts that are too long."""

import gzip
import json
import logging
import os

import pytest
import torch

from rl_lightning.algorithms import DPO, RFT, SFT
from rl_lightning.callbacks import RejectionSampling
from rl_lightning.data import DemonstrationDataModule, RewardDataModule
from rl_lightning.data.sampling import PromptOptions
from rl_lightning.data.sources import FileExamples
from rl_lightning.errors import UserError
from rl_lightning.rewards import RewardSpec
from tests.support import trainer

GOOD = [json.dumps({"prompt": f"{n}+1=", "answer": str(n + 1), "response": f"{n + 1}#"}) for n in range(4)]
BAD = {
    '{"prompt": "1': "invalid JSON",
    b'{"prompt": "\xff"}': "not UTF-8 text",
    "[" * 9 + "{" + "]" * 9: "invalid JSON",
    '{"a":' * 100_000: "JSON that is nested too deeply",
    "3": "not a JSON object",
    '{"prompt": "1=", "answer": null, "response": "1"}': "column 'answer' is null",
    '{"prompt": "1=", "answer": "1", "response": " "}': "column 'response' is empty",
    '{"prompt": "1=", "answer": "1", "response": 3}': "column 'response' is of type int, not text",
    '{"prompt": "1=", "answer": "1"}': "column 'response' is missing",
    '{"prompt": [{"role": "user", "content": ""}], "answer": "1", "response": "1"}': "column 'prompt' has a message without content",
    '{"prompt": "1\\ud800", "answer": "1", "response": "1"}': "column 'prompt' holds half of a surrogate pair, which is no character",
    '{"prompt": "1=", "answer": "1", "response": "\\udc00"}': "column 'response' holds half of a surrogate pair, which is no character",
    "\x00" * 9: "invalid JSON",
}


def write(path, lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return str(path)


def demonstrations(path, on_bad="drop", **options):
    source = FileExamples(train=path, response_column="response")
    return DemonstrationDataModule(
        prompts=source, prompt_options=PromptOptions(on_bad=on_bad), batch_size=2, seed=0, **options
    )


def fit(data, module, directory, *callbacks):
    trainer(directory, list(callbacks), online=False, limit_val_batches=0, max_steps=1).fit(module, datamodule=data)
    return data


def test_whatever_is_wrong_with_a_row_it_is_dropped_and_counted_by_reason(tiny_policy, tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", ["\ufeff" + GOOD[0], *BAD, *GOOD[1:]])
    with caplog.at_level(logging.WARNING):
        data = fit(demonstrations(path), SFT(policy=tiny_policy), tmp_path)
    assert len(data.table) == 4
    (line,) = [record.message for record in caplog.records if record.message.startswith("dropped")]
    assert line.startswith(f"dropped {len(BAD)} of {len(BAD) + 4} prompts: ")
    for reason in set(BAD.values()):
        assert f"{list(BAD.values()).count(reason)} {reason}" in line


def test_every_one_of_them_is_named_where_they_are_errors(tiny_policy, tmp_path):
    path = write(tmp_path / "a.jsonl", [*GOOD, *BAD])
    with pytest.raises(UserError) as caught:
        fit(demonstrations(path, "error"), SFT(policy=tiny_policy), tmp_path)
    named = {line.split(":")[1] for line in str(caught.value).splitlines()[1:]}
    assert named == {str(number) for number in range(5, 5 + len(BAD))}


def test_an_answer_of_more_digits_than_python_converts_is_its_text(tmp_path):
    digits = "7" * 5000
    path = write(tmp_path / "a.jsonl", [f'{{"prompt": "1=", "answer": {digits}, "other": -{digits}}}'])
    (example,) = FileExamples(train=path).load("train")
    assert example.answer == digits and example.metadata["other"] == f"-{digits}"


def test_a_column_that_no_row_has_is_no_row_to_drop(tiny_policy, tmp_path):
    path = write(tmp_path / "a.jsonl", ['{"prompt": "1=", "answer": "1"}'] * 4)
    with pytest.raises(UserError, match="no column 'response'"):
        fit(demonstrations(path), SFT(policy=tiny_policy), tmp_path)


def test_nothing_left(tiny_policy, tmp_path):
    path = write(tmp_path / "a.jsonl", list(BAD)[5:8])
    with pytest.raises(UserError, match="no prompts are left of 3: 1 column"):
        fit(demonstrations(path), SFT(policy=tiny_policy), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_one_line(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = write(folder / "a.jsonl", GOOD)
    os.chmod(folder, 0)
    try:
        for name in (path, str(folder / "b.jsonl")):
            with pytest.raises(UserError, match="cannot be read: Permission denied"):
                FileExamples(train=name).load("train")
    finally:
        os.chmod(folder, 0o700)


def test_an_error_of_the_system_on_the_way_is_one_line(tmp_path, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.is_dir", denied)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        FileExamples(train=str(tmp_path / "a.jsonl")).load("train")


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz"])
def test_a_file_that_is_none_of_its_kind_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(
        b"\x00\xffno such thing" if name.endswith("parquet") else gzip.compress(b"x" * 99)[:20]
    )
    with pytest.raises(UserError, match="cannot be read"):
        FileExamples(train=str(tmp_path / name)).load("train")


# ------------------------------------------------------------------------------------------------------- too long

LONG = json.dumps({"prompt": "1+1+1+1+1+1=", "answer": "6", "response": "1234#6"})


def served(data):
    return [[*prompt.input_ids, *prompt.written[0]] for prompt in data.encoded["train"]]


def test_longer_texts_are_dropped_or_lose_the_beginning_of_their_prompt(tiny_policy, tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", [*GOOD, LONG])
    whole = served(fit(demonstrations(path, "error"), SFT(policy=tiny_policy), tmp_path))
    assert [len(row) for row in whole] == [7] * 4 + [19]
    with caplog.at_level(logging.WARNING):
        dropped = fit(demonstrations(path, "error", max_length=10), SFT(policy=tiny_policy), tmp_path)
    assert served(dropped) == whole[:4]
    assert "dropped 1 of 5 prompts: 1 longer than max_length: 10" in caplog.text
    cut = fit(demonstrations(path, "error", max_length=10, truncation="left"), SFT(policy=tiny_policy), tmp_path)
    assert served(cut) == [*whole[:4], whole[4][-10:]]
    assert served(fit(demonstrations(path, max_length=19), SFT(policy=tiny_policy), tmp_path)) == whole


def test_a_response_is_never_cut(tiny_policy, tmp_path, caplog):
    path = write(tmp_path / "a.jsonl", [*GOOD, LONG])
    with caplog.at_level(logging.WARNING):
        data = fit(demonstrations(path, max_length=7, truncation="left"), SFT(policy=tiny_policy), tmp_path)
    assert len(data.table) == 4 and "1 response without room for a prompt in max_length: 7" in caplog.text


def test_what_the_policy_cannot_read_is_an_error_or_dropped(tiny_policy, tmp_path, caplog):
    endless = json.dumps({"prompt": "1=", "answer": "1", "response": "1" * 80})
    path = write(tmp_path / "a.jsonl", [*GOOD, endless])
    said = r"a\.jsonl:5: prompt and response have 83 tokens, more than the policy's context of 64"
    with pytest.raises(UserError, match=said):
        fit(demonstrations(path, "error"), SFT(policy=tiny_policy), tmp_path)
    with caplog.at_level(logging.WARNING):
        assert len(fit(demonstrations(path), SFT(policy=tiny_policy), tmp_path).table) == 4
    assert "dropped 1 of 5 prompts: 1 longer than the policy's context of 64" in caplog.text


def test_both_responses_of_a_pair_follow_the_same_cut_prompt(tiny_policy, tmp_path):
    rows = [{"prompt": "1+1+1=", "good": "3#", "bad": "1;2;4#"}, {"prompt": "2+1=", "good": "3#", "bad": "4#"}]
    path = write(tmp_path / "p.jsonl", map(json.dumps, rows))
    source = FileExamples(train=path, answer_column=None, response_column="good", rejected_column="bad")
    options = {"max_length": 10, "truncation": "left", "batch_size": 2, "seed": 0}
    data = fit(RewardDataModule(prompts=source, origin="files", **options), DPO(policy=tiny_policy), tmp_path)
    pair = data.table.batch(torch.tensor([0]))
    prompts = pair.input_ids[:, : -pair.response_length][pair.attention_mask[:, : -pair.response_length]].view(2, -1)
    assert prompts.tolist() == [data.encoded["train"][0].input_ids] * 2 and prompts.shape[1] == 3
    assert int(pair.attention_mask.sum(1).max()) == 10


def test_scored_responses_are_cut_and_dropped_too(tiny_policy, tmp_path):
    path = write(tmp_path / "a.jsonl", [*GOOD, LONG])
    source = FileExamples(train=path, response_column="response")
    reward = RewardSpec("rl_lightning.rewards.functions.response_length")
    for truncation, count in (("drop", 4), ("left", 5)):
        data = RewardDataModule(
            prompts=source, origin="files", rewards=[reward], max_length=10, truncation=truncation, batch_size=2, seed=0
        )
        fit(data, RFT(policy=tiny_policy), tmp_path / truncation, RejectionSampling(threshold=0.0))
        assert len(data.table.rows) == count and int(data.table.tokens().max()) == (10 if truncation == "left" else 7)


def test_max_length_is_of_written_text(tiny_policy, tmp_path):
    data = RewardDataModule(max_length=10, batch_size=2, seed=0)
    with pytest.raises(UserError, match="max_length and truncation are of written text"):
        fit(data, DPO(policy=tiny_policy), tmp_path)
