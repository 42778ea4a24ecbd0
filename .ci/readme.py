"""README.md from nbs/index.ipynb: `python .ci/readme.py` writes it, `--check` fails where it differs.

nbdev's own nbdev_readme needs Quarto. This does what a README needs of it: cells with `#| hide` (or
`#| include: false`) are dropped, `#| echo: false` drops the input, `#| output: false` the output, the other
directives vanish; pictures in outputs become files in nbs/images; links relative to nbs/ become relative to
the README.
"""

import argparse
import base64
import os
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
NOTICE = "<!-- Made from nbs/index.ipynb by .ci/readme.py: edit the notebook. -->\n\n"
PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}


def directives(source: str) -> dict[str, str]:
    "The `#|` lines of a cell."
    return {k: v.strip() for k, v in re.findall(r"^#\|[ \t]*([\w-]+):?[ \t]*(.*)$", source, re.M)}


def visible(nb):
    "The notebook with the directives carried out."
    cells = []
    for cell in nb.cells:
        said = directives(cell.source) if cell.cell_type == "code" else {}
        if cell.cell_type == "raw" or "hide" in said or said.get("include") == "false":
            continue
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
        if said.get("echo") == "false":
            cell.source = ""
        if said.get("output") == "false":
            cell.outputs = []
        cells.append(cell)
    nb.cells = cells
    return nb


def pictures(nb) -> dict[str, bytes]:
    "Take the pictures out of the outputs: file name -> bytes; the output keeps a reference to the file."
    found = {}
    for cell in nb.cells:
        for i, output in enumerate(cell.get("outputs", [])):
            for kind in PICTURES.keys() & output.get("data", {}).keys():
                name = f"index_{cell.id}_{i}.{PICTURES[kind]}"
                data = output.data[kind]
                found[name] = data.encode() if kind == "image/svg+xml" else base64.b64decode(data)
                output.data = {"text/markdown": f"![figure](images/{name})"}
                break
    return found


def from_top(link: str) -> str:
    "A link relative to nbs/ made relative to the folder above; others as they are."
    if re.match(r"[a-z]+:|[#/]", link):
        return link
    return os.path.normpath(os.path.join("nbs", link)).replace(os.sep, "/")


def render(index: Path) -> tuple[str, dict[str, bytes]]:
    "The README's text and its pictures."
    nb = visible(nbformat.read(index, as_version=4))
    nb.metadata.language_info = {"name": "python"}  # cleaned notebooks do not say it
    images = pictures(nb)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"(\]\()([^)\s]+)", lambda m: m[1] + from_top(m[2]), cell.source)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output.data["text/markdown"] = re.sub(
                    r"(\]\()([^)\s]+)", lambda m: m[1] + from_top(m[2]), output.data["text/markdown"]
                )
    text, _ = MarkdownExporter(exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node(nb)
    text = re.sub(r"```python\s*```\n?", "", text)  # inputs that echo: false emptied
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    return NOTICE + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", images


def main() -> int:
    "Write or compare."
    parser = argparse.ArgumentParser(description="README.md from nbs/index.ipynb")
    parser.add_argument(
        "--check", action="store_true", help="compare only; exit 1 where README.md or a picture differs"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds README.md and nbs")
    args = parser.parse_args()
    text, images = render(args.root / "nbs" / "index.ipynb")
    wanted = {args.root / "README.md": text.encode()} | {
        args.root / "nbs" / "images" / k: v for k, v in images.items()
    }
    stale = [p for p, data in wanted.items() if not p.is_file() or p.read_bytes() != data]
    stale += [p for p in sorted((args.root / "nbs" / "images").glob("index_*")) if p not in wanted]
    if not stale:
        return 0
    names = ", ".join(p.relative_to(args.root).as_posix() for p in stale)
    if args.check:
        print(f"differs from nbs/index.ipynb: {names}. Run python .ci/readme.py", file=sys.stderr)
        return 1
    for p in stale:
        if p not in wanted:
            p.unlink()
            continue
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(wanted[p])
    print(f"written: {names}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
