"""Records: which are believed, what becomes of those that are not, and who does a run."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from engrams.benchmarks.jobs import suite
from engrams.benchmarks.jobs.claims import CLAIM, Claimed, claim
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import plan, run_of
from engrams.benchmarks.jobs.verify import compared, run_of_record
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.training.learn import Learned
from engrams.reports import provenance, read_records, store
from engrams.reports.anytime import Anytime, Prequential
from engrams.reports.matrix import metrics
from engrams.reports.predictions import Predictions
from engrams.reports.store import Record, RecordError
from tests.test_runs import engrams

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "reports" / "results" / "records"
MATRIX = [[0.9, 0.1], [0.5, 0.8]]
WHOLE = {"matrix": [[0.5] * 5] * 5, "metrics": metrics([[0.5] * 5] * 5), "experiences": 5}
"""Of a record that has the size of its protocol."""


def record(strategy="naive", seed=0, matrix=MATRIX, **others):
    values = {
        "protocol": "split-digits/task",
        "strategy": strategy,
        "seed": seed,
        "status": "complete",
        "experiences": 2,
        "accuracy_matrix": matrix,
        "metrics": metrics(matrix),
        "hyperparameters": {"strategy": {}},
        "seconds": 1.0,
        "environment": {"versions": {"torch": "2.8.0"}},
    }
    return Record(**values | others)


def written(out, one):
    return store.write(one, store.folder_of(out, one.protocol, one.strategy, one.seed, one.variant))


def rewritten(path, sealed=True, **changes):
    """Changes a file; if ``sealed``, with a checksum that fits, as a program that is wrong would write it."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content | ({"checksum": store.checksum(content)} if sealed else {})))


def test_what_is_written_is_read(tmp_path):
    one = record(variant="a=1", revisions={"naive": 3})
    assert store.read(written(tmp_path, one)) == one


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"accuracy_matrix": [[0.9, 0.1], [0.5]]}, "ragged"),
        ({"accuracy_matrix": [[], []]}, "experiences"),
        ({"accuracy_matrix": []}, "has an accuracy matrix"),
        ({"accuracy_matrix": [[0.9, 0.1], [1.5, 0.8]]}, r"outside \[0, 1\]"),
        ({"accuracy_matrix": [[0.9, 0.1], [float("nan"), 0.8]]}, r"outside \[0, 1\]"),
        ({"accuracy_matrix": [[0.9, -0.1], [0.5, 0.8]]}, r"outside \[0, 1\]"),
        ({"accuracy_matrix": [[0.9, 0.1]] * 3}, "square"),
        ({"accuracy_at_initialisation": [0.5, 0.5, 0.5]}, "accuracy_at_initialisation"),
        ({"accuracy_at_initialisation": [0.5, 7.0]}, r"outside \[0, 1\]"),
        ({"experiences": 5}, "judges 2 experiences, the protocol has 5"),
        ({"experiences": None, "hyperparameters": {"stream": {"kind": "permuted", "experiences": 3}}}, "has 3"),
        ({"metrics": metrics(MATRIX) | {"ACC": 0.651}}, "metrics.ACC is 0.651, its accuracy_matrix gives 0.65"),
        ({"metrics": metrics(MATRIX) | {"FWT": 0.1}}, "metrics.FWT"),
        ({"metrics": metrics(MATRIX) | {"BWT": None}}, "metrics.BWT"),
        ({"metrics": metrics(MATRIX) | {"BWT": float("nan")}}, "metrics.BWT"),
        ({"seed": 7}, "of another run"),
        ({"strategy": "joint"}, "of another run"),
        ({"variant": "a=1"}, "of another run"),
        ({"protocol": "split-digits/class"}, "of another run"),
        ({"surprise": 1}, "surprise"),
        ({"environment": {"versions": "2.8.0"}}, "environment.versions must be a table"),
        ({"schema_version": "two"}, "its schema_version is 'two'"),
    ],
)
def test_what_cannot_be_true_is_not_believed(tmp_path, changes, problem):
    path = written(tmp_path, record())
    rewritten(path, **changes)
    with pytest.raises(RecordError, match=problem) as raised:
        store.read(path)
    assert str(path) in str(raised.value)


def test_a_digit_changed_by_hand_is_noticed(tmp_path):
    path = written(tmp_path, record())
    rewritten(path, sealed=False, seconds=0.1)
    with pytest.raises(RecordError, match="its checksum is not that of its content"):
        store.read(path)
    path.write_text(json.dumps(json.loads(written(tmp_path, record()).read_text()), indent=4))
    assert store.read(path) == record(), "how it is laid out says nothing"


