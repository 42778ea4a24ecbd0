"A path that the system cannot take is a missing file, wherever somebody may give one."

from collections.abc import Callable

import pytest

from ptacl.base.config import TrainConfig
from ptacl.base.core import BadInput, load_extensions, samples_dir
from ptacl.data.batches import load_data
from ptacl.data.cine import read_cine
from ptacl.data.code15 import read_code15
from ptacl.data.cohort import read_cohort
from ptacl.data.dicom_study import open_study
from ptacl.data.ecg_files import read_ecg
from ptacl.data.phenotypes import read_phenotypes
from ptacl.data.ptbxl import read_ptbxl
from ptacl.data.store import open_store
from ptacl.models.saved import from_pretrained, start_encoders
from ptacl.models.systems import build_system
from ptacl.report.report_study import ReportConfig
from ptacl.report.text_cases import read_text_cases
from ptacl.report.tokens import token_encoders
from ptacl.studies.cells import check_comparison
from ptacl.studies.comparison import CompareConfig, cells_of
from ptacl.studies.launch import run_notebook
from ptacl.studies.one_run import EvaluateConfig, open_trained
from ptacl.training.run_folder import open_run
from ptacl.use import ECGEncoder
from ptacl.use.command import find_ecgs
from ptacl.use.reporter import load_reporter


def compared(cfg: CompareConfig) -> None:
    "What compare.ipynb does before it trains."
    check_comparison(cells_of(cfg), cfg)


def begun(cfg: TrainConfig) -> None:
    "What train.ipynb does before it trains."
    start_encoders(build_system(cfg), cfg)


# what is given -> what takes it
WAYS: dict[str, Callable] = {
    "ECG": read_ecg,
    "cine": read_cine,
    "DICOM study": lambda path: open_study(path).__enter__(),
    "cohort": read_cohort,
    "data": lambda path: load_data(path, TrainConfig(), progress=False),
    "store": open_store,
    "phenotypes": lambda path: read_phenotypes(path, 2),
    "PTB-XL": read_ptbxl,
    "CODE-15": read_code15,
    "encoder": ECGEncoder.from_pretrained,
    "system": from_pretrained,
    "ecg_init": lambda path: begun(TrainConfig(ecg_init=str(path))),
    "cmr_init": lambda path: begun(TrainConfig(cmr_init=str(path))),
    "out": lambda path: open_run(TrainConfig(out=str(path)), samples_dir()),
    "run to evaluate": lambda path: open_trained(EvaluateConfig(run=str(path))),
    "data to evaluate": lambda path: open_trained(EvaluateConfig(data=str(path))),
    "data to compare": lambda path: compared(CompareConfig(data=str(path))),
    "other centre": lambda path: compared(CompareConfig(transfer=str(path))),
    "notebook": lambda path: run_notebook(path, "out.ipynb", {}),
    "extension": lambda path: load_extensions(f"{path}.py"),
    "ECGs of a command": find_ecgs,
    "writer": load_reporter,
    "encoders of a writer": lambda path: token_encoders(str(path)),
    "data of a writer": lambda path: ReportConfig(data=str(path)),
    **{
        f"reports of {kind}": lambda path, kind=kind: read_text_cases(path, kind)
        for kind in ("ptbxl", "openi", "mimic", "coco")
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_a_path_too_long_for_the_system(way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput) as caught:
        WAYS[way](tmp_path / ("x" * 5000))
    assert len(str(caught.value)) < 1200  # a person can read it
