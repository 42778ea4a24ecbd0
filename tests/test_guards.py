"""What is wrong is refused before work starts, what nobody knows is no 0, and a batch is the same however it
is divided.
"""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from ptacl.base.config import MOST_PHASE_NOISE, TrainConfig, load_config
from ptacl.base.core import BadInput, samples_dir, seed_everything
from ptacl.data.augment import phase_noise
from ptacl.data.batches import load_data, load_pairs
from ptacl.data.beats import find_beats
from ptacl.data.cohort import phenotype_columns, read_cohort
from ptacl.data.ecg import STANDARD_LEADS, ecg_from_array
from ptacl.data.phenotypes import cmr_phenotypes
from ptacl.models.saved import from_pretrained, save_pretrained, start_encoders
from ptacl.models.systems import SETTINGS, build_system
from ptacl.studies.cells import check_comparison
from ptacl.studies.comparison import CompareConfig, cells_of
from ptacl.studies.comparison_tables import r2_statistics
from ptacl.studies.one_run import EvaluateConfig, open_trained
from ptacl.training.batches import CINE_TRANSFORMS, ECG_TRANSFORMS, TrainingBatches
from ptacl.training.finetune import finetune, finetune_config
from ptacl.training.loop import fit
from ptacl.training.pretraining import PretrainConfig
from ptacl.training.watch import evaluate
from ptacl.use import ECGEncoder

TINY = TrainConfig(
    accelerator="cpu",
    precision="32-true",
    window_s=1.0,
    crop_px=16,
    n_frames=4,
    cine_keep=1.0,
    phase_bins=4,
    epochs=1,
    batch_size=4,
    workers=1,
)


def parted(pairs):
    "Fourteen to train on, six to watch."
    pairs.table["split"] = ["train"] * 14 + ["val"] * 6
    return pairs.split("train"), pairs.split("val")


@pytest.fixture(scope="module")
def parts():
    return parted(load_data(samples_dir(), TINY, progress=False)[1].take(range(20)))


def trained(cfg, parts, **options):
    "Build and fit."
    seed_everything(cfg.seed)
    return fit(cfg, build_system(cfg), *parts, progress=False, **options)


def weights(state):
    return torch.cat([p.detach().flatten() for p in state.model.parameters()])


def test_a_loss_of_ones_own_sees_the_whole_batch(parts):
    "With micro-batches it saw the first two of four."
    seen = []

    def loss_of(model, batch, cfg):
        seen.append(len(batch.signal_BLT))
        loss = model(batch).ecg_BE.sum()
        return loss, dict(loss=loss.detach())

    with pytest.raises(BadInput, match="divides a batch of 4 into 2. A loss of your own sees whole batches"):
        trained(replace(TINY, micro_batch=2), parts, loss_of=loss_of)
    assert not seen
    trained(replace(TINY, micro_batch=4), parts, loss_of=loss_of)
    assert set(seen) == {4}


def test_fine_tuning_without_cines_resumes(tmp_path):
    "The constants of cines that are not there were NaN, which equals nothing, itself included."
    cohort = read_cohort(samples_dir())
    cohort = replace(cohort, table=cohort.table.head(20))
    parts = parted(load_pairs(cohort, TINY, progress=False, wanted=("ecg",))[0])
    cfg = finetune_config(TINY, "", ["lvedv_ml"], epochs=2)
    path = tmp_path / "last.ckpt"
    first = finetune(cfg, *parts, checkpoint=path, progress=False)
    assert (first.model.cine_mean.item(), first.model.cine_sd.item()) == (0, 1)
    again = finetune(cfg, *parts, checkpoint=path, progress=False)
    content = torch.load(path, weights_only=True)
    content["model"]["cine_mean"] = torch.tensor(math.nan)  # as it was written before
    torch.save(content, path)
    earlier = finetune(cfg, *parts, checkpoint=path, progress=False)
    for tuned in (again, earlier):
        assert all(x.isfinite().all() for x in tuned.model.state_dict().values())
        assert len(tuned.log) == len(first.log)


def without_beats(pairs, rows):
    is_valid = np.array(pairs.is_valid_PT)
    is_valid[rows] = False
    return replace(pairs, is_valid_PT=is_valid)


