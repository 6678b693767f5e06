"""Delivery failures, as flufl.bounce recognises them."""

from collections.abc import Iterable
from typing import NamedTuple

LOOKED_AT = 256 * 1024
"""Bytes of a message. What a mail server writes comes first, the message that it gives back behind that."""

_MOST_LINES = 20_000  # each costs some 20 microseconds: detectors try many patterns on every line
_MOST_MULTIPARTS = 50  # the email package compares each line with all boundaries that are open
_MOST_PARTS = 1000  # and each of 17 detectors walks over all parts


class Bounce(NamedTuple):
    """The addresses that failed for good and for now; none for a message that is no bounce, or is not recognised."""

    permanent: frozenset[str] = frozenset()
    temporary: frozenset[str] = frozenset()


def read(chunks: Iterable[bytes]) -> Bounce:
    """Whom a bounce is about. Never raises."""
    front = bytearray()
    for chunk in chunks:
        front += chunk[: LOOKED_AT - len(front)]
        if len(front) >= LOOKED_AT:
            break
    if front.lower().count(b"boundary") > _MOST_MULTIPARTS or front.count(b"\n--") > _MOST_PARTS:
        return Bounce()

    shown = b"\n".join(front.split(b"\n", _MOST_LINES)[:_MOST_LINES])

    import email
    import logging

    from flufl.bounce import all_failures

    logging.getLogger("flufl.bounce").setLevel(logging.CRITICAL + 1)  # it logs each detector and its tracebacks
    try:
        temporary, permanent = all_failures(email.message_from_bytes(shown))
    except Exception:  # detectors and the email package raise what they like on hostile mail
        return Bounce()
    return Bounce(_addresses(permanent), _addresses(temporary))


def _addresses(found: Iterable[bytes | str]) -> frozenset[str]:
    return frozenset(one if isinstance(one, str) else one.decode("utf-8", "replace") for one in found)
