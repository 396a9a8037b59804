"""iCaRL: exemplars chosen by herding, distillation, and the nearest mean of exemplars (Rebuffi et al. 2017).

arXiv:1611.07725. A network with features phi and an output for every class learns an experience together with a buffer
of exemplars; each output is a sigmoid (algorithm 3). What is answered is not the largest output but the class whose
exemplars' mean of phi is nearest (algorithm 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.models import MultiTaskModule
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor, nn
from torch.nn import functional

from engrams.strategies.anchors import with_first_units
from engrams.strategies.arguments import at_least_one
from engrams.strategies.copies import copy_of, frozen_copy
from engrams.strategies.experiences import Pieces, classes_of, whole_of
from engrams.strategies.kept import KeepsNothingWithin, State, Unkept
from engrams.strategies.minibatches import minibatches
from engrams.strategies.networks import AskedThroughStrategy, model_of, refuse_no_tensor, unwrapped
from engrams.strategies.one_strategy import OfOneStrategy
from engrams.strategies.undisturbed import evaluation_mode, same_random_numbers

AT_ONCE = 500
"""Samples in a minibatch where features are measured."""
TRIED = 32
"""Samples of an experience on which, before it is learned, it is tried whether features can be."""
NOT_MET = -3.0
"""The score of a class without exemplars: vectors of length 1 are at most 2 apart."""


class Exemplars(NamedTuple):
    """Holds the exemplars of one class, in the order in which herding chose them."""

    samples: Any
    """A data set of them; None where they were loaded from a state, and not yet found in the stream."""
    experience: int | None
    """The number of their experience in the stream; None where it came in pieces, which no stream has twice."""
    places: list[int]
    """Their positions in the experience's data set."""

    def first(self, count: int) -> Exemplars:
        """Returns so many of them, or all."""
        places = self.places[:count]
        return Exemplars(self.samples.subset(range(len(places))), self.experience, places)


