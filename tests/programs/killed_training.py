"Trains whole, then killed again and again, and compares."

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from ptacl.base.config import load_config
from ptacl.base.core import samples_dir, seed_everything
from ptacl.data.batches import load_pairs
from ptacl.data.cohort import read_cohort
from ptacl.models.ptacl import model_from_config
from ptacl.training import loop as trainer

torch.set_num_threads(1)

folder = Path(sys.argv[1])
seed = int(sys.argv[2])
kills = int(sys.argv[3])
cfg = load_config(folder / "config.json")
rng = random.Random(seed)
cohort = read_cohort(samples_dir())
pairs, _ = load_pairs(replace(cohort, table=cohort.table.head(20)), cfg, progress=False)
train = pairs.take(range(14))
val = pairs.take(range(14, 20))
val.table["split"] = "val"


def start(name, tell):
    "Train in a fork, which tells of every step and of every save as it begins."
    pid = os.fork()
    if pid:
        return pid
    save = torch.save

    def slow_save(content, path):
        "Half of the file, a word to the parent, then the rest: there is time to die in between."
        save(content, path)
        whole = Path(path).read_bytes()
        with open(path, "wb") as f:
            f.write(whole[: len(whole) // 2])
            f.flush()
            os.write(tell, b"w")
            if whole_speed is None:
                time.sleep(0.004)
            f.write(whole[len(whole) // 2 :])

    whole_speed = None if name == "cut" else 1
    torch.save = slow_save
    try:
        seed_everything(cfg.seed)
        state = trainer.fit(
            cfg,
            model_from_config(cfg),
            train,
            val,
            checkpoint=folder / name / "last.ckpt",
            progress=False,
            on_log=lambda row: os.write(tell, b"s"),
        )
        save(state.model.state_dict(), folder / name / "final.pt")
    finally:
        os._exit(0 if (folder / name / "final.pt").exists() else 1)


def wait(pid):
    return os.waitpid(pid, 0)[1]


for name in ("whole", "cut"):
    (folder / name).mkdir()
read, write = os.pipe()
began = time.time()
assert wait(start("whole", write)) == 0
span = time.time() - began
os.set_blocking(read, False)
done = 0
during_save = 0
seen = []
tries = 0
while done < kills:
    tries += 1
    try:
        os.read(read, 1 << 20)  # words of the one before
    except BlockingIOError:
        ""
    pid = start("cut", write)
    want_save = done % 2 == 1
    if want_save:  # die in the half-written file of some save
        left = rng.randrange(1, 4)
        while left and os.waitpid(pid, os.WNOHANG) == (0, 0):
            try:
                left -= os.read(read, 1).count(b"w")
            except BlockingIOError:
                time.sleep(0.0005)
    else:
        time.sleep(rng.uniform(0.2, 0.6) * span / 5)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        break
    try:
        status = wait(pid)
    except ChildProcessError:
        break
    if status != signal.SIGKILL:
        break  # it had ended before
    half = [p for p in (folder / "cut").iterdir() if p.name.startswith(".")]
    during_save += bool(half)
    if (folder / "cut" / "last.ckpt").exists():
        seen.append(torch.load(folder / "cut" / "last.ckpt", weights_only=True)["step"])
    done += 1
assert wait(start("cut", write)) == 0
left_over = [p.name for p in (folder / "cut").iterdir() if p.name.startswith(".")]
a, b = (torch.load(folder / name / "final.pt", weights_only=True) for name in ("whole", "cut"))
print(
    json.dumps(
        dict(
            kills=done,
            during_save=during_save,
            steps=seen,
            left_over=left_over,
            equal=a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a),
            span=span,
        )
    )
)
