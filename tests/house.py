"""The mechanical house rules for notebooks, each as a function that yields what is wrong.

`tests/test_house.py` holds every notebook to every rule, and every rule to a notebook that breaks it.
A rule is a generator with a one-line docstring (the rule in words) that is registered by `@rule`.
"""

import ast
import configparser
import difflib
import io
import json
import keyword
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import packages_distributions
from pathlib import Path

# Folder of the library -> folders that its notebooks may import from. The order is one way, so there is no
# circle.
USES = {
    "base": (),
    "losses": ("base",),
    "data": ("base",),
    "phantom": ("base", "data"),
    "models": ("base", "losses", "data"),
    "evaluation": ("base", "losses", "data", "models"),
    "training": ("base", "losses", "data", "models", "evaluation"),
    "report": ("base", "data", "phantom", "models", "evaluation", "training"),
    "plots": ("base", "data", "models", "evaluation"),
    "use": ("base", "data", "phantom", "models", "evaluation", "report", "plots"),
    "studies": (
        *("base", "losses", "data", "phantom", "models", "evaluation", "training", "report", "plots", "use"),
    ),
    "docs": ("base",),
}
MAX_EXPORT_LINES = 90
MODULE_LINES = (40, 450)  # of a module, as ruff formats it
MAX_BYTES = {
    "library": 300_000,
    "experiment": 300_000,
    "index": 300_000,
    "tutorial": 600_000,
    "results": 600_000,
}
MAX_PLOTS = 3  # in a library notebook
# never have a default
PHYSICAL = {"fs", "mains_hz", "rr_ms", "spacing_mm", "trigger_time_ms", "heart_rate_bpm"}
MACHINE_PATH = re.compile(
    r"(?<![\w.:/>*])(?:/(?:home|work|tmp|root|Users|mnt|usr|var|opt|srv|content|private)/|~/|[A-Z]:\\\\?\w)"
)
MAGIC = re.compile(r"^\s*(?:!|%)", re.M)
MODULE_LEVEL = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


@dataclass
class Cell:
    "One cell, with what the rules ask about it."

    kind: str  # code | markdown | raw
    source: str  # the text
    raw: dict  # the cell as it stands in the file
    number: int  # position in the notebook, from 0

    @cached_property
    def directives(self) -> dict[str, str]:
        "The `#|` lines at the top: name -> rest."
        lines = re.findall(r"^#\|\s*([\w-]+):?[ \t]*(.*)$", self.source, re.M)
        return {k: v.strip() for k, v in lines} if self.kind == "code" else {}

    @property
    def is_export(self) -> bool:
        "True if the cell goes into a module."
        return bool({"export", "exporti", "exports"} & self.directives.keys())

    @property
    def is_run(self) -> bool:
        "True if nbdev_test runs the cell on a machine without a GPU."
        skipped = {"slow", "cuda", "notest"} & self.directives.keys()
        return self.kind == "code" and not skipped and self.directives.get("eval") != "false"

    @cached_property
    def tree(self) -> ast.Module:
        "The syntax tree, magics left out."
        return ast.parse("\n".join("" if MAGIC.match(line) else line for line in self.source.splitlines()))

    @property
    def lines(self) -> int:
        "Non-blank lines that are not directives."
        return sum(bool(line.strip()) and not line.startswith("#|") for line in self.source.splitlines())

    @cached_property
    def comments(self) -> dict[int, str]:
        "Line number -> its comment."
        tokens = tokenize.generate_tokens(io.StringIO(self.source).readline)
        return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}

    def __str__(self) -> str:
        first = next((x for x in self.source.splitlines() if x.strip() and not x.startswith("#|")), "")
        return f"cell {self.number} ({first.strip()[:60]})"


