"""Kinds of faults that ECG readers let pass: tags nobody looked at, a silent choice among several, a guard on
one branch alone, a dependency's default or error, valid files that were refused, messages that misled. Each
file gives its true values or one `BadInput`.
"""

import os
import re
import zlib
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest

from ptacl.base.core import BadInput, as_bad_input, write_atomic
from ptacl.data.cohort import check_cohort, read_cohort
from ptacl.data.ecg import STANDARD_LEADS, ecg_from_array, standardise_ecg
from ptacl.data.ecg_doubts import looked_at
from ptacl.data.ecg_files import READERS, Reader, read_ecg
from ptacl.data.many_ecgs import read_each, windows_of_each
from ptacl.data.phenotypes import read_phenotypes
from ptacl.data.table import read_descriptions
from ptacl.data.toys import cardiosoft_xml, dicom_ecg, muse_xml, toy_ecg
from ptacl.data.ukbb import read_ukbb_ecg

TOY_LT = toy_ecg(10.0, 500.0)
HOW = dict(fs=500.0, mains_hz=50.0, window_s=5.0)


def is_toy(ecg, atol=0.0052, seconds=10.0):
    "The record is the toy's, all leads good."
    n = round(seconds * 500)
    assert ecg.fs == 500 and ecg.lead_ok_L.all() and ecg.signal_LT.shape == (12, n)
    np.testing.assert_allclose(ecg.signal_LT, TOY_LT[:, :n], atol=atol)


def refused(read, *words):
    "One BadInput with a remedy and these words, of a readable length."
    with pytest.raises(BadInput) as caught:
        read()
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert len(caught.value.remedy) > 10 and len(str(caught.value)) < 900
    return caught.value


# ---- WFDB


def wfdb_record(
    folder, x_LT=TOY_LT, name="rec", first=None, spec="16", gain="200/mV", pre=b"", names=STANDARD_LEADS
):
    "The toy in format 16, without checksums."
    steps = float(re.match(r"[\d.]+", gain)[0]) * (1000 if "\u00b5" in gain else 1)
    scale = steps / (1000 if "\u00b5" in gain else 1)
    raw = np.rint(x_LT.T * (scale * 1000 if "\u00b5" in gain else scale)).astype("<i2").tobytes()
    (folder / f"{name}.dat").write_bytes(pre + raw)
    lines = [first or f"{name} {len(x_LT)} 500 {x_LT.shape[1]}"]
    lines += [f"{name}.dat {spec} {gain} 16 0 0 0 0 {n}" for n in names]
    (folder / f"{name}.hea").write_bytes(("\n".join(lines) + "\n").encode("latin-1"))
    return folder / f"{name}.hea"


@pytest.mark.parametrize(
    "first, name",
    [
        ("rec.mat 12 500 5000 05-May-2020 09:49:17", "rec"),  # the 2020 Challenge
        ("rec.v1 12 500 5000", "rec.v1"),
        ("g1/rec 12 500 5000 11:22:33 1/2/1999", "rec"),
        ("a/07 12 500 5000", "07"),  # not 7 segments: its lines are those of signals
        ("rec 12 500/500(0) 5000", "rec"),
        ("rec 12 500", "rec"),
    ],
)
def test_header_spellings(tmp_path, first, name):
    "Record names with dots and slashes, dates, years, a counter frequency, no length."
    hea = wfdb_record(tmp_path, name=name, first=first)
    is_toy(read_ecg(hea))
    is_toy(read_ecg(hea.with_suffix("")))


