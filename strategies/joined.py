"""Several strategies together, as Avalanche's plugins can be: ``ewc+replay``, a row of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, create_model

from engrams.strategies.contract import Hyperparameters, Strategy


def joined(name: str, parts: Sequence[Strategy]) -> Strategy:
    """Returns the strategy that has the plugins of all its parts; one of them may build what they are put into.

    Its hyperparameters are those of each part below the part's name, and so are its ranges of a search:
    ``ewc.ewc_lambda``.

    Args:
        name: for messages.
        parts: in the order in which their plugins are added.

    Raises:
        ValueError: the same part twice; two that each build a whole strategy; one that has no solver, or that learns
            the whole stream at once.
    """
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise ValueError(f"{name}: {max(names, key=names.count)} is there twice")
    for part in parts:
        if not part.has_solver:
            raise ValueError(f"{name}: {part.name} trains a generator alone, which nothing can be joined with")
        if part.whole_stream_at_once:
            raise ValueError(f"{name}: {part.name} learns the whole stream at once, so there is no past to remember")
    whole = [part for part in parts if part.plugin is None]
    if len(whole) > 1:
        raise ValueError(
            f"{name}: {' and '.join(part.name for part in whole)} are whole strategies, each with its own training; "
            f"at most one of those that are joined can be, the others must be plugins"
        )
    fields: dict[str, Any] = {
        f"part_{index}": (part.hyperparameters, Field(alias=part.name)) for index, part in enumerate(parts)
    }
    base = whole[0] if whole else None

    def of_parts(h: Hyperparameters) -> dict[str, Any]:
        return {part.name: getattr(h, field) for part, field in zip(parts, fields, strict=True)}

    def build(h, template):
        plugins = template["plugins"]
        for part in parts:
            if part.plugin is not None:
                plugins = part.with_plugin(of_parts(h)[part.name], plugins)
        template = template | {"plugins": plugins}
        if base is not None:
            return base.make(of_parts(h)[base.name], template)
        from avalanche.training import Naive

        return Naive(**template)

    def check(h, experiences):
        for part in parts:
            part.check(of_parts(h)[part.name], experiences)

    inherited: dict[str, Any] = {}
    if base is not None:
        inherited = {
            "budget": lambda h, gan: base.budget(of_parts(h)[base.name], gan),
            "network": base.network and (lambda h, network: base.network(of_parts(h)[base.name], network)),
            "needs_images": base.needs_images,
            "has_gan": base.has_gan,
        }
    return Strategy(
        summary="; ".join(f"{part.name}: {part.summary}" for part in parts),
        build=build,
        hyperparameters=create_model("JoinedHyperparameters", __base__=Hyperparameters, **fields),
        search={f"{part.name}.{key}": space for part in parts for key, space in part.search.items()},
        check=check,
        upper_bound=any(part.upper_bound for part in parts),
        needs_task_labels=any(part.needs_task_labels for part in parts),
        needs_new_classes=any(part.needs_new_classes for part in parts),
        parts=tuple(parts),
        name="+".join(names),
        reference="+".join(part.reference for part in parts),
        code="+".join(part.code for part in parts if part.code),
        **inherited,
    )
