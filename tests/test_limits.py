"""What runs will take, said before they begin and while they go on."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from engrams.benchmarks.jobs import limits
from engrams.benchmarks.jobs.limits import forecast
from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.jobs.progress import Display, duration
from tests.test_records import WHOLE, record, written
from tests.test_runs import engrams

PROTOCOL = "split-digits/task"


@pytest.fixture
def runs_of(tmp_path, monkeypatch):
    """Runs, and a folder of records in which naive's took 40 s with 10 epochs in each of 5 experiences."""
    monkeypatch.setattr(limits, "COMMITTED", tmp_path / "none")
    for seed, seconds in enumerate((40.0, 30.0, 900.0)):
        settings = {"strategy": {}, "training": {"epochs": 10}}
        written(tmp_path / "runs", record(**WHOLE, seed=seed + 7, seconds=seconds, hyperparameters=settings))

    def make(*strategies, seeds=4, workers=2, epochs=10, first=None):
        runs = plan(PROTOCOL, strategies, range(seeds), {"training.epochs": epochs}, first)
        return runs, forecast(runs, tmp_path / "runs", workers)

    return make


def test_the_median_of_what_is_recorded_by_workers_epochs_and_experiences(runs_of):
    assert runs_of("naive")[1].left() == pytest.approx(4 * 40 / 2)
    assert runs_of("naive", epochs=5)[1].left() == pytest.approx(4 * 20 / 2)
    assert runs_of("naive", first=2)[1].left() == pytest.approx(4 * 16 / 2)
    assert runs_of("naive", seeds=3, workers=2)[1].left() == pytest.approx(60), "runs cannot be halved, but it is about"
    assert runs_of("naive", seeds=2, workers=9)[1].left() == pytest.approx(40), "never less than the longest"
    assert runs_of("naive")[1].line().startswith("to do: 4 runs, about 80 s with 2 at once, 1 MiB of disk")


def test_what_has_no_record_is_guessed_and_said_or_not_known(runs_of):
    _, known = runs_of("naive", "ewc")
    assert known.left() == pytest.approx(8 * 40 / 2)
    assert "(4 of them guessed: no record is like them)" in known.line()
    _, unknown = runs_of("ewc")
    assert unknown.left() is None
    assert unknown.line() == "to do: 4 runs, for how long no record says"


def test_it_learns_as_it_goes(runs_of, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: now[0]))
    runs, known = runs_of("naive", workers=1)
    known.advanced(runs[0], 0)
    now[0] = 30.0
    assert known.left() == pytest.approx(10 + 3 * 40), "30 of 40 s are over"
    known.ended(runs[0], 80.0)
    assert known.left() == pytest.approx(3 * 80), "this machine is half as fast"
    known.advanced(runs[1], 0)
    now[0] = 50.0
    known.advanced(runs[1], 10)  # of 50 epochs
    assert known.left() == pytest.approx(80 + 2 * 80)
    runs, unknown = runs_of("ewc", workers=1)
    unknown.advanced(runs[0], 0)
    assert unknown.left() is None
    now[0] += 10
    unknown.advanced(runs[0], 25)
    assert unknown.left() == pytest.approx(10 + 3 * 10), (
        "half of the first, and three that take as long as it still does"
    )
    unknown.ended(runs[0], 24.0)
    assert unknown.left() == pytest.approx(3 * 24)
    unknown.ended(runs[1], None)
    assert unknown.left() == pytest.approx(2 * 24)


def test_what_does_not_fit_is_named(runs_of, tmp_path, monkeypatch):
    _, known = runs_of("naive")
    assert known.too_much(tmp_path / "not" / "yet") == []
    monkeypatch.setattr(limits.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    known.memory = 3 * 2**30
    memory, disk = known.too_much(tmp_path / "not" / "yet")
    assert memory.startswith("memory: 2 runs at once take up to 3.0 GiB, and 1.0 GiB are free; fewer at once")
    assert disk.startswith("disk: the runs leave about 1 MiB, and")


def test_memory_is_that_of_the_largest_that_run_at_once():
    def of(peak, device="cpu"):
        return SimpleNamespace(costs=SimpleNamespace(peak_memory=peak), environment={"device": device})

    assert limits._peak(of(5)) == 5
    assert limits._peak(of(5, "NVIDIA")) is None, "another memory"
    assert limits._peak(SimpleNamespace(costs=None, environment={})) is None, "an older record"


@pytest.mark.parametrize(("seconds", "said"), [(0.1, "1 s"), (99, "99 s"), (100, "2 min"), (3600, "1 h 0 min")])
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_dry_run_says_it_too(runs_of, tmp_path):
    words = "--set training.epochs=10 --seeds 4 --workers 2 --dry-run --out"
    done = engrams("run", PROTOCOL, "naive", *words.split(), tmp_path / "runs")
    assert "to do: 4 runs, about 80 s with 2 at once" in done.stdout


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_has_what_is_left(runs_of, terminal):
    runs, known = runs_of("naive", workers=1)
    screen = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    display = Display(screen)
    with display.showing(len(runs), 0, known):
        display.advanced(runs[0], 0)
        display.finished(runs[0], "ACC 50.00", 40.0)
    assert (
        "2 min" if terminal else "[1/4] split-digits/task naive training.epochs=10 seed 0: ACC 50.00, about 2 min left"
    ) in (screen.file.getvalue())
