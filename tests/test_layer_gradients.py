"""Every rule for a layer, on every shape of input that the layer takes, against autograd one sample at a time."""

import io
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from engrams.strategies import general_gradients, layer_gradients, per_sample_gradients
from engrams.strategies.gradient_plan import plan
from engrams.strategies.importance import diagonal_fisher, mas_importance
from engrams.strategies.layer_gradients import add_layer, gradients, has_rule
from engrams.strategies.minibatches import Minibatch
from engrams.strategies.steps import steps_told

N = 5


def without_weight(layer):
    layer.weight = None
    return layer


def with_one_more(layer):
    layer.one_more = nn.Parameter(torch.ones(3))
    return layer


LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), [(4,), (2, 4), (2, 3, 4)]),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), [(4,), (2, 4)]),
    "convolution 1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2), [(4, 7)]),
    "convolution 1d, reflected": (lambda: nn.Conv1d(2, 1, 3, padding=1, padding_mode="reflect"), [(2, 6)]),
    "convolution 2d": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), [(2, 6, 5)]),
    "convolution 2d, same": (lambda: nn.Conv2d(4, 4, (3, 2), padding="same", groups=4, bias=False), [(4, 4, 5)]),
    "convolution 2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), [(2, 4, 5)]),
    "convolution 3d": (
        lambda: nn.Conv3d(2, 4, (2, 3, 2), stride=(1, 2, 1), padding=(0, 1, 2), dilation=(1, 1, 2), groups=2),
        [(2, 4, 5, 4)],
    ),
    "batch norm 1d": (lambda: nn.BatchNorm1d(3), [(3,), (3, 4)]),
    "batch norm 2d": (lambda: nn.BatchNorm2d(3, eps=0.1), [(3, 4, 2)]),
    "batch norm without weight": (lambda: without_weight(nn.BatchNorm1d(3)), [(3, 4)]),
    "batch norm 3d": (lambda: nn.BatchNorm3d(3), [(3, 2, 4, 2)]),
    "layer norm": (lambda: nn.LayerNorm(4, eps=0.1), [(4,), (3, 4), (2, 3, 4)]),
    "layer norm of two axes": (lambda: nn.LayerNorm((3, 4)), [(3, 4), (2, 3, 4), (2, 2, 3, 4)]),
    "group norm": (lambda: nn.GroupNorm(2, 4, eps=0.1), [(4,), (4, 3), (4, 3, 2)]),
    "prelu": (lambda: nn.PReLU(), [(4,), (4, 3)]),
    "prelu of channels": (lambda: nn.PReLU(4), [(4,), (4, 3), (4, 3, 2)]),
    "embedding": (lambda: nn.Embedding(6, 4), [(), (3,), (2, 3)]),
    "embedding with sparse gradients": (lambda: nn.Embedding(6, 4, sparse=True), [(3,)]),
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
            torch.stack([torch.autograd.grad(layer(x[n : n + 1]), p, d[n : n + 1])[0].to_dense() for d in signals])
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
    for at_once, samples in ((1, N), (10**9, N), (10**9, 1)):  # numbers: one sample at a time, or all
        monkeypatch.setattr(layer_gradients, "NUMBERS_WRITTEN_OUT", at_once)
        for statistic in (torch.square, torch.abs):
            sums = {attribute: torch.ones_like(p) for attribute, p in layer.named_parameters()}
            add_layer(sums, layer, x[:samples], [d[:samples] for d in signals], statistic)
            for attribute, total in sums.items():
                torch.testing.assert_close(total, 1 + statistic(expected[attribute][:samples]).sum((0, 1)))


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
    batches_of_one = mas_importance(model, TensorDataset(x), "batched", batch_size=1)
    for attribute in omega:
        torch.testing.assert_close(found[0][prefix + attribute], omega[attribute].abs().sum(1).mean(0))
        torch.testing.assert_close(batches_of_one[prefix + attribute], found[0][prefix + attribute])
        torch.testing.assert_close(found[1][prefix + attribute], fisher[attribute].square().sum(1).mean(0))


