"""MAS's adaptive experiment in small: what the importance is measured on is what it protects.

Aljundi et al. 2018 (arXiv:1711.09601), section 5: since MAS reads no labels, its importance can be measured on whatever
a deployed network meets, so that it forgets what is no longer needed rather than what is. Here two experiences of a few
classes each are learned one after the other. The importance of the first is measured on its training images of two of
its classes, or of two others, or of all, and what each class of the first experience then loses is measured on its test
images. The first experience is learned the same in all of them, so that seeds can be compared in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from avalanche.training.determinism.rng_manager import RNGManager
from torch import Tensor, nn

from engrams.benchmarks.data.loading import TensorClassificationDataset, tensors_of
from engrams.benchmarks.errors import UnknownName
from engrams.benchmarks.jobs.execute import journal_of, usual_device
from engrams.benchmarks.jobs.outcomes import environment
from engrams.benchmarks.jobs.processes import ProcessError, Report, in_processes
from engrams.benchmarks.jobs.progress import Display
from engrams.benchmarks.jobs.suite import SuiteError, check_startable
from engrams.benchmarks.protocols import registry
from engrams.benchmarks.protocols.schema import SplitStream
from engrams.benchmarks.runs import Run
from engrams.benchmarks.studies.sweeps import StudyError, Subsets
from engrams.benchmarks.training.build import benchmark_of, make_strategy
from engrams.benchmarks.training.watch import Diverged, watch
from engrams.reports.settings import first_difference
from engrams.reports.studies import adaptive as outcomes
from engrams.reports.studies.adaptive import NOTHING, Classes, Outcome, Results
from engrams.reports.wandb.sending import sending
from engrams.reports.wandb.settings import DISABLED, WandBSettings
from engrams.strategies import catalogue
from engrams.strategies.mas import MASPlugin
from engrams.strategies.minibatches import forward
from engrams.strategies.undisturbed import evaluation_mode

NO_LABEL = -1


@dataclass(frozen=True)
class Job:
    """One seed under one condition, as a process gets it."""

    run: Run
    """Plain training; the penalty is added to it."""
    mas_lambda: float
    measured_on: Classes

    @property
    def name(self) -> str:
        return self.run.name


def results_path(name: str, out: Path) -> Path:
    return out / f"{name}.json"


def run_subsets(
    name: str,
    study: Subsets,
    seeds: int | None,
    out: Path,
    workers: int | None,
    display: Display,
    wandb: WandBSettings = DISABLED,
) -> Results:
    """Does what is not among the results in ``out`` yet, several at once; each result is kept as soon as it is there.

    Args:
        name: of the study.
        study: what to do.
        seeds: how many; None for the study's own number.
        out: folder of the results.
        workers: runs at once; None for one a core.
        display: told what is going on.
        wandb: where W&B keeps the runs.

    Raises:
        StudyError: the protocol does not exist or is no split, or training diverged.
        SuiteError: the results in ``out`` are of other settings, or cannot be written.
        RecordError: they cannot be read.
        ProcessError, DataError, ProtocolError: as :func:`engrams.benchmarks.jobs.suite.run_all`.
    """
    results = recorded(name, study, out) or _none_yet(name, study)
    # All conditions of one seed before the next seed.
    wanted = [(seed, classes) for seed in range(seeds or study.seeds) for classes in results.conditions.values()]
    done = {(outcome.seed, outcome.measured_on) for outcome in results.outcomes}
    owed = [_job(name, study, seed, classes) for seed, classes in wanted if (seed, classes) not in done]
    check_startable([job.run for job in owed], out)
    shown = lambda job, epochs: display.advanced(job.run, epochs)  # noqa: E731
    with (
        sending(wandb, out, display, lambda job: job.run.folder(out), shown, bool(owed)) as (mode, sender),
        display.showing(len(wanted), len(wanted) - len(owed)),
    ):
        work = partial(_do_job, out=None if mode == "disabled" else out)
        try:
            for job, outcome in in_processes(owed, work, workers, sender.advanced):
                sender.over(job)
                if isinstance(outcome, ProcessError):
                    raise outcome
                results = results.model_copy(update={"outcomes": [*results.outcomes, outcome]})
                _write(results, results_path(name, out))
                everything = tuple(range(study.classes_per_experience))
                display.finished(job.run, f"forgot {100 * outcome.forgetting(everything):.2f}")
        except Diverged as error:
            raise StudyError(f"{name}: {error}") from error
    wanted_outcomes = [o for o in results.outcomes if (o.seed, o.measured_on) in set(wanted)]
    return results.model_copy(update={"outcomes": wanted_outcomes})


def _write(results: Results, path: Path) -> None:
    try:
        outcomes.write(results, path)
    except OSError as error:
        raise SuiteError(f"the results cannot be written to {path}: {error}") from error


def recorded(name: str, study: Subsets, out: Path) -> Results | None:
    """Returns the results in ``out``; None if there are none.

    Raises:
        RecordError: they cannot be read.
        SuiteError: they are of other settings.
        StudyError: the protocol does not exist or is no split.
    """
    path = results_path(name, out)
    if not path.exists():
        return None
    results, new = outcomes.read(path), _none_yet(name, study)
    for key in ("settings", "subsets", "classes"):
        if (before := getattr(results, key)) != (now := getattr(new, key)):
            raise SuiteError(
                f"{path} was made with other settings ({first_difference({key: before}, {key: now})}); "
                f"keep it and choose another --out, or delete it"
            )
    return results.model_copy(update={"title": study.title})


def _none_yet(name: str, study: Subsets) -> Results:
    settings = {
        "mas_lambda": study.mas_lambda,
        **_job(name, study, 0, NOTHING).run.protocol.deciding(catalogue.get("mas")),
    }
    return Results(
        title=study.title,
        settings=settings,
        subsets=[tuple(subset) for subset in study.subsets],
        classes=study.classes_per_experience,
        environment=environment(usual_device()),
        outcomes=[],
    )


def _job(name: str, study: Subsets, seed: int, measured_on: Classes) -> Job:
    try:
        protocol = registry.get(study.protocol)
    except UnknownName as error:
        raise StudyError(f"{name}: {error}") from error
    if not isinstance(protocol.stream, SplitStream):
        raise StudyError(f"{name}: protocol: {study.protocol} does not split a data set by its classes")
    if protocol.scenario == "class":  # units that are masked at first have no output to compare with
        raise StudyError(f"{name}: protocol: {study.protocol} is class-incremental; choose its task or domain scenario")
    naive = catalogue.get("naive")
    stream = protocol.stream.model_copy(update={"classes_per_experience": study.classes_per_experience})
    run = Run(
        protocol.model_copy(update={"stream": stream}),
        naive,
        seed,
        protocol.hyperparameters_of(naive),
        variant=f"mas_lambda={study.mas_lambda:g},importance on {outcomes.label(measured_on) or 'nothing'}",
    )
    return Job(run, study.mas_lambda, measured_on)


# --- in a process of its own ------------------------------------------------------------------------------------------


def _do_job(job: Job, report: Report, out: Path | None) -> Outcome:
    """One job; with ``out``, it says for W&B what came out."""
    report(0)
    device = usual_device()
    if out is None:
        return learn_and_measure(job, report, device)
    journal = journal_of(job.run, job.run.folder(out), environment(device))
    try:
        outcome = learn_and_measure(job, report, device)
    except Diverged as error:
        journal.ended({"status": "failed", "reason": str(error)}, complete=False)
        raise
    everything = tuple(range(len(outcome.before)))
    journal.ended({"status": "complete", "final/forgetting": outcome.forgetting(everything), **outcome.model_dump()})
    return outcome


def learn_and_measure(job: Job, report: Report, device: str) -> Outcome:
    """Learns two experiences and compares what the network does on the first one's test images before and after.

    Raises:
        Diverged: the loss or a parameter is no finite number any more.
    """
    run = job.run
    torch.use_deterministic_algorithms(True)
    RNGManager.set_random_seeds(run.seed)
    benchmark = benchmark_of(run)
    plugins: list[MASPlugin] = []
    if job.measured_on:
        images = _images_of(benchmark.train_stream[0], job.measured_on)
        plugins.append(MASPlugin(job.mas_lambda, importance_data=images))
    strategy = make_strategy(run, benchmark, device, plugins)
    watch(strategy, report)

    def learn(experience) -> None:
        strategy.train(experience, reset_optimizer_state=run.training.reset_optimizer)

    first, second = benchmark.streams[run.judge][:2]
    learn(benchmark.train_stream[0])
    before, labels = _outputs(strategy.model, first)
    learn(benchmark.train_stream[1])
    after, _ = _outputs(strategy.model, first)
    new, new_labels = _outputs(strategy.model, second)
    change = (after - before).square().sum(1)
    square = before.square().sum(1)
    return Outcome(
        seed=run.seed,
        measured_on=job.measured_on,
        before=_class_means(_right(before, labels), labels),
        after=_class_means(_right(after, labels), labels),
        output_change=[c / s for c, s in zip(_class_means(change, labels), _class_means(square, labels), strict=True)],
        second=_right(new, new_labels).mean().item(),
    )


def _images_of(experience, classes: Classes) -> TensorClassificationDataset:
    """The experience's images of some classes, without their labels."""
    x, y, *_ = _tensors(experience)
    members = torch.isin(y, torch.tensor(classes))
    return TensorClassificationDataset.from_tensors(
        x[members], torch.full_like(y[members], NO_LABEL), experience.task_label
    )


def _outputs(model: nn.Module, experience) -> tuple[Tensor, Tensor]:
    """The network's outputs [N, K] on an experience, and the labels [N]."""
    x, y, *_ = _tensors(experience)
    device = next(model.parameters()).device
    with evaluation_mode(model), torch.no_grad():
        return forward(model, x.to(device), experience.task_label).cpu(), y


def _tensors(experience) -> tuple[Tensor, ...]:
    tensors = tensors_of(experience.dataset)
    assert tensors is not None  # our streams are tensors underneath
    return tensors


def _right(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.argmax(1) == labels).float()


def _class_means(values: Tensor, labels: Tensor) -> list[float]:
    return [values[labels == label].mean().item() for label in labels.unique()]
