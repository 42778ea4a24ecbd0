"""Explanations beyond the notebook: every system with a CMR side, mean pooling, one pair among others, the
full window, plots with units.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ptacl.base.config import TrainConfig
from ptacl.base.core import samples_dir, seed_everything
from ptacl.data.batches import Batch, draw_batch, for_system, load_pairs
from ptacl.data.cohort import read_cohort
from ptacl.data.ecg import STANDARD_LEADS
from ptacl.evaluation.explain import (
    attention_rollout,
    gradient_times_input,
    integrated_gradients,
    plot_cine_share,
    plot_ecg_share,
    sanity_check,
    shuffled_weights,
)
from ptacl.models.ecg_vit import ECGViT
from ptacl.models.system import System
from ptacl.models.systems import SETTINGS, build_system
from ptacl.training.checkpoint import fit_input_scaling

QUICK = dict(
    accelerator="cpu", precision="32-true", crop_px=32, n_frames=8, cine_keep=1.0, workers=1, window_s=1.0
)
# an ECG and a CMR in one space
WITH_CMR = [n for n, s in SETTINGS.items() if "targets" not in s and n != "random"]


def config(name: str) -> TrainConfig:
    "A system at its smallest."
    return TrainConfig(**SETTINGS[name] | QUICK)


@pytest.fixture(scope="module")
def prepared():
    "Four sample participants."
    cohort = read_cohort(samples_dir())
    return load_pairs(replace(cohort, table=cohort.table.head(4)), config("ptacl"), progress=False)[0]


def system_and_batch(name: str, prepared, rows=(0, 1)) -> tuple[System, Batch]:
    "A system of seed 0 with its constants, and some pairs."
    cfg = config(name)
    pairs = for_system(prepared, prepared.cine_PFHW.store, cfg)
    seed_everything(0)
    return fit_input_scaling(build_system(cfg), pairs).eval(), Batch(**draw_batch(pairs, np.array(rows), 500))


@pytest.mark.parametrize("name", WITH_CMR)
def test_every_system_is_explained(prepared, name):
    "Maps are finite, not empty, complete, and leave the model as it was."
    model, batch = system_and_batch(name, prepared, (1,))
    # deep networks jump at grey
    mean = (
        None
        if "cine_encoder" in dict(model.named_children())
        else batch._replace(
            signal_BLT=model.ecg_mean_L[:, None].expand(1, -1, 500),
            cine_BFHW=torch.from_numpy(np.asarray(prepared.cine_PFHW[np.arange(4)], dtype=np.float32)).mean(
                0, keepdim=True
            ),
        )
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    quick = gradient_times_input(model, batch, mean)
    complete = integrated_gradients(model, batch, n_points=96, compared=mean)
    for a in (quick, complete):
        assert a.ecg_BLT.shape == batch.signal_BLT.shape and a.cine_BFHW.shape == batch.cine_BFHW.shape
        assert (
            all(bool(x.isfinite().all()) for x in a)
            and a.ecg_BLT.abs().sum() > 0
            and a.cine_BFHW.abs().sum() > 0
        )
    assert float(complete.gap_B2.abs().max()) < 0.03
    used = (complete.cine_BFHW[0].abs().sum((1, 2)) > 0).sum()
    # MMCL and dual-phase see some frames only, and no other has a share
    assert used == 8 if name in ("ptacl", "global_only") else used < 8
    assert (
        model.training is False
        and all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
        and all(p.grad is None for p in model.parameters())
    )


def test_a_system_without_cmr_says_so(prepared):
    cfg = TrainConfig(**SETTINGS["supervised"] | QUICK)
    _, batch = system_and_batch("ptacl", prepared)
    with pytest.raises(ValueError, match="no shared embedding"):
        gradient_times_input(build_system(cfg), batch)


def test_a_pair_is_explained_as_if_alone(prepared):
    model, batch = system_and_batch("ptacl", prepared, (0, 1, 2))
    alone = Batch(*(x[1:2] if len(x) else x for x in batch))
    for explain, eps in (
        (gradient_times_input, 1e-5),
        (lambda m, b: integrated_gradients(m, b, n_points=8), 1e-9),
    ):
        a = explain(model, alone)
        b = explain(model, batch)
        assert torch.allclose(a.ecg_BLT[0], b.ecg_BLT[1], atol=eps) and torch.allclose(
            a.cine_BFHW[0], b.cine_BFHW[1], atol=eps
        )


def test_rollout_of_a_mean_pooled_encoder(prepared):
    """Uniform attention over N tokens in d blocks: a patch has (1 - (1 - 2^-d)/N)/(N - 1) of the mean of the
    patches.
    """
    model, batch = system_and_batch("ptacl", prepared)
    model.ecg_encoder = ECGViT(500, dim=32, depth=2, heads=4, pool="mean").eval()
    with torch.no_grad():
        for block in model.ecg_encoder.blocks:
            block.attention.qkv.weight.zero_()
            block.attention.qkv.bias.zero_()
    N = 121
    rolled = attention_rollout(model, batch.signal_BLT, torch.ones(2, 12, dtype=torch.bool))
    assert torch.allclose(rolled, torch.full((2, 12, 10), (1 - (1 - 0.25) / N) / (N - 1)), atol=1e-7)
    assert not any(block.attention._forward_pre_hooks for block in model.ecg_encoder.blocks)


def test_rollout_gives_nothing_to_a_lead_that_was_off(prepared):
    """The encoder takes the mean of the good leads' patches, so the others have no share. They had what they
    kept of themselves: 0.25 each over 120 here, 2 in 100 of all with a lead off.
    """
    model, batch = system_and_batch("ptacl", prepared)
    model.ecg_encoder = ECGViT(500, dim=32, depth=2, heads=4, pool="mean").eval()
    lead_ok = torch.ones(2, 12, dtype=torch.bool)
    lead_ok[0, 5] = False
    rolled = attention_rollout(model, batch.signal_BLT, lead_ok)
    assert rolled[0, 5].abs().max() == 0 and rolled[1, 5].min() > 0
    # what is not a patch's is that of CLS, which each patch gets in each of two blocks
    assert (rolled[0].sum() - rolled[1].sum()).abs() < 0.02


def test_the_check_tells_maps_of_the_model_from_maps_of_the_picture(prepared):
    "A map that ignores the weights fails in both recordings; gradients of this untrained model pass."
    model, batch = system_and_batch("ptacl", prepared)

    def blind(m, b):
        return gradient_times_input(model, b)  # asks another model than it is given

    assert not sanity_check(blind, model, batch, n_shuffles=1).passes.any()
    assert sanity_check(gradient_times_input, model, batch, n_shuffles=2).passes.all()
    assert not torch.equal(
        shuffled_weights(model, 1).ecg_encoder.stem.weight,
        shuffled_weights(model, 2).ecg_encoder.stem.weight,
    )


def test_plots_have_units(prepared):
    model, batch = system_and_batch("ptacl", prepared)
    a = gradient_times_input(model, batch)
    figure = Figure()
    ax = plot_ecg_share(batch.signal_BLT[0], a.ecg_BLT[0], 500.0, STANDARD_LEADS, figure.add_subplot())
    assert (
        ax.get_xlabel() == "time, s"
        and "mV" in ax.get_ylabel()
        and "cosine similarity" in figure.axes[1].get_ylabel()
    )
    assert [t.get_text() for t in ax.texts] == list(STANDARD_LEADS)
    figure = Figure()
    plot_cine_share(
        batch.cine_BFHW[0], a.cine_BFHW[0], (2.5, 2.5), dict(ED=0, ES=3), list(figure.subplots(1, 4))
    )
    assert (
        [x.get_xlabel() for x in figure.axes[:4]] == ["mm"] * 4
        and figure.axes[0].get_ylabel() == "mm"
        and "cosine similarity" in figure.axes[4].get_ylabel()
    )
    figure.canvas.draw()
