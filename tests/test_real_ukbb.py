"""Real files (skipped without PTACL_REAL_DATA): a DICOM study against dcm2niix and its authors' text, ECGs as
DICOM and MUSE XML, masks against images, UK Biobank's list of fields.
"""

import csv
import re
import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest

from ptacl.base.core import BadInput
from ptacl.data.cavity import find_ed_es
from ptacl.data.cine import mid_slice
from ptacl.data.cine_dicom import read_dicom_cine
from ptacl.data.dicom_study import list_dicom_series
from ptacl.data.ecg import STANDARD_LEADS, einthoven_error_mv
from ptacl.data.ecg_dicom import quiet_pydicom
from ptacl.data.ecg_files import read_ecg
from ptacl.data.phenotypes import PHENOTYPES

# SeriesNumber of each folder
NUMBERS = dict(
    Se1=8001,
    Se2=9001,
    Se3=10001,
    Se4=11001,
    Se5=12001,
    Se6=14001,
    Se7=16001,
    Se8=17001,
    Se9=19001,
    Se10=22001,
    Se11=7001,
)
SHORT_AXIS = ("Se11", "Se1", "Se2", "Se3", "Se4", "Se5")  # base to apex, as MANIFEST.md says


@pytest.fixture(scope="module")
def study(real_data):
    return real_data / "cmr_dicom" / "biv-me_patient1_all11series.zip"


@pytest.fixture(scope="module")
def stack(study):
    return read_dicom_cine(study, "cine_trufi_retro", "sax")


def test_series(study):
    table = list_dicom_series(study)
    assert table.number.tolist() == [8001, 9001, 10001, 11001, 12001, 14001, 16001, 17001, 19001, 22001, 7001]
    assert (table.images == 25).all() and (table.frames == 25).all() and (table.places == 1).all()
    assert table.rr_ms.min() == 776 and table.rr_ms.max() == 975 and table.rr_ms.nunique() == 11


@pytest.mark.parametrize("name", NUMBERS)
def test_each_series_against_dcm2niix(real_data, study, name):
    "The affine within 1e-3 (dcm2niix turns the rows over), every voxel equal."
    cine, notes = read_dicom_cine(study, NUMBERS[name], "sax")
    theirs = nib.load(real_data / "cmr_nifti" / "biv-me_dcm2niix" / f"{name}.nii.gz")
    over = np.diag([1.0, -1.0, 1.0, 1.0])
    over[1, 3] = cine.frames_FZHW.shape[2] - 1
    assert np.abs(cine.affine @ over - theirs.affine).max() < 1e-3
    assert np.array_equal(cine.frames_FZHW[:, :, ::-1], np.asarray(theirs.dataobj).transpose(3, 2, 1, 0))
    assert (
        notes == []
        and np.allclose(cine.spacing_mm, (6, 1.40625, 1.40625))
        and np.allclose(np.diff(cine.trigger_time_ms), cine.rr_ms / 25, atol=0.01)
    )


def test_stack_against_dcm2niix(real_data, study, stack):
    """Six series as one stack: each of its slices has the pixels and the place of one of dcm2niix's files, in
    order along the normal.
    """
    cine, notes = stack
    assert cine.frames_FZHW.shape == (25, 6, 208, 256) and notes == []
    over = np.diag([1.0, -1.0, 1.0, 1.0])
    over[1, 3] = 207
    for z, name in enumerate(reversed(SHORT_AXIS)):
        theirs = nib.load(real_data / "cmr_nifti" / "biv-me_dcm2niix" / f"{name}.nii.gz")
        assert np.array_equal(
            cine.frames_FZHW[:, z, ::-1], np.asarray(theirs.dataobj)[:, :, 0].transpose(2, 1, 0)
        )
        here = cine.affine @ over
        assert np.abs(here[:3, :2] - theirs.affine[:3, :2]).max() < 1e-3
        # positions are rounded to 1e-3 in the headers, the distance is one number
        assert np.abs(here @ [0, 0, z, 1] - theirs.affine @ [0, 0, 0, 1]).max() < 5e-3
    # Se2 is the middle slice
    assert cine.rr_ms == 829 and np.allclose(cine.trigger_time_ms, np.arange(25) * 33.16, atol=1e-3)
    ed, es = find_ed_es(mid_slice(cine))
    assert min(ed, 25 - ed) <= 1 and 9 <= es <= 11


