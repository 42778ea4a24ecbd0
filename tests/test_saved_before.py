"""Run folders and encoders that an earlier version saved load, and give the numbers that they gave then; what
has no place any more is refused by one sentence.
"""

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ptacl.base.config import load_config
from ptacl.base.core import BadInput, sample_path, samples_dir, seed_everything
from ptacl.data.batches import load_data
from ptacl.models.saved import from_pretrained, start_encoders
from ptacl.models.systems import build_system
from ptacl.training.loop import fit
from ptacl.training.watch import embed_pairs
from ptacl.use import ECGEncoder

SAVED = Path(__file__).parent / "saved"
VALUES = json.loads((SAVED / "values.json").read_text())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "The folders, unpacked."
    top = tmp_path_factory.mktemp("saved")
    safe = dict(filter="data") if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 and later
    for archive in SAVED.glob("*.tar.xz"):
        with tarfile.open(archive) as tar:
            tar.extractall(top, **safe)
    return top


def close(found, wanted, atol):
    np.testing.assert_allclose(np.asarray(found, float).ravel(), wanted, rtol=1e-3, atol=atol)


@pytest.mark.parametrize("name", ["ptacl", "mmcl", "masked", "vit"])
def test_encoder(saved, name):
    encoder = ECGEncoder.from_pretrained(saved / name)
    close(encoder.embed(sample_path("ecg") / VALUES["record"]), VALUES[name]["embedding"], 1e-3)


@pytest.mark.parametrize("name", ["ptacl", "mmcl"])
def test_probe(saved, name):
    encoder = ECGEncoder.from_pretrained(saved / name)
    table = encoder.predict(sample_path("ecg") / VALUES["record"])
    assert list(table.columns) == VALUES[name]["columns"]
    close(table.select_dtypes("number").to_numpy(), VALUES[name]["predicted"], 0.05)


@pytest.mark.parametrize("name", ["ptacl", "mmcl"])
def test_system(saved, name):
    model, cfg = from_pretrained(saved / name)
    pairs = load_data(samples_dir(), cfg, progress=False)[1]
    embedded = embed_pairs(model, pairs.split("test"), cfg)
    close(embedded.ecg_BE[:2], VALUES[name]["test_ecg"], 1e-3)
    close(embedded.cmr_BE[:2], VALUES[name]["test_cmr"], 1e-3)


def test_run_goes_on(saved):
    "The run that was broken off is resumed from its checkpoint and ends as it would have then."
    wanted = VALUES["resumed"]
    cfg = load_config(saved / "ptacl" / "config.json")
    pairs = load_data(samples_dir(), cfg, progress=False)[1]
    seed_everything(cfg.seed)
    model = start_encoders(build_system(cfg), cfg)
    state = fit(
        cfg,
        model,
        pairs.split("train"),
        pairs.split("test"),
        checkpoint=saved / "ptacl" / "last.ckpt",
        progress=False,
    )
    assert state.step == wanted["step"]
    assert state.log[0]["step"] == wanted["first_step"]
    assert [row["step"] for row in state.log if "loss" in row] == list(range(1, 19))
    close([row["loss"] for row in state.log if "loss" in row][-4:], wanted["losses"], 1e-3)


def test_encoder_of_masked_training_starts_a_run(saved):
    "A run that names a pre-training run as `ecg_init` gets its weights."
    cfg = load_config(saved / "ptacl" / "config.json")
    changed = replace(cfg, ecg_init=str(saved / "masked"))
    model = start_encoders(build_system(changed), changed)
    encoder = ECGEncoder.from_pretrained(saved / "masked")
    for name, weight in encoder.state_dict().items():
        assert torch.equal(model.ecg_encoder.state_dict()[name], weight)


def test_transformer_by_its_former_name(saved):
    "Before there were two kinds, folders called the vision transformer ECGEncoder."
    settings = json.loads((saved / "vit" / "config.json").read_text())
    assert (settings["architectures"], settings["summary"]) == (["ECGEncoder"], False)
    encoder = ECGEncoder.from_pretrained(saved / "vit")
    assert type(encoder).__name__ == "ECGViT" and "summary" not in encoder.settings


def test_encoder_with_a_summary_is_refused(saved, tmp_path):
    "Alone, as the encoder of a system, and as what a run starts from, whatever encoder that has."
    said = "holds an ECG encoder with a hand-made summary of the strip, which no encoder has any more. Train"
    before = saved / "with_summary"
    with pytest.raises(BadInput, match=said):
        ECGEncoder.from_pretrained(before)
    system = shutil.copytree(saved / "ptacl", tmp_path / "system")
    shutil.copy(before / "ecg_encoder.json", system)
    with pytest.raises(BadInput, match=said):
        from_pretrained(system)
    cfg = load_config(saved / "ptacl" / "config.json")
    for kind in ("", "conv", "vit"):
        changed = replace(cfg, ecg_encoder=kind, ecg_init=str(before))
        with pytest.raises(BadInput, match=said):
            start_encoders(build_system(changed), changed)
