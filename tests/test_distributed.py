"""Many processes and one: the same loss, the same gradients, the same run. Processes talk through gloo on
this machine.
"""

import json
import os
import socket
import subprocess
import sys

import pytest

GRADIENTS = """
import json, os, sys
import torch, torch.distributed as dist
from functools import partial
from lightning_fabric import Fabric
from ptacl.config import TrainConfig
from ptacl.training.distributed import StartedDDP, own_rows, this_process
from ptacl.training.large_batch import take_rows
from ptacl.models.ptacl import Batch, model_from_config
from ptacl.training.loop import TrainState, optimizer_from_config, train_step

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64) # Fabric gives outputs this type
rank, world = this_process()
fabric = Fabric(accelerator="cpu", devices=world, precision="64-true", strategy=StartedDDP(broadcast_buffers=False)) if world > 1 else Fabric(accelerator="cpu", devices=1, precision="64-true")
fabric.launch()
found = []
for B, micro, local_weight in json.loads(sys.argv[1]):
    cfg = TrainConfig(window_s=1., n_frames=4, crop_px=16, phase_bins=4, embed_dim=16, ecg_keep=1., local_weight=local_weight, precision="32-true", accelerator="cpu", clip_norm=1e9, warmup_share=0.5)
    torch.manual_seed(0)
    # patches and frames lie in the bins, so that the local loss has something to compare
    phase = (torch.arange(500)-25)/400%1
    batch = Batch(torch.randn(B, 12, 500), torch.rand(B, 12) > .1, phase.expand(B, -1), torch.rand(B, 500) > .3, torch.rand(B, 4, 16, 16), (torch.arange(4)/4+torch.rand(B, 1)/50)%1, (torch.arange(4)/4).expand(B, -1))
    batch = Batch(*(x.double() if x.is_floating_point() else x for x in batch))
    model = model_from_config(cfg)
    state = TrainState(*fabric.setup(model, optimizer_from_config(model, cfg)), fabric)
    own = own_rows(B, rank, world)
    mine = take_rows(batch, slice(own.start, own.stop))
    parts = [partial(take_rows, mine, slice(i, i+micro)) for i in range(0, len(own), micro)] if micro else mine
    row = train_step(state, parts, cfg, 4, [str(i) for i in range(B)])
    grads = {n: p.grad for n, p in model.named_parameters()}
    if rank == 0: found.append((dict(loss=row["loss"], grad_norm=row["grad_norm"]), grads))
if rank == 0: torch.save(found, sys.argv[2])
"""


