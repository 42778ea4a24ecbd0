"""ptacl/ from the notebooks: `python .ci/export.py` is nbdev_export, then absolute imports in ruff's order
and format.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(root: Path = ROOT) -> int:
    "Export, make the imports absolute, sort them, format."
    bin_folder = Path(sys.executable).parent
    ruff = [sys.executable, "-m", "ruff"]
    commands = (
        [bin_folder / "nbdev_export"],
        [
            *ruff,
            "check",
            "--quiet",
            "--select",
            "TID252,I",
            "--fix",
            "--unsafe-fixes",
            "--exit-zero",
            "ptacl",
        ],
        [*ruff, "format", "--quiet", "ptacl"],
    )
    for command in commands:
        done = subprocess.run(command, cwd=root)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
