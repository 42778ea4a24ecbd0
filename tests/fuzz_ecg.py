"""Mutated ECG files and tables: right values or one `BadInput`, in bounded time and memory.

    python tests/fuzz_ecg.py -n 12000 --seed 1        # a count of outcomes, and what is wrong

A mutation takes a sound file of a kind (WFDB with and without checksums, in format 16 and 212 and in
segments; MUSE; CardioSoft as UK Biobank has it; DICOM; participants.tsv, participants.json, a table of
phenotypes) and changes bytes, words, numbers or lines of it. Outcomes:

- same: reads, with the values of the sound file (leads that are flagged are not compared);
- error: one `BadInput` that names the file;
- other: reads with other values than the sound file. Each has a reason here (`why_other`): what was changed
  states the amplitude, the rate or a sample, and nothing in the file contradicts it;
- fault: anything else: another exception, over 10 s, a message that quotes planted text. (A word of a header
  may be quoted, up to 20 characters: a channel's name has to be.)
"""

import argparse
import json
import re
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ptacl.base.core import BadInput
from ptacl.data.cohort import read_cohort
from ptacl.data.ecg import ECG, STANDARD_LEADS
from ptacl.data.ecg_files import read_ecg
from ptacl.data.phenotypes import read_phenotypes
from ptacl.data.table import read_descriptions, read_participants
from ptacl.data.toys import cardiosoft_xml, dicom_ecg, muse_xml, toy_ecg
from ptacl.data.ukbb import read_ukbb_ecg

PLANTED = "Zwetschgenmus"  # stands where a name would stand; no message may hold it
SECONDS = 10  # a mutation may take
WORDS = (
    b"", b"0", b"-1", b"nan", b"inf", b"1e400", b"-5", b"x", b"9" * 400, b"1_0", b"\xb2", b"2147483648",
    b"0.5", b"1e-300", b"-0", b"~", b"../x", b"/etc/hostname", b"\0", b"999999999999", b"3.5", b"16x0",
    b"212", b"56", b"16:99999", b"16+99999999", b"uV", b"/V", b"true", b"null", b"{}", b"[" * 5000,
)  # fmt: skip


@dataclass
class Kind:
    "A sound file and how it is read."

    name: str
    files: dict[str, bytes]  # name -> content
    target: str  # what the reader is given
    read: Callable[[Path], object]
    binary: bool = False  # whether numbers in it are not text
    truth: object = field(default=None)


def toy_wfdb(fmt: str, sums: bool) -> dict[str, bytes]:
    "The toy as a record in one file."
    steps_TL = np.rint(toy_ecg(10.0, 500.0).T * 200).astype(np.int64)
    if fmt == "16":
        raw = steps_TL.astype("<i2").tobytes()
    else:
        pairs = (steps_TL.ravel() & 0xFFF).reshape(-1, 2)
        three = [pairs[:, 0] & 255, pairs[:, 0] >> 8 | pairs[:, 1] >> 8 << 4, pairs[:, 1] & 255]
        raw = np.stack(three, 1).astype(np.uint8).tobytes()
    lines = ["rec 12 500 5000"]
    for name, x in zip(STANDARD_LEADS, steps_TL.T, strict=True):
        total = int(x.sum()) & 0xFFFF if sums else 0
        lines.append(f"rec.dat {fmt} 200(0)/mV 12 0 {x[0]} {total} 0 {name}")
    return {"rec.hea": ("\n".join(lines) + f"\n# {PLANTED}\n").encode(), "rec.dat": raw}


def toy_segments() -> dict[str, bytes]:
    "The toy in two segments."
    steps_TL = np.rint(toy_ecg(10.0, 500.0).T * 200).astype("<i2")
    out = {"rec.hea": b"rec/2 12 500 5000\na 2500\nb 2500\n"}
    for name, x in (("a", steps_TL[:2500]), ("b", steps_TL[2500:])):
        lines = [f"{name}.dat 16 200/mV 16 0 0 0 0 {lead}" for lead in STANDARD_LEADS]
        out |= {
            f"{name}.hea": "\n".join([f"{name} 12 500 2500", *lines]).encode(),
            f"{name}.dat": x.tobytes(),
        }
    return out


