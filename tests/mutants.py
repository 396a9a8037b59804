"""Changes `strategies/`, one small change at a time, and tells which changes no test notices.

    python -m tests.mutants                          all of it: hours
    python -m tests.mutants strategies/ewc.py        one file
    python -m tests.mutants --list strategies/ewc.py only show what would be changed
    python -m tests.mutants --again printed.txt      what survived an earlier run, whose output this file holds

A change is an operator, a comparison, a number, a condition, an argument or a statement (:func:`mutants_of`). The tests
are run once on code that tells which statements run, to know which of them reach which; each change is then met by
these alone, the quickest first, in a process of its own that holds the changed code: no file is written. A change
that no test notices survives, and must be listed in ``tests/mutants.toml`` with the reason why it changes nothing that
counts.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import copy
import gc
import importlib
import importlib.machinery
import os
import pickle
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
LISTED = ROOT / "tests" / "mutants.toml"
TESTS = (
    "acgan",
    "avalanche_generative_replay",
    "baselines",
    "checkpoints",
    "copies",
    "costs",
    "dark_replay",
    "densities",
    "dgr",
    "entries",
    "ewc",
    "experience_replay",
    "gaussian",
    "generators",
    "importance",
    "kept",
    "layer_gradients",
    "mas",
    "mergan",
    "penalties",
    "penalties_everywhere",
    "penalties_notice",
    "promises",
    "replay_streams",
    "streaming_lda",
)
"""Of ``tests/test_*.py``: those that reach ``strategies/`` in their own process, and quickly."""
NOT_CHANGED = ("__init__.py", "catalogue.py", "contract.py", "entries.py", "joined.py", "own.py", "references.py")
"""How strategies are named and listed, which has tests of its own kind: command lines."""
SHORTEST_LIMIT = 40.0
"""Seconds that a change's tests may take at least before it counts as noticed: it loops, or crawls."""
FIRST = 10
"""Tests that meet a change before all others are collected: most changes are noticed by the quickest few."""
QUICKLY = [
    "-x",
    "-q",
    "--assert=plain",
    *(f"-pno:{name}" for name in ("cacheprovider", "unraisableexception", "anyio")),
]
"""What pytest need not do in every one of many processes."""

# --- changes ----------------------------------------------------------------------------------------------------------

OPPOSITES: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
COUNTERPARTS = {
    "mean": "sum",
    "sum": "mean",
    "max": "min",
    "min": "max",
    "amax": "amin",
    "argmax": "argmin",
    "eval": "train",
    "train": "eval",
    "zeros": "ones",
    "ones": "zeros",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
    "randperm": "arange",
}
KEYWORDS_LEFT_ALONE = {"strict", "fused", "device", "stacklevel"}
"""An assertion of ``zip``; the same update in fewer passes; on a CPU, where the tests run, the same; of a warning."""
LEFT_OUT = {"abs", "square", "exp", "sqrt", "sigmoid", "softmax", "log_softmax", "detach", "clone", "clamp_min", "tanh"}
"""Methods for which x stands in place of x.method()."""


@dataclass(eq=False)
class Mutant:
    """One change of one file."""

    file: str
    lines: range
    """Of the statement that is changed."""
    around: range
    """Of the function that it belongs to, its arguments' defaults and decorators included."""
    in_function: bool
    """Whether it runs when a function is called; else, when the file is imported."""
    where: str
    """The function, with its class."""
    change: str
    tree: ast.Module = field(repr=False)
    """Of the file, as it is."""
    old: ast.AST = field(repr=False)
    new: ast.AST = field(repr=False)

    def changed(self) -> ast.Module:
        """Changes the tree, which is for a process of its own, and returns it."""
        return ast.fix_missing_locations(_Swap(self.old, self.new).visit(self.tree))

    @property
    def place(self) -> str:
        """As it is shown."""
        return f"{self.file}:{self.lines.start}: {self.where}: {self.change}"

    @property
    def key(self) -> str:
        """By which it is listed; lines may move."""
        return f"{self.file}: {self.where}: {self.change}"


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yields every change of a file.

    Operators and comparisons become their opposites; numbers grow by one, True and False change places; conditions are
    negated, ``not`` and minus signs left out; keyword arguments are left out, so that the default stands; functions
    become their counterparts (mean and sum, eval and train, ...) or are left out; so are statements that are calls or
    augmented assignments, and ``no_grad``. Strings, annotations, warnings and errors are left as they are.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    seen: Counter[str] = Counter()
    for place, node in _changeable(tree, Place("module", range(0), range(0), False)):
        where = place.where
        for new in _changes(node):
            change = f"{_text(node)} -> {_text(new)}"
            seen[where + change] += 1
            if seen[where + change] > 1:
                change += f" ({seen[where + change]})"
            file = path.relative_to(ROOT).as_posix()
            yield Mutant(file, place.lines, place.around, place.in_function, place.where, change, tree, node, new)


