"""What can be set of a strategy reaches what is built, for every strategy of the catalogue."""

from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from types import FunctionType, MethodType
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from engrams.benchmarks.jobs.plan import plan
from engrams.benchmarks.protocols.problems import ProtocolError
from engrams.benchmarks.training.build import benchmark_of, make_strategy
from engrams.strategies import catalogue, choices
from engrams.strategies.contract import ROUND, Budget

WORDS = [word for name in vars(choices).values() for word in getattr(name, "__args__", ())]
VALUES = [False, True, 0.25, 0.5, 2, 3, 4, (4,), (5, 6), (0.1, 0.2), (0.3, 0.4), "linear", "constant", *WORDS]
"""Of every kind that a hyperparameter can be of; those that it cannot be are refused by its type."""
SET_BY_HAND = {"mergan-ra": {"ra_lambda": 1.0}}
"""What the protocol leaves open."""


def described(value: Any, met: frozenset[int] = frozenset()) -> Any:
    """What an object holds, all the way down, but for the numbers in tensors and where things lie in memory."""
    if value is None or isinstance(value, str | int | float | torch.device | torch.dtype):
        return repr(value)
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, type):
        return value.__name__
    if id(value) in met:
        return "met"
    met |= {id(value)}
    if isinstance(value, Mapping):
        return [(described(key, met), described(one, met)) for key, one in value.items()]
    if isinstance(value, Collection):
        return [described(one, met) for one in value]
    if isinstance(value, partial):
        return [described(one, met) for one in (value.func, value.args, value.keywords)]
    if isinstance(value, MethodType):
        return value.__qualname__
    if isinstance(value, FunctionType):
        return [value.__qualname__, *(described(cell.cell_contents, met) for cell in value.__closure__ or ())]
    own = {**getattr(value, "__dict__", {})}
    return [type(value).__name__, *((name, described(own[name], met)) for name in sorted(own))]


LARGE = ("mem_size", "subsample")
"""What others have to be below."""


def values_of(kind, name: str, others: Mapping[str, Any]) -> list[Any]:
    """Which of the values a hyperparameter can have."""

    def fits(value) -> bool:
        try:
            kind.model_validate({**others, name: value})
        except ValidationError as error:
            return all(problem["loc"] and name not in problem["loc"] for problem in error.errors())
        return True

    return [value for value in VALUES if fits(value)]


@cache
def benchmark(protocol: str):
    return benchmark_of(plan(protocol, ["naive" if "split" in protocol else "gan-finetune"], [0])[0])


def build_of(strategy: str) -> Callable[[Mapping[str, Any]], Any]:
    found = catalogue.get(strategy)
    protocol = "split-digits/class" if found.has_solver else "generate-digits"
    protocol = "split-digits/task" if found.needs_task_labels else protocol
    changed = {"network.all_classes": True} if "der" in strategy else {}

    def build(hyperparameters: Mapping[str, Any]) -> Any:
        run = plan(protocol, [strategy], [0], {**changed, **hyperparameters})[0]
        torch.manual_seed(0)
        try:
            built = make_strategy(run, benchmark(protocol), "cpu", [], nn.Identity())
        except ProtocolError as error:  # two that do not go together
            return str(error)
        return described([built, run.budget])

    return build


@pytest.mark.parametrize("strategy", [name for name in catalogue.CATALOGUE if name != "avalanche-ncm"])
def test_every_hyperparameter_reaches_what_is_built(strategy):
    kind = catalogue.get(strategy).hyperparameters
    base: dict[str, Any] = {}
    for name in kind.model_fields:
        fitting = values_of(kind, name, base)
        base[name] = fitting[-1] if name in LARGE else fitting[0]
    build = build_of(strategy)
    as_is = build(base)
    assert build(base) == as_is, "nothing else differs"
    for name in kind.model_fields:
        others = [value for value in values_of(kind, name, base) if value != base[name]]
        assert others, name
        assert any(build(base | {name: value}) != as_is for value in others[:3]), name


@pytest.mark.parametrize("strategy", ["dgr", "dgr-vae", "mergan-ra", "mergan-jtr"])
def test_a_generator_has_the_runs_seed(strategy):
    def weights(seed, of_torch):
        run = plan("split-digits/class", [strategy], [seed], SET_BY_HAND.get(strategy, {}))[0]
        torch.manual_seed(of_torch)
        generator = make_strategy(run, benchmark("split-digits/class"), "cpu", []).generator
        return torch.cat([p.detach().flatten() for p in generator.parameters()])

    assert torch.equal(weights(1, 0), weights(1, 5))
    assert not torch.equal(weights(1, 0), weights(2, 0))


@pytest.mark.parametrize(
    ("strategy", "settings", "expected"),
    [
        ("naive", {}, Budget(7, 0, "constant")),
        ("dgr-vae", {"generator_epochs": 4, "solver_schedule": "linear"}, Budget(7, 4, "linear")),
        ("dgr", {"generator_epochs": 4}, Budget(7, 4, "constant")),
        ("avalanche-generative-replay", {"epochs": 3}, Budget(3, 3, "constant")),
        ("avalanche-generative-replay", {"epochs": 3, "vae_epochs": 2}, Budget(3, 2, "constant")),
        ("avalanche-slda", {}, Budget(1, 0, "constant")),
        ("avalanche-gdumb", {"epochs": 9}, Budget(9, 0, "constant")),
        ("mergan-jtr", {"gan.steps": 3 * ROUND}, Budget(7, 3, "constant")),
        ("mergan-jtr", {"gan.steps": 3 * ROUND + 1}, Budget(7, 4, "constant")),
    ],
)
def test_how_long_a_run_trains(strategy, settings, expected):
    run = plan("split-digits/class", [strategy], [0], {"training.epochs": 7, **settings})[0]
    assert run.budget == expected


def test_a_gan_without_settings_has_no_rounds():
    entry = catalogue.get("mergan-jtr")
    assert entry.budget(entry.hyperparameters(), None).generator_epochs == 0


@pytest.mark.parametrize("strategy", ["mergan-jtr", "mergan-ra"])
def test_a_gan_as_a_memory_is_asked_for_classes(strategy):
    run = plan("split-digits/class", [strategy], [0], SET_BY_HAND.get(strategy, {}))[0]
    built = make_strategy(run, benchmark("split-digits/class"), "cpu", [])
    assert built.replay_labels == "asked"


def test_the_nearest_mean_is_streaming_lda_without_a_covariance():
    lda, ncm = (described_attributes(name) for name in ("avalanche-slda", "avalanche-ncm"))
    assert (ncm["shrinkage_param"], ncm["streaming_update_sigma"], ncm["train_epochs"]) == (1.0, False, 1)
    assert (lda["streaming_update_sigma"], lda["train_epochs"]) == (True, 1)


def described_attributes(strategy: str):
    run = plan("split-digits/class", [strategy], [0], {"training.epochs": 3})[0]
    built = make_strategy(run, benchmark("split-digits/class"), "cpu", [])
    return {**vars(built), **vars(built.model)}


def test_avalanches_der_is_refused_a_head_that_grows():
    run = plan("split-digits/class", ["avalanche-der"], [0], {"mem_size": 5, "batch_size_mem": 5, "alpha": 1.0})[0]
    with pytest.raises(ProtocolError, match="needs one classifier that does not grow"):
        make_strategy(run, benchmark("split-digits/class"), "cpu", [])
