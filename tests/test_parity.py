"""The parity board: published figures beside ours."""

import io
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from engrams.benchmarks.protocols import registry as protocol
from engrams.reports import store
from engrams.reports.pages.comparison import Estimate
from engrams.reports.parity import board as parity
from engrams.reports.parity import tables as parity_tables
from engrams.reports.parity.board import Reported, Verdict
from engrams.reports.store import RecordError
from tests.test_runs import engrams
from tests.test_tables import group, record

SPREAD = Reported(0.80, sd=0.01, runs=10)
PUBLISHED = """
[sources.read2018]
title = "Somebody 2018"
where = "Table 2"
checked = true
runs = 10
metric = "ACC"

[sources.unread2019]
title = "Somebody else 2019"
where = "Table 1"
checked = false
metric = "ACC"

[sources.gan2018]
title = "A generator"
where = "Table 1"
checked = true
metric = "generated ACC"

[[figures]]
source = "read2018"
protocols = ["p/task", "p/class"]
note = "A remark."
rows = [
  { method = "EWC", strategy = "ewc", mean = [80.0, 20.5], sd = [1.0, 0.1], setting = ["lambda 100", "lambda 600"] },
  { method = "MAS", strategy = "mas", mean = [70.0, 21.0], sd = [1.0, 0.1], setting = ["lambda 1"] },
]
[figures.setting]
training = "Adam 1e-3, batch 128"
extra = "dropout"

[[figures]]
source = "unread2019"
protocols = ["p/task"]
rows = [{ method = "EWC", strategy = "ewc", mean = [85] }, { method = "SI", strategy = "si", mean = [80] }]

[[figures]]
source = "gan2018"
protocols = ["p/task", "p/task"]
after = [2, 3]
rows = [
  { method = "GAN", strategy = "ewc", mean = [80.11, 90.22] },
  { method = "RA", strategy = "mergan-ra", mean = [80.11, 90.22] },
  { method = "JT", strategy = "gan-joint", mean = [80.11, 90.22] },
]
"""


def set_to(records, **hyperparameters):
    return [one.model_copy(update={"hyperparameters": hyperparameters}) for one in records]


TRAINING = {"optimizer": "adam", "learning_rate": 0.001, "reset_optimizer": False}
RECORDS = [
    *set_to(
        group("ewc", 0.80, 0.81, 0.78, protocol="p/task"),
        training=TRAINING,
        judge="test",
        stream={"kind": "split", "validation_fraction": 0.1},
        strategy={"ewc_lambda": 3000.0, "fisher_samples": None},
    ),
    *set_to(
        group("ewc", 0.150, 0.151, 0.149, protocol="p/class"),
        training=TRAINING | {"learning_rate": 0.01},
        strategy={"ewc_lambda": 10.0},
    ),
    *set_to(group("mas", 0.300, 0.310, protocol="p/class"), training=TRAINING, strategy={"mas_lambda": 2.0}),
    *(
        one.model_copy(update={"reason": "the loss became nan", "hyperparameters": {"strategy": {"mas_lambda": 9.0}}})
        for one in group("mas", 0.5, status="failed", protocol="p/task")
    ),
    *group("other", 0.5, protocol="p/task"),
]

LOST = "mas lambda 9: the loss became nan"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("the loss became nan", "the loss became nan"),
        ("OSError: no room\nin here (see /home/alice/runs/p/0/traceback.txt)", "OSError: no room"),
        ("ValueError (see /home/alice/runs/p/0/traceback.txt)", "ValueError (see …/0/traceback.txt)"),
        ("an a | b", "an a \\| b"),
    ],
)
def test_why_a_run_failed_is_one_cell_without_paths(published, reason, said):
    failed = record("mas", 0, 0.5, "p/task", status="failed").model_copy(
        update={"reason": reason, "hyperparameters": {"strategy": {}}}
    )
    text = parity_tables.as_markdown(parity.compare(parity.read(published), [failed]), [])
    (line,) = [line for line in text.splitlines() if "| 0 (1 failed) |" in line.replace("  ", " ").replace("  ", " ")]
    assert f"| {said} " in line


