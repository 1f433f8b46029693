"""Draws the figures of docs/aloe.md: docs/images/loop.png and docs/images/target.png.

Not part of `make docs`: they change seldom.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
BLUE, ORANGE, GREEN, GREY, RED = "#4c78a8", "#f58518", "#54a24b", "#777777", "#c03030"


def main() -> None:
    loop()
    target()


def box(axes: Axes, x: float, y: float, title: str, text: str, colour: str) -> None:
    """A rounded box of width 2.7 and height 1.1 with its centre at (x, y)."""
    axes.add_patch(
        FancyBboxPatch((x - 1.35, y - 0.55), 2.7, 1.1, boxstyle="round,pad=0.05", fc="white", ec=colour, lw=2)
    )
    axes.text(x, y + 0.22, title, ha="center", va="center", fontsize=11, color=colour, weight="bold")
    axes.text(x, y - 0.2, text, ha="center", va="center", fontsize=8.5)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str, at: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.6})
    axes.text(*at, text, ha="center", va="center", fontsize=8.5, color=GREY)


def loop() -> None:
    """Algorithm 1 as a cycle."""
    figure, axes = plt.subplots(figsize=(8.6, 3.6))
    box(axes, 1.2, 3.0, "policy", "observation → chunk", BLUE)
    box(axes, 6.0, 3.0, "robot", "chunks → commands", GREY)
    box(axes, 10.8, 3.0, "bags", "one per episode", GREY)
    box(axes, 10.8, 0.4, "replay", "chunks with outcomes", GREY)
    box(axes, 6.0, 0.4, "critic", "Q(s, chunk)", GREEN)
    box(axes, 1.2, 0.4, "weights", "exp(advantage / β)", GREEN)
    box(axes, 6.0, 5.2, "person", "takes over", ORANGE)
    arrow(axes, (2.65, 3.0), (4.55, 3.0), "chunks", (3.6, 3.22))
    arrow(axes, (6.0, 4.55), (6.0, 3.65), "SpaceMouse", (6.85, 4.12))
    arrow(axes, (7.45, 3.0), (9.35, 3.0), "transitions", (8.4, 3.22))
    arrow(axes, (10.8, 2.35), (10.8, 1.05), "read once", (11.55, 1.7))
    arrow(axes, (9.35, 0.4), (7.45, 0.4), "chunk TD", (8.4, 0.62))
    arrow(axes, (4.55, 0.4), (2.65, 0.4), "advantage", (3.6, 0.62))
    arrow(axes, (1.2, 1.05), (1.2, 2.35), "weighted\nflow matching", (0.3, 1.7))
    arrow(axes, (2.4, 2.35), (4.8, 1.05), "what it would do now", (4.75, 1.85))
    axes.set(xlim=(-0.6, 12.4), ylim=(-0.3, 5.9))
    axes.axis("off")
    figure.savefig(IMAGES / "loop.png", dpi=110, bbox_inches="tight")


def target() -> None:
    """What a chunk is backed up over: in the middle of an episode, at its end, and at a take-over."""
    figure, axes = plt.subplots(figsize=(8.6, 3.0))
    rows = [
        ("in the middle", 5, 5, "+ $\\gamma^5 \\, Q(s', c')$,  c' from the policy", BLUE),
        ("at the end (success)", 3, 5, "ends: no more to come", GREEN),
        ("before a take-over", 2, 5, "ends in failure: $-C_{fail}$", RED),
        ("before a hand-back", 3, 5, "+ $\\gamma^3 \\, Q(s', c')$", BLUE),
    ]
    for row, (title, executed, horizon, text, colour) in enumerate(rows):
        y = -row
        axes.text(-0.3, y, title, ha="right", va="center", fontsize=9)
        for k in range(horizon):
            done = k < executed
            axes.add_patch(
                Rectangle((k, y - 0.3), 0.92, 0.6, fc=BLUE if done else "white", ec=GREY, alpha=0.75 if done else 0.5)
            )
            reward = (
                "0"
                if colour == GREEN and k == executed - 1
                else "$-C$"
                if colour == RED and k == executed - 1
                else "$-1$"
            )
            axes.text(k + 0.46, y, reward if done else "masked", ha="center", va="center", fontsize=8 if done else 6)
        axes.plot([executed - 0.04] * 2, [y - 0.4, y + 0.4], color=colour, lw=3)
        axes.text(horizon + 0.3, y, text, ha="left", va="center", fontsize=9, color=colour)
    axes.set(xlim=(-4.6, 10.2), ylim=(-3.6, 0.6))
    axes.axis("off")
    figure.savefig(IMAGES / "target.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
