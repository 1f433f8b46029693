"""What MkDocs does with our pages beyond Markdown: formulas become MathML, and links to files outside docs/ become the names of these files.

The same pages are read in the repository, where such links work and `$...$` is drawn as a formula. MathML needs no script and no network.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
OUTWARD = re.compile(r"(?<!!)\[([^\]\[]+)\]\(((?:\.\./)+[^)\s]*)\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_config(config: Any, **_: Any) -> None:
    """Lists the page of measured results, which is there once they are."""
    if (Path(config["docs_dir"]) / "evidence.md").exists():
        config["nav"].append({"Evidence": "evidence.md"})


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Names the files that a page links to outside docs/."""
    folder = posixpath.dirname(page.file.src_uri)

    def name(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", folder, link[2]))
        if path.startswith("docs/"):
            return link[0]
        return f'<span class="source" title="in the repository: {path}">{link[1]}</span>'

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else OUTWARD.sub(name, part) for part in parts)


def on_page_content(content: str, **_: Any) -> str:
    """Turns what the extension `arithmatex` marks as a formula into MathML."""

    def formula(match: re.Match[str]) -> str:
        block = match[1] == "div"
        latex = (
            html.unescape(match[2])
            .strip()
            .removeprefix("\\(")
            .removesuffix("\\)")
            .removeprefix("\\[")
            .removesuffix("\\]")
        )
        mathml = convert(latex.strip(), display="block" if block else "inline")
        return f'<div class="formula">{mathml}</div>' if block else mathml

    return FORMULA.sub(formula, content)
