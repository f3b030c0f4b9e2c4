"""Formulas become MathML when the site is built; browsers draw that without JavaScript and without a network."""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

#: What the extension arithmatex makes of `$…$` and `$$…$$`.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, page: Any, **kwargs: Any) -> str:
    """Replace every formula of a page."""
    return FORMULA.sub(lambda match: _drawn(match[1], html.unescape(match[2]), page.file.src_uri), content)


def _drawn(tag: str, tex: str, place: str) -> str:
    """One formula in its element: a span within a line, a div on lines of its own.

    Raises:
        PluginError: TeX that is not understood.
    """
    try:
        drawn = convert(tex, display="block" if tag == "div" else "inline")
    except Exception as error:
        raise PluginError(f"{place}: cannot convert the formula {tex!r}: {error!r}") from error
    if "\\" in html.unescape(drawn):  # the converter keeps commands that it does not know
        raise PluginError(f"{place}: unknown command in the formula {tex!r}")
    return f'<{tag} class="arithmatex">{drawn}</{tag}>'
