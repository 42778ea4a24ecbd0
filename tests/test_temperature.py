"""The temperature stays at 0.01 or above and can leave that limit again: however a step is made, averaged,
kept and resumed.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_engine import TINY

from ptacl.base.core import samples_dir, seed_everything
from ptacl.data.batches import load_data
from ptacl.models.ptacl import model_from_config
from ptacl.training.loop import fit

LIMIT = math.log(100)


@pytest.fixture(scope="module")
def pairs():
    found = load_data(samples_dir(), TINY, progress=False)[1].take(range(20))
    found.table["split"] = ["train"] * 14 + ["val"] * 6
    return found


def run(cfg, pairs, **options):
    "Train with a loss that pulls the temperature down for 3 steps, then up; every value of the parameter."
    scales = []

    def loss_of(model, batch, cfg):
        scales.append(model.log_logit_scale.item())
        sign = -1 if len(scales) + done <= 3 else 1
        loss = sign * model.log_logit_scale + 0 * model(batch).ecg_BE.sum()
        return loss, dict(loss=loss.detach())

    done = options.pop("done", 0)
    seed_everything(0)
    model = model_from_config(cfg)
    state = fit(
        cfg, model, pairs.split("train"), pairs.split("val"), progress=False, loss_of=loss_of, **options
    )
    return scales, state


@pytest.mark.parametrize("average_pairs", [0, 20])
def test_limit_is_kept_and_left_again(pairs, average_pairs):
    "A clamp where the temperature is used would have no gradient: it would stay where it is."
    cfg = replace(
        TINY,
        temperature=0.0101,
        epochs=4,
        lr=0.05,
        warmup_share=0.0,
        eval_every=9,
        average_pairs=average_pairs,
    )
    scales, state = run(cfg, pairs)
    assert len(scales) == 12 and max(scales) <= LIMIT + 1e-6
    assert np.allclose(scales[2:4], LIMIT, atol=1e-6)
    assert scales[-1] < LIMIT - 0.03, scales
    kept = state.mean or state.model
    assert kept.log_logit_scale.item() < LIMIT + 1e-6
    assert state.model.temperature.item() == pytest.approx(math.exp(-state.model.log_logit_scale.item()))


def test_resumed_from_beyond_the_limit(pairs, tmp_path):
    "A checkpoint of a version that clamped where it was used: the parameter begins at the limit, and moves."
    cfg = replace(
        TINY, temperature=0.0101, epochs=4, lr=0.05, warmup_share=0.0, eval_every=9, average_pairs=20
    )
    path = tmp_path / "last.ckpt"
    run(replace(cfg, checkpoint_every=100), pairs, checkpoint=path)
    content = torch.load(path, weights_only=True)
    content["step"] = 6
    for weights in ("model", "mean"):
        content[weights]["log_logit_scale"] = torch.tensor(math.log(200.0))
    torch.save(content, path)
    scales, state = run(cfg, pairs, checkpoint=path, done=6)
    assert len(scales) == 6 and scales[0] == pytest.approx(LIMIT)
    assert scales[-1] < LIMIT - 0.02
    assert state.mean.log_logit_scale.item() <= LIMIT + 1e-6
