"Every notebook runs from top to bottom, as nbdev_test runs it."
import os
import shutil
import subprocess
import sys
from pathlib import Path


def test_notebooks_run(repo):
    "nbdev_test, two notebooks at a time with one thread each; a failure names its notebook and shows its traceback."
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = shutil.which("nbdev_test", path=f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}")
    assert command, "nbdev_test is not installed: pip install -c constraints.txt -e '.[dev]'"
    done = subprocess.run([command, "--n_workers", "2", "--timing"], cwd=repo, env=env, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Success." in done.stdout, done.stdout
