"""What a run takes: operations against formulas and against a count of every step, bytes part by part, tables."""

import csv
import io
from contextlib import contextmanager

import pytest
import torch

from engrams.benchmarks.jobs.plan import run_of
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.runs import Run
from engrams.benchmarks.training import costs, learn
from engrams.benchmarks.training.costs import OperationsPlugin, PeakMemory
from engrams.reports import store
from engrams.reports.costs import Costs
from engrams.reports.local import contents
from engrams.reports.pages import costs as pages
from engrams.reports.wandb import page
from engrams.strategies.steps import step_of, steps_told
from tests.test_records import record, written
from tests.test_runs import engrams

ENTRY = registry.get("split-digits/class")
EPOCHS, FIRST = 2, 3
EVERY = ENTRY.model_copy(update={"training": ENTRY.training.model_copy(update={"epochs": EPOCHS})})
INPUTS, HIDDEN = 64, 100


def learned(strategy, **settings):
    """What a short run learned, and Avalanche's strategy at its end."""
    planned = run_of(EVERY, strategy, 0, settings)
    seen = []

    class Watch:
        def after_experience(self, strategy, matrix, found):
            seen.append(strategy)

    found = learn.learn(
        Run(EVERY, planned.strategy, 0, planned.hyperparameters, first=FIRST), "cpu", [Watch()], lambda epochs: None
    )
    return found, seen[-1]


@pytest.fixture(scope="module")
def samples():
    return [len(one.dataset) for one in learn.benchmark_of(run_of(ENTRY, "naive", 0)).train_stream[:FIRST]]


LAYERS = [INPUTS * HIDDEN, HIDDEN * HIDDEN, HIDDEN * 2 * FIRST]
"""Weights of each; the head has grown to its size when it is judged before training."""