def each_output(outputs):
    """Signals that are 1 at one output of every sample and 0 elsewhere."""
    rows = outputs.reshape(len(outputs), -1)
    return [torch.eye(rows.shape[1]).double()[k].expand_as(rows) for k in range(rows.shape[1])]


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.SyncBatchNorm(3),
        nn.Embedding(6, 4, max_norm=1.0),
        nn.Embedding(6, 4, scale_grad_by_freq=True),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
        torch.nn.utils.spectral_norm(nn.Linear(3, 2)),
        nn.LSTM(3, 2),
        with_one_more(nn.Linear(3, 2)),
        *(type("Own", (kind,), {})(3, 2) for kind in (nn.Linear, nn.Embedding)),
    ],
)
def test_what_computes_otherwise_has_no_rule(layer):
    assert not has_rule(layer)


# --- how much is held at once -----------------------------------------------------------------------------------------


def test_a_layer_runs_unrecorded_afterwards():
    layer = nn.Linear(3, 2)
    with layer_gradients.recorded({"first": layer}) as runs:
        layer(torch.zeros(4, 3))
    layer(torch.zeros(4, 3))
    assert [len(of_layer) for of_layer in runs.values()] == [1]
    assert not layer._forward_hooks


@pytest.mark.parametrize(
    ("layer", "shape", "numbers"),
    [
        # A gradient of 2 x 3 x 2 x 2 weights, and 2 groups' patches of 3 x 2 x 2 numbers at 3 x 4 positions.
        (lambda: nn.Conv2d(6, 2, 2, groups=2), (6, 4, 5), 24 + 2 * 12 * 12),
        # A gradient of 3 x 4 weights, 2 rows of inputs and of signals.
        (lambda: nn.Linear(4, 3), (2, 4), 12 + 8 + 6),
        # There is none of a weight.
        (lambda: without_weight(nn.BatchNorm1d(3)), (3, 4), 12 + 12),
    ],
)
@pytest.mark.parametrize("terms", [1, 3])
def test_gradients_are_written_out_of_as_many_samples_as_are_said_to_fit(layer, shape, numbers, terms, monkeypatch):
    layer, x = layer(), torch.randn(11, *shape)
    if isinstance(layer, nn.BatchNorm1d):
        layer.eval()
    seen = []

    def counted(layer, inputs, signals, wanted):
        seen.append(len(inputs))
        return gradients(layer, inputs, signals, wanted)

    monkeypatch.setattr(layer_gradients, "gradients", counted)
    for room, expected in ((4 * numbers * terms, [4, 4, 3]), (4 * numbers * terms - 1, [3, 3, 3, 2]), (1, [1] * 11)):
        seen.clear()
        monkeypatch.setattr(layer_gradients, "NUMBERS_WRITTEN_OUT", room)
        sums = {attribute: torch.zeros_like(p) for attribute, p in layer.named_parameters()}
        add_layer(sums, layer, x, [layer(x).detach()] * terms, torch.square)
        assert seen == expected


def test_and_so_are_those_of_the_general_way(monkeypatch):
    model = nn.Linear(5, 3)
    parameters, seen = dict(model.named_parameters()), []
    vectorised = general_gradients._vectorised

    def counted(model, inputs, *others):
        seen.append(len(inputs))
        return vectorised(model, inputs, *others)

    monkeypatch.setattr(general_gradients, "_vectorised", counted)
    batch, numbers = Minibatch(torch.randn(7, 5), None, 0, 0), 2 * (15 + 3)  # of two signals
    for room, expected in ((3 * numbers, [3, 3, 1]), (3 * numbers - 1, [2, 2, 2, 1]), (1, [1] * 7)):
        seen.clear()
        monkeypatch.setattr(general_gradients, "NUMBERS_AT_ONCE", room)
        sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
        general_gradients.add_by_vmap(sums, model, parameters, batch, torch.randn(7, 2, 3), torch.square)
        assert seen == expected


def test_and_so_are_signals(monkeypatch):
    """Of 3 outputs there are up to 3, of 3 numbers each."""
    steps = []

    def counting(kind, alike):
        steps.append((kind, alike))
        return nullcontext()

    for room, expected in ((4 * 9, [4, 4, 3]), (4 * 9 - 1, [3, 3, 3, 2]), (1, [1] * 11)):
        steps.clear()
        monkeypatch.setattr(per_sample_gradients, "NUMBERS_AT_ONCE", room)
        with steps_told(counting):
            diagonal_fisher(nn.Linear(5, 3), TensorDataset(torch.randn(11, 5)))
        assert steps == [("importance", n) for n in expected]


