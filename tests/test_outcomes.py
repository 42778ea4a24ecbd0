"""Risk over time: R's and the libraries' published figures, UK Biobank's fields, bad input, the phantom's
outcomes, and the experiments that show them.
"""

import json
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.datasets import load_lung, load_rossi
from lifelines.utils import concordance_index

from ptacl.base.core import BadInput, samples_dir
from ptacl.data.cohort import phenotype_columns, read_cohort
from ptacl.data.store import open_store
from ptacl.evaluation.concordance import harrell_c, horizon_auc, score_risks, uno_c
from ptacl.evaluation.cox import cox_log_likelihood, fit_cox
from ptacl.evaluation.outcomes import (
    PLACEHOLDERS,
    outcome_from_columns,
    outcome_from_dates,
    ukbb_outcome,
)
from ptacl.evaluation.risk import kaplan_meier, likelihood_ratio
from ptacl.phantom.cohort import row_alone, write_cohort
from ptacl.phantom.outcomes import LOG_RATIOS, OUTCOMES, draw_outcomes, folder_outcomes, risk_factors
from ptacl.phantom.simulated_store import SimulateConfig, simulate_store
from ptacl.studies.cells import check_comparison, run_cell
from ptacl.studies.comparison import CompareConfig, cells_of
from ptacl.studies.comparison_tables import comparison_tables
from ptacl.studies.launch import run_notebook
from ptacl.studies.one_run import EvaluateConfig, open_trained

HERE = Path(__file__).parent
ROSSI = ["fin", "age", "race", "wexp", "mar", "paro", "prio"]


@pytest.fixture(scope="module")
def rossi():
    return load_rossi()


@pytest.fixture(scope="module")
def veteran():
    """The lung cancer trial of the Veterans' Administration (Kalbfleisch and Prentice 1980), 137 men; prior
    therapy is 0 or 10, as R's `survival` has it.
    """
    return pd.read_csv(HERE / "veteran.csv")


# ---- published figures


def test_rossi_as_r_and_lifelines_have_it(rossi):
    "coxph(Surv(week, arrest) ~ fin+age+race+wexp+mar+paro+prio): coefficients, likelihoods, concordance."
    model = fit_cox(rossi[ROSSI], rossi.week, rossi.arrest, penalties=[0.0])
    library = CoxPHFitter().fit(rossi, "week", "arrest")
    per_unit = model.coef_K / model.scale_K
    np.testing.assert_allclose(per_unit, library.params_[ROSSI], rtol=0, atol=1e-6)
    r = [-0.37942, -0.05744, 0.31390, -0.14980, -0.43370, -0.08487, 0.09150]
    np.testing.assert_allclose(per_unit, r, rtol=0, atol=6e-6)
    risk = model.risk(rossi[ROSSI])
    # R prints loglik -675.3806 and -658.7477, a likelihood ratio of 33.27 and a concordance of 0.64
    assert cox_log_likelihood(rossi.week, rossi.arrest, risk) == pytest.approx(-658.7477, abs=1e-4)
    none = cox_log_likelihood(rossi.week, rossi.arrest, np.zeros(432))
    assert none == pytest.approx(-675.3806, abs=1e-4)
    ratio = 2 * (cox_log_likelihood(rossi.week, rossi.arrest, risk) - none)
    assert ratio == pytest.approx(33.27, abs=5e-3)
    assert harrell_c(rossi.week, rossi.arrest, risk) == concordance_index(rossi.week, -risk, rossi.arrest)
    assert harrell_c(rossi.week, rossi.arrest, risk) == pytest.approx(0.6403, abs=5e-5)


