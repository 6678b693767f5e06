"""Figures that tests want people to read: pytest shows them at its end (conftest.py)."""

_paragraphs: list[str] = []


def say(text: str) -> None:
    """Keep a line, or a table of several."""
    _paragraphs.append(text)


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Keep a table; columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]]
    say("\n".join([title, *(f"  {line.rstrip()}" for line in lines)]))


def said() -> list[str]:
    """Everything so far."""
    return list(_paragraphs)
