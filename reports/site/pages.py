"""How the files lead to each other: the list of all pages, the commands, and code with a line for every name.

In a page ``[file](../ewc.py#EWCPlugin)`` is a link to the file, and here to the lines of that name in it.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import typer.main
from sphinx.application import Sphinx
from sphinx.highlighting import PygmentsBridge
from sphinx.util import logging
from typer.cli import get_docs_for_click

from engrams.benchmarks import cli
from engrams.benchmarks.cli import app

LOGGER = logging.getLogger(__name__)
TO_CODE = re.compile(r"\]\(([\w./-]+\.py)(?:#([\w.]+))?\)")
CONTENTS = """

```{toctree}
:hidden:
:caption: Methods
:glob:
strategies/methods/ewc
strategies/methods/mas
strategies/methods/dgr
strategies/methods/mergan
strategies/methods/*
```

```{toctree}
:hidden:
:caption: Guides
strategies/README
benchmarks/README
reports/wandb/README
```

```{toctree}
:hidden:
:caption: Reference
:glob:
reports/site/reference/*
```

```{toctree}
:hidden:
:caption: Results
reports/results/pages/README
```
"""
RESULTS = """

```{toctree}
:hidden:
:glob:
*
```
"""


def read(sphinx: Sphinx, page: str, source: list[str]) -> None:
    """Adds the lists of pages, which are for the site alone, and finds the code that is linked to."""
    if page == sphinx.config.root_doc:
        source[0] += CONTENTS
    elif page == "reports/results/pages/README":
        source[0] += RESULTS
    elif page == "reports/site/reference/commands":
        source[0] += commands()
    _linked(sphinx)[page] = set()
    source[0] = TO_CODE.sub(lambda found: _as_code(sphinx, page, found[1], found[2] or ""), source[0])


def _as_code(sphinx: Sphinx, page: str, link: str, name: str) -> str:
    file = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    path = Path(sphinx.srcdir, file)
    if not path.is_file():
        LOGGER.warning("there is no file %s", file, location=page)
    elif name and name not in (lines := _lines_of(path.read_text(encoding="utf-8"))):
        LOGGER.warning("there is no %s in %s, which has %s", name, file, ", ".join(lines), location=page)
    else:
        _linked(sphinx)[page].add(file)
    return f"](code:{link}#{name})"


def _linked(sphinx: Sphinx) -> dict[str, set[str]]:
    """Page -> the files of code that it links to; kept with what Sphinx remembers of the pages."""
    if not hasattr(sphinx.env, "code_linked_to"):
        sphinx.env.code_linked_to = {}  # type: ignore[attr-defined]
    return sphinx.env.code_linked_to  # type: ignore[attr-defined]


def _lines_of(code: str) -> dict[str, int]:
    """Returns where functions and classes begin: ``Class.method``, and ``method`` for the first one of this name."""
    found: dict[str, int] = {}

    def look_into(node: ast.AST, within: str) -> None:
        for one in ast.iter_child_nodes(node):
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found[within + one.name] = one.lineno
                look_into(one, f"{within}{one.name}.")

    look_into(ast.parse(code), "")
    return {name.rpartition(".")[2]: line for name, line in reversed(found.items())} | found


def code_pages(sphinx: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yields a page for each file of code that some page links to, with an anchor for every name in it."""
    highlighter: PygmentsBridge = sphinx.builder.highlighter  # type: ignore[attr-defined]
    for file in sorted(set().union(*_linked(sphinx).values())):
        code = Path(sphinx.srcdir, file).read_text(encoding="utf-8")
        lines = highlighter.highlight_block(code, "python", linenos=False).split("\n")
        before, begin, lines[0] = lines[0].partition("<pre>")
        for name, number in _lines_of(code).items():
            lines[number - 1] = f'<span id="{name}" class="named"></span>{lines[number - 1]}'
        body = f"<h1>{file}</h1>{before}{begin}" + "\n".join(lines)
        yield file, {"title": file, "body": body, "parents": []}, "page.html"


def commands() -> str:
    """Returns every command and its options as Markdown, from the command line itself."""
    for file in iter_modules(cli.__path__):  # each registers its commands
        import_module(f"{cli.__name__}.{file.name}")
    command = typer.main.get_command(app.app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, obj={"rich_markup_mode": None}), name="engrams")
    return text.partition("\n")[2]


def setup(sphinx: Sphinx) -> dict[str, bool]:
    sphinx.connect("source-read", read)
    sphinx.connect("html-collect-pages", code_pages)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
