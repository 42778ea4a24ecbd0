"""Published encoders: our reading of their weights against forward passes written here from the published
names alone.
"""

import json
import math
import warnings

import numpy as np
import pytest
import torch

from ptacl.base.core import BadInput, sample_path
from ptacl.data.ecg_files import read_ecg
from ptacl.models.ecg_encoder import ECGEncoder
from ptacl.models.published import mmcl_encoder, vitmae_encoder
from ptacl.models.recognised import PUBLISHED, read_published
from ptacl.models.weights import save_weights
from ptacl.use.embed import embed


def layer_norm(x, w, name, eps):
    "LayerNorm over the last axis, spelt out."
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + eps) * w[f"{name}.weight"] + w[
        f"{name}.bias"
    ]


def linear(x, weight, bias=0.0):
    return torch.einsum("bni,oi->bno", x, weight) + bias


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attend(q, k, v, heads):
    "Softmax attention, one head after the other."
    d = q.shape[-1] // heads
    out = []
    for h in range(heads):
        s = slice(h * d, (h + 1) * d)
        out.append(torch.softmax(q[..., s] @ k[..., s].transpose(1, 2) / math.sqrt(d), dim=-1) @ v[..., s])
    return torch.cat(out, dim=-1)


def patches(x, size):
    "Strips (B, L, T) to patches of one lead, lead after lead."
    return torch.stack(
        [x[:, lead, t : t + size] for lead in range(x.shape[1]) for t in range(0, x.shape[2], size)], dim=1
    )


def vitmae_forward(w, x, heads, eps=1e-12):
    "ViT-MAE of PTACL's fork: tokens after the last norm, CLS first."
    kernel = w["embeddings.patch_embeddings.projection.weight"]
    position = w["embeddings.position_embeddings"]
    h = (
        linear(
            patches(x, kernel.shape[-1]), kernel[:, 0, 0], w["embeddings.patch_embeddings.projection.bias"]
        )
        + position[:, 1:]
    )
    h = torch.cat([(w["embeddings.cls_token"] + position[:, :1]).expand(len(x), -1, -1), h], dim=1)
    for i in range(sum(k.endswith("layernorm_before.weight") for k in w)):
        b = f"encoder.layer.{i}."
        n = layer_norm(h, w, b + "layernorm_before", eps)
        a = b + "attention.attention."
        mixed = attend(
            linear(n, w[a + "query.weight"], w[a + "q_bias"]),
            linear(n, w[a + "key.weight"]),
            linear(n, w[a + "value.weight"], w[a + "v_bias"]),
            heads,
        )
        h = h + w[b + "layerscale.layerscale_c"] * linear(
            mixed, w[b + "attention.output.dense.weight"], w[b + "attention.output.dense.bias"]
        )
        n = layer_norm(h, w, b + "layernorm_after", eps)
        n = linear(
            gelu(linear(n, w[b + "intermediate.dense.weight"], w[b + "intermediate.dense.bias"])),
            w[b + "output.dense.weight"],
            w[b + "output.dense.bias"],
        )
        h = h + w[b + "output.layerscale.layerscale_c"] * n
    return layer_norm(h, w, "layernorm", eps)


def timm_forward(w, x, heads, eps=1e-6):
    "timm's vision transformer, tokens before the last norm, CLS first."
    kernel = w["patch_embed.proj.weight"]
    h = linear(patches(x, kernel.shape[-1]), kernel[:, 0, 0], w["patch_embed.proj.bias"])
    h = torch.cat([w["cls_token"].expand(len(x), -1, -1), h], dim=1) + w["pos_embed"]
    for i in range(sum(k.endswith("norm1.weight") for k in w)):
        b = f"blocks.{i}."
        q, k, v = linear(
            layer_norm(h, w, b + "norm1", eps), w[b + "attn.qkv.weight"], w[b + "attn.qkv.bias"]
        ).chunk(3, dim=-1)
        h = h + linear(attend(q, k, v, heads), w[b + "attn.proj.weight"], w[b + "attn.proj.bias"])
        n = layer_norm(h, w, b + "norm2", eps)
        h = h + linear(
            gelu(linear(n, w[b + "mlp.fc1.weight"], w[b + "mlp.fc1.bias"])),
            w[b + "mlp.fc2.weight"],
            w[b + "mlp.fc2.bias"],
        )
    return h


def rand(g, *shape, scale=None):
    "Weights of a size at which every layer matters."
    return torch.randn(*shape, generator=g) * (scale if scale else 1 / math.sqrt(shape[-1]))


