"""simulate.ipynb through papermill, as files and as a store; what was killed is finished with the same
bytes.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import papermill

from ptacl.data.cohort import check_cohort, read_cohort
from ptacl.data.participant import settings_of
from ptacl.data.prepare import PrepareConfig, prepare_cohort
from ptacl.data.store import open_store
from ptacl.phantom.cohort import write_cohort, write_cohort_from_config
from ptacl.phantom.simulated_store import SimulateConfig, simulate_store

RECIPE = dict(seed=4, n_frames=10, size_px=48, masks=True, fault_rate=0.3)
WRITE = """
import sys
from ptacl.phantom.cohort import write_cohort
write_cohort(sys.argv[1], 12, n_jobs=2, **{recipe})
"""
STORE = dict(store=True, n=24, n_val=3, n_test=5, seed=4, frames=10, size=48, n_frames=8, crop_px=16)
STORE |= dict(shard_size=4)
FILL = """
import sys
from ptacl.phantom.simulated_store import SimulateConfig, simulate_store
simulate_store(SimulateConfig(**{settings}), sys.argv[1], progress=False)
"""


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def run_simulate(repo, folder, params):
    "simulate.ipynb, executed in a folder."
    return papermill.execute_notebook(
        str(repo / "nbs" / "simulate.ipynb"),
        str(folder / "out.ipynb"),
        parameters=params,
        cwd=str(folder),
        progress_bar=False,
        kernel_name="python3",
    )


def test_the_notebook_writes_a_cohort_that_training_reads(repo, tmp_path):
    params = dict(out=str(tmp_path / "cohort"), n=6, frames=10, size=64, mi=1.0, masks=True)
    done = run_simulate(repo, tmp_path, params)
    cohort = read_cohort(tmp_path / "cohort")
    report = check_cohort(cohort)
    assert len(cohort.table) == 6 and report.empty, report.to_string()
    assert cohort.table.mi.astype(int).sum() == 6
    assert (
        sum("image/png" in o.get("data", {}) for c in done.cells if c.cell_type == "code" for o in c.outputs)
        == 2
    )
    assert len(list((tmp_path / "cohort" / "mask").glob("*.nii.gz"))) == 6
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".tmp")]


def test_killed_while_writing_and_started_again(tmp_path):
    """SIGKILL of all processes after a few participants: the second start makes what is missing, and nothing
    is half written.
    """
    whole = write_cohort(tmp_path / "whole", 12, **RECIPE)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE.format(recipe=RECIPE), str(tmp_path / "cut")],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while len(list((tmp_path / "cut").glob("cine/*.nii.gz"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "participants.tsv").exists()
    write_cohort(tmp_path / "cut", 12, **RECIPE)
    # what the kill left is not part of the cohort
    made = {k: v for k, v in contents(tmp_path / "cut").items() if "/." not in "/" + k}
    assert made == contents(whole)
    assert set(pd.read_csv(whole / "participants.tsv", sep="\t").truth_fault.fillna("")) > {""}


def test_the_notebook_writes_a_store(repo, tmp_path):
    params = dict(STORE, n=10, out=str(tmp_path / "store"), shard_size=100)
    done = run_simulate(repo, tmp_path, params)
    store = open_store(tmp_path / "store", verify=True)
    assert store.table.split.value_counts().to_dict() == dict(test=5, val=3, train=2)
    pictures = [
        o for c in done.cells if c.cell_type == "code" for o in c.outputs if "image/png" in o.get("data", {})
    ]
    assert len(pictures) == 2
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".gz", ".dat", ".npz")]


def test_a_store_has_the_numbers_of_the_files(tmp_path):
    "Stacks, and an ECG at another rate, so that nothing is the same by chance."
    cfg = SimulateConfig(store=True, n=3, frames=12, slices=4, size=64, n_slices=3, fs=250.0, crop_px=32)
    store = simulate_store(cfg, tmp_path / "store", progress=False)
    prepared_as = PrepareConfig(**settings_of(cfg))
    cohort = read_cohort(write_cohort_from_config(cfg, tmp_path / "cohort"))
    by_files = prepare_cohort(cohort, tmp_path / "by_files", prepared_as, progress=False)
    assert contents(store.shards[0].folder) == contents(by_files.shards[0].folder)
    assert store.read("volume_QZHW", store.rows).shape == (3, 2, 3, 32, 32)
    pd.testing.assert_frame_equal(store.table, by_files.table)
    names = ["store.json", *(p.name for p in (tmp_path / "store").glob("participants-*.tsv"))]
    for name in names:
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "by_files" / name).read_bytes()


def test_a_store_killed_while_it_was_filled(tmp_path):
    "The second start keeps the shards that are whole, and the end is the same, whatever the processes."
    whole = simulate_store(SimulateConfig(**STORE, workers=1), tmp_path / "whole", progress=False)
    process = subprocess.Popen(
        [sys.executable, "-c", FILL.format(settings=STORE), str(tmp_path / "cut")],
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    shards = tmp_path / "cut" / "shards"
    while len(list(shards.glob("[0-9]*"))) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {p: p.stat().st_mtime_ns for p in shards.glob("[0-9]*/*.npy")}
    assert 2 <= len(list(shards.glob("[0-9]*"))) < 6
    assert not (tmp_path / "cut" / "store.json").exists()
    finished = simulate_store(SimulateConfig(**STORE), tmp_path / "cut", progress=False)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert np.array_equal(finished.read("cine_FHW", finished.rows), whole.read("cine_FHW", whole.rows))
