"""Reports: the parser on sentences written by hand, the grammar read back, metrics against other programs."""

import re
from pathlib import Path

import pytest

from ptacl.report.parser import parse_report
from ptacl.report.schema import FINDINGS

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
