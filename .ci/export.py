"ptacl/ from the notebooks: `python .ci/export.py` is nbdev_export, then ruff's order of imports and its format."

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(root: Path = ROOT) -> int:
    "Export, sort imports, format."
    bin_folder = Path(sys.executable).parent
    ruff = [sys.executable, "-m", "ruff"]
    commands = (
        [bin_folder / "nbdev_export"],
        [*ruff, "check", "--quiet", "--select", "I", "--fix", "--exit-zero", "ptacl"],
        [*ruff, "format", "--quiet", "ptacl"],
    )
    for command in commands:
        done = subprocess.run(command, cwd=root)
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
