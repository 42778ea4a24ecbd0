"""Cines whose fields contradict each other, and studies with more in them than a cine: the right values, one
clear error, or the right values and a word about what is odd.
"""

import gzip
import json
import shutil
import struct
import tracemalloc
import warnings
import zipfile
import zlib

import nibabel as nib
import numpy as np
import pydicom
import pytest
import ukbb_files as write
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ptacl.base.core import BadInput, sample_path, samples_dir
from ptacl.data.cine import cine_from_array, find_cine_doubts, read_cine, sidecar_path, write_cine
from ptacl.data.cine_dicom import read_dicom_cine
from ptacl.data.cohort import check_cohort, read_cohort
from ptacl.data.dicom_study import list_dicom_series
from ptacl.data.participant import prepare_participant, settings_of
from ptacl.data.prepare import PrepareConfig, prepare_cohort, read_source
from ptacl.data.ukbb import read_ukbb_cine

F = 12
Z = 5
TIMES = np.arange(F) * 860 / F
SIZES = np.diag([1.8, 1.8, 10.0, 1.0])


def beating(n=F, z=Z):
    "A disc that beats, (n, z, 40, 44); frame f has 300 + f in a corner, slice k 20 + 10 k in another."
    y, x = np.mgrid[:40, :44]
    radius = 14 - 5 * np.sin(np.pi * np.arange(n) / n)[:, None, None, None]
    out = 60.0 + 140 * (np.hypot(y - 20, x - 24) < radius) + np.zeros((1, z, 1, 1))
    out[:, :, :3, :3] = 300 + np.arange(n)[:, None, None, None]
    out[:, :, :3, 5:8] = 20 + 10 * np.arange(z)[:, None, None]
    return out


@pytest.fixture
def nifti(tmp_path):
    "A stack on the disk that reads without a word."
    cine = cine_from_array(beating(), (10.0, 1.8, 1.8), TIMES, 860.0, "sax", affine=SIZES)
    path = write_cine(cine, tmp_path / "p001.nii")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_cine(path)
    return path


def refuse(read, *words):
    "Reading fails with one short `BadInput` that says these words and quotes nobody."
    with pytest.raises(BadInput) as e:
        read()
    told = str(e.value)
    assert all(w in told for w in words), told
    assert len(e.value.problem) < 400 and not any(s in told for s in write.SECRETS)


def patch(path, *changes):
    "Overwrite bytes of the header: (place, format, numbers)."
    raw = bytearray(path.read_bytes())
    for at, form, *numbers in changes:
        struct.pack_into(form, raw, at, *numbers)
    path.write_bytes(raw)
    return path


def sidecar(path, **fields):
    "Change fields of the sidecar."
    side = json.loads(sidecar_path(path).read_text()) | fields
    sidecar_path(path).write_text(json.dumps(side))
    return path


def stored(path):
    "The pixels of a file, which may be overwritten then."
    return np.asarray(nib.load(path, mmap=False).dataobj)


def image(path, pixels, affine):
    "The pixels of the stack with other axes, as NIfTI."
    nib.save(nib.Nifti1Image(pixels, affine), path)
    return path


# ---- NIfTI: sizes and axes


def test_acdc_a_bare_unit_matrix_beside_pixdim(nifti):
    patch(nifti, (280, "<12f", -1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0))
    with pytest.warns(UserWarning, match="bare unit matrix: the sizes of pixdim are used, 1.8 x 1.8 x 10 mm"):
        cine = read_cine(nifti)
    assert np.allclose(cine.spacing_mm, (10, 1.8, 1.8)) and cine.affine is None
    assert np.array_equal(cine.frames_FZHW, beating())


def test_sizes_are_lost(nifti):
    image(nifti, stored(nifti), np.eye(4))
    refuse(lambda: read_cine(nifti), "lie 1 mm apart and span 5 mm: no short-axis stack")


def test_the_size_of_one_slice_is_lost(nifti):
    image(nifti, stored(nifti)[:, :, :1], np.eye(4))
    with pytest.warns(UserWarning, match="a slice is as thick as its pixels are long, 1 mm"):
        read_cine(nifti)


