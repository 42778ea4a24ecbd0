"""The documentation site: built whole from the stored notebooks without a warning, and a build that fails
where something is wrong.
"""

import ast
import configparser
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ptacl.base.core import BadInput
from ptacl.docs.pages import page_of
from ptacl.docs.reference import symbols_of
from ptacl.docs.site import build, problems_of, read_order

pytest.importorskip("sphinx", reason="the docs need pip install -e '.[docs]'")
# MyST's affair
pytestmark = pytest.mark.filterwarnings("ignore:.*Check CHANGES for Sphinx API modifications")


@pytest.fixture(scope="module")
def site(repo, tmp_path_factory) -> Path:
    "The whole site; a warning, a broken link or a missing picture is an error here."
    return build(repo, tmp_path_factory.mktemp("docs") / "site").parent


def search_index(site: Path) -> dict:
    "What the search looks into."
    return json.loads(
        re.fullmatch(
            r"Search\.setIndex\((.*)\);?", (site / "searchindex.js").read_text(encoding="utf-8").strip(), re.S
        )[1]
    )


def configured(repo: Path) -> dict:
    "What settings.ini says."
    config = configparser.ConfigParser(delimiters=["="], interpolation=None)
    config.read(repo / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def exported_names(repo: Path) -> dict[str, set[str]]:
    "Module -> what it says that it exports."
    exported = {}
    for path in sorted((repo / "ptacl").rglob("[a-z]*.py")):
        if names := re.search(r"__all__ = (\[.*?\])", path.read_text(encoding="utf-8"), re.S):
            module = path.relative_to(repo).with_suffix("").as_posix().replace("/", ".")
            exported[module] = set(ast.literal_eval(names[1]))
    return exported


def test_every_notebook_has_its_page(repo, site):
    order = read_order(repo / "nbs")
    assert {s.title.split(":")[0] for s in order} == {
        "Start",
        "Concepts",
        "Tutorials",
        "Experiments",
        "Results",
        "Reference",
    }
    for n in (n for s in order for n in s.notebooks):
        text = (site / f"{page_of(n)}.html").read_text(encoding="utf-8")
        assert f"nbs/{n}" in text and "#|" not in re.sub(
            r"<pre>.*?</pre>|<code.*?</code>", "", text, flags=re.S
        ), n


def test_every_public_symbol_is_in_the_search(repo, site):
    found = {
        f"{module}.{entry[-1]}"
        for module, entries in search_index(site)["objects"].items()
        for entry in entries
    }
    for module, names in exported_names(repo).items():
        missing = [n for n in names if f"{module}.{n}" not in found]
        assert not missing, f"{module}: {missing}"
    assert "ptacl.losses.contrast.info_nce" in found


def test_entry_has_signature_and_meanings(site):
    text = (site / "losses" / "contrast.html").read_text(encoding="utf-8")
    whole = re.search(r'id="ptacl.losses.contrast.info_nce".*?<details', text, re.S)[0]
    # types of other libraries lead to their own docs
    assert 'href="https://docs.pytorch.org/docs/stable/tensors.html"' in whole
    entry = re.sub(r"<[^>]+>", "", whole)
    for said in (
        "temperature: float | Tensor",
        "Symmetric InfoNCE over the B pairs",
        "divisor of the cosine similarity, &gt; 0",
        "ECG embeddings, (B, E)",
        "scalar, nats",
    ):
        assert said in entry, said
    # a name in the prose
    assert re.search(
        r'href="../models/layers.html#ptacl.models.layers.pool_by_phase"',
        (site / "losses" / "local.html").read_text(encoding="utf-8"),
    )


def test_figures_formulas_and_parameters_are_there(site):
    method = (site / "concepts" / "the_method.html").read_text(encoding="utf-8")
    assert (
        method.count("<img") >= 4
        and "<math" in method
        and "ℒ" in method
        and not re.search(r"<script[^>]*mathjax", method, re.I)
    )
    train = re.sub(r"<[^>]+>", "", (site / "train.html").read_text(encoding="utf-8"))
    assert "passes over the training pairs" in train and "TrainConfig.from_params(locals())" in train


def test_sidebar_folds_by_section(repo, site):
    "Ten lines at the top; every page is in the sidebar of every other, below its section."
    text = (site / "losses" / "contrast.html").read_text(encoding="utf-8")
    sidebar = re.search(r'<div class="sidebar-tree">.*?</div>', text, re.S)[0]
    assert len(re.findall(r'<li class="toctree-l1', sidebar)) <= 12
    assert sidebar.count('class="toctree-checkbox"') >= 15
    for n in (n for s in read_order(repo / "nbs") for n in s.notebooks if n != "index.ipynb"):
        assert f"{page_of(n).rpartition('/')[2]}.html" in sidebar or n == "losses/10_contrast.ipynb", n


def test_every_symbol_has_its_line(repo, site):
    "Nothing in the index stands without a word, also no constant and no method."
    rows = re.findall(r"<tr.*?</tr>", (site / "symbols.html").read_text(encoding="utf-8"), re.S)
    lines = [
        re.sub(r"<[^>]+>", "", cell).strip() for row in rows for cell in re.findall(r"<td.*?</td>", row, re.S)
    ]
    assert len(lines) > 2000 and all(lines) and "export" not in lines
    assert "ECGEncoder.from_pretrained" in lines


def test_messages_say_what_to_do(site):
    text = re.sub(r"<[^>]+>", "", (site / "messages.html").read_text(encoding="utf-8"))
    for said in ("needs more memory than there is", "Check its size, or read it alone", "no such sample"):
        assert said in text, said
    assert text.count("…") > 300


def test_version_download_and_source_on_every_page(repo, site):
    version = configured(repo)["version"]
    assert f"\nversion: {version}\n" in (repo / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version = {{{version}}}" in (repo / "nbs/concepts/80_how_to_cite.ipynb").read_text(
        encoding="utf-8"
    )
    for page in site.rglob("*.html"):
        assert f"ptacl {version}" in page.read_text(encoding="utf-8"), page
    for n in ("train.ipynb", "losses/10_contrast.ipynb"):
        page = site / f"{page_of(n)}.html"
        link = re.search(r'href="([^"]*/' + Path(n).name + ')"', page.read_text(encoding="utf-8"))[1]
        assert (page.parent / link).read_bytes() == (repo / "nbs" / n).read_bytes()
    assert re.search(r'href="[^"]*/contrast.py"', page.read_text(encoding="utf-8"))


def test_galleries_show_a_picture_for_each_lesson(site):
    text = (site / "sections" / "tutorials.html").read_text(encoding="utf-8")
    cards = re.findall(r'<div class="sd-col.*?(?=<div class="sd-col|</section>)', text, re.S)
    assert len(cards) >= 10 and sum("<img" in c for c in cards) >= 8


def test_parameters_stand_in_their_groups(site):
    text = (site / "train.html").read_text(encoding="utf-8")
    assert re.search(r"<h2>Parameters<", text)
    assert re.findall(r"<h3>([^<]+)<", text)[:3] == [
        "often changed",
        "seldom changed: data",
        "seldom changed: preparation",
    ]


def test_every_experiment_leads_to_an_executed_example(repo, site):
    for n in next(s for s in read_order(repo / "nbs") if s.title == "Experiments").notebooks:
        page = site / f"{page_of(n)}.html"
        found = re.search(r'Executed example: .*?href="([^"#]+)', page.read_text(encoding="utf-8"), re.S)
        assert found, f"{n}: no line `Executed example: [title](notebook).`"
        assert re.search(r'class="[^"]*\boutput\b', (page.parent / found[1]).read_text(encoding="utf-8")), n


def test_results_begin_with_the_answer(repo):
    for n in next(s for s in read_order(repo / "nbs") if s.title == "Results").notebooks:
        first = "".join(json.loads((repo / "nbs" / n).read_text(encoding="utf-8"))["cells"][0]["source"])
        paragraphs = first.split("\n\n")[2:4]
        assert any(p.startswith("**The answer") for p in paragraphs), n


def test_nothing_comes_from_elsewhere(site):
    assert problems_of(site) == []
    text = "".join(p.read_text(encoding="utf-8") for p in site.rglob("*.html"))
    assert not re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//", text)


# ---- a small project in which something is wrong

SIDEBAR = (
    "website: {sidebar: {contents: [{section: Start, contents: [index.ipynb]}, {section: Reference, "
    "contents: [10_one.ipynb]}]}}"
)


@pytest.fixture
def project(tmp_path) -> Path:
    "Two notebooks."
    nbs = tmp_path / "nbs"
    nbs.mkdir()
    (nbs / "sidebar.yml").write_text(SIDEBAR)
    nbformat.write(
        new_notebook(
            cells=[new_markdown_cell("# Index\n\n> First.\n\nSee `one` in [its page](10_one.ipynb#a-part).")]
        ),
        nbs / "index.ipynb",
    )
    source = (
        '#| export\ndef one(\n    x:int, # a number, > 0\n)->int:    # one more\n    "Count."\n    return x+1'
    )
    nbformat.write(
        new_notebook(
            cells=[
                new_code_cell("#| default_exp one"),
                new_markdown_cell("# One\n\n> Second.\n\n## A part\n\nText."),
                new_code_cell(source),
            ]
        ),
        nbs / "10_one.ipynb",
    )
    return tmp_path


def add(project: Path, text: str) -> None:
    "Add a cell to the index."
    nb = nbformat.read(project / "nbs" / "index.ipynb", 4)
    nb.cells.append(new_markdown_cell(text))
    nbformat.write(nb, project / "nbs" / "index.ipynb")


@pytest.mark.parametrize(
    "text, said",
    [
        ("[gone](20_two.ipynb)", "20_two.ipynb"),
        ("[gone](10_one.ipynb#another-part)", "another-part"),
        ("[gone](../CHANGES.md)", "CHANGES.md"),
        ("![picture](pictures/none.png)", "pictures/none.png"),
        ('<img src="pictures/none.png">', "<img> pictures/none.png: no such file"),
        ('<p><a href="two.html">gone</a></p>', "<a> two.html: no such file"),
        ('<script src="https://cdn.example/x.js"></script>', "fetched from elsewhere"),
        ("$\\unheard{x}$", "unheard"),
        ("```{unheard}\n```", "unheard"),
    ],
)
def test_a_fault_fails_the_build_and_keeps_the_old_site(project, text, said):
    out = project / "site"
    build(project, out)
    before = (out / "index.html").read_bytes()
    add(project, text)
    with pytest.raises(BadInput, match=re.escape(said)) as error:
        build(project, out)
    assert "index." in str(error.value)  # the page is named
    assert (out / "index.html").read_bytes() == before


def test_two_builds_are_equal(project):
    first, second = (build(project, project / name).parent for name in "ab")
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert (
        files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file()) and len(files) > 20
    )
    assert [p for p in files if (first / p).read_bytes() != (second / p).read_bytes()] == []


def test_sidebar_lists_every_notebook_once(repo, project):
    # it raises where one is missing, listed twice, or not there
    assert len(read_order(repo / "nbs")) > 5
    shutil.copy(project / "nbs" / "index.ipynb", project / "nbs" / "new.ipynb")
    with pytest.raises(BadInput, match="does not list new.ipynb"):
        build(project, project / "site")


def test_quarto_reads_the_same_order(repo):
    "nbdev_docs hands these files to Quarto."
    quarto = yaml.safe_load((repo / "nbs" / "_quarto.yml").read_text(encoding="utf-8"))
    assert quarto["metadata-files"] == ["nbdev.yml", "sidebar.yml"] and quarto["project"]["type"] == "website"
    assert (
        yaml.safe_load((repo / "nbs" / "nbdev.yml").read_text(encoding="utf-8"))["project"]["output-dir"]
        == "_docs"
    )


def test_symbols_equal_all(repo):
    "The reference is read from the sources; what it finds is what the module exports."
    for module, names in exported_names(repo).items():
        text = (repo / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert {s.name for s in symbols_of(text)} >= names, module