@pytest.mark.parametrize("terms", [1, 3])
def test_what_a_sample_takes_is_what_autograd_keeps_and_the_signals_of_what_is_written_out(terms):
    """Autograd keeps the layers' inputs and what tanh gives; a linear layer on rows needs no signal of its own."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(18, 4)).double()
    signals = [] if terms == 1 else [lambda outputs, batch: (torch.ones(terms, *outputs.shape), len(outputs))]
    found = plan(model, Minibatch(torch.randn(7, 1, 5, 5).double(), None, 0, 0), *signals)
    assert found.bytes_a_sample == 8 * (25 + 18 + 18 * terms)  # the linear layer's inputs are what tanh gives
    assert found.outputs == 4
    # What is computed afterwards is not counted any more: torch refuses to hook what is hooked.
    afterwards = model[3].weight.exp()
    afterwards.grad_fn._raw_saved_result.register_hooks(lambda tensor: tensor, lambda tensor: tensor)


# --- what counts as the same ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected", "alike"),
    [
        # What rounding does is relative to the largest number, and to each.
        ([-1000.0, 0.05], [-1000.0, 0.0], True),
        ([-1000.0, 0.2], [-1000.0, 0.0], False),
        ([1000.9, 1.0], [1000.0, 1.0], True),
        ([1003.0, 1.0], [1000.0, 1.0], False),
        ([float("nan"), 1000.0, 0.05], [float("nan"), 1000.0, 0.0], True),
        ([float("nan"), 1.0], [0.0, 1.0], False),
        ([[1.0, 1.0]], [1.0, 1.0], False),
    ],
)
def test_gradients_are_the_same_but_for_rounding(found, expected, alike):
    for dtype in (torch.float32, torch.float64):
        numbers = torch.tensor(found, dtype=dtype), torch.tensor(expected, dtype=dtype)
        assert general_gradients.same(*numbers, dtype, 0.0) is alike


@pytest.mark.parametrize("convolution", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_gradient_that_cancels_is_the_same_but_for_rounding(convolution):
    """Of a bias before a layer that subtracts the mean, by a rule and in the general way."""
    torch.manual_seed(0)
    body = nn.Sequential(convolution(1, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*body, nn.Linear(4 * 6 * 6, 3)).eval()
    found = plan(model, Minibatch(torch.randn(3, 1, 6, 6), None, 0, 0))
    assert found.rest.keys() == (set() if convolution is nn.Conv2d else {"0.weight", "0.bias"})
    assert found.vectorised == bool(found.rest)


@pytest.mark.parametrize(("scale", "alike"), [(0.0, False), (0.05, False), (0.2, True)])
def test_what_rounding_does_is_relative_to_what_cancels(scale, alike):
    found, expected = torch.tensor([1e-6]), torch.tensor([0.0])
    assert general_gradients.same(found, expected, torch.float32, scale) is alike


@pytest.mark.parametrize(("off", "alike"), [(1.5, True), (50.0, False)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_the_bits_round_more(off, alike, dtype):
    found, expected = torch.tensor([100.0, off], dtype=dtype), torch.tensor([100.0, 0.0], dtype=dtype)
    assert general_gradients.same(found, expected, dtype, 0.0) is alike
    assert (
        general_gradients.same(found.float(), expected.float(), dtype, 0.0) is alike
    )  # computed in it, kept in float32


class Mixing(nn.Module):
    """Samples have the same outputs, 1000 and 0, and some others where not all of a batch are the same sample."""

    def __init__(self, shift):
        super().__init__()
        self.base, self.shift = nn.Parameter(torch.tensor([-1000.0, 0.0])), torch.tensor(shift)

    def forward(self, x):
        return self.base.expand(len(x), 2) + self.shift * (x != x[:1]).any()


@pytest.mark.parametrize(
    ("shift", "refused"), [([5.0, 0.0], False), ([0.0, 0.5], False), ([20.0, 0.0], True), ([0.0, 2.0], True)]
)
def test_samples_may_change_each_others_outputs_as_rounding_does(shift, refused):
    """By a hundredth of them or a thousandth of the largest, not by more."""
    batch = Minibatch(torch.randn(3, 4), None, 0, 0)
    if refused:
        with pytest.raises(ValueError, match="a sample's outputs depend on the other samples of its batch"):
            plan(Mixing(shift), batch)
    else:
        plan(Mixing(shift), batch)


class PromptsOfTheBatch(nn.Module):
    """Two prompts are chosen for a whole batch, by how many of its samples would have them (L2P's public code)."""

    def __init__(self):
        super().__init__()
        self.keys, self.pool = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(5, 4))
        self.classifier = nn.Linear(10, 3)

    def forward(self, x):
        likeness = functional.normalize(x, dim=1) @ functional.normalize(self.keys, dim=1).T
        chosen = likeness.topk(2).indices.flatten().bincount(minlength=5).topk(2).indices
        prompt = self.pool[chosen].mean(0) * likeness[:, chosen].sum(1, keepdim=True)
        return self.classifier(torch.cat([x, prompt], 1))


