"""Other people's reports, learned from: twenty made studies of each form by heart and read back, published
networks against a forward pass of their own, and what is wrong with pictures.
"""

import csv
import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import wfdb
from PIL import Image
from safetensors.torch import save_file
from test_report_tables import MAKERS, make_coco, make_mimic, make_openi, make_ptbxl

from ptacl.base.core import BadInput
from ptacl.report.image_networks import read_image_net
from ptacl.report.pictures import load_picture_encoder
from ptacl.report.report_study import ReportConfig
from ptacl.report.text_cases import (
    TEXT_KINDS,
    open_ecg_encoder,
    read_text_cases,
    readable_cases,
    text_vocabulary,
)
from ptacl.report.text_study import learn_texts
from ptacl.report.writer import load_writer
from ptacl.studies.launch import run_notebook

N = 20
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def in_words(k: int) -> str:
    "A number without digits, which no vocabulary has."
    return " ".join(WORDS[int(c)] for c in f"{k:02d}")


def paint(path: Path, k: int, grey: bool) -> None:
    "A picture that no other is like."
    rng = np.random.default_rng(k)
    small = rng.integers(0, 256, (4, 4) if grey else (4, 4, 3), np.uint8)
    Image.fromarray(small).resize((72, 64 + k), Image.Resampling.NEAREST).save(path)


def record(path: Path, k: int) -> None:
    "Ten seconds of twelve leads that beat as no others do."
    rng = np.random.default_rng(k)
    time_T = np.arange(5000) / 500
    phase_T = 2 * np.pi * (0.8 + 0.06 * k) * time_T
    beats_T = np.exp(8 * (np.cos(phase_T) - 1))
    signal = beats_T[:, None] * rng.normal(0, 0.8, 12) + 0.01 * rng.normal(size=(5000, 12))
    names = ["I", "II", "III", "aVR", "aVL", "aVF", *(f"V{j}" for j in range(1, 7))]
    signal[:, 2] = signal[:, 1] - signal[:, 0]
    signal[:, 3:6] = np.stack(
        [
            -(signal[:, 0] + signal[:, 1]) / 2,
            signal[:, 0] - signal[:, 1] / 2,
            signal[:, 1] - signal[:, 0] / 2,
        ],
        1,
    )
    wfdb.wrsamp(
        path.name,
        500,
        ["mV"] * 12,
        names,
        p_signal=signal,
        fmt=["16"] * 12,
        adc_gain=[1000.0] * 12,
        baseline=[0] * 12,
        write_dir=str(path.parent),
    )