def kinds() -> list[Kind]:
    "One sound file of each kind."
    toy_LT = toy_ecg(10.0, 500.0)
    with tempfile.TemporaryDirectory() as d:
        dicom = dicom_ecg(toy_LT, Path(d) / "a.dcm").read_bytes().replace(b"Nobody", PLANTED[:6].encode())
    person = f"<PatientInfo><Name><FamilyName>{PLANTED}</FamilyName></Name></PatientInfo>"
    measured = (
        '<RestingECGMeasurements><VentricularRate units="BPM">72</VentricularRate>'
        '<QOnset units="ms">432</QOnset>'
        f"<MedianSamples>{cardiosoft_xml(toy_LT[:, :600])[len('<StripData>') : -len('</StripData>')]}"
        '<FirstValid units="Sample">0</FirstValid></MedianSamples></RestingECGMeasurements>'
    )
    ukbb = f"<CardiologyXML>{person}{measured}{cardiosoft_xml(toy_LT)}</CardiologyXML>"
    muse = muse_xml(toy_LT).replace("<RestingECG>", f"<RestingECG>{person}")
    table = "participant_id\tecg\tcine\tlvef\tsex\n" + "".join(
        f"p{k}\tecg/p{k}\tcine/p{k}.nii.gz\t{50 + k}\t{k % 2}\n" for k in range(6)
    )
    names = {f"{m}/p{k}.{e}": b"" for k in range(6) for m, e in (("ecg", "hea"), ("cine", "nii.gz"))}
    about = json.dumps({"lvef": {"description": "ejection fraction", "unit": "%"}, "sex": {"unit": ""}})
    fields = "eid,31-0.0,24103-2.0,12653-2.0\n" + "".join(f"100000{k},1,{60 + k},Sinus\n" for k in range(6))
    cohort = {"participants.tsv": table.encode(), "participants.json": about.encode(), **names}
    return [
        Kind("wfdb with checksums", toy_wfdb("16", True), "rec.hea", read_ecg),
        Kind("wfdb", toy_wfdb("16", False), "rec.hea", read_ecg),
        Kind("wfdb 212", toy_wfdb("212", True), "rec.hea", read_ecg),
        Kind("wfdb segments", toy_segments(), "rec.hea", read_ecg),
        Kind("muse", {"a.xml": muse.encode()}, "a.xml", read_ecg),
        Kind("cardiosoft", {"a.xml": ukbb.encode()}, "a.xml", lambda p: read_ukbb_ecg(p)[0]),
        Kind("dicom", {"a.dcm": dicom}, "a.dcm", read_ecg, binary=True),
        Kind("participants.tsv", cohort, "participants.tsv", lambda p: read_participants(p)[0]),
        Kind("cohort", cohort, "participants.tsv", lambda p: read_cohort(p.parent).table),
        Kind("participants.json", cohort, "participants.json", read_descriptions),
        Kind("phenotypes", {"f.csv": fields.encode()}, "f.csv", lambda p: read_phenotypes(p, 2, "sex=31")[0]),
    ]


# ---- mutations


def change_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    "A few bytes anywhere."
    raw = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        raw[rng.integers(len(raw))] = rng.integers(256)
    return bytes(raw)


def change_head(data: bytes, rng: np.random.Generator) -> bytes:
    "A few bytes of the first thousand, where headers are."
    return change_bytes(data[:1000], rng) + data[1000:]


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    "The end is missing."
    return data[: rng.integers(len(data))]