class ICaRLPlugin(KeepsNothingWithin, OfOneStrategy, SupervisedPlugin):
    """This is iCaRL, under any Avalanche strategy whose network has one classifier for all classes.

    It is trained by a loss of its own in place of the strategy's: every output of a class met so far is compared with a
    target by binary cross-entropy, and the loss is the mean over samples and outputs. The target is 1 or 0 for the
    classes of the present experience. For earlier ones it is the sigmoid of what the network put out before the
    experience (in eval mode). Every epoch learns the exemplars together with the new data; in a stream of pieces, every
    piece does. (Avalanche's own loader shows the tasks of what it learns equally often; where samples have the task
    labels of several experiences, exemplars come several times.)

    In ``strategy.eval`` between two experiences an output is minus the distance between the sample's features and a
    class's mean, both of length 1. Within an experience, and where the model is called directly, it is the trained one.
    Means and exemplars are of images as the data set gives them, through the strategy's own ``forward``: what a plugin
    does to minibatches (normalises them) is no part of it.
    """

    def __init__(self, mem_size: int, mirrored_means: bool = False, classifier: str = "classifier"):
        """
        Args:
            mem_size: exemplars in the whole buffer; with t classes met each has mem_size // t, or all of its samples
                where these are fewer.
            mirrored_means: whether a class's mean is of its exemplars and of their mirror images [..., height, width],
                as the authors' code has it for CIFAR-100. Where digits or letters are told apart it does harm.
            classifier: name of the output layer, whose inputs are the features.

        Raises:
            ValueError: mem_size below 1. Before an experience: the strategy replays soft labels or changes the labels;
                the network has a head a task, no such layer or does not call it, outputs that are no tensor, or a
                function that a copy cannot have; a class of an earlier experience comes back; there are more classes
                than the buffer has places. In the first step, before anything is learned: the strategy's loss is not
                that of its ``_criterion``.
        """
        super().__init__()
        at_least_one(mem_size=mem_size)
        self.mem_size = mem_size
        self.mirrored_means = mirrored_means
        self.classifier = classifier
        self._forget()

    def _forget(self) -> None:
        self._exemplars: dict[int, Exemplars] = {}
        """By class."""
        self._means: dict[int, Tensor] = {}
        self._old: nn.Module | None = None
        self._pieces = Pieces(self)
        self._met: list[AvalancheDataset] = []
        self._new: Any = None
        """What the strategy trains on, but for exemplars."""
        self._learns = False
        self._loaded: State | None = None
        """The old network's state, from which this plugin goes on but has not begun to."""

    def _holds(self) -> bool:
        return bool(self._exemplars)

    def state_dict(self) -> State:
        """Returns which samples of the stream are exemplars, their means, and the network's state at the latest end.

        Raises:
            Unkept: experiences came in pieces, or do not say where in a stream they are.
        """
        if self._pieces.waits or any(exemplars.experience is None for exemplars in self._exemplars.values()):
            raise Unkept("iCaRL's exemplars are of experiences that cannot be found again")
        old = self._loaded if self._old is None else self._old.state_dict()
        return deepcopy(
            {
                "places": [[label, of, places] for label, (_, of, places) in self._exemplars.items()],
                "means": [self._means[label] for label in self._exemplars],
                "old": old,
            }
        )

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state, in a stream that is the same as far as it has been learned.

        Raises:
            ValueError: before the next experience: the stream is another.
        """
        self._forget()
        self._with = None
        self._exemplars = {label: Exemplars(None, of, places) for label, of, places in deepcopy(state["places"])}
        self._means = dict(zip(self._exemplars, deepcopy(state["means"]), strict=True))
        self._loaded = deepcopy(state["old"])

    def before_training(self, strategy, **kwargs):
        if getattr(strategy, "replay_labels", None) == "soft":
            raise ValueError(
                "iCaRL's loss needs classes for labels, and the old network's answers are its targets anyway: beside "
                "it, take replay_labels='hard' for generative replay"
            )
        self._meet(strategy)
        if self._loaded is not None:
            self._old = frozen_copy(strategy.model)
            now = self._old.state_dict()  # with more units, perhaps
            self._old.load_state_dict({name: with_first_units(now[name], old) for name, old in self._loaded.items()})

    def after_train_dataset_adaptation(self, strategy, **kwargs):
        self._new = strategy.adapted_dataset
        if self._loaded is not None:
            asked, stream = {one.experience for one in self._exemplars.values()}, strategy.experience.origin_stream
            datasets = {one.current_experience: one.dataset for one in stream if one.current_experience in asked}
            for label, (_, experience, places) in self._exemplars.items():
                found = datasets[experience].subset(places) if experience in datasets else []
                if {int(y) for _, y, *_ in found} != {label}:
                    raise ValueError(f"iCaRL's exemplars of class {label} are not where they were in the stream")
                self._exemplars[label] = Exemplars(found, experience, places)
            self._loaded = None
        if self._exemplars:
            exemplars = [one.samples for one in self._exemplars.values()]
            strategy.adapted_dataset = concat_datasets([strategy.adapted_dataset, *exemplars])

    def before_training_exp(self, strategy, **kwargs):
        if any(isinstance(module, MultiTaskModule) for module in strategy.model.modules()):
            raise ValueError(
                "iCaRL has one classifier for all classes, and this network has one a task; a task-incremental "
                "protocol has one with network.all_classes = true"
            )
        _layer(strategy.model, self.classifier)
        if self._old is None:
            copy_of(strategy.model)  # what cannot be copied afterwards is refused now
        begins = self._pieces.begin(strategy.experience)
        if begins:
            self._met = []
            self._classes = classes_of(strategy.experience)
            if again := self._exemplars.keys() & set(self._classes):
                raise ValueError(f"iCaRL learns a class in one experience alone; class {min(again)} comes back")
            classes = len(self._exemplars) + len(self._classes)
            if self.mem_size < classes:
                raise ValueError(f"a buffer of {self.mem_size} cannot hold an exemplar of each of {classes} classes")
        known, targets = {*self._exemplars, *self._classes}, getattr(self._new, "targets", None)
        if others := {int(label) for label in getattr(targets, "uniques", ())} - known:
            raise ValueError(
                f"iCaRL learns one experience after another; here are samples of class {min(others)}, which the "
                f"experience does not have (JointTraining learns all experiences at once)"
            )
        if begins:
            self._try(strategy)
        self._learns = True

    def _try(self, strategy) -> None:
        """Finds out what cannot work before it is learned, not when exemplars are chosen."""
        some = self._new.subset(range(0, len(self._new), -(-len(self._new) // TRIED)))
        with same_random_numbers():
            labels = [label for _, y in self._features(strategy, some) for label in y.tolist()]
            given = [int(y) for _, y, *_ in some.eval()]
        if labels != given:
            raise ValueError(
                f"iCaRL finds exemplars by the labels of the data set, and {type(strategy).__name__} changes these in "
                f"a minibatch: let the data set have the labels that are to be learned"
            )

    def after_forward(self, strategy, **kwargs):
        self._criterion = strategy._criterion  # of the strategy, which other plugins may ask for before and after
        self._asked = False

        def criterion(outputs: Tensor, y: Tensor) -> Tensor:
            self._asked = True
            return self.loss(outputs, y, self._past(strategy))

        strategy._criterion = criterion

    def before_backward(self, strategy, **kwargs):
        strategy._criterion = self._criterion
        if not self._asked:
            raise ValueError(
                f"iCaRL learns by a loss of its own in place of the strategy's _criterion, which "
                f"{type(strategy).__name__}.criterion() does not ask: let it call self._criterion(self.mb_output, "
                f"self.mb_y)"
            )

    @torch.no_grad()
    def _past(self, strategy) -> Tensor | None:
        """Returns what the network before this experience answers to the strategy's minibatch; None where none was."""
        if self._old is None:
            return None
        with model_of(strategy, self._old):
            return strategy.forward()

    def loss(self, outputs: Tensor, y: Tensor, past: Tensor | None = None) -> Tensor:
        """Returns the loss of a minibatch (algorithm 3), its mean over samples and classes met so far.

        Args:
            outputs: of the network that learns, before the sigmoid, [N, K].
            y: labels, [N].
            past: of the network before this experience, [N, K or fewer]; None where there was none.
        """
        targets = functional.one_hot(y.long(), outputs.shape[1]).to(outputs.dtype)
        if past is not None:
            old = list(self._exemplars)
            targets[:, old] = past[:, old].sigmoid().to(outputs.dtype)
        met = [*self._exemplars, *self._classes]
        return functional.binary_cross_entropy_with_logits(outputs[:, met], targets[:, met])

    def after_training_exp(self, strategy, **kwargs):
        self._met.append(self._new)
        if not self._pieces.end(strategy.experience):
            return
        share = self.mem_size // (len(self._exemplars) + len(self._classes))
        dataset = concat_datasets(self._met)
        adapted = len(dataset) != len(strategy.experience.dataset)
        whole = whole_of(strategy.experience) is strategy.experience and not adapted
        number = getattr(strategy.experience, "current_experience", None) if whole else None
        found = self._features(strategy, dataset)
        features, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        for label in self._classes:
            (places,) = (labels == label).nonzero(as_tuple=True)
            if not len(places):  # the experience names a class that its data lack
                continue
            chosen = places[herded(features[places], share)].tolist()
            self._exemplars[label] = Exemplars(dataset.subset(chosen), number, chosen)
        self._exemplars = {label: exemplars.first(share) for label, exemplars in self._exemplars.items()}
        self._means = {label: self._mean(strategy, one.samples) for label, one in self._exemplars.items()}
        self._old = frozen_copy(strategy.model)
        self._met, self._new = [], None
        self._learns = False

    def _mean(self, strategy, exemplars: AvalancheDataset) -> Tensor:
        views = [False, True] if self.mirrored_means else [False]
        features = [f for mirrored in views for f, _ in self._features(strategy, exemplars, mirrored)]
        return functional.normalize(torch.cat(features).mean(dim=0), dim=0)

    def _features(self, strategy, dataset: Any, mirrored: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields features of length 1, [N, F], and labels [N], minibatch by minibatch, in the dataset's order."""
        layer, model = _layer(strategy.model, self.classifier), AskedThroughStrategy(strategy)
        with evaluation_mode(model), torch.no_grad(), closing(_Inputs(layer)) as inputs:
            for batch in minibatches(model, dataset.eval(), AT_ONCE):
                x, *others = batch.columns
                refuse_no_tensor(model([x.flip(-1) if mirrored else x, *others]), type(self).__name__)
                yield functional.normalize(inputs.latest.float()), batch.y

    def before_eval_forward(self, strategy, **kwargs):
        answers = self._means and not self._learns and self._goes_on(strategy)
        self._inputs = _Inputs(_layer(strategy.model, self.classifier)) if answers else None

    def after_eval_forward(self, strategy, **kwargs):
        if self._inputs is not None:
            if self._inputs.found is None:  # what was compiled before may go on without hooks
                with evaluation_mode(strategy.model), torch.no_grad():
                    strategy.forward()
            self._inputs.close()
            strategy.mb_output = self.scores(self._inputs.latest, strategy.mb_output.shape[1])

    @torch.no_grad()
    def scores(self, features: Tensor, classes: int) -> Tensor:
        """Returns minus the distance to every class's mean (algorithm 1), -3 for classes not met, [N, classes].

        Args:
            features: inputs of the classifier, [N, F].
            classes: how many outputs the network has.
        """
        means = torch.stack(list(self._means.values())).to(features.device)
        scores = features.new_full((len(features), classes), NOT_MET, dtype=torch.float32)
        scores[:, list(self._means)] = -torch.cdist(functional.normalize(features.float()), means)
        return scores


def herded(features: Tensor, count: int) -> list[int]:
    """Returns the places of the samples whose mean follows that of all (algorithm 4), best first, each once.

    The k-th is the one with which the mean of the first k comes nearest to the mean of all.

    Args:
        features: of one class, [N, F].
        count: how many; N, if that is less.
    """
    mean, total = features.mean(dim=0), torch.zeros_like(features[0])
    squares, left = features.square().sum(dim=1), torch.zeros(len(features), device=features.device)
    chosen: list[int] = []
    for k in range(1, min(count, len(features)) + 1):
        # | mean - (total + f) / k |^2, but for what is the same for all: the smaller, the better.
        distances = squares - 2 * features @ (k * mean - total) + left
        chosen.append(int(distances.argmin()))
        total = total + features[chosen[-1]]
        left[chosen[-1]] = torch.inf
    return chosen


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return unwrapped(model).get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"the model has no layer {name!r}; name its classifier") from error


class _Inputs:
    """Keeps what a layer was called with last, until it is closed."""

    def __init__(self, layer: nn.Module):
        self.found: Tensor | None = None
        self.close = layer.register_forward_pre_hook(self._keep).remove

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.found = inputs[0].detach()

    @property
    def latest(self) -> Tensor:
        """Returns what it was called with.

        Raises:
            ValueError: it was not called.
        """
        if self.found is None:
            raise ValueError(
                "iCaRL takes the inputs of the network's classifier for features, and the network does not call that "
                "layer: call it by itself, self.classifier(features), where its weights are used by a function"
            )
        return self.found
