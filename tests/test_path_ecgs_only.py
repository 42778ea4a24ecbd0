"""The way of those who have ECGs only: the page's commands word for word, wrong uses that say what helps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from ptacl.base.core import BadInput, samples_dir
from ptacl.data.ptbxl import read_ptbxl
from ptacl.evaluation.beforehand import scored_phenotypes
from ptacl.models.ecg_encoder import ECGEncoder
from ptacl.use.arguments import embed_main
from ptacl.use.embed import embed

PAGE = "nbs/tutorials/12_ecgs_only.ipynb"


def commands(repo) -> dict[str, str]:
    "Name -> command, in the order of the page."
    cells = json.loads((repo / PAGE).read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return dict(re.findall(r"<!-- command: ([\w-]+) -->\n```\n(.*?)\n```", text, re.S))


def test_the_page_begins_with_an_install_that_exists(repo):
    asked = commands(repo)
    assert list(asked) == ["install", "embed", "benchmark", "fine-tune"]
    extras = re.search(r"^extras = (.*)$", (repo / "settings.ini").read_text(encoding="utf-8"), re.M)[
        1
    ].split()
    assert re.fullmatch(r"pip install -c constraints.txt -e '\.\[(\w+)\]'", asked["install"])[1] in extras


@pytest.mark.slow
def test_the_commands_of_the_page_run_as_they_stand(repo, tmp_path):
    "In a folder of their own, in which the repository's folders are seen."
    for name in ("nbs", "data_samples"):
        (tmp_path / name).symlink_to(repo / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | dict(PATH=path, PYTHONPATH=str(repo), OMP_NUM_THREADS="1")
    for name, command in commands(repo).items():
        if name == "install":
            continue
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
    table = pd.read_csv(tmp_path / "vectors.tsv", sep="\t", index_col=0)
    assert table.shape == (64, ECGEncoder.from_pretrained("sample").dim)
    for name in ("benchmark", "tuned"):
        text = (tmp_path / f"{name}.ipynb").read_text(encoding="utf-8")
        assert "never clinical evidence" in text and '"output_type": "error"' not in text


@pytest.fixture(scope="module")
def encoder():
    return ECGEncoder.from_pretrained("sample")


def test_a_folder_is_no_recording(encoder):
    with pytest.raises(BadInput, match="is a folder, not a recording. Name its recordings.*find_ecgs"):
        embed(encoder, samples_dir() / "ecg")


def test_a_misspelt_folder_overwrites_no_earlier_table(tmp_path, capsys):
    for name in ("z.tsv", "z.left_out.tsv"):
        (tmp_path / name).write_text("earlier")
    code = embed_main([str(tmp_path / "ecsg"), "--encoder", "sample", "--out", str(tmp_path / "z.tsv")])
    assert (
        code == 2 and "ecsg: no such folder, list or recording. Correct the path" in capsys.readouterr().err
    )
    code = embed_main([str(samples_dir() / "ecg"), "--encoder", "sampel", "--out", str(tmp_path / "z.tsv")])
    assert code == 2 and "sampel: no such folder. Give the folder of a model" in capsys.readouterr().err
    assert {(tmp_path / name).read_text() for name in ("z.tsv", "z.left_out.tsv")} == {"earlier"}


def test_a_phenotype_that_no_column_has():
    people = pd.DataFrame(dict(lvef=[50.0, 60.0, 55.0]))
    with pytest.raises(BadInput, match="there is no column `lvfe`. Did you mean `lvef`"):
        scored_phenotypes(people, people, dict(lvef="%"), ["lvfe"])


def test_a_wrong_path_of_ptb_xl(tmp_path):
    with pytest.raises(BadInput, match="ptbxl_database.csv: no such file. Give the folder of the set"):
        read_ptbxl(tmp_path / "ptbxl")


def test_tsv_needs_no_extra_package_and_help_no_heavy_one(tmp_path):
    listed = tmp_path / "two.txt"
    listed.write_text("\n".join(str(p) for p in sorted((samples_dir() / "ecg").glob("*.hea"))[:2]))
    block = "import sys; sys.modules['pyarrow'] = None; from ptacl.use.arguments import embed_main; "
    block += "sys.exit(embed_main())"
    asked = [str(listed), "--encoder", "sample", "--out", str(tmp_path / "z.tsv")]
    done = subprocess.run([sys.executable, "-c", block, *asked], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(tmp_path / "z.tsv", sep="\t")) == 2
    clock = "import time; from ptacl.use.arguments import embed_parser; embed_parser().format_help(); "
    clock += "import sys; print(time.process_time(), 'torch' in sys.modules)"
    spent, heavy = subprocess.check_output([sys.executable, "-c", clock], text=True).split()
    assert float(spent) < 1.0 and heavy == "False"  # the processor's time: a busy machine changes nothing
