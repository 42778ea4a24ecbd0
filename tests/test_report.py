"""Reports: the parser on sentences written by hand, the grammar read back, metrics against other programs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ptacl.report
from ptacl.base.core import BadInput
from ptacl.phantom.cohort import describe_columns, row_alone
from ptacl.report.authors import AUTHORS
from ptacl.report.clinical_metrics import clinical_scores
from ptacl.report.grammar import fill_slots, write_report
from ptacl.report.parser import parse_report
from ptacl.report.rows import written_row
from ptacl.report.schema import FINDINGS, Finding, Report, report_of
from ptacl.report.structured import STRUCTURED, check_structured
from ptacl.report.text_metrics import bleu, cider_d, meteor, rouge_l
from ptacl.report.truth import ectopic_beats, truth_report

HERE = Path(__file__).resolve().parent
SENTENCES = [
    line.split("\t") for line in (HERE / "report_sentences.tsv").read_text(encoding="utf-8").splitlines()[1:]
]
ITEM = re.compile(r"(\w+):(\w+?)(?::(\w+))?(?:@(\w+))?(?:#([\d.]+))?(?:\(([\d.]+),([\d.]+)\))?")


def expected(items: str) -> dict[str, tuple]:
    "What the table says of a sentence: name -> presence, severity, location, value, interval."
    out = {}
    for item in items.split():
        m = ITEM.fullmatch(item)
        assert m and m[1] in FINDINGS, item
        interval = (float(m[6]), float(m[7])) if m[6] else None
        severity = (m[3] or "").replace("_", " ")
        out[m[1]] = (m[2], severity, m[4] or "", float(m[5]) if m[5] else None, interval)
    return out


def read(text: str) -> dict[str, tuple]:
    "What the parser says of a text, in the same form."
    return {
        f.name: (f.presence, f.severity, f.location, f.value, f.interval)
        for f in parse_report(text).report.findings
        if f.presence != "not_mentioned"
    }


def test_there_are_enough_sentences():
    assert len({text for text, _ in SENTENCES}) >= 200
    mentioned = {name for _, items in SENTENCES for name in expected(items)}
    assert mentioned == set(FINDINGS)


@pytest.mark.parametrize("text, items", SENTENCES, ids=[text[:60] for text, _ in SENTENCES])
def test_sentences_written_by_hand(text, items):
    assert read(text) == expected(items)


# ---- the grammar read back

ILL = dict.fromkeys(("lbbb", "mi", "lvh", "dcm", "rvd", "af", "pvc", "tachycardia"), 0.25)
SEEN = (("ecg", "cine"), ("ecg",), ("cine",))


@pytest.fixture(scope="module")
def truths() -> list[Report]:
    "Truths of simulated people, half of them ill, some measurements with an interval or in doubt."
    rng = np.random.default_rng(3)
    out = []
    for k in range(300):
        truth = truth_report(row_alone(k, 11, ILL), int(rng.random() < 0.3))
        findings = []
        for f in truth.findings:
            chance = rng.random()
            if f.value is not None and chance < 0.3:
                half = float(rng.integers(2, 15))
                f = replace(f, interval=(max(f.value - half, 0.0), f.value + half))
            elif f.value is not None and chance < 0.4:
                f = Finding(f.name, "uncertain")
            findings.append(f)
        out.append(report_of(findings))
    return out


def test_round_trip_of_20000_texts(truths):
    "What the grammar states is what the parser reads, the held-out author's texts too."
    rng = np.random.default_rng(4)
    count = dict.fromkeys(AUTHORS, 0)
    for i in range(2860):
        truth = truths[i % len(truths)]
        recordings = SEEN[int(rng.choice(3, p=[0.6, 0.2, 0.2]))]
        for author in AUTHORS:
            draft = write_report(truth, author, rng, recordings)
            parse = parse_report(fill_slots(draft))
            assert parse.report.said == draft.stated.said, fill_slots(draft)
            assert not parse.unparsed and not parse.conflicts, fill_slots(draft)
            assert parse.report.findings == draft.stated.findings, fill_slots(draft)  # and where it stands
            count[author] += 1
    assert sum(count.values()) >= 20_000 and min(count.values()) >= 2_800


def test_texts_differ(truths):
    "Hardly any two texts of one author are the same, and no digit stands in a draft."
    rng = np.random.default_rng(5)
    drafts = [write_report(truth, "consultant", rng) for truth in truths]
    assert len({d.text for d in drafts}) > 0.95 * len(drafts)
    assert not any(re.search(r"\d", d.text) for d in drafts)


DENIALS = re.compile(r"\b(?:[Nn]o|[Tt]here is no) (?!value)(?=[a-zA-Z])")
WALLS = ("anterior", "inferior", "lateral")


def test_mutations_change_what_is_read(truths):
    "A dropped denial, another territory and another number are each seen."
    rng = np.random.default_rng(6)
    changed = dict(denial=0, territory=0, number=0)
    for truth in truths:
        for author in AUTHORS:
            text = fill_slots(write_report(truth, author, rng))
            said = parse_report(text).said
            mutants = {}
            if DENIALS.search(text):
                mutants["denial"] = DENIALS.sub("There is ", text, count=1)
            wall = next((w for w in WALLS if re.search(rf"\b{w}\b(?! leads)", text)), "")
            if wall:
                other = WALLS[WALLS.index(wall) - 1]
                mutants["territory"] = re.sub(rf"\b{wall}\b", other, text)
            numbers = [m for m in re.finditer(r"\b\d+\b", text) if m[0] != "95"]
            m = numbers[int(rng.integers(len(numbers)))] if numbers else None
            if m:
                mutants["number"] = f"{text[: m.start()]}{int(m[0]) + 7}{text[m.end() :]}"
            for kind, mutant in mutants.items():
                assert parse_report(mutant).said != said, (kind, text, mutant)
                changed[kind] += 1
    assert min(changed.values()) > 300, changed


def test_parser_knows_nothing_of_the_grammar():
    "Neither the parser nor what it stands on imports authors or grammar, and none holds a frame of theirs."
    folder = Path(ptacl.report.__file__).parent
    for name in ("schema", "lexicon", "degrees", "scope", "parser"):
        source = (folder / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(r"report\.(?:authors|grammar)", source), name
        frames = [x for a in AUTHORS.values() for x in (*a.present, *a.absent, *a.measured) if len(x) > 12]
        assert not [x for x in frames if x in source]


# ---- scores of words against other programs


@pytest.fixture(scope="module")
def scored() -> dict:
    "Texts, references and what other programs said of them."
    return json.loads((HERE / "report_scores.json").read_text(encoding="utf-8"))


def test_scores_equal_those_of_coco_and_nltk(scored):
    "The constants were made once by the programs that the file names."
    texts = [t.split() for t in scored["texts"]]
    refs = [[r.split() for r in of] for of in scored["refs"]]
    wanted = scored["scores"]
    assert bleu(texts, refs) == pytest.approx(wanted["bleu"], abs=1e-9)
    assert bleu(texts, refs)[3] == pytest.approx(wanted["sacrebleu4"], abs=1e-9)
    assert rouge_l(texts, refs) == pytest.approx(wanted["rouge"], abs=1e-12)
    assert cider_d(texts, refs) == pytest.approx(wanted["cider"], abs=1e-12)
    assert meteor(texts, refs) == pytest.approx(wanted["meteor"], abs=1e-9)


def test_bleu_is_sacrebleus(scored):
    "The same on the spot, where it is installed."
    sacrebleu = pytest.importorskip("sacrebleu")
    refs = [list(of) for of in zip(*scored["refs"], strict=True)]
    theirs = sacrebleu.corpus_bleu(scored["texts"], refs, tokenize="none", force=True, smooth_method="none")
    mine = bleu([t.split() for t in scored["texts"]], [[r.split() for r in of] for of in scored["refs"]])
    assert mine[3] == pytest.approx(theirs.score / 100, abs=1e-9)


def test_meteor_is_nltks_without_wordnet(scored):
    "The same on the spot, where it is installed."
    meteor_score = pytest.importorskip("nltk.translate.meteor_score").meteor_score

    class NoSynonyms:
        def synsets(self, word):
            return []

    texts = [t.split() for t in scored["texts"]]
    refs = [[r.split() for r in of] for of in scored["refs"]]
    theirs = [meteor_score(of, t, wordnet=NoSynonyms()) for t, of in zip(texts, refs, strict=True)]
    assert meteor(texts, refs) == pytest.approx(np.mean(theirs), abs=1e-9)


def test_random_and_shuffled_reports_are_at_chance(truths):
    "Reports of others say no more of a person than the share of the ill does; the right ones say all."
    texts = written_row(truths, seed=1)
    right = clinical_scores([parse_report(t) for t in texts], truths)
    shuffled = clinical_scores([parse_report(t) for t in texts[1:] + texts[:1]], truths)
    assert right["macro_f1"] == 1 and right["numbers_within"] == 1 and right["contradictions"] == 0
    share = np.mean([f.presence == "present" for t in truths for f in t.findings if not f.unit])
    assert shuffled["macro_f1"] < share + 0.1
    assert abs(shuffled["normal_bias"]) < 0.01  # it reports as many, of the wrong people


# ---- any text


def test_any_text_is_read_or_counted():
    "Words in any order make no error, and each sentence is read or counted as unread."
    words = (
        "no not LBBB infarct , . ; ( ) 58 % between and to 95 interval LVEF RV LV neither nor dilated"
        " possible ? - : = mildly normal size function with cannot be excluded \n ECG otherwise sinus"
        " tachycardia respectively mL/m2 s \u2013 \ud7ff µ < <lvef> a without inferior EF 0.5"
    )
    words = words.split(" ")
    rng = np.random.default_rng(7)
    for _ in range(2_000):
        text = " ".join(rng.choice(words, size=int(rng.integers(0, 30))))
        parse = parse_report(text)
        assert len(parse.unparsed) <= len(parse.report.sentences)
        assert all(f.value is None or np.isfinite(f.value) for f in parse.report.findings)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "piece",
    ["no ", "95 % interval ", "(", "9", "cannot really ", "mild to ", ". ", " ", "\n", "no any a an "],
)
def test_long_texts_take_no_time(piece):
    "What a model without end may write: a hundred thousand characters of the same."
    text = piece * (100_000 // len(piece))
    assert parse_report(text).report.mentioned == ()
    assert parse_report(f"LBBB.\n{text}").report["lbbb"].presence == "present"


def test_whitelist_of_structured_data():
    "No phenotype, condition or truth of the phantom's table may be told to a model."
    allowed = {c for field in STRUCTURED.values() for c in field.columns}
    assert allowed == {
        *("sex", "age", "height_cm", "height", "weight_kg", "weight", "heart_rate_bpm", "heart_rate_ecg_bpm")
    }
    refused = describe_columns().keys() - allowed
    assert {"lvef", "lvm_g", "lbbb", "mi", "truth_qrs_ms", "bsa_m2", "heart_rate_scan_bpm"} <= refused
    for column in [*refused, "split", "diagnosis", "truth_anything"]:
        with pytest.raises(BadInput, match="may be told to a model"):
            check_structured([column])


def test_ectopy_is_that_of_the_window():
    "The label of the strip is wrong for a part of the windows; the truth of the report follows the window."
    ill = {"pvc": 1.0, "af": 0.0}
    inside = [ectopic_beats(k, 3, 5.0, prevalence=ill) for k in range(150)]
    later = [ectopic_beats(k, 3, 5.0, start_s=5.0, prevalence=ill) for k in range(150)]
    assert 0.1 < np.mean(np.array(inside) == 0) < 0.3
    row = row_alone(int(np.argmin(inside)), 3, ill)
    assert row["pvc"] == 1 and truth_report(row, min(inside))["ectopy"].presence == "absent"
    assert max(np.add(inside, later)) <= 2
