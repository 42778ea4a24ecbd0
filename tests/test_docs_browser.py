"""The docs in a browser, opened from the disk: folding, search with excerpts, copy buttons, downloads,
figures in the dark and on a telephone, and no request that leaves the machine. Slow; wants Chromium, its
driver and selenium.
"""

import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

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
    "messages",
    "sections/tutorials",
    "sections/results",
    "concepts/words_used",
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
    "The site; PTACL_SITE names one that is built already."
    if os.environ.get("PTACL_SITE"):
        return Path(os.environ["PTACL_SITE"])
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


def search(driver, site: Path, words: str) -> list:
    "The entries of the search, as soon as it has ended."
    show(driver, site, "index")
    box = driver.find_element("css selector", ".sidebar-search")
    box.send_keys(words)
    box.submit()
    wait(
        driver, "document.querySelector('.search-summary, #search-results p')?.innerText.includes('finished')"
    )
    return driver.find_elements("css selector", "#search-results li")


def test_search_finds_methods(driver, site):
    hits = search(driver, site, "from_pretrained")
    first = hits[0].find_element("tag name", "a")
    assert first.text.endswith("Encoder.from_pretrained") and "ecg_encoder.html#" in first.get_attribute(
        "href"
    )
    assert "method" in hits[0].text


def test_search_shows_excerpts(driver, site):
    "Where the words stand, of pages on the disk, without a request."
    requests(driver)
    hits = search(driver, site, "cardiac phase")
    excerpts = [h.find_elements("css selector", "p.context") for h in hits]
    assert sum(len(e) for e in excerpts) >= 3
    assert "phase" in wait(driver, "document.querySelector('#search-results p.context').innerText").lower()
    assert all(u.startswith(("file:", "data:")) for u in requests(driver))


def test_sidebar_folds_and_shows_the_page(driver, site):
    "A section opens and shuts; the page that is shown is in sight however long its section is."
    show(driver, site, "index")
    height = "document.querySelector('.sidebar-tree').scrollHeight"
    shut = driver.execute_script(f"return {height}")
    assert shut < 900
    item = driver.find_element("xpath", "//div[@class='sidebar-tree']//li[a[text()='Reference']]")
    page = item.find_element("xpath", ".//a[text()='All symbols']")
    assert not page.is_displayed()
    item.find_element("css selector", "label").click()
    assert page.is_displayed() and driver.execute_script(f"return {height}") > shut
    item.find_element("css selector", "label").click()
    assert not page.is_displayed()
    show(driver, site, "data/batches")
    box, here = driver.execute_script(
        "return ['.sidebar-scroll', '.current-page > a.current'].map("
        "s => [...document.querySelectorAll(s)].pop().getBoundingClientRect())"
    )
    assert box["top"] <= here["top"] and here["bottom"] <= box["bottom"]


def test_copy_button_and_download(driver, site, repo):
    "Code has a button that copies it, outputs have none; the notebook comes as it lies in the repository."
    show(driver, site, "index")
    buttons = driver.find_elements("css selector", "div.highlight > button.copybtn")
    assert len(buttons) >= 5
    driver.execute_script("arguments[0].scrollIntoView(); arguments[0].click()", buttons[0])
    assert wait(driver, "document.querySelector('button.copybtn.success') !== null")
    show(driver, site, "use/embed")
    assert driver.find_elements("css selector", "div.output.highlight-none")
    assert not driver.find_elements("css selector", "div.output button.copybtn")
    show(driver, site, "losses/contrast")
    link = driver.find_element("css selector", ".origin a.download").get_attribute("href")
    file = Path(unquote(link.removeprefix("file://")))
    assert file.read_bytes() == (repo / "nbs/losses/10_contrast.ipynb").read_bytes()


def test_figures_keep_their_paper_in_the_dark(driver, site):
    "Black letters on a picture without a background of its own would not be seen."
    for page in ("concepts/the_method", "results/main_job", "index", "sections/results"):
        show(driver, site, page, 420, "dark")
        papers = driver.execute_script(
            "const paper = (i) => getComputedStyle(i).backgroundColor;"
            "return [...document.querySelectorAll('.content img')].map(paper)"
        )
        assert papers and set(papers) == {"rgb(255, 255, 255)"}, page
        dark = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", dark)[:3])) < 60


@pytest.mark.parametrize("page", ["train", "symbols", "messages", "results/main_job", "use/embed", "compare"])
@pytest.mark.parametrize("width", [420, 1400])
def test_no_column_is_cut(driver, site, page, width):
    "A table that is wider than the page scrolls; no column is cut, and none of words is a few letters wide."
    show(driver, site, page, width)
    tables = driver.execute_script(
        "document.querySelectorAll('details').forEach(d => d.open = true);"
        "return [...document.querySelectorAll('.content table')].map(t => {"
        "const w = t.closest('.table-wrapper'), r = w && w.getBoundingClientRect();"
        "return [w && getComputedStyle(w).overflowX, r && r.right, w && t.offsetWidth - w.scrollWidth,"
        "[...t.querySelectorAll('td')].filter(d => d.innerText.length > 30 && d.offsetWidth < 110)"
        ".map(d => d.innerText)] })"
    )
    assert tables
    for overflow, right, cut, narrow in tables:
        assert overflow == "auto" and right <= width and cut <= 0 and narrow == [], (
            overflow,
            right,
            cut,
            narrow,
        )


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width, theme", [(1400, "light"), (1400, "dark"), (420, "light"), (420, "dark")])
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
        len(sizes) >= 2 if page.startswith(("concepts/the", "concepts/card", "tutorials")) else True
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
