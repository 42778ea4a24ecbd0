"""Feature baselines: classical ECG features against simulated truth that the notebook has not seen, noise,
wrong leads, real recordings; the cells of the comparison.
"""

import numpy as np
import pandas as pd
import pytest
import yaml

from ptacl.base.config import TrainConfig
from ptacl.data.beats import find_beats
from ptacl.data.ecg import resample_ecg, standardise_ecg
from ptacl.data.ecg_files import read_ecg
from ptacl.data.ecg_scaling import fit_scaling, normalise
from ptacl.evaluation.probe import ridge_probe
from ptacl.models.systems import SETTINGS
from ptacl.phantom.body import PREVALENCE, participant_rng
from ptacl.phantom.ecg import simulate_ecg
from ptacl.phantom.latents import draw_latents, repolarisation_ms
from ptacl.studies.classical import FEATURE_UNITS, ecg_features, feature_filler, median_beat
from ptacl.studies.methods import METHODS, Common, comparison_cells, local_weight_curve
from ptacl.studies.strip_summary import LAGS, strip_summary
from ptacl.training.pretraining import PretrainConfig

SEED = 6  # the thresholds of the features were chosen on seed 5
N = 150


def recording(k: int, noise: float = 1.0, prevalence: dict | None = None):
    "Latents and cleaned ECG of a simulated participant."
    lat = draw_latents(k, SEED, prevalence)
    return lat, standardise_ecg(
        simulate_ecg(lat, participant_rng(k, SEED, "ecg"), 10.0, noise)[0], 500.0, 50.0
    )


@pytest.fixture(scope="module")
def cohort() -> tuple[pd.DataFrame, pd.DataFrame]:
    "Features of simulated participants, and their latents."
    pairs = [recording(k) for k in range(N)]
    truth = pd.DataFrame(
        [vars(lat) | dict(qt_ms=repolarisation_ms(lat, lat.rr_ecg_ms)[0]) for lat, _ in pairs]
    )
    return pd.DataFrame([ecg_features(ecg) for _, ecg in pairs]), truth


@pytest.mark.parametrize(
    "feature, column, least_r, largest_bias, without",
    [
        ("heart_rate_bpm", "heart_rate_ecg_bpm", 0.99, 0.5, ("af",)),
        ("pr_ms", "pr_ms", 0.95, 8, ("af",)),
        ("qrs_ms", "qrs_ms", 0.9, 6, ()),
        ("qt_ms", "qt_ms", 0.9, 8, ()),
        ("qrs_axis_deg", "axis_deg", 0.85, 4, ("mi",)),
    ],
)
def test_features_follow_the_truth(cohort, feature, column, least_r, largest_bias, without):
    """Simulated participants of another seed. An infarct turns the axis away from the latent one;
    fibrillation has no P.
    """
    features, truth = cohort
    who = ~truth[list(without)].any(axis=1) if without else np.ones(len(truth), bool)
    found = features[feature][who]
    true = truth[column][who]
    print(
        f"{feature}: r {found.corr(true):.3f}, median error {(found - true).median():+.1f}, SD "
        f"{(found - true).std():.1f} {FEATURE_UNITS[feature]}, {found.notna().mean():.0%} found"
    )
    assert (
        found.corr(true) > least_r
        and abs((found - true).median()) < largest_bias
        and found.notna().mean() > 0.93
    )


def test_voltage_follows_the_gain(cohort):
    """Sokolow-Lyon voltage knows of the latent gain what the phantom's own notebook says it does (r 0.70 in
    healthy men).
    """
    features, truth = cohort
    assert np.corrcoef(features.sokolow_mv, np.log(truth.voltage_gain))[0, 1] > 0.5
    assert np.corrcoef(features.t_V4_mv.abs(), truth.t_gain)[0, 1] > 0.4


def test_fibrillation_has_no_pr():
    found = [
        ecg_features(recording(k, prevalence=dict.fromkeys(PREVALENCE, 0.0) | dict(af=1.0))[1])
        for k in range(12)
    ]
    assert (
        np.mean([np.isnan(f["pr_ms"]) for f in found]) >= 0.75
        and np.median([f["rmssd_ms"] for f in found]) > 80
    )


def test_bundle_branch_block_is_broad():
    "Told apart by QRS alone."
    broad, narrow = (
        [
            ecg_features(recording(k, prevalence=dict.fromkeys(PREVALENCE, 0.0) | dict(lbbb=p))[1])["qrs_ms"]
            for k in range(12)
        ]
        for p in (1.0, 0.0)
    )
    assert np.nanmin(broad) > np.nanmax(narrow) and np.isfinite(broad).mean() > 0.8