def test_micro_sign_as_one_byte(tmp_path):
    "A unit that is spelt with the micro sign, in Latin-1 and in UTF-8."
    hea = wfdb_record(tmp_path, TOY_LT, gain="1/\u00b5V")
    is_toy(read_ecg(hea))
    hea.write_bytes(hea.read_bytes().replace(b"\xb5", "\u03bc".encode()))
    is_toy(read_ecg(hea))


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("12 500 5000", "12 fast 5000", ["the sampling rate is not a number"]),
        ("12 500 5000", "12 nan 5000", ["the sampling rate is NaN"]),
        ("12 500 5000", "12 1e400 5000", ["the sampling rate is NaN or infinite"]),
        ("12 500 5000", "12 500 99999999999", ["truncated: 120000 bytes", "need 2399999999976"]),
        ("12 500 5000", "12 500 5000.5", ["the number of samples is 5000.5, not a whole number"]),
        ("rec.dat 16 200/mV 16 0 0 0 0 V1", "rec.dat 56 200/mV 16 0 0 0 0 V1", ["format '56' is unknown"]),
        ("rec.dat 16 200/mV 16 0 0 0 0 V1", "rec.dat 212 200/mV 16 0 0 0 0 V1", ["different formats"]),
        ("200/mV 16 0 0 0 0 V1", "-200/mV 16 0 0 0 0 V1", ["lead V1 has a negative gain"]),
        ("200/mV 16 0 0 0 0 V1", "x/mV 16 0 0 0 0 V1", ["the gain of a signal is not a number"]),
        ("200/mV 16 0 0 0 0 V1", "200(q)/mV 16 0 0 0 0 V1", ["the baseline of a signal is not a number"]),
        ("200/mV 16 0 0 0 0 V1", "200/mV 16 0 0 x 0 V1", ["the checksum of a signal is not a number"]),
        ("rec.dat 16 ", "~ 16 ", ["its leads have no signal files"]),
    ],
)
def test_numbers_of_a_header(tmp_path, old, new, words):
    "What the package wfdb fills in by itself, or lets through as an exception of its own."
    hea = wfdb_record(tmp_path)
    hea.write_text(hea.read_text().replace(old, new))
    refused(lambda: read_ecg(hea), *words)


def two_segments(folder, second_LT=TOY_LT[:, 2500:], names=STANDARD_LEADS, change=("", ""), middle=""):
    "The toy in two segments; `change` is made in the second one's header."
    wfdb_record(folder, TOY_LT[:, :2500], "a")
    hea = wfdb_record(folder, second_LT, "b", names=names)
    hea.write_text(hea.read_text().replace(*change) if change[0] else hea.read_text())
    n = 2 + middle.count("\n")
    total = 2500 + second_LT.shape[1] + sum(int(w) for w in re.findall(r"~ (\d+)", middle))
    lines = f"rec/{n} 12 500 {total}\na 2500\n{middle}b {second_LT.shape[1]}\n"
    (folder / "rec.hea").write_text(lines)
    return folder / "rec.hea"


def test_segments(tmp_path):
    "Another order, another gain and a null segment are read as they are."
    is_toy(read_ecg(two_segments(tmp_path)))
    is_toy(read_ecg(two_segments(tmp_path, TOY_LT[::-1, 2500:], names=STANDARD_LEADS[::-1])))
    is_toy(read_ecg(two_segments(tmp_path, TOY_LT[:, 2500:] * 2, change=(" 200/mV", " 400/mV"))))
    gap = read_ecg(two_segments(tmp_path, TOY_LT[:, 2700:], middle="~ 200\n"))
    np.testing.assert_allclose(gap.signal_LT[:, 2700:], TOY_LT[:, 2700:], atol=0.0052)


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(change=(" 200/mV", " 0/mV")), ["lead I has no gain"]),
        (
            dict(change=("12 500 2500", "12 250 2500")),
            ["2500 samples at 500 Hz, there 2500 samples at 250 Hz"],
        ),
        (dict(change=("12 500 2500", "12 500 2400")), ["there 2400 samples at 500 Hz"]),
        (dict(middle="~ 999999999\n"), ["999999999 of 1000004999 samples were not recorded"]),
    ],
)
def test_segments_that_differ(tmp_path, how, words):
    "Each was put together without a word, or took gigabytes for a header's claim."
    hea = two_segments(tmp_path, **how)
    refused(lambda: read_ecg(hea), *words)


def test_leads_of_one_segment_alone(tmp_path):
    "Half of a lead is no lead: the chest leads are flagged, the limb leads follow from I and II."
    names = ["I", "II", *(f"V{k}R" for k in range(3, 7)), *"XYZ", "VX", "VY", "VZ"]
    ecg = read_ecg(two_segments(tmp_path, names=names))
    assert ecg.lead_ok_L.tolist() == [True] * 6 + [False] * 6
    assert ecg.derived == ("III", "aVR", "aVL", "aVF")
    np.testing.assert_allclose(ecg.signal_LT[:6], TOY_LT[:6], atol=0.011)