def free_port() -> int:
    "A port that nobody listens to."
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def processes(
    n: int, program: str, *args: str, timeout: float = 240, **env: str
) -> list[subprocess.CompletedProcess]:
    "Run a program in n processes, with the variables that torchrun sets."
    shared = (
        os.environ
        | dict(
            WORLD_SIZE=str(n),
            LOCAL_WORLD_SIZE=str(n),
            MASTER_ADDR="localhost",
            MASTER_PORT=str(free_port()),
            OMP_NUM_THREADS="1",
            TORCHELASTIC_RUN_ID="test",
            GROUP_RANK="0",
        )
        | env
    )
    if n == 1:
        shared = os.environ | {"OMP_NUM_THREADS": "1"} | env

    def one(k):
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, *args],
            env=shared | ({"RANK": str(k), "LOCAL_RANK": str(k)} if n > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    started = [one(k) for k in range(n)]
    done = []
    for p in started:
        out, err = p.communicate(timeout=timeout)
        assert p.returncode == 0, err[-3000:]
        done.append(subprocess.CompletedProcess(p.args, p.returncode, out, err))
    return done


# batch, micro-batch, share of the local loss: even, uneven (7 pairs), cached, only the local loss
CASES = [(8, 0, 0.3), (7, 0, 0.3), (7, 1, 0.3), (8, 0, 1.0), (9, 2, 0.0)]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    import torch

    path = tmp_path_factory.mktemp("one") / "found.pt"
    processes(1, GRADIENTS, json.dumps([(B, 0, w) for B, _, w in CASES]), str(path))
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("n", [2, 4])
def test_processes_have_the_loss_and_gradients_of_one(n, one_process, tmp_path):
    """float64, the whole step: gather, loss, backward, DDP; also batches that cannot be divided, and the
    gradient cache.
    """
    import torch

    processes(n, GRADIENTS, json.dumps(CASES), str(tmp_path / "found.pt"))
    many = torch.load(tmp_path / "found.pt", weights_only=True)
    assert len(many) == len(one_process) == len(CASES)
    for (row, grads), (row1, grads1), case in zip(many, one_process, CASES, strict=True):
        assert (
            abs(row["loss"] - row1["loss"]) < 1e-10 and abs(row["grad_norm"] - row1["grad_norm"]) < 1e-10
        ), case
        assert grads.keys() == grads1.keys()
        worst = max((a - b).abs().max().item() for a, b in zip(grads.values(), grads1.values(), strict=True))
        assert worst < 1e-10 < max(g.abs().max().item() for g in grads1.values()), (case, worst)


RUN = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from ptacl.data.cohort import read_cohort
from ptacl.config import TrainConfig
from ptacl.core import samples_dir, seed_everything
from ptacl.models.ptacl import model_from_config
from ptacl.data.batches import load_pairs
from ptacl.training.run_folder import open_run
from ptacl.training.loop import fit
torch.set_num_threads(1)
folder, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
cfg = TrainConfig(**(dict(out=str(folder), epochs=4, batch_size=7, window_s=1., n_frames=4, crop_px=16, phase_bins=4, workers=1, precision="32-true", accelerator="cpu", checkpoint_every=2, average_pairs=30, keep_best="val_loss", noise_mv=.05)|changes))
run = open_run(cfg, samples_dir())
cohort = read_cohort(samples_dir())
pairs, _ = load_pairs(replace(cohort, table=cohort.table.head(22)), cfg, progress=False)
pairs.table["split"] = ["train"]*15+["val"]*7
seed_everything(cfg.seed)
calls = []
state = fit(cfg, model_from_config(cfg), pairs.take(range(15)), pairs.take(range(15, 22)), checkpoint=run.checkpoint, progress=False, on_log=calls.append)
(folder/f"rank{state.fabric.global_rank}.json").write_text(json.dumps(dict(log=state.log, calls=len(calls), files=sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")))))
torch.save(state.model.state_dict(), folder/f"rank{state.fabric.global_rank}.pt")
run.leave_to_first()
run.finish(dict(done=True))
"""


def test_two_processes_train_like_one(tmp_path):
    """The whole of `fit`: the same batches with the same augmentation, so the same losses up to rounding;
    only the first process logs and saves; all end with the same weights.
    """
    import torch

    processes(1, RUN, str(tmp_path / "one"), "{}")
    processes(2, RUN, str(tmp_path / "two"), json.dumps(dict(devices=2)))
    one, first, second = (
        json.loads((tmp_path / p).read_text()) for p in ("one/rank0.json", "two/rank0.json", "two/rank1.json")
    )

    def losses(log):
        return [
            (r["step"], r[k]) for r in log for k in ("loss", "loss_local", "val_loss") if r.get(k) is not None
        ]

    assert len(losses(one["log"])) == len(losses(first["log"])) > 20
    assert max(abs(a[1] - b[1]) for a, b in zip(losses(one["log"]), losses(first["log"]), strict=True)) < 1e-3
    assert first["log"] == second["log"] and (first["calls"] > 0, second["calls"]) == (True, 0)
    a, b, c = (
        torch.load(tmp_path / p, weights_only=True) for p in ("one/rank0.pt", "two/rank0.pt", "two/rank1.pt")
    )
    assert all(torch.equal(b[k], c[k]) for k in b)
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 2e-3
    assert (tmp_path / "two" / "metrics.json").is_file() and (tmp_path / "two" / "best.ckpt").is_file()
    # a checkpoint of two processes is gone on with by one: the number of processes is not part of the result
    content = torch.load(tmp_path / "two" / "last.ckpt", weights_only=True)
    assert content["step"] == 8 and content["config"]["devices"] == 2


@pytest.mark.slow
def test_torchrun_executes_the_notebook(repo, tmp_path):
    "The command of the docs: train.ipynb in two kernels, one result."
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "-m",
        "ptacl.studies.launch",
        str(repo / "nbs" / "train.ipynb"),
        "out.ipynb",
    ]
    for name, value in dict(devices=2, epochs=2, n_boot=20, n_frames=8, crop_px=32, out="run").items():
        command += ["-p", name, str(value)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 6
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".ipynb"] == ["out.ipynb"]
