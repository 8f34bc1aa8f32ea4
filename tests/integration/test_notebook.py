"""A notebook, run in a kernel of its own: functions of its cells are rewards, and what was trained is asked."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: A kernel is another new interpreter. `test_starts` runs code as a notebook has it, `test_reward_kinds` functions of a script.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Code → what it printed and returned, of every cell, with fewer rollouts than a reader has time for."""
    import nbformat  # here, for tests that do not run it are collected too
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples" / "first_steps.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("max_epochs=10", "max_epochs=1, accelerator='cpu'").replace(
            'max_new_tokens": 40}', 'max_new_tokens": 40}, prompts_per_rollout=4'
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        place = tmp_path_factory.mktemp("notebook")
        NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(place)}}).execute()
    return {
        cell.source: "".join(
            output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    }


def test_every_cell_runs_and_the_policy_answers(cells):
    (trained,) = [said for code, said in cells.items() if "trainer.fit" in code]
    assert "algorithm  GRPO" in trained and "right_and_short × 1" in trained
    answers = [said for code, said in cells.items() if code.startswith("policy.generate") or code.startswith("rl.load")]
    assert answers and all(said.strip("[]'\"") for said in answers)


def test_the_reward_of_a_cell_runs_in_a_worker(cells):
    (trained,) = [said for code, said in cells.items() if "trainer.fit" in code]
    assert "nothing stops it if it hangs" not in trained
    assert "failed on" not in trained
