"""A cohort with every kind of spoiled participant next to good ones: each is named with the right
reason, and the good ones stay.

Whole-cohort faults (empty table, wrong header) are shown in nbs/data/65_cohort.ipynb.
"""

import gzip
import json
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import wfdb

from ptacl.base.core import BadInput, samples_dir
from ptacl.data.cohort import check_cohort, cohort_counts, leave_out, read_cohort, summarise_report
from ptacl.data.ecg_files import read_ecg

SECRET = "Jane-Doe-1960"  # stands in cells that are nobody's business; must never appear in a report


def rewrite_ecg(folder, p, change, **header):
    "Write a participant's ECG again after `change(signal)`."
    ecg = read_ecg(folder / "ecg" / p)
    x = change(ecg.signal_LT.astype(float))
    names = list(header.pop("sig_name", ecg.lead_names[: len(x)]))
    said = (
        dict(
            fs=ecg.fs,
            units=["mV"] * len(x),
            sig_name=names,
            fmt=["16"] * len(x),
            adc_gain=[200.0] * len(x),
            baseline=[0] * len(x),
        )
        | header
    )
    wfdb.wrsamp(p, p_signal=x.T, write_dir=str(folder / "ecg"), **said)


def edit(path, old, new):
    "Replace text in a file; the text must match."
    text = path.read_text()
    changed = re.sub(old, new, text, count=1, flags=re.M)
    assert changed != text, (path, old)
    path.write_text(changed)


def sidecar(folder, p, **fields):
    "Change fields of a cine's sidecar; None removes one."
    path = folder / "cine" / f"{p}.json"
    said = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in said.items() if v is not None}))


def times(folder, p):
    "The trigger times of a cine."
    return json.loads((folder / "cine" / f"{p}.json").read_text())["trigger_time_ms"]


def rewrite_cine(folder, p, change):
    "Write a cine again after `change(data)`, keeping its geometry."
    path = folder / "cine" / f"{p}.nii.gz"
    img = nib.load(path)
    data = change(np.asarray(img.dataobj).astype(np.float32))
    nib.save(nib.Nifti1Image(data, img.affine), path)


def truncate(path, share):
    "Keep the first part of a file."
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def lead_off(x):
    "V2, V4 and V6 without an electrode."
    x[[7, 9, 11]] = 0
    return x


def nan_everywhere(x):
    return np.full_like(x, np.nan)


def flat(x):
    return np.zeros_like(x)


# name -> (what is done to participant p, modality, severity, pattern of the problem)
def two_frames(d, p):
    return (
        rewrite_cine(d, p, lambda a: a[..., :2]),
        sidecar(d, p, trigger_time_ms=times(d, p)[:2]),
    )


