"""Cine files with random damage: NIfTI, sidecars, DICOM images, zips. Each is read and gives the values of
the whole file, other values that the damage explains (`EXPLAINED`), or one `BadInput`; never another
exception, more than 10 s or more than 1 GiB. `test_fuzz_cine.py` runs some of them; as a command:

    python tests/fuzz_cine.py -n 8000 --seed 1
"""

import argparse
import gzip
import io
import json
import resource
import struct
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import ukbb_files as write

from ptacl.base.core import BadInput
from ptacl.data.cine import Cine, cine_from_array, read_cine, write_cine
from ptacl.data.dicom_study import list_dicom_series
from ptacl.data.ukbb import read_ukbb_cine

F = 10
TIMES = np.arange(F) * 86.0
LIMIT_S = 10.0
LIMIT_MIB = 1024

# where the damage is -> why other values are right then. The reader cannot know better: what the file says is
# possible, agrees with its other fields, and no checksum speaks against it.
EXPLAINED = {
    "nii pixels": "a plain .nii and a repacked .nii.gz have no checksum: the pixels are those of the file",
    "nii scl_slope": "intensities are stored numbers times this one",
    "nii scl_inter": "intensities are stored numbers plus this one",
    "nii srow": "the place in the scanner; sizes still agree with pixdim to 2 %",
    "nii pixdim": "sizes that agree with the affine to 2 %",
    "nii sform_code": "0 takes the place in the scanner away",
    "nii qform_code": "the qform counts as well, and does not contradict",
    "nii datatype": "another type of the same length: the pixels are those of the file",
    "nii dim": "other dimensions with as many pixels, one time a frame",
    "nii xyzt_units": "another unit of time or place; sizes are possible in it",
    "nii vox_offset": "as many bytes of pixels begin elsewhere",
    "nii qoffset_x": "the place in the scanner by the qform, which does not contradict",
    "nii order": "bytes moved within the file: the pixels are those of the file",
    "json": "times, interval and view are those of the sidecar: rising, and a third of the cycle or more",
    "dcm PixelData": "pixels without a checksum",
    "dcm ImagePositionPatient": "a place that is possible: another distance, or another place of a slice",
    "dcm ImageOrientationPatient": "directions at right angles",
    "dcm PixelSpacing": "a size that is possible",
    "dcm TriggerTime": "a time that is possible: an image at another time, or twice at one",
    "dcm NominalInterval": "an interval that is possible; one that its frames contradict is mended and said",
    "dcm SeriesDescription": "the image is of another series, and missing in its own, which is said",
    "dcm SeriesInstanceUID": "the image is of another series, and missing in its own, which is said",
    "dcm SeriesNumber": "the order of directions and recordings",
    "dcm InstanceNumber": "the last of two images at one time",
    "dcm CardiacNumberOfImages": "how many frames are said to be missing",
    "dcm SliceThickness": "the thickness of a single slice",
    "dcm Modality": "an image that is not of magnetic resonance is left out, which is said",
    "dcm SOPClassUID": "a file of another class is left out, which is said",
    "dcm NumberOfFrames": "a file of several frames is left out, which is said",
    "dcm ImageType": "an image of phase is left out, which is said",
    "dcm BitsStored": "how many of the stored bits count",
    "dcm HighBit": "which of the stored bits count",
    "dcm BitsAllocated": "another length of the stored numbers that fits",
    "dcm PixelRepresentation": "whether stored numbers have a sign",
    "dcm PhotometricInterpretation": "MONOCHROME1 is turned over",
    "dcm SamplesPerPixel": "bytes of it and of what follows: the image is no image any more, which is said",
    "dcm RescaleSlope": "intensities are stored numbers times this one",
    "dcm RescaleIntercept": "intensities are stored numbers plus this one",
    "dcm Rows": "a picture of another size than most is left out, which is said",
    "dcm Columns": "a picture of another size than most is left out, which is said",
    "dcm preamble": "the file is no DICOM image any more, and missing, which is said",
    "dcm meta": "the file is no DICOM image any more, or of another transfer syntax",
    "dcm structure": "elements moved or cut: an image is missing, or has another value in one of them",
    "dcm other": "an element with another length hides those behind it",
    "zip": "an entry is missing, which is said",
}


@dataclass
class Outcome:
    "What became of one damaged input."

    kind: str  # which generator
    where: str  # the damaged part, as in EXPLAINED
    what: str  # "same", "other", "refused" or "crash"
    detail: str  # which values differ, or the error
    seconds: float
    mib: float  # by how much the peak of memory rose