@dataclass
class Notebook:
    "A notebook and its place in the project."

    path: Path  # the file
    root: Path  # the folder that holds nbs/ and ptacl/
    data: dict = field(repr=False)  # the parsed file

    @classmethod
    def read(cls, path: Path, root: Path) -> "Notebook":
        "Parse a file."
        return cls(path, root, json.loads(path.read_text(encoding="utf-8")))

    @cached_property
    def cells(self) -> list[Cell]:
        "All cells in order."
        return [Cell(c["cell_type"], "".join(c["source"]), c, i) for i, c in enumerate(self.data["cells"])]

    @property
    def code(self) -> list[Cell]:
        "Code cells."
        return [c for c in self.cells if c.kind == "code"]

    @property
    def exports(self) -> list[Cell]:
        "Exported cells."
        return [c for c in self.code if c.is_export]

    @property
    def folder(self) -> str:
        "Folder below nbs/, empty for what lies in nbs/ itself."
        return self.path.parent.relative_to(self.root / "nbs").as_posix().removeprefix(".")

    @property
    def kind(self) -> str:
        "library | tutorial | results | experiment | index, from the place and name alone."
        if self.folder in USES:
            return "library"
        if self.folder in ("tutorials", "concepts"):
            return "tutorial"
        if self.folder == "results":
            return "results"
        return "index" if self.path.stem == "index" else "experiment"

    @property
    def number(self) -> int | None:
        "NN of a library notebook."
        found = re.match(r"(\d\d)_", self.path.stem)
        return int(found[1]) if found and self.kind == "library" else None

    @property
    def module(self) -> str:
        "Name of the module that a library notebook makes, below `ptacl.`."
        name = re.sub(r"^\d\d_", "", self.path.stem)
        return f"{self.folder}.{name}" if self.folder else name

    @property
    def module_file(self) -> Path:
        "Place of the module that a library notebook makes."
        return self.root / "ptacl" / f"{self.module.replace('.', '/')}.py"

    def section(self, cell: Cell) -> list[Cell]:
        "The code cells that run between an exported cell and the next one."
        after = []
        for c in self.code:
            if c.number <= cell.number:
                continue
            if c.is_export:
                break
            if c.is_run:
                after.append(c)
        return after


RULES = {}


def rule(check):
    "Register a rule under its name."
    RULES[check.__name__] = check
    return check


# ---- names, opening, modules


@rule
def file_name(nb: Notebook) -> Iterator[str]:
    "NN_name, tutorials/NN_verb_object, results/object_measurement, one word or two (experiment); no keyword."
    want = {
        "library": r"\d\d_[a-z][a-z0-9_]*",
        "tutorial": r"\d\d_[a-z0-9]+(_[a-z0-9]+)+",
        "results": r"[a-z]+(_[a-z0-9]+)+",
    }.get(nb.kind, r"[a-z]+(_[a-z]+)?")
    if not re.fullmatch(want, nb.path.stem):
        yield f"a {nb.kind} notebook's name must match {want}"
    if keyword.iskeyword(nb.module.rpartition(".")[2]):
        yield f"{nb.module} is a Python keyword: no module can be called so"


@rule
def module_name(nb: Notebook) -> Iterator[str]:
    "A library notebook begins with `#| default_exp folder.name` alone; its module names it as its source."
    named = [c for c in nb.code if "default_exp" in c.directives]
    if nb.kind != "library":
        if named:
            yield f"{named[0]}: only library notebooks export"
        return
    if nb.cells[0].source.strip() != f"#| default_exp {nb.module}":
        yield f"first cell is not `#| default_exp {nb.module}` alone"
    if len(named) != 1:
        yield f"{len(named)} cells with default_exp"
    name = f"ptacl/{nb.module.replace('.', '/')}.py"
    up = "../" * (name.count("/"))
    if not nb.module_file.is_file():
        yield f"{name} is missing: run python .ci/export.py"
    elif f"File to edit: {up}nbs/{nb.folder}/{nb.path.name}." not in nb.module_file.read_text(
        encoding="utf-8"
    ):
        yield f"{name} names another notebook"


@rule
def module_size(nb: Notebook) -> Iterator[str]:
    "A module has 40 to 450 lines: below it is no room of its own, above it holds several."
    if nb.kind != "library" or not nb.module_file.is_file():
        return
    n = len(nb.module_file.read_text(encoding="utf-8").splitlines())
    if not MODULE_LINES[0] <= n <= MODULE_LINES[1]:
        yield f"ptacl.{nb.module} has {n} lines"


@rule
def only_library_exports(nb: Notebook) -> Iterator[str]:
    "Tutorials and experiments export nothing, and no notebook exports into another's module."
    for c in nb.exports:
        if nb.kind != "library":
            yield f"{c}: an exported cell in a {nb.kind}"
        for d in ("export", "exporti", "exports"):
            if c.directives.get(d):
                yield f"{c}: exports into {c.directives[d]}, not into its own module"


