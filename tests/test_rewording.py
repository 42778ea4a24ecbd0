"""A language model that rewords is believed where it says the same: faithful ones, and ones that are not."""

import re

import numpy as np
import pytest

from ptacl.base.core import BadInput
from ptacl.phantom.cohort import row_alone
from ptacl.report.authors import AUTHORS
from ptacl.report.grammar import fill_slots, write_report
from ptacl.report.rewording import causal_reworder, refused_because, reword_reports
from ptacl.report.truth import truth_report

ILL = dict(lbbb=0.3, mi=0.6, lvh=0.3, dcm=0.2, rvd=0.2, af=0.2, pvc=0.2, tachycardia=0.1)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    "Drafts, and the same truths as their author writes them again, as far as he says the same."
    rng = np.random.default_rng(5)
    found = []
    names = list(AUTHORS)
    for k in range(60):
        truth = truth_report(row_alone(k, 13, ILL), 0)
        author = names[k % len(names)]  # the same words are drawn otherwise the second time
        drafts = [write_report(truth, author, rng) for _ in range(2)]
        if drafts[0].stated.said == drafts[1].stated.said:
            found.append(tuple(fill_slots(d) for d in drafts))
    return found


def test_a_faithful_rewording_is_believed(pairs):
    "Sentences in another order, and an author's other words where he states the same."
    drafts = [
        "Sinus rhythm. No LBBB. LVEF 55 %. Old anterior infarct. LV mass 140 g.",
        "No evidence of infarction.\nAtrial fibrillation. Dilated left ventricle, LVEF 30 %.",
    ]
    turned = reword_reports(drafts, lambda t: " ".join(reversed(re.findall(r"[^.]+\.", t))))
    assert turned.believed == 1.0 and turned.texts != tuple(drafts)
    other = dict(pairs)
    turned = reword_reports(list(other), other.get)
    assert len(other) >= 10 and turned.believed >= 0.9, turned.refused
    assert {r.split(":")[0] for r in turned.refused} <= {"", "other numbers"}


@pytest.mark.parametrize(
    "draft, wrong, changed",
    [
        ("Sinus rhythm. No evidence of infarction.", "Sinus rhythm. Evidence of infarction.", "infarct"),
        ("No LBBB. LVEF 55 %.", "LBBB. LVEF 55 %.", "lbbb"),
        ("Old anterior infarct.", "Old inferior infarct.", "infarct"),
        ("Old anterior infarct.", "Old infarct.", "infarct"),
        ("LVEF 55 %. No LBBB.", "LVEF 45 %. No LBBB.", "lvef"),
        ("LVEF 55 %. No LBBB.", "LVEF 55 %.", "lbbb"),
        ("Possible anterior infarct.", "Anterior infarct.", "infarct"),
    ],
)
def test_what_changes_a_finding_is_refused(draft, wrong, changed):
    turned = reword_reports([draft], lambda _: wrong)
    assert turned.texts == (draft,) and turned.believed == 0.0
    assert turned.refused[0].startswith("other findings") and changed in turned.refused[0]


@pytest.mark.parametrize(
    "added", ["No IMT.", "Seen again in 2019.", "The patient has diabetes.", "Here is the report:"]
)
def test_what_adds_anything_is_refused(added):
    draft = "Sinus rhythm. No infarct. LVEF 55 %."
    assert refused_because(draft, f"{draft} {added}") in ("a sentence that cannot be read", "other numbers")
    assert refused_because(f"{draft} {added}", f"{added} {draft}") == ""  # what stood in the draft may stay


def test_mutants_of_many_drafts_are_refused():
    "A number, a wall, or a sentence less: none of them passes."
    n = 0
    rng = np.random.default_rng(6)
    for k in range(40):
        draft = fill_slots(write_report(truth_report(row_alone(k, 13, ILL), 0), list(AUTHORS)[k % 6], rng))
        walls = re.sub(r"\banterior\b", "inferior", draft)
        numbers = re.sub(r"\d+", lambda m: str(int(m[0]) + 7), draft, count=1)
        for mutant in {walls, numbers} - {draft}:
            n += 1
            assert refused_because(draft, mutant), (draft, mutant)
    assert n >= 20


@pytest.mark.filterwarnings("ignore")
def test_a_model_from_a_folder(tmp_path):
    "The smallest causal model, saved and read as any other; what it babbles is refused."
    transformers = pytest.importorskip("transformers", reason="needs pip install 'ptacl[language]'")
    tokenizers = pytest.importorskip("tokenizers", reason="needs pip install 'ptacl[language]'")
    words = {w: i for i, w in enumerate(["<end>", "sinus", "rhythm", "liver", "large", "."])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>", pad_token="<end>")
    fast.save_pretrained(tmp_path)
    size = dict(vocab_size=len(words), n_positions=512, n_embd=16, n_layer=1, n_head=2)
    ends = dict(bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, **ends)).save_pretrained(tmp_path)
    reworder = causal_reworder(tmp_path, longest=8)
    draft = "Sinus rhythm. No infarct."
    assert reworder(draft) == reworder(draft)  # the most likely words
    turned = reword_reports([draft], reworder)
    assert turned.texts == (draft,) and not turned.refused[0].startswith("the reworder failed")
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(BadInput, match="holds no causal language model"):
        causal_reworder(tmp_path)


def test_without_the_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(BadInput, match="is not installed") as e:
        causal_reworder(tmp_path)
    assert "ptacl[language]" in e.value.remedy
