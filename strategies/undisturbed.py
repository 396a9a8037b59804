"""What is measured is left as it was: modes, buffers, attributes, and the random numbers that are drawn next."""

from __future__ import annotations

import copy
import dis
import random
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode (no dropout, batch norm on its running statistics), every module's own mode restored afterwards.

    So are buffers and attributes that a network changes in its forward pass: measuring leaves it as it was. What was
    compiled is run as it was written, since a compiled layer's hooks do not fire. ``torch.autocast`` around the call is
    switched off: what is measured is measured in the parameters' own type.
    """
    training = [module for module in model.modules() if module.training]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if not is_lazy(buffer)
    ]
    with attributes_kept(model.modules()), ExitStack() as stack:
        model.eval()
        for device in {p.device.type for p in model.parameters()}:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.enable_grad())
        if hasattr(torch.compiler, "set_stance"):  # torch 2.6
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # has no backward pass in eval mode
        try:
            yield
        finally:
            for module in training:
                module.training = True
            with torch.no_grad():
                for module, name, buffer, before in buffers:
                    if getattr(module, name) is not buffer:
                        setattr(module, name, buffer)
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)


@contextmanager
def attributes_kept(holders: Iterable[Any]) -> Iterator[None]:
    """Attributes that are set within (the state that a recurrent network keeps) are what they were afterwards.

    So is what lists, dicts and sets hold, in the attributes or within reach of a hook, which collects activations. But
    for a lazy module that gets its parameters within, and is one of another kind from then on.
    """
    before = [(holder, type(holder), dict(vars(holder)), _collections_of(holder)) for holder in holders]
    try:
        yield
    finally:
        for holder, kind, attributes, collections in before:
            if type(holder) is not kind:
                continue
            for name in vars(holder).keys() - attributes.keys():
                del vars(holder)[name]
            vars(holder).update(attributes)
            for collection, content in collections.values():
                _refill(collection, content)


def _collections_of(holder: Any) -> dict[int, tuple[Any, Any]]:
    """The lists, dicts and sets that an object or its hooks keep, by their ids, each with a copy."""
    found: dict[int, tuple[Any, Any]] = {}
    for name, value in vars(holder).items():
        _note(value, found)
        if name.endswith("_hooks") and isinstance(value, dict):
            for hook in value.values():
                for reached in _within_reach(hook):
                    _note(reached, found)
    return found


def _note(value: Any, collections: dict[int, tuple[Any, Any]]) -> None:
    """Adds a list, dict or set, and those in it, with a copy of each."""
    if not isinstance(value, list | dict | set | deque | tuple) or id(value) in collections:
        return
    collections[id(value)] = value, copy.copy(value)
    for inside in list(value.values() if isinstance(value, dict) else value):
        _note(inside, collections)


def _refill(collection: Any, content: Any) -> None:
    if isinstance(collection, tuple):
        return
    if isinstance(collection, dict):
        same = list(map(id, [*collection, *collection.values()])) == list(map(id, [*content, *content.values()]))
    else:
        same = list(map(id, collection)) == list(map(id, content))
    if not same:
        collection.clear()
        (collection.update if isinstance(collection, dict | set) else collection.extend)(content)


def _within_reach(hook: Any) -> list[Any]:
    """The variables that a hook names, and the attributes of the objects among them."""
    if isinstance(hook, partial):
        return [*_within_reach(hook.func), *hook.args, *hook.keywords.values()]
    if isinstance(hook, MethodType):
        return [*vars(hook.__self__).values(), *_within_reach(hook.__func__)]
    if not isinstance(hook, FunctionType):
        return list(vars(hook).values()) if hasattr(hook, "__dict__") else []
    named = named_by(hook)
    objects = [value for value in named if hasattr(value, "__dict__") and not isinstance(value, type | FunctionType)]
    return named + [value for one in objects if not isinstance(one, ModuleType) for value in vars(one).values()]


def named_by(function: FunctionType) -> list[Any]:
    """Returns the values that a function's names stand for: globals, variables of the functions around it, defaults."""
    named = [function.__globals__.get(name) for name in _global_names(function.__code__)]
    for cell in function.__closure__ or ():
        try:
            named.append(cell.cell_contents)
        except ValueError:  # empty
            continue
    return [*named, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def _global_names(code: CodeType) -> set[str]:
    """Returns what a function's code, and that of the functions within it, loads as global (no attributes' names)."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return own.union(*(_global_names(inside) for inside in code.co_consts if isinstance(inside, CodeType)))


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """What is drawn within (by torch, NumPy or Python) is drawn again afterwards."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (what transformations draw from)
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
