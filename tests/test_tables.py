"""Comparison tables from records."""

import io
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from engrams.reports import marks, matrices, over_experiences
from engrams.reports.estimates import p_value, quantile
from engrams.reports.matrix import METRICS
from engrams.reports.pages import comparison as tables
from engrams.reports.pages import costs
from engrams.reports.render import as_markdown
from engrams.reports.store import Record, RecordError, Records

ENVIRONMENT = {"versions": {}}


def record(strategy, seed, acc, protocol="p", status="complete"):
    values = dict.fromkeys(METRICS) | {"ACC": acc}
    return Record(
        protocol=protocol,
        strategy=strategy,
        seed=seed,
        upper_bound=strategy == "joint",
        status=status,
        reason=None if status == "complete" else "the loss became nan",
        accuracy_matrix=[[acc]] if status == "complete" else [],
        metrics=values if status == "complete" else {},
        hyperparameters={},
        seconds=2.0,
        environment=ENVIRONMENT,
    )


def group(strategy, *accs, **kwargs):
    return [record(strategy, seed, acc, **kwargs) for seed, acc in enumerate(accs)]


RECORDS = [
    *group("joint", 0.99, 0.99, 0.98),
    *group("good", 0.90, 0.80, 0.70),
    *group("near", 0.89, 0.81, 0.69),  # its differences to good change sign
    *group("below", 0.85, 0.752, 0.648),  # 0.05 below in every seed, though the seeds spread far more than that
    *group("broken", 0.5, 0.5, status="failed"),
]


def rows():
    return {row.strategy: row for row in tables.compare(RECORDS)}


def test_mean_and_interval():
    estimate = rows()["good"].metrics["ACC"]
    low, high = stats.t.interval(0.95, 2, loc=0.8, scale=stats.sem([0.9, 0.8, 0.7]))
    assert estimate.mean == pytest.approx(0.8)
    assert estimate.mean - estimate.half_width == pytest.approx(low)
    assert estimate.mean + estimate.half_width == pytest.approx(high)
    assert tables.Estimate.of([0.5]).half_width is None
    assert "FWT" not in rows()["good"].metrics, "what no record has is left empty"


def test_the_best_is_no_upper_bound_and_only_supported_differences_are_shown():
    found = rows()
    assert [name for name, row in found.items() if row.best] == ["good"]
    assert found["near"].below_best is None
    assert found["below"].below_best == pytest.approx(-0.05, abs=1e-9)
    assert found["joint"].below_best is None
    assert list(found) == ["good", "near", "below", "broken", "joint"]


def test_one_seed_supports_nothing():
    one = tables.compare([record("a", 0, 0.9), record("b", 0, 0.1)])
    assert [row.compared for row in one] == [False, False]


def test_equal_rows_are_equal():
    same = tables.compare([*group("a", 0.5, 0.6), *group("b", 0.5, 0.6), *group("c", 0.4, 0.5)])
    assert [row.below_best for row in same] == [None, None, pytest.approx(-0.1)]


def test_a_lucky_seed_is_not_the_best():
    found = {row.strategy: row for row in tables.compare([record("lucky", 0, 0.99), *group("good", 0.8, 0.9, 0.85)])}
    assert found["good"].best
    assert not found["lucky"].compared, "one seed in common supports nothing, not even equality"


def test_trials_of_a_search_are_not_in_the_tables():
    trial = record("good", 1000, 0.1).model_copy(update={"hyperparameters": {"judge": "validation"}})
    assert tables.compare([*group("good", 0.8, 0.9), trial])[0].seeds == 2
    assert tables.compare([trial]) == []


