"""The local report: what is in it, and how it behaves in a real browser."""

import csv
import io
import json
import resource
import shutil
import subprocess
import sys
import time
import zlib
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from engrams.benchmarks.cli import tables  # noqa: F401, its commands
from engrams.benchmarks.cli.app import app
from engrams.benchmarks.cli.options import seeds_of, settings_of
from engrams.benchmarks.jobs.plan import plan
from engrams.reports.local import contents, page
from engrams.reports.matrix import METRICS, metrics
from engrams.reports.parity import board
from engrams.reports.predictions import read_predictions
from engrams.reports.settings import set_by_hand
from engrams.reports.store import Generated, Record, folder_of, write
from tests.test_predictions import done

BROWSER = shutil.which("chromium-headless-shell")
needs_browser = pytest.mark.skipif(not BROWSER, reason="there is no chromium-headless-shell here (Debian's package)")


def record(protocol, strategy, seed, experiences=5, rng=None, **more):
    rng = rng or np.random.default_rng([seed, *strategy.encode()])
    matrix = np.tril(rng.uniform(0.3, 1, (experiences, experiences))).round(4).tolist()
    return Record(
        **{
            "protocol": protocol,
            "strategy": strategy,
            "seed": seed,
            "status": "complete",
            "accuracy_matrix": matrix,
            "accuracy_at_initialisation": [0.1] * experiences,
            "metrics": metrics(matrix, [0.1] * experiences),
            "hyperparameters": {"dataset": "mnist", "strategy": {}, "training": {"epochs": 2}},
            "seconds": float(rng.uniform(1, 9)),
            "environment": {"device": "cpu", "versions": {"torch": "2.15.0"}},
        }
        | more
    )


def failed(protocol, strategy, seed):
    reason = "the loss became nan </script><b>"
    return record(protocol, strategy, seed, status="failed", accuracy_matrix=[], metrics={}, reason=reason)


RECORDS = [
    *(record(protocol, strategy, seed) for protocol in ("p/class", "q") for strategy in "abc" for seed in range(3)),
    *(failed("q", "broken", seed) for seed in range(2)),
]
DUELS = board.against_avalanche(RECORDS, {"a": "b"})


def test_every_lines_numbers_are_those_of_its_matrices():
    runs = [one for one in RECORDS if (one.protocol, one.strategy) == ("q", "a")]
    section = contents.sections(RECORDS, {"q": "a title"})[1]
    assert (section.protocol, section.title) == ("q", "a title")
    line = next(one for one in section.lines if one.strategy == "a")
    matrices = np.array([one.accuracy_matrix for one in runs])
    assert np.allclose(line.matrix, matrices.mean(axis=0), atol=1e-5)
    means = [np.mean([np.mean(matrix[i][: i + 1]) for matrix in matrices]) for i in range(5)]
    assert np.allclose([mean for mean, _ in line.so_far], means, atol=1e-5)
    lost = [np.mean([max(row[j] for row in matrix[:4]) - matrix[4][j] for matrix in matrices]) for j in range(4)]
    assert np.allclose([mean for mean, _ in line.forgetting], lost, atol=1e-5)
    assert line.mean_forgetting[0] == pytest.approx(np.mean(lost), abs=1e-5)
    assert line.learning_accuracy[0] == pytest.approx(
        np.mean([np.diag(matrix).mean() for matrix in matrices]), abs=1e-5
    )


def test_what_learns_all_at_once_is_a_point():
    acc = dict.fromkeys(METRICS) | {"ACC": 0.9}
    joint = [record("q", "joint", seed, accuracy_matrix=[[0.8, 1.0]], metrics=acc, upper_bound=True) for seed in (0, 1)]
    (section,) = contents.sections(joint, {})
    (line,) = section.lines
    assert line.so_far == [(0.9, 0.0)]
    assert line.forgetting == []
    assert line.learning_accuracy is None
    assert section.best is None