def repeat(data: bytes, rng: np.random.Generator) -> bytes:
    "A piece is there twice, or a piece is missing."
    a, b = sorted(rng.integers(len(data), size=2))
    return data[:b] + data[a:] if rng.random() < 0.5 else data[:a] + data[min(b, a + 200) :]


def change_word(data: bytes, rng: np.random.Generator) -> bytes:
    "A word or a number becomes another, near the start more often than not."
    head = data if rng.random() < 0.3 else data[:3000]
    words = list(re.finditer(rb"[^\s<>,\t/()=\"]+", head))
    if not words:
        return data
    word = words[rng.integers(len(words))]
    new = WORDS[rng.integers(len(WORDS))]
    if rng.random() < 0.3 and re.fullmatch(rb"-?\d+(\.\d+)?", word[0]):
        new = str(float(word[0]) * float(rng.choice([-1, 0, 0.1, 10, 1000, 1.5]))).encode()
    return data[: word.start()] + new + data[word.end() :]


def change_value(data: bytes, rng: np.random.Generator) -> bytes:
    "The text between two tags, or one tag, in XML."
    tags = list(re.finditer(rb">([^<]{0,40})<", data))
    if not tags:
        return change_word(data, rng)
    tag = tags[rng.integers(len(tags))]
    new = WORDS[rng.integers(len(WORDS))]
    return data[: tag.start(1)] + new + data[tag.end(1) :]


def change_line(data: bytes, rng: np.random.Generator) -> bytes:
    "A line is missing, twice there, or somewhere else."
    lines = data.split(b"\n")
    k, j = rng.integers(len(lines), size=2)
    line = lines.pop(k)
    if rng.random() < 0.6:
        lines.insert(j, line)
    if rng.random() < 0.4:
        lines.insert(j, line)
    return b"\n".join(lines)


def long_cell(data: bytes, rng: np.random.Generator) -> bytes:
    "A word of thousands of characters."
    at = rng.integers(len(data))
    return (
        data[:at]
        + (PLANTED.encode() if rng.random() < 0.3 else b"x") * int(rng.choice([300, 5000]))
        + data[at:]
    )


MUTATIONS = (
    change_bytes,
    change_head,
    cut,
    repeat,
    change_word,
    change_word,
    change_value,
    change_line,
    long_cell,
)


def mutated(kind: Kind, rng: np.random.Generator) -> tuple[str, str, dict[str, bytes]]:
    "Name of the changed file, of the mutation, and all files."
    texts = [n for n in kind.files if not n.endswith((".gz",)) and kind.files[n]]
    if kind.target not in ("rec.hea",):
        texts = [kind.target]
    name = texts[rng.integers(len(texts))] if rng.random() < 0.4 else kind.target
    how = MUTATIONS[rng.integers(len(MUTATIONS))]
    return name, how.__name__, kind.files | {name: how(kind.files[name], rng)}


# ---- outcomes


class TooSlow(BaseException):
    "Over SECONDS; no reader may take it for a fault of the file."


def same_values(found: object, truth: object) -> bool:
    "Whether what was read is what the sound file holds."
    if isinstance(truth, ECG):
        ok = found.lead_ok_L & truth.lead_ok_L
        same = found.fs == truth.fs and found.signal_LT.shape == truth.signal_LT.shape
        return bool(same and np.allclose(found.signal_LT[ok], truth.signal_LT[ok], atol=0.01))
    if isinstance(truth, pd.DataFrame):
        shared = [c for c in truth if c in found]
        both = found.merge(truth, on="participant_id", how="left", indicator=True)
        return (
            len(shared) == truth.shape[1]
            and bool((both._merge == "both").all())
            and found[shared].equals(
                truth[shared][truth.participant_id.isin(found.participant_id)].reset_index(drop=True)
            )
        )
    return found == truth