# ---- amplitude


def test_one_lead_in_another_unit():
    "uV read as mV in one lead or five of twelve; a rail of 0.9 s; a rail of a small converter is flagged."
    for rows in ([8], range(7, 12)):
        x_LT = TOY_LT.copy()
        x_LT[list(rows)] *= 1000
        named = STANDARD_LEADS[list(rows)[0]]
        refused(
            lambda x=x_LT: ecg_from_array(x, 500.0, STANDARD_LEADS, "mV"),
            f"lead {named}",
            "mV. Check the unit",
        )
    railed_LT = TOY_LT.copy()
    railed_LT[7, 1000:1450] = 32.767
    refused(lambda: ecg_from_array(railed_LT, 500.0, STANDARD_LEADS, "mV"), "lead V2 swings 3")
    railed_LT[7, 1000:1450] = 4.999
    ecg = ecg_from_array(railed_LT, 500.0, STANDARD_LEADS, "mV")
    assert np.flatnonzero(~ecg.lead_ok_L).tolist() == [7]
    np.testing.assert_allclose(np.delete(ecg.signal_LT, 7, 0), np.delete(TOY_LT, 7, 0), atol=1e-6)


def test_missing_tail_is_called_so():
    "Not flat leads, as the message was."
    x_LT = np.where(np.arange(5000) < 3500, TOY_LT, np.nan)
    found = refused(
        lambda: ecg_from_array(x_LT, 500.0, STANDARD_LEADS, "mV"), "30 % of the best lead are NaN"
    )
    assert "flat" not in found.problem


def test_messages_are_short():
    "Names of channels, units and roots of XML could hold anything."
    long = "Zwetschgenmus " * 500
    refused(lambda: ecg_from_array(TOY_LT[:2], 500.0, [long, long], "mV"), "0 of the 12 standard leads")
    refused(
        lambda: ecg_from_array(TOY_LT, 500.0, STANDARD_LEADS, long), "unknown unit 'Zwetschgenmus Zwe...'"
    )
    refused(lambda: ecg_from_array(TOY_LT, 500.0, [*STANDARD_LEADS[:11], long], "mV"), "lead V6 missing")


# ---- XML


def muse(folder, old="", new="", count=1):
    "The toy as MUSE writes it, after a change."
    text = muse_xml(TOY_LT)
    assert old in text
    (folder / "m.xml").write_text(text.replace(old, new, count) if old else text)
    return folder / "m.xml"


def test_muse_tags(tmp_path):
    "A baseline of the first sample is taken off, a lead that was off is flagged, another start is refused."
    path = muse(tmp_path, "<LeadID>V3", "<FirstSampleBaseline>50</FirstSampleBaseline><LeadID>V3")
    np.testing.assert_allclose(read_ecg(path).signal_LT[8], TOY_LT[8] - 0.244, atol=0.003)
    path = muse(tmp_path, "<LeadID>V3", "<LeadOff>TRUE</LeadOff><LeadID>V3")
    assert np.flatnonzero(~read_ecg(path).lead_ok_L).tolist() == [8]
    for tag in ("LeadOffsetFirstSample", "LeadTimeOffset"):
        path = muse(tmp_path, "<LeadID>V3", f"<{tag}>7</{tag}><LeadID>V3")
        refused(lambda path=path: read_ecg(path), "differ in length or start")


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("<SampleExponent>0", "<SampleExponent>", ["SampleExponent of Waveform is not a number (empty)"]),
        (
            "<SampleExponent>0",
            "<SampleExponent>400",
            ["SampleExponent of Waveform is 400, not between -6 and 6"],
        ),
        ("<SampleBase>500", "<SampleBase>inf", ["SampleBase of Waveform is NaN or infinite"]),
        ("4.88", "-4.88", ["LeadAmplitudeUnitsPerBit of LeadData is -4.88, not between"]),
        ("4.88", "0", ["LeadAmplitudeUnitsPerBit of LeadData is 0, not between"]),
        (">5000<", ">1e400<", ["differ in length or start"]),
        ("<LeadDataCRC32>", "<LeadDataCRC32>x", ["LeadDataCRC32 is not a number"]),
        ("<LeadID>I<", "<LeadSampleSize>4</LeadSampleSize><LeadID>I<", ["samples of lead 'I' have 4 bytes"]),
    ],
)
def test_muse_numbers(tmp_path, old, new, words):
    refused(lambda: read_ecg(muse(tmp_path, old, new)), *words)


