"""What runs will take, said before they begin and while they go on."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, get_ident
from types import SimpleNamespace

import pytest
from rich.console import Console

from engrams.benchmarks.jobs import gpu, limits
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
    assert unknown.left() == pytest.approx(4 * 40 / 2), "as long as those of another strategy under this protocol"
    assert unknown.line() == "to do: 4 runs, about 80 s with 2 at once (4 of them guessed: no record is like them)"


def test_where_no_strategy_has_a_record_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "COMMITTED", tmp_path / "none")
    unknown = forecast(plan(PROTOCOL, ["ewc"], range(4)), tmp_path / "runs", 2)
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
    unknown.guessed.clear()
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


# --- one GPU for several runs -----------------------------------------------------------------------------------------

GIB = 2**30


class FakeGPU:
    """A GPU of 10 GiB; what a process, here a thread, has taken once its allocator keeps until it is emptied."""

    def __init__(self):
        self.whole, self.kept, self.most_at_once = 10 * GIB, {}, 0
        self.cuda, self.uint8 = SimpleNamespace(mem_get_info=self.mem_get_info, empty_cache=self.empty_cache), None

    def mem_get_info(self, device):
        return self.whole - sum(self.kept.values()) - len(self.kept) * gpu.CONTEXT, self.whole

    def empty(self, size, dtype, device):
        self.kept[get_ident()] = size
        self.most_at_once = max(self.most_at_once, len(self.kept))

    def empty_cache(self):
        self.kept.pop(get_ident(), None)


@pytest.fixture
def fake_gpu(monkeypatch, tmp_path):
    fake = FakeGPU()
    monkeypatch.setattr(gpu, "torch", fake)
    monkeypatch.setattr(gpu, "WAITS", 0.01)
    monkeypatch.setattr(gpu.tempfile, "tempdir", str(tmp_path))
    return fake


@pytest.mark.parametrize(("measured", "at_once"), [(2 * GIB, 3), (4 * GIB, 1), (None, 2)])
def test_as_many_share_a_gpu_as_have_room_and_each_has_its_turn(fake_gpu, measured, at_once):
    """Of 10 GiB: 2.2 and CUDA's own for each; 4.4 and CUDA's own; half, where nothing has been measured yet."""
    done, together = [], Barrier(at_once)

    def work(number):
        with gpu.room("cuda", lambda: measured):
            if number < at_once:  # the first ones are there at the same time, or the barrier breaks
                together.wait(10)
            time.sleep(0.02)
            done.append(number)

    if measured == 4 * GIB:
        fake_gpu.whole = 9 * GIB
    with ThreadPoolExecutor(at_once) as first:
        list(first.map(work, range(at_once)))
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(at_once, 12)))
    assert sorted(done) == list(range(12))
    assert fake_gpu.most_at_once == at_once
    assert not fake_gpu.kept


def test_a_run_that_no_gpu_has_room_for_begins_all_the_same(fake_gpu):
    with gpu.room("cuda", lambda: 20 * GIB):
        assert not fake_gpu.kept, "it ends as it ends"


def test_a_processor_is_not_waited_for(fake_gpu):
    fake_gpu.whole = 0
    with gpu.room("cpu", lambda: 20 * GIB):
        pass


def test_what_a_run_takes_of_a_gpu_is_what_those_like_it_took(tmp_path):
    costs = {"processor_seconds": 1.0, "bytes": {}, "operations": {}, "steps": {}}
    for seed, (device, peak) in enumerate({"NVIDIA H100": 3 * GIB, "NVIDIA A100": 2 * GIB, "cpu": 9 * GIB}.items()):
        taken = record(**WHOLE, seed=seed, environment={"device": device}, costs={**costs, "peak_memory": peak})
        written(tmp_path, taken)
    naive, ewc = plan(PROTOCOL, ["naive", "ewc"], [7])
    assert limits.gpu_memory(naive, tmp_path) == 3 * GIB
    assert limits.gpu_memory(ewc, tmp_path) == limits.OTHERS * 3 * GIB, "nobody knows yet what ewc takes"
    assert limits.gpu_memory(ewc, tmp_path / "elsewhere") is None


def test_a_run_that_waits_for_a_gpu_hears_what_has_been_measured_meanwhile(fake_gpu):
    measured: list[int | None] = [None, None, 2 * GIB]
    fake_gpu.kept[0] = 6 * GIB  # another's: no room for half of the GPU
    with gpu.room("cuda", lambda: measured.pop(0)):
        assert fake_gpu.kept[get_ident()] == int(gpu.MARGIN * 2 * GIB)
