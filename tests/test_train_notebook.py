"""train.ipynb through papermill with its defaults, as the README's first command runs it; then its model on
real recordings.
"""

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from ptacl.base.config import TrainConfig, load_config
from ptacl.data.cine import cine_from_array
from ptacl.data.ecg import STANDARD_LEADS, einthoven_error_mv, standardise_ecg
from ptacl.data.ecg_files import read_ecg
from ptacl.models.saved import embed_cines, embed_ecgs, from_pretrained
from ptacl.use import ECGEncoder

BATCH = TrainConfig().batch_size


@dataclass
class Trained:
    "An executed notebook and its run folder."

    notebook: nbformat.NotebookNode
    folder: Path

    @property
    def text(self) -> str:
        "All text in the outputs."
        outs = [o for c in self.notebook.cells if c.cell_type == "code" for o in c.outputs]
        return "\n".join(
            o.get("text", "")
            + "".join(
                v for k, v in o.get("data", {}).items() if k in ("text/plain", "text/markdown", "text/html")
            )
            for o in outs
        )

    @property
    def figures(self) -> int:
        "How many pictures there are."
        return sum(
            "image/png" in o.get("data", {})
            for c in self.notebook.cells
            if c.cell_type == "code"
            for o in c.outputs
        )


@pytest.fixture(scope="module")
def trained(repo, tmp_path_factory) -> Trained:
    "The main job, from another folder, by the command line that users type."
    cwd = tmp_path_factory.mktemp("elsewhere")
    command = [
        sys.executable,
        "-m",
        "papermill",
        repo / "nbs" / "train.ipynb",
        "out.ipynb",
        "-k",
        "python3",
        "--no-progress-bar",
        "-p",
        "out",
        "run",
    ]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return Trained(nbformat.read(cwd / "out.ipynb", 4), cwd / "run")


def test_shows_what_the_issue_asks(trained):
    "A pair, curves, similarity, both tasks; intervals and chance; where the run is."
    assert trained.figures == 6  # pair, curves, similarity, retrieval, phenotypes, what was learned
    for words in (
        f"ln({BATCH}) = {math.log(BATCH):.3f}",
        "median rank",
        "chance",
        "95 % interval",
        "mean R2",
        "untrained encoder",
        "never clinical evidence",
        "reconstruction",
        str(trained.folder.resolve()),
    ):
        assert words in trained.text + "".join(c.source for c in trained.notebook.cells), words
    assert not [
        o
        for c in trained.notebook.cells
        if c.cell_type == "code"
        for o in c.outputs
        if o.output_type == "error"
    ]


def test_run_folder_is_complete(trained):
    assert {
        "config.json",
        "environment.json",
        "last.ckpt",
        "log.csv",
        "metrics.json",
        "model.safetensors",
        "probe.tsv",
        "report.tsv",
        "retrieval.tsv",
        "phenotype_retrieval.tsv",
        "phenotypes",
        "findings.tsv",
        "learned.png",
    } <= {p.name for p in trained.folder.iterdir()}
    assert load_config(trained.folder / "config.json").epochs == TrainConfig().epochs
    assert json.loads((trained.folder / "environment.json").read_text())["torch"]
    metrics = json.loads((trained.folder / "metrics.json").read_text())
    assert metrics["gallery"] == metrics["test"] >= 400 and metrics["train"] >= 1500
    probe = pd.read_csv(trained.folder / "probe.tsv", sep="\t")
    retrieval = pd.read_csv(trained.folder / "retrieval.tsv", sep="\t")
    assert (
        (probe.low <= probe.value).all() and (probe.value <= probe.high).all() and probe.chance.notna().all()
    )
    half = (metrics["test"] + 1) / 2
    assert retrieval[retrieval.metric == "median rank"].chance.tolist() == [half, half]


def test_run_answers(trained, repo):
    "The five lines of the README on this run's folder."
    y = (
        ECGEncoder.from_pretrained(trained.folder)
        .predict(repo / "data_samples" / "ecg" / "sim-0001")
        .set_index("phenotype")
    )
    assert (y.low < y.value).all() and (y.value < y.high).all()
    assert y.unit[["lvedv_ml", "lvef"]].tolist() == ["mL", "%"] and 60 < y.value.lvedv_ml < 350


def test_default_run_learns(trained):
    """Held-out people, with intervals: the own heart is found, phenotypes are known better than by an
    untrained encoder, phases match, both losses lie below those of a model that has learned nothing.
    """
    found = pd.read_csv(trained.folder / "findings.tsv", sep="\t").set_index("question")
    assert len(found) == 6 and (found.verdict == "learned").all(), found[["value", "low", "high", "verdict"]]
    rank, r2, gain, phase, *_ = found.itertuples()
    assert rank.value <= 0.25 and rank.high < rank.chance
    assert r2.value >= 0.12 and gain.low > 0
    assert phase.value < 0.1
    assert "6 of 6 were learned" in trained.text
    assert "Everything was shown: compare it with other methods" in trained.text
    log = pd.read_csv(trained.folder / "log.csv")
    train = log[log.loss_global.notna()]
    assert train.loss_global.tail(6).mean() < math.log(BATCH) - 0.3
    model, cfg = from_pretrained(trained.folder)
    assert train.lr.iloc[-1] < 0.05 * cfg.lr and train.grad_norm.notna().all()