def vitmae_state(D, depth, hidden, leads, columns, patch, seed=0):
    "Every key of FIELD's list with random values; norms far from 1 and LayerScale far from its start."
    g = torch.Generator().manual_seed(seed)
    e = "embeddings."
    w = {
        e + "cls_token": rand(g, 1, 1, D, scale=1.0),
        e + "position_embeddings": rand(g, 1, 1 + leads * columns, D, scale=0.5),
        e + "patch_embeddings.projection.weight": rand(g, D, 1, 1, patch),
        e + "patch_embeddings.projection.bias": rand(g, D, scale=0.3),
    }
    norms = ["layernorm"]
    for i in range(depth):
        b = f"encoder.layer.{i}."
        norms += [b + "layernorm_before", b + "layernorm_after"]
        for n in ("query", "key", "value"):
            w[f"{b}attention.attention.{n}.weight"] = rand(g, D, D)
        for n in ("q_bias", "v_bias"):
            w[f"{b}attention.attention.{n}"] = rand(g, D, scale=0.5)
        for n, o, k in (("attention.output", D, D), ("intermediate", hidden, D), ("output", D, hidden)):
            w[f"{b}{n}.dense.weight"] = rand(g, o, k)
            w[f"{b}{n}.dense.bias"] = rand(g, o, scale=0.3)
        for n in ("layerscale", "output.layerscale"):
            w[f"{b}{n}.layerscale_c"] = rand(g, D, scale=0.5)
    for n in norms:
        w[f"{n}.weight"] = 1 + rand(g, D, scale=0.3)
        w[f"{n}.bias"] = rand(g, D, scale=0.3)
    return w


def timm_state(D, depth, leads, columns, patch, seed=0, fc_norm=True):
    "timm's keys with random values."
    g = torch.Generator().manual_seed(seed)
    w = {
        "cls_token": rand(g, 1, 1, D, scale=1.0),
        "pos_embed": rand(g, 1, 1 + leads * columns, D, scale=0.5),
        "patch_embed.proj.weight": rand(g, D, 1, 1, patch),
        "patch_embed.proj.bias": rand(g, D, scale=0.3),
    }
    norms = ["norm"] + ["fc_norm"] * fc_norm
    for i in range(depth):
        b = f"blocks.{i}."
        norms += [b + "norm1", b + "norm2"]
        for n, o, k in (
            ("attn.qkv", 3 * D, D),
            ("attn.proj", D, D),
            ("mlp.fc1", 4 * D, D),
            ("mlp.fc2", D, 4 * D),
        ):
            w[f"{b}{n}.weight"] = rand(g, o, k)
            w[f"{b}{n}.bias"] = rand(g, o, scale=0.3)
    for n in norms:
        w[f"{n}.weight"] = 1 + rand(g, D, scale=0.3)
        w[f"{n}.bias"] = rand(g, D, scale=0.3)
    return w


def same(a, b):
    "Equal to 1e-5, at every position."
    assert a.shape == b.shape
    assert (a - b).abs().max() < 1e-5 * max(1.0, float(b.abs().max())), float((a - b).abs().max())


SMALL = dict(D=16, depth=2, hidden=40, leads=12, columns=4, patch=10)
PAPER = dict(D=768, depth=12, hidden=3072, leads=12, columns=50, patch=50)


@pytest.mark.parametrize("size, heads, B", [(SMALL, 4, 3), (PAPER, 12, 1)], ids=["small", "paper"])
@torch.no_grad()
def test_vitmae_position_by_position(size, heads, B, tmp_path):
    "CLS and every token, from a folder in the Hugging Face layout."
    w = vitmae_state(**size)
    leads = size["leads"]
    T = size["columns"] * size["patch"]
    save_weights(
        w,
        dict(
            architectures=["ViTMAEModel"],
            model_type="vit_mae",
            hidden_size=size["D"],
            num_attention_heads=heads,
            image_size=[leads, T],
            patch_size=[1, size["patch"]],
            use_cls_token=True,
        ),
        tmp_path,
    )
    x = torch.randn(B, leads, T, generator=torch.Generator().manual_seed(1))
    tokens, pooled = vitmae_encoder(tmp_path)(x)
    theirs = vitmae_forward(w, x, heads)
    assert theirs.shape[1] == 1 + leads * size["columns"]  # 601 at the paper's size
    same(pooled, theirs[:, 0])
    same(tokens, theirs[:, 1:])


