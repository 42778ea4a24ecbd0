"""pretrain.ipynb through papermill at tiny sizes: it learns, resumes bit for bit, and train.ipynb starts from
what it leaves.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from ptacl.base.config import TrainConfig, load_config
from ptacl.base.core import BadInput, samples_dir
from ptacl.data.table import split_of
from ptacl.models.cine import CineEncoder
from ptacl.models.ecg_encoder import ECGEncoder
from ptacl.models.saved import from_pretrained, start_encoders
from ptacl.models.systems import build_system
from ptacl.training.pretraining import PretrainConfig

SMALL = dict(accelerator="cpu", precision="32-true", workers=1)
ECG = SMALL | dict(window_s=1.0, batch_size=8, epochs=8, eval_every=4)


def command(notebook, out, params, root):
    "The command line that users type."
    given = [
        x for k, v in params.items() for x in (["-r", k, v] if isinstance(v, str) else ["-p", k, str(v)])
    ]
    return [
        sys.executable,
        "-m",
        "papermill",
        str(root / "nbs" / notebook),
        str(out),
        "-k",
        "python3",
        "--no-progress-bar",
        *given,
    ]


def execute(notebook, cwd, params, root):
    "Run a notebook in a folder and return it."
    done = subprocess.run(
        command(notebook, "out.ipynb", params, root), cwd=cwd, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return nbformat.read(cwd / "out.ipynb", 4)


def outputs(notebook):
    "How many pictures, and all text."
    outs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    return sum("image/png" in o.get("data", {}) for o in outs), "\n".join(
        o.get("text", "") + "".join(v for k, v in o.get("data", {}).items() if k.startswith("text/"))
        for o in outs
    )


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    "Twenty-eight of the sample participants; four of them, all of the training part, have no scan."
    folder = tmp_path_factory.mktemp("cohort")
    samples = samples_dir()
    for name in ("ecg", "cine"):
        shutil.copytree(samples / name, folder / name)
    (folder / "participants.json").write_bytes((samples / "participants.json").read_bytes())
    table = pd.read_csv(samples / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    part = table.participant_id.map(split_of)
    table = pd.concat([table[part == "train"].head(16), table[part == "test"].head(12)])
    table.iloc[:4, table.columns.get_loc("cine")] = ""
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


@pytest.fixture(scope="module")
def ecg_run(repo, cohort, tmp_path_factory):
    "An executed notebook and its run folder."
    cwd = tmp_path_factory.mktemp("elsewhere")
    return execute("pretrain.ipynb", cwd, ECG | dict(data=str(cohort), out="run"), repo), cwd / "run"


def test_it_learns_and_shows_it(ecg_run):
    notebook, folder = ecg_run
    figures, text = outputs(notebook)
    assert figures == 2 and not [
        o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"
    ]
    for words in (
        "usable ecg recordings: 16 train, 0 val, 12 test",
        "held-out mean square error",
        "mean of the patch",
        str(folder.resolve()),
    ):
        assert words in text, words
    assert "never clinical evidence" in notebook.cells[0].source
    log = pd.read_csv(folder / "log.csv")
    loss = log.loss_mse.dropna()
    assert len(loss) == 16 and loss.tail(4).mean() < 0.95 * loss.head(4).mean()
    assert log.val_loss_mse.dropna().iloc[-1] < log.val_loss_mse.dropna().iloc[0]
    table = pd.read_csv(folder / "reconstruction.tsv", sep="\t").set_index("prediction").mse
    assert (
        list(table.index) == ["masked model", "mean of the patch", "zero"]
        and table["mean of the patch"] < table["zero"]
    )
    assert table["masked model"] == pytest.approx(log.val_loss_mse.dropna().iloc[-1], rel=1e-3)


def test_run_folder(ecg_run):
    "Settings, weights and the description of the encoder: enough to read it alone."
    _, folder = ecg_run
    assert {
        "config.json",
        "ecg_encoder.json",
        "environment.json",
        "log.csv",
        "metrics.json",
        "model.safetensors",
        "reconstruction.tsv",
        "report.tsv",
    } <= {p.name for p in folder.iterdir()}
    assert load_config(folder / "config.json", PretrainConfig).epochs == 8
    assert json.loads((folder / "metrics.json").read_text())["train"] == 16
    encoder = ECGEncoder.from_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(v, weights[f"ecg_encoder.{k}"]) for k, v in encoder.state_dict().items())
    assert encoder.preparation["fs"] == 500.0 and np.allclose(
        encoder.preparation["sd_mv"], weights["ecg_sd_L"]
    )


def test_killed_and_resumed_bit_for_bit(ecg_run, repo, cohort, tmp_path):
    """SIGKILL of the notebook's processes in the middle of training; the same command goes on and ends with
    the same weights.
    """
    params = ECG | dict(data=str(cohort), out="run", checkpoint_every=2)
    process = subprocess.Popen(
        command("pretrain.ipynb", "cut.ipynb", params, repo),
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 300
    while not (tmp_path / "run" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    step = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["step"]
    assert 0 < step <= 16 and not (tmp_path / "run" / "metrics.json").exists()
    _, text = outputs(execute("pretrain.ipynb", tmp_path, params, repo))
    assert "(resuming)" in text
    whole = load_file(ecg_run[1] / "model.safetensors")
    resumed = load_file(tmp_path / "run" / "model.safetensors")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_training_starts_from_it(ecg_run, repo, cohort, tmp_path):
    """train.ipynb with ecg_init; with no step taken its ECG encoder is the pre-trained one. Those without a
    scan are not in it.
    """
    params = SMALL | dict(
        data=str(cohort),
        out="run",
        window_s=1.0,
        ecg_init=str(ecg_run[1]),
        system="random",
        n_frames=8,
        cine_keep=1.0,
        crop_px=32,
        batch_size=4,
        n_boot=20,
    )
    _, text = outputs(execute("train.ipynb", tmp_path, params, repo))
    assert "12 train" in text
    system, cfg = from_pretrained(tmp_path / "run")
    assert cfg.ecg_init == str(ecg_run[1])
    for k, v in ECGEncoder.from_pretrained(ecg_run[1]).state_dict().items():
        assert torch.equal(system.ecg_encoder.state_dict()[k], v), k


def test_what_does_not_fit_is_said(ecg_run):
    small = TrainConfig(preset="small", window_s=1.0, ecg_init=str(ecg_run[1]))
    with pytest.raises(BadInput, match="its ECGConv has stem = 64, .* but this run's has stem = 96, widths"):
        start_encoders(build_system(small), small)
    longer = TrainConfig(ecg_init=str(ecg_run[1]))
    with pytest.raises(BadInput, match="was prepared with window_s = 1.0, not 5.0"):
        start_encoders(build_system(longer), longer)
    other = TrainConfig(ecg_encoder="vit", window_s=1.0, ecg_init=str(ecg_run[1]))
    with pytest.raises(BadInput, match="holds an ECGConv, and this run has an ECGViT. Set `ecg_encoder`"):
        start_encoders(build_system(other), other)
    cine = TrainConfig(window_s=1.0, cmr_init=str(ecg_run[1]))
    with pytest.raises(BadInput, match="holds no CineEncoder"):
        start_encoders(build_system(cine), cine)


def test_cine(repo, cohort, tmp_path):
    "The cine encoder, with tubes and normalised targets; the participants without a scan do not take part."
    params = SMALL | dict(
        data=str(cohort),
        out="run",
        modality="cine",
        n_frames=8,
        crop_px=48,
        tube_frames=4,
        mask_ratio=0.6,
        normalise_targets=True,
        correlation_weight=0.1,
        batch_size=4,
        epochs=6,
    )
    figures, text = outputs(execute("pretrain.ipynb", tmp_path, params, repo))
    assert figures == 2 and "usable cine recordings: 12 train, 0 val, 12 test" in text
    loss = pd.read_csv(tmp_path / "run" / "log.csv").loss.dropna()
    assert loss.tail(5).mean() < loss.head(5).mean()
    encoder = CineEncoder.from_pretrained(tmp_path / "run")
    cfg = TrainConfig(n_frames=8, cine_keep=1.0, crop_px=48, cmr_init=str(tmp_path / "run"))
    system = start_encoders(build_system(cfg), cfg)
    assert all(
        torch.equal(a, b)
        for a, b in zip(encoder.state_dict().values(), system.cine_encoder.state_dict().values(), strict=True)
    )
