"""Equations as MathML, which browsers draw by themselves: no script, no fonts to load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def _written(tag: str, display: str) -> Callable[[Any, nodes.Element], None]:
    def visit(translator: Any, node: nodes.Element) -> None:
        translator.body.append(f'<{tag} class="math">{convert(node.astext(), display=display)}</{tag}>')
        raise nodes.SkipNode

    return visit


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_written("span", "inline"), None), (_written("div", "block"), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
