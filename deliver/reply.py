"""Automatic replies (RFC 3834): who must not get one, and what one looks like. They are a courtesy: in doubt, none."""

import re

from deliver import header_lines, headers, letters
from deliver.message import Message
from deliver.values import Answer, Envelope

_ROLES = re.compile(
    r"mailer-daemon.*|listserv.*|majordomo.*|owner-.*|.*-request.*|.*-owner"
    r"|(?:.*-)?bounces?(?:[-+=].*)?|double-bounce|.*-return-[0-9].*"
    r"|(?:postmaster|root|daemon|nobody)(?:[-+].*)?|.*(?:no-?reply|do-?not-?reply)(?:[-+].*)?"
)
"""Local parts behind which nobody reads: those of Dovecot's vacation (the first line), of lists and bounce handlers
with a sender for each recipient (VERP), of programs. Not SRS and BATV: those lead back to a person."""

_LED_HERE = re.compile(rb"(?im)^(?:x-original-to|envelope-to)[ \t]*:(.*(?:\n[ \t].*)*)")
_ADDRESS = re.compile(
    r"(?!-)[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_LONGEST_ADDRESS = 254  # RFC 5321 section 4.5.3.1.3

_LISTS = ("mailing-list", "x-mailing-list")
"""What ezmlm and others write beside List-* (RFC 2369, RFC 2919)."""

_TO_OTHERS = ("to", "cc", "bcc", "resent-to", "resent-cc", "resent-bcc")
_MESSAGE_ID = re.compile(rb"<[!-;=?-~]{1,900}>")
_MOST_REFERENCES = 20


def why_not(message: Message, envelope: Envelope, own: tuple[str, ...]) -> str:
    """Why this message gets no automatic reply, in words; "" if it may. ``own`` are more addresses of the mailbox.

    Everything that Dovecot's vacation looks at (RFC 5230 section 4.5 and 4.6), and what RFC 3834 section 2 adds.
    """
    sender = envelope.sender
    mine = {address.lower() for address in (envelope.recipient, _bare(envelope), *own)}
    user = sender.rpartition("@")[0].lower()
    if sender in ("", "#@[]") or not _fits(sender):
        return "it has no sender who could be answered"
    if not _fits(envelope.recipient):
        return "there is no address of our own to answer from"
    if sender.lower() in mine:
        return "it is from this mailbox itself"
    if _ROLES.fullmatch(user):
        return f"{_printable(sender)} is a program's address"
    return _by_header(message, mine)


def _by_header(message: Message, mine: set[str]) -> str:
    if message.header_is_cut:
        return "its header is too long to be looked through"
    names = message.names()
    if lists := sorted(name for name in names if name.startswith("list-") or name in _LISTS):
        return f"it came over a mailing list ({lists[0]})"
    if any(_first_word(value) != "no" for value in message.fields("auto-submitted")):
        return "a program sent it (Auto-Submitted)"
    if any(_first_word(value) in ("junk", "bulk", "list") for value in message.fields("precedence")):
        return "it is bulk mail (Precedence)"
    suppressed = " ".join(headers.decode(value).lower() for value in message.fields("x-auto-response-suppress"))
    if re.search(r"\b(?:all|oof|autoreply)\b", suppressed):
        return "it asks for no automatic reply (X-Auto-Response-Suppress)"
    if any(_first_word(value) == "multipart/report" for value in message.fields("content-type")):
        return "it is a report, such as a bounce"
    # The address that an alias led here from: the MTA writes it on top (Postfix' X-Original-To, Exim's Envelope-To).
    aliases = {one.lower() for value in _LED_HERE.findall(message.framing.others) for one in headers.addresses(value)}
    named = {one.lower() for name in _TO_OTHERS for value in message.fields(name) for one in headers.addresses(value)}
    if not (mine | aliases) & named:
        return "no address of this mailbox stands in To or Cc (reply has my-addresses for others)"
    from deliver.content import bounces  # late: flufl.bounce is heavy, and few messages come as far as here

    return "it is a bounce" if any(bounces.read(message.chunks())) else ""


def _first_word(value: bytes) -> str:
    """A field's token, without comments and parameters."""
    plain = re.sub(r"\([^()]*\)", " ", headers.decode(value))
    return plain.partition(";")[0].strip().lower()


def _bare(envelope: Envelope) -> str:
    """The recipient without its extension."""
    user, at, domain = envelope.recipient.rpartition("@")
    if envelope.extension and user.endswith((f"-{envelope.extension}", f"+{envelope.extension}")):
        user = user[: -len(envelope.extension) - 1]
    return user + at + domain


def _fits(address: str) -> bool:
    return len(address) <= _LONGEST_ADDRESS and bool(_ADDRESS.fullmatch(address))


def _printable(text: str) -> str:
    """What an explanation may quote."""
    return "".join(char for char in text if char.isprintable())


def compose(answer: Answer, message: Message, now: float) -> bytes:
    """The reply, for a null envelope sender, which RFC 3834 section 3.3 wants; so nobody's responder answers it.

    Precedence is for responders older than that RFC (section 3.1.8).
    """
    lines = [
        header_lines.field("From", f"<{answer.recipient}>"),
        header_lines.field("To", f"<{answer.address}>"),
        header_lines.field("Subject", answer.subject[: header_lines.LONGEST_VALUE] or "Automatic reply"),
        letters.dated(now, answer.recipient.rpartition("@")[2]),
        *threading(message),
        b"Auto-Submitted: auto-replied\nPrecedence: bulk\nMIME-Version: 1.0\n",
        letters.encoded("text/plain", answer.text),
    ]
    return b"".join(lines)


def threading(message: Message) -> list[bytes]:
    """In-Reply-To and References (RFC 5322 section 3.6.4), of what in the message's own lines is well-formed."""
    last = [found for value in message.fields("message-id")[:1] for found in _MESSAGE_ID.findall(value)[:1]]
    if not last:
        return []
    earlier = [found for value in message.fields("references")[:1] for found in _MESSAGE_ID.findall(value)]
    if not earlier:
        earlier = [found for value in message.fields("in-reply-to")[:1] for found in _MESSAGE_ID.findall(value)][:1]
    kept = (*earlier[:1], *earlier[1:][-_MOST_REFERENCES:], *last)
    return [b"In-Reply-To: " + last[0] + b"\n", b"References: " + b"\n ".join(kept) + b"\n"]
