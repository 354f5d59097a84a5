"""Matplotlib figures as inline SVG that takes its colours and its font from the page around it.

Nothing touches pyplot or a global figure. A figure is drawn in stand-in colours; `inline` exchanges them for the
page's CSS variables, so that one drawing serves light, dark and paper. Text stays text: small, selectable, read aloud.
The palette is that of M. Okabe and K. Ito, "Color universal design" (2008), which colour-blind readers tell apart.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, MUTED, GRID, SURFACE = "#010101", "#6a6a6a", "#dcdcdc", "#fefefe"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5cc6", "#8c6d31")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)))  # colour is never the only sign
GOOD, BAD = SERIES[2], SERIES[1]
_VARIABLE: Mapping[str, str] = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    SURFACE: "var(--surface)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(SERIES, 1)},
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "atoll",
    "font.size": 11.5,
    "text.color": INK,
    "text.parse_math": False,  # a client may be called $\frac{1}{0}$
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "path.simplify": True,
    "path.simplify_threshold": 0.4,
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_alone = threading.Lock()  # Matplotlib reads its settings from one global dict; a server may render in several threads


class Table(NamedTuple):
    """The numbers behind a plot, already as text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


class Plot(NamedTuple):
    """One drawing with what a reader needs who can't see it."""

    title: str
    svg: str  # trusted: made here, with every label escaped
    alt: str  # what the drawing shows, in a sentence or two
    table: Table
    note: str = ""
    wide: bool = False


class Canvas:
    """One figure while it is being drawn, and the tooltips that belong to its marks."""

    def __init__(self, figure: Figure, axes: Axes) -> None:
        self.figure, self.axes = figure, axes
        self.tips: dict[str, Sequence[str]] = {}

    def tip(self, x: Sequence[float], y: Sequence[float], texts: Sequence[str], **marks: Any) -> None:
        """Marks at (x, y), all finite, that say `texts` under a pointer; invisible unless `marks` gives them a colour."""
        if not len(x):
            return
        unseen: dict[str, Any] = {"s": 90, "color": SURFACE, "alpha": 0.0, "linewidths": 0, "zorder": 5}
        drawn = self.axes.scatter(x, y, **(unseen | marks))
        name = f"tips-{len(self.tips)}"
        drawn.set_gid(name)
        drawn.set_clip_on(False)
        self.tips[name] = texts

    def legend(self) -> None:
        """The names of the series above the axes, when there is more than one: in a row, or two to a row if they are long."""
        handles, labels = self.axes.get_legend_handles_labels()
        if len(handles) < 2:
            return
        needed = sum(5.6 * len(name) + 42 for name in labels)  # in pixels, as the average letter is wide
        columns = len(handles) if needed < 72 * self.figure.get_figwidth() - 36 else 2
        self.axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=columns,
            borderaxespad=0.3,
            handlelength=1.6,
            columnspacing=1.3,
            labelspacing=0.25,
            borderpad=0,
        )

    def per_cent(self, axis: Axis) -> None:
        """Shares of one along `axis`, written in per cent."""
        from matplotlib.ticker import PercentFormatter

        axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))

    def logarithmic(self, axis: Axis) -> None:
        """Equal ratios take equal steps along `axis`. Its numbers are plain: matplotlib's are formulas, not set here."""
        from matplotlib.ticker import FuncFormatter, NullFormatter

        (self.axes.set_xscale if axis is self.axes.xaxis else self.axes.set_yscale)("log")
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if 1 <= x < 1e6 else f"{x:g}"))
        axis.set_minor_formatter(NullFormatter())

    def count_rounds(self, x_label: str = "round", most: int = 8) -> None:
        """An x axis of whole numbers."""
        from matplotlib.ticker import MaxNLocator

        self.axes.xaxis.set_major_locator(MaxNLocator(nbins=most, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        self.axes.set_xlabel(x_label, loc="right")


def draw(name: str, paint: Callable[[Canvas], None], width: float = 400, height: float = 240) -> str:
    """The inline SVG of what `paint` draws, `width` by `height` at its natural size in CSS pixels.

    `name` makes the ids of this drawing different from those of its neighbours on the page.

    >>> svg = draw("loss", lambda canvas: canvas.axes.plot([0, 1], [2.3, 1.1], color=SERIES[0]))
    >>> "var(--c1)" in svg, "http://purl.org" in svg
    (True, False)
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with _alone, matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has the fonts
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        canvas = Canvas(figure, figure.add_subplot())
        paint(canvas)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return inline(out.getvalue(), re.sub(r"\W+", "-", name), canvas.tips)


def inline(svg: str, name: str, tips: Mapping[str, Sequence[str]]) -> str:
    """Matplotlib's SVG made fit for a page: no prologue, own ids, the page's colours and font, tooltips."""
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in list(parent):
            if child.tag in {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}:
                parent.remove(child)
    for group in root.iter(f"{{{_SVG}}}g"):
        _say(group, tips.get(group.get("id", ""), ()))
    _rename(root, name)
    for element in root.iter():
        if style := element.get("style"):
            element.set("style", _themed(style))
        if (path := element.get("d")) is not None:
            element.set("d", _short(path))
        if element.tag == f"{{{_SVG}}}text" and element.get("transform", "").startswith("rotate(-0"):
            del element.attrib["transform"]
        if element.text is not None and element.tag not in {f"{{{_SVG}}}text", f"{{{_SVG}}}title", f"{{{_SVG}}}tspan"}:
            element.text = None
        element.tail = None
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("class", "plot")
    root.set("aria-hidden", "true")  # the figure's alternative text speaks for it
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def _say(group: ElementTree.Element, texts: Sequence[str]) -> None:
    marks = list(group.iter(f"{{{_SVG}}}use"))
    if len(marks) == len(texts):  # a mark that was not drawn would shift every text after it
        for mark, text in zip(marks, texts, strict=True):
            ElementTree.SubElement(mark, f"{{{_SVG}}}title").text = text


def _rename(root: ElementTree.Element, name: str) -> None:
    """Keeps only the ids that something refers to, and makes them this drawing's own."""
    values = (value for element in root.iter() for value in element.attrib.values())
    used = {first or second for value in values for first, second in re.findall(r"^#(.+)$|url\(#(.+?)\)", value)}
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                if value in used:
                    element.set(key, f"{name}-{value}")
                else:
                    del element.attrib[key]
            elif "#" in value and key != "style":
                element.set(key, re.sub(r"^#|(?<=url\(#)", lambda at: f"{at.group()}{name}-", value))


def _themed(style: str) -> str:
    style = re.sub(r"font: ([\d.]+px)[^;]*|font-family:[^;]*;?", lambda m: f"font-size: {m[1]}" if m[1] else "", style)
    return re.sub(r"#[0-9a-f]{6}", lambda colour: _VARIABLE.get(colour.group(), colour.group()), style)


def _short(path: str) -> str:
    """A path with a tenth of a pixel's precision, which is finer than anyone sees, in a third of the bytes."""
    rounded = re.sub(r"-?\d+\.\d+", lambda value: f"{float(value.group()):.2f}".rstrip("0").rstrip("."), path)
    return re.sub(r"\s*\n\s*", "", rounded).replace(" L ", "L")
