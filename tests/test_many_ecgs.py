"Many recordings: read ahead, they are what they are read in turn, in order, and never too far ahead."

import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest

from ptacl.base.core import BadInput, sample_path
from ptacl.data.ecg import STANDARD_LEADS
from ptacl.data.ecg_files import read_ecg
from ptacl.data.many_ecgs import FEW, MANY_FILES, MANY_UNSEEN_FILES, windows_of_each
from ptacl.use import ECGEncoder, left_out
from ptacl.use.command import embed_command

HOW = dict(fs=500.0, mains_hz=50.0, window_s=5.0)
RECORDS = [sample_path("ecg", f"sim-{k:04}.hea") for k in range(1, 11)]


@pytest.fixture(scope="module")
def encoder(small_run):
    "A small untrained encoder that reads 1 s."
    return ECGEncoder.from_pretrained(small_run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "So many links to records that processes read them, two of them broken."
    where = tmp_path_factory.mktemp("ecgs")
    for k in range(MANY_FILES + 20):
        record = RECORDS[k % len(RECORDS)]
        (where / f"{k:04}.hea").write_text(record.read_text())
        (where / record.with_suffix(".dat").name).exists() or (
            where / record.with_suffix(".dat").name
        ).symlink_to(record.with_suffix(".dat"))
    for k in (7, MANY_FILES + 3):
        (where / f"{k:04}.hea").write_text("broken 12 0 5000\n")
    return where


@pytest.fixture(scope="module")
def alone(encoder, folder):
    "The folder's vectors, one file after the other."
    return encoder.embed(sorted(folder.glob("*.hea")), errors="skip", workers=1)


def test_processes_give_what_one_gives(encoder, folder, alone):
    "Vectors bit for bit, order, what is left out and why."
    files = sorted(folder.glob("*.hea"))
    ahead = encoder.embed(iter(files), errors="skip", workers=2)
    pd.testing.assert_frame_equal(alone, ahead, check_exact=True)
    assert alone.index.tolist() == [str(f) for k, f in enumerate(files) if k not in (7, MANY_FILES + 3)]
    pd.testing.assert_frame_equal(left_out(alone), left_out(ahead))
    assert left_out(ahead).record.tolist() == [str(files[7]), str(files[MANY_FILES + 3])]
    for k in range(10, 20):  # the same samples by another name
        np.testing.assert_allclose(ahead.loc[str(files[k])], ahead.loc[str(files[k + 20])], atol=1e-5)


def test_threads_give_what_one_gives(encoder):
    "Arrays and ECGs, bit for bit, in order; also where a window is not the only one."
    ecgs = [read_ecg(r) for r in RECORDS]
    mixed = [ecgs[k % 10] if k % 3 else ecgs[k % 10].signal_LT for k in range(FEW + 16)]
    mixed[5] = None
    how = dict(errors="skip", fs=500.0, lead_names=STANDARD_LEADS, batch_size=24)
    for windows in ("first", "mean"):
        tables = [encoder.embed(mixed, windows=windows, workers=w, **how) for w in (1, 3)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)
        assert len(tables[0]) == len(mixed) - 1
        assert tables[0].index.tolist()[3:6] == [3, str(RECORDS[4]), 6]


def are_gone(before: list[threading.Thread]) -> bool:
    "Whether no thread is left that was not there before, ten seconds later at most."
    for _ in range(100):
        if not set(threading.enumerate()) - set(before):
            return True
        time.sleep(0.1)
    return False


def test_the_first_error_in_order_is_raised(encoder, folder):
    "Also where processes read; the rest is not waited for, and no process is left."
    files = sorted(folder.glob("*.hea"))
    before = threading.enumerate()
    with pytest.raises(BadInput, match=r"0007\.hea"):
        encoder.embed(files, workers=2)
    assert are_gone(before)
    with pytest.raises(BadInput, match="is a NoneType"):
        encoder.embed([read_ecg(RECORDS[0])] * 60 + [None] * 60, workers=2)
    assert are_gone(before)


@pytest.mark.parametrize("kind", ["files", "arrays"])
def test_reading_waits_for_who_takes(kind, folder):
    "A source of any length is never further ahead than four chunks of sixteen, with two workers."
    array_LT = read_ecg(RECORDS[0]).signal_LT
    good = [f for f in sorted(folder.glob("*.hea")) if "0007" not in f.name][:5]
    given = 0

    def each():
        nonlocal given
        for k in range(10**9):
            given += 1
            yield good[k % 5] if kind == "files" else array_LT

    stream = windows_of_each(each(), HOW, fs=500.0, lead_names=STANDARD_LEADS, workers=2)
    ahead = []
    for k, _ in enumerate(stream):
        ahead.append(given - k - 1)
        # the processes may take seconds to start; the files are read here until then
        if k > MANY_UNSEEN_FILES + 200 and (max(ahead[MANY_UNSEEN_FILES:]) > 0 or k == 50_000):
            break
    stream.close()
    assert max(ahead[MANY_UNSEEN_FILES:]) == 63
    assert max(ahead) <= (MANY_UNSEEN_FILES if kind == "files" else 63)


def test_command_reads_in_processes(encoder, folder, alone, tmp_path, capsys):
    "The command's table is that of one file after the other; names and order are those of the folder."
    asked = [str(folder), "--encoder", str(encoder.source), "--out", str(tmp_path / "z.csv"), "--workers"]
    assert embed_command([*asked, "2"]) == 0
    n = MANY_FILES + 20
    assert capsys.readouterr().out.startswith(f"{n - 2} of {n} ECGs embedded into ")
    table = pd.read_csv(tmp_path / "z.csv", index_col="record", dtype=dict.fromkeys(alone.columns, "float32"))
    assert table.index.tolist() == [f"{k:04}.hea" for k in range(n) if k not in (7, MANY_FILES + 3)]
    np.testing.assert_array_equal(table, alone)
    assert embed_command([*asked, "0"]) == 2
    assert "workers: is 0" in capsys.readouterr().err


MEMORY = """
import resource, sys
import numpy as np
from ptacl.data.ecg import STANDARD_LEADS
from ptacl.data.many_ecgs import windows_of_each
n = int(sys.argv[1])
signal_LT = np.random.default_rng(0).normal(size=(12, 5000)).astype(np.float32)
each = (signal_LT.copy() for _ in range(n))
how = dict(fs=500.0, mains_hz=50.0, window_s=5.0)
stream = windows_of_each(each, how, fs=500.0, lead_names=STANDARD_LEADS, workers=2)
print(sum(1 for _ in stream), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow():
    "Peak of a process that takes 200 and 1,000 recordings of 0.24 MB, which are 192 MB more."
    peak_kb = {}
    for n in (200, 1000):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", MEMORY, str(n)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        taken, peak_kb[n] = map(int, done.stdout.split())
        assert taken == n
    assert peak_kb[1000] - peak_kb[200] < 20_000