@pytest.mark.parametrize(
    "size, heads, B",
    [
        (dict(D=16, depth=2, leads=12, columns=4, patch=10), 4, 3),
        (dict(D=384, depth=3, leads=12, columns=25, patch=100), 6, 2),
    ],
    ids=["small", "paper"],
)
@pytest.mark.parametrize("pool", ["mean", "cls"])
@torch.no_grad()
def test_mmcl_position_by_position(size, heads, B, pool, tmp_path):
    "The strip's vector and every token, from a .pth."
    w = timm_state(**size)
    torch.save(dict(model=w), tmp_path / "signal_encoder.pth")
    x = torch.randn(
        B, size["leads"], size["columns"] * size["patch"], generator=torch.Generator().manual_seed(1)
    )
    tokens, pooled = mmcl_encoder(tmp_path / "signal_encoder.pth", heads=heads, pool=pool)(x)
    raw = timm_forward(w, x, heads)
    norm = "fc_norm" if pool == "mean" else "norm"
    same(pooled, layer_norm(raw[:, 1:].mean(1) if pool == "mean" else raw[:, 0], w, norm, 1e-6))
    same(tokens, layer_norm(raw[:, 1:], w, norm, 1e-6))


@torch.no_grad()
def test_as_published_without_the_last_norm(tmp_path):
    "MMCL's files have no fc_norm and no head: the mean patch, normalised with weights 1 and 0."
    w = timm_state(16, 2, 12, 4, 10, fc_norm=False)
    torch.save(dict(model=w), tmp_path / "s.pth")
    x = torch.randn(2, 12, 40)
    mean = timm_forward(w, x, 4)[:, 1:].mean(1)
    same(
        mmcl_encoder(tmp_path / "s.pth", heads=4)(x)[1],
        (mean - mean.mean(-1, keepdim=True)) / torch.sqrt(mean.var(-1, unbiased=False, keepdim=True) + 1e-6),
    )


@torch.no_grad()
def test_every_weight_matters(tmp_path):
    """No published weight is dropped on the way: changing any one of them changes what comes out, as it does
    theirs.
    """
    size = dict(D=8, depth=1, hidden=16, leads=12, columns=2, patch=5)
    x = torch.randn(1, 12, 10, generator=torch.Generator().manual_seed(2))
    w = vitmae_state(**size)
    config = dict(num_attention_heads=2, image_size=[12, 10])
    first = vitmae_encoder(save_weights(w, config, tmp_path / "a"))(x)[1]
    for name in w:
        changed = w | {
            name: w[name] + 0.5 * torch.randn(w[name].shape, generator=torch.Generator().manual_seed(3))
        }
        ours = vitmae_encoder(save_weights(changed, config, tmp_path / "b"))(x)[1]
        theirs = vitmae_forward(changed, x, 2)[:, 0]
        same(ours, theirs)
        assert (ours - first).abs().max() > 1e-4, name


def test_missing_and_unknown_names_are_listed(tmp_path):
    w = vitmae_state(**SMALL)
    del w["encoder.layer.1.attention.attention.key.weight"]
    w["head.weight"] = torch.zeros(2)
    save_weights(w, dict(num_attention_heads=4, image_size=[12, 40]), tmp_path)
    with pytest.raises(
        BadInput,
        match=r"1 missing: encoder\.layer\.1\.attention\.attention\.key\.weight; 1 unknown: head\.weight",
    ):
        vitmae_encoder(tmp_path)
    t = timm_state(16, 2, 12, 4, 10)
    torch.save(dict(model=t | {"attention_pool.in_proj_bias": torch.zeros(48)}), tmp_path / "s.pth")
    with pytest.raises(BadInput, match=r"1 unknown: attention_pool\.in_proj_bias"):
        mmcl_encoder(tmp_path / "s.pth", heads=4)
    t["blocks.1.mlp.fc1.weight"] = torch.zeros(60, 16)
    torch.save(dict(model=t), tmp_path / "s.pth")
    with pytest.raises(
        BadInput, match=r"2 of another shape: blocks\.1\.mlp\.0\.|of another shape: blocks\.1\.mlp\.0\.weight"
    ):
        mmcl_encoder(tmp_path / "s.pth", heads=4)


@torch.no_grad()
def test_saved_in_our_layout_it_is_ours(tmp_path):
    """A published encoder, once read, is saved and read by ECGEncoder's own methods; nothing of their layout
    is left.
    """
    w = vitmae_state(**SMALL)
    encoder = vitmae_encoder(
        save_weights(w, dict(num_attention_heads=4, image_size=[12, 40]), tmp_path / "theirs")
    )
    again = ECGEncoder.from_pretrained(encoder.save_pretrained(tmp_path / "ours"))
    x = torch.randn(2, 12, 40)
    assert torch.equal(again(x)[1], encoder(x)[1])
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["architectures"], config["norm_eps"], config["mlp_ratio"]) == (["ECGViT"], 1e-12, 2.5)


# ---- recognised by their keys, and fed as their authors do


def quietly(source):
    "Read, without the warning that names licence and citation."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ECGEncoder.from_pretrained(source)