def test_veteran_as_r_has_it(veteran):
    "coxph(Surv(time, status) ~ trt + celltype + karno + diagtime + age + prior): as R prints it."
    names = ["trt", "small", "adeno", "large", "karno", "diagtime", "age", "prior"]
    model = fit_cox(veteran[names], veteran.time, veteran.status, penalties=[0.0])
    # summary(coxph(Surv(time, status) ~ ., veteran))$coefficients, printed in mayer79/missRanger,
    # vignettes/working_with_censoring.Rmd
    r = [2.946028e-01, 8.615605e-01, 1.196066e00, 4.012917e-01, -3.281533e-02, 8.132051e-05, -8.706475e-03]
    np.testing.assert_allclose(model.coef_K / model.scale_K, [*r, 7.159360e-03], rtol=6e-7)
    risk = model.risk(veteran[names])
    none = cox_log_likelihood(veteran.time, veteran.status, np.zeros(137))
    ratio = 2 * (cox_log_likelihood(veteran.time, veteran.status, risk) - none)
    assert ratio == pytest.approx(62.1, abs=0.05)
    assert harrell_c(veteran.time, veteran.status, risk) == pytest.approx(0.736, abs=5e-4)


@pytest.mark.parametrize("which, median", [("veteran", 80), ("lung", 310)])
def test_kaplan_meier_as_r_and_lifelines_have_it(which, median, veteran):
    "survfit(Surv(time, status) ~ 1): the medians that R prints; every step as lifelines has it."
    data = veteran if which == "veteran" else load_lung()
    curve = kaplan_meier(data.time, data.status)
    assert curve.time[curve.survival <= 0.5].iloc[0] == median
    fitter = KaplanMeierFitter().fit(data.time, data.status)
    np.testing.assert_allclose(curve.survival, fitter.survival_function_.iloc[:, 0], rtol=0, atol=1e-12)
    # by hand
    steps = [1 - ((data.time == t) & (data.status == 1)).sum() / (data.time >= t).sum() for t in curve.time]
    np.testing.assert_allclose(curve.survival, np.cumprod(steps), rtol=0, atol=1e-9)


def test_uno_and_auc_as_scikit_survival_has_them(rossi):
    "Values that scikit-survival 0.28.0 gave once: concordance_index_ipcw and cumulative_dynamic_auc."
    risk = fit_cox(rossi[ROSSI], rossi.week, rossi.arrest, penalties=[0.0]).risk(rossi[ROSSI])
    assert uno_c(rossi.week, rossi.arrest, risk, 52) == pytest.approx(0.6437908496732027, abs=1e-9)
    assert uno_c(rossi.week, rossi.arrest, -rossi.age, 30) == pytest.approx(0.5403090792015454, abs=1e-9)
    lung = load_lung().dropna(subset=["age", "sex", "ph.ecog"])
    assert horizon_auc(lung.time, lung.status, -lung.age, 500) == pytest.approx(0.44021396, abs=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_c_with_ties_is_exact(seed):
    "Few values of time and risk, so that ties are everywhere: as a double loop and as lifelines."
    rng = np.random.default_rng(seed)
    time = rng.integers(1, 6, 60).astype(float)
    event = rng.random(60) < 0.6
    risk = rng.integers(0, 4, 60).astype(float)
    right = pairs = 0.0
    for i in np.flatnonzero(event):
        for j in range(60):
            if time[j] > time[i] or (time[j] == time[i] and not event[j]):
                pairs += 1
                right += (risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j])
    assert harrell_c(time, event, risk) == right / pairs == concordance_index(time, -risk, event)


def test_order_of_people_does_not_matter(rossi):
    "Unsorted rows give what sorted ones give."
    mixed = rossi.sample(frac=1, random_state=3)
    scores = []
    for t in (rossi.sort_values("week"), mixed):
        model = fit_cox(t[ROSSI], t.week, t.arrest, penalties=[1.0])
        risk = model.risk(rossi[ROSSI])
        of_all = [f(rossi.week, rossi.arrest, risk, 40) for f in (uno_c, horizon_auc)]
        scores.append([*model.coef_K, cox_log_likelihood(t.week, t.arrest, model.risk(t[ROSSI])), *of_all])
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-8)


def test_likelihood_ratio_has_its_distribution():
    "A risk that is noise: p is below 0.05 in about one of twenty (of 200, 3 to 20)."
    rng = np.random.default_rng(0)
    small = 0
    for _ in range(200):
        base = rng.normal(size=150)
        after = rng.exponential(1 / np.exp(base))
        time = np.minimum(after, 1.0)
        small += likelihood_ratio(time, after <= 1, base, base + rng.normal(size=150))[1] < 0.05
    assert 3 <= small <= 20