def test_no_beats_is_no_perfect_local_loss(parts):
    "The local loss of a batch without beats was 0, the best that there is."
    model = trained(TINY, parts).model
    six = parts[1].take([0, 1, 2, 3, 2, 3, 4, 5])
    whole = evaluate(model, six.take(range(4, 8)), TINY)
    half = evaluate(model, without_beats(six, slice(0, 4)), TINY)
    none = evaluate(model, without_beats(six, slice(None)), TINY)
    assert half["val_loss_local"] == pytest.approx(whole["val_loss_local"], abs=1e-6)
    assert half["val_loss"] == pytest.approx(whole["val_loss"], abs=1e-6)
    assert math.isnan(none["val_loss"]) and math.isnan(none["val_loss_local"])
    assert math.isfinite(none["val_loss_global"])
    silent = (parts[0], without_beats(parts[1], slice(None)))
    with pytest.raises(BadInput, match="`keep_best` is 'val_loss_local', which no evaluation has"):
        trained(replace(TINY, keep_best="val_loss_local"), silent)
    rows = trained(TINY, (without_beats(parts[0], slice(None)), parts[1])).log
    steps = [r for r in rows if "loss" in r]
    assert all(math.isnan(r["loss_local"]) and math.isfinite(r["loss"]) for r in steps) and steps


def test_every_evaluation_has_the_same_gallery(parts):
    "The first had two batches, the others all."
    rows = [r for r in trained(replace(TINY, batch_size=2), parts).log if "val_pairs" in r]
    assert [r["val_pairs"] for r in rows] == [6, 6]


