"""Figures with their targets, and how they are shown."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be."""

    sense: Literal["≤", "≥"]
    bound: float

    def met(self, value: float) -> bool:
        """Is it?"""
        return value <= self.bound if self.sense == "≤" else value >= self.bound


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    what: str
    value: float
    unit: str
    target: Target | None = None

    @property
    def verdict(self) -> str:
        """In words; nothing where nothing is asked for."""
        if self.target is None:
            return ""
        return "met" if self.target.met(self.value) else "NOT MET"


@dataclass(slots=True)
class Section:
    """What one scenario found."""

    title: str
    notes: list[str] = field(default_factory=list)
    #: For people; the first row is the head. The same for machines is in `rows`.
    table: list[list[str]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    #: The part of the machine's CPU time that others took meanwhile, 0 to 1.
    neighbours: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "title": self.title,
            "notes": self.notes,
            "cpu_taken_by_others": self.neighbours,
            "rows": self.rows,
            "figures": [
                {
                    "what": figure.what, "value": figure.value, "unit": figure.unit,
                    "target": None if figure.target is None else f"{figure.target.sense} {figure.target.bound:g}",
                    "met": None if figure.target is None else figure.target.met(figure.value),
                }
                for figure in self.figures
            ],
        }  # fmt: skip


def number(value: float) -> str:
    """With as many digits as mean something.

    >>> number(12345.6), number(93.44), number(1.234), number(0.05)
    ('12,346', '93.4', '1.23', '0.05')
    """
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 20 else f"{value:.2f}"


def show(section: Section) -> str:
    """A section as text."""
    lines = ["", section.title, "-" * len(section.title), *section.notes]
    if section.neighbours is not None:
        lines.append(f"other programs took {section.neighbours:.0%} of the machine's CPU time meanwhile")
    if section.table:
        lines += ["", *columns(section.table)]
    if section.figures:
        rows = [
            [
                figure.what,
                f"{number(figure.value)} {figure.unit}".rstrip(),
                f"{figure.target.sense} {number(figure.target.bound)}" if figure.target else "",
                figure.verdict,
            ]
            for figure in section.figures
        ]
        lines += ["", *columns([["", "measured", "target", ""], *rows])]
    return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