def test_older_versions_are_read_and_newer_ones_refused(tmp_path):
    path = written(tmp_path, record(variant="fisher=exact,ewc_lambda=1.0"))
    content = json.loads(path.read_text())
    old = {k: v for k, v in content.items() if k not in ("schema_version", "checksum", "variant", "experiences")}
    path.write_text(json.dumps(old))
    assert store.read(path).variant == "fisher=exact,ewc_lambda=1.0", "of a study, whose folder alone said it"
    rewritten(path, schema_version=store.SCHEMA + 1, something_new=True)
    with pytest.raises(store.NewerRecord, match="this Engrams reads up to 2; install a later one"):
        store.read(path)
    done = engrams("run", "split-digits/task", "naive", "--seeds", 1, "--out", tmp_path, "--dry-run")
    assert done.returncode == 0, "it is another variant's folder"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Two real records of two seeds, and the folder that they lie in."""
    out = tmp_path_factory.mktemp("kept")
    for seed in (0, 1):
        execute(run_of(registry.get("split-digits/task"), "naive", seed), out, "cpu", "disabled", lambda n: None)
    return out


@pytest.fixture
def runs(kept, tmp_path):
    return Path(shutil.copytree(kept, tmp_path / "runs"))


FOLDER = Path("split-digits", "task", "naive")
DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "foreign": lambda path: path.write_text('{"protocol": 3}'),
    "no table": lambda path: path.write_text("[1, 2]"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "of another seed": lambda path: shutil.copyfile(path.parent.parent / "0" / "record.json", path),
}


def test_runs_that_lie_elsewhere_behind_a_link_are_there(kept, tmp_path):
    """Somebody moved them to a larger disk; a link to a folder above ends nowhere, and a second one adds nothing."""
    shutil.copytree(kept / FOLDER, tmp_path / "elsewhere")
    out = tmp_path / "runs"
    (out / FOLDER.parent).mkdir(parents=True)
    (out / FOLDER).symlink_to(tmp_path / "elsewhere")
    (out / "again").symlink_to(out)
    for name in "abcdefgh":  # the own name of each is told from those of links wherever these lie
        (out / name).mkdir()
        (out / name / "best").symlink_to(out / FOLDER.parent)
    assert [one.seed for one in read_records(out)] == [0, 1]
    done = engrams("status", out)
    assert "2 done" in done.stdout
    assert done.returncode == 0


def test_a_run_that_died_before_its_first_checkpoint_is_not_forgotten(runs):
    folder = runs / FOLDER / "1"
    (folder / "record.json").unlink()
    (folder / CLAIM).touch()
    done = engrams("status", runs)
    assert "1 done" in done.stdout
    assert "1 stopped" in done.stdout


@pytest.mark.parametrize("damage", DAMAGE)
def test_one_damaged_record_stops_no_table_and_is_named(runs, damage):
    path = runs / FOLDER / "1" / "record.json"
    DAMAGE[damage](path)
    done = engrams("table", runs)
    assert done.returncode == 1
    assert "naive" in done.stdout
    assert f"left out: {path}" in done.stderr
    assert store.MEND in done.stderr
    assert "Traceback" not in done.stderr
    assert engrams("parity", runs).returncode == 1
    checked = engrams("verify", runs)
    assert checked.returncode == 1
    assert "1 of 2 records are whole" in checked.stdout
    assert str(path) in checked.stderr
    with pytest.warns(UserWarning, match="left out"):
        assert len(read_records(runs)) == 1


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"hyperparameters": {"strategy": {"ewc_lambda": 3.0}}}, "its seeds were run with different hyperparameters"),
        ({"prequential": Prequential(accuracy=0.5, window=7, windows=[0.5])}, "were measured in different ways"),
    ],
)
def test_a_row_of_seeds_that_do_not_belong_together_stops_no_table_and_is_named(tmp_path, other, said):
    first = {"prequential": Prequential(accuracy=0.5, window=5, windows=[0.5])}
    for one in (record("ewc", 0, **WHOLE, **first), record("ewc", 1, **WHOLE | first | other), record(**WHOLE)):
        written(tmp_path / "runs", one)
    for command in (
        ["table"],
        ["table", "--format", "csv"],
        ["table", "--costs"],
        ["report", "--out", tmp_path / "page"],
    ):
        done = engrams(*command, tmp_path / "runs")
        assert done.returncode == 1
        (line,) = [line for line in done.stderr.splitlines() if "left out" in line]
        assert line.startswith("left out: split-digits/task ewc: ")
        assert said in line
        if command[0] == "table":
            assert "naive" in done.stdout
            assert "ewc" not in done.stdout


@pytest.mark.parametrize("damage", ["cut", "of another seed"])
def test_a_damaged_record_is_done_again_and_kept_beside(runs, damage):
    path = runs / FOLDER / "1" / "record.json"
    before = store.read(path)
    DAMAGE[damage](path)
    damaged = path.read_bytes()
    done = engrams(
        *("run", "split-digits/task", "naive", "--seeds", 2, "--workers", 1, "--out", runs, "--wandb", "disabled")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 2 runs have a complete record already" in done.stdout
    assert f"not believed: {path}" in done.stdout
    assert store.read(path).accuracy_matrix == before.accuracy_matrix
    assert (path.parent / "record.json.aside-1").read_bytes() == damaged
    assert not list(runs.rglob(".*")), "no claim and no temporary file is left"


def test_nothing_is_left_of_a_write_that_failed(tmp_path, monkeypatch):
    path = written(tmp_path, record())
    before = path.read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write(record(seconds=2.0), path.parent)
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == ["record.json"]


def test_a_result_whose_record_cannot_be_written_fails_that_run_alone(tmp_path, monkeypatch):
    def full(record, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write", full)
    run = run_of(registry.get("split-digits/task"), "naive", 0, {})
    answers = Predictions(*(np.zeros(shape, int) for shape in (5, 5, (5, 5), 5)))
    learned = Learned([[0.5] * 5] * 5, [0.1] * 5, 1.0, None, answers)
    monkeypatch.setattr("engrams.benchmarks.jobs.execute.learn", lambda *args, **more: learned)
    found = execute(run, tmp_path, "cpu", "disabled", lambda n: None)
    assert found.status == "failed"
    assert "its record cannot be written: [Errno 28] No space left on device; make room" in found.reason


def test_a_picture_that_cannot_be_drawn_costs_no_result(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("no font")

    monkeypatch.setattr("engrams.benchmarks.judging.observer.sheet_figure", broken)
    monkeypatch.setattr("engrams.benchmarks.judging.real_classifier.IMAGES_SEEN", 1000)
    entry = registry.get("split-digits/class")
    entry = entry.model_copy(update={"training": entry.training.model_copy(update={"epochs": 1})})
    run = run_of(entry, "noise-replay", 0)
    with pytest.warns(UserWarning, match="a picture is missing: OSError: no font"):
        found = execute(run, tmp_path, "cpu", "disabled", lambda n: None)
    assert found.complete, found.reason
    assert len(found.generated.class_shares) == 5


# --- who does a run ---------------------------------------------------------------------------------------------------


HOLD = """
import sys, time
from pathlib import Path
from engrams.benchmarks.jobs.claims import claim
with claim(Path(sys.argv[1])):
    print("begun", flush=True)
    time.sleep(60)