@rule
def opening(nb: Notebook) -> Iterator[str]:
    "Title cell: `# Title`, a blank line, `> One sentence.`; a library's goes on for 2-6 lines."
    cells = nb.cells[1:2] if nb.kind == "library" else [c for c in nb.cells if c.kind != "raw"][:1]
    if not cells or cells[0].kind != "markdown":
        yield "no title cell where it belongs"
        return
    lines = cells[0].source.strip().splitlines() + ["", "", ""]
    if not re.match(r"# \S", lines[0]):
        yield f"title is `{lines[0]}`, not `# Title`"
    if lines[1].strip():
        yield "no blank line under the title"
    if not re.match(r"> \S", lines[2]):
        yield "no `> sentence` under the title"
    elif not lines[2].rstrip().endswith("."):
        yield f"the sentence has no full stop: {lines[2]}"
    more = sum(bool(line.strip()) for line in lines[3:])
    if nb.kind == "library" and not 2 <= more <= 6:
        yield f"{more} lines under the sentence, 2-6 are asked for"
    if re.search(r"^-\s+[*`&].*:", cells[0].source, re.M):
        yield "a list that nbdev takes for front matter and cannot read: give it a cell of its own"


# ---- imports


def imports_of(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    "Every imported module, with the names taken from it, at any depth."
    for n in ast.walk(tree):
        if isinstance(n, ast.Import):
            yield from ((a.name, []) for a in n.names)
        elif isinstance(n, ast.ImportFrom):
            yield n.module or "", [a.name for a in n.names]


def is_import(node: ast.stmt) -> bool:
    "True for an import statement."
    return isinstance(node, (ast.Import, ast.ImportFrom))


@rule
def imports_alone(nb: Notebook) -> Iterator[str]:
    "A cell that imports does nothing else: making the docs runs it again."
    for c in nb.code:
        kinds = {is_import(n) for n in c.tree.body}
        if kinds == {True, False}:
            yield f"{c}: imports and other code in one cell"


@rule
def import_cells(nb: Notebook) -> Iterator[str]:
    """A library notebook has one exported cell of imports, before all others; other imports are in a `#|
    hide` cell.
    """
    if nb.kind != "library":
        return
    importing = [c for c in nb.exports if any(is_import(n) for n in c.tree.body)]
    if len(importing) != 1:
        yield f"{len(importing)} exported cells with imports, one is asked for"
    elif importing[0] is not nb.exports[0]:
        yield "the exported imports do not come first"
    for c in nb.code:
        if not c.is_export and any(is_import(n) for n in c.tree.body) and "hide" not in c.directives:
            yield f"{c}: imports for tests go into a `#| hide` cell"


@rule
def no_star_import(nb: Notebook) -> Iterator[str]:
    "Names are imported one by one."
    for c in nb.code:
        if any("*" in names for _, names in imports_of(c.tree)):
            yield f"{c}: import *"


def library_numbers(root: Path) -> dict[str, int]:
    "Module of each library notebook -> its number."
    written = [(p, p.stat().st_mtime_ns) for p in sorted((root / "nbs").rglob("*.ipynb"))]
    return _numbers_of(root, tuple(written))


@cache  # asked for every notebook
def _numbers_of(root: Path, written: tuple[tuple[Path, int], ...]) -> dict[str, int]:
    "As they are now."
    return {nb.module: nb.number for nb in notebooks(root) if nb.kind == "library"}


def short_names(root: Path, package: str) -> list[str]:
    "What a folder's `__init__.py` offers by a short name, such as `from ptacl.use import ECGEncoder`."
    init = root / "ptacl" / package.replace(".", "/") / "__init__.py"
    tree = ast.parse(init.read_text(encoding="utf-8")) if init.is_file() else ast.Module([], [])
    offered = [name for _, names in imports_of(tree) for name in names]
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            offered += ast.literal_eval(node.value)
    return offered


def modules_imported(nb: Notebook, cell: Cell, known: dict[str, int]) -> Iterator[tuple[str, str]]:
    "Modules of the project that a cell imports, or `` with what cannot be resolved."
    for module, names in imports_of(cell.tree):
        package, _, inner = module.partition(".")
        if package != "ptacl" or not (inner or names):
            continue
        if inner in known:
            yield inner, ""
            continue
        offered = short_names(nb.root, inner) if nb.kind != "library" else []
        for name in names or [inner]:
            full = f"{inner}.{name}" if inner and names else name
            if full in known:
                yield full, ""
            elif name not in offered:
                yield "", f"ptacl.{full}"


@rule
def imports_one_way(nb: Notebook) -> Iterator[str]:
    "A library notebook imports from lower numbers of its folder and from the folders that USES names."
    known = library_numbers(nb.root)
    for c in nb.code:
        for module, unknown in modules_imported(nb, c, known):
            if unknown:
                yield f"{c}: {unknown} is no notebook's module"
            elif nb.kind == "library":
                folder = module.rpartition(".")[0]
                if folder == nb.folder and known[module] >= nb.number:
                    yield f"{c}: imports ptacl.{module} ({known[module]:02})"
                elif folder not in (nb.folder, *USES[nb.folder]):
                    yield f"{c}: {nb.folder} does not use {folder}, but this imports ptacl.{module}"


@rule
def imports_declared(nb: Notebook) -> Iterator[str]:
    "What users run imports the standard library and the requirements; what an extra brings, in a function."
    if nb.kind not in ("library", "experiment"):
        return

    def plain(names):
        return {re.sub(r"[-_.]+", "-", n).lower() for n in names}

    known = plain(requirements(nb.root, "requirements")) | {"ipython"}  # ipykernel brings IPython
    optional = plain(
        n for extra in requirements(nb.root, "extras") for n in requirements(nb.root, f"{extra}_requirements")
    )
    distributions = installed()
    for c in nb.exports if nb.kind == "library" else nb.code:
        on_top = [m for n in c.tree.body if is_import(n) for m, _ in imports_of(n)]
        for module, _ in imports_of(c.tree):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top == "ptacl":
                continue
            owners = plain(distributions.get(top, [top]))
            if not owners & (known if module in on_top else known | optional):
                yield f"{c}: {top} is not among the requirements of settings.ini"


@cache  # the environment does not change while the tests run
def installed() -> dict[str, list[str]]:
    "Module -> the distributions that bring it."
    return packages_distributions()


def requirements(root: Path, key: str) -> dict[str, str]:
    "A list of settings.ini: distribution -> version specifier."
    config = configparser.ConfigParser(delimiters=["="], interpolation=None)
    config.read(root / "settings.ini", encoding="utf-8")
    found = [re.match(r"([\w.-]+)(.*)", r) for r in config["DEFAULT"].get(key, "").split()]
    return {m[1]: m[2] for m in found}


# ---- exported code


@rule
def export_cell_size(nb: Notebook) -> Iterator[str]:
    "An exported cell has at most 90 lines."
    for c in nb.exports:
        if c.lines > MAX_EXPORT_LINES:
            yield f"{c}: {c.lines} lines"


def patched_class(node: ast.AST) -> str | None:
    "The class that an `@patch` function belongs to."
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return None
    is_patch = any("patch" in ast.unparse(d).split("(")[0] for d in node.decorator_list)
    return (
        ast.unparse(node.args.args[0].annotation)
        if is_patch and node.args.args and node.args.args[0].annotation
        else None
    )


def defined(c: Cell) -> list[str]:
    "Names that a cell defines at its top level."
    names = []
    for n in c.tree.body:
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            owner = patched_class(n)
            names.append(f"{owner}.{n.name}" if owner else n.name)
        elif isinstance(n, ast.AnnAssign):
            names.append(ast.unparse(n.target))
        elif isinstance(n, ast.Assign):
            names += [
                x.id
                for t in n.targets
                for x in ast.walk(t)
                if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)
            ]
    return names


