"""Sphinx settings of the documentation site, built by `make docs`."""

import pathlib
import sys

DOCS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

import reference_pages  # noqa: E402

import ovi_jax  # noqa: E402

project = "ovi_jax"
author = copyright = "the ovi_jax authors"
release = version = ovi_jax.__version__

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.mathjax",
  "sphinx.ext.napoleon",
  "sphinx.ext.viewcode",
  "reference_pages",
]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints"]

# Markdown. Notebooks are rendered with the outputs that are stored in them.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"

# Docstrings: Google style, names of code in single backticks.
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
autodoc_default_options = {
  "members": True,
  "member-order": "bysource",
  "special-members": "__call__",
}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

# References to names of packages with a page must resolve.
DOCUMENTED = "|".join(
  name for name in reference_pages.API if name != "curation"
)
nitpicky = True
nitpick_ignore_regex = [
  ("py:.*", rf"(?!ovi_jax\.({DOCUMENTED})\b).*"),
  ("py:.*", r".*\.(_\w+|S|T|Tree)"),  # private names, type variables
]

html_theme = "sphinx_book_theme"
html_title = "ovi_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
  "navbar_persistent": [],
  "navbar_start": [],
  "navbar_center": [],
  "navbar_end": [],
  "show_navbar_depth": 1,
  "show_toc_level": 2,
  "use_download_button": False,
}
