"""Settings of the documentation: `make docs` builds it into out/docs."""

import ast
import dataclasses
import inspect
import textwrap
from typing import Any

from flax import nnx
from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature


project = "jaxmodels"
copyright = "the authors of jaxmodels"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # pages that are included begin with a heading of their own

default_role = "code"  # docstrings are written with single backticks
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
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

SHORT_NAMES = {  # in signatures
    "jaxlib._jax.Array": "Array",
    "jax.Array": "Array",
    "str | type[Any] | dtype | SupportsDType": "DTypeLike",
    "<class 'jax.numpy.float32'>": "float32",
}


def show_constructor(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """The arguments of a Flax module, whose metaclass hides them, and arrays by their short name."""
    if inspect.isclass(obj) and issubclass(obj, nnx.Module):
        constructor = inspect.signature(obj.__init__, eval_str=True)
        arguments = list(constructor.parameters.values())[1:]
        shown = constructor.replace(parameters=arguments, return_annotation=inspect.Signature.empty)
        signature = stringify_signature(shown, unqualified_typehints=True)
    return _short(signature), _short(returns)


def _short(text: str | None) -> str | None:
    for long, short in SHORT_NAMES.items():
        text = text and text.replace(long, short)
    return text


def show_field_comments(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The comment behind each field of a config, as the description of its argument."""
    if what != "class" or not dataclasses.is_dataclass(obj) or any(":ivar" in line for line in lines):
        return
    source = textwrap.dedent(inspect.getsource(obj)).splitlines()
    (definition,) = ast.parse("\n".join(source)).body
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            line = source[node.end_lineno - 1] if node.end_lineno else ""
            comment = line.encode()[node.end_col_offset or 0 :].decode().partition("#")[2].strip()
            if comment:
                lines.append(f":param {node.target.id}: {comment}")
    lines.append("")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", show_constructor)
    app.connect("autodoc-process-docstring", show_field_comments)
