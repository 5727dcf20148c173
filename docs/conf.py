# Copyright (c) The us3l_mm authors. Licensed under the Apache License 2.0.
"""Settings of Sphinx: `make docs` builds the pages of this folder."""
import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from us3l_mm import __version__  # noqa: E402

project = 'us3l_mm'
author = 'The us3l_mm authors'
copyright = author
version = release = __version__

extensions = [
    'myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon',
    'sphinx.ext.mathjax']
html_theme = 'furo'
html_title = 'us3l_mm'
html_show_sphinx = False
exclude_patterns = ['_build']

# As on GitHub: links to headings, and formulas between dollar signs.
myst_heading_anchors = 3
myst_enable_extensions = ['dollarmath']

# Arguments are described with the class, as in OpenMMLab's documentation, and
# in the order of the source.
autodoc_class_signature = 'mixed'
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
autodoc_default_options = dict(members=True)
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # or fields of a data class would be listed twice

# A reference to a part of this project has to be right. Names of others, and
# types such as 'float, optional', lead nowhere.
nitpicky = True
nitpick_ignore_regex = [('py:.*', r'(?!us3l_mm\.).*')]

# The READMEs of the recipes are pages here, and links lead to these pages.
PAGES = {
    'configs/us3l': 'us3l',
    'configs/us3l/benchmarks': 'us3l_benchmarks',
    'configs/us3l/detection': 'us3l_detection',
    'configs/slimclr': 'slimclr',
    'configs/slimclr/benchmarks': 'slimclr_benchmarks',
    'configs/slimclr/detection': 'slimclr_detection',
    'configs/gated': 'gated',
    'configs/gated/detection': 'gated_detection'}
LINK = re.compile(r'\[([^]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]+)?\)')


def follow_links(text, source, page):
    """Let links that are right in one file be right in another.

    A link to a folder of configs that has no page is left out.

    Args:
        text (str): Markdown.
        source (Path): The file that it was written in.
        page (Path): The page that shows it.
    """

    def follow(link):
        path = Path(os.path.normpath(source.parent / link[2]))
        folder = path.parent if path.name == 'README.md' else path
        name = PAGES.get(os.path.relpath(folder, ROOT))
        if name:
            path = DOCS / 'recipes' / f'{name}.md'
        elif path.is_dir():
            return link[1]
        path = os.path.relpath(path, page.parent)
        return f'[{link[1]}]({path}{link[3] or ""})'

    return LINK.sub(follow, text)


def setup(app):
    """Rewrite links as a page, or a README that a page includes, is read."""

    def read(app, name, content):
        page = DOCS / f'{name}.md'
        content[0] = follow_links(content[0], page, page)

    def included(app, source, name, content):
        source = (DOCS / source).resolve()
        page = DOCS / 'recipes' / f'{name}.md'
        content[0] = follow_links(content[0], source, page)

    app.connect('source-read', read)
    app.connect('include-read', included)