def test_rate_noise_and_inversion_change_little():
    "The same ECG at 250 Hz, with three times the noise, with a lead upside down."
    lat, ecg = recording(3, prevalence=dict.fromkeys(PREVALENCE, 0.0))
    own = ecg_features(ecg)
    slow = ecg_features(resample_ecg(ecg, 250.0))
    loud = ecg_features(recording(3, noise=3.0, prevalence=dict.fromkeys(PREVALENCE, 0.0))[1])
    for name, eps in (("heart_rate_bpm", 0.5), ("qrs_ms", 8), ("qt_ms", 10), ("qrs_axis_deg", 5)):
        assert abs(slow[name] - own[name]) < eps, name
        assert abs(loud[name] - own[name]) < 2 * eps, name
    flipped = ecg.signal_LT.copy()
    flipped[8] *= -1
    other = ecg_features(type(ecg)(flipped, ecg.fs, ecg.lead_names, ecg.lead_ok_L))
    assert (
        abs(other["qrs_ms"] - own["qrs_ms"]) < 2
        and other["r_V3_mv"] != own["r_V3_mv"]
        and other["r_V5_mv"] == own["r_V5_mv"]
    )


def test_any_recording_gives_every_feature():
    "Short, silent, noise, all leads but one off: a row of numbers or NaN, and no error."
    _, ecg = recording(1)
    rng = np.random.default_rng(0)
    ok = np.zeros(12, bool)
    ok[1] = True

    def make(x, good=ecg.lead_ok_L):
        return type(ecg)(x.astype(np.float32), ecg.fs, ecg.lead_names, good)

    for case in (
        make(ecg.signal_LT[:, :500]),
        make(ecg.signal_LT[:, :60]),
        make(0 * ecg.signal_LT),
        make(rng.normal(size=(12, 5000))),
        make(ecg.signal_LT * ok[:, None], ok),
    ):
        found = ecg_features(case)
        assert list(found) == list(FEATURE_UNITS) and all(
            isinstance(v, float) and not np.isinf(v) for v in found.values()
        )
    assert abs(found["heart_rate_bpm"] - ecg_features(ecg)["heart_rate_bpm"]) < 1 and np.isnan(
        found["r_V1_mv"]
    )


def test_features_can_be_probed(cohort):
    "They say of LV mass what the phantom links to voltage, and missing PR becomes an indicator."
    features, truth = cohort
    train = slice(0, 100)
    test = slice(100, N)
    filler = feature_filler(features[train])
    x = [filler.transform(features[s]) for s in (train, test)]
    assert (
        np.isfinite(x[0]).all()
        and np.isfinite(x[1]).all()
        and x[0].shape[1] == features.shape[1] + features[train].isna().any().sum()
    )
    scores = (
        ridge_probe(
            x[0], truth[["qrs_ms"]][train], x[1], truth[["qrs_ms"]][test], dict(qrs_ms="ms"), n_boot=50
        )
        .set_index("metric")
        .value
    )
    assert scores["R2"] > 0.8  # what is measured is found again


def test_summary_holds_rate_intervals_and_axis(cohort):
    "The hand-made summary knows of no wave; ridge regression of 100 participants reads them in 50 others."
    ecgs = [recording(k)[1] for k in range(N)]
    scaling = fit_scaling((ecg.signal_LT, ecg.lead_ok_L) for ecg in ecgs[:100])
    z = np.array(
        [
            strip_summary(normalise(ecg.signal_LT[:, :2500], ecg.lead_ok_L, scaling), ecg.lead_ok_L, ecg.fs)
            for ecg in ecgs
        ]
    )
    least = dict(heart_rate_ecg_bpm=0.5, qrs_ms=0.4, pr_ms=0.3, axis_deg=0.5)
    truth = cohort[1][list(least)]
    scores = ridge_probe(
        z[:100],
        truth[:100],
        z[100:],
        truth[100:].reset_index(drop=True),
        dict(heart_rate_ecg_bpm="bpm", qrs_ms="ms", pr_ms="ms", axis_deg="degrees"),
        n_boot=50,
    )
    r2 = scores[scores.metric == "R2"].set_index("phenotype").value
    print(r2.round(2).to_dict())
    assert (r2 > pd.Series(least)).all()


