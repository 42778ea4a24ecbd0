"What git and pytest are told in this repository does what it is there for."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import skip_reasons
from nbformat.v4 import new_code_cell, new_notebook


def test_skips():
    "Slow tests run when asked for, tests for a GPU where there is one."
    assert skip_reasons({"slow"}, "", False, {}) == ["slow: set PTACL_SLOW=1 or ask for it with -m slow"]
    assert (
        skip_reasons({"slow"}, "slow", False, {})
        == skip_reasons({"slow"}, "", False, {"PTACL_SLOW": "1"})
        == []
    )
    assert skip_reasons({"cuda"}, "cuda", False, {}) == ["no CUDA device here"]
    assert skip_reasons({"cuda"}, "", True, {}) == []


@pytest.fixture
def git(repo, tmp_path):
    """A new repository with this one's attributes and nbdev's hooks, whose home is temporary too; returns its
    `git`.
    """
    home = tmp_path / "home"
    top = tmp_path / "project"
    home.mkdir()
    (top / "nbs").mkdir(parents=True)
    tools = str(Path(sys.executable).parent)
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {
        "HOME": str(home),
        "PATH": f"{tools}{os.pathsep}{env['PATH']}",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.org",
    }

    def run(*args: str, tool: str = "git") -> str:
        done = subprocess.run([tool, *args], cwd=top, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{args}: {done.stdout}{done.stderr}"
        return done.stdout

    run.top = top
    run("init", "-q", "-b", "main")
    for name in (".gitattributes", ".gitignore", "settings.ini"):
        shutil.copy(repo / name, top / name)
    run(tool="nbdev_install_hooks")
    return run


def test_hooks_keep_the_committed_attributes(git, repo):
    "Installing the hooks finds its line in .gitattributes, and what it writes besides is ignored."
    assert (git.top / ".gitattributes").read_bytes() == (repo / ".gitattributes").read_bytes()
    assert ".gitconfig" not in git("status", "--porcelain", "--untracked-files=all")


def test_merge_driver_joins_two_edits_of_a_notebook(git):
    "Two branches that ran a notebook differently and edited different cells merge without a conflict."
    path = git.top / "nbs" / "a.ipynb"

    def save(first: str, last: str, count: int, message: str) -> None:
        cells = [
            new_code_cell(first, id="c0", execution_count=count),
            new_code_cell("x = 0", id="c1", execution_count=count + 1),
            new_code_cell(last, id="c2"),
        ]
        nbformat.write(new_notebook(cells=cells), path)
        git("add", "-A")
        git("commit", "-q", "-m", message)

    save("a = 1", "b = 1", 1, "start")
    git("checkout", "-q", "-b", "other")
    save("a = 1", "b = 2", 5, "other")
    git("checkout", "-q", "main")
    save("a = 2", "b = 1", 9, "main")
    git("merge", "-q", "other", "-m", "both")
    merged = [c.source for c in nbformat.read(path, as_version=4).cells]
    assert merged == ["a = 2", "x = 0", "b = 2"]


def test_sample_data_is_kept_bit_for_bit(git):
    "Line ends inside data_samples are data; in notebooks they are LF."
    sample = git.top / "data_samples" / "ecg.hea"
    nb = git.top / "nbs" / "a.ipynb"
    sample.parent.mkdir()
    sample.write_bytes(b"p001 12 500\r\n")
    nb.write_bytes(b"{}\r\n")
    git("add", "-A")
    git("commit", "-q", "-m", "data")
    assert git("cat-file", "-s", "HEAD:data_samples/ecg.hea").strip() == "13"
    assert git("cat-file", "-s", "HEAD:nbs/a.ipynb").strip() == "3"
