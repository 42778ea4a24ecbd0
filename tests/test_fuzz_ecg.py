"""Mutated ECG files and tables (fuzz_ecg.py): right values, values with a reason, or one `BadInput`."""

from collections import Counter

import fuzz_ecg


def test_mutations():
    "1,200 mutations of eleven kinds of files, the same ones always."
    rows = list(fuzz_ecg.run(1200, seed=0))
    assert [row for row in rows if row[2] == "fault"] == []
    counts = Counter(row[2] for row in rows)
    assert counts["error"] > 500 and counts["same"] > 100, counts


def test_it_finds_faults(tmp_path):
    "A reader that raises something else, quotes a name, or reads other values under a checksum is found."
    kind = next(k for k in fuzz_ecg.kinds() if k.name == "wfdb with checksums")
    (tmp_path / kind.target).write_bytes(kind.files[kind.target])
    (tmp_path / "rec.dat").write_bytes(kind.files["rec.dat"])
    kind.truth = sound = kind.read(tmp_path / kind.target)

    def found(read):
        kind.read = read
        return fuzz_ecg.outcome(kind, "rec.dat", kind.files, tmp_path)

    def raises(error):
        def read(path):
            raise error

        return read

    assert found(raises(KeyError("x")))[0] == "fault"
    assert found(raises(fuzz_ecg.BadInput("a", f"says {fuzz_ecg.PLANTED}", "b")))[0] == "fault"
    assert found(raises(fuzz_ecg.BadInput("a", "b", "c"))) == ("error", "")
    assert found(lambda path: sound) == ("same", "")
    louder = fuzz_ecg.ECG(sound.signal_LT * 2, sound.fs, sound.lead_names, sound.lead_ok_L)
    assert found(lambda path: louder) == ("fault", "other values under a checksum")
