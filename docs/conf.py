"""How Sphinx builds the documentation: `sphinx-build -W --keep-going -n docs site`."""

import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

from clip_fusion_loss import __version__

project = "clip_fusion_loss"
author = "The clip_fusion_loss authors"
project_copyright = f"{author}, MIT license"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]

# Programs beside the pages, and their own READMEs, are not pages.
exclude_patterns = ["evidence", "tiny_clip"]

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["layout.css"]
html_show_sourcelink = False
smartquotes_action = "D"  # dashes only: sentences are quoted as a program has them
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#b34700", "color-brand-content": "#b34700"},
    "dark_css_variables": {"color-brand-primary": "#ffa657", "color-brand-content": "#ffa657"},
}
pygments_style = "default"  # this and the next have a contrast of at least 4.5 : 1
pygments_dark_style = "github-dark"
copybutton_prompt_text = ">>> "

# Links such as results.md#what-a-sentence-does work on GitHub and here.
myst_heading_anchors = 4

autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_use_rtype = False
napoleon_use_ivar = True

# Single backticks in docstrings: a link where the package documents that name, else code.
default_role = "py:obj"
# Names of other packages lead nowhere: the site is built without a network.
nitpick_ignore_regex = [
    ("py:obj", r".*"),
    ("py:class", r"Tensor"),
    ("py:.*", r"(torch|nn|np|typing|collections|pathlib)\..*"),
]


def markdown_to_rest(app, what, name, obj, options, lines):
    """Code is indented behind an empty line, names have plurals, and pages are named by file."""
    text = re.sub(r"^Example:$", ".. rubric:: Example", "\n".join(lines), flags=re.MULTILINE)
    text = re.sub(r"\n\n(?= {4,}\S)(?<!::\n\n)", "\n\n::\n\n", text)
    text = re.sub(r"(`[^`\n]+`)(?=[a-z])", r"\1\\ ", text)  # `FusionObjective`s
    text = re.sub(r"docs/(\w+)\.md", r":doc:`docs/\1.md </\1>`", text)
    lines[:] = text.splitlines()


def insert_vocabulary(app, page, source):
    """The words of the bundled CLIP, where a page marks the place."""
    words = Path(app.srcdir).parent / "clip_fusion_loss/assets/tiny_clip/vocabulary.txt"
    source[0] = source[0].replace("<!-- vocabulary -->", ", ".join(words.read_text().split()))


def unlink_files_outside(app, doctree):
    """Links of the README to files that are not pages are text here."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        if (Path(app.srcdir).parent / link["reftarget"]).is_file():
            link.replace_self(link.children)


def link_images_to_their_files(app, doctree):
    """Sphinx links every image that has a scale; at 100 % it looks as without one."""
    for image in doctree.findall(nodes.image):
        image["scale"] = 100


def setup(app):
    app.connect("source-read", insert_vocabulary)
    app.connect("autodoc-process-docstring", markdown_to_rest, priority=400)  # before napoleon
    app.connect("doctree-read", unlink_files_outside)
    app.connect("doctree-read", link_images_to_their_files)
