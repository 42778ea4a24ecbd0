"""What every test gets: its share of the cores, no window for plots, the real recordings where they are, and
skips that say why.
"""

import os
from pathlib import Path

# Before numpy or torch is imported. Two processes run the tests (pyproject.toml); with two threads each they
# would wait for each other most of the time.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    # what the process that started this one has set is for that one
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ[name] = "1"
    else:
        os.environ.setdefault(name, str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402 (after the lines above, which must come before numpy)

# Programs that tests start as processes of their own, given by their text.
PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="session")
def repo() -> Path:
    "The folder of the clone."
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    "The folder of real public recordings that PTACL_REAL_DATA names; the test is skipped without it."
    named = os.environ.get("PTACL_REAL_DATA")
    if not named:
        pytest.skip("PTACL_REAL_DATA is not set (a folder of real recordings; see CONTRIBUTING.md)")
    folder = Path(named)
    assert folder.is_dir(), f"PTACL_REAL_DATA names {folder}, which is no folder"
    return folder


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> Path:
    "Folder of a small untrained system that reads 1 s."
    import torch

    from ptacl.base.config import TrainConfig
    from ptacl.models.saved import save_pretrained
    from ptacl.models.systems import build_system

    torch.manual_seed(0)
    cfg = TrainConfig(window_s=1.0, n_frames=4, cine_keep=1.0, crop_px=16)
    system = build_system(cfg)
    system.ecg_sd_L.fill_(0.25)
    return save_pretrained(system, cfg, tmp_path_factory.mktemp("run"))


def skip_reasons(keywords, mark_expression: str, has_cuda: bool, environ) -> list[str]:
    "Why a test with these markers does not run here; empty = it runs."
    reasons = []
    if "slow" in keywords and "slow" not in mark_expression and environ.get("PTACL_SLOW") != "1":
        reasons.append("slow: set PTACL_SLOW=1 or ask for it with -m slow")
    if "cuda" in keywords and not has_cuda:
        reasons.append("no CUDA device here")
    return reasons


def pytest_collection_modifyitems(config, items):
    "Skip what is slow (unless asked for) and what needs a GPU (where there is none)."
    marked = [i for i in items if "slow" in i.keywords or "cuda" in i.keywords]
    if not marked:
        return
    import torch

    for item in marked:
        for reason in skip_reasons(
            item.keywords, config.option.markexpr, torch.cuda.is_available(), os.environ
        ):
            item.add_marker(pytest.mark.skip(reason=reason))
