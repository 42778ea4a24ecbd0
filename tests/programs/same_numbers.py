"""Digests of what the library computes from `data_samples` in float32 with one thread, as JSON.

`python tests/programs/same_numbers.py` prints them; `tests/same_numbers.json` holds those of the version that
told the left ventricle by its wall, and chose frames before it changes them.
"""

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from ptacl.base.config import TrainConfig
from ptacl.base.core import samples_dir, seed_everything
from ptacl.data.batches import load_data
from ptacl.data.cohort import phenotype_columns
from ptacl.evaluation.probe import ridge_probe
from ptacl.evaluation.retrieval import retrieval_metrics
from ptacl.evaluation.similar import phenotype_retrieval
from ptacl.models.saved import start_encoders
from ptacl.models.systems import build_system
from ptacl.phantom.cohort import write_cohort
from ptacl.training.checkpoint import fit_input_scaling
from ptacl.training.loop import fit
from ptacl.training.pretraining import PretrainConfig, load_recordings, masked_model_from_config, pretrain
from ptacl.training.watch import embed_pairs

TARGETS = "lvedv_ml,lvesv_ml,lvef,lvm_g,rvedv_ml,rvesv_ml"
SYSTEMS = dict(
    ptacl=dict(system="ptacl"),
    global_only=dict(system="ptacl", local_weight=0.0),
    mmcl=dict(system="mmcl", local_weight=0.0, temperature=0.1, fixed_temperature=True, cine_keep=1.0),
    dual_phase=dict(
        system="dual_phase", local_weight=0.0, temperature=0.07, fixed_temperature=True, cine_keep=1.0
    ),
    supervised=dict(system="supervised", local_weight=0.0, targets=TARGETS),
    random=dict(system="random"),
)
COMMON = dict(
    accelerator="cpu",
    precision="32-true",
    workers=1,
    epochs=5,
    batch_size=12,
    eval_every=5,
    checkpoint_every=1000,
)


def digest(*arrays) -> str:
    "One word for the bytes of some arrays."
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]


def of_text(text: str) -> str:
    "One word for a text."
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def of_table(table) -> str:
    "One word for a table, to nine digits."
    return of_text(table.to_csv(index=False, float_format="%.9g"))


def of_weights(model) -> str:
    "One word for all weights of a model."
    state = model.state_dict()
    return digest(*(state[name].detach().cpu().numpy() for name in sorted(state)))


def of_log(log) -> str:
    "One word for a run's log, rates aside."
    rows = [{k: repr(float(v)) for k, v in sorted(row.items()) if k != "pairs_per_s"} for row in log]
    return of_text(json.dumps(rows))


def of_system(name: str) -> dict[str, str]:
    "Twenty steps of a system, its embeddings and its tables."
    cfg = TrainConfig(**COMMON | SYSTEMS[name])
    cohort, pairs, _ = load_data(samples_dir(), cfg, progress=False)
    train = pairs.split("train")
    test = pairs.split("test")
    seed_everything(0)
    model = fit_input_scaling(start_encoders(build_system(cfg), cfg), train)
    found = {}
    if name != "random":
        state = fit(cfg, model, train, test, progress=False)
        assert state.step == 20, state.step
        found["log"] = of_log(state.log)
    found["weights"] = of_weights(model)
    embedded = {part: embed_pairs(model, rows, cfg) for part, rows in (("train", train), ("test", test))}
    for part, e in embedded.items():
        found[f"{part} ECG embeddings"] = digest(e.ecg_BE.numpy(), e.ecg_BD.numpy())
        found[f"{part} CMR embeddings"] = digest(e.cmr_BE.numpy(), e.cmr_BQE.numpy())
    units = {
        k: unit
        for k, unit in phenotype_columns(cohort).items()
        if unit and train.table[k].nunique() > 2 and test.table[k].nunique() > 2
    }
    truth = {"train": train.table[list(units)], "test": test.table[list(units)]}
    z = embedded["test"]
    draws = dict(n_boot=200, seed=0)
    if name != "supervised":
        found["retrieval"] = of_table(retrieval_metrics(z.ecg_BE, z.cmr_BE, ks=[1, 5, 10], **draws))
        similar = phenotype_retrieval(z.ecg_BE, z.cmr_BE, truth["test"], units, k=5, **draws)
        found["phenotype retrieval"] = of_table(similar)
    features = {part: e.ecg_BD.numpy() for part, e in embedded.items()}
    probe = ridge_probe(features["train"], truth["train"], features["test"], truth["test"], units, **draws)
    found["probe"] = of_table(probe)
    return {f"{name}: {what}": word for what, word in found.items()}


def of_masked() -> dict[str, str]:
    "Twenty steps of masked pre-training."
    settings = {k: v for k, v in COMMON.items() if k not in ("checkpoint_every",)}
    cfg = PretrainConfig(**settings | dict(epochs=4, batch_size=9, eval_every=4))
    pairs = load_recordings(samples_dir(), cfg, progress=False)[1]
    seed_everything(0)
    model = masked_model_from_config(cfg)
    state = pretrain(cfg, model, pairs.split("train"), pairs.split("test"), progress=False)
    assert state.step == 20, state.step
    return {"masked: weights": of_weights(model)}


def of_phantom() -> dict[str, str]:
    "The files of ten simulated participants."
    with tempfile.TemporaryDirectory() as folder:
        recipe = dict(seed=5, n_frames=10, size_px=48, masks=True, fault_rate=0.3)
        write_cohort(Path(folder) / "c", 10, n_jobs=1, **recipe)
        whole = hashlib.sha256()
        for path in sorted(p for p in Path(folder, "c").rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            if "/." not in name:
                whole.update(name.encode())
                whole.update(path.read_bytes())
    return {"simulated: 10 participants": whole.hexdigest()[:16]}


def main() -> None:
    "Print everything."
    torch.set_num_threads(1)
    found = {}
    for name in SYSTEMS:
        found |= of_system(name)
    found |= of_masked() | of_phantom()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
