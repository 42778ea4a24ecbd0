"""What the loop owes a person whose machine, disk or data fails: no weight lost, no silent nonsense, the same
result.
"""

import errno
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import PROGRAMS
from torch.utils._python_dispatch import TorchDispatchMode

from ptacl.base.config import TrainConfig, save_config
from ptacl.base.core import BadInput, samples_dir, seed_everything
from ptacl.data.batches import load_data, load_pairs
from ptacl.data.cohort import read_cohort
from ptacl.losses.contrast import info_nce
from ptacl.models.ptacl import model_from_config
from ptacl.models.systems import SETTINGS, build_system
from ptacl.training.batches import TrainingBatches
from ptacl.training.checkpoint import save_checkpoint, start_state
from ptacl.training.device import fabric_from_config
from ptacl.training.large_batch import peak_saved_bytes
from ptacl.training.loop import fit, train_step
from ptacl.training.watch import evaluate

TINY = TrainConfig(
    accelerator="cpu",
    precision="32-true",
    window_s=1.0,
    crop_px=16,
    n_frames=4,
    cine_keep=1.0,
    phase_bins=4,
    epochs=10,
    batch_size=4,
    workers=1,
    checkpoint_every=10,
    eval_every=3,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "So small a model is not faster with more, and much slower where others use the machine."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pairs():
    cohort = read_cohort(samples_dir())
    found = load_pairs(replace(cohort, table=cohort.table.head(20)), TINY, progress=False)[0]
    found.table["split"] = ["train"] * 14 + ["val"] * 6
    return found


def train(cfg, pairs, **options):
    "Build and fit."
    seed_everything(cfg.seed)
    return fit(
        cfg, model_from_config(cfg), pairs.split("train"), pairs.split("val"), progress=False, **options
    )


# ---- killed and started again

# Imports once; then every start of training is a fork of this process, a few milliseconds. It answers one
# line of JSON for each.
SERVER = (PROGRAMS / "killed_training.py").read_text(encoding="utf-8")


def kill_often(tmp_path, cfg, seed: int, kills: int) -> dict:
    "Train undisturbed and with kills; what the server says."
    save_config(cfg, tmp_path / "config.json")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SERVER, str(tmp_path), str(seed), str(kills)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_kills(found: dict, kills: int):
    """Every kill took, progress was never lost, the end is the same bit for bit, and no half-written file
    stays.
    """
    assert found["kills"] == kills and found["equal"] and not found["left_over"], found
    assert found["during_save"] >= kills // 4, found
    assert found["steps"] == sorted(found["steps"]) and found["steps"][-1] > 0, found


def test_twenty_kills_change_nothing(tmp_path):
    """SIGKILL at 20 moments, every second one while a checkpoint is half written: dropout, running mean, best
    weights and all, the weights end the same.
    """
    found = kill_often(
        tmp_path,
        replace(TINY, epochs=20, checkpoint_every=1, dropout=0.1, average_pairs=20, keep_best="val_loss"),
        seed=1,
        kills=20,
    )
    check_kills(found, 20)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_sixty_kills_change_nothing(tmp_path, seed):
    check_kills(
        kill_often(
            tmp_path,
            replace(TINY, epochs=100, checkpoint_every=1, dropout=0.1, micro_batch=3 if seed % 2 else 0),
            seed=seed + 10,
            kills=60,
        ),
        60,
    )


# ---- the disk is full


def state_of(cfg, pairs):
    "A state before its first step."
    seed_everything(cfg.seed)
    return start_state(cfg, model_from_config(cfg), pairs.split("train"), fabric_from_config(cfg))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
)
def test_full_disk_leaves_the_older_checkpoint(pairs, tmp_path, monkeypatch, error):
    "The message says so, nothing half-written stays, and training goes on from the older one."
    path = tmp_path / "last.ckpt"
    state = state_of(TINY, pairs)
    save_checkpoint(state, TINY, path)
    before = path.read_bytes()
    save = torch.save

    def full(content, to):
        save(content, to)
        with open(to, "rb+") as f:
            f.truncate(1000)
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(BadInput, match="cannot be written.*untouched.*Make room on the disk"):
        train(TINY, pairs, checkpoint=path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    monkeypatch.undo()
    assert train(TINY, pairs, checkpoint=path).step == 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and resource limits")
def test_a_real_limit_on_file_size(tmp_path):
    "The kernel refuses to write more than 20 kB: the older file stays as it is."
    program = """
import resource, signal, sys
from pathlib import Path
import torch
from ptacl.base.core import write_atomic
path = Path(sys.argv[1])
write_atomic(path, lambda tmp: torch.save(dict(step=1), tmp))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try: write_atomic(path, lambda tmp: torch.save(dict(step=2, x=torch.zeros(100_000)), tmp))
except (OSError, RuntimeError) as e: print(type(e).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "last.ckpt")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() in ("OSError", "RuntimeError"), done.stdout + done.stderr
    assert (
        torch.load(tmp_path / "last.ckpt", weights_only=True) == dict(step=1)
        and len(list(tmp_path.iterdir())) == 1
    )


# ---- signals, numbers that are none, another cohort


def test_sigterm_saves_and_ends_in_order(pairs, tmp_path, capsys):
    """The cluster's warning at any step: saved, exit code 0, said how to go on, and the same weights in the
    end.
    """
    whole = train(TINY, pairs)
    before = signal.getsignal(signal.SIGTERM)

    def warn(row):
        return os.kill(os.getpid(), signal.SIGTERM) if row["step"] == 7 and "loss" in row else None

    with pytest.raises(SystemExit) as ended:
        train(TINY, pairs, checkpoint=tmp_path / "last.ckpt", on_log=warn)
    assert ended.value.code == 0 and signal.getsignal(signal.SIGTERM) is before
    assert "stopped after step 7 of 30 and saved. Start the same command again" in capsys.readouterr().out
    resumed = train(TINY, pairs, checkpoint=tmp_path / "last.ckpt")
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    )


def test_nan_recording_stops_with_its_name(pairs, tmp_path):
    """One sample of one ECG is NaN: step, participants, the culprit, and where it shows; the checkpoint
    before it is good.
    """
    signals = np.array(pairs.signal_PLT)
    signals[3, 4] = np.nan
    bad = replace(pairs, signal_PLT=signals)
    culprit = pairs.table.participant_id[3]
    clean = state_of(TINY, pairs)  # input constants from clean recordings, as a store has them
    with pytest.raises(FloatingPointError) as stopped:
        for batch in TrainingBatches(TINY, bad.split("train")):
            train_step(clean, batch, TINY, 30)
    text = str(stopped.value)
    assert (
        f"at step {clean.step}; participants of the batch: " in text
        and f"recordings that hold NaN or infinity: {culprit}\n" in text
    )
    assert (
        "first output of the model that is not finite: ecg_encoder" in text
        and "weights that are not finite: none" in text
    )
    assert all(p.isfinite().all() for p in clean.model.parameters())


def test_exploding_weights_are_named(pairs):
    "A loss that is spoiled by the weights: the message names them, and the gradients of the step before."
    state = state_of(TINY, pairs)
    batches = iter(TrainingBatches(TINY, pairs.split("train")))
    train_step(state, next(batches), TINY, 30)
    with torch.no_grad():
        state.model.ecg_head.layers[1].weight[0, 0] = math.inf
    with pytest.raises(
        FloatingPointError,
        match=(
            "none\nfirst output of the model that is not finite: ecg_head.layers.1\nweights that are "
            "not finite: ecg_head.layers.1.weight\nlargest gradients \\(the step before\\): "
            "[a-z_]+.*[0-9]"
        ),
    ):
        train_step(state, next(batches), TINY, 30)


class Waits(TorchDispatchMode):
    "Counts where the processor asks the device for a number, the optimiser left out."

    def __init__(self):
        super().__init__()
        self.places = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            files = [frame.filename for frame in traceback.extract_stack()]
            if not any("torch/optim" in file for file in files):
                self.places.append([file for file in files if "/ptacl/" in file][-1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("system", ["ptacl", "mmcl", "dual_phase", "supervised"])
def test_a_step_waits_for_no_number(system):
    "Between two looks a step of any system asks the device for none; a look asks for two."
    cfg = replace(TINY, **SETTINGS[system], log_every=3, ecg_keep=0.5)
    pairs = load_data(samples_dir(), cfg, progress=False)[1].take(range(8))
    seed_everything(0)
    state = start_state(cfg, build_system(cfg), pairs, fabric_from_config(cfg))
    asked = []
    with Waits() as waits:
        for batch in itertools.islice(TrainingBatches(cfg, pairs, n_patches=12 * 5), 4):
            train_step(state, batch, cfg, 10, look=state.step == 3)
            asked.append(waits.places.copy())
            waits.places.clear()
    assert asked[:3] == [[], [], []] and len(asked[3]) == 2
    assert int(state.spoiled_at) == -1


def test_a_step_is_looked_at_before_it_is_kept(pairs, tmp_path):
    """The first step of ten without a log line is spoiled: the run stops at the checkpoint before it is
    written, names that step, and has changed no weight since.
    """
    cfg = replace(TINY, log_every=100, checkpoint_every=7, eval_every=100)
    weights = []

    def loss_of(model, batch, cfg):
        weights.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))
        out = model(batch)
        loss = info_nce(out.ecg_BE, out.cmr_BE, model.temperature)
        return loss * (math.nan if len(weights) in (4, 7) else 1), dict(loss=loss.detach())

    with pytest.raises(FloatingPointError, match="the loss is nan at step 3; participants of the batch: "):
        train(cfg, pairs, checkpoint=tmp_path / "last.ckpt", loss_of=loss_of)
    assert not (tmp_path / "last.ckpt").exists()
    assert not torch.equal(weights[2], weights[3])
    assert all(torch.equal(w, weights[3]) for w in weights[4:])


def test_another_cohort_in_the_same_folder_is_refused(pairs, tmp_path):
    "Same settings, same number of participants, one of them another person."
    train(replace(TINY, epochs=10), pairs, checkpoint=tmp_path / "last.ckpt")
    other = pairs.take(np.arange(len(pairs)))
    other.table.loc[5, "participant_id"] = "somebody-else"
    with pytest.raises(
        BadInput, match="other training participants \\(14 participants, .*, not 14 participants, "
    ):
        train(TINY, other, checkpoint=tmp_path / "last.ckpt")


# ---- best weights, early stopping


def test_early_stopping_is_refused_on_the_test_part(pairs):
    test = pairs.take(np.arange(len(pairs)))
    test.table["split"] = ["train"] * 14 + ["test"] * 6
    with pytest.raises(BadInput, match="by participants of the test part"):
        fit(
            replace(TINY, keep_best="val_loss", patience=2),
            model_from_config(TINY),
            test.split("train"),
            test.split("test"),
            progress=False,
        )


def test_best_weights_are_those_that_are_returned(pairs, tmp_path):
    """A metric that is best at step 9 of 36: the model that comes back has the loss of that evaluation and of
    no other, also after a resumed run.
    """
    cfg = replace(TINY, epochs=12, eval_every=1, keep_best="val_loss_off", lr=3e-3)

    def score(model, val, cfg, n_batches):
        return evaluate(model, val, cfg, n_batches) | dict(val_loss_off=float(abs(len(seen) - 3)))

    def once():
        return fit(
            cfg,
            model_from_config(cfg),
            pairs.split("train"),
            pairs.split("val"),
            checkpoint=tmp_path / "last.ckpt",
            progress=False,
            score=score,
            on_log=lambda row: seen.append(row) if "val_loss" in row else None,
        )

    seen = []
    seed_everything(cfg.seed)
    state = once()
    losses = {r["step"]: r["val_loss"] for r in state.log if "val_loss" in r}
    assert (
        list(losses) == list(range(0, 37, 3))
        and min(abs(losses[9] - v) for k, v in losses.items() if k != 9) > 1e-5
    )
    assert evaluate(state.model, pairs.split("val"), cfg)["val_loss"] == pytest.approx(losses[9], abs=1e-6)
    assert (tmp_path / "best.ckpt").is_file()
    again = once()  # finished: nothing to do, the same weights
    assert all(
        torch.equal(a, b)
        for a, b in zip(state.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    )


# ---- large batches


def test_cached_run_is_the_plain_run(pairs):
    """A whole training in micro-batches ends where the plain one ends, up to rounding; dropout is off, so no
    draw differs.
    """
    plain, cached = (train(replace(TINY, micro_batch=m, batch_size=7, epochs=3), pairs) for m in (0, 2))
    assert (
        max(abs(a["loss"] - b["loss"]) for a, b in zip(plain.log, cached.log, strict=True) if "loss" in a)
        < 1e-4
    )
    assert (
        max(
            (a - b).abs().max().item()
            for a, b in zip(plain.model.parameters(), cached.model.parameters(), strict=True)
        )
        < 1e-3
    )


def test_checkpointed_blocks_change_nothing(pairs):
    "Blocks computed twice: the same weights bit for bit, with dropout."
    plain, twice = (
        train(replace(TINY, checkpoint_blocks=c, dropout=0.2, epochs=2), pairs) for c in (False, True)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.model.state_dict().values(), twice.model.state_dict().values(), strict=True)
    )


def test_memory_of_a_large_batch_is_that_of_its_micro_batch(pairs):
    """What is held for the backward pass, counted: 16 times the micro-batch under 1.3 times its memory; the
    inputs are made micro-batch by micro-batch.
    """
    cfg = replace(TINY, micro_batch=0)
    part = pairs.take(np.arange(128) % 14)
    part.table["participant_id"] = [str(i) for i in range(128)]
    held = []
    for B, micro in ((8, 0), (128, 8)):
        state = state_of(replace(cfg, batch_size=B), pairs)
        batches = TrainingBatches(replace(cfg, batch_size=B, micro_batch=micro), part, n_patches=120)
        batch = next(iter(batches))
        held.append(peak_saved_bytes(partial(train_step, state, batch, cfg, 10), state.model.parameters()))
    assert held[1] < 1.3 * held[0]


def test_infonce_in_blocks_holds_no_matrix():
    """The loss of 6,000 pairs saves the embeddings for its backward pass, not 36 million similarities; value
    and gradients as the plain formula's.
    """
    torch.manual_seed(0)
    a = torch.randn(6000, 8, dtype=torch.float64, requires_grad=True)
    b = torch.randn(6000, 8, dtype=torch.float64, requires_grad=True)
    tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert (
        peak_saved_bytes(lambda: info_nce(a, b, tau).backward(), [a, b, tau])
        < 20 * a.numel() * 8
        < 6000 * 6000
    )
    found = (a.grad, b.grad, tau.grad)
    a.grad = None
    b.grad = None
    tau.grad = None
    x, y = (torch.nn.functional.normalize(z, dim=1) for z in (a, b))
    s = x @ y.T / tau
    loss = (s.logsumexp(0) + s.logsumexp(1) - 2 * s.diagonal()).mean() / 2
    loss.backward()
    assert abs(info_nce(a, b, tau).item() - loss.item()) < 1e-10
    assert all((f - g).abs().max() < 1e-10 for f, g in zip(found, (a.grad, b.grad, tau.grad), strict=True))


# ---- other


def test_layer_decay_reaches_the_optimiser(pairs):
    "The rates of the first step, group by group, are exactly the schedule's times the decay."
    cfg = replace(TINY, layer_decay=0.5, lr=1e-3, warmup_share=0.0)
    state = state_of(cfg, pairs)
    train_step(state, next(iter(TrainingBatches(cfg, pairs.split("train")))), cfg, 30)
    rates = {g["lr"] for g in state.optimizer.param_groups}
    assert rates == {1e-3 * 0.5**k for k in range(5)}


def test_compiling_that_fails_is_said_and_left(pairs, monkeypatch):
    def no_compiler(*args, **kwargs):
        raise RuntimeError("no C++ compiler here")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.warns(UserWarning, match="training goes on without it .RuntimeError: no C.. compiler here"):
        state = train(replace(TINY, compile=True, epochs=1), pairs)
    assert state.step == 3


@pytest.mark.slow
def test_compiled_run_is_the_plain_run(pairs):
    "torch.compile where it works: the same losses up to rounding."
    plain, compiled = (train(replace(TINY, compile=c, epochs=2), pairs) for c in (False, True))
    assert (
        max(abs(a["loss"] - b["loss"]) for a, b in zip(plain.log, compiled.log, strict=True) if "loss" in a)
        < 1e-3
    )


# ---- on a GPU


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("micro_batch", [0, 3])
def test_cuda_trains_and_resumes(pairs, tmp_path, precision, micro_batch):
    """A few epochs on a GPU, cut by SIGTERM and gone on with: finite, complete, and near the losses of the
    CPU.
    """
    cfg = replace(
        TINY,
        accelerator="cuda",
        precision=precision,
        micro_batch=micro_batch,
        batch_size=7,
        average_pairs=20,
        keep_best="val_loss",
    )

    def warn(row):
        return os.kill(os.getpid(), signal.SIGTERM) if row["step"] == 5 and "loss" in row else None

    with pytest.raises(SystemExit):
        train(cfg, pairs, checkpoint=tmp_path / "last.ckpt", on_log=warn)
    state = train(cfg, pairs, checkpoint=tmp_path / "last.ckpt")
    assert state.step == 20 and all(p.isfinite().all() for p in state.model.parameters())
    cpu = train(replace(cfg, accelerator="cpu", precision="32-true", epochs=1), pairs)

    def first(log):
        return next(r["val_loss"] for r in log if "val_loss" in r)

    assert abs(first(state.log) - first(cpu.log)) < 0.05


@pytest.mark.cuda
def test_cuda_cached_gradient_and_memory(pairs):
    "The peak of the device: 512 pairs in micro-batches of 32 under 1.3 times the memory of 32."
    peak = []
    part = pairs.take(np.arange(512) % 14)
    part.table["participant_id"] = [str(i) for i in range(512)]
    for B, micro in ((32, 0), (512, 32)):
        cfg = replace(TINY, accelerator="cuda", batch_size=B, micro_batch=micro, preset="small")
        state = state_of(cfg, pairs)
        batch = next(iter(TrainingBatches(cfg, part, device="cuda", n_patches=120)))
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            train_step(state, batch, cfg, 10)
        peak.append(torch.cuda.max_memory_allocated())
        del state, batch
        torch.cuda.empty_cache()
    assert peak[1] < 1.3 * peak[0], peak
