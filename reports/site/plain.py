"""Every page as plain Markdown beside the page, with the files that it links to; and ``llms.txt``, which lists them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx_markdown_builder.builder import MarkdownBuilder

FROM_DOCSTRINGS = "reports/site/reference/"
"""These pages are made into Markdown; all others are it already, and stay as they are written."""
SUMMARY = "A benchmark suite for catastrophic forgetting, built on Avalanche: every page as Markdown."
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def write(app: Sphinx, problem: Exception | None) -> None:
    """Writes them, once the pages are there."""
    if problem:
        return
    pages = sorted(app.env.found_docs, key=lambda page: (page.count("/"), page))
    _from_docstrings(app, [page for page in pages if page.startswith(FROM_DOCSTRINGS)])
    for page in pages:
        if not page.startswith(FROM_DOCSTRINGS):
            _as_written(Path(app.env.doc2path(page)), Path(app.srcdir), Path(app.outdir))
    out = Path(app.outdir)
    listed = "\n".join(f"- [{app.env.titles[page].astext()}]({page}.md)" for page in pages)
    text = f"# {app.config.project}\n\n> {SUMMARY}\n\n## Pages\n\n{listed}\n"
    out.joinpath("llms.txt").write_text(text, encoding="utf-8")
    shutil.copyfile(out / f"{app.config.root_doc}.html", out / "index.html")


def _from_docstrings(app: Sphinx, pages: list[str]) -> None:
    builder = MarkdownBuilder(app, app.env)
    builder.init()
    builder.prepare_writing(set(pages))
    for page in pages:
        document = app.env.get_doctree(page)
        app.env.apply_post_transforms(document, page)
        for sign in list(document.findall(nodes.abbreviation)):  # of a signature, which the builder does not know
            sign.replace_self(nodes.Text(sign.astext()))
        builder.write_doc(page, document)


def _as_written(page: Path, source: Path, out: Path) -> None:
    linked = {page.parent.joinpath(link).resolve() for link in LINK.findall(page.read_text(encoding="utf-8"))}
    for file in {page.resolve(), *(one for one in linked if one.suffix != ".md" and one.is_file())}:
        copy = out / file.relative_to(source.resolve())
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
