"""Public ECG sets by their own layouts, written here small with their oddities, and the benchmark on each of
them with encoders whose right numbers are known.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from scipy.io import savemat
from sklearn.metrics import roc_auc_score

from ptacl.base.core import BadInput
from ptacl.data.code15 import CODE_CLASSES, read_code15
from ptacl.data.ecg import STANDARD_LEADS
from ptacl.data.ecg_sets import ECG_SETS, open_ecg_set
from ptacl.data.ptbxl import read_ptbxl
from ptacl.studies.ecg_benchmark import ECGBenchmarkConfig, open_benchmark, score_finetuned, score_frozen
from ptacl.use.adapters import ECG_ADAPTERS, ECGAdapter, open_adapters

QUICK = ECGBenchmarkConfig(n_boot=50, disturbances="", fractions="")
LIMB = np.array([[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]])


def signal(code: float, n: int, seed: int) -> np.ndarray:
    "Twelve leads (12, n), mV; the number is the spread of V6, so that an encoder can read it."
    rng = np.random.default_rng(seed)
    chest = rng.normal(size=(6, n))
    chest[5] *= code / chest[5].std()
    return np.vstack([LIMB @ rng.normal(size=(2, n)), chest])


def write_wfdb(folder: Path, name: str, signal_LT: np.ndarray, fs: int) -> None:
    "A record as PTB-XL and the Challenge have theirs."
    folder.mkdir(parents=True, exist_ok=True)
    wfdb.wrsamp(
        name,
        fs=fs,
        units=["mV"] * 12,
        sig_name=[n.upper() for n in STANDARD_LEADS],
        p_signal=signal_LT.T,
        fmt=["16"] * 12,
        adc_gain=[1000.0] * 12,
        baseline=[0] * 12,
        write_dir=str(folder),
    )


def write_ptbxl(root: Path) -> pd.DataFrame:
    "120 records of 60 people: two records each, likelihood 0, several codes, none of a task, a rare code."
    statements = pd.DataFrame(
        dict(
            diagnostic=[1, 1, 1, np.nan, np.nan],
            form=[np.nan, np.nan, 1, np.nan, np.nan],
            rhythm=[np.nan, np.nan, np.nan, 1, 1],
            diagnostic_class=["NORM", "MI", "STTC", np.nan, np.nan],
            diagnostic_subclass=["NORM", "IMI", "STTC", np.nan, np.nan],
        ),
        index=["NORM", "IMI", "NDT", "SR", "AFIB"],
    )
    kinds = [
        "{'NORM': 100.0, 'SR': 0.0}",
        "{'IMI': 0.0, 'NDT': 50.0, 'SR': 0.0}",
        "{'AFIB': 0.0}",
        "{'IMI': 100.0}",
    ]
    rows = []
    for k in range(120):
        kind = (k // 2) % 4
        write_wfdb(root / "records500" / "00000", f"{k:05}_hr", signal(0.2 * (kind + 1), 1000, k), 500)
        file = f"records500/00000/{k:05}_hr"
        rows.append(
            dict(
                ecg_id=k + 1,
                patient_id=float(k // 2),
                scp_codes=kinds[kind],
                strat_fold=(k // 8) % 10 + 1,
                filename_hr=file,
                filename_lr=file.replace("500", "100"),
            )
        )
    table = pd.DataFrame(rows)
    table.to_csv(root / "ptbxl_database.csv", index=False)
    statements.to_csv(root / "scp_statements.csv")
    return table


def write_cpsc(root: Path) -> None:
    "60 MATLAB structs of different lengths; labels with blanks, a few with three."
    root.mkdir(parents=True)
    rows = []
    for k in range(60):
        kind = k % 3
        data = signal(0.2 * (kind + 1), 3000 + 500 * (k % 2), k)
        savemat(root / f"A{k + 1:04}.mat", dict(ECG=dict(sex="Male", age=60, data=data)))
        three = ([1, "", ""], [2, 5, ""], [5, 7, 8])[kind]
        rows.append([f"A{k + 1:04}", *three])
    columns = ["Recording", "First_label", "Second_label", "Third_label"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "REFERENCE.csv", index=False)


def write_snomed(root: Path) -> None:
    "60 records in two folders; equivalent codes, codes that are not scored, none."
    texts = ("426783006", "59118001,164889003", "713427006, 55827005", "251120003")
    for k in range(60):
        folder = root / f"g{k % 2 + 1}"
        write_wfdb(folder, f"E{k:05}", signal(0.2 * (k % 4 + 1), 1000, k), 500)
        with open(folder / f"E{k:05}.hea", "a") as f:
            f.write(f"# Age: 60\n# Sex: Female\n# Dx: {texts[k % 4]}\n")


def write_code15(root: Path, test_set: bool) -> None:
    "80 exams of 40 people in two files, one of them absent; 7 and 10 s with zeros around; padded ids."
    h5py = pytest.importorskip("h5py", reason="CODE-15 needs pip install -e '.[hdf5]'")
    root.mkdir(parents=True)
    tracings = np.zeros((81, 4096, 12), np.float32)
    rows = []
    for k in range(80):
        n, start = ((2800, 648), (4000, 48))[k % 2]
        kind = (k // 2) % 2
        tracings[k, start : start + n] = signal(0.2 * (kind + 1), n, k).T
        flags = {c: bool(kind) == (c in ("AF", "SB")) for c in CODE_CLASSES}
        rows.append(dict(exam_id=1000 + k, patient_id=k // 2, trace_file="exams_part0.hdf5") | flags)
    rows.append(
        dict(exam_id=1, patient_id=99, trace_file="exams_part1.hdf5") | dict.fromkeys(CODE_CLASSES, False)
    )
    with h5py.File(root / "exams_part0.hdf5", "w") as f:
        f["tracings"] = tracings
        f["exam_id"] = np.r_[np.arange(1000, 1080), 0]
    pd.DataFrame(rows).sample(frac=1, random_state=0).to_csv(root / "exams.csv", index=False)
    if test_set:
        order = [0, 1, 2, 4, 5, 3, *range(6, 12)]
        (root / "data" / "annotations").mkdir(parents=True)
        with h5py.File(root / "data" / "ecg_tracings.hdf5", "w") as f:
            f["tracings"] = tracings[:20][:, :, order]
        flags = pd.DataFrame(rows[:20])[list(CODE_CLASSES)].astype(int)
        flags.to_csv(root / "data" / "annotations" / "gold_standard.csv", index=False)


def reading(eset, name="reads V6"):
    "An encoder that says which spread V6 has: all that the labels of these sets go by."

    def function(windows_BLT, fs):
        size_B = windows_BLT[:, 0].std(1)
        return np.stack([np.abs(size_B - 0.2 * k) < 0.1 for k in range(1, 5)], 1).astype(float)

    return ECGAdapter(name, function, fs=500.0, seconds=2.0, identity="1", leads=("V6",), windows="first")


def check_numbers(eset, task):
    "Labels that can be read give 1, noise gives chance; the macro is the mean of the classes."
    only = replace(eset, tasks={task: eset.tasks[task]})
    scores = score_frozen(reading(eset), only, QUICK)["scores"]
    assert scores.value.tolist() == [1.0] * len(scores) and (scores.low == 1).all()
    noise = replace(
        reading(eset),
        name="noise",
        function=lambda x, fs: np.random.default_rng(0).normal(size=(len(x), 8)),
    )
    alone = replace(only, table=only.table.assign(person=only.table.index))  # the test part has few people
    by_chance = score_frozen(noise, alone, QUICK)["scores"]
    assert by_chance.chance.eq(0.5).all() and by_chance.low[0] < 0.5 < by_chance.high[0]
    of_people = score_frozen(noise, only, QUICK)["scores"]
    tested = only.table.person[only.table.part == "test"]
    assert of_people.value.equals(by_chance.value)
    assert of_people[["low", "high"]].equals(by_chance[["low", "high"]]) != tested.duplicated().any()
    assert by_chance.value[0] == pytest.approx(by_chance.value[1:].mean(), abs=1e-12)


def test_ptbxl(tmp_path):
    table = write_ptbxl(tmp_path)
    eset = open_ecg_set("ptbxl", tmp_path)
    assert {t: len(y) for t, y in eset.tasks.items()} == dict(
        all=120, diagnostic=90, super=90, sub=90, rhythm=90
    )
    assert any(note.startswith("task form: too few cases or controls of NDT") for note in eset.notes)
    assert eset.tasks["super"].sum().to_dict() == dict(MI=60, NORM=30, STTC=30)
    part = table.set_index(table.ecg_id.astype(str)).strat_fold
    assert (eset.table.part == np.where(part <= 8, "train", np.where(part == 9, "val", "test"))).all()
    check_numbers(eset, "super")
    check_numbers(eset, "rhythm")


def test_cpsc2018(tmp_path):
    write_cpsc(tmp_path / "set")
    eset = open_ecg_set("cpsc2018", tmp_path / "set")
    assert eset.tasks["all"].sum().to_dict() == dict(NSR=20, AF=20, RBBB=40, PVC=20, STD=20)
    assert eset.table.part.value_counts().to_dict() == dict(train=48, val=6, test=6)
    check_numbers(eset, "all")


@pytest.mark.parametrize("name", ["georgia", "chapman_ningbo"])
def test_snomed_sets(tmp_path, name):
    write_snomed(tmp_path)
    eset = open_ecg_set(name, tmp_path)
    assert eset.tasks["all"].sum().to_dict() == dict(AF=15, CRBBB=30, NSR=15)
    assert eset.notes == ("30 mentions of codes that are not scored",) and len(eset.table) == 60
    check_numbers(eset, "all")


@pytest.mark.parametrize("test_set", [False, True])
def test_code15(tmp_path, test_set):
    write_code15(tmp_path / "set", test_set)
    eset = open_ecg_set("code15", tmp_path / "set")
    assert eset.notes == ("1 of 2 files are there",)
    assert len(eset.table) == 80 + 20 * test_set
    assert {eset.read(r).duration_s for r in eset.table.index} == {7.0, 10.0}
    first = eset.read("1000").signal_LT
    np.testing.assert_allclose(first, signal(0.2, 2800, 0), atol=1e-6)
    if test_set:  # written in another order of leads
        np.testing.assert_allclose(eset.read("test-0").signal_LT, first, atol=1e-6)
        assert (eset.table.part == "test").sum() == 20
    people = eset.table.groupby("person").part.nunique()
    assert (people == 1).all()
    check_numbers(eset, "all")


def test_code15_refusals(tmp_path):
    h5py = pytest.importorskip("h5py")
    write_code15(tmp_path / "set", True)
    root = tmp_path / "set"
    exams = pd.read_csv(root / "exams.csv")
    for changed, said in (
        (exams.drop(columns="patient_id"), "has no column patient_id"),
        (exams.drop(columns="AF"), "has no column AF"),
        (exams.replace({"exam_id": {1003: 5}}), "exam 5 is not in exams_part0.hdf5"),
        (exams.assign(trace_file="other.hdf5"), "holds none of the files that exams.csv names"),
    ):
        changed.to_csv(root / "exams.csv", index=False)
        with pytest.raises(BadInput, match=said):
            read_code15(root)
    exams.to_csv(root / "exams.csv", index=False)
    (root / "data" / "annotations" / "gold_standard.csv").unlink()
    with pytest.raises(BadInput, match="gold_standard.csv: no such file"):
        read_code15(root)
    with h5py.File(root / "exams_part0.hdf5", "a") as f:
        del f["exam_id"]
    with pytest.raises(BadInput, match="has no exam_id"):
        read_code15(root)
    (root / "exams_part0.hdf5").write_text("x")
    with pytest.raises(BadInput, match="not a readable HDF5 file"):
        read_code15(root)
    (root / "exams.csv").unlink()
    with pytest.raises(BadInput, match="exams.csv: no such file"):
        read_code15(root)


def test_people_in_two_folds_are_refused(tmp_path):
    table = write_ptbxl(tmp_path)
    table.assign(patient_id=table.ecg_id % 7).to_csv(tmp_path / "ptbxl_database.csv", index=False)
    with pytest.raises(BadInput, match="7 people are in more than one part, first 0 .train and val and test"):
        read_ptbxl(tmp_path)


def test_a_stratified_draw_by_person(tmp_path):
    write_ptbxl(tmp_path)
    some = open_ecg_set("ptbxl", tmp_path, tasks=("super",), n=60)
    assert 58 <= len(some.table) <= 62 and set(some.table.groupby("person").size()) == {2}
    whole = open_ecg_set("ptbxl", tmp_path).tasks["super"].mean()
    assert (some.tasks["super"].mean() - whole).abs().max() < 0.06
    with pytest.raises(BadInput, match="`n` is 3: class .* Raise n"):
        open_ecg_set("ptbxl", tmp_path, n=3)


def test_kept_embeddings_are_taken_and_made_anew_where_a_file_changed(tmp_path):
    write_ptbxl(tmp_path / "set")
    eset = open_ecg_set("ptbxl", tmp_path / "set", tasks=("super",))
    asked = []

    def counted(x, fs):
        asked.append(len(x))
        return x.std(2)

    adapter = replace(reading(eset), function=counted)
    cfg = replace(QUICK, cache=str(tmp_path / "cache"))
    first = score_frozen(adapter, eset, cfg)["scores"]
    again = score_frozen(adapter, eset, cfg)["scores"]
    assert sum(asked) == 120 and first.equals(again)
    header = Path(eset.table.file.iloc[3])
    header.write_text(header.read_text() + "# changed\n")
    score_frozen(adapter, eset, cfg)
    score_frozen(replace(adapter, identity="2"), eset, cfg)
    assert sum(asked) == 120 + 1 + 120
    kept = sorted((tmp_path / "cache").iterdir())
    assert len(kept) == 2 and {p.suffix for p in kept} == {".safetensors"}
    kept[0].write_bytes(b"spoiled")
    kept[1].write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be read and is made anew"):
        assert score_frozen(adapter, eset, cfg)["scores"].equals(first)


def test_fine_tuned_intervals_are_of_people(tmp_path):
    "Both records of a person are drawn together; the score itself asks nobody whose they are."
    write_ptbxl(tmp_path)
    eset = open_ecg_set("ptbxl", tmp_path, tasks=("super",))
    alone = replace(eset, table=eset.table.assign(person=eset.table.index))
    untrained = open_adapters(["untrained"])[0]
    of_people, of_records = (
        score_finetuned(untrained, each, replace(QUICK, epochs=1)) for each in (eset, alone)
    )
    assert of_people.value.equals(of_records.value)
    assert (of_people[["low", "high"]] != of_records[["low", "high"]]).any(axis=None)


def test_fewer_labels_and_disturbed_recordings(tmp_path):
    "Without its lead the encoder knows nothing; at 100 Hz it knows what it knew."
    write_ptbxl(tmp_path)
    eset = open_ecg_set("ptbxl", tmp_path, tasks=("super",))
    cfg = replace(QUICK, disturbances="chest_lost,noise", fractions="0.5,1")
    found = score_frozen(reading(eset), eset, cfg)
    disturbed = found["disturbed"].set_index("disturbance").value
    assert disturbed["chest_lost"] == 0.5 and disturbed["noise"] <= 1
    labels = found["labels"].set_index("fraction")
    assert labels.n_labels.to_dict() == {
        0.5: labels.n_labels[1.0] // 2,
        1.0: len(eset.labels("super", "train")),
    }
    assert labels.value[1.0] == found["scores"].value[0] == 1


def test_everything_is_refused_before_work(tmp_path):
    write_ptbxl(tmp_path)
    asked = dict(folder=str(tmp_path), encoders="watched", tasks="super")

    def never(x, fs):
        raise AssertionError("an encoder was run")

    ECG_ADAPTERS["watched"] = lambda: replace(reading(None), function=never)
    try:
        for changed, said in (
            (dict(set="ptb-xl"), "ptb-xl"),
            (dict(folder=str(tmp_path / "no")), "no such folder"),
            (dict(tasks="supper"), "has no task 'supper'"),
            (dict(encoders="watched,none"), "`encoders` names 'none'"),
            (dict(n=2), "`n` is 2: class"),
            (dict(mode="fine-tune"), "is a function without weights to train"),
        ):
            with pytest.raises(BadInput, match=said):
                open_benchmark(ECGBenchmarkConfig(**asked | changed))
        (tmp_path / "records500" / "00000" / "00000_hr.hea").write_text("nothing")
        with pytest.raises(BadInput):
            open_benchmark(ECGBenchmarkConfig(**asked))
        (tmp_path / "scp_statements.csv").unlink()
        with pytest.raises(BadInput, match="scp_statements.csv: no such file"):
            open_benchmark(ECGBenchmarkConfig(**asked))
    finally:
        del ECG_ADAPTERS["watched"]


def test_chance_is_a_half_whatever_the_classes():
    "Scores drawn without looking: the mean over many draws, exactly computed for small ones."
    from itertools import permutations

    label = [1, 1, 0, 0, 0]
    every = [roc_auc_score(label, p) for p in permutations(range(5))]
    assert np.mean(every) == pytest.approx(0.5)


def test_all_sets_are_tested():
    assert set(ECG_SETS) == {"ptbxl", "cpsc2018", "georgia", "chapman_ningbo", "code15"}