def as_mmcl_prepares(ecg):
    "MMCL's steps, spelt out with full matrices, on a strip short enough for them."
    x = ecg.signal_LT[:, :500].astype(float)
    x = np.clip(x, -4 * x.std(), 4 * x.std())
    bend = np.diff(np.eye(x.shape[1]), n=2, axis=0)
    for lead in range(12):
        w = np.ones(x.shape[1])
        for _ in range(5):
            z = np.linalg.solve(np.diag(w) + 1e7 * bend.T @ bend, w * x[lead])
            w = np.where(x[lead] > z, 0.3, 0.7)
        x[lead] -= z
    for a, b in ((0, 3), (3, 6), (6, 12)):
        x[a:b] = (x[a:b] - x[a:b].mean()) / x[a:b].std()
    return torch.from_numpy(x.astype(np.float32))[None]


@pytest.mark.parametrize("form", ["mmcl", "ptacl"])
def test_published_forms_are_recognised_and_fed_as_by_their_authors(tmp_path, form):
    "From a file alone to vectors of a recording: recipe and network, each spelt out here."
    if form == "mmcl":
        w = timm_state(D=64, depth=2, leads=12, columns=5, patch=100, fc_norm=True)
        torch.save(dict(model=w), tmp_path / "weights.pth")
        source = tmp_path / "weights.pth"
    else:
        w = vitmae_state(D=16, depth=2, hidden=32, leads=12, columns=10, patch=50)
        config = dict(num_attention_heads=2, image_size=[12, 500], architectures=["ViTMAEForPreTraining"])
        source = save_weights({f"vit.{k}": v for k, v in w.items()}, config, tmp_path)
    with pytest.warns(UserWarning, match="licence: .*cite .*recipe mmcl"):
        encoder = ECGEncoder.from_pretrained(source)
    assert encoder.published == form and PUBLISHED[form].preparation["window_s"] == 5.0
    assert encoder.preparation["fs"] == 500.0 and encoder.preparation["window_s"] == 1.0
    whole = read_ecg(sorted(sample_path("ecg").glob("*.hea"))[0])
    ecg = type(whole)(whole.signal_LT[:, :500], whole.fs, whole.lead_names, whole.lead_ok_L)
    x = as_mmcl_prepares(ecg)
    if form == "mmcl":
        tokens = timm_forward(w, x, heads=1)
        wanted = layer_norm(tokens[:, 1:].mean(1), w, "fc_norm", 1e-6)
    else:
        wanted = vitmae_forward(w, x, heads=2)[:, 0]
    got = embed(encoder, ecg, doubts=False).to_numpy()
    np.testing.assert_allclose(got, wanted.numpy(), atol=2e-4)
    # saved in our layout it is the same encoder, and its input is still prepared so
    again = ECGEncoder.from_pretrained(encoder.save_pretrained(tmp_path / "ours"))
    np.testing.assert_array_equal(embed(again, ecg, doubts=False).to_numpy(), got)
    assert again.preparation["recipe"] == "mmcl"


def test_no_key_is_shared_by_two_forms():
    keys = [set(entry.keys) for entry in PUBLISHED.values()]
    assert all(not a & b for i, a in enumerate(keys) for b in keys[:i])


class Settings:
    "What a checkpoint of a training script keeps beside its weights."


def test_a_file_that_needs_its_authors_code_is_one_error(tmp_path):
    w = timm_state(D=64, depth=1, leads=12, columns=5, patch=100)
    torch.save(dict(model=w, args=Settings()), tmp_path / "full.pth")
    with pytest.raises(BadInput, match="would run code from the file.*save the tensors alone"):
        ECGEncoder.from_pretrained(tmp_path / "full.pth")
    w["blocks.0.extra"] = torch.zeros(1)
    torch.save(dict(model=w), tmp_path / "other.pth")
    with pytest.raises(BadInput, match="1 unknown: blocks.0.extra"):
        quietly(tmp_path / "other.pth")
    with pytest.raises(BadInput, match="weights of an unknown form: fc.weight"):
        torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "fc.pth")
        quietly(tmp_path / "fc.pth")


def test_a_recipe_is_no_start_of_a_run(tmp_path):
    "A run prepares its input itself: an encoder that was fed by a recipe says so before training starts."
    from ptacl.base.config import TrainConfig
    from ptacl.models.saved import start_encoders
    from ptacl.models.systems import build_system

    w = timm_state(D=64, depth=2, leads=12, columns=10, patch=50)
    torch.save(dict(model=w), tmp_path / "weights.pth")
    saved = read_published(tmp_path / "weights.pth", quiet=True).save_pretrained(tmp_path / "ours")
    cfg = TrainConfig(
        window_s=1.0, n_frames=4, cine_keep=1.0, crop_px=16, ecg_encoder="vit", ecg_init=str(saved)
    )
    with pytest.raises(BadInput, match="prepared by the recipe mmcl"):
        start_encoders(build_system(cfg), cfg)
