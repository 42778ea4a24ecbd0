"A whole run, by one process or by many."

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ptacl.base.config import TrainConfig
from ptacl.base.core import samples_dir, seed_everything
from ptacl.data.batches import load_pairs
from ptacl.data.cohort import read_cohort
from ptacl.models.saved import start_encoders
from ptacl.models.systems import build_system
from ptacl.training.loop import fit
from ptacl.training.run_folder import open_run

torch.set_num_threads(1)
folder = Path(sys.argv[1])
changes = json.loads(sys.argv[2])
cfg = TrainConfig(
    **(
        dict(
            out=str(folder),
            epochs=4,
            batch_size=7,
            window_s=1.0,
            n_frames=4,
            cine_keep=1.0,
            crop_px=16,
            phase_bins=4,
            workers=1,
            precision="32-true",
            accelerator="cpu",
            checkpoint_every=2,
            average_pairs=30,
            keep_best="val_loss",
            noise_mv=0.05,
        )
        | changes
    )
)
run = open_run(cfg, samples_dir())
cohort = read_cohort(samples_dir())
pairs, _ = load_pairs(replace(cohort, table=cohort.table.head(22)), cfg, progress=False)
pairs.table["split"] = ["train"] * 15 + ["val"] * 7
seed_everything(cfg.seed)
calls = []
state = fit(
    cfg,
    start_encoders(build_system(cfg), cfg),
    pairs.take(range(15)),
    pairs.take(range(15, 22)),
    checkpoint=run.checkpoint,
    progress=False,
    on_log=calls.append,
)
(folder / f"rank{state.fabric.global_rank}.json").write_text(
    json.dumps(
        dict(
            log=state.log,
            calls=len(calls),
            files=sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")),
        )
    )
)
torch.save(state.model.state_dict(), folder / f"rank{state.fabric.global_rank}.pt")
run.leave_to_first()
run.finish(dict(done=True))