def is_public(name: str) -> bool:
    "True unless some part of the name starts with an underscore."
    return not any(p.startswith("_") for p in name.split("."))


@rule
def one_symbol_a_cell(nb: Notebook) -> Iterator[str]:
    "An exported cell defines at most one public function or class."
    for c in nb.exports:
        names = [
            n.name
            for n in c.tree.body
            if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and is_public(n.name)
        ]
        if len(names) > 1:
            yield f"{c}: defines {', '.join(names)}"


@rule
def no_work_at_import(nb: Notebook) -> Iterator[str]:
    "Exported cells define; they do not act."
    for c in nb.exports:
        for n in c.tree.body:
            is_doc = isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
            if not isinstance(n, MODULE_LEVEL) and not is_doc:
                yield f"{c}: `{ast.unparse(n).splitlines()[0][:60]}` runs at import"


def functions_of(c: Cell) -> Iterator[tuple[str, ast.FunctionDef, bool]]:
    "Public functions and methods: name, node, whether its first parameter is the object or class."
    for n in c.tree.body:
        if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)) and is_public(n.name):
            yield n.name, n, patched_class(n) is not None
        if isinstance(n, ast.ClassDef) and is_public(n.name):
            for m in n.body:
                if isinstance(m, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
                    is_public(m.name) or m.name == "__init__"
                ):
                    yield (
                        f"{n.name}.{m.name}",
                        m,
                        not any("staticmethod" in ast.unparse(d) for d in m.decorator_list),
                    )


def parameters_of(f: ast.FunctionDef, is_method: bool) -> list[ast.arg]:
    "Parameters that need a type and a meaning."
    a = f.args
    named = (a.posonlyargs + a.args)[is_method:] + a.kwonlyargs
    return named + ([a.vararg] if a.vararg else [])