def test_intervals_of_differences_are_paired(rossi):
    "The interval of a difference of two nearly equal risks is far narrower than theirs."
    risk = fit_cox(rossi[ROSSI], rossi.week, rossi.arrest, penalties=[0.0]).risk(rossi[ROSSI])
    risks = dict(a=risk, b=risk + 0.01 * rossi.age)
    table = score_risks(rossi.week, rossi.arrest, risks, 40, reference="a", n_boot=200)
    width = (table.high - table.low)[table.metric == "C"].set_axis(["a", "b", "b - a"])
    assert width["b - a"] < 0.3 * width["a"]


# ---- UK Biobank


HEADERS = {
    "csv": "{}-{}.{}",
    "r": "f.{}.{}.{}",
    "rap": "p{}_i{}_a{}",
}
CELLS = [  # eid, visit, first date, its second source, death, second death certificate, lost -> years, event
    ("1", "2016-03-01", "2018-03-01", "", "", "", "", 730, True),
    ("2", "2016-03-01", "2018-03-01", "2017-03-01", "", "", "", 365, True),
    ("3", "2016-03-01", "", "", "2020-03-01", "", "", 1461, False),
    ("4", "2016-03-01", "", "", "", "2020-03-01", "", 1461, False),
    ("5", "2016-03-01", "", "", "", "", "2017-03-01", 365, False),
    ("6", "2016-03-01", "", "", "", "", "", 2435, False),
    ("7", "2016-03-01", "2016-03-01", "", "", "", "", None, False),
    ("8", "2016-03-01", "1902-02-02", "", "", "", "", None, False),
    ("9", "2016-03-01", "1900-01-01", "", "", "", "", None, False),
    ("10", "", "2018-03-01", "", "", "", "", None, False),
    # unknown in one source, known in another; and an event on the day of death
    ("11", "2016-03-01", "1900-01-01", "2018-03-01", "", "", "", 730, True),
    ("12", "2016-03-01", "2018-03-01", "", "2018-03-01", "", "", 730, True),
]


@pytest.mark.parametrize("style", HEADERS)
def test_ukbb_fields(style, tmp_path):
    fields = [(53, 2, 0), (131354, 0, 0), (131356, 0, 0), (40000, 0, 0), (40000, 1, 0), (191, 0, 0)]
    header = ["f.eid" if style == "r" else "eid", *(HEADERS[style].format(*f) for f in fields)]
    lines = [header, *(row[:7] for row in reversed(CELLS))]
    (tmp_path / "t.csv").write_text("\n".join(",".join(line) for line in lines) + "\n")
    table, outcome = ukbb_outcome(tmp_path / "t.csv", "hf", [131354, 131356], "2022-10-31")
    found = table.set_index("participant_id").loc[[row[0] for row in CELLS]]
    days = [np.nan if row[7] is None else row[7] / 365.25 for row in CELLS]
    np.testing.assert_allclose(found.time_hf_y, days, rtol=0, atol=1e-12)
    assert found.event_hf.fillna(0).astype(bool).tolist() == [row[8] for row in CELLS]
    assert outcome.left_out == {"no date of the visit": 1, "prevalent": 2, "date unknown": 1}
    # death of any cause, by either certificate
    _, death = ukbb_outcome(tmp_path / "t.csv", "death", [40000], "2022-10-31")
    assert death.n_events == 3 and death.left_out == {"no date of the visit": 1}


@pytest.mark.parametrize("date", PLACEHOLDERS)
def test_every_placeholder(date):
    "None of them becomes a date: before birth it would be prevalent, in 2037 an event after the end."
    visit = pd.Series(["2016-03-01"] * 2)
    outcome = outcome_from_dates("hf", visit, pd.Series([date, "2017-03-01"]), "2022-10-31")
    why = "prevalent" if date in ("1902-02-02", "1903-03-03") else "date unknown"
    assert (
        outcome.left_out == {why: 1}
        and np.isnan(outcome.time_y[0])
        and outcome.event.tolist() == [False, True]
    )


