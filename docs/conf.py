"""Sphinx: the site is these Markdown pages, and a reference that is made of the code at the build.

`make docs` builds it; a warning is an error. It needs no network, and what it makes needs none.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import xtransplant

project = "xtransplant"
author = "xtransplant contributors"
version = release = xtransplant.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docs.from_code",
    "docs.links",
    "docs.mathml",
]
# Parts of the page beside them, not pages.
exclude_patterns = ["results/findings.md", "results/conditions-findings.md"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

smartquotes = False  # two dashes are an option
suppress_warnings = ["myst.header"]  # tables of `summarize format=markdown` begin at the level that they have there

nitpicky = True
# Other packages' names: their inventories are on the network. Types of numpy, torch and the standard library, that is.
nitpick_ignore_regex = [(r"py:.*", r"(?!xtransplant\.).*")]
add_module_names = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"xtransplant {release}"
html_static_path: list[str] = []
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False

linkcheck_timeout = 20
linkcheck_retries = 2
