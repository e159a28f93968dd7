"""How Sphinx makes the pages of the Python API from the docstrings: `make docs`."""

from typst_lit.version import __version__

project = "typst_lit"
author = "the typst_lit authors"
release = __version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
default_role = "code"
autodoc_inherit_docstrings = False  # hooks of Lightning are described in its own pages
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
html_theme = "alabaster"
html_theme_options = {"description": "Teach a small language model to write Typst documents", "page_width": "1100px"}
exclude_patterns = ["_build"]
