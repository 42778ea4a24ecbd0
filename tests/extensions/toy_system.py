"A system of two linear encoders and a loss of its own, in one module: what `extensions` is given."

import torch
from torch import Tensor, nn

from ptacl.base.config import TrainConfig
from ptacl.data.batches import Batch
from ptacl.models.system import Embeddings, System
from ptacl.models.systems import SYSTEMS, SystemEntry

WIDTH = 16
SAMPLES = 50  # of the ECG that are averaged


class LinearECG(nn.Module):
    "Means over 50 samples of each lead, and one linear map."

    n_leads = 12
    n_patches = 1

    def __init__(self, n_samples: int) -> None:
        super().__init__()
        self.dim = WIDTH
        self.map = nn.Linear(self.n_leads * (n_samples // SAMPLES), WIDTH)

    def forward(self, signal_BLT, lead_ok_BL=None, kept_BN=None):
        means_BLT = signal_BLT.unflatten(2, (-1, SAMPLES)).mean(3)
        pooled_BD = self.map(means_BLT.flatten(1))
        return pooled_BD[:, None], pooled_BD


class Toy(System):
    "An ECG and a cine, each mapped once."

    def __init__(self, cfg: TrainConfig) -> None:
        super().__init__(
            LinearECG(round(cfg.window_s * cfg.fs)), embed_dim=cfg.embed_dim, temperature=cfg.temperature
        )
        self.cine_map = nn.Linear(cfg.n_frames * cfg.crop_px**2, cfg.embed_dim)

    def embed_cine(self, batch: Batch) -> Tensor:
        return nn.functional.normalize(self.cine_map(batch.cine_BFHW.flatten(1)), dim=1)

    def forward(self, batch: Batch) -> Embeddings:
        ecg_BD = self.encode_ecg(batch.signal_BLT, batch.lead_ok_BL)[1]
        ecg_BE = self.ecg_head(ecg_BD)
        cmr_BE = self.embed_cine(batch)
        return Embeddings(
            ecg_BE=ecg_BE,
            cmr_BE=cmr_BE,
            ecg_BQE=ecg_BE[:, None],
            cmr_BQE=cmr_BE[:, None],
            is_valid_BQ=torch.zeros_like(batch.lead_ok_BL[:, :1]),
            ecg_BD=ecg_BD,
            cmr_BD=cmr_BE,
        )


def toy_loss(out: Embeddings, temperature: Tensor, cfg: TrainConfig) -> tuple[Tensor, dict[str, Tensor]]:
    "Pairs are pulled together, everybody else is pushed to a right angle."
    sim_BB = out.ecg_BE @ out.cmr_BE.T
    pull = (1 - sim_BB.diagonal()).mean()
    push = sim_BB.square().mean()
    return pull + push, dict(loss_pull=pull, loss_push=push)


SYSTEMS["toy"] = SystemEntry(
    title="toy",
    build=Toy,
    loss=toy_loss,
    needs=frozenset({"cine"}),
    settings=dict(system="toy", local_weight=0.0),
)