def test_the_command_repeats_the_run():
    settings = ["ewc_lambda=0.125", "training.epochs=2", "training.schedule=linear"]
    (planned,) = plan("split-digits/class", ["ewc"], [7], settings_of(settings), first=3)
    left = record("split-digits/class", "ewc", 7, variant=planned.variant, hyperparameters=planned.deciding())
    words = contents.command(left).split()
    assert words[:4] == ["engrams", "run", "split-digits/class", "ewc"]
    options = list(zip(words[4::2], words[5::2], strict=True))
    (again,) = plan(
        words[2],
        [words[3]],
        seeds_of(dict(options)["--seeds"]),
        settings_of([value for key, value in options if key == "--set"]),
        first=int(dict(options)["--experiences"]),
    )
    assert again.deciding() == planned.deciding()
    assert (again.variant, again.seed) == (planned.variant, 7)
    assert contents.command(record("p", "naive", 0, variant="(runs/a)")) == "engrams run p naive --seeds 0-0"


def test_the_command_of_a_protocol_of_ones_own_names_its_file():
    p, q = contents.sections(RECORDS, {"q": "a title"})
    commands = [contents.run(next(iter(one.runs.values()))[0], [], own_file=one.own_file)["command"] for one in (p, q)]
    assert commands == ["engrams run p.toml/class a --seeds 0-0", "engrams run q a --seeds 0-0"]


def test_the_command_takes_a_text_whole():
    decided = {"strategy": {"note": "a,b.c=d", "rate": 10.0}, "dataset": "npz:/full/x,y=1.npz"}
    one = record("p", "a:b", 0, variant="note=a,b.c=d,rate=10,dataset=npz:x.npz (runs/a)", hyperparameters=decided)
    assert set_by_hand(one.variant, decided) == [("note", "a,b.c=d"), ("rate", "10"), ("dataset", "npz:x.npz")]
    assert "--set note=a,b.c=d --set rate=10.0 --set dataset=npz:/full/x,y=1.npz --seeds" in contents.command(one)


def test_the_command_writes_it_without_torch(tmp_path):
    for one in RECORDS:
        write(one, folder_of(tmp_path / "runs", one.protocol, one.strategy, one.seed))
    script = (
        "import sys\nfrom engrams.benchmarks.cli.app import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules and 'avalanche' not in sys.modules\n"
    )
    arguments = ["report", str(tmp_path / "runs"), "--out", str(tmp_path / "report")]
    mine = tmp_path / "report" / "pictures" / "1.png"
    mine.parent.mkdir(parents=True)
    mine.touch()
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"report: {tmp_path}/report/index.html" in done.stdout
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert mine.exists(), "what lay there besides"
    assert "</script><b>" not in text
    assert "20 runs under 2 protocols" in text


def test_folders_with_the_same_runs_stand_side_by_side(tmp_path):
    for name in ("old", "new"):
        for one in RECORDS[:6]:
            write(one, folder_of(tmp_path / name, one.protocol, one.strategy, one.seed))
    done = CliRunner().invoke(
        app, ["report", str(tmp_path / "old"), str(tmp_path / "new"), "--out", str(tmp_path / "report")]
    )
    assert done.exit_code == 0, done.output
    text = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "without published figures" in text
    for name in ("old", "new"):
        assert f"a ({tmp_path / name})" in text


def test_a_page_of_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(page.ReportError, match="cannot be written to"):
        page.write(RECORDS, tmp_path / "taken", {}, [], [])


