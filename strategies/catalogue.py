"""Every strategy by name: where it is, and what lists, tables and boards say of it without reading it.

A name is one of :data:`CATALOGUE`, one that an installed package registers (entry point group
``engrams.strategies``), ``module:attribute`` or ``path/to/file.py:attribute`` of anybody's, or several of these joined,
``ewc+replay``. Neither this file nor the entries that it returns import torch or Avalanche: a method's own file is read
where one is made.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import NamedTuple

from engrams.strategies.contract import Strategy
from engrams.strategies.joined import joined
from engrams.strategies.own import as_strategy
from engrams.strategies.references import BadReference, fingerprint, resolve

GROUP = "engrams.strategies"


class Listed(NamedTuple):
    """What is said of a strategy where it is only named."""

    file: str
    """Its file below ``engrams.strategies.entries``, whose ``ENTRIES`` has it."""
    summary: str
    upper_bound: bool = False
    """It sees data that a continual learner would no longer have; tables keep it apart."""
    counterpart: str = ""
    """Avalanche's strategy of the same method, to compare with."""
    revision: int = 1
    """Of what it does: raised by one with a change after which the same seed ends in another record."""


AVALANCHE = "avalanche"
CATALOGUE: dict[str, Listed] = {
    "naive": Listed(
        "baselines",
        "fine-tuning: train on each experience in turn, do nothing about forgetting",
        counterpart="avalanche-naive",
    ),
    "joint": Listed("baselines", "all experiences at once (offline): the upper bound", upper_bound=True),
    "cumulative": Listed(
        "baselines",
        "each experience together with all before it: an upper bound that sees the stream",
        upper_bound=True,
    ),
    "frozen": Listed("baselines", "only the classifier learns after the first experience"),
    "l2": Listed("baselines", "quadratic penalty around the latest optimum, all importances 1"),
    "ewc-separate": Listed(
        "ewc", "EWC, one penalty an experience (Kirkpatrick et al. 2017)", counterpart="avalanche-ewc"
    ),
    "ewc": Listed("ewc", "EWC, Huszár's multi-task correction: one penalty, the sum of all Fishers (2017)"),
    "ewc-online": Listed(
        "ewc", "EWC with a decaying sum of Fishers (Schwarz et al. 2018)", counterpart="avalanche-ewc-online"
    ),
    "mas": Listed(
        "mas",
        "memory aware synapses: importance to the outputs, without labels (Aljundi et al. 2018)",
        counterpart="avalanche-mas",
    ),
    "mas-local": Listed("mas", "MAS, its local (Hebbian) form: products of activations, layer by layer"),
    "si": Listed(
        "si",
        "synaptic intelligence: importance from the path of training (Zenke et al. 2017)",
        counterpart="avalanche-si",
    ),
    "chaudhry2019-ewc": Listed(
        "chaudhry2019", "EWC as the code of Chaudhry et al. 2019 has it: a moving average of squares along the training"
    ),
    "chaudhry2019-mas": Listed(
        "chaudhry2019", "MAS as the code of Chaudhry et al. 2019 has it: Omega of the latest experience alone"
    ),
    "pnn": Listed("pnn", "progressive networks: a new column for every task, the others frozen (Rusu et al. 2016)"),
    "replay": Listed(
        "baselines",
        "rehearsal of a small buffer, as many old samples as new ones in every step",
        counterpart="avalanche-replay",
    ),
    "er": Listed(
        "experience_replay",
        "experience replay: a reservoir of all that was seen (Chaudhry et al. 2019, and later papers)",
    ),
    "der": Listed(
        "dark_replay",
        "dark experience replay: a buffer's outputs are rehearsed (Buzzega et al. 2020)",
        counterpart="avalanche-der",
    ),
    "derpp": Listed("dark_replay", "DER++: the same, and the buffer's labels", counterpart="avalanche-derpp"),
    "icarl": Listed("icarl", "iCaRL: exemplars, distillation, the nearest mean (Rebuffi et al. 2017)"),
    "dgr": Listed("dgr", "deep generative replay: a scholar of a WGAN-GP and a solver (Shin et al. 2017)"),
    "dgr-vae": Listed(
        "dgr", "deep generative replay with a variational autoencoder", counterpart="avalanche-generative-replay"
    ),
    "dgr-gaussian": Listed(
        "dgr", "deep generative replay with one Gaussian a class, in closed form, asked for by class"
    ),
    "exact-replay": Listed(
        "dgr",
        "the same scholar with past real images for a generator: the upper bound of generative replay",
        upper_bound=True,
    ),
    "noise-replay": Listed("dgr", "the same scholar with noise for a generator"),
    "mergan-jtr": Listed(
        "mergan", "memory replay GAN, joint training with replay (Wu et al. 2018); with a solver: its memory"
    ),
    "mergan-ra": Listed("mergan", "memory replay GAN, replay alignment (Wu et al. 2018); with a solver: its memory"),
    "gan-joint": Listed(
        "mergan", "the same conditional GAN trained on all classes at once: the upper bound", upper_bound=True
    ),
    "gan-finetune": Listed("mergan", "the same conditional GAN, nothing done about forgetting"),
    "gan-ewc": Listed("mergan", "the same conditional GAN, EWC on its generator (the penalty of Seff et al. 2017)"),
    "gan-dgr": Listed(
        "mergan",
        "deep generative replay as a generator: an unconditional GAN, its images labelled by the solver",
    ),
    "avalanche-naive": Listed(AVALANCHE, "Avalanche's Naive"),
    "avalanche-ewc": Listed(AVALANCHE, "Avalanche's EWC, mode 'separate'"),
    "avalanche-ewc-online": Listed(AVALANCHE, "Avalanche's EWC, mode 'online'"),
    "avalanche-mas": Listed(
        AVALANCHE, "Avalanche's MAS: gradients of mini-batch means, importances averaged with those before"
    ),
    "avalanche-si": Listed(
        AVALANCHE,
        "Avalanche's synaptic intelligence (Zenke et al. 2017), mended where it has no effect on a CPU",
    ),
    "avalanche-rwalk": Listed(
        AVALANCHE, "Avalanche's Riemannian walk (Chaudhry et al. 2018), mended where batch norm does not learn"
    ),
    "avalanche-lwf": Listed(AVALANCHE, "Avalanche's learning without forgetting (Li & Hoiem 2016)"),
    "avalanche-gem": Listed(AVALANCHE, "Avalanche's gradient episodic memory (Lopez-Paz & Ranzato 2017)"),
    "avalanche-agem": Listed(AVALANCHE, "Avalanche's averaged GEM (Chaudhry et al. 2019)"),
    "avalanche-er-ace": Listed(
        AVALANCHE, "Avalanche's replay with an asymmetric cross-entropy, ER-ACE (Caccia et al. 2022)"
    ),
    "avalanche-der": Listed(AVALANCHE, "Avalanche's dark experience replay, DER (Buzzega et al. 2020)"),
    "avalanche-derpp": Listed(AVALANCHE, "Avalanche's DER++: labels are replayed with the outputs"),
    "avalanche-mir": Listed(
        AVALANCHE,
        "Avalanche's replay of what a step would harm most (Aljundi et al. 2019), mended where it replays too little",
    ),
    "avalanche-replay": Listed(AVALANCHE, "Avalanche's replay of a small buffer"),
    "avalanche-replay-large": Listed(AVALANCHE, "the same with a larger buffer"),
    "avalanche-generative-replay": Listed(AVALANCHE, "Avalanche's generative replay, its VAE as released"),
    "avalanche-generative-replay-large": Listed(
        AVALANCHE, "the same with a VAE of the size and the epochs of dgr-vae's, and its solver's epochs"
    ),
    "avalanche-slda": Listed(
        AVALANCHE, "Avalanche's streaming LDA, in closed form (Hayes & Kanan 2020): for features, as the next"
    ),
    "avalanche-ncm": Listed(AVALANCHE, "the class of the nearest mean: the same without a covariance"),
    "avalanche-gdumb": Listed(
        AVALANCHE, "Avalanche's GDumb: learn a balanced buffer from scratch (Prabhu et al. 2020)"
    ),
}


