"""prepare.ipynb and what it does with a cohort in which forty participants are spoiled, each in another way.

The prepared store holds everybody else, the report says of each of the forty what is wrong, and nothing
else has changed.
"""

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import ukbb_files as write
import wfdb
from test_bad_cohort import (
    edit,
    flat,
    nan_everywhere,
    rewrite_cine,
    rewrite_ecg,
    rewrite_shape,
    sidecar,
    times,
    truncate,
)

from ptacl.base.core import samples_dir
from ptacl.base.parameters import field_meanings
from ptacl.data.cine import cine_from_array, read_cine, write_cine
from ptacl.data.ecg import STANDARD_LEADS
from ptacl.data.ecg_files import read_ecg
from ptacl.data.participant import prepare_participant, settings_of
from ptacl.data.prepare import PrepareConfig, prepare_cohort, read_source
from ptacl.data.prepared import find_doubts, prepare_ecg
from ptacl.data.quality import quality_html
from ptacl.data.store import open_store
from ptacl.studies.launch import run_notebook

CFG = PrepareConfig(n_frames=8, crop_px=32, pixel_mm=4.0, workers=1)
N_GOOD = 140


@dataclass
class Place:
    "Where a participant's files are, and its line of the table."

    folder: Path
    p: str
    row: dict

    @property
    def dat(self) -> Path:
        return self.folder / "ecg" / f"{self.p}.dat"

    @property
    def hea(self) -> Path:
        return self.folder / "ecg" / f"{self.p}.hea"

    @property
    def nii(self) -> Path:
        return self.folder / "cine" / f"{self.p}.nii.gz"

    def xml(self, **how) -> Path:
        "The ECG as an XML of UK Biobank instead."
        self.row["ecg"] = f"ecg/{self.p}.xml"
        return write.ecg_xml(self.folder / self.row["ecg"], read_ecg(self.hea), person=False, **how)

    def study(self) -> "write.CineStudy":
        "The cine as a study of one slice."
        cine = read_cine(self.nii)
        return write.short_axis(cine, names=("CINE_segmented_SAX_b1",), depths=(0.0,), rr=(cine.rr_ms,))

    def zip(self, make: Callable[[Path], object]) -> None:
        "The cine as a zip instead."
        self.row["cine"] = f"cine/{self.p}.zip"
        make(self.folder / self.row["cine"])


def zipped(
    entries: dict[str, bytes], change: Callable[[bytes], bytes] = lambda raw: raw
) -> Callable[[Path], object]:
    "Writes a zip with these entries."

    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            for name, raw in entries.items():
                z.writestr(name, raw)
        path.write_bytes(change(path.read_bytes()))

    return make


INNER = b"PK\3\4" + bytes(100) + b"PK\5\6" + bytes(18)


def one_frame(place: Place) -> None:
    "A series of a single frame."
    study = place.study()
    del study.slices[0].images[1:]
    study.slices[0].images[0].CardiacNumberOfImages = 1
    place.zip(study.write)


def two_hearts(place: Place) -> None:
    "Two people's series in one zip."
    study = place.study()
    study.slice("CINE_segmented_SAX_b2", read_cine(place.nii).frames_FZHW[:, 0], 10.0, 900.0)
    for d in study.slices[1].images:
        d.PatientID = "somebody else"
        d.StudyInstanceUID = "1.2.3.4"
    place.zip(study.write)


def long_axis(place: Place) -> None:
    "A zip of field 20208 in the place of one of 20209."
    study = place.study()
    for d in study.slices[0].images:
        d.SeriesDescription = "CINE_segmented_LAX_4Ch"
    place.zip(study.write)


def swapped(x: np.ndarray) -> np.ndarray:
    "Leads I and II under each other's name."
    return x[[1, 0, *range(2, 12)]]


