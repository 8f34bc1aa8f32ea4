"""The site is built from docs/ without a warning, and needs nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("latex2mathml")

from examples.site.docstrings import shown
from examples.site.formulas import Formulas, mathml

ROOT = Path(__file__).parents[2]
NOTEBOOK = (ROOT / "docs" / "algorithms" / "notebook.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_without_a_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {
        **os.environ,
        "NO_MKDOCS_2_WARNING": "1",
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stdout + done.stderr, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(
            r"<(?:script|img|iframe)[^>]*src=\"?(https?:)?//|<link[^>]*stylesheet[^>]*href=\"?https?://", text
        )
        assert not fetched, page
    grpo = (tmp_path / "site" / "algorithms" / "grpo.html").read_text(encoding="utf-8")
    assert grpo.count("<math") > 8 and "$`" not in grpo
    options = (tmp_path / "site" / "reference" / "api" / "functional.html").read_text(encoding="utf-8")
    assert "kl_penalty" in options and "rho_k3" in options


def test_every_formula_of_the_notebook_is_drawn():
    from markdown import Markdown

    made = Markdown(extensions=[Formulas()]).convert(NOTEBOOK)
    blocks, inline = NOTEBOOK.count("```math"), len(re.findall(r"\$`", NOTEBOOK))
    assert made.count('display="block"') == blocks > 10
    assert made.count('display="inline"') == inline > 15
    assert "```" not in made and "$`" not in made
    assert "\\" not in re.sub(r"<[^>]+>", "", made), "a command of LaTeX was not read"


def test_a_formula_that_is_not_read_would_be_seen():
    assert "\\nosuch" in mathml(r"\nosuch{x}")


def test_tables_and_examples_in_docstrings_become_blocks():
    text = "What.\n\n====  ====\na     b\n====  ====\n`x`   y\n====  ====\n\nSee :func:`~a.b`.\n\nExample:\n    >>> [1][0]\n    1\n"
    assert shown(text) == (
        "What.\n\n```text\n====  ====\na     b\n====  ====\n`x`   y\n====  ====\n```\n\nSee `a.b`.\n\nExamples:\n    >>> [1][0]\n    1\n"
    )
