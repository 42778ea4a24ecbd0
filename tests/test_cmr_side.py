"A CMR side that learned phenotypes first, and is kept: what is frozen does not move, whatever else does."

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch

from ptacl.base.config import TrainConfig
from ptacl.base.core import BadInput, samples_dir, seed_everything
from ptacl.data.batches import load_pairs
from ptacl.data.cohort import read_cohort
from ptacl.models.saved import from_pretrained, save_pretrained, start_encoders
from ptacl.models.systems import SETTINGS, build_system
from ptacl.training.checkpoint import fit_input_scaling
from ptacl.training.loop import fit

TINY = dict(
    accelerator="cpu",
    precision="32-true",
    window_s=1.0,
    crop_px=16,
    n_frames=8,
    cine_keep=1.0,
    phase_bins=4,
    epochs=2,
    batch_size=4,
    workers=1,
    lr=3e-3,
    checkpoint_every=3,
)
PAIRS = dict(ptacl="supervised_cmr", dual_phase="supervised_ed_es")  # system -> its CMR side


def config(system, **changed):
    return TrainConfig(**SETTINGS[system] | TINY | changed)


@lru_cache
def prepared(system):
    "Twenty-four participants as a system needs them."
    cohort = read_cohort(samples_dir())
    return load_pairs(replace(cohort, table=cohort.table.head(24)), config(system), progress=False)[0]


def parts(cfg):
    "Sixteen to train on, eight to watch."
    pairs = prepared(cfg.system)
    return pairs.take(range(16)), pairs.take(range(16, 24))


def trained(cfg, **options):
    train, held = parts(cfg)
    seed_everything(cfg.seed)
    model = fit_input_scaling(start_encoders(build_system(cfg), cfg), train)
    return fit(cfg, model, train, held, progress=False, **options)


def cmr_encoders(model):
    "Weights of the CMR encoders, by name."
    of_cmr = ("cine_encoder.", "ed_encoder.", "es_encoder.")
    return {n: w for n, w in model.state_dict().items() if n.startswith(of_cmr)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(w, b[n]) for n, w in a.items())


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    "Folder of a CMR side for each system that starts from one."
    made = {}
    for system, side in PAIRS.items():
        cfg = config(side)
        state = trained(cfg)
        model = getattr(state.model, "module", state.model)
        made[system] = save_pretrained(model, cfg, tmp_path_factory.mktemp(side))
        losses = [r["loss"] for r in state.log if "loss" in r]
        assert np.mean(losses[-3:]) < np.mean(losses[:3])
    return made


@pytest.mark.parametrize("system", PAIRS)
def test_what_is_frozen_does_not_move_by_a_bit(system, sides):
    "Weight decay, layer decay, the running mean of the weights and dropout reach the rest alone."
    plain = dict(weight_decay=0.5, layer_decay=0.5, average_pairs=10, dropout=0.2)
    cfg = config(system, cmr_init=str(sides[system]), freeze_cmr=True, **plain)
    start = cmr_encoders(from_pretrained(sides[system])[0])
    seed_everything(cfg.seed)
    before = {n: w.clone() for n, w in start_encoders(build_system(cfg), cfg).state_dict().items()}
    state = trained(cfg)
    after = state.model.state_dict()
    assert start and same(start, cmr_encoders(state.model))
    moved = {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])}
    heads = dict(ptacl={"cine_head"}, dual_phase={"ed_head", "es_head"})[system]
    assert heads | {"ecg_encoder", "ecg_head"} <= moved
    assert not moved & {"cine_encoder", "ed_encoder", "es_encoder", "cine_mean", "cine_sd"}
    learned = cmr_encoders(trained(replace(cfg, freeze_cmr=False)).model)
    assert not any(torch.equal(w, start[n]) for n, w in learned.items() if w.ndim > 3)


