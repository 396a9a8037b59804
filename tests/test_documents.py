"""The README files: what they show runs, and what is generated in them is that of the records."""

import inspect
import io
import re
import shlex
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import matplotlib.image
import numpy as np
import pytest

from engrams.benchmarks import example
from engrams.benchmarks.cli.app import main
from engrams.benchmarks.cli.options import seeds_of, settings_of
from engrams.benchmarks.jobs.plan import plan
from engrams.reports import store
from engrams.reports.publish import GENERATED
from engrams.reports.store import read_records
from engrams.strategies import DeepGenerativeReplay, EWCPlugin, MASPlugin, MeRGAN, SIPlugin
from engrams.strategies.baselines import FrozenBackbonePlugin, L2Plugin, ReplayPlugin
from engrams.strategies.dark_replay import DERPlugin
from engrams.strategies.experience_replay import ExperienceReplayPlugin
from engrams.strategies.generators import ACGAN, VAE, WGANGP, ClassGaussians
from engrams.strategies.mergan import JointReplayGAN, ReplayAlignmentGAN, ReplayingGAN

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
METHODS = sorted((ROOT / "strategies" / "methods").glob("*.md"))
DOCUMENTS = [README, ROOT / "benchmarks" / "README.md", ROOT / "strategies" / "README.md", *METHODS]
RESULTS = ROOT / "reports" / "results"
NOT_RUN = re.compile(r"<!-- not run by the tests: (.+) -->\n$")
SMALL = ["--experiences", "2", "--wandb", "disabled"]
"""What is shown with 'run' is run like this."""
OTHER = {"bibtex"}
"""What nothing runs."""

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


class Block(NamedTuple):
    language: str
    text: str
    reason: str
    """Why it is not run; empty for one that is."""


def blocks_of(path):
    text = path.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        mark = NOT_RUN.search(text[: found.start()])
        yield Block(found[1], found[2], mark[1] if mark else "")


def engrams(arguments):
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output), patch.object(sys, "argv", ["engrams", *arguments]):
        try:
            main()
        except SystemExit as stop:
            if stop.code:
                pytest.fail(f"engrams {shlex.join(arguments)}:\n{output.getvalue()}")
    return output.getvalue()