def synthetic(count=5000, strategies=50, seeds=5, experiences=10):
    rng = np.random.default_rng(0)
    per_protocol = strategies * seeds
    settings = {"dataset": "mnist", "strategy": {"strength": 1.0}, "training": {"epochs": 2, "learning_rate": 0.001}}
    return [
        record(
            f"protocol-{index // per_protocol:02}/class",
            f"strategy-{index % per_protocol // seeds}",
            index % seeds,
            experiences,
            rng,
            hyperparameters=settings,
        )
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright", reason="playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


class Watched:
    """A page from disk, with what its console said and where it went."""

    def __init__(self, browser, path, **options):
        self.said, self.asked = [], []
        self.page = browser.new_context(**options).new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def quiet(self):
        assert self.said == []
        assert all(url.startswith(("file:", "data:", "blob:")) for url in self.asked), self.asked


@needs_browser
def test_it_is_read_sorted_filtered_and_opened(browser, tmp_path):
    folder = folder_of(tmp_path / "runs", "q", "a", 1)
    write(next(one for one in RECORDS if (one.protocol, one.strategy, one.seed) == ("q", "a", 1)), folder)
    Image.new("RGB", (20, 20)).save(folder / "generated.png")
    boards = board.compare(board.read(board.PUBLISHED), RECORDS)
    written = page.write(RECORDS, tmp_path / "report", {"q": "A title"}, boards, DUELS, [tmp_path / "runs"])
    watched = Watched(browser, written, color_scheme="light", accept_downloads=True)
    shown = watched.page
    assert shown.locator("h1").inner_text() == "p/class"
    shown.select_option("#protocol", label="q")
    assert shown.locator("h1").inner_text() == "q"

    heading = shown.locator("#comparison th:has-text('forgetting') button")
    column = shown.locator("#comparison tbody tr td:nth-child(6)")
    for expected in ("descending", "ascending"):
        heading.click()
        assert shown.locator("#comparison th[aria-sort]").get_attribute("aria-sort") == expected
        values = [float(text.split()[0]) for text in column.all_inner_texts() if text]
        assert len(values) == 3
        assert values == sorted(values, reverse=expected == "descending")
    shown.fill("#table .filter", "BROK")
    assert shown.locator("#comparison tbody tr:visible .open").all_inner_texts() == ["broken"]
    assert shown.locator("#table .left-over").inner_text() == "1 of 4 rows"
    shown.fill("#table .filter", "")

    shown.locator("#charts").scroll_into_view_if_needed()
    shown.wait_for_selector("#chart-acc .scatterlayer")
    lines = "document.getElementById('chart-acc').data.filter((one) => one.name).length"
    assert shown.evaluate(lines) == 3
    shown.locator("#chips button:has-text('b')").click()
    assert shown.evaluate(lines) == 2
    assert not shown.locator("#comparison tr[data-strategy='b'] input").is_checked()

    shown.locator("#comparison tr[data-strategy='a'] .open").focus()
    shown.keyboard.press("Enter")
    shown.locator("dialog button[role=tab]:has-text('seed 1')").click()
    cells = shown.locator("dialog .heat td").evaluate_all("cells => cells.map((cell) => +cell.dataset.v)")
    run = next(one for one in RECORDS if (one.protocol, one.strategy, one.seed) == ("q", "a", 1))
    assert cells == pytest.approx(np.ravel(run.accuracy_matrix))
    assert shown.locator("dialog .heat td").first.inner_text() == f"{100 * run.accuracy_matrix[0][0]:.1f}"
    assert shown.locator("dialog .command code").inner_text() == "engrams run q a --seeds 1-1"
    assert shown.locator("dialog img").evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 20
    shown.keyboard.press("Escape")
    assert not shown.locator("dialog").is_visible()

    assert "the loss became nan </script><b>" in shown.locator("#failed").inner_text(), (
        "shown as text, not read as HTML"
    )
    assert shown.locator("#board tbody tr").count() == sum(len(one.rows) for one in boards)
    ground = "getComputedStyle(document.body).backgroundColor"
    light = shown.evaluate(ground)
    shown.locator("#theme").click()
    assert shown.evaluate(ground) != light
    with shown.expect_download() as saved:
        shown.locator("#table [data-download=csv]").click()
    rows = list(csv.DictReader(io.StringIO(Path(saved.value.path()).read_text())))
    assert {row["strategy"] for row in rows} == {"a", "b", "c", "broken"}
    watched.quiet()


@needs_browser
def test_what_a_run_answered_is_read_off_when_it_is_opened(browser, tmp_path):
    found, folder = done(tmp_path / "runs", "split-digits/class", "replay")
    answered = read_predictions(folder)
    written = page.write([found], tmp_path / "report", {}, [], [], [tmp_path / "runs"])
    watched = Watched(browser, written, viewport={"width": 400, "height": 900})
    shown = watched.page
    shown.locator("#comparison .open").click()
    shown.locator("dialog button[role=tab]:has-text('seed 0')").click()
    cells = "cells => cells.map((cell) => +cell.dataset.v)"
    for after in (5, 2):
        shown.select_option("dialog .confusion-of", label=str(after))
        confusion = shown.locator("dialog .confusion td").evaluate_all(cells)
        assert confusion == answered.confusion(after - 1).ravel().tolist()
    heats = shown.locator("dialog .heat")
    by_class = heats.nth(2).locator("td").evaluate_all(cells)
    assert by_class == pytest.approx(answered.accuracy_by_class().ravel(), abs=1e-5)
    assert heats.nth(3).locator("td").evaluate_all(cells) == pytest.approx(answered.recency_bias(), abs=1e-5)
    took = shown.locator("dialog .pairs").nth(1).inner_text()
    assert f"{found.costs.bytes['kept']:,} bytes" in took
    assert shown.evaluate("document.documentElement.scrollWidth") <= 400
    watched.quiet()


@needs_browser
def test_a_generators_matrices_are_those_of_the_record(browser, tmp_path):
    made = Generated(
        classifier_accuracy=0.9,
        frechet_by_class=[[2.0, None, None], [8.5, None, 1.0]],
        reverse_by_class=[[0.5, None, None], [0.25, None, 1.0]],
    )
    one = record("p", "a", 0, experiences=2, generated=made)
    watched = Watched(browser, page.write([one], tmp_path, {}, [], []))
    watched.page.locator("#comparison .open").click()
    watched.page.locator("dialog button[role=tab]:has-text('seed 0')").click()
    texts = [watched.page.locator("dialog .heat").nth(index).locator("td").all_inner_texts() for index in (1, 2)]
    assert texts == [["2.0", "", "8.5", "1.0"], ["50.0", "", "25.0", "100.0"]]
    watched.quiet()


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1600, "dark")])
def test_it_fits_the_window_and_every_control_has_a_name(browser, tmp_path, width, scheme):
    written = page.write(RECORDS, tmp_path / "report", {}, [], DUELS)
    watched = Watched(browser, written, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    assert watched.page.evaluate("document.documentElement.dataset.theme") == scheme
    unnamed = """[...document.querySelectorAll('main button, header button, input, select')].filter((one) =>
        !one.textContent.trim() && !one.ariaLabel && !one.labels?.length).map((one) => one.outerHTML)"""
    assert watched.page.evaluate(unnamed) == []
    watched.quiet()


@needs_browser
def test_five_thousand_runs_are_quick(browser, tmp_path):
    records = synthetic()
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    written = page.write(records, tmp_path / "report", {}, [], [])
    assert time.process_time() - started < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20, "KiB"
    assert written.stat().st_size < 20e6
    context = browser.new_context()
    shown = context.new_page()
    meter = context.new_cdp_session(shown)
    meter.send("Performance.enable", {"timeDomain": "threadTicks"})  # its own time, not that of a busy machine
    shown.goto(written.as_uri())
    spent = {one["name"]: one["value"] for one in meter.send("Performance.getMetrics")["metrics"]}
    assert shown.locator("#comparison tbody tr").count() == 50
    assert spent["TaskDuration"] < 2


def test_what_is_packed_is_unpacked():
    assert json.loads(zlib.decompress(b64decode(page.packed([{"a": "é<"}])))) == [{"a": "é<"}]
