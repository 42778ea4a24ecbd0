"The comparison as its user runs it: by papermill, cut and started again."

import json

import nbformat
import pandas as pd
import pytest

from ptacl.studies.launch import run_notebook

SMALL = dict(
    methods="demographics,strip_summary,masked,supervised,mmcl,dual_phase,ptacl,shuffled_phases",
    seeds="0,1",
    recipe=(
        "epochs 1, batch_size 16, n_frames 6, crop_px 32, window_s 1.0, phase_bins 4, accelerator cpu, "
        "cine_keep 1.0"
    ),
    pretrain_recipe="epochs 1, batch_size 16, n_frames 6, crop_px 32, window_s 1.0, accelerator cpu",
    workers=1,
    n_boot=100,
    ceiling_n=4000,
)


@pytest.fixture(scope="module")
def made(repo, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    return out, run_notebook(
        repo / "nbs" / "compare.ipynb", out / "one.ipynb", SMALL | dict(out=str(out / "c")), progress=False
    )


def test_every_cell_is_there_with_one_budget(made):
    budget = pd.read_csv(made[0] / "c" / "budget.tsv", sep="\t").set_index("cell")
    assert len(budget) == 2 * 5 + 2 + 1
    trained = [
        c
        for c in budget.index
        if c.split("-")[0] in ("supervised", "mmcl", "dual_phase", "ptacl", "shuffled_phases")
    ]
    assert set(budget.pairs_seen[trained]) == {48} and set(budget.pairs_seen.drop(trained)) == {0}
    assert budget.weights["ptacl-seed0"] == budget.weights["shuffled_phases-seed0"]


def test_scores_are_complete_and_compared_in_pairs(made):
    scores, differences = (
        pd.read_csv(made[0] / "c" / f"{n}.tsv", sep="\t") for n in ("scores", "differences")
    )
    assert set(scores[scores.metric == "mean R2"].method) == {
        "demographics",
        "strip_summary",
        "masked",
        "supervised",
        "mmcl",
        "dual_phase",
        "ptacl",
        "shuffled_phases",
    }
    # supervised and features have no CMR side
    assert set(scores[scores.metric == "median rank"].method) == {
        "masked",
        "mmcl",
        "dual_phase",
        "ptacl",
        "shuffled_phases",
    }
    value = scores.set_index(["method", "metric"]).value
    gap = differences[(differences.metric == "mean R2") & (differences["minus"] == "mmcl")].value.item()
    assert abs(gap - (value["ptacl", "mean R2"] - value["mmcl", "mean R2"])) < 1e-9
    assert (scores.low <= scores.value + 1e-9).all() and (scores.value <= scores.high + 1e-9).all()


def test_few_labels_end_where_the_scores_are(made):
    labels, scores = (pd.read_csv(made[0] / "c" / f"{n}.tsv", sep="\t") for n in ("labels", "scores"))
    assert (
        set(labels.n_labels) == {14, 48}
        and "supervised" not in set(labels.method)
        and (made[0] / "c" / "labels.png").stat().st_size > 10_000
    )
    value = scores[scores.metric == "mean R2"].set_index("method").value
    for method, of_all in labels[labels.n_labels == 48].groupby("method").value.mean().items():
        assert abs(of_all - value[method]) < 1e-3


def test_started_again_trains_nothing(repo, made):
    "What is made stays as it is; a cell that is missing is made again."
    out = made[0]
    stamps = {p: p.stat().st_mtime_ns for p in (out / "c").glob("*/cell.json")}
    gone = out / "c" / "ptacl-seed1" / "cell.json"
    before = json.loads(gone.read_text())
    gone.unlink()
    run_notebook(
        repo / "nbs" / "compare.ipynb", out / "two.ipynb", SMALL | dict(out=str(out / "c")), progress=False
    )
    assert all(p.stat().st_mtime_ns == t for p, t in stamps.items() if p != gone)
    assert {k: v for k, v in json.loads(gone.read_text()).items() if k != "seconds"} == {
        k: v for k, v in before.items() if k != "seconds"
    }


def test_figures_and_honesty(made):
    nb = nbformat.read(made[1], 4)
    shown = [o for c in nb.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    text = " ".join(c.source for c in nb.cells)
    assert len(shown) >= 1 and "our reconstruction" in text and "never clinical evidence" in text
