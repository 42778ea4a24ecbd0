"""A person with several rows is in one part, whoever divides."""

import shutil

import pandas as pd
import pytest

from ptacl.base.config import TrainConfig
from ptacl.base.core import BadInput, samples_dir
from ptacl.data.batches import load_data
from ptacl.data.cohort import phenotype_columns, read_cohort
from ptacl.data.prepare import PrepareConfig, prepare_cohort
from ptacl.data.table import write_split
from ptacl.training.finetune import label_share, validation_part

CFG = TrainConfig(window_s=1.0, crop_px=16, n_frames=4, cine_keep=1.0, workers=1)


@pytest.fixture
def folder(tmp_path):
    "The samples, four rows a person; without a split."
    shutil.copytree(samples_dir(), tmp_path / "cohort")
    path = tmp_path / "cohort" / "participants.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    table["person_id"] = [str(1000 + k // 4) for k in range(len(table))]
    table.drop(columns="split", errors="ignore").to_csv(path, sep="\t", index=False)
    return tmp_path / "cohort"


def leaked(table):
    "Share of the test rows whose person is in training."
    test = table[table.split == "test"]
    return test.person_id.isin(table.person_id[table.split == "train"]).mean()


def test_rows_of_a_person_are_in_one_part(folder, tmp_path):
    "By their names every test row had its person in training."
    cohort = read_cohort(folder)
    assert set(cohort.table.split) == {"train", "test"}
    assert leaked(cohort.table) == 0
    path = folder / "participants.tsv"
    text = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    text.drop(columns="person_id").to_csv(path, sep="\t", index=False)
    by_name = read_cohort(folder).table.assign(person_id=cohort.table.person_id)
    assert leaked(by_name) > 0.8
    assert "person_id" not in phenotype_columns(cohort)
    text.to_csv(path, sep="\t", index=False)
    write_split(folder)
    assert leaked(read_cohort(folder).table) == 0
    store = prepare_cohort(read_cohort(folder), tmp_path / "store", prepared(), progress=False)
    assert leaked(store.table) == 0 and store.table.person_id.iloc[0] == "1000"


def prepared():
    names = ("window_s", "crop_px", "n_frames", "workers")
    return PrepareConfig(**{n: getattr(CFG, n) for n in names})


def test_a_person_in_two_parts_is_refused(folder):
    path = folder / "participants.tsv"
    text = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    text["split"] = ["train", "test"] * 32
    text.to_csv(path, sep="\t", index=False)
    with pytest.raises(BadInput, match="rows of 1000 are in train and in test"):
        read_cohort(folder)


def test_validation_part_is_of_other_people(folder):
    pairs = load_data(folder, CFG, progress=False)[1]
    learn, watch = validation_part(pairs)
    assert not set(learn.table.person_id) & set(watch.table.person_id)
    assert len(watch) >= 13 and len(learn) + len(watch) == len(pairs)


def test_a_share_of_the_labels_keeps_all_rows_of_a_person_or_none(folder):
    pairs = load_data(folder, CFG, progress=False)[1]
    kept = label_share(pairs, 0.3).table
    rows = kept.groupby("person_id").size()
    whole = pairs.table.groupby("person_id").size()
    assert round(0.3 * len(pairs)) <= len(kept) < round(0.3 * len(pairs)) + 4
    assert (rows == whole[rows.index]).all()
