"""Studies, through the command line as a user has it: sweeps and the adaptive experiment."""

import re
import shutil
import struct
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import TensorDataset

from engrams.benchmarks.data.loading import TensorClassificationDataset, tensors_of
from engrams.benchmarks.runs import Run
from engrams.benchmarks.studies import adaptive, listing
from engrams.benchmarks.studies import sweeps as studies
from engrams.reports import store
from engrams.reports.pages.comparison import Estimate
from engrams.reports.studies import adaptive as results
from engrams.reports.studies.curves import Curve, Curves, Point
from engrams.reports.studies.figures import curves_figure
from engrams.strategies.mas import MASPlugin
from tests.test_runs import engrams

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
SWEEP = """
[small]
kind = "sweep"
title = "small"
protocol = "split-digits/task"
strategy = "ewc"
seeds = 2
hyperparameter = "ewc_lambda"
grid = [1e2, 1e5]
references = ["naive"]
source = "ours"
[[small.lines]]
label = "exact"
hyperparameters = { fisher = "exact" }
[[small.lines]]
label = "batched"
hyperparameters = { fisher = "batched" }
grid = [1e5, 1e6]
"""
SUBSETS = """
[halves]
kind = "subsets"
title = "halves"
protocol = "split-digits/domain"
classes_per_experience = 5
mas_lambda = 0.03
subsets = [[0, 2, 4], [1, 3]]
seeds = 3
source = "ours"
"""


def write_studies(monkeypatch, folder, text=SWEEP + SUBSETS):
    path = folder / "studies.toml"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(listing, "FILE", path)
    return path


def study(*arguments):
    return engrams("study", *arguments)


def size_of_png(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


@pytest.fixture(scope="module")
def small_sweep(tmp_path_factory):
    """Run once for all tests that only read it."""
    out = tmp_path_factory.mktemp("sweep")
    with pytest.MonkeyPatch.context() as patched:
        write_studies(patched, out)
        return out, study("small", "--out", out, "--wandb", "disabled")


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    out = tmp_path_factory.mktemp("halves")
    with pytest.MonkeyPatch.context() as patched:
        write_studies(patched, out)
        return out, study("halves", "--out", out)


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_sweep_runs_every_point_and_shows_it(small_sweep):
    out, done = small_sweep
    assert done.returncode == 0, done.stdout + done.stderr
    found = store.read_all(out)
    ewc = {
        (r.hyperparameters["strategy"]["fisher"], r.hyperparameters["strategy"]["ewc_lambda"], r.seed): r.acc
        for r in found
        if r.strategy == "ewc"
    }
    wanted = [("exact", 1e2), ("exact", 1e5), ("batched", 1e5), ("batched", 1e6)]
    assert set(ewc) == {(*point, seed) for point in wanted for seed in range(2)}
    assert len(found) == 10, "and naive, once a seed"
    assert len(set(ewc.values())) > 4, "points differ"
    assert all(record.on_test_data for record in found)
    row = next(line for line in done.stdout.splitlines() if "100000" in line and "±" in line)
    for fisher in ("exact", "batched"):
        assert Estimate.of([ewc[fisher, 1e5, seed] for seed in range(2)]).percent() in row
    assert f"figure: {out}/small.png" in done.stdout
    assert min(size_of_png(out / "small.png")) > 300


def test_what_is_recorded_is_not_run_again_and_can_be_drawn_alone(small_sweep, monkeypatch):
    out, _ = small_sweep
    write_studies(monkeypatch, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("record.json")}
    again = study("small", "--out", out, "--wandb", "disabled")
    assert "10 of 10 runs have a complete record already" in again.stdout
    (out / "small.png").unlink()
    drawn = study("small", "--out", out, "--only-draw", "--seeds", 3)
    assert drawn.returncode == 0, drawn.stderr
    assert "(2 of 3 seeds)" in drawn.stdout
    assert size_of_png(out / "small.png")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("record.json")} == before


def test_a_run_that_failed_is_drawn_as_failed(small_sweep, tmp_path, monkeypatch):
    out = tmp_path / "copy"
    shutil.copytree(small_sweep[0], out)
    write_studies(monkeypatch, out)
    path = sorted(out.rglob("ewc/*/0/record.json"))[0]
    lost = {"status": "failed", "reason": "the loss became nan", "accuracy_matrix": [], "metrics": {}, "undefined": {}}
    store.write(store.read(path).model_copy(update=lost), path.parent)
    drawn = study("small", "--out", out, "--only-draw")
    assert drawn.returncode == 1, drawn.stderr
    assert drawn.stdout.count("(1 failed)") == 1
    assert "failed: " in drawn.stdout
    assert ": the loss became nan" in drawn.stdout


