"""UK Biobank's forms, written by ukbb_files.py from the samples with every oddity that is known: exact
values, clear errors, and nothing personal anywhere.
"""

import io
import logging
import re
import traceback
import warnings
import zipfile
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pydicom
import pytest
import ukbb_files as write
from pydicom.uid import JPEG2000

from ptacl.base.core import BadInput, sample_path
from ptacl.data.beats import find_r_peaks
from ptacl.data.cine import mid_slice, read_cine, write_cine
from ptacl.data.cine_dicom import read_dicom_cine
from ptacl.data.dicom_study import list_dicom_series
from ptacl.data.ecg import STANDARD_LEADS, einthoven_error_mv
from ptacl.data.ecg_dicom import ecg_from_dicom, quiet_pydicom
from ptacl.data.ecg_files import read_ecg
from ptacl.data.phenotypes import PHENOTYPES, read_phenotypes
from ptacl.data.ukbb import pair_ukbb, read_ukbb_cine, read_ukbb_ecg


@pytest.fixture(scope="module")
def ecg():
    return read_ecg(sample_path("ecg", "sim-0001.hea"))


@pytest.fixture(scope="module")
def beats_ms(ecg):
    return find_r_peaks(ecg.signal_LT, ecg.lead_ok_L, ecg.fs) / ecg.fs * 1000


@pytest.fixture(scope="module")
def cine():
    return read_cine(sample_path("cine", "sim-0001.nii.gz"))


def few(cine):
    "A small study, for what does not depend on its size: 3 slices of 13 frames."
    return write.short_axis(
        replace(cine, frames_FZHW=cine.frames_FZHW[::2]),
        names=[f"CINE_segmented_SAX_b{k}" for k in (1, 2, 3)],
        depths=(20.0, 0.0, 10.0),
    )


@pytest.fixture
def zip_path(tmp_path):
    return tmp_path / "1000001_20209_2_0.zip"


def refuse(read, path, *words):
    "Reading fails with one `BadInput` that names the file, says what is wrong and what to do."
    with pytest.raises(BadInput) as e:
        read(path)
    assert path.name.split(".")[0] in e.value.source and len(e.value.remedy) > 10
    for w in words:
        assert w in str(e.value), str(e.value)
    return e.value


# ---- the ECG


@pytest.mark.parametrize(
    "how",
    [
        {},
        dict(nested=True),
        *(dict(spelling=s) for s in write.SPELLINGS),
        dict(order=(7, 3, 0, 11, 5, 1, 2, 10, 4, 6, 9, 8)),
        dict(wrap=5000),
        dict(wrap=100),
        dict(step_uv=2.5),
        dict(person=False),
        dict(change=lambda t: re.sub(r"\s*,\s*", " ,\r\n  ", t)),
        dict(median=False),
    ],
    ids=lambda how: "-".join(how) or "plain",
)
def test_ecg_comes_back(ecg, beats_ms, tmp_path, how):
    "Within half a step in every sample, whatever the spelling, order, nesting and line breaks."
    got, device = read_ukbb_ecg(write.ecg_xml(tmp_path / "1_20205_2_0.xml", ecg, beats_ms, **how))
    half = how.get("step_uv", 5.0) / 2000 + 1e-6
    assert np.abs(got.signal_LT - ecg.signal_LT).max() <= half
    assert got.fs == 500 and got.lead_names == STANDARD_LEADS and got.lead_ok_L.all() and got.derived == ()
    assert (
        einthoven_error_mv(got.signal_LT, got.lead_ok_L)
        <= einthoven_error_mv(ecg.signal_LT, ecg.lead_ok_L) + 4 * half
    )
    assert np.array_equal(read_ecg(tmp_path / "1_20205_2_0.xml").signal_LT, got.signal_LT)
    assert np.allclose(device.r_times_ms, beats_ms, atol=1e-6) and device.beat_classes[3:6] == (
        "dominant",
        "ventricular",
        "dominant",
    )
    assert (
        device.q_onset_ms,
        device.t_offset_ms,
        device.p_onset_ms,
        device.qt_interval_ms,
        device.ventricular_rate_bpm,
        device.r_axis_deg,
    ) == (418, 822, 258, 404, 61, 12)
    if how.get("median", True):
        assert np.abs(device.median_beat.signal_LT - ecg.signal_LT[:, 100:700]).max() <= half
        assert device.median_valid_ms == (40.0, 1160.0)
    else:
        assert device.median_beat is None


