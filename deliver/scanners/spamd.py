"""Spam: ask spamd (SpamAssassin's spamd/PROTOCOL, HEADERS)."""

import asyncio
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deliver.message import IN_MEMORY
from deliver.scanners.address import Address, parse
from deliver.scanners.pool import BadAnswer, Health, NoAnswer, first_answer
from deliver.values import Content, Envelope, Finding, Verdict

if TYPE_CHECKING:
    from deliver.scanners.spamd_connection import Answer

_HEADER_GROWTH = 256 * 1024  # bytes: what spamd may add to the header it gives back
_LINES_LIMIT = 64 * 1024  # bytes of X-Spam-* lines that are kept
_USER = re.compile(r"[!-.0-~]{1,256}")  # printable, and no "/": spamd may make it part of a path
# X-Spam-Prev-* are what a message came with: spamd lets a sender's through.
_OURS = re.compile(rb"X-Spam-(?!Prev-)[!-9;-~]+:", re.IGNORECASE)
_STATUS = re.compile(rb"^X-Spam-Status:(.*(?:\n[ \t].*)*)", re.IGNORECASE | re.MULTILINE)
_TESTS = re.compile(rb"\stests=\s*([A-Za-z0-9_]+(?:,\s*[A-Za-z0-9_]+)*)(?=\s|$)")
_LEADING_FOLD = re.compile(rb"(?:From [^\n]*\n)?(?=[ \t])")


class Spamd:
    """One spamd, or a pool of them that are asked in turn.

    ``addresses`` are as in the configuration ("unix:/path", "tcp:host:port"; ValueError otherwise). ``max_size`` is in
    bytes, for ``scan_all``. ``timeout`` is in seconds: connect, send and answer, for all members of the pool together.
    ``user`` is whose preferences spamd shall use, "" for its default; "{recipient}" in it is the envelope recipient.
    """

    name = "spamd"

    def __init__(self, addresses: Sequence[str], max_size: int, timeout: float, user: str = "") -> None:
        self.max_size = max_size
        self._addresses = tuple(parse(text) for text in addresses)
        self._timeout = timeout
        self._health = Health()
        self._user = user

    async def scan(self, content: Content, envelope: Envelope) -> Verdict:
        """Return CLEAN or SPAM with score, threshold, tests and spamd's header lines, or FAILED."""
        user = self._whose(envelope.recipient)
        limit = self.max_size + _HEADER_GROWTH

        async def ask(address: Address, _deadline: float) -> Verdict:
            body = await _load(content)
            from deliver.scanners.spamd_connection import ask_headers  # by the first scan: it takes 100 ms

            return read_answer(await ask_headers(address, body, user, limit))

        try:
            return await first_answer(self.name, self._addresses, self._timeout, ask, self._health)
        except NoAnswer as error:
            return Verdict(self.name, Finding.FAILED, reason=error.reason, detail=error.detail)

    async def tell(self, content: Content, recipient: str, *, spam: bool) -> bool:
        """Say that a message is spam, or is not; whether spamd has learned anything new. Raises NoAnswer.

        Members of a pool must share what they learn: whichever answers first is told.
        """
        user = self._whose(recipient)

        async def say(address: Address, _deadline: float) -> bool:
            body = await _load(content)
            from deliver.scanners.spamd_connection import tell

            return await tell(address, body, user, spam=spam)

        return await first_answer(self.name, self._addresses, self._timeout, say, self._health)

    def _whose(self, recipient: str) -> str:
        """The User line; a strange name gets the site's verdict, not an error from spamd."""
        user = self._user.replace("{recipient}", recipient)
        return user if _USER.fullmatch(user) else ""


async def _load(content: Content) -> bytes:
    """The message; a large one lies on the disk."""

    def load() -> bytes:
        return guard(b"".join(content.chunks()))

    return load() if content.size <= IN_MEMORY else await asyncio.to_thread(load)


def guard(message: bytes) -> bytes:
    """Keep a message from writing into spamd's own header lines.

    spamd puts its lines above the message's. Where that starts with a folded line, the line continues spamd's last one,
    X-Spam-Status, with the sender's words. Such a message gets a field of its own to continue; spamd removes that one,
    with its continuation, as any X-Spam line that arrives.
    """
    fold = _LEADING_FOLD.match(message)
    return message[: fold.end()] + b"X-Spam-Start:\n" + message[fold.end() :] if fold else message


def read_answer(answer: "Answer") -> Verdict:
    """Make a verdict of spamd's answer; BadAnswer where its numbers are none."""
    if not (math.isfinite(answer.score) and math.isfinite(answer.required)):
        raise BadAnswer(f"not a score: {answer.score} of {answer.required}")
    lines = spam_lines(answer.header)
    return Verdict(
        "spamd",
        Finding.SPAM if answer.spam else Finding.CLEAN,
        names=names_of_tests(lines),
        score=answer.score,
        required=answer.required,
        headers=lines,
    )


def spam_lines(header: bytes) -> bytes:
    """Return the X-Spam-* fields of a header section, each line ended by LF, 64 KiB at most, without NUL and CR.

    The rest is the message's own, or with ``report_safe 1`` that of a wrapper around it, whose Content-Type would
    destroy the message.
    """
    fields: list[bytes] = []
    kept = False
    for line in header.split(b"\n"):
        # What a line is, its bytes decide as spamd sent them: spamd passes "\0X-Spam-Status: ..." on from the sender.
        clean = line.replace(b"\r", b"").replace(b"\0", b"")
        if not clean.strip():
            if clean == line.rstrip(b"\r") == b"":
                break
            kept = False
        elif line[:1] in (b" ", b"\t"):
            if kept:
                fields[-1] += clean + b"\n"
        else:
            kept = _OURS.match(line) is not None
            if kept:
                fields.append(clean + b"\n")
    result = b""
    for field in fields:
        if len(result) + len(field) <= _LINES_LIMIT:
            result += field
    return result


def names_of_tests(lines: bytes) -> tuple[str, ...]:
    """Return the names in the ``tests=`` of the first X-Spam-Status, unfolded; () for "none" or where there is none."""
    status = _STATUS.search(lines)
    found = _TESTS.search(status[1]) if status else None
    names = tuple(name.strip().decode("ascii") for name in found[1].split(b",")) if found else ()
    return () if names == ("none",) else names
