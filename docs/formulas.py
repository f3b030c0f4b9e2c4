"""Formulas become MathML when the site is built; browsers draw that without JavaScript and without a network."""

import html
import re
import unicodedata
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

#: What the extension arithmatex makes of `$…$` and `$$…$$`.
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
#: A letter in another style: browsers know the style "normal" only, and have letters of their own for the others.
STYLED = re.compile(r'<mi mathvariant="(?!normal)([\w-]+)">(\w)</mi>')

#: A function's name, which stands apart from what is around it.
NAME = re.compile(r"<mi>(log|ln|exp|sin|cos|max|min)</mi>")
#: With tables for mathematics, which few systems have; extra.css uses it.  It comes with the package ziamath.
FONT = "STIXTwoMath-Regular.ttf"


def on_files(files: Files, config: Any) -> Files:
    """Add the font of the formulas."""
    package = find_spec("ziamath")
    if package is None or package.origin is None:
        raise PluginError("the font of the formulas is missing. Fix: pip install -c constraints.txt -e '.[docs]'")
    path = Path(package.origin).parent / "fonts" / FONT
    files.append(File.generated(config, f"site/{FONT}", abs_src_path=str(path)))
    return files


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
        drawn = STYLED.sub(lambda match: f"<mi>{_letter(*match.groups())}</mi>", drawn)
    except Exception as error:
        raise PluginError(f"{place}: cannot convert the formula {tex!r}: {error!r}") from error
    drawn = NAME.sub(r'<mo lspace="0.17em" rspace="0.17em">\1</mo>', drawn)
    # The converter keeps commands that it does not know, and styles that browsers do not.
    if "\\" in html.unescape(drawn) or re.search(r'mathvariant="(?!normal")', drawn):
        raise PluginError(f"{place}: unknown command or style in the formula {tex!r}")
    return f'<{tag} class="arithmatex">{drawn}</{tag}>'


def _letter(style: str, letter: str) -> str:
    """The Unicode character of a letter in a style such as script or double-struck.

    Raises:
        LookupError: there is none.
    """
    size = "CAPITAL" if letter.isupper() else "SMALL"
    for prefix in ("MATHEMATICAL ", ""):
        with suppress(KeyError):
            return unicodedata.lookup(f"{prefix}{style} {size} {letter}")
    raise LookupError(f"no letter {letter} in the style {style}")
