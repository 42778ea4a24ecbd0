"""Maps of a writer and its use: values that are known beforehand, and what must be refused."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ptacl.base.config import TrainConfig
from ptacl.base.core import BadInput, sample_path
from ptacl.data.ecg import STANDARD_LEADS
from ptacl.models.ecg_encoder import ECGEncoder
from ptacl.models.system import random_batch
from ptacl.models.systems import build_system
from ptacl.phantom.cohort import simulate_participant
from ptacl.report.model_maps import smooth_map
from ptacl.report.numbers import NumberProbe
from ptacl.report.plan import REPORT_VIEWS
from ptacl.report.schema import FINDINGS
from ptacl.report.tokens import encoders_digest
from ptacl.report.writer import CONDITIONS, Writer, WriterSettings
from ptacl.report.writer_maps import SMOOTH_ECG, live_seen, recording_maps
from ptacl.use.report import SIMULATED_NOTICE, write_report_of
from ptacl.use.reporter import LinearNumber, Reporter, load_reporter, save_reporter

WORDS = ("<pad>", "<begin>", "<end>", "<unk>")
WORDS += tuple(f"<by:{a}>" for a in ("registrar", "consultant", "brief", "narrator", "structured", "teacher"))
SIZES = dict(ecg=(79, 128), cine=(25 + 5 * 16, 128))
LEAD = STANDARD_LEADS.index("V2")


@pytest.fixture(scope="module")
def reporter():
    "Encoders and a writer that never learned, and probes that always measure the middle of the range."
    from ptacl.report.lessons import TAUGHT

    torch.manual_seed(0)
    cfg = TrainConfig(embed_dim=8)
    systems = dict.fromkeys(("ecg", "cine"), (build_system(cfg).eval(), cfg))
    made_by = f"{encoders_digest(systems)}-5"
    words = (*WORDS[:4], *(f"<by:{a}>" for a in TAUGHT), "No", " LBBB", ".")
    writer = Writer(WriterSettings(words, SIZES, made_by, dim=32, heads=2, depth=1)).eval()
    with torch.no_grad():
        writer.finding_head.read_CD.normal_()
    numbers = {}
    for view, of in REPORT_VIEWS.items():
        width = 128 * len(of) + 10
        names = [n for n, k in FINDINGS.items() if k.is_measurement]
        models = {n: LinearNumber(np.zeros(width), sum(FINDINGS[n].limits) / 2) for n in names}
        numbers[view] = NumberProbe(
            view, made_by, models, dict.fromkeys(names, 3.0), dict.fromkeys(names, 9.0)
        )
    thresholds = {view: dict.fromkeys(CONDITIONS, 0.5) for view in REPORT_VIEWS}
    return Reporter(systems, writer, numbers, thresholds)


@pytest.fixture(scope="module")
def folder(reporter, tmp_path_factory):
    return save_reporter(reporter, tmp_path_factory.mktemp("writer"))


@pytest.fixture(scope="module")
def person():
    return simulate_participant(3, 5)


def test_a_map_is_the_slope_of_a_logit_that_is_known():
    """A head that reads one pooled feature, an encoder whose feature is a known sum of one lead: the map is
    that lead's samples, smoothed, and nothing elsewhere.
    """

    class Sum(torch.nn.Module):
        stride = 32

    class Known(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.ecg_encoder = Sum()
            self.register_buffer("ecg_mean_L", torch.full((12,), 0.25))

        def encode_ecg(self, signal_BLT, lead_ok_BL):
            one_B = signal_BLT[:, LEAD, 100:200].sum(1)
            pooled_BD = torch.stack([one_B, -one_B, torch.zeros_like(one_B), torch.zeros_like(one_B)], 1)
            return torch.zeros(len(one_B), 79, 4), pooled_BD

        def token_phase(self, batch):
            everywhere_BN = torch.zeros(len(batch.signal_BLT), 79)
            return everywhere_BN, everywhere_BN == 0

    writer = Writer(WriterSettings(WORDS, dict(ecg=(79, 4)), "known", dim=8, heads=2, depth=1)).eval()
    writer.norms["ecg"] = torch.nn.Identity()
    with torch.no_grad():
        for p in writer.finding_head.parameters():
            p.zero_()
        writer.finding_head.pooled.weight[CONDITIONS.index("af"), 0] = 2.0
    batch = random_batch(2)
    systems = dict(ecg=(Known(), None))
    heat = recording_maps(systems, writer, dict(ecg=batch), torch.zeros(2, 10), 5, ["af"])["ecg"]["af"]
    expected = torch.zeros(2, 12, 2500)
    expected[:, LEAD, 100:200] = 2.0 * (batch.signal_BLT[:, LEAD, 100:200] - 0.25)
    smooth = torch.stack([smooth_map(x, SMOOTH_ECG) for x in expected])
    np.testing.assert_allclose(heat, smooth.numpy(), atol=1e-4)
    one = {"ecg": type(batch)(*(x[:1] for x in batch))}
    taken = recording_maps(systems, writer, one, torch.zeros(1, 10), 5, ["af"], "occlusion")["ecg"]["af"][0]
    blocks = (2.0 * (batch.signal_BLT[0, LEAD] - 0.25)).view(50, 50).sum(1)
    np.testing.assert_allclose(taken[LEAD].reshape(50, 50).sum(1)[2:4], blocks[2:4], atol=1e-3)
    assert not taken[[k for k in range(12) if k != LEAD]].any()


def test_live_tokens_are_the_kept_ones(reporter, person):
    "A report of a recording sees what a store's tokens hold, whatever else is in the batch."
    batch = random_batch(2)
    told = torch.zeros(2, 10)
    both = live_seen(reporter.systems, reporter.writer, dict(ecg=batch, cine=batch), told, 5)
    one = type(batch)(*(x[:1] for x in batch))
    alone = live_seen(reporter.systems, reporter.writer, dict(ecg=one), told[:1], 5)
    assert torch.allclose(both.features["ecg"][:1], alone.features["ecg"], atol=1e-5)
    assert not alone.is_there["cine"].any() and not alone.pooled["cine"].any()


@pytest.mark.parametrize("given", [("ecg",), ("cine",), ("ecg", "cine")], ids="+".join)
def test_any_recording_alone_or_both(reporter, folder, person, given):
    "Maps are of the recordings that were given, and of findings that they can show."
    encoder = ECGEncoder.from_pretrained(folder / "encoder")
    made = encoder.report(**{m: getattr(person, m) for m in given})
    assert set(made.maps) == set(given)
    for modality, maps in made.maps.items():
        assert maps and all(modality in FINDINGS[n].seen_in for n in maps)
    said = set(made.findings.finding)
    assert {n for n in CONDITIONS if n in said} == {
        n for n in CONDITIONS if set(FINDINGS[n].seen_in) & set(given)
    }
    assert made.text.splitlines()[0] == SIMULATED_NOTICE
    assert SIMULATED_NOTICE in made.show().html


@pytest.mark.parametrize("path", ["ecg/sim-0001.hea", "ecg/sim-0001"])
def test_files_are_refused_by_a_writer_of_simulated_people(folder, path):
    encoder = ECGEncoder.from_pretrained(folder / "encoder")
    record = sample_path("ecg", "sim-0001.hea").parent.parent / path
    with pytest.raises(BadInput, match="give simulated_ok=True"):
        encoder.report(record, sex="F", age=61)
    made = encoder.report(record, sex="F", age=61, simulated_ok=True, maps="none")
    assert made.text.startswith(SIMULATED_NOTICE) and not made.maps


def test_an_array_may_be_of_a_patient(folder, person):
    encoder = ECGEncoder.from_pretrained(folder / "encoder")
    how = dict(fs=person.ecg.fs, lead_names=STANDARD_LEADS)
    with pytest.raises(BadInput, match="may be of a patient"):
        encoder.report(person.ecg.signal_LT, **how)


def test_a_writer_of_others_says_something_else(reporter, person):
    "Who learned from real people is not held back, and says what it is."
    other = replace(reporter, is_simulated=False)
    encoder = reporter.systems["ecg"][0].ecg_encoder
    made = encoder.report(sample_path("ecg", "sim-0001.hea"), writer=other, maps="none")
    assert made.text.splitlines()[0] == "Written by a model: no diagnosis."


def test_a_lead_that_is_off(folder, person):
    "Masked: its samples change nothing; said; and no light."
    encoder = ECGEncoder.from_pretrained(folder / "encoder")
    lead_ok_L = np.ones(12, dtype=bool)
    lead_ok_L[LEAD] = False
    off = replace(person.ecg, lead_ok_L=lead_ok_L)
    made = encoder.report(off)
    assert made.notes[0] == "ECG: V2 off or missing, not looked at." and made.notes[0] in made.text
    assert all(not heat[LEAD].any() for n, heat in made.maps["ecg"].items() if n in CONDITIONS)
    read = made.recordings
    noisy = read.batches["ecg"].signal_BLT.clone()
    noisy[:, LEAD] = torch.randn(noisy.shape[2])
    other = replace(read, batches=dict(ecg=read.batches["ecg"]._replace(signal_BLT=noisy)))
    again = write_report_of(load_reporter(folder), other, maps="none")
    np.testing.assert_allclose(again.findings.probability, made.findings.probability, atol=1e-6)


@pytest.mark.parametrize("column", ["lvef", "lbbb", "truth_qrs_ms", "lvm_g"])
def test_a_phenotype_is_no_input(folder, person, column):
    encoder = ECGEncoder.from_pretrained(folder / "encoder")
    with pytest.raises(BadInput, match="may be told to a model"):
        encoder.report(person.ecg, told={"age": 61, column: 1})


def test_an_implausible_age_is_missing_and_said(folder, person):
    encoder = ECGEncoder.from_pretrained(folder / "encoder")
    made = encoder.report(person.ecg, age=7, maps="none")
    assert "Told: age of 7 years is implausible, taken as missing." in made.notes
    plain = encoder.report(person.ecg, maps="none")
    assert plain.findings.equals(made.findings) and not any("Told" in n for n in plain.notes)


def test_parts_of_others_are_refused(reporter, folder, person, tmp_path):
    "Another encoder, another run's writer, another run's numbers."
    torch.manual_seed(1)
    cfg = TrainConfig(embed_dim=8)
    other = dict.fromkeys(("ecg", "cine"), (build_system(cfg).eval(), cfg))
    with pytest.raises(BadInput, match="is not the writer's"):
        other["ecg"][0].ecg_encoder.report(person.ecg, writer=folder)
    with pytest.raises(BadInput, match="writer: belongs to the encoders"):
        replace(reporter, systems=other)
    saved = save_reporter(reporter, tmp_path / "w")
    about = json.loads((saved / "numbers" / "config.json").read_text())
    about["views"]["ecg"]["made_by"] = "another-5"
    (saved / "numbers" / "config.json").write_text(json.dumps(about))
    with pytest.raises(BadInput, match="numbers of ecg: belongs to the encoders another-5"):
        load_reporter(saved)


def test_help_answers_at_once(repo):
    "Neither torch nor pandas is imported to print what can be asked."
    code = "import sys; from ptacl.use.arguments import report_parser; report_parser().format_help(); "
    code += "print(sorted({'torch', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_short_import_brings_the_method(repo):
    code = "from ptacl.use import ECGEncoder; print(ECGEncoder.report.__name__, ECGEncoder.predict.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repo, timeout=120)
    assert done.stdout == "report predict\n", done.stderr
