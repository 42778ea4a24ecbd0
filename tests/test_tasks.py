"Both clinical tasks and their statistics: what does not read well in a notebook."

import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from ptacl.base.core import BadInput
from ptacl.evaluation.conditions import condition_probe, predict_conditions, score_classification
from ptacl.evaluation.labels import label_efficiency
from ptacl.evaluation.probe import fit_knn, fit_ridge, knn_probe, predict_phenotypes, ridge_probe
from ptacl.evaluation.search import search_gallery
from ptacl.evaluation.significance import compare_methods, mean_statistics, paired_difference, with_holm
from ptacl.evaluation.similar import (
    ALL,
    NDCG,
    PRECISION,
    phenotype_retrieval,
    similar_by_participant,
    similar_participants,
)

UNITS = {"lvedv_ml": "mL", "lvef": "%", "lvm_g": "g"}


def cohort(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    "ECG and CMR embeddings that hold a trace of three phenotypes, and these, a tenth missing."
    rng = np.random.default_rng(seed)
    heart = rng.normal(size=(n, 3))
    mix = rng.normal(size=(3, 12))
    ecg, cmr = heart @ mix + rng.normal(size=(2, n, 12))
    y = pd.DataFrame(heart * [32, 6, 24] + [150, 60, 95], columns=list(UNITS)).mask(rng.random((n, 3)) < 0.1)
    return ecg, cmr, y


# ---- search in large galleries


def brute(query: np.ndarray, gallery: np.ndarray, k: int, own: np.ndarray) -> np.ndarray:
    "Plain sorting in float64."
    unit = [
        a / np.linalg.norm(a, axis=1, keepdims=True) for a in (query.astype(float), gallery.astype(float))
    ]
    sim = unit[0] @ unit[1].T
    sim[np.arange(len(query)), own] = -np.inf
    return np.argsort(-sim, axis=1)[:, :k]


@pytest.mark.parametrize(
    "n, width, k, blocks",
    [(50, 3, 49, (7, 9)), (700, 2, 5, (700, 3)), (2000, 64, 10, (256, 65_536)), (2000, 8, 300, (33, 512))],
)
def test_blockwise_search_is_exact(n, width, k, blocks):
    rng = np.random.default_rng(n + width)
    gallery = rng.normal(size=(n, width)).astype(np.float32)
    own = rng.choice(n, 40, replace=False)
    query = gallery[own] + 0.1 * rng.normal(size=(40, width)).astype(np.float32)
    found = search_gallery(query, gallery, k, own_Q=own, query_block=blocks[0], gallery_block=blocks[1])
    assert np.array_equal(found.index_QK, brute(query, gallery, k, own))
    assert (np.diff(found.similarity_QK, axis=1) <= 1e-12).all()


def test_search_reads_a_memory_mapped_gallery(tmp_path):
    "A gallery that lies on the disk, read-only, gives the same list as one in memory."
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(5000, 16)).astype(np.float32)
    query = rng.normal(size=(20, 16)).astype(np.float32)
    np.save(tmp_path / "gallery.npy", gallery)
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    assert np.array_equal(
        search_gallery(query, mapped, 7, gallery_block=600).index_QK,
        search_gallery(query, gallery, 7).index_QK,
    )


def test_search_does_not_trust_fast_matrix_products():
    "With torch told to be fast and loose the list is still exact."
    rng = np.random.default_rng(1)
    gallery = rng.normal(size=(3000, 32))
    query = rng.normal(size=(30, 32))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = search_gallery(query, gallery, 9).index_QK
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(found, search_gallery(query, gallery, 9).index_QK)


class FlatIP:
    "FAISS's exact inner-product index as its documentation describes it, in NumPy."

    def __init__(self, width: int):
        self.rows = np.empty((0, width), dtype=np.float32)

    def add(self, rows: np.ndarray):
        assert rows.dtype == np.float32 and rows.flags["C_CONTIGUOUS"]
        self.rows = np.concatenate([self.rows, rows])

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        assert query.dtype == np.float32 and query.flags["C_CONTIGUOUS"]
        sim = query @ self.rows.T
        order = np.argsort(-sim, axis=1)[:, :k]
        return np.take_along_axis(sim, order, axis=1), order