@dataclass
class Bases:
    "Whole inputs, and what they read as."

    nii: bytes
    side: dict
    cine: Cine
    files: dict[str, bytes]  # the DICOM study
    study: Cine
    elements: dict[str, list[tuple[str, int, int, int]]] = field(default_factory=dict)


def make_bases(folder: Path) -> Bases:
    "A stack of 3 slices of 16 x 18 pixels in 10 frames, as NIfTI and as DICOM."
    y, x = np.mgrid[:16, :18]
    radius = 6 - 2 * np.sin(np.pi * np.arange(F) / F)[:, None, None, None]
    rng = np.random.default_rng(0)
    frames = 100 + 300 * (np.hypot(y - 8, x - 9) < radius) + rng.integers(0, 20, (F, 3, 16, 18))
    affine = np.diag([4.0, 4.0, 9.0, 1.0])
    cine = cine_from_array(frames, (9.0, 4.0, 4.0), TIMES, 860.0, "sax", affine=affine)
    path = write_cine(cine, folder / "base.nii")
    study = write.CineStudy()
    for k in range(3):
        study.slice(f"CINE_segmented_SAX_b{k + 1}", frames[:, k], 9.0 * k, 860.0, (4.0, 4.0))
    for s in study.slices:
        for d in s.images:
            d.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
            d.RescaleSlope = "1"
            d.RescaleIntercept = "0"
    whole, _ = read_ukbb_cine(study.write(folder / "base.zip"), "sax")
    side = json.loads(path.with_suffix(".json").read_text())
    return Bases(path.read_bytes(), side, read_cine(path, quiet=True), study.files(), whole)


# ---- damage


def harm(raw: bytes, rng: np.random.Generator, low: int = 0, high: int | None = None) -> tuple[bytes, int]:
    "Bytes after a random change between two places, and where it begins."
    high = len(raw) if high is None else min(high, len(raw))
    at = int(rng.integers(low, max(high, low + 1)))
    n = int(rng.choice([1, 1, 2, 4, 8, 64]))
    out = bytearray(raw)
    way = rng.choice(["bit", "byte", "many", "cut", "insert", "zero", "copy", "number", "end"])
    if way == "bit" and at < len(out):
        out[at] ^= 1 << int(rng.integers(8))
    elif way == "byte" and at < len(out):
        out[at] = int(rng.integers(256))
    elif way == "many":
        out[at : at + n] = rng.bytes(n)
    elif way == "cut":
        del out[at : at + n]
    elif way == "insert":
        out[at:at] = rng.bytes(n)
    elif way == "zero":
        out[at : at + n] = bytes(min(n, len(out) - at))
    elif way == "copy":
        source = int(rng.integers(0, len(out)))
        out[at : at + n] = out[source : source + n]
    elif way == "number":
        odd = [0, 1, -1, 2**15 - 1, -(2**15), 2**31 - 1, -(2**31)]
        out[at : at + 4] = struct.pack("<i", int(rng.choice(odd)))
    else:
        del out[at:]
    return bytes(out), at


ODD_NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"2.5",
    b"1e999",
    b"nan",
    b"inf",
    b"-inf",
    b"",
    b" ",
    b"abc",
    b"1\\2",
    b"1\\2\\3",
    b"1\\2\\3\\4\\5\\6",
    b"9" * 16,
    b"1e-300",
    b"1,5",
    b"0x10",
    b"430",
    b"1720",
    b"\xff\xfe",
    b"\0",
)

NII_FIELDS = {n: int(f[1]) for n, f in nib.Nifti1Header.template_dtype.fields.items()}