@pytest.mark.parametrize("tag", write.MEASUREMENTS)
def test_ecg_empty_measurement(ecg, tmp_path, tag):
    "Each measurement may be empty or absent, and all others stay."

    def all_of(d):
        return {k: v for k, v in vars(d).items() if isinstance(v, float)}

    whole = all_of(read_ukbb_ecg(write.ecg_xml(tmp_path / "1_20205_2_0.xml", ecg))[1])
    empty = all_of(read_ukbb_ecg(write.ecg_xml(tmp_path / "1_20205_2_0.xml", ecg, empty=(tag,)))[1])
    absent = all_of(
        read_ukbb_ecg(
            write.ecg_xml(
                tmp_path / "1_20205_2_0.xml", ecg, change=lambda t: re.sub(f"<{tag} .*?</{tag}>", "", t)
            )
        )[1]
    )
    assert sum(np.isnan(v) for v in empty.values()) == 1 and not any(map(np.isnan, whole.values()))
    assert (
        {k: v for k, v in empty.items() if not np.isnan(v)}
        == {k: v for k, v in absent.items() if not np.isnan(v)}
        == {k: v for k, v in whole.items() if not np.isnan(empty[k])}
    )


def test_ecg_without_what_the_device_said(ecg, tmp_path):
    "No beats and no measurements: the record is still read."

    def without_results(t):
        return re.sub(
            r"(?s)<RestingECGMeasurements>.*</RestingECGMeasurements>|<ArrhythmiaResults>.*?</ArrhythmiaResults>",
            "",
            t,
        )

    got, device = read_ukbb_ecg(
        write.ecg_xml(
            tmp_path / "1.xml",
            ecg,
            change=without_results,
        )
    )
    assert (
        got.lead_ok_L.all()
        and device.r_times_ms.shape == (0,)
        and device.beat_classes == ()
        and device.median_beat is None
        and np.isnan(device.t_offset_ms)
    )


def test_ecg_leads_missing(ecg, tmp_path):
    "Without III and aVF they are derived; without V3 it is flagged."
    got, _ = read_ukbb_ecg(write.ecg_xml(tmp_path / "1.xml", ecg, drop=(2, 5, 8)))
    assert got.derived == ("III", "aVF") and [
        n for n, ok in zip(STANDARD_LEADS, got.lead_ok_L, strict=True) if not ok
    ] == ["V3"]
    assert np.abs(got.signal_LT[[2, 5]] - ecg.signal_LT[[2, 5]]).max() < 0.02


def with_an_entity(t):
    return t.replace(
        "<CardiologyXML>",
        '<!DOCTYPE CardiologyXML [<!ENTITY x SYSTEM "file:///etc/hostname">]><CardiologyXML>',
    ).replace(">CASE<", ">&x;<")


def with_a_doctype(t):
    return t.replace(
        "<CardiologyXML>", '<!DOCTYPE CardiologyXML SYSTEM "http://example.org/a.dtd"><CardiologyXML>'
    )