def fill_ptbxl(folder: Path) -> Path:
    "Records that can be read, and a text that belongs to one alone."
    make_ptbxl(folder)
    path = folder / "ptbxl_database.csv"
    with open(path, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        record(folder / row["filename_hr"], int(row["ecg_id"]))
        if row["report"]:
            row["report"] += f", {in_words(int(row['ecg_id']))}"
    with open(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def fill_openi(folder: Path) -> Path:
    "Grey pictures, and texts without digits."
    make_openi(folder)
    for k, path in enumerate(sorted(folder.rglob("*.png"))):
        paint(path, k, grey=True)
    for path in folder.rglob("*.xml"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f"Study {path.stem} of", f"Study {in_words(int(path.stem))} of"))
    return folder


def fill_mimic(folder: Path) -> Path:
    "Grey JPEG files, and texts without digits in two sections."
    make_mimic(folder)
    for k, path in enumerate(sorted(folder.rglob("*.jpg"))):
        paint(path, k, grey=True)
    for path in folder.rglob("*.txt"):
        k = int(path.stem[1:]) - 500
        text = path.read_text(encoding="utf-8").replace(f"study {k}.", f"study {in_words(k)}.")
        path.write_text(text, encoding="utf-8")
    return folder


def fill_coco(folder: Path) -> Path:
    "Colour pictures with two captions each, of which either is right."
    make_coco(folder)
    for k, path in enumerate(sorted(folder.rglob("*.jpg"))):
        paint(path, k, grey=False)
    path = folder / "annotations/captions_train2017.json"
    data = json.loads(path.read_text())
    for note in data["annotations"]:
        beginning = ("A man and", "In a field are a man and")[note["id"] % 2]
        note["caption"] = f"{beginning} horses, {in_words(note['image_id'])} of them."
    path.write_text(json.dumps(data))
    return folder


EPOCHS = dict(ptbxl=200)
FILLERS = dict(ptbxl=fill_ptbxl, openi=fill_openi, mimic=fill_mimic, coco=fill_coco)
SMALL = dict(image_px=64, batch_size=8, lr=3e-3, even_weight=0.0, rows="transformer", beam=2, longest=40)


@pytest.mark.parametrize("kind", list(TEXT_KINDS))
def test_twenty_studies_are_learned_by_heart_and_read_back(kind, tmp_path):
    "Loss below 0.1 nats a word, and every text that was learned from is written again, letter by letter."
    folder = FILLERS[kind](tmp_path / "set")
    encoder = str(open_ecg_encoder().save_pretrained(tmp_path / "encoder")) if kind == "ptbxl" else ""
    cfg = ReportConfig(data=str(folder), kind=kind, encoder=encoder, epochs=EPOCHS.get(kind, 150), **SMALL)
    done = learn_texts(cfg, tmp_path / "out", dict(dim=64, depth=1, dropout=0.0))
    n_train = len(done.cases.rows("train"))
    assert n_train >= 8 and done.log.train_words.iloc[-1] < 0.1
    scores = done.scores.loc["transformer, without a plan; by heart"]
    assert (scores.n, scores.exact, scores.cut) == (n_train, 1, 0)
    heart = done.texts[done.texts.part == "by heart"].set_index("id")
    texts = dict(zip(done.cases.ids, done.cases.texts, strict=True))
    assert all(text in texts[i] for i, text in heart.text.items())
    if kind != "coco":  # the made file of captions has a training part alone
        assert "the text of the nearest study" in done.scores.index
        assert scores.bleu_4 == 1 and done.lacks["numbers"] == 0
    writer = load_writer(tmp_path / f"out/writer-{kind}-transformer-0")
    assert writer.finding_head is None and not writer.settings.is_planned
    assert set(writer.settings.sizes) == {TEXT_KINDS[kind][1]}
    if kind != "ptbxl":
        assert load_picture_encoder(tmp_path / f"out/pictures-{kind}-transformer-0").name == "small"


def test_there_is_a_made_set_of_each_kind():
    assert set(FILLERS) == set(TEXT_KINDS)
    assert {source for source, _ in TEXT_KINDS.values()} == set(MAKERS)


def test_parts_are_those_of_the_tables(tmp_path):
    "Nobody who is learned from is held out: PTB-XL by its folds, MIMIC-CXR by person."
    people = read_text_cases(fill_mimic(tmp_path / "mimic"), "mimic")
    of = {}
    for i, files in enumerate(people.files):
        of.setdefault(Path(files[0]).parts[-3], set()).add(people.splits[i])
    assert all(len(parts) == 1 for parts in of.values())
    assert {len(people.rows(p)) > 0 for p in ("train", "val", "test")} == {True}


def test_a_number_and_a_rare_word_are_unknown_and_counted(tmp_path):
    folder = fill_openi(tmp_path / "set")
    path = folder / "ecgen-radiology/1.xml"
    path.write_text(path.read_text().replace("normal in size", "17 cm wide"), encoding="utf-8")
    cfg = ReportConfig(data=str(folder), kind="openi", epochs=1, least=2, **SMALL)
    done = learn_texts(cfg, sizes=dict(dim=32))
    assert not done.texts.text.str.contains(r"\d|unk").any() and done.lacks["unknown"] > 0
    words = text_vocabulary(done.cases, done.cases.rows("train"), 2).words
    assert " cm" not in words and " normal" in words


def test_by_papermill(repo, tmp_path):
    "The same by the command, which ends before the part about simulated people."
    folder = fill_openi(tmp_path / "set")
    params = dict(data=str(folder), kind="openi", epochs=2, out=str(tmp_path / "out")) | SMALL
    params |= dict(rows="sat,shuffled", longest=10)
    executed = run_notebook(repo / "nbs/report.ipynb", tmp_path / "o.ipynb", params, progress=False)
    cells = nbformat.read(executed, 4).cells
    said = "".join(
        o.get("text", "") + o.get("data", {}).get("text/plain", "")
        for c in cells
        for o in c.get("outputs", [])
    )
    for words in (
        "held out: ",
        "Show, Attend and Tell; held out",
        "reports shuffled; by heart",
        "only redactions",
    ):
        assert words in said, words
    assert "nats a word by heart" in said and "macro_f1" not in said
    kept = {p.name for p in (tmp_path / "out").glob("*.tsv")}
    assert kept == {f"openi_{name}.tsv" for name in ("log", "texts", "left_out", "scores")}


def _norm(x, w, name):
    "Batch normalisation by the kept means."
    return F.batch_norm(x, *(w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))


def _stem(x, w, conv, norm):
    "The first convolution and its pooling."
    return F.max_pool2d(F.relu(_norm(F.conv2d(x, w[conv], None, 2, 3), w, norm)), 3, 2, 1)


def resnet_pass(x, w, counts, n_steps):
    "A residual network by functions alone."
    x = _stem(x, w, "conv1.weight", "bn1")
    for stage, count in enumerate(counts, 1):
        for k in range(count):
            name = f"layer{stage}.{k}"
            stride = 2 if stage > 1 and k == 0 else 1
            y = x
            for j in range(1, n_steps + 1):
                kernel = w[f"{name}.conv{j}.weight"]
                strided = j == (1 if n_steps == 2 else 2)
                y = F.conv2d(y, kernel, None, stride if strided else 1, kernel.shape[-1] // 2)
                y = _norm(y, w, f"{name}.bn{j}")
                y = F.relu(y) if j < n_steps else y
            if f"{name}.downsample.0.weight" in w:
                x = _norm(
                    F.conv2d(x, w[f"{name}.downsample.0.weight"], None, stride), w, f"{name}.downsample.1"
                )
            x = F.relu(x + y)
    return x


def densenet_pass(x, w):
    "DenseNet-121 by functions alone."
    x = _stem(x, w, "features.conv0.weight", "features.norm0")
    for block, count in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, count + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            y = F.conv2d(F.relu(_norm(x, w, f"{name}.norm1")), w[f"{name}.conv1.weight"])
            y = F.conv2d(F.relu(_norm(y, w, f"{name}.norm2")), w[f"{name}.conv2.weight"], padding=1)
            x = torch.cat([x, y], 1)
        if block < 4:
            name = f"features.transition{block}"
            x = F.avg_pool2d(F.conv2d(F.relu(_norm(x, w, f"{name}.norm")), w[f"{name}.conv.weight"]), 2)
    return F.relu(_norm(x, w, "features.norm5"))


def resnet_weights(counts, n_steps, g):
    "A state dict under torchvision's names, made from the papers' tables."
    w = {"conv1.weight": torch.randn(64, 3, 7, 7, generator=g) * 0.1} | norm_weights("bn1", 64, g)
    n_in = 64
    for stage, count in enumerate(counts):
        wide = 64 * 2**stage
        n_out = wide * (1 if n_steps == 2 else 4)
        for k in range(count):
            name = f"layer{stage + 1}.{k}"
            shapes = [(wide, n_in, 3), (wide, wide, 3)]
            if n_steps == 3:
                shapes = [(wide, n_in, 1), (wide, wide, 3), (n_out, wide, 1)]
            for j, (b, a, kernel) in enumerate(shapes, 1):
                w[f"{name}.conv{j}.weight"] = conv_weight(b, a, kernel, g)
                w |= norm_weights(f"{name}.bn{j}", b, g)
            if n_in != n_out or (stage and not k):
                w[f"{name}.downsample.0.weight"] = conv_weight(n_out, n_in, 1, g)
                w |= norm_weights(f"{name}.downsample.1", n_out, g)
            n_in = n_out
    return w | {"fc.weight": torch.zeros(1000, n_in), "fc.bias": torch.zeros(1000)}


def conv_weight(n_out, n_in, kernel, g):
    "A convolution that keeps the size of its input about."
    return torch.randn(n_out, n_in, kernel, kernel, generator=g) * (2 / (n_in * kernel**2)) ** 0.5


def norm_weights(name, n, g):
    "What a batch normalisation keeps, without its counter."
    draw = {k: torch.rand(n, generator=g) + 0.5 for k in ("weight", "running_var")}
    draw |= {k: 0.1 * torch.randn(n, generator=g) for k in ("bias", "running_mean")}
    return {f"{name}.{k}": v for k, v in draw.items()}


def densenet_weights(g):
    "DenseNet-121's state dict in the dialect of the first files (`norm.1` for `norm1`)."
    w = {"features.conv0.weight": torch.randn(64, 3, 7, 7, generator=g) * 0.1}
    w |= norm_weights("features.norm0", 64, g)
    n = 64
    for block, count in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, count + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            w |= norm_weights(f"{name}.norm.1", n, g) | norm_weights(f"{name}.norm.2", 128, g)
            w[f"{name}.conv.1.weight"] = conv_weight(128, n, 1, g)
            w[f"{name}.conv.2.weight"] = conv_weight(32, 128, 3, g)
            n += 32
        if block < 4:
            w |= norm_weights(f"features.transition{block}.norm", n, g)
            w[f"features.transition{block}.conv.weight"] = conv_weight(n // 2, n, 1, g)
            n //= 2
    w |= norm_weights("features.norm5", n, g)
    return w | {"classifier.weight": torch.zeros(1000, n), "classifier.bias": torch.zeros(1000)}


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121"])
def test_published_weights_give_what_the_paper_says(name, tmp_path):
    "Weights under torchvision's names, from a file of torch and of safetensors, against functions alone."
    g = torch.Generator().manual_seed(7)
    x = torch.randn(2, 3, 64, 96, generator=g)
    if name == "densenet121":
        weights = densenet_weights(g)
        plain = {k.replace("norm.1.", "norm1.").replace("norm.2.", "norm2."): v for k, v in weights.items()}
        plain = {k.replace("conv.1.", "conv1.").replace("conv.2.", "conv2."): v for k, v in plain.items()}
        expected = densenet_pass(x, plain)
    else:
        counts, n_steps = dict(resnet18=((2, 2, 2, 2), 2), resnet50=((3, 4, 6, 3), 3))[name]
        weights = resnet_weights(counts, n_steps, g)
        expected = resnet_pass(x, weights, counts, n_steps)
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "w.pth")
    save_file(weights, tmp_path / "w.safetensors")
    for file in ("w.pth", "w.safetensors"):
        got = read_image_net(name, tmp_path / file)(x)
        assert got.shape == expected.shape and expected.std() > 0.1
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    del weights[next(iter(weights))]
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(BadInput, match="1 missing"):
        read_image_net(name, tmp_path / "w.safetensors")


def test_frozen_published_network_writes_from_tokens(tmp_path):
    "ResNet-18 from a file, frozen: its pictures become tokens once, and its means do not move."
    weights = resnet_weights((2, 2, 2, 2), 2, torch.Generator().manual_seed(1))
    torch.save(weights, tmp_path / "r.pth")
    look = dict(encoder=str(tmp_path / "r.pth"), image_net="resnet18")
    for freeze in (True, False):
        cfg = ReportConfig(
            data=str(fill_openi(tmp_path / f"set{freeze}")),
            kind="openi",
            epochs=1,
            freeze=freeze,
            **look,
            **SMALL,
        )
        learn_texts(cfg, tmp_path / f"out{freeze}", dict(dim=32))
        kept = load_picture_encoder(tmp_path / f"out{freeze}/pictures-openi-transformer-0").net.state_dict()
        same = {k: torch.equal(kept[k], v) for k, v in weights.items() if k in kept}
        assert all(same.values()) if freeze else not same["conv1.weight"] and same["bn1.running_mean"]


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"0" * 50])
def test_broken_picture_leaves_its_study_out(content, tmp_path):
    "It is named before anything is learned, and the others are learned from."
    folder = fill_openi(tmp_path / "set")
    picture = folder / "png/CXR7_IM-0.png"
    picture.write_bytes(content)
    cfg = ReportConfig(data=str(folder), kind="openi", epochs=1, **SMALL)
    done = learn_texts(cfg, sizes=dict(dim=32))
    left = done.cases.left_out.set_index("file")
    assert left.problem[str(picture)].startswith("is no readable PNG or JPEG")
    assert left.id[str(picture)] not in done.cases.ids and len(done.cases) >= 8
    for path in folder.glob("png/*.png"):
        path.write_bytes(content)
    with pytest.raises(
        BadInput, match=r"no study is left to learn from: .* \d+ .*CXR\d+_IM-\d.png \(is no re"
    ):
        learn_texts(cfg, sizes=dict(dim=32))


