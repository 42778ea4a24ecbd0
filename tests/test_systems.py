"""What must hold of every system: its parameter file, a loss that falls, the same result from the same seed,
weights that come back, no participant who touches another.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from ptacl.base.config import TrainConfig
from ptacl.base.core import samples_dir, seed_everything
from ptacl.data.batches import Batch, draw_batch, for_system, load_data, load_pairs
from ptacl.data.cine import mid_slice, read_cine, write_cine
from ptacl.data.cohort import read_cohort
from ptacl.data.phase import CANONICAL_ES
from ptacl.data.prepare import PrepareConfig, prepare_cohort
from ptacl.models.layers import count_parameters
from ptacl.models.saved import from_pretrained, save_pretrained
from ptacl.models.systems import SETTINGS, build_system, objective
from ptacl.training.batches import StepBatch
from ptacl.training.checkpoint import TrainState, fit_input_scaling
from ptacl.training.device import fabric_from_config
from ptacl.training.loop import fit, train_step
from ptacl.training.optimiser import optimizer_from_config
from ptacl.training.watch import embed_pairs

QUICK = dict(
    accelerator="cpu", precision="32-true", crop_px=32, n_frames=8, epochs=2, batch_size=8, workers=1
)
TRAINED = [name for name in SETTINGS if name != "random"]


def config(name: str, **changed) -> TrainConfig:
    "A system at its smallest."
    return TrainConfig(**SETTINGS[name] | QUICK | changed)


@pytest.fixture(scope="module")
def prepared() -> dict:
    "24 sample participants as each system gets them."
    cohort = read_cohort(samples_dir())
    pairs = load_pairs(replace(cohort, table=cohort.table.head(24)), config("ptacl"), progress=False)[0]
    return {name: for_system(pairs, pairs.cine_PFHW.store, config(name)) for name in SETTINGS}


def fitted(cfg, pairs, **how):
    "Build from the seed and train on 16 pairs."
    seed_everything(cfg.seed)
    return fit(
        cfg, build_system(cfg), pairs.take(range(16)), pairs.take(range(16, 24)), progress=False, **how
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_parameter_file(repo, name):
    """Every parameter exists, has the right type and contradicts nothing; the file is what SETTINGS says, and
    all files are there.
    """
    given = yaml.safe_load((repo / "nbs" / "systems" / f"{name}.yaml").read_text())
    assert given == SETTINGS[name]
    assert TrainConfig.from_params(given) == TrainConfig(**given)
    assert sorted(p.stem for p in (repo / "nbs" / "systems").glob("*.yaml")) == sorted(SETTINGS)


@pytest.mark.parametrize("name", TRAINED)
def test_same_seed_gives_the_same_weights(prepared, name):
    "Two epochs, twice; every loss is finite, and held-out losses are logged by their parts."
    states = [fitted(config(name), prepared[name]) for _ in range(2)]
    assert states[0].step == 4 and all(
        torch.equal(a, b) for a, b in zip(*(s.model.state_dict().values() for s in states), strict=True)
    )
    assert all(np.isfinite(row["loss"]) for row in states[0].log if "loss" in row)
    of_needs = dict(targets="val_loss_targets", local_bins="val_loss_local")
    parts = [part for need, part in of_needs.items() if need in config(name).needs]
    parts += ["val_loss_ed_es"] if name == "dual_phase" else []
    assert set(parts or ["val_loss_global"]) <= set(states[0].log[-1])


@pytest.mark.parametrize("name", TRAINED)
def test_eight_pairs_are_learned_by_heart(prepared, name):
    """A system that cannot overfit eight pairs is broken: chance is ln 8 = 2.08, or 1 for standardised
    phenotypes.
    """
    # 2 s: a beat or two, a third of the work
    cfg = config(name, lr=1e-3, ecg_keep=1.0, window_s=2.0)
    pairs = prepared[name].take(range(8))
    seed_everything(cfg.seed)
    model = fit_input_scaling(build_system(cfg), pairs)
    fabric = fabric_from_config(cfg)
    state = TrainState(*fabric.setup(model, optimizer_from_config(model, cfg)), fabric)
    batch = Batch(**draw_batch(pairs, np.arange(8), 1000))
    step = StepBatch.of(batch, [""] * 8)
    losses = [float(train_step(state, step, cfg, 60)["loss"]) for _ in range(60)]
    assert losses[-1] < losses[0] / 2, losses[::6]


def test_random_takes_no_step(prepared):
    cfg = config("random")
    seed_everything(cfg.seed)
    start = {k: v.clone() for k, v in build_system(cfg).named_parameters()}
    state = fitted(cfg, prepared["random"])
    end = state.model.state_dict()
    assert state.step == 0 and all(torch.equal(v, end[k]) for k, v in start.items())
    # but it is evaluated
    assert [row for row in state.log if np.isfinite(row.get("val_loss_global", np.nan))]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_weight_gets_a_gradient(prepared, name):
    "None is idle (several processes would wait for it), and the objective is a scalar."
    cfg = config(name)
    pairs = prepared[name]
    model = fit_input_scaling(build_system(cfg), pairs)
    batch = Batch(**draw_batch(pairs, np.arange(8), 2500))
    batch.lead_ok_BL[torch.arange(12) % 8, torch.arange(12)] = False  # each lead is missing somewhere
    loss, parts = objective(model.train()(batch), model.temperature, cfg)
    loss.backward()
    assert loss.ndim == 0 and parts["loss"] == loss
    # the last norm of a residual block starts at zero, so what stands before it waits for one step
    last = ("layers.2.1.weight", "layers.4.1.weight")
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    assert [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and not p.grad.abs().sum() > 0 and "encoder.layers" not in n
    ] == []
    assert [n for n, p in model.named_parameters() if n.endswith(last) and not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", SETTINGS)
def test_weights_come_back(prepared, name, tmp_path):
    cfg = config(name)
    pairs = prepared[name]
    seed_everything(1)
    model = fit_input_scaling(build_system(cfg), pairs).eval()
    again, cfg_again = from_pretrained(save_pretrained(model, cfg, tmp_path))
    assert cfg_again == cfg and type(again) is type(model)
    a, b = (embed_pairs(m, pairs.take(range(4)), cfg) for m in (model, again))
    assert (
        torch.equal(a.ecg_BD, b.ecg_BD)
        and torch.equal(a.cmr_BE, b.cmr_BE)
        and torch.equal(a.predicted_BY, b.predicted_BY)
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_participants_do_not_touch_each_other(prepared, name):
    "A participant's embedding is the same alone and in company: no batch statistics."
    cfg = config(name)
    pairs = prepared[name]
    model = fit_input_scaling(build_system(cfg), pairs)
    alone = embed_pairs(model, pairs.take([3]), cfg)
    company = embed_pairs(model, pairs.take([0, 3, 5]), cfg)
    for field in ("ecg_BD", "cmr_BE", "cmr_BQE"):
        assert torch.allclose(getattr(alone, field)[0], getattr(company, field)[1], atol=1e-5)


@pytest.mark.parametrize("name", ["mmcl", "dual_phase"])
def test_starting_frame_does_not_matter(prepared, name):
    "Frames and phases rolled together: the same embeddings, bit for bit; frames alone: others."
    cfg = config(name)
    pairs = prepared[name]
    model = fit_input_scaling(build_system(cfg), pairs).eval()
    batch = Batch(**draw_batch(pairs, np.arange(4), 2500))
    with torch.no_grad():
        here = model(batch)
        for k in (1, 5):
            cine = batch.cine_BFHW.roll(k, 1)
            rolled = model(
                batch._replace(
                    cine_BFHW=cine,
                    frame_phase_BF=batch.frame_phase_BF.roll(k, 1),
                    frame_time_BF=batch.frame_time_BF.roll(k, 1),
                )
            )
            assert torch.equal(rolled.cmr_BE, here.cmr_BE) and torch.equal(rolled.cmr_BQE, here.cmr_BQE)
            assert not torch.equal(model(batch._replace(cine_BFHW=cine)).cmr_BE, here.cmr_BE)


def test_end_of_systole_is_the_same_frame_on_both_maps():
    """On the linear map it is the frame nearest in time, on the systole map the nearest in phase.

    Each side of the moment has a slope of its own: the same of the 25 frames, but about halfway between two.
    """
    cohort = read_cohort(samples_dir())
    few = replace(cohort, table=cohort.table.head(12))
    linear, systole = (
        load_pairs(few, config("mmcl", n_frames=25, phase_map=m), progress=False)[0]
        for m in ("linear", "systole")
    )

    def distance(phase_PF, es_P):
        return np.abs((np.asarray(phase_PF) - es_P[:, None] + 0.5) % 1 - 0.5)

    a = distance(linear.frame_phase_PF, linear.es_phase_P).argmin(1)
    b = distance(systole.frame_phase_PF, np.full(12, CANONICAL_ES)).argmin(1)
    es_P = np.asarray(linear.es_phase_P, np.float64) * 25
    frame_P = np.floor(es_P)
    before_P = (es_P - frame_P) * CANONICAL_ES / es_P
    after_P = (frame_P + 1 - es_P) * (1 - CANONICAL_ES) / (25 - es_P)
    assert systole.es_phase_P is None
    assert (a == np.rint(es_P)).all()
    assert (b == frame_P + (after_P < before_P)).all()
    assert (np.abs(a - b) <= 1).all() and (a == b).sum() >= 11


def test_unknown_phenotypes_are_left_out(prepared):
    "Targets that are missing change nothing but their own part of the loss."
    cfg = config("supervised")
    pairs = prepared["supervised"]
    model = fit_input_scaling(build_system(cfg), pairs).eval()
    batch = Batch(**draw_batch(pairs, np.arange(6), 2500))
    assert batch.cine_BFHW.shape[1] == 0  # no cine is read
    holes = batch.target_BY.clone()
    holes[::2, 1:] = float("nan")
    with torch.no_grad():
        out = model(batch._replace(target_BY=holes))
        full = model(batch)
    error = (full.predicted_BY - full.target_BY).square()
    loss, parts = objective(out, model.temperature, cfg)
    assert parts["n_targets"] == 6 * 6 - 3 * 5
    assert torch.allclose(loss, error[holes.isfinite()].mean(), rtol=1e-5)
    predicted = model.predict(batch.signal_BLT, batch.lead_ok_BL)
    assert torch.allclose((predicted - model.target_mean_Y) / model.target_sd_Y, full.predicted_BY, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_every_preset_builds(name, preset):
    with torch.device("meta"):
        model = build_system(TrainConfig(**SETTINGS[name], preset=preset))
    assert count_parameters(model) > 0 and all(p.is_meta for p in model.parameters())


def test_local_loss_adds_no_weight():
    with torch.device("meta"):
        both = [build_system(TrainConfig(**SETTINGS[name])) for name in ("ptacl", "global_only")]
    assert len({count_parameters(m) for m in both}) == 1


def test_dual_phase_on_stacks(tmp_path):
    "Whole stacks, from a store: prepared once, trained on; and the other systems take the same store."
    cohort = read_cohort(samples_dir())
    source = tmp_path / "source"
    (source / "cine").mkdir(parents=True)
    shutil.copy(cohort.root / "participants.json", source)
    shutil.copytree(cohort.root / "ecg", source / "ecg")
    table = cohort.table.head(12)
    for name in table.participant_id:
        cine = mid_slice(read_cine(cohort.path(name, "cine")))
        z = np.linspace(1, 0.5, 6, dtype=np.float32)[:, None, None]
        write_cine(replace(cine, frames_FZHW=cine.frames_FZHW * z), source / "cine" / f"{name}.nii.gz")
    table.to_csv(source / "participants.tsv", sep="\t", index=False)
    cfg = config("dual_phase", n_slices=4, batch_size=4, epochs=1)
    prepare_cohort(
        read_cohort(source),
        tmp_path / "store",
        PrepareConfig(n_frames=8, crop_px=32, n_slices=4, workers=1),
        progress=False,
    )
    pairs = load_data(tmp_path / "store", cfg)[1]
    batch = draw_batch(pairs, np.arange(3), 2500)
    assert batch["volume_BQZHW"].shape == (3, 2, 4, 32, 32) and batch["cine_BFHW"].shape[1] == 0
    brightness = batch["volume_BQZHW"].mean((0, 1, 3, 4))
    assert (brightness.diff() < 0).all()  # the order of the slices is kept
    seed_everything(0)
    state = fit(cfg, build_system(cfg), pairs.take(range(8)), pairs.take(range(8, 12)), progress=False)
    assert state.step == 2 and np.isfinite(state.log[-1]["val_loss_ed_es"])
    assert load_data(tmp_path / "store", config("mmcl"))[1].volume_PQZHW is None
