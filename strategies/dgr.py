"""Deep generative replay: Shin et al. 2017, "Continual Learning with Deep Generative Replay" (arXiv 1705.08690)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from avalanche.models.dynamic_optimizers import update_optimizer
from avalanche.models.utils import avalanche_model_adaptation, is_multi_task_module
from avalanche.training.templates.problem_type import SupervisedProblem
from torch import Tensor, nn
from torch.utils.data import DataLoader

from engrams.strategies.answers import SAMPLES, Answers
from engrams.strategies.arguments import one_of
from engrams.strategies.choices import NewShare, ReplayLabels
from engrams.strategies.copies import copy_of, frozen_copy
from engrams.strategies.experiences import Met, Pieces
from engrams.strategies.generator_training import READ_AT_ONCE, GeneratorTemplate
from engrams.strategies.generators import Generator
from engrams.strategies.heads import Heads, TaskClasses
from engrams.strategies.kept import State
from engrams.strategies.networks import minibatch_of, model_of
from engrams.strategies.quadratic_penalty import QuadraticPenaltyPlugin
from engrams.strategies.steps import step_of
from engrams.strategies.undisturbed import attributes_kept, same_random_numbers

BATCHES_AHEAD = 50
"""Of replay, drawn and answered together before the steps that use them."""


class Scholar(NamedTuple):
    """<G, S>: a generator of inputs and a solver that answers them."""

    generator: Generator
    solver: nn.Module


class DeepGenerativeReplay(GeneratorTemplate):
    """Trains a scholar in every experience, on its own data and on what the previous scholar makes and answers.

    Section 3.1: first the generator learns the new inputs x mixed with replayed x' in proportion r : 1 - r (one that is
    conditional replays by itself); then, separately, the solver minimises (eq. 2)

        r E_{(x, y) ~ D_t} [l(S_t(x), y)]  +  (1 - r) E_{x' ~ G_{t-1}} [l(S_t(x'), S_{t-1}(x'))]

    Each expectation is the mean over a minibatch of its own, both of ``train_mb_size``. The solver is the template's
    ``model``, trained by its usual loop, so any Avalanche plugin (EWC, MAS, LwF, ...) works on it. Plugins see the real
    minibatch, and replay goes to the solver as the generator makes it: images must be normalised by the stream's
    transforms, the network or the template's ``forward``, for what a plugin or ``_unpack_minibatch`` does to a
    minibatch (normalises it, augments it) is not done to replay.
    The generator has one more hook, that of :class:`GeneratorPlugin`.

    Where the stream comes in pieces (Avalanche's ``split_online_stream``), the scholar learns each of them, and becomes
    the previous one where an experience ends. Several heads are :class:`Heads`'s.
    """

    def __init__(
        self,
        *,
        generator: Generator,
        r: NewShare | float = "experiences",
        replay_labels: ReplayLabels = "hard",
        new_scholar: Callable[[int], Scholar] | None = None,
        **template: Any,
    ):
        """
        Args:
            generator: of the first scholar. It keeps to its own epochs and minibatches.
            r: the importance of the new experience. ``experiences``: 1/t in the t-th experience, so that each weighs
                the same. ``classes``: its number of classes among those of all experiences so far. A number in (0, 1]:
                that, from the second experience on; 1 is training without replay.
            replay_labels: the previous solver's answer: ``hard``, its most probable class, as in the paper, or
                ``soft``, its probabilities (under squared error, its outputs). ``asked``: the class that the generator
                was asked for, which must be conditional; under several heads, the class of a task, so that none is
                drawn.
            new_scholar: experience (1, 2, ...) -> the scholar that learns it from the previous one, of any
                architecture; without it a scholar goes on from the weights of the previous one. A penalty around
                previous weights (EWC, MAS) has no meaning then, and this package's are refused.
            template: the arguments of Avalanche's ``SupervisedTemplate``; ``criterion`` must take class probabilities
                as targets for soft labels, as ``torch.nn.CrossEntropyLoss`` does, and be a cross-entropy, binary or
                not, or squared error, so that it says what outputs mean. Where the solver has one logit, it
                must be a binary cross-entropy of the class, 0 or 1: the answer is class 1 if the logit is above 0, or
                the logit's sigmoid, [N].

        Raises:
            ValueError: r is no number in (0, 1] and no policy; replay_labels has no such value, or is ``asked`` of a
                generator that cannot be; new_scholar together with a quadratic penalty or a conditional generator. In
                the first experience, before anything is trained: it does not know the classes that r or the heads need,
                its images are not what the generator was promised, ``_unpack_minibatch`` changes them, no labels can be
                read off the solver's outputs, or the criterion does not take those that replay will have (see
                :class:`Answers`).
        """
        if r not in ("experiences", "classes") and not (isinstance(r, int | float) and 0 < r <= 1):
            raise ValueError(f"r must be 'experiences', 'classes' or a number in (0, 1]; got {r!r}")
        one_of(ReplayLabels, replay_labels=replay_labels)
        if replay_labels == "asked" and not generator.conditional:
            raise ValueError("replay_labels='asked' needs a generator that is conditional on the class")
        if new_scholar and generator.conditional:
            raise ValueError("new_scholar starts a generator afresh; one that replays by itself has no past then")
        if new_scholar and any(isinstance(plugin, QuadraticPenaltyPlugin) for plugin in template.get("plugins") or ()):
            raise ValueError("new_scholar starts from other weights than those that a quadratic penalty is anchored at")
        super().__init__(**template)
        self.generator = generator.to(self.device)
        self.r = r
        self.replay_labels = replay_labels
        self.new_scholar = new_scholar
        self.previous: Scholar | None = None
        """The scholar of the last experience, frozen; None in the first experience."""
        self._past: list[Met] = []
        self._pieces = Pieces(self)
        self._task_classes = TaskClasses() if is_multi_task_module(self.model) else None
        self._answers: Answers | None = None
        self._replay: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None
        self._ahead: list[tuple[Tensor, Tensor, Tensor]] = []
        """Minibatches of replay that are drawn and not used yet, the next one last."""
        self._due: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None
        """The replay of which a training step has not had its minibatch yet."""

    @property
    def new_share(self) -> float:
        """Returns r in the experience being learned."""
        if not self._past:
            return 1.0
        if self.r == "experiences":
            return 1 / (len(self._past) + 1)
        if self.r == "classes":
            counts = [len(met.classes_in_this_experience) for met in (*self._past, Met.of(self.experience))]
            return counts[-1] / sum(counts)
        return float(self.r)

    def _before_training_exp(self, **kwargs):
        needs_classes = self.r == "classes" or is_multi_task_module(self.model)
        if needs_classes and not Met.of(self.experience).classes_in_this_experience:
            raise ValueError(
                "r='classes' and models of several heads need experiences that know their classes; "
                "make the benchmark with Avalanche's with_classes_timeline"
            )
        if self._pieces.begin(self.experience) and self.previous is not None and self.new_scholar is not None:
            self._start_afresh(self.new_scholar(len(self._past)))
        super()._before_training_exp(**kwargs)

    def _start_afresh(self, scholar: Scholar) -> None:
        self.generator, self.model = scholar.generator.to(self.device), scholar.solver.to(self.device)
        self.model.train()
        for experience in self._past:  # so that it has the outputs that the previous solver answers with
            avalanche_model_adaptation(self.model, experience)
        self.optimized_param_id = update_optimizer(
            self.optimizer, dict(self.model.named_parameters()), None, reset_state=True, remove_params=True
        )

    def _train_exp(self, experience, eval_streams=None, **kwargs):
        replay = self.previous.generator.sample if self.previous else None
        ahead = self._gone_on_from.get("ahead", []) if self._gone_on_from else []
        self._heads = Heads([*self._past, Met.of(self.experience)], self.model, self.device)
        self._train_generator(replay, self.new_share, **kwargs)
        self._ahead = [
            (x.to(self.device), answers.to(self.device), tasks.to(self.device)) for x, answers, tasks in ahead
        ]
        self._replay = self._replayed() if self.new_share < 1 else None
        super()._train_exp(experience, eval_streams, **kwargs)

    def _asked_for(self, labels: Tensor, columns: Sequence[Any]) -> Tensor:
        if self._task_classes is None:
            return labels
        return self._task_classes.numbered(torch.cat(columns[2]).to(labels), labels)

    def _before_learning(self, images: Tensor, labels: Tensor) -> None:
        if self.r == 1:
            return
        self._refuse_other_inputs()
        if self._answers or self._past or self.replay_labels == "asked":
            return
        tasks = self._heads.known[:1].expand(SAMPLES).to(self.device)
        with same_random_numbers(), torch.no_grad():
            solver = copy_of(self.model).eval()
            outputs = self._outputs(solver, self._heads, images[:SAMPLES], tasks[: len(images)])
        self._answers = Answers(self.replay_labels, outputs, labels, self._criterion)

    def _after_forward(self, **kwargs):
        super()._after_forward(**kwargs)  # a plugin that asks for the loss there has that on the minibatch
        self._due = self._replay

    def _refuse_other_inputs(self) -> None:
        """Refuses a template that changes inputs as it takes minibatches apart, which replay is not."""
        if type(self)._unpack_minibatch is SupervisedProblem._unpack_minibatch:
            return
        dataset = self.adapted_dataset
        with same_random_numbers(), attributes_kept([self]):
            columns = next(iter(DataLoader(dataset, SAMPLES, collate_fn=dataset.collate_fn)))
            given = columns[0].clone().to(self.device)
            with minibatch_of(self, columns):
                self._unpack_minibatch()
                x = self.mb_x
        if not (isinstance(x, Tensor) and x.dtype == given.dtype and torch.equal(x, given)):
            raise ValueError(
                f"{type(self).__name__}._unpack_minibatch changes the inputs, and generative replay does not go "
                f"through it: change them in the stream's transforms, in the network or in forward()"
            )

    def criterion(self) -> Tensor:
        """Returns eq. 2, once in every step of training; the loss on the minibatch alone whenever else it is asked."""
        loss = super().criterion()
        if self._due is None or not self.is_training:
            return loss
        x, answers, tasks = next(self._due)
        self._due = None
        outputs = self._outputs(self.model, self._heads, x, tasks)
        targets = self._targets(answers, outputs)
        with minibatch_of(self, [x, targets, tasks]):  # which a criterion may ask an old network (iCaRL's does)
            replay_loss = self._criterion(outputs, targets)
        return self.new_share * loss + (1 - self.new_share) * replay_loss

    def _replayed(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields minibatches (x', answers, task labels) for ever; answers are S_{t-1}(x'), [N, outputs], or labels."""
        generator, solver = self.previous
        heads = Heads(self._past, solver, self.device)
        n = BATCHES_AHEAD * self.train_mb_size
        while True:
            while self._ahead:
                yield self._ahead.pop()
            with step_of("replay", n):
                drawn = self._draw(generator, solver, heads, n)
            columns = (column.split(self.train_mb_size) for column in drawn)
            self._ahead = list(zip(*columns, strict=True))[::-1]

    def _draw(self, generator: Generator, solver: nn.Module, heads: Heads, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """``n`` replays, answered: x', answers and task labels as of :meth:`_replayed`."""
        if self.replay_labels == "asked":
            x, answers = generator.sample_labelled(n)
            if self._task_classes is None:
                return x, answers, heads.draw(n, generator.random)
            tasks, answers = self._task_classes.told_apart(answers)
            return x, answers, tasks
        x = generator.sample(n)
        tasks = heads.draw(n, generator.random)
        if x.shape[1:] != generator.shape:
            raise ValueError(
                f"the generator's ImageSpec promises images of shape {tuple(generator.shape)}; it makes "
                f"some of shape {tuple(x.shape[1:])}"
            )
        with torch.no_grad():
            parts = zip(x.split(READ_AT_ONCE), tasks.split(READ_AT_ONCE), strict=True)
            return x, torch.cat([self._outputs(solver, heads, *part) for part in parts]), tasks

    def _targets(self, answers: Tensor, outputs: Tensor) -> Tensor:
        """Returns what the present solver's outputs for x' are to be, given the answers to it of :meth:`_replayed`."""
        if self.replay_labels == "asked":
            return answers
        if self._answers is None:  # training goes on from a state
            self._answers = Answers(self.replay_labels, outputs, self.mb_y, self._criterion)
        return self._answers(answers, outputs)

    def _outputs(self, solver: nn.Module, heads: Heads, x: Tensor, tasks: Tensor) -> Tensor:
        """Returns a solver's outputs for inputs [N, ...] under tasks' heads [N], by the strategy's own ``forward``."""
        with model_of(self, solver), minibatch_of(self, [x, None, tasks]):
            return heads.answered(self.forward(), tasks)

    def _after_training_exp(self, **kwargs):
        super()._after_training_exp(**kwargs)
        self._replay, self._ahead = None, []
        if not self._pieces.end(self.experience):
            return
        self._past.append(Met.of(self.experience))
        self._become_previous()

    def _become_previous(self) -> None:
        self.previous = Scholar(self.generator.frozen_copy(), frozen_copy(self.model))

    def state_dict(self) -> State:
        """Returns what was learned besides the model; asked for between two experiences.

        Raises:
            Unkept: between two pieces of an experience.
        """
        self._pieces.refuse_to_wait()
        past = [[list(part) for part in met] for met in self._past]
        pairs = list(self._task_classes.pairs) if self._task_classes else []
        return super().state_dict() | {"past": past, "task_classes": pairs}

    def state_dict_within(self) -> State:
        ahead = [[column.clone() for column in batch] for batch in self._ahead]  # not the whole that they are parts of
        return super().state_dict_within() | {"ahead": ahead}

    def load_state_dict_within(self, state: State) -> None:
        super().load_state_dict_within(state)
        if self._task_classes and not state["learns"]:
            self._task_classes.pairs = list(state["task_classes"])

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        self._past = [Met(*met) for met in state["past"]]
        if self._task_classes:
            self._task_classes.pairs = list(state["task_classes"])
        self.previous, self._pieces = None, Pieces(self)
        if self._past:  # between two experiences the present scholar and the previous one are the same
            self._become_previous()