@pytest.fixture
def published(tmp_path, monkeypatch):
    path = tmp_path / "published.toml"
    path.write_text(PUBLISHED, encoding="utf-8")
    monkeypatch.setattr(parity, "PUBLISHED", path)
    return path


def runs_of(tmp_path, records):
    for one in records:
        store.write(one, store.folder_of(tmp_path / "runs", one.protocol, one.strategy, one.seed))
    return tmp_path / "runs"


def compared(records):
    """(protocol, strategy, source) -> comparison."""
    return {
        (row.protocol, row.strategy, board.source_name): row
        for board in parity.compare(parity.read(parity.PUBLISHED), records)
        for row in board.rows
    }


def test_what_a_source_says_of_its_runs_and_of_its_spread_counts(published):
    def half_width(records, strategy, source):
        return compared(records)["p/task", strategy, source].difference.half_width

    two = group("ewc", 0.80, 0.80001, protocol="p/task")  # so that the source's spread is nearly all there is
    spread, one_run = half_width(two, "ewc", "read2018"), half_width(two, "ewc", "unread2019")
    text = PUBLISHED.replace("runs = 10", "runs = 10\nddof = 0").replace("checked = false", "checked = false\nruns = 4")
    published.write_text(text, encoding="utf-8")
    assert half_width(two, "ewc", "read2018") / spread == pytest.approx(np.sqrt(10 / 9), rel=1e-3)
    # Of s^2 (1/2 + 1/1), and of s^2 (1/2 + 1/4).
    assert one_run / half_width(two, "ewc", "unread2019") == pytest.approx(np.sqrt(2))


# --- the rule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", [[0.80, 0.81, 0.78], [0.9, 0.7], [0.5, 0.5001, 0.5002, 0.49], [0.6, 0.6, 0.6]])
@pytest.mark.parametrize("reported", [SPREAD, Reported(0.3, sd=0.0003, runs=2), Reported(0.99, sd=0.2, runs=30)])
def test_the_interval_is_welchs(ours, reported):
    found = parity.difference(ours, reported)
    assert found.mean == pytest.approx(np.mean(ours) - reported.mean)
    # where the published mean lies on the interval's edge, Welch's test is at its 5%
    for edge in (-found.half_width, found.half_width):
        p = stats.ttest_ind_from_stats(
            *(np.mean(ours), np.std(ours, ddof=1), len(ours)),
            *(np.mean(ours) + edge, reported.sd, reported.runs),
            equal_var=False,
        ).pvalue
        assert p == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("spread", [0.001, 0.01])
@pytest.mark.parametrize("shift", np.linspace(-0.03, 0.03, 25))
def test_the_verdict_is_that_of_welchs_tests(shift, spread):
    """Two one-sided ones against a point, then the two-sided one against 0."""
    ours = 0.80 + shift + spread * np.array([0.0, 1.0, -2.0, 0.0])

    def p(published, alternative):
        moments = np.mean(ours), np.std(ours, ddof=1), 4, published, 0.01, 10
        return stats.ttest_ind_from_stats(*moments, equal_var=False, alternative=alternative).pvalue

    expected = Verdict.undecided
    if p(0.80, "two-sided") < 0.05:
        expected = Verdict.above if np.mean(ours) > 0.80 else Verdict.short
    if max(p(0.79, "greater"), p(0.81, "less")) <= 0.05:
        expected = Verdict.reproduced
    assert parity.judge(parity.difference(ours, SPREAD), 0.0, len(ours)) is expected
    if spread == 0.001 and shift == 0:
        assert expected is Verdict.reproduced


def test_what_would_decide():
    """So many seeds that Welch's two one-sided tests show equal means to be within a point, and one less does not."""
    ours = [0.80, 0.83, 0.78]
    seeds = int(parity.to_decide(ours, SPREAD).removesuffix(" seeds"))

    def p(count):
        moments = 0.80, np.std(ours, ddof=1), count, 0.79, 0.01, 10
        return stats.ttest_ind_from_stats(*moments, equal_var=False, alternative="greater").pvalue

    assert p(seeds) <= 0.05 < p(seeds - 1)
    assert parity.to_decide(ours, Reported(0.8, sd=0.05, runs=10)) == "its spread"
    assert parity.to_decide([0.1, 0.9], Reported(0.8, sd=0.001, runs=10)) == "over 1000 seeds"
    assert parity.to_decide([0.8], SPREAD) == "more seeds"
    assert parity.to_decide([0.8, 0.8], SPREAD) == "3 seeds", "there are two"


