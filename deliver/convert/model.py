"""What a filter of another program becomes: settings and rules of ours, and what could not be said in them."""

from typing import NamedTuple


class Wrong(Exception):
    """The file cannot be read as what it is said to be. ``line`` counts from 1; the words say what was expected."""

    def __init__(self, line: int, words: str) -> None:
        super().__init__(words)
        self.line = line


class Converted(NamedTuple):
    """One [[rule]]: ``table`` is as msgspec or tomllib would give it, ``when`` a table in it.

    ``line`` is where the original begins, ``comments`` are those that stood before it, without their "#".
    """

    line: int
    table: dict[str, object]
    comments: tuple[str, ...] = ()


class Reported(NamedTuple):
    """A line, or several that belong together, that no rule stands for: where it begins, itself, and why not.

    A ``warning`` marks a line that has become a rule, though not quite the same one. ``comments`` as in Converted.
    """

    line: int
    text: str
    reason: str
    warning: bool = False
    comments: tuple[str, ...] = ()


def lines_of_dos(text: str, program: str) -> tuple[Reported, ...]:
    """A warning where the file's lines end in CR LF, as editors of Windows write them."""
    at = text.find("\r\n")
    if at < 0:
        return ()
    reason = f"lines end in CR LF, and {program} takes the CR for a part of them; the rules are as if it were not there"
    return (Reported(text.count("\n", 0, at) + 1, text[text.rfind("\n", 0, at) + 1 : at], reason, warning=True),)


class Conversion(NamedTuple):
    """All of one file, in its order. ``settings`` are tables of the configuration: {"spam": {"folder": "Junk"}}.

    ``comments`` are those after the last rule, ``preface`` is what is to be said before the first.
    """

    rules: tuple[Converted, ...] = ()
    reported: tuple[Reported, ...] = ()
    settings: dict[str, dict[str, object]] = {}  # noqa: RUF012 # never changed
    comments: tuple[str, ...] = ()
    preface: tuple[str, ...] = ()