SPOIL = {
    "ecg truncated": (
        lambda d, p: truncate(d / "ecg" / f"{p}.dat", 0.5),
        "ecg",
        "left out",
        r"truncat|short|samples|bytes",
    ),
    "header and data": (
        lambda d, p: edit(d / "ecg" / f"{p}.hea", r"^(\S+ 12 500 )5000", r"\g<1>50000"),
        "ecg",
        "left out",
        r"50.?000|header",
    ),
    "ecg header empty": (
        lambda d, p: (d / "ecg" / f"{p}.hea").write_text(""),
        "ecg",
        "left out",
        r"header|empty|line",
    ),
    "ecg NaN": (lambda d, p: rewrite_ecg(d, p, nan_everywhere), "ecg", "left out", r"NaN"),
    "ecg flat": (lambda d, p: rewrite_ecg(d, p, flat), "ecg", "left out", r"flat"),
    "one lead": (
        lambda d, p: rewrite_ecg(d, p, lambda x: x[1:2], sig_name=["II"]),
        "ecg",
        "left out",
        r"1 of the 12|lead",
    ),
    "unknown unit": (
        lambda d, p: rewrite_ecg(d, p, lambda x: x, units=["furlong"] * 12),
        "ecg",
        "left out",
        r"unit 'furlong'",
    ),
    "half a second": (lambda d, p: rewrite_ecg(d, p, lambda x: x[:, :250]), "ecg", "left out", r"0\.5 s"),
    "ecg data gone": (lambda d, p: (d / "ecg" / f"{p}.dat").unlink(), "ecg", "left out", r"\.dat"),
    "leads off": (
        lambda d, p: rewrite_ecg(d, p, lead_off),
        "ecg",
        "warning",
        r"3 lead\(s\) missing or flat: V2, V4, V6",
    ),
    "cine truncated": (
        lambda d, p: truncate(d / "cine" / f"{p}.nii.gz", 0.5),
        "cine",
        "left out",
        r"truncated or damaged",
    ),
    "cine header": (
        lambda d, p: rewrite_shape(d / "cine" / f"{p}.nii.gz"),
        "cine",
        "left out",
        r"header says .* but there are",
    ),
    "not a nifti": (
        lambda d, p: (d / "cine" / f"{p}.nii.gz").write_bytes(gzip.compress(b"GIF89a" * 100)),
        "cine",
        "left out",
        r"not a readable NIfTI",
    ),
    "cine NaN": (
        lambda d, p: rewrite_cine(d, p, lambda a: np.where(a == a.max(), np.nan, a)),
        "cine",
        "left out",
        r"NaN",
    ),
    "two frames": (
        two_frames,
        "cine",
        "left out",
        r"2 frame",
    ),
    "3-D": (lambda d, p: rewrite_cine(d, p, lambda a: a[..., 0]), "cine", "left out", r"3-D image"),
    "no trigger times": (
        lambda d, p: sidecar(d, p, trigger_time_ms=None),
        "cine",
        "left out",
        r"trigger_time_ms missing",
    ),
    "times not in order": (
        lambda d, p: sidecar(d, p, trigger_time_ms=times(d, p)[::-1]),
        "cine",
        "left out",
        r"do not increase",
    ),
    "times too few": (
        lambda d, p: sidecar(d, p, trigger_time_ms=times(d, p)[:-1]),
        "cine",
        "left out",
        r"trigger times for",
    ),
    "rr in seconds": (lambda d, p: sidecar(d, p, rr_ms=0.9), "cine", "left out", r"rr_ms is 0\.9"),
    "unknown view": (lambda d, p: sidecar(d, p, view="apex"), "cine", "left out", r"view is 'apex'"),
    "no sidecar": (lambda d, p: (d / "cine" / f"{p}.json").unlink(), "cine", "left out", r"no sidecar"),
    "sidecar no JSON": (
        lambda d, p: (d / "cine" / f"{p}.json").write_text("{"),
        "cine",
        "left out",
        r"not valid JSON",
    ),
    "cine gone": (lambda d, p: (d / "cine" / f"{p}.nii.gz").unlink(), "cine", "left out", r"no such file"),
}
# name -> (what is done to its cells, modality, severity, pattern)
CELLS = {
    "path with ..": (
        lambda row: row | {"cine": f"../{row['cine']}"},
        "cine",
        "left out",
        r"leads out of the cohort",
    ),
    "absolute path": (lambda row: row | {"ecg": "/etc/passwd"}, "ecg", "left out", r"absolute path"),
    "name of no file": (lambda row: row | {"ecg": "ecg/nobody"}, "ecg", "left out", r"no such file"),
    "number is text": (
        lambda row: row | {"lvef": SECRET},
        "table",
        "warning",
        r"column lvef is not a number",
    ),
}


def rewrite_shape(path):
    "Let the header promise one slice more than there is."
    raw = bytearray(gzip.decompress(path.read_bytes()))
    assert raw[46:48] == b"\x01\x00"  # dim[3], little-endian
    raw[46:48] = b"\x02\x00"
    path.write_bytes(gzip.compress(bytes(raw)))


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    "The cohort, who has which fault, and who is good."
    folder = tmp_path_factory.mktemp("cohorts") / "cohort"
    shutil.copytree(samples_dir(), folder)
    for f in folder.rglob("*"):
        f.chmod(0o755 if f.is_dir() else 0o644)
    table = pd.read_csv(folder / "participants.tsv", sep="\t", dtype=str, keep_default_na=False)
    rows = {r["participant_id"]: r for r in table.to_dict("records")}
    single = [p for p in rows if nib.load(folder / "cine" / f"{p}.nii.gz").shape[2] == 1]
    faults = dict(
        zip(
            [*SPOIL, *CELLS, "listed twice", "listed twice alike", "too many cells", "no ecg", "link"],
            single,
            strict=False,
        )
    )
    for name, (act, *_) in SPOIL.items():
        act(folder, faults[name])
    for name, (act, *_) in CELLS.items():
        rows[faults[name]] = act(rows[faults[name]])
    rows[faults["no ecg"]]["ecg"] = "n/a"
    link = folder / rows[faults["link"]]["cine"]
    shutil.move(link, folder.parent / "elsewhere.nii.gz")
    link.symlink_to(folder.parent / "elsewhere.nii.gz")
    lines = ["\t".join(r.values()) for r in rows.values()]
    lines.append("\t".join((rows[faults["listed twice"]] | {"age": SECRET}).values()))
    lines.append("\t".join(rows[faults["listed twice alike"]].values()))
    lines[list(rows).index(faults["too many cells"])] += f"\t{SECRET}"
    (folder / "participants.tsv").write_text("\t".join(table.columns) + "\n" + "\n".join(lines) + "\n")
    return folder, faults, [p for p in rows if p not in faults.values()]


@pytest.fixture(scope="module")
def checked(spoiled):
    "The cohort after all checks."
    cohort = read_cohort(spoiled[0])
    return leave_out(cohort, check_cohort(cohort, n_jobs=2, progress=False))


