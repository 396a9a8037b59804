"""Somebody's own functions, by module and by file."""

import ast
import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from engrams.strategies.references import BadReference, absolute, fingerprint, resolve


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder; what is imported from it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(Path(folder).absolute()) for folder in sys.path if folder])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it has times in seconds: files are written faster here
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))


def test_a_module_of_the_current_folder_and_an_installed_one(here):
    write(here / "mine" / "__init__.py", "")
    write(here / "mine" / "inner.py", "class A:\n    @staticmethod\n    def method(): return 7\n")
    assert resolve("mine.inner:A.method")() == 7
    assert resolve("json:dumps") is __import__("json").dumps


def test_a_file_is_run_once_and_imports_what_lies_beside_it(here):
    write(here / "there" / "beside.py", "VALUE = 3\n")
    write(
        here / "there" / "my file.py",
        """
        from __future__ import annotations
        from dataclasses import dataclass
        from beside import VALUE

        @dataclass
        class Point:
            x: int = VALUE
        """,
    )
    first = resolve("there/my file.py:Point")
    assert first().x == 3
    assert resolve(f"{here}/there/../there/my file.py:Point") is first


def test_a_file_may_resolve_what_is_in_it_while_it_runs(here):
    write(
        here / "mine.py",
        "from engrams.strategies.references import resolve\nx = object()\nsame = resolve('mine.py:x') is x\n",
    )
    assert resolve("mine.py:same")


def test_a_file_that_has_changed_is_run_again(here):
    write(here / "mine.py", "def f(): return 1\n")
    before = fingerprint("mine.py:f")
    assert resolve("mine.py:f")() == 1
    write(here / "mine.py", "def f(): return 2\n")
    assert resolve("mine.py:f")() == 2
    assert fingerprint("mine.py:f") != before


def test_a_helper_that_has_changed_is_read_again_by_all_that_import_it(here):
    write(here / "leaf.py", "x = 1\n")
    write(here / "lib" / "__init__.py", "")
    write(here / "lib" / "middle.py", "from leaf import x\n")
    write(here / "apart.py", "class A: pass\n")
    write(here / "late.py", "x = 1\n")
    write(here / "same.py", "class A: pass\n")
    write(here / "a.py", "import lib.middle, leaf, apart\ndef f():\n    import late, same\n    return leaf.x, late.x\n")
    write(here / "b.py", "import lib.middle\nx = lib.middle.x\n")
    write(here / "c.py", "from leaf import x\n")
    first, kept = resolve("a.py:f"), resolve("a.py:apart.A")
    assert (first(), resolve("b.py:x")) == ((1, 1), 1)
    assert resolve("a.py:f") is first
    same = sys.modules["same"]
    write(here / "leaf.py", "x = 23\n")
    assert resolve("c.py:x") == 23, "that has not been run before"
    assert (resolve("a.py:f")(), resolve("b.py:x"), resolve("a.py:lib.middle.x")) == ((23, 1), 23, 23)
    write(here / "late.py", "x = 45\n")
    assert resolve("a.py:f")() == (23, 45)
    write(here / "lib" / "__init__.py", "y = 6\n")
    assert (resolve("b.py:lib.y"), resolve("b.py:lib.middle.x")) == (6, 23)
    assert resolve("a.py:apart.A") is kept, "which has not changed"
    assert sys.modules["same"] is same, "nor has it, which was imported late"


def test_what_somebody_else_has_imported_since_is_kept_unless_it_has_changed(here):
    write(here / "nets.py", "class A: pass\n")
    write(here / "mine.py", "def f():\n    import nets\n    return nets.A\n")
    resolve("mine.py:f")
    a = importlib.import_module("nets").A
    write(here / "mine.py", "def f():  # a comment\n    import nets\n    return nets.A\n")
    assert resolve("mine.py:f")() is a


def test_a_late_import_that_has_changed_is_read_again_by_another_file_too(here):
    write(here / "late.py", "x = 1\n")
    for name in ("a.py", "b.py"):
        write(here / name, "def f():\n    import late\n    return late.x\n")
    assert resolve("a.py:f")() == 1
    write(here / "late.py", "x = 23\n")
    assert (resolve("b.py:f")(), resolve("a.py:f")()) == (23, 23)