@rule
def documented(nb: Notebook) -> Iterator[str]:
    """Public functions and classes: one-line docstring with a full stop; a type and a comment on every
    parameter, field and return.
    """
    for c in nb.exports:
        for cls in [n for n in c.tree.body if isinstance(n, ast.ClassDef) and is_public(n.name)]:
            yield from class_problems(c, cls)
        for name, f, is_method in functions_of(c):
            yield from (f"{name}: {p}" for p in function_problems(c, f, is_method))


def class_problems(c: Cell, cls: ast.ClassDef) -> Iterator[str]:
    "What is wrong with the docstring of a class, and with the fields of a dataclass."
    yield from (f"{cls.name}: {p}" for p in docstring_problems(cls))
    if not any("dataclass" in ast.unparse(d) for d in cls.decorator_list):
        return
    for n in cls.body:
        if isinstance(n, ast.AnnAssign) and is_public(n.target.id) and not meaning(c, n.lineno, set()):
            yield f"{cls.name}.{n.target.id}: no comment that tells what it is"


def function_problems(c: Cell, f: ast.FunctionDef, is_method: bool) -> Iterator[str]:
    "What is wrong with a docstring and with what is said of parameters and return."
    if f.name != "__init__":
        yield from docstring_problems(f)
    args = parameters_of(f, is_method)
    taken = [a.lineno for a in args] + ([f.returns.lineno] if f.returns else [])
    for a in args:
        if a.annotation is None:
            yield f"`{a.arg}` has no type"
        if taken.count(a.lineno) > 1:
            yield f"`{a.arg}` shares its line, so its comment is nobody's"
        elif not meaning(c, a.lineno, set(taken)):
            yield f"`{a.arg}` has no comment"
    if f.returns is None:
        yield "no return type"
    elif ast.unparse(f.returns) != "None" and not meaning(c, f.returns.lineno, set(taken)):
        yield "no comment on what it returns"