def test_end_of_each_country():
    "The end of follow-up may differ between people."
    visit = pd.Series(["2016-03-01"] * 3)
    event = pd.Series(["", "", "2017-03-01"])
    end = pd.Series(["2022-10-31", "2018-03-01", "2018-03-01"])
    days = outcome_from_dates("hf", visit, event, end).time_y * 365.25
    np.testing.assert_allclose(days, [2435, 730, 365], atol=1e-9)


# ---- bad input: one clear refusal each


GOOD = dict(time=[1.0, 2.0, 3.0, 4.0], event=[1, 0, 1, 0])
BAD_COLUMNS = [
    (dict(time=[-1.0, 2, 3, 4]), "1 times are negative, the least is -1"),
    (dict(time=["a", 2, 3, 4]), "1 cells are no number, the first is 'a'"),
    (dict(time=[np.inf, 2, 3, 4]), "1 cells are no number"),
    (dict(time=[np.nan, 2, 3, 4]), "1 rows have a value in only one of"),
    (dict(event=[2, 0, 1, 0]), "holds 2. Write 1 where the event ended the time"),
    (dict(event=[0.5, 0, 1, 0]), "holds 0.5"),
    (dict(event=["yes", "no", "no", "no"]), "4 cells are no number, the first is 'yes'"),
    (dict(event=[0, 0, 0, 0]), "nobody had the event"),
    (dict(time=[np.nan] * 4, event=[np.nan] * 4), "nobody has a time"),
]


@pytest.mark.parametrize("changes, says", BAD_COLUMNS, ids=[says for _, says in BAD_COLUMNS])
def test_bad_columns(changes, says):
    with pytest.raises(BadInput) as error:
        outcome_from_columns(pd.DataFrame(GOOD | changes), "time", "event")
    assert says in str(error.value) and error.value.remedy


@pytest.mark.parametrize(
    "which, says",
    [("tme", "the table has no such column. Did you mean `time`?"), ("years", "Name a column of the table")],
)
def test_missing_column(which, says):
    with pytest.raises(BadInput, match=says.replace("?", r"\?")):
        outcome_from_columns(pd.DataFrame(GOOD), which, "event")


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(time=[1.0, 2.0, 3.0]), "Pass one value a participant"),
        (dict(time=[1.0, 2.0, np.nan, 4.0]), "values are NaN or infinite"),
        (dict(time=[-1.0, 2.0, 3.0, 4.0]), "holds -1"),
        (dict(event=[1, 0, 3, 0]), "holds 3. Pass 1 where the event"),
        (dict(event=[0, 0, 0, 0]), "nobody had it"),
        (dict(risk=[0.0, 0.0, np.inf, 0.0]), "values are NaN or infinite"),
    ],
)
def test_bad_arrays_of_every_score(changes, says):
    a = GOOD | dict(risk=[0.3, 0.1, 0.2, 0.0]) | changes
    for score in (harrell_c, cox_log_likelihood):
        with pytest.raises(BadInput, match=says):
            score(a["time"], a["event"], a["risk"])
    with pytest.raises(BadInput, match=says):
        uno_c(a["time"], a["event"], a["risk"], 4)


# ---- the phantom


def test_existing_numbers_stay(tmp_path):
    "Outcomes add columns to the table, and touch nothing else: recordings, recipe, other columns."
    how = dict(n=4, seed=9, n_frames=8, size_px=48)
    plain = write_cohort(tmp_path / "plain", **how)
    followed = write_cohort(tmp_path / "followed", **how, follow_up_y=10.0)
    tables = [pd.read_csv(p / "participants.tsv", sep="\t", dtype=str) for p in (plain, followed)]
    assert tables[1][list(tables[0])].equals(tables[0])
    new = [c for c in tables[1] if c not in tables[0]]
    assert new == [k.format(n) for n in OUTCOMES for k in ("time_{}_y", "event_{}", "truth_risk_{}")]
    files = [p for p in plain.rglob("*") if p.is_file() and p.parent != plain]
    assert len(files) >= 12
    assert all((followed / f.relative_to(plain)).read_bytes() == f.read_bytes() for f in files)
    assert "follow_up_y" not in json.loads((plain / "recipe.json").read_text())
    assert json.loads((followed / "recipe.json").read_text())["follow_up_y"] == 10.0
    with pytest.raises(BadInput, match="was begun as"):
        write_cohort(plain, **how, follow_up_y=10.0)
    # a cohort that exists gets the same ones afterwards
    later = folder_outcomes(plain, 10.0)
    cohort = read_cohort(followed)
    pd.testing.assert_frame_equal(later[new], cohort.table[new].reset_index(drop=True), check_dtype=False)
    assert set(phenotype_columns(cohort)) == set(phenotype_columns(read_cohort(plain)))
    assert cohort.descriptions["time_hf_y"]["unit"] == "years"