def cardiosoft(folder, median="", strips=1, old="", new=""):
    "The toy in UK Biobank's form."
    strip = cardiosoft_xml(TOY_LT)
    if old:
        assert old in strip
        strip = strip.replace(old, new, 1)
    measured = f"<RestingECGMeasurements>{median}</RestingECGMeasurements>"
    text = f"<CardiologyXML>{measured}{strip * strips}</CardiologyXML>"
    (folder / "1000001_20205_2_0.xml").write_text(text)
    return folder / "1000001_20205_2_0.xml"


def median_beat(x_LT, unit="Sample", old="", new=""):
    "MedianSamples as CardioSoft V6.73 writes it."
    inside = cardiosoft_xml(x_LT)[len("<StripData>") : -len("</StripData>")].replace(old or "\0", new)
    first = f'<FirstValid units="{unit}">5</FirstValid><LastValid units="{unit}">595</LastValid>'
    return f"<MedianSamples>{inside}{first}</MedianSamples>"


def test_median_beat_of_the_device(tmp_path):
    "Counted in samples; empty or short it is none, and the record stays."
    beat_LT = TOY_LT[:, 100:700]
    ecg, device = read_ukbb_ecg(cardiosoft(tmp_path, median_beat(beat_LT)))
    is_toy(ecg, 0.0026)
    assert device.median_valid_ms == (10.0, 1190.0)
    np.testing.assert_allclose(device.median_beat.signal_LT, beat_LT, atol=0.0026)
    assert read_ukbb_ecg(cardiosoft(tmp_path, median_beat(beat_LT, "ms")))[1].median_valid_ms == (5.0, 595.0)
    without_v2 = re.sub(r'(lead="V2">)[^<]*', r"\1", median_beat(beat_LT))
    for median in (without_v2, median_beat(beat_LT[:, :400]), re.sub(r'(">)[\s\d,.-]+<', r"\1<", without_v2)):
        ecg, device = read_ukbb_ecg(cardiosoft(tmp_path, median))
        is_toy(ecg, 0.0026)
        assert device.median_beat is None and np.isnan(device.median_valid_ms).all()


@pytest.mark.parametrize("read", [read_ecg, read_ukbb_ecg])
def test_cardiosoft_faults(tmp_path, read):
    "A negative step, two strips, an exercise ECG, counts that are none."
    for old, new, word in (
        ('"uVperLsb">5<', '"uVperLsb">-5<', "Resolution of StripData is -5, not between"),
        (">5000<", ">nan<", "ChannelSampleCountTotal of StripData is NaN"),
        (">5000<", ">5000.5<", "is 5000.5, not a whole number"),
        (">500<", ">5_0_0<", "SampleRate of StripData is not a number"),
    ):
        refused(lambda old=old, new=new: read(cardiosoft(tmp_path, old=old, new=new)), word)
    refused(lambda: read(cardiosoft(tmp_path, strips=2)), "2 StripData, of 12, 12 leads")
    path = tmp_path / "e.xml"
    path.write_text(
        f"<CardiologyXML><ObservationType>ExerciseECG</ObservationType>{cardiosoft_xml(TOY_LT)}</CardiologyXML>"
    )
    refused(lambda: read(path), "is an exercise ECG (UK Biobank's field 6025)")
    rhythm = cardiosoft_xml(TOY_LT[:2], names=["II", "V1"])
    path.write_text(f"<CardiologyXML>{rhythm}{cardiosoft_xml(TOY_LT)}</CardiologyXML>")
    found = read(path)
    is_toy(found if read is read_ecg else found[0], 0.0026)


