"""The way of those who compare a method of their own: the page's file and commands word for word, on the
samples.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

PAGE = "nbs/tutorials/65_compare_your_own_method.ipynb"


def page(repo: Path) -> tuple[str, list[str]]:
    "The text of the extension, and the commands, in order."
    cells = nbformat.read(repo / PAGE, 4).cells
    code = next(c.source for c in cells if c.cell_type == "code" and c.source.startswith("my_method"))
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    return re.search(r'"""\n(.*?)"""', code, re.S)[1], re.findall(r"^`(papermill [^`]*)`$", text, re.M)


def test_the_page_gives_a_file_and_two_commands(repo):
    extension, commands = page(repo)
    assert 'SYSTEMS["sigmoid"]' in extension and 'ECG_TRANSFORMS["wander"]' in extension
    assert [c.split()[1] for c in commands] == ["nbs/train.ipynb", "nbs/compare.ipynb"]
    assert all("extensions my_method.py" in c for c in commands)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_commands_of_the_page_run(repo, tmp_path):
    "A trained encoder that the library's commands take, and a row beside ours with an interval."
    for name in ("nbs", "data_samples"):
        (tmp_path / name).symlink_to(repo / name)
    extension, commands = page(repo)
    (tmp_path / "my_method.py").write_text(extension)
    commands[0] += " -r data data_samples -p epochs 2 -p batch_size 16 -r out run"
    commands[1] = commands[1].replace("COHORT", "data_samples").replace("FOLDER", "rows")
    commands[1] += " -r recipe 'epochs 2, batch_size 16' -p ceiling_n 0 -p n_boot 50"
    commands.append("PTACL_EXTENSIONS=my_method.py ptacl-embed data_samples/ecg --encoder run --out z.tsv")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | dict(PATH=path, PYTHONPATH=str(repo), OMP_NUM_THREADS="1")
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    assert pd.read_csv(tmp_path / "z.tsv", sep="\t", index_col=0).shape == (64, 48)
    scores = pd.read_csv(tmp_path / "rows/scores.tsv", sep="\t")
    own = scores[(scores.title == "sigmoid loss") & (scores.metric == "median rank")]
    assert len(own) and (own.low <= own.value).all() and (own.value <= own.high).all()
    assert {"PTACL", "Global loss only", "Supervised from scratch", "sigmoid loss"} <= set(scores.title)
