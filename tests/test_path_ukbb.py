"""The page tutorials/27_ukbb_in_ten_commands, command by command, on stand-ins of UK Biobank's files: small,
made of simulated people, with fewer passes than the page's.
"""

import os
import re
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import ukbb_files as write

from ptacl.data.cine import read_cine
from ptacl.data.ecg_files import read_ecg
from ptacl.phantom.cohort import write_cohort

PAGE = "27_ukbb_in_ten_commands.ipynb"
N = 90
# what is smaller here, and how often the page says so
SMALLER = {
    "-p n 400 -p n_test 100": ("-p n 48 -p n_test 16", 1),
    "-p epochs 40": ("-p epochs 1", 1),
    "-p epochs 30": ("-p epochs 2", 1),
    "epochs 30, log_every 20": ("epochs 2, batch_size 16", 1),
    "-r seeds 0,1,2": ("-r seeds 0", 1),
}


def commands(repo: Path) -> list[str]:
    "The page's blocks for bash, in order, as they stand there."
    cells = nbformat.read(repo / "nbs" / "tutorials" / PAGE, 4).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    return re.findall(r"```bash\n(.*?)```", text, re.DOTALL)


def smaller(block: str) -> str:
    "A block with the sizes of this test."
    for said, (here, _) in SMALLER.items():
        block = block.replace(said, here)
    return block


def test_what_is_smaller_stands_on_the_page(repo):
    "Ten commands, and each size that this test changes is one of the page's."
    blocks = commands(repo)
    assert len(blocks) == 10
    assert {said: "".join(blocks).count(said) for said in SMALLER} == {s: n for s, (_, n) in SMALLER.items()}


@pytest.fixture(scope="module")
def ukbb(tmp_path_factory) -> Path:
    "A folder with bulk files and a table of fields, of simulated people; most have an event."
    place = tmp_path_factory.mktemp("ukbb")
    files = write_cohort(place / "people", N, seed=77, n_frames=25, n_jobs=2)
    people = pd.read_csv(files / "participants.tsv", sep="\t")
    bulk = place / "bulk"
    bulk.mkdir()
    rng = np.random.default_rng(0)
    rows = {}
    for k, who in enumerate(people.itertuples()):
        eid = str(1_000_001 + k)
        write.ecg_xml(bulk / f"{eid}_20205_2_0.xml", read_ecg(files / who.ecg))
        cine = read_cine(files / who.cine)
        how = dict(names=("CINE_segmented_SAX_b1",), depths=(0.0,), rr=(cine.rr_ms,))
        write.short_axis(cine, **how).write(bulk / f"{eid}_20209_2_0.zip")
        visit = pd.Timestamp("2015-01-01") + pd.Timedelta(days=int(rng.integers(700)))
        failure = visit + pd.Timedelta(days=int(rng.integers(30, 1500))) if rng.random() < 0.8 else None
        died = visit + pd.Timedelta(days=int(rng.integers(1600, 2000))) if rng.random() < 0.8 else None
        rows[eid] = {
            (31, 0, 0): int(who.sex == "M"),
            (21003, 2, 0): int(who.age),
            (24100, 2, 0): who.lvedv_ml,
            (24101, 2, 0): who.lvesv_ml,
            (24103, 2, 0): who.lvef,
            (24105, 2, 0): who.lvm_g,
            (24106, 2, 0): who.rvedv_ml,
            (24107, 2, 0): who.rvesv_ml,
            (53, 2, 0): visit.date().isoformat(),
            (131354, 0, 0): failure.date().isoformat() if failure else "",
            (40000, 0, 0): died.date().isoformat() if died else "",
            (191, 0, 0): "",
        }
    write.phenotype_table(place / "fields.csv", rows)
    return place


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_commands(repo, ukbb):
    "One shell, from the repository's folder: each command ends well, and the tables say what they should."
    work = ukbb / "work"
    work.mkdir()
    blocks = [smaller(block) for block in commands(repo)]
    install, *rest = blocks
    assert install.count("pip install") == 2 and "export BULK=" in install
    given = os.environ | dict(BULK=str(ukbb / "bulk"), TABLE=str(ukbb / "fields.csv"), WORK=str(work))
    script = "set -euo pipefail\n" + "\n".join(rest)
    done = subprocess.run(
        ["bash", "-c", script], cwd=repo, env=given, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(r"hf \d+ events", done.stdout) and "death" in done.stdout
    store = next((work / "store").glob("participants-*.tsv"))
    stored = pd.read_csv(store, sep="\t")
    assert len(stored) >= 0.9 * N and {"time_hf_y", "event_hf", "sex", "age", "lvef"} <= set(stored)
    assert (stored.event_hf.dropna().mean() > 0.6) and (stored.time_hf_y.dropna() > 0).all()
    scores = pd.read_csv(work / "comparison" / "scores.tsv", sep="\t")
    asked = {
        "ptacl",
        "global_only",
        "supervised",
        "masked",
        "mmcl",
        "demographics",
        "classical_ecg",
        "random",
    }
    assert set(scores.method) == asked
    vectors = pd.read_csv(work / "vectors.tsv", sep="\t", index_col="record")
    assert vectors.shape == (N, 128) and np.isfinite(vectors.to_numpy()).all()
    phenotypes = pd.read_csv(work / "phenotypes.tsv", sep="\t")
    assert set(phenotypes.phenotype) >= {"lvef", "lvedv_ml"} and (phenotypes.low < phenotypes.high).all()
    kept = {p.name for p in (work / "tables").iterdir()}
    assert {"environment.json", "metrics.json", "scores.tsv", "forest.png"} <= kept
    written = b"".join(p.read_bytes() for p in work.rglob("*") if p.is_file() and p.suffix != ".npy")
    for secret in write.SECRETS:
        assert secret.encode() not in written, secret