def upper_bounds() -> list[str]:
    """Returns the names of the catalogue's strategies that see data that a continual learner would no longer have."""
    return [name for name, listed in CATALOGUE.items() if listed.upper_bound]


@cache
def registered() -> dict[str, EntryPoint]:
    """Returns the strategies that installed packages bring, by name; none of them is read yet."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in CATALOGUE}


def parts_of(name: str) -> list[str]:
    """Returns the names of the strategies that ``a+b`` joins; a path may have a ``+`` of its own."""
    parts: list[str] = []
    for piece in name.split("+"):
        if parts and "/" in parts[-1] and ":" not in parts[-1]:  # a path that has not come to its file yet
            parts[-1] += f"+{piece}"
        else:
            parts.append(piece)
    return parts


def short_name(name: str) -> str:
    """Returns what tables and records call a strategy: the same wherever its file lies."""
    parts = []
    for part in parts_of(name):
        where, _, attribute = part.rpartition(":")
        parts.append(f"{Path(where).stem}:{attribute}" if where.endswith(".py") else part)
    return "+".join(parts)


def get(name: str) -> Strategy:
    """Returns a strategy by name, read from its file.

    Args:
        name: see the head of this file.

    Raises:
        KeyError: neither the catalogue nor an installed package has a strategy of this name.
        BadReference: ``module:attribute`` leads nowhere, or to something that is no strategy.
        ValueError: the strategies in ``a+b`` cannot be joined.
    """
    if len(parts := parts_of(name)) > 1:
        return joined(name, [get(part) for part in parts])
    if name in CATALOGUE:
        listed = CATALOGUE[name]
        entry: Strategy = import_module(f"engrams.strategies.entries.{listed.file}").ENTRIES[name]
        return replace(
            entry,
            name=name,
            reference=name,
            summary=listed.summary,
            upper_bound=listed.upper_bound,
            counterpart=listed.counterpart,
            revision=listed.revision,
        )
    if name in registered():
        return _own(registered()[name].value, name, name)
    if ":" in name:
        return _own(name, name, short_name(name))
    raise KeyError(name)


def _own(points_to: str, reference: str, name: str) -> Strategy:
    try:
        strategy = as_strategy(resolve(points_to))
    except TypeError as error:
        raise BadReference(f"{points_to}: {error}") from error
    return replace(strategy, name=name, reference=reference, code=fingerprint(points_to))
