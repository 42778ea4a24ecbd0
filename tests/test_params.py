"""The parameters cell of an experiment and its dataclass say the same; wrong parameters stop in the first
cell.
"""

import itertools
from dataclasses import fields

import nbformat
import papermill
import pytest
import yaml

from ptacl.base.config import TrainConfig
from ptacl.base.core import BadInput
from ptacl.base.parameters import field_meanings
from ptacl.data.augment import Augmentation
from ptacl.data.prepare import PrepareConfig
from ptacl.phantom.realism import ValidateConfig
from ptacl.phantom.simulated_store import SimulateConfig
from ptacl.plots.explorer import ExploreConfig
from ptacl.report.report_study import ReportConfig
from ptacl.studies.comparison import CompareConfig, cells_of
from ptacl.studies.ecg_benchmark import ECGBenchmarkConfig
from ptacl.studies.launch import run_notebook
from ptacl.studies.one_run import EvaluateConfig
from ptacl.studies.phantom_outcomes import PhantomOutcomesConfig
from ptacl.studies.speed import BenchmarkConfig
from ptacl.training.pretraining import PretrainConfig

EXPERIMENTS = dict(
    prepare=PrepareConfig,
    train=TrainConfig,
    pretrain=PretrainConfig,
    simulate=SimulateConfig,
    validate=ValidateConfig,
    benchmark=BenchmarkConfig,
    benchmark_ecg=ECGBenchmarkConfig,
    compare=CompareConfig,
    evaluate=EvaluateConfig,
    explore=ExploreConfig,
    outcomes=PhantomOutcomesConfig,
    report=ReportConfig,
)
RECIPES = dict(
    thousand_pretrain=PretrainConfig,
    thousand=TrainConfig,
    compare_phantom=CompareConfig,
    compare_cohort=SimulateConfig,
    other_centre=SimulateConfig,
    bench_gpu=BenchmarkConfig,
    paper_gpu=TrainConfig,
    paper_gpu_pretrain=PretrainConfig,
    compare_paper=CompareConfig,
)


def parameter_lines(notebook) -> list[str]:
    "The lines of a notebook's parameters cell."
    cells = nbformat.read(notebook, 4).cells
    return next(c.source for c in cells if "parameters" in c.metadata.get("tags", [])).split("\n")


def often_changed(notebook) -> list[str]:
    "The parameters of the group that comes first, where there are many."
    first, *rest = parameter_lines(notebook)
    if first != "# --- often changed":
        return []
    return [line.split(":")[0] for line in itertools.takewhile(lambda line: not line.startswith("#"), rest)]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_parameters_cell_equals_dataclass(repo, name):
    config = EXPERIMENTS[name]
    inspected = papermill.inspect_notebook(str(repo / "nbs" / f"{name}.ipynb"))
    cell = {n: (p["inferred_type_name"], eval(p["default"]), p["help"]) for n, p in inspected.items()}
    meanings = field_meanings(config)
    assert cell == {f.name: (type(f.default).__name__, f.default, meanings[f.name]) for f in fields(config)}
    often = often_changed(repo / "nbs" / f"{name}.ipynb")
    assert list(cell) == often + [f.name for f in fields(config) if f.name not in often]
    assert all(len(line) <= 100 for line in parameter_lines(repo / "nbs" / f"{name}.ipynb"))


def test_what_people_change_comes_first(repo):
    assert often_changed(repo / "nbs/train.ipynb")[:6] == [
        "data",
        "out",
        "system",
        "preset",
        "n_train",
        "epochs",
    ]
    assert [len(often_changed(repo / f"nbs/{n}.ipynb")) for n in ("train", "pretrain", "prepare")] == [
        14,
        11,
        5,
    ]


def test_recipes_are_valid(repo):
    "Each file of nbs/recipes holds settings of its experiment, and the rows of the comparison exist."
    files = {p.stem: p for p in (repo / "nbs" / "recipes").glob("*.yaml")}
    assert set(files) == set(RECIPES)
    read = {name: RECIPES[name].from_params(yaml.safe_load(path.read_text())) for name, path in files.items()}
    cells = cells_of(read["compare_phantom"], count=False)
    assert len(cells) == 9 * 3 + 4 + 23
    assert [c.key for c in cells[:2]] == ["ptacl-seed0", "global_only-seed0"]
    as_published = cells_of(read["compare_paper"], count=False)
    assert [c.key for c in as_published] == [
        f"{name}-seed0" for name in ("ptacl", "global_only", "supervised", "mmcl")
    ]
    assert {c.params["preset"] for c in as_published} == {read["paper_gpu"].preset} == {"paper"}
    people = read["compare_cohort"]
    assert people.n - people.n_val - people.n_test == 27_951 and (people.n_val, people.n_test) == (2000, 4000)


@pytest.mark.parametrize(
    "params, message",
    [
        (dict(epohcs=3), "there is no parameter `epohcs`. Did you mean `epochs`?"),
        (dict(epochs="three"), "`epochs` is 'three' (str), but must be int"),
        (dict(local_weight=2.0), "`local_weight` is 2.0"),
    ],
)
def test_wrong_parameter_stops_in_the_first_cell(repo, tmp_path, monkeypatch, params, message):
    "As papermill's own command does it: the name is not checked before the kernel starts."
    monkeypatch.setenv("PTACL_RUNS", str(tmp_path / "runs"))
    out = tmp_path / "out.ipynb"
    with pytest.raises(papermill.PapermillExecutionError, match="BadInput") as error:
        papermill.execute_notebook(
            str(repo / "nbs" / "train.ipynb"),
            str(out),
            parameters=params,
            cwd=str(tmp_path),
            progress_bar=False,
            kernel_name="python3",
        )
    assert message in str(error.value)
    executed = nbformat.read(out, 4)
    done = [c.source for c in executed.cells if c.cell_type == "code" and c.execution_count]
    assert done[-1] == "cfg = TrainConfig.from_params(locals())"  # nothing after it ran
    assert not (tmp_path / "runs").exists()


def test_run_notebook_refuses_before_the_kernel_starts(repo, tmp_path):
    with pytest.raises(BadInput, match="Did you mean `epochs`"):
        run_notebook(repo / "nbs" / "train.ipynb", tmp_path / "out.ipynb", dict(epohcs=3))
    assert not (tmp_path / "out.ipynb").exists()


def test_every_augmentation_is_a_setting():
    "A strength that a configuration does not know would silently stay off."
    assert {f.name for f in fields(Augmentation)} <= {f.name for f in fields(TrainConfig)}
