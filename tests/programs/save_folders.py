"""Makes the archives of tests/saved with this version: `python tests/programs/save_folders.py [FOLDER]`.

A PTACL run with the checkpoint of its 14th of 18 steps, an MMCL run, a masked pre-training and a vision
transformer with random weights, on the sample participants. Matrices are rounded to a few levels, and the
optimiser's state to one, so that they pack small; values.json holds what this version makes of what is left.
"""

import json
import shutil
import sys
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ptacl.base.config import TrainConfig, load_config, save_config
from ptacl.base.core import sample_path, samples_dir, seed_everything
from ptacl.data.batches import load_data
from ptacl.models.ecg_vit import ECGViT
from ptacl.models.saved import from_pretrained, start_encoders
from ptacl.models.systems import build_system
from ptacl.studies.launch import run_notebook
from ptacl.training.loop import fit
from ptacl.training.pretraining import PretrainConfig
from ptacl.training.watch import embed_pairs
from ptacl.use import ECGEncoder
from ptacl.use.embed import folder_identity

NOTEBOOKS = Path(__file__).parents[2] / "nbs"
RECORD = "sim-0004"
COMMON = dict(window_s=1.0, epochs=3, batch_size=8, accelerator="cpu", precision="32-true", workers=1)
SMALL = dict(n_frames=4, cine_keep=1.0, crop_px=16, embed_dim=8, phase_bins=4, n_boot=20) | COMMON
RUNS = dict(
    ptacl=("train", SMALL | dict(checkpoint_every=7)),
    mmcl=(
        "train",
        SMALL | dict(system="mmcl", local_weight=0.0, temperature=0.1, fixed_temperature=True),
    ),
    masked=("pretrain", COMMON),
)
CUT_AT = 14  # steps of the run that goes on


class CutOff(Exception):
    "The run is broken off."


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    "A matrix on at most seven levels; anything else as it is."
    if tensor.ndim < 2 or not tensor.is_floating_point():
        return tensor
    step = 2.0 ** torch.round(torch.log2(tensor.abs().max().clamp(min=1e-12) / 3))
    return (tensor / step).round().clamp(-3, 3) * step


def round_folder(folder: Path) -> None:
    "Round the weights of a folder; its probe, if it has one, counts as that of the rounded encoder."
    path = folder / "model.safetensors"
    weights = {k: rounded(v).contiguous() for k, v in load_file(path).items()}
    save_file(weights, path, metadata=dict(format="pt"))
    probe = folder / "phenotypes" / "config.json"
    if probe.is_file():
        settings = json.loads(probe.read_text()) | dict(encoder=folder_identity(folder))
        probe.write_text(json.dumps(settings, indent=1) + "\n")


def run(name: str, top: Path) -> Path:
    "A run by its notebook; its folder names no place of this machine."
    notebook, params = RUNS[name]
    folder = top / name
    where = dict(data=str(samples_dir()), out=str(folder))
    run_notebook(NOTEBOOKS / f"{notebook}.ipynb", top / f"{name}.ipynb", params | where, progress=False)
    cls = TrainConfig if notebook == "train" else PretrainConfig
    config = folder / "config.json"
    save_config(replace(load_config(config, cls), data="", out="run"), config)
    round_folder(folder)
    for p in folder.iterdir():
        is_kept = p.suffix in (".json", ".safetensors", ".csv") or p.name == "phenotypes"
        if not is_kept:
            shutil.rmtree(p) if p.is_dir() else p.unlink()
    return folder


def cut_run(folder: Path) -> None:
    "The same run, broken off after its second checkpoint, which is left in the folder, rounded."
    cfg = load_config(folder / "config.json")
    pairs = load_data(samples_dir(), cfg, progress=False)[1]
    seed_everything(cfg.seed)

    def cut(row: dict) -> None:
        "Break off after the checkpoint."
        if row["step"] > CUT_AT:
            raise CutOff

    path = folder / "last.ckpt"
    try:
        fit(
            cfg,
            start_encoders(build_system(cfg), cfg),
            pairs.split("train"),
            pairs.split("test"),
            checkpoint=path,
            progress=False,
            on_log=cut,
        )
    except CutOff:
        state = torch.load(path, weights_only=True)
    assert state["step"] == CUT_AT
    state["model"] = {k: rounded(v) for k, v in state["model"].items()}
    for of_weight in state["optimizer"]["state"].values():
        of_weight["exp_avg"].zero_()
        of_weight["exp_avg_sq"].fill_(1e-4)
    torch.save(state, path)


def resumed(folder: Path) -> dict[str, object]:
    "How the run ends that goes on from its checkpoint."
    cfg = load_config(folder / "config.json")
    pairs = load_data(samples_dir(), cfg, progress=False)[1]
    seed_everything(cfg.seed)
    with tempfile.TemporaryDirectory() as d:
        checkpoint = Path(shutil.copy(folder / "last.ckpt", d))
        state = fit(
            cfg,
            start_encoders(build_system(cfg), cfg),
            pairs.split("train"),
            pairs.split("test"),
            checkpoint=checkpoint,
            progress=False,
        )
    losses = [row["loss"] for row in state.log if "loss" in row][-4:]
    return dict(step=state.step, first_step=state.log[0]["step"], losses=numbers(losses))


def transformer(top: Path) -> Path:
    "A vision transformer alone, as folders named it before: by ECGEncoder."
    torch.manual_seed(0)
    encoder = ECGViT(500, dim=16, depth=1, heads=2)
    encoder.preparation = dict(fs=500.0, mains_hz=50.0, window_s=1.0, mean_mv=[0.0] * 12, sd_mv=[0.2] * 12)
    folder = encoder.save_pretrained(top / "vit")
    settings = json.loads((folder / "config.json").read_text())
    settings |= dict(architectures=["ECGEncoder"], summary=False)
    (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n")
    round_folder(folder)
    return folder


def numbers(x: object) -> list[float]:
    "Six digits of each."
    return [float(f"{v:.6g}") for v in np.asarray(x, dtype=float).ravel()]


def values_of(folder: Path) -> dict[str, object]:
    "What this version makes of a folder."
    encoder = ECGEncoder.from_pretrained(folder)
    record = sample_path("ecg") / RECORD
    values = dict(embedding=numbers(encoder.embed(record)))
    if (folder / "phenotypes").is_dir():
        table = encoder.predict(record)
        predicted = numbers(table.select_dtypes("number").to_numpy())
        model, cfg = from_pretrained(folder)
        test = load_data(samples_dir(), cfg, progress=False)[1].split("test")
        z = embed_pairs(model, test, cfg)
        values |= dict(columns=list(table.columns), predicted=predicted)
        values |= dict(test_ecg=numbers(z.ecg_BE[:2]), test_cmr=numbers(z.cmr_BE[:2]))
    return values


def main(out: Path) -> None:
    "Make the folders, pack them, write values.json."
    values = dict(record=RECORD)
    with tempfile.TemporaryDirectory() as d:
        top = Path(d)
        folders = [run(name, top) for name in RUNS] + [transformer(top)]
        cut_run(top / "ptacl")
        for folder in folders:
            values[folder.name] = values_of(folder)
        values["resumed"] = resumed(top / "ptacl")
        for folder in folders:
            with tarfile.open(out / f"{folder.name}.tar.xz", "w:xz", preset=9) as tar:
                tar.add(folder, folder.name, filter=nobody)
            print(f"{folder.name}: {(out / f'{folder.name}.tar.xz').stat().st_size / 1e3:.0f} kB")
    (out / "values.json").write_text(json.dumps(values, indent=1) + "\n")


def nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    "A file of no owner and no time."
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "saved")
