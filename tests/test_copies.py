"""A copy of a network, which another's training must not change."""

from functools import partial, wraps
from types import MethodType

import pytest
import torch
from torch import nn

from engrams.strategies import DeepGenerativeReplay
from engrams.strategies.copies import frozen_copy
from engrams.strategies.generators import ImageSpec, PastImages
from engrams.strategies.icarl import ICaRLPlugin
from tests.test_ewc import learn, mlp, quiet, stream

head = nn.Linear(2, 2)  # a global that is called as an attribute of the network's is


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x):
        return self.head(self.body(x))


def decorated(method):
    @wraps(method)
    def called(*arguments):
        return method(*arguments)

    return called


def by_default(model):
    def forward(x, head=model.head):
        return head(model.body(x))

    return forward


def of_another(model):
    def inner(x):
        return model.head(model.body(x))

    return lambda x: inner(x)


@pytest.mark.parametrize(
    "forward",
    [
        lambda model: lambda x: model.head(model.body(x)),
        lambda model: lambda x: nn.functional.linear(model.body(x), weight=model.head.weight),
        lambda model: decorated(model.forward),
        lambda model: partial(lambda chosen, x: model.head(chosen(x)), model.body),
        by_default,
        of_another,
    ],
)
def test_a_function_that_names_the_original_is_refused(forward):
    model = nn.Sequential(Network())
    model[0].forward = forward(model[0])
    with pytest.raises(ValueError, match=r"^Network\.forward is a function that names .* \(in '0'\): .*MethodType"):
        frozen_copy(model)


def test_so_is_one_that_names_a_global_network():
    scope = {"nn": nn, "model": (model := Network())}
    exec("model.forward = lambda x: model.head(model.body(x))", scope)
    with pytest.raises(ValueError, match=r"Network\.forward is a function"):
        frozen_copy(model)


def own_head(self, x):
    return self.head(self.body(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "forward", MethodType(own_head, model)),
        lambda model: setattr(model, "forward", partial(own_head, model)),
        lambda model: setattr(model.body, "activation", lambda x: x.relu()),
        lambda model: model.head.register_forward_hook(lambda module, inputs, outputs: 2 * outputs),
        lambda model: model.compile(backend="eager"),
    ],
)
def test_a_copy_stays_as_it_is(change):
    model, x = Network(), torch.randn(4, 3)
    change(model)
    copied = frozen_copy(model)
    before = copied(x)
    assert torch.equal(before, model(x))
    with torch.no_grad():
        model.head.weight.add_(1)
    assert torch.equal(copied(x), before)


def test_what_a_network_shares_with_its_copies_may_be_named():
    class Shared(nn.Linear):
        def __deepcopy__(self, memo):
            return self

    model = Network()
    model.body = body = Shared(3, 2)
    model.features = lambda x: body(x)
    assert frozen_copy(model).body is body


def test_it_is_refused_before_anything_is_trained():
    def begun(strategy_of):
        model = mlp(classes=4)
        model.forward = lambda x: model.classifier(model.features(x))
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(ValueError, match=r"SimpleMLP\.forward is a function"):
            strategy_of(model)
        assert all(map(torch.equal, before, model.parameters()))

    def dgr(model):
        DeepGenerativeReplay(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            criterion=nn.CrossEntropyLoss(),
            generator=PastImages(ImageSpec((6,), -8.0, 8.0)),
            evaluator=quiet(),
        ).train(stream([[0, 1]]))

    begun(dgr)
    begun(lambda model: learn(model, stream([[0, 1]]), ICaRLPlugin(10)))


def test_a_generators_copy_is_one_too():
    generator = PastImages(ImageSpec((6,)))
    generator.sample_labelled = lambda n: (generator.sample(n), None)
    with pytest.raises(ValueError, match=r"PastImages\.sample_labelled is a function"):
        generator.frozen_copy()