def same_by_both_backends():
    "Torch and FAISS, with and without the own row left out, also where everything ties."
    rng = np.random.default_rng(2)
    gallery = rng.normal(size=(4000, 24)).astype(np.float32)
    own = rng.choice(4000, 50, replace=False)
    query = gallery[own]
    for gallery_own in (None, own):
        by_torch, by_faiss = (
            search_gallery(query, gallery, 10, own_Q=gallery_own, gallery_block=999, backend=b)
            for b in ("torch", "faiss")
        )
        assert np.array_equal(by_torch.index_QK, by_faiss.index_QK)
        assert np.allclose(by_torch.similarity_QK, by_faiss.similarity_QK, atol=1e-12)
    assert by_torch.index_QK.shape == (50, 10) and not (by_faiss.index_QK == own[:, None]).any()
    flat = np.ones((60, 4), dtype=np.float32)
    assert (
        search_gallery(flat[:3], flat, 5, own_Q=[0, 1, 2], backend="faiss").index_QK != np.arange(3)[:, None]
    ).all()


def test_faiss_gives_the_same():
    pytest.importorskip("faiss", reason="FAISS is optional and not installed (pip install faiss-cpu)")
    same_by_both_backends()


def test_faiss_is_called_as_documented(monkeypatch):
    "Where FAISS is not installed, a stand-in with its documented interface shows that our calls fit it."
    monkeypatch.setitem(sys.modules, "faiss", types.SimpleNamespace(IndexFlatIP=FlatIP))
    same_by_both_backends()


@pytest.mark.cuda
def test_search_on_a_gpu_is_exact():
    rng = np.random.default_rng(3)
    gallery = rng.standard_normal((1_000_000, 64), dtype=np.float32)
    query = rng.standard_normal((64, 64), dtype=np.float32)
    on_gpu, on_cpu = (search_gallery(query, gallery, 10, device=d).index_QK for d in ("cuda", "cpu"))
    assert np.array_equal(on_gpu, on_cpu)


# ---- similar participants


def test_own_participant_is_never_found():
    "Perfect pairs and random phenotypes: finding oneself would be nDCG 1; without it retrieval is at chance."
    rng = np.random.default_rng(4)
    z = rng.normal(size=(300, 8))
    y = pd.DataFrame({"lvef": rng.normal(60, 6, 300)})
    table = similar_by_participant(z, z, y, 5).groupby("metric")[["value", "chance"]].mean()
    assert abs(table.value[NDCG] - table.chance[NDCG]) < 0.05 and table.value[PRECISION] < 0.05


def test_similar_participants_ignore_order_scale_and_unit():
    ecg, cmr, y = cohort(90, 5)
    order = np.random.default_rng(6).permutation(90)
    one = similar_participants(ecg, cmr, y, UNITS, ks=(3,), n_boot=20)
    other = similar_participants(
        5 * ecg[order], cmr[order] / 3, (y / 10).iloc[order], UNITS, ks=(3,), n_boot=20
    )
    scale = np.where(one.unit.isin(["mL", "%", "g"]), 10, 1)
    for column in ("value", "chance", "best"):
        assert np.allclose(one[column], other[column] * scale)


def test_gap_in_one_phenotype_leaves_the_other_columns_alone():
    ecg, cmr, y = cohort(90, 7)
    y = y.fillna(y.mean())
    holed = y.copy()
    holed.loc[3, "lvef"] = np.nan
    whole, less = (
        similar_by_participant(ecg, cmr, t, 4).set_index(["phenotype", "metric", "participant"]).value
        for t in (y, holed)
    )
    assert whole["lvm_g"].equals(less["lvm_g"])
    assert len(less["lvef"]) == len(whole["lvef"]) - 3  # one participant, three scores
    assert len(less[ALL]) == len(whole[ALL])  # compared by the phenotypes that are there


def test_better_embeddings_are_better_in_every_score():
    "Between noise and an oracle each score rises, on CMRs and on ECGs, and paired differences see it."
    ecg, cmr, y = cohort(250, 8)
    noise = np.random.default_rng(9).normal(size=ecg.shape)
    sharp, dull = (similar_by_participant(e, cmr, y, 10) for e in (ecg, 0.3 * ecg + 3 * noise))
    values = [
        t[(t.phenotype == ALL) & (t.metric == NDCG)].set_index("participant").value for t in (sharp, dull)
    ]
    d = paired_difference([values[0]], [values[1]], mean_statistics, ["nDCG"]).iloc[0]
    assert d.low > 0 and d.p < 0.01
    near = phenotype_retrieval(ecg, cmr, y, UNITS, k=10)
    assert (near.high < near.chance).all() and (near.low > near.best).all()


# ---- probes


@pytest.mark.parametrize("fit", [fit_ridge, fit_knn])
def test_prediction_does_not_depend_on_other_test_participants(fit):
    ecg, _, y = cohort(150, 10)
    together, alone = (
        predict_phenotypes(ecg[:100], y[:100], rows, fit).iloc[0] for rows in (ecg[100:], ecg[100:101])
    )
    assert np.allclose(together, alone)