def test_own_transforms_do_not_know_how_a_batch_is_divided(parts):
    "The weights differed by 0.002 after three steps; now by rounding, as they do without a transform."

    def shake(x):
        return x + 0.1 * torch.randn_like(x)

    how = dict(ecg_transform=shake, cine_transform=shake)
    whole = TrainingBatches(TINY, parts[0], **how).at(2).parts[0]()
    for size in (1, 2, 3):
        pieces = [
            make() for make in TrainingBatches(replace(TINY, micro_batch=size), parts[0], **how).at(2).parts
        ]
        assert len(pieces) == -(-4 // size)
        assert torch.equal(torch.cat([x.signal_BLT for x in pieces]), whole.signal_BLT)
        assert torch.equal(torch.cat([x.cine_BFHW for x in pieces]), whole.cine_BFHW)
    shares = [TrainingBatches(TINY, parts[0], process=k, processes=2, **how).at(2).parts[0]() for k in (0, 1)]
    assert torch.equal(torch.cat([x.signal_BLT for x in shares]), whole.signal_BLT)
    found = [weights(trained(replace(TINY, micro_batch=size), parts, **how)) for size in (0, 2)]
    assert torch.allclose(*found, atol=3e-4)


def test_a_transform_by_name_is_the_transform(parts, monkeypatch):
    "Registered by a module, named in the settings, given to nobody."

    def double(x):
        return 2 * x

    monkeypatch.setitem(ECG_TRANSFORMS, "double", double)
    monkeypatch.setitem(CINE_TRANSFORMS, "double", double)
    by_name = replace(TINY, ecg_transform="double", cine_transform="double")
    named = TrainingBatches(by_name, parts[0]).at(2).parts[0]()
    how = dict(ecg_transform=double, cine_transform=double)
    given = TrainingBatches(TINY, parts[0], **how).at(2).parts[0]()
    plain = TrainingBatches(TINY, parts[0]).at(2).parts[0]()
    assert torch.equal(named.signal_BLT, 2 * plain.signal_BLT)
    assert torch.equal(named.signal_BLT, given.signal_BLT)
    assert torch.equal(named.cine_BFHW, given.cine_BFHW)
    with pytest.raises(BadInput, match="`cine_transform` is 'doubel'. Choose one of double"):
        replace(TINY, cine_transform="doubel")


def test_how_often_to_evaluate_stays_where_it_chooses(parts, tmp_path):
    path = tmp_path / "last.ckpt"
    chosen = replace(TINY, keep_best="val_loss")
    trained(chosen, parts, checkpoint=path)
    with pytest.raises(BadInput, match="was made with eval_every = 1, not 2"):
        trained(replace(chosen, eval_every=2), parts, checkpoint=path)
    path.unlink()
    trained(TINY, parts, checkpoint=path)
    trained(replace(TINY, eval_every=2), parts, checkpoint=path)


@pytest.mark.parametrize("batch_size, alike, name", [(32, 13, "train"), (12, 5, "val"), (32, 20, "train")])
def test_a_batch_without_negatives_is_refused(parts, batch_size, alike, name):
    "Fewer people than a batch: all others were alike, and the loss was 0."
    cfg = replace(TINY, **SETTINGS["mmcl"], batch_size=batch_size, alike=alike)
    size = dict(train=min(14, batch_size), val=6)[name]
    message = (
        f"of {size} participants in a batch of the {name} part no negative is left. Give at most {size - 2}"
    )
    with pytest.raises(BadInput, match=message):
        trained(cfg, parts)
    log = trained(replace(cfg, alike=2), parts).log
    assert all(r["loss"] > 0 for r in log if "loss" in r)


@pytest.fixture(scope="module")
def pretrained(parts, tmp_path_factory):
    "A system whose voltages were three times as large."
    loud = [replace(p, signal_PLT=3 * np.asarray(p.signal_PLT)) for p in parts]
    model = trained(TINY, loud).model.module
    return save_pretrained(model, TINY, tmp_path_factory.mktemp("run"))


def test_scaling_of_a_trained_encoder_stays(parts, pretrained):
    "Fitted again on the few labelled it was divided by three."
    encoder = ECGEncoder.from_pretrained(pretrained)
    few = (parts[0].take(range(4)), parts[1])
    cfg = replace(TINY, ecg_init=str(pretrained))
    seed_everything(0)
    started = fit(cfg, start_encoders(build_system(cfg), cfg), *few, progress=False).model
    tuned = finetune(finetune_config(TINY, pretrained, ["lvedv_ml"], epochs=1), *few, progress=False).model
    whole = fit(TINY, from_pretrained(pretrained)[0], *few, progress=False).model
    for model in (started, tuned, whole):
        assert np.allclose(model.ecg_sd_L, encoder.preparation["sd_mv"], rtol=1e-6)
        assert np.allclose(model.ecg_mean_L, encoder.preparation["mean_mv"], rtol=1e-6)
    fresh = trained(TINY, few).model
    assert (tuned.ecg_sd_L / fresh.ecg_sd_L).min() > 1.5
    assert torch.equal(started.cine_sd, fresh.cine_sd)  # its cine encoder is its own
    assert torch.equal(whole.cine_sd, from_pretrained(pretrained)[0].cine_sd)


@pytest.mark.parametrize("changed", [dict(fs=250.0, window_s=2.0), dict(window_s=0.5), dict(mains_hz=60.0)])
def test_encoder_of_another_preparation_is_refused(parts, pretrained, changed):
    "By a run and by fine-tuning, before a step; recordings of another preparation too."
    cfg = replace(TINY, ecg_init=str(pretrained), **changed)
    with pytest.raises(BadInput):
        start_encoders(build_system(cfg), cfg)
    with pytest.raises(BadInput):
        finetune(finetune_config(replace(TINY, **changed), pretrained, ["lvedv_ml"]), *parts, progress=False)
    with pytest.raises(BadInput, match="the train part: was prepared with"):
        trained(replace(TINY, **changed), parts)


REFUSED = [
    (
        "ptacl",
        dict(local_weight=0.0, shuffle_phases=True),
        "`shuffle_phases` is True. It is a control of the",
    ),
    ("mmcl", dict(shuffle_phases=True), "`shuffle_phases` is True. It is a control of the local loss"),
    ("dual_phase", dict(shuffle_phases=True), "`shuffle_phases` is True. It is a control of the local loss"),
    ("supervised", dict(shuffle_phases=True), "`shuffle_phases` is True. It is a control of the local loss"),
    ("random", dict(shuffle_phases=True), "`shuffle_phases` is True. It is a control of the local loss"),
    ("global_only", dict(target_concentration=9.0), "`target_concentration` is 9.0. It is of the local loss"),
    ("mmcl", dict(target_concentration=9.0), "`target_concentration` is 9.0. It is of the local loss"),
    ("ptacl", dict(n_slices=8), "`n_slices` is 8. Only dual_phase reads volumes: give 1"),
    ("supervised", dict(n_slices=8), "`n_slices` is 8. Only dual_phase reads volumes: give 1"),
    ("mmcl", dict(alike_are="attracted"), "`alike_are` is 'attracted'. Nobody counts as alike"),
    ("ptacl", dict(ecg_phase_noise=0.25), "`ecg_phase_noise` is 0.25. Give at most 0.2 with a local loss"),
    ("ptacl", dict(n_boot=0), "`n_boot` is 0. Give a number above 0"),
]


@pytest.mark.parametrize("system, changed, message", REFUSED)
def test_settings_that_do_nothing_or_something_else_are_refused(system, changed, message):
    with pytest.raises(BadInput, match=message):
        TrainConfig(**{**SETTINGS[system], **changed})


@pytest.mark.parametrize(
    "system, changed",
    [
        ("ptacl", dict(shuffle_phases=True, target_concentration=9.0, ecg_phase_noise=0.2)),
        ("global_only", dict(ecg_phase_noise=1.0)),
        ("mmcl", dict(ecg_phase_noise=1.0, alike=4, alike_are="attracted")),
        ("dual_phase", dict(n_slices=8)),
    ],
)
def test_the_same_settings_where_they_belong(system, changed):
    TrainConfig(**{**SETTINGS[system], **changed})


def test_volumes_are_refused_by_pretraining():
    with pytest.raises(BadInput, match="Only dual_phase reads volumes"):
        PretrainConfig(n_slices=8)


def test_r_peaks_outlast_the_noise_that_is_allowed():
    "Of 12 people: at the limit their R peaks are found, and hardly any others; far beyond they are not."
    pairs = load_data(samples_dir(), TrainConfig(), progress=False)[1]
    counts = {strength: np.zeros(3) for strength in (MOST_PHASE_NOISE, 2.5 * MOST_PHASE_NOISE)}
    for p in range(12):
        signal = torch.from_numpy(np.array(pairs.signal_PLT[p][None, :, :2500]))
        true = find_beats(ecg_from_array(signal[0].numpy(), 500.0, STANDARD_LEADS, "mV")).r_peaks
        for strength, count in counts.items():
            changed = phase_noise(signal, strength, torch.Generator().manual_seed(p))[0].numpy()
            found = find_beats(ecg_from_array(changed, 500.0, STANDARD_LEADS, "mV")).r_peaks
            away = np.abs(true[:, None] - found[None]) <= 25  # 50 ms
            count += (len(true), away.any(1).sum(), (~away.any(0)).sum())
    few, many = (count[1:] / count[0] for count in counts.values())
    assert few[0] > 0.97 and few[1] < 0.05
    assert many[0] < 0.9 or many[1] > 0.3


def test_run_with_settings_that_did_nothing_is_still_opened(parts, tmp_path):
    "Its config.json is of before they were refused."
    cfg = replace(TINY, local_weight=0.0)
    save_pretrained(build_system(cfg), cfg, tmp_path)
    path = tmp_path / "config.json"
    idle = dict(target_concentration=20.0, shuffle_phases=True, n_slices=4, alike_are="attracted")
    path.write_text(json.dumps(json.loads(path.read_text()) | idle))
    assert from_pretrained(tmp_path)[1] == cfg == load_config(path)


def lists(folder, changed):
    "The samples' table with cells changed, and the folder."
    shutil.copytree(samples_dir(), folder)
    table = pd.read_csv(folder / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    table["split"] = ["train"] * 48 + ["test"] * 16
    changed(table).to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


def two_tested(table):
    return table.assign(split=["train"] * 62 + ["test"] * 2)


def unknown_when_tested(table):
    return table.assign(lvedv_ml=table.lvedv_ml.where(table.split == "train", ""))


@pytest.mark.parametrize(
    "changed, message",
    [
        (lambda t: t.assign(split="train"), "64 usable training and 0 held-out participants"),
        (two_tested, "62 usable training and 2 held-out participants"),
        (unknown_when_tested, "`lvedv_ml` is known of 48 training and 0 held-out participants"),
    ],
)
def test_evaluation_and_comparison_refuse_before_they_work(
    tmp_path, pretrained, changed, message, monkeypatch
):
    "Each crashed after the training of all cells, or after everybody was embedded."
    data = str(lists(tmp_path / "data", changed))
    cfg = CompareConfig(data=data, out=str(tmp_path / "out"), methods="ptacl")
    with pytest.raises(BadInput, match=message):
        check_comparison(cells_of(cfg), cfg)
    assert not (tmp_path / "out").exists()

    def embed(*args):
        raise AssertionError("somebody was embedded")

    monkeypatch.setattr("ptacl.studies.one_run.embed_pairs", embed)
    with pytest.raises(BadInput, match=message):
        open_trained(EvaluateConfig(run=str(pretrained), data=data, phenotypes="lvedv_ml"))


@pytest.mark.parametrize("notebook", ["train", "compare"])
def test_notebooks_ask_before_they_train(repo, notebook):
    cells = json.loads((repo / "nbs" / f"{notebook}.ipynb").read_text())["cells"]
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    asks, trains = dict(
        train=("require_people(len(train), len(test), data_dir)", "state = fit("),
        compare=("check_comparison(cells, cfg)", "run_cell(cell, cfg)"),
    )[notebook]
    text = "\n".join(sources)
    assert 0 < text.index(asks) < text.index(trains)


def test_mean_r2_is_of_cmr_phenotypes():
    "An ECG says much of height and weight, and they are no achievement of a model of hearts."
    found = phenotype_columns(read_cohort(samples_dir()))
    of_cmr = cmr_phenotypes(found)
    assert {"height_cm", "weight_kg", "bsa_m2", "heart_rate_ecg_bpm", "heart_rate_scan_bpm"} <= set(found)
    assert of_cmr[:4] == ["lvedv_ml", "lvesv_ml", "lvsv_ml", "lvef"] and "long_strain_global" in of_cmr
    assert not {n for n in of_cmr if n.startswith(("height", "weight", "bsa", "heart_rate"))}
    names = ["height_cm", "lvef"]
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(1, 40, 2))
    sample = np.stack([truth, truth * [1, 0]], axis=3)  # height without error, the mean for LVEF
    mean_of = [k for k, name in enumerate(names) if name in cmr_phenotypes(names)]
    assert r2_statistics(sample, mean_of)[0, 0] < 0.01 < 0.4 < r2_statistics(sample)[0, 0]