@pytest.mark.parametrize("spread", [0.0, 0.001, 0.002, 0.004, 0.006, 0.01])
@pytest.mark.parametrize("runs", [None, 5])
@pytest.mark.parametrize("digits", [0, 1])
def test_seeds_are_promised_only_where_they_decide(spread, runs, digits):
    """Against the verdict itself: with so many seeds of the same mean and spread it is reproduced, with less not."""
    reported = Reported(0.8, runs=runs, digits=digits)

    def verdict(count):
        values = np.linspace(-1, 1, count)
        return parity.judge(
            parity.difference(0.8 + spread * values / np.std(values, ddof=1), reported), reported.rounding, count
        )

    start = 0.8 + spread * np.array([-1.0, 1.0]) / np.sqrt(2)
    said = parity.to_decide(start, reported)
    if said.endswith(" seeds"):
        count = int(said.removesuffix(" seeds"))
        assert verdict(count) is Verdict.reproduced
        assert count == 3 or verdict(count - 1) is not Verdict.reproduced
    else:
        assert said == ("its 5 runs" if runs else "its one run")
        assert verdict(100_000) is not Verdict.reproduced


def test_a_number_without_a_spread_is_one_run_that_spreads_as_ours():
    """Student's two-sample test with equal variances, one sample being a single value: a prediction interval."""
    ours = [0.80, 0.81, 0.78]
    found = parity.difference(ours, Reported(0.83))
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 2) * np.std(ours, ddof=1) * np.sqrt(1 + 1 / 3))
    assert found.narrow == pytest.approx(stats.t.ppf(0.95, 2) * np.std(ours, ddof=1) * np.sqrt(1 + 1 / 3))


def test_a_number_without_a_spread_is_the_mean_of_as_many_runs_as_the_source_says():
    ours = [0.80, 0.81, 0.78]
    found = parity.difference(ours, Reported(0.83, runs=5))
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 2) * np.std(ours, ddof=1) * np.sqrt(1 / 5 + 1 / 3))


def test_one_published_run_is_rarely_called_different_when_it_is_not():
    """At most in one of twenty times; taken as exact it would be in one of three."""
    random = np.random.default_rng(0)
    draws = random.normal(0.8, 0.02, size=(2000, 6))
    called = [
        parity.judge(parity.difference(ours, Reported(theirs, digits=9)), 0.0, 5) in (Verdict.above, Verdict.short)
        for *ours, theirs in draws
    ]
    assert np.mean(called) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("ours", [[0.80, 0.81, 0.78], [0.8]])
def test_a_spread_of_numpys_kind_is_made_that_of_a_sample(ours):
    theirs = np.array([0.7, 0.72, 0.71, 0.76])
    numpys = Reported(0.7225, sd=float(np.std(theirs)), runs=4, ddof=0)
    sample = Reported(0.7225, sd=float(np.std(theirs, ddof=1)), runs=4)
    assert parity.difference(ours, numpys).half_width == pytest.approx(parity.difference(ours, sample).half_width)
    if len(ours) > 1:
        test = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
        assert parity.difference(ours, numpys).half_width == pytest.approx((test.high - test.low) / 2)


def test_a_single_seed_spreads_as_the_source_or_not_at_all():
    found = parity.difference([0.9], SPREAD)
    # a new value from where ten came from: a prediction interval
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 9) * 0.01 * np.sqrt(1 + 1 / 10))
    alone = parity.difference([0.9], Reported(0.83))
    assert (alone.mean, alone.half_width, alone.narrow) == (pytest.approx(0.07), None, None)


