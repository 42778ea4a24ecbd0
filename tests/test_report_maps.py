"Heat maps of reports: truth maps of a store, scores with known answers, maps of models with known answers."

import json

import numpy as np
import pytest
import torch

from ptacl.data.participant import prepare_participant
from ptacl.data.prepared import from_steps
from ptacl.phantom.cohort import simulate_participant
from ptacl.phantom.simulated_store import SimulateConfig, as_read_from_files, simulate_store
from ptacl.plots.report_view import ShownFinding, report_view
from ptacl.report.cine_truth import truth_maps
from ptacl.report.ecg_truth import beat_times
from ptacl.report.map_scores import score_maps
from ptacl.report.model_maps import gradient_map, occlusion_map
from ptacl.report.truth import ectopic_beats

SICK = dict(lbbb=0.3, mi=0.5, lvh=0.3, dcm=0.3, rvd=0.3, af=0.3, pvc=0.6, tachycardia=0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    "Twelve simulated people with many conditions."
    cfg = SimulateConfig(n=12, n_test=4, seed=31, store=True, frames=30, workers=1, **SICK)
    return simulate_store(cfg, tmp_path_factory.mktemp("maps") / "store", progress=False)


def test_truth_maps_of_a_store_are_of_its_recordings(store):
    "The recipe beside a store makes the very recordings that it holds, and masks in their coordinates."
    recipe = json.loads((store.root / "recipe.json").read_text())
    table = store.table.set_index("participant_id")
    for row, name in zip(store.rows, store.table.participant_id, strict=True):
        index = int(name.removeprefix("sim-")) - 1
        drawn = {k: recipe[k] for k in ("n_frames", "n_slices", "size_px", "noise", "fault_rate")}
        p = simulate_participant(index, recipe["seed"], prevalence=recipe["prevalence"], **drawn)
        item, _ = prepare_participant(
            None, p.row, store.settings, read=lambda m, p=p: as_read_from_files(p, m)
        )
        assert (item["cine_FHW"] == store.read("cine_FHW", [row])[0]).all()
        assert (item["signal_LT"] == store.read("signal_LT", [row])[0]).all()
        maps = truth_maps(index, recipe, store.settings)
        known = table.loc[name]
        assert ("infarct" in maps.cine, "infarct" in maps.ecg) == (known.mi == 1, known.mi == 1)
        assert ("lbbb" in maps.cine, "lbbb" in maps.ecg) == (known.lbbb == 1, known.lbbb == 1)
        count = ectopic_beats(index, 31, store.settings["window_s"], prevalence=recipe["prevalence"])
        assert ("ectopy" in maps.ecg) == (count > 0)
        assert {m.shape for m in maps.cine.values()} == {item["cine_FHW"].shape}
        blood = from_steps(item["cine_FHW"], "cine_FHW")
        assert blood[maps.cine["lvef"]].mean() > 2 * blood[maps.cine["mass"]].mean()


def test_the_beats_that_preparation_finds_are_inside_the_masks(store):
    "R peaks, found in the prepared signal where its phase starts anew, lie inside QRS or an ectopic beat."
    recipe = json.loads((store.root / "recipe.json").read_text())
    inside = total = 0
    for row, name in zip(store.rows, store.table.participant_id, strict=True):
        index = int(name.removeprefix("sim-")) - 1
        maps = truth_maps(index, recipe, store.settings).ecg
        T = maps["qrs"].shape[1]
        phase_T = store.read("phase_T", [row], scaled=True)[0][:T]
        starts = np.flatnonzero(np.diff(phase_T) < -0.5) + 1
        lit_T = maps["qrs"].any(0) | maps.get("ectopy", np.zeros((1, T), bool)).any(0)
        r_s = beat_times(index, 31, recipe["prevalence"]).r_s
        starts = starts[np.abs(starts[:, None] / store.settings["fs"] - r_s).min(1) < 0.08]
        inside += lit_T[starts].sum()
        total += len(starts)
    assert total > 40 and inside / total > 0.97


def test_a_detector_of_one_place_is_found_out(store):
    "A model that looks at the infarct's sector alone: gradients and occlusion lie in it, and scores say so."
    recipe = json.loads((store.root / "recipe.json").read_text())
    cines = []
    truths = []
    for row, name in zip(store.rows, store.table.participant_id, strict=True):
        maps = truth_maps(int(name.removeprefix("sim-")) - 1, recipe, store.settings).cine
        if "infarct" in maps:
            cines.append(store.read("cine_FHW", [row], scaled=True)[0])
            truths.append(maps["infarct"])
    assert len(truths) >= 3
    heats = []
    for cine, truth in zip(cines, truths, strict=True):
        weight = torch.from_numpy(truth).float()
        x = torch.from_numpy(cine)
        slopes = gradient_map(lambda c, w=weight: -((c - 1) * w).sum((1, 2, 3)), x[None], nothing=1.0)[0]
        assert torch.allclose(slopes, (1 - x) * weight)
        blocks = occlusion_map(lambda c, w=weight: -((c - 1) * w).sum((1, 2, 3)), x, (5, 16, 16), nothing=1.0)
        cells = ((1 - x) * weight).reshape(5, 5, 4, 16, 4, 16).sum((1, 3, 5))
        assert torch.allclose(blocks.reshape(5, 5, 4, 16, 4, 16).sum((1, 3, 5)), cells, atol=1e-2)
        heats.append(slopes.numpy())
    table = score_maps(heats, truths, n_boot=50).set_index(["method", "metric"]).value
    assert table["map", "hit"] == 1 and table["map", "mass"] == pytest.approx(1)
    assert table["chance", "mass"] < 0.03 and table["another participant's map", "mass"] < 0.8


def test_a_report_can_be_of_one_recording_and_is_escaped():
    "No cine, no map, a name that is HTML: nothing breaks, nothing runs."
    quiet = np.zeros((12, 1000)) + 0.01 * np.sin(np.arange(1000) / 20)
    findings = [
        ShownFinding("<script>alert(1)</script>", "&", 0.5, sentence=0, heat_LT=np.ones((12, 1000))),
        ShownFinding("without a sentence", "present", heat_LT=np.ones((12, 1000))),
    ]
    names = ["I", "II", "III", "aVR", "aVL", "aVF", *(f"V{k}" for k in range(1, 7))]
    html = report_view(["<img src=x>"], findings, signal_LT=quiet, fs=500.0, lead_names=names).html
    assert "<script" not in html and "<img src=x>" not in html
    assert html.count('type="radio"') == 3 and html.count('class="light') == 2
