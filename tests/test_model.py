"""What must hold of the model and the loop whatever they learn: weights, split, overfitting, nothing of the
held-out or of a neighbour. (Kills: test_engine.)
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ptacl.base.config import TrainConfig
from ptacl.base.core import samples_dir, seed_everything
from ptacl.data.batches import Batch, draw_batch, load_pairs
from ptacl.data.cohort import read_cohort
from ptacl.models.layers import count_parameters
from ptacl.models.ptacl import model_from_config
from ptacl.models.systems import objective
from ptacl.training.batches import StepBatch
from ptacl.training.checkpoint import TrainState, fit_input_scaling
from ptacl.training.device import fabric_from_config
from ptacl.training.loop import train_step
from ptacl.training.optimiser import optimizer_from_config
from ptacl.training.watch import embed_pairs, evaluate

SMALL = TrainConfig(
    accelerator="cpu",
    precision="32-true",
    crop_px=32,
    n_frames=8,
    cine_keep=1.0,
    epochs=4,
    batch_size=8,
    workers=1,
    checkpoint_every=1,
)


@pytest.fixture(scope="module")
def pairs():
    cohort = read_cohort(samples_dir())
    return load_pairs(replace(cohort, table=cohort.table.head(24)), SMALL, progress=False)[0]


def new_state(cfg, pairs):
    seed_everything(cfg.seed)
    model = fit_input_scaling(model_from_config(cfg), pairs)
    fabric = fabric_from_config(cfg)
    return TrainState(*fabric.setup(model, optimizer_from_config(model, cfg)), fabric)


@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_local_loss_adds_no_weight(preset):
    """The same weights, by number and by name, with and without the local loss; and each of them gets a
    gradient from the global loss alone.
    """
    with torch.device("meta"):
        with_local, without = (
            model_from_config(TrainConfig(preset=preset, local_weight=w)) for w in (0.3, 0.0)
        )
    assert count_parameters(with_local) == count_parameters(without) > 0
    assert {n: p.shape for n, p in with_local.named_parameters()} == {
        n: p.shape for n, p in without.named_parameters()
    }


def test_global_loss_trains_every_weight_and_local_loss_too(pairs):
    batch = Batch(**draw_batch(pairs, np.arange(4), 2500))
    batch.lead_ok_BL[torch.arange(12) % 4, torch.arange(12)] = False  # each lead is missing somewhere
    for weight in (0.0, 1.0):
        state = new_state(SMALL, pairs)
        loss, _ = objective(state.model(batch), state.model.temperature, replace(SMALL, local_weight=weight))
        loss.backward()
        idle = [n for n, p in state.model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        # what only the global embedding reads
        expected = [] if weight == 0 else ["cls", "cine_encoder.pool"]
        assert [n for n in idle if not any(e in n for e in expected)] == []


def test_eight_pairs_are_learned_by_heart(pairs):
    "A system that cannot overfit eight pairs is broken."
    cfg = replace(SMALL, lr=1e-3, warmup_share=0.1, seed=1)
    state = new_state(cfg, pairs)
    batch = Batch(**draw_batch(pairs, np.arange(8), 2500))
    for _ in range(120):
        row = train_step(state, StepBatch.of(batch, [""] * 8), cfg, 120)
    assert row["loss_global"] < 0.7 < np.log(8) - 1
    scores = evaluate(state.model, pairs.take(range(8)), cfg)
    assert scores["val_recall_at_1_ecg_to_cmr"] == scores["val_recall_at_1_cmr_to_ecg"] == 1


def test_split_does_not_leak():
    "No participant in two parts; adding participants moves nobody."
    cohort = read_cohort(samples_dir())
    parts = {
        name: set(cohort.table.participant_id[cohort.table.split == name])
        for name in ("train", "val", "test")
    }
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == len(cohort.table) == 64
    assert len(parts["test"]) >= 10


def test_nothing_of_held_out_pairs_reaches_training(pairs):
    "Training is the same, bit for bit, whatever the held-out recordings hold."
    from ptacl.training.loop import fit

    train = pairs.take(range(16))
    held = pairs.take(range(16, 24))
    other = replace(
        held, signal_PLT=np.asarray(held.signal_PLT) * 7, cine_PFHW=1 - np.asarray(held.cine_PFHW)
    )
    cfg = replace(SMALL, epochs=1)
    weights = []
    for part in (held, other):
        seed_everything(cfg.seed)
        weights.append(fit(cfg, model_from_config(cfg), train, part, progress=False).model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))


def test_two_recordings_in_a_batch_do_not_touch_each_other(pairs):
    "No batch statistics: a participant's embedding is the same alone and in company."
    model = fit_input_scaling(model_from_config(SMALL), pairs).train()
    alone = embed_pairs(model, pairs.take([3]), SMALL)
    company = embed_pairs(model, pairs.take([0, 3, 5]), SMALL)
    assert torch.allclose(alone.ecg_BE[0], company.ecg_BE[1], atol=1e-5) and torch.allclose(
        alone.cmr_BE[0], company.cmr_BE[1], atol=1e-5
    )


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_training_on_cuda(pairs, precision):
    "The same code on a GPU: losses agree with the CPU's at first, and fall."
    cpu = new_state(SMALL, pairs)
    cfg = replace(SMALL, accelerator="cuda", precision=precision, lr=1e-3)
    state = new_state(cfg, pairs)
    batch = Batch(**draw_batch(pairs, np.arange(8), 2500))
    here = StepBatch.of(batch, [""] * 8)
    there = StepBatch.of(batch.to(state.fabric.device), [""] * 8)
    first = train_step(state, there, cfg, 60)
    assert abs(first["loss"].item() - train_step(cpu, here, SMALL, 60)["loss"].item()) < 0.05
    for _ in range(40):
        row = train_step(state, there, cfg, 60)
    assert row["loss_global"] < first["loss_global"] - 0.3