@pytest.mark.parametrize(
    ("ours", "reported", "verdict"),
    [
        ([0.9, 0.9, 0.9], SPREAD, "above"),
        ([0.7, 0.7, 0.7], SPREAD, "short"),
        ([0.80008, 0.80009, 0.80008], Reported(0.8, sd=0.00001, runs=10), "reproduced"),  # not the same, but no matter
        ([0.812, 0.812], Reported(0.8, sd=0.00001, runs=10), "above"),
        ([0.8095, 0.8096], Reported(0.8, digits=0), "above"),
        ([0.8045, 0.8046], Reported(0.8, digits=0), "undecided"),  # 80 may be 80.4, and it may be 79.5
        ([0.8045, 0.8046], Reported(0.8, digits=1), "reproduced"),
        ([0.8040, 0.8041], Reported(0.8, digits=0), "reproduced"),
        ([0.812, 0.812], Reported(0.8, digits=0), "above"),
        ([0.82, 0.83, 0.84, 0.85, 0.86], Reported(0.8), "undecided"),  # one run may be so far from ours
        ([0.82, 0.83, 0.84, 0.85, 0.86], Reported(0.8, runs=5), "above"),
        ([0.87, 0.88, 0.89, 0.90, 0.91], Reported(0.8), "above"),
        ([0.9, 0.7, 0.5], SPREAD, "undecided"),  # ten points lower, and it could be chance
        ([0.80, 0.82, 0.78], SPREAD, "undecided"),  # the same, and it could be chance
        ([0.8, 0.8], Reported(0.8, sd=0.0, runs=10), "reproduced"),  # no variance anywhere
        ([0.9, 0.9], Reported(0.8, sd=0.0, runs=10), "above"),
        ([0.9, 0.9], Reported(0.8), "above"),
        ([0.82], SPREAD, "undecided"),
        ([0.83], SPREAD, "undecided"),  # a single seed is never decided
        ([0.9], SPREAD, "undecided"),
        ([0.8], Reported(0.8, sd=0.00001, runs=10), "undecided"),
        ([0.80004], Reported(0.8), "undecided"),  # one run of ours, and nobody knows how they spread
        ([0.9], Reported(0.8), "undecided"),
    ],
)
def test_closed_cases(ours, reported, verdict):
    found = parity.difference(ours, reported)
    assert found.half_width is None or np.isfinite(found.half_width)
    assert parity.judge(found, reported.rounding, len(ours)).value == verdict


# --- the comparison ---------------------------------------------------------------------------------------------------


def test_each_figure_is_beside_its_own_runs(published):
    found = compared(RECORDS)
    assert {key: row.verdict.value for key, row in found.items() if key[2] != "gan2018"} == {
        ("p/task", "ewc", "read2018"): "undecided",
        ("p/task", "mas", "read2018"): "failed",
        ("p/class", "ewc", "read2018"): "short",
        ("p/class", "mas", "read2018"): "above",
        ("p/task", "ewc", "unread2019"): "undecided",
        ("p/task", "si", "unread2019"): "not run",
    }
    ewc = found["p/task", "ewc", "read2018"]
    assert ewc.ours == Estimate.of([0.80, 0.81, 0.78])
    assert ewc.reported == Reported(0.80, 0.01, 10, digits=1)
    assert (ewc.published_setting, ewc.our_setting) == ("lambda 100", "ewc lambda 3000")
    assert found["p/class", "ewc", "read2018"].published_setting == "lambda 600"
    assert found["p/class", "mas", "read2018"].published_setting == "lambda 1"
    failed = found["p/task", "mas", "read2018"]
    assert (failed.seeds, failed.failed, failed.ours) == (0, 1, None)


