"""Other people's reports: some twenty made files of each form, read, and what is wrong with some refused."""

import gzip
import json
from pathlib import Path

import pytest

from ptacl.base.core import BadInput
from ptacl.report.captions import REPORT_SOURCES, read_reports
from ptacl.report.report_table import REPORT_TABLE

N = 20
GERMAN = "sinusrhythmus linkstyp unauffälliges ekg"
ENGLISH = "sinus rhythm. left axis deviation. otherwise normal ecg"
SWEDISH = "sinusrytm. normalt ekg"


def make_ptbxl(folder: Path) -> Path:
    "Twenty lines of PTB-XL's table with records; two have no report, one is older than 89."
    lines = ["ecg_id,patient_id,age,sex,height,weight,report,scp_codes,strat_fold,filename_lr,filename_hr"]
    (folder / "records500").mkdir(parents=True)
    for k in range(1, N + 1):
        text = "" if k in (5, 6) else (GERMAN, ENGLISH, SWEDISH)[k % 3]
        age = 300 if k == 7 else 50 + k
        codes = "\"{'NORM': 100.0, 'SR': 0.0}\""
        fold = (k - 1) % 10 + 1
        lines.append(f"{k},{k}.0,{age},{k % 2},,70,{text},{codes},{fold},records100/{k},records500/{k}")
        (folder / f"records500/{k}.hea").write_text("")
    (folder / "ptbxl_database.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def openi_xml(k: int, findings: str, images: int = 1) -> str:
    "One report of Open-I."
    parents = "".join(f'<parentImage id="CXR{k}_IM-{i}"><panel/></parentImage>' for i in range(images))
    return (
        f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{k}"/><MedlineCitation><Article>'
        f'<Abstract><AbstractText Label="INDICATION">XXXX</AbstractText>'
        f'<AbstractText Label="FINDINGS">{findings}</AbstractText></Abstract></Article></MedlineCitation>'
        f"{parents}</eCitation>"
    )


def make_openi(folder: Path) -> Path:
    "Twenty reports with one or two images; one is redacted, one names no image."
    (folder / "ecgen-radiology").mkdir(parents=True)
    (folder / "png").mkdir()
    for k in range(1, N + 1):
        images = 0 if k == 4 else 1 + k % 2
        text = "XXXX. XXXX" if k == 3 else f"The heart is normal in size. Study {k} of XXXX."
        (folder / f"ecgen-radiology/{k}.xml").write_text(openi_xml(k, text, images), encoding="utf-8")
        for i in range(images):
            (folder / f"png/CXR{k}_IM-{i}.png").write_bytes(b"png")
    return folder


def make_mimic(folder: Path, packed: bool = False) -> Path:
    "Twenty studies of ten people; one text is missing, one is redacted."
    lines = ["dicom_id,study_id,subject_id,split"]
    for k in range(N):
        person = 10_000_000 + k // 2
        split = ("train", "train", "train", "validate", "test")[(k // 2) % 5]
        place = folder / f"files/p10/p{person}/s{500 + k}"
        place.mkdir(parents=True)
        lines.append(f"d{k},{500 + k},{person},{split}")
        (place / f"d{k}.jpg").write_bytes(b"jpg")
        text = (
            "FINDINGS: ___"
            if k == 2
            else f" FINDINGS:\n Lungs are clear in study {k}.\n IMPRESSION: No change."
        )
        if k != 1:
            place.with_suffix(".txt").write_text(text, encoding="utf-8")
    table = "\n".join(lines).encode()
    name = "mimic-cxr-2.0.0-split.csv"
    (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(table) if packed else table)
    return folder


def make_coco(folder: Path) -> Path:
    "Twenty images with two captions each; one has none."
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2017").mkdir()
    images = [dict(id=k, file_name=f"{k:012d}.jpg") for k in range(N)]
    notes = [
        dict(id=10 * k + i, image_id=k, caption=f"A man and {k} horses in the field")
        for k in range(1, N)
        for i in range(2)
    ]
    for image in images:
        (folder / "train2017" / image["file_name"]).write_bytes(b"jpg")
    data = dict(info={}, licenses=[], images=images, annotations=notes)
    (folder / "annotations/captions_train2017.json").write_text(json.dumps(data))
    return folder


MAKERS = {"ptbxl": make_ptbxl, "openi": make_openi, "mimic-cxr": make_mimic, "coco": make_coco}
LEFT_OUT = {
    "ptbxl": {"5": "no report", "6": "no report"},
    "openi": {"CXR3": "only redactions", "CXR4": "names no image"},
    "mimic-cxr": {"501": "no report", "502": "only redactions"},
    "coco": {"0": "no report"},
}


@pytest.mark.parametrize("kind", list(MAKERS))
def test_made_set_is_read(kind, tmp_path):
    table = read_reports(MAKERS[kind](tmp_path / "set"), kind)
    assert list(table.rows) == list(REPORT_TABLE)
    assert dict(zip(table.left_out.id, table.left_out.problem, strict=True)) == LEFT_OUT[kind]
    assert len(table.rows) == N - len(LEFT_OUT[kind]) and table.rows.id.is_unique
    assert set(table.rows.split) <= {"train", "val", "test"}
    for files in table.rows.recordings:
        assert files and all(Path(f + ".hea" * (kind == "ptbxl")).is_file() for f in files)
    assert all(table.rows.text.str.len() > 10) and not table.rows.structured.isna().any()


def test_there_is_a_made_set_of_each_source():
    assert set(MAKERS) == set(REPORT_SOURCES)


def test_languages_splits_and_people_of_ptbxl(tmp_path):
    rows = read_reports(make_ptbxl(tmp_path / "set"), "ptbxl").rows.set_index("id")
    assert rows.language.value_counts().to_dict() == {"de": 5, "en": 7, "sv": 6}
    assert (rows.language["3"], rows.language["1"], rows.language["2"]) == ("de", "en", "sv")
    assert (rows.split["9"], rows.split["10"], rows.split["11"]) == ("val", "test", "train")
    assert rows.structured["7"].age is None and "implausible" in rows.structured["7"].notes[0]
    assert (rows.structured["1"].sex, rows.structured["2"].sex) == ("F", "M")
    assert rows["labels"]["1"] == {"NORM": 100.0, "SR": 0.0}


def test_undeclared_language_is_an_error(tmp_path):
    folder = make_ptbxl(tmp_path / "set")
    path = folder / "ptbxl_database.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(SWEDISH, "ekg 12"), encoding="utf-8")
    with pytest.raises(BadInput, match="language of 6 reports is neither declared nor detected") as e:
        read_reports(folder, "ptbxl")
    assert "Declare it" in e.value.remedy and "2, 8" in e.value.problem
    assert set(read_reports(folder, "ptbxl", language="de").rows.language) == {"de"}


def test_packed_table_of_mimic_says_the_same(tmp_path):
    plain = read_reports(make_mimic(tmp_path / "plain"), "mimic-cxr").rows
    packed = read_reports(make_mimic(tmp_path / "packed", packed=True), "mimic-cxr").rows
    assert plain[["id", "text", "split"]].equals(packed[["id", "text", "split"]])
    assert plain.text[0] == "Lungs are clear in study 0.\nNo change."


EXTERNAL = '<!DOCTYPE eCitation [<!ENTITY x SYSTEM "file:///etc/hostname">]><eCitation>&x;</eCitation>'
BOMB = '<!DOCTYPE RestingECG [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]><eCitation>&b;</eCitation>'


@pytest.mark.parametrize(
    "xml, problem",
    [
        (EXTERNAL, "declares a document type or entities"),
        (BOMB, "declares a document type or entities"),
        (openi_xml(9, "The heart")[:-8], "not well-formed XML at line 1"),
        (openi_xml(9, "The heart").replace("CXR9_IM", "CXR77_IM"), "names the image 'CXR77_IM-0'"),
        (openi_xml(8, "The heart"), "CXR8 stands there twice"),
        ("", "not well-formed XML"),
    ],
)
def test_bad_xml_names_file_and_remedy(xml, problem, tmp_path):
    folder = make_openi(tmp_path / "set")
    (folder / "ecgen-radiology/9.xml").write_text(xml, encoding="utf-8")
    with pytest.raises(BadInput) as e:
        read_reports(folder, "openi")
    assert problem in e.value.problem and e.value.source.endswith("9.xml") and e.value.remedy


@pytest.mark.parametrize("kind", ["ptbxl", "mimic-cxr", "coco"])
def test_missing_recording_names_study_and_remedy(kind, tmp_path):
    folder = MAKERS[kind](tmp_path / "set")
    gone = {"ptbxl": "records500/8.hea", "mimic-cxr": "files/p10/p10000004/s508/d8.jpg"}
    (folder / gone.get(kind, "train2017/000000000008.jpg")).unlink()
    with pytest.raises(BadInput, match=r"(ecg_id 8|study 508|image 8) (has no file|names the image)") as e:
        read_reports(folder, kind)
    assert e.value.remedy