@pytest.mark.parametrize(
    "change, words",
    [
        (
            with_an_entity,
            ["declares a document type"],
        ),
        (
            with_a_doctype,
            ["declares a document type"],
        ),
        (
            lambda t: t.replace("<CardiologyXML>", '<!DOCTYPE RestingECG [<!ENTITY x "y">]><CardiologyXML>'),
            ["declares a document type"],
        ),
        (lambda t: t[: len(t) // 2], ["not well-formed XML at line"]),
        (lambda t: t.replace("</PatientInfo>", ""), ["not well-formed XML at line"]),
        (lambda t: t.replace(">CASE<", ">&nosuch;<"), ["not well-formed XML at line"]),
        (lambda t: "", ["not well-formed XML"]),
        (
            lambda t: t.replace('<SampleRate units="Hz">500</SampleRate>', ""),
            ["no SampleRate", "none is assumed"],
        ),
        (lambda t: t.replace('<Resolution units="uVperLsb">5</Resolution>', ""), ["no Resolution"]),
        (lambda t: t.replace("uVperLsb", "steps"), ["unknown unit 'steps'"]),
        (lambda t: t.replace('units="uVperLsb">5<', 'units="mVperLsb">5<'), ["Check the unit and the gain"]),
        (lambda t: t.replace(">5000<", ">4999<"), ["has 5000 samples, ChannelSampleCountTotal says 4999"]),
        (
            lambda t: t.replace("<NumberOfLeads>12", "<NumberOfLeads>8"),
            ["NumberOfLeads is 8, but there are 12 leads"],
        ),
        (lambda t: t.replace('lead="V6"', 'lead="V5"'), ["are both lead V5"]),
        (lambda t: t.replace('lead="V6"', 'lead="W6"'), ["lead V6 missing", "'W6' unknown"]),
        (lambda t: re.sub(r'(<WaveformData lead="V2">)[^<]*', r"\1", t), ["lead 'V2'"]),
        (
            lambda t: re.sub(r'(<WaveformData lead="V2">\s*-?\d+)', r"\1e,", t),
            ["a sample of lead 'V2' is not a number"],
        ),
        (lambda t: re.sub(r"(?s)<StripData>.*</StripData>", "", t), ["no StripData"]),
        (lambda t: t.replace("CardiologyXML>", "AnnotatedECG>"), ["root element is 'AnnotatedECG'"]),
        (lambda t: t.replace('<QOnset units="ms"', '<QOnset units="parsec"'), ["QOnset is in 'parsec'"]),
    ],
)
def test_ecg_refused(ecg, tmp_path, change, words):
    e = refuse(read_ukbb_ecg, write.ecg_xml(tmp_path / "1000001_20205_2_0.xml", ecg, change=change), *words)
    assert not any(s in str(e) for s in write.SECRETS)


def test_external_entity_is_not_opened(ecg, tmp_path):
    "Neither parser opens the file that an entity names (here it could be read)."
    (tmp_path / "secret.txt").write_text("12345")
    inject = f'<!DOCTYPE CardiologyXML [<!ENTITY x SYSTEM "{(tmp_path / "secret.txt").as_uri()}">]>\n'
    for read in (read_ukbb_ecg, read_ecg):
        refuse(
            read,
            write.ecg_xml(
                tmp_path / "1.xml", ecg, doctype=inject, change=lambda t: t.replace(">500<", ">&x;<", 1)
            ),
            "declares a document type",
        )


# ---- the cine


def parts(cine, k):
    return np.rint(cine.frames_FZHW[:, 0] * (1 - 0.1 * int(k)))


def test_stack_comes_back(cine, zip_path):
    """Slices by place, frames by time, spacing from places, pixels exact, times and RR of the middle slice;
    the affine gives every slice's own place.
    """
    study = write.short_axis(cine)
    got, notes = read_ukbb_cine(study.write(zip_path), "sax")
    by_depth = np.argsort(write.DEPTHS)
    assert notes == [] and got.frames_FZHW.shape == (25, 5, *cine.frames_FZHW.shape[2:]) and got.view == "sax"
    for z, k in enumerate(by_depth):
        assert np.array_equal(got.frames_FZHW[:, z], parts(cine, k))
    # b4 lies in the middle, at 20 mm
    assert got.spacing_mm == (pytest.approx(10, abs=1e-6), *cine.spacing_mm[1:]) and got.rr_ms == 850.0
    assert np.allclose(got.trigger_time_ms, np.arange(25) * 34, atol=1e-6)
    assert np.array_equal(mid_slice(got).frames_FZHW[:, 0], parts(cine, 3))
    for z, k in enumerate(by_depth):
        d = study.slices[k].images[0]
        place = np.array(d.ImagePositionPatient, float)
        o = np.array(d.ImageOrientationPatient, float)
        for row, col in ((0, 0), (3, 0), (0, 5)):
            lps = place + row * float(d.PixelSpacing[0]) * o[3:] + col * float(d.PixelSpacing[1]) * o[:3]
            assert np.allclose((got.affine @ [col, row, z, 1])[:3], lps * [-1, -1, 1], atol=1e-4)
    assert np.linalg.det(got.affine[:3, :3]) > 0
    back = read_cine(write_cine(got, zip_path.with_name("a.nii.gz")))
    assert np.array_equal(back.frames_FZHW, got.frames_FZHW) and np.allclose(
        back.affine, got.affine, atol=1e-3
    )


@pytest.mark.parametrize("manifest", ["csv", "cvs", ""])
def test_manifest_is_optional_and_shifted(cine, zip_path, manifest):
    """With the date's comma in it, with its other suffix, and without; a series without a name in its images
    takes the manifest's.
    """
    study = write.short_axis(cine)
    study.manifest = manifest
    if manifest:
        for s in study.slices:
            for d in s.images:
                del d.SeriesDescription
    assert read_ukbb_cine(study.write(zip_path), "sax")[0].frames_FZHW.shape[1] == 5


def test_manifest_lists_more(cine, zip_path):
    study = write.short_axis(cine)
    files = study.files()
    lost = [n for n in files if n.endswith(".dcm")][7]
    with zipfile.ZipFile(zip_path, "w") as z:
        for n, raw in files.items():
            if n != lost:
                z.writestr(n, raw)
    notes = read_ukbb_cine(zip_path, "sax")[1]
    assert notes[0] == "1 of 125 files that the manifest lists are missing" and any(
        "1 of 25 frames missing" in n for n in notes
    )


def test_inline_results_and_other_series_are_skipped(cine, zip_path):
    study = write.short_axis(cine)
    for k, name in enumerate(
        (
            "CINE_segmented_SAX_InlineVF",
            "InlineVF_Results",
            "CINE_segmented_SAX_b3_InlineVF",
            "CINE_segmented_LAX_4Ch",
            "tagging",
        )
    ):
        study.slice(name, parts(cine, 7), 20.0 + k, 700.0, cine.spacing_mm[1:], series=50 + k)
    got, notes = read_ukbb_cine(study.write(zip_path), "sax")
    assert got.frames_FZHW.shape[1] == 5 and notes == []
    four, notes = read_ukbb_cine(zip_path, "lax_4ch")
    # one slice: its thickness
    assert (
        np.array_equal(four.frames_FZHW[:, 0], parts(cine, 7))
        and four.rr_ms == 700
        and notes == []
        and four.spacing_mm[0] == 6
    )


def test_all_slices_in_one_series(cine, zip_path):
    "One CINE_segmented_SAX: slices apart by place."
    study = write.short_axis(cine, names=["CINE_segmented_SAX"] * 5, rr=[850.0] * 5)
    for s in study.slices:
        for d in s.images:
            d.SeriesInstanceUID = "1.2.3"
            d.SeriesNumber = 4
    assert np.array_equal(
        read_ukbb_cine(study.write(zip_path), "sax")[0].frames_FZHW,
        read_ukbb_cine(write.short_axis(cine, rr=[850.0] * 5).write(zip_path), "sax")[0].frames_FZHW,
    )


def test_long_axes_in_one_series(cine, zip_path):
    "Which is which is not said: refused, and readable one by one."
    study = write.CineStudy()
    for k, tilt in enumerate([None, ((0, 0.8, 0.6), (0, 0.6, -0.8)), ((1, 0, 0), (0, 0, -1))]):
        study.slice(
            "CINE_segmented_LAX", parts(cine, k), 0.0, 900.0, cine.spacing_mm[1:], series=3, tilt=tilt
        )
    refuse(
        lambda p: read_ukbb_cine(p, "lax_2ch"),
        study.write(zip_path),
        "all long-axis views are in one series CINE_segmented_LAX",
    )
    refuse(lambda p: read_dicom_cine(p, 3, "lax_2ch"), zip_path, "lie in 3 directions")
    found = [
        read_dicom_cine(zip_path, "CINE_segmented_LAX", "lax_2ch", plane=k)[0].frames_FZHW[:, 0]
        for k in range(3)
    ]
    for k in range(3):
        assert any(np.array_equal(f, parts(cine, k)) for f in found)


def test_a_series_recorded_again(cine, zip_path):
    """The last SeriesInstanceUID, in the order of numbers (10 after 9); one that was broken off does not
    count.
    """
    study = write.short_axis(cine)
    assert study.of("CINE_segmented_SAX_b2").images[0].SeriesInstanceUID.endswith(".2")
    study.slice("CINE_segmented_SAX_b2", parts(cine, 6), 30.4, 800.0, cine.spacing_mm[1:], series=10)
    got, notes = read_ukbb_cine(study.write(zip_path), "sax")
    assert np.array_equal(got.frames_FZHW[:, 3], parts(cine, 6)) and notes == [
        "CINE_segmented_SAX_b2: recorded 2 times; the last is used"
    ]
    broken = study.slice("CINE_segmented_SAX_b2", parts(cine, 8), 30.0, 800.0, cine.spacing_mm[1:], series=11)
    del broken.images[9:]
    got, notes = read_ukbb_cine(study.write(zip_path), "sax")
    assert np.array_equal(got.frames_FZHW[:, 3], parts(cine, 6)) and notes == [
        "CINE_segmented_SAX_b2: recorded 3 times; the last whole one is used"
    ]


@pytest.mark.parametrize("lost", [[0], [24], [7], [7, 8], [3, 17]], ids=str)
# the second is the middle slice
@pytest.mark.parametrize("name", ["CINE_segmented_SAX_b1", "CINE_segmented_SAX_b4"])
def test_missing_frames(cine, zip_path, lost, name):
    "Up to a tenth is filled by interpolation in time and said; the other frames and the times stay."
    whole, _ = read_ukbb_cine(write.short_axis(cine).write(zip_path), "sax")
    study = write.short_axis(cine)
    images = study.of(name).images
    for k in sorted(lost, reverse=True):
        del images[k]
    got, notes = read_ukbb_cine(study.write(zip_path), "sax")
    study.manifest = ""
    assert any(f"{name}: {len(lost)} of 25 frames missing" == n for n in notes) and any(
        f"{name}: {len(lost)} of 25 frames interpolated" in n for n in notes
    )
    assert np.allclose(got.trigger_time_ms, whole.trigger_time_ms, atol=0.05) and got.rr_ms == whole.rr_ms
    kept = np.setdiff1d(range(25), lost)
    assert np.array_equal(got.frames_FZHW[kept], whole.frames_FZHW[kept])
    change = np.abs(got.frames_FZHW - whole.frames_FZHW)[lost].mean()
    # like a neighbour, no hole
    assert change < 2 * np.abs(np.diff(whole.frames_FZHW, axis=0)).mean() * len(lost)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: None,
        lambda s: s.of("CINE_segmented_SAX_b4").images.pop(7),
        lambda s: s.of("CINE_segmented_SAX_b2").images.pop(7),
        lambda s: s.of("CINE_segmented_SAX_b5").images.__delitem__(slice(9, None)),
    ],
    ids=["whole", "frame of the middle", "frame of another", "a slice less"],
)
def test_middle_slice_alone(cine, zip_path, spoil):
    """The pixels of the middle slice alone: the same frames, place, times and spacing as reading all and
    taking the middle.
    """
    study = write.short_axis(cine)
    spoil(study)
    study.write(zip_path)
    (whole, _) = read_ukbb_cine(zip_path, "sax")
    (alone, _) = read_ukbb_cine(zip_path, "sax", middle_only=True)
    of = mid_slice(whole)
    assert (
        np.array_equal(alone.frames_FZHW, of.frames_FZHW)
        and np.array_equal(alone.trigger_time_ms, of.trigger_time_ms)
        and (alone.rr_ms, alone.spacing_mm, alone.view) == (of.rr_ms, of.spacing_mm, of.view)
    )
    assert np.allclose(alone.affine, of.affine, atol=1e-3)