def test_large_xml_is_refused_at_once(tmp_path):
    "57 MB took 20 s."
    (tmp_path / "a.xml").write_bytes(b" " * (17 * 2**20))
    refused(lambda: read_ecg(tmp_path / "a.xml"), "bytes are too many for an ECG")


# ---- DICOM


def dicom(folder, *parts, change=None):
    "The toy with a group for each part: leads, samples, start in ms; or one group."
    path = dicom_ecg(TOY_LT, folder / "a.dcm")
    file = pydicom.dcmread(path)
    whole = file.WaveformSequence[1]
    groups = []
    for leads, samples, start_ms in parts or [(slice(None), slice(None), 0)]:
        raw_LT = np.frombuffer(whole.WaveformData, "<i2").reshape(-1, 12).T[leads, samples]
        group = deepcopy(whole)
        group.ChannelDefinitionSequence = group.ChannelDefinitionSequence[leads]
        group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = raw_LT.shape
        group.MultiplexGroupTimeOffset = start_ms
        group.WaveformData = raw_LT.T.tobytes()
        groups.append(group)
    if change:
        change(groups[0])
    file.WaveformSequence = groups
    file.save_as(path)
    return path


LIMB = slice(0, 6)
CHEST = slice(6, 12)
ALL = slice(None)


def test_dicom_groups_that_belong_together(tmp_path):
    "Limb and chest leads; with a rhythm strip beside them; all leads of 2.5 s beside a strip of 10 s."
    is_toy(read_ecg(dicom(tmp_path, (LIMB, ALL, 0), (CHEST, ALL, 0))))
    is_toy(read_ecg(dicom(tmp_path, (CHEST, ALL, 0), (LIMB, ALL, 0))))
    is_toy(read_ecg(dicom(tmp_path, (slice(1, 2), ALL, 0), (ALL, slice(0, 1250), 0))), seconds=2.5)


@pytest.mark.parametrize(
    "parts",
    [
        [(slice(3 * k, 3 * k + 3), slice(1250 * k, 1250 * k + 1250), start * k) for k in range(4)]
        + ([(slice(1, 2), ALL, 0)] if strip else [])
        for start in (0, 2500)
        for strip in (False, True)
    ]
    + [[(LIMB, slice(0, 2500), 0), (CHEST, slice(2300, 4800), start)] for start in (0, 5000)]
    + [[(LIMB, ALL, 0), (CHEST, slice(0, 2500), 0)]],
)
def test_dicom_groups_of_different_times(tmp_path, parts):
    "3 x 4 as on paper, with and without a strip and a word about the time; halves; unequal lengths."
    refused(lambda: read_ecg(dicom(tmp_path, *parts)), "I II", "for 2.5 s" if len(parts) > 3 else "for 5 s")


def test_dicom_two_records(tmp_path):
    refused(
        lambda: read_ecg(dicom(tmp_path, (ALL, slice(0, 2500), 0), (ALL, slice(2500, 5000), 5000))),
        "several groups could be the record",
    )


@pytest.mark.parametrize(
    "tag, value, word",
    [
        ("ChannelSampleSkew", "20", "its leads are 40 ms apart"),
        ("ChannelTimeSkew", "0.1", "its leads are 100 ms apart"),
        ("ChannelOffset", "-0.5", "its leads are 500 ms apart"),
        ("ChannelSensitivity", "-1", "the sensitivity of channel 6 is -2.5 a step"),
        ("ChannelSensitivityCorrectionFactor", "0", "the sensitivity of channel 6 is 0 a step"),
    ],
)
def test_dicom_tags(tmp_path, tag, value, word):
    "Of one channel."
    path = dicom(tmp_path, change=lambda g: setattr(g.ChannelDefinitionSequence[6], tag, value))
    refused(lambda: read_ecg(path), word)


def test_dicom_twelve_bits(tmp_path):
    "The sign of 12 bits stored in 16 may stop at the twelfth."

    def masked(group):
        raw = np.frombuffer(group.WaveformData, "<i2") & 0xFFF
        group.WaveformData = raw.astype("<i2").tobytes()
        for channel in group.ChannelDefinitionSequence:
            channel.WaveformBitsStored = 12

    is_toy(read_ecg(dicom(tmp_path, change=masked)))