def test_store_has_what_the_cohort_has(tmp_path):
    small = dict(n=5, n_val=1, n_test=2, frames=10, size=48, n_frames=8, crop_px=16, seed=9)
    cfg = SimulateConfig(store=True, **small, follow_up_y=10.0)
    table = simulate_store(cfg, tmp_path / "s", progress=False).cohort().table
    plain = simulate_store(SimulateConfig(store=True, **small), tmp_path / "p", progress=False)
    later = folder_outcomes(tmp_path / "p", 10.0).set_index("participant_id")
    both = table.set_index("participant_id")[list(later)].loc[later.index]
    pd.testing.assert_frame_equal(both, later, check_dtype=False)
    old = plain.cohort().table
    assert table[list(old)].equals(old)
    for name in ("signal_LT", "cine_FHW"):
        opened = [open_store(tmp_path / k) for k in ("s", "p")]
        values = [s.read(name, s.rows) for s in opened]
        assert np.array_equal(*values)
    # grown by one, nobody changes
    grown = simulate_store(SimulateConfig(**vars(cfg) | dict(n=6)), tmp_path / "s", progress=False)
    again = grown.cohort().table.set_index("participant_id")[list(later)].loc[later.index]
    assert again.equals(both)


@pytest.fixture(scope="module")
def simulated():
    "12,000 simulated people without recordings, and their outcomes."
    rows = pd.DataFrame([row_alone(k, 21) for k in range(12_000)])
    return rows, draw_outcomes(rows, 21, 10.0)


def test_events_are_as_rare_as_in_uk_biobank(simulated):
    rows, drawn = simulated
    share = {name: drawn[f"event_{name}"].mean() for name in OUTCOMES}
    for name, expected in dict(hf=0.02, af=0.035, mi=0.02, death=0.03).items():
        assert 0.01 <= share[name] <= 0.04 and share[name] == pytest.approx(expected, abs=0.005)
    assert drawn.time_af_y.isna().equals(rows.af == 1) and drawn.time_mi_y.isna().equals(rows.mi == 1)
    followed = drawn.time_death_y[drawn.event_death == 0]
    assert followed.quantile(0.02) > 3.9 and followed.max() <= 10.01


@pytest.mark.parametrize("name", OUTCOMES)
def test_cox_finds_the_ratios_that_were_put_in(name, simulated):
    "Each log ratio within three standard errors, and the true risk is the best: C has a ceiling."
    rows, drawn = simulated
    known = drawn[f"time_{name}_y"].notna()
    x = risk_factors(rows)[list(LOG_RATIOS[name])][known]
    time = drawn[f"time_{name}_y"][known]
    event = drawn[f"event_{name}"][known]
    fitted = CoxPHFitter().fit(x.assign(time=time, event=event), "time", "event")
    z = (fitted.params_ - pd.Series(LOG_RATIOS[name])) / fitted.standard_errors_
    assert z.abs().max() < 3
    truth = drawn[f"truth_risk_{name}"][known]
    ceiling = harrell_c(time, event, truth)
    assert harrell_c(time, event, x.age) < ceiling and 0.6 < ceiling < 0.85
    assert harrell_c(time, event, fitted.predict_log_partial_hazard(x)) == pytest.approx(ceiling, abs=0.012)


# ---- in the experiments


