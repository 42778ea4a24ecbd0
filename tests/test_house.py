"""The house rules: every notebook is held to every rule of `tests/house.py`, and every rule to a notebook
that breaks it.
"""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import house
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = house.notebooks(ROOT)


def command(name: str, folder: Path, *args: str) -> str:
    "Run a command of nbdev in a copy of the project and return what it printed."
    # with it nbdev_export does nothing
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}")
    assert found, f"{name} is not installed: pip install -c constraints.txt -e '.[dev]'"
    done = subprocess.run([found, *args], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{name} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def export(project: Path) -> None:
    "Make the package of a copy of the project from its notebooks."
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # with it nbdev_export does nothing
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "export.py", project],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    "Relative path -> content."
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob(pattern))
        if "__pycache__" not in p.parts
    }


def project_copy(to: Path) -> Path:
    "What nbdev needs of the project, in another folder."
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "nbs", "ptacl"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source,
                to / name,
                ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_*.ipynb"),
            )
        else:
            shutil.copy(source, to / name)
    return to


# ---- every notebook against every rule


@pytest.mark.parametrize("nb", NOTEBOOKS, ids=lambda nb: nb.path.relative_to(ROOT / "nbs").as_posix())
@pytest.mark.parametrize("rule", house.RULES)
def test_rule(rule, nb):
    problems = list(house.RULES[rule](nb))
    assert not problems, f"{nb.path.relative_to(ROOT)}: {house.RULES[rule].__doc__}\n- " + "\n- ".join(
        problems
    )


def test_lines_of_tests_and_scripts():
    assert list(house.plain_files(ROOT)) == []


def test_folders_point_one_way():
    assert list(house.one_way(house.USES)) == []


@pytest.mark.parametrize("command", [("format", "--check"), ("check",)], ids=" ".join)
def test_ruff(command):
    "One dialect, and the rules that pyproject.toml names, for notebooks, package, tests and scripts."
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr


def test_modules_and_notebooks_match():
    assert list(house.orphans(ROOT)) == []


def test_nothing_is_defined_twice():
    assert list(house.twice_defined(ROOT)) == []


# ---- the tools leave everything as it is


def test_export_changes_nothing(tmp_path):
    "ptacl/ is what .ci/export.py makes of the notebooks."
    project = project_copy(tmp_path)
    before = files(ROOT / "ptacl", "*.py")
    export(project)
    after = files(project / "ptacl", "*.py")
    differ = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    assert not differ, f"ptacl/ differs from the notebooks in {differ}: run python .ci/export.py"


def test_clean_changes_nothing(tmp_path):
    "The notebooks are as nbdev_clean leaves them, with papermill's tag."
    project = project_copy(tmp_path)
    before = files(project / "nbs", "*.ipynb")
    command("nbdev_clean", project)
    after = files(project / "nbs", "*.ipynb")
    differ = sorted(k for k in before if before[k] != after[k])
    assert not differ, f"not clean: {differ}: run nbdev_clean"


def test_readme_is_the_index():
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "readme.py", "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_readme_names_the_commands():
    "The marked commands, which .ci/run and people take from the README, are there."
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"<!-- command: (\w+) -->\s*(?:```\w*\s*)?(.+)", text))
    assert "pytest" in found["tests"] and "constraints.txt" in found["tests"], found
    assert "papermill nbs/train.ipynb" in found["train"] and "constraints.txt" in found["train"], found


def pinned() -> dict[str, str]:
    "Package -> the version of it in constraints.txt."
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_constraints_are_for_the_oldest_python():
    "What is installed here by constraints.txt also installs on the first release that README asks for."
    oldest = re.search(r"You need Python (\d+\.\d+) or later", (ROOT / "README.md").read_text())[1] + ".0"
    asked = {}
    for name, pin in pinned().items():
        try:
            found = metadata(name)
        except PackageNotFoundError:  # of an extra that is not installed
            continue
        if found["Version"] == pin:
            asked[name] = found.get("Requires-Python") or ""
    assert len(asked) > 50
    assert not [(n, a) for n, a in asked.items() if not SpecifierSet(a).contains(oldest)]


