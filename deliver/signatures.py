"""DKIM signatures (RFC 6376), verified by dkimpy with keys that dnspython fetches.

One deadline holds for all signatures of a message together, and a message over a size is not looked at: dkimpy wants it
in memory. What it raises on hostile signatures is one more result (RFC 8601 section 2.7.1).
"""

import re
import time
from collections.abc import Callable
from typing import Any

from deliver.rules.model import CannotTell, Signature
from deliver.values import Content

MOST = 8
"""Signatures that are verified, from the top. RFC 6376 section 6.1 lets a verifier limit them; real mail has three."""

LARGEST_HEADER = 128 * 1024
"""Bytes of a header. dkimpy takes time quadratic in the lines of one folded field."""

LONGEST_KEY = 2000
"""Characters of a key's p=; one of 8192 bits has 1416. Whoever signs chooses how long checking takes."""

Fetch = Callable[[str, float], bytes | None]
"""The TXT record of a name, asked for at most so many seconds; None where there is none. Raises NoAnswer."""


class NoAnswer(Exception):
    """The DNS did not say; it may later."""


def verify(content: Content, timeout: float, max_size: int, fetch: Fetch | None = None) -> tuple[Signature, ...]:
    """The signatures of a message in their order, verified within ``timeout`` seconds of DNS.

    A result is "pass", "fail", "neutral" for a signature that is none, "policy" for one that is too weak to believe (a
    short key, SHA-1, a part of the body that is not signed),
    "permerror" for an unusable key, "temperror" where the DNS did not answer. Raises CannotTell for a message of more
    than ``max_size`` bytes.
    """
    fields = content.fields("dkim-signature")
    if not fields:
        return ()
    if content.size > max_size:
        raise CannotTell(f"with {content.size:,} bytes it is too large for its signatures to be verified")
    message = b"".join(content.chunks())
    end = re.search(rb"\n\r?\n", message)
    header = message[: end.start() if end else len(message)]
    if len(header) > LARGEST_HEADER:
        raise CannotTell("its header is too large for its signatures to be verified")
    body = _Body(message[end.end() if end else len(message) :].replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    del message
    import logging

    import dkim

    dkim.canonicalization.strip_trailing_lines = _without_last_lines
    dkim.canonicalization.Relaxed.canonicalize_body = staticmethod(_relaxed)
    silent = logging.getLogger("deliver.dkim")
    silent.setLevel(logging.CRITICAL + 1)
    try:
        one = dkim.DKIM(header + b"\n\n", logger=silent, minkey=1024)
    except Exception as error:  # dkimpy promises nothing for headers that are none
        return (Signature("neutral", "", f"the header cannot be read: {error}"),)
    one.body = body
    keys = _Keys(fetch or txt_record, time.monotonic() + timeout)
    return tuple(_verified(one, index, keys) for index in range(min(len(fields), MOST)))


class _Body(bytes):
    """A body with CRLF at its lines' ends. Its relaxed form is made once, for all signatures.

    dkimpy's own way to it takes time quadratic in a line's blanks, memory for each blank and each line, and a step of
    Python for each empty line; whoever signs chooses the body.
    """

    relaxed: bytes | None = None


def _relaxed(body: _Body) -> bytes:
    """RFC 6376 section 3.4.4: no blanks at a line's end, one in place of several, no empty lines at the end."""
    if body.relaxed is None:
        text = body.replace(b"\t", b" ")
        while b"  " in text:
            text = text.replace(b"  ", b" ")
        text = _without_last_lines(text.replace(b" \r\n", b"\r\n"))
        body.relaxed = b"" if text == b"\r\n" else text
    return body.relaxed


_EMPTY_LINES = b"\r\n" * 10_000


def _without_last_lines(body: bytes) -> bytes:
    """RFC 6376 section 3.4.3: the body ends in one CRLF."""
    end = len(body)
    for lines in (_EMPTY_LINES, b"\r\n"):
        while body.endswith(lines, 0, end):
            end -= len(lines)
    return body[:end] + b"\r\n"


def _verified(one: Any, index: int, keys: "_Keys") -> Signature:
    import dkim
    from dkim.util import InvalidTagValueList

    domain = ""
    keys.failure = ""
    try:
        prepared = one.verify_headerprep(index)
        if not prepared:
            return Signature("neutral", "", "there is no such signature")
        fields, names, headers = prepared
        domain = fields[b"d"].decode("ascii", "replace").lower()
        if not _DOMAIN.fullmatch(domain):
            return Signature("neutral", "", "d= is no domain")
        if one.verify_sig(fields, names, headers[index], keys.get):
            weak = _weakness(fields, one.body)
            return Signature("policy" if weak else "pass", domain, weak)
        return Signature("permerror" if keys.failure else "fail", domain, keys.failure or "the signature does not fit")
    except NoAnswer as error:
        return Signature("temperror", domain, str(error))
    except dkim.UnknownKeyTypeError as error:
        return Signature("permerror", domain, f"unknown type of key: {error}")
    except dkim.KeyFormatError as error:
        small = "too small" in str(error)
        return Signature("policy" if small else "permerror", domain, str(error))
    except dkim.ValidationError as error:
        broken = "mismatch" in str(error)
        return Signature("fail" if broken else "neutral", domain, "the body was changed" if broken else str(error))
    except (dkim.DKIMException, InvalidTagValueList) as error:
        return Signature("neutral", domain, str(error))
    except Exception as error:  # dkimpy promises nothing for signatures that are made to break it
        return Signature("neutral", domain, f"{type(error).__name__}: {error}")


def _weakness(fields: dict[bytes, bytes], body: _Body) -> str:
    """What a signature that holds lets others do in its name; "" if nothing."""
    if fields.get(b"a") == b"rsa-sha1":
        return "it is made with SHA-1, which RFC 8301 does not let anybody believe"
    if b"l" not in fields:
        return ""
    relaxed = fields.get(b"c", b"").partition(b"/")[2] == b"relaxed"
    whole = len(_relaxed(body) if relaxed else _without_last_lines(body))
    covered = int(fields[b"l"])
    # RFC 6376 section 8.2: whoever passes the message on can write what follows.
    return f"it covers only {covered} of {whole} bytes of the body" if covered < whole else ""


_DOMAIN = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,250}[a-z0-9])?")