"""


def test_a_claim_is_one_process_s_and_ends_with_it(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    with pytest.raises(Claimed), claim(tmp_path):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    assert (tmp_path / CLAIM).exists(), "it could not remove it"
    with claim(tmp_path):  # taken over at once
        pass
    assert not list(tmp_path.iterdir())


def _count(folder, times, start):
    start.wait()
    for _ in range(times):
        with claim(folder, wait=True):
            path = folder / "count"
            number = int(path.read_text()) if path.exists() else 0
            time.sleep(0.0005)
            path.write_text(str(number + 1))


def test_a_claim_that_is_removed_as_it_ends_has_one_holder_at_a_time(tmp_path):
    start = threading.Event()
    threads = [
        threading.Thread(target=_count, args=(tmp_path, 100, start)) for _ in range(3)
    ]  # each opens its own file
    for thread in threads:
        thread.start()
    start.set()
    for thread in threads:
        thread.join()
    assert (tmp_path / "count").read_text() == "300"


def test_what_another_command_does_is_not_done_twice(tmp_path):
    """As two commands meet: the second finds the claim, and, once it is free, the record."""
    run = run_of(registry.get("split-digits/task"), "naive", 0)
    arguments = {"out": tmp_path, "wandb_mode": "disabled", "stream_from_disk": False}
    told = []
    with suppress(ZeroDivisionError), claim(run.folder(tmp_path)):
        assert suite._work(run, told.append, waits=False, **arguments) is None
        raise ZeroDivisionError
    assert not told, "it did not begin"
    first = suite._work(run, told.append, waits=False, **arguments)
    assert told[0] == 0
    told.clear()
    assert suite._work(run, told.append, waits=True, **arguments) == first
    assert not told


# --- of which code they are -------------------------------------------------------------------------------------------


def test_records_of_other_code_and_of_several_versions_are_said():
    one, other = record(), record(seed=1, environment={"versions": {"torch": "2.9.0"}})
    assert provenance.remarks([one, record(seed=2)], {"naive": 1}) == []
    assert provenance.remarks([one, other], {"naive": 1}) == [
        "1 row of records made with several versions of torch (2.8.0, 2.9.0)"
    ]
    made_now = record(seed=2, revisions={"naive": 2})
    assert provenance.remarks([one, made_now], {"naive": 2, "ewc": 1}) == [
        "1 record is of revision 1 of naive, which is at 2: the same command ends in another result now"
    ]
    joined = record("ewc+replay", revisions={"ewc": 1, "replay": 1})
    assert "of revision 1 of ewc" in provenance.remarks([joined], {"ewc": 2, "replay": 1})[0]


def test_a_new_record_says_of_which_code_it_is(kept):
    found = store.read(kept / FOLDER / "0" / "record.json")
    assert found.revisions == {"naive": 1}
    assert found.experiences == 5


# --- verify -----------------------------------------------------------------------------------------------------------


def test_the_committed_records_are_whole():
    damaged = []
    assert len(read_records(COMMITTED, damaged=damaged)) > 700
    assert not damaged


def test_records_that_are_done_again_are_compared_to_the_bit(runs):
    done = engrams("verify", runs, "--rerun", 5, "--draw", 3, "--workers", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 records are whole" in done.stdout
    assert done.stdout.count("equal to the bit") == 2
    path = runs / FOLDER / "1" / "record.json"
    true = store.read(path)
    matrix = [[*row] for row in true.accuracy_matrix]
    matrix[4][0] = 1 - matrix[4][0]
    figures = metrics(matrix, true.accuracy_at_initialisation)
    rewritten(path, accuracy_matrix=matrix, metrics=figures)
    done = engrams("verify", runs, "--rerun", 5, "--draw", 3, "--workers", 1)
    assert done.returncode == 1
    assert "accuracy_matrix differ, on the same kind of machine" in done.stdout
    elsewhere = store.read(path).model_copy(update={"environment": {"cpu": "another"}})
    verdict = compared(elsewhere, true)
    assert "cpu another there" in verdict.said
    assert verdict.holds is (abs(elsewhere.acc - true.acc) <= 0.02)


def test_a_curve_that_is_another_now_differs(tmp_path):
    curve = Anytime(every=2, steps=[2], experience=[0], accuracy=[[0.5]], measures={"AAA": 0.5})
    then, now = (record().model_copy(update={"anytime": one}) for one in (curve, curve.model_copy()))
    assert compared(then, now).holds
    other = curve.model_copy(update={"accuracy": [[0.25]]})
    verdict = compared(then, now.model_copy(update={"anytime": other}))
    assert "anytime differ" in verdict.said
    assert not verdict.holds
    assert not compared(then, now.model_copy(update={"anytime": None})).holds, "nobody has measured it again"
    assert compared(then.model_copy(update={"anytime": None}), now).holds, "nothing was measured before"


def test_what_was_measured_along_the_way_is_measured_again(tmp_path):
    settings = {"judging.every": 4, "judging.samples": 20, "judging.prequential": True, "judging.window": 50}
    (asked,) = plan("split-digits/task", ["naive"], [0], {"training.epochs": 1, **settings}, first=2)
    then = execute(asked, tmp_path, "cpu", "disabled", lambda _: None)
    run = run_of_record(then)
    assert run.protocol.judging == asked.protocol.judging
    assert run.folder(tmp_path) == asked.folder(tmp_path)
    verdict = compared(then, execute(run, tmp_path / "again", "cpu", "disabled", lambda _: None))
    assert verdict.said == "equal to the bit"


@pytest.mark.parametrize(
    "name",
    ["split-mnist/task/ewc/0", "permuted-mnist/joint/1", "split-mnist/class/dgr-vae/0", "permuted-mnist-5/dgr/0"],
)
def test_a_committed_record_leads_to_its_run(name):
    found = store.read(COMMITTED / name / "record.json")
    run = run_of_record(found)
    assert run.deciding() == found.hyperparameters
    assert run.folder(Path()) == Path(name)


def test_a_record_with_settings_by_hand_leads_to_its_run(tmp_path):
    done = engrams(
        *("run", "split-digits/task", "ewc", "--seeds", 1, "--out", tmp_path, "--wandb", "disabled", "--workers", 1),
        *("--set", "training.epochs=1", "--set", "ewc_lambda=3", "--experiences", 2),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = store.read_all(tmp_path)
    run = run_of_record(found)
    assert run.deciding() == found.hyperparameters
    assert run.folder(tmp_path) == next(tmp_path.rglob("record.json")).parent