def test_middle_slice_alone(study, stack):
    of = mid_slice(stack[0])
    alone = read_dicom_cine(study, "cine_trufi_retro", "sax", middle_only=True)[0]
    assert (
        np.array_equal(alone.frames_FZHW, of.frames_FZHW)
        and np.array_equal(alone.trigger_time_ms, of.trigger_time_ms)
        and (alone.rr_ms, alone.spacing_mm) == (of.rr_ms, of.spacing_mm)
    )
    # positions are rounded to 1e-3 in the headers
    assert np.abs(alone.affine - of.affine).max() < 5e-3


def test_stack_against_the_authors_text(real_data, stack):
    """Positions and orientations in SliceInfoFile.txt, written by the study's authors: 17.70 mm apart, though
    SliceThickness is 6.
    """
    text = (real_data / "cmr_dicom" / "SliceInfoFile.txt").read_text()
    found = re.findall(
        r"ImagePositionPatient\s+(\S+)\s+(\S+)\s+(\S+)\s+ImageOrientationPatient\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)",
        text,
    )
    v = np.array(found, float)
    cine, _ = stack
    ras = np.diag([-1.0, -1.0, 1.0])
    normal = cine.affine[:3, 2] / np.linalg.norm(cine.affine[:3, 2])
    own = v[[abs((ras @ np.cross(r[3:6], r[6:9])) @ normal) > 0.999 for r in v]]
    own = own[np.argsort((own[:, :3] @ ras) @ normal)]
    assert len(own) == 6 and cine.spacing_mm == (pytest.approx(17.70, abs=0.001), 1.40625, 1.40625)
    for z, r in enumerate(own):
        assert np.abs((cine.affine @ [0, 0, z, 1])[:3] - ras @ r[:3]).max() < 5e-3
        assert (
            np.abs(cine.affine[:3, 0] / 1.40625 - ras @ r[3:6]).max() < 1e-5
            and np.abs(cine.affine[:3, 1] / 1.40625 - ras @ r[6:9]).max() < 1e-5
        )


def test_long_axes(study):
    "Two 2-chamber series lie in two directions: refused together, read one by one."
    with pytest.raises(BadInput, match="lie in 2 directions"):
        read_dicom_cine(study, "cine_trufi_retro 2CH", "lax_2ch")
    first, second = (read_dicom_cine(study, "cine_trufi_retro 2CH", "lax_2ch", plane=k)[0] for k in range(2))
    assert (first.rr_ms, second.rr_ms) == (975.0, 905.0)


def test_times_are_those_of_the_headers(study):
    "Every trigger time, read with pydicom alone."
    import io

    with zipfile.ZipFile(study) as z, quiet_pydicom():
        for name in ("Se1", "Se8"):
            times = sorted(
                float(pydicom.dcmread(io.BytesIO(z.read(n)), stop_before_pixels=True).TriggerTime)
                for n in z.namelist()
                if n.startswith(f"{name}/") and n.endswith(".dcm")
            )
            assert np.array_equal(read_dicom_cine(study, NUMBERS[name], "sax")[0].trigger_time_ms, times)


# ---- ECG


@pytest.fixture(scope="module")
def muse(real_data):
    return real_data / "ecg_other" / "muse_xml_guangxi_ecg2dcm"