def test_probes_never_read_the_test_targets():
    ecg, _, y = cohort(150, 11)
    labels = (y > y.mean()).astype(float).where(y.notna())
    p = predict_conditions(ecg[:100], labels[:100], ecg[100:])
    table = condition_probe(ecg[:100], labels[:100], ecg[100:], labels[100:], min_cases=5, n_boot=20)
    has = labels[100:].notna().to_numpy()
    for name in labels:
        truth = labels[name][100:][has[:, list(labels).index(name)]]
        own = p[name][has[:, list(labels).index(name)]]
        row = table[table.condition == name].set_index("metric").value
        assert np.isclose(row["AUROC"], roc_auc_score(truth, own)) and np.isclose(
            row["AUPRC"], average_precision_score(truth, own)
        )


def test_phenotypes_that_nobody_has_are_rows_without_value():
    ecg, _, y = cohort(90, 12)
    y["lvef"] = np.nan
    for probe in (ridge_probe, knn_probe):
        table = probe(ecg[:60], y[:60], ecg[60:], y[60:], UNITS, calibration=True, n_boot=20).set_index(
            "phenotype"
        )
        assert table.loc["lvef"].value.isna().all() and (table.loc["lvef"].n == 0).all() and len(table) == 15
        assert table.loc["lvm_g"].value.notna().all()


def test_defaults_of_ridge_probe_stay_three_rows():
    "The training notebook gives its own head's scores three units."
    ecg, _, y = cohort(60, 13)
    assert (
        ridge_probe(ecg[:40], y[:40], ecg[40:], y[40:], UNITS, n_boot=10).metric.tolist()
        == ["R2", "Pearson r", "MAE"] * 3
    )


def test_few_cases_are_said():
    "Neither an error nor a number: a row that says why."
    ecg, _, _ = cohort(200, 14)
    labels = pd.DataFrame({"rare": np.arange(200) % 40 == 0, "common": np.arange(200) % 2 == 0}).astype(float)
    table = condition_probe(ecg[:120], labels[:120], ecg[120:], labels[120:], n_boot=20).set_index(
        "condition"
    )
    assert (
        table.loc["rare"].value.isna().all()
        and table.note["rare"].iloc[0] == "3 cases among the training participants, 10 needed"
    )
    assert table.loc["common"].value.notna().all() and (table.note["common"] == "").all()


def test_label_efficiency_uses_no_more_labels_than_it_says():
    "Labels outside the subset may be anything."
    ecg, _, y = cohort(300, 15)
    seen = []

    def spy(train, train_y, test, test_y):
        seen.append(len(train_y))
        return ridge_probe(train, train_y, test, test_y, UNITS, n_boot=5)

    table = label_efficiency(spy, ecg[:200], y[:200], ecg[200:], y[200:], (0.05, 0.5, 1.0), seeds=(0, 1))
    assert seen == [10, 100, 200, 10, 100] and sorted(table.n_labels.unique()) == [10, 100, 200]


def test_bootstrap_without_cases_in_a_resample():
    "Three cases among 40: some resamples have none; the interval is made of the others."
    label = (np.arange(40) < 3).astype(float)
    table = score_classification(label, np.linspace(0.9, 0.1, 40), 0.1, n_boot=300).set_index("metric")
    assert table.value["AUROC"] == 1 and np.isfinite(table[["low", "high"]].to_numpy()).all()


# ---- statistics


def test_pairing_and_family_from_end_to_end():
    "Three encoders on one target: the better is found with a corrected p, equals are not."
    rng = np.random.default_rng(16)
    target = rng.normal(150, 30, 500)
    errors = {
        name: [np.abs(rng.normal(0, sd, 500)) + 0.1 * np.abs(target - 150) for _ in range(2)]
        for name, sd in (("aligned", 10), ("global", 13), ("twin", 10))
    }
    table = with_holm(
        compare_methods(errors, "aligned", mean_statistics, ["MAE"]), "aligned against two, MAE"
    ).set_index("minus")
    assert table.p_holm["global"] < 0.05 and table.value["global"] < 0
    assert table.p_holm["twin"] >= table.p["twin"] > 0.01 and (table.comparisons == 2).all()


def test_unequal_participants_are_refused():
    with pytest.raises(BadInput, match="same participants"):
        paired_difference([np.arange(5.0)], [np.arange(6.0)], mean_statistics, ["x"])
