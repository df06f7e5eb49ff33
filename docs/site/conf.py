"""The documentation site, of the repository's own pages. Its home is README.md; its navigation is docs/README.md's.

uv run --group docs sphinx-build -W --keep-going -c docs/site . build/site
"""

import posixpath
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
INDEX = "docs/README"
API = "docs/site/api/index"
TREE = ("```{toctree}", ":hidden:")

project = "perceptual-mae"
author = "the authors of perceptual-mae"
html_theme = "furo"
html_title = project
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_show_search_summary = False  # it would read pages, which a browser does not allow of a site opened as files
html_scaled_image_link = False

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
napoleon_custom_sections = [("Options", "params_style")]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/*.ipynb", "docs/results/*.md", "docs/site/api/*.rst"]

default_role = "literal"  # docstrings are plain text with `names`
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_use_unqualified_type_names = True
add_module_names = False
maximum_signature_line_length = 100

myst_heading_anchors = 4
nb_execution_mode = "off"  # a test runs the notebook


def navigation(index: str) -> str:
    """Return the pages that an index links to, a tree for each of its headings."""
    lines = [*TREE, "", f"/{INDEX}"]
    for line in index.splitlines():
        if line.startswith("## "):
            lines += ["```", *TREE, f":caption: {line.removeprefix('## ')}", ""]
        links = re.findall(r"\]\(([^)#]+)\.(?:md|ipynb)\)", line)
        lines += ["/" + posixpath.normpath(f"{posixpath.dirname(INDEX)}/{link}") for link in links]
    return "\n".join([*lines, f"/{API}", "```"])


def add_navigation(app: "Sphinx", name: str, source: list[str]) -> None:
    """Put the navigation at the end of the home page."""
    if name == root_doc:
        app.env.note_dependency(str(ROOT / f"{INDEX}.md"))
        source[0] += "\n\n" + navigation((ROOT / f"{INDEX}.md").read_text())


def escape_signs(app: "Sphinx", what: str, name: str, target: object, options: object, lines: list[str]) -> None:
    """Let bars and stars of a docstring's formulas stand for themselves, as `default_role` does for its `names`."""
    for number, line in enumerate(lines):
        parts = re.split("(`[^`]*`)", line)
        lines[number] = "".join(part if part.startswith("`") else re.sub(r"([|*])", r"\\\1", part) for part in parts)


def plain_types(
    app: "Sphinx", what: str, name: str, target: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Write `int` for an int with bounds, which docs/configuration.md has, and `...` for a function as a default."""
    if signature is not None:
        signature = re.sub(r"Annotated\[(\w+), (?:[^][]|\[[^][]*\])*\]", r"\1", signature)
        signature = re.sub(r"<function .*?>(?=[,)])", "...", signature)
    return signature, returned


def copy_home(app: "Sphinx", failure: Exception | None) -> None:
    """Let the address of the folder show the home page."""
    if failure is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: "Sphinx") -> None:
    app.connect("source-read", add_navigation)
    app.connect("autodoc-process-docstring", escape_signs, priority=400)  # before napoleon writes stars
    app.connect("autodoc-process-signature", plain_types)
    app.connect("build-finished", copy_home)
