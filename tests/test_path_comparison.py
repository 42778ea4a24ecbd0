"""The comparison at a tenth of its scale, by the commands of its parameter file, word for word; some two
hours.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

RECIPE = "nbs/recipes/compare_phantom.yaml"
TENTH = "-p scale 0.1 -r seeds 0"  # as the parameter file says it


def commands(repo: Path) -> list[str]:
    "Two cohorts and the comparison."
    return re.findall(r"^#   (papermill .*)$", (repo / RECIPE).read_text(encoding="utf-8"), re.M)


def rows(repo: Path) -> list[str]:
    "Every row of the comparison."
    return yaml.safe_load((repo / RECIPE).read_text(encoding="utf-8"))["methods"].split(",")


def test_the_file_gives_three_commands(repo):
    assert [c.split()[1] for c in commands(repo)] == [
        "nbs/simulate.ipynb",
        "nbs/simulate.ipynb",
        "nbs/compare.ipynb",
    ]
    assert f"`{TENTH}`" in (repo / RECIPE).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_tenth_of_the_comparison(repo, tmp_path):
    "All rows are there with a tenth of the pairs, and pairing teaches something."
    (tmp_path / "nbs").symlink_to(repo / "nbs")
    *cohorts, compare = commands(repo)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | dict(PATH=path, PYTHONPATH=str(repo), OMP_NUM_THREADS="1")
    for command in (*cohorts, f"{compare} {TENTH}"):
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    place = tmp_path / "FOLDER"
    budget = pd.read_csv(place / "budget.tsv", sep="\t").set_index("cell")
    assert set(budget.index) == {f"{row}-seed0" for row in rows(repo)}
    of_rows = {name: budget.n_train[f"{name}-seed0"] for name in ("ptacl", "ptacl_500", "ptacl_8000")}
    assert of_rows == dict(ptacl=2795, ptacl_500=50, ptacl_8000=800)
    scores = pd.read_csv(place / "scores.tsv", sep="\t").set_index(["method", "metric"])
    ranks = scores.xs("median rank", level="metric").loc[["ptacl", "global_only", "mmcl", "ptacl_masked"]]
    assert (ranks.high < ranks.chance).all(), ranks[["value", "low", "high", "chance"]]
    r2 = scores.xs("mean R2", level="metric")
    assert (r2.low[["supervised", "ptacl"]] > r2.value["random"]).all(), r2.value
    assert pd.read_csv(place / "pairs.tsv", sep="\t").n_train.nunique() >= 4
    assert (place / "forest.png").is_file() and (place / "pairs.png").is_file()
