"The comparison as its user runs it: by papermill, cut and started again."

import json
import shutil

import nbformat
import pandas as pd
import pytest

from ptacl.phantom.simulated_store import SimulateConfig, simulate_store
from ptacl.studies.comparison_tables import BY_TRAIN
from ptacl.studies.launch import run_notebook
from ptacl.studies.methods import METHODS

MAIN = ("supervised", "mmcl", "dual_phase", "ptacl", "ptacl_frozen")  # that are trained, with two seeds
SMALL = dict(
    methods="demographics,strip_summary,masked,supervised,mmcl,dual_phase,ptacl,ptacl_frozen,"
    "shuffled_phases,linear_phase",
    seeds="0,1",
    recipe=(
        "epochs 1, batch_size 16, n_frames 6, crop_px 32, window_s 2.0, phase_bins 4, accelerator cpu, "
        "cine_keep 1.0"
    ),
    pretrain_recipe="epochs 1, batch_size 16, n_frames 6, crop_px 32, window_s 2.0, accelerator cpu",
    workers=1,
    n_boot=100,
    ceiling_n=4000,
)


@pytest.fixture(scope="module")
def made(repo, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    sizes = dict(n_frames=6, crop_px=32, window_s=2.0, store=True, workers=1, size=64)
    simulate_store(SimulateConfig(n=80, n_val=16, n_test=16, **sizes), out / "data", progress=False)
    other = SimulateConfig(n=12, n_test=11, seed=2, noise=1.5, **sizes | dict(size=80))
    simulate_store(other, out / "other", progress=False)
    return out, started(repo, out, "one")


def started(repo, out, name, folder="c", **changed):
    "The notebook, run."
    where = dict(data=str(out / "data"), transfer=str(out / "other"), out=str(out / folder))
    return run_notebook(
        repo / "nbs" / "compare.ipynb", out / f"{name}.ipynb", SMALL | where | changed, progress=False
    )


def test_every_cell_is_there_with_one_budget(made):
    budget = pd.read_csv(made[0] / "c" / "budget.tsv", sep="\t").set_index("cell")
    assert len(budget) == 2 * (len(MAIN) + 1) + 2 + 2
    trained = [c for c in budget.index if c.split("-")[0] in (*MAIN, "shuffled_phases", "linear_phase")]
    assert set(budget.pairs_seen[trained]) == {48} and set(budget.pairs_seen.drop(trained)) == {0}
    assert budget.weights["ptacl-seed0"] == budget.weights["shuffled_phases-seed0"]
    assert set(budget.fitted_on) == {"val"} and set(budget.n_fitted) == {16}


def test_what_came_before_is_said(made):
    "Dual-phase as published: after masked pre-training, against a CMR side that was told phenotypes."
    budget = pd.read_csv(made[0] / "c" / "budget.tsv", sep="\t", keep_default_na=False).set_index("cell")
    said = {c: budget.before[f"{c}-seed1"] for c in ("ptacl", "mmcl", "ptacl_frozen", "dual_phase")}
    masked = "ECG encoder: masked ECGs"
    kept = "CMR side: phenotypes, then kept"
    assert said == dict(ptacl="", mmcl=masked, ptacl_frozen=kept, dual_phase=f"{masked}, {kept}")
    assert budget.pairs_before["dual_phase-seed0"] == 2 * 48
    assert (
        budget.cmr_labels["dual_phase-seed0"].startswith("lvedv_ml,") and not budget.cmr_labels["mmcl-seed0"]
    )
    assert budget.weights["ptacl_frozen-seed0"] == budget.weights["ptacl-seed0"]
    assert budget.weights_learned["ptacl_frozen-seed0"] < budget.weights_learned["ptacl-seed0"]
    sides = {p.name for p in (made[0] / "c").glob("cmr-*")}
    assert sides == {f"cmr-{s}-seed{k}" for s in ("supervised_cmr", "supervised_ed_es") for k in (0, 1)}


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
        "ptacl_frozen",
        "shuffled_phases",
        "linear_phase",
    }
    # supervised and features have no CMR side
    assert set(scores[scores.metric == "median rank"].method) == {
        "masked",
        "mmcl",
        "dual_phase",
        "ptacl",
        "ptacl_frozen",
        "shuffled_phases",
        "linear_phase",
    }
    value = scores.set_index(["method", "metric"]).value
    gap = differences[(differences.metric == "mean R2") & (differences["minus"] == "mmcl")].value.item()
    assert abs(gap - (value["ptacl", "mean R2"] - value["mmcl", "mean R2"])) < 1e-9
    assert (scores.low <= scores.value + 1e-9).all() and (scores.value <= scores.high + 1e-9).all()


