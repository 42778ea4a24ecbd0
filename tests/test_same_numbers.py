"""The numbers that the version with convolutional encoders computed are computed still, bit for bit on a
machine of the same kind.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def machine() -> dict[str, str]:
    "What the last bits of a number depend on."
    return dict(
        torch=torch.__version__,
        machine=platform.machine(),
        instructions=torch.backends.cpu.get_cpu_capability(),
    )


@pytest.mark.slow
def test_numbers_are_the_same():
    "Twenty steps of each system and of masked pre-training, embeddings, tables, simulated files: one minute."
    kept = json.loads((HERE / "same_numbers.json").read_text())
    if machine() != kept["machine"]:
        pytest.skip(f"the digests are those of {kept['machine']}, this is {machine()}")
    env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, HERE / "programs" / "same_numbers.py"],
        env=env,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == kept["digests"]
