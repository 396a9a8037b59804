"""The site of documents (``make docs``): Sphinx reads the Markdown files where they lie and the docstrings.

Sphinx and MyST are kept, work without a network and fail at a dead link; MkDocs is no longer kept.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "Engrams"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_markdown_builder",
    "pages",
    "docstrings",
    "mathml",
    "plain",
]

root_doc = "README"
include_patterns = [
    "README.md",
    "benchmarks/README.md",
    "strategies/README.md",
    "strategies/methods/*.md",
    "reports/wandb/README.md",
    "reports/results/pages/*.md",
    "reports/site/reference/*.md",
]
exclude_patterns = [".*", "site", "runs*", "reports/results/records"]  # not even looked through
nitpicky = True  # a name in a docstring that is gone is a warning, and warnings fail
nitpick_ignore = [
    ("py:class", "pd.DataFrame"),  # imported where types are checked, nowhere else
    ("py:class", "_PydanticGeneralMetadata"),  # what Sphinx 8.1 makes of a field that has bounds
]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_url_schemes = {"http": None, "https": None, "code": "{{path}}.html#{{fragment}}"}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
maximum_signature_line_length = 90
python_display_short_literal_types = True
autodoc_preserve_defaults = True
autoclass_content = "both"  # an __init__ has the arguments
napoleon_use_rtype = False

html_theme = "furo"
html_title = "Engrams"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False
html_show_search_summary = False  # read from disk, a page cannot fetch others
pygments_style = "friendly"
pygments_dark_style = "monokai"
