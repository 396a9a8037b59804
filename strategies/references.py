"""Somebody's own function or class, named as ``module:name`` or ``path/to/file.py:name``."""

from __future__ import annotations

import ast
import importlib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from hashlib import sha256
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


class BadReference(ValueError):
    """What is named cannot be had; the message is one line that says why and what to do."""


def resolve(reference: str) -> object:
    """Returns what a reference names, importing its module or file first.

    Modules are looked for in the current folder too, as ``python -m`` does. A file is run once and is then a module
    like any other: objects of it can be sent to another process, which calls this function before it unpickles them.
    A file or a module of one's own that has changed is run again, as is what it imports of them.

    Args:
        reference: ``module:name`` or ``path/to/file.py:name``; the name may be dotted (``Class.method``). A relative
            path is relative to the current folder.

    Raises:
        BadReference: this is no reference; there is no such file, module or name in it; or importing it fails.
    """
    where, name = _parts(reference)
    found: object = _run_file(reference, where) if where.endswith(".py") else _import_module(reference, where)
    for part in name.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, dir(found), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise BadReference(f"{reference}: {where} has no {part!r}{hint}")
        found = getattr(found, part)
    return found


def fingerprint(reference: str) -> str:
    """Returns the first 12 hexadecimal digits of the SHA-256 of the source file that a reference names.

    Files of one's own that it imports are in it too: those in its folder or below, or in the folder of its package, in
    the current folder and in those of ``PYTHONPATH``. Installed packages are not, nor is any other file that its
    functions read (weights, say).

    Args:
        reference: as for :func:`resolve`.

    Raises:
        BadReference: this is no reference, or there is no such file or module.
    """
    where, _ = _parts(reference)
    if where.endswith(".py"):
        path, source = _source(reference, where)
        return _digest(source + _digests(_imported(path, [path.parent, *_own_folders()])))
    _current_folder_is_importable()
    try:
        spec = find_spec(where)
    except Exception as error:  # a package above it is missing or fails
        raise _not_imported(reference, where, error) from error
    if spec is None:
        raise _not_imported(reference, where, ModuleNotFoundError(name=where))
    if not spec.has_location or spec.origin is None:
        raise BadReference(f"{reference}: {where} has no source file; put the function into a file of your own")
    path = Path(spec.origin)
    depth = where.count(".") + (path.name == "__init__.py")
    return _digest(path.read_bytes() + _digests(_imported(path, [path.parents[depth], *_own_folders()], where)))


def _digests(files: Mapping[str, Path]) -> bytes:
    return "".join(f"{name} {_digest(file.read_bytes())}\n" for name, file in sorted(files.items())).encode()


def _own_folders() -> list[Path]:
    """Returns the folders, besides a file's own, in which Python looks for modules that nobody has installed."""
    # The current one, even where it is not on sys.path yet: what is resolved puts it there.
    return [Path.cwd(), *(Path(one) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one)]


def _imported(path: Path, folders: Sequence[Path], module: str = "") -> dict[str, Path]:
    """Returns module -> file of those below some folders that a file imports, and that these import; mostly none.

    Args:
        path: the file.
        folders: modules are looked for in these alone, in this order.
        module: the file's, where it is one of a package and may import by ``from . import``.
    """
    return {name: file for name, file in _reached(path, folders, module).items() if file != path}


def _reached(path: Path, folders: Sequence[Path], module: str = "") -> dict[str, Path]:
    """Returns what ``_imported`` does, and the file itself where it or one of these imports it by its name."""
    # The user's, the system's and a virtual environment's packages lie in folders of these names.
    stdlib = Path(sysconfig.get_path("stdlib"))
    folders = [one for one in folders if one.name not in ("site-packages", "dist-packages") and one != stdlib]
    seen: set[str] = set()
    found: dict[str, Path] = {}
    left = [(module, path)]
    while left:
        new = _names_imported(*left.pop()) - seen
        seen |= new  # found or not: looking takes longer than all else here
        for name in new:
            file = None if name.partition(".")[0] == "engrams" else _found(name, folders)
            if file is not None:
                found[name] = file
                left.append((name, file))
    return found


def _found(name: str, folders: Sequence[Path]) -> Path | None:
    """Returns the file of a module in the first of some folders that has it."""
    return next(filter(None, (_module_at(folder.joinpath(*name.split("."))) for folder in folders)), None)


def _module_at(place: Path) -> Path | None:
    """Returns the file of the module or package that a path without ``.py`` stands for, if there is one."""
    # Python takes the package where there are both.
    return next((one for one in (place / "__init__.py", place.with_suffix(".py")) if one.is_file()), None)


