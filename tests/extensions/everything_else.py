"A reader, a phase map with a third landmark, a metric and a log sink, in one module."

import json
from pathlib import Path

import numpy as np

from ptacl.base.config import TrainConfig
from ptacl.data.beats import Beats
from ptacl.data.cine import Cine
from ptacl.data.ecg import ECG, ecg_from_array
from ptacl.data.ecg_files import READERS, Reader
from ptacl.data.phase import END_SYSTOLE, LANDMARKS, PHASE_MAPS, Landmark, piecewise_map
from ptacl.evaluation.metrics import METRICS, Metric, by_row
from ptacl.training.log_sinks import LOG_SINKS, LogSink


def is_leads_file(path: Path) -> bool:
    "An invented format: `.leads`."
    return path.suffix == ".leads"


def read_leads_file(path: Path) -> ECG:
    "First line: rate in Hz. Then one line a lead: its name, and its samples in microvolt."
    rate, *rows = path.read_text().splitlines()
    names = [row.split()[0] for row in rows]
    microvolt_LT = np.array([[float(x) for x in row.split()[1:]] for row in rows])
    return ecg_from_array(microvolt_LT, float(rate), names, "uV")


READERS["leads"] = Reader(is_leads_file, read_leads_file, (".leads",))


def p_onset_in_ecg(ecg: ECG, beats: Beats) -> np.ndarray:
    "Taken to lie 160 ms before the next R peak."
    after_ms = np.append(np.diff(beats.r_peaks), np.nan) * 1000 / ecg.fs
    return after_ms - 160


def p_onset_in_cine(cine: Cine, curves: tuple[np.ndarray, np.ndarray] | None) -> float:
    "Not measured: a cine shows no P wave."
    return float("nan")


def p_onset_expected_ms(rr_ms: np.ndarray) -> np.ndarray:
    "At every heart rate 160 ms before the next R peak."
    return np.asarray(rr_ms) - 160.0


LANDMARKS["p_onset"] = Landmark(p_onset_in_ecg, p_onset_in_cine, p_onset_expected_ms, (0.6, 0.95))
PHASE_MAPS["three_landmarks"] = piecewise_map({END_SYSTOLE: 0.35, "p_onset": 0.85})


def within_ten_percent(truth: np.ndarray, predicted: np.ndarray) -> float:
    "Share of predictions that are within 10 % of the truth."
    return float((np.abs(predicted - truth) <= 0.1 * np.abs(truth)).mean())


METRICS["within 10 %"] = Metric(by_row(within_ten_percent), "", "higher", "share within 10 %", "regression")


class JSONLines:
    "One line of JSON for each row of the log."

    def __init__(self, folder: Path, cfg: TrainConfig) -> None:
        self.path = folder / "log.jsonl"

    def write(self, row: dict[str, float]) -> None:
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")

    def close(self) -> None:
        "Nothing is left to write."


LOG_SINKS["jsonl"] = LogSink(JSONLines)