def rows_of(cohort, participant_id):
    "The rows of the report about a participant."
    return cohort.report[cohort.report.participant_id == participant_id].to_dict("records")


@pytest.mark.parametrize("fault", [*SPOIL, *CELLS])
def test_fault_is_named(fault, spoiled, checked):
    _, modality, severity, pattern = (SPOIL | CELLS)[fault]
    rows = rows_of(checked, spoiled[1][fault])
    assert [(r["modality"], r["severity"]) for r in rows] == [(modality, severity)], rows
    assert re.search(pattern, rows[0]["problem"]), rows[0]["problem"]
    assert len(rows[0]["remedy"]) > 10
    p = spoiled[1][fault]
    usable = {m: checked.path(p, m) is not None for m in ("ecg", "cine")}
    assert usable == {m: m != modality or severity == "warning" for m in usable}


def test_line_faults_are_named(spoiled, checked):
    faults = spoiled[1]
    listed = set(checked.table.participant_id)
    for fault, pattern, severity in [
        ("listed twice", "listed 2 times, differently", "left out"),
        ("listed twice alike", "listed 2 times alike", "warning"),
        ("too many cells", r"\d+ cells for \d+ columns", "left out"),
    ]:
        rows = rows_of(checked, faults[fault])
        assert [(r["modality"], r["severity"]) for r in rows] == [("table", severity)] and re.search(
            pattern, rows[0]["problem"]
        ), rows
        assert (faults[fault] in listed) == (severity == "warning")


def test_link_out_of_the_folder_is_refused(spoiled, checked):
    rows = rows_of(checked, spoiled[1]["link"])
    assert [r["problem"] for r in rows] == ["leads out of the cohort folder"]


def test_missing_modality_is_no_fault(spoiled, checked):
    p = spoiled[1]["no ecg"]
    assert rows_of(checked, p) == [] and checked.path(p, "ecg") is None and checked.path(p, "cine").is_file()


def test_good_ones_stay(spoiled, checked):
    folder, faults, good = spoiled
    assert len(good) >= 20
    assert set(good) <= set(checked.pairs().participant_id)
    whole = {faults[f] for f in ("leads off", "number is text", "listed twice alike")}
    assert set(checked.pairs().participant_id) == set(good) | whole
    assert set(checked.report.participant_id) & set(good) == set()


def test_nothing_is_lost(spoiled, checked):
    "Every participant of the table is in the cohort or in the report."
    names = {line.split("\t")[0] for line in (spoiled[0] / "participants.tsv").read_text().splitlines()[1:]}
    assert names == set(checked.table.participant_id) | set(checked.report.participant_id)
    counts = cohort_counts(checked).loc["all"]
    assert (
        counts["participants"]
        == counts[["pairs", "ecg only", "cine only", "neither"]].sum()
        == len(names) - 2
    )


def test_report_keeps_secrets(spoiled, checked):
    "Names of participants and files only: no content of a cell, no folder of this machine."
    text = checked.report.to_csv()
    assert SECRET not in text
    assert str(spoiled[0]) not in text


def test_summary_counts_every_row(checked):
    summary = summarise_report(checked.report)
    assert summary.participants.sum() == len(checked.report)
    assert (summary.severity[:2] == "left out").all() and summary.severity.iloc[-1] == "warning"


def test_reading_changes_no_file(spoiled, tmp_path):
    "Checks only read."
    folder = spoiled[0]

    def state():
        return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}

    before = state()
    check_cohort(read_cohort(folder), progress=False)
    assert state() == before


def test_faults_of_ours_are_not_hidden(spoiled, monkeypatch):
    "A bug in a reader becomes a row that says so, without the exception's text; the check goes on."
    import ptacl.data.cohort

    def broken(path):
        raise KeyError("a bug")

    monkeypatch.setattr(ptacl.data.cohort, "read_ecg", broken)
    report = check_cohort(read_cohort(spoiled[0]), progress=False)
    of_ecgs = report[report.modality == "ecg"]
    assert len(of_ecgs) and of_ecgs.problem.str.startswith("ptacl itself failed (KeyError in ").all()
    assert not report.problem.str.contains("a bug").any()


def test_error_survives_a_worker(spoiled):
    "A BadInput that comes back from another process is the same."
    import pickle

    e = pickle.loads(pickle.dumps(BadInput("a", "b", "c")))
    assert (e.source, e.problem, e.remedy, str(e)) == ("a", "b", "c", "a: b. c")


def test_split_is_the_same_in_another_process():
    "Not Python's hash(), which differs from run to run."
    code = "from ptacl.data.table import split_of; print([split_of(f'p{k}') for k in range(50)])"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": s},
            check=True,
        ).stdout
        for s in ("1", "2")
    }
    assert len(said) == 1 and "test" in said.pop()