class Place(NamedTuple):
    """Where a change is made: as in :class:`Mutant`."""

    where: str
    lines: range
    around: range
    in_function: bool


def _changeable(node: ast.AST, place: Place) -> Iterator[tuple[Place, ast.AST]]:
    """Yields everything below a node that may be changed, and where it is."""
    if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr) or _left_alone(node):
        return
    if isinstance(node, ast.stmt):
        # A statement that holds others ends where its own expressions do.
        body = getattr(node, "body", None)
        end = max(body[0].lineno - 1, node.lineno) if body else (node.end_lineno or node.lineno)
        place = place._replace(lines=range(node.lineno, end + 1))
    inside = place
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        where = node.name if place.where == "module" else f"{place.where}.{node.name}"
        place = place._replace(where=where, around=range(node.lineno, (node.end_lineno or node.lineno) + 1))
        inside = place._replace(in_function=place.in_function or isinstance(node, ast.FunctionDef))
    yield place, node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _changeable(child, inside if name == "body" else place)


def _left_alone(node: ast.AST) -> bool:
    """Tells whether it is a type, a warning, what only a type checker reads, or what lists a strategy."""
    if isinstance(node, ast.ClassDef):
        return any("Hyperparameters" in ast.unparse(base) for base in node.bases)
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith(("ENTRIES", "_LAMBDAS")):
        return True
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    if isinstance(node, ast.Assign):
        return ast.unparse(node.value).startswith(("Literal[", "Callable[", "dict[", "Annotated["))
    if isinstance(node, ast.Expr):
        return ast.unparse(node).startswith(("warnings.warn(", "super().__init__()"))
    if isinstance(node, ast.keyword):
        return node.arg in KEYWORDS_LEFT_ALONE
    return isinstance(node, ast.Assert)


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """Yields what may stand in a node's place."""

    def but(**fields: Any) -> ast.AST:
        new = copy.copy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in OPPOSITES:
        yield but(op=OPPOSITES[type(node.op)]())
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            yield but(ops=[*node.ops[:place], OPPOSITES[type(operator)](), *node.ops[place + 1 :]])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield but(value=not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield but(value=node.value + 1)
    if isinstance(node, ast.If | ast.IfExp | ast.While | ast.comprehension):
        if isinstance(node, ast.comprehension):
            if node.ifs:
                yield but(ifs=[])
        elif not isinstance(node.test, ast.Compare | ast.UnaryOp):  # these have their opposites
            yield but(test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Call):
        for place, keyword in enumerate(node.keywords):
            if keyword.arg and keyword.arg not in KEYWORDS_LEFT_ALONE:
                yield but(keywords=node.keywords[:place] + node.keywords[place + 1 :])
        if isinstance(node.func, ast.Attribute):
            if node.func.attr in COUNTERPARTS:
                yield but(func=ast.Attribute(node.func.value, COUNTERPARTS[node.func.attr], ast.Load()))
            if node.func.attr in LEFT_OUT:
                yield node.func.value
    if isinstance(node, ast.FunctionDef) and any("no_grad" in ast.unparse(one) for one in node.decorator_list):
        yield but(decorator_list=[])
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.YieldFrom)
    if is_call or isinstance(node, ast.AugAssign):
        yield ast.copy_location(ast.Pass(), node)


