"""The few shapes that the pictures are made of, as elements of an SVG.

Arrows are paths: some viewers draw no markers, and hide a short line under its arrowhead.
"""

import html
import math

SANS = "DejaVu Sans, Helvetica, Arial, sans-serif"
MONO = "DejaVu Sans Mono, Menlo, Consolas, monospace"
TEXT, MUTED, FRAME = "#24292f", "#6e7781", "#d0d7de"
BLUE, RED = "#2f6db3", "#c8455a"
HEAD, HALF = 9, 4.2  # length and half the width of an arrowhead
MONO_WIDTH = 0.602  # a character of the monospaced font, for a font size of 1
SANS_WIDTH = 0.53  # of the other, for English text, with some room to spare


def picture(width, height, label, parts):
    """Return the text of an SVG of ``parts`` on a white sheet, described by ``label``."""
    top = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img' "
        f"aria-label='{html.escape(label)}'>"
    )
    sheet = box(0.5, 0.5, width - 1, height - 1, "#ffffff")
    return "\n".join([top, sheet, *parts, "</svg>\n"])


def box(x, y, width, height, fill="#f6f8fa"):
    """Return a rectangle with round corners, its upper left one at (x, y)."""
    return (
        f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='8' fill='{fill}' "
        f"stroke='{FRAME}'/>"
    )


def circle(x, y, radius):
    """Return a circle around (x, y)."""
    return f"<circle cx='{x:g}' cy='{y:g}' r='{radius:g}' fill='#f6f8fa' stroke='{FRAME}'/>"


def line(*points, colour=FRAME):
    """Return a thin line through ``points``."""
    return f"<path d='{_path(points)}' stroke='{colour}' fill='none'/>"


def text(x, y, words, size=13, colour=TEXT, font=MONO, anchor="start", weight="normal"):
    """Return one line of text, its baseline at ``y``."""
    return (
        f"<text x='{x:g}' y='{y:g}' font-size='{size:g}' fill='{colour}' font-family='{font}' "
        f"text-anchor='{anchor}' font-weight='{weight}'>{html.escape(words)}</text>"
    )


def arrow(*points, colour=BLUE):
    """Return an arrow through ``points``, its tip at the last: a shaft up to the head, and the head."""
    *_, before, tip = points
    length = math.dist(before, tip)
    along = (tip[0] - before[0]) / length, (tip[1] - before[1]) / length
    base = tip[0] - HEAD * along[0], tip[1] - HEAD * along[1]
    left = base[0] - HALF * along[1], base[1] + HALF * along[0]
    right = base[0] + HALF * along[1], base[1] - HALF * along[0]
    return (
        f"<g class='arrow'><path d='{_path([*points[:-1], base])}' stroke='{colour}' stroke-width='2' "
        f"fill='none'/><path d='{_path([tip, left, right])}Z' fill='{colour}'/></g>"
    )


def _path(points):
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
