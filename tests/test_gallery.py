"""The pictures that explain: what they show is true."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize

from engrams.benchmarks.gallery import __main__ as gallery
from engrams.benchmarks.gallery import generators, huszar, importances, matrix, rosenbrock
from engrams.reports.store import read_records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "reports" / "results" / "records"
COMMITTED = ROOT / "reports" / "results" / "gallery"


def test_the_fisher_is_the_valleys_curvature_where_it_is_lowest():
    curvature = torch.autograd.functional.hessian(rosenbrock.FIRST, torch.zeros(2)).diagonal()
    assert torch.allclose(rosenbrock.fisher_at(rosenbrock.FIRST, torch.zeros(2)), curvature)


def test_the_joint_optimum_is_the_lowest_point():
    found = minimize(lambda point: rosenbrock.both(point), rosenbrock.joint_optimum(), method="Nelder-Mead")
    assert np.abs(found.x - rosenbrock.joint_optimum()).max() < 0.01


def test_a_path_ends_where_the_penalised_loss_is_lowest():
    fisher = rosenbrock.fisher_at(rosenbrock.FIRST, torch.zeros(2))
    path = rosenbrock.descend(torch.zeros(2), fisher, [0.3])[0]

    def penalised(point):
        weights = torch.tensor(point, dtype=torch.float32)
        return float(rosenbrock.SECOND(weights) + 0.15 * (fisher * weights.square()).sum())

    assert path[-1] == pytest.approx(minimize(penalised, path[-1], method="Nelder-Mead").x, abs=0.02)
    assert rosenbrock.both(path[-1]) < rosenbrock.both(rosenbrock.descend(torch.zeros(2), fisher, [0.0])[0][-1])


def test_the_corrected_one_ends_at_the_joint_optimum_and_the_separate_one_does_not():
    separate, corrected, joint = huszar.separate_and_corrected()
    assert np.allclose(corrected, joint)
    assert np.allclose(separate[:2], joint[:2]), "with two tasks they are the same"
    assert np.linalg.norm(separate[-1] - joint[-1]) > 0.5

    def with_an_anchor_a_task(point):
        own = huszar.PRECISIONS[3] * (point - huszar.OPTIMA[3]) ** 2
        return own.sum() + (huszar.PRECISIONS[:3] * (point - separate[:3]) ** 2).sum()

    assert separate[3] == pytest.approx(minimize(with_an_anchor_a_task, np.zeros(2)).x, abs=1e-5)


def test_each_picture_is_committed_small_enough_and_shows_something():
    names = set(gallery.drawings(RECORDS))
    assert {path.name for path in COMMITTED.iterdir()} == names, "run: make gallery"
    assert sum(path.stat().st_size for path in COMMITTED.iterdir()) < 4_000_000
    for name in names:
        with Image.open(COMMITTED / name) as picture:
            assert getattr(picture, "n_frames", 1) >= (5 if name.endswith(".gif") else 1)
            assert np.asarray(picture.convert("L")).std() > 10, "something is drawn"


def test_it_draws_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rosenbrock, "STEPS", 20)
    monkeypatch.setattr(rosenbrock, "FRAMES", 3)
    quick = ("ewc-rosenbrock.png", "ewc-rosenbrock.gif", "ewc-huszar.png", "matrix.gif")
    drawings = gallery.drawings(RECORDS)
    monkeypatch.setattr(gallery, "drawings", lambda records: {name: drawings[name] for name in quick})
    gallery.main(tmp_path, RECORDS)
    for name in quick:
        assert name in capsys.readouterr().out or (tmp_path / name).exists()
        with Image.open(tmp_path / name) as drawn, Image.open(COMMITTED / name) as committed:
            assert drawn.size == committed.size


def test_the_last_frame_of_the_paths_is_where_they_end_and_the_first_where_they_begin(monkeypatch):
    monkeypatch.setattr(rosenbrock, "FRAMES", 3)
    begin, *_, end = rosenbrock.animation()
    paths = {line.get_label().partition(",")[0].partition(":")[0]: line for line in end.axes[0].lines}
    _, path = rosenbrock.best_of(torch.zeros(2), rosenbrock.fisher_at(rosenbrock.FIRST, torch.zeros(2)))
    assert np.allclose(np.transpose(paths["EWC"].get_data()), path)
    assert f"loses {rosenbrock.both(path[-1]):.2f} on both" in paths["EWC"].get_label()
    assert len(begin.axes[0].lines[0].get_xdata()) == 2


def test_the_matrix_that_grows_is_the_records():
    record = next(one for one in read_records(RECORDS / matrix.PROTOCOL) if one.strategy == "dgr")
    shown = matrix.matrices(RECORDS)
    assert shown["dgr"].tolist() == record.accuracy_matrix
    frame = matrix.frame(shown, learned=2)
    axes = frame.axes[list(shown).index("dgr")]
    cells = np.array([text.get_text() for text in axes.texts]).reshape(5, 5)
    assert cells[:2].tolist() == [[f"{100 * one:.0f}" for one in row] for row in record.accuracy_matrix[:2]]
    assert not "".join(cells[2:].flat), "what is still to come is blank"
    assert f"{50 * sum(record.accuracy_matrix[1][:2]):.1f} %" in axes.get_title()


def test_where_importance_is_and_what_each_experience_adds():
    found = {strategy: importances.measured(strategy) for strategy in importances.STRATEGIES}
    for one in found.values():
        first, *others = one.layers.values()
        assert one.pixels.shape == (5, 8, 8)
        assert (np.diff(one.pixels, axis=0) >= 0).all(), "it only adds up"
        assert (one.pixels.sum(axis=(1, 2)) <= first * (1 + 1e-5)).all(), "the layer has biases, too"
        for layer in (first, *others):
            assert np.diff(layer, prepend=0).argmax() == 4, "the last pair of digits adds the most"
    most = {strategy: max(one.layers, key=lambda layer: one.layers[layer][-1]) for strategy, one in found.items()}
    assert list(found["ewc"].layers).index(most["ewc"]) == 2, "EWC: into the last layer"
    assert list(found["mas"].layers).index(most["mas"]) == 1, "MAS: between the hidden layers"
    figure = importances.drawn(found)
    widths = [bar.get_width() for bar in figure.axes[5].patches]
    assert sum(widths) == pytest.approx(100), "all layers and experiences together"


def test_replay_alignment_keeps_the_images_that_fine_tuning_loses():
    moved = {}
    for strategy in generators.STRATEGIES:
        after = generators.made(strategy, experiences=2, settings={"gan.steps": 30})
        assert [len(images) for images in after] == [1, 2]
        moved[strategy] = (after[1][0] - after[0][0]).square().mean().item()
    assert moved["mergan-ra"] < moved["gan-finetune"] / 3
    figure = generators.drawn({"one": after})
    sheet = figure.axes[0].images[0].get_array()
    assert np.allclose(sheet[11:19, 1:9], after[1][0, 0]), "a row an experience, a column a class"


def test_each_penalty_is_at_its_best_and_ewc_is_nearer_to_the_joint_optimum():
    joint = rosenbrock.joint_optimum()
    gaps = []
    for importance in (torch.ones(2), rosenbrock.fisher_at(rosenbrock.FIRST, torch.zeros(2))):
        strength, path = rosenbrock.best_of(torch.zeros(2), importance)
        assert rosenbrock.STRENGTHS[0] < strength < rosenbrock.STRENGTHS[-1], "not where the choice ends"
        gaps.append(rosenbrock.both(path[-1]) - rosenbrock.both(joint))
    assert gaps[1] < gaps[0] / 2
