"""Modules of one's own, named by `extensions`: a system in one; a reader, a phase map with a third landmark,
a metric and a log sink in another. They go through the experiments without another file being touched.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from ptacl.base.core import samples_dir

HERE = Path(__file__).parent / "extensions"
SMALL = dict(
    accelerator="cpu",
    precision="32-true",
    window_s=1.0,
    crop_px=16,
    n_frames=4,
    cine_keep=1.0,
    phase_bins=4,
    embed_dim=8,
    epochs=2,
    batch_size=8,
    workers=1,
    n_boot=20,
    phenotypes="lvef,lvedv_ml",
)


def papermill(notebook: str, folder: Path, params: dict) -> nbformat.NotebookNode:
    "Run an experiment as users do, in a process of its own, and return it."
    nbs = Path(__file__).parent.parent / "nbs"
    given = [
        x for k, v in params.items() for x in (["-r", k, v] if isinstance(v, str) else ["-p", k, str(v)])
    ]
    command = [
        sys.executable,
        "-m",
        "papermill",
        "-k",
        "python3",
        "--no-progress-bar",
        nbs / notebook,
        "out.ipynb",
    ]
    env = {k: v for k, v in os.environ.items() if k != "PTACL_EXTENSIONS"}
    done = subprocess.run(
        [*command, *given], cwd=folder, env=env, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return nbformat.read(folder / "out.ipynb", 4)


def texts(notebook: nbformat.NotebookNode) -> str:
    "Everything that a notebook says."
    outs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    shown = [o.get("text", "") + "".join(o.get("data", {}).get("text/markdown", "")) for o in outs]
    return "\n".join(shown)


# ---- a system


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    "A run folder of the toy system."
    folder = tmp_path_factory.mktemp("toy")
    toy = dict(
        data="data_samples",
        system="toy",
        local_weight=0.0,
        extensions=str(HERE / "toy_system.py"),
        out=str(folder / "run"),
    )
    notebook = papermill("train.ipynb", folder, SMALL | toy)
    return folder / "run", texts(notebook)


def test_toy_system_trains(toy_run):
    folder, said = toy_run
    assert "system: toy" in said
    log = pd.read_csv(folder / "log.csv")
    assert log.loss_pull.notna().any() and log.val_loss_push.notna().any()
    assert log.loss.dropna().iloc[-1] < log.loss.dropna().iloc[0]
    probes = pd.read_csv(folder / "probe.tsv", sep="\t")
    assert set(probes.method) == {"toy", "untrained encoder"}
    assert set(pd.read_csv(folder / "retrieval.tsv", sep="\t").gallery) == {16}


def test_toy_system_is_read_back(toy_run, tmp_path):
    "Only where the module is named: no folder says which code to run."
    folder, _ = toy_run
    program = (
        f"from ptacl.models.saved import from_pretrained; print(type(from_pretrained({str(folder)!r})[0]))"
    )
    env = {k: v for k, v in os.environ.items() if k != "PTACL_EXTENSIONS"}
    run = dict(capture_output=True, text=True, timeout=300, cwd=tmp_path)
    alone = subprocess.run([sys.executable, "-c", program], env=env, **run)
    assert "`system` is 'toy'. Choose one of ptacl, mmcl" in alone.stderr
    named = env | {"PTACL_EXTENSIONS": str(HERE / "toy_system.py")}
    done = subprocess.run([sys.executable, "-c", program], env=named, **run)
    assert "Toy" in done.stdout, done.stderr


def test_toy_system_is_evaluated(toy_run, tmp_path):
    extension = str(HERE / "toy_system.py")
    params = dict(run=str(toy_run[0]), n_boot=20, phenotypes="lvef,lvedv_ml", extensions=extension)
    assert "system: toy" in texts(papermill("evaluate.ipynb", tmp_path, params))


def test_toy_system_is_compared(tmp_path):
    recipe = ", ".join(f"{k} {v}" for k, v in SMALL.items() if k not in ("workers", "n_boot", "phenotypes"))
    params = dict(
        out=str(tmp_path / "comparison"),
        methods="global_only,toy",
        seeds="0",
        recipe=recipe,
        n_boot=20,
        phenotypes="lvef,lvedv_ml",
        extensions=str(HERE / "toy_system.py"),
    )
    papermill("compare.ipynb", tmp_path, params)
    scores = pd.read_csv(tmp_path / "comparison" / "scores.tsv", sep="\t")
    assert {"toy", "global_only"} == set(scores.method)
    assert set(scores[scores.method == "toy"].group) == {"registered"}


# ---- a reader, a phase map, a metric, a log sink


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    "The samples, with every ECG rewritten in the invented format."
    from ptacl.data.ecg_files import read_ecg

    folder = tmp_path_factory.mktemp("cohort")
    samples = samples_dir()
    table = pd.read_csv(samples / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    (folder / "ecg").mkdir()
    shutil.copytree(samples / "cine", folder / "cine")
    (folder / "participants.json").write_bytes((samples / "participants.json").read_bytes())
    for row in table.itertuples():
        ecg = read_ecg(samples / row.ecg)
        microvolt_LT = np.rint(ecg.signal_LT * 1000).astype(int)
        lines = [
            f"{name} {' '.join(map(str, x))}" for name, x in zip(ecg.lead_names, microvolt_LT, strict=True)
        ]
        (folder / "ecg" / f"{row.participant_id}.leads").write_text("\n".join([f"{ecg.fs:g}", *lines]))
    table["ecg"] = [f"ecg/{name}.leads" for name in table.participant_id]
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


def test_everything_else_in_one_run(cohort, tmp_path):
    "The files are read, also by workers; the map is used; the metric has its rows, the sink its lines."
    params = SMALL | dict(
        data=str(cohort),
        out=str(tmp_path / "run"),
        workers=2,
        window_s=2.0,
        phase_map="three_landmarks",
        log_to="jsonl",
        extensions=str(HERE / "everything_else.py"),
    )
    papermill("train.ipynb", tmp_path, params)
    probes = pd.read_csv(tmp_path / "run" / "probe.tsv", sep="\t")
    assert set(probes[probes.metric == "within 10 %"].phenotype) == {"lvef", "lvedv_ml"}
    assert probes[probes.metric == "within 10 %"].value.between(0, 1).all()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    log = pd.read_csv(tmp_path / "run" / "log.csv")
    assert [line["step"] for line in lines] == log.step.tolist()


def test_third_landmark_moves_the_phases(cohort):
    "Up to the end of systole the maps agree; the P onset then lies at 0.85 of the cycle."
    program = """
import numpy as np
from ptacl.base.core import load_extensions
load_extensions({extension!r})
from ptacl.data.phase import time_to_phase
rr_ms = 1000.0
time_ms = np.array([100.0, 300.0, 840.0, 920.0])
print(time_to_phase(time_ms, rr_ms, 300.0, "three_landmarks").tolist())
"""
    extension = str(HERE / "everything_else.py")
    done = subprocess.run(
        [sys.executable, "-c", program.format(extension=extension)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), [0.35 / 3, 0.35, 0.85, 0.925])