def test_too_many_missing(cine, zip_path):
    """A slice at the end of the stack without half of its frames is left out; a slice in the middle breaks
    the stack, and the longer part is kept.
    """
    study = write.short_axis(cine)
    del study.of("CINE_segmented_SAX_b5").images[10:]
    got, notes = read_ukbb_cine(study.write(zip_path), "sax")
    assert (
        got.frames_FZHW.shape[1] == 4
        and "CINE_segmented_SAX_b5: only 10 of 25 frames, the slice is left out" in notes
    )
    study = write.short_axis(cine)
    del study.of("CINE_segmented_SAX_b2").images[10:]  # at 30 mm: 0, 10, 20 stay, 40 goes
    got, notes = read_ukbb_cine(study.write(zip_path), "sax")
    assert got.frames_FZHW.shape[1] == 3 and any("1 of 4 beyond the gap are left out" in n for n in notes)


def test_single_slice_keeps_its_times(cine, zip_path):
    study = write.CineStudy()
    s = study.slice("CINE_segmented_LAX_2Ch", parts(cine, 0), 0.0, 900.0, cine.spacing_mm[1:])
    del s.images[7]
    got, notes = read_ukbb_cine(study.write(zip_path), "lax_2ch")
    assert (
        np.allclose(got.trigger_time_ms, np.delete(np.arange(25) * 36.0, 7))
        and "CINE_segmented_LAX_2Ch: 1 of 25 frames missing" in notes
    )