def nii_part(before: bytes, after: bytes) -> str:
    "The part of a NIfTI file that differs; of several, one that matters."
    if len(before) != len(after):
        return "nii order"
    changed = [k for k, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    if not changed or changed[-1] >= 352:
        return "nii pixels"
    names = [max((offset, n) for n, offset in NII_FIELDS.items() if offset <= k)[1] for k in changed]
    parts = [f"nii {'srow' if n.startswith('srow') else n}" for n in names]
    return next((p for p in parts if p in EXPLAINED), parts[0])


def odd_nii(bases: Bases, rng: np.random.Generator) -> tuple[bytes, str]:
    "A damaged NIfTI: bytes, or a field of the header with an odd number."
    raw = bases.nii
    if rng.random() < 0.5:
        out, _ = harm(raw, rng, 0, 352 if rng.random() < 0.8 else None)
        return out, nii_part(raw, out)
    header = np.frombuffer(raw[:348], nib.Nifti1Header.template_dtype).copy()
    name = str(rng.choice([n for n in NII_FIELDS if header[n].dtype.kind in "iuf"]))
    values = header[name].reshape(-1)
    k = int(rng.integers(len(values)))
    odd = [0, -1, 1, 2, 3, 7, 8, 100, 32767, -32768, 65535, 1e30, -1e30, 1e-30, np.nan, np.inf, -np.inf]
    with np.errstate(all="ignore"):
        new = float(rng.choice(odd)) * (float(values[k]) if rng.random() < 0.3 else 1)
        if values.dtype.kind in "iu":
            info = np.iinfo(values.dtype)
            new = int(np.clip(np.nan_to_num(new), max(info.min, -(2**60)), min(info.max, 2**60)))
        values[k] = new
    header[name] = values.reshape(header[name].shape)
    out = header.tobytes() + raw[348:]
    return out, nii_part(raw, out)


def odd_sidecar(bases: Bases, rng: np.random.Generator) -> bytes:
    "A damaged sidecar: characters, values, keys."
    text = json.dumps(bases.side).encode()
    if rng.random() < 0.4:
        return harm(text, rng)[0]
    if rng.random() < 0.1:
        return rng.choice(
            [b"[" * 100_000, b'{"a":' * 50_000, b"", b"null", b"\xef\xbb\xbf" + text, b"[]", b"\xff" * 9]
        )
    side = json.loads(text)
    many = "1" + "0" * int(rng.choice([20, 400, 5000]))
    odd = [
        "null",
        "true",
        "-1",
        "0",
        "1e999",
        "NaN",
        '"860"',
        '"now"',
        "[]",
        "{}",
        "[[1]]",
        many,
        '"' + "x" * 70_000 + '"',
    ]
    mark = "@@"
    key = str(rng.choice([*side, "ImageType", "Modality", "new"]))
    if key == "trigger_time_ms" and rng.random() < 0.8:
        times = side[key]
        way = rng.choice(["one", "scale", "shift", "order", "fewer", "more", "half"])
        k = int(rng.integers(len(times)))
        if way == "one":
            times[k] = mark
        elif way == "scale":
            side[key] = [t * float(rng.choice([1e-3, 0.1, 0.42, 0.5, 1.1, 2, 1e3])) for t in times]
        elif way == "shift":
            side[key] = [t + float(rng.choice([-100, 40, 200])) for t in times]
        elif way == "order":
            rng.shuffle(times)
        else:
            side[key] = dict(fewer=times[:k], more=[*times, 859.0], half=times[::2])[str(way)]
    elif rng.random() < 0.2:
        side.pop(key, None)
    else:
        side[key] = mark
    out = json.dumps(side).replace(f'"{mark}"', str(rng.choice(odd)))
    return out.encode()


LONG_FORM = (b"OB", b"OW", b"OF", b"SQ", b"UT", b"UN", b"UC", b"UR", b"OD", b"OL")
KEYWORDS = {
    (0x0008, 0x0016): "SOPClassUID",
    (0x0008, 0x0008): "ImageType",
    (0x0008, 0x0060): "Modality",
    (0x0008, 0x103E): "SeriesDescription",
    (0x0018, 0x0050): "SliceThickness",
    (0x0018, 0x1060): "TriggerTime",
    (0x0018, 0x1062): "NominalInterval",
    (0x0018, 0x1090): "CardiacNumberOfImages",
    (0x0020, 0x000E): "SeriesInstanceUID",
    (0x0020, 0x0011): "SeriesNumber",
    (0x0020, 0x0013): "InstanceNumber",
    (0x0020, 0x0032): "ImagePositionPatient",
    (0x0020, 0x0037): "ImageOrientationPatient",
    (0x0028, 0x0002): "SamplesPerPixel",
    (0x0028, 0x0004): "PhotometricInterpretation",
    (0x0028, 0x0008): "NumberOfFrames",
    (0x0028, 0x0010): "Rows",
    (0x0028, 0x0011): "Columns",
    (0x0028, 0x0030): "PixelSpacing",
    (0x0028, 0x0100): "BitsAllocated",
    (0x0028, 0x0101): "BitsStored",
    (0x0028, 0x0102): "HighBit",
    (0x0028, 0x0103): "PixelRepresentation",
    (0x0028, 0x1052): "RescaleIntercept",
    (0x0028, 0x1053): "RescaleSlope",
    (0x7FE0, 0x0010): "PixelData",
}


def elements_of(raw: bytes) -> list[tuple[str, int, int, int]]:
    "Name, start, start of the value and end of each element of an explicit little-endian file."
    out = []
    at = 132
    while at + 8 <= len(raw):
        tag = struct.unpack_from("<HH", raw, at)
        is_long = raw[at + 4 : at + 6] in LONG_FORM
        size = (
            struct.unpack_from("<I", raw, at + 8)[0] if is_long else struct.unpack_from("<H", raw, at + 6)[0]
        )
        value = at + (12 if is_long else 8)
        name = "meta" if tag[0] == 2 else KEYWORDS.get(tag, "other")
        out.append((name, at, value, value + size))
        at = value + size
    return out


def odd_image(bases: Bases, raw: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    "A damaged DICOM image: a tag with an odd value, without it, or bytes."
    elements = elements_of(raw)
    if rng.random() < 0.35:
        out, at = harm(raw, rng, 128)
        name = next((n for n, a, _, b in elements if a <= at < b), "preamble")
        return out, f"dcm {name}" if len(out) == len(raw) else "dcm structure"
    names = [n for n, *_ in elements if n not in ("other", "meta")]
    name = str(rng.choice([*names, "NumberOfFrames"]))
    found = [e for e in elements if e[0] == name]
    if not found:  # it is not there: before the rows, where it belongs
        start = next(a for n, a, *_ in elements if n == "Rows")
        value = bytes(rng.choice([b"0 ", b"1 ", b"3 ", b"-1", b"x ", b"99999999"]))
        element = struct.pack("<HH2sH", 0x0028, 0x0008, b"IS", len(value)) + value
        return raw[:start] + element + raw[start:], f"dcm {name}"
    _, start, value, end = found[0]
    if rng.random() < 0.15:
        return raw[:start] + raw[end:], f"dcm {name}"
    if raw[start + 4 : start + 6] == b"US":
        new = struct.pack("<H", int(rng.choice([0, 1, 2, 3, 8, 12, 15, 16, 17, 32, 64, 4096, 65535])))
    elif raw[start + 4 : start + 6] in LONG_FORM:
        new = bytes(rng.choice([0, 1]) * (end - value) // 2) if rng.random() < 0.3 else rng.bytes(end - value)
    elif rng.random() < 0.5:
        words = raw[value:end].split(b"\\")
        words[int(rng.integers(len(words)))] = bytes(rng.choice(np.array(ODD_NUMBERS, object)))
        new = b"\\".join(words)
    else:
        text = [*ODD_NUMBERS, b"PHASE MAP", b"P", b"CT", b"MONOCHROME1", b"RGB", b"anon.1.abc", b"x" * 300]
        new = bytes(rng.choice(np.array(text, object)))
    new += b" " * (len(new) % 2)
    if raw[start + 4 : start + 6] in LONG_FORM:
        return raw[: start + 8] + struct.pack("<I", len(new)) + new + raw[end:], f"dcm {name}"
    return raw[: start + 6] + struct.pack("<H", len(new)) + new + raw[end:], f"dcm {name}"


def zip_of(files: list[tuple[str, bytes]]) -> bytes:
    "A zip of these entries, also two of one name."
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as z:
        warnings.simplefilter("ignore")
        for name, raw in files:
            z.writestr(name, raw)
    return out.getvalue()


def odd_study(bases: Bases, rng: np.random.Generator) -> tuple[bytes, str]:
    "A study with one or all images of a slice damaged, or with files that do not belong there."
    files = dict(bases.files)
    names = [n for n in files if n.endswith(".dcm")]
    way = rng.random()
    if way < 0.6:
        name = str(rng.choice(names))
        files[name], where = odd_image(bases, files[name], rng)
        return zip_of(list(files.items())), where
    if way < 0.85:  # the same damage in every image
        state = rng.bit_generator.state
        for name in names if rng.random() < 0.5 else names[:9]:
            rng.bit_generator.state = state
            files[name], where = odd_image(bases, files[name], rng)
        return zip_of(list(files.items())), where
    entries = list(files.items())
    k = int(rng.integers(len(entries)))
    if way < 0.9:
        entries.append((entries[k][0], entries[int(rng.integers(len(entries)))][1]))
    elif way < 0.95:
        entries.append((f"more/{k}.bin", rng.bytes(int(rng.choice([0, 3, 200, 5000])))))
    else:
        del entries[k]
    return zip_of(entries), "zip"


# ---- reading


def values_differ(a: Cine, b: Cine) -> str:
    "Which values of two cines differ."
    names = []
    if a.frames_FZHW.shape != b.frames_FZHW.shape:
        names.append("shape")
    elif not np.array_equal(a.frames_FZHW, b.frames_FZHW):
        names.append("frames")
    same_times = len(a.trigger_time_ms) == len(b.trigger_time_ms) and np.allclose(
        a.trigger_time_ms, b.trigger_time_ms
    )
    if not same_times or a.rr_ms != b.rr_ms:
        names.append("times")
    if not np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-6):
        names.append("spacing")
    if (a.affine is None) != (b.affine is None) or (
        a.affine is not None and not np.allclose(a.affine, b.affine)
    ):
        names.append("affine")
    if a.view != b.view:
        names.append("view")
    return "+".join(names)


def run_one(bases: Bases, folder: Path, seed: int, k: int) -> Outcome:
    "Make the k-th damaged input of a seed and read it."
    rng = np.random.default_rng([seed, k])
    kind = ("nii", "nii.gz", "json", "dicom", "dicom", "zip")[k % 6]
    before = peak_mib()
    path = folder / "a.nii"
    for p in folder.iterdir():
        p.unlink()
    where = kind
    if kind == "json":
        path.write_bytes(bases.nii)
        path.with_suffix(".json").write_bytes(odd_sidecar(bases, rng))
    elif kind.startswith("nii"):
        raw, where = odd_nii(bases, rng)
        if kind == "nii.gz":
            path = folder / "a.nii.gz"
            raw = gzip.compress(raw, 1)
            if rng.random() < 0.3:
                raw = harm(raw, rng)[0]
                where = "nii packed"
        path.write_bytes(raw)
        (folder / "a.json").write_text(json.dumps(bases.side))
    else:
        path = folder / "1000001_20209_2_0.zip"
        raw, where = odd_study(bases, rng)
        if kind == "zip":
            raw = harm(zip_of(list(bases.files.items())), rng)[0]
            where = "zip"
        path.write_bytes(raw)
    is_study = path.suffix == ".zip"
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_study and k % 5 == 0:
                list_dicom_series(path)
            cine, notes = read_ukbb_cine(path, "sax") if is_study else (read_cine(path, quiet=True), [])
    except BadInput as e:
        problem = str(e)
        leaks = [s for s in write.SECRETS if s in problem]
        what = "crash" if leaks or len(problem) > 1500 + len(str(path)) else "refused"
        detail = f"quotes {leaks} in {len(problem)} characters" if what == "crash" else e.problem
    except Exception as e:
        what = "crash"
        frame = traceback.extract_tb(e.__traceback__)[-1]
        detail = f"{type(e).__name__}: {e!s:.80} in {Path(frame.filename).name}:{frame.lineno}"
    else:
        detail = values_differ(bases.study if is_study else bases.cine, cine)
        what = "other" if detail else "same"
        if what == "other" and is_study:
            detail += " and said" if notes else " without a word"
    return Outcome(kind, where, what, detail, time.perf_counter() - start, peak_mib() - before)


def peak_mib() -> float:
    "The most memory that this process has held."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(n: int, seed: int) -> list[Outcome]:
    "Read n damaged inputs."
    with tempfile.TemporaryDirectory() as tmp:
        bases = make_bases(Path(tmp))
        folder = Path(tmp) / "one"
        folder.mkdir()
        return [run_one(bases, folder, seed, k) for k in range(n)]


def faults_of(outcomes: list[Outcome]) -> list[str]:
    "What is not as it should be: crashes, values that nothing explains, too slow, too large."
    out = []
    for k, o in enumerate(outcomes):
        if o.what == "crash":
            out.append(f"{k}: {o.kind}, {o.where}: {o.detail}")
        elif o.what == "other" and o.where not in EXPLAINED:
            out.append(
                f"{k}: {o.kind}, {o.where} reads with other values ({o.detail}), and nothing explains it"
            )
        if o.seconds > LIMIT_S or o.mib > LIMIT_MIB:
            out.append(f"{k}: {o.kind}, {o.where} took {o.seconds:.1f} s and {o.mib:.0f} MiB")
    return out


def main() -> int:
    "Run as a command; 1 if something is not as it should be."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=2000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    wanted = parser.parse_args()
    outcomes = run(wanted.n, wanted.seed)
    for kind in dict.fromkeys(o.kind for o in outcomes):
        counts = Counter(o.what for o in outcomes if o.kind == kind)
        print(f"{kind}: {', '.join(f'{n} {what}' for what, n in sorted(counts.items()))}")
    print(f"slowest {max(o.seconds for o in outcomes):.2f} s, peak {peak_mib():.0f} MiB")
    print("other values than before the damage:")
    changed = Counter((o.where, o.detail) for o in outcomes if o.what == "other")
    for (where, detail), n in sorted(changed.items()):
        print(f"  {n:5d} {where}: {detail} ({EXPLAINED.get(where, 'NOT EXPLAINED')})")
    faults = faults_of(outcomes)
    print(*faults, sep="\n")
    print(f"{len(outcomes)} damaged inputs, seed {wanted.seed}: {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
