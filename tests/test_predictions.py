"""What runs answered: kept beside the record, checked against it, and what is read off it."""

import numpy as np
import pytest

from engrams.benchmarks.jobs.execute import execute
from engrams.benchmarks.jobs.plan import run_of
from engrams.benchmarks.protocols import registry
from engrams.reports import read_predictions, store
from engrams.reports.local import contents
from engrams.reports.predictions import PREDICTIONS, Predictions, write
from engrams.reports.store import RecordError


def small(name, **training):
    entry = registry.get(name)
    return entry.model_copy(update={"training": entry.training.model_copy(update={"epochs": 1, **training})})


def done(out, name, strategy, **settings):
    run = run_of(small(name), strategy, 0, settings)
    found = execute(run, out, "cpu", "disabled", lambda epochs: None)
    assert found.complete, found.reason
    return found, run.folder(out)


@pytest.mark.parametrize(
    ("protocol", "strategy"),
    [
        ("split-digits/task", "naive"),  # heads that are not asked before they are trained
        ("split-digits/class", "replay"),
        ("permuted-digits", "naive"),
        ("split-digits/class", "joint"),
    ],
)
def test_the_accuracy_matrix_is_that_of_the_answers(tmp_path, protocol, strategy):
    found, folder = done(tmp_path, protocol, strategy)
    answered = read_predictions(folder)
    assert answered.accuracy_matrix() == pytest.approx(np.array(found.accuracy_matrix), abs=1e-9)
    before = answered.at_initialisation
    if strategy == "joint":
        assert not len(before)
    else:
        right = before == answered.targets
        initial = [right[answered.experience == j].mean() for j in range(found.experiences)]
        assert initial == pytest.approx(found.accuracy_at_initialisation, abs=1e-9)
    assert answered.answers.dtype == np.uint8
    assert (folder / PREDICTIONS).stat().st_size < answered.answers.nbytes + 3000


BY_HAND = Predictions(
    targets=np.array([0, 0, 1, 1, 2, 2, 3, 3], np.uint8),
    experience=np.array([0, 0, 0, 0, 1, 1, 1, 1], np.uint8),
    answers=np.array([[0, 1, 1, 1, 0, 0, 0, 1], [0, 2, 2, 1, 2, 2, 3, 2]], np.uint8),
    at_initialisation=np.zeros(8, np.uint8),
)


def test_what_is_read_off_by_hand():
    assert BY_HAND.accuracy_matrix().tolist() == [[0.75, 0.0], [0.5, 0.75]]
    assert BY_HAND.confusion(0).tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [2, 0, 0, 0], [1, 1, 0, 0]]
    assert BY_HAND.confusion().tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 1, 1]]
    assert BY_HAND.accuracy_by_class().tolist() == [[0.5, 1, 0, 0], [0.5, 0.5, 1, 0.5]]
    # After the second, 6 of 8 answers are classes of it, where 4 of 8 samples are.
    assert BY_HAND.recency_bias().tolist() == [0.0, 0.25]
    shown = contents.answers(BY_HAND)
    assert shown["confusion"][2] == BY_HAND.confusion().tolist()
    assert shown["recency"] == [0.0, 0.25]


def test_what_has_no_recency_or_no_samples_says_so():
    shared = Predictions(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), np.array([[0, 0, 3, 0]] * 2), np.empty(0))
    assert shared.recency_bias() is None
    assert np.isnan(shared.accuracy_by_class()[0, 2:]).all()
    assert contents.answers(shared)["by_class"][0] == [0.5, 0.0, None, None]


def test_more_than_256_classes_are_kept(tmp_path):
    _, folder = done(tmp_path, "split-digits/class", "joint")
    many = read_predictions(folder)
    write(
        Predictions(many.targets.astype(int) + 300, many.experience, many.answers.astype(int) + 300, np.empty(0)),
        folder,
    )
    assert read_predictions(folder).classes == 310


def test_answers_that_are_not_the_records_are_not_believed(tmp_path):
    _, folder = done(tmp_path, "split-digits/class", "joint")
    right = read_predictions(folder)
    changed = right.answers.copy()
    first = (changed[0] == right.targets).argmax()
    changed[0, first] = (changed[0, first] + 1) % 10
    write(Predictions(right.targets, right.experience, changed, right.at_initialisation), folder)
    with pytest.raises(RecordError, match="do not lead to the record's accuracy matrix"):
        read_predictions(folder)
    (folder / PREDICTIONS).write_bytes((folder / PREDICTIONS).read_bytes()[:200])
    with pytest.raises(RecordError, match="cannot be used"):
        read_predictions(folder)
    (folder / PREDICTIONS).unlink()
    with pytest.raises(RecordError, match="there is no"):
        read_predictions(folder)


def test_a_run_that_fails_leaves_no_answers_of_an_earlier_one(tmp_path, monkeypatch):
    _, folder = done(tmp_path, "split-digits/class", "joint")
    (folder / store.RECORD).unlink()
    monkeypatch.setattr("engrams.benchmarks.jobs.execute.learn", lambda *args, **more: 1 / 0)
    run = run_of(small("split-digits/class"), "joint", 0)
    assert execute(run, tmp_path, "cpu", "disabled", lambda epochs: None).status == "failed"
    assert not (folder / PREDICTIONS).exists()


def test_a_metric_that_is_not_defined_says_why(tmp_path):
    found, _ = done(tmp_path, "split-digits/class", "joint")
    assert set(found.undefined) == {"BWT", "FWT", "forgetting", "learning_accuracy"}
    assert found.undefined["forgetting"] == "the whole stream is learned at once: there is no accuracy along the way"
    assert store.read_all(tmp_path) == [found]