def test_pictures_of_other_sizes(cine, zip_path):
    """More rows or fewer columns around the same heart: the pixels of the middle slice, unchanged where both
    are.
    """
    whole, _ = read_ukbb_cine(write.short_axis(cine).write(zip_path), "sax")
    study = write.short_axis(cine)
    (dy, dx) = cine.spacing_mm[1:]
    n = len(study.slices)
    study.slices = [
        s for s in study.slices if s.name not in ("CINE_segmented_SAX_b1", "CINE_segmented_SAX_b5")
    ]
    study.slice(
        "CINE_segmented_SAX_b1",
        np.pad(parts(cine, 0), ((0, 0), (4, 6), (3, 2))),
        10.0,
        900.0,
        (dy, dx),
        series=n + 1,
        start=(-4 * dy, -3 * dx),
    )
    study.slice(
        "CINE_segmented_SAX_b5",
        parts(cine, 4)[:, 5:-3, 2:-6],
        40.0,
        910.0,
        (dy, dx),
        series=n + 2,
        start=(5 * dy, 2 * dx),
    )
    got, notes = read_ukbb_cine(study.write(zip_path), "sax")
    assert np.array_equal(got.frames_FZHW[:, :4], whole.frames_FZHW[:, :4]) and len(notes) == 2
    assert (
        np.array_equal(got.frames_FZHW[:, 4, 5:-3, 2:-6], whole.frames_FZHW[:, 4, 5:-3, 2:-6])
        and not got.frames_FZHW[:, 4, :5].any()
    )


def test_pixels_of_another_size(cine, zip_path):
    "A slice with twice the resolution is brought to that of the others, at its place."
    whole, _ = read_ukbb_cine(write.short_axis(cine).write(zip_path), "sax")
    study = write.short_axis(cine)
    (dy, dx) = cine.spacing_mm[1:]
    for d in study.of("CINE_segmented_SAX_b5").images:
        a = np.kron(d.pixel_array, np.ones((2, 2), "u2"))
        d.PixelData = a.tobytes()
        (d.Rows, d.Columns) = a.shape
        d.PixelSpacing = [dy / 2, dx / 2]
        d.ImagePositionPatient = [
            float(p) - dy / 4 * v - dx / 4 * u
            for p, u, v in zip(d.ImagePositionPatient, study.across, study.down, strict=True)
        ]
    got, notes = read_ukbb_cine(study.write(zip_path), "sax")
    assert len(notes) == 1 and "interpolated to" in notes[0]
    # the mean of four equal pixels
    assert np.abs(got.frames_FZHW[:, 4, 1:-1, 1:-1] - whole.frames_FZHW[:, 4, 1:-1, 1:-1]).max() <= 1


