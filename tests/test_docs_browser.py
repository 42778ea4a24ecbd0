"""The docs in a browser, opened from the disk: search, figures, and no request that leaves the machine. Slow;
wants Chromium, its driver and selenium.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from ptacl.docs.site import build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*Check CHANGES for Sphinx API modifications"),
]
PAGES = (
    "index",
    "concepts/the_method",
    "concepts/cardiac_phase",
    "tutorials/read_a_real_study",
    "results/phantom_comparison",
    "train",
    "losses/contrast",
    "plots/paper",
    "symbols",
)


@pytest.fixture(scope="module")
def driver():
    "A browser without a window that logs its requests."
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed: pip install selenium"
    )
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("no chromium or no chromedriver here (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for a in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-background-networking",
    ):
        options.add_argument(a)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def site(repo, driver, tmp_path_factory) -> Path:
    "The site."
    return build(repo, tmp_path_factory.mktemp("docs") / "site").parent


def show(driver, site: Path, page: str, width: int = 1400, theme: str = "light") -> None:
    "Open a page from the disk; PTACL_SHOTS names a folder for pictures of it."
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        dict(width=width, height=1000, deviceScaleFactor=1, mobile=False),
    )
    driver.get((site / f"{page}.html").as_uri())
    driver.execute_script(f"document.body.dataset.theme = '{theme}'")
    if os.environ.get("PTACL_SHOTS"):
        driver.save_screenshot(
            str(Path(os.environ["PTACL_SHOTS"]) / f"{page.replace('/', '-')}-{width}-{theme}.png")
        )


def requests(driver) -> list[str]:
    "Addresses that were asked for since the last call."
    events = [json.loads(e["message"])["message"] for e in driver.get_log("performance")]
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def wait(driver, script: str, seconds: float = 20):
    "What a script returns as soon as it is true."
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(driver, seconds).until(lambda d: d.execute_script(f"return {script}"))


def test_search_finds_the_entry(driver, site):
    "Typed into the box of the first page, as a reader would."
    show(driver, site, "index")
    box = driver.find_element("css selector", ".sidebar-search")
    box.send_keys("info_nce")
    box.submit()
    hits = wait(driver, "Array.from(document.querySelectorAll('#search-results li a')).map(a => a.href)")
    assert hits[0].split("?")[0].split("#")[0].endswith("losses/contrast.html") and any(
        h.endswith("#ptacl.losses.contrast.info_nce") for h in hits
    ), hits[:5]
    driver.get(next(h for h in hits if h.endswith("#ptacl.losses.contrast.info_nce")))
    assert (
        "Symmetric InfoNCE"
        in driver.find_element("id", "ptacl.losses.contrast.info_nce").find_element("xpath", "..").text
    )


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width, theme", [(1400, "light"), (390, "dark")])
def test_page(driver, site, page, width, theme):
    """Every picture is drawn, nothing is wider than the page, nothing is fetched from elsewhere, no script
    fails.
    """
    requests(driver)
    driver.get_log("browser")
    show(driver, site, page, width, theme)
    sizes = driver.execute_script(
        "for (const i of document.images) i.loading = 'eager'; "
        "return Promise.all(Array.from(document.images).map(i => i.decode().catch(() => 0)))"
        ".then(() => Array.from(document.images).map(i => [i.src, i.naturalWidth]))"
    )
    assert all(w > 0 for _, w in sizes) and (
        len(sizes) >= 2 if page.startswith(("concepts", "tutorials")) else True
    ), sizes
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    asked = requests(driver)
    assert asked and all(u.startswith(("file:", "data:")) for u in asked), asked
    assert [e["message"] for e in driver.get_log("browser") if e["level"] == "SEVERE"] == []
    # drawn as a formula
    if page == "concepts/the_method":
        assert (
            driver.execute_script(
                "return document.querySelector('math[display=block]').getBoundingClientRect().height"
            )
            > 30
        )