def test_drawing_where_nothing_is_recorded_is_one_line(tmp_path, monkeypatch):
    write_studies(monkeypatch, tmp_path)
    for name in ("small", "halves"):
        done = study(name, "--out", tmp_path / "empty", "--only-draw")
        assert done.returncode == 2
        assert "of this study in" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("grid = [1e2, 1e5]", "grid = [1e5, 1e2]", "small.grid: the values must ascend"),
        ("grid = [1e2, 1e5]", "grid = [0.0, 1e2]", "small.grid.0: Input should be greater than 0"),
        ("seeds = 2", "seeds = 2\nseed = 1", "small.seed: unknown key"),
        ("seeds = 2", "", "small.seeds: missing"),
        ('label = "batched"', 'label = "exact"', "two lines have the same label"),
        ('fisher = "batched"', 'fisher = "batch"', "small: batched: split-digits/task: ewc: fisher"),
        ("split-digits/task", "split-digits/tsk", "small: no protocol is called 'split-digits/tsk'; did you mean"),
        ('strategy = "ewc"', 'strategy = "ewcc"', "small: no strategy is called 'ewcc'; did you mean 'ewc'?"),
        ('references = ["naive"]', 'references = ["nave"]', "no strategy is called 'nave'"),
        ("[1, 3]]", "[1, 4]]", "subsets must be disjoint and of 0 ... 4"),
        ("[1, 3]]", "[1, 5]]", "subsets must be disjoint and of 0 ... 4"),
        ("[small]", "[small", "not valid TOML"),
        ("[small]", '["sm/all"]', "sm/all"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, monkeypatch, old, new, message):
    text = SWEEP + SUBSETS
    assert old in text
    path = write_studies(monkeypatch, tmp_path, text.replace(old, new, 1))
    done = study("small", "--out", tmp_path / "out", "--wandb", "disabled")
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_study_is_one_line_with_a_near_name():
    done = study("fischer")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: no study is called 'fischer'; did you mean 'fisher'?"


def test_every_study_that_is_shipped_can_be_run():
    for name, found in studies.read(listing.FILE).items():
        if isinstance(found, studies.Sweep):
            points = studies.points_of(name, found)
            folders = [run.folder(Path("out")) for point in points for run in point.runs]
            assert len(set(folders)) == len(folders) == len(points) * found.seeds
            assert len(found.grid) <= 6
        else:
            assert adaptive._none_yet(name, found).settings["stream"]["classes_per_experience"] == 5
    assert "fisher-digits" in engrams("list").stdout


def test_a_figure_leaves_out_what_has_not_come_to_an_end():
    whole = Point(10.0, Estimate(0.9, None), complete=1, failed=0, wanted=1)
    lower = Point(1.0, Estimate(0.8, 0.1), complete=2, failed=0, wanted=2)
    failed = Point(100.0, None, complete=0, failed=1, wanted=1)
    found = Curves("t", "ewc_lambda", [Curve("a", [lower, whole, failed])], {"naive": failed})
    assert found.curves[0].best is whole
    assert failed.cell() == "(1 failed)"
    (axes,) = curves_figure(found).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a"]


# --- the adaptive experiment ------------------------------------------------------------------------------------------


def test_importance_protects_what_it_is_measured_on(halves):
    out, done = halves
    assert done.returncode == 0, done.stdout + done.stderr
    found = results.read(out / "halves.json")
    assert len(found.outcomes) == 4 * 3
    everything = tuple(range(5))
    without, with_all = found.under(results.NOTHING), found.under(everything)
    assert all(a.before == b.before for a, b in zip(without, with_all, strict=True)), "the first is learned the same"
    assert all(
        a.forgetting(everything) > b.forgetting(everything) + 0.1 for a, b in zip(without, with_all, strict=True)
    )
    for measure in (results.Outcome.forgetting, results.Outcome.change):
        assert results.protection(found, measure)["both, mean"].estimate.mean > 0.03
    assert all(outcome.second > 0.9 for outcome in found.outcomes)
    assert re.search(r"paired\s+.*t-test", done.stdout, re.DOTALL), "the heading may take two lines"
    assert min(size_of_png(out / "halves.png")) > 300


def test_results_are_kept_and_the_rest_is_done(halves, monkeypatch, tmp_path):
    out, _ = halves
    write_studies(monkeypatch, tmp_path)
    whole = results.read(out / "halves.json")
    results.write(whole.model_copy(update={"outcomes": whole.outcomes[:-1]}), tmp_path / "halves.json")
    done = study("halves", "--out", tmp_path)
    assert "11 of 12 runs have a complete record already" in done.stdout
    assert results.read(tmp_path / "halves.json").outcomes == whole.outcomes, "the same to the bit"