def test_sform_turns_the_slices_over(nifti):
    img = nib.Nifti1Image(stored(nifti), SIZES)
    img.set_qform(SIZES @ np.diag([1, 1, -1, 1]), 1)
    nib.save(img, nifti)
    refuse(lambda: read_cine(nifti), "contradict each other about the direction of axis z", "base to apex")


def test_no_form_no_place(nifti):
    cine = read_cine(patch(nifti, (252, "<2h", 0, 0)))
    assert np.allclose(cine.spacing_mm, (10, 1.8, 1.8)) and cine.affine is None


@pytest.mark.parametrize("axes", [(0, 2, 1, 3), (2, 1, 0, 3)])
def test_the_slice_axis_stands_elsewhere(nifti, axes):
    "As after a reorientation to RAS."
    pixels = np.repeat(stored(nifti), 2, axis=2).transpose(axes)
    order = np.eye(4)[:, [*axes[:3], 3]]
    image(nifti, pixels, SIZES @ order)
    refuse(lambda: read_cine(nifti), "The axes are not (x, y, slice)")


def test_time_in_dimension_five_or_three(nifti):
    pixels = stored(nifti)
    image(nifti, pixels[:, :, :, None], SIZES)
    refuse(lambda: read_cine(nifti), "5-D image", "Its time stands in dimension 5")
    image(nifti, pixels[:, :, 0], SIZES)
    refuse(lambda: read_cine(nifti), "3-D image", "put the slice before it")


def test_sheared_axes(nifti):
    pixels = stored(nifti)
    leaning = SIZES.copy()
    leaning[0, 2] = 5.4
    img = nib.Nifti1Image(pixels, leaning)
    nib.save(img, nifti)
    with pytest.warns(UserWarning, match="each slice lies 5.4 mm beside the one before"):
        read_cine(nifti)
    skewed = SIZES.copy()
    skewed[0, 1] = 0.6
    nib.save(nib.Nifti1Image(pixels, skewed), nifti)
    refuse(lambda: read_cine(nifti), "rows and columns meet at")


# ---- NIfTI: times


def test_times_in_seconds(nifti):
    sidecar(nifti, trigger_time_ms=list(TIMES / 1000))
    refuse(lambda: read_cine(nifti), "the frames cover 0.1 % of the cycle", "multiply them by 1000")


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(trigger_time_ms=list(TIMES * 0.42)), "the frames cover 42 % of the cycle"),
        (dict(rr_ms=1720.0), "the frames cover 50 % of the cycle, and the last is as near to the first"),
        (dict(trigger_time_ms=list(np.r_[TIMES[:6], TIMES[6:] + 130])), None),
    ],
)
def test_frames_cover_a_part(nifti, change, words):
    "A warning where one file is read, a row where a cohort is prepared or checked."
    sidecar(nifti, **change)
    if words is None:
        refuse(lambda: read_cine(nifti), "is not below rr_ms 860")
        return
    with pytest.warns(UserWarning, match=words):
        cine = read_cine(nifti)
    assert any(words in e.problem and severity == "warning" for e, severity in find_cine_doubts(cine))
    row = dict(participant_id="p001", ecg="", cine=nifti.name)
    settings = settings_of(PrepareConfig(n_frames=12, crop_px=32))
    _, report = prepare_participant(nifti.parent, row, settings, ("cine",))
    assert any(words in r["problem"] and r["severity"] == "warning" for r in report)


def test_frames_cover_too_little_and_too_much(nifti):
    sidecar(nifti, trigger_time_ms=list(TIMES * 0.3))
    refuse(lambda: read_cine(nifti), "the frames cover 30 % of the cycle")
    sidecar(nifti, trigger_time_ms=list(TIMES), rr_ms=430.0)
    refuse(lambda: read_cine(nifti), "last trigger time 788.333 ms is not below rr_ms 430")
    sidecar(nifti, trigger_time_ms=[0.0] * F, rr_ms=860.0)
    refuse(lambda: read_cine(nifti), "all 12 trigger times are 0 ms", "They were taken out")