def test_dicom_big_endian(tmp_path):
    "The other byte order, with padding at the end."
    path = tmp_path / "b.dcm"
    as_read = pydicom.dcmread(dicom(tmp_path))
    group = pydicom.Dataset.from_json(as_read.WaveformSequence[0].to_json())
    raw = np.frombuffer(group.WaveformData, "<i2").copy()
    raw[-12 * 50 :] = -32768
    group.WaveformData = raw.astype(">i2").tobytes()
    file = pydicom.Dataset()
    file.file_meta = as_read.file_meta
    file.SOPClassUID = as_read.SOPClassUID
    file.SOPInstanceUID = as_read.SOPInstanceUID
    file.WaveformSequence = [group]
    group.WaveformPaddingValue = np.array([-32768], ">i2").tobytes()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    file.save_as(path, enforce_file_format=True)
    ecg = read_ecg(path)
    np.testing.assert_allclose(ecg.signal_LT[:, :-50], TOY_LT[:, :-50], atol=0.0013)


def test_deflated_bomb(tmp_path):
    "A DICOM of 300 KB that inflates to 300 MB."
    path = tmp_path / "a.dcm"
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.9.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    file = pydicom.Dataset()
    file.file_meta = meta
    file.SOPClassUID = meta.MediaStorageSOPClassUID
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    file.save_as(path, enforce_file_format=True)
    start = 128 + 4 + 12 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packer.compress(bytes(2**24)) for _ in range(18)) + packer.flush()
    path.write_bytes(path.read_bytes()[:start] + bomb)
    refused(lambda: read_ecg(path), "holds more than 256 MB")


# ---- one bad file ends nothing


@pytest.fixture
def a_reader_that(monkeypatch):
    "Registers a reader of `.odd` files that raises."

    def register(error):
        def read(path):
            raise error

        monkeypatch.setitem(READERS, "odd", Reader(lambda p: p.suffix == ".odd", read, (".odd",)))

    return register


@pytest.mark.parametrize(
    "error", [MemoryError(), KeyError("Smith"), OverflowError("x"), PermissionError(13, "no")]
)
def test_a_bad_file_in_a_batch(tmp_path, a_reader_that, error):
    "Whatever it raises becomes what is wrong with it, without the exception's text."
    a_reader_that(error)
    good = wfdb_record(tmp_path)
    (tmp_path / "b.odd").touch()
    files = [good, tmp_path / "b.odd", good]
    found = dict(enumerate(x for _, x in read_each(files)))
    assert isinstance(found[1], BadInput) and "Smith" not in str(found[1])
    is_toy(found[2])
    made = [x for _, x in windows_of_each(files, HOW, workers=1)]
    assert isinstance(made[1], BadInput) and made[2][0].shape == (1, 12, 2500)
    (tmp_path / "participants.tsv").write_text("participant_id\tecg\np1\tb.odd\np2\trec.hea\n")
    report = check_cohort(read_cohort(tmp_path), progress=False)
    assert report.participant_id.tolist() == ["p1"] and report.severity.tolist() == ["left out"]


def test_a_cell_longer_than_a_file_name(tmp_path):
    "An OSError of the system, before."
    wfdb_record(tmp_path)
    long = "x" * 5000
    (tmp_path / "participants.tsv").write_text(f"participant_id\tecg\np1\t{long}\np2\trec\n")
    cohort = read_cohort(tmp_path)
    assert cohort.table.ecg.tolist() == ["", "rec"]
    assert cohort.report.problem.tolist() == ["cannot be followed (OSError)"]
    assert cohort.report.source.str.len().max() < 100
    with pytest.raises(BadInput, match="no such WFDB record"):
        read_ecg(tmp_path / long)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": {"unit": ' + "9" * 5000 + "}}", '{"a": 1e999}', "\ufeff{", "3"]
)
def test_json_of_columns(tmp_path, text):
    "Nested too deeply, numbers of thousands of digits."
    path = tmp_path / "participants.json"
    path.write_text(text)
    try:
        assert len(read_descriptions(path)["a"]["unit"]) <= 200
    except BadInput as e:
        assert len(str(e)) < 500


