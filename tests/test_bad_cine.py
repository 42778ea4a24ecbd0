"""Cine files that are wrong in every way we know of: one clear error that names the file, the value and the
remedy, or a cine that is whole.
"""

import gzip
import json
import struct

import nibabel as nib
import numpy as np
import pytest

from ptacl.base.core import BadInput
from ptacl.data.cavity import cavity_mask, find_ed_es
from ptacl.data.cine import MIN_FRAMES, cine_from_array, read_cine, sidecar_path, write_cine
from ptacl.data.heart import find_heart

F = 25
N = 40
TIMES = np.arange(F) * 34.4


@pytest.fixture
def frames():
    "A disc that beats, off the centre."
    y, x = np.mgrid[:N, : N + 6]
    radius = 8 - 3 * np.sin(np.pi * np.arange(F) / F)[:, None, None]
    return np.rint(
        40 + 160 * (np.hypot(y - 18, x - 24) < radius) + np.random.default_rng(0).normal(0, 2, (F, N, N + 6))
    )


@pytest.fixture
def good(tmp_path, frames):
    "A cine on the disk that reads."
    path = write_cine(cine_from_array(frames, (8.0, 2.0, 2.0), TIMES, 860.0, "sax"), tmp_path / "p001.nii.gz")
    assert read_cine(path).frames_FZHW.shape == (F, 1, N, N + 6)
    return path


def refuse(path, *words):
    "Reading fails with one `BadInput` that names the file, says what is wrong and what to do."
    with pytest.raises(BadInput) as e:
        read_cine(path)
    said = str(e.value)
    assert path.name.split(".")[0] in e.value.source and len(e.value.remedy) > 10
    for w in words:
        assert w in said, said
    return e.value


def sidecar(path, **changes):
    "Change or (None) take away fields of the sidecar."
    side = json.loads(sidecar_path(path).read_text())
    for k, v in changes.items():
        if v is None:
            side.pop(k)
        else:
            side[k] = v
    sidecar_path(path).write_text(json.dumps(side))


def header(path, offset, fmt, *values):
    "Overwrite bytes of the NIfTI header."
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(fmt, raw, offset, *values)
    path.write_bytes(gzip.compress(bytes(raw)))


def test_missing_file(tmp_path):
    refuse(tmp_path / "p404.nii.gz", "no such file")


def test_folder_is_no_file(tmp_path):
    refuse(tmp_path, "no such file")


@pytest.mark.parametrize("share", [0, 0.02, 0.3, 0.9, 0.999])
def test_truncated_gz(good, share):
    raw = good.read_bytes()
    good.write_bytes(raw[: int(share * len(raw))])
    refuse(good)


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_last_bytes_missing(good, cut):
    "All pixels are there, only the checksum is cut: nibabel reads that without a word."
    good.write_bytes(good.read_bytes()[:-cut])
    refuse(good, "truncated or damaged")


