"Losses and gradients of one step, by one process or by many."

import json
import sys
from functools import partial

import torch
from lightning_fabric import Fabric

from ptacl.base.config import TrainConfig
from ptacl.data.batches import Batch
from ptacl.models.ptacl import model_from_config
from ptacl.training.batches import StepBatch
from ptacl.training.checkpoint import TrainState
from ptacl.training.distributed import StartedDDP, own_rows, this_process
from ptacl.training.large_batch import take_rows
from ptacl.training.loop import train_step
from ptacl.training.optimiser import optimizer_from_config

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # Fabric gives outputs this type
rank, world = this_process()
fabric = (
    Fabric(
        accelerator="cpu", devices=world, precision="64-true", strategy=StartedDDP(broadcast_buffers=False)
    )
    if world > 1
    else Fabric(accelerator="cpu", devices=1, precision="64-true")
)
fabric.launch()
found = []
for B, micro, local_weight in json.loads(sys.argv[1]):
    cfg = TrainConfig(
        window_s=1.0,
        n_frames=4,
        cine_keep=1.0,
        crop_px=16,
        phase_bins=4,
        embed_dim=16,
        ecg_keep=1.0,
        local_weight=local_weight,
        precision="32-true",
        accelerator="cpu",
        clip_norm=1e9,
        warmup_share=0.5,
    )
    torch.manual_seed(0)
    # patches and frames lie in the bins, so that the local loss has something to compare
    phase = (torch.arange(500) - 25) / 400 % 1
    batch = Batch(
        signal_BLT=torch.randn(B, 12, 500),
        lead_ok_BL=torch.rand(B, 12) > 0.1,
        phase_BT=phase.expand(B, -1),
        is_valid_BT=torch.rand(B, 500) > 0.3,
        cine_BFHW=torch.rand(B, 4, 16, 16),
        frame_phase_BF=(torch.arange(4) / 4 + torch.rand(B, 1) / 50) % 1,
        frame_time_BF=(torch.arange(4) / 4).expand(B, -1),
    )
    batch = Batch(*(x.double() if x.is_floating_point() else x for x in batch))
    model = model_from_config(cfg)
    state = TrainState(*fabric.setup(model, optimizer_from_config(model, cfg)), fabric)
    own = own_rows(B, rank, world)
    mine = take_rows(batch, slice(own.start, own.stop))
    size = micro or len(own)
    parts = [partial(take_rows, mine, slice(i, i + size)) for i in range(0, len(own), size)]
    row = train_step(state, StepBatch([str(i) for i in range(B)], own, parts), cfg, 4)
    grads = {n: p.grad for n, p in model.named_parameters()}
    if rank == 0:
        found.append((dict(loss=row["loss"], grad_norm=row["grad_norm"]), grads))
if rank == 0:
    torch.save(found, sys.argv[2])
