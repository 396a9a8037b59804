"""What the terminal shows: tables as wide as it is, and what is answered without reading torch."""

import contextlib
import io
import shutil
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import avalanche
import pytest
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from rich.console import Console

from engrams.benchmarks.cli import shown
from engrams.benchmarks.cli.app import main
from engrams.benchmarks.jobs.processes import in_processes
from engrams.reports import read_records
from engrams.reports.parity.board import PUBLISHED, against_avalanche, read
from engrams.reports.render import Sheet
from engrams.strategies import catalogue
from engrams.strategies.catalogue import CATALOGUE

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "reports" / "results" / "records"
STUDIES = ROOT / "reports" / "results" / "studies"


@pytest.fixture(scope="module")
def printed():
    """What was printed: a command of which several tests look at the lines is run once."""
    return {}


@pytest.fixture
def terminal(monkeypatch, printed):
    """Runs the command line as in a terminal of some width, or piped (None); returns the lines that it prints."""

    def run(width, *arguments):
        if (width, arguments) not in printed:
            printed[width, arguments] = lines_of(width, arguments)
        return printed[width, arguments]

    def lines_of(width, arguments):
        with monkeypatch.context() as patched:
            patched.setattr(Console, "is_terminal", width is not None)
            patched.setattr(shown.console, "width", width or 80)
            out = io.StringIO()
            command = ["engrams", *map(str, arguments)]
            with redirect_stdout(out), patch.object(sys, "argv", command), pytest.raises(SystemExit) as stop:
                main()
        assert not stop.value.code
        return out.getvalue().splitlines()

    return run


def heading_lines(lines):
    """The lines above each rule, together: what the columns of the tables are called."""
    found = []
    for index, line in enumerate(lines):
        if set(line.strip()) == {"─"}:
            above = []
            for before in reversed(lines[:index]):
                if not before.strip():
                    break
                above.insert(0, before)
            found.append("\n".join(above))
    return found