def test_a_leak_would_show_beside_the_scores(made):
    "Probes of the training people stand beside those of people nobody was trained on."
    scores = pd.read_csv(made[0] / "c" / "scores.tsv", sep="\t")
    by_train = set(scores[scores.metric == "mean R2" + BY_TRAIN].method)
    assert by_train == set(scores.method) - {"demographics", "strip_summary"}


def test_few_labels_end_where_the_scores_are(made):
    labels, scores = (pd.read_csv(made[0] / "c" / f"{n}.tsv", sep="\t") for n in ("labels", "scores"))
    assert set(labels.n_labels) == {16} and "supervised" not in set(labels.method)
    assert (made[0] / "c" / "labels.png").stat().st_size > 10_000
    value = scores[scores.metric == "mean R2"].set_index("method").value
    for method, of_all in labels.groupby("method").value.mean().items():
        assert abs(of_all - value[method]) < 1e-3


def test_the_other_centre_is_only_tested_on(made):
    elsewhere = pd.read_csv(made[0] / "c" / "transfer.tsv", sep="\t")
    assert set(elsewhere.n) == {12} and set(elsewhere[elsewhere.metric == "mean R2"].method) >= {
        "ptacl",
        "mmcl",
    }
    held_out = pd.read_csv(made[0] / "c" / "ptacl-seed0" / "transfer.tsv", sep="\t")
    assert held_out.rank_cmr.between(1, 12).all()


def test_the_course_of_training_is_kept(made):
    course = pd.read_csv(made[0] / "c" / "course.tsv", sep="\t")
    of_ptacl = course[course.cell == "ptacl-seed0"]
    assert of_ptacl.pairs_seen.tolist() == [0, 48] and of_ptacl.val_median_rank.between(1, 16).all()
    assert (made[0] / "c" / "course.png").stat().st_size > 10_000


def test_small_tables_are_enough_on_another_machine(repo, made):
    "What is committed of a comparison gives its tables, and nothing is made again."
    out = made[0]
    kept = [p for name in ("*.json", "*.tsv", "log.csv") for p in (out / "c").glob(f"*-seed*/{name}")]
    for p in kept:
        if (p.parent / "cell.json").exists():
            (out / "carried" / p.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(p, out / "carried" / p.parent.name)
    started(repo, out, "carried", "carried")
    for name in ("scores", "differences", "labels", "course", "transfer", "budget"):
        first, again = ((out / c / f"{name}.tsv").read_bytes() for c in ("c", "carried"))
        assert first == again, name
    assert not list((out / "carried").glob("*/*.safetensors"))


def test_a_tenth_of_the_pairs(repo, made):
    "All numbers of pairs are smaller, those before and those of the curve too."
    out = made[0]
    params = dict(scale=0.75, methods="ptacl_frozen,supervised,mmcl", seeds="0", ceiling_n=0)
    started(repo, out, "scaled", "scaled", **params)
    budget = pd.read_csv(out / "scaled" / "budget.tsv", sep="\t").set_index("cell")
    assert set(budget.n_train) == {36} and set(budget.pairs_seen) == {32}
    before = {
        p.parent.name: json.loads(p.read_text())["facts"] for p in (out / "scaled").glob("*/facts.json")
    }
    assert {f["n_train"] for f in before.values()} == {36} and len(before) == 2


def test_started_again_trains_nothing(repo, made):
    "What is made stays as it is; a cell that is missing is made again, where cells are made at all."
    out = made[0]
    stamps = {p: p.stat().st_mtime_ns for p in (out / "c").glob("*/cell.json")}
    gone = out / "c" / "ptacl-seed1" / "cell.json"
    before = json.loads(gone.read_text())
    gone.unlink()
    before_it = {p: p.stat().st_mtime_ns for p in (out / "c").glob("*/facts.json")}
    started(repo, out, "there", only_finished=True, ceiling_n=0)
    there = pd.read_csv(out / "c" / "budget.tsv", sep="\t").cell
    assert set(there) == {p.parent.name for p in stamps} - {"ptacl-seed1"} and not gone.exists()
    started(repo, out, "two")
    assert before_it == {p: p.stat().st_mtime_ns for p in before_it}
    assert all(p.stat().st_mtime_ns == t for p, t in stamps.items() if p != gone)
    assert {k: v for k, v in json.loads(gone.read_text()).items() if k != "seconds"} == {
        k: v for k, v in before.items() if k != "seconds"
    }


def test_figures_and_honesty(made):
    nb = nbformat.read(made[1], 4)
    shown = [o for c in nb.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    text = " ".join(c.source for c in nb.cells)
    assert len(shown) >= 1 and "our reconstruction" in text and "never clinical evidence" in text
    said = [o.get("data", {}).get("text/markdown", "") for c in nb.cells for o in c.get("outputs", [])]
    ours = [s for s in said if s.startswith("PTACL less the other, with 95 % intervals")]
    assert len(ours) == 1 and METHODS["supervised"].title in ours[0]
