"""The encoder of `ECGEncoder.from_pretrained("sample")`: `python .ci/sample_encoder.py FOLDER` simulates its
participants into FOLDER, trains PTACL on them, and writes encoder, probe and card to data_samples/encoder.
Killed, the same command goes on. It takes about half an hour on two cores.
"""

import shutil
import sys
import tempfile
from datetime import date
from pathlib import Path

import pandas as pd

from ptacl.base.config import TrainConfig
from ptacl.base.core import samples_dir, seed_everything
from ptacl.data.batches import load_data
from ptacl.data.cohort import phenotype_columns
from ptacl.evaluation.probe import ridge_probe
from ptacl.evaluation.retrieval import retrieval_metrics
from ptacl.models.saved import described_parts
from ptacl.models.systems import build_system
from ptacl.models.weights import save_weights
from ptacl.phantom.simulated_store import SimulateConfig, simulate_store
from ptacl.training.checkpoint import fit_input_scaling
from ptacl.training.loop import fit
from ptacl.training.run_folder import environment
from ptacl.training.watch import embed_pairs
from ptacl.use.phenotypes import fit_probe

COHORT = dict(n=9100, n_val=100, n_test=1000, seed=170)  # of nobody else
RUN = dict(epochs=6, batch_size=32, lr=5e-4)
PHENOTYPES = ("lvedv_ml", "lvesv_ml", "lvef", "lvm_g", "rvedv_ml", "rvesv_ml", "rvef", "heart_rate_ecg_bpm")
CARD = """# The sample encoder

`ECGEncoder.from_pretrained("sample")`: our `tiny` ECG encoder, trained by PTACL (our reconstruction of it)
on {train:,} **simulated** participants. It is there to try the tools with, on a real ECG too. It has never
seen a patient: **never use it for patients, and never as evidence**. The intervals that `predict` gives hold
for simulated people alone.

| on {test:,} held-out simulated participants | |
|---|---|
| median rank of the own heart, share of the gallery (chance 0.50) | {rank:.2f} ({low:.2f} to {high:.2f}) |
{rows}

Made on {date}, by version {version} and `python .ci/sample_encoder.py FOLDER`
({settings}), {n:,} weights. Licence: that of the repository.
"""


def train(folder: Path) -> tuple[object, TrainConfig, object, object, dict[str, str]]:
    "Simulate, and train or go on."
    simulate_store(SimulateConfig(store=True, **COHORT), folder / "store")
    cfg = TrainConfig(data=str(folder / "store"), out=str(folder), **RUN)
    cohort, pairs, _ = load_data(cfg.data, cfg)
    seed_everything(cfg.seed)
    model = fit_input_scaling(build_system(cfg), pairs.split("train"))
    fit(cfg, model, pairs.split("train"), pairs.split("val"), checkpoint=folder / "last.ckpt")
    units = phenotype_columns(cohort)
    return model, cfg, pairs.split("train"), pairs.split("test"), {k: units[k] for k in PHENOTYPES}


def main(folder: Path) -> None:
    "Train, measure, write."
    model, cfg, train_part, test_part, units = train(folder)
    z = embed_pairs(model, train_part, cfg)
    z_test = embed_pairs(model, test_part, cfg)
    rank = retrieval_metrics(z_test.ecg_BE, z_test.cmr_BE).query("metric == 'median rank'").iloc[0]
    truth = [part.table[list(units)] for part in (train_part, test_part)]
    scores = ridge_probe(z.ecg_BD.numpy(), truth[0], z_test.ecg_BD.numpy(), truth[1], units)
    rows = []
    for r in scores.query("metric == 'R2'").itertuples():
        rows.append(f"| R2 of {r.phenotype} | {r.value:.2f} ({r.low:.2f} to {r.high:.2f}) |")
    B = len(test_part)
    card = CARD.format(
        train=len(train_part),
        test=B,
        rank=rank.value / B,
        low=rank.low / B,
        high=rank.high / B,
        rows="\n".join(rows),
        date=date.today(),
        version=environment()["commit"],
        settings=", ".join(f"{k} {v}" for k, v in (COHORT | RUN).items()),
        n=sum(p.numel() for p in model.ecg_encoder.parameters()),
    )
    with tempfile.TemporaryDirectory() as d:
        described = described_parts(model, cfg)["ecg_encoder"]
        save_weights(model.ecg_encoder.state_dict(), described, d)
        features = pd.DataFrame(z.ecg_BD.numpy())
        fit_probe(features, train_part.table[list(units)], units).save_pretrained(d)
        Path(d, "README.md").write_text(card, encoding="utf-8")
        shutil.copytree(d, samples_dir() / "encoder", dirs_exist_ok=True)
    print(card)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