@pytest.mark.parametrize("seed", range(8))
def test_a_batch_that_changes_any_of_three_samples_is_noticed(seed):
    torch.manual_seed(seed)
    model, dataset = PromptsOfTheBatch(), TensorDataset(torch.randn(12, 6), torch.arange(12) % 3)
    with pytest.raises(ValueError, match="a sample's outputs depend on the other samples of its batch"):
        mas_importance(model, dataset)


# --- what is said of how long it takes --------------------------------------------------------------------------------


class Clock:
    """In place of the module ``time``: moves on when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now


class Asking(nn.Module):
    """Each sample takes it 20 ms, and pulling back a signal 30; it asks for a number, which torch cannot vectorise."""

    def __init__(self, clock, parameters):
        super().__init__()
        self.clock = clock
        self.parts = nn.ParameterList(nn.Parameter(torch.ones(4)) for _ in range(parameters))

    def forward(self, x):
        self.clock.now += 0.02 * len(x)
        try:
            x.sum().item()
        except RuntimeError as error:
            raise ValueError("0123456789" * 13 + "\nand so on") from error
        outputs = x * sum(self.parts)
        if outputs.requires_grad:
            outputs.register_hook(self.pulled_back)
        return outputs

    def pulled_back(self, gradient):
        self.clock.now += 0.03


@pytest.mark.parametrize(
    ("parameters", "named"),
    [(1, "'parts.0' is"), (3, "'parts.0', 'parts.1', 'parts.2' is"), (4, "'parts.0', 'parts.1', 'parts.2', ... is")],
)
def test_what_torch_cannot_vectorise_is_told_of_with_the_reason_and_the_time(parameters, named, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(general_gradients, "time", clock)
    model, data = Asking(clock, parameters), TensorDataset(torch.randn(6, 4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            mas_importance(model, data)
    (said,) = [str(one.message) for one in caught]
    assert f"cannot vectorise this network ({'0123456789' * 12}): the importance of {named} measured" in said
    assert "about 50 ms a sample and signal" in said


class Slow(nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.linear, self.clock, self.seconds = nn.Linear(4, 2), clock, seconds

    def forward(self, x):
        self.clock.now += self.seconds
        return self.linear(x)


class Screen(io.StringIO):
    def isatty(self):
        return True


def measured_slowly(seconds, monkeypatch, screen_type=Screen):
    """Measures 30 samples in passes of 10 that take as many seconds each; returns what is shown, and what warned of."""
    clock, screen = Clock(), screen_type()
    monkeypatch.setattr(per_sample_gradients, "time", clock)
    monkeypatch.setattr("tqdm.std.time", clock.perf_counter)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    monkeypatch.setattr("sys.stderr", screen)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mas_importance(Slow(clock, seconds), TensorDataset(torch.randn(30, 4)), samples_at_once=10)
    return screen.getvalue(), [str(one.message) for one in caught]


def test_more_than_a_minute_is_told_of_after_the_first_pass(monkeypatch):
    _, said = measured_slowly(19.9, monkeypatch)
    assert said == []
    _, (said,) = measured_slowly(20.1, monkeypatch)
    assert said.startswith("the global memory aware importance will take about 60 s; ")


def test_how_far_it_is_is_shown_after_five_seconds_and_wiped_off_in_the_end(monkeypatch):
    for seconds, screen_type in ((1.6, Screen), (2.6, io.StringIO)):  # which is no terminal
        shown, _ = measured_slowly(seconds, monkeypatch, screen_type)
        assert shown == ""
    shown, _ = measured_slowly(2.6, monkeypatch)
    *_, last, nothing, end = shown.split("\r")
    assert " 2/3 " in shown
    assert last.startswith("global memory aware importance: 100%")
    assert " 3/3 " in last
    assert nothing.isspace()
    assert end == ""