def test_twice_the_same_frame(cine, zip_path):
    study = write.short_axis(cine)
    images = study.of("CINE_segmented_SAX_b2").images
    images.append(images[4].copy())
    images[-1].SOPInstanceUID = "1.2.3.4"
    images[-1].InstanceNumber = 99
    got, notes = read_ukbb_cine(study.write(zip_path), "sax")
    assert got.frames_FZHW.shape[0] == 25 and notes == [
        "CINE_segmented_SAX_b2: 1 images with a trigger time that another has; the last of each is used"
    ]


def test_folder_is_like_a_zip(cine, zip_path, tmp_path):
    study = write.short_axis(cine)
    a = read_ukbb_cine(study.write(zip_path), "sax")[0]
    b = read_ukbb_cine(study.folder(tmp_path / "study"), "sax")[0]
    assert np.array_equal(a.frames_FZHW, b.frames_FZHW) and np.array_equal(a.affine, b.affine)
    table = list_dicom_series(tmp_path / "study")
    assert (
        table.name.tolist() == [f"CINE_segmented_SAX_b{k}" for k in range(1, 6)]
        and table.frames.tolist() == [25] * 5
        and table.rr_ms.tolist() == [900, 860, 880, 850, 910]
    )
    assert np.array_equal(
        read_dicom_cine(tmp_path / "study", table.number.tolist(), "sax")[0].frames_FZHW, a.frames_FZHW
    )


def set_all(study, **tags):
    for s in study.slices:
        for d in s.images:
            for k, v in tags.items():
                if v is None:
                    delattr(d, k)
                else:
                    setattr(d, k, v)


def cut(d):
    d.PixelData = d.PixelData[:-200]


def jpeg(d):
    d.file_meta.TransferSyntaxUID = JPEG2000
    d.PixelData = pydicom.encaps.encapsulate([b"no picture"])
    d["PixelData"].VR = "OB"
    d["PixelData"].is_undefined_length = True


def one_frame(s):
    return [
        x.images.__delitem__(slice(1, None)) or setattr(x.images[0], "CardiacNumberOfImages", 1)
        for x in s.slices
    ]


def uneven_slices(s):
    return [
        setattr(d, "ImagePositionPatient", [12.0 + dx, -80.0, 95.0])
        for x, dx in zip(s.slices, (0, 7, 30, 55, 99), strict=False)
        for d in x.images
    ]


SPOILT_STUDIES = {
    "two patients": (
        lambda s: setattr(s.slices[2].images[3], "PatientID", "PID11111111"),
        "more than one patient",
    ),
    "two studies": (
        lambda s: [setattr(d, "StudyInstanceUID", "1.3.99") for d in s.slices[2].images],
        "more than one patient",
    ),
    "one frame": (
        one_frame,
        "1 frame(s), a cine needs at least 8",
    ),
    "no trigger time": (lambda s: set_all(s, TriggerTime=None), "without TriggerTime"),
    "no RR": (lambda s: set_all(s, NominalInterval=None), "no NominalInterval"),
    "RR of 0": (lambda s: set_all(s, NominalInterval=0), "no NominalInterval"),
    "RR in seconds": (lambda s: set_all(s, NominalInterval=1), "NominalInterval is 1, outside 250-3000 ms"),
    "no pixel spacing": (lambda s: set_all(s, PixelSpacing=None), "PixelSpacing has 0 values, not 2"),
    "enhanced": (lambda s: set_all(s, NumberOfFrames=25), "several frames"),
    "pixels cut": (lambda s: cut(s.slices[1].images[5]), "pixels of file"),
    "compressed": (lambda s: jpeg(s.slices[1].images[5]), "compressed (JPEG 2000"),
    "no cine": (
        lambda s: set_all(s, SeriesDescription="scout of " + write.PERSON["name"]),
        "no series for sax",
    ),
    "slices uneven": (
        uneven_slices,
        "not evenly spaced",
    ),
    "every slice incomplete": (
        lambda s: [x.images.__delitem__(slice(9, None)) for x in s.slices],
        "no slice has its frames",
    ),
    "nested": (
        lambda s: (s.extra.update({"inner.zip": zipped({"a": b"1"})}), s.slices.clear()),
        "is a zip within",
    ),
    "only a manifest": (lambda s: s.slices.clear(), "no DICOM image"),
    "path escape": (lambda s: s.extra.update({"../../evil.dcm": b"1"}), "leads out of its folder"),
    "absolute": (lambda s: s.extra.update({"/evil.dcm": b"1"}), "leads out of its folder"),
    "bomb": (lambda s: s.extra.update({"bomb.dcm": bytes(80 * 2**20)}), "more than a cine study is"),
}


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for n, raw in files.items():
            z.writestr(n, raw)
    return out.getvalue()


