"""The metrics of an accuracy matrix, by hand."""

import pytest

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
