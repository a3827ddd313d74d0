"""What a report is made of: sections of words, tables and figures, and how numbers are said."""

from dataclasses import dataclass, field

from rollout.report.theme import Draw


@dataclass(slots=True, kw_only=True, frozen=True)
class Table:
    """Cells as text; the first column says what a row is."""

    head: list[str]
    rows: list[list[str]]


@dataclass(slots=True, kw_only=True, frozen=True)
class Picture:
    """A figure: its file name, what it shows in words, how it is drawn."""

    name: str
    alt: str
    draw: Draw
    is_wide: bool = True


@dataclass(slots=True, kw_only=True)
class Section:
    """The answer to one question about the run."""

    id: str
    title: str
    words: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """How the numbers were made."""
    missing: str = ""


def share(value: float) -> str:
    """A share in words; what is there but rounds to nothing is not called nothing."""
    return "< 1 %" if 0 < value < 0.005 else f"{value:.0%}".replace("%", " %")


def duration(seconds: float) -> str:
    """A length of time in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
