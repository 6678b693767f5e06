"""Ask all scanners about one message, at the same time."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from deliver import header_lines
from deliver.values import Content, Envelope, Finding, Note, Step, Verdict

_UNITS = ((1024 * 1024, "MiB"), (1024, "KiB"))


class Scanner(Protocol):
    """Something that can judge a message. It reports; policy acts.

    ``name`` is "clamd", "spamd", ...; a message of more than ``max_size`` bytes is not shown to it.
    """

    name: str
    max_size: int

    async def scan(self, content: Content, envelope: Envelope) -> Verdict:
        """Judge the message, within a deadline of its own. A failure is a verdict, not an exception."""


async def scan_all(
    scanners: Sequence[Scanner], content: Content, envelope: Envelope, note: Note
) -> tuple[Verdict, ...]:
    """Return each scanner's verdict, in the scanners' order, and note each in words.

    It takes as long as the slowest of them. A message over a scanner's cap is SKIPPED; a scanner that raises has
    FAILED.
    """
    verdicts = await asyncio.gather(*(_scan(scanner, content, envelope) for scanner in scanners))
    for verdict in verdicts:
        note(Step("scan", in_words(verdict)))
    return tuple(verdicts)


async def _scan(scanner: Scanner, content: Content, envelope: Envelope) -> Verdict:
    if content.size > scanner.max_size:
        return Verdict(scanner.name, Finding.SKIPPED, reason=f"larger than {_size(scanner.max_size)}")
    start = time.monotonic()
    try:
        verdict = await scanner.scan(content, envelope)
    except Exception as error:  # whatever an adapter does wrong must not lose or bounce the message
        verdict = Verdict(
            scanner.name, Finding.FAILED, reason=f"{scanner.name} failed", detail=f"{type(error).__name__}: {error}"
        )
    return verdict._replace(seconds=time.monotonic() - start)


def in_words(verdict: Verdict) -> str:
    """Tell a verdict in one clause: "spamd: spam, 15.1 of 5.0 points, 23 ms (GTUBE, NO_RELAYS)"."""
    text = f"{verdict.scanner}: {verdict.finding.value}"
    if verdict.finding is Finding.VIRUS:
        text += f" {', '.join(verdict.names)}"
    if verdict.objections:
        text += f", {header_lines.objections(verdict.objections)}"
    if verdict.score is not None:
        required = "" if verdict.required is None else f" of {verdict.required:.1f}"
        text += f", {verdict.score:.1f}{required} points"
    if verdict.reason:
        text += f", {verdict.reason}"
    if verdict.seconds:
        text += f", {verdict.seconds * 1000:.0f} ms"
    if verdict.score is not None and verdict.names:
        text += f" ({', '.join(verdict.names)})"
    return text


def _size(size: int) -> str:
    for unit, name in _UNITS:
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"
