"""A web page in one file, with its pictures inside and beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#111}
h1{font-size:1.6em}h2{margin-top:2em;border-bottom:1px solid #ddd}img{max-width:100%}p.note{color:#555}
table{border-collapse:collapse;font-size:13px}td,th{padding:.2em .8em;border-bottom:1px solid #eee;text-align:right}
td:first-child,th:first-child{text-align:left}.good{color:#15803d}.bad{color:#b91c1c}"""


@dataclass
class Page:
    """Sections of the page in order; pictures are kept as PNG bytes by name."""

    folder: Path
    parts: list[str] = field(default_factory=list)

    def section(self, title: str, note: str = "") -> None:
        """A heading and what the reader should know about what follows."""
        self.parts.append(
            f"<h2>{html.escape(title)}</h2>" + (f'<p class="note">{html.escape(note)}</p>' if note else "")
        )

    def figure(self, name: str, figure: Figure) -> None:
        """A picture in the page and as `<name>.png` beside it."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        plt.close(figure)
        (self.folder / f"{name}.png").write_bytes(buffer.getvalue())
        encoded = base64.b64encode(buffer.getvalue()).decode()
        self.parts.append(f'<img alt="{html.escape(name)}" src="data:image/png;base64,{encoded}">')

    def text(self, text: str) -> None:
        """A paragraph."""
        self.parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] = ()) -> None:
        """A table; `classes` colours rows."""
        head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
        marks = classes or [""] * len(rows)
        body = "".join(
            f'<tr class="{mark}">' + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>"
            for row, mark in zip(rows, marks, strict=True)
        )
        self.parts.append(f"<table><tr>{head}</tr>{body}</table>")

    def html(self, title: str) -> str:
        """The whole page."""
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>{''.join(self.parts)}</html>\n"
        )
