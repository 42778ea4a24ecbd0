"A trained encoder used from outside: the command, bad files, bounded memory, what is printed."

import configparser
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from ptacl.base.core import sample_path
from ptacl.data.beats import find_beats
from ptacl.data.ecg import STANDARD_LEADS, standardise_ecg
from ptacl.data.ecg_files import read_ecg
from ptacl.models.ecg_encoder import ECGEncoder
from ptacl.use.command import embed_command
from ptacl.use.embed import embed, left_out
from ptacl.use.phenotypes import PhenotypeProbe, predict

SECRET = "Millerovska"  # a name that must not appear anywhere


@pytest.fixture(scope="module")
def encoder(small_run):
    return ECGEncoder.from_pretrained(small_run)


def command(repo, *args):
    "Run the console script that settings.ini names, in a process of its own."
    config = configparser.ConfigParser(delimiters=["="], interpolation=None)
    config.read(repo / "settings.ini", encoding="utf-8")
    name, _, target = config["DEFAULT"]["console_scripts"].split()[0].partition("=")
    module, _, function = target.partition(":")
    assert name == "ptacl-embed"
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; from {module} import {function}; sys.exit({function}())",
            *map(str, args),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command_embeds_a_folder(repo, small_run, encoder, tmp_path):
    """All records of a folder, under their paths in it, equal to what Python gives; what cannot be read is
    listed; nobody's name is printed or written.
    """
    folder = tmp_path / "ecgs"
    (folder / "below").mkdir(parents=True)
    for k in range(1, 5):
        for suffix in ("hea", "dat"):
            os.link(
                p := sample_path("ecg", f"sim-{k:04}.{suffix}"), folder / ("below" if k == 4 else "") / p.name
            )
    (folder / "bad.xml").write_text(
        f"<RestingECG><PatientDemographics><PatientLastName>{SECRET}"
        "</PatientLastName></PatientDemographics></RestingECG>"
    )
    (folder / "cut.hea").write_text((folder / "sim-0001.hea").read_text().replace("sim-0001", "cut"))
    (folder / "notes.txt").write_text(SECRET)
    done = command(repo, folder, "--encoder", small_run, "--batch-size", "3", "--out", tmp_path / "z.parquet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 of 6 ECGs embedded into ") and "2 left out" in done.stdout
    table = pd.read_parquet(tmp_path / "z.parquet")
    assert table.index.tolist() == ["below/sim-0004.hea", "sim-0001.hea", "sim-0002.hea", "sim-0003.hea"]
    ours = encoder.embed([folder / name for name in table.index])
    np.testing.assert_allclose(table.to_numpy(), ours.to_numpy(), atol=1e-5)
    bad = pd.read_csv(tmp_path / "z.left_out.tsv", sep="\t")
    assert (
        bad.record.tolist() == ["bad.xml", "cut.hea"]
        and (bad.remedy.str.len() > 10).all()
        and "cut.dat" in bad.source[1] + bad.problem[1]
    )
    assert SECRET not in done.stdout + done.stderr + (tmp_path / "z.left_out.tsv").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ecgs", "z.left_out.tsv", "z.parquet"]


