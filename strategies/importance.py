"""Importance of each parameter, as a statistic of per-sample gradients.

The diagonal Fisher information is the mean, over samples, of *squared per-sample* gradients of log p(y | x, theta).
Which y is meant makes four estimators (van de Ven 2025, arXiv:2502.11756), and which distribution p is follows from
the loss the network was trained with. Memory aware synapses take the mean of *absolute per-sample* gradients of the
squared L2 norm of the outputs instead (Aljundi et al. 2018, arXiv:1711.09601), and no label.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from engrams.strategies.arguments import at_least_one, finite, one_of
from engrams.strategies.choices import Fisher, MASVariant
from engrams.strategies.densities import Likelihood, density, fitting, with_zeros
from engrams.strategies.general_gradients import outputs_of
from engrams.strategies.gradient_plan import Plan, plan
from engrams.strategies.layer_gradients import Run, add_layer, add_products, has_rule, recorded
from engrams.strategies.minibatches import Minibatch, chosen_samples, rows
from engrams.strategies.networks import trainable_parameters, unwrapped
from engrams.strategies.per_sample_gradients import (
    SAMPLES_AT_ONCE,
    Measurement,
    mean_over_minibatches,
    mean_over_samples,
    zeros,
)
from engrams.strategies.precision import wide, without_tf32
from engrams.strategies.steps import step_of
from engrams.strategies.undisturbed import evaluation_mode

MOST_OUTPUTS = 4096
"""Of a sample, for the exact Fisher: a signal for each of as many outputs is 64 MiB."""


def diagonal_fisher(
    model: nn.Module,
    dataset: Dataset,
    fisher: Fisher = "exact",
    fisher_samples: int | None = None,
    *,
    likelihood: Likelihood = "categorical",
    noise_std: float = 1.0,
    ignore_index: int = -100,
    batch_size: int = 32,
    samples_at_once: int | None = None,
    num_workers: int = 0,
    counted: Callable[[Tensor, Minibatch], Tensor | None] | None = None,
) -> dict[str, Tensor]:
    """Returns the diagonal of the Fisher information matrix of ``model`` on ``dataset``, at its present parameters.

    F_i = E_x E_{y ~ p(y|x)} [(d log p(y|x) / d theta_i)^2]  (Kirkpatrick et al. 2017, eq. 3), the model in eval mode.

    Args:
        model: maps a batch x to outputs of shape [N, K] or [N, ...]; an Avalanche ``MultiTaskModule`` also gets the
            task label. One that is compiled or made parallel is seen through.
        dataset: yields (x, y) or (x, y, ..., task label), as Avalanche's datasets do. x is a tensor, or a dict or tuple
            of tensors. Of y, ``exact`` and ``sampled`` read only which is ``ignore_index``.
        fisher: which y stands in the expectation.
            ``exact``: all of them, weighted by p(y|x): no randomness is left. A backward pass for every output.
            ``sampled``: one y drawn from p(y|x) for each x, by torch's global generator.
            ``empirical``: the dataset's own y.
            ``batched``: the squared gradient of a *mini-batch mean* with the dataset's own y, averaged over
            mini-batches. Not a Fisher estimate (it shrinks as ``batch_size`` grows); it is what many libraries
            compute, and is kept so that the difference can be shown. A mini-batch of several tasks counts as one
            mini-batch a task.
        fisher_samples: how many x, drawn without replacement by torch's global generator; None, or more than there
            are, means all.
        likelihood: what p(y|x) is; the loss's own, see :mod:`densities`. ``categorical``: softmax of the K outputs
            (logits or log-probabilities), y a class index, or the classes' probabilities; with outputs [N, K, ...] and
            y [N, ...] the product over positions, whose negative logarithm is a *sum* over them, where
            ``nn.CrossEntropyLoss`` takes the mean: F is as many times larger. ``bernoulli``: K independent
            yes-or-no answers, the outputs their logits; ``bernoulli-probabilities``: the outputs their probabilities.
            ``gaussian``: normal around the outputs with standard deviation ``noise_std`` in every one.
        noise_std: standard deviation of the gaussian likelihood, > 0.
        ignore_index: a class index that counts as no label (``categorical``). A sample without a label is none of the
            density's: as in the loss, whose mean is over the others, it counts in no kind of Fisher, nor in its N.
        batch_size: mini-batch size of ``batched``; the other three do not depend on it.
        samples_at_once: samples in one forward pass; None: as many as take no more memory than two training steps of
            ``batch_size`` samples (or 64 MiB), 1,000 at most. ``batched`` does not read it.
        num_workers: processes that load the data, as a ``DataLoader``'s.
        counted: which answers count, as booleans of the outputs' shape (of class indices [N, 1, ...]), of the outputs
            and the minibatch; None for all. In place of ``ignore_index``, for any density. A sample without any counts
            in no Fisher.

    Returns:
        Parameter name -> non-negative tensor of the parameter's shape, detached, in float32 at least, for every
        parameter that requires a gradient. Parameters that the outputs do not depend on (another task's head) get
        zeros.

    Raises:
        ValueError: an unknown ``fisher`` or ``likelihood``, a number out of range, or an empty dataset; no labels in
            the dataset where they are read; outputs that do not fit the likelihood; an importance that is not finite; a
            network that has no per-sample gradients (batch norm by the batch's own statistics).
    """
    check_fisher_options(fisher, fisher_samples, likelihood, noise_std)
    _refuse_empty(dataset)
    model = unwrapped(model)
    log_density = density(likelihood, noise_std, ignore_index)
    indices = chosen_samples(len(dataset), fisher_samples)  # type: ignore[arg-type]

    def counts(outputs: Tensor, batch: Minibatch) -> Tensor | None:
        if counted is not None:
            return counted(outputs, batch)
        answered = log_density.answered(batch.y)
        return None if answered is None else fitting(answered, outputs).unsqueeze(1)

    def signals(outputs: Tensor, batch: Minibatch) -> tuple[Tensor, int]:
        y, kind, answered = batch.y, outputs.dtype, counts(outputs, batch)
        outputs = wide(outputs)
        if fisher == "exact":
            found = log_density.expectation(outputs)
        elif fisher == "sampled":
            found = log_density.score(outputs, log_density.draw(outputs)).unsqueeze(0)
        elif not isinstance(y, Tensor):
            raise ValueError(f"fisher={fisher!r} reads labels; the dataset's are {type(y).__name__}, no tensor")
        else:
            found = log_density.score(outputs, y if answered is None else with_zeros(y, answered)).unsqueeze(0)
        samples = len(outputs)
        if answered is not None:
            found = found.masked_fill(~answered, 0)
            samples = int(answered.reshape(len(answered), -1).any(1).sum())
        return found.reshape(len(found), len(outputs), -1).to(kind), samples

    def refuse(outputs: Tensor) -> None:
        log_density.refuse(outputs)
        if fisher == "exact":
            refuse_too_many(outputs)

    measured = Measurement(
        dataset,
        indices,
        batch_size,
        samples_at_once,
        num_workers,
        refuse,
        f"{fisher} Fisher information",
        "fisher_samples measures it on fewer samples, and fisher='sampled' has one backward pass where the exact one "
        "has one for every output",
    )
    with evaluation_mode(model), without_tf32():
        way = mean_over_minibatches if fisher == "batched" else mean_over_samples
        return way(model, measured, signals, torch.square)


def refuse_too_many(outputs: Tensor) -> None:
    """Raises a ValueError if the network has more outputs than the exact Fisher can have backward passes."""
    if (numbers := outputs[0].numel()) > MOST_OUTPUTS:
        raise ValueError(
            f"the exact Fisher has a backward pass for every output, and the network has {numbers:,} of them a sample "
            f"(at most {MOST_OUTPUTS:,}): fisher='sampled' has one"
        )


def check_fisher_options(fisher: str, fisher_samples: int | None, likelihood: str, noise_std: float) -> None:
    """Raises a ValueError that names the first option out of its range."""
    one_of(Fisher, fisher=fisher)
    one_of(Likelihood, likelihood=likelihood)
    at_least_one(fisher_samples=fisher_samples)
    finite(noise_std=noise_std)
    if not noise_std > 0:
        raise ValueError(f"noise_std must be greater than 0; got {noise_std}")


def mas_importance(
    model: nn.Module,
    dataset: Dataset,
    variant: MASVariant = "global",
    *,
    batch_size: int = 32,
    samples_at_once: int | None = None,
    num_workers: int = 0,
) -> dict[str, Tensor]:
    """Returns how much each parameter matters to the outputs of ``model`` on ``dataset``; labels are never read.

    Omega_ij = (1/N) sum_k | d ||F(x_k; theta)||_2^2 / d theta_ij |  (Aljundi et al. 2018, eqs. 2, 3 and section 4.1),
    the model in eval mode.

    Args:
        model: maps a batch x to outputs of shape [N, ...]; an Avalanche ``MultiTaskModule`` also gets the task label.
            One that is compiled or made parallel is seen through.
        dataset: yields (x, y), (x, y, ..., task label) as Avalanche's datasets do, or x alone.
        variant: ``global``: as above. ``local``: the Hebbian form (section 4.2), layer by layer the mean product of
            activations, Omega_ij = (1/N) sum_k |f_i(x_k)| |f_j(x_k)|, where f_i is the layer's input (1 for a bias) and
            f_j its output after the ReLU, or the output itself in the last layer. (Behind a ReLU activations are not
            negative; images and outputs may be, and importance may not.) A convolution's products are summed over the
            positions at which it uses a weight, within a sample and before the absolute value is taken. Every layer but
            the last that runs is taken to be followed by a ReLU; one that is called as a function cannot be seen, nor
            that there is none. It is *half* of |d ||f||^2 / d theta_ij| of the layer alone, which for a ReLU is 2 f_i
            f_j: on one linear layer ``local`` with twice the lambda is ``global``.
            ``batched``: the absolute gradient of a *mini-batch mean*, averaged over mini-batches. It shrinks as
            ``batch_size`` grows, since gradients of different samples cancel; it is what many libraries compute, and is
            kept so that the difference can be shown.
        batch_size: mini-batch size of ``batched``; the other two do not depend on it.
        samples_at_once: samples in one forward pass; None: as many as take no more memory than two training steps of
            ``batch_size`` samples (or 64 MiB), 1,000 at most. ``batched`` does not read it.
        num_workers: processes that load the data, as a ``DataLoader``'s.

    Returns:
        Parameter name -> non-negative tensor of the parameter's shape, detached, in float32 at least, for every
        parameter that requires a gradient. Parameters that the outputs do not depend on (another task's head) get
        zeros.

    Raises:
        ValueError: an unknown ``variant`` or an empty dataset; for ``local``, a layer that is not linear,
            convolutional, a ReLU or without weights of its own (pooling, dropout, flattening), named in the message.
    """
    one_of(MASVariant, variant=variant)
    _refuse_empty(dataset)
    model = unwrapped(model)
    measured = Measurement(
        dataset,
        None,
        batch_size,
        samples_at_once,
        num_workers,
        name=f"{variant} memory aware importance",
        quicker="importance_data may be a part of the data",
    )
    with evaluation_mode(model), without_tf32():
        if variant == "local":
            return _mean_product_of_activations(model, measured)
        way = mean_over_minibatches if variant == "batched" else mean_over_samples
        return way(model, measured, squared_norm, torch.abs)


def squared_norm(outputs: Tensor, batch: Minibatch) -> tuple[Tensor, int]:
    """Returns the signal of ||f||^2: d ||f||^2 / d f, and how many samples count: all. Labels are not read."""
    return (2 * outputs).reshape(1, len(outputs), -1), len(outputs)


def refuse_what_is_no_data_set(data: object) -> None:
    """Raises a ValueError that says what to give instead."""
    if isinstance(data, DataLoader):
        raise ValueError("the data set is a DataLoader; give the data set that it loads (its .dataset)")
    if hasattr(data, "dataset") and not hasattr(data, "__len__"):
        raise ValueError("the data set is one experience; give its .dataset")
    if isinstance(data, IterableDataset) or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise ValueError(f"the data set must have a length and be indexed by numbers; got a {type(data).__name__}")


def _refuse_empty(dataset: Dataset) -> None:
    refuse_what_is_no_data_set(dataset)
    if len(dataset) == 0:  # type: ignore[arg-type]
        raise ValueError("an importance needs at least one sample; the dataset is empty")


# --- MAS, layer by layer ----------------------------------------------------------------------------------------------

WITHOUT_WEIGHTS = (
    nn.Sequential,  # an empty one: Avalanche leaves it where a head was
    nn.ReLU,
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)


def _mean_product_of_activations(model: nn.Module, measured: Measurement) -> dict[str, Tensor]:
    """The local variant: each layer's own signal is its activation, in place of what is propagated back to it."""
    every = _layers_of_local(model)
    parameters = trainable_parameters(model)
    names = {id(p): name for name, p in parameters.items()}
    sums = zeros(parameters)
    count = 0
    plans: dict[int, Plan] = {}  # by task, since another task may run other layers
    for batch in measured.minibatches(model, measured.at_once or SAMPLES_AT_ONCE):
        if batch.task not in plans:
            plans[batch.task] = plan(model, batch)
        with step_of("importance", rows(batch.inputs)):
            with recorded(every) as calls:
                _, outputs = outputs_of(model, batch.inputs, batch.task)
            of_task = plans[batch.task]
            if of_task.rest or of_task.otherwise(calls, outputs):
                raise ValueError("variant='local' needs layers that run once a sample, on weights of their own alone")
            runs: dict[str, Run] = {name: found[0] for name, found in calls.items()}
            *hidden, last = runs
            activations = {name: wide(runs[name].output.detach()).relu() for name in hidden}
            # The last layer's output, but for units that are masked because their class has not been met.
            (activations[last],) = torch.autograd.grad(outputs, runs[last].output, outputs.detach())
            activations[last] = wide(activations[last])
            for name, f in activations.items():
                layer, inputs = every[name], wide(runs[name].inputs)
                of_layer = {
                    attribute: sums[names[id(p)]]
                    for attribute, p in layer.named_parameters(recurse=False)
                    if id(p) in names
                }
                if isinstance(layer, nn.Conv2d):
                    add_layer(of_layer, layer, inputs, [f], torch.abs)
                else:
                    add_products(of_layer, inputs.abs(), f.abs())
        count += rows(batch.inputs)
        for name, total in sums.items():
            if not total.isfinite().all():
                raise ValueError(
                    f"the {measured.name} of {name!r} is not finite in samples {batch.first} to "
                    f"{batch.first + rows(batch.inputs) - 1}: look at those samples, and whether training has diverged"
                )
    return {name: total / count for name, total in sums.items()}


def _layers_of_local(model: nn.Module) -> dict[str, nn.Module]:
    """The linear and convolutional layers by name; raises a ValueError that names a layer of another kind."""
    for name, module in model.named_modules():
        if next(module.children(), None) is None and not isinstance(module, (nn.Linear, nn.Conv2d, *WITHOUT_WEIGHTS)):
            raise ValueError(
                f"variant='local' is for linear and convolutional layers with ReLU; {name!r} is a "
                f"{type(module).__name__}: use variant='global'"
            )
        if isinstance(module, nn.Linear | nn.Conv2d) and not _is_plain(module):
            raise ValueError(
                f"variant='local' is for plain layers; {name!r} is a {type(module).__name__} with groups, "
                f"reparametrised weights, or padding that is named or not of zeros: use variant='global'"
            )
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


def _is_plain(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d) and (
        layer.groups > 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        return False
    return has_rule(layer)