def _names_imported(module: str, path: Path) -> frozenset[str]:
    """Returns the dotted names that a file imports anywhere in it, packages above them and what may be modules."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    try:
        return _names_in(path.read_bytes(), tuple(package))
    except OSError:
        return frozenset()  # importing it says what is wrong


# By its content, which costs little to read: times of files are too coarse to tell two writes in a row apart.
@lru_cache(maxsize=2048)
def _names_in(source: bytes, package: tuple[str, ...]) -> frozenset[str]:
    """Returns what ``_names_imported`` does, of a source in a package; parsing is slow, and is done once."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (ValueError, SyntaxError):
        return frozenset()  # importing it says what is wrong
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*above, *filter(None, [node.module])])
            names += [start, *(f"{start}.{one.name}" if start else one.name for one in node.names)]
    parts = [name.split(".") for name in names if name]
    return frozenset(
        ".".join(one[: depth + 1]) for one in parts for depth in range(len(one)) if "*" not in one[: depth + 1]
    )


def absolute(reference: str, folder: Path) -> str:
    """Returns the reference with its path, if it has one, taken to be relative to the folder."""
    where, name = _parts(reference)
    return f"{folder.absolute() / Path(where).expanduser()}:{name}" if where.endswith(".py") else reference


def short(reference: str) -> str:
    """Returns the reference without the folders above its file: a name that holds wherever the file lies."""
    where, name = _parts(reference)
    return f"{Path(where).name}:{name}" if where.endswith(".py") else reference


def _parts(reference: str) -> tuple[str, str]:
    where, _, name = reference.rpartition(":")  # a path may have a colon of its own
    names = name.split(".") if where.endswith(".py") else [*where.split("."), *name.split(".")]
    if not (where and all(part.isidentifier() for part in names)):
        raise BadReference(f"{reference!r} names no function or class; write module:name or path/to/file.py:name")
    return where, name


def _run_file(reference: str, where: str) -> ModuleType:
    _current_folder_is_importable()
    path, source = _source(reference, where)
    stem = path.stem.replace(".", "_")  # of no package
    name = f"{stem}_{_digest(str(path).encode())}"  # the same in every process
    reached = _reached(path, [path.parent, *_own_folders()])
    digest = _digest(source + _digests({helper: file for helper, file in reached.items() if file != path}))
    loaded = sys.modules.get(name)
    if loaded is not None and vars(loaded).get("__fingerprint__") == digest:
        return loaded
    with _changed_are_read_anew(reached):
        _check_none_has_the_name_of_another(reference, path)
        module = _executed(reference, name, path, source, digest)
    try:
        _check_none_hides_what_is_imported_later(reference, path)
    except BadReference:
        del sys.modules[name]
        raise
    return module


