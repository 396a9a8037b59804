"""Docstrings as they are written here: plain text with mathematics in it, names without their modules."""

from __future__ import annotations

import builtins
import re
import sys
from functools import cache, reduce
from importlib import import_module
from pkgutil import walk_packages
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

AS_WRITTEN = re.compile(r"``.+?``|:\w+:`.+?`|(?<![\w\[])\*[\w' -]+\*(?!\w)")
"""Code, names, and words with stress: there reStructuredText's signs are meant."""
ATTRIBUTES: dict[str, list[str]] = {}


def mathematics(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Lets |x| be an absolute value, and ``*`` a star, where they mark nothing."""
    for index, line in enumerate(lines):
        parts = AS_WRITTEN.split(line)
        kept = [*AS_WRITTEN.findall(line), ""]
        lines[index] = "".join(re.sub(r"[|*]", r"\\\g<0>", part) + one for part, one in zip(parts, kept, strict=True))
    if what == "attribute":
        ATTRIBUTES[name] = lines[:]


def no_type_before_a_colon(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Puts an attribute's words back: napoleon takes what stands before its first colon for a type."""
    if what == "attribute":
        lines[:] = ATTRIBUTES.pop(name)


def name_in_the_code(app: Sphinx, env: Any, node: pending_xref, text: nodes.Element) -> nodes.Element | None:
    """Resolves a name that stands without its module, or is not on a page; None, a warning, if nothing is called so."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    documented = env.get_domain("py").objects
    matching = [name for name in documented if name.rpartition(".")[2] == target.rpartition(".")[2]]
    if len(matching) == 1 and (target in matching[0] or _found(target) is _found(matching[0])):
        page = documented[matching[0]]
        return make_refnode(app.builder, node["refdoc"], page.docname, page.node_id, text)
    return text if _found(target) is not None else None


def _found(name: str) -> object | None:
    """Returns what a dotted name is: from the top, or as it stands in any module of the project."""
    project = _modules()
    module, _, attribute = name.rpartition(".")
    if module in sys.modules and hasattr(sys.modules[module], attribute):
        return getattr(sys.modules[module], attribute)
    first, *rest = name.split(".")
    for place in (builtins, *project):
        try:
            return reduce(getattr, rest, vars(place)[first])
        except (KeyError, AttributeError):
            continue
    return None


@cache
def _modules() -> list[ModuleType]:
    """Returns all modules of the project; what Sphinx remembers of a page was read by another process, perhaps."""
    rooms = [import_module(f"engrams.{room}") for room in ("benchmarks", "strategies", "reports")]
    names = (found.name for room in rooms for found in walk_packages(room.__path__, f"{room.__name__}."))
    return rooms + [import_module(name) for name in names if not name.endswith("__main__")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", mathematics, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", no_type_before_a_colon, priority=600)  # after it
    app.connect("missing-reference", name_in_the_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