@pytest.mark.parametrize("kind", SPOILT_STUDIES)
def test_spoilt_study(cine, zip_path, kind):
    study = few(cine)
    (change, words) = SPOILT_STUDIES[kind]
    change(study)
    e = refuse(lambda p: read_ukbb_cine(p, "sax"), study.write(zip_path), words)
    assert not any(s in str(e) for s in write.SECRETS)
    # nothing was written anywhere
    assert sorted(p.name for p in zip_path.parent.iterdir()) == [zip_path.name]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda r: b"", "not a readable zip"),
        (lambda r: r[: len(r) // 2], "not a readable zip"),
        (lambda r: b"<html>404</html>", "not a readable zip"),
        (lambda r: r[:5000] + bytes([r[5000] ^ 255]) + r[5001:], "is damaged"),
        (lambda r: zipped({}), "the zip is empty"),
    ],
    ids=["empty", "half", "html", "bit", "no entries"],
)
def test_spoilt_zip(cine, zip_path, change, words):
    zip_path.write_bytes(change(few(cine).write(zip_path).read_bytes()))
    refuse(lambda p: read_ukbb_cine(p, "sax"), zip_path, words)


def test_a_lie_about_the_size(zip_path):
    "An entry whose header promises 10 bytes and that holds 100 MiB is read to 10 bytes at most."
    raw = bytearray(zipped({"a.dcm": b"1234567890"}))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a.dcm", bytes(100 * 2**20))
    raw = bytearray(out.getvalue())
    for sign, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        k = raw.find(sign) + at
        raw[k : k + 4] = (10).to_bytes(4, "little")
    zip_path.write_bytes(raw)
    refuse(lambda p: read_ukbb_cine(p, "sax"), zip_path, "is damaged")


# ---- tables and pairs

ROWS = {
    "1000001": {
        (24103, 2, 0): 61.25,
        (24103, 3, 0): 40.5,
        (24100, 2, 0): 140,
        (24139, 2, 0): 6.5,
        (12653, 2, 0): "Sinus rhythm",
        (12653, 2, 1): "Normal ECG",
        (12336, 2, 0): 62,
        (31, 0, 0): 1,
    },
    "1000002": {(24103, 3, 0): 55, (24100, 2, 0): 99.5, (12653, 2, 0): "Sinus rhythm"},
}


@pytest.mark.parametrize("style", ["dash", "rap", "r"])
@pytest.mark.parametrize("suffix, sep", [("csv", ","), ("tsv", "\t"), ("txt", "\t")])
def test_phenotypes(tmp_path, style, suffix, sep):
    "Every header style and separator gives the same table; nothing of the other visit in it."
    path = write.phenotype_table(tmp_path / f"a.{suffix}", ROWS, style, sep)
    table, about, notes = read_phenotypes(path, 2)
    assert list(table) == [
        "participant_id",
        "lvedv_ml",
        "lvef",
        "wall_thickness_aha16_mm",
        "heart_rate_ecg_bpm",
        "ecg_diagnoses",
    ] and notes == ["1 columns are ignored (ask for them by `columns`): 31"]
    assert table.iloc[0].tolist() == ["1000001", 140.0, 61.25, 6.5, 62.0, "Sinus rhythm; Normal ECG"]
    assert table.participant_id[1] == "1000002" and np.isnan(table.lvef[1]) and table.lvedv_ml[1] == 99.5
    assert {c: v["unit"] for c, v in about.items()} == {
        "participant_id": "",
        "lvedv_ml": "mL",
        "lvef": "%",
        "wall_thickness_aha16_mm": "mm",
        "heart_rate_ecg_bpm": "bpm",
        "ecg_diagnoses": "",
    }
    later, _, _ = read_phenotypes(path, 3)
    assert list(later) == ["participant_id", "lvef"] and later.lvef.tolist() == [40.5, 55.0]


def test_every_phenotype_has_its_column(tmp_path):
    rows = {"1": {(f, 2, 0): f for f, _, _ in PHENOTYPES.values()}}
    table, about, notes = read_phenotypes(write.phenotype_table(tmp_path / "a.csv", rows), 2)
    assert {c: float(table[c][0]) for c in PHENOTYPES} == {
        c: float(f) for c, (f, _, _) in PHENOTYPES.items()
    } and set(about) == {"participant_id", *PHENOTYPES}


def test_parquet(tmp_path):
    "With pyarrow as from CSV; without it, an error that says what to install."
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    if find_spec("pyarrow") is None:
        refuse(
            lambda p: read_phenotypes(p, 2),
            tmp_path / "a.parquet",
            "needs the package pyarrow",
            "pip install pyarrow",
        )
        return
    refuse(lambda p: read_phenotypes(p, 2), tmp_path / "a.parquet", "not a readable Parquet file")
    text = pd.read_csv(write.phenotype_table(tmp_path / "a.csv", ROWS, "rap"))
    text.to_parquet(tmp_path / "a.parquet")
    assert read_phenotypes(tmp_path / "a.parquet", 2)[0].equals(read_phenotypes(tmp_path / "a.csv", 2)[0])


