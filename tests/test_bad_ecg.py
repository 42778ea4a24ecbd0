"""ECG files as they come: every layout gives the same record, every fault one error with file, value and
remedy.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import wfdb

from ptacl.base.core import BadInput
from ptacl.data.ecg import STANDARD_LEADS, ecg_from_array, einthoven_error_mv, standardise_ecg
from ptacl.data.ecg_files import read_ecg

CHEST = np.array([[-0.5, 0.1], [-0.2, 0.5], [0.4, 0.6], [0.9, 0.6], [1.0, 0.5], [0.8, 0.4]])


def leads(seconds: float = 10.0, fs: int = 500) -> np.ndarray:
    "Twelve leads of a plane dipole, mV, (12, T)."
    t = np.arange(round(seconds * fs)) / fs
    xy = np.zeros((2, len(t)))
    for r in np.arange(0.3, seconds, 0.8):
        for x, y, at, sd in (
            (0.1, 0.1, -0.16, 0.025),
            (1.0, 0.8, 0, 0.014),
            (-0.2, -0.3, 0.035, 0.014),
            (0.3, 0.25, 0.28, 0.05),
        ):
            xy += np.array([[x], [y]]) * np.exp(-0.5 * ((t - r - at) / sd) ** 2)
    i = xy[0]
    ii = 0.5 * xy[0] + 0.87 * xy[1]
    return np.vstack([i, ii, ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2, CHEST @ xy])


def write(
    folder: Path,
    name: str,
    signal_LT: np.ndarray,
    *,
    fs: int = 500,
    names=STANDARD_LEADS,
    fmt="16",
    unit="mV",
    gain=1000.0,
) -> Path:
    "One signal file, one format."
    n = len(signal_LT)
    wfdb.wrsamp(
        name,
        fs=fs,
        units=[unit] * n,
        sig_name=list(names),
        p_signal=signal_LT.T,
        fmt=[fmt] * n,
        adc_gain=[gain] * n,
        baseline=[0] * n,
        write_dir=str(folder),
    )
    return folder / f"{name}.hea"


def edit(hea: Path, pattern: str, new: str, count: int = 0) -> Path:
    "Change the text of a header."
    text, n = re.subn(pattern, new, hea.read_text(), count=count, flags=re.M)
    assert n, f"{pattern} is not in {hea.name}"
    hea.write_text(text)
    return hea


def same(ecg, seconds: float = 10.0, fs: int = 500, atol: float = 0.0006):
    "The record is the dipole's."
    assert ecg.fs == fs and ecg.lead_ok_L.all() and ecg.lead_names == STANDARD_LEADS
    np.testing.assert_allclose(ecg.signal_LT, leads(seconds, fs), atol=atol)


# ---- layouts that must read


@pytest.mark.parametrize("fmt", ["16", "212", "24", "32", "80"])
def test_formats(tmp_path, fmt):
    "One signal file in several formats."
    gain = 60.0 if fmt == "80" else 1000.0
    same(read_ecg(write(tmp_path, "rec", leads(), fmt=fmt, gain=gain)), atol=0.51 / gain)


def test_mat_with_offset(tmp_path):
    "Samples behind 24 bytes of a MATLAB header, as the PhysioNet challenges have them."
    hea = write(tmp_path, "rec", leads())
    (tmp_path / "rec.mat").write_bytes(b"\0" * 24 + (tmp_path / "rec.dat").read_bytes())
    (tmp_path / "rec.dat").unlink()
    edit(hea, r"rec\.dat 16", "rec.mat 16x1+24")
    for path in (hea, tmp_path / "rec.mat", tmp_path / "rec", str(tmp_path / "rec")):
        same(read_ecg(path))


def test_several_signal_files(tmp_path):
    "Limb leads in one file, chest leads in another of another format, three more leads in a third."
    parts = {"limb": (slice(0, 6), "16"), "chest": (slice(6, 12), "212"), "more": (slice(0, 3), "16")}
    lines = []
    for file, (rows, fmt) in parts.items():
        names = ["vx", "vy", "vz"] if file == "more" else [n.lower() for n in STANDARD_LEADS[rows]]
        lines += write(tmp_path, file, leads()[rows], names=names, fmt=fmt).read_text().splitlines()[1:]
        (tmp_path / f"{file}.hea").unlink()
    (tmp_path / "more.dat").rename(tmp_path / "rec.xyz")
    (tmp_path / "rec.hea").write_text(
        "\n".join(["rec 15 500 5000", *lines]).replace("more.dat", "rec.xyz") + "\n"
    )
    for path in ("rec.hea", "rec.xyz", "rec"):
        same(read_ecg(tmp_path / path))


def test_several_segments(tmp_path):
    "A record made of two records."
    for k in (0, 1):
        write(tmp_path, f"part{k}", leads()[:, 2500 * k : 2500 * (k + 1)])
    (tmp_path / "rec.hea").write_text("rec/2 12 500 5000\npart0 2500\npart1 2500\n")
    same(read_ecg(tmp_path / "rec"))


def test_several_samples_a_frame(tmp_path):
    "Four samples of each lead a frame of 125 Hz are 500 Hz, not 125."
    x = (leads() * 1000).round().astype("<i2")
    x.reshape(12, -1, 4).transpose(1, 0, 2).tofile(tmp_path / "rec.dat")
    (tmp_path / "rec.hea").write_text(
        "rec 12 125 1250\n" + "".join(f"rec.dat 16x4 1000/mV 16 0 0 0 0 {n}\n" for n in STANDARD_LEADS)
    )
    same(read_ecg(tmp_path / "rec"))


def test_eight_leads(tmp_path):
    "I, II, V1..V6: the other limb leads follow."
    keep = [0, 1, *range(6, 12)]
    ecg = read_ecg(write(tmp_path, "rec", leads()[keep], names=[STANDARD_LEADS[k] for k in keep]))
    same(ecg, atol=0.002)
    assert ecg.derived == ("III", "aVR", "aVL", "aVF")
    assert einthoven_error_mv(ecg.signal_LT, ecg.lead_ok_L) < 1e-6


@pytest.mark.parametrize(
    "spell",
    [
        str.upper,
        str.lower,
        lambda s: f"Lead {s}",
        lambda s: s.replace("V", "C") if s[0] == "V" else s,
        lambda s: f"MDC_ECG_LEAD_{s.upper()}",
    ],
    ids=["upper", "lower", "word", "IEC", "MDC"],
)
def test_order_and_spelling(tmp_path, spell):
    "Leads backwards and in other spellings."
    same(read_ecg(write(tmp_path, "rec", leads()[::-1], names=[spell(n) for n in STANDARD_LEADS[::-1]])))


@pytest.mark.parametrize("fs", [100, 250, 360, 1000])
def test_rates(tmp_path, fs):
    "Any rate reads as it is and becomes 500 Hz."
    ecg = read_ecg(write(tmp_path, "rec", leads(fs=fs), fs=fs))
    same(ecg, fs=fs)
    std = standardise_ecg(ecg, 500.0, 50.0)
    assert std.signal_LT.shape == (12, 5000)
    clean = standardise_ecg(ecg_from_array(leads(), 500.0, STANDARD_LEADS, "mV"), 500.0, 50.0)
    assert np.abs(std.signal_LT - clean.signal_LT)[:, 250:-250].max() < (0.08 if fs == 100 else 0.01)


@pytest.mark.parametrize("unit,per_mv", [("uV", 1000.0), ("mv", 1.0), ("V", 0.001), ("microvolt", 1000.0)])
def test_units(tmp_path, unit, per_mv):
    "The same voltages in other units."
    same(read_ecg(write(tmp_path, "rec", leads() * per_mv, unit=unit, gain=1000 / per_mv)))


def test_short_and_long(tmp_path):
    "One second and one minute."
    for seconds in (1, 60):
        same(read_ecg(write(tmp_path, f"rec{seconds}", leads(seconds))), seconds)


def test_invalid_samples_are_bridged(tmp_path):
    """The format's mark for a missing sample becomes a gap; a short gap is bridged, a lead with many is
    flagged.
    """
    x = leads()
    x[8, 1000:1030] = np.nan
    x[10, ::3] = np.nan
    ecg = read_ecg(write(tmp_path, "rec", x))
    assert [n for n, ok in zip(STANDARD_LEADS, ecg.lead_ok_L, strict=True) if not ok] == ["V5"]
    assert np.isfinite(ecg.signal_LT).all() and not ecg.signal_LT[10].any()
    np.testing.assert_allclose(
        ecg.signal_LT[8, 1000:1030],
        np.interp(np.arange(1000, 1030), [999, 1030], leads()[8, [999, 1030]]),
        atol=0.001,
    )


def test_lead_off_is_no_noise(tmp_path):
    "A lead at a rail is flagged and zero, however it is processed; a limb lead that is off is derived."
    x = leads()
    x[9] = 4.2
    x[4] = 0
    std = standardise_ecg(read_ecg(write(tmp_path, "rec", x)), 250.0, 60.0)
    assert std.derived == ("aVL",) and std.lead_ok_L.sum() == 11 and not std.signal_LT[9].any()


# ---- faults: file, value, remedy


def fails(path: Path, file: str, *words: str) -> None:
    "One BadInput that names the file, says the words and has a remedy."
    with pytest.raises(BadInput) as caught:
        read_ecg(path)
    message = str(caught.value)
    assert message.startswith(str(path.parent / file) + ": "), message
    for word in words:
        assert word in message, message
    assert len(caught.value.remedy) > 10


@pytest.fixture
def rec(tmp_path):
    "A sound record to break."
    return write(tmp_path, "rec", leads())


@pytest.mark.parametrize("keep", [0, 1, 24, 59_999, 60_000, 119_999])
def test_truncated(rec, keep):
    "A signal file cut anywhere, by a byte, a frame or half."
    data = rec.with_suffix(".dat")
    data.write_bytes(data.read_bytes()[:keep])
    fails(rec, "rec.dat", "truncated", f"{keep} bytes", "need 120000", "Copy or export")


def test_truncated_packed_and_mat(tmp_path, rec):
    "The same for format 212 and for .mat with its offset."
    packed = write(tmp_path, "packed", leads(), fmt="212")
    packed.with_suffix(".dat").write_bytes(packed.with_suffix(".dat").read_bytes()[:-3])
    fails(packed, "packed.dat", "truncated", "need 90000")
    (tmp_path / "rec.mat").write_bytes(rec.with_suffix(".dat").read_bytes())
    edit(rec, r"rec\.dat 16", "rec.mat 16x1+24")
    fails(rec, "rec.mat", "truncated", "120000 bytes", "need 120024")


@pytest.mark.parametrize(
    "pattern,new,words",
    [
        (r"12 500 5000", "12 500 4000", ["contradicts its data", "checksum of I"]),
        (r"12 500 5000", "8 500 5000", ["contradicts itself", "8 signals", "12 signal lines"]),
        (r"12 500 5000", "12", ["no sampling rate"]),
        (r"12 500 5000", "12 0 5000", ["sampling rate is 0"]),
        (r"12 500 5000", "12 5 5000", ["sampling rate is 5"]),
        (r"1000\.0\(0\)/mV", "0(0)/mV", ["lead I has no gain"]),
        (r"1000\.0\(0\)/mV .* V3$", "", ["lead V3 missing", "channel '' unknown"]),
        (r"1000\.0\(0\)/mV", "1000.0(0)/adu", ["unknown unit 'adu'", "mV"]),
        (r"1000\.0\(0\)/mV", "1.0(0)/mV", ["typical lead swings", "unit"]),
        (r" III$", " II", ["both lead II"]),
        (r" V6$", " Vsix", ["V6 missing", "'Vsix' unknown"]),
        (r"rec\.dat", "gone.dat", ["'gone.dat' is missing"]),
        (r"rec\.dat 16 ", "rec.dat 99 ", ["format '99' is unknown"]),
        (r"^rec 12", "some words", ["not a WFDB header", "a name and a number of signals"]),
    ],
    ids=[
        "samples",
        "signals",
        "no rate",
        "rate 0",
        "rate 5",
        "gain 0",
        "no name",
        "unit",
        "scale",
        "duplicate",
        "misspelt",
        "missing file",
        "format",
        "garbage",
    ],
)
def test_header_faults(rec, pattern, new, words):
    "A header that is wrong or belongs to other data."
    edit(rec, pattern, new)
    fails(rec, "rec.hea", *words)


def test_data_of_another_record(tmp_path, rec):
    "The right size, but not the samples that the header sums up."
    other = write(tmp_path, "other", leads()[::-1])
    shutil.copy(other.with_suffix(".dat"), rec.with_suffix(".dat"))
    fails(rec, "rec.hea", "contradicts its data", "checksum of I is")


def test_longer_than_the_header(rec):
    """Without checksums the size has to agree; with them, or by a padded disk block, it is the record's own
    affair.
    """
    data = rec.with_suffix(".dat")
    data.write_bytes(data.read_bytes() + b"\0" * 512)
    same(read_ecg(rec))
    data.write_bytes(data.read_bytes() * 2)
    same(read_ecg(rec))
    edit(rec, r" 16 0 -?\d+ -?\d+ 0 (\S+)$", r" 16 0 0 0 0 \1")
    fails(rec, "rec.dat", "contradicts its data", "241024 bytes", "need 120000")


def test_no_checksums(rec):
    "Checksums that were never filled in are not held against the data."
    same(read_ecg(edit(rec, r" 16 0 -?\d+ -?\d+ 0 (\S+)$", r" 16 0 0 0 0 \1")))


def test_empty_header_and_no_header(tmp_path):
    "Nothing in the file; no file."
    (tmp_path / "void.hea").write_text("")
    fails(tmp_path / "void.hea", "void.hea", "not a WFDB header")
    fails(tmp_path / "nobody", "nobody", "no such WFDB record", ".hea")


def test_one_lead(tmp_path):
    "One lead, or one among channels that are none."
    fails(write(tmp_path, "one", leads()[1:2], names=["II"]), "one.hea", "1 of the 12 standard leads", "'II'")
    fails(
        write(tmp_path, "holter", leads()[:2], names=["MLII", "V5"]),
        "holter.hea",
        "1 of the 12 standard leads",
        "MLII",
    )
    fails(
        write(tmp_path, "none", leads()[:2], names=["PLETH", "ABP"]), "none.hea", "0 of the 12 standard leads"
    )


def test_flat_and_nan(tmp_path):
    "All leads flat, nothing but missing samples, one lead alive."
    fails(write(tmp_path, "flat", 0 * leads()), "flat.hea", "all leads are flat", "largest swing 0 mV")
    fails(write(tmp_path, "nan", np.nan * leads()), "nan.hea", "every sample is NaN")
    alone = leads()
    alone[np.arange(12) != 7] = 1.0
    fails(write(tmp_path, "alone", alone), "alone.hea", "lead V2 is the only good one")


def test_short(tmp_path):
    "Less than a second."
    fails(write(tmp_path, "short", leads(0.8)), "short.hea", "0.8 s long", "At least 1 s")