def test_a_sweep_may_be_judged_on_validation_data(tmp_path):
    path = tmp_path / "studies.toml"
    path.write_text(SWEEP.replace("references", 'judge = "validation"\nreferences'))
    for file, judge in ((path, "validation"), (listing.FILE, "test")):
        sweep = studies.read(file)["small" if file == path else "fisher"]
        points = studies.points_of("small", sweep)
        assert {run.judge for point in points for run in point.runs} == {judge}
        assert all(run.deciding()["judge"] == judge for point in points for run in point.runs)
        assert f"on the {judge} data" in studies.curves_of(sweep, points, {}).legend


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:200], "is cut short or no JSON"),
        (lambda raw: raw.replace('"second"', '"third"', 1), "holds no results of this study (outcomes.0."),
        (lambda raw: raw.replace('"seed": 1', '"seed": 0'), "a seed is there twice"),
        (lambda raw: raw.replace('"classes": 5', '"classes": 6'), "has not one number a class"),
        (
            lambda raw: raw.replace('"mas_lambda": 0.03', '"mas_lambda": 0.3'),
            "settings.mas_lambda was 0.3, is now 0.03",
        ),
    ],
)
def test_broken_results_are_one_line(halves, monkeypatch, tmp_path, damage, message):
    out, _ = halves
    write_studies(monkeypatch, tmp_path)
    path = tmp_path / "halves.json"
    path.write_text(damage((out / "halves.json").read_text()))
    before = path.read_bytes()
    done = study("halves", "--out", tmp_path)
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert path.read_bytes() == before


def test_a_stream_without_classes_apart_is_refused(monkeypatch, tmp_path):
    write_studies(monkeypatch, tmp_path, SUBSETS.replace("split-digits/domain", "permuted-digits"))
    done = study("halves", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "halves: protocol: permuted-digits does not split a data set by its classes" in done.stderr


def test_the_differences_are_paired():
    def outcome(seed, on, after):
        return results.Outcome(
            seed=seed, measured_on=on, before=[1.0, 1.0], after=after, output_change=[0.0, 0.0], second=1.0
        )

    outcomes = [
        *(outcome(seed, (0,), [0.9 - seed / 10, 0.5 - seed / 10]) for seed in range(3)),
        *(outcome(seed, (1,), [0.8 - seed / 9, 0.7 - seed / 11]) for seed in range(3)),
        outcome(3, (0,), [0.0, 0.0]),  # no partner
    ]
    found = results.Results(title="t", settings={}, subsets=[(0,), (1,)], classes=2, environment={}, outcomes=outcomes)
    differences = results.protection(found, results.Outcome.forgetting)
    expected = {"classes 0": 0.1 + 1 / 90, "classes 1": 0.2 + 1 / 110, "both, mean": 0.15 + 1 / 99}
    assert {name: d.estimate.mean for name, d in differences.items()} == pytest.approx(expected)
    for difference in differences.values():
        assert difference.estimate.half_width < 0.03, "however much the seeds differ from each other"
        assert difference.p < 0.05
    assert set(found.groups) == {"classes 0", "classes 1"}


def test_importance_data_may_be_a_dataset_of_avalanches_without_labels():
    found = studies.read(listing.FILE)["adaptive"]
    job = adaptive._job("adaptive", found, 0, (1, 3))
    assert isinstance(job.run, Run)
    benchmark = adaptive.benchmark_of(job.run)
    images = adaptive._images_of(benchmark.train_stream[0], job.measured_on)
    x, y, _ = tensors_of(benchmark.train_stream[0].dataset)
    assert len(images) == ((y == 1) | (y == 3)).sum()
    assert set(tensors_of(images)[1].tolist()) == {adaptive.NO_LABEL}
    for data in (images, TensorDataset(x, y)):
        plugin = MASPlugin(1.0, importance_data=data)
        assert len(plugin._importance_data(None)) == len(data)
    assert isinstance(plugin._importance_data(None), TensorDataset)
    assert isinstance(MASPlugin(1.0, importance_data=images)._importance_data(None), TensorClassificationDataset)


def test_the_committed_figures_are_those_of_the_studies():
    for name in ("adaptive", "adaptive-task"):
        found = adaptive.recorded(name, studies.get(name), ROOT / "reports" / "results" / "studies")
        assert found is not None
        assert {len(found.under(on)) for on in found.conditions.values()} == {studies.get(name).seeds}


@pytest.mark.parametrize("name", ["fisher", "mas"])
def test_the_committed_sweeps_are_whole(name):
    """Every point of every line, and both references, over all seeds, under the protocol as it is now."""
    folder = ROOT / "reports" / "results" / "studies"
    sweep = studies.get(name)
    points = studies.points_of(name, sweep)
    damaged = []
    found = studies.curves_of(sweep, points, studies.recorded(points, folder, damaged))
    assert not damaged
    assert [curve.label for curve in found.curves] == [line.label for line in sweep.lines]
    for point in [*(point for curve in found.curves for point in curve.points), *found.references.values()]:
        assert (point.complete, point.failed) == (sweep.seeds, 0)
    with Image.open(folder / f"{name}.png") as picture:
        assert picture.width > 500