def test_what_does_not_belong_in_one_row_is_refused():
    other = record("good", 2, 0.7).model_copy(update={"hyperparameters": {"strategy": {"ewc_lambda": 3.0}}})
    with pytest.raises(RecordError, match="p good: its seeds were run with different hyperparameters"):
        tables.compare([*group("good", 0.8, 0.9), other])
    mixed = [one.model_copy(update={"hyperparameters": {"training": {"epochs": 1}}}) for one in group("good", 0.8, 0.9)]
    mixed.append(other.model_copy(update={"hyperparameters": {"training": {"epochs": 2}}}))
    with pytest.raises(RecordError, match=r"\(seed 0 has training.epochs 1, seed 2 has 2\); run them again"):
        tables.compare(mixed)
    mixed = [record("f.py:f", seed, 0.5).model_copy(update={"hyperparameters": {"code": str(seed)}}) for seed in (0, 1)]
    with pytest.raises(RecordError, match=r"\(its file changed between seed 0 and seed 1\)"):
        tables.compare(mixed)
    with pytest.raises(RecordError, match="p good: a seed is there twice"):
        tables.compare([*group("good", 0.8, 0.9), record("good", 0, 0.8)])
    for look in (lambda records: matrices.of(records), lambda records: records.matrices("p", "good"), costs.compare):
        with pytest.raises(RecordError, match="p good: its seeds were run with different hyperparameters"):
            look(Records([*group("good", 0.8, 0.9), other]))
    mixed = Records([*group("good", 0.8, 0.9), other, *group("naive", 0.5), record("naive", 0, 0.5, "q")])
    assert [one.protocol for one in matrices.of(mixed, ("q",))] == ["q"], "what is asked for is not mixed"
    assert [one.strategy for one in matrices.of(mixed, ("p",), ("naive",))] == ["naive"]


def test_failed_runs_are_counted_and_not_averaged():
    assert rows()["broken"].failed == 2
    assert rows()["broken"].metrics == {}


