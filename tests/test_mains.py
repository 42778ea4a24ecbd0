"""A hum that the notch leaves is said, whichever of the two frequencies it has."""

from dataclasses import replace

import numpy as np
import pytest

from ptacl.base.core import sample_path
from ptacl.data.ecg_files import read_ecg
from ptacl.data.prepared import find_doubts, prepare_ecg

NAMES = [f"sim-{k:04d}" for k in range(1, 7)]


def doubts(name, hum_mv, hum_hz, mains_hz):
    "Warnings about the mains of a sample with hum at every lead."
    ecg = read_ecg(sample_path("ecg") / name)
    hum_T = hum_mv * np.sin(2 * np.pi * hum_hz * np.arange(ecg.signal_LT.shape[1]) / ecg.fs)
    humming = replace(ecg, signal_LT=(ecg.signal_LT + hum_T).astype(np.float32))
    found = prepare_ecg(humming, fs=500.0, mains_hz=mains_hz, record_s=10.0, phase_map="linear")
    said = [(str(e), severity) for e, severity in find_doubts(found, "x")]
    return [pair for pair in said if "hum" in pair[0]]


@pytest.mark.parametrize("hum_hz, mains_hz", [(60.0, 50.0), (50.0, 60.0)])
def test_the_other_mains_is_warned_of(hum_hz, mains_hz):
    "0.02 mV of it; nothing was said before, and the hum stayed."
    for name in NAMES:
        [(text, severity)] = doubts(name, 0.02, hum_hz, mains_hz)
        assert f"a hum of {hum_hz:g} Hz and 0.02 mV is left. Prepare with mains_hz {hum_hz:g}" in text
        assert severity == "warning"


def test_the_mains_that_is_removed_is_not():
    for name in NAMES:
        assert doubts(name, 0.0, 60.0, 50.0) == []
        assert doubts(name, 0.1, 50.0, 50.0) == []
        assert doubts(name, 0.1, 60.0, 60.0) == []
