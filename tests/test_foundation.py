"""ECGFounder and ECG-FM: our reading of their weights against forward passes written here from the published
names alone, and what is said of a file that is neither.
"""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import signal

from ptacl.base.core import BadInput, sample_path
from ptacl.data.ecg_files import read_ecg
from ptacl.models.ecg_encoder import ECGEncoder
from ptacl.models.recognised import PUBLISHED, read_published
from ptacl.use.adapters import open_adapters
from ptacl.use.embed import embed
from ptacl.use.onnx import export_onnx

FILTERS = (64, 160, 160, 400, 400, 1024, 1024)  # of ECGFounder's stages
BLOCKS = (2, 2, 2, 3, 3, 4, 4)


def drawn(*shape):
    "Weights that keep the size of what goes through."
    fan_in = np.prod(shape[1:]) if len(shape) > 1 else 9
    return torch.randn(shape) / fan_in**0.5


def net1d_state(stem=64, filters=FILTERS, blocks=BLOCKS, kernel=16, per_group=16, leads=12, classes=150):
    "A state dict as Net1D(use_bn=False) writes it, with the batch norms that it never uses."
    w = {"first_conv.conv.weight": drawn(stem, leads, kernel), "first_conv.conv.bias": drawn(stem)}
    norms = [("first_bn", stem)]
    before = stem
    for i, (c, n) in enumerate(zip(filters, blocks, strict=True)):
        for j in range(n):
            name = f"stage_list.{i}.block_list.{j}"
            norms += [(f"{name}.bn1", before), (f"{name}.bn2", c), (f"{name}.bn3", c)]
            for part, shape in {
                "conv1.conv": (c, before, 1),
                "conv2.conv": (c, per_group, kernel),
                "conv3.conv": (c, c, 1),
                "se_fc1": (c // 2, c),
                "se_fc2": (c, c // 2),
            }.items():
                w[f"{name}.{part}.weight"] = drawn(*shape)
                w[f"{name}.{part}.bias"] = drawn(shape[0])
            before = c
    for name, c in norms:
        w |= {f"{name}.weight": torch.ones(c), f"{name}.bias": torch.zeros(c)}
        w |= {f"{name}.running_mean": torch.zeros(c), f"{name}.running_var": torch.ones(c)}
        w[f"{name}.num_batches_tracked"] = torch.tensor(0)
    return w | {"dense.weight": drawn(classes, before), "dense.bias": drawn(classes)}


def swish(x):
    return x * torch.sigmoid(x)


def same(x, weight, bias, stride=1, groups=1):
    "Convolution with zeros such that ceil(T / stride) samples come out, the odd zero behind."
    out = -(-x.shape[2] // stride)
    zeros = max(0, (out - 1) * stride + weight.shape[2] - x.shape[2])
    x = torch.cat(
        [x.new_zeros(*x.shape[:2], zeros // 2), x, x.new_zeros(*x.shape[:2], zeros - zeros // 2)], 2
    )
    return F.conv1d(x, weight, bias, stride=stride, groups=groups)


def net1d_forward(w, x, blocks):
    "Features before the last layer, and the classes' scores."
    h = swish(same(x, w["first_conv.conv.weight"], w["first_conv.conv.bias"], 2))
    for i, n in enumerate(blocks):
        for j in range(n):
            p = {k.split(f"stage_list.{i}.block_list.{j}.")[-1]: v for k, v in w.items()}
            stride = 2 if j == 0 else 1
            y = h if (i, j) == (0, 0) else swish(h)
            y = same(y, p["conv1.conv.weight"], p["conv1.conv.bias"])
            weight = p["conv2.conv.weight"]
            groups = len(weight) // weight.shape[1]
            y = same(swish(y), weight, p["conv2.conv.bias"], stride, groups)
            y = same(swish(y), p["conv3.conv.weight"], p["conv3.conv.bias"])
            gate = swish(y.mean(2) @ p["se_fc1.weight"].T + p["se_fc1.bias"])
            gate = torch.sigmoid(gate @ p["se_fc2.weight"].T + p["se_fc2.bias"])
            y = y * gate[:, :, None]
            if stride == 2:
                h = torch.cat([h, h.new_zeros(*h.shape[:2], h.shape[2] % 2)], 2)
                h = torch.maximum(h[:, :, 0::2], h[:, :, 1::2])
            more = y.shape[1] - h.shape[1]
            shape = (len(h), h.shape[2])
            above = h.new_zeros(shape[0], more // 2, shape[1])
            below = h.new_zeros(shape[0], more - more // 2, shape[1])
            h = y + torch.cat([above, h, below], 1)
    features = h.mean(2)
    return h, features, features @ w["dense.weight"].T + w["dense.bias"]


def wav2vec_state(dim=768, depth=2, hidden=3072, channels=256, convs=4, taps=128, groups=16, leads=12):
    "A state dict as wav2vec2_cmsc writes it, with the heads of its pre-training."
    w = {"mask_emb": drawn(dim), "quantizer.vars": drawn(1, 640, 128)}
    shapes = {
        "layer_norm": (channels,),
        "post_extract_proj": (dim, channels),
        "encoder.layer_norm": (dim,),
        "feature_extractor.conv_layers.0.2": (channels,),
        "quantizer.weight_proj": (640, channels),
        "project_q": (256, 256),
        "final_proj": (256, dim),
    }
    for i in range(depth):
        layer = f"encoder.layers.{i}"
        shapes |= {f"{layer}.self_attn.{p}_proj": (dim, dim) for p in ("q", "k", "v", "out")}
        shapes |= {f"{layer}.fc1": (hidden, dim), f"{layer}.fc2": (dim, hidden)}
        shapes |= {f"{layer}.self_attn_layer_norm": (dim,), f"{layer}.final_layer_norm": (dim,)}
    for name, shape in shapes.items():
        w |= {f"{name}.weight": drawn(*shape) + (len(shape) == 1), f"{name}.bias": drawn(shape[0])}
    for k in range(convs):
        w[f"feature_extractor.conv_layers.{k}.0.weight"] = drawn(channels, channels if k else leads, 2)
    w["conv_pos.pos_conv.0.bias"] = drawn(dim)
    w["conv_pos.pos_conv.0.weight_g"] = 0.5 + torch.rand(1, 1, taps)
    w["conv_pos.pos_conv.0.weight_v"] = drawn(dim, dim // groups, taps)
    return w


def wav2vec_forward(w, x, heads):
    "Tokens of the last layer."
    h = x
    for k in range(4):
        h = F.conv1d(h, w[f"feature_extractor.conv_layers.{k}.0.weight"], stride=2)
        if k == 0:  # each channel by itself over time
            name = "feature_extractor.conv_layers.0.2"
            mean = h.mean(2, keepdim=True)
            h = (h - mean) / torch.sqrt(((h - mean) ** 2).mean(2, keepdim=True) + 1e-5)
            h = h * w[f"{name}.weight"][:, None] + w[f"{name}.bias"][:, None]
        h = F.gelu(h)

    def norm(h, name):
        return F.layer_norm(h, h.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def linear(h, name):
        return F.linear(h, w[f"{name}.weight"], w[f"{name}.bias"])

    h = linear(norm(h.transpose(1, 2), "layer_norm"), "post_extract_proj")
    v = w["conv_pos.pos_conv.0.weight_v"]
    taps = v.shape[2]
    weight = torch.stack(
        [
            w["conv_pos.pos_conv.0.weight_g"].flatten()[t] * v[:, :, t] / v[:, :, t].norm()
            for t in range(taps)
        ],
        2,
    )
    padded = F.pad(h.transpose(1, 2), (taps // 2, taps // 2))
    place = F.conv1d(padded, weight, w["conv_pos.pos_conv.0.bias"], groups=h.shape[2] // v.shape[1])
    h = norm(h + F.gelu(place[:, :, : h.shape[1]]).transpose(1, 2), "encoder.layer_norm")
    depth = 1 + max(int(k.split(".")[2]) for k in w if k.startswith("encoder.layers."))
    for i in range(depth):
        layer = f"encoder.layers.{i}"
        q, k, v = (linear(h, f"{layer}.self_attn.{p}_proj") for p in "qkv")
        d = q.shape[2] // heads
        each = []
        for a in range(heads):
            s = slice(a * d, (a + 1) * d)
            each.append(torch.softmax(q[..., s] @ k[..., s].transpose(1, 2) / d**0.5, -1) @ v[..., s])
        h = norm(
            h + linear(torch.cat(each, -1), f"{layer}.self_attn.out_proj"), f"{layer}.self_attn_layer_norm"
        )
        h = norm(h + linear(F.gelu(linear(h, f"{layer}.fc1")), f"{layer}.fc2"), f"{layer}.final_layer_norm")
    return h


def quietly(source):
    "Read, without the warning that names licence and citation."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ECGEncoder.from_pretrained(source)


@pytest.fixture(scope="module")
def ecg():
    return read_ecg(sorted(sample_path("ecg").glob("*.hea"))[0])


@pytest.fixture(scope="module")
def founder(tmp_path_factory):
    "A file of ECGFounder's full size, with the two NumPy numbers of the real one."
    torch.manual_seed(0)
    w = net1d_state()
    path = tmp_path_factory.mktemp("founder") / "12_lead_ECGFounder.pth"
    torch.save(dict(state_dict=w, step=np.int64(7), val_auroc=np.float64(0.9)), path)
    return w, path


@torch.no_grad()
def test_ecgfounder_of_full_size_is_the_network_of_its_names(founder):
    w, path = founder
    encoder = quietly(path)
    x = torch.randn(2, 12, 5000)
    tokens, features, _ = net1d_forward(w, x, BLOCKS)
    got_tokens, got = encoder(x)
    assert got.shape == (2, 1024) and got_tokens.shape == (2, 20, 1024)
    torch.testing.assert_close(got, features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got_tokens, tokens.transpose(1, 2), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("T", [250, 251, 333, 1000])
def test_odd_lengths_are_padded_as_theirs(T):
    torch.manual_seed(1)
    w = net1d_state(8, (8, 12, 20), (1, 2, 1), 4, 4)
    from ptacl.models.foundation import ecgfounder_encoder

    x = torch.randn(3, 12, T)
    want = net1d_forward(w, x, (1, 2, 1))[1]
    torch.testing.assert_close(ecgfounder_encoder(w)(x)[1], want, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("spelling", ["older", "newer", "fine-tuned"])
def test_ecg_fm_is_the_network_of_its_names(tmp_path, spelling):
    "Of full width and two blocks, in the three forms in which it is written."
    torch.manual_seed(2)
    w = wav2vec_state()
    x = torch.randn(2, 12, 2500)
    want = wav2vec_forward(w, x, 12)
    names = dict(weight_g="parametrizations.weight.original0", weight_v="parametrizations.weight.original1")
    if spelling != "older":
        w = {".".join(names.get(part, part) for part in k.split(".")): v for k, v in w.items()}
    if spelling == "fine-tuned":
        heads = ("quantizer", "project_q", "final_proj", "mask_emb")
        w = {f"encoder.{k}": v for k, v in w.items() if not k.startswith(heads)}
        w |= {"proj.weight": drawn(17, 768), "proj.bias": drawn(17)}
    torch.save(dict(args=None, cfg=dict(model=dict(in_d=12)), model=w, extra_state={}), tmp_path / "fm.pt")
    encoder = quietly(tmp_path / "fm.pt")
    assert encoder.published == "ecg_fm" and encoder.settings["heads"] == 12
    tokens, strip = encoder(x)
    assert tokens.shape == (2, 156, 768)
    torch.testing.assert_close(tokens, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(strip, want.mean(1), atol=1e-5, rtol=1e-5)


def test_ecgfounder_is_recognised_and_fed_as_by_its_authors(founder, ecg, tmp_path):
    "From a file to the vector of a recording: filters, scaling and network, each spelt out here."
    w, path = founder
    with pytest.warns(
        UserWarning, match="ECGFounder's 12-lead encoder .licence: MIT.*cite Li.*10 s at 500 Hz"
    ):
        encoder = ECGEncoder.from_pretrained(path)
    x = ecg.signal_LT.astype(float)
    x = signal.filtfilt(*signal.iirnotch(50, 30, 500), x)
    x = signal.filtfilt(*signal.butter(4, [0.67, 40], "bandpass", fs=500), x)
    x = x - np.stack([signal.medfilt(lead, 201) for lead in x])
    x = torch.from_numpy(((x - x.mean()) / x.std()).astype(np.float32))[None]
    with torch.no_grad():
        want = net1d_forward(w, x, BLOCKS)[1]
    got = embed(encoder, ecg, doubts=False).to_numpy()
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5, rtol=1e-4)
    again = ECGEncoder.from_pretrained(encoder.save_pretrained(tmp_path / "ours"))
    np.testing.assert_array_equal(embed(again, ecg, doubts=False).to_numpy(), got)
    assert (type(again).__name__, again.preparation["recipe"]) == ("ECGNet1D", "ecgfounder")


def test_ecg_fm_is_recognised_and_fed_as_by_its_authors(ecg, tmp_path):
    torch.manual_seed(3)
    w = wav2vec_state(64, 2, 24, 16, taps=8, groups=4)
    torch.save(dict(model=w), tmp_path / "fm.pt")
    with pytest.warns(
        UserWarning, match="ECG-FM's encoder .*cite McKeen.*5 s at 500 Hz.*seen PhysioNet 2021"
    ):
        encoder = ECGEncoder.from_pretrained(tmp_path / "fm.pt")
    x = ecg.signal_LT.astype(float)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)  # the whole recording, then cut
    halves = torch.from_numpy(np.stack([x[:, :2500], x[:, 2500:5000]]).astype(np.float32))
    with torch.no_grad():
        want = wav2vec_forward(w, halves, 1).mean(1).numpy()
    first, both = (embed(encoder, ecg, doubts=False, windows=how).to_numpy() for how in ("first", "mean"))
    np.testing.assert_allclose(first, want[:1], atol=1e-5)
    np.testing.assert_allclose(both[0], want.mean(0), atol=1e-5)
    again = ECGEncoder.from_pretrained(encoder.save_pretrained(tmp_path / "ours"))
    np.testing.assert_array_equal(embed(again, ecg, doubts=False).to_numpy(), first)


def test_both_are_adapters_that_say_what_they_expect(ecg, tmp_path):
    torch.manual_seed(4)
    torch.save(dict(state_dict=net1d_state(8, (8, 16), (1, 1), 4, 4)), tmp_path / "founder.pth")
    torch.save(dict(model=wav2vec_state(64, 1, 24, 16, taps=8, groups=4)), tmp_path / "fm.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        founder, fm = open_adapters([str(tmp_path / "founder.pth"), str(tmp_path / "fm.pt")])
    assert founder.said(ecg)["expects"] == "10 s at 500 Hz, 12 leads"
    assert "50 Hz notch, 0.67-40 Hz, median baseline of 0.4 s" in founder.said(ecg)["done"]
    assert (
        fm.said(ecg)["done"]
        == "rate kept; mean of 2 windows; each lead scaled to mean 0 and variance 1, not filtered"
    )
    shapes = [a.function(a.prepare(ecg), a.fs).shape for a in (founder, fm)]
    assert shapes == [(1, 16), (2, 64)]


@pytest.mark.parametrize("form", ["ecgfounder", "ecg_fm"])
def test_a_wrong_file_is_one_error(tmp_path, form):
    torch.manual_seed(5)
    if form == "ecgfounder":
        w = net1d_state(8, (8, 16), (1, 2), 4, 4)
        lost = "stage_list.1.block_list.1.conv2.conv.bias"
        other = "stage_list.0.block_list.0.se_fc2.weight"
    else:
        w = wav2vec_state(64, 2, 24, 16, taps=8, groups=4)
        lost = "encoder.layers.1.fc1.bias"
        other = "encoder.layers.0.self_attn.out_proj.weight"
    wrong = {
        f"1 missing: {lost}": {k: v for k, v in w.items() if k != lost},
        "1 unknown: more.weight": w | {"more.weight": torch.zeros(3)},
        "1 of another shape: blocks.0": w | {other: torch.zeros(3, 5)},
    }
    for k, (message, weights) in enumerate(wrong.items()):
        torch.save(weights, tmp_path / f"{k}.pth")
        with pytest.raises(BadInput, match=message):
            quietly(tmp_path / f"{k}.pth")
    torch.save(dict(model=w, args=Settings()), tmp_path / "objects.pth")
    with pytest.raises(BadInput, match="would run code from the file.*save the tensors alone"):
        quietly(tmp_path / "objects.pth")


class Settings:
    "What a checkpoint of a training script keeps beside its weights."


def test_batch_norms_that_were_trained_are_refused(tmp_path):
    w = net1d_state(8, (8,), (1,), 4, 4)
    w["stage_list.0.block_list.0.bn2.running_mean"] += 0.1
    torch.save(w, tmp_path / "bn.pth")
    with pytest.raises(
        BadInput, match="1 batch norms were trained .stage_list.0.block_list.0.bn2.running_mean"
    ):
        quietly(tmp_path / "bn.pth")
    torch.save(net1d_state(8, (8,), (1,), 4, 4, leads=1), tmp_path / "one.pth")
    with pytest.raises(BadInput, match="reads 1 lead. Give the weights of the 12 leads"):
        quietly(tmp_path / "one.pth")


@pytest.mark.parametrize("form", ["ecgfounder", "ecg_fm"])
def test_they_are_trained_on_hidden_and_exported_as_ours(tmp_path, form):
    "Gradients reach every weight; hidden patches and missing leads do not matter; ONNX gives the same."
    torch.manual_seed(6)
    w = net1d_state(8, (8, 16), (1, 1), 4, 4)
    if form == "ecg_fm":
        w = wav2vec_state(64, 1, 24, 16, taps=8, groups=4)
    torch.save(w, tmp_path / "w.pth")
    encoder = read_published(tmp_path / "w.pth", quiet=True)
    T = encoder.n_samples
    x = torch.randn(2, 12, T)
    ok = torch.ones(2, 12, dtype=torch.bool)
    ok[1, 3] = False
    kept = torch.rand(2, encoder.n_patches).argsort(1)[:, : encoder.n_patches // 2]
    hidden = torch.ones(2, encoder.n_patches, dtype=torch.bool).scatter(1, kept, False)
    spoiled = x + 1e3 * hidden.view(2, 12, -1).repeat_interleave(encoder.patch, 2)
    with torch.no_grad():
        assert torch.equal(encoder(x, ok, kept)[1], encoder(spoiled, ok, kept)[1])
        spread = encoder.spread_tokens(encoder(x, ok, kept)[0], kept)
    assert spread.shape == (2, encoder.n_patches, encoder.dim)
    encoder.train()
    encoder(x, ok)[0].pow(2).sum().backward()
    silent = [n for n, p in encoder.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == [n for n in silent if n.endswith("attention.qkv.bias")]
    encoder.eval()
    export_onnx(encoder, tmp_path / "encoder.onnx")
    assert (tmp_path / "encoder.onnx").is_file() and PUBLISHED[form].caution
