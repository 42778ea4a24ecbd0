"""What must hold of every kind of ECG encoder: its vector is made of the samples and of nothing else, what is
missing or hidden never matters, it is exported, and it can be pre-trained.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ptacl.base.config import TrainConfig
from ptacl.base.core import BadInput, samples_dir, seed_everything
from ptacl.data.batches import Batch, draw_batch, load_pairs
from ptacl.data.cohort import read_cohort
from ptacl.models.ecg_encoder import ECGEncoder, draw_kept
from ptacl.models.encoders import ECG_ENCODERS
from ptacl.models.systems import build_system
from ptacl.models.weights import save_weights
from ptacl.training.checkpoint import fit_input_scaling
from ptacl.training.pretraining import PretrainConfig, masked_model_from_config

KINDS = sorted(ECG_ENCODERS)
CFG = TrainConfig(
    accelerator="cpu",
    precision="32-true",
    window_s=2.5,
    crop_px=32,
    n_frames=8,
    cine_keep=1.0,
    phase_bins=8,
    workers=1,
)


@pytest.fixture(scope="module")
def pairs():
    cohort = read_cohort(samples_dir())
    return load_pairs(replace(cohort, table=cohort.table.head(16)), CFG, progress=False)[0]


@pytest.fixture(scope="module")
def batch(pairs):
    "Sixteen participants whose leads are all there."
    every = Batch(**draw_batch(pairs, np.arange(len(pairs)), 1250))
    assert every.lead_ok_BL.all()
    return every


@pytest.fixture(scope="module", params=KINDS)
def model(request, pairs):
    seed_everything(0)
    return fit_input_scaling(build_system(replace(CFG, ecg_encoder=request.param)), pairs).eval()


def rows_apart(a_BE, b_BE):
    "Distance of the vectors of each participant, (B,)."
    return (a_BE - b_BE).norm(dim=1)


@torch.no_grad()
def test_another_ones_samples_give_another_ones_vector(model, batch):
    """Everything stays (phases, leads, cine, who it is) but the samples, which are the next participant's:
    the vector is the next participant's.
    """
    next_B = torch.arange(16).roll(-1)
    own = model(batch)
    other = model(batch._replace(signal_BLT=batch.signal_BLT[next_B]))
    between_B = rows_apart(own.ecg_BD, own.ecg_BD[next_B])
    assert between_B.min() > 0.02 * own.ecg_BD.norm(dim=1).mean()
    for of_other, of_own in ((other.ecg_BD, own.ecg_BD), (other.ecg_BE, own.ecg_BE)):
        torch.testing.assert_close(of_other, of_own[next_B], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other.cmr_BE, own.cmr_BE)


@torch.no_grad()
def test_half_of_another_ones_samples_goes_a_good_part_of_the_way(model, batch):
    "Half the window, and half the leads."
    next_BLT = batch.signal_BLT.roll(-1, 0)
    late_T = torch.arange(1250) >= 625
    precordial_L1 = (torch.arange(12) >= 6)[:, None]
    own_BD = model(batch).ecg_BD
    whole_B = rows_apart(own_BD, own_BD.roll(-1, 0))
    for is_other in (late_T, precordial_L1):
        mixed_BLT = torch.where(is_other, next_BLT, batch.signal_BLT)
        moved_B = rows_apart(model(batch._replace(signal_BLT=mixed_BLT)).ecg_BD, own_BD)
        assert (moved_B / whole_B).median() > 0.3
        assert (moved_B / whole_B).min() > 0.1


@torch.no_grad()
def test_without_samples_all_are_alike(model, batch):
    "Flat strips: nothing that is left of a participant reaches the vector."
    flat = batch._replace(signal_BLT=torch.zeros_like(batch.signal_BLT))
    ecg_BD = model(flat).ecg_BD
    torch.testing.assert_close(ecg_BD, ecg_BD[:1].expand(16, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("missing", [(0,), (6, 7), (*range(11),)], ids=["I", "V1 V2", "all but V6"])
def test_what_a_missing_lead_holds_never_matters(model, batch, missing):
    "Not by a bit, not even not-a-number, neither in vectors nor in gradients; that it is missing does."
    lead_ok_BL = batch.lead_ok_BL.clone()
    lead_ok_BL[:, missing] = False
    vectors = []
    for held in (0.0, 1e4, torch.nan):
        signal_BLT = batch.signal_BLT.clone()
        signal_BLT[:, missing] = held
        model.zero_grad()
        pooled_BD = model.encode_ecg(signal_BLT, lead_ok_BL)[1]
        pooled_BD.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in model.ecg_encoder.parameters() if p.grad is not None)
        vectors.append(pooled_BD.detach())
    assert torch.equal(vectors[0], vectors[1]) and torch.equal(vectors[0], vectors[2])
    with torch.no_grad():
        flat_BLT = batch.signal_BLT.clone()
        flat_BLT[:, missing] = 0.0
        taken_for_flat_BD = model.encode_ecg(flat_BLT, batch.lead_ok_BL)[1]
    if model.ecg_encoder.__class__.__name__ == "ECGViT":  # convolutions learn a vector for it, 0 at first
        assert rows_apart(vectors[0], taken_for_flat_BD).min() > 0


@torch.no_grad()
def test_what_a_hidden_patch_holds_never_matters(model, batch):
    n_patches = model.ecg_encoder.n_patches
    assert n_patches == 12 * 25
    kept_BN = draw_kept(16, n_patches, 0.5, generator=torch.Generator().manual_seed(0))
    is_hidden_BN = torch.ones(16, n_patches, dtype=torch.bool).scatter(1, kept_BN, False)
    is_hidden_BLT = is_hidden_BN.view(16, 12, 25).repeat_interleave(50, 2)
    in_sight = model.encode_ecg(batch.signal_BLT, batch.lead_ok_BL, kept_BN)
    for held in (1e4, torch.nan):
        spoiled_BLT = batch.signal_BLT.masked_fill(is_hidden_BLT, held)
        spoiled = model.encode_ecg(spoiled_BLT, batch.lead_ok_BL, kept_BN)
        assert all(torch.equal(a, b) for a, b in zip(spoiled, in_sight, strict=True))
    seen_BLT = batch.signal_BLT + ~is_hidden_BLT * torch.randn(batch.signal_BLT.shape)
    changed_BD = model.encode_ecg(seen_BLT, batch.lead_ok_BL, kept_BN)[1]
    assert rows_apart(changed_BD, in_sight[1]).min() > 0


@torch.no_grad()
def test_tokens_have_a_place_in_time(model, batch):
    "A spike moves the tokens around it, as `token_phase` says where they lie."
    encoder = model.ecg_encoder
    clock_BT = (torch.arange(1250) / 1250).expand(16, -1)  # one long cycle: the phase is the time
    time_BN, has_BN = encoder.token_phase(clock_BT, torch.ones_like(clock_BT) > 0, batch.lead_ok_BL)
    assert has_BN.all()
    quiet_BLT = 0.5 * torch.randn(16, 12, 1250, generator=torch.Generator().manual_seed(0))
    tokens_BND = encoder(quiet_BLT)[0]
    assert tokens_BND.shape[:2] == time_BN.shape
    for at in (200, 640, 1130):
        spiked_BLT = quiet_BLT.clone()
        spiked_BLT[:, :, at - 5 : at + 5] += 0.5
        moved_BN = (encoder(spiked_BLT)[0] - tokens_BND).square().sum(2)
        centre_B = 1250 * (moved_BN * time_BN).sum(1) / moved_BN.sum(1)
        assert (centre_B - at).abs().max() <= 60


@torch.no_grad()
def test_any_window_by_convolutions_alone(model, batch):
    encoder = model.ecg_encoder
    windows = (40, 500, 777, 2500, 5000)
    if encoder.__class__.__name__ == "ECGViT":
        for n in windows:
            with pytest.raises(BadInput, match="12 leads x"):
                encoder(torch.zeros(1, 12, n))
        return
    for n in windows:
        tokens_BND, strip_BD = encoder(torch.randn(2, 12, n))
        assert tokens_BND.shape == (2, -(-n // 32), 128) and strip_BD.isfinite().all()
    pairs_BLT = batch.signal_BLT / model.ecg_sd_L[:, None]
    short_BD, long_BD = (encoder(x_BLT)[1] for x_BLT in (pairs_BLT[..., :800], pairs_BLT))
    centred = [x - x.mean(0) for x in (short_BD, long_BD)]
    same_B = torch.nn.functional.cosine_similarity(*centred, dim=1)
    assert same_B.median() > 0.7  # a part of the strip says whose it is


def test_exported_it_gives_the_same(model, batch, tmp_path):
    "ONNX, any batch."
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from ptacl.use.onnx import ECGGraph, export_onnx, onnx_difference

    encoder = model.ecg_encoder
    how = dict(fs=500.0, mains_hz=50.0, window_s=2.5)
    encoder.preparation = how | dict(mean_mv=model.ecg_mean_L.tolist(), sd_mv=model.ecg_sd_L.tolist())
    path = export_onnx(encoder, tmp_path / "encoder.onnx")
    assert onnx_difference(path, ECGGraph(encoder), (1, 3)) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_patches_are_learned_by_heart(kind, pairs):
    "Masked pre-training of every kind: forty steps on one batch with masks that stay."
    cfg = PretrainConfig(ecg_encoder=kind, window_s=1.0, accelerator="cpu", precision="32-true")
    batch = Batch(**draw_batch(pairs, np.arange(4), 500))
    seed_everything(0)
    model = fit_input_scaling(masked_model_from_config(cfg), pairs).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    mse = []
    for _ in range(40):
        errors = model(batch)
        loss = errors.squared_B.sum() / errors.values_B.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mse.append(loss.item())
    print(f"{kind}: mean square error {mse[0]:.2f} at first, {mse[-1]:.2f} in the end")
    assert mse[-1] < 0.5 * mse[0]


OWN = """
import torch
from ptacl.models.ecg_encoder import ECGEncoder


class OfAFile(ECGEncoder):
    def __init__(self, n_samples, dim):
        super().__init__(n_samples, dim)
        self.settings = dict(n_samples=n_samples, dim=dim)
        self.scale = torch.nn.Parameter(torch.ones(dim))
"""


def test_one_of_a_file_is_known_where_the_environment_names_it(tmp_path, monkeypatch):
    "As commands read it, which take no parameter `extensions`."
    (tmp_path / "of_a_file.py").write_text(OWN)
    settings = dict(architectures=["OfAFile"], n_samples=500, dim=8)
    save_weights(dict(scale=torch.full((8,), 2.0)), settings, tmp_path / "encoder")
    monkeypatch.setenv("PTACL_EXTENSIONS", "")
    with pytest.raises(BadInput, match="its file named in .PTACL_EXTENSIONS"):
        ECGEncoder.from_pretrained(tmp_path / "encoder")
    monkeypatch.setenv("PTACL_EXTENSIONS", str(tmp_path / "of_a_file.py"))
    assert ECGEncoder.from_pretrained(tmp_path / "encoder").scale.tolist() == [2.0] * 8
    ECGEncoder.kinds.pop("OfAFile")