def why_other(kind: Kind, name: str, found: object, truth: object) -> str:
    'Why nothing in the file contradicts what was read; "" = no reason is known.'
    if not isinstance(truth, ECG):
        return "a cell, a line or a name of a table is what it says"
    if found.fs != truth.fs:
        return "another rate is stated"
    if found.signal_LT.shape != truth.signal_LT.shape:
        return "another length is stated, and the samples are there"
    if np.allclose(np.sort(found.signal_LT), np.sort(truth.signal_LT), atol=0.01):
        return "the same samples in another order, which a sum does not see"
    if kind.name == "wfdb with checksums" and name.endswith(".dat"):
        return ""
    ok = found.lead_ok_L & truth.lead_ok_L
    differs_LT = np.abs(found.signal_LT - truth.signal_LT)[ok] > 0.01
    if differs_LT.mean() < 0.02:
        return "a few samples are others, without a checksum over them"
    return "gain, baseline, unit, name, offset or samples of a lead are stated otherwise"


def outcome(kind: Kind, name: str, files: dict[str, bytes], folder: Path) -> tuple[str, str]:
    "What becomes of a mutation, and a word about it."
    for n, data in files.items():
        (folder / n).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / n).is_file() or data != kind.files[n] or n == name:
            (folder / n).write_bytes(data)

    def alarm(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found = kind.read(folder / kind.target)
        said = " ".join(str(w.message) for w in warned)
    except BadInput as e:
        said = str(e).replace(str(folder), "")
        if PLANTED in re.sub(r"'[^']{0,24}'", "", said):
            return "fault", f"quotes planted text: {said[:300]}"
        return ("error", "") if len(said) < 1500 else ("fault", f"a message of {len(said)} characters")
    except (Exception, TooSlow) as e:
        tb = e.__traceback__
        while tb.tb_next:
            tb = tb.tb_next
        where = f"{Path(tb.tb_frame.f_code.co_filename).name}:{tb.tb_lineno}"
        return "fault", f"{type(e).__name__} at {where}: {str(e)[:120]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        (folder / name).write_bytes(kind.files[name])
    if PLANTED in said:
        return "fault", f"warns with planted text: {said[:200]}"
    if same_values(found, kind.truth):
        return "same", ""
    why = why_other(kind, name, found, kind.truth)
    return ("other", why) if why else ("fault", "other values under a checksum")


def run(n: int, seed: int) -> Iterator[tuple[str, str, str, str, int]]:
    "Kind, mutation, outcome, word and number of each of n mutations."
    everything = kinds()
    root = Path(tempfile.mkdtemp())
    try:
        for k, kind in enumerate(everything):
            (root / str(k)).mkdir()
            for name, data in kind.files.items():
                (root / str(k) / name).parent.mkdir(parents=True, exist_ok=True)
                (root / str(k) / name).write_bytes(data)
            kind.truth = kind.read(root / str(k) / kind.target)
        for i in range(n):
            kind = everything[i % len(everything)]
            rng = np.random.default_rng([seed, i])
            name, how, files = mutated(kind, rng)
            what, word = outcome(kind, name, files, root / str(i % len(everything)))
            yield kind.name, f"{how} {name}", what, word, i
    finally:
        shutil.rmtree(root)


def main(argv: list[str] | None = None) -> int:
    "Run mutations and count what becomes of them."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-n", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    counts = Counter()
    reasons = Counter()
    faults = []
    for kind, how, what, word, i in run(asked.n, asked.seed):
        counts[kind, what] += 1
        if what == "other":
            reasons[kind, word] += 1
        if what == "fault":
            faults.append((i, kind, how, word))
    print(pd.Series(counts).unstack(fill_value=0).to_string())
    print("\nother values, and why:")
    for (kind, word), n in sorted(reasons.items()):
        print(f"{n:6d}  {kind}: {word}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{asked.n} mutations, seed {asked.seed}, {len(faults)} faults, peak {peak:.2f} GiB")
    for row in faults[:40]:
        print(*row, sep=" | ")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