def test_same_command_again_keeps_the_run(repo, tmp_path):
    "A finished run that is named again is not trained again; other settings are refused."
    small = dict(data="data_samples", epochs="1", batch_size="16", window_s="2.5", n_frames="8", crop_px="32")
    small |= dict(out="run", n_boot="20", phenotypes="lvef", workers="1")
    command = [sys.executable, "-m", "papermill", repo / "nbs" / "train.ipynb", "again.ipynb"]
    command += ["-k", "python3", "--no-progress-bar"]
    command += [word for name, value in small.items() for word in ("-p", name, value)]

    def run(*more: str) -> subprocess.CompletedProcess:
        "The command, with more parameters."
        return subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, timeout=600)

    first = run()
    assert first.returncode == 0, first.stderr[-3000:]
    weights = tmp_path / "run" / "model.safetensors"
    before = weights.read_bytes()
    written = weights.stat().st_mtime_ns
    assert run("-p", "n_boot", "50").returncode == 0
    assert weights.read_bytes() == before
    assert len(pd.read_csv(tmp_path / "run" / "log.csv").step.dropna()) == 5  # before, 3 steps, after
    refused = run("-p", "lr", "0.01")
    assert refused.returncode != 0 and "holds a run with lr = " in refused.stderr
    assert weights.read_bytes() == before and weights.stat().st_mtime_ns >= written


# --- real recordings -----------------------------------------------------------------------------


def real_records(real_data: Path) -> list[Path]:
    "Every record of the folder."
    found = sorted((real_data / "ecg_wfdb").glob("*.hea"))
    assert len(found) >= 38
    return found


def test_every_real_ecg_is_embedded(trained, real_data):
    """Lead-off, 15-lead, fibrillation, 25 s, 100 and 1,000 Hz: all read, keep II = I + III, and get a unit
    vector.
    """
    model, cfg = from_pretrained(trained.folder)
    ecgs = [read_ecg(p) for p in real_records(real_data)]
    for ecg in ecgs:
        ready = standardise_ecg(ecg, cfg.fs, cfg.mains_hz)
        assert ready.lead_names == STANDARD_LEADS and ready.fs == 500
        assert einthoven_error_mv(ready.signal_LT, ready.lead_ok_L) < 0.01
    z_BE = embed_ecgs(model, cfg, ecgs)
    assert np.isfinite(z_BE).all() and np.allclose(np.linalg.norm(z_BE, axis=1), 1, atol=1e-4)
    assert len(np.unique(z_BE.round(4), axis=0)) == len(z_BE)  # nobody looks like anybody else


def test_one_ecg_at_two_rates_is_one_ecg(trained, real_data):
    "HR00001 at 500 Hz and 00001_lr at 100 Hz are each other's nearest record."
    model, cfg = from_pretrained(trained.folder)
    paths = real_records(real_data)
    sim = (z := embed_ecgs(model, cfg, [read_ecg(p) for p in paths])) @ z.T
    np.fill_diagonal(sim, -2)
    names = [p.stem for p in paths]
    high = names.index("HR00001")
    low = names.index("00001_lr")
    assert names[sim[high].argmax()] == "00001_lr" and names[sim[low].argmax()] == "HR00001"


def test_real_cine_is_embedded(trained, real_data):
    "A short-axis series of the real study, with the trigger times of its DICOM headers."
    import io
    import zipfile

    import nibabel
    import pydicom

    model, cfg = from_pretrained(trained.folder)
    times: dict[str, list[tuple[float, float]]] = {}
    with zipfile.ZipFile(next((real_data / "cmr_dicom").glob("*.zip"))) as z:
        for name in z.namelist():
            found = re.search(r"Se(\d+)", name)
            if name.endswith("/") or not found:
                continue
            try:
                d = pydicom.dcmread(io.BytesIO(z.read(name)), stop_before_pixels=True)
            except pydicom.errors.InvalidDicomError:
                continue
            times.setdefault(f"Se{found[1]}", []).append((float(d.TriggerTime), float(d.NominalInterval)))
    assert times, "no Se<n> in the names of the DICOM files"
    cines = []
    for series in ("Se2", "Se3"):
        nii = nibabel.load(real_data / "cmr_nifti" / "biv-me_dcm2niix" / f"{series}.nii.gz")
        trigger = sorted(t for t, _ in times[series])
        x, y, zoom = nii.header.get_zooms()[:3]
        cines.append(
            cine_from_array(
                nii.get_fdata().transpose(3, 2, 1, 0), (zoom, y, x), trigger, times[series][0][1], "sax"
            )
        )
        assert abs(cines[-1].trigger_time_ms[1] - cines[-1].rr_ms / 25) < 0.6  # not pixdim's 34 ms
    c_BE = embed_cines(model, cfg, cines)
    assert np.isfinite(c_BE).all() and np.allclose(np.linalg.norm(c_BE, axis=1), 1, atol=1e-4)
