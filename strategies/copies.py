"""Copies of a network that have nothing to do with it any more."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from types import FunctionType, MethodType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from engrams.strategies.undisturbed import named_by

Network = TypeVar("Network", bound=nn.Module)


def copy_of(model: Network) -> Network:
    """Returns a deep copy; of what the network keeps of its forward pass (features, normalised weights), the values.

    Raises:
        ValueError: the copy would go on asking the original.
    """
    kept = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return independent_copy(model, {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf})


def frozen_copy(model: Network) -> Network:
    """Returns a copy in eval mode, of which nothing learns."""
    return copy_of(model).eval().requires_grad_(False)


def independent_copy(model: Network, memo: dict[int, Any]) -> Network:
    """Returns a deep copy that does not ask the original for anything.

    A method that was put on the network is bound to the copy. A function (``model.forward = lambda x: model.head(x)``)
    is the same one in the copy, and refused if it names the original or parts of it.

    Args:
        model: what is copied.
        memo: for ``copy.deepcopy``.

    Raises:
        ValueError: there is such a function.
    """
    copied = copy.deepcopy(model, memo)
    of_original = _parts(model) - _parts(copied)
    for module_name, module in copied.named_modules():
        for name, value in vars(module).items():
            if any(id(one) in of_original for one in _reached(value, set())):
                what = f"{type(module).__name__}.{name} is a function that"
                advice = "make it a method of the class, or bind it by types.MethodType(function, network)"
                if name.endswith("_hooks"):
                    what = f"a hook of {type(module).__name__}"
                    advice = "let it use what it is given (the module, its inputs and outputs)"
                raise ValueError(
                    f"{what} names the network or parts of it, and a copy's would ask the original"
                    f"{f' (in {module_name!r})' if module_name else ''}: {advice}"
                )
    return copied


def _parts(model: nn.Module) -> set[int]:
    return {id(part) for part in (*model.modules(), *model.parameters())}


def _reached(value: Any, met: set[int]) -> Iterator[Any]:
    """Yields what lists, tuples and dicts hold, what the functions among it name, and so on."""
    for one in tree_leaves(value):
        if id(one) in met:
            continue
        met.add(id(one))
        yield one
        if isinstance(one, partial):
            yield from _reached([one.func, one.args, one.keywords], met)
        elif isinstance(one, MethodType):
            yield from _reached([one.__self__, one.__func__], met)
        elif isinstance(one, FunctionType):
            yield from _reached([other for other in named_by(one) if not _of_another_file(other, one)], met)


def _of_another_file(function: Any, caller: FunctionType) -> bool:
    """Tells whether it is a function of another file than its caller's, and no closure."""
    return (
        isinstance(function, FunctionType)
        and function.__globals__ is not caller.__globals__
        and not function.__closure__
    )
