"""A protocol by name or by file.

``protocols/NAME.toml`` holds one protocol, or one for each of several scenarios (``NAME/task``, ...); anybody's own
file holds the same, and may say ``extends = "NAME"`` to change some values of another. Beside a file,
``chosen/NAME.toml`` or ``chosen/NAME/SCENARIO.toml`` holds the hyperparameters that ``engrams search`` chose on the
validation stream, with their evidence.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from engrams.benchmarks.data import names as data_names
from engrams.benchmarks.errors import UnknownName
from engrams.benchmarks.names import check_strategy_name
from engrams.benchmarks.protocols.dotted import flattened, set_below
from engrams.benchmarks.protocols.problems import MISSING, Problem, ProtocolError, problem_of
from engrams.benchmarks.protocols.protocol import FOLDER, Protocol
from engrams.benchmarks.protocols.schema import KINDS, Choice, ProtocolFile
from engrams.reports.errors import UserError, near_or
from engrams.reports.wandb import FOLDER as WANDB_FOLDER
from engrams.strategies import catalogue, references
from engrams.strategies.references import BadReference

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

COPIED = (
    "title",
    "dataset",
    "images",
    "stream",
    "network",
    "training",
    "generation",
    "judging",
    "gan",
    "strategies",
    "sources",
)
"""From a file to each of its protocols."""
NUMBERED = ("images", "stream", "network", "training", "generation", "judging", "gan", "strategies")
"""The tables of a file whose numbers have sources."""
NAMED = ("dataset", "benchmark")
"""What may lead to a file or function of one's own."""
SET_BY_HAND = "set by hand"


def names() -> list[str]:
    """Returns the name of every protocol that comes with Engrams, sorted."""
    return sorted(name for path in FOLDER.glob("*.toml") for name in _names_in(path, read_toml(path)))


def listed() -> list[tuple[str, str, str]]:
    """Returns (name, what it is, data set) of every protocol that comes with Engrams, by name."""
    return sorted(
        (one.name, f"{one.title}; {one.scenario}-incremental", one.dataset)
        for path in FOLDER.glob("*.toml")
        for one in read(path)
    )


def as_toml(protocol: Protocol) -> str:
    """Returns a protocol as a file has it, to start one's own from.

    The hyperparameters that a search chose stand among the others, and ``[sources]`` says so.
    """
    named = "benchmark" if protocol.stream.kind == "benchmark" else "dataset"
    tables: dict[str, Any] = {"title": protocol.title, named: protocol.dataset}
    for table in ("images", "stream", "network", "training", "generation", "judging", "gan"):
        value = getattr(protocol, table)
        if value is not None:
            tables[table] = value.model_dump(mode="json", exclude_none=True)
    if "scenarios" in tables["stream"]:
        tables["stream"]["scenarios"] = [protocol.scenario]
    if "kind" not in tables["network"]:
        tables["network"] = {"kind": "mlp", **tables["network"]}
    chosen = {name: choice.hyperparameters for name, choice in protocol.chosen.items()}
    tables["strategies"] = {
        name: protocol.strategies.get(name, {}) | chosen.get(name, {}) for name in sorted(protocol.strategies | chosen)
    }
    found = {
        f"strategies.{name}.{key}": _source_of(protocol.chosen[name], key)
        for name, values in chosen.items()
        for key in values
    }
    tables["sources"] = protocol.sources | found
    return tomli_w.dumps(tables)


def _source_of(choice: Choice, key: str) -> str:
    source = f"chosen by {choice.evidence.get('command', 'engrams search')}"
    return f"{source}, at the {end} end of what was tried" if (end := choice.end_of_range(key)) else source


