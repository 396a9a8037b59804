"""Every rule for a layer, on every shape of input that the layer takes, against autograd one sample at a time."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from engrams.strategies import layer_gradients
from engrams.strategies.gradient_plan import plan
from engrams.strategies.importance import diagonal_fisher, mas_importance
from engrams.strategies.layer_gradients import add_layer, gradients, has_rule
from engrams.strategies.minibatches import Minibatch

N = 5
LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), [(4,), (2, 4), (2, 3, 4)]),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), [(4,), (2, 4)]),
    "convolution 1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), [(4, 7)]),
    "convolution 1d, reflected": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"), [(2, 6)]),
    "convolution 2d": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), [(2, 6, 5)]),
    "convolution 2d, same": (lambda: nn.Conv2d(4, 4, (3, 2), padding="same", groups=4, bias=False), [(4, 4, 5)]),
    "convolution 2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), [(2, 4, 5)]),
    "convolution 3d": (
        lambda: nn.Conv3d(2, 4, (2, 3, 2), stride=(1, 2, 1), padding=(0, 1, 2), dilation=(1, 1, 2), groups=2),
        [(2, 4, 5, 4)],
    ),
    "batch norm 1d": (lambda: nn.BatchNorm1d(3), [(3,), (3, 4)]),
    "batch norm 2d": (lambda: nn.BatchNorm2d(3, eps=0.1), [(3, 4, 2)]),
    "batch norm 3d": (lambda: nn.BatchNorm3d(3), [(3, 2, 4, 2)]),
    "layer norm": (lambda: nn.LayerNorm(4, eps=0.1), [(4,), (3, 4), (2, 3, 4)]),
    "layer norm of two axes": (lambda: nn.LayerNorm((3, 4)), [(3, 4), (2, 3, 4), (2, 2, 3, 4)]),
    "group norm": (lambda: nn.GroupNorm(2, 4, eps=0.1), [(4,), (4, 3), (4, 3, 2)]),
    "prelu": (lambda: nn.PReLU(), [(4,), (4, 3)]),
    "prelu of channels": (lambda: nn.PReLU(4), [(4,), (4, 3), (4, 3, 2)]),
    "embedding": (lambda: nn.Embedding(6, 4), [(), (3,), (2, 3)]),
    "embedding with padding": (lambda: nn.Embedding(6, 4, padding_idx=2), [(), (7,)]),
}
CASES = [(name, shape) for name, (_, shapes) in LAYERS.items() for shape in shapes]


def layer_and_inputs(name, shape):
    torch.manual_seed(0)
    layer = LAYERS[name][0]().double().eval()
    for p in layer.parameters():
        nn.init.uniform_(p, 0.3, 1.0)
    if "batch" in name:
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    x = torch.randint(6, (N, *shape)) if isinstance(layer, nn.Embedding) else torch.randn(N, *shape).double()
    return layer, x


def by_autograd(layer, x, signals):
    """attribute -> [N, signals, *shape]."""
    found = {}
    for attribute, p in layer.named_parameters():
        rows = [
            torch.stack([torch.autograd.grad(layer(x[n : n + 1]), p, d[n : n + 1])[0] for d in signals])
            for n in range(len(x))
        ]
        found[attribute] = torch.stack(rows)
    return found


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_a_rule_is_the_gradient_of_every_sample_under_every_signal(name, shape, monkeypatch):
    layer, x = layer_and_inputs(name, shape)
    assert has_rule(layer)
    signals = [torch.randn_like(layer(x)) for _ in range(2)]
    expected = by_autograd(layer, x, signals)
    found = gradients(layer, x, signals, set(expected))
    assert found.keys() == expected.keys()
    for attribute, gradient in expected.items():
        torch.testing.assert_close(found[attribute], gradient)
        assert gradients(layer, x, signals, {attribute}).keys() == {attribute}
    for at_once in (1, 10**9):  # numbers: one sample at a time, or all
        monkeypatch.setattr(layer_gradients, "NUMBERS_WRITTEN_OUT", at_once)
        for statistic in (torch.square, torch.abs):
            sums = {attribute: torch.ones_like(p) for attribute, p in layer.named_parameters()}
            add_layer(sums, layer, x, signals, statistic)
            for attribute, total in sums.items():
                torch.testing.assert_close(total, 1 + statistic(expected[attribute]).sum((0, 1)))


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_a_network_of_a_layer_with_a_rule_takes_no_other_way(name, shape):
    """And it is measured rightly: the mean over samples of the gradient of ||f||^2, and of the density's."""
    layer, x = layer_and_inputs(name, shape)
    model = nn.Sequential(layer, nn.Flatten()) if layer(x).dim() > 2 else layer
    assert not plan(model.eval(), Minibatch(x, None, 0, 0)).rest
    outputs = layer(x)
    omega = by_autograd(layer, x, [2 * outputs.detach()])
    fisher = by_autograd(layer, x, [one.view_as(outputs) for one in each_output(outputs)])
    prefix = "" if model is layer else "0."
    found = mas_importance(model, TensorDataset(x)), diagonal_fisher(model, TensorDataset(x), likelihood="gaussian")
    for attribute in omega:
        torch.testing.assert_close(found[0][prefix + attribute], omega[attribute].abs().sum(1).mean(0))
        torch.testing.assert_close(found[1][prefix + attribute], fisher[attribute].square().sum(1).mean(0))


def each_output(outputs):
    """Signals that are 1 at one output of every sample and 0 elsewhere."""
    rows = outputs.reshape(len(outputs), -1)
    return [torch.eye(rows.shape[1]).double()[k].expand_as(rows) for k in range(rows.shape[1])]


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.Embedding(6, 4, max_norm=1.0),
        nn.Embedding(6, 4, scale_grad_by_freq=True),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
        torch.nn.utils.spectral_norm(nn.Linear(3, 2)),
        nn.LSTM(3, 2),
        type("Own", (nn.Linear,), {})(3, 2),
    ],
)
def test_what_computes_otherwise_has_no_rule(layer):
    assert not has_rule(layer)