def test_broken_record_leaves_its_study_out(tmp_path):
    folder = fill_ptbxl(tmp_path / "set")
    record = sorted(folder.rglob("*.dat"))[0]
    record.write_bytes(record.read_bytes()[:1000])
    before = read_text_cases(folder, "ptbxl")
    after = readable_cases(before)
    (gone,) = set(before.ids) - set(after.ids)
    left = after.left_out.set_index("id").loc[gone]
    assert Path(left.file).stem == record.stem and left.problem
    assert after.texts == tuple(t for i, t in zip(before.ids, before.texts, strict=True) if i != gone)


def test_bad_settings_are_one_error(tmp_path):
    for change in (dict(kind="openi"), dict(kind="word"), dict(image_px=100), dict(images=0), dict(least=0)):
        with pytest.raises(BadInput):
            ReportConfig(**change)
    folder = fill_openi(tmp_path / "set")
    cfg = ReportConfig(data=str(folder), kind="openi", epochs=1, language="fr", **SMALL)
    with pytest.raises(BadInput, match="language"):
        learn_texts(cfg)
    cfg = ReportConfig(data=str(folder), kind="openi", epochs=1, image_net="vgg", **SMALL)
    with pytest.raises(BadInput, match="Choose one of small"):
        learn_texts(cfg)
