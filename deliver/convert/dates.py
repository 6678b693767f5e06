"""date(1) in a folder's name, in the placeholders that our folders' names can hold."""

import re

from deliver.convert.patterns import Untranslatable

_FIELDS = {"Y": ("year",), "m": ("month",), "d": ("day",), "F": ("year", "month", "day")}


def parts(form: str) -> list[str]:
    """What date(1) makes of a format: at even places text, at odd ones a placeholder's name. Raises Untranslatable."""
    found = [""]
    for piece in re.split(r"(%.)", form):
        if not re.fullmatch(r"%.", piece):
            found[-1] += piece
        elif piece == "%%":
            found[-1] += "%"
        elif piece[1] in _FIELDS:
            for at, name in enumerate(_FIELDS[piece[1]]):
                found[-1] += "-" if at else ""
                found += [name, ""]
        else:
            raise Untranslatable(f"folders' names have no {piece} of date(1)")
    return found
