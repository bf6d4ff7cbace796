"""Settings of the documentation: `make docs` builds it into out/docs."""

project = "jaxmodels"
copyright = "the authors of jaxmodels"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # pages that are included begin with a heading of their own

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # "Attributes" of a docstring would otherwise be listed a second time
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = "jaxmodels"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
