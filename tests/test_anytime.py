"""Anytime and prequential accuracy: on a curve made by hand, and against what others measure."""

import io

import numpy as np
import pandas as pd
import pytest
from avalanche.training.determinism.rng_manager import RNGManager

from engrams.benchmarks.data.loading import tensors_of
from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.judging.anytime import AnytimePlugin
from engrams.benchmarks.training.build import benchmark_of, make_strategy
from engrams.benchmarks.training.learn import learn
from engrams.reports import pages, store
from engrams.reports.anytime import Anytime, Prequential, measures
from engrams.reports.matrix import METRICS
from engrams.reports.pages import anytime, comparison


def test_the_measures_of_a_curve_made_by_hand():
    """Three experiences, two moments each."""
    experience = [0, 0, 1, 1, 2, 2]
    accuracy = [[0.5], [0.9], [0.3, 0.6], [0.7, 0.8], [0.6, 0.2, 0.4], [0.65, 0.5, 1.0]]
    found = measures(experience, accuracy)
    assert found["AAA"] == pytest.approx((0.5 + 0.9 + 0.45 + 0.75 + 0.4 + 2.15 / 3) / 6)
    assert found["min_ACC"] == pytest.approx((0.3 + 0.2) / 2), "after its own experience, not during it"
    assert found["WC_ACC"] == pytest.approx(1 / 3 * 1.0 + 2 / 3 * 0.25)
    assert found["stability_gap"] == pytest.approx(((0.7 - 0.3) + (0.65 - 0.6) + (0.5 - 0.2)) / 3)


def test_of_one_experience_there_is_no_past():
    assert measures([0, 0], [[0.2], [0.4]]) == {
        "AAA": pytest.approx(0.3),
        "min_ACC": None,
        "WC_ACC": None,
        "stability_gap": None,
    }
    for curve in (([0], [[0.1, 0.2]]), ([], [])):
        with pytest.raises(ValueError, match="one accuracy for each experience met"):
            measures(*curve)


OTHERWISE_AT_THE_END = """
from avalanche.training.plugins import SupervisedPlugin
import torch

def turn(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)

class Turned(SupervisedPlugin):
    def after_training_exp(self, strategy, **kwargs):
        turn(strategy.model)

class Evaluated(SupervisedPlugin):
    def before_eval(self, strategy, **kwargs):
        turn(strategy.model)

    def after_eval(self, strategy, **kwargs):
        turn(strategy.model)
"""


def a_run(strategy, scenario, **settings):
    settings = {
        key if key in ("mem_size", "batch_size_mem") else key.replace("_", ".", 1): value
        for key, value in settings.items()
    }
    values = {"training.epochs": 1} | settings
    return plan(f"split-digits/{scenario}", [strategy], [0], values)[0]


def _quiet(epochs):
    pass


@pytest.mark.parametrize("strategy", ["naive", "avalanche-slda", "avalanche-ncm"])
def test_what_is_asked_within_an_experience_is_what_the_strategy_answers(strategy, monkeypatch):
    """Streaming LDA's network only flattens images; its answers are its own."""
    monkeypatch.setattr(AnytimePlugin, "at_end", lambda *_: None)
    found = learn(a_run(strategy, "class", judging_every=1), "cpu", [], _quiet)
    for index, row in enumerate(found.accuracy_matrix):
        last = max(place for place, now in enumerate(found.anytime.experience) if now == index)
        assert found.anytime.accuracy[last] == pytest.approx(row[: index + 1])


@pytest.mark.parametrize("every", [1, 1000])
def test_the_end_of_an_experience_is_what_its_evaluation_answers(every, tmp_path):
    """iCaRL answers by the nearest mean there; a strategy may change its network, or only evaluate another."""
    (tmp_path / "mine.py").write_text(OTHERWISE_AT_THE_END, encoding="utf-8")
    for strategy in ("icarl", f"{tmp_path}/mine.py:Turned", f"{tmp_path}/mine.py:Evaluated"):
        settings = {"mem_size": 50} if strategy == "icarl" else {}
        found = learn(a_run(strategy, "class", judging_every=every, **settings), "cpu", [], _quiet)
        for index, row in enumerate(found.accuracy_matrix):
            last = max(place for place, now in enumerate(found.anytime.experience) if now == index)
            assert found.anytime.accuracy[last] == pytest.approx(row[: index + 1])
        assert len(set(zip(found.anytime.steps, found.anytime.experience, strict=True))) == len(found.anytime.steps)


