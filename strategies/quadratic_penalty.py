"""A quadratic penalty that holds parameters near where earlier experiences left them.

EWC, MAS, SI and L2 differ in what they call important; what is done with it is the same, and lives here:

    L(theta) = L_new(theta) + coefficient * sum_i importance_i (theta_i - anchor_i)^2
"""

from __future__ import annotations

import math
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from fnmatch import fnmatch
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import ConcatDataset, Dataset, Subset
from torch.utils.hooks import RemovableHandle

from engrams.strategies.anchors import Anchored, ByName, Consolidation, Term
from engrams.strategies.arguments import at_least_one, finite, not_negative, one_of
from engrams.strategies.choices import PenaltyStep
from engrams.strategies.experiences import Pieces, trained_on
from engrams.strategies.kept import KeepsNothingWithin, State, Unkept
from engrams.strategies.networks import named_parameters, some_of, trainable_parameters, unwrapped
from engrams.strategies.precision import wide
from engrams.strategies.steps import steps_told
from engrams.strategies.undisturbed import same_random_numbers

Excluded = Sequence[str | type[nn.Module]]

SPARSE = (nn.Embedding, nn.EmbeddingBag)
"""Modules whose gradient may be sparse."""

OTHERWISE = ", or give consolidate_every, the number of samples after which to consolidate"