def test_each_file_is_parsed_once(here, monkeypatch):
    names = [f"helper_{place}" for place in range(60)]
    for place, name in enumerate(names):
        write(here / f"{name}.py", "".join(f"import {one}\n" for one in names[place + 1 :]) + f"x = {place}\n")
    write(here / "mine.py", "import helper_0\nx = helper_0.x\n")
    parsed = []
    parse = ast.parse
    monkeypatch.setattr(
        ast, "parse", lambda source, *more, **named: parsed.append(source) or parse(source, *more, **named)
    )
    for _ in range(2):
        fingerprint("mine.py:x")
        resolve("mine.py:x")
        resolve("mine:x")
    assert len(parsed) == 61
    write(here / "helper_59.py", "x = 60\n")
    assert resolve("mine.py:helper_0.helper_59.x") == 60
    assert len(parsed) == 62


def test_a_fingerprint_does_not_hang_on_what_was_resolved_before(here):
    """The current folder is on ``sys.path`` under ``python -m``, not in a console script."""
    write(here / "common.py", "x = 1\n")
    write(here / "strategies" / "mine.py", "from common import x\n")
    before = fingerprint("strategies/mine.py:x")
    assert resolve("strategies/mine.py:x") == 1
    assert resolve("json:dumps")
    assert fingerprint("strategies/mine.py:x") == before
    write(here / "common.py", "x = 23\n")
    assert fingerprint("strategies/mine.py:x") != before


def test_a_module_of_ones_own_that_has_changed_is_read_again(here):
    write(here / "mine" / "__init__.py", "")
    write(here / "mine" / "inner.py", "from mine.other import y\nx = 1\n")
    write(here / "mine" / "other.py", "y = 1\n")
    assert (resolve("mine.inner:x"), resolve("mine.inner:y")) == (1, 1)
    assert resolve("mine.inner:x.__class__") is int
    write(here / "mine" / "inner.py", "from mine.other import y\nx = 23\n")
    assert (resolve("mine.inner:x"), resolve("mine.inner:y")) == (23, 1)
    write(here / "mine" / "other.py", "y = 45\n")
    assert (resolve("mine.inner:x"), resolve("mine.inner:y")) == (23, 45)
    kept = resolve("mine:inner")
    assert resolve("mine:inner") is kept


def test_a_helper_is_read_again_after_a_file_that_failed_was_mended(here):
    write(here / "helper.py", "x = 1\n")
    write(here / "mine.py", "from helper import x\nraise ValueError\n")
    with pytest.raises(BadReference, match="importing it fails"):
        resolve("mine.py:x")
    write(here / "helper.py", "x = 23\n")
    write(here / "mine.py", "from helper import x\n")
    assert resolve("mine.py:x") == 23


def test_another_process_unpickles_what_it_resolves(here):
    write(here / "mine.py", "class Point:\n    def __init__(self, x): self.x = x\n")
    (here / "pickled").write_bytes(pickle.dumps(resolve("mine.py:Point")(5)))
    script = "import pickle; from engrams.strategies.references import resolve; resolve('mine.py:Point'); "
    script += "print(pickle.loads(open('pickled', 'rb').read()).x)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "5\n", done.stderr


def test_the_fingerprint_is_that_of_the_file_however_it_is_named(here):
    """printf 'x = 1\\n' | sha256sum"""
    write(here / "mine.py", "x = 1\n")
    assert fingerprint("mine.py:x") == fingerprint("mine:x") == fingerprint(f"{here}/mine.py:x") == "9e26bf369911"


def test_what_a_file_of_ones_own_imports_is_in_its_fingerprint(here):
    write(here / "mine.py", "import numpy\nimport beside\n\ndef f():\n    import late\n    return late.x")
    write(here / "beside.py", "import package.inner\nx = 1\n")
    write(here / "late.py", "x = 1\n")
    write(here / "package" / "__init__.py", "")
    write(here / "package" / "inner.py", "from . import other\n")
    write(here / "package" / "other.py", "x = 1\n")
    write(here / "apart.py", "x = 1\n")
    seen = [fingerprint("mine.py:f")]
    for name in ("beside.py", "late.py", "package/inner.py", "package/other.py"):
        with (here / name).open("a") as file:
            file.write("y = 2\n")
        seen.append(fingerprint("mine.py:f"))
        assert fingerprint("mine:f") == seen[-1]
    assert len(set(seen)) == 5
    of_package = fingerprint("package.inner:other")
    write(here / "apart.py", "x = 2\n")
    assert (fingerprint("mine.py:f"), fingerprint("package.inner:other")) == (seen[-1], of_package)
    write(here / "package" / "other.py", "x = 3\n")
    assert fingerprint("package.inner:other") != of_package