@each_document
def test_every_block_runs(tmp_path, monkeypatch, document):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    variables: dict = {}
    for block in blocks_of(document):
        first = re.match(r"# (\w+\.(?:py|toml))\n", block.text)
        if block.reason or block.language in OTHER:
            continue
        if first:  # the file that it is
            Path(first[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            with redirect_stdout(io.StringIO()):
                exec(compile(block.text, f"{document.name}, {block.text.splitlines()[0]!r}", "exec"), variables)
        else:
            assert block.language == "sh"
            for line in block.text.splitlines():
                command = shlex.split(line, comments=True)
                if not command or "make" in command:  # the Makefile's targets are what the suites and tests run
                    continue
                assert command[0] == "engrams", line
                engrams(command[1:] + (SMALL if command[1] == "run" else []))
    if document == README:
        records = read_records("runs")
        assert all(one.complete for one in records), "nothing that is shown fails"
        rows = {(one.protocol, one.strategy, one.variant.removesuffix("experiences=2").rstrip(",")) for one in records}
        slow = "my_strategy:slow_weights"
        assert {("split-digits/class", slow, ""), ("split-digits/class", slow, "step=0.2"), ("my", slow, "")} < rows
        assert ("split-digits/class", "ewc+replay", "ewc.ewc_lambda=10,replay.mem_size=50") in rows
        assert {("wine", "naive", ""), ("wine", "replay", "mem_size=10")} < rows


@each_document
def test_every_link_leads_to_a_file(document):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (document.parent / link).exists(), link


def test_every_link_into_a_page_leads_to_a_heading():
    for document in DOCUMENTS:
        for link, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", document.read_text(encoding="utf-8")):
            if link.endswith(".py"):
                continue  # a name in the code
            text = ((document.parent / link) if link else document).read_text(encoding="utf-8")
            headings = [line.lstrip("# ").lower().replace(" ", "-") for line in text.splitlines() if line[:1] == "#"]
            assert anchor in headings, f"{document}: {link}#{anchor}"


@pytest.mark.parametrize("method", METHODS, ids=lambda path: path.stem)
def test_what_a_methods_page_points_to_in_the_code_is_there(method):
    """The site's own test finds that the lines are those of the name."""
    pointers = re.findall(r"\[`(\w+)`\s+in\s+([\w.]+)\]\(([^)#]+)#([\w.]+)\)", method.read_text(encoding="utf-8"))
    assert pointers
    for name, shown, file, anchor in pointers:
        assert shown == Path(file).name
        assert anchor.split(".")[-1] == name
        code = (method.parent / file).read_text(encoding="utf-8")
        for part in anchor.split("."):
            assert re.search(rf"^\s*(?:def|class) {part}\b", code, re.MULTILINE), f"{file}: {anchor}"


def test_every_argument_stands_on_its_methods_page():
    described = {
        "ewc": [EWCPlugin],
        "mas": [MASPlugin],
        "si": [SIPlugin],
        "dgr": [DeepGenerativeReplay, VAE, WGANGP],
        "mergan": [MeRGAN, ReplayAlignmentGAN, JointReplayGAN, ReplayingGAN, ACGAN],
        "dark_replay": [DERPlugin],
        "baselines": [L2Plugin, FrozenBackbonePlugin, ReplayPlugin, ExperienceReplayPlugin, ClassGaussians],
    }
    for method, plugin in ((method, plugin) for method, plugins in described.items() for plugin in plugins):
        text = (ROOT / "strategies" / "methods" / f"{method}.md").read_text(encoding="utf-8")
        for argument in inspect.signature(plugin).parameters:
            passed_on = argument in ("template", "args", "kwargs", "images", "seed")
            assert f"`{argument}`" in text or passed_on, f"{method}: {argument}"


@pytest.mark.parametrize("method", METHODS, ids=lambda path: path.stem)
def test_commands_that_take_hours_name_what_there_is(method):
    """Everything but to do the runs: protocols, strategies, seeds and settings are those of today."""
    lines = [line for block in blocks_of(method) if block.reason for line in block.text.splitlines()]
    for command in [shlex.split(line, comments=True) for line in lines if line.startswith("engrams run ")]:
        settings = [command.pop(place + 1) for place, word in enumerate(command) if word == "--set"]
        seeds = command[command.index("--seeds") + 1]
        named = command[2 : min(place for place, word in enumerate(command) if word.startswith("--"))]
        assert plan(named[0], named[1:], seeds_of(seeds), settings_of(settings))


def test_what_an_option_does_is_the_mean_over_its_records():
    page = (ROOT / "strategies" / "methods" / "dgr.md").read_text(encoding="utf-8")
    table = page.partition("<!-- options -->")[2].partition("<!-- end of options -->")[0]
    for setting, name in (("r=0.5", "r=0.5"), ("", "as the protocol has it")):
        folder = RESULTS / "records" / "split-digits" / "class" / "dgr-vae" / setting
        acc = [100 * record.acc for record in store.read_all(folder) if record.variant == setting]
        assert len(acc) == 5
        assert re.search(rf"\| {re.escape(name)} +\| +{np.mean(acc):.2f} ± ", table)


def test_protocols_of_fewer_trials_than_twelve_are_named():
    text = " ".join((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").split())
    said = re.search(r"Some protocols have fewer: (.*?)\. ", text)[1].split("; ")
    named = {name: part.split()[0] for part in said for name in re.findall(r"`(.+?)`", part)}
    chosen = ROOT / "benchmarks" / "protocols" / "chosen"
    words = {"6": "six", "8": "eight", "9": "nine", None: "on"}  # None: values that the command names
    searched = {}
    for file in chosen.rglob("*.toml"):
        name = file.relative_to(chosen).parts[0].removesuffix(".toml")
        for count in re.findall(
            r'^command = ".+?(?: --trials (\d+))?"$', file.read_text(encoding="utf-8"), re.MULTILINE
        ):
            searched.setdefault(name, set()).add(count or None)
    assert named == {name: words[count] for name, counts in searched.items() for count in counts if count != "12"}


def test_the_readme_is_short():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 250
    assert max(map(len, lines)) <= 120


def test_what_is_generated_is_that_of_the_records(tmp_path, monkeypatch):
    """All pages, and the README's table; the pictures are there."""
    for name in ("records", "studies"):
        (tmp_path / name).symlink_to(RESULTS / name)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **kwargs: None)
    readme = tmp_path / "README.md"
    readme.write_text(README.read_text(encoding="utf-8"), encoding="utf-8")
    folders = [str(tmp_path / "records"), "--studies", str(tmp_path / "studies"), "--out", str(tmp_path / "pages")]
    shutil.copytree(ROOT / "strategies" / "methods", tmp_path / "methods")
    (tmp_path / "pages").mkdir()
    gone, mine = tmp_path / "pages" / "gone.md", tmp_path / "pages" / "mine.md"
    gone.write_text(f"# gone\n\n{GENERATED}\n", encoding="utf-8")
    mine.write_text("# somebody's own\n", encoding="utf-8")
    engrams(["pages", *folders, "--readme", str(readme), "--methods", str(tmp_path / "methods")])
    for method in METHODS:
        filled = (tmp_path / "methods" / method.name).read_text(encoding="utf-8")
        assert filled == method.read_text(encoding="utf-8"), "run: make readme"
        assert " ± " in filled, "there are results"
    assert readme.read_text(encoding="utf-8") == README.read_text(encoding="utf-8"), "run: make readme"
    assert not gone.exists(), "of a protocol that has no records any more"
    mine.unlink()  # and was not touched
    page = (tmp_path / "pages" / "split-cifar10-class.md").read_text(encoding="utf-8")
    assert "![images of dgr-vae training.epochs=4, seed 0](../records/split-cifar10/class/dgr-vae/" in page
    made, committed = (
        {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md")}
        for folder in (tmp_path / "pages", RESULTS / "pages")
    )
    assert made == committed, "run: make readme"
    assert {"parity.md", "studies.md", "README.md"} < set(made)
    assert (RESULTS / "pages" / "matrices.png").exists()
    for page in (RESULTS / "pages").glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_pages_take_the_place_of_nobodys_own(tmp_path):
    """Whole: where one page cannot be written, none is."""
    mine = tmp_path / "README.md"
    mine.write_bytes("my own p\xe4ge\n".encode("latin-1"))
    with pytest.raises(pytest.fail.Exception, match=r"README.md: not made by 'engrams pages'.*choose another --out"):
        engrams(["pages", str(RESULTS / "records" / "mnist-usps"), "--out", str(tmp_path)])
    assert [*tmp_path.iterdir()] == [mine]
    assert mine.read_bytes() == b"my own p\xe4ge\n"


def test_the_example_runs(tmp_path, capsys):
    example.main(tmp_path)
    said = capsys.readouterr().out
    table = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line[:6] in ("naive ", "replay")}
    assert float(table["replay"][0]) > float(table["naive"][0]) + 50, "class-incremental: only rehearsal helps"
    for name in ("matrices.png", "so-far.png"):
        assert matplotlib.image.imread(tmp_path / name).std() > 0.05, "something is drawn"
