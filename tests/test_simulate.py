"simulate.ipynb through papermill; a cohort whose writing was killed is finished, with the same bytes."

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import papermill

from ptacl.data.cohort import check_cohort, read_cohort
from ptacl.phantom.cohort import write_cohort

RECIPE = dict(seed=4, n_frames=10, size_px=48, masks=True, fault_rate=0.3)
WRITE = """
import sys
from ptacl.phantom.cohort import write_cohort
write_cohort(sys.argv[1], 12, n_jobs=2, **{recipe})
"""


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_the_notebook_writes_a_cohort_that_training_reads(repo, tmp_path):
    params = dict(out=str(tmp_path / "cohort"), n=6, frames=10, size=64, mi=1.0, masks=True)
    done = papermill.execute_notebook(
        str(repo / "nbs" / "simulate.ipynb"),
        str(tmp_path / "out.ipynb"),
        parameters=params,
        cwd=str(tmp_path),
        progress_bar=False,
        kernel_name="python3",
    )
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
