"""What was tried around the comparison on the phantom: training with other settings, scored on participants that no comparison is scored on.

    python search.py train STORE FOLDER "lr 0.002"       # PTACL with the recipe of compare_phantom.yaml and other settings, on STORE's training participants
    python search.py score STORE DEVELOPMENT FOLDER ...  # probes fitted on STORE's training participants, scored on everybody in the store DEVELOPMENT; a line to search.tsv
    python search.py train-finer STORE FOLDER "local_weight 0.0"  # the same, and the ECG encoder is told the profile of QRS in steps of 4 ms; its run is scored with score-finer; train-standard standardises all that it is told, too
    python search.py train-earlier STORE FOLDER ""  # the same, and the local loss reads the tokens before the last block of each encoder
    python search.py train-rising STORE FOLDER "local_weight 0.6"  # the same, and the weight of the local loss grows from 0 to that; train-falling is the other way round
    python search.py latents COHORT 11 HELD_OUT.TSV DEVELOPMENT-COHORT 12  # what the phantom's true ECG latents give a linear probe with the same labels, and without each of them
    python search.py recordings STORE RUN FOLDER  # what RUN makes of the public records in FOLDER: one ECG at two rates, and fibrillation; to recordings.tsv

STORE is the store that compare.ipynb prepares (FOLDER/store-systole), DEVELOPMENT one of 1,500 participants of seed 12.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import yaml
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler

from ptacl.config import TrainConfig
from ptacl.core import seed_everything
from ptacl.data.batches import Pairs, draw_batch, load_data
from ptacl.evaluation.probe import fit_ridge, predict_conditions, predict_phenotypes
from ptacl.evaluation.retrieval import ranks, similar_by_participant
from ptacl.models import ecg_vit as encoder_ecg
from ptacl.models.cine import CineEncoder
from ptacl.models.ecg_vit import ECGEncoder, average_beat, strip_summary
from ptacl.models.ptacl import Batch
from ptacl.models.saved import from_pretrained, save_pretrained, start_encoders
from ptacl.models.systems import SYSTEMS, build_system
from ptacl.phantom.ceiling import ecg_latent_table
from ptacl.phantom.ecg import simulate_ecg
from ptacl.phantom.latents import draw_latents, participant_rng
from ptacl.studies.comparison import parse_settings
from ptacl.studies.one_run import diagnoses_of
from ptacl.training import loop as trainer
from ptacl.training.loop import fit, fit_input_scaling
from ptacl.use.embed import find_ecgs

PHENOTYPES = ["lvedv_ml", "lvesv_ml", "lvef", "lvm_g"]
LATENTS = [
    "heart_rate_ecg_bpm",
    "truth_qrs_ms",
    "truth_pr_ms",
    "truth_qt_ms",
    "truth_axis_deg",
    "truth_transition_deg",
    "truth_qrst_deg",
    "truth_voltage_gain",
    "truth_t_gain",
    "truth_right_force",
]
SAME_ECG = ("HR00001", "00001_lr")  # the record that is among the public ones at 500 and at 100 Hz
READ_FROM = {
    "CLS": ["cls"],
    "mean of the patches": ["mean"],
    "CLS and mean": ["cls", "mean"],
    "CLS and leads": ["cls", "leads"],
    "strip's summary": ["summary"],
    "CLS and the profile of QRS": ["cls", "profile"],
    "shared embedding": ["ecg"],
}


def slope_profile(signal_BLT: torch.Tensor, seen_BLC: torch.Tensor) -> torch.Tensor:
    "Mean absolute slope of the leads from 120 ms before to 160 ms after the steepest 60 ms, in steps of 4 ms: logarithm of its peak, and of the rest over the peak."
    (B, L, C) = seen_BLC.shape
    T = signal_BLT.shape[2]
    with torch.autocast("cpu", enabled=False):
        signal_BLCP = signal_BLT.float().view(B, L, C, T // C)
        seen_BLC = seen_BLC.float()
        n_BC1 = seen_BLC.sum(1)[..., None]
        slope_BCK = (
            F.pad(signal_BLCP.diff(dim=3).abs(), (0, 1)).view(B, L, C, 25, -1).mean(4) * seen_BLC[..., None]
        ).sum(1) / n_BC1.clamp(min=1)
        level_B11 = (slope_BCK * (n_BC1 > 0)).sum((1, 2), keepdim=True) / (
            25 * (n_BC1 > 0).sum((1, 2), keepdim=True)
        ).clamp(min=1)
        slope_BT = torch.where(n_BC1 > 0, slope_BCK, level_B11).flatten(1)
        steep_BT = F.avg_pool1d(slope_BT[:, None], 15, 1, 7)[:, 0]
        profile_BK = average_beat(
            steep_BT**2, slope_BT[:, None], (n_BC1 > 0).float().expand(-1, -1, 25).flatten(1)[:, None], 30, 40
        )[:, 0]
        peak_B1 = profile_BK.amax(1, keepdim=True).clamp(min=1e-6)
        return torch.cat([(peak_B1 + 0.1).log(), (profile_BK / peak_B1 + 0.1).log()], 1)


def finer() -> None:
    "Let every ECG encoder that is made from now on read `slope_profile` too."
    init = ECGEncoder.__init__
    coarse = strip_summary

    def wider(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.summary = torch.nn.Linear(self.summary.in_features + 71, self.dim)

    ECGEncoder.__init__ = wider
    encoder_ecg.strip_summary = lambda signal_BLT, seen_BLC: torch.cat(
        [coarse(signal_BLT, seen_BLC), slope_profile(signal_BLT, seen_BLC)], 1
    )


class Standardised(torch.nn.Module):
    "Numbers less their mean over the training participants, by their deviation."

    def __init__(self, n: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n)), self.register_buffer("sd", torch.ones(n))

    def forward(self, x_BK: torch.Tensor) -> torch.Tensor:
        return (x_BK - self.mean) / self.sd

    @torch.no_grad()
    def fit(self, model: torch.nn.Module, pairs: Pairs, cfg: TrainConfig) -> None:
        "Take mean and deviation of the summaries of first windows; a number that hardly varies stays small."
        x_PK = torch.cat(
            [
                encoder_ecg.strip_summary(
                    (
                        torch.as_tensor(draw_batch(pairs, rows, round(cfg.window_s * cfg.fs))["signal_BLT"])
                        - model.ecg_mean_L[:, None]
                    )
                    / model.ecg_sd_L[:, None],
                    torch.ones(len(rows), 12, 50),
                )
                for rows in np.array_split(np.arange(len(pairs)), max(1, len(pairs) // 64))
            ]
        )
        self.mean.copy_(x_PK.mean(0)), self.sd.copy_(x_PK.std(0).clamp(min=1e-2))


def standard() -> None:
    "As `finer`, and what the encoder is told is standardised."
    finer()
    init = ECGEncoder.__init__

    def scaled(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.summary = torch.nn.Sequential(Standardised(self.summary.in_features), self.summary)

    ECGEncoder.__init__ = scaled


def earlier() -> None:
    "Let every encoder that is made from now on give the tokens before its last block to whoever asks for tokens; the strip's or the cine's vector stays that after it."

    def changed(cls: type, blocks: str, first: int) -> None:
        init = cls.__init__
        forward = cls.forward

        def with_hook(self, *args, **kwargs):
            init(self, *args, **kwargs)
            getattr(self, blocks)[-1].register_forward_pre_hook(
                lambda block, given: setattr(block, "came_in", given[0])
            )

        def with_earlier(self, *args, **kwargs):
            _, pooled = forward(self, *args, **kwargs)
            return self.norm(getattr(self, blocks)[-1].came_in[:, first:]), pooled

        cls.__init__ = with_hook
        cls.forward = with_earlier

    changed(ECGEncoder, "blocks", 1), changed(CineEncoder, "blocks_time", 0)


def scheduled(share_at: Callable[[float], float]) -> None:
    "Let the weight of the local loss be `local_weight` times a share, which depends on how much of the training is done."
    loss = trainer.objective
    step_before = trainer.train_step
    now = dict(share=1.0)

    def step(state, batch, cfg, n_steps, *args, **kwargs):
        now["share"] = share_at(state.step / n_steps)
        return step_before(state, batch, cfg, n_steps, *args, **kwargs)

    trainer.train_step = step
    trainer.objective = lambda out, temperature, cfg: loss(
        out, temperature, replace(cfg, local_weight=cfg.local_weight * now["share"])
    )


VARIANTS = dict(
    finer=finer,
    standard=standard,
    earlier=earlier,
    rising=lambda: scheduled(lambda x: x),
    falling=lambda: scheduled(lambda x: 1 - x),
)


def train(store: str, folder: str, text: str) -> None:
    "Nobody held out is looked at: the training participants are watched, since something must be."
    recipe = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "compare_phantom.yaml").read_text())[
        "recipe"
    ]
    cfg = TrainConfig.from_params(
        {
            **SYSTEMS["ptacl"],
            **parse_settings(recipe, TrainConfig),
            **parse_settings(text, TrainConfig),
            "data": store,
            "eval_every": 1000,
        }
    )
    pairs = load_data(store, cfg, progress=False)[1].split("train")
    seed_everything(cfg.seed)
    model = fit_input_scaling(start_encoders(build_system(cfg), cfg), pairs)
    for scaling in (m for m in model.modules() if isinstance(m, Standardised)):
        scaling.fit(model, pairs, cfg)
    Path(folder).mkdir(parents=True, exist_ok=True)
    fit(cfg, model, pairs, pairs.take(range(64)), checkpoint=Path(folder) / "last.ckpt", progress=False)
    save_pretrained(model, cfg, folder)


@torch.no_grad()
def features(model: torch.nn.Module, pairs: Pairs, cfg: TrainConfig) -> dict[str, np.ndarray]:
    "All that a probe might read, of everybody."
    found = {}
    for rows in np.array_split(np.arange(len(pairs)), max(1, len(pairs) // 64)):
        b = Batch(**draw_batch(pairs, rows, round(cfg.window_s * cfg.fs)))
        scaled_BLT = (
            (b.signal_BLT - model.ecg_mean_L[:, None]) / model.ecg_sd_L[:, None] * b.lead_ok_BL[..., None]
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tokens_BND, cls_BD = model.encode_ecg(b.signal_BLT, b.lead_ok_BL)
            said = dict(
                cls=cls_BD,
                ecg=model.ecg_head(cls_BD),
                mean=tokens_BND.float().mean(1),
                leads=tokens_BND.float().unflatten(1, (12, -1)).mean(2).flatten(1),
            )
            if cfg.system != "supervised":
                said["cmr"] = model.embed_cine(b)
        for k, v in (
            said
            | dict(
                summary=encoder_ecg.strip_summary(scaled_BLT, torch.ones(len(rows), 12, 50)),
                profile=slope_profile(scaled_BLT, torch.ones(len(rows), 12, 50)),
            )
        ).items():
            found.setdefault(k, []).append(v.float())
    return {k: torch.cat(v).numpy() for k, v in found.items()}


def r2(truth: pd.DataFrame, predicted: pd.DataFrame) -> pd.Series:
    "R2 of each column, over those whose truth is known."
    return (
        1
        - ((truth - predicted[list(truth)].set_axis(truth.index)) ** 2).sum()
        / ((truth - truth.mean()) ** 2).sum()
    )


def logged(table: pd.DataFrame) -> pd.DataFrame:
    "Gains by their logarithm, as their effects multiply."
    return table.assign(
        truth_voltage_gain=np.log(table.truth_voltage_gain),
        truth_t_gain=np.log(table.truth_t_gain.clip(lower=0.05)),
    )


def score(store: str, development: str, *folders: str) -> None:
    "One line a run, written to search.tsv in the working directory."
    for folder in folders:
        model, cfg = from_pretrained(folder)
        fitted = load_data(store, cfg, progress=False)[1].split("train")
        asked = load_data(development, cfg, progress=False)[1]
        known = logged(fitted.table)
        truth = logged(asked.table)
        a = features(model.eval(), fitted, cfg)
        b = features(model, asked, cfg)
        row = dict(run=Path(folder).name, n=len(asked), median_rank=np.nan) | {
            "distance of found CMRs (SD)": np.nan
        }
        if "cmr" in b:
            similar = similar_by_participant(b["ecg"], b["cmr"], asked.table[PHENOTYPES], 5).query(
                "phenotype == @ALL and metric == @DISTANCE"
            )
            row |= dict(median_rank=float(np.median(ranks(b["ecg"], b["cmr"])))) | {
                "distance of found CMRs (SD)": similar.value.mean()
            }

        def probe(names, columns):
            return r2(
                truth[columns].astype(float),
                predict_phenotypes(
                    np.concatenate([a[k] for k in names], 1),
                    known[columns],
                    np.concatenate([b[k] for k in names], 1),
                    fit_ridge,
                ),
            )

        row |= {
            f"mean R2 from {title}": probe(names, PHENOTYPES).mean() for title, names in READ_FROM.items()
        } | {"mean R2 from the CMR embedding": probe(["cmr"], PHENOTYPES).mean() if "cmr" in b else np.nan}
        row |= {f"R2 of {k.replace('truth_', '')} from CLS": v for k, v in probe(["cls"], LATENTS).items()}
        pd.DataFrame([row]).to_csv(
            "search.tsv",
            sep="\t",
            mode="a",
            header=not Path("search.tsv").exists(),
            index=False,
            float_format="%.4g",
        )


def latents(cohort: str, seed: str, held_out: str, development: str, development_seed: str) -> None:
    "R2 of a linear probe of the true latents, fitted on all but the held-out participants: on these, on the development participants, and there the mean without each latent."
    x = {}
    y = {}
    for name, folder, number in (("cohort", cohort, seed), ("development", development, development_seed)):
        table = pd.read_csv(Path(folder) / "participants.tsv", sep="\t", dtype=dict(participant_id=str))
        truth = pd.DataFrame([vars(draw_latents(k, int(number))) for k in range(len(table))])
        assert np.allclose(truth.lvedv_ml, table.lvedv_ml, atol=0.1), f"{folder} is of another seed"
        x[name] = ecg_latent_table(truth)
        y[name] = table.set_index("participant_id")[PHENOTYPES]
    is_test = y["cohort"].index.isin(
        pd.read_csv(held_out, sep="\t", dtype=dict(participant_id=str)).participant_id
    )
    x |= dict(held_out=x["cohort"][is_test], fitted=x["cohort"][~is_test])
    y |= dict(held_out=y["cohort"][is_test], fitted=y["cohort"][~is_test])

    def reached(part, left_out=()):
        return r2(
            y[part],
            predict_phenotypes(
                x["fitted"].drop(columns=list(left_out)).to_numpy(),
                y["fitted"].reset_index(drop=True),
                x[part].drop(columns=list(left_out)).to_numpy(),
                fit_ridge,
            ),
        )

    for part in ("held_out", "development"):
        print(part, reached(part).round(3).to_dict())
    print(
        "development, mean without",
        pd.Series({n: reached("development", [n]).mean() for n in x["cohort"]})
        .round(3)
        .sort_values()
        .to_dict(),
    )


def recordings(store: str, run: str, folder: str) -> None:
    "Fibrillation by a probe of the store's training participants, and by one of 800 other simulated ECGs of which half have it; and how near one ECG lies to itself at another rate."
    encoder = ECGEncoder.from_pretrained(run)
    known = (
        load_data(store, from_pretrained(run)[1], progress=False)[1]
        .split("train")
        .table[["af"]]
        .astype(float)
        .reset_index(drop=True)
    )
    others = [draw_latents(k, 13, {"af": 0.5}) for k in range(800)]
    ecgs = [simulate_ecg(x, participant_rng(k, 13, "ecg"), 10.0)[0] for k, x in enumerate(others)]
    has_af = pd.DataFrame(dict(af=[float(x.af) for x in others]))
    rows = []
    simulated = {}
    for who, windows in (
        ("training participants", "first"),
        ("800 others, half of them sick", "first"),
        ("800 others, half of them sick", "mean"),
    ):
        if windows not in simulated:
            simulated[windows] = encoder.embed(ecgs, windows=windows).to_numpy()
        fitted, labels = (
            (load_file(Path(run) / "embeddings.safetensors")["train_ecg_BD"], known)
            if who == "training participants"
            else (simulated[windows], has_af)
        )
        z = encoder.embed(find_ecgs(folder).values(), errors="skip", windows=windows)
        said = [diagnoses_of(r) or [] if r.endswith(".hea") else [] for r in z.index]
        names = [Path(r).stem for r in z.index]
        is_sick, is_sinus = (np.array([d in x for x in said]) for d in ("af", "sinus"))
        p = predict_conditions(fitted, labels, z.to_numpy()).af.to_numpy()
        part = np.arange(len(ecgs)) < 600
        held_out = (
            predict_conditions(fitted, labels, simulated[windows]).af
            if who == "training participants"
            else predict_conditions(fitted[part], labels[part].reset_index(drop=True), fitted[~part]).af
        )
        x_RD = StandardScaler().fit(fitted).transform(z.to_numpy())
        similarity = cosine_similarity(x_RD) - 2 * np.eye(len(z))
        i, j = (names.index(n) for n in SAME_ECG)
        rows.append(
            dict(
                probe_of=who,
                cases=int(labels.af.sum()),
                windows=windows,
                auroc_simulated=roc_auc_score(has_af.af[-len(held_out) :], held_out),
                records=len(z),
                fibrillation=int(is_sick.sum()),
                sinus=int(is_sinus.sum()),
                auroc_against_sinus=roc_auc_score(is_sick[is_sick | is_sinus], p[is_sick | is_sinus]),
                fibrillation_found=int((p[is_sick] > 0.5).sum()),
                sinus_called_fibrillation=int((p[is_sinus] > 0.5).sum()),
                mutual_nearest=bool(similarity[i].argmax() == j and similarity[j].argmax() == i),
                similarity=similarity[i, j],
            )
        )
    pd.DataFrame(rows).to_csv("recordings.tsv", sep="\t", index=False, float_format="%.4g")


if __name__ == "__main__":
    what, _, how = sys.argv[1].partition("-")
    if how:
        VARIANTS[how]()
    dict(train=train, score=score, latents=latents, recordings=recordings)[what](*sys.argv[2:])