# ---- NIfTI: numbers and bombs


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"view": "sax", "trigger_time_ms": %s, "rr_ms": 1' + "0" * 400 + "}", "rr_ms is NaN or infinite"),
        ('{"view": "sax", "trigger_time_ms": %s, "rr_ms": 1' + "0" * 5000 + "}", "rr_ms is NaN or infinite"),
        ('{"view": "sax", "trigger_time_ms": %s, "rr_ms": "Hildegund"}', "rr_ms is not a number (text of 9"),
        ('{"view": "Hildegund Zwetschgenmus", "trigger_time_ms": %s, "rr_ms": 860}', "view is unknown (text"),
        (
            '{"view": "' + "x" * 10**6 + '", "trigger_time_ms": %s, "rr_ms": 860}',
            "view is unknown (text of 1000000",
        ),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_odd_sidecars(nifti, text, words):
    times = json.dumps(list(TIMES))
    sidecar_path(nifti).write_text(text.replace("%s", times))
    refuse(lambda: read_cine(nifti), words)


def test_a_sidecar_with_a_byte_order_mark(nifti):
    side = sidecar_path(nifti)
    side.write_bytes(b"\xef\xbb\xbf" + side.read_bytes())
    assert read_cine(nifti).rr_ms == 860


@pytest.mark.parametrize(
    "field", [{"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, {"ComplexImageComponent": "PHASE"}]
)
def test_a_sidecar_that_says_phase(nifti, field):
    refuse(lambda: read_cine(sidecar(nifti, **field)), "ImageType says phase or velocity")


def test_slopes(nifti):
    assert read_cine(patch(nifti, (112, "<2f", -1, 400))).frames_FZHW[3, 0, 0, 0] == 400 - 303
    assert read_cine(patch(nifti, (112, "<2f", np.nan, 0))).frames_FZHW[3, 0, 0, 0] == 303
    refuse(lambda: read_cine(patch(nifti, (112, "<2f", np.inf, 0))), "scl_slope is inf")


@pytest.mark.parametrize("whole", [True, False])
def test_a_bomb_is_not_unpacked(nifti, whole):
    "300 MB of zeros behind a header of 0.4 MB, and behind none: the reader holds a few MB of them."
    start = nifti.read_bytes()[:352] if whole else b""
    bomb = nifti.with_name("p002.nii.gz")
    with gzip.open(bomb, "wb", compresslevel=1) as f:
        f.write(start)
        for _ in range(30):
            f.write(bytes(10_000_000))
    shutil.copy(sidecar_path(nifti), sidecar_path(bomb))
    tracemalloc.start()
    refuse(lambda: read_cine(bomb), "but there are" if whole else "not a readable NIfTI file")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_header_of_more_than_a_cine(nifti):
    refuse(lambda: read_cine(patch(nifti, (42, "<4h", 9000, 9000, 100, 12))), "no cine is that large")


# ---- DICOM: what stands beside the cine


@pytest.fixture
def study():
    out = write.CineStudy()
    for k in range(Z):
        out.slice(f"CINE_segmented_SAX_b{k + 1}", beating()[:, k], 10.0 * k, 860.0)
    return out


@pytest.fixture
def read(tmp_path):
    "Writes a study and reads it."
    return lambda study: read_ukbb_cine(study.write(tmp_path / "1000001_20209_2_0.zip"), "sax")


def every(study, slices=range(Z), **tags):
    "Set tags in all images of some slices."
    for k in slices:
        for d in study.slices[k].images:
            for tag, value in tags.items():
                setattr(d, tag, value)
    return study


def is_whole(got):
    cine, notes = got
    assert np.array_equal(cine.frames_FZHW, beating()) and np.allclose(cine.trigger_time_ms, TIMES, atol=1e-5)
    assert np.allclose(cine.spacing_mm, (10, 1.8, 1.8)) and cine.rr_ms == 860
    return notes


@pytest.mark.parametrize(
    "tags",
    [{"ImageType": ["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"]}, {"ComplexImageComponent": "PHASE"}],
)
def test_magnitude_and_phase_in_one_series(study, read, tags):
    "One trigger time, one place, phase with the later numbers: the magnitude is meant."
    for k in range(Z):
        extra = write.CineStudy()
        extra.slice(f"CINE_segmented_SAX_b{k + 1}", beating()[:, 0] * 0 + 2048, 10.0 * k, 860.0, series=k + 1)
        for d in extra.slices[0].images:
            d.InstanceNumber += 1000
            d.SOPInstanceUID += ".9"
            for tag, value in tags.items():
                setattr(d, tag, value)
        study.slices[k].images += extra.slices[0].images
    assert is_whole(read(study)) == ["60 images of phase or velocity in the chosen series are left out"]
    only = every(study, ImageType=["ORIGINAL", "PRIMARY", "VELOCITY MAP", "P", "PCA"])
    refuse(lambda: read(only), "holds only phase or velocity images")


def test_phase_of_ge(study, read):
    "A private tag tells it: 0 magnitude, 1 phase."
    for s in study.slices:
        for d in s.images:
            d.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x2F, "SS", 1)
    refuse(lambda: read(study), "holds only phase or velocity images")


def test_velocities_without_a_word(nifti):
    "Nothing tells it but the numbers."
    pixels = stored(nifti) - 150
    nib.save(nib.Nifti1Image(pixels, SIZES), nifti)
    with pytest.warns(UserWarning, match="% of the pixels are negative, as in pictures of phase or velocity"):
        read_cine(nifti)


def test_colours_are_refused(study, read):
    refuse(
        lambda: read(every(study, PhotometricInterpretation="PALETTE COLOR")), "Only plain magnitude images"
    )


def test_monochrome1_is_turned_over(study, read):
    for s in study.slices:
        for d in s.images:
            d.PixelData = (4095 - np.frombuffer(d.PixelData, "<u2")).astype("<u2").tobytes()
            d.PhotometricInterpretation = "MONOCHROME1"
    assert is_whole(read(study)) == []


def test_another_modality(study, read):
    refuse(lambda: read(every(study, Modality="CT")), "is not of magnetic resonance (Modality)")


def test_foreign_files_do_not_stop_a_study(study, read):
    "A report in several frames, an image without a place, one with a place that is none."
    study.slice("report", beating(9, 1)[:3, 0], 7.0, 860.0)
    report, broken, large = study.slices[-1].images
    report.NumberOfFrames = 3
    broken.ImagePositionPatient = ["0", "0"]
    large.Rows = 65535
    assert is_whole(read(study)) == []


def test_other_files_do_not_stop_a_study(study, read):
    "A zip, a picture, a file that only begins like DICOM, a damaged manifest."
    inner = write.io.BytesIO()
    with zipfile.ZipFile(inner, "w") as z:
        z.writestr("viewer.exe", b"MZ")
    study.manifest = ""
    study.extra = {
        "viewer.zip": inner.getvalue(),
        "a.jpg": b"\xff\xd8\xff" * 999,
        "b.bin": b"\2\0\0\0UL\4\0" + b"\xff" * 300,
        "manifest.csv": b"filename\n" + b"x" * 200_000,
    }
    notes = is_whole(read(study))
    assert len(notes) == 1 and notes[0].endswith("is a zip within, which is not read")


def test_enhanced_files_are_named(study, read):
    every(study, SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1", NumberOfFrames=1)
    for s in study.slices:
        for d in s.images:
            del d.ImagePositionPatient
    refuse(lambda: read(study), "enhanced DICOM", "Convert it to NIfTI")


@pytest.mark.parametrize("share", [1, 2])
def test_without_preamble(study, tmp_path, share):
    files = {n: raw[132:] if k % share == 0 else raw for k, (n, raw) in enumerate(study.files().items())}
    with zipfile.ZipFile(tmp_path / "1.zip", "w") as z:
        for name, raw in files.items():
            if name.endswith(".dcm"):
                z.writestr(name, raw)
    assert is_whole(read_ukbb_cine(tmp_path / "1.zip", "sax")) == []


def test_two_entries_of_one_name(study, tmp_path):
    "As where each series counts its images from 1."
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "1.zip", "w") as z:
        warnings.simplefilter("ignore")
        for s in study.slices:
            for k, d in enumerate(s.images):
                out = write.io.BytesIO()
                d.save_as(out, enforce_file_format=True)
                z.writestr(f"IM-{k:04d}.dcm", out.getvalue())
    assert is_whole(read_ukbb_cine(tmp_path / "1.zip", "sax")) == []


def test_uids_with_letters(study, read):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k in range(Z):
            every(study, [k], SeriesInstanceUID=f"anon.{k}.abc", StudyInstanceUID="anon.study")
    assert is_whole(read(study)) == []


def test_an_image_of_another_size(study, read):
    odd = study.slices[1].images[7]
    odd.Rows = 50
    odd.PixelData = bytes(2 * 50 * 44)
    cine, notes = read(study)
    assert notes[0] == "CINE_segmented_SAX_b2: 1 images of another size than most are left out"
    kept = np.delete(np.arange(F), 7)
    assert np.array_equal(cine.frames_FZHW[kept], beating()[kept])


def test_the_number_of_the_table(study, tmp_path):
    path = study.write(tmp_path / "1.zip")
    number = list_dicom_series(path).number[0]
    assert isinstance(number, np.int64)
    assert np.array_equal(read_dicom_cine(path, number, "sax")[0].frames_FZHW, beating()[:, :1])


# ---- DICOM: fields against each other


def test_dicom_times_in_seconds(study, read):
    for s in study.slices:
        for d in s.images:
            d.TriggerTime = f"{float(d.TriggerTime) / 1000:.6f}"
    refuse(lambda: read(study), "the frames cover 0.1 % of the cycle", "multiply them by 1000")


def test_dicom_times_are_all_equal(study, read):
    refuse(lambda: read(every(study, TriggerTime="0")), "all images of a slice have one trigger time, 0 ms")


@pytest.mark.parametrize("slices", [[0], [2], [1, 3]])
@pytest.mark.parametrize("interval", [430, 1720, 1])
def test_an_interval_against_its_frames(study, read, slices, interval):
    "The other slices tell what is right, also of the middle one, whose times are those of the stack."
    notes = is_whole(read(every(study, slices, NominalInterval=interval)))
    told = f"its frames contradict the interval of {interval} ms; 860 ms is used, as in the other slices"
    assert notes == [f"CINE_segmented_SAX_b{k + 1}: {told}" for k in slices]


def test_all_intervals_against_their_frames(study, read):
    refuse(lambda: read(every(study, NominalInterval=430)), "is not below its interval 430 ms")
    cine, notes = read(every(study, NominalInterval=1720))
    assert cine.rr_ms == 1720 and notes[0].startswith("the frames cover 50 % of the cycle, and the last")


def test_places_with_jitter(study, read):
    "Slices that are 0.6 mm off, and frames of one slice 0.6 mm apart."
    for k, off in enumerate((0.3, -0.6, 0.3, 0.0, -0.3)):
        for j, d in enumerate(study.slices[k].images):
            depth = 10.0 * k + off + (k == 1) * (0.3 - 0.6 * (j % 2))
            d.ImagePositionPatient = [f"{v:.4f}" for v in study.origin + depth * study.normal]
    cine, notes = read(study)
    assert np.array_equal(cine.frames_FZHW, beating()) and cine.spacing_mm[0] == pytest.approx(9.85, abs=0.1)
    assert len(notes) == 1 and notes[0].endswith("mm is used")


@pytest.mark.parametrize(
    "tag, value, words",
    [
        ("PixelSpacing", [0, 0], "PixelSpacing is 0, not between 0.01 and 100"),
        ("PixelSpacing", [-1.8, 1.8], "PixelSpacing is -1.8, not between"),
        ("PixelSpacing", [10, 1.8], "rows are 10 mm apart and columns 1.8 mm"),
        ("ImageOrientationPatient", [0] * 6, "have lengths 0 and 0, not 1"),
        ("ImageOrientationPatient", [0, 2, 0, 0, 0, -2], "have lengths 2 and 2, not 1"),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "are not at right angles"),
        ("ImageOrientationPatient", [0, 1, 0], "ImageOrientationPatient has 3 values, not 6"),
        ("ImagePositionPatient", ["nan", "0", "0"], "ImagePositionPatient is NaN or infinite"),
        ("ImagePositionPatient", ["1", "2"], "ImagePositionPatient has 2 values, not 3"),
        ("TriggerTime", "inf", "TriggerTime is NaN or infinite"),
        ("NominalInterval", 2**31 - 1, "NominalInterval is 2.14748e+09, not between"),
        ("Rows", 65535, "pixels are more than an image of a heart has"),
    ],
)
def test_bad_geometry(study, read, tag, value, words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, when it writes them
        every(study, [2], **{tag: value})
        every(study, [2], **({"Columns": 65535} if tag == "Rows" else {}))
        refuse(lambda: read(study), words)


def test_a_deflated_bomb(study, tmp_path):
    "100 MB of zeros deflated: refused before they are unpacked."
    d = study.slices[0].images[0]
    d.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    out = write.io.BytesIO()
    pydicom.dcmwrite(out, d, enforce_file_format=True)
    raw = out.getvalue()
    begin = 144 + int.from_bytes(raw[140:144], "little")
    pack = zlib.compressobj(1, zlib.DEFLATED, -15)
    body = zlib.decompress(raw[begin:], -15)
    body = pack.compress(body + bytes(100_000_000)) + pack.flush()
    with zipfile.ZipFile(tmp_path / "1.zip", "w") as z:
        z.writestr("a.dcm", raw[:begin] + body)
    refuse(lambda: read_ukbb_cine(tmp_path / "1.zip", "sax"), "it unpacks to more than an image")


# ---- a cohort goes on


def test_one_bad_file_ends_no_check_and_no_preparation(study, tmp_path, monkeypatch):
    "A bomb, a header of 4 billion pixels, a path of 300 characters, a reader that runs out of memory."
    folder = tmp_path / "cohort"
    shutil.copytree(
        samples_dir(), folder, ignore=lambda d, names: [n for n in names if "sim-00" in n and n[6] > "0"]
    )
    every(study, [2], Rows=65535, Columns=65535).write(folder / "cine" / "huge.zip")
    with gzip.open(folder / "cine" / "sim-0002.nii.gz", "wb", compresslevel=1) as f:
        f.write(bytes(200_000_000))
    table = (folder / "participants.tsv").read_text().splitlines()
    head = table[0].split("\t")
    rows = [line.split("\t") for line in table[1:6]]
    rows[2][head.index("cine")] = "x" * 300
    rows[3][head.index("cine")] = "cine/huge.zip"
    (folder / "participants.tsv").write_text("\n".join("\t".join(r) for r in [head, *rows]) + "\n")
    cohort = read_cohort(folder)
    assert [r for r in cohort.report.problem if "cannot be followed" in r] == ["cannot be followed (OSError)"]
    store = prepare_cohort(
        read_source(folder),
        tmp_path / "store",
        PrepareConfig(n_frames=8, crop_px=32, workers=1),
        progress=False,
    )
    names = [r[0] for r in rows]
    assert store.table.participant_id.tolist() == [names[0], names[4]]
    left_out = store.report[store.report.severity == "left out"]
    told = dict(zip(left_out.participant_id, left_out.problem, strict=True))
    assert told[names[1]].startswith("not a readable NIfTI file")
    assert "65535 x 65535 pixels are more than an image of a heart has" in told[names[3]]
    monkeypatch.setattr("ptacl.data.cohort.read_cine", lambda *a, **k: (_ for _ in ()).throw(MemoryError))
    found = check_cohort(cohort, progress=False)
    assert set(found.problem) == {"needs more memory than there is"} and set(found.severity) == {"left out"}


def test_zips_are_checked_too(study, tmp_path):
    "A cohort may have studies in zips: a whole one has no row, a damaged one has."
    whole = study.write(tmp_path / "whole.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    table = "participant_id\tecg\tcine\np1\t\twhole.zip\np2\t\thalf.zip\n"
    (tmp_path / "participants.tsv").write_text(table)
    found = check_cohort(read_cohort(tmp_path), progress=False)
    assert found.participant_id.tolist() == ["p2"] and found.problem[0].startswith("not a readable zip file")


def test_samples_read_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in sorted(sample_path("cine").glob("*.nii.gz"))[:12]:
            assert read_cine(path).notes == ()
