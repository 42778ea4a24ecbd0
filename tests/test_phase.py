"""Events of one heartbeat on the canonical cycle, from 40 to 200 bpm: what the rate predicts, what is
measured, and that ECG and cine agree although their rates differ.
"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from ptacl.base.core import BadInput
from ptacl.data.beats import find_beats
from ptacl.data.cavity import find_atrial_kick
from ptacl.data.ecg import standardise_ecg
from ptacl.data.heart import crop_heart
from ptacl.data.participant import settings_of
from ptacl.data.phase import atrial_systole_ms, ecg_phase, end_systole_ms
from ptacl.data.store import open_store
from ptacl.phantom.alignment import alignment, alignment_summary
from ptacl.phantom.body import PREVALENCE, participant_rng
from ptacl.phantom.cine import simulate_cine
from ptacl.phantom.ecg import draw_rhythm, simulate_ecg
from ptacl.phantom.latents import at_rates, atrial_kick_ms, draw_latents, pr_at_ms
from ptacl.phantom.realism import beat_table
from ptacl.phantom.simulated_store import SimulateConfig, simulate_store
from ptacl.phantom.ventricles import volume_curve

NONE = dict.fromkeys(PREVALENCE, 0.0)


def test_predicted_times_hold_from_40_to_200_bpm():
    "Weissler's line within its range (506 - 2.1 HR), its largest share of the cycle beyond; PR and 54 ms."
    bpm = np.array([40, 60, 100, 150, 200])
    rr_ms = 60_000 / bpm
    np.testing.assert_allclose(end_systole_ms(rr_ms), [422, 380, 296, 203.2, 152.4], atol=0.1)
    np.testing.assert_allclose(atrial_systole_ms(rr_ms), [1324.5, 852, 474, 285, 190.5], atol=0.6)
    every = 60_000 / np.arange(40, 201)
    assert (end_systole_ms(every) + 30 < atrial_systole_ms(every)).all()
    assert 0.5 < end_systole_ms(300.0) / 300 < 0.52  # it was 0.29


def test_pr_moves_the_kick_of_the_cine():
    "A millisecond more of PR, a millisecond further from the next R: in the volumes, and as measured."
    pr_ms = np.array([140.0, 170.0, 200.0, 230.0])
    slopes = []
    for k in range(4, 10):
        usual = replace(at_rates(draw_latents(k, 1, NONE), 60.0, 60.0), pr_ms=140.0)
        assert pr_at_ms(usual, 1000.0) == pytest.approx(140.0)
        t = np.arange(0, 1000.0)
        begins = []
        found = []
        for pr in pr_ms:
            lat = replace(usual, pr_ms=pr)
            begins.append(1000.0 - atrial_kick_ms(lat, 1000.0))
            # filling is fastest in the middle of the 130 ms that the kick lasts, or that are left before R
            middle = min(130.0, begins[-1] - 12) / 2
            fills = -np.gradient(volume_curve(lat, t))
            late = t > 1000.0 - begins[-1] - 20
            assert t[late][fills[late].argmax()] == pytest.approx(1000.0 - begins[-1] + middle, abs=3)
            cine, _ = simulate_cine(lat, participant_rng(k, 1, "cine"), 50, 1, 96)
            found.append(1000.0 - find_atrial_kick(crop_heart(cine, 64, 2.5)))
        np.testing.assert_allclose(np.diff(begins), 30.0)
        slopes.append(np.polyfit(pr_ms, found, 1)[0])
    assert np.mean(slopes) == pytest.approx(1.0, abs=0.1)


def test_beats_are_found_from_40_to_180_bpm():
    table = beat_table(24, 102, (40.0, 60.0, 100.0, 140.0, 180.0), workers=2)
    assert (table.sensitivity >= 0.99).all() and (table.ppv >= 0.99).all()
    assert table.beats.tolist() == sorted(table.beats.tolist()) and table.beats.iloc[-1] > 600


def test_some_are_fast_in_sinus_rhythm():
    "Six in a thousand, regular, up to nearly 180 bpm; fibrillation is not regular."
    people = [draw_latents(k, 13) for k in range(4000)]
    table = pd.DataFrame([vars(p) for p in people])
    assert table.tachycardia.mean() == pytest.approx(0.006, abs=0.003)
    rates = table.heart_rate_ecg_bpm
    assert (rates[table.tachycardia] >= 100).all() and rates.max() > 130 and rates.min() == 40
    assert not (table.tachycardia & table.af).any()
    many = [draw_latents(k, 13, NONE | {"tachycardia": 1.0}).heart_rate_ecg_bpm for k in range(2000)]
    assert 170 < max(many) <= 180

    def change(lat):
        "How much RR typically changes from one to the next."
        rr = np.diff(draw_rhythm(lat, 60.0, np.random.default_rng(1))[0])
        return np.median(np.abs(np.diff(rr))) / np.median(rr)

    fast = [change(p) for p in people if p.tachycardia]
    fibrillating = [change(p) for p in people if p.af]
    assert max(fast) < 0.05 and min(fibrillating) > 0.1


def test_events_of_both_recordings_meet():
    "Rates that differ by 20 bpm: mean distance of R, end of systole and atrial systole on each map, cycles."
    table = alignment(24, 21, [(80.0, 60.0), (60.0, 80.0), (90.0, 70.0)], workers=2)
    means = alignment_summary(table)["mean"]
    assert means["atrial", "true"] < 0.015 and means["atrial", "measured"] < 0.02
    for landmarks in ("true", "measured"):
        two = min(means["systole", landmarks], means["linear", landmarks])
        assert means["atrial", landmarks] < 0.75 * two
    events = alignment_summary(table).loc[("atrial", "measured")]
    assert events["atrial_systole"] < 0.02 and events["end_systole"] < 0.04


def test_fibrillation_has_two_landmarks():
    "Nothing stands in for a contraction that does not happen: the phases are those of the systole map."
    n = 0
    for k in range(12):
        lat = draw_latents(k, 3, NONE | {"af": 1.0})
        ecg, _ = simulate_ecg(lat, participant_rng(k, 3, "ecg"), 10.0)
        ecg = standardise_ecg(ecg, 500.0, 50.0)
        beats = find_beats(ecg)
        if not beats.is_irregular or np.isfinite(beats.p_onsets).any():
            continue
        n += 1
        three, is_valid = ecg_phase(ecg, beats, "atrial")
        two, _ = ecg_phase(ecg, beats, "systole")
        np.testing.assert_allclose(three[is_valid], two[is_valid], atol=1e-5)
    assert n >= 9


def test_ectopic_beats_keep_out_of_the_map():
    lat = draw_latents(3, 1, NONE | {"pvc": 1.0})
    ecg, truth = simulate_ecg(lat, participant_rng(3, 1, "ecg"), 10.0)
    ecg = standardise_ecg(ecg, 500.0, 50.0)
    beats = find_beats(ecg)
    phase_T, is_valid_T = ecg_phase(ecg, beats, "atrial")
    ectopic = truth["r_peaks"][truth["is_ectopic"]]
    at = np.abs(beats.r_peaks[:, None] - ectopic).argmin(0)
    assert len(ectopic) and np.isnan(beats.p_onsets[at]).all() and not is_valid_T[ectopic + 20].any()
    onsets = beats.p_onsets[np.isfinite(beats.p_onsets)]
    assert len(onsets) >= 4 and is_valid_T.mean() > 0.5 and phase_T.max() < 1


def test_a_store_keeps_the_landmark(tmp_path):
    cfg = SimulateConfig(out=str(tmp_path / "store"), n=8, n_frames=25, crop_px=64, store=True, workers=1)
    store = simulate_store(cfg, progress=False)
    again = open_store(tmp_path / "store", settings_of(cfg))
    measured = again.quality()
    people = [draw_latents(k, cfg.seed) for k in range(8)]
    p_off = measured.p_ms - [p.pr_ms + 0.45 * p.qrs_ms for p in people]
    kick_off = measured.kick_ms - [atrial_kick_ms(p, p.rr_scan_ms) for p in people]
    assert p_off.notna().sum() >= 6 and p_off.abs().max() < 20
    assert kick_off.notna().sum() >= 4 and kick_off.abs().max() < 25
    np.testing.assert_array_equal(store.quality().kick_ms, measured.kick_ms)
    assert again.settings["phase_map"] == "atrial"
    # a frame at the kick has its canonical phase
    k = int(np.flatnonzero(kick_off.notna())[0])
    at = measured.kick_ms[k] / measured.rr_ms[k] * 25
    phases = again.read("frame_phase_F", [k])[0]
    assert np.interp(at, np.arange(25), phases) == pytest.approx(0.85, abs=0.01)


def test_a_store_of_before_is_refused_in_one_sentence(tmp_path):
    cfg = SimulateConfig(
        out=str(tmp_path / "store"), n=3, n_frames=8, crop_px=32, store=True, workers=1, phase_map="systole"
    )
    simulate_store(cfg, progress=False)
    with pytest.raises(BadInput, match="phase_map"):
        open_store(tmp_path / "store", settings_of(replace(cfg, phase_map="atrial")))
    assert len(open_store(tmp_path / "store", settings_of(cfg)).table) == 3  # the old map works on
    manifest = tmp_path / "store" / "store.json"
    before = json.loads(manifest.read_text()) | {"preparation": 1}
    manifest.write_text(json.dumps(before))
    with pytest.raises(BadInput, match="version 1 of the preparation .* this is version 3"):
        open_store(tmp_path / "store")
