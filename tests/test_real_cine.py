"""Real cines (skipped without PTACL_REAL_DATA): a dcm2niix study with times from its DICOM headers, and seven
segmented short-axis stacks.
"""

import io
import json
import re
import shutil
import zipfile
from collections import defaultdict
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from ptacl.base.core import BadInput
from ptacl.data.cavity import cavity_area, cavity_mask, find_ed_es
from ptacl.data.cine import MIN_FRAMES, cine_from_array, mid_slice, read_cine, write_cine
from ptacl.data.heart import crop_heart, find_heart, scale_intensity
from ptacl.data.ventricle import SURE

# base to apex, as MANIFEST.md says; the code has to find this order itself
SHORT_AXIS = ("Se11", "Se1", "Se2", "Se3", "Se4", "Se5")
VENTRICLE = SHORT_AXIS[1:]  # Se11 lies above the valves
# Centre of the left ventricle's cavity at end-diastole, (row, column) of the NIfTI, read off the pictures by
# eye, to about 2 pixels.
LV_CENTRE = {"Se1": (104, 131), "Se2": (105, 135), "Se3": (103, 133), "Se4": (102, 130), "Se5": (101, 124)}


@pytest.fixture(scope="module")
def headers(real_data):
    "DICOM headers of every series, sorted by trigger time."
    import pydicom

    series = defaultdict(list)
    with zipfile.ZipFile(real_data / "cmr_dicom" / "biv-me_patient1_all11series.zip") as z:
        for name in z.namelist():
            if name.endswith(".dcm"):
                series[name.split("/")[-2]].append(pydicom.dcmread(io.BytesIO(z.read(name))))
    return {k: sorted(v, key=lambda d: float(d.TriggerTime)) for k, v in series.items()}


@pytest.fixture(scope="module")
def study(real_data, headers, tmp_path_factory):
    "Every series as dcm2niix left it, plus a sidecar with the times of the headers, read back."
    folder = tmp_path_factory.mktemp("study")
    cines = {}
    for name, head in headers.items():
        shutil.copy(real_data / "cmr_nifti" / "biv-me_dcm2niix" / f"{name}.nii.gz", folder)
        times = [float(d.TriggerTime) for d in head]
        side = dict(
            view="sax" if name in SHORT_AXIS else "lax_4ch",
            trigger_time_ms=times,
            rr_ms=float(head[0].NominalInterval),
        )
        (folder / f"{name}.json").write_text(json.dumps(side))
        cines[name] = read_cine(folder / f"{name}.nii.gz")
    return cines


