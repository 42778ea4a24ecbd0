"""Many processes and one: the same loss, the same gradients, the same run. Processes talk through gloo on
this machine.
"""

import json
import os
import socket
import subprocess
import sys

import pytest
from conftest import PROGRAMS

GRADIENTS = (PROGRAMS / "gradients.py").read_text(encoding="utf-8")


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


RUN = (PROGRAMS / "run_in_processes.py").read_text(encoding="utf-8")


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


def test_what_is_frozen_stays_in_two_processes(tmp_path):
    "The CMR encoder is the same to the bit on both, and what learns is as in one process."
    import torch

    from ptacl.base.config import TrainConfig
    from ptacl.base.core import seed_everything
    from ptacl.models.saved import save_pretrained
    from ptacl.models.systems import SETTINGS, build_system

    sizes = dict(window_s=1.0, n_frames=4, cine_keep=1.0, crop_px=16)
    cfg = TrainConfig(**SETTINGS["supervised_cmr"] | sizes)
    seed_everything(5)
    side = build_system(cfg)
    changes = dict(cmr_init=str(save_pretrained(side, cfg, tmp_path / "side")), freeze_cmr=True, epochs=2)
    processes(1, RUN, str(tmp_path / "one"), json.dumps(changes))
    processes(2, RUN, str(tmp_path / "two"), json.dumps(changes | dict(devices=2)))
    a, b, c = (
        torch.load(tmp_path / p, weights_only=True) for p in ("one/rank0.pt", "two/rank0.pt", "two/rank1.pt")
    )
    start = {f"cine_encoder.{n}": w for n, w in side.cine_encoder.state_dict().items()}
    assert all(torch.equal(w, x[n]) for n, w in start.items() for x in (a, b, c))
    assert all(torch.equal(b[k], c[k]) for k in b)
    assert max((a[k] - b[k]).abs().max().item() for k in a) < 2e-3


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
    params = dict(
        data="data_samples",
        batch_size=16,
        epochs=2,
        n_boot=20,
        n_frames=8,
        cine_keep=1.0,
        crop_px=32,
        out="run",
    )
    for name, value in dict(devices=2, **params).items():
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
