"""The pictures that explain: what they show is true."""

import matplotlib.image
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from engrams.benchmarks import gallery


def test_the_fisher_is_the_valleys_curvature_where_it_is_lowest():
    curvature = torch.autograd.functional.hessian(gallery.FIRST, torch.zeros(2)).diagonal()
    assert torch.allclose(gallery.fisher_at(gallery.FIRST, torch.zeros(2)), curvature)


def test_the_joint_optimum_is_the_lowest_point():
    found = minimize(lambda point: gallery.both(point), gallery.joint_optimum(), method="Nelder-Mead")
    assert np.abs(found.x - gallery.joint_optimum()).max() < 0.01


def test_a_path_ends_where_the_penalised_loss_is_lowest():
    fisher = gallery.fisher_at(gallery.FIRST, torch.zeros(2))
    path = gallery.descend(torch.zeros(2), fisher, 0.3)

    def penalised(point):
        weights = torch.tensor(point, dtype=torch.float32)
        return float(gallery.SECOND(weights) + 0.15 * (fisher * weights.square()).sum())

    assert path[-1] == pytest.approx(minimize(penalised, path[-1], method="Nelder-Mead").x, abs=0.02)
    assert gallery.both(path[-1]) < gallery.both(gallery.descend(torch.zeros(2), fisher, 0.0)[-1])


def test_the_corrected_one_ends_at_the_joint_optimum_and_the_separate_one_does_not():
    separate, corrected, joint = gallery.separate_and_corrected()
    assert np.allclose(corrected, joint)
    assert np.allclose(separate[:2], joint[:2]), "with two tasks they are the same"
    assert np.linalg.norm(separate[-1] - joint[-1]) > 0.5

    def with_an_anchor_a_task(point):
        own = gallery.PRECISIONS[3] * (point - gallery.OPTIMA[3]) ** 2
        return own.sum() + (gallery.PRECISIONS[:3] * (point - separate[:3]) ** 2).sum()

    assert separate[3] == pytest.approx(minimize(with_an_anchor_a_task, np.zeros(2)).x, abs=1e-5)


def test_it_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "STEPS", 20)
    gallery.main(tmp_path)
    for name in gallery.PICTURES:
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0.05, "something is drawn"


def test_each_penalty_is_at_its_best_and_ewc_is_nearer_to_the_joint_optimum():
    joint = gallery.joint_optimum()
    gaps = []
    for importance in (torch.ones(2), gallery.fisher_at(gallery.FIRST, torch.zeros(2))):
        strength, path = gallery.best_of(torch.zeros(2), importance)
        assert gallery.STRENGTHS[0] < strength < gallery.STRENGTHS[-1], "not where the choice ends"
        gaps.append(gallery.both(path[-1]) - gallery.both(joint))
    assert gaps[1] < gaps[0] / 2
