"""Anybody's object -> a strategy: what keeps the contract already, or a plain Avalanche plugin or strategy class."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Annotated, Any

from pydantic import ConfigDict, Field, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, create_model

from engrams.strategies.contract import Hyperparameters, Strategy


class Arguments(Hyperparameters):
    """The arguments of somebody's constructor, as hyperparameters of the same names."""

    # An argument may be called anything and be of any type; what it is given is a number, a text or a list.
    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    def arguments(self) -> dict[str, Any]:
        """Returns them by name."""
        return {field.alias: getattr(self, name) for name, field in type(self).model_fields.items() if field.alias}


def as_strategy(found: object) -> Strategy:
    """Returns the strategy that an object is or makes.

    Args:
        found: a :class:`Strategy`; the class of an Avalanche plugin, which is added to plain training; or that of an
            Avalanche strategy, built with the arguments of a template. The arguments of a class's constructor that can
            be written in a file (numbers, texts, lists) are its hyperparameters; others keep their defaults.

    Raises:
        TypeError: it is none of these, or needs an object that no file can hold; the message says what came.
    """
    if isinstance(found, Strategy):
        return found
    from avalanche.core import BasePlugin
    from avalanche.training.templates import SupervisedTemplate

    if isinstance(found, BasePlugin):
        raise TypeError(
            f"this is one object of {type(found).__name__}; name the class, so that every run has one of its own"
        )
    if inspect.isclass(found) and issubclass(found, BasePlugin):
        return Strategy(
            summary=_first_line(found),
            plugin=lambda h: found(**h.arguments()),
            hyperparameters=_arguments_of(found, given=set()),
        )
    if inspect.isclass(found) and issubclass(found, SupervisedTemplate):
        given = set(inspect.signature(SupervisedTemplate.__init__).parameters)
        return Strategy(
            summary=_first_line(found),
            build=lambda h, template: found(**h.arguments(), **template),
            hyperparameters=_arguments_of(found, given),
        )
    raise TypeError(
        f"this is {type(found).__name__ if not inspect.isclass(found) else f'the class {found.__name__}'}, and should "
        f"be an engrams.strategies.Strategy, or the class of an Avalanche plugin or strategy"
    )


def _first_line(found: type) -> str:
    # A class without a docstring would show its parent's.
    return (vars(found).get("__doc__") or found.__name__).strip().partition("\n")[0]


def _arguments_of(found: type, given: set[str]) -> type[Arguments]:
    try:
        hints = typing.get_type_hints(found.__init__)  # type: ignore[misc]
    except Exception:  # a name that its file imports for type checkers only
        hints = {}
    fields: dict[str, Any] = {}
    for index, parameter in enumerate(inspect.signature(found).parameters.values()):
        settable = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if not settable or parameter.name in given:
            continue
        if parameter.default is parameter.empty:
            default: Any = ...
            if _is_of_objects(hints.get(parameter.name, Any)):
                raise TypeError(
                    f"its argument {parameter.name!r} needs an object, and a file holds numbers, texts and lists: give "
                    f"it a default, or name an engrams.strategies.Strategy whose build or plugin makes the object"
                )
        elif _can_be_written(parameter.default):
            default = parameter.default
        else:
            continue
        # Its name may be one that pydantic has for itself.
        kind = _with_lists(_kind(hints.get(parameter.name, Any), default))
        fields[f"argument_{index}"] = (kind, Field(default, alias=parameter.name))
    return create_model(f"{found.__name__}Arguments", __base__=Arguments, **fields)


def _is_of_objects(hint: Any) -> bool:
    """Tells whether a hint is a class of whose values none can be written in a file, as far as pydantic knows."""
    if within := typing.get_args(hint):  # list[nn.Module]
        return any(map(_is_of_objects, within)) and not any(one in (type(None), Any) for one in within)
    if not inspect.isclass(hint):  # any word may be written there
        return False
    try:
        TypeAdapter(hint)
    except PydanticUserError as error:  # or a class that it does not take for a reason of its own
        return isinstance(error, PydanticSchemaGenerationError)
    return False


def _kind(hint: Any, default: Any) -> Any:
    """Returns what an argument may be: what its hint says, as far as its own default keeps to that."""
    try:
        optional = hint | None
        TypeAdapter(optional, config=Arguments.model_config).validate_python(None if default is ... else default)
    except Exception:  # or there is no telling what the hint allows: it may be a function, as np.array is
        return Any
    return optional if default is None else hint


def _with_lists(hint: Any) -> Any:
    """Returns a hint that allows lists wherever this one has tuples, and the reverse: a file has lists alone."""
    kind = typing.get_origin(hint) or hint
    if within := typing.get_args(hint):
        whole = typing.Union if kind is types.UnionType else kind
        hint = whole[tuple(map(_with_lists, within))]
    return Annotated[hint, Field(strict=False)] if kind in (tuple, list) else hint


def _can_be_written(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_can_be_written, value))
    return value is None or isinstance(value, bool | int | float | str)