class _Swap(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def _text(node: ast.AST) -> str:
    """Returns the code of an expression, or of a statement without what it holds."""
    if isinstance(node, ast.comprehension):
        return ast.unparse(node).strip()
    lines = ast.unparse(node).splitlines()
    return " ".join(lines[:2]) if isinstance(node, ast.FunctionDef) else lines[0]


# --- which test reaches what ------------------------------------------------------------------------------------------


class Reach:
    """Runs the tests on code that tells which of its statements run. A plugin of pytest."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.lines: dict[str, set[tuple[str, int]]] = defaultdict(set)
        """Test -> (file, line) of every statement in a function that it runs."""
        self.seconds: dict[str, float] = {}
        self._test = ""

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        began, self._test = time.perf_counter(), item.nodeid
        yield
        self.seconds[item.nodeid], self._test = time.perf_counter() - began, ""

    def reached(self, file: str, line: int) -> None:
        self.lines[self._test].add((file, line))

    def seconds_of(self, mutant: Mutant) -> float:
        """Returns how long the tests take that reach a change, if none of them fails."""
        return sum(self.seconds[test] for test in self.of(mutant))

    @cache  # noqa: B019 (one object a process)
    def of(self, mutant: Mutant) -> list[str]:
        """Returns the tests that reach a change: those of the file's own tests first, the quickest first.

        Of each test function comes one, then another one, and so on. No more of them than ``most``, if that is given. A
        default or a constant is read when the file is imported, and all tests may reach it: those that run what it
        belongs to come first.
        """
        times: Counter[str] = Counter()
        order: dict[str, tuple[int, float]] = {}
        wanted = {(mutant.file, line) for line in mutant.lines}
        for test in sorted(self.seconds, key=self.seconds.__getitem__):
            if not mutant.in_function or wanted & self.lines[test]:
                function = test.partition("[")[0]
                times[function] += 1
                order[test] = times[function], self.seconds[test]
        near = set() if mutant.in_function else {(mutant.file, line) for line in mutant.around}
        own = f"test_{Path(mutant.file).stem}.py"
        return sorted(order, key=lambda test: (not near & self.lines[test], own not in test, *order[test]))[: self.most]


class _Telling(ast.NodeTransformer):
    """Puts a call of ``_reached_`` before every statement of every function."""

    def __init__(self, file: str):
        self.file = file

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        start = 1 if ast.get_docstring(node, clean=False) is not None and len(node.body) > 1 else 0
        node.body = [*node.body[:start], *self._told(node.body[start:])]
        return node

    def _told(self, body: list[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for statement in body:
            if isinstance(statement, ast.FunctionDef):
                self.visit_FunctionDef(statement)
            else:
                for name in ("body", "orelse", "finalbody"):
                    if getattr(statement, name, None):
                        setattr(statement, name, self._told(getattr(statement, name)))
                for handler in getattr(statement, "handlers", ()):
                    handler.body = self._told(handler.body)
            arguments: list[ast.expr] = [ast.Constant(self.file), ast.Constant(statement.lineno)]
            told = ast.Expr(ast.Call(ast.Name("_reached_", ast.Load()), arguments, []))
            found += [ast.copy_location(told, statement), statement]
        return found


@cache
def _strategies_file(path: str) -> str | None:
    """Returns its name from the repository's root on, or None if it is another's file."""
    real = os.path.realpath(path)
    inside = real.startswith(str(ROOT / "strategies") + os.sep)
    return Path(real).relative_to(ROOT).as_posix() if inside else None


def import_instead(code: Callable[[str, str], CodeType | None]) -> None:
    """From now on a file of strategies/ is imported as what ``code(file, path)`` makes of it, or as it is if None."""
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(self, fullname):
        file = _strategies_file(self.path)
        return (code(file, self.path) if file else None) or original(self, fullname)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]


def reach_of(tests: Sequence[str], most: int | None = None) -> Reach:
    """
    Raises:
        SystemExit: a test fails as things are.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "reach.pickle"
        child = os.fork()
        if not child:
            reach = Reach()
            builtins._reached_ = reach.reached  # type: ignore[attr-defined]

            def telling(file: str, path: str) -> CodeType:
                tree = _Telling(file).visit(ast.parse(Path(path).read_text(encoding="utf-8")))
                return compile(ast.fix_missing_locations(tree), path, "exec")

            import_instead(telling)
            code = pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[reach])
            found.write_bytes(pickle.dumps((dict(reach.lines), reach.seconds)))
            os._exit(int(code))
        if os.waitpid(child, 0)[1]:
            sys.exit("the tests must pass before anything is changed")
        reach = Reach(most)
        lines, reach.seconds = pickle.loads(found.read_bytes())
        reach.lines.update(lines)
    return reach