class QuadraticPenaltyPlugin(Anchored, KeepsNothingWithin, SupervisedPlugin, ABC):
    """Adds the penalty to the loss of any Avalanche strategy; a subclass says what is important.

    An anchor belongs to a parameter of one model, not to a name. A model that is compiled, made parallel or wrapped in
    another keeps its anchors, and so does a layer that grew with its old units first. A layer that was exchanged for a
    fresh one has none, and a warning names it. One whose values were changed in place since the last experience (set
    back to those of its best epoch, initialised afresh), or are not those of the state that was loaded, is held to the
    old ones, and a warning says so. Used for a second strategy, the plugin goes on if the model is the one that it
    left, and otherwise starts afresh, with a warning.

    An experience ends where the stream says so: with ``split_online_stream``, after its last sub-experience, and what
    is measured is the data of all of them.

    Attributes:
        importances: parameter name -> non-negative tensor of its shape; empty before the first experience has ended.
            A list of such dicts, one an experience, if ``consolidation`` is ``separate``. Names are those of the plain
            model, whatever wraps it.
        anchors: likewise, the parameters that the penalty pulls towards.
    """

    why_all_are_0 = "The outputs may not depend on the parameters"
    """What may have made every importance 0, for a warning."""

    def __init__(
        self,
        coefficient: float,
        consolidation: Consolidation = "corrected",
        gamma: float = 1.0,
        *,
        penalty_step: PenaltyStep = "gradient",
        exclude: Excluded | None = (),
        consolidate_every: int | None = None,
    ):
        """
        Args:
            coefficient: factor of the whole penalty, >= 0.
            consolidation: how the penalties of several experiences combine.
                ``separate``: one penalty an experience, each around its own optimum (Kirkpatrick et al. 2017).
                ``corrected``: one penalty around the *latest* optimum, its importances the sum of all (Huszár 2017).
                ``online``: the same, the running sum decayed by ``gamma`` (Schwarz et al. 2018); also of what is
                frozen in an experience, whose importance to it is 0.
            gamma: decay of ``online``, in [0, 1]; the other two leave it at 1.
            penalty_step: ``gradient``: the penalty is part of the loss. ``proximal``: it is left out of the loss, and
                after every step of the optimiser theta <- (theta + h anchor) / (1 + h), with h = learning rate x 2
                coefficient x importance: the minimum of the penalty plus ||theta' - theta||^2 / (2 learning rate) (a
                proximal step; Parikh & Boyd 2014, "Proximal Algorithms"). It is stable for every
                coefficient. Where gradients are accumulated over minibatches, it is one for all of them, too. The
                learning rate is that of the parameter's group: an adaptive optimiser's rescaling of its steps does not
                reach the penalty.
            exclude: what is not penalised: names of parameters or patterns of them (``"classifier.*"``, ``"*.bias"``),
                and kinds of modules (``nn.BatchNorm2d``) with all that is below them. None: nothing.
            consolidate_every: for streams that hide where experiences end: consolidate at the end of the
                (sub-)experience with which this many samples have come since the last time. None: where an experience
                ends.

        Raises:
            ValueError: an argument outside its range.
        """
        super().__init__()
        not_negative(coefficient=coefficient)
        one_of(Consolidation, consolidation=consolidation)
        finite(gamma=gamma)
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1]; got {gamma}")
        if gamma != 1 and consolidation != "online":
            raise ValueError(f"gamma decays consolidation='online' only; got gamma={gamma} with {consolidation!r}")
        one_of(PenaltyStep, penalty_step=penalty_step)
        at_least_one(consolidate_every=consolidate_every)
        self.coefficient = coefficient
        self.consolidation = consolidation
        self.gamma = gamma
        self.penalty_step = penalty_step
        self.exclude = [exclude] if isinstance(exclude, str | type) else list(exclude or ())
        for excluded in self.exclude:
            if not isinstance(excluded, str) and not (isinstance(excluded, type) and issubclass(excluded, nn.Module)):
                raise ValueError(f"exclude must be names of parameters and kinds of modules; got {excluded!r}")
        self.consolidate_every = consolidate_every
        self._strategy: weakref.ref | None = None
        self._model: weakref.ref | None = None
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Forgets everything that was learned from a strategy."""
        self._hold_nothing()
        self.consolidated = 0
        self._terms: list[Term] = []
        self._since: list[Dataset] = []  # the data since the last consolidation
        self._waits = False  # whether a piece has been learned since
        self._acted = False  # whether the penalty has, since
        self._looks_again = False  # whether an experience begins, with the values that are held as far as was seen
        self._pieces = Pieces(self)
        self._checked: tuple | None = None  # of _what_is_checked
        self._num_workers = 0
        self._listening: RemovableHandle | None = None  # to the optimiser's steps, during an update
        self._rate_looked_at = 0.0  # the highest learning rate since the last consolidation

    def __getstate__(self) -> dict[str, Any]:
        # None of these can be pickled: weak references, a hook, a criterion that is a function.
        return {**self.__dict__, "_strategy": None, "_model": None, "_listening": None, "_checked": None}

    def state_dict(self) -> State:
        """Returns what was learned of the experiences so far; asked for between two of them.

        Raises:
            Unkept: pieces of an experience, or fewer samples than ``consolidate_every``, wait for their consolidation,
                which needs their data.
        """
        if self._waits:
            raise Unkept(
                f"{type(self).__name__} waits for the end of "
                f"{'an experience' if self.consolidate_every is None else f'{self.consolidate_every} samples'}, and "
                f"{sum(map(len, self._since))} samples of it are in no state: ask for it when they are "  # type: ignore[arg-type]
                f"consolidated ('consolidated' counts how often)"
            )
        return deepcopy({"importances": self.importances, "anchors": self.anchors, "consolidated": self.consolidated})

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state, with a model of the same parameter names."""
        self._start_afresh()
        self._strategy = self._model = None
        self.importances, self.anchors = deepcopy((state["importances"], state["anchors"]))
        self.consolidated = state["consolidated"]

    @abstractmethod
    def importance(self, strategy) -> ByName:
        """Returns how important each parameter was to the experience just learned: name -> tensor of its shape.

        Not below 0, unless ``consolidate`` sees to it that what is held is not.
        """

    def check(self, strategy) -> None:
        """Raises a ValueError for what cannot work, before the first experience of a strategy is trained.

        And before any other for which the criterion or the network's modules (their names or kinds) have changed.
        """

    def penalty(self, model: nn.Module) -> Tensor:
        """Returns the penalty at the model's present parameters, a scalar that carries gradients.

        Another model than the one that the anchors belong to is compared with them by its parameters' names.

        Raises:
            ValueError: another model lacks a name, or has a smaller parameter of it.
        """
        lost = self._followed_into(model)
        return self._penalty(self._terms_of(named_parameters(model), lost))

    # --- Avalanche's hooks ----------------------------------------------------------------------------------------

    def before_training_exp(self, strategy, **kwargs):
        self._meet(strategy)
        self._num_workers = kwargs.get("num_workers", 0)  # an argument of strategy.train
        if self.consolidate_every is None and self._pieces.begin(strategy.experience, OTHERWISE):
            self._nothing_waits()
        begins = not self._since
        self._since.append(trained_on(strategy))
        self._refuse_nothing_to_hold(strategy.model)
        self._refuse_complex(strategy.model)
        self._refuse_sparse_gradients(strategy.optimizer, strategy.model)
        if self._checked != _what_is_checked(strategy) and not any(is_lazy(p) for p in strategy.model.parameters()):
            with steps_told(None):  # a run that goes on from a checkpoint is checked anew
                self._refuse_what_cannot_work(strategy)
            self._checked = _what_is_checked(strategy)
        # Matched once an experience: heads and units are added before it begins, never inside it.
        self._terms, lost = self._matched(strategy.model)
        if lost:
            self._give_up(lost, named_parameters(strategy.model))
        self._looks_again = begins and self.consolidated > 0 and not self._warn_of_other_values(strategy.model)

    def before_training_epoch(self, strategy, **kwargs):
        if self._looks_again:  # a plugin behind this one may have changed the values as the experience began
            self._looks_again = False
            self._warn_of_other_values(strategy.model)

    def before_backward(self, strategy, **kwargs):
        if self._terms and self.penalty_step == "gradient":
            penalty = self._penalty(self._terms)
            if penalty.requires_grad:
                penalty.register_hook(self._acts)
            strategy.loss = strategy.loss + penalty

    def _acts(self, *gradient: Tensor) -> None:
        """Remembers that the penalty has had an effect in this experience."""
        self._acted = True

    def before_update(self, strategy, **kwargs):
        if self._terms and self.penalty_step == "gradient":
            self._warn_if_unstable(strategy.optimizer, strategy.model)
        # An update may be no step of the optimiser: a strategy that accumulates gradients makes one in several.
        self._listen_no_more()
        if self._listens():
            try:
                self._listening = strategy.optimizer.register_step_post_hook(
                    lambda optimizer, *of_the_step: self._after_step(optimizer)
                )
            except AttributeError as error:
                raise ValueError(
                    f"{type(self).__name__} has to be told of every step, and {type(strategy.optimizer).__name__} does "
                    f"not tell: it is no torch.optim.Optimizer, or does not call Optimizer.__init__"
                ) from error

    def _listens(self) -> bool:
        return bool(self._terms) and self.penalty_step == "proximal"

    def _after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Follows every real step of the optimiser."""
        if self.penalty_step == "proximal":
            self._acts()
            self._proximal_step(optimizer)

    def after_update(self, strategy, **kwargs):
        self._listen_no_more()

    def _listen_no_more(self) -> None:
        if self._listening is not None:
            self._listening.remove()
            self._listening = None

    def after_training_exp(self, strategy, **kwargs):
        if not self._ends_here(strategy.experience):
            self._waits = True
            return
        self._warn_of_no_effect()
        self._terms = []
        parameters = named_parameters(strategy.model)
        for name, p in parameters.items():
            if not p.isfinite().all():
                raise ValueError(
                    f"{type(self).__name__}: the parameter {name!r} is not finite (NaN or infinite) after the "
                    f"experience: training has diverged. Lower the learning rate or the penalty"
                    f"{', or take penalty_step=' + repr('proximal') if self.penalty_step == 'gradient' else ''}"
                )
        with without_complex(strategy.model):
            importances = self.importance(strategy)
        left_out = self._left_out(strategy.model)
        importances = {name: importance for name, importance in importances.items() if name not in left_out}
        if importances and not any((importance > 0).any() for importance in importances.values()):
            names = ", ".join(repr(name) for name in list(importances)[:3])
            warnings.warn(
                f"{type(self).__name__}: every importance is 0 after experience {self.consolidated} ({names} and all "
                f"others): nothing of it will be held. {self.why_all_are_0}",
                stacklevel=2,
            )
        anchors = {name: parameters[name].detach().clone() for name in importances}
        self.consolidate(importances, anchors)
        self._owners.update({name: parameters[name] for name in importances})
        self.consolidated += 1
        self._nothing_waits()
        self._rate_looked_at = 0.0

    # --- whose anchors, of what data ------------------------------------------------------------------------------

    def _meet(self, strategy) -> None:
        """Goes on with a strategy, or starts afresh with another one whose model is not as this plugin left it."""
        if self._strategy is not None and self._strategy() is strategy:
            return
        copied = self._strategy is None  # or loaded; or it is new
        within = self._waits and self._model is not None and self._model() is unwrapped(strategy.model)
        self._strategy, self._model = weakref.ref(strategy), weakref.ref(unwrapped(strategy.model))
        self._checked = None
        if not copied and not within:
            self._nothing_waits()
        if not self._owners:
            return
        _, lost = self._matched(strategy.model)
        as_left = not lost and (copied or within or not self._changed(named_parameters(strategy.model)))
        if not as_left:
            warnings.warn(
                f"{type(self).__name__} was made for another strategy, and this one's model is not the one that it "
                f"left: it starts afresh, and what it held of the other is forgotten. Make one plugin for each "
                f"strategy",
                stacklevel=2,
            )
            self._start_afresh()

    def _nothing_waits(self) -> None:
        self._since, self._waits, self._acted = [], False, False

    def _warn_of_other_values(self, model: nn.Module) -> bool:
        """Warns if what is held does not begin with the values that it is held to, and tells whether it did."""
        parameters = named_parameters(model)
        changed = self._changed(parameters)
        if changed:
            warnings.warn(
                f"{type(self).__name__}: {len(changed)} of {len(parameters)} parameters ({some_of(changed)}) do not "
                f"begin this experience with the values that they are held to (largest difference: "
                f"{max(changed.values()):.3g}); they are pulled back to these. What is meant to be learned anew, "
                f"delete from the plugin's importances and anchors",
                stacklevel=3,
            )
        return bool(changed)

    def _warn_of_no_effect(self) -> None:
        if self._acted or not self.coefficient or not any(term.parameter.requires_grad for term in self._terms):
            return
        what = (
            "what was passed back is not strategy.loss, or the loop does not call the strategy's _before_backward"
            if self.penalty_step == "gradient"
            else "the steps are not those of strategy.optimizer, or the loop does not call _before_update"
        )
        warnings.warn(
            f"{type(self).__name__}: its penalty has had no effect in experience {self.consolidated}: {what}",
            stacklevel=3,
        )

    def _ends_here(self, experience) -> bool:
        """Whether an experience ends with this one, which may be a part of it."""
        if self.consolidate_every is not None:
            return sum(len(data) for data in self._since) >= self.consolidate_every  # type: ignore[arg-type]
        return self._pieces.end(experience)

    def data_since(self, strategy) -> Dataset:
        """Returns what was trained on since the last consolidation, with the transformations of evaluation."""
        parts = [data.eval() if hasattr(data, "eval") else data for data in self._since or [trained_on(strategy)]]
        if len(parts) == 1:
            return parts[0]
        joined: Dataset = ConcatDataset(parts)
        if hasattr(parts[0], "collate_fn"):
            joined.collate_fn = parts[0].collate_fn  # type: ignore[attr-defined]
        return joined

    def _loading(self, strategy, batch_size: int | None, num_workers: int | None) -> dict[str, Any]:
        """How an importance loads its data; by default as the strategy loads its own."""
        return {
            "batch_size": batch_size or strategy.train_mb_size,
            "samples_at_once": batch_size,
            "num_workers": self._num_workers if num_workers is None else num_workers,
        }

    def _refuse_nothing_to_hold(self, model: nn.Module) -> None:
        trainable = trainable_parameters(model).keys()
        if trainable <= self._left_out(model):
            what = (
                "exclude leaves out every parameter of the network that requires a gradient: there is nothing to hold"
                if trainable
                else "no parameter of the network requires a gradient"
            )
            raise ValueError(f"{type(self).__name__} cannot work here, and nothing was trained: {what}")

    def _refuse_complex(self, model: nn.Module) -> None:
        left_out = self._left_out(model)
        for name, p in trainable_parameters(model).items():
            if p.is_complex() and name not in left_out:
                raise ValueError(
                    f"{type(self).__name__} cannot work here, and nothing was trained: {name!r} is complex; an "
                    f"importance is of real parameters. Leave it out (exclude), freeze it, or keep its parts"
                )

    def _refuse_sparse_gradients(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """The penalty's gradient is dense: SparseAdam takes none, and no momentum of sparse ones can be added to it."""
        of_modules = {id(m.weight) for m in model.modules() if isinstance(m, SPARSE) and m.sparse}
        sparse = [name for name, p in trainable_parameters(model).items() if id(p) in of_modules]
        held = [name for name in sparse if name not in self._left_out(model)]
        if not held or self.penalty_step == "proximal":
            return
        adam = isinstance(optimizer, torch.optim.SparseAdam)
        if adam or any(group.get("momentum") for group in optimizer.param_groups):
            raise ValueError(
                f"{type(self).__name__} cannot work here, and nothing was trained: {held[0]!r} has sparse gradients "
                f"(sparse=True), to which {type(optimizer).__name__}{'' if adam else ' with momentum'} cannot add the "
                f"penalty's, which are dense. Take penalty_step='proximal', or sparse=False"
            )

    def _refuse_what_cannot_work(self, strategy) -> None:
        with same_random_numbers():
            self._left_out(strategy.model, refuse_unused=self._checked is None)  # it may be gone later
            try:
                with without_complex(strategy.model):
                    self.check(strategy)
            except Exception as error:
                what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                raise ValueError(f"{type(self).__name__} cannot work here, and nothing was trained: {what}") from error

    def _left_out(self, model: nn.Module, refuse_unused: bool = False) -> set[str]:
        """The names of the parameters that ``exclude`` leaves out."""
        names = {id(p): name for name, p in named_parameters(model).items()}
        found: set[str] = set()
        for excluded in self.exclude:
            if isinstance(excluded, str):
                of_this = {name for name in names.values() if fnmatch(name, excluded)}
            else:
                of_this = {
                    names[id(p)]
                    for module in model.modules()
                    if isinstance(module, excluded)
                    for p in module.parameters()
                }
            if refuse_unused and not of_this:
                raise ValueError(
                    f"{type(self).__name__}: exclude={excluded!r} is no parameter of the model; it has "
                    f"{', '.join(list(names.values())[:5])}, ..."
                )
            found |= of_this
        return found

    # --- the penalty ----------------------------------------------------------------------------------------------

    @property
    def _scale(self) -> float:
        # Schwarz et al. 2018 weigh the running sum by gamma once more when it becomes the next penalty.
        return self.coefficient * self.gamma

    def _penalty(self, terms: list[Term]) -> Tensor:
        total: Tensor = torch.zeros((), device=terms[0].parameter.device) if terms else torch.zeros(())
        for parameter, importance, anchor in terms:
            total = total + _WeightedSquare.apply(parameter, importance, anchor)
        return self._scale * total

    @torch.no_grad()
    def loss_gradients(self, parameters: dict[str, nn.Parameter], factor: Tensor | float = 1.0) -> ByName:
        """Returns copies of the loss's gradients, without this penalty's part in them; as far as there are any.

        Args:
            parameters: whose, after a backward pass.
            factor: of the loss in what was passed back.
        """
        pull: dict[int, Tensor] = {}
        for parameter, importance, anchor in self._terms if self.penalty_step == "gradient" else ():
            of_this = 2 * self._scale * importance * (parameter - anchor)
            pull[id(parameter)] = pull.get(id(parameter), 0) + of_this
        return {
            name: wide(p.grad.to_dense()) / factor - pull.get(id(p), 0)
            for name, p in parameters.items()
            if p.grad is not None
        }

    @torch.no_grad()
    def _proximal_step(self, optimizer: torch.optim.Optimizer) -> None:
        """argmin_theta' scale sum_k importance_k (theta' - anchor_k)^2 + ||theta' - theta||^2 / (2 learning rate)."""
        rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        sums: dict[int, tuple[nn.Parameter, Tensor, Tensor]] = {}
        for parameter, importance, anchor in self._terms:
            if id(parameter) not in rates or not parameter.requires_grad:
                continue
            h = rates[id(parameter)] * 2 * self._scale * importance
            _, pulled, weight = sums.get(id(parameter), (parameter, parameter, 1))
            sums[id(parameter)] = (parameter, pulled + h * anchor, weight + h)
        for parameter, pulled, weight in sums.values():
            parameter.copy_(pulled / weight)

    def _warn_if_unstable(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Warns where gradient steps on the penalty overshoot ever further.

        They do once learning rate x curvature exceeds 2 (1 + m), with momentum m (Nesterov's: divided by 1 + 2 m).
        That bound is SGD's; adaptive optimisers rescale their steps and are left alone. It is looked at in the first
        step, and where the learning rate has risen since: what a scheduler leaves behind says nothing of what comes.
        """
        if not isinstance(optimizer, torch.optim.SGD):
            return
        rate = max(float(group["lr"]) for group in optimizer.param_groups)
        if rate <= self._rate_looked_at:
            return
        self._rate_looked_at = rate
        curvature: dict[int, Tensor] = {}
        for parameter, importance, _ in self._terms:
            curvature[id(parameter)] = curvature.get(id(parameter), 0) + 2 * self._scale * importance
        names = {id(p): name for name, p in named_parameters(model).items()}
        for index, group in enumerate(optimizer.param_groups):
            momentum = group["momentum"]
            limit = 2 * (1 + momentum) / (1 + 2 * momentum if group["nesterov"] else 1)
            steps = {id(p): group["lr"] * curvature[id(p)].max().item() for p in group["params"] if id(p) in curvature}
            worst = max(steps, key=steps.__getitem__, default=None)
            if worst is not None and steps[worst] > limit:
                self._rate_looked_at = math.inf  # once is enough
                warnings.warn(
                    f"{type(self).__name__}: in parameter group {index}, learning rate {group['lr']:g} x penalty "
                    f"curvature {steps[worst] / group['lr']:.3g} = {steps[worst]:.3g} exceeds {limit:g} for "
                    f"{names[worst]!r}: SGD steps on the penalty will diverge, even where the loss stays finite. "
                    f"Lower the learning rate or the penalty by a factor of {steps[worst] / limit:.2g}, or take "
                    f"penalty_step='proximal'.",
                    stacklevel=2,
                )


def strength(name: str, factor: float) -> property:
    """Returns a penalty's own strength as an attribute, of which the coefficient is ``factor`` times as much."""

    def set_to(plugin: QuadraticPenaltyPlugin, value: float) -> None:
        not_negative(**{name: value})
        plugin.coefficient = factor * value

    return property(lambda plugin: plugin.coefficient / factor, set_to)


@contextmanager
def without_complex(model: nn.Module) -> Iterator[None]:
    """Within, complex parameters, which are left out, require no gradient: no importance is of them."""
    complex_ones = [p for p in trainable_parameters(model).values() if p.is_complex()]
    for p in complex_ones:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in complex_ones:
            p.requires_grad_(True)


class _WeightedSquare(torch.autograd.Function):
    """sum_i importance_i (parameter_i - anchor_i)^2, in half the passes over memory that autograd would take."""

    @staticmethod
    def forward(ctx, parameter: Tensor, importance: Tensor, anchor: Tensor) -> Tensor:  # type: ignore[override]
        difference = parameter - anchor
        weighted = importance * difference
        ctx.save_for_backward(parameter, importance, anchor)
        ctx.weighted = weighted
        return torch.dot(weighted.flatten(), difference.flatten())

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        if torch.is_grad_enabled():  # create_graph=True: the gradient has a gradient of its own
            parameter, importance, anchor = ctx.saved_tensors
            return importance * (parameter - anchor) * (2 * upstream), None, None
        return ctx.weighted * (2 * upstream), None, None


def _what_is_checked(strategy) -> tuple:
    """Tells two situations apart that have to be checked each by itself."""
    modules = tuple((name, type(module)) for name, module in strategy.model.named_modules())
    return getattr(strategy, "_criterion", None), modules


def first_samples(dataset: Dataset, count: int = 3) -> Dataset:
    """Returns the first samples, of a dataset's own collation."""
    return _some_of(dataset, range(min(count, len(dataset))))  # type: ignore[arg-type]


def spread_samples(dataset: Dataset, count: int) -> Dataset:
    """Returns as many samples from all over the dataset, the same every time, of its own collation."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    return _some_of(dataset, order[:count].tolist())


def _some_of(dataset: Dataset, places: Sequence[int]) -> Dataset:
    some: Dataset = Subset(dataset, places)
    if hasattr(dataset, "collate_fn"):
        some.collate_fn = dataset.collate_fn  # type: ignore[attr-defined]
    return some
