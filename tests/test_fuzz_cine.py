"Some of the damaged inputs of `fuzz_cine.py`: right values, explained ones, or one `BadInput`."

import fuzz_cine


def test_damaged_cines():
    "800 of them; the command runs as many as one likes."
    outcomes = fuzz_cine.run(800, seed=19)
    assert fuzz_cine.faults_of(outcomes) == []
    counts = {what: sum(o.what == what for o in outcomes) for what in ("same", "other", "refused")}
    # damage is mostly found, and what is not in use may be damaged
    assert counts["refused"] > 250 and counts["same"] > 150 and counts["other"] < 200


def test_a_fault_would_be_seen():
    "Crashes, other values that nothing explains, too slow, too large."
    fine = fuzz_cine.Outcome("nii", "nii scl_slope", "other", "frames", 0.1, 1.0)
    assert fuzz_cine.faults_of([fine]) == []
    bad = [
        fuzz_cine.Outcome("nii", "nii scl_slope", "crash", "KeyError", 0.1, 1.0),
        fuzz_cine.Outcome("nii", "nii descrip", "other", "frames", 0.1, 1.0),
        fuzz_cine.Outcome("nii", "nii dim", "same", "", 11.0, 1.0),
        fuzz_cine.Outcome("nii", "nii dim", "same", "", 0.1, 2000.0),
    ]
    assert len(fuzz_cine.faults_of(bad)) == 4