def test_summary_of_any_recording_is_finite():
    "Short, silent, noise, at another rate, all leads off."
    _, ecg = recording(1)
    slow = resample_ecg(ecg, 250.0)
    noise_LT = np.random.default_rng(0).normal(size=(12, 5000))
    none = np.zeros(12, bool)
    for signal_LT, ok_L, fs in (
        (ecg.signal_LT[:, :60], ecg.lead_ok_L, 500.0),
        (0 * ecg.signal_LT, ecg.lead_ok_L, 500.0),
        (noise_LT, ecg.lead_ok_L, 500.0),
        (slow.signal_LT, slow.lead_ok_L, 250.0),
        (ecg.signal_LT, none, 500.0),
    ):
        assert np.isfinite(strip_summary(signal_LT, ok_L, fs)).all()
    at_500 = strip_summary(ecg.signal_LT, ecg.lead_ok_L, 500.0)
    at_250 = strip_summary(slow.signal_LT, slow.lead_ok_L, 250.0)
    for part in (slice(0, LAGS), slice(LAGS, None)):
        assert np.corrcoef(at_500[part], at_250[part])[0, 1] > 0.98


def test_real_recordings_have_plausible_features(real_data):
    "Normal sinus rhythm or not, intervals are those of hearts where they are measured, and most are."
    files = sorted((real_data / "ecg_wfdb").glob("*.hea"))
    found = pd.DataFrame([ecg_features(standardise_ecg(read_ecg(f), 500.0, 50.0)) for f in files])
    print(
        found[["heart_rate_bpm", "pr_ms", "qrs_ms", "qt_ms", "qtc_ms", "sokolow_mv"]]
        .describe()
        .round(1)
        .to_string()
    )
    assert (
        found.qrs_ms.notna().mean() > 0.8
        and 70 < found.qrs_ms.median() < 125
        and 350 < found.qtc_ms.median() < 470
    )
    assert found.heart_rate_bpm.dropna().between(25, 220).all()


def test_cells_agree_with_the_files_and_with_each_other(repo):
    "Methods that have a parameter file are what it says; one recipe for all; every key once."
    for name, params in SETTINGS.items():
        assert yaml.safe_load((repo / "nbs" / "systems" / f"{name}.yaml").read_text()) == params
        if name in METHODS and not METHODS[name].cmr_side:
            assert METHODS[name].params == params
    common = dict(epochs=5, batch_size=32, lr=5e-4, temperature=0.1)
    all_cells = comparison_cells(Common(common, dict(epochs=5)), seeds=(0, 1))
    assert len({c.key for c in all_cells}) == len(all_cells)
    cells = [c for c in all_cells if "n_train" not in c.params]
    # fewer pairs are seen as often as forty passes allow
    assert {c.params["n_train"]: c.params["epochs"] for c in all_cells if c not in cells} == {
        n: min(40, round(5 * 27_951 / n)) for n in (50, 200, 500, 1000, 2000, 8000)
    }
    configs = {c.key: TrainConfig.from_params(c.params) for c in cells if c.params}
    recipe = {
        (
            c.epochs,
            c.batch_size,
            c.lr,
            c.ecg_keep,
            c.noise_mv,
            c.shift_px,
            c.weight_decay,
            c.preset,
            c.window_s,
        )
        for c in configs.values()
    }
    assert len(recipe) == 1 and len(configs) + sum(not c.params for c in cells) == len(cells) == len(
        {c.key for c in cells}
    )
    assert {PretrainConfig.from_params(c.pretrain).epochs for c in cells if c.pretrain} == {5}

    def differ(a, b):
        return {k for k in vars(a) if getattr(a, k) != getattr(b, k)}

    for name, field in dict(
        shuffled_phases="shuffle_phases",
        position_only="position_only",
        linear_phase="phase_map",
        soft_targets="target_concentration",
        no_frame_roll="frame_roll",
        local_10="local_weight",
        local_60="local_weight",
    ).items():
        assert differ(configs[f"{name}-seed0"], configs["ptacl-seed0"]) == {field}, name
    assert differ(configs["ptacl-seed0"], configs["ptacl-seed1"]) == {"seed"}
    assert [configs[f"{n}-seed0"].local_weight for n in local_weight_curve(common).values()] == [
        0.0,
        0.1,
        0.3,
        0.6,
    ]


def test_too_short_for_a_beat():
    _, ecg = recording(2)
    short = type(ecg)(ecg.signal_LT[:, :400], ecg.fs, ecg.lead_names, ecg.lead_ok_L)
    assert median_beat(short, find_beats(short)) is None
