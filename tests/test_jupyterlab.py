"""JupyterLab as a person uses it, in Debian's Chromium: train.ipynb run to its last figure, explore.ipynb
moved by its slider; nothing is asked of the world outside.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

pytestmark = pytest.mark.slow
TOKEN = "of-this-test-only"
# parameters of the copies, so that they take seconds
SHORT = dict(train=dict(epochs=2, n_boot=50, workers=1), explore=dict(k=3))


@dataclass
class Lab:
    "A browser that has a JupyterLab open."

    driver: object  # of selenium
    address: str  # of the server, without a path

    def open(self, name: str) -> None:
        "Open a notebook and wait until its kernel answers."
        self.driver.get(f"{self.address}/lab/tree/{name}?token={TOKEN}&reset")
        self.wait(
            (
                f"return window.jupyterapp?.shell?.currentWidget?.context?.path === '{name}' && "
                "!!jupyterapp.shell.currentWidget.sessionContext?.session?.kernel"
            ),
            90,
        )
        assert (
            self.later(
                "await panel.context.ready; await panel.sessionContext.ready; "
                "return (await panel.sessionContext.session.kernel.info).status"
            )
            == "ok"
        )

    def run_all(self, limit_s: float) -> None:
        "The command behind the menu's Run All Cells; waits until the last cell is done."
        self.later(
            "await panel.context.save(); "
            "panel.runAll = jupyterapp.commands.execute('notebook:run-all-cells'); return true"
        )
        self.wait(
            (
                "const cells = [...jupyterapp.shell.currentWidget.content.model.cells].filter(c => "
                "c.type === 'code'); return cells.every(c => c.executionCount) || cells.some(c => "
                "[...c.outputs.toJSON()].some(o => o.output_type === 'error'))"
            ),
            limit_s,
        )

    def outputs(self) -> list[list[dict]]:
        "Outputs of every cell, from the notebook's model (cells out of sight are not in the page)."
        return json.loads(
            self.driver.execute_script(
                "return JSON.stringify([...jupyterapp.shell.currentWidget.content.model.cells]"
                ".map(c => c.type === 'code' ? c.outputs.toJSON() : []))"
            )
        )

    def show_cell(self, index: int) -> None:
        "Scroll a cell into sight."
        self.later(f"await panel.content.scrollToItem({index}, 'start'); return true")
        time.sleep(0.5)

    def later(self, body: str) -> object:
        "Run JavaScript that waits; `panel` is the notebook in front."
        answer = self.driver.execute_async_script(
            "const done = arguments[arguments.length-1], panel = jupyterapp.shell.currentWidget; "
            f"(async () => {{ {body} }})().then(v => done({{value: v}}), e => done({{error: "
            f"String(e)}}))"
        )
        assert "error" not in answer, answer
        return answer["value"]

    def wait(self, script: str, limit_s: float) -> object:
        "Ask until the answer is true."
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if found := self.driver.execute_script(script):
                return found
            time.sleep(0.3)
        raise AssertionError(f"after {limit_s} s still not: {script}")

    def addresses(self) -> set[str]:
        "Hosts that pages of this browser have asked."
        sent = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        urls = {
            m["params"].get("request", m["params"]).get("url", "")
            for m in sent
            if m["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated")
        }
        return {urlsplit(u).hostname for u in urls if urlsplit(u).scheme in ("http", "https", "ws", "wss")}


def copy_short(source: Path, to: Path, params: dict) -> None:
    "A copy of an experiment whose parameters cell says something else."
    nb = nbformat.read(source, 4)
    cell = next(c for c in nb.cells if "parameters" in c.metadata.get("tags", []))
    lines = cell.source.splitlines()
    for name, value in params.items():
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{name}: "))
        lines[at] = f"{lines[at].split(' = ')[0]} = {value!r}"
    cell.source = "\n".join(lines)
    nbformat.write(nb, to)


def start_server(folder: Path) -> tuple[subprocess.Popen, str]:
    "A JupyterLab that knows no settings but its own."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    own = {
        name: str(folder / ".jupyter" / name)
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
            "IPYTHONDIR",
            "PTACL_RUNS",
        )
    }
    # without the question about news, which lies over the page
    (folder / ".jupyter" / "JUPYTER_CONFIG_DIR" / "labconfig").mkdir(parents=True)
    (folder / ".jupyter" / "JUPYTER_CONFIG_DIR" / "labconfig" / "page_config.json").write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
    )
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        f"--ServerApp.root_dir={folder}",
        f"--IdentityProvider.token={TOKEN}",
        "--LabApp.expose_app_in_browser=True",
    ]
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(
            command,
            cwd=folder,
            env={k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | own,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        assert server.poll() is None, (folder / "server.log").read_text()
        try:
            with urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=5):
                return server, address
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError((folder / "server.log").read_text())


def start_browser(profile: Path, width: int = 1400, height: int = 1000):
    "Chromium without a window, that writes down what it asks for."
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed: pip install selenium"
    )
    from selenium.webdriver.chrome.service import Service

    chromium, chromedriver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not chromedriver:
        pytest.skip(
            f"no {'chromium' if not chromium else 'chromedriver'} here: apt-get install chromium "
            "chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    driver.set_script_timeout(120)
    return driver


@pytest.fixture(scope="module")
def lab(repo, tmp_path_factory) -> Iterator[Lab]:
    "Copies of the two notebooks, a server, a browser."
    folder = tmp_path_factory.mktemp("lab")
    driver = start_browser(folder / ".profile")
    for name, params in SHORT.items():
        copy_short(repo / "nbs" / f"{name}.ipynb", folder / f"{name}.ipynb", params)
    server, address = start_server(folder)
    try:
        yield Lab(driver, address)
    finally:
        driver.quit()
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_train_runs_to_its_last_figure(lab):
    lab.open("train.ipynb")
    lab.run_all(1800)
    outputs = lab.outputs()
    assert not [o for outs in outputs for o in outs if o["output_type"] == "error"]
    pictures = [i for i, outs in enumerate(outputs) if any("image/png" in o.get("data", {}) for o in outs)]
    # pair, training, similarity, retrieval, phenotypes, what was learned
    assert sum("image/png" in o.get("data", {}) for outs in outputs for o in outs) == 6
    lab.show_cell(pictures[-1])
    shown = lab.wait(
        (
            f"const cell = jupyterapp.shell.currentWidget.content.widgets[{pictures[-1]}], img = "
            "cell.node.querySelector('.jp-OutputArea img'); return img && img.naturalWidth ? "
            "[img.naturalWidth, img.getBoundingClientRect().width] : null"
        ),
        30,
    )
    assert shown[0] > 400 and shown[1] > 300  # pixels: the probe's figure, on the screen
    assert (
        lab.driver.execute_script(
            "return "
            "jupyterapp.shell.currentWidget.content.node.querySelectorAll("
            '\'[data-mime-type="application/vnd.jupyter.stderr"] '
            ".ansi-red-fg, "
            '.jp-RenderedText[data-mime-type="application/vnd.jupyter.error"]\').length'
        )
        == 0
    )
    assert lab.addresses() == {"127.0.0.1"}


def pixels(lab: Lab, selector: str) -> str:
    "The picture that an element of the page shows, as text."
    return lab.driver.execute_script(
        (
            "const img = document.querySelector(arguments[0]); if (img.tagName === 'CANVAS') return "
            "img.toDataURL(); const c = document.createElement('canvas'); c.width = img.naturalWidth; "
            "c.height = img.naturalHeight; c.getContext('2d').drawImage(img, 0, 0); return "
            "c.toDataURL()"
        ),
        selector,
    )


def test_explorer_moves(lab):
    """The slider's arrow key moves the heart and the lines on the ECG; the button plays; the movie plays by
    itself.
    """
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    lab.open("explore.ipynb")
    lab.run_all(300)
    outputs = lab.outputs()
    assert not [o for outs in outputs for o in outs if o["output_type"] == "error"]
    at = next(
        i
        for i, outs in enumerate(outputs)
        if any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outs)
    )
    lab.show_cell(at)
    heart = "img.ptacl-heart"
    caption = (
        "return [...document.querySelectorAll('.widget-html-content')].map(n => n.textContent).find(t "
        "=> t.startsWith('frame ')) || ''"
    )
    lines = "return [...document.querySelectorAll('.ptacl-lines div')].map(n => n.style.left)"
    assert lab.wait(caption, 60) == "frame 1 of 25 · phase 0.00 · 0 ms after R · ED"
    lab.wait(f"return document.querySelector({heart!r})?.naturalWidth", 30)
    before = pixels(lab, heart)
    lines_before = lab.driver.execute_script(lines)
    handle = lab.driver.find_element(By.CSS_SELECTOR, ".widget-slider .noUi-handle")
    for _ in range(3):
        handle.send_keys(Keys.ARROW_RIGHT)
    lab.wait(f"return (() => {{ {caption} }})().startsWith('frame 4 of 25')", 20)
    lab.wait(f"return (() => {{ {lines} }})()[0] !== {json.dumps(lines_before[0])}", 20)
    time.sleep(0.5)
    assert pixels(lab, heart) != before
    moved = [
        float(b[:-1]) - float(a[:-1])
        for a, b in zip(lines_before, lab.driver.execute_script(lines), strict=True)
    ]
    assert len(moved) > 3 and min(moved) > 0  # in every beat, forward
    lab.driver.find_element(By.CSS_SELECTOR, ".widget-play button").click()
    lab.wait(f"return !(() => {{ {caption} }})().startsWith('frame 4 of 25')", 20)
    movie = next(
        i
        for i, outs in enumerate(outputs)
        if any("data-movie" in "".join(o.get("data", {}).get("text/html", "")) for o in outs)
    )
    lab.show_cell(movie)
    first = lab.wait(
        (
            "return document.querySelector('[data-movie] canvas') && "
            "document.querySelector('[data-movie] .caption').textContent"
        ),
        20,
    )
    lab.wait(
        f"return document.querySelector('[data-movie] .caption').textContent !== {json.dumps(first)}", 20
    )
    assert lab.addresses() == {"127.0.0.1"}
