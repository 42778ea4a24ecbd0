"""The README's renderer: directives, pictures as files, links that work from the top folder, and a check that
can fail.
"""

import base64
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "readme.py"
PNG = base64.b64encode(b"\x89PNG not really").decode()


def run(root: Path, *args: str) -> subprocess.CompletedProcess:
    "The renderer on a project."
    return subprocess.run(
        [sys.executable, SCRIPT, "--root", root, *args], capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def project(tmp_path) -> Path:
    "A project with an index and no README yet."
    cells = [
        new_code_cell("#| hide\nfrom ptacl.base.core import sample_path"),
        new_markdown_cell(
            "# ptacl\n\n> Title.\n\n[core](base/00_core.ipynb), [licence](../LICENSE), "
            "[web](https://e.x/a), [here](#a)\n\n![](images/own.png)"
        ),
        new_markdown_cell("<!-- command: tests -->\n```\npip install -e . && pytest\n```"),
        new_code_cell(
            "#| echo: false\nfigure()",
            id="abc",
            outputs=[new_output("display_data", {"image/png": PNG, "text/plain": "<Figure>"})],
        ),
        new_code_cell("#| eval: false\n1 + 1", outputs=[new_output("execute_result", {"text/plain": "2"})]),
        new_code_cell("#| output: false\nnoisy()", outputs=[new_output("stream", text="noise")]),
    ]
    (tmp_path / "nbs").mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path / "nbs" / "index.ipynb")
    return tmp_path


def test_render(project):
    assert run(project).returncode == 0
    text = (project / "README.md").read_text()
    assert "[core](nbs/base/00_core.ipynb), [licence](LICENSE), [web](https://e.x/a), [here](#a)" in text
    assert "![](nbs/images/own.png)" in text and "![figure](nbs/images/index_abc_0.png)" in text
    assert (project / "nbs" / "images" / "index_abc_0.png").read_bytes() == b"\x89PNG not really"
    assert "<!-- command: tests -->\n```\npip install -e . && pytest\n```" in text
    assert "```python\n1 + 1\n```" in text and "    2" in text and "noisy()" in text
    for gone in ("sample_path", "figure()", "#|", "noise\n", "base64", "<Figure>"):
        assert gone not in text, gone


def test_check_finds_differences(project):
    missing = run(project, "--check")
    assert missing.returncode == 1 and "README.md, nbs/images/index_abc_0.png" in missing.stderr
    run(project)
    assert run(project, "--check").returncode == 0
    (project / "nbs" / "images" / "index_old_0.png").write_bytes(b"left over")
    assert "index_old_0.png" in run(project, "--check").stderr
    run(project)
    (project / "README.md").write_text("edited by hand")
    assert "README.md" in run(project, "--check").stderr


def test_first_lines_run(repo, monkeypatch):
    "The README's lines of Python, as they stand, in a clone."
    text = (repo / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    monkeypatch.chdir(repo)
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names)
    assert names["z"].shape == (1, names["encoder"].dim) and {"phenotype", "unit", "low", "high"} <= {
        *names["y"]
    }


def test_figures_are_of_the_main_job_and_the_comparison(repo):
    text = (repo / "README.md").read_text(encoding="utf-8")
    figures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert figures == ["nbs/results/main_job/learned_seed0.png", "nbs/results/comparison_27951/forest.png"]