def test_ours_beside_avalanches_is_paired_over_common_seeds():
    noise = [0.0, 0.1, -0.1, 0.05]
    records = [
        *group("mas", *(0.8 + n for n in noise)),
        *group("avalanche-mas", *(0.79 + n + d for n, d in zip(noise, (0.001, -0.001, 0.0, 0.0), strict=True)), 0.1),
        *group("replay", 0.9, 0.8),
        *group("avalanche-replay", 0.8, 0.9),
        *group("naive", 0.5, 0.5, 0.5),
        *group("avalanche-naive", 0.6, 0.6, 0.6),
        *group("ewc", 0.5, 0.5),
        *group("avalanche-ewc", 0.5),
    ]
    pairs = {name: f"avalanche-{name}" for name in ("mas", "replay", "naive", "ewc")}
    mas, replay, naive = parity.against_avalanche(records, pairs)
    assert (mas.seeds, mas.verdict) == (4, "better"), "a hundredth, in every seed, though the seeds spread far more"
    test = stats.ttest_rel([r.acc for r in records[:4]], [r.acc for r in records[4:8]])
    low, high = test.confidence_interval(0.95)
    assert (mas.difference.mean - mas.difference.half_width) == pytest.approx(low)
    assert (mas.difference.mean + mas.difference.half_width) == pytest.approx(high)
    assert (replay.verdict, naive.verdict) == ("level", "worse")
    ours, theirs = (set_to(of, training={"learning_rate": rate}) for of, rate in ((records[:4], 1), (records[4:9], 2)))
    assert not parity.against_avalanche([*ours, *theirs], pairs), "each has the rate that its source chose"
    other = set_to(group("avalanche-mas", 0.8, 0.9), training={"epochs": 2})
    ours = set_to(records[:4], training={"epochs": 1})
    with pytest.warns(UserWarning, match="mas and avalanche-mas were run under different settings, and are not"):
        found = parity.against_avalanche([*ours, *other, *records[9:13]], pairs)
    assert [one.strategy for one in found] == ["replay"]


@pytest.mark.parametrize(("means", "digits"), [([80.0, 7.0], 0), ([42.9, 50.0], 1), ([42.95, 50.0], 2)])
def test_a_figure_is_as_exact_as_its_source_has_it(tmp_path, means, digits):
    rows = "".join(f'  {{ method = "m{n}", strategy = "naive", mean = [{mean}] }},\n' for n, mean in enumerate(means))
    (tmp_path / "p.toml").write_text(
        '[sources.s2018]\ntitle = "S"\nwhere = "T"\nchecked = true\nmetric = "ACC"\n'
        f'[[figures]]\nsource = "s2018"\nprotocols = ["p/task"]\nrows = [\n{rows}]\n[figures.setting]\ntraining = "t"\n'
    )
    (board,) = parity.compare(parity.read(tmp_path / "p.toml"), group("naive", 0.5, 0.6, protocol="p/task"))
    assert {row.reported.digits for row in board.rows} == {digits}


def test_ours_beside_avalanches_is_shown(folder_of_duels):
    text = engrams("parity", folder_of_duels)
    assert re.search(r"mas +avalanche-mas .* better", text.stdout)
    assert "| avalanche-mas |" in engrams("parity", folder_of_duels, "--format", "md").stdout


@pytest.fixture
def folder_of_duels(tmp_path):
    for one in [*group("mas", 0.8, 0.9, 0.85), *group("avalanche-mas", 0.7, 0.81, 0.74)]:
        store.write(one, store.folder_of(tmp_path, one.protocol, one.strategy, one.seed))
    return tmp_path


def test_generated_accuracy_is_not_the_acc_of_a_record(published):
    assert {row.verdict for key, row in compared(RECORDS).items() if key[2] == "gan2018"} == {Verdict.not_run}


def test_generated_accuracy_is_taken_after_as_many_experiences_as_the_source_says(published):
    matrix = [[0.5, 0.0, 0.0], [0.2, 0.6, 0.0], [0.1, 0.3, 0.8]]
    ones = [
        one.model_copy(update={"accuracy_matrix": matrix, "hyperparameters": {"generation": {}}})
        for one in group("mergan-ra", 0.4, 0.4, protocol="p/task")
    ]
    joint = record("gan-joint", 0, 0.5, protocol="p/task").model_copy(
        update={"accuracy_matrix": [[0.9, 0.7, 0.2]], "hyperparameters": {"generation": {}}}
    )
    boards = parity.compare(parity.read(published), [*ones, joint])
    rows = [row for board in boards if board.source_name == "gan2018" for row in board.rows]
    found = {row.method: row.ours.mean for row in rows if row.ours}
    assert found == pytest.approx(
        {"RA, after 2 tasks": 0.4, "RA, after 3 tasks": 0.4, "JT, after 2 tasks": 0.8, "JT, after 3 tasks": 0.6}
    )