def test_frozen_encoders_need_no_gradient_and_stay_in_evaluation_mode(sides):
    cfg = config("ptacl", cmr_init=str(sides["ptacl"]), freeze_cmr=True, dropout=0.5)
    model = start_encoders(build_system(cfg), cfg).train()
    cine_BFHW = torch.rand(2, 8, 16, 16)
    time_BF = (torch.arange(8) / 8).expand(2, -1)
    one, two = (model.encode_cine(cine_BFHW, time_BF) for _ in range(2))
    assert torch.equal(one[1], two[1]) and not one[0].requires_grad and not one[1].requires_grad
    assert model.cine_head.training and not any(m.training for m in model.cine_encoder.modules())


class Killed(Exception):
    "Stands for a kill."


@pytest.mark.parametrize("system", PAIRS)
def test_a_frozen_run_resumes_and_is_the_same_in_micro_batches(system, sides, tmp_path):
    cfg = config(system, cmr_init=str(sides[system]), freeze_cmr=True, ecg_keep=1.0)
    whole = trained(cfg).model.state_dict()

    def kill(row):
        if row["step"] >= 5:
            raise Killed

    path = tmp_path / "last.ckpt"
    with pytest.raises(Killed):
        trained(cfg, checkpoint=path, on_log=kill)
    assert torch.load(path, weights_only=True)["step"] == 3
    assert same(whole, trained(cfg, checkpoint=path).model.state_dict())
    with pytest.raises(BadInput, match="was made with freeze_cmr = True, not False"):
        trained(replace(cfg, freeze_cmr=False), checkpoint=path)
    pieces = trained(replace(cfg, micro_batch=2)).model.state_dict()
    assert all(torch.allclose(w, pieces[n], atol=2e-3) for n, w in whole.items())


def test_a_cmr_side_of_another_kind_or_preparation_is_refused(sides):
    wrong = config("ptacl", cmr_init=str(sides["dual_phase"]))
    with pytest.raises(BadInput, match="holds no CineEncoder"):
        start_encoders(build_system(wrong), wrong)
    wrong = config("dual_phase", cmr_init=str(sides["ptacl"]))
    with pytest.raises(BadInput, match="holds no ResidualNetwork but something else"):
        start_encoders(build_system(wrong), wrong)
    wrong = config("dual_phase", cmr_init=str(sides["dual_phase"]), pixel_mm=4.0)
    with pytest.raises(BadInput, match="was prepared with pixel_mm = 2.5, not 4.0"):
        start_encoders(build_system(wrong), wrong)
    wrong = config("dual_phase", cmr_init=str(sides["dual_phase"]), preset="small")
    with pytest.raises(BadInput, match="its ResidualNetwork has size"):
        start_encoders(build_system(wrong), wrong)


def test_a_system_from_a_frozen_side_is_read_again(sides, tmp_path):
    "Of dual-phase both networks, each in its place, and from them the next run starts."
    cfg = config("dual_phase", cmr_init=str(sides["dual_phase"]), freeze_cmr=True, epochs=1)
    model = trained(cfg).model
    folder = save_pretrained(getattr(model, "module", model), cfg, tmp_path / "run")
    read, of_run = from_pretrained(folder)
    assert of_run == cfg and same(cmr_encoders(read), cmr_encoders(model))
    assert not same(read.ed_encoder.state_dict(), read.es_encoder.state_dict())
    again = config("dual_phase", cmr_init=str(folder))
    assert same(cmr_encoders(start_encoders(build_system(again), again)), cmr_encoders(read))


def test_fewer_pairs_are_learned_from_on_every_path():
    "`fit` itself takes them, nested, whatever the seed."
    seen = {}
    for n, seed in ((4, 0), (8, 0), (8, 1)):
        cfg = config("supervised", n_train=n, seed=seed, epochs=1)
        state = trained(cfg)
        assert (state.step, state.samples_seen) == (n // 4, n)
        seen[n, seed] = state.cohort
    assert seen[8, 0] == seen[8, 1] and seen[8, 0].startswith("8 participants")
    with pytest.raises(
        BadInput, match="`n_train` is 20: there are 16 training pairs. Give at most that many"
    ):
        trained(config("supervised", n_train=20))