def test_a_training_step_is_what_the_formula_says(samples):
    found, _ = learned("naive")
    # Forward, the gradients of the weights, and those of each layer's inputs but the first's.
    assert found.costs.operations == {"training": EPOCHS * sum(samples) * (6 * sum(LAYERS) - 2 * LAYERS[0])}
    assert found.costs.steps == {"training": EPOCHS * sum(-(-n // ENTRY.training.batch_size) for n in samples)}


def test_mas_takes_three_products_a_layer(samples):
    found, _ = learned("mas")
    assert found.costs.operations["importance"] == sum(samples) * 2 * (3 * sum(LAYERS) - LAYERS[0])


@pytest.mark.parametrize(
    ("strategy", "settings", "kinds"),
    [
        ("replay", {}, {"training"}),
        ("avalanche-gem", {}, {"training"}),
        ("dgr-vae", {"generator_epochs": 2, "hidden_sizes": (30,)}, {"training", "generator", "replay"}),
        ("dgr", {"generator_epochs": 2, "width": 8, "critic_steps": 2}, {"training", "generator", "replay"}),
    ],
)
def test_one_step_of_each_kind_stands_for_all(monkeypatch, strategy, settings, kinds):
    """Against a count of everything that is done in training, which takes no step for another."""
    real, every = learn.steps_told, []

    @contextmanager
    def everything(counting):
        with costs._counter() as counter, real(counting):
            yield
        every.append(counter.get_total_flops())

    monkeypatch.setattr(learn, "steps_told", everything)
    found, _ = learned(strategy, **settings)
    assert set(found.costs.operations) == kinds
    assert all(found.costs.operations.values())
    assert len(every) == FIRST
    # Before anything is trained, generative replay asks its solver about three samples: no step, and not counted.
    asked = 3 * 2 * sum(LAYERS) if "replay" in kinds else 0
    assert found.costs.all_operations == sum(every) - asked


def test_a_step_within_another_is_taken_off_it():
    plugin = OperationsPlugin()
    a, b = torch.ones(2, 3), torch.ones(3, 5)
    with steps_told(plugin.counting):
        for inner in (1, 0, 2):
            with step_of("outer"):
                a @ b
                for _ in range(inner):
                    with step_of("inner", 3):
                        b.T @ b
    assert plugin.operations == {"outer": 3 * 2 * 2 * 3 * 5, "inner": 3 * 2 * 5 * 3 * 5}
    assert plugin.steps == {"outer": 3, "inner": 3}
    with step_of("outer"):  # nobody is told
        a @ b
    assert plugin.steps["outer"] == 3


def test_a_step_that_fails_leaves_nobody_counting():
    plugin = OperationsPlugin()
    with pytest.raises(ZeroDivisionError), steps_told(plugin.counting), step_of("outer"):
        raise ZeroDivisionError
    assert not plugin.steps
    assert not plugin._within
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


# --- bytes ------------------------------------------------------------------------------------------------------------


SAMPLE = INPUTS * 4 + 8 + 8


def of(module):
    return sum(one.nbytes for one in (*module.parameters(), *module.buffers()))


def weights(strategy):
    return sum(one.nbytes for one in strategy.model.parameters())


@pytest.mark.parametrize(
    ("strategy", "parts"),
    [
        ("naive", lambda s: {}),
        ("ewc-separate", lambda s: dict.fromkeys(("importances", "anchors"), 3 * weights(s))),
        ("replay", lambda s: {"kept": 99 * SAMPLE}),
        # A weight for every sample that it has seen, besides.
        ("avalanche-replay", lambda s: {"storage policy": 100 * SAMPLE + 4 * 866}),
        ("avalanche-lwf", lambda s: {"lwf": of(s.model)}),
        ("cumulative", lambda s: {"dataset": 866 * SAMPLE}),
    ],
)
def test_what_is_kept_is_named_and_counted(strategy, parts):
    found, made = learned(strategy)
    expected = parts(made) | {"model": of(made.model)}
    assert {name: size for name, size in found.costs.bytes.items() if name != "optimizer"} == expected
    assert found.costs.kept == sum(expected.values()) - of(made.model)
    assert found.costs.bytes["optimizer"] == 2 * weights(made) + 6 * 4  # Adam's, and its step for each of them


def test_the_most_memory_is_that_of_the_time():
    before = PeakMemory("cpu")
    taken = torch.ones(50_000_000)
    with_it = before.bytes()
    del taken
    after = PeakMemory("cpu").bytes()
    assert with_it - after > 150_000_000, "the next run does not have it"


# --- seen -------------------------------------------------------------------------------------------------------------


def test_old_records_have_a_dash_and_new_ones_their_figures(tmp_path):
    taken = Costs(
        processor_seconds=2.5,
        peak_memory=700_000_000,
        bytes={"model": 2_000_000, "optimizer": 4_000_000, "anchors": 1_000_000, "importances": 500_000},
        operations={"training": 3_000_000_000, "importance": 1_000_000_000},
        steps={"training": 10, "importance": 1},
    )
    for one in (record("old"), record("new", costs=taken)):
        assert store.read(written(tmp_path, one)) == one
    done = engrams("table", tmp_path, "--costs", "--format", "md")
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in done.stdout.splitlines()
        if line.startswith("|")
    }
    assert rows["strategy"] == [
        "s",
        "processor s",
        "peak MB",
        "model MB",
        "kept MB",
        "GFLOP",
        "importance",
        "training",
        "seeds",
    ]
    assert rows["old"] == ["1", *"-------", "1"]
    assert rows["new"] == ["1", "2.5", "700", "2", "1.5", "4", "1", "3", "1"]
    (line,) = [
        line
        for line in csv.DictReader(io.StringIO(pages.as_csv(store.read_all(tmp_path))))
        if line["strategy"] == "new"
    ]
    assert (line["operations (GFLOP)"], line["bytes of anchors"]) == ("4.0", "1000000.0")
    assert engrams("table", tmp_path, "--costs", "--format", "tex").returncode == 2
    (section,) = contents.sections(store.read_all(tmp_path), {})
    assert {one.strategy: set(one.costs) for one in section.lines} == {"old": {"seconds"}, "new": set(pages.MEASURES)}
    assert contents.run(record("new", costs=taken), [])["costs"]["steps: training"] == "10, of 3 GFLOP in all"


def test_a_page_of_wandb_says_them_to_the_bit():
    taken = Costs(processor_seconds=0.1, bytes={"model": 8}, operations={"training": 2**60}, steps={"training": 1})
    one = record(costs=taken)
    assert page.record_of(page.introduction_of(one)["config"], page.rows_of(one), page.summary_of(one)).costs == taken