@pytest.mark.parametrize("strategy", ["naive", "replay", "avalanche-lwf"])
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_the_curve_ends_where_avalanches_evaluator_does_and_changes_nothing(strategy, scenario):
    plain = learn(a_run(strategy, scenario), "cpu", [], _quiet)
    watched = learn(a_run(strategy, scenario, judging_every=3, judging_prequential=True), "cpu", [], _quiet)
    assert watched[:2] == plain[:2]
    assert plain.anytime is None
    anytime = watched.anytime
    ends = [place for place, index in enumerate(anytime.experience) if index not in anytime.experience[place + 1 :]]
    assert [anytime.experience[place] for place in ends] == [0, 1, 2, 3, 4]
    for index, place in enumerate(ends):
        assert anytime.accuracy[place] == pytest.approx(watched.accuracy_matrix[index][: index + 1])
    assert [step for step, place in zip(anytime.steps, range(99), strict=False) if place not in ends][:3] == [3, 6, 9]
    assert anytime.measures == measures(anytime.experience, anytime.accuracy)
    assert 0 <= anytime.measures["min_ACC"] <= np.mean(watched.accuracy_matrix[-1][:-1]) + 1e-9


def test_a_fixed_sample_of_the_test_data():
    seen = [
        learn(a_run("naive", "task", judging_every=5, judging_samples=samples), "cpu", [], _quiet).anytime
        for samples in (20, 20, None)
    ]
    assert seen[0] == seen[1]
    assert seen[0].accuracy != seen[2].accuracy
    assert {round(20 * value, 6) % 1 for now in seen[0].accuracy for value in now} == {0}