def test_flipped_byte_in_gz(good):
    raw = bytearray(good.read_bytes())
    raw[len(raw) // 2] ^= 0x55
    good.write_bytes(raw)
    refuse(good, "truncated or damaged")


def test_truncated_plain_nii(good):
    plain = good.with_suffix("")
    plain.write_bytes(gzip.decompress(good.read_bytes())[:-1000])
    refuse(plain, "bytes, but there are")


def test_not_nifti(good):
    good.write_bytes(gzip.compress(b"<html>404 not found</html>"))
    refuse(good, "not a readable NIfTI file")
    good.write_bytes(b"")
    refuse(good, "not a readable NIfTI file")


@pytest.mark.parametrize("n", [2, 20, 24, 26, 50])
def test_header_says_other_number_of_frames(good, n):
    "Both ways: too few would silently drop frames, too many would run out of data."
    header(good, 40 + 2 * 4, "<h", n)
    sidecar(good, trigger_time_ms=list(np.arange(n) * 800 / n))
    refuse(good, f"{N + 6}, {N}, 1, {n}", "but there are")


def test_header_says_other_type(good):
    header(good, 70, "<hh", 2, 8)  # uint8 where int16 is stored
    refuse(good, "of uint8", "but there are")


def test_pixdim_against_affine(good):
    header(good, 76 + 4, "<f", 3.0)
    refuse(good, "pixdim says 3 x 2 x 8 mm, the affine 2 x 2 x 8 mm")


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_spacing_is_no_length(good, value):
    header(good, 76 + 8, "<f", value)
    refuse(good)


def test_spacing_of_zero_is_named(good):
    header(good, 76 + 8, "<f", 0.0)
    refuse(good, "positive number of mm", "(8, 0, 2)")


def test_metres_in_a_header_that_says_mm(good):
    img = nib.Nifti1Image(np.asarray(nib.load(good).dataobj), np.diag([0.002, 0.002, 0.008, 1]))
    img.header.set_xyzt_units("mm", "sec")
    img.to_filename(good)
    refuse(good, "0.002 x 0.002 mm is not one of a heart")


def test_metres_in_a_header_that_says_so(good):
    img = nib.Nifti1Image(np.asarray(nib.load(good).dataobj), np.diag([0.002, 0.002, 0.008, 1]))
    img.header.set_xyzt_units("meter", "sec")
    img.to_filename(good)
    cine = read_cine(good)
    assert np.allclose(cine.spacing_mm, (8, 2, 2))
    assert np.allclose(nib.affines.voxel_sizes(cine.affine), (2, 2, 8))


@pytest.mark.parametrize("shape", [(N, N), (N, N, F), (N, N, 1, F, 3)])
def test_not_four_dimensions(good, shape):
    img = nib.Nifti1Image(np.zeros(shape, np.int16), np.diag([2, 2, 8, 1]))
    img.to_filename(good)
    refuse(good, f"{len(shape)}-D image {shape}", "export all frames")


@pytest.mark.parametrize("n", [1, 2, MIN_FRAMES - 1])
def test_few_frames(good, n):
    nib.Nifti1Image(np.zeros((N, N, 1, n), np.int16), np.diag([2, 2, 8, 1])).to_filename(good)
    sidecar(good, trigger_time_ms=list(TIMES[:n]))
    refuse(good, f"{n} frame(s), a cine needs at least {MIN_FRAMES}")


def test_colour_and_complex(good):
    rgb = np.zeros((N, N, 1, F), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.Nifti1Image(rgb, np.diag([2, 2, 8, 1])).to_filename(good)
    refuse(good, "magnitude image")
    nib.Nifti1Image(np.zeros((N, N, 1, F), np.complex64), np.diag([2, 2, 8, 1])).to_filename(good)
    refuse(good, "complex64")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_not_finite(good, frames, bad):
    data = frames.transpose(2, 1, 0)[:, :, None].astype(np.float32)
    data[3, 4, 0, 5] = bad
    nib.Nifti1Image(data, np.diag([2, 2, 8, 1])).to_filename(good)
    refuse(good, f"1 of {data.size} pixels are NaN or infinite")


@pytest.mark.parametrize("step_s", [0.0, 0.034, 1.0])
def test_no_sidecar_whatever_pixdim_says(good, step_s):
    """0.034 s x 25 frames would be a plausible RR of 850 ms. It is dcm2niix's repetition time, and it is not
    used.
    """
    header(good, 76 + 16, "<f", step_s)
    sidecar_path(good).unlink()
    refuse(
        good,
        "no sidecar p001.json",
        "trigger_time_ms",
        "rr_ms",
        "view",
        f"pixdim[4] = {step_s:.4g} for 25 frames is not used",
    )


def test_sidecar_wins_over_pixdim(good):
    header(good, 76 + 16, "<f", 1.0)
    assert np.array_equal(read_cine(good).trigger_time_ms, TIMES) and read_cine(good).rr_ms == 860


def test_sidecar_of_dcm2niix(good):
    sidecar_path(good).write_text(
        json.dumps({"Modality": "MR", "RepetitionTime": 0.034, "ImageComments": "RR 860 +/- 25"})
    )
    refuse(good, "view and trigger_time_ms and rr_ms missing", "DICOM 0018,1060")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\xff"])
def test_sidecar_is_no_json_object(good, text):
    sidecar_path(good).write_text(text, encoding="latin-1")
    refuse(good, "p001.json")


@pytest.mark.parametrize("key", ["view", "trigger_time_ms", "rr_ms"])
def test_field_missing(good, key):
    sidecar(good, **{key: None})
    refuse(good, f"{key} missing", "DICOM 0018,1060")


@pytest.mark.parametrize(
    "times, words",
    [
        (TIMES[:-1], "24 trigger times for 25 frames"),
        (np.r_[TIMES, 859.0], "26 trigger times for 25 frames"),
        (TIMES[::-1], "do not increase: frame 0 at 825.6 ms, frame 1 at 791.2 ms"),
        (np.zeros(F), "all 25 trigger times are 0 ms. They were taken out"),
        (np.r_[TIMES[12:], TIMES[:12]], "do not increase: frame 12 at 825.6 ms, frame 13 at 0 ms"),
        (np.where(np.arange(F) == 3, np.nan, TIMES), "NaN"),
        (TIMES - 1, "negative"),
        (TIMES * 1.1, "is not below rr_ms 860"),
        ([], "0 trigger times"),
        (34.4, "not a list of numbers (34.4)"),
        ("now", "not a list of numbers (text of 3 characters)"),
        ([None] * F, "trigger time 0 is not a number (missing)"),
        ([[1.0]] * F, "trigger time 0 is not a number (list of 1)"),
    ],
)
def test_trigger_times(good, times, words):
    sidecar(good, trigger_time_ms=times.tolist() if isinstance(times, np.ndarray) else times)
    refuse(good, words)


@pytest.mark.parametrize("rr", [0, -860, 0.86, 86, 8600, float("nan"), "fast", [860, 870], {}])
def test_rr(good, rr):
    sidecar(good, rr_ms=rr)
    refuse(good, "rr_ms")


@pytest.mark.parametrize("view", ["", "SAX stack", "short axis", 4, ["sax"], {}])
def test_view(good, view):
    sidecar(good, view=view)
    refuse(good, "view is", "sax, lax_2ch, lax_3ch, lax_4ch")


def test_random_damage_to_the_header(good):
    "Any header byte changed: a `BadInput` or a cine whose parts agree, never another kind of exception."
    raw = gzip.decompress(good.read_bytes())
    rng = np.random.default_rng(7)
    refused = 0
    plain = good.with_suffix("")
    for _ in range(400):
        b = bytearray(raw)
        b[rng.integers(0, 352)] = rng.integers(0, 256)
        plain.write_bytes(b)
        try:
            cine = read_cine(plain)
        except BadInput as e:
            refused += 1
            assert "p001" in e.source
        else:
            assert (
                cine.frames_FZHW.size == F * N * (N + 6)
                and np.isfinite(cine.frames_FZHW).all()
                and min(cine.spacing_mm) > 0
            )
    assert refused > 40


def test_nothing_is_lost_when_writing_fails(good, monkeypatch):
    "A crash while the image is written leaves the old image whole, and no temporary file."
    before = good.read_bytes()
    cine = read_cine(good)
    monkeypatch.setattr(nib.Nifti1Image, "to_bytes", lambda self: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_cine(cine, good)
    assert good.read_bytes() == before
    assert sorted(p.name for p in good.parent.iterdir()) == ["p001.json", "p001.nii.gz"]


def test_still_and_empty_pictures(frames):
    still = cine_from_array(np.repeat(frames[:1], F, 0), (8.0, 2.0, 2.0), TIMES, 860.0, "sax")
    with pytest.raises(BadInput, match="nothing moves"):
        find_heart(still)
    with pytest.raises(BadInput, match="nothing moves"):
        find_ed_es(still)
    noise = cine_from_array(
        np.random.default_rng(0).normal(100, 9, frames.shape), (8.0, 2.0, 2.0), TIMES, 860.0, "sax"
    )
    with pytest.raises(BadInput, match="no left ventricular cavity"):
        cavity_mask(noise)


def test_caller_keeps_his_arrays(frames):
    "What is read or measured never changes what was given, nor follows it when it changes later."
    times = TIMES.copy()
    affine = np.diag([2.0, 2, 8, 1])
    before = frames.copy()
    cine = cine_from_array(frames, (8.0, 2.0, 2.0), times, 860.0, "sax", affine=affine)
    kept = cine.frames_FZHW.copy()
    cavity_mask(cine)
    assert np.array_equal(frames, before) and np.array_equal(cine.frames_FZHW, kept)
    frames[:] = 0
    times[:] = 0
    affine[:] = 0
    assert (
        np.array_equal(cine.frames_FZHW, kept) and cine.trigger_time_ms[1] == 34.4 and cine.affine[0, 0] == 2
    )
