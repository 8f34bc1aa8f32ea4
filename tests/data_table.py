"""The tables of docs/reference/data.md, made from what the code does: `python -m tests.data_table` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rl_lightning.data.fits import check_fit
from rl_lightning.data.sources import ExampleSource, FileExamples
from rl_lightning.errors import UserError
from tests.shapes import REFUSED, SHAPES

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "data.md"
#: Around the tables in the page.
BEGIN, END = "<!-- {}: made by tests/data_table.py -->", "<!-- end of {} -->"
ALGORITHMS = ("SFT", "DPO", "RewardModel", "LabelledKTO", "GRPO", "PPO", "DAPO", "RFT")
_GIVEN = {"SFT": "demonstrations", "DPO": "preferences", "RewardModel": "preferences"}
#: What TRL 1.16.0 did with four such rows and a tiny model, one training step each, on transformers 5.24.
TRL: dict[str, str] = json.loads((Path(__file__).parent / "trl_on_shapes.json").read_text())


def fits(algorithm: str, source: ExampleSource) -> bool:
    """Whether an algorithm learns from rows, as it is set up without an option; RFT from labels, or from samples; `LabelledKTO` from
    samples too, which needs a reward and is not said here."""
    shape = source.shape("train")
    assert shape is not None
    if algorithm == "LabelledKTO":
        return "labels" in shape.offers
    given = _GIVEN.get(algorithm, "rollouts")
    if algorithm == "RFT":
        given = "samples" if "labels" in shape.offers else "sampled"
    try:
        check_fit(algorithm, given, source, shape)
    except UserError:
        return False
    return True


def recognised(folder: Path) -> str:
    """Return the table of shapes: a row, the line that is printed, who learns from it, and TRL."""
    lines = ["| shape | row | line | learns from it | TRL 1.16 |", "|---|---|---|---|---|"]
    for name, row in SHAPES.items():
        source = _source(folder, row)
        examples = source.load("train")
        line = f"train data: {source.shape('train')}; {len(examples)} rows"
        learners = ", ".join(algorithm for algorithm in ALGORITHMS if fits(algorithm, source))
        lines.append(f"| {name} | `{_short(row)}` | {line} | {learners} | {TRL[name]} |")
    return "\n".join(lines)


def refused(folder: Path) -> str:
    """Return the table of what is refused, and by what words."""
    lines = ["| rows | said | TRL 1.16 |", "|---|---|---|"]
    for name, row in REFUSED.items():
        try:
            _source(folder, row).load("train")
        except UserError as error:
            said = _said(error, folder)
            lines.append(f"| {name}: `{_short(row)}` | {said} | {TRL[name]} |")
    return "\n".join(lines)


def public(folder: Path) -> str:
    """Return the table of public data sets: what their columns are, and what is said of their rows."""
    lines = ["| data set | columns | understood, or said | learns from it |", "|---|---|---|---|"]
    for one in layouts():
        source = _source(folder, one["row"])
        columns, learners = ", ".join(f"`{column}`" for column in one["row"]), ""
        try:
            source.load("train")
            said = str(source.shape("train"))
            learners = ", ".join(algorithm for algorithm in ALGORITHMS if fits(algorithm, source))
        except UserError as error:
            said = _said(error, folder)
        lines.append(f"| {one['name']} | {columns} | {said} | {learners} |")
    return "\n".join(lines)


def layouts() -> list[dict[str, Any]]:
    """Return rows in the layouts of public data sets, with what they are to become: an example, or a refusal."""
    return [json.loads(line) for line in (Path(__file__).parent / "layouts.jsonl").read_text().splitlines()]


def page(folder: Path) -> str:
    """Return the page with its tables as they are now."""
    text = PAGE.read_text()
    for name, table in (("shapes", recognised(folder)), ("refused", refused(folder)), ("public", public(folder))):
        begin, end = BEGIN.format(name), END.format(name)
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    return text


def _source(folder: Path, row: dict[str, Any]) -> FileExamples:
    path = folder / "rows.jsonl"
    path.write_text(f"{json.dumps(row)}\n" * 4)
    return FileExamples(str(path))


def _said(error: UserError, folder: Path) -> str:
    return str(error).split("\n")[-1].strip().replace(str(folder / "rows.jsonl"), "rows.jsonl")


def _short(row: dict[str, Any]) -> str:
    """Return a row as JSON without what a reader need not see."""
    text = json.dumps(row, ensure_ascii=False).replace("|", "\\|")
    return text if len(text) <= 210 else f"{text[:200]} …"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        PAGE.write_text(page(Path(made)))