def test_a_path_may_begin_with_a_home_folder(terminal, monkeypatch, tmp_path):
    """As in Python: a shell does not expand it behind ``--out=``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(RECORDS / "mnist-usps" / "naive", tmp_path / "runs" / "mnist-usps" / "naive")
    terminal(None, "matrix", "~/runs", "--out=~/m.png")
    assert (tmp_path / "m.png").exists()
    assert not (tmp_path / "~").exists()


COMMANDS = {
    "list": (("list",), ("protocol", "strategy", "study", "suite")),
    "data": (("data",), ("data", "where")),
    "table": (("table", RECORDS), ("strategy",)),
    "costs": (("table", RECORDS, "--costs"), ("strategy", "s")),
    "parity": (("parity", RECORDS), ()),
    "study of a curve": (("study", "fisher", "--out", STUDIES, "--only-draw"), ("ewc_lambda", "exact", "sampled")),
    "study of subsets": (("study", "adaptive", "--out", STUDIES, "--only-draw"), ("forgetting", "output")),
    "status": (("status", RECORDS), ("runs", "done", "running", "waiting", "failed")),
    "plan": (("run", "split-digits/task", "naive", "ewc", "--experiences", "2", "--dry-run"), ("run",)),
}


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_table_is_wider_than_the_terminal_and_nothing_is_cut(terminal, monkeypatch, tmp_path, command, width):
    arguments, headings = COMMANDS[command]
    # The committed pictures stay as they are. The first reads the file, which then takes the second's as it is.
    monkeypatch.setattr("engrams.benchmarks.cli.runs.draw", lambda figure, path: None)
    monkeypatch.setattr(shown, "draw", lambda figure, path: None)
    lines = [line for line in terminal(width, *arguments) if not line.startswith(("results: ", "failed: "))]  # paths
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if line.rstrip(" │").endswith("…")]
    for heading in headings:
        assert any(heading in above for above in heading_lines(lines)), heading


def test_a_plan_names_every_run(terminal):
    lines = terminal(80, "run", "split-digits/task", "naive", "ewc", "--seeds", "2", "--dry-run")
    for name in ("naive seed 0", "naive seed 1", "ewc seed 0", "ewc seed 1"):
        assert any(line.startswith(f"split-digits/task {name}") and "to be run" in line for line in lines)


@pytest.mark.parametrize("width", [80, 160])
def test_a_table_keeps_what_it_is_about(terminal, width):
    lines = terminal(width, "table", RECORDS)
    comparisons = [above for above in heading_lines(lines) if "ACC" in above and "AAA" not in above]
    assert len(comparisons) == len({record.protocol for record in read_records(RECORDS)})
    assert all(word in above for above in comparisons for word in ("strategy", "ACC", "forgetting"))
    [best] = [line for line in lines if line.startswith("avalanche-replay-large") and "95.62 ± 0.33" in line]
    assert "4.46 ± 0.33" in best
    assert any("avalanche-generative-replay-large" in line for line in lines), "no name is broken"


@pytest.mark.parametrize("width", [80, 160])
def test_a_board_keeps_method_strategy_and_verdict(terminal, width):
    above = heading_lines(terminal(width, "parity", RECORDS))
    boards = [heading for heading in above if "verdict" in heading]
    assert len(boards) == sum(len(set(figure.protocols)) for figure in read(PUBLISHED).figures)
    assert all(word in heading for heading in boards for word in ("method", "strategy"))
    duels = [heading for heading in above if "Avalanche's" in heading and "own" in heading]
    counterparts = {name: listed.counterpart for name, listed in CATALOGUE.items() if listed.counterpart}
    assert len(duels) == len({duel.protocol for duel in against_avalanche(read_records(RECORDS), counterparts)})
    assert all(word in heading for heading in duels for word in ("strategy", "ACC", "ours"))


def test_what_is_left_out_is_said_and_wide_shows_it(terminal):
    narrow, wide = (terminal(80, "table", RECORDS, *flag) for flag in ((), ("--wide",)))
    assert any(line.startswith("left out for want of room: s a run; FWT") for line in narrow)
    assert not any("left out" in line for line in wide)
    assert all("FWT" in above for above in heading_lines(wide) if "ACC" in above and "AAA" not in above)
    assert max(map(len, wide)) > 80


def test_piped_a_table_is_as_wide_as_it_needs_to_be(terminal):
    text = "\n".join(terminal(None, "parity", RECORDS))
    assert "left out" not in text
    assert "generator learning rate 0.002, generator schedule linear, latent size 100" in text, "on one line"


def test_columns_go_in_the_stated_order_until_the_rest_fits():
    cells = {"strategy": "x" * 10, "a": "1" * 10, "b": "2" * 10, "c": "3" * 10}
    sheet = Sheet("", [cells], spare=("b", "a"))
    console = Console(file=io.StringIO())
    for width, left_out in ((46, []), (45, ["b"]), (34, ["b"]), (33, ["b", "a"]), (10, ["b", "a"])):
        table, missing = sheet.fitted(console, width)
        assert missing == left_out, width
        assert [str(column.header) for column in table.columns] == [name for name in cells if name not in left_out]


def test_where_even_the_rest_does_not_fit_names_are_broken_and_kept():
    sheet = Sheet("", [{"strategy": "a-very-long-name-of-a-strategy [of/a/folder]", "ACC": "98.76 ± 0.54"}])
    console = Console(file=io.StringIO(), width=30)
    console.print(sheet.fitted(console, 30)[0])
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 30
    assert "".join(line[:16].strip() for line in lines[2:]) == "a-very-long-name-of-a-strategy[of/a/folder]"
    assert "98.76 ± 0.54" in console.file.getvalue()


def test_a_protocol_is_printed_as_its_file_has_it(terminal):
    assert terminal(80, "protocol", "split-mnist/class") == terminal(160, "protocol", "split-mnist/class")


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",),
        ("table", RECORDS),
        ("parity", RECORDS),
        ("status", RECORDS),
        ("table", "nowhere"),
        ("run", "split-digits/tsk", "naive"),
        ("run", "split-digits/task", "nave"),
        ("search", "split-digits/task", "nave"),
        ("suite", "digit"),
        ("study", "fischer"),
        ("protocol", "split-mnist/clas"),
        ("run", "split-digits/class", "naive", "ewc+replay", "avalanche-gem", "dgr-vae", "--dry-run"),
        ("run", "generate-mnist", "mergan-ra", "--dry-run"),
        ("suite", "digits", "--dry-run"),
        ("run", "split-mnist/class", "naive", "ewc", "--seeds", "1", "--out", RECORDS),
        ("search", "split-digits/class", "naive"),
        ("verify", RECORDS / "split-fashion-mnist"),
    ],
)
def test_what_learns_nothing_does_not_read_torch(arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "typer" in imported, "the times are there"
    assert not imported & {"torch", "avalanche", "scipy.stats", "matplotlib", "wandb"}
    assert "Traceback" not in done.stderr


# --- what libraries say between the lines of progress -----------------------------------------------------------------


def warn(job, report):
    """Warns of the penalty, and calls what Avalanche calls deprecated: from here, and as Avalanche does it itself."""
    said = io.StringIO()
    with redirect_stderr(said):
        warnings.warn("the penalty is unstable", stacklevel=1)
        for call in (ReservoirSamplingBuffer(2).update, ReplayPlugin(2).after_training_exp):
            with contextlib.suppress(AttributeError):  # the warning comes first; there is no strategy
                call(None)
        plugins = str(Path(avalanche.__file__).parent / "training" / "utils.py")
        warnings.warn_explicit("every importance is 0", UserWarning, plugins, 75)
        warnings.warn_explicit("it will take a minute", UserWarning, catalogue.__file__, 1)
    return said.getvalue()


def test_a_worker_says_everything_but_avalanches_own_calls():
    [(_, said)] = in_processes([SimpleNamespace(name="a job")], warn, 1, lambda job, epochs: None)
    assert "the penalty is unstable" in said
    for one in ("every importance is 0", "it will take a minute"):
        assert f"UserWarning: {one}" in said.splitlines(), "no line of Avalanche, or of ours"
    assert said.count("Call to deprecated function update") == 1, "a user's call is theirs to mend"
    assert "plugins/replay.py" not in said
