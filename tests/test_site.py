"""The site of documents: built strictly, whole, and with nothing to load from a network."""

import io
import os
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from sphinx.cmd.build import main

ROOT = Path(__file__).parent.parent
SITE = Path("reports", "site")
BROWSER = shutil.which("chromium-headless-shell")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),  # Sphinx's, of MyST
]
needs_browser = pytest.mark.skipif(not BROWSER, reason="there is no chromium-headless-shell here (Debian's package)")


def build(tree):
    """As ``make docs`` does it, in this process; returns its exit status and what it said."""
    recipe = next(line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "-m sphinx" in line)
    before, said = Path.cwd(), io.StringIO()
    os.chdir(tree)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            status = main(recipe.partition("-m sphinx ")[2].split())
    finally:
        os.chdir(before)
    return status, said.getvalue()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the repository, which a test may spoil, with the site in it."""
    tree = tmp_path_factory.mktemp("site") / "engrams"
    for room in ("benchmarks", "strategies", "reports"):
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("record.json", "__pycache__"))
    for file in ("README.md", "CITATION.cff"):
        shutil.copy(ROOT / file, tree)
    status, said = build(tree)
    assert (status, said) == (0, ""), "nothing is amiss, and nothing is said"
    return tree


@pytest.fixture(scope="module")
def site(tree):
    return tree / "site"


class Loaded(HTMLParser):
    """What a page loads by itself, and where its links lead."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.add(found.get("id"))
        if tag == "a":
            self.links.append(found.get("href") or "")
        elif tag == "link" and found.get("rel") not in ("index", "search", "next", "prev", "author"):
            self.loads.append(found["href"])
        elif "src" in found:
            self.loads.append(found["src"])


def test_every_page_is_there_and_everything_that_it_loads_or_links_to(site):
    pages = {path: Loaded(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 30
    for path, page in pages.items():
        for url in page.loads:
            assert not urlsplit(url).scheme, f"{path}: {url}"
        for url in page.loads + page.links:
            parts = urlsplit(url)
            if parts.scheme or not url:
                continue
            to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert to.exists(), f"{path}: {url}"
            if parts.fragment and to in pages:
                assert unquote(parts.fragment) in pages[to].ids, f"{path}: {url}"
    for path in site.rglob("*.css"):
        assert not re.search(r"""url\(\s*["']?(https?:)?//|@import""", path.read_text(encoding="utf-8")), path


def test_equations_are_drawn_by_the_browser_itself(site):
    page = (site / "strategies" / "methods" / "ewc.html").read_text(encoding="utf-8")
    assert (
        page.count('display="block"')
        == (ROOT / "strategies/methods/ewc.md").read_text(encoding="utf-8").count("$$") / 2
    )
    assert "$$" not in page


def test_the_lines_that_an_equation_is_linked_to_hold_it(site):
    code = (site / "strategies" / "mergan.py.html").read_text(encoding="utf-8")
    line = next(line for line in code.splitlines() if 'id="ReplayAlignmentGAN.generator_loss"' in line)
    assert "generator_loss" in re.sub("<[^>]+>", "", line)
    assert code.index(line) > code.index('id="ReplayAlignmentGAN"') > code.index('id="JointReplayGAN.generator_loss"')


def test_each_page_is_there_as_markdown_and_llms_txt_lists_them_all(site):
    listed = re.findall(r"^- \[.+\]\((.+)\)$", (site / "llms.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert {path.removesuffix(".md") for path in listed} >= {
        "README",
        "strategies/methods/ewc",
        "reports/results/pages/split-mnist-class",
        "reports/wandb/README",
        "reports/site/reference/commands",
    }
    pages = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")}
    of_code = {path for path in pages if path.endswith(".py.md")}
    assert set(listed) == pages - of_code - {"index.md", "genindex.md", "search.md", "py-modindex.md"}
    for path in listed:
        text = (site / path).read_text(encoding="utf-8")
        if "/reference/" not in path:
            assert text == (ROOT / path).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (site / path).parent.joinpath(link).exists(), f"{path}: {link}"


def test_the_reference_has_the_public_names_and_the_commands(site):
    reference = site / "reports" / "site" / "reference"
    strategies = (reference / "strategies.md").read_text(encoding="utf-8")
    for name in (
        "EWCPlugin(ewc_lambda",
        "MASPlugin(mas_lambda",
        "DeepGenerativeReplay(",
        "MeRGAN(",
        "diagonal_fisher(",
    ):
        assert name in strategies
    assert "**fisher_samples**" in strategies, "arguments, one by one"
    assert "|f_i(x_k)| |f_j(x_k)|" in (reference / "strategies.html").read_text(encoding="utf-8"), "no sign is lost"
    commands = (reference / "commands.md").read_text(encoding="utf-8")
    for command in ("engrams run", "engrams table", "engrams report"):
        assert f"`{command}`" in commands


@needs_browser
def test_it_is_searched_and_read_from_disk_with_no_network(site):
    from playwright.sync_api import sync_playwright

    asked, complaints = [], []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        for name in ("index", "strategies/methods/mergan", "reports/results/pages/parity"):
            page.goto((site / f"{name}.html").as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, f"{name} is no wider than a phone"
        page.goto((site / "search.html").as_uri() + "?q=consolidation")
        page.wait_for_selector("ul.search li a")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
        assert "EWC" in page.inner_text("ul.search")
        browser.close()
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]
    assert not complaints


def test_a_dead_link_a_name_that_is_gone_or_code_that_is_gone_fails_it(tree, site):
    """The last test: it spoils the tree."""
    with (tree / "strategies/methods/mas.md").open("a", encoding="utf-8") as page:
        page.write("\n[a page](gone.md) [a heading](ewc.md#gone) [a function](../ewc.py#no_such_name)\n")
    with (tree / SITE / "reference" / "benchmarks.md").open("a", encoding="utf-8") as page:
        page.write("\n```{eval-rst}\n.. autofunction:: engrams.benchmarks.no_such_function\n```\n")
    status, said = build(tree)
    assert status == 1
    complaints = [line for line in said.splitlines() if "WARNING" in line]
    for word in ("gone.md", "'gone'", "no_such_name", "no_such_function"):
        assert [line for line in complaints if word in line], (word, complaints)