@pytest.fixture(scope="module")
def stack(study):
    "The parallel series as one stack, sorted along the normal, with the mid slice's times."

    def normal(c):
        return np.cross(c.affine[:3, 0], c.affine[:3, 1]) / np.prod(c.spacing_mm[1:])

    groups = [[k for k, c in study.items() if abs(normal(c) @ normal(d)) > 0.999] for d in study.values()]
    names = sorted(max(groups, key=len), key=lambda k: study[k].affine[:3, 3] @ normal(study["Se1"]))
    parts = [study[k] for k in names]
    step = (parts[-1].affine[:3, 3] - parts[0].affine[:3, 3]) / (len(parts) - 1)
    for k, c in enumerate(parts):
        assert np.allclose(c.affine[:3, 3], parts[0].affine[:3, 3] + k * step, atol=0.05)
    affine = parts[0].affine.copy()
    affine[:3, 2] = step
    mid = parts[len(parts) // 2]
    frames = np.concatenate([c.frames_FZHW for c in parts], 1)
    cine = cine_from_array(
        frames,
        (float(np.linalg.norm(step)), *mid.spacing_mm[1:]),
        mid.trigger_time_ms,
        mid.rr_ms,
        "sax",
        affine=affine,
    )
    return cine, names


def lv_error_mm(row, col, name, pixel=1.40625):
    return np.hypot(row - LV_CENTRE[name][0], col - LV_CENTRE[name][1]) * pixel


def test_times_come_from_the_headers(study, headers):
    assert len(study) == 11
    for name, cine in study.items():
        assert cine.frames_FZHW.shape[:2] == (25, 1)
        assert cine.rr_ms == float(headers[name][0].NominalInterval)
        assert np.allclose(np.diff(cine.trigger_time_ms), cine.rr_ms / 25, atol=0.01)
    assert np.diff(study["Se1"].trigger_time_ms).mean() == pytest.approx(34.40, abs=0.01)
    assert np.diff(study["Se8"].trigger_time_ms).mean() == pytest.approx(39.00, abs=0.01)
    assert len({c.rr_ms for c in study.values()}) == 11


def test_without_the_headers_it_is_an_error(real_data, tmp_path):
    """dcm2niix's own sidecar and its pixdim[4] = 0.034 s (850 ms for 25 frames, plausible and wrong) are not
    enough.
    """
    folder = real_data / "cmr_nifti" / "biv-me_dcm2niix"
    for name in ("Se1", "Se8"):
        with pytest.raises(
            BadInput,
            match=r"trigger_time_ms and rr_ms missing.*pixdim\[4\] = 0.034 for 25 frames is not used",
        ):
            read_cine(folder / f"{name}.nii.gz")
    shutil.copy(folder / "Se1.nii.gz", tmp_path)
    with pytest.raises(BadInput, match="no sidecar Se1.json"):
        read_cine(tmp_path / "Se1.nii.gz")


@pytest.mark.parametrize("name", ["Se1", "Se8"])
def test_frames_are_in_the_order_of_the_times(study, headers, name):
    "Frame k of the NIfTI is the DICOM image with the k-th trigger time (dcm2niix turns the rows over)."
    for k in (0, 7, 24):
        picture = headers[name][k].pixel_array.astype(np.float32)
        assert np.array_equal(study[name].frames_FZHW[k, 0, ::-1], picture)


def test_geometry_against_the_authors_text(real_data, study, stack):
    """Positions of SliceInfoFile.txt, extracted by the study's authors, give the same distances along the
    normal.
    """
    text = (real_data / "cmr_dicom" / "SliceInfoFile.txt").read_text()
    found = re.findall(
        r"ImagePositionPatient\s+(\S+)\s+(\S+)\s+(\S+)\s+ImageOrientationPatient\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)",
        text,
    )
    v = np.array(found, float)
    normal = np.cross(v[0, 3:6], v[0, 6:9])
    parallel = [abs(np.cross(r[3:6], r[6:9]) @ normal) > 0.999 for r in v]
    depth = np.sort(v[parallel, :3] @ normal)
    cine, names = stack
    assert names in (list(SHORT_AXIS), list(SHORT_AXIS)[::-1])
    assert len(depth) == 6 and np.allclose(np.diff(depth), 17.70, atol=0.01)
    assert cine.spacing_mm[0] == pytest.approx(17.70, abs=0.01)  # not the 6 mm of SliceThickness
    assert cine.spacing_mm[1:] == (1.40625, 1.40625)


@pytest.mark.parametrize("name", VENTRICLE)
def test_heart_is_found_in_one_slice(study, name):
    "The centre lies within 10 mm of the left cavity's; the apex, 8 mm wide, is not told for sure."
    heart = find_heart(study[name])
    assert lv_error_mm(heart.row, heart.col, name) < 10
    assert (heart.confidence >= SURE) == (name != "Se5")
    assert 25 < heart.radius_mm < 60


def test_heart_is_found_above_the_valves(study):
    "Se11 has no ventricle; the atria and the root of the aorta beat around (105, 120)."
    heart = find_heart(study["Se11"])
    assert np.hypot(heart.row - 105, heart.col - 120) * 1.40625 < 20
    assert heart.confidence < SURE


def test_heart_is_found_in_the_stack(stack):
    cine, names = stack
    heart = find_heart(cine)
    assert all(lv_error_mm(heart.row, heart.col, k) < 15 for k in VENTRICLE)
    crop = crop_heart(cine, 96, 1.5)
    assert crop.frames_FZHW.shape == (25, 6, 96, 96) and crop.spacing_mm[1:] == (1.5, 1.5)
    pixels, scale = scale_intensity(crop.frames_FZHW)
    assert pixels.min() == 0 and pixels.max() == 1 and 0.1 < pixels.mean() < 0.6
    # the crop's centre is the same place in the scanner
    assert np.allclose(crop.affine @ [47.5, 47.5, 2, 1], cine.affine @ [heart.col, heart.row, 2, 1])


@pytest.mark.parametrize("name", VENTRICLE[1:])
def test_ed_and_es_of_one_slice(study, name):
    """End-diastole within a frame of the R peak; end-systole, by eye frames 9-11 in these slices, about 40 %
    later; the same in the crop.
    """
    cine = study[name]
    ed, es = find_ed_es(cine)
    assert min(ed, 25 - ed) <= 1
    assert 9 <= es <= 11
    assert find_ed_es(crop_heart(cine, 96, 1.5)) == (ed, es)
    mask = cavity_mask(cine)
    row, col = (v.mean() for v in np.nonzero(mask[ed]))
    assert lv_error_mm(row, col, name) < 8
    area = cavity_area(cine)
    assert area[es] < 0.6 * area[ed]
    # no leaps: a leak into a neighbour more than doubles the area; 0.31 is the most here
    assert np.abs(np.diff(area)).max() < 0.4 * np.ptp(area)


def test_ed_comes_before_es_in_the_stack(stack):
    """In time after the R peak: the frame taken as end-diastole may be the last of the cycle, which is the
    moment before the next peak.
    """
    cine, _ = stack
    ed, es = find_ed_es(cine)
    since_ed = (cine.trigger_time_ms[es] - cine.trigger_time_ms[ed]) % cine.rr_ms
    assert 200 < since_ed < 450


def test_areas_shrink_to_the_apex(study):
    largest = [cavity_area(study[k]).max() for k in VENTRICLE]
    assert largest == sorted(largest, reverse=True)
    assert 1500 < largest[1] < 3500


@pytest.mark.parametrize("name", ["Se2", "Se3", "Se4"])
def test_any_start_of_the_cycle(study, name):
    "Retrospective gating may start anywhere: frames rolled by k move both frames by k."
    cine = study[name]
    ed, es = find_ed_es(cine)
    for k in (5, 12, 20):
        rolled = replace(cine, frames_FZHW=np.roll(cine.frames_FZHW, k, 0))
        ed_k, es_k = find_ed_es(rolled)
        assert es_k == (es + k) % 25
        assert min((ed_k - ed - k) % 25, (ed + k - ed_k) % 25) <= 1
        heart = find_heart(cine)
        heart_k = find_heart(rolled)
        assert np.hypot(heart.row - heart_k.row, heart.col - heart_k.col) < 1


def test_above_the_valves_there_is_no_cavity(study):
    with pytest.raises(BadInput, match="no left ventricular cavity found"):
        cavity_mask(study["Se11"])


def test_write_and_read_the_stack(stack, tmp_path):
    cine, _ = stack
    back = read_cine(write_cine(cine, tmp_path / "stack.nii.gz"))
    assert np.array_equal(back.frames_FZHW, cine.frames_FZHW) and np.array_equal(
        back.trigger_time_ms, cine.trigger_time_ms
    )
    assert np.allclose(back.affine, cine.affine, atol=1e-3) and np.allclose(back.spacing_mm, cine.spacing_mm)
    assert np.array_equal(mid_slice(back).frames_FZHW, cine.frames_FZHW[:, 3:4])


# The autofd stacks are one end-diastolic frame each, so nothing moves: read_cine refuses them as cines. What
# they have is real anatomy with a
# segmentation. A smooth, known contraction around the segmented cavity turns the middle slice into a cine
# whose heart and cavity are known.
def segmented_slice(folder):
    """The middle of the slices with a left cavity, and its label picture, aligned by the affines (the
    segmentation is shifted by 3 slices).
    """
    image, seg = (nib.load(folder / f"{n}sa_ED.nii.gz") for n in ("", "seg_"))
    shift = (np.linalg.inv(seg.affine) @ image.affine)[:3, 3].round().astype(int)
    pixels = np.asarray(image.dataobj)[..., 0]
    labels = np.asarray(seg.dataobj)[..., 0]
    assert tuple(shift) == (0, 0, 3)
    labels = labels[:, :, 3 : 3 + pixels.shape[2]]
    held = np.flatnonzero((labels == 1).any((0, 1)))
    k = held[len(held) // 2]
    return (
        pixels[:, :, k].T.astype(np.float64),
        labels[:, :, k].T,
        [float(v) for v in image.header.get_zooms()[:2]],
    )


def contract(picture, labels, pixel, n_frames=25, es=9):
    """A cine in which everything near the cavity's centre moves inwards and back, and the cavity's mask in
    each frame.
    """
    row, col = (v.mean() for v in np.nonzero(labels == 1))
    y, x = np.indices(picture.shape)
    near = np.exp(-((y - row) ** 2 + (x - col) ** 2) * (pixel / 35) ** 2)
    frames = []
    masks = []
    for t in range(n_frames):
        inward = 1 + 0.25 * (1 - np.cos(2 * np.pi * np.interp(t, [0, es, n_frames], [0, 0.5, 1]))) * near
        at = row + (y - row) * inward, col + (x - col) * inward
        frames.append(ndimage.map_coordinates(picture, at, order=1, mode="nearest"))
        masks.append(ndimage.map_coordinates((labels == 1).astype(float), at, order=1) > 0.5)
    noise = np.random.default_rng(0).normal(0, 0.01 * np.ptp(picture), (n_frames, *picture.shape))
    return np.array(frames) + noise, np.array(masks), row, col


@pytest.mark.parametrize("who", list("ABCDEFG"))
def test_a_single_frame_is_refused(real_data, who):
    with pytest.raises(BadInput, match=f"1 frame\\(s\\), a cine needs at least {MIN_FRAMES}"):
        read_cine(real_data / "cmr_nifti" / "autofd_ukdhp" / who / "sa_ED.nii.gz")


@pytest.mark.parametrize("who", list("ABCDEFG"))
def test_cavity_against_a_segmentation(real_data, who):
    """Seven people's real anatomy: the cavity found is the one that experts outlined (they draw over the
    trabeculae, so ours is smaller).
    """
    picture, labels, (pixel, _) = segmented_slice(real_data / "cmr_nifti" / "autofd_ukdhp" / who)
    frames, truth, row, col = contract(picture, labels, pixel)
    cine = cine_from_array(frames, (10.0, pixel, pixel), np.arange(25) * 36.0, 900.0, "sax")
    heart = find_heart(cine)
    assert np.hypot(heart.row - row, heart.col - col) * pixel < 20
    mask = cavity_mask(cine)
    dice = 2 * (mask & truth).sum((1, 2)) / (mask.sum((1, 2)) + truth.sum((1, 2)))
    print(
        who,
        f"Dice {dice.min():.3f}-{dice.max():.3f}, area {mask[0].sum() / truth[0].sum():.2f} of the expert's",
    )
    assert dice.min() > 0.85
    assert find_ed_es(cine) == (0, 9)
