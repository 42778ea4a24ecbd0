"""Writers of files in UK Biobank's forms, with every oddity that is known of them. Everything personal in
them is planted, so that a test can look for it.

`ecg_xml` writes field 20205, `CineStudy` fields 20208 and 20209, `phenotype_table` the tables. Nothing here
is imported by the library.
"""

import io
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from ptacl.data.cine import Cine
from ptacl.data.ecg import ECG, STANDARD_LEADS

# What must never be seen again. UIDs hold the scanner's serial number and times, so they count as
# identifiers.
PERSON = dict(
    name="Zwetschgenmus",
    first="Hildegund",
    birth="19510412",
    pid="PID77665544",
    uid="1.3.12.2.1107.5.2.18.99988877",
    accession="ACC5533",
    operator="Oberschwester",
    institution="Klinikum Nirgendwo",
    comment="wohnt Hauptstrasse",
    private="geheimer Zusatz",
)
SECRETS = (*PERSON.values(), "1951-04-12", "12.04.1951", "12 Apr 1951")

SPELLINGS = {
    "device": STANDARD_LEADS,
    "upper": tuple(n.upper() for n in STANDARD_LEADS),
    "lower": tuple(n.lower() for n in STANDARD_LEADS),
    "prefixed": tuple(f"Lead {n}" for n in STANDARD_LEADS),
    "german": ("I", "II", "III", "aVR", "aVL", "aVF", "C1", "C2", "C3", "C4", "C5", "C6"),
}

MEASUREMENTS = dict(
    VentricularRate=("BPM", 61),
    PQInterval=("ms", 160),
    PDuration=("ms", 104),
    QRSDuration=("ms", 92),
    QTInterval=("ms", 404),
    QTCInterval=("ms", 407),
    RRInterval=("ms", 983),
    PPInterval=("ms", 980),
    PAxis=("degrees", 44),
    RAxis=("degrees", 12),
    TAxis=("degrees", 31),
    POnset=("ms", 258),
    POffset=("ms", 362),
    QOnset=("ms", 418),
    QOffset=("ms", 510),
    TOffset=("ms", 822),
)