def docstring_problems(node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    "What is wrong with a docstring."
    doc = ast.get_docstring(node)
    if not doc:
        yield "no docstring"
    elif "\n" in doc:
        yield "docstring of more than one line"
    elif not doc.endswith("."):
        yield "docstring without a full stop"


def meaning(c: Cell, line: int, taken: set[int]) -> str:
    "The comment on a line, or the lines of comment directly above it, as fastcore.docments reads it."
    if c.comments.get(line):
        return c.comments[line]
    lines = c.source.splitlines()
    above = []
    while (line := line - 1) not in taken and line > 0 and lines[line - 1].lstrip().startswith("#"):
        above.insert(0, c.comments[line])
    return " ".join(above)


@rule
def signatures(nb: Notebook) -> Iterator[str]:
    "No **kwargs in a public function, no default for a physical quantity."
    for c in nb.exports:
        for name, f, _ in functions_of(c):
            delegates = any("delegates" in ast.unparse(d) for d in f.decorator_list)
            if f.args.kwarg and not delegates:
                yield f"{name}: **{f.args.kwarg.arg}"
            positional = f.args.posonlyargs + f.args.args
            defaults = list(
                zip(positional[len(positional) - len(f.args.defaults) :], f.args.defaults, strict=False)
            ) + list(zip(f.args.kwonlyargs, f.args.kw_defaults, strict=True))
            for a, d in defaults:
                if a.arg in PHYSICAL and d is not None and ast.unparse(d) != "None":
                    yield f"{name}: `{a.arg}` has the default {ast.unparse(d)}"


@rule
def sound_errors(nb: Notebook) -> Iterator[str]:
    "No bare except, no except that only passes or continues, no test-only branch in exported code."
    for c in nb.code:
        for n in ast.walk(c.tree):
            if isinstance(n, ast.ExceptHandler):
                if n.type is None:
                    yield f"{c}: bare except"
                if all(isinstance(b, (ast.Pass, ast.Continue)) for b in n.body):
                    yield f"{c}: an error is swallowed"
        if c.is_export and "IN_TEST" in c.source:
            yield f"{c}: library code asks whether it is tested"


@rule
def workers_end(nb: Notebook) -> Iterator[str]:
    """joblib's Parallel has idle_worker_timeout=2: its workers else live on for 300 s, and nbdev_test waits
    for them.
    """
    for c in nb.code:
        for n in ast.walk(c.tree):
            if (
                isinstance(n, ast.Call)
                and ast.unparse(n.func).split(".")[-1] == "Parallel"
                and "idle_worker_timeout" not in [k.arg for k in n.keywords]
            ):
                yield f"{c}: Parallel without idle_worker_timeout"


# ---- lines: what HOUSE asks and ruff does not have


def line_problems(tree: ast.Module) -> Iterator[tuple[int, str]]:
    "Number of a line, and what is wrong with it."
    for n in ast.walk(tree):
        if isinstance(n, ast.Assign):
            yield from ((n.lineno, p) for p in _assignment_problems(n))
        elif isinstance(n, ast.Expr) and _is_row_of_calls(n.value) and n is not tree.body[-1]:
            yield n.lineno, "several calls in one statement"
        elif isinstance(n, ast.Lambda) and n.end_lineno != n.lineno:
            yield n.lineno, "a lambda of more than one line"
        elif isinstance(n, ast.Call):
            yield from ((n.lineno, p) for p in _call_problems(n))
        elif isinstance(n, COMPREHENSIONS) and len(n.generators) > 2:
            yield n.lineno, "more than two `for` in a comprehension"
        elif isinstance(n, ast.IfExp) and any(isinstance(x, ast.IfExp) for x in (n.body, n.orelse, n.test)):
            yield n.lineno, "conditional expressions nest"


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
WIDE = ("Batch", "Embeddings")  # tuples of so many fields that positions say nothing


def _assignment_problems(n: ast.Assign) -> Iterator[str]:
    "A tuple assignment unpacks one value or swaps."
    if not (isinstance(n.targets[0], ast.Tuple) and isinstance(n.value, ast.Tuple)):
        return
    if any(isinstance(e, ast.Starred) for e in n.value.elts):
        return
    targets = sorted(ast.unparse(e) for e in n.targets[0].elts)
    if targets != sorted(ast.unparse(e) for e in n.value.elts):
        yield "a tuple assignment that neither unpacks nor swaps"


def _is_row_of_calls(value: ast.expr) -> bool:
    "True for `a(), b()` where the values go nowhere."
    return (
        isinstance(value, ast.Tuple)
        and len(value.elts) > 1
        and all(isinstance(e, ast.Call) for e in value.elts)
    )


def _call_problems(n: ast.Call) -> Iterator[str]:
    "No lambda is called where it stands; wide tuples are built by keyword."
    if isinstance(n.func, ast.Lambda):
        yield "a lambda that is called where it stands"
    by_position = [a for a in n.args if not isinstance(a, ast.Starred)]
    if isinstance(n.func, ast.Name) and n.func.id in WIDE and len(by_position) > 1:
        yield f"{n.func.id} is built by position"


@rule
def plain_lines(nb: Notebook) -> Iterator[str]:
    "One statement a line, short lambdas, flat comprehensions and conditions, wide tuples by keyword."
    for c in nb.code:
        yield from (f"{c}, line {line}: {problem}" for line, problem in line_problems(c.tree))


def plain_files(root: Path) -> Iterator[str]:
    "The same rule for tests and scripts."
    for p in sorted(p for place in ("tests", ".ci") for p in (root / place).rglob("*.py")):
        problems = line_problems(ast.parse(p.read_text(encoding="utf-8")))
        yield from (f"{p.relative_to(root).as_posix()}, line {line}: {problem}" for line, problem in problems)


# ---- demonstrations and assertions


def asserts(tree: ast.AST) -> bool:
    "True if something is asserted that is not a constant."
    for n in ast.walk(tree):
        if isinstance(n, ast.Assert):
            said = [n.test]
        elif isinstance(n, ast.Call) and re.match(
            r"(test_|assert|raises$)", ast.unparse(n.func).split(".")[-1]
        ):
            said = n.args
        else:
            continue
        if any(isinstance(x, (ast.Name, ast.Attribute, ast.Call)) for s in said for x in ast.walk(s)):
            return True
    return False


def mentioned(cells: list[Cell]) -> set[str]:
    "Every name, attribute and keyword used in cells."
    used = set()
    for c in cells:
        for n in ast.walk(c.tree):
            if isinstance(n, ast.Name):
                used.add(n.id)
            elif isinstance(n, ast.Attribute):
                used.add(n.attr)
            elif isinstance(n, ast.keyword) and n.arg:
                used.add(n.arg)
    return used


@rule
def demonstrated(nb: Notebook) -> Iterator[str]:
    """Every public symbol (or a constant that stands in its cell) is used, and something asserted, before the
    next exported cell.
    """
    for c in nb.exports:
        names = [n for n in defined(c) if is_public(n)]
        if not names:
            continue
        cells = nb.section(c)
        if not any(asserts(d.tree) for d in cells):
            yield f"{c}: nothing is asserted of {', '.join(names)}"
        elif not {n.split(".")[-1] for n in names} & mentioned(cells):
            yield f"{c}: `{names[0]}` is not used before the next exported cell"


def message_parts(node: ast.Raise) -> list[str]:
    "The constant pieces of the message that a raise gives."
    return [
        n.value
        for n in ast.walk(node)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and len(n.value.strip()) > 2
    ]


@rule
def errors_shown(nb: Notebook) -> Iterator[str]:
    "Every message that exported code raises is shown by a test: some string in the tests has a piece of it."
    shown = [
        n.value
        for c in nb.code
        if c.is_run and not c.is_export
        for n in ast.walk(c.tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]
    for c in nb.exports:
        for n in ast.walk(c.tree):
            if not isinstance(n, ast.Raise):
                continue
            parts = message_parts(n)
            if parts and not any(shares(p, s) for p in parts for s in shown):
                yield f"{c}: no test shows the error `{parts[0].strip()[:70]}`"


def shares(part: str, said: str) -> bool:
    """True if two texts have eight characters (or all of the shorter one, but at least five of a test's) in
    common.
    """
    size = difflib.SequenceMatcher(None, part, said, autojunk=False).find_longest_match().size
    return size >= min(8, len(part), max(len(said.strip()), 5))


# ---- parameters


@rule
def parameters_cell(nb: Notebook) -> Iterator[str]:
    """An experiment has exactly one cell tagged `parameters`, of `name: type = literal  # help` lines; other
    kinds have none.
    """
    tagged = [c for c in nb.cells if "parameters" in c.raw["metadata"].get("tags", [])]
    if len(tagged) != (nb.kind == "experiment"):
        yield f"{len(tagged)} cells tagged `parameters` in a {nb.kind}"
    for c in tagged:
        if c.kind != "code":
            yield f"{c}: tagged `parameters`, but {c.kind}"
            continue
        if c.directives:
            yield f"{c}: a directive in the parameters cell"
        for n in c.tree.body:
            if not isinstance(n, ast.AnnAssign) or n.value is None:
                yield f"{c}: `{ast.unparse(n)[:50]}` is not `name: type = literal`"
                continue
            try:
                ast.literal_eval(n.value)
            except ValueError:
                yield f"{c}: {n.target.id} is not a literal"
            if not c.comments.get(n.lineno):
                yield f"{c}: {n.target.id} has no help"


# ---- what is stored


@rule
def stored_cells(nb: Notebook) -> Iterator[str]:
    "Format 4.5, cell ids present and unique, no execution counts, no error outputs, no empty cells."
    if (nb.data["nbformat"], nb.data["nbformat_minor"]) != (4, 5):
        yield "not format 4.5"
    ids = [c.raw.get("id") for c in nb.cells]
    if not all(ids) or len(set(ids)) < len(ids):
        yield "cell ids missing or twice"
    for c in nb.cells:
        if not c.source.strip():
            yield f"{c}: empty"
        if c.raw.get("execution_count") is not None:
            yield f"{c}: execution count {c.raw['execution_count']}"
        for o in c.raw.get("outputs", []):
            if o["output_type"] == "error":
                yield f"{c}: a stored error: {o.get('ename')}"
            if o.get("execution_count") is not None:
                yield f"{c}: execution count in an output"


@rule
def results_page(nb: Notebook) -> Iterator[str]:
    """A page of results says how they were made (a papermill command, the seed, the date) and that the
    phantom is never clinical evidence, asserts what it claims, and computes nothing: of ptacl it imports
    no module.
    """
    if nb.kind != "results":
        return
    prose = "\n".join(c.source for c in nb.cells if c.kind == "markdown")
    for what, pattern in (
        ("papermill command", r"papermill nbs/\w+\.ipynb"),
        ("seed", r"\bseed\b"),
        ("date", r"\b20\d\d-\d\d-\d\d\b"),
        ("`never clinical evidence`", r"never clinical evidence"),
    ):
        if not re.search(pattern, prose):
            yield f"no {what} in its prose"
    if not any(re.search(r"\btest_(eq|close)\(|^assert ", c.source, re.M) for c in nb.code):
        yield "asserts nothing of its tables"
    yield from (
        f"{c}: imports ptacl" for c in nb.code if re.search(r"^\s*(from|import) ptacl\b", c.source, re.M)
    )


@rule
def stored_outputs(nb: Notebook) -> Iterator[str]:
    """Experiments are stored without outputs; library notebooks, tutorials and pages of results with them, at
    most 3 plots in a library notebook.
    """
    if nb.kind == "experiment":
        yield from (f"{c}: has outputs" for c in nb.code if c.raw["outputs"])
        return
    for c in nb.code:
        if c.is_run and not c.is_export and shows(c) and not c.raw["outputs"]:
            yield f"{c}: shows something, but no output is stored"
    plots = sum(
        "image/png" in o.get("data", {}) or "image/svg+xml" in o.get("data", {})
        for c in nb.code
        for o in c.raw["outputs"]
    )
    if nb.kind == "library" and plots > MAX_PLOTS:
        yield f"{plots} plots, at most {MAX_PLOTS}"


def shows(c: Cell) -> bool:
    "True if a cell surely prints or ends in a value."
    if not c.tree.body or c.source.rstrip().endswith(";"):
        return False
    last = c.tree.body[-1]
    ends = isinstance(last, ast.Expr) and isinstance(
        last.value, (ast.Name, ast.Attribute, ast.Subscript, ast.BinOp, ast.Compare, ast.JoinedStr, ast.Tuple)
    )
    prints = any(
        isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) and ast.unparse(n.value.func) == "print"
        for n in c.tree.body
    )
    return ends or prints


@rule
def file_size(nb: Notebook) -> Iterator[str]:
    "A library notebook stays under 300 kB, a tutorial or a page of results under 600 kB."
    size = len(json.dumps(nb.data, ensure_ascii=False).encode())
    if size > MAX_BYTES[nb.kind]:
        yield f"{size / 1000:.0f} kB"


# ---- things that run on one machine only


@rule
def no_machine_paths(nb: Notebook) -> Iterator[str]:
    "No absolute path in code, prose or outputs, no sys.path, no shell or directory magics, no colab."
    for c in nb.cells:
        texts = [c.source] + [t for o in c.raw.get("outputs", []) for t in output_texts(o)]
        for t in texts:
            if m := MACHINE_PATH.search(t):
                yield f"{c}: a path of one machine, `{t[m.start() : m.start() + 40].splitlines()[0]}`"
        if c.kind != "code":
            continue
        if re.search(r"\bsys\.path\b", c.source):
            yield f"{c}: sys.path"
        if "google.colab" in c.source:
            yield f"{c}: google.colab"
        if re.search(r"^\s*(!|%(cd|pip|conda|env|run|load_ext|autoreload)\b)", c.source, re.M):
            yield f"{c}: a shell or directory magic"


def output_texts(output: dict) -> Iterator[str]:
    "The texts of a stored output."
    yield "".join(output.get("text", []))
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/"):
            yield "".join(value)


@rule
def no_eval_false(nb: Notebook) -> Iterator[str]:
    "No `#| eval: false`: it rots. What is slow or needs a GPU carries `#| slow` or `#| cuda`."
    for c in nb.code:
        if c.directives.get("eval") == "false":
            yield f"{c}: eval: false"
        if "skip_exec: true" in c.source:
            yield f"{c}: skip_exec"


# ---- rules about all notebooks together


def notebooks(root: Path) -> list[Notebook]:
    "Every notebook that nbdev sees."
    found = sorted((root / "nbs").rglob("*.ipynb"))
    return [
        Notebook.read(p, root)
        for p in found
        if not any(part.startswith((".", "_")) for part in p.relative_to(root).parts)
    ]


def orphans(root: Path) -> Iterator[str]:
    "Modules without a notebook, numbers used twice in a folder, folders that USES does not know."
    library = [nb for nb in notebooks(root) if nb.kind == "library"]
    modules = {nb.module_file for nb in library}
    for p in sorted((root / "ptacl").rglob("*.py")):
        if not p.name.startswith("_") and p not in modules:
            yield f"{p.relative_to(root).as_posix()}: no notebook exports it"
    places = [(nb.folder, nb.number) for nb in library]
    for folder, number in sorted({x for x in places if places.count(x) > 1}):
        yield f"number {number} has two notebooks in {folder}"
    for p in sorted((root / "ptacl").iterdir()):
        if p.is_dir() and not p.name.startswith("_") and p.name not in USES:
            yield f"ptacl/{p.name}: a folder that USES in tests/house.py does not know"


def one_way(uses: dict[str, tuple[str, ...]]) -> Iterator[str]:
    "Arrows between folders that do not point to one that stands before."
    before = set()
    for folder, others in uses.items():
        yield from (
            f"{folder} uses {other}, which does not stand before it"
            for other in others
            if other not in before
        )
        before.add(folder)


def twice_defined(root: Path) -> Iterator[str]:
    """Names that two library notebooks export (private helpers too: a copied helper belongs in a lower
    notebook).
    """
    owner = {}
    for nb in notebooks(root):
        for name in {n for c in nb.exports for n in defined(c) if n != "_"}:
            if name in owner:
                yield f"`{name}` is defined in {owner[name]} and in {nb.path.name}"
            owner.setdefault(name, nb.path.name)