@pytest.fixture(scope="module")
def with_outcome(tmp_path_factory):
    "The samples with an outcome that half of them have, the sooner the older; one in eight had it before."
    folder = tmp_path_factory.mktemp("cohort") / "samples"
    shutil.copytree(samples_dir(), folder)
    table = pd.read_csv(folder / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    rng = np.random.default_rng(0)
    after = rng.exponential(2 / np.exp((table.age.astype(float) - 62) / 7))
    before = np.arange(len(table)) % 8 == 0
    table["time_hf_y"] = np.where(before, "", np.minimum(after, 8).round(3).astype(str))
    table["event_hf"] = np.where(before, "", (after <= 8).astype(int).astype(str))
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


def test_compare_has_a_table_of_outcomes(with_outcome, tmp_path):
    cfg = CompareConfig(
        data=str(with_outcome),
        out=str(tmp_path / "c"),
        methods="demographics,random,ptacl",
        recipe="epochs 1, batch_size 16, n_frames 4, cine_keep 1, crop_px 16, window_s 1.0, phase_bins 4, "
        "accelerator cpu, eval_every 1",
        workers=1,
        n_boot=20,
        conditions="",
        outcomes="hf",
    )
    cells = cells_of(cfg)
    wrong = [("time_hf_y:event_hft", "Did you mean `event_hf`?"), ("af", "there are no columns `time_af_y`")]
    for text, says in wrong:
        other = CompareConfig(**vars(cfg) | dict(outcomes=text))
        with pytest.raises(BadInput) as error:
            check_comparison(cells_of(other), other)
        assert says in str(error.value)
    check_comparison(cells, cfg)
    for cell in cells:
        run_cell(cell, cfg)
    table = comparison_tables(cfg)["outcomes"].set_index(["outcome", "method"])
    assert set(table.index.get_level_values(0)) == {"mean C", "C hf"}
    held_out = pd.read_csv(tmp_path / "c" / "demographics-seed0" / "held_out.tsv", sep="\t")
    known = held_out.dropna(subset=["risk_hf"])
    assert 10 < len(known) < len(held_out)
    expected = harrell_c(known.time_hf, known.event_hf, known.risk_hf)
    row = table.loc[("C hf", "demographics")]
    assert row.value == pytest.approx(expected, abs=1e-4)
    assert row.less == pytest.approx(table.value["C hf", "ptacl"] - row.value, abs=1e-9)
    assert np.isnan(table.less["C hf", "ptacl"])
    assert (tmp_path / "c" / "outcomes.tsv").is_file()


def test_evaluate_shows_outcomes(repo, with_outcome, tmp_path):
    params = dict(
        n_boot=20, phenotypes="lvef", data=str(with_outcome), outcomes="hf", out=str(tmp_path / "t")
    )
    page = run_notebook(repo / "nbs" / "evaluate.ipynb", tmp_path / "evaluate.ipynb", params, progress=False)
    text = "".join(o.get("text", "") for c in nbformat.read(page, 4).cells for o in c.get("outputs", []))
    assert "hf: {'train': 42, 'train_events':" in text and "'empty cells': " in text
    gain = pd.read_csv(tmp_path / "t" / "gain_hf.tsv", sep="\t")
    assert gain.metric.tolist()[0] == "C, difference" and gain.metric.tolist()[-1] == "likelihood ratio"
    assert (tmp_path / "t" / "risk_hf.tsv").is_file() and (
        tmp_path / "t" / "risk_calibration_hf.tsv"
    ).is_file()


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(outcomes="hff"), "there are no columns `time_hff_y` and `event_hff`"),
        (dict(outcomes="age:sex"), "cells are no number"),
        (dict(base="age,smoking"), "there is no column `smoking`"),
        (dict(horizon_y=20.0), "`horizon_y`|horizon_y: is 20"),
    ],
)
def test_evaluate_refuses_before_it_embeds(changes, says, with_outcome, monkeypatch):
    monkeypatch.setattr("ptacl.studies.one_run.embed_pairs", lambda *_: pytest.fail("embedded"))
    with pytest.raises(BadInput, match=says):
        open_trained(EvaluateConfig(**dict(data=str(with_outcome), outcomes="hf") | changes))
