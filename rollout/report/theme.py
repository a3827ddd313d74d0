"""How figures look: sizes, a light and a dark theme, and what every figure starts from.

No pyplot: nothing global is left behind, and a thread may draw. Names come from recipes and
environments, so text is never read as a formula.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Inches of a figure as wide as the page, and of one half as wide.
FULL, HALF = 9.4, 4.6
# About twice what a page shows, for screens with small pixels.
DOTS_PER_INCH = 180


@dataclass(slots=True, kw_only=True, frozen=True)
class Theme:
    """Colours. A thing has the same hue in every figure."""

    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    before: str
    after: str
    engine: str
    learner: str
    both: str
    env: str
    idle: str
    bad: str


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#1c2128",
    muted="#667080",
    grid="#e6e9ee",
    before="#98a2b0",
    after="#2563eb",
    engine="#0f8b8d",
    learner="#e07a1f",
    both="#6d4fc4",
    env="#c2477f",
    idle="#dde1e7",
    bad="#c93c37",
)
DARK = Theme(
    name="dark",
    paper="#171b22",
    ink="#e6eaf0",
    muted="#929dac",
    grid="#2b323d",
    before="#7d8794",
    after="#6ea8fe",
    engine="#3fb8b4",
    learner="#f0a35e",
    both="#a993f5",
    env="#e583ae",
    idle="#343c48",
    bad="#f47067",
)
THEMES = (LIGHT, DARK)

Draw = Callable[[Theme], Figure]


def render(draw: Draw, theme: Theme) -> bytes:
    """A figure as PNG."""
    with _style(theme):
        figure = draw(theme)
        FigureCanvasAgg(figure)
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=DOTS_PER_INCH)
    return data.getvalue()


def subplots(
    width: float,
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    sharex: bool = False,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False)
    return figure, list(grid.flat)


def from_zero(axes: Axes, values: Sequence[float]) -> None:
    """0..1 at least, as rewards of most environments go; further where values do."""
    finite = [value for value in values if np.isfinite(value)]
    axes.set_ylim(min([0.0, *finite]) - 0.02, max([1.0, *finite]) + 0.02)


@contextmanager
def _style(theme: Theme) -> Iterator[None]:
    # Typed loosely: matplotlib's own type of a key is a long list of literals.
    settings: Any = {
        "text.parse_math": False,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": theme.ink,
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.muted,
        "axes.linewidth": 0.8,
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "legend.handlelength": 1.0,
        "legend.handleheight": 0.9,
    }
    with matplotlib.rc_context(settings):
        yield