# --- running ----------------------------------------------------------------------------------------------------------

NOTICED, SURVIVED, NOT_IN_PLACE = 1, 0, 77
"""What the process that meets a change ends with."""


def meet(
    mutants: Sequence[Mutant], verdict: Callable[[Mutant], int], reach: Reach, processes: int
) -> Iterator[tuple[Mutant, int]]:
    """Yields each change with its verdict, which a process of its own finds; with NOTICED if that takes too long."""
    waiting = list(reversed(mutants))
    running: dict[int, tuple[Mutant, float]] = {}
    while waiting or running:
        while waiting and len(running) < processes:
            mutant = waiting.pop()
            child = os.fork()
            if not child:
                os.setsid()
                nowhere = os.open(os.devnull, os.O_RDWR)
                for stream in (0, 1, 2):
                    os.dup2(nowhere, stream)
                try:
                    os._exit(verdict(mutant))
                finally:
                    os._exit(NOTICED)
            running[child] = mutant, time.monotonic() + max(SHORTEST_LIMIT, 5 * reach.seconds_of(mutant))
        time.sleep(0.01)
        for child, (mutant, deadline) in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended and time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                ended, status = os.waitpid(child, 0)
            if ended:
                del running[child]
                code = os.waitstatus_to_exitcode(status)
                yield mutant, code if code in (SURVIVED, NOT_IN_PLACE) else NOTICED


class InPlace:
    """Meets changes with tests that are collected once. A plugin of pytest.

    The process that meets a change gives the functions that exist already their changed code, so that nothing is
    imported or collected again.
    """

    def __init__(self, reach: Reach, meet_all: Callable[[Callable[[Mutant], int]], None]):
        self.reach, self.meet_all = reach, meet_all
        self.items: dict[str, pytest.Item] = {}
        self.functions: dict[tuple[str | None, str, int], list[FunctionType]] = defaultdict(list)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        for path in (ROOT / "strategies").rglob("*.py"):  # those too that are imported when they are needed
            importlib.import_module(".".join(["engrams", *path.relative_to(ROOT).with_suffix("").parts]))
        for one in gc.get_objects():
            if type(one) is FunctionType and (file := _strategies_file(one.__code__.co_filename)):
                self.functions[file, one.__code__.co_name, one.__code__.co_firstlineno].append(one)
        gc.freeze()
        gc.disable()
        self.meet_all(self.verdict)
        return True

    def verdict(self, mutant: Mutant) -> int:
        """Runs the tests on a change, in a process that may be spoiled by it."""
        if not self._put_in_place(mutant):
            return NOT_IN_PLACE
        items = [self.items[test] for test in self.reach.of(mutant)]
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            if item.session.testsfailed:
                return NOTICED
        return SURVIVED

    def _put_in_place(self, mutant: Mutant) -> bool:
        """Changes the code of what a change is in; tells whether it is all in functions that exist by now."""
        path = str(ROOT / mutant.file)
        as_is = set(_functions_in(compile(mutant.tree, path, "exec")))
        changed = False
        for code in _functions_in(compile(mutant.changed(), path, "exec")):
            if code not in as_is:
                for function in self.functions[mutant.file, code.co_name, code.co_firstlineno]:
                    function.__code__ = code
                    changed = True
        return mutant.in_function and changed