def of_protocol(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those settings that are a protocol's and not a strategy's: ``training.epochs``, ``dataset``."""
    tables = tuple(f"{table}." for table in NUMBERED)  # a strategy may have a hyperparameter called 'network'
    return {key: value for key, value in settings.items() if key in NAMED or key.startswith(tables)}


def get(reference: str, settings: Mapping[str, Any] | None = None) -> Protocol:
    """Returns a protocol.

    Args:
        reference: a name that ``engrams list`` shows, or the path of a file (``my.toml``; ``my.toml/class`` where it
            has several scenarios).
        settings: dotted key -> value, in place of the file's (``training.epochs``).

    Raises:
        UnknownName: there is no such protocol; a near name is suggested.
        ProtocolError: the file is missing or wrong, or a setting is.
    """
    path, scenario = _located(reference)
    found = {protocol.name: protocol for protocol in read(path, settings)}
    name = f"{path.stem}/{scenario}" if scenario else path.stem
    if name in found:
        return found[name]
    if path.parent == FOLDER and scenario and reference not in names():
        raise UnknownName("protocol", reference, names())
    where = path.stem if path.parent == FOLDER else path
    several = ", ".join(f"{where}/{one.scenario}" for one in found.values()) if len(found) > 1 else str(where)
    settled = " with what is set" if settings else ""
    raise ProtocolError(f"{reference}: it has {len(found)} protocol(s){settled}; name one: {several}")


def _located(reference: str) -> tuple[Path, str]:
    """The file, and the scenario or ''."""
    before, found, scenario = reference.rpartition(".toml/")
    if found or reference.endswith(".toml"):
        path = Path(f"{before}.toml" if found else reference).expanduser().absolute()
        if not os.path.isfile(path):  # noqa: PTH113 (of a name that is too long, pathlib says that, and not no)
            raise ProtocolError(f"{reference}: there is no file {path}")
        return path, scenario if found else ""
    name, _, scenario = reference.partition("/")
    path = FOLDER / f"{name}.toml"
    if not os.path.isfile(path):  # noqa: PTH113
        raise UnknownName("protocol", reference, names())
    return path, scenario


def read(path: Path, settings: Mapping[str, Any] | None = None) -> list[Protocol]:
    """Returns the protocols of one file, one a scenario; of a single scenario the name says nothing.

    Args:
        path: of the file.
        settings: dotted key -> value, in place of the file's.

    Raises:
        ProtocolError: the file is no TOML, has an unknown key, a value of the wrong type or out of range, a strategy
            that does not exist, or a number without a source; or it is called as one of Engrams' own, or as W&B's
            folders.
    """
    content = _extended(path, read_toml(path))
    comes_with_engrams = path.parent == FOLDER
    if not comes_with_engrams and (FOLDER / path.name).exists():
        raise ProtocolError(f"{path}: {path.stem} is the name of a protocol of Engrams; call the file something else")
    if path.stem == WANDB_FOLDER:
        raise ProtocolError(
            f"{path}: folders called {path.stem} are W&B's, and no records are looked for in them; call the file "
            f"something else"
        )
    changed = dict(settings or {})
    by_hand: dict[str, Any] = {}
    for key, value in changed.items():
        if key.startswith("strategies."):
            raise ProtocolError(f"--set {key}: write the hyperparameter alone, as in ewc_lambda=10")
        if key == "stream.scenarios":
            raise ProtocolError(f"--set {key}: name the scenario in place of it, as in {path.stem}/class")
        set_below(by_hand, key.split("."), _absolute("--set", Path.cwd(), key, value))
    content = _merged(content, by_hand)  # at once: what is set beside another kind is of that kind
    try:
        file = ProtocolFile.model_validate(content)
    except ValidationError as error:
        problem = problem_of(error, KINDS)
        if wrong := next((key for key in problem.keys if key in changed), ""):
            known = flattened(content).keys() - changed.keys()
            hint = near_or("", wrong, known) if problem.what == "unknown key" else ""
            raise ProtocolError(f"--set {problem}{hint and f'; {hint}'}") from error
        if not changed:
            raise ProtocolError(f"{path}: {problem}") from error
        read(path)  # what is wrong with the file alone is said of it
        raise ProtocolError(_contradicted(problem, changed)) from error
    _check_strategies(path, file.strategies)
    _check_strategies(path, file.training.learning_rate_of, "training.learning_rate_of", changed)
    strategies = {catalogue.short_name(name): values for name, values in file.strategies.items()}
    training = file.training
    if training.learning_rate_of:
        rates = {catalogue.short_name(name): rate for name, rate in training.learning_rate_of.items()}
        training = training.model_copy(update={"learning_rate_of": rates})
    if comes_with_engrams and not changed:
        _check_sources(path, file)
    sources = file.sources | dict.fromkeys(changed, SET_BY_HAND)
    protocols = []
    for scenario in file.stream.scenarios:
        name = path.stem if len(file.stream.scenarios) == 1 else f"{path.stem}/{scenario}"
        protocols.append(
            Protocol(
                name=name,
                scenario=scenario,
                chosen=_chosen(path, scenario, name),
                file=path,
                changed=changed,
                **{key: getattr(file, key) for key in COPIED}
                | {"sources": sources, "strategies": strategies, "training": training},
            )
        )
    return protocols


def _contradicted(problem: Problem, changed: Mapping[str, Any]) -> str:
    """Returns which of the settings do not go with the file or with each other: those of the problem's tables."""
    tables = {key.partition(".")[0] for key in problem.keys}
    concerned = [key for key in changed if key.partition(".")[0] in tables] or list(changed)
    advice = f"; set {'it' if len(problem.keys) == 1 else 'them'}, too" if problem.what == MISSING else ""
    return f"{' '.join(f'--set {key}={changed[key]}' for key in concerned)}: {problem}{advice}"


def _names_in(path: Path, content: dict[str, Any]) -> Iterator[str]:
    """Cheaper than to check everything in the file, which is done when it is used."""
    stream = content.get("stream", {})
    scenarios = stream.get("scenarios", ["domain"]) if isinstance(stream, dict) else []
    yield from [path.stem] if len(scenarios) == 1 else [f"{path.stem}/{scenario}" for scenario in scenarios]


# --- one file that changes another ------------------------------------------------------------------------------------


def _extended(path: Path, content: dict[str, Any], extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's content, over that of the one that it extends; paths in each are relative to its own folder."""
    if path in extending:
        raise ProtocolError(f"{path}: extends: a protocol cannot extend itself, be it by way of {extending[-1]}")
    content = dict(content)
    for key in (*NAMED, "network.kind"):
        table, _, rest = key.rpartition(".")
        place = content.get(table) if table else content
        if isinstance(place, dict) and rest in place:
            set_below(content, key.split("."), _absolute(str(path), path.parent, key, place[rest]))
    if "extends" not in content:
        return content
    base_path = _base_of(path, content)
    base = _extended(base_path, read_toml(base_path), (*extending, path))
    own = {key: value for key, value in content.items() if key != "extends"}
    for table in NUMBERED:
        for key in _numbers(own.get(table, {})):
            base.setdefault("sources", {}).setdefault(f"{table}.{key}", f"{path.name}")
    if "benchmark" in own and "benchmark" not in base:  # in place of the data and of what is made of them
        base = {key: value for key, value in base.items() if key not in ("dataset", "images", "stream")}
    return _merged(base, own)


def _absolute(source: str, folder: Path, key: str, value: Any) -> Any:
    """The value; where it is the name of one's own data or network, with a path relative to the folder."""
    if not isinstance(value, str) or ":" not in value or key not in (*NAMED, "network.kind"):
        return value
    try:
        return (data_names if key == "dataset" else references).absolute(value, folder)
    except BadReference as error:
        raise ProtocolError(f"{source}: {key}: {error}") from error


def _base_of(path: Path, content: dict[str, Any]) -> Path:
    extends = content["extends"]
    if not isinstance(extends, str):
        raise ProtocolError(f"{path}: extends: must be the name of a protocol or the path of a file")
    try:
        base, scenario = _located(str(path.parent / extends) if extends.endswith(".toml") else extends)
    except UnknownName as error:
        raise ProtocolError(f"{path}: extends: {error}") from error
    if scenario:
        raise ProtocolError(
            f"{path}: extends: {extends} is one scenario of {base.stem}; extend that and set stream.scenarios"
        )
    return base


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Table by table; a table of another kind takes the place of the whole, a learning rate that of each strategy's."""
    merged = dict(base)
    if "learning_rate" in own:
        merged.pop("learning_rate_of", None)
    for key, value in own.items():
        before = base.get(key)
        same_kind = (
            isinstance(value, dict)
            and isinstance(before, dict)
            and value.get("kind", before.get("kind")) == before.get("kind")
        )
        merged[key] = _merged(before or {}, value) if same_kind else value
    return merged


# --- what was chosen --------------------------------------------------------------------------------------------------


def _chosen(path: Path, scenario: str, name: str) -> dict[str, Choice]:
    """What was chosen beside the file, over what was beside the one that it extends."""
    content = read_toml(path)
    chosen: dict[str, Choice] = {}
    if "extends" in content:
        base = _base_of(path, content)
        several = len(list(_names_in(base, _extended(base, read_toml(base))))) > 1
        chosen = _chosen(base, scenario, f"{base.stem}/{scenario}" if several else base.stem)
        chosen = _without(chosen, content.get("strategies", {}))  # what the file itself sets goes before
    # The other was written when the file had fewer scenarios, or more; what no longer fits is stale, and is said to be.
    of_scenario = f"{path.stem}/{scenario}"
    for one in (path.stem, of_scenario) if name == of_scenario else (of_scenario, path.stem):
        own_file = chosen_path(one, path.parent)
        own = read_chosen(own_file)
        _check_strategies(own_file, {strategy: choice.hyperparameters for strategy, choice in own.items()})
        chosen |= own
    return chosen


def _without(chosen: dict[str, Choice], own: Mapping[str, Any]) -> dict[str, Choice]:
    set_here = {catalogue.short_name(name): flattened(values) for name, values in own.items()}
    kept = {
        name: {key: value for key, value in choice.hyperparameters.items() if key not in set_here.get(name, {})}
        for name, choice in chosen.items()
    }
    return {name: chosen[name].model_copy(update={"hyperparameters": kept[name]}) for name in kept if kept[name]}


def chosen_path(protocol: str, folder: Path = FOLDER) -> Path:
    """Returns where the hyperparameters chosen on a protocol's validation stream are kept."""
    return folder / "chosen" / f"{protocol}.toml"


def read_chosen(path: Path) -> dict[str, Choice]:
    """Returns strategy -> what was chosen for it; empty if nothing was yet.

    Raises:
        ProtocolError: the file is not what a search writes.
    """
    if not path.exists():
        return {}
    try:
        chosen = TypeAdapter(dict[str, Choice]).validate_python(read_toml(path))
        return {name: choice.model_copy(update={"file": str(path)}) for name, choice in chosen.items()}
    except ValidationError as error:
        raise ProtocolError(f"{path}: {problem_of(error, KINDS)}; delete it and search again") from error


def read_toml(path: Path) -> dict[str, Any]:
    """Returns a TOML file's content.

    Raises:
        ProtocolError: it is no TOML, or cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Notepad begins a file with a mark
    except tomllib.TOMLDecodeError as error:  # its message names line and column
        raise ProtocolError(f"{path}: not valid TOML: {error}") from error
    except (ValueError, OSError, RecursionError) as error:  # no text, a number without end, tables without end
        raise ProtocolError(f"{path}: cannot be read: {error}") from error


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_sources(path: Path, file: ProtocolFile) -> None:
    """Every number has a source, an entry for its dotted key or for a table above it; and every source a setting."""
    settings = file.model_dump(mode="json", include=set(NUMBERED), exclude_unset=True)
    for key in _numbers(settings):
        if not any(key == source or key.startswith(f"{source}.") for source in file.sources):
            raise ProtocolError(f"{path}: {key} has no source; say in [sources] where the number comes from")
    for source in file.sources:
        if not any(key == source or key.startswith(f"{source}.") for key in [*flattened(settings), *NAMED]):
            raise ProtocolError(f"{path}: sources.{source}: unknown key: there is no such setting in this file")


def _numbers(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        yield from {key for inner in value if isinstance(inner, int | float)}
    elif isinstance(value, int | float):
        yield key


def _check_strategies(
    path: Path, strategies: Mapping[str, Any], table: str = "strategies", changed: Collection[str] = ()
) -> None:
    """A strategy that is set must exist; its values are checked when it is run, since that means to read its file."""
    for name in strategies:
        try:
            check_strategy_name(name)
        except UserError as error:
            key = f"{table}.{name}"
            where = f"--set {key}" if key in changed else f"{path}: {key}"
            raise ProtocolError(f"{where}: {error}") from error