def rate(place: Place, fs: int) -> None:
    """Another sampling rate in the header; the samples stay. (Those of one participant, since not every heart
    shows it.)
    """
    x = (
        read_ecg(samples_dir() / "ecg" / "sim-0001").signal_LT
        + fs / 1e5 * np.sin(np.arange(5000)) * np.array([1, 1, 0, -1, 0.5, 0.5] + [0.3] * 6)[:, None]
    )
    rewrite_ecg(place.folder, place.p, lambda _: x.astype(float))
    edit(place.hea, r"^(\S+ 12) 500 ", rf"\g<1> {fs} ")


def gain(place: Place, value: str) -> None:
    "Another gain in every line of the header."
    place.hea.write_text(re.sub(r"200(\.0)?\(?0?\)?/mV", f"{value}/mV", place.hea.read_text()))


def twice(place: Place) -> None:
    "Two channels of one name."
    edit(place.hea, r" V5$", " V4")


def constant(place: Place) -> None:
    rewrite_cine(place.folder, place.p, lambda a: np.full_like(a, 7))


def directory(place: Place) -> None:
    "A folder in the place of the file."
    place.nii.unlink()
    place.nii.mkdir()


# name -> (what is done to the participant, modality, pattern of the problem)
SPOIL: dict[str, tuple[Callable[[Place], object], str, str]] = {
    "ecg truncated": (lambda a: truncate(a.dat, 0.5), "ecg", r"truncated: \d+ bytes"),
    "header of a longer record": (
        lambda a: edit(a.hea, r"^(\S+ 12 500 )5000", r"\g<1>50000"),
        "ecg",
        r"truncated|contradicts",
    ),
    "header empty": (lambda a: a.hea.write_text(""), "ecg", r"not a WFDB header"),
    "header without a rate": (
        lambda a: edit(a.hea, r"^(\S+ 12) 500.*$", r"\g<1>"),
        "ecg",
        r"no sampling rate",
    ),
    "ecg all NaN": (lambda a: rewrite_ecg(a.folder, a.p, nan_everywhere), "ecg", r"every sample is NaN"),
    "ecg flat": (lambda a: rewrite_ecg(a.folder, a.p, flat), "ecg", r"all leads are flat"),
    "one lead": (
        lambda a: rewrite_ecg(a.folder, a.p, lambda x: x[1:2], sig_name=["II"]),
        "ecg",
        r"1 of the 12 standard leads",
    ),
    "wrong shape": (lambda a: rewrite_ecg(a.folder, a.p, lambda x: x[:, :250]), "ecg", r"0\.5 s long"),
    "unknown unit": (
        lambda a: rewrite_ecg(a.folder, a.p, lambda x: x, units=["furlong"] * 12),
        "ecg",
        r"unknown unit 'furlong'",
    ),
    "lead named twice": (twice, "ecg", r"both lead V4"),
    "leads exchanged": (
        lambda a: rewrite_ecg(a.folder, a.p, swapped),
        "ecg",
        r"contradict II = I \+ III .* exchanged",
    ),
    "uV taken for mV": (lambda a: gain(a, "0.2"), "ecg", r"typical lead swings \d+ mV"),
    "mV taken for uV": (lambda a: gain(a, "200000"), "ecg", r"all leads are flat \(largest swing 0\.00"),
    "rate too high": (lambda a: rate(a, 1000), "ecg", r"too fast .* sampling rate in the header is too high"),
    "rate too low": (
        lambda a: rate(a, 250),
        "ecg",
        r"too slow .* sampling rate in the header is too low|heart rate is 2\d bpm",
    ),
    "signal file gone": (lambda a: a.dat.unlink(), "ecg", r"signal file \S+ is missing"),
    "header of other samples": (
        lambda a: a.dat.write_bytes(a.dat.read_bytes()[:-24] + bytes(24)),
        "ecg",
        r"checksum of",
    ),
    "XML cut off": (lambda a: truncate(a.xml(), 0.5), "ecg", r"not well-formed XML"),
    "XML with entities": (
        lambda a: a.xml(doctype='<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'),
        "ecg",
        r"document type or entities",
    ),
    "XML of something else": (
        lambda a: a.xml(change=lambda t: t.replace("CardiologyXML", "Shopping")),
        "ecg",
        r"root element is 'Shopping'",
    ),
    "cine truncated": (lambda a: truncate(a.nii, 0.5), "cine", r"truncated or damaged"),
    "cine of another shape": (lambda a: rewrite_shape(a.nii), "cine", r"header says .* but there are"),
    "not a NIfTI": (lambda a: a.nii.write_bytes(b"GIF89a" * 100), "cine", r"not a readable NIfTI"),
    "cine with NaN": (
        lambda a: rewrite_cine(a.folder, a.p, lambda x: np.where(x == x.max(), np.nan, x)),
        "cine",
        r"NaN or infinite",
    ),
    "one frame": (
        lambda a: rewrite_cine(a.folder, a.p, lambda x: x[..., :1]),
        "cine",
        r"1 frame\(s\)|3-D image",
    ),
    "no trigger times": (
        lambda a: sidecar(a.folder, a.p, trigger_time_ms=None),
        "cine",
        r"trigger_time_ms missing",
    ),
    "trigger times backwards": (
        lambda a: sidecar(a.folder, a.p, trigger_time_ms=times(a.folder, a.p)[::-1]),
        "cine",
        r"do not increase",
    ),
    "RR in seconds": (lambda a: sidecar(a.folder, a.p, rr_ms=0.9), "cine", r"rr_ms is 0\.9"),
    "no sidecar": (lambda a: (a.folder / "cine" / f"{a.p}.json").unlink(), "cine", r"no sidecar"),
    "long axis": (lambda a: sidecar(a.folder, a.p, view="lax_4ch"), "cine", r"the view is 'lax_4ch'"),
    "no picture": (constant, "cine", r"nothing moves in this cine"),
    "a folder for a file": (directory, "cine", r"no such file"),
    "empty zip": (lambda a: a.zip(zipped({})), "cine", r"the zip is empty"),
    "zip in a zip": (lambda a: a.zip(zipped({"scan.zip": INNER})), "cine", r"a zip within"),
    "zip cut off": (
        lambda a: a.zip(zipped({"a.dcm": bytes(9999)}, lambda raw: raw[: len(raw) // 2])),
        "cine",
        r"not a readable zip",
    ),
    "zip that swells": (
        lambda a: a.zip(zipped({"a.dcm": bytes(80 * 2**20)})),
        "cine",
        r"more than a cine study is",
    ),
    "zip that leads out": (
        lambda a: a.zip(zipped({"../../a.dcm": b"x"})),
        "cine",
        r"leads out of its folder",
    ),
    "zip of one frame": (one_frame, "cine", r"1 frame"),
    "two hearts": (
        two_hearts,
        "cine",
        (
            r"\b2 (patients|people|persons|participants|studies|study)|other patient|different "
            r"(patients|studies)|more than one (patient|study|visit|person)"
        ),
    ),
    "zip of the long axis": (long_axis, "cine", r"no series for sax"),
    "path out of the cohort": (
        lambda a: a.row.update(cine=f"../{a.row['cine']}"),
        "cine",
        r"leads out of the cohort",
    ),
    "rate in words": (lambda a: edit(a.hea, r"^(\S+ 12) 500 ", r"\g<1> fast "), "ecg", r"the sampling rate"),
    "gain of nothing": (lambda a: gain(a, "0"), "ecg", r"lead I has no gain"),
    "gain below zero": (lambda a: gain(a, "-200"), "ecg", r"lead I has a negative gain"),
    "one lead in another unit": (
        lambda a: edit(a.hea, r"200(?:\.0)?(?:\(0\))?/mV(.* V3)$", r"0.2/mV\g<1>"),
        "ecg",
        r"V3 swings|lead V3|one lead",
    ),
    "unknown format": (
        lambda a: edit(a.hea, r"^(\S+\.dat) 16 ", r"\g<1> 56 "),
        "ecg",
        r"format '?56'? is unknown",
    ),
    "a signal line lost": (
        lambda a: a.hea.write_text("\n".join(a.hea.read_text().splitlines()[:-1]) + "\n"),
        "ecg",
        r"the header contradicts itself: 12 signals",
    ),
    "count below zero": (
        lambda a: edit(a.hea, r"^(\S+ 12 500) 5000", r"\g<1> -5000"),
        "ecg",
        r"the number of samples",
    ),
    "cell of 5,000 letters": (lambda a: a.row.update(ecg="x" * 5000), "ecg", r"cannot be followed"),
    "times in seconds": (
        lambda a: sidecar(a.folder, a.p, trigger_time_ms=[t / 1000 for t in times(a.folder, a.p)]),
        "cine",
        r"cover 0\.\d+ %",
    ),
    "a fourth of the cycle": (
        lambda a: sidecar(a.folder, a.p, trigger_time_ms=[t / 4 for t in times(a.folder, a.p)]),
        "cine",
        r"cover 2\d %",
    ),
    "sidecar nested deeply": (
        lambda a: (a.folder / "cine" / f"{a.p}.json").write_text("[" * 100_000),
        "cine",
        r"JSON",
    ),
    "number of 5,000 digits": (
        lambda a: edit(a.folder / "cine" / f"{a.p}.json", r'"rr_ms": [\d.]+', '"rr_ms": ' + "9" * 5000),
        "cine",
        r"rr_ms|JSON",
    ),
    "endless time": (
        lambda a: edit(a.folder / "cine" / f"{a.p}.json", r'"rr_ms": [\d.]+', '"rr_ms": 1e999'),
        "cine",
        r"rr_ms",
    ),
    "a view of a megabyte": (lambda a: sidecar(a.folder, a.p, view="x" * 10**6), "cine", r"view"),
    "phase images": (
        lambda a: sidecar(a.folder, a.p, ImageType=["ORIGINAL", "PRIMARY", "P", "PHASE"]),
        "cine",
        r"phase",
    ),
    "listed twice": (lambda a: None, "table", r"listed 2 times, differently"),
    "cells too many": (lambda a: None, "table", r"\d+ cells for \d+ columns"),
    "same ECG, one name": (lambda a: None, "ecg", r"is the same recording as that of "),
    "same ECG, other name": (lambda a: None, "ecg", r"is the same recording as that of "),
    "vanishes midway": (lambda a: None, "cine", r"no such file|cannot be read \(No such file"),
    "disk full": (lambda a: None, "table", r"could not be written \(No space left on device\)"),
}
ODD = ("stack", "XML", "zip", "zip without manifest", "V6 off")  # unusual and fine


def build(folder: Path) -> tuple[dict[str, str], list[str]]:
    "A cohort of small participants; fault -> participant, and who is good."
    samples = read_source(samples_dir()).table
    names = [f"p{k:03d}" for k in range(N_GOOD + len(SPOIL))]
    rng = np.random.default_rng(0)
    plain = [p for p in samples.participant_id if p != "sim-0047"]
    ecgs = {p: read_ecg(samples_dir() / "ecg" / p) for p in plain}
    cines = {p: read_cine(samples_dir() / "cine" / f"{p}.nii.gz") for p in plain}
    (folder / "ecg").mkdir(parents=True)
    (folder / "cine").mkdir()
    for k, name in enumerate(names):
        ecg = ecgs[plain[k % len(plain)]]
        cine = cines[plain[k % len(plain)]]
        # everybody is somebody else: begun later, turned; all limb leads stay consistent
        again = k // len(plain)
        begun_LT = np.roll(ecg.signal_LT, 155 * again, axis=1)
        hum_T = 0.02 * rng.standard_normal(ecg.signal_LT.shape[1])
        limb_LT = np.array([1, 1, 0, -1, 0.5, 0.5] + [0.3] * 6)[:, None] * hum_T
        wfdb.wrsamp(
            name,
            fs=500,
            units=["mV"] * 12,
            sig_name=list(STANDARD_LEADS),
            p_signal=(begun_LT + limb_LT).T.astype(float),
            fmt=["16"] * 12,
            adc_gain=[200.0] * 12,
            baseline=[0] * 12,
            write_dir=str(folder / "ecg"),
        )
        frames = np.rot90(cine.frames_FZHW[::2, cine.frames_FZHW.shape[1] // 2], again, (1, 2))[:, None]
        write_cine(
            cine_from_array(
                frames + rng.integers(0, 4, frames.shape),
                cine.spacing_mm,
                cine.trigger_time_ms[::2],
                cine.rr_ms,
                "sax",
            ),
            folder / "cine" / f"{name}.nii.gz",
            "int16",
        )
    return {fault: names[3 * k + 2] for k, fault in enumerate(SPOIL)}, [
        n for n in names if n not in {names[3 * k + 2] for k in range(len(SPOIL))}
    ]


@dataclass
class Prepared:
    "The spoiled cohort and what became of it."

    folder: Path
    faults: dict[str, str]
    good: list[str]
    odd: dict[str, str]
    store: object
    before: dict
    after: dict
    outside: list[str]


def state(folder: Path) -> dict[str, tuple]:
    "Every file with size, time and digest."
    return {
        p.relative_to(folder).as_posix(): (
            p.stat().st_size,
            p.stat().st_mtime_ns,
            hashlib.sha256(p.read_bytes()).hexdigest(),
        )
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Prepared:
    "Build, spoil, prepare."
    import ptacl.data.participant

    top = tmp_path_factory.mktemp("spoiled")
    folder = top / "cohort"
    faults, good = build(folder)
    rows = {
        n: dict(participant_id=n, ecg=f"ecg/{n}", cine=f"cine/{n}.nii.gz", lvef=f"{50 + k % 20}")
        for k, n in enumerate(sorted([*good, *faults.values()]))
    }
    for fault, p in faults.items():
        SPOIL[fault][0](Place(folder, p, rows[p]))
    odd = dict(zip(ODD, good[10:], strict=False))
    places = {k: Place(folder, p, rows[p]) for k, p in odd.items()}
    cine = read_cine(places["stack"].nii)
    write_cine(
        cine_from_array(
            np.repeat(cine.frames_FZHW, 3, axis=1), cine.spacing_mm, cine.trigger_time_ms, cine.rr_ms, "sax"
        ),
        places["stack"].nii,
        "int16",
    )
    places["XML"].xml()
    for kind, manifest in (("zip", "csv"), ("zip without manifest", None)):
        study = places[kind].study()
        study.manifest = manifest
        places[kind].zip(study.write)
    rewrite_ecg(folder, odd["V6 off"], lambda x: x * (np.arange(12) != 11)[:, None])
    copy = Place(folder, faults["same ECG, other name"], {})
    for e in ("hea", "dat"):
        shutil.copy(folder / "ecg" / f"{faults['same ECG, one name']}.{e}", folder / "ecg" / f"{copy.p}.{e}")
    copy.hea.write_text(copy.hea.read_text().replace(faults["same ECG, one name"], copy.p))
    lines = ["\t".join(r.values()) for r in rows.values()]
    lines[list(rows).index(faults["cells too many"])] += "\tJane-Doe-1960"
    lines.append("\t".join((rows[faults["listed twice"]] | dict(lvef="1")).values()))
    (folder / "participants.tsv").write_text("participant_id\tecg\tcine\tlvef\n" + "\n".join(lines) + "\n")
    (folder / "participants.json").write_text(
        json.dumps(dict(lvef=dict(description="LV ejection fraction", unit="%")))
    )

    cohort = read_source(folder)
    out = top / "store"
    settings = settings_of(CFG)
    prepared_by = json.dumps([ptacl.data.participant.PREPARATION, settings], sort_keys=True)
    parts = out / f"parts-{hashlib.sha256(prepared_by.encode()).hexdigest()[:8]}"
    full = hashlib.sha256(
        json.dumps(
            [faults["disk full"], f"ecg/{faults['disk full']}", f"cine/{faults['disk full']}.nii.gz"]
        ).encode()
    ).hexdigest()[:32]
    parts.mkdir(parents=True)
    (parts / f".{full}.npz").symlink_to("/dev/full")  # writing there fails as on a full disk
    gone = folder / "cine" / f"{faults['vanishes midway']}.nii.gz"
    kept = gone.read_bytes()
    found = ptacl.data.participant.find_recording

    def find_and_lose(root, cell, modality):
        "A file that is there when it is looked for and gone when it is opened."
        path = found(root, cell, modality)
        if path.name == gone.name:
            path.unlink()
        return path

    before = state(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptacl.data.participant, "find_recording", find_and_lose)
        store = prepare_cohort(cohort, out, CFG, progress=False)
    after = state(folder)
    after[gone.relative_to(folder).as_posix()] = (
        before[gone.relative_to(folder).as_posix()] if not gone.exists() else None
    )
    gone.write_bytes(kept)
    return Prepared(
        folder,
        faults,
        good,
        odd,
        store,
        before,
        dict(sorted(after.items())),
        sorted(p.name for p in top.iterdir()),
    )


def test_forty_ways_are_there():
    assert len(SPOIL) >= 60


@pytest.mark.parametrize("fault", SPOIL)
def test_fault_is_reported(fault, prepared):
    "Left out, once, with the right reason and something to do."
    _, modality, pattern = SPOIL[fault]
    report = prepared.store.report
    rows = report[
        (report.participant_id == prepared.faults[fault]) & (report.severity == "left out")
    ].to_dict("records")
    assert [r["modality"] for r in rows] == [modality], rows
    assert re.search(pattern, rows[0]["problem"]), rows[0]["problem"]
    assert len(rows[0]["remedy"]) > 10
    assert prepared.faults[fault] not in set(prepared.store.table.participant_id)


def test_all_others_are_in_the_store(prepared):
    assert (
        prepared.store.table.participant_id.tolist() == sorted(prepared.good) and len(prepared.good) == N_GOOD
    )
    left_out = prepared.store.report[prepared.store.report.severity == "left out"]
    assert set(left_out.participant_id) == set(prepared.faults.values())


def test_they_are_what_they_would_be_alone(prepared):
    "Every tenth of the good ones, bit for bit; and the odd ones."
    cells = read_source(prepared.folder).table.set_index("participant_id")[["ecg", "cine"]]
    place = dict(zip(prepared.store.table.participant_id, prepared.store.rows, strict=True))
    for p in {*prepared.good[::10], *prepared.odd.values()}:
        alone, _ = prepare_participant(
            prepared.folder, dict(participant_id=p) | cells.loc[p].to_dict(), settings_of(CFG)
        )
        for name, x in alone.items():
            assert np.array_equal(
                prepared.store.read(name, [place[p]])[0], x, equal_nan=name == "measures_M"
            ), (p, name)


def test_nothing_else_changed(prepared):
    """The source is as it was, byte for byte and to the nanosecond; beside it there is the store and nothing
    else; nothing temporary is left in it.
    """
    assert prepared.before == prepared.after
    assert prepared.outside == ["cohort", "store"]
    names = {re.sub(r"-[0-9a-f]{12}", "", p.name) for p in prepared.store.root.iterdir()}
    assert names == {".lock", "participants.tsv", "report.tsv", "shards", "store.json"}
    assert [p.name for p in (prepared.store.root / "shards").iterdir()] == ["0000"]
    assert len(open_store(prepared.store.root, settings_of(CFG), verify=True).table) == N_GOOD


def test_nothing_personal_is_written(prepared):
    """What files of UK Biobank say of a person, and what stands in a cell of the table, is in no file of the
    store and not on the page of the quality report.
    """
    written = (
        b"".join(p.read_bytes() for p in prepared.store.root.rglob("*") if p.is_file())
        + quality_html(prepared.store).encode()
    )
    for secret in (*write.SECRETS, "Jane-Doe-1960", str(prepared.folder)):
        assert secret.encode() not in written, secret


def test_mended_ones_follow(prepared, tmp_path):
    """What could not be written and the file that had vanished are there when it is run again; the others are
    not prepared again.
    """
    out = tmp_path / "store"
    shutil.copytree(prepared.store.root, out)
    old = {p: p.stat().st_mtime_ns for p in out.rglob("*.npy")}
    again = prepare_cohort(read_source(prepared.folder), out, CFG, progress=False)
    assert set(again.table.participant_id) == {
        *prepared.good,
        prepared.faults["disk full"],
        prepared.faults["vanishes midway"],
    }
    assert all(p.stat().st_mtime_ns == t for p, t in old.items()) and [s.n for s in again.shards] == [
        N_GOOD,
        2,
    ]


# ---- UK Biobank's own files


@pytest.mark.parametrize("view, field", [("sax", "20209"), ("lax_4ch", "20208")])
def test_bulk_files_become_a_store(tmp_path, view, field):
    """XML and zip of four people and their table: who has both at the visit asked for is in the store, with
    that visit's phenotypes and nothing personal.
    """
    bulk = tmp_path / "bulk"
    bulk.mkdir()
    for k, (eid, ecg_visit, cine_visit) in enumerate(
        [("1000001", 2, 2), ("1000002", 2, 3), ("1000003", 3, 3), ("1000004", 2, 2)]
    ):
        write.ecg_xml(
            bulk / f"{eid}_20205_{ecg_visit}_0.xml", read_ecg(samples_dir() / "ecg" / f"sim-000{k + 1}.hea")
        )
        cine = read_cine(samples_dir() / "cine" / f"sim-000{k + 1}.nii.gz")
        study = write.short_axis(
            cine,
            names=("CINE_segmented_SAX_b1" if view == "sax" else "CINE_segmented_LAX_4Ch",),
            depths=(0.0,),
            rr=(cine.rr_ms,),
        )
        study.write(bulk / f"{eid}_{field}_{cine_visit}_0.zip")
    table = write.phenotype_table(
        tmp_path / "fields.csv",
        {f"100000{k}": {(24103, 2, 0): 60 + k, (24103, 3, 0): 40} for k in range(1, 5)},
    )
    source = read_source(bulk, 2, table, view)
    store = prepare_cohort(source, tmp_path / "store", replace(CFG, view=view), progress=False)
    assert (
        store.table[["participant_id", "lvef"]].values.tolist() == [["1000001", 61.0], ["1000004", 64.0]]
        and store.descriptions["lvef"]["unit"] == "%"
    )
    assert prepare_cohort(
        read_source(bulk, 3, table, view), tmp_path / "repeat", replace(CFG, view=view), progress=False
    ).table.lvef.tolist() == [40.0]
    written = b"".join(p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file())
    for secret in (*write.SECRETS, str(tmp_path)):
        assert secret.encode() not in written, secret


# ---- the thresholds of doubt and real recordings


def test_no_real_recording_is_doubted(real_data):
    """Thirty-eight records and three exports of machines: none is left out, none is taken for one with a
    wrong rate or exchanged leads.
    """
    paths = [
        *sorted((real_data / "ecg_wfdb").glob("*.hea")),
        *sorted((real_data / "ecg_other").rglob("*.xml")),
        *sorted((real_data / "ecg_other").rglob("*.dcm")),
    ]
    assert len(paths) >= 41
    found = {}
    for path in paths:
        for error, severity in find_doubts(
            prepare_ecg(read_ecg(path), fs=500.0, mains_hz=50.0, record_s=10.0, phase_map="systole"),
            path.name,
        ):
            found.setdefault(path.stem, []).append((severity, error.problem))
    assert found == {p: [("warning", "leads missing or flat: V2, V4, V6")] for p in ("JS20004", "JS20008")}


@pytest.mark.parametrize("factor, word, n", [(2, "too fast", 20), (0.5, "too slow", 20)])
def test_wrong_rates_of_real_recordings_are_found(real_data, factor, word, n):
    "About half of them are sure enough to be left out."
    ecgs = [read_ecg(p) for p in sorted((real_data / "ecg_wfdb").glob("*.hea"))]
    sure = 0
    for ecg in ecgs:
        doubts = find_doubts(
            prepare_ecg(
                replace(ecg, fs=ecg.fs * factor), fs=500.0, mains_hz=50.0, record_s=10.0, phase_map="systole"
            ),
            "",
        )
        sure += any(severity == "left out" for _, severity in doubts)
    assert sure >= n


# ---- the notebook


def test_parameters_cell_equals_dataclass(repo):
    inspected = papermill.inspect_notebook(str(repo / "nbs" / "prepare.ipynb"))
    meanings = field_meanings(PrepareConfig)
    cell = {n: (p["inferred_type_name"], eval(p["default"]), p["help"]) for n, p in inspected.items()}
    assert cell == {
        n: (type(getattr(PrepareConfig, n)).__name__, getattr(PrepareConfig, n), meanings[n])
        for n in PrepareConfig.__dataclass_fields__
    }


def test_notebook_prepares_the_samples(repo, tmp_path):
    "From another folder, and again: the second run prepares nobody. A wrong name stops in the first cell."
    params = dict(out=str(tmp_path / "store"), workers=1, n_frames=8, crop_px=32)
    for name in ("first", "second"):
        run_notebook(
            repo / "nbs" / "prepare.ipynb", tmp_path / f"{name}.ipynb", params, cwd=tmp_path, progress=False
        )
    nb = nbformat.read(tmp_path / "second.ipynb", 4)
    outs = [o for c in nb.cells if c.cell_type == "code" for o in c.outputs]
    text = "\n".join(
        o.get("text", "")
        + "".join(o.get("data", {}).get(k, "") for k in ("text/plain", "text/markdown", "text/html"))
        for o in outs
    )
    for words in (
        "64 of 64 participants",
        "40,000 participants",
        "10 slices",
        "is there already",
        "papermill nbs/train.ipynb out.ipynb -p data",
    ):
        assert words in text, words
    assert sum("image/png" in o.get("data", {}) for o in outs) == 2
    assert (tmp_path / "store" / "report.html").read_text().startswith("<!doctype html>") and len(
        open_store(tmp_path / "store").table
    ) == 64
    with pytest.raises(papermill.PapermillExecutionError, match="Did you mean `workers`"):
        papermill.execute_notebook(
            str(repo / "nbs" / "prepare.ipynb"),
            str(tmp_path / "wrong.ipynb"),
            parameters=dict(wrokers=1),
            cwd=str(tmp_path),
            progress_bar=False,
            kernel_name="python3",
        )


def test_notebook_prepares_three_participants(repo, tmp_path):
    "Fewer than the pictures of the worst recordings have places."
    folder = tmp_path / "cohort"
    samples = samples_dir()
    table = pd.read_csv(samples / "participants.tsv", sep="\t", dtype=str, keep_default_na=False).head(3)
    for cell in [*table.ecg, *table.cine]:
        (folder / cell).parent.mkdir(parents=True, exist_ok=True)
        stem = (samples / cell).name.removesuffix(".nii.gz").removesuffix(".hea")
        for source in (samples / cell).parent.glob(f"{stem}*"):
            shutil.copy(source, (folder / cell).parent)
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    shutil.copy(samples / "participants.json", folder)
    params = dict(data=str(folder), out=str(tmp_path / "store"), workers=1, n_frames=8, crop_px=32)
    run_notebook(repo / "nbs" / "prepare.ipynb", tmp_path / "out.ipynb", params, cwd=tmp_path, progress=False)
    assert len(open_store(tmp_path / "store").table) == 3