def test_each_file_has_the_helper_beside_it_or_says_that_there_are_two_of_a_name(here):
    write(here / "utils.py", "x = 0\n")
    for place, name in enumerate(("a", "b"), start=1):
        write(here / name / "mine.py", "from utils import x\n")
        write(here / name / "utils.py", f"x = {place}\n")
    assert resolve("a/mine.py:x") == 1, "not that of the current folder"
    with pytest.raises(
        BadReference, match=r"it imports utils, which is .*/b/utils.py beside it, and .*/a/utils.py has"
    ):
        resolve("b/mine.py:x")
    done = subprocess.run(
        [sys.executable, "-c", "from engrams.strategies.references import resolve; print(resolve('b/mine.py:x'))"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "2\n", done.stderr
    write(here / "own" / "mine.py", "import json\nx = json.x\n")
    write(here / "own" / "json.py", "x = 1\n")
    with pytest.raises(BadReference, match=r"it imports json, .*has been read under that name before"):
        resolve("own/mine.py:x")


@pytest.mark.parametrize("name", ["utils", "lib.utils"])
def test_a_function_imports_the_helper_beside_its_file_or_it_is_said_that_there_are_two_of_a_name(here, name):
    """The folder of the file is the first to be looked in only while it runs."""
    sys.path.insert(0, str(here))
    helper = Path(*name.split(".")).with_suffix(".py")
    write(here / helper, "x = 0\n")
    write(here / "a" / helper, "x = 1\n")
    write(here / "a" / "mine.py", f"def f():\n    from {name} import x\n    return x\n")
    for _ in range(2):
        with pytest.raises(
            BadReference, match=rf"imports {name}, which is .*/a/{helper} beside it, and {here}/{helper}"
        ):
            resolve("a/mine.py:f")
    (here / helper).unlink()
    assert resolve("a/mine.py:f")() == 1


def test_a_folder_called_as_a_helper_is_called_is_no_other_helper(here):
    write(here / "mine.py", "from utils import x\n")
    write(here / "utils.py", "x = 1\n")
    write(here / "utils" / "x.py", "")
    assert resolve("mine.py:x") == 1


def test_a_helper_may_be_a_link(here):
    write(here / "shared" / "helper.py", "x = 1\n")
    (here / "helper.py").symlink_to(here / "shared" / "helper.py")
    write(here / "mine.py", "from helper import x\n\ndef f():\n    import later\n")
    (here / "later.py").symlink_to(here / "shared" / "helper.py")
    write(here / "other.py", "from helper import x\n")
    assert resolve("mine.py:x") == resolve("other.py:x") == 1


def test_a_package_goes_before_a_module_of_its_name(here):
    write(here / "mine.py", "from utils import x\n")
    write(here / "utils.py", "x = 1\n")
    write(here / "utils" / "__init__.py", "x = 2\n")
    before = fingerprint("mine.py:x")
    assert resolve("mine.py:x") == 2
    write(here / "utils.py", "x = 3\n")
    assert fingerprint("mine.py:x") == before
    write(here / "utils" / "__init__.py", "x = 3\n")
    assert fingerprint("mine.py:x") != before
    write(here / "other.py", "from utils import x\n")
    assert resolve("other.py:x") == 3, "it is read again, and no other of its name"


@pytest.mark.parametrize("where", ["here", "PYTHONPATH"])
def test_what_is_imported_from_wherever_python_looks_is_in_the_fingerprint(here, monkeypatch, where):
    root = here if where == "here" else here / "elsewhere"
    write(here / "strategies" / "mine.py", "from common.util import x\n")
    write(root / "common" / "__init__.py", "")
    write(root / "common" / "util.py", "from common import deeper\nx = 1\n")
    write(root / "common" / "deeper.py", "y = 1\n")
    monkeypatch.syspath_prepend(root)
    monkeypatch.setenv("PYTHONPATH", "" if where == "here" else str(root))
    seen = {fingerprint("strategies/mine.py:x")}
    for changed in ("util.py", "deeper.py"):
        write(root / "common" / changed, "x = 2\nfrom common import deeper\n")
        seen.add(fingerprint("strategies/mine.py:x"))
    assert len(seen) == 3


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_installed_packages_are_in_no_fingerprint_whosever_they_are(here, folder):
    sys.path.insert(0, str(here / folder))
    write(here / folder / "installed.py", "import beside\nx = 1\n")
    write(here / folder / "beside.py", "x = 1\n")
    before = fingerprint("installed:x")
    write(here / folder / "beside.py", "x = 2\n")
    assert fingerprint("installed:x") == before


def test_folders_that_are_no_packages_stand_in_no_ones_way(here):
    """A folder without __init__.py is a package to Python all the same; W&B's own folder is called as W&B is."""
    write(here / "mine.py", "import wandb, torch\nfrom datasets import load_dataset\nfrom lib.helper import x\n")
    for folder in ("wandb/run-1", "torch", "datasets"):
        (here / folder).mkdir(parents=True)
    write(here / "lib" / "helper.py", "x = 1\n")
    before = fingerprint("mine.py:x")
    write(here / "lib" / "helper.py", "x = 2\n")
    assert fingerprint("mine.py:x") != before


def test_what_cannot_be_read_as_python_is_said_where_it_is_imported(here):
    write(here / "mine.py", "import beside\n")
    write(here / "beside.py", "x = (\n")
    assert len(fingerprint("mine.py:x")) == 12
    with pytest.raises(BadReference, match=r"beside.py, line 1: SyntaxError"):
        resolve("mine.py:x")


def test_a_path_is_taken_from_the_folder_that_is_given(here):
    assert absolute("a/b.py:f", here) == f"{here}/a/b.py:f"
    assert absolute("/a/b.py:f", here) == "/a/b.py:f"
    assert absolute("a.b:f", here) == "a.b:f"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nothing", "'nothing' names no function or class; write module:name or path/to/file.py:name"),
        (":f", "names no function or class"),
        ("mine.py:", "names no function or class"),
        (".mine:f", "names no function or class"),
        ("absent.py:f", r"there is no file .*/absent.py"),
        ("folder.py:f", r"/folder.py cannot be read: Is a directory"),
        ("absent:f", "there is no module 'absent', neither installed nor in .*; a file is named with its .py"),
        ("absent.inner:f", "there is no module 'absent'"),
        ("mine.inner:f", "there is no module 'mine.inner'"),
        ("mine:lern", "mine has no 'lern'; did you mean 'learn'[?]"),
        ("mine.py:lern", "mine.py has no 'lern'; did you mean 'learn'[?]"),
        ("mine.py:learn.lern", "mine.py has no 'lern'$"),
        ("raises.py:f", r"importing it fails in .*/raises.py, line 2: NameError: name 'y' is not defined"),
        ("raises:f", r"importing it fails in .*/raises.py, line 2: NameError: name 'y' is not defined"),
        ("exits.py:f", r"importing it fails in .*/exits.py, line 2: SystemExit: 3"),
        ("needs.py:f", r"importing it fails in .*/needs.py, line 1: ModuleNotFoundError: No module named 'absent'"),
        ("needs:f", r"importing it fails in .*/needs.py, line 1: ModuleNotFoundError: No module named 'absent'"),
        ("syntax.py:f", r"importing it fails in .*/syntax.py, line 1: SyntaxError: "),
        ("syntax:f", r"importing it fails in .*/syntax.py, line 1: SyntaxError: "),
        ("binary.py:f", r"importing it fails.*: (SyntaxError|ValueError): "),
    ],
)
def test_what_cannot_be_had_is_one_line(here, reference, message):
    write(here / "mine.py", "def learn(): pass\n")
    write(here / "raises.py", "x = 1\ny\n")
    write(here / "exits.py", "import sys\nsys.exit(3)\n")
    write(here / "needs.py", "import absent\n")
    write(here / "syntax.py", "def (:\n")
    (here / "binary.py").write_bytes(b"x = 1\0")
    (here / "folder.py").mkdir()
    with pytest.raises(BadReference, match=message) as caught:
        resolve(reference)
    assert "\n" not in str(caught.value)


def test_what_has_no_file_has_no_fingerprint(here):
    with pytest.raises(BadReference, match="sys has no source file"):
        fingerprint("sys:exit")
    with pytest.raises(BadReference, match="there is no module 'absent'"):
        fingerprint("absent:f")
    with pytest.raises(BadReference, match="there is no module 'absent'"):
        fingerprint("absent.inner:f")
    with pytest.raises(BadReference, match="there is no file"):
        fingerprint("absent.py:f")