def test_kinds_of_errors():
    "A fault of ours is told by its place alone."
    try:
        {}["Smith"]
    except KeyError as e:
        found = as_bad_input(e, "a.xml")
    assert re.fullmatch(r"ptacl itself failed \(KeyError in test_faults_ecg.py, line \d+\)", found.problem)


# ---- the same doubts on both paths


@pytest.mark.parametrize(
    "what, change, severity",
    [
        (
            "the limb leads contradict",
            lambda x: (x[[1, 0, *range(2, 12)]], 500.0, STANDARD_LEADS),
            "left out",
        ),
        ("too slow", lambda x: (x, 250.0, STANDARD_LEADS), "left out"),
        ("the gain is wrong", lambda x: (x * 12, 500.0, STANDARD_LEADS), "left out"),
        ("leads missing or flat: V1, V2", lambda x: (x[:6], 500.0, STANDARD_LEADS[:6]), "warning"),
        (
            "the record is 2 s long, the encoder reads 5 s",
            lambda x: (x[:, :1000], 500.0, STANDARD_LEADS),
            "warning",
        ),
        (
            "no complete beat",
            lambda x: (np.random.default_rng(0).normal(0, 0.2, x.shape), 500.0, STANDARD_LEADS),
            "warning",
        ),
        (
            "a hum of 60 Hz",
            lambda x: (x + 0.05 * np.sin(2 * np.pi * 60 * np.arange(5000) / 500), 500.0, STANDARD_LEADS),
            "warning",
        ),
    ],
)
def test_doubts(what, change, severity):
    "What an encoder made a vector of without a word."
    ecg = ecg_from_array(*change(TOY_LT), "mV")
    doubts = {e.problem: s for e, s in looked_at(ecg, HOW).doubts}
    [found] = [s for problem, s in doubts.items() if what in problem]
    assert found == severity


def test_the_toy_is_not_doubted():
    ecg = ecg_from_array(TOY_LT, 500.0, STANDARD_LEADS, "mV")
    seen = looked_at(ecg, HOW)
    assert (seen.n_leads, seen.seconds, seen.doubts) == (12, 5.0, ())
    assert standardise_ecg(ecg, 500.0, 50.0).lead_ok_L.all()


# ---- tables and files of a run


def test_columns_of_a_table_on_demand(tmp_path):
    "What is not of category 157 is listed, or kept by field, header or our name."
    (tmp_path / "t.csv").write_text(
        "eid,p31,p21003_i0,p21003_i2,p131286,p24103_i2,Smoker\n1,1,50,61,1999-02-28,60,yes\n2,0,52,,,61,no\n"
    )
    table, _, notes = read_phenotypes(tmp_path / "t.csv", 2)
    assert list(table) == ["participant_id", "lvef"]
    assert notes == ["4 columns are ignored (ask for them by `columns`): 31, 21003, 131286, 'Smoker'"]
    table, about, notes = read_phenotypes(tmp_path / "t.csv", 2, "sex=31, age=21003, died=131286, SMOKER")
    assert table.sex.tolist() == [1, 0] and table.smoker.tolist() == ["yes", "no"]
    assert table.age.tolist()[0] == 61 and np.isnan(table.age[1])  # 52 is of another visit
    assert (
        table.died.tolist() == ["1999-02-28", None] and about["died"]["description"] == "UK Biobank: 131286"
    )
    assert len(notes) == 2 and all("is of instance 0; there is none of instance 2" in n for n in notes)
    refused(lambda: read_phenotypes(tmp_path / "t.csv", 2, "48"), "no column of 48")


def test_files_follow_the_umask(tmp_path):
    "Some libraries write for the owner alone; a group cannot share that."

    def private(tmp: Path) -> None:
        tmp.unlink(missing_ok=True)
        os.close(os.open(tmp, os.O_WRONLY | os.O_CREAT, 0o600))

    before = os.umask(0o027)
    try:
        path = write_atomic(tmp_path / "model.safetensors", private)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    assert pd.Series(os.listdir(tmp_path)).tolist() == ["model.safetensors"]