def test_every_format_says_the_same():
    compared = tables.compare(RECORDS)
    markdown = as_markdown(tables.sheets(compared), tables.LEGEND)
    line = next(line for line in markdown.splitlines() if line.startswith("| below"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "below"
    assert cells[1].startswith("75.00 ± ")
    assert cells[6:] == ["-5.00", "3", "2.0"]
    assert "| joint ‡" in markdown
    assert "0 (2 failed)" in markdown
    latex = tables.as_latex(compared)
    assert r"75.00 $\pm$" in latex
    assert r"joint $\ddagger$" in latex
    assert r"\bottomrule" in latex
    assert r"my\_own:P step\_size=1 &" in tables.as_latex(tables.compare([record("my_own:P step_size=1", 0, 0.5)]))
    hard = tables.as_latex(tables.compare([record(r"ewc lr=a^b~{c}\d", 0, 0.5)]))
    assert r"ewc lr=a\textasciicircum b\textasciitilde \{c\}\textbackslash d &" in hard
    csv = pd.read_csv(io.StringIO(tables.as_csv(compared))).set_index("strategy")
    assert csv.loc["below", "ACC"] == pytest.approx(0.75)
    assert csv.loc["below", "supported_difference_to_best"] == pytest.approx(-0.05)
    assert bool(csv.loc["joint", "upper_bound"])
    console = Console(width=160, file=io.StringIO())
    for sheet in tables.sheets(compared):
        console.print(sheet.fitted(console, 160)[0])
    assert "75.00 ± " in console.file.getvalue()


def test_no_difference_is_said_from_three_seeds_on():
    def to_best(*accs):
        two = group("near", *accs)
        [sheet] = tables.sheets(tables.compare([*group("good", 0.9, 0.8, 0.7), *two]))
        return {row["strategy"]: row["to best"] for row in sheet.rows}["near"]

    assert to_best(0.89, 0.81, 0.69) == "="
    assert to_best(0.88, 0.70) == "", "two seeds do not say that there is no difference"
    assert to_best(0.84, 0.7401).startswith("-"), "but may say that there is one"


def test_the_statistics_are_scipys():
    differences = [0.3, -0.1, 0.2, 0.05]
    assert p_value(differences) == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue)
    assert p_value([-x for x in differences]) == pytest.approx(p_value(differences))
    assert p_value([0.1]) is None
    assert p_value([0.1, 0.1]) is None
    assert quantile(6.5) == pytest.approx(stats.t.ppf(0.975, 6.5))


def test_marks(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- tables -->\nold\n<!-- end of tables -->\nb\n", encoding="utf-8")
    marks.replace_between(path, "tables", "new\n")
    assert path.read_text(encoding="utf-8") == "a\n<!-- tables -->\nnew\n<!-- end of tables -->\nb\n"
    path.write_text("nothing", encoding="utf-8")
    with pytest.raises(marks.MarkError, match="has no place for the tables"):
        marks.replace_between(path, "tables", "new")
    assert path.read_text(encoding="utf-8") == "nothing"


def test_titles_of_matrices_stay_above_their_own(tmp_path):
    """However few experiences there are; and the matrices stay as large as without them."""
    long = ("my_strategy:slow_weights step=0.3", "ewc+replay ewc.ewc_lambda=10,replay.mem_size=50", "naive", "replay")
    records = Records([record(name, seed, 0.5) for name in long for seed in range(2)])
    plain = Records([record(name, seed, 0.5) for name in ("a", "b", "c", "d") for seed in range(2)])
    sizes = []
    for some in (records, plain):
        figure = matrices.figure(matrices.of(some))
        figure.savefig(tmp_path / "m.png")
        axes = figure.subfigs[0].axes
        titles = [one.title.get_window_extent() for one in axes]
        assert titles[0].x0 >= 0
        assert titles[-1].x1 <= figure.bbox.x1
        assert all(left.x1 < right.x0 for left, right in pairwise(titles))
        sizes.append(axes[0].get_window_extent().height)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_matrices_side_by_side(tmp_path):
    def runs(protocol, strategy, *matrices):
        return [
            record(strategy, seed, 0.5, protocol).model_copy(update={"accuracy_matrix": matrix})
            for seed, matrix in enumerate(matrices)
        ]

    records = Records(
        [
            *runs("p", "ewc", [[1.0, 0.0], [0.8, 0.6]], [[1.0, 0.0], [0.6, 1.0]]),
            *runs("p", "naive", [[1.0, 0.0], [0.0, 1.0]]),
            *runs("q", "naive", [[0.9, 0.1], [0.1, 0.9]]),
            record("naive", 7, 0.5, "p", status="failed"),
        ]
    )
    found = matrices.of(records, ("q", "p"), ("naive", "ewc"))
    assert [(one.protocol, one.strategy, one.seeds) for one in found] == [
        ("q", "naive", 1),
        ("p", "naive", 1),
        ("p", "ewc", 2),
    ]
    np.testing.assert_allclose(found[-1].matrix, [[1.0, 0.0], [0.7, 0.8]])
    shown = [axes for part in matrices.figure(found).subfigs for axes in part.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [
        "naive: 50.0 % (1 seed)",
        "naive: 50.0 % (1 seed)",
        "ewc: 75.0 % (2 seeds)",
    ]
    matrices.write_csv(found, tmp_path / "found.csv")
    cells = pd.read_csv(tmp_path / "found.csv").set_index(["protocol", "strategy", "trained", "judged"])["accuracy"]
    assert cells["p", "ewc", 1, 0] == pytest.approx(0.7)
    with pytest.raises(RecordError, match="there is no complete record of the protocol 'r'; there are p, q"):
        matrices.of(records, ("r",))


def test_rows_of_other_streams_are_not_compared():
    """A file that was edited between two commands."""

    def of(strategy, variant="", **settings):
        return record(strategy, 0, 0.5).model_copy(update={"hyperparameters": settings, "variant": variant})

    records = [of("naive", stream={"kind": "split"}), of("ewc", stream={"kind": "permuted"})]
    with pytest.raises(RecordError, match="p: naive and ewc were run with another stream, and cannot be compared"):
        tables.compare(records)
    records[1] = of("ewc", variant="stream.kind=permuted", stream={"kind": "permuted"})
    assert len(tables.compare(records)) == 2, "a row whose name says it"
    two = [of("naive", f"({kind})", stream={"kind": kind}) for kind in ("split", "permuted")]
    assert len(tables.compare(two)) == 2, "of two folders, which the rows name"
    with pytest.raises(RecordError, match=r"naive \(split\) and ewc \(split\) were run with another stream"):
        tables.compare([*two, of("ewc", "(split)", stream={"kind": "permuted"})])
    records[1] = of("ewc", variant="ewc_lambda=3", stream={"kind": "permuted"})
    with pytest.raises(RecordError, match="p: naive and ewc ewc_lambda=3 were run with another stream"):
        tables.compare(records)
    records = [of(name, "training.epochs=1", stream={"kind": kind}) for name, kind in (("a", "split"), ("b", "other"))]
    with pytest.raises(RecordError, match=r"a training.epochs=1 and b training.epochs=1 were run with another stream"):
        tables.compare(records)


def test_rows_of_other_features_are_not_compared():
    """But one that does not say of which they are, as of before that was kept, may be of any."""

    def of(strategy, seed=0, **settings):
        return record(strategy, seed, 0.5).model_copy(update={"hyperparameters": settings})

    older, one, other = of("a"), of("b", dataset_fingerprint="1"), of("c", dataset_fingerprint="2")
    assert len(tables.compare([older, one])) == len(tables.compare([one, older])) == 2
    assert len(tables.compare([older, of("a", 1, dataset_fingerprint="1")])) == 1
    with pytest.raises(RecordError, match="p: b and c were run with another dataset fingerprint"):
        tables.compare([older, one, other])
    with pytest.raises(RecordError, match="seed 0 has dataset_fingerprint 1, seed 1 has 2"):
        tables.compare([one, of("b", 1, dataset_fingerprint="2")])


def test_rows_that_learned_for_another_time_are_not_compared_but_by_another_rate():
    def of(strategy, variant="", **training):
        settings = {"hyperparameters": {"training": training}, "variant": variant}
        return record(strategy, 0, 0.5).model_copy(update=settings)

    with pytest.raises(RecordError, match=r"p: naive and ewc were run with another training.epochs, and cannot be"):
        tables.compare([of("naive", epochs=1), of("ewc", epochs=8)])
    assert len(tables.compare([of("naive", epochs=1), of("ewc", "training.epochs=8", epochs=8)])) == 2
    assert len(tables.compare([of("naive", learning_rate=0.1), of("ewc", learning_rate=0.2)])) == 2


def test_a_run_of_fewer_experiences_competes_with_none_that_is_whole():
    def of(strategy, acc, experiences, **settings):
        update = {"accuracy_matrix": [[acc] * experiences], "hyperparameters": settings}
        return [one.model_copy(update=update) for one in group(strategy, *acc)]

    short = of("smoke", (0.99, 0.98, 0.99), 1, first_experiences=1)
    whole = [*of("naive", (0.5, 0.6, 0.4), 3), *of("ewc", (0.7, 0.8, 0.6), 3), *of("longer", (0.2, 0.3, 0.1), 9)]
    found = tables.compare([*short, *whole])
    assert [(row.strategy, row.best, row.common_seeds) for row in found] == [
        ("ewc", True, 0),
        ("naive", False, 3),
        ("longer", False, 3),
        ("smoke", False, 0),
    ]
    assert tables.compare(short)[0].best, "alone it does"


@pytest.mark.parametrize(
    ("variant", "settings", "compared"),
    [
        ("network.width=64", {"network": {"kind": "r", "width": 64}}, True),
        ("network.width=64", {"network": {"kind": "w", "width": 64}}, False),
        ("network=64", {"network": {"kind": "r", "width": 64}}, False),
        ("network.kind=f.py:w", {"network": {"kind": "f.py:w", "fingerprint": "1"}}, True),
        ("dataset=f.npz", {"dataset": "f.npz", "dataset_fingerprint": "1"}, True),
        ("images.standardise=first-experience", {"images": {"standardise": "first-experience"}}, True),
        ("images.standardise=first-experience", {"images": {"standardise": "first-experience", "pad": 2}}, False),
    ],
)
def test_a_row_may_differ_in_what_its_name_says_and_in_what_goes_with_it(variant, settings, compared):
    usual = {"dataset": "d", "images": {"mean": 0.5}, "network": {"kind": "r", "width": 20}}
    rows = [record(name, 0, 0.5).model_copy(update={"hyperparameters": usual}) for name in ("a", "b")]
    rows[1] = rows[1].model_copy(update={"hyperparameters": usual | settings, "variant": variant})
    if compared:
        assert len(tables.compare(rows)) == 2
    else:
        with pytest.raises(RecordError, match="were run with another"):
            tables.compare(rows)


def test_a_run_that_failed_with_a_file_that_is_mended_now_is_in_nobodys_way():
    failed = record("mine", 1, 0.5, status="failed").model_copy(update={"hyperparameters": {"code": "old"}})
    (row,) = tables.compare([failed, record("mine", 0, 0.5)])
    assert (row.seeds, row.failed) == (1, 1)


def along_the_stream(row, acc, experiences=2, seeds=1):
    strategy, _, variant = row.partition(" ")
    matrix = [[acc] * experiences] * (1 if strategy == "joint" else experiences)
    settings = {"first_experiences": experiences} if "experiences=" in variant else {}
    changed = {"variant": variant, "accuracy_matrix": matrix, "hyperparameters": settings}
    return [one.model_copy(update=changed) for one in group(strategy, *[acc] * seeds)]


def pictured(*rows):
    return over_experiences.of([one for row in rows for one in along_the_stream(*row)])


def test_a_protocols_picture_has_naive_joint_and_the_strategies_that_end_highest():
    good = [(f"good{place}", 0.5 + place / 100) for place in range(7)]
    short, changed = ("smoke experiences=1", 0.9, 1), ("good6 mem_size=5", 0.9)
    picture = pictured(("naive", 0.1), *good, short, changed, ("joint mem_size=5", 0.8), ("joint", 0.7))
    assert [line.name for line in picture.lines] == [*(f"good{place}" for place in range(6, 0, -1)), "naive", "joint"]
    assert picture.rows == 12
    assert pictured(("ewc", 0.6), *good).lines[-1].strategy == "good1", "without naive there is a place more"


def test_a_strategy_without_the_protocols_own_settings_is_pictured_with_its_best():
    picture = pictured(("er a=1", 0.6), ("er a=2", 0.7), ("joint a=1", 0.8), ("joint a=2", 0.7, 2, 3))
    assert [(line.name, line.acc[-1].mean) for line in picture.lines] == [
        ("er, other settings", pytest.approx(0.7)),
        ("joint, other settings", pytest.approx(0.7)),
    ]


def test_exact_replay_stands_beside_generative_replay_alone():
    def exact(*rows):
        records = [one for row in rows for one in along_the_stream(*row)]
        bound = [one.model_copy(update={"upper_bound": True}) for one in along_the_stream("exact-replay", 0.9)]
        return [line.name for line in over_experiences.of([*bound, *records]).lines]

    assert exact(("naive", 0.1), ("dgr-vae", 0.3), ("joint", 0.8)) == ["dgr-vae", "naive", "exact-replay", "joint"]
    assert exact(("naive", 0.1), ("joint", 0.8)) == ["naive", "joint"]


def test_ones_own_strategies_are_pictured_though_others_are_better():
    own = [(f"mine.py:slow{place}", 0.1 + place / 100) for place in range(9)]
    picture = pictured(("naive", 0.5), *own, *((f"good{place}", 0.9) for place in range(9)))
    assert [line.strategy for line in picture.lines if ":" in line.strategy] == [
        *("mine.py:slow8", "mine.py:slow7", "mine.py:slow6")
    ]


def test_a_strategy_has_one_colour_in_every_picture():
    few, more = (
        over_experiences.colours_of(names)
        for names in (["ewc", "naive"], ["mine.py:a", "avalanche-gem", "dgr", "ewc", "er", "mas", "naive"])
    )
    assert few == {name: more[name] for name in few}
    assert len(set(more.values())) == 7, "no two have the same"


def test_a_picture_says_what_it_leaves_out_and_speaks_of_intervals_where_there_are_some():
    def texts(*rows):
        (axes,) = over_experiences.figure(pictured(*rows)).axes
        return axes.get_ylabel(), [text.get_text() for text in axes.texts]

    assert texts(("naive", 0.1, 2, 2), ("joint", 0.9)) == ("accuracy on them (%)", [])
    assert texts(("naive", 0.1), ("naive a=1", 0.2)) == ("accuracy on them (%)", ["1 of 2 rows"])
    changed = [one.model_copy(update={"accuracy_matrix": [[one.acc] * 2] * 2}) for one in group("naive", 0.1, 0.2, 0.4)]
    (axes,) = over_experiences.figure(over_experiences.of(changed)).axes
    assert axes.get_ylabel() == "accuracy on them (%), mean and 95% interval"


def test_a_line_of_few_seeds_does_not_look_the_surest():
    (axes,) = over_experiences.figure(pictured(("er", 0.3, 2, 1), ("ewc", 0.2, 2, 2), ("naive", 0.1, 2, 3))).axes
    assert {line.get_label(): line.get_linestyle() for line in axes.lines} == {
        "er 30.0 (1 seed)": ":",
        "ewc 20.0 (2 seeds)": ":",
        "naive 10.0 ± 0.0": "-",
    }


def test_where_rows_were_done_on_several_devices_the_table_says_on_which():
    on_gpu = {"environment": ENVIRONMENT | {"device": "a GPU"}}
    mixed = [one.model_copy(update=on_gpu) for one in group("ewc", 0.5, 0.6)] + group("naive", 0.1)
    for module in (tables, costs):
        (sheet,) = module.sheets(module.compare(mixed))
        assert {cells["strategy"]: cells["device"] for cells in sheet.rows} == {"ewc": "a GPU", "naive": "not recorded"}
        (alike,) = module.sheets(module.compare(group("naive", 0.1)))
        assert "device" not in alike.rows[0]
    assert "a GPU" in tables.as_latex(tables.compare(mixed))
    of_two = [one.model_copy(update=on_gpu) for one in group("ewc", 0.5)] + [record("ewc", 1, 0.6)]
    (sheet,) = tables.sheets(tables.compare(of_two))
    assert sheet.rows[0]["device"] == "a GPU, not recorded"
