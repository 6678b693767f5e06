"""Spam: ask rspamd (https://rspamd.com/doc/developers/protocol.html, POST /checkv2).

Its actions are recommendations to a mail server in the middle of an SMTP session. Behind one, "greylist" comes too late
and is none; "add header", "rewrite subject" and "reject" say spam, and policy does with it what the site wants.
"""

import asyncio
import math
import re
from collections.abc import Sequence
from typing import Any

from deliver.scanners.address import Address, parse
from deliver.scanners.pool import BadAnswer, Health, NoAnswer, first_answer, printable
from deliver.scanners.stream import chunks, connected
from deliver.values import Content, Envelope, Finding, Verdict

_BLOCK = 64 * 1024  # bytes
_ANSWER_LIMIT = 1024 * 1024  # bytes; a usual answer has some 2 KiB
_NAMES_LIMIT = 200  # symbols that are kept
_LEVELS = 50  # asterisks in X-Spam-Level at most, as SpamAssassin has it (Mail::SpamAssassin::Conf)
_LINE = 76  # characters
_QUOTED = 120  # characters of a strange answer that the log shows
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: ([^\r\n]*))?")
_LENGTH = re.compile(rb"(?im)^content-length:[ \t]*([0-9]{1,9})[ \t]*\r?$")
_SYMBOL = re.compile(r"[A-Za-z0-9_]{1,64}")
_HEADER_VALUE = re.compile(r"[!-~]{1,320}")  # an address has at most 320 characters; and nothing may end the line
_OK = 200

_ACTIONS = {
    "no action": Finding.CLEAN,
    "greylist": Finding.CLEAN,
    "add header": Finding.SPAM,
    "rewrite subject": Finding.SPAM,
    "reject": Finding.SPAM,
    "discard": Finding.SPAM,
    "quarantine": Finding.SPAM,
    "soft reject": Finding.FAILED,
}
_SPAM_FROM = ("add header", "rewrite subject", "reject")


class Rspamd:
    """One rspamd, or a pool of them that are asked in turn.

    ``name`` is the scanner's in the configuration, ``addresses`` are as there ("tcp:host:port", "unix:/path";
    ValueError otherwise). ``max_size`` is in bytes, for ``scan_all``. ``timeout`` is in seconds, for all members of the
    pool together. ``user`` is for whom the message is ("{recipient}" is the envelope recipient), "" for nobody: one
    verdict for all. ``soft_reject`` is what "soft reject" means: "failed", or "clean".
    """

    def __init__(
        self,
        name: str,
        addresses: Sequence[str],
        max_size: int,
        timeout: float,
        *,
        user: str = "",
        soft_reject: str = "failed",
    ) -> None:
        self.name = name
        self.max_size = max_size
        self._addresses = tuple(parse(text) for text in addresses)
        self._timeout = timeout
        self._user = user
        self._soft_reject = soft_reject
        self._health = Health()

    async def scan(self, content: Content, envelope: Envelope) -> Verdict:
        """Return CLEAN or SPAM with score, threshold, symbols and header lines, SKIPPED or FAILED."""
        head = request(content.size, envelope.sender, self._user.replace("{recipient}", envelope.recipient))

        async def ask(address: Address, _deadline: float) -> Verdict:
            async with connected(address) as (reader, writer):
                writer.write(head)
                async for piece in chunks(content):
                    writer.write(piece)
                    await writer.drain()
                return read_verdict(self.name, read_answer(await _read(reader)), self._soft_reject)

        try:
            return await first_answer(self.name, self._addresses, self._timeout, ask, self._health)
        except NoAnswer as error:
            return Verdict(self.name, Finding.FAILED, reason=error.reason, detail=error.detail)


def request(size: int, sender: str, user: str) -> bytes:
    """The header of a request to check a message of ``size`` bytes from ``sender`` for ``user``.

    The header User is for one who has authenticated to the mail server as the sender: rspamd trusts such mail. For whom
    a message is, Rcpt and Deliver-To say. Without Ip, rspamd takes the address from the top Received line.
    """
    lines = ["POST /checkv2 HTTP/1.0", f"Content-Length: {size}"]
    values = {"From": sender, "Rcpt": user, "Deliver-To": user}
    lines += [f"{name}: {value}" for name, value in values.items() if _HEADER_VALUE.fullmatch(value)]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


