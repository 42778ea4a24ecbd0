"Every notebook runs from top to bottom: library, tutorials and pages as nbdev_test runs them, most experiments by papermill in the tests that are named after them."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat

BY_PAPERMILL = ("train", "pretrain", "prepare", "simulate", "compare") # a second run by nbdev_test would only take its time


def test_notebooks_run(repo):
    "nbdev_test, two notebooks at a time with one thread each; a failure names its notebook and shows its traceback."
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = shutil.which("nbdev_test", path=f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}")
    assert command, "nbdev_test is not installed: pip install -c constraints.txt -e '.[dev]'"
    left_out = f"^[_.]|^({'|'.join(BY_PAPERMILL)})[.]ipynb$"
    done = subprocess.run([command, "--n_workers", "2", "--timing", "--skip_file_re", left_out], cwd=repo, env=env, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Success." in done.stdout, done.stdout


def test_what_is_left_out_runs_elsewhere(repo):
    "Each experiment that the test above leaves out is one, and another test gives it to papermill."
    for name in BY_PAPERMILL:
        cells = nbformat.read(repo/"nbs"/f"{name}.ipynb", 4).cells
        assert any("parameters" in c.metadata.get("tags", []) for c in cells), name
        users = [p.name for p in (repo/"tests").glob("test_*.py") if p.name != Path(__file__).name and f'"{name}.ipynb"' in p.read_text(encoding="utf-8") and "papermill" in p.read_text(encoding="utf-8")]
        assert users, f"{name}.ipynb is run by no other test"