def waveforms(signal_LT, step_uv, names, wrap):
    "One WaveformData a lead, commas first or last in a line, blanks around."
    out = []
    for name, x in zip(names, np.rint(signal_LT * 1000 / step_uv).astype(int), strict=True):
        rows = [",".join(map(str, r)) for r in np.array_split(x, max(1, len(x) // wrap))]
        out.append(f'<WaveformData lead="{name}">\n\t ' + " ,\n\t".join(rows) + "\n  </WaveformData>")
    return "\n".join(out)


def ecg_xml(
    path,
    ecg: ECG,
    r_times_ms=(),
    *,
    spelling="device",
    nested=False,
    step_uv=5.0,
    empty=(),
    median=True,
    order=range(12),
    drop=(),
    doctype="",
    encoding="latin-1",
    change=lambda text: text,
    person=True,
    wrap=13,
) -> Path:
    """An ECG as field 20205 has it. `empty`: measurements without a value; `change`: a last word on the whole
    text.
    """
    names = [SPELLINGS[spelling][i] for i in order]
    signal = ecg.signal_LT[list(order)]

    def head(n):
        return (
            f'<SampleRate units="Hz">{ecg.fs:g}</SampleRate>\n'
            f"<ChannelSampleCountTotal>{n}</ChannelSampleCountTotal>\n"
            f'<Resolution units="uVperLsb">{step_uv:g}</Resolution>\n'
        )

    beats = "\n".join(
        f'<Time units="ms">{t:.6f}</Time>\n<BeatClass>{"dominant" if k % 5 else "ventricular"}</BeatClass>'
        for k, t in enumerate(r_times_ms, 1)
    )
    keep = [k for k in range(len(names)) if k not in drop]
    strip = (
        f"<StripData>\n<NumberOfLeads>{len(keep)}</NumberOfLeads>\n{head(signal.shape[1])}"
        + waveforms(signal[keep], step_uv, [names[k] for k in keep], wrap)
        + f"\n<ArrhythmiaResults>{beats}</ArrhythmiaResults>\n</StripData>"
    )
    if nested:
        strip = f"<Strip>{strip}</Strip>"
    values = "\n".join(
        f'<{k} units="{u}">{"" if k in empty else v}</{k}>' for k, (u, v) in MEASUREMENTS.items()
    )
    if median:
        values += (
            (
                f"<MedianSamples><NumberOfLeads>12</NumberOfLeads>{head(600)}"
                "<FirstValid>20</FirstValid><LastValid>580</LastValid>"
            )
            + waveforms(signal[:, 100:700], step_uv, names, wrap)
            + "</MedianSamples>"
        )
    patient = (
        (
            f"<PatientInfo><PID>{PERSON['pid']}</PID><Name><FamilyName>{PERSON['name']}</FamilyName>"
            f'<GivenName>{PERSON["first"]}</GivenName></Name><Age units="years">65</Age>'
            "<BirthDateTime><Day>12</Day><Month>4</Month><Year>1951</Year><Text>1951-04-12</Text></BirthDateTime>"
            f"<Gender>FEMALE</Gender><Comment>Fr\xe4ulein, {PERSON['comment']}</Comment></PatientInfo>"
        )
        if person
        else ""
    )
    said = (
        (
            f"<Interpretation><Diagnosis><DiagnosisText>Sinus rhythm, seen by {PERSON['operator']}"
            "</DiagnosisText><DiagnosisText>Normal ECG</DiagnosisText></Diagnosis></Interpretation>"
        )
        if person
        else ""
    )
    full = (
        "<FullDisclosure><NumberOfChannels>2</NumberOfChannels><SampleRate "
        'units="Hz">500</SampleRate><LeadOrder>I,II</LeadOrder><FullDisclosureData>1,2,\n3,4</FullDisclosureData><SampleCountTotal>96000</SampleCountTotal></FullDisclosure>'
    )
    text = (
        f'<?xml version="1.0" encoding="ISO-8859-1"?>\n{doctype}<CardiologyXML>\n'
        "<ObservationType>RestECG</ObservationType>\n<DeviceType>CASE</DeviceType>\n"
        "<DeviceVersion>CardioSoft V6.73</DeviceVersion>\n"
        f"{patient}\n{said}\n<RestingECGMeasurements>\n{values}\n</RestingECGMeasurements>\n{strip}\n{full}\n</CardiologyXML>\n"
    )
    path = Path(path)
    path.write_bytes(change(text).encode(encoding))
    return path


@dataclass
class Slice:
    """One slice of a study: what `CineStudy.slice` is given, and its images as pydicom datasets that a test
    may change.
    """

    name: str  # SeriesDescription
    images: list = field(default_factory=list)


class CineStudy:
    "A study of cine slices as pydicom datasets; `write` makes the zip, or `folder` the files."

    def __init__(self, across=(0.0, 1.0, 0.0), down=(0.0, 0.0, -1.0), origin=(12.0, -80.0, 95.0)):
        self.across, self.down, self.origin = (np.array(v, float) for v in (across, down, origin))
        self.normal = np.cross(self.across, self.down)
        self.slices = []
        self.manifest = "csv"
        self.extra = {}

    def slice(
        self,
        name: str,
        frames_FHW,
        depth_mm: float,
        rr_ms: float,
        pixel_mm=(1.8, 1.8),
        *,
        series=None,
        start=(0.0, 0.0),
        thickness=6.0,
        tilt=None,
        n_frames=None,
    ) -> Slice:
        """Add a slice. `depth_mm` along the normal; `start`: the first pixel's place in the plane, (row,
        column), mm; `tilt`: other (across, down).
        """
        across, down = tilt or (self.across, self.down)
        n = len(frames_FHW)
        series = len(self.slices) + 1 if series is None else series
        out = Slice(name)
        for k, picture in enumerate(np.asarray(frames_FHW)):
            d = pydicom.Dataset()
            d.file_meta = pydicom.dataset.FileMetaDataset()
            d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            d.SOPClassUID = MRImageStorage
            d.SOPInstanceUID = f"{PERSON['uid']}.{series}.{k + 1}"
            d.PatientName = f"{PERSON['name']}^{PERSON['first']}"
            d.PatientID = PERSON["pid"]
            d.PatientBirthDate = PERSON["birth"]
            d.PatientSex = "F"
            d.InstitutionName = PERSON["institution"]
            d.OperatorsName = PERSON["operator"]
            d.AccessionNumber = PERSON["accession"]
            d.ImageComments = PERSON["comment"]
            d.private_block(0x0029, "SECRET", create=True).add_new(1, "LO", PERSON["private"])
            d.StudyInstanceUID = f"{PERSON['uid']}.0"
            d.SeriesInstanceUID = f"{PERSON['uid']}.1.{series}"
            d.SeriesDescription = name
            d.SeriesNumber = series
            d.InstanceNumber = k + 1
            d.Modality = "MR"
            place = self.origin + depth_mm * self.normal + start[0] * self.down + start[1] * self.across
            d.ImagePositionPatient = [f"{v:.6f}" for v in place]
            d.ImageOrientationPatient = [f"{v:.6f}" for v in (*across, *down)]
            # runs the wrong way
            d.PixelSpacing = list(pixel_mm)
            d.SliceThickness = thickness
            d.SliceLocation = f"{-depth_mm:.4f}"
            d.TriggerTime = f"{k * rr_ms / n:.6f}"
            d.NominalInterval = int(rr_ms)
            d.CardiacNumberOfImages = n if n_frames is None else n_frames
            d.RepetitionTime = 34
            d.Rows, d.Columns = picture.shape
            d.BitsAllocated = 16
            d.BitsStored = 12
            d.HighBit = 11
            d.PixelRepresentation = 0
            d.SamplesPerPixel = 1
            d.PhotometricInterpretation = "MONOCHROME2"
            d.PixelData = np.rint(picture).astype("<u2").tobytes()
            out.images.append(d)
        self.slices.append(out)
        return out

    def of(self, name: str) -> Slice:
        "The slice with this name."
        return next(s for s in self.slices if s.name == name)

    def files(self) -> dict[str, bytes]:
        "Name -> bytes, in an order that says nothing; with a manifest whose dates hold a comma."
        files = {}
        rows = []
        for s in self.slices:
            for k, d in enumerate(s.images):
                out = io.BytesIO()
                d.save_as(out, enforce_file_format=True)
                name = f"{d.SOPInstanceUID}-{zlib.crc32(str((s.name, k)).encode()) % 997}.{len(files)}.dcm"
                files[name] = out.getvalue()
                rows.append(f"{name},{d.get('PatientID', '')},Feb 03, 2016,{s.name},{d.SeriesInstanceUID},MR")
        files = dict(sorted(files.items(), key=lambda kv: kv[1][-200:] + kv[0].encode()))
        if self.manifest:
            files[f"manifest.{self.manifest}"] = (
                "filename,patientid,date,series discription,seriesid,modality\r\n"
                + "\r\n".join(rows)
                + "\r\n"
            ).encode()
        return files | self.extra

    def write(self, path) -> Path:
        "The zip."
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            for name, raw in self.files().items():
                z.writestr(name, raw)
        return Path(path)

    def folder(self, path) -> Path:
        "The files in a folder below another."
        (Path(path) / "a" / "b").mkdir(parents=True)
        for name, raw in self.files().items():
            (Path(path) / "a" / "b" / name).write_bytes(raw)
        return Path(path)


DEPTHS = (10.0, 30.0, 0.0, 20.0, 40.0)  # of b1 .. b5, mm: numbers do not follow space


def short_axis(
    cine: Cine,
    names=tuple(f"CINE_segmented_SAX_b{k}" for k in range(1, 6)),
    depths=DEPTHS,
    rr=(900.0, 860.0, 880.0, 850.0, 910.0),
) -> CineStudy:
    "A sample's slice, darker from slice to slice, as a stack."
    study = CineStudy()
    for k, (name, depth, r) in enumerate(zip(names, depths, rr, strict=False)):
        study.slice(
            name, cine.frames_FZHW[:, 0] * (1 - 0.1 * k), depth, r, cine.spacing_mm[1:], thickness=6.0
        )
    return study


def phenotype_table(path, rows: dict[str, dict[tuple[int, int, int], object]], style="dash", sep=",") -> Path:
    """Participants -> (field, instance, array) -> cell, with headers `24103-2.0` (dash), `p24103_i2` (rap) or
    `f.24103.2.0` (r).
    """
    columns = sorted({c for cells in rows.values() for c in cells})
    arrays = {c[0] for c in columns if c[2]}
    name = {
        "dash": lambda f, i, a: f"{f}-{i}.{a}",
        "r": lambda f, i, a: f"f.{f}.{i}.{a}",
        "rap": lambda f, i, a: f"p{f}_i{i}" + (f"_a{a}" if f in arrays else ""),
    }[style]
    lines = [sep.join([{"r": "f.eid"}.get(style, "eid"), *(name(*c) for c in columns)])]
    lines += [sep.join([who, *(str(cells.get(c, "")) for c in columns)]) for who, cells in rows.items()]
    Path(path).write_text("\n".join(lines) + "\n")
    return Path(path)