def test_muse_xml_equals_its_dicom_conversion(muse):
    """The eight stored leads exactly; the four that follow from them within half a step of 4.88 uV, to which
    the converter rounded them.
    """
    xml, dicom = (read_ecg(next(muse.glob(f"*.{s}"))) for s in ("xml", "dcm"))
    assert (
        xml.fs == dicom.fs == 500
        and xml.signal_LT.shape == dicom.signal_LT.shape == (12, 5000)
        and xml.lead_ok_L.all()
        and dicom.lead_ok_L.all()
    )
    assert xml.derived == ("III", "aVR", "aVL", "aVF") and dicom.derived == ()
    stored = [0, 1, *range(6, 12)]
    assert np.array_equal(xml.signal_LT[stored], dicom.signal_LT[stored])
    assert np.abs(xml.signal_LT - dicom.signal_LT).max() <= 0.00244 + 1e-6
    assert (
        einthoven_error_mv(xml.signal_LT, xml.lead_ok_L) < 1e-6
        and einthoven_error_mv(dicom.signal_LT, dicom.lead_ok_L) <= 0.00488
    )
    assert 1 < np.ptp(xml.signal_LT[1]) < 5  # mV


def test_dicom_ecg(real_data):
    """The record, not the median beat; Einthoven's law within two steps of 5 uV; as pydicom's own scaling has
    it.
    """
    path = real_data / "ecg_other" / "dicom_ecg_cardio" / "sample.dcm"
    ecg = read_ecg(path)
    assert (
        ecg.signal_LT.shape == (12, 5000)
        and ecg.fs == 500
        and ecg.lead_names == STANDARD_LEADS
        and ecg.lead_ok_L.all()
        and ecg.derived == ()
    )
    assert einthoven_error_mv(ecg.signal_LT, ecg.lead_ok_L) <= 0.01 + 1e-6
    with quiet_pydicom():
        assert np.allclose(ecg.signal_LT, pydicom.dcmread(path).waveform_array(0).T / 1000, atol=1e-6)


# ---- masks, fields


@pytest.mark.parametrize("who", list("ABCDEFG"))
def test_masks_align_by_affine(real_data, who):
    """A segmentation with 18 slices over an image with 12: voxel by voxel it is wrong, through the two
    affines its blood is bright and its muscle dark.
    """
    image, seg = (
        nib.load(real_data / "cmr_nifti" / "autofd_ukdhp" / who / f"{n}sa_ED.nii.gz") for n in ("", "seg_")
    )
    pixels = np.asarray(image.dataobj, dtype=float).reshape(image.shape[:3])
    labels = np.asarray(seg.dataobj).reshape(seg.shape[:3])
    to_image = np.linalg.inv(image.affine) @ seg.affine
    assert np.abs(to_image - np.rint(to_image)).max() < 1e-3 and np.allclose(
        np.rint(to_image)[:3, 3], (0, 0, -3)
    )

    def contrast(move):
        at = np.rint(nib.affines.apply_affine(move, np.argwhere(labels > 0))).astype(int)
        inside = ((at >= 0) & (at < pixels.shape)).all(1)
        value = pixels[tuple(at[inside].T)]
        label = labels[labels > 0][inside]
        return np.median(value[label == 1]) / np.median(value[label == 2]), inside.mean()

    (aligned, share) = contrast(to_image)
    (by_index, _) = contrast(np.eye(4))
    print(
        who,
        (
            f"blood : muscle {aligned:.2f} aligned, {by_index:.2f} by index; {share:.0%} of the "
            "labels over the image"
        ),
    )
    assert share > 0.95 and aligned > 1.3 and aligned > by_index


def test_fields(real_data):
    "Every field of the list that is no bulk file is a column, with the list's unit where it has one."
    ours = {f: (name, unit) for f, name, unit in PHENOTYPES.values()}
    rows = list(csv.DictReader((real_data / "ukb_cmr_ecg_fields.csv").open()))
    assert {int(r["field"]) for r in rows if not r["unit"].startswith("bulk")} == set(ours)
    for r in rows:
        if not r["unit"].startswith("bulk"):
            assert ours[int(r["field"])][1] == r["unit"], r
