"""How Sphinx builds this documentation: `make docs`."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxTranslator

from ptv2.version import __version__

project = "ptv2"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib.mermaid",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3

default_role = "py:obj"  # a name in a docstring is code, and a link where it is documented
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_param = False  # several arguments of one description stay together
napoleon_use_rtype = False
python_maximum_signature_line_length = 88

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"ptv2 {release}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["formulas.css"]


def show_math(translator: SphinxTranslator, node: nodes.Element) -> None:
    """A formula as MathML, which browsers show by themselves: nothing is loaded for it."""
    display = "inline" if isinstance(node, nodes.math) else "block"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (show_math, None), (show_math, None))