def _executed(reference: str, name: str, path: Path, source: bytes, digest: str) -> ModuleType:
    """Returns the module of a file, which is run; its folder is one that Python looks in from then on."""
    spec = spec_from_file_location(name, path)
    assert spec is not None
    module = module_from_spec(spec)
    vars(module)["__fingerprint__"] = digest  # before it runs: it may resolve what is in it
    sys.modules[name] = module  # before it runs, as importing does: dataclasses look there
    beside = str(path.parent)
    sys.path.insert(0, beside)  # as Python has it for a file that it is given
    try:
        exec(compile(source, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(reference, error) from error
    finally:
        sys.path.remove(beside)
    if beside not in sys.path:
        sys.path.append(beside)  # for what is imported later on; last, so that it hides nothing
    return module


# Digests of files of one's own, by module and file, when something that imports them was last read.
_LAST: dict[tuple[str, Path], str] = {}


@contextmanager
def _changed_are_read_anew(files: Mapping[str, Path]) -> Iterator[None]:
    """Lets what reads some modules read those anew that have changed, and notes what they were when they were read.

    Args:
        files: module -> file; with each, all of one's own that it imports.
    """
    digests = _digests_with_imports(files)
    _forget_changed(files, digests)
    try:
        yield
    finally:  # of a file that fails, too: it is mended, and so may they be
        for name, module in _read(files).items():
            vars(module)["__fingerprint__"] = digests[name]
        _LAST.update({(name, file): digests[name] for name, file in files.items()})


def _digests_with_imports(files: Mapping[str, Path]) -> dict[str, str]:
    """Returns module -> digest of its file and of all that it imports: it holds what these were when it was read.

    Args:
        files: module -> file; with each, all of one's own that it imports.
    """
    alone = {name: _digest(file.read_bytes()) for name, file in files.items()}
    imports = {name: _names_imported(name, file) & files.keys() for name, file in files.items()}
    return {
        name: _digest("".join(f"{one} {alone[one]}\n" for one in sorted(_closure(name, imports))).encode())
        for name in files
    }


def _closure(name: str, imports: Mapping[str, frozenset[str]]) -> set[str]:
    """Returns a module, those that it imports, those that these import, and so on."""
    reached, left = {name}, [name]
    while left:
        new = imports[left.pop()] - reached
        reached |= new
        left += new
    return reached


def _forget_changed(helpers: Mapping[str, Path], digests: Mapping[str, str]) -> None:
    """Lets what a file imports be read anew, where it has changed since it was read.

    A module that somebody else read, or a function since, is one whose digest was not noted then: it has changed if
    its file has since the last run. At the first run it is taken as it is.

    Args:
        helpers: module -> file.
        digests: module -> its digest now.
    """
    read = _read(helpers)
    old = {
        name
        for name, module in read.items()
        if vars(module).get("__fingerprint__", _LAST.get((name, helpers[name]), digests[name])) != digests[name]
    }
    for name in read:
        parts = name.split(".")
        if old.intersection(".".join(parts[: depth + 1]) for depth in range(len(parts))):  # with its package, too
            del sys.modules[name]


def _read(helpers: Mapping[str, Path]) -> dict[str, ModuleType]:
    """Returns those of some modules that have been read, and from these very files."""
    found = {name: sys.modules[name] for name in helpers if name in sys.modules}
    return {name: module for name, module in found.items() if _is_of(module, helpers[name])}


def _is_of(module: ModuleType, file: Path) -> bool:
    read = getattr(module, "__file__", None)
    return read is not None and Path(read).resolve() == file.resolve()


def _check_none_has_the_name_of_another(reference: str, path: Path) -> None:
    """Raises a BadReference where a file would get another module than the one beside it, which has been read before.

    Python keeps one module of a name.
    """
    for name, file in _imported(path, [path.parent]).items():
        read = getattr(sys.modules.get(name), "__file__", None)
        if read and Path(read).resolve() != file.resolve():
            raise BadReference(
                f"{reference}: it imports {name}, which is {file} beside it, and {read} has been read under that name "
                f"before: give one of them another name"
            )


def _check_none_hides_what_is_imported_later(reference: str, path: Path) -> None:
    """Raises a BadReference where a function of a file that has run would import another module than that beside it.

    The folder of the file is the first that Python looks in only while the file runs.
    """
    importlib.invalidate_caches()
    for name, file in _imported(path, [path.parent]).items():
        found = None if name in sys.modules else _would_be_read(name)
        if found and found.resolve() != file.resolve():
            raise BadReference(
                f"{reference}: a function imports {name}, which is {file} beside it, and {found} would be read under "
                f"that name: give one of them another name, or import it at the top of the file"
            )


def _would_be_read(name: str) -> Path | None:
    """Returns the file that importing a module would read now, without importing the packages above it."""
    top, *below = name.split(".")
    spec = find_spec(top)
    if spec is None:
        return None
    if not below:
        return Path(spec.origin) if spec.origin else None
    files = (_module_at(Path(folder, *below)) for folder in spec.submodule_search_locations or ())
    return next(filter(None, files), None)


def _source(reference: str, where: str) -> tuple[Path, bytes]:
    path = Path(where).expanduser().resolve()
    try:
        return path, path.read_bytes()
    except FileNotFoundError as error:
        raise BadReference(f"{reference}: there is no file {path}") from error
    except OSError as error:
        raise BadReference(f"{reference}: {path} cannot be read: {error.strerror}") from error


def _import_module(reference: str, where: str) -> ModuleType:
    _current_folder_is_importable()
    importlib.invalidate_caches()  # the file may be younger than the last look at its folder
    with _changed_are_read_anew(_own_modules(where)):
        try:
            return importlib.import_module(where)
        except (Exception, SystemExit) as error:
            raise _not_imported(reference, where, error) from error


def _own_modules(where: str) -> dict[str, Path]:
    """Returns module -> file of one that nobody has installed and of what it imports; empty for any other."""
    folders = _own_folders()
    file = _found(where, folders)
    if file is None or where.partition(".")[0] == "engrams":
        return {}
    return {where: file} | _imported(file, folders, where)


def _current_folder_is_importable() -> None:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def _not_imported(reference: str, where: str, error: BaseException) -> BadReference:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{where}.".startswith(f"{error.name}."):
        return BadReference(
            f"{reference}: there is no module {error.name!r}, neither installed nor in {Path.cwd()}; "
            f"a file is named with its .py"
        )
    return _failed(reference, error)


def _failed(reference: str, error: BaseException) -> BadReference:
    """Says which exception it was, and at which line of the file (of the line in it that imports what fails)."""
    if isinstance(error, SyntaxError):
        where = f" in {error.filename}, line {error.lineno}" if error.filename else ""
    else:
        frames = traceback.extract_tb(error.__traceback__)
        ours = (__file__, importlib.__file__)
        theirs = (frame for frame in frames if frame.filename not in ours and not frame.filename.startswith("<"))
        where = next((f" in {frame.filename}, line {frame.lineno}" for frame in theirs), "")
    said = str(error.msg if isinstance(error, SyntaxError) else error).partition("\n")[0]
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return BadReference(f"{reference}: importing it fails{where}: {what}")


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:12]