def test_pairs_in_a_folder(tmp_path):
    for name in (
        "ecg/1000001_20205_2_0.xml",
        "cmr/1000001_20209_2_0.zip",
        "cmr/1000001_20209_3_0.zip",
        "ecg/1000002_20205_3_0.xml",
        "cmr/1000002_20209_2_0.zip",
        "cmr/1000002_20208_2_0.zip",
        "cmr/.1000009_20209_2_0.zip.part",
        "ecg/1000003_20205_2_0.zip",
        "notes.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for source, prefix in ((tmp_path, ""), (list(tmp_path.rglob("*.*")), f"{tmp_path}/")):
        table, notes = pair_ukbb(source, 2)
        assert (
            table.to_dict("list")
            == dict(
                participant_id=["1000001", "1000002"],
                ecg=[f"{prefix}ecg/1000001_20205_2_0.xml", ""],
                cine=[f"{prefix}cmr/1000001_20209_2_0.zip", f"{prefix}cmr/1000002_20209_2_0.zip"],
                cine_lax=["", f"{prefix}cmr/1000002_20208_2_0.zip"],
            )
            and notes == []
        )
    assert pair_ukbb(tmp_path, 3)[0][["ecg", "cine"]].values.tolist() == [
        ["", "cmr/1000001_20209_3_0.zip"],
        ["ecg/1000002_20205_3_0.xml", ""],
    ]


# ---- nothing personal


def said_by(action):
    "Everything that an action says: its result, or its error with the traceback."
    try:
        return repr(action())
    except BadInput as e:
        return "".join(traceback.format_exception(e)) + repr(e) + repr(e.args) + repr(vars(e))


def test_nothing_personal(ecg, cine, tmp_path, caplog, capfd):
    """Names, birth dates, identifiers and private tags are in no result, file, message, warning, log or
    print, whatever is wrong with the files.
    """
    caplog.set_level(logging.DEBUG)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    xml = tmp_path / "in" / "1000001_20205_2_0.xml"
    zip_path = tmp_path / "in" / "1000001_20209_2_0.zip"
    dcm = tmp_path / "in" / "a.dcm"
    texts = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for change in (
            lambda t: t,
            lambda t: t[:900],
            lambda t: t.replace("</Name>", ""),
            lambda t: t.replace("CardiologyXML", "PatientInfo"),
            lambda t: t.replace('"Hz"', '"?"'),
        ):
            write.ecg_xml(xml, ecg, change=change)
            texts += [said_by(lambda: read_ukbb_ecg(xml)), said_by(lambda: read_ecg(xml))]

        def spoil_personal(s):
            return set_all(
                s,
                PatientBirthDate="12.04.1951",
                PatientID=write.PERSON["pid"] * 9,
                StudyInstanceUID=write.PERSON["uid"] + ".0001x",
            )

        kinds = [
            lambda s: None,
            *(c for c, _ in SPOILT_STUDIES.values()),
            spoil_personal,
            lambda s: set_all(s, SeriesDescription="CINE_segmented_SAX_b1 " + write.PERSON["name"]),
            lambda s: set_all(s, TriggerTime=None, SeriesDescription=write.PERSON["name"]),
        ]
        for change in kinds:
            with quiet_pydicom():  # which would quote what is planted here
                study = few(cine)
                change(study)
                study.write(zip_path)
            texts += [
                said_by(lambda: read_ukbb_cine(zip_path, "sax")),
                said_by(lambda: read_dicom_cine(zip_path, range(9), "sax")),
            ]
        got, notes = read_ukbb_cine(few(cine).write(zip_path), "sax")
        write_cine(got, tmp_path / "out" / "1000001.nii")
        texts += [
            said_by(lambda: list_dicom_series(zip_path).to_csv()),
            repr(vars(got)),
            *notes,
            said_by(lambda: pair_ukbb(tmp_path / "in", 2)),
        ]
        d = write.short_axis(cine).slices[0].images[0]
        d.save_as(dcm, enforce_file_format=True)
        texts += [said_by(lambda: ecg_from_dicom(dcm)), said_by(lambda: read_ecg(dcm))]
        dcm.write_bytes(dcm.read_bytes()[:700])
        texts += [said_by(lambda: ecg_from_dicom(dcm))]
        table = write.phenotype_table(
            tmp_path / "in" / "a.csv",
            {
                write.PERSON["name"]: {
                    (24103, 2, 0): write.PERSON["birth"],
                    (20001, 2, 0): write.PERSON["comment"],
                }
            },
        )
        texts += [said_by(lambda: read_phenotypes(table, 3)), *read_phenotypes(table, 2)[2]]
    texts += [str(w.message) for w in warned] + [caplog.text, *capfd.readouterr()]
    texts += [f.read_bytes().decode("latin-1") for f in (tmp_path / "out").iterdir()]
    found = {s for s in write.SECRETS for t in texts if s.lower() in t.lower()}
    assert not found
    assert sum("BadInput" in t for t in texts) > 30  # they were spoilt