def test_prequential_accuracy_of_a_network_that_does_not_learn_is_its_own():
    """Then the order does not matter: it is what the initial network makes of the training data."""
    run = a_run("replay", "task", judging_prequential=True, training_learning_rate=1e-30, judging_window=100)
    found = learn(run, "cpu", [], _quiet).prequential
    counts = [len(experience.dataset) for experience in benchmark_of(run).train_stream]
    assert len(found.windows) == -(-sum(counts) // 100)
    sizes = [100] * (len(found.windows) - 1) + [sum(counts) - 100 * (len(found.windows) - 1)]
    assert np.average(found.windows, weights=sizes) == pytest.approx(found.accuracy)

    benchmark = benchmark_of(run)
    RNGManager.set_random_seeds(0)
    strategy = make_strategy(run, benchmark, "cpu", [])
    strategy.eval(benchmark.test_stream)  # makes the heads
    right = 0
    for experience in benchmark.train_stream:
        strategy.train(experience)
        x, y, _ = tensors_of(experience.dataset)
        right += int((strategy.model.eval()(x, experience.task_label).argmax(1) == y).sum())
    assert found.accuracy == pytest.approx(right / sum(counts))


def test_prequential_accuracy_is_of_what_has_not_been_learned():
    """What is learned by heart in several passes is predicted once, before."""
    run = a_run("naive", "task", judging_prequential=True)
    once = learn(run, "cpu", [], _quiet).prequential
    again = learn(a_run("naive", "task", judging_prequential=True, training_epochs=3), "cpu", [], _quiet).prequential
    assert len(again.windows) == len(once.windows)
    assert again.windows[0] != 1
    in_a_row = a_run("naive", "task", judging_prequential=True, training_iterations_per_batch=3)
    repeated = learn(in_a_row, "cpu", [], _quiet).prequential
    assert len(repeated.windows) == len(once.windows)
    assert repeated.accuracy < 0.99


@pytest.mark.parametrize("batch_size", [10, 64, 128])
def test_prequential_accuracy_has_every_sample_of_the_stream_once(batch_size):
    """What Avalanche's loader replays stands behind the new ones, in the last and smaller minibatch as in others."""
    settings = {"judging_prequential": True, "judging_window": 1, "training_batch_size": batch_size}
    run = a_run("avalanche-replay", "class", **settings)
    found = learn(run, "cpu", [], _quiet).prequential
    assert len(found.windows) == sum(len(experience.dataset) for experience in benchmark_of(run).train_stream)


@pytest.mark.parametrize("strategy", ["cumulative", "icarl", "avalanche-gdumb", "avalanche-er-ace"])
def test_where_old_samples_are_learned_among_the_new_there_is_no_prequential_accuracy(strategy):
    settings = {} if strategy == "cumulative" else {"mem_size": 50}
    settings |= {"batch_size_mem": 10} if strategy == "avalanche-er-ace" else {}
    assert learn(a_run(strategy, "class", judging_prequential=True, **settings), "cpu", [], _quiet).prequential is None


def test_what_was_measured_along_the_way_is_in_the_record_and_the_tables(tmp_path):
    run = a_run("naive", "class", judging_every=4, judging_prequential=True)
    record = execute(run, tmp_path, "cpu", "disabled", _quiet)
    assert record.complete, record.reason
    assert store.read(run.folder(tmp_path) / "record.json") == record
    assert set(record.along_the_way) == {"AAA", "min_ACC", "WC_ACC", "stability_gap", "prequential"}
    shown = pages.markdown([record])
    assert "along the way" in shown
    assert f"{100 * record.along_the_way['AAA']:.2f}" in shown
    assert "judging" not in record.hyperparameters, "it decides nothing"
    (sheet,) = anytime.sheets(anytime.compare([record]))
    assert list(sheet.rows[0]) == ["strategy", "AAA", "min-ACC", "WC-ACC", "gap", "prequential", "seeds"]
    (sheet,) = anytime.sheets(anytime.compare([record.model_copy(update={"prequential": None})]))
    assert list(sheet.rows[0]) == ["strategy", "AAA", "min-ACC", "WC-ACC", "gap", "seeds"], "what was measured"
    joint = execute(a_run("joint", "class", judging_every=4), tmp_path, "cpu", "disabled", _quiet)
    assert joint.complete
    assert not joint.along_the_way


def _measured(strategy, seed, every=4, samples=None, window=None):
    curve = Anytime(
        every=every, samples=samples, steps=[every], experience=[0], accuracy=[[0.5]], measures={"AAA": 0.5}
    )
    first = window and Prequential(accuracy=0.5, window=window, windows=[0.5])
    return store.Record(
        **{"protocol": "p", "strategy": strategy, "seed": seed, "status": "complete", "accuracy_matrix": [[0.5]]},
        **{"metrics": dict.fromkeys(METRICS) | {"ACC": 0.5}, "anytime": curve, "prequential": first},
        **{"hyperparameters": {}, "seconds": 1.0, "environment": {}},
    )


def test_seeds_that_were_measured_in_different_ways_are_not_averaged():
    assert len(anytime.compare([_measured("naive", 0), _measured("naive", 1)])) == 1
    for ways, said in [
        ({"every": 9}, r"seed 0 every 4 steps, on all test samples; seed 1 every 9 steps, on all test samples\)"),
        ({"samples": 20}, "seed 0 every 4 steps, on all .*; seed 1 every 4 steps, on the same 20 test samples"),
        ({"window": 7}, r"seed 0 in windows of 5 samples; seed 1 in windows of 7 samples\)"),
    ]:
        first = _measured("naive", 0, window=5 if "window" in ways else None)
        with pytest.raises(store.RecordError, match=f"p naive: its seeds were measured in different ways .{said}"):
            anytime.compare([first, _measured("naive", 1, **ways)])


def test_what_was_measured_along_the_way_is_in_the_csv():
    curves = [{"AAA": 0.5, "WC_ACC": 0.2}, {"AAA": 0.7, "WC_ACC": 0.2}]
    records = [_measured("naive", seed, window=5) for seed in (0, 1)]
    records = [
        one.model_copy(update={"anytime": one.anytime.model_copy(update={"measures": curve})})
        for one, curve in zip(records, curves, strict=True)
    ]
    bare = _measured("joint", 0).model_copy(update={"anytime": None})
    found = pd.read_csv(io.StringIO(comparison.as_csv(comparison.compare([*records, bare])))).set_index("strategy")
    assert found.loc["naive", "AAA"] == pytest.approx(0.6)
    assert found.loc["naive", "AAA_half_width"] > 0
    assert found.loc["naive", ["WC_ACC", "prequential", "prequential_half_width"]].tolist() == [0.2, 0.5, 0]
    names = ["AAA", "min_ACC", "WC_ACC", "stability_gap", "prequential"]
    assert found.loc["joint", names].isna().all()
    assert found["min_ACC"].isna().all(), "nobody has it"


def test_of_rows_that_were_measured_in_different_ways_the_note_says_which_is_which():
    records = [_measured("ewc", 0), _measured("naive", 0), _measured("replay", 0, every=9)]
    (sheet,) = anytime.sheets(anytime.compare(records[:2]))
    assert sheet.note == "Measured every 4 steps, on all test samples"
    (sheet,) = anytime.sheets(anytime.compare(records))
    assert sheet.note == (
        "ewc, naive: measured every 4 steps, on all test samples; replay: measured every 9 steps, on all test samples"
    )