def test_failed_runs_and_validation_trials_are_not_averaged(published):
    [trial] = set_to([record("ewc", 1000, 0.1, protocol="p/task")], judge="validation")
    failed = RECORDS[0].model_copy(update={"seed": 7, "status": "failed", "metrics": {}, "accuracy_matrix": []})
    ewc = compared([*RECORDS, trial, failed])["p/task", "ewc", "read2018"]
    assert (ewc.seeds, ewc.failed) == (3, 1)
    assert ewc.ours == Estimate.of([0.80, 0.81, 0.78])
    only_trial = compared([trial])["p/task", "ewc", "read2018"]
    assert only_trial.verdict is Verdict.not_run


def test_mixed_hyperparameters_are_refused(published):
    odd = set_to([record("ewc", 9, 0.8, protocol="p/task")], strategy={"ewc_lambda": 1.0})
    with pytest.raises(RecordError, match="p/task ewc: its seeds were run with different hyperparameters"):
        compared([*RECORDS, *odd])


def test_settings_stand_side_by_side(published):
    first, second, _ = parity.compare(parity.read(published), RECORDS)
    settings = {name: (theirs, ours) for name, theirs, ours in first.settings}
    usual = "optimizer adam, learning rate 0.001, reset optimizer no"
    assert settings["training"][0] == "Adam 1e-3, batch 128"
    assert settings["training"][1] == f"{usual}; {usual.replace('0.001', '0.01')} (ewc on p/class)"
    assert settings["extra"] == ("dropout", "")
    # what a source does not say is shown all the same; here only one run has it
    assert settings["stream"] == ("", "none; kind split (ewc on p/task)")
    assert "validation" not in str(settings), "nothing is held out of reported runs"
    assert {name for name, *_ in second.settings} == {"training", "stream"}


# --- shown ------------------------------------------------------------------------------------------------------------


def test_markdown_has_the_count_every_row_and_the_sources(published, tmp_path):
    done = engrams("parity", runs_of(tmp_path, RECORDS), "--format", "md")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert text.startswith("0 reproduced, 1 above, 1 short, 2 undecided, 1 failed, 7 not run.\n")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    gap = parity.difference([0.80, 0.81, 0.78], SPREAD)
    ewc = ["EWC", "ewc", "80.0 (sd 1.00)", "79.67 ± 3.79", "3", f"-0.33 ± {100 * gap.half_width:.2f}"]
    assert [
        *ewc,
        f"undecided ({parity.to_decide([0.80, 0.81, 0.78], Reported(0.80, 0.01, 10, digits=1))})",
        "lambda 100",
        "ewc lambda 3000",
    ] in lines
    assert ["MAS", "mas", "70.0 (sd 1.00)", "", "0 (1 failed)", "", "failed", "lambda 1", LOST] in lines
    assert "**p/class beside read2018**" in text
    assert "A remark." in text
    assert "- unread2019: Somebody else 2019; Table 1" in text


def test_the_dagger_stands_by_what_nobody_has_read_yet(published, tmp_path):
    shown = engrams("parity", runs_of(tmp_path, RECORDS), "--format", "md").stdout
    marked = [line.split("|")[3].strip() for line in shown.splitlines() if line[:1] == "|" and "†" in line]
    assert marked == ["85 †", "80 †"]
    assert "† not yet read in the source itself." in shown


def test_csv_has_fractions_that_read_back(published, tmp_path):
    done = engrams("parity", runs_of(tmp_path, RECORDS), "--format", "csv")
    frame = pd.read_csv(io.StringIO(done.stdout)).set_index(["source", "protocol", "strategy"])
    assert len(frame) == 12
    for (where, strategy, source), row in compared(RECORDS).items():
        if source == "gan2018":
            continue
        line = frame.loc[[(source, where, strategy)]].iloc[0]
        assert line["published"] == pytest.approx(row.reported.mean)
        assert line["verdict"] == row.verdict.value
        assert (line["to_decide"] == row.to_decide) or (not row.to_decide and pd.isna(line["to_decide"]))
        assert line["seeds"] == row.seeds
        for name, value in (
            ("published_sd", row.reported.sd),
            ("ours", row.ours and row.ours.mean),
            ("ours_half_width", row.ours and row.ours.half_width),
            ("difference", row.difference and row.difference.mean),
            ("difference_half_width", row.difference and row.difference.half_width),
        ):
            assert np.isnan(line[name]) if value is None else line[name] == pytest.approx(value)
    line = frame.loc[[("read2018", "p/task", "ewc")]].iloc[0]
    assert line["published"] == 0.8
    assert line["published_settings_of_all"] == "training: Adam 1e-3, batch 128; extra: dropout"


