"""The metrics of an accuracy matrix, by hand, and its picture."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from engrams.reports.figures import HeatMap, draw_accuracy_matrix
from engrams.reports.matrix import accuracy_row, metrics, seen_so_far

R = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.5, 1.0]]
B = [0.1, 0.15, 0.25]


def test_metrics_by_hand():
    found = metrics(R, B)
    assert found["ACC"] == pytest.approx((0.6 + 0.5 + 1.0) / 3)
    assert found["BWT"] == pytest.approx(((0.6 - 0.9) + (0.5 - 0.8)) / 2)
    assert found["FWT"] == pytest.approx(((0.2 - 0.15) + (0.3 - 0.25)) / 2)
    assert found["forgetting"] == pytest.approx(((0.9 - 0.6) + (0.8 - 0.5)) / 2)
    assert found["learning_accuracy"] == pytest.approx((0.9 + 0.8 + 1.0) / 3)


def test_forgetting_is_from_the_best_and_bwt_from_the_diagonal():
    rising = [[0.5, 0.0, 0.0], [0.9, 0.5, 0.0], [0.7, 0.6, 0.5]]
    assert metrics(rising)["forgetting"] == pytest.approx(((0.9 - 0.7) + (0.5 - 0.6)) / 2)
    assert metrics(rising)["BWT"] == pytest.approx(((0.7 - 0.5) + (0.6 - 0.5)) / 2)


def test_what_is_not_defined_is_none():
    assert metrics(R)["FWT"] is None
    single = metrics([[0.9, 0.8, 0.7]])
    assert single["ACC"] == pytest.approx(0.8)
    assert [name for name, value in single.items() if value is None] == [
        "BWT",
        "FWT",
        "forgetting",
        "learning_accuracy",
    ]


def test_seen_so_far():
    assert seen_so_far(R[:1]) == {"ACC": pytest.approx(0.9)}
    assert seen_so_far(R[:2]) == {"ACC": pytest.approx(0.75), "forgetting": pytest.approx(0.2)}


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="square or a single row"):
        metrics([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    with pytest.raises(ValueError, match="2 entries for 3 experiences"):
        metrics(R, [0.1, 0.2])


def test_accuracy_row_reads_avalanches_names():
    names = {
        "Top1_Acc_Exp/eval_phase/test_stream/Task001/Exp010": 0.3,
        "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp002": 0.2,
        "Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000": 0.1,
        "Top1_Acc_Stream/eval_phase/test_stream/Task000": 0.9,
        "Loss_Exp/eval_phase/test_stream/Task000/Exp000": 0.9,
    }
    assert accuracy_row(names) == [0.1, 0.2, 0.3]


def test_a_heat_map_is_what_drawing_all_of_it_would_be_whatever_was_saved_before(tmp_path):
    """Only what differs between two matrices of one size is drawn anew."""
    first = [[0.1, 0.7, 0.2], [0.95, 0.6, 1.0]]
    second = [[math.nan, 0.05, 0.59], [0.0, 0.88, 0.4]]
    drawn = {}
    for name, used in (("alone", HeatMap(2, 3)), ("before", HeatMap(2, 3))):
        if name == "before":
            used.save(first, "a longer title", tmp_path / "first.png")
        used.save(second, "title", tmp_path / f"{name}.png")
        drawn[name] = imread(tmp_path / f"{name}.png")
    assert np.array_equal(drawn["alone"], drawn["before"])

    figure = Figure(figsize=(3.3, 2.24), dpi=110)
    axes = figure.add_axes((0.7 / 3.3, 0.6 / 2.24, 1.8 / 3.3, 1.24 / 2.24))
    draw_accuracy_matrix(axes, second)
    axes.set_title("title", fontsize="medium")
    figure.savefig(tmp_path / "whole.png")
    left = slice(0, 280)  # the colour bar is to the right
    np.testing.assert_allclose(drawn["alone"][:, left], imread(tmp_path / "whole.png")[:, left], atol=0.02)
