"""Prompts that one rank encodes for all of its machine."""

import json

from rl_lightning.algorithms import SFT
from tests.support import trainer
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
    (kept,) = (tmp_path / "cache").iterdir()
    # The next run takes the file; a damaged one is made anew; other rows are another file.
    assert [rank["calls"] for rank in ranks(encoding_ranks.on_this, tiny_policy, tmp_path, path)] == [[], []]
    kept.write_bytes(kept.read_bytes()[:-100])
    again = ranks(encoding_ranks.on_this, tiny_policy, tmp_path, path)
    assert [rank["calls"] for rank in again] == [[12], []] and again[1]["table"] == both[0]["table"]
    assert again[1]["steps"] == both[1]["steps"] and again[1]["mapped"]
    path = written(tmp_path / "more.jsonl", [ROWS[0], bad, *ROWS[1:]])
    told = ranks(encoding_ranks.on_this, tiny_policy, tmp_path, path)
    assert told[0]["error"] == told[1]["error"] and "more.jsonl:2" in told[0]["error"]
    dropped = ranks(encoding_ranks.on_this, tiny_policy, tmp_path, path, on_bad="drop")
    assert [len(rank["table"]) for rank in dropped] == [12, 12] and dropped[0]["table"] == dropped[1]["table"]
    assert len(list((tmp_path / "cache").iterdir())) == 2
