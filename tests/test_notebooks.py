"""Every notebook runs from top to bottom: library, tutorials and pages as nbdev_test runs them, experiments
by papermill here or in the tests that are named after them.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from ptacl.studies.launch import run_notebook

# a second run by nbdev_test would only take its time
BY_PAPERMILL = (
    "train",
    "pretrain",
    "prepare",
    "simulate",
    "compare",
    "benchmark",
    "benchmark_ecg",
    "validate",
    "evaluate",
    "explore",
    "outcomes",
    "report",
)


def test_notebooks_run(repo):
    """nbdev_test, two notebooks at a time with one thread each; a failure names its notebook and shows its
    traceback.
    """
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = shutil.which("nbdev_test", path=f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}")
    assert command, "nbdev_test is not installed: pip install -c constraints.txt -e '.[dev]'"
    left_out = f"^[_.]|^({'|'.join(BY_PAPERMILL)})[.]ipynb$"
    done = subprocess.run(
        [command, "--n_workers", "2", "--timing", "--skip_file_re", left_out],
        cwd=repo,
        env=env,
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Success." in done.stdout, done.stdout


def test_what_is_left_out_runs_elsewhere(repo):
    "Each experiment that the test above leaves out is one, and another test gives it to papermill."
    for name in BY_PAPERMILL:
        cells = nbformat.read(repo / "nbs" / f"{name}.ipynb", 4).cells
        assert any("parameters" in c.metadata.get("tags", []) for c in cells), name
        users = [
            p.name
            for p in (repo / "tests").glob("test_*.py")
            if f'"{name}.ipynb"' in p.read_text(encoding="utf-8")
            and "papermill" in p.read_text(encoding="utf-8")
        ]
        assert users, f"{name}.ipynb is run by no test"


SMALLEST = {
    "benchmark.ipynb": (
        dict(n=4, workers=1, store_n=64, large_n=1000, seconds=0.1, steps=1, n_frames=8, crop_px=32)
        | dict(accelerator="cpu", presets="tiny", published_turns=0, large_batch=0, batch_size=16),
        1,
        (
            "store, times raw files prepared on the fly",
            "local loss, share of the rest of a step",
            "two processes, times one",
            "10,000 participants: ",
        ),
    ),
    "benchmark_ecg.ipynb": (
        dict(tasks="super,rhythm", n_boot=50, fractions="0.5,1"),
        0,
        (
            "ptbxl: 64 records of 64 people",
            "a simulated stand-in, never clinical evidence",
            "10 s at 100 Hz, 12 leads",
            "100 Hz -> 500 Hz",
            "Macro AUROC, with 95 % intervals",
            "mode probe, 50 bootstrap draws",
            "ECGFounder",
        ),
    ),
    "validate.ipynb": (
        dict(n=12, n_latents=400, workers=1),
        0,
        ("heart within 15 mm", "published figures hold", "no folder of real recordings was given"),
    ),
    "outcomes.ipynb": (
        dict(n=1600, outcomes="death", n_boot=20),
        3,
        ("events", "likelihood ratio", "minutes of CPU", "C that the embedding adds to the base model, with"),
    ),
    "report.ipynb": (
        dict(rows="planned", epochs=1, beam=1, longest=20, n_boot=20, maps=10),
        0,
        (
            "held out: ",
            "planned, seed 0: ",
            "the truth, by the held-out author",
            "A row less probe + template (both), with 95 % intervals",
            "tables and writers are in",
        ),
    ),
    "evaluate.ipynb": (
        dict(n_boot=50, phenotypes="lvef,lvedv_ml"),
        8,
        (
            "system: random",
            "48 training and 16 held-out participants",
            "cases among the",
            "R2 of ridge regression on the ECG alone, with 95 % intervals",
            "held-out people would tell, if the value stays (16 now)",
        ),
    ),
    "explore.ipynb": (
        dict(participant="sim-0033", phenotypes="lvef,lvedv_ml", k=3),
        1,
        (
            "16 participants of the part",
            "encoders are untrained",
            "VBox(children=",
            "Movie(250 steps of 40 ms, 25 frames)",
        ),
    ),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_experiment_runs(name, repo, tmp_path):
    """At sizes that take seconds: no error, its figures, what it is there to say, and the tables that a page
    of the docs reads.
    """
    params, figures, words = SMALLEST[name]
    if name == "benchmark.ipynb":  # the recipe for a GPU at the smallest sizes, on the processor
        recipe = yaml.safe_load((repo / "nbs" / "recipes" / "bench_gpu.yaml").read_text())
        params = recipe | params | dict(out=str(tmp_path / "tables"))
    if name == "report.ipynb":  # people, tokens, writers and tables go where `out` says
        params = params | dict(out=str(tmp_path / "reports"))
    outs = [
        o
        for c in nbformat.read(
            run_notebook(repo / "nbs" / name, tmp_path / name, params, progress=False), 4
        ).cells
        for o in c.get("outputs", [])
    ]
    shown = [o.get("data", {}) for o in outs]
    text = "".join(o.get("text", "") for o in outs)
    text += "".join(d.get("text/plain", "") + d.get("text/markdown", "") for d in shown)
    # pyplot's own are not kept where there is no screen
    assert sum("image/png" in d for d in shown) >= figures
    assert not [w for w in words if w not in text]
    if name == "benchmark.ipynb":
        kept = tmp_path / "tables"
        page = repo / "nbs" / "results" / "speed"
        # the page also shows MMCL at its published sizes, which would take a minute here
        assert {p.name for p in kept.iterdir()} | {"published.tsv"} == {p.name for p in page.iterdir()}
        # the columns of what the page shows
        assert all(
            p.read_text().splitlines()[0] == (page / p.name).read_text().splitlines()[0]
            for p in kept.glob("*.tsv")
        )
        assert str(tmp_path) not in (kept / "settings.tsv").read_text()


@pytest.mark.cuda
def test_gpu_benchmark_takes_ten_minutes(repo, tmp_path):
    "The recipe for a GPU as it stands."
    params = yaml.safe_load((repo / "nbs" / "recipes" / "bench_gpu.yaml").read_text())
    start = time.perf_counter()
    out = str(tmp_path / "tables")
    run_notebook(repo / "nbs" / "benchmark.ipynb", tmp_path / "page.ipynb", params | dict(out=out))
    assert time.perf_counter() - start < 600
    assert {"published.tsv", "memory.tsv", "systems.tsv"} <= {p.name for p in Path(out).iterdir()}