def test_command_refuses(small_run, tmp_path, capsys, monkeypatch):
    """Nothing readable is exit code 1, wrong arguments are 2, and no output appears; without pyarrow it says
    so before any work.
    """
    (tmp_path / "bad.xml").write_text("<RestingECG/>")
    asked = [str(tmp_path), "--encoder", str(small_run), "--out"]
    assert embed_command([*asked, str(tmp_path / "z.tsv")]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("0 of 1 ECGs embedded; 1 left out, see ")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(
        ECGEncoder,
        "from_pretrained",
        lambda folder: pytest.fail("the encoder was read before the output was looked at"),
    )
    assert embed_command([*asked, str(tmp_path / "z.parquet")]) == 2
    assert (
        "Parquet needs pyarrow, which is not installed. pip install 'ptacl[parquet]'"
        in capsys.readouterr().err
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.xml", "z.left_out.tsv"]


def test_one_class_two_ways(encoder):
    "The methods are the functions of the module."
    assert ECGEncoder.embed is embed and ECGEncoder.predict is predict
    from ptacl.models.ecg_encoder import ECGEncoder as network

    assert network is ECGEncoder


def test_memory_is_bounded(encoder):
    "When a batch goes through, no more recordings have been read than it and those of the threads hold."
    read = []
    seen = []
    ecg = read_ecg(sample_path("ecg", "sim-0001.hea"))

    def each():
        for k in range(20):
            read.append(k)
            yield ecg

    hook = encoder.register_forward_pre_hook(lambda module, inputs: seen.append((len(read), len(inputs[0]))))
    try:
        table = encoder.embed(each(), batch_size=3, workers=1)
        alone = seen.copy()
        seen.clear()
        read.clear()
        many = encoder.embed(each(), batch_size=3, workers=2)
    finally:
        hook.remove()
    assert alone == [(3, 3), (6, 3), (9, 3), (12, 3), (15, 3), (18, 3), (20, 2)]
    # two batches go through, one waits to be taken, one has been read
    assert sorted(n for _, n in seen) == [2, *[3] * 6]
    assert all(n_read <= 3 * (k + 4) for k, (n_read, _) in enumerate(sorted(seen)))
    assert len(table) == 20 and np.ptp(table.to_numpy(), axis=0).max() < 1e-5
    np.testing.assert_allclose(many, table, atol=1e-5)


def test_every_kind_of_bad_source(encoder, tmp_path):
    "Each is named with a remedy; the good ones beside them are unharmed."
    good = sample_path("ecg", "sim-0001.hea")
    signal = read_ecg(good).signal_LT
    (tmp_path / "empty.dcm").write_bytes(b"")
    (tmp_path / "folder.xml").mkdir()
    bad = [
        tmp_path / "none.hea",
        tmp_path / "empty.dcm",
        tmp_path / "folder.xml",
        signal[:5],
        signal * np.nan,
        signal * 0,
        signal[:, :100],
        None,
    ]
    table = encoder.embed([good, *bad, good], errors="skip", fs=500.0, lead_names=STANDARD_LEADS)
    np.testing.assert_array_equal(table.iloc[0], table.iloc[1])
    found = left_out(table)
    assert (
        len(found) == len(bad) and (found.problem.str.len() > 5).all() and (found.remedy.str.len() > 10).all()
    )
    assert found.record.tolist() == [str(x) for x in bad[:3]] + ["4", "5", "6", "7", "8"]
    for x in bad:
        with pytest.raises(ValueError):
            encoder.embed([x], fs=500.0, lead_names=STANDARD_LEADS)


def test_leads_off_and_other_units(encoder):
    "A missing lead is hidden, not taken for a flat one; an array in another lead order is the same ECG."
    signal = read_ecg(sample_path("ecg", "sim-0002.hea")).signal_LT
    whole = encoder.embed(signal, fs=500.0, lead_names=STANDARD_LEADS)
    flat = signal.copy()
    flat[8] = 0
    without = np.delete(signal, 8, axis=0)
    names = [n for n in STANDARD_LEADS if n != "V3"]
    a = encoder.embed(flat, fs=500.0, lead_names=STANDARD_LEADS)
    b = encoder.embed(without, fs=500.0, lead_names=names)
    np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), atol=1e-6)
    assert np.abs(a.to_numpy() - whole.to_numpy()).max() > 1e-3
    np.testing.assert_allclose(
        encoder.embed(signal[::-1], fs=500.0, lead_names=STANDARD_LEADS[::-1]).to_numpy(),
        whole.to_numpy(),
        atol=1e-5,
    )


def test_a_half_probe_is_noticed(encoder, small_run):
    "A probe whose weights are missing is an error, not a prediction."
    probe = PhenotypeProbe(
        ("lvef",), ("%",), np.zeros((1, encoder.dim)), np.array([55.0]), np.array([3.0]), (50,), 0.9
    )
    folder = probe.save_pretrained(small_run)
    record = sample_path("ecg", "sim-0001.hea")
    said = encoder.predict(record).iloc[0].to_dict()
    assert np.isnan(said.pop("probe_r2")) and said.pop("seconds") == encoder.preparation["window_s"]
    assert said == dict(
        phenotype="lvef", value=55.0, low=52.0, high=58.0, unit="%", probe_n=50, leads=12, doubts=""
    )
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="no readable weights"):
        encoder.predict(record)


def test_real_recordings(encoder, real_data):
    """Public recordings of several sources and formats: unit vectors, and two-lead Holter records are left
    out with the reason.
    """
    files = (
        sorted((real_data / "ecg_wfdb").glob("*.hea"))[:4]
        + sorted((real_data / "ecg_other").rglob("*.xml"))
        + sorted((real_data / "ecg_annotated").rglob("*.hea"))[:1]
    )
    table = encoder.embed(files, which="embedding", windows="mean", errors="skip")
    assert len(table) >= 4 and np.abs(np.linalg.norm(table.to_numpy(), axis=1) - 1).max() < 1e-5
    assert (
        len(table) + len(left_out(table)) == len(files)
        and left_out(table).problem.str.contains("standard leads").all()
    )


def test_sample_encoder_on_a_real_ecg(repo):
    """The README's lines right after the install: an encoder of the repository, an ECG of a dependency. Its
    rate is read to within the interval; nothing in the folder is large, and the card says what it is not for.
    """
    from pydicom.data import get_testdata_file

    record = get_testdata_file("waveform_ecg.dcm", download=False)
    encoder = ECGEncoder.from_pretrained("sample")
    assert encoder.embed(record).shape == (1, encoder.dim)
    table = encoder.predict(record).set_index("phenotype")
    assert table.unit[["lvedv_ml", "lvef", "lvm_g", "heart_rate_ecg_bpm"]].tolist() == ["mL", "%", "g", "bpm"]
    assert (table.low < table.value).all() and (table.value < table.high).all()
    rate = find_beats(standardise_ecg(read_ecg(record), 500.0, 50.0)).heart_rate_bpm
    assert table.low.heart_rate_ecg_bpm < rate < table.high.heart_rate_ecg_bpm
    files = [p for p in (repo / "data_samples" / "encoder").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 3e6
    card = (repo / "data_samples" / "encoder" / "README.md").read_text(encoding="utf-8")
    assert "never use it for patients" in card and "simulated" in card