def _functions_in(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if not constant.co_name.startswith("<"):
                yield constant
            yield from _functions_in(constant)


def met_in_place(mutants: Sequence[Mutant], reach: Reach, processes: int) -> Iterator[tuple[Mutant, int]]:
    """Yields changes with their verdicts, from a process that has collected all tests."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        place = {mutant: number for number, mutant in enumerate(mutants)}

        def meet_all(verdict: Callable[[Mutant], int]) -> None:
            for mutant, code in meet(mutants, verdict, reach, processes):
                os.write(writing, f"{place[mutant]} {code}\n".encode())

        files = sorted({test.partition("::")[0] for test in reach.seconds})
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            pytest.main([*QUICKLY, *files], plugins=[InPlace(reach, meet_all)])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        for line in lines:
            number, code = map(int, line.split())
            yield mutants[number], code
    os.waitpid(child, 0)


def verdict_afresh(mutant: Mutant, tests: Sequence[str]) -> int:
    """Runs tests on changed code, in a process that must have imported nothing of it."""
    import_instead(lambda file, path: compile(mutant.changed(), path, "exec") if file == mutant.file else None)
    gc.disable()
    for some in (tests[:FIRST], tests[FIRST:]):
        if some and pytest.main([*QUICKLY, *some]):
            return NOTICED
    return SURVIVED


def survivors(mutants: Sequence[Mutant], reach: Reach, processes: int) -> Iterator[Mutant]:
    """Yields the changes that no test notices.

    What survives in place may owe it to something that was computed when the tests were collected, and what is run at
    import cannot be changed in place: both are tried afresh.
    """
    yield from (mutant for mutant in mutants if not reach.of(mutant))
    met = [mutant for mutant in mutants if reach.of(mutant)]
    left = []
    for number, (mutant, code) in enumerate(met_in_place(met, reach, processes), start=1):
        if code != NOTICED:
            left.append(mutant)
        if code == SURVIVED:
            print(f"survived, to be tried afresh: {mutant.place}", flush=True)
        if not number % 100:
            print(f"{number} of {len(met)} met", flush=True)
    for mutant, code in meet(left, lambda mutant: verdict_afresh(mutant, reach.of(mutant)), reach, processes):
        if code == SURVIVED:
            yield mutant


def main() -> None:
    """Says what survives; exits with 1 if something does that is not listed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="of strategies/; default: all")
    parser.add_argument("--list", action="store_true", help="show the changes and run nothing")
    parser.add_argument(
        "--tests", nargs="+", default=TESTS, help="which tests/test_*.py are to notice; default: all that could"
    )
    parser.add_argument("--again", type=Path, help="what an earlier run printed: take only what survived it")
    parser.add_argument("--every", type=int, default=1, help="take only every n-th change, for a quick estimate")
    parser.add_argument("--most", type=int, help="tests that meet a change at most, for a quick estimate from below")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    files = [path.resolve() for path in options.files] or [
        path for path in sorted((ROOT / "strategies").rglob("*.py")) if path.name not in NOT_CHANGED
    ]
    mutants = [mutant for path in files for mutant in mutants_of(path)][:: options.every]
    if options.again:
        printed = options.again.read_text(encoding="utf-8")
        survived = {
            f"{file}: {rest}" for file, rest in re.findall(r"^survived.*?: (\S+):\d+: (.*)", printed, re.MULTILINE)
        }
        mutants = [mutant for mutant in mutants if mutant.key in survived]
    random.Random(0).shuffle(mutants)  # so that what was done when one stops it is a fair sample
    if options.list:
        print("\n".join(sorted(mutant.key for mutant in mutants)))
        return
    for slow in ("avalanche.training", "pandas", "sklearn.datasets", "torchvision"):
        importlib.import_module(slow)  # once, not in every process
    os.chdir(ROOT)
    reach = reach_of([f"tests/test_{name}.py" for name in options.tests], options.most)
    listed = tomllib.loads(LISTED.read_text(encoding="utf-8"))["equivalent"]
    met = [mutant for mutant in mutants if mutant.key not in listed]
    found = []
    for mutant in survivors(met, reach, options.processes):
        found.append(mutant)
        print(f"survived: {mutant.place}", flush=True)
    unnoticed = Counter(mutant.file for mutant in found)
    for file, count in Counter(mutant.file for mutant in met).items():
        print(f"{file}: {count - unnoticed[file]} of {count}")
    whole = not options.files and not options.again and options.every == 1
    stale = set(listed) - {mutant.key for mutant in mutants} if whole else set()
    for key in sorted(stale):
        print(f"listed, but there is no such change any more: {key}")
    print(
        f"{len(met) - len(found)} of {len(met)} changes noticed; "
        f"{len(mutants) - len(met)} more are listed as changing nothing"
    )
    sys.exit(bool(found or stale))


if __name__ == "__main__":
    main()
