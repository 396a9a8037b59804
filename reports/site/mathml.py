"""Equations as MathML, which browsers draw by themselves: no script, no fonts to load."""

from latex2mathml.converter import convert


def _written(display):
    def visit(self, node):
        tag = "div" if display == "block" else "span"
        self.body.append(f'<{tag} class="math">{convert(node.astext(), display=display)}</{tag}>')
        from docutils.nodes import SkipNode

        raise SkipNode

    return visit


def setup(app):
    app.add_html_math_renderer("mathml", (_written("inline"), None), (_written("block"), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