class _Keys:
    """Public keys from the DNS, each name asked once, until the deadline. ``failure`` says why the last is unusable."""

    def __init__(self, fetch: Fetch, deadline: float) -> None:
        self._fetch = fetch
        self._deadline = deadline
        self._answers: dict[str, bytes | None] = {}
        self.failure = ""

    def get(self, name: bytes, timeout: float = 0) -> bytes | None:
        """What dkimpy calls; its own timeout counts for each signature, and ours for all."""
        del timeout
        wanted = name.decode("ascii", "replace")
        if wanted not in self._answers:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise NoAnswer("the DNS took too long")
            self._answers[wanted] = self._fetch(wanted, left)
        answer = self._answers[wanted]
        # dkimpy answers False for a key that it cannot read, as for a signature that does not fit.
        self.failure = _fault(answer)
        return None if self.failure else answer


def _fault(record: bytes | None) -> str:
    """What is wrong with a key record (RFC 6376 section 3.6.1), "" if nothing is."""
    if record is None:
        return "there is no key"
    found = re.search(rb"(?:\A|;)\s*p\s*=([^;]*)", record)
    if found is None:
        return "the key record has no p="
    if not found[1].strip():
        return "the key was revoked"
    return "the key is too long" if len(found[1]) > LONGEST_KEY else ""


def txt_record(name: str, timeout: float) -> bytes | None:
    """See Fetch; asks the resolvers of resolv.conf(5)."""
    import dns.exception
    import dns.name
    import dns.resolver

    try:
        wanted = dns.name.from_text(name)
    except (dns.exception.DNSException, ValueError):  # no name that the DNS could have
        return None
    try:
        answer: Any = dns.resolver.resolve(wanted, "TXT", lifetime=timeout, search=False)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.resolver.YXDOMAIN):
        return None
    except (dns.exception.DNSException, OSError) as error:
        raise NoAnswer(f"the DNS did not answer: {type(error).__name__}") from error
    return next((b"".join(record.strings) for record in answer), None)