async def _read(reader: asyncio.StreamReader) -> bytes:
    answer = bytearray()
    while block := await reader.read(_BLOCK):
        answer += block
        if len(answer) > _ANSWER_LIMIT:
            raise BadAnswer(f"the answer has more than {_ANSWER_LIMIT} bytes")
    return bytes(answer)


def read_answer(answer: bytes) -> dict[str, Any]:
    """The object in rspamd's HTTP answer; BadAnswer where there is no whole one."""
    import json  # most sites have no rspamd

    if not answer:
        raise BadAnswer("the connection was closed without an answer", "did not answer")
    head, end, body = answer.partition(b"\r\n\r\n")
    line, _, fields = head.partition(b"\r\n")
    status = _STATUS_LINE.fullmatch(line)
    length = _LENGTH.findall(fields)
    if status is None or not end:
        raise BadAnswer(f"not an HTTP answer: {_quote(answer)}")
    if int(status[1]) != _OK:
        raise BadAnswer(f"status {_quote(line)}", "reported an error")
    if len(length) != 1 or int(length[0]) != len(body):
        raise BadAnswer(f"the answer has {len(body)} bytes of {b', '.join(length).decode('ascii') or 'unknown'}")
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"not JSON: {_quote(body)}") from error
    if not isinstance(said, dict):
        raise BadAnswer(f"not an object: {_quote(body)}")
    if "error" in said:
        raise BadAnswer(printable(str(said["error"]), _QUOTED), "reported an error")
    return said


def read_verdict(name: str, said: dict[str, Any], soft_reject: str) -> Verdict:
    """Make a verdict of rspamd's answer; BadAnswer where it is none."""
    score, action = _number(said.get("score")), said.get("action")
    if score is None or not isinstance(action, str) or action not in _ACTIONS:
        raise BadAnswer(f"no verdict: action {str(action)[:_QUOTED]!r}, score {str(said.get('score'))[:_QUOTED]!r}")
    finding = _ACTIONS[action]
    if action == "soft reject":
        if soft_reject == "failed":
            words = f"{name} wants the message to come later"
            return Verdict(name, finding, reason=words, detail=words)
        finding = Finding.CLEAN
    if said.get("is_skipped") and action == "no action":
        return Verdict(name, Finding.SKIPPED, reason=f"{name} did not check it")
    required = _required(said, finding, score)
    symbols = said.get("symbols")
    names = [symbol for symbol in symbols if _SYMBOL.fullmatch(symbol)] if isinstance(symbols, dict) else []
    tests = tuple(names[:_NAMES_LIMIT])
    lines = spam_lines(finding is Finding.SPAM, score, required, tests)
    return Verdict(name, finding, names=tests, score=score, required=required, headers=lines)


def _required(said: dict[str, Any], finding: Finding, score: float) -> float | None:
    """The score from which on a message is spam; None where rspamd does not tell.

    ``required_score`` is that of "reject"; what "add header" takes, newer ones say in ``thresholds``.
    """
    thresholds = said.get("thresholds")
    if isinstance(thresholds, dict):
        found = [number for action in _SPAM_FROM if (number := _number(thresholds.get(action))) is not None]
        if found:
            return min(found)
    required = _number(said.get("required_score"))
    if required is not None and (finding is Finding.SPAM) == (score >= required):
        return required
    return None


def spam_lines(spam: bool, score: float, required: float | None, tests: Sequence[str]) -> bytes:
    """The X-Spam-* lines that SpamAssassin would write (Mail::SpamAssassin::Conf, add_header): filters know these."""
    threshold = "none" if required is None else f"{required:.1f}"
    status = f"X-Spam-Status: {'Yes' if spam else 'No'}, score={score:.1f} required={threshold}"
    lines = []
    line = "\ttests="
    for position, test in enumerate(tests or ("none",)):
        if len(line) + len(test) + 1 > _LINE and position:
            lines.append(line)
            line = "\t"
        line += test + ("," if position < len(tests) - 1 else "")
    level = "*" * min(_LEVELS, max(0, int(score)))
    flag = "X-Spam-Flag: YES\n" if spam else ""
    return "\n".join([f"{flag}{status}", *lines, line, f"X-Spam-Level: {level}", ""]).encode("ascii")


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _quote(answer: bytes) -> str:
    return f'"{printable(answer[:_QUOTED].decode("latin-1"), _QUOTED)}"'