@pytest.mark.parametrize(
    "key",
    [
        "requirements",
        "dev_requirements",
        *(f"{extra}_requirements" for extra in house.requirements(ROOT, "extras")),
    ],
)
def test_constraints_pin_every_requirement(key):
    "constraints.txt has one version for each requirement, inside its range."
    pins = pinned()
    assert not [v for v in pins.values() if "+" in v], (
        "a local version (torch's +cpu) cannot be had everywhere"
    )
    for name, versions in house.requirements(ROOT, key).items():
        pin = pins.get(re.sub(r"[-_.]+", "-", name).lower())
        assert pin, f"{name} has no version in constraints.txt"
        assert Requirement(f"{name}{versions}").specifier.contains(pin), (
            f"{name}{versions} does not allow {pin}"
        )


LIGHT = [
    nb.module for nb in NOTEBOOKS if nb.folder in ("base", "docs") or (nb.folder == "data" and nb.number < 80)
]


def test_data_modules_import_without_torch():
    "Readers, phases and the cohort need no torch, and nothing loads neurokit2 (2 s) before it is used."
    assert LIGHT
    code = (
        "import sys\n"
        + "".join(f"import ptacl.{m}\n" for m in LIGHT)
        + "print([m for m in ('torch', 'neurokit2', 'lightning_fabric') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_no_large_files():
    "No weights, caches or recordings slip in: nothing over 2 MB that git would take."
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git repository")
    large = [
        f
        for f in listed.stdout.split("\0")
        if f and (ROOT / f).is_file() and (ROOT / f).stat().st_size > 2_000_000
    ]
    assert not large


# ---- every rule can fail

GOOD = [
    ("code", "#| default_exp data.good"),
    ("markdown", "# Good\n\n> A notebook that keeps every rule.\n\nWhat goes in,\nand what comes out."),
    ("code", "#| export\nimport math\n\nfrom ptacl.base.core import BadInput"),
    ("code", "#| hide\nfrom fastcore.test import test_eq, test_fail"),
    ("markdown", "Half of a number."),
    (
        "code",
        "#| export\ndef half(\n    x:float, # any finite number\n    fs:float, # sampling rate, Hz\n"
        ")->float: # its half\n"
        '    "Half of a number."\n'
        '    if not math.isfinite(x): raise BadInput("array", f"x is {x}", "Pass a finite number.")\n'
        "    return x/2",
    ),
    (
        "code",
        (
            'test_eq(half(4., 500.), 2.)\ntest_fail(lambda: half(math.inf, 500.), contains="Pass a '
            'finite number")\nhalf(3., 500.)'
        ),
    ),
]
EXPERIMENT = [
    ("markdown", "# Run\n\n> An experiment."),
    ("code", "epochs: int = 3  # passes over the data"),
    ("code", "epochs + 1"),
]


def make(cells: list[tuple[str, str]], name: str, root: Path) -> house.Notebook:
    "A notebook in a project of its own, with a core module below it and its own module exported."
    path = root / "nbs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for below in ("base/00_core", "data/80_high", "models/10_net"):
        other = root / "nbs" / f"{below}.ipynb"
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("{}")
    shutil.copy(ROOT / "settings.ini", root / "settings.ini")
    module = root / "ptacl" / path.parent.name / f"{path.stem[3:]}.py"
    module.parent.mkdir(parents=True, exist_ok=True)
    source = f"# AUTOGENERATED! DO NOT EDIT! File to edit: ../../nbs/data/{path.name}.\n"
    module.write_text(source + "\n" * 60)
    full = []
    for i, (kind, source) in enumerate(cells):
        cell = {"cell_type": kind, "id": f"c{i}", "metadata": {}, "source": source.splitlines(keepends=True)}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        full.append(cell)
    if name == "run.ipynb":
        full[1]["metadata"]["tags"] = ["parameters"]
    data = {"cells": full, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(data))
    return house.Notebook.read(path, root)


def changed(cells: list[tuple[str, str]], old: str, new: str) -> list[tuple[str, str]]:
    "The cells with a text replaced, which must be there."
    assert any(old in s for _, s in cells), old
    return [(k, s.replace(old, new)) for k, s in cells]


PAGE = [
    (
        "markdown",
        (
            "# Page\n\n> Figures.\n\n`papermill nbs/run.ipynb out.ipynb`, seed 1, 2026-01-31. A "
            "test-bed, never clinical evidence."
        ),
    ),
    ("code", "assert 1 + 1 == 2"),
]
HALF = GOOD[5][1]
DEMO = GOOD[6][1]
EXTRA = ("code", "#| hide\nimport os")
# rule, the cells with the fault, file name, a piece of the complaint
FAULTS = [
    ("file_name", GOOD, "data/10_good-Copy1.ipynb", "must match"),
    ("file_name", EXPERIMENT, "Untitled.ipynb", "must match"),
    ("file_name", GOOD, "data/10_global.ipynb", "keyword"),
    ("file_name", EXPERIMENT[:1], "tutorials/look.ipynb", "must match"),
    ("module_name", GOOD, "data/10_other.ipynb", "default_exp data.other"),
    ("module_name", [*GOOD, GOOD[0]], "data/10_good.ipynb", "2 cells"),
    ("module_name", [("code", "#| default_exp run"), *EXPERIMENT], "walk.ipynb", "only library"),
    ("only_library_exports", [*EXPERIMENT, ("code", HALF)], "run.ipynb", "in a experiment"),
    (
        "only_library_exports",
        changed(GOOD, "#| export\ndef", "#| export core\ndef"),
        "data/10_good.ipynb",
        "exports into core",
    ),
    ("opening", changed(GOOD, "# Good", "Good"), "data/10_good.ipynb", "not `# Title`"),
    (
        "opening",
        changed(GOOD, "> A notebook that keeps every rule.", ">"),
        "data/10_good.ipynb",
        "no `> sentence`",
    ),
    ("opening", changed(GOOD, "every rule.", "every rule"), "data/10_good.ipynb", "full stop"),
    ("opening", changed(GOOD, "What goes in,\n", ""), "data/10_good.ipynb", "1 lines"),
    ("opening", changed(GOOD, "What goes in,\n", "- **In**: what\n"), "data/10_good.ipynb", "front matter"),
    ("opening", EXPERIMENT[1:], "run.ipynb", "no title"),
    ("imports_alone", [*GOOD, ("code", "import os\nx = os.sep")], "data/10_good.ipynb", "other code"),
    ("import_cells", [*GOOD, ("code", "#| export\nimport os")], "data/10_good.ipynb", "2 exported"),
    ("import_cells", [*GOOD[:2], *GOOD[5:], GOOD[2]], "data/10_good.ipynb", "do not come first"),
    ("import_cells", changed(GOOD, "#| hide\n", ""), "data/10_good.ipynb", "`#| hide` cell"),
    (
        "no_star_import",
        changed(GOOD, "import test_eq, test_fail", "import *"),
        "data/10_good.ipynb",
        "import *",
    ),
    (
        "imports_one_way",
        changed(GOOD, "ptacl.base.core", "ptacl.data.high"),
        "data/10_good.ipynb",
        "imports ptacl.data.high (80)",
    ),
    (
        "imports_one_way",
        changed(GOOD, "    return x/2", "    from ptacl.data.high import x\n    return x/2"),
        "data/10_good.ipynb",
        "imports ptacl.data.high",
    ),
    (
        "imports_one_way",
        changed(GOOD, "ptacl.base.core", "ptacl.models.net"),
        "data/10_good.ipynb",
        "data does not use models",
    ),
    (
        "imports_one_way",
        changed(GOOD, "from ptacl.base.core import BadInput", "from ptacl import nowhere"),
        "data/10_good.ipynb",
        "ptacl.nowhere is no",
    ),
    (
        "imports_declared",
        changed(GOOD, "import math\n", "import pytest\n"),
        "data/10_good.ipynb",
        "pytest is not among",
    ),
    (
        "export_cell_size",
        changed(GOOD, "    return x/2", "    x = x\n" * 90 + "    return x/2"),
        "data/10_good.ipynb",
        "97 lines",
    ),
    *(
        ("plain_lines", [*GOOD, ("code", line)], "data/10_good.ipynb", problem)
        for line, problem in (
            ("a, b = 1, 2", "neither unpacks nor swaps"),
            ("a.sort(), b.sort()\nc = 1", "several calls in one statement"),
            ("f = lambda x: (\n    x\n)", "a lambda of more than one line"),
            ("y = (lambda x: x)(1)", "called where it stands"),
            ("y = [c for a in x for b in a for c in b]", "more than two `for`"),
            ("y = 1 if a else 2 if b else 3", "conditional expressions nest"),
            ("y = Batch(1, 2, c=3)", "Batch is built by position"),
        )
    ),
    (
        "one_symbol_a_cell",
        changed(GOOD, "    return x/2", "    return x/2\n\nclass Third: ..."),
        "data/10_good.ipynb",
        "half, Third",
    ),
    (
        "no_work_at_import",
        [*GOOD, ("code", "#| export\nprint('hello')")],
        "data/10_good.ipynb",
        "runs at import",
    ),
    ("documented", changed(GOOD, "x:float, # any", "x, # any"), "data/10_good.ipynb", "`x` has no type"),
    (
        "documented",
        changed(GOOD, "x:float, # any finite number", "x:float,"),
        "data/10_good.ipynb",
        "`x` has no comment",
    ),
    (
        "documented",
        changed(GOOD, "x:float, # any finite number\n    fs", "x:float, fs"),
        "data/10_good.ipynb",
        "shares its line",
    ),
    ("documented", changed(GOOD, "->float", ""), "data/10_good.ipynb", "no return type"),
    ("documented", changed(GOOD, " # its half", ""), "data/10_good.ipynb", "what it returns"),
    ("documented", changed(GOOD, '    "Half of a number."\n', ""), "data/10_good.ipynb", "no docstring"),
    (
        "documented",
        changed(GOOD, '"Half of a number."', '"Half of a number"'),
        "data/10_good.ipynb",
        "without a full stop",
    ),
    (
        "documented",
        changed(GOOD, '"Half of a number."', '"""Half.\n\n    More."""'),
        "data/10_good.ipynb",
        "more than one line",
    ),
    (
        "documented",
        [*GOOD, ("code", '#| export\n@dataclass\nclass Box:\n    "A box."\n    x: float')],
        "data/10_good.ipynb",
        "Box.x",
    ),
    (
        "documented",
        [*GOOD, ("code", '#| export\nclass Box:\n    "A box."\n    def __init__(self, x): self.x = x')],
        "data/10_good.ipynb",
        "Box.__init__: `x` has no type",
    ),
    (
        "signatures",
        changed(GOOD, "fs:float,", "fs:float=500.,"),
        "data/10_good.ipynb",
        "`fs` has the default 500.0",
    ),
    (
        "signatures",
        changed(GOOD, "fs:float, # sampling rate, Hz", "**options:int"),
        "data/10_good.ipynb",
        "**options",
    ),
    (
        "sound_errors",
        changed(GOOD, "    return x/2", "    try: return x/2\n    except ZeroDivisionError: pass"),
        "data/10_good.ipynb",
        "swallowed",
    ),
    (
        "sound_errors",
        changed(GOOD, "    return x/2", "    try: return x/2\n    except: return 0"),
        "data/10_good.ipynb",
        "bare except",
    ),
    (
        "sound_errors",
        changed(GOOD, "    return x/2", '    return 0 if "IN_TEST" in globals() else x/2'),
        "data/10_good.ipynb",
        "whether it is tested",
    ),
    (
        "workers_end",
        changed(GOOD, "    return x/2", "    return Parallel(n_jobs=2)(x)"),
        "data/10_good.ipynb",
        "idle_worker_timeout",
    ),
    ("demonstrated", GOOD[:6], "data/10_good.ipynb", "nothing is asserted of half"),
    (
        "demonstrated",
        [*GOOD[:6], ("code", "half(4., 500.)\nassert True")],
        "data/10_good.ipynb",
        "nothing is asserted",
    ),
    (
        "demonstrated",
        [*GOOD[:6], ("code", "test_eq(math.pi > 3, True)")],
        "data/10_good.ipynb",
        "`half` is not used",
    ),
    ("demonstrated", [*GOOD[:6], ("code", "#| slow\n" + DEMO)], "data/10_good.ipynb", "nothing is asserted"),
    (
        "demonstrated",
        [*GOOD[:6], ("code", HALF.replace("half(", "third(")), GOOD[6]],
        "data/10_good.ipynb",
        "nothing is asserted of half",
    ),
    (
        "errors_shown",
        changed(GOOD, ', contains="Pass a finite number"', ""),
        "data/10_good.ipynb",
        "no test shows",
    ),
    (
        "parameters_cell",
        [EXPERIMENT[0], EXPERIMENT[2], EXPERIMENT[1]],
        "run.ipynb",
        "is not `name: type = literal`",
    ),
    ("parameters_cell", EXPERIMENT, "walk.ipynb", "0 cells tagged"),
    ("parameters_cell", changed(EXPERIMENT, "= 3", "= len('abc')"), "run.ipynb", "not a literal"),
    ("parameters_cell", changed(EXPERIMENT, "  # passes over the data", ""), "run.ipynb", "no help"),
    ("parameters_cell", changed(EXPERIMENT, "epochs: int", "#| hide\nepochs: int"), "run.ipynb", "directive"),
    ("stored_cells", [*GOOD, ("code", " ")], "data/10_good.ipynb", "empty"),
    *(
        ("results_page", changed(PAGE, gone, ""), "results/my_page.ipynb", f"no {what}")
        for gone, what in (
            ("papermill", "papermill"),
            ("seed", "seed"),
            ("2026-01-31", "date"),
            ("never ", "`never clinical"),
        )
    ),
    ("results_page", PAGE[:1], "results/my_page.ipynb", "asserts nothing"),
    (
        "results_page",
        [*PAGE, ("code", "from ptacl.base.core import BadInput")],
        "results/my_page.ipynb",
        "imports ptacl",
    ),
    ("file_name", PAGE, "results/page.ipynb", "must match"),
    ("stored_outputs", [*PAGE, ("code", "print(1)")], "results/my_page.ipynb", "no output is stored"),
    ("stored_outputs", [*GOOD, ("code", "half")], "data/10_good.ipynb", "no output is stored"),
    ("stored_outputs", [*GOOD, ("code", "print(half)")], "data/10_good.ipynb", "no output is stored"),
    ("file_size", [*GOOD, ("markdown", "x" * 300_000)], "data/10_good.ipynb", "30"),
    ("file_size", [*EXPERIMENT, ("markdown", "x" * 600_000)], "tutorials/01_look_here.ipynb", "60"),
    ("no_machine_paths", [*GOOD, ("code", "p = '/home/me/a.dat'")], "data/10_good.ipynb", "/home/me"),
    ("no_machine_paths", [*GOOD, ("code", "p = 'C:\\\\data'")], "data/10_good.ipynb", "path of one machine"),
    ("no_machine_paths", [*GOOD, ("code", "sys.path.append('..')")], "data/10_good.ipynb", "sys.path"),
    ("no_machine_paths", [*GOOD, ("code", "!pip install x")], "data/10_good.ipynb", "magic"),
    ("no_machine_paths", [*GOOD, ("code", "%cd ..")], "data/10_good.ipynb", "magic"),
    ("no_machine_paths", [*GOOD, ("code", "from google.colab import drive")], "data/10_good.ipynb", "colab"),
    (
        "no_eval_false",
        changed(GOOD, "test_eq(half", "#| eval: false\ntest_eq(half"),
        "data/10_good.ipynb",
        "eval: false",
    ),
]


@pytest.mark.parametrize(
    "cells, name",
    [
        (GOOD, "data/10_good.ipynb"),
        (EXPERIMENT, "run.ipynb"),
        (EXPERIMENT[:1], "tutorials/01_look_here.ipynb"),
        (PAGE, "results/my_page.ipynb"),
        (EXPERIMENT[:1], "index.ipynb"),
    ],
)
def test_good_notebook_keeps_all_rules(cells, name, tmp_path):
    nb = make(cells, name, tmp_path)
    assert {r: p for r, check in house.RULES.items() if (p := list(check(nb)))} == {}


@pytest.mark.parametrize("line", ["a, b = b, a", "a, b = f()", "y = [b for a in x for b in a]", "f(), g()"])
def test_plain_lines_are_let_through(line, tmp_path):
    assert list(house.RULES["plain_lines"](make([("code", line)], "data/10_good.ipynb", tmp_path))) == []


@pytest.mark.parametrize("n, problems", [(39, 1), (40, 0), (450, 0), (451, 1)])
def test_size_of_a_module(n, problems, tmp_path):
    nb = make(GOOD, "data/10_good.ipynb", tmp_path)
    nb.module_file.write_text("\n" * n)
    assert len(list(house.RULES["module_size"](nb))) == problems


def test_arrows_that_turn_back_are_found():
    assert list(house.one_way(dict(a=(), b=("a",), c=("d",), d=("c",)))) == [
        "c uses d, which does not stand before it"
    ]


def test_comments_above_are_read_as_one():
    source = "def f(\n    # first line\n    # of two\n    x: int,\n) -> None: ..."
    assert house.meaning(house.Cell("code", source, {}, 0), 4, {4}) == "first line of two"


def test_short_names_are_for_readers_only(tmp_path):
    "What `__init__.py` offers is imported by tutorials and experiments, never within the library."
    nb = make(
        [*EXPERIMENT[:1], ("code", "from ptacl.use import ECGEncoder")],
        "tutorials/01_look_here.ipynb",
        tmp_path,
    )
    assert "ptacl.use.ECGEncoder is no" in "".join(house.RULES["imports_one_way"](nb))
    (tmp_path / "ptacl" / "use").mkdir()
    (tmp_path / "ptacl" / "use" / "__init__.py").write_text("from ptacl.use.embed import ECGEncoder\n")
    assert list(house.RULES["imports_one_way"](nb)) == []
    inside = make(
        changed(GOOD, "ptacl.base.core import BadInput", "ptacl.use import ECGEncoder"),
        "data/10_good.ipynb",
        tmp_path,
    )
    assert "ptacl.use.ECGEncoder is no" in "".join(house.RULES["imports_one_way"](inside))


@pytest.mark.parametrize("rule, cells, name, complaint", FAULTS, ids=[f"{f[0]}-{f[3]}" for f in FAULTS])
def test_rule_finds_its_fault(rule, cells, name, complaint, tmp_path):
    assert any(complaint in p for p in house.RULES[rule](make(cells, name, tmp_path)))


def test_every_rule_has_a_fault():
    assert set(house.RULES) == {f[0] for f in FAULTS} | {"module_size"}  # which has a test of its own


def print_a_path(d):
    return d["cells"][6]["outputs"].append({"output_type": "stream", "text": ["read /work/main/a.dat"]})


def show_four_plots(d):
    return d["cells"][6].update(outputs=[{"output_type": "display_data", "data": {"image/png": "x"}}] * 4)


@pytest.mark.parametrize(
    "change, rule, complaint",
    [
        (lambda d: d["cells"][5].update(execution_count=3), "stored_cells", "execution count 3"),
        (lambda d: d["cells"][5].pop("id"), "stored_cells", "cell ids"),
        (lambda d: d["cells"][5].update(id="c1"), "stored_cells", "cell ids"),
        (lambda d: d.update(nbformat_minor=4), "stored_cells", "not format 4.5"),
        (
            lambda d: d["cells"][6]["outputs"].append({"output_type": "error", "ename": "KeyError"}),
            "stored_cells",
            "KeyError",
        ),
        (
            print_a_path,
            "no_machine_paths",
            "/work/main",
        ),
        (
            show_four_plots,
            "stored_outputs",
            "4 plots",
        ),
        (
            lambda d: d["cells"][6]["metadata"].update(tags=["parameters"]),
            "parameters_cell",
            "1 cells tagged",
        ),
    ],
)
def test_rule_finds_a_fault_in_the_file(change, rule, complaint, tmp_path):
    nb = make(GOOD, "data/10_good.ipynb", tmp_path)
    change(nb.data)
    assert any(
        complaint in p for p in house.RULES[rule](house.Notebook(nb.path, nb.root, copy.deepcopy(nb.data)))
    )


def test_experiment_with_outputs_is_found(tmp_path):
    nb = make(EXPERIMENT, "run.ipynb", tmp_path)
    nb.data["cells"][2]["outputs"] = [{"output_type": "stream", "text": ["4"]}]
    assert list(house.RULES["stored_outputs"](nb)) == ["cell 2 (epochs + 1): has outputs"]


def test_orphans_and_copies_are_found(tmp_path):
    make(GOOD, "data/10_good.ipynb", tmp_path)
    make(GOOD, "data/10_twin.ipynb", tmp_path)
    for name in ("base/00_core.ipynb", "data/80_high.ipynb", "models/10_net.ipynb"):
        (tmp_path / "nbs" / name).unlink()
    (tmp_path / "ptacl" / "data" / "old.py").write_text("")
    (tmp_path / "ptacl" / "attic").mkdir()
    assert list(house.orphans(tmp_path)) == [
        "ptacl/data/old.py: no notebook exports it",
        "number 10 has two notebooks in data",
        "ptacl/attic: a folder that USES in tests/house.py does not know",
    ]
    assert list(house.twice_defined(tmp_path)) == ["`half` is defined in 10_good.ipynb and in 10_twin.ipynb"]


def test_stale_module_and_unclean_notebook_are_found(tmp_path):
    "The copies on which export and clean are tried do show a difference."
    project = project_copy(tmp_path)
    core = project / "ptacl" / "base" / "core.py"
    fresh = core.read_bytes()
    core.write_bytes(fresh + b"\n# edited by hand\n")
    nb = project / "nbs" / "base" / "00_core.ipynb"
    clean = nb.read_text(encoding="utf-8")
    nb.write_text(clean.replace('"execution_count": null', '"execution_count": 7', 1), encoding="utf-8")
    export(project)
    command("nbdev_clean", project, "--fname", "nbs/base/00_core.ipynb")
    assert core.read_bytes() == fresh and nb.read_text(encoding="utf-8") == clean


def test_parameters_tag_survives_cleaning(tmp_path):
    "settings.ini keeps `tags`: without it papermill would run with the defaults and say nothing."
    project = project_copy(tmp_path)
    nb = make(EXPERIMENT, "run.ipynb", tmp_path / "other")
    shutil.copy(nb.path, project / "nbs" / "run.ipynb")
    command("nbdev_clean", project, "--fname", "nbs/run.ipynb")
    assert (
        list(house.RULES["parameters_cell"](house.Notebook.read(project / "nbs" / "run.ipynb", project)))
        == []
    )
