"""Prompts that one rank encodes for all of its machine."""

import json
import logging

import pytest

from rl_lightning.algorithms import SFT
from rl_lightning.data import shared
from rl_lightning.data.offline.written import WrittenReader
from rl_lightning.data.prompts import encode_prompts, text_format
from rl_lightning.data.sources.base import Example
from rl_lightning.data.sources.problems import Problems
from tests.support import trainer
from tests.tokenizers import build
from tests.unit.data import encoding_ranks

ROWS = [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(12)]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_two_ranks_encode_once_and_have_the_same(ranks, tiny_policy, tmp_path):
    path, bad = written(tmp_path / "rows.jsonl", ROWS), {"prompt": " ", "completion": "3"}
    both = ranks(encoding_ranks.on_this, tiny_policy, tmp_path, path)
    assert [rank["calls"] for rank in both] == [[12], []]
    data = encoding_ranks.demonstrations(path)
    trainer(tmp_path / "one", online=False).fit(SFT(policy=tiny_policy), datamodule=data)
    assert not (tmp_path / "one" / "cache").exists()
    assert both[0]["table"] == both[1]["table"] == encoding_ranks.table_of(data)
    # The next run takes the file; other rows are another file.
    again = ranks(encoding_ranks.on_this, tiny_policy, tmp_path, path)
    assert [rank["calls"] for rank in again] == [[], []] and [rank["table"] for rank in again] == [both[0]["table"]] * 2
    assert again[1]["steps"] == both[1]["steps"] and again[1]["mapped"]
    path = written(tmp_path / "more.jsonl", [ROWS[0], bad, *ROWS[1:]])
    told = ranks(encoding_ranks.on_this, tiny_policy, tmp_path, path)
    assert told[0]["error"] == told[1]["error"] and "more.jsonl:2" in told[0]["error"]
    dropped = ranks(encoding_ranks.on_this, tiny_policy, tmp_path, path, on_bad="drop")
    assert [len(rank["table"]) for rank in dropped] == [12, 12] and dropped[0]["table"] == dropped[1]["table"]
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-100], lambda whole: b"", lambda whole: whole.replace(b"places", b"pieces")]
)
def test_a_damaged_file_is_made_anew(damage, tmp_path, caplog):
    tokenizer, path, made, dropped = build("qwen-base"), tmp_path / "cache" / "encoded.pt", [], []
    examples = [Example("1=", response="1", location="f:1"), Example(" ", response="1", location="f:2")] * 3

    def kept():
        unread = Problems()

        def encode():
            reader = WrittenReader(text_format(tokenizer, None))
            limits = {"max_prompt_length": None, "context_length": None, "max_new_tokens": 0}
            made.append(1)
            return encode_prompts(examples, tokenizer, **limits, add_written=reader, on_bad="drop", unread=unread)

        shared._kept(path, examples, unread, encode)
        dropped.append(unread.rows)
        return list(shared._mapped(path, examples, Problems()))

    first = kept()
    assert kept() == first and len(first) == 3 and made == [1]
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert kept() == first and made == [1, 1]
    assert "it is made anew" in caplog.text and dropped == [{"f:2": "empty prompt"}] * 3


def test_everything_that_an_encoding_follows_from_changes_its_key():
    tokenizer, example = build("qwen-base"), Example("1=", response="1")
    keys = [shared.encoding_key([example], tokenizer, (1,))]
    assert shared.encoding_key([example], build("qwen-base"), (1,)) == keys[0]
    keys += [shared.encoding_key([example], tokenizer, (2,)), shared.encoding_key([example] * 2, tokenizer, (1,))]
    for change in ({"prompt": "2="}, {"response": "2"}, {"rejected": "2"}, {"template": {"tools": []}}, {"plain": "1"}):
        keys.append(shared.encoding_key([Example(**{"prompt": "1=", "response": "1", **change})], tokenizer, (1,)))
    keys.append(shared.encoding_key([example], build("qwen-thought"), (1,)))
    tokenizer.chat_template += " "
    keys.append(shared.encoding_key([example], tokenizer, (1,)))
    assert len(set(keys)) == len(keys)
