"""The documentation site as a reader has it: complete without a network, read from the disk, at two widths.

A browser is needed: Chromium or Chrome on the path, or named by the variable CHROME.  Its screenshots are left in the
temporary folder of the test.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image
from shell import ROOT, environment

pytestmark = pytest.mark.slow

DESKTOP, PHONE = 1280, 390
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
#: Attributes that make a browser load something.
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "link": "href",
    "source": "src",
    "video": "src",
    "object": "data",
}
SHOWN = ("index.html", "install.html", "tasks.html", "theory.html", "gallery.html", "howto/sampler.html")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        str(ROOT / "docs/mkdocs.yml"),
        "-d",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**environment(), "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> list[str]:
    """The pages that are written by people: all but those of files of the repository."""
    paths = sorted(str(path.relative_to(site)) for path in site.rglob("*.html"))
    return [path for path in paths if not path.startswith("source/") and path != "404.html"]


class Loaded(HTMLParser):
    """Collects what a page loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name == LOADED.get(tag)]


def test_the_site_builds_without_a_warning(site: Path) -> None:
    theory = (site / "theory.html").read_text()
    assert 'href="source/tests/test_transitions.py.html#test_steps_compose"' in theory
    assert "(B, *)" in (site / "reference/denoiser.html").read_text()
    assert len(list(site.glob("notebooks/*.html"))) == len(list(ROOT.glob("notebooks/*.ipynb")))


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text()
        elsewhere = [address for address in Loaded(text).addresses if re.match(r"(https?:)?//", address)]
        assert not elsewhere, path
        assert not re.search(r'<\w+ class="mermaid"', text), f"{path}: the theme would fetch a script for it"
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text()), path


def test_every_formula_is_mathml(site: Path) -> None:
    theory = (site / "theory.html").read_text()
    assert theory.count("<math") == theory.count('class="arithmatex"') > 100
    for path in site.rglob("*.html"):
        assert not re.search(r'class="arithmatex">\\[(\[]', path.read_text()), path


@functools.cache
def browser() -> str:
    """The path of a browser."""
    path = os.environ.get("CHROME") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(
            "there is no browser to look at the site with. Fix: install Chromium (Debian: apt-get install chromium) or "
            "Chrome, or set CHROME to the path of one"
        )
    return path


def browse(address: str, profile: Path, *options: str) -> str:
    """What a browser without a network makes of a page: its document, after its scripts have run."""
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
    network = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [browser(), *fixed, network, f"--user-data-dir={profile}", *options, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


#: Opens pages one after the other in a frame of some width, and writes what is wider than the frame.
MEASURE = """<!doctype html><body><script>
const [pages, width] = %s, wide = {};
const frame = Object.assign(document.createElement("iframe"), {width, height: 900, style: "border: 0"});
function scrolls(element) {
  for (let e = element.parentElement; e; e = e.parentElement)
    if (getComputedStyle(e).overflowX != "visible" && e.getBoundingClientRect().right <= width + 1) return true;
}
function next() {
  const page = pages.shift();
  if (!page) { document.body.innerHTML = `<pre id="wide">${encodeURIComponent(JSON.stringify(wide))}</pre>`; return; }
  frame.onload = () => {
    const inner = frame.contentDocument, excess = inner.documentElement.scrollWidth - width;
    const culprits = [...inner.querySelectorAll("body *")].filter(
      (e) => e.getBoundingClientRect().right > width + 1 && !scrolls(e));
    if (excess > 0) wide[page] = [excess, ...culprits.slice(0, 3).map((e) => e.outerHTML.slice(0, 120))];
    next();
  };
  frame.src = page;
}
document.body.append(frame);
next();
</script></body>"""


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_no_page_scrolls_sideways(site: Path, pages: list[str], tmp_path: Path, width: int) -> None:
    addresses = [(site / page).as_uri() for page in pages]
    (tmp_path / "measure.html").write_text(MEASURE % json.dumps([addresses, width]))
    options = (
        "--allow-file-access-from-files",
        "--virtual-time-budget=1000000",
        "--window-size=1400,1000",
        "--dump-dom",
    )
    document = browse((tmp_path / "measure.html").as_uri(), tmp_path / "profile", *options)
    measured = re.search(r'<pre id="wide">(.*?)</pre>', document)
    assert measured, document[-2000:]
    wide: dict[str, Any] = json.loads(unquote(unescape(measured[1])))
    assert not wide, "\n".join(f"{page}: {width}" for page, width in wide.items())


@pytest.mark.parametrize(
    ("question", "answer"), [("UniPC", "reference/samplers.html"), ("callbacks", "howto/callbacks.html")]
)
def test_the_search_answers_from_the_disk(site: Path, tmp_path: Path, question: str, answer: str) -> None:
    address = f"{(site / 'index.html').as_uri()}?q={question}"
    document = browse(address, tmp_path / "profile", "--virtual-time-budget=20000", "--dump-dom")
    answers = re.findall(r'href="([^"]*)" class="md-search-result__link"', document)
    assert any(answer in unescape(link) for link in answers), answers


@pytest.mark.parametrize(("width", "height"), [(DESKTOP, 900), (PHONE, 844)])
@pytest.mark.parametrize("page", SHOWN)
def test_a_page_can_be_looked_at(site: Path, tmp_path: Path, page: str, width: int, height: int) -> None:
    file = tmp_path / "page.png"
    browse((site / page).as_uri(), tmp_path / "profile", f"--window-size={width},{height}", f"--screenshot={file}")
    with Image.open(file) as shown:
        assert shown.size == (width, height)
        colors = shown.convert("RGB").getcolors(1 << 24)
    assert colors is not None and len(colors) > 50  # text and its antialiasing, not an empty page