def test_the_terminal_colours_verdicts_and_ends_with_the_count(published, tmp_path):
    done = engrams("parity", runs_of(tmp_path, RECORDS))
    assert done.stdout.splitlines()[-1] == "0 reproduced, 1 above, 1 short, 2 undecided, 1 failed, 7 not run"
    console = Console(width=160, file=io.StringIO(), force_terminal=True, no_color=False, color_system="standard")
    for sheet in parity_tables.sheets(parity.compare(parity.read(published), RECORDS)):
        console.print(sheet.fitted(console, 160)[0])
    shown = console.file.getvalue()
    for verdict, code in (("above", "32"), ("short", "31"), ("undecided", "33"), ("failed", "31"), ("not run", "2")):
        assert f"\x1b[{code}m{verdict}" in shown


def test_a_narrow_terminal_cuts_no_number(published):
    console = Console(width=100, file=io.StringIO())
    for sheet in parity_tables.sheets(parity.compare(parity.read(published), RECORDS)):
        console.print(sheet.fitted(console, 100)[0])
    for cell in ("80.0 (sd 1.00)", "79.67 ± 3.79", "undecided", "0 (1 failed)"):
        assert cell in console.file.getvalue()


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mean = [80.0, 20.5]", "mean = [80.0]", "figures.0: rows.0.mean: 1 numbers for 2 protocols"),
        ("sd = [1.0, 0.1]", "sd = [1.0, 0.1, 2.0]", "figures.0: rows.0.sd: 3 numbers for 2 protocols"),
        ("after = [2, 3]", "after = [2]", "figures.2: after: 1 for 2 protocols"),
        ('["lambda 100", "lambda 600"]', '["a", "b", "c"]', "figures.0: rows.0.setting: 3 texts for 2 protocols"),
        ('source = "unread2019"', 'source = "unred"', "figures.1.source: no source is called 'unred'"),
        ("runs = 10\n", "", "sources.read2018.runs: missing; figures.0 reports sd"),
        ("mean = [85]", "mean = [850]", "figures.1.rows.0.mean.0: Input should be less than or equal to 100"),
        ("mean = [85]", "men = [85]", "figures.1.rows.0.mean: Field required"),
        ("checked = false", 'checked = "no"', "sources.unread2019.checked: Input should be a valid boolean"),
        ("[[figures]]", "[[figures", "(at line"),
    ],
)
def test_a_broken_file_is_one_line_that_names_the_key(published, tmp_path, old, new, message):
    assert old in PUBLISHED
    published.write_text(PUBLISHED.replace(old, new, 1), encoding="utf-8")
    done = engrams("parity", runs_of(tmp_path, RECORDS))
    assert done.returncode == 2
    assert str(published) in done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_no_records_is_one_line(tmp_path):
    done = engrams("parity", tmp_path)
    assert done.returncode == 2
    assert f"there are no records in {tmp_path}" in done.stderr


def test_the_published_figures_name_protocols_that_there_are():
    names = protocol.names()
    ours = {name.partition("/")[0] for name in names}
    for figure in parity.read(parity.PUBLISHED).figures:
        for name in figure.protocols:
            assert name in names or name.partition("/")[0] not in ours, name


def test_records_of_several_folders_stand_on_one_board(published, tmp_path):
    together = engrams("parity", runs_of(tmp_path / "all", RECORDS), "--format", "csv")
    halves = [runs_of(tmp_path / name, part) for name, part in (("a", RECORDS[::2]), ("b", RECORDS[1::2]))]
    apart = engrams("parity", *halves, "--format", "csv")
    assert apart.returncode == 0, apart.stderr
    assert apart.stdout == together.stdout
