"""Notices of mail that did not arrive: to the administrator, the recipient and, where plausible, the sender.

Like replies they are a courtesy that comes after the outcome. The sender of spam or of a virus never gets one, since it
is forged; nor does anybody who must not get a reply (deliver.reply).
"""

import hashlib
import html
import re
from typing import NamedTuple

from deliver import letters, reply
from deliver.actions import Tools
from deliver.headers import decode
from deliver.message import Message
from deliver.rules import placeholders
from deliver.settings import NOTICE_WORDS, Notices
from deliver.values import Answer, Envelope, Finding, Plan, Verb, Verdict
from quarantine.store import kind_of

TEXT = """\
This message {what}:

  From:     {from}
  To:       {to}
  Subject:  {subject}
  Date:     {date}
  Size:     {size} bytes

Reason: {reason}
"""

HTML = """\
<!DOCTYPE html>
<html><body>
<p>This message {what}:</p>
<table>
<tr><td>From:</td><td>{from}</td></tr>
<tr><td>To:</td><td>{to}</td></tr>
<tr><td>Subject:</td><td>{subject}</td></tr>
<tr><td>Date:</td><td>{date}</td></tr>
<tr><td>Size:</td><td>{size} bytes</td></tr>
</table>
<p>Reason: {reason}</p>
</body></html>
"""

_LARGEST_TEMPLATE = 256 * 1024  # bytes
_FOR_SENDERS = ("policy", "unscanned")
_FULL = re.compile(r"5\.2\.2\b")
_ADDRESS = re.compile(r"[!-?A-~]{1,64}@[!-?A-~]{1,255}")


class _Case(NamedTuple):
    """A message that did not arrive. ``about`` is the event that kept it."""

    about: str
    plan: Plan
    verdicts: tuple[Verdict, ...]
    message: Message
    envelope: Envelope


def event(plan: Plan, verdicts: tuple[Verdict, ...]) -> str:
    """What kept a message from its recipient, as [notices] about names it; "" where nothing did.

    What is tried again has not failed yet.
    """
    verbs = {action.verb for action in plan.actions}
    bounced = next((action.text for action in plan.actions if action.verb is Verb.BOUNCE), None)
    if bounced is not None and _FULL.match(bounced):
        return "quota"
    if not (bounced is not None or Verb.QUARANTINE in verbs or verbs == {Verb.DISCARD}):
        return ""
    return kind_of(plan.reason, {verdict.finding.value for verdict in verdicts})


def send(
    settings: Notices,
    plan: Plan,
    verdicts: tuple[Verdict, ...],
    message: Message,
    envelope: Envelope,
    tools: Tools,
) -> list[str]:
    """Send the notices that are wanted; what came of each, for the log in words. The message is placed: never raises.

    One to the same address about the same kind of event, from one mailbox, goes out once in [notices] every.
    """
    about = event(plan, verdicts)
    if about not in settings.about or _is_notice(message, envelope):
        return []
    case = _Case(about, plan, verdicts, message, envelope)
    said = []
    for whom in dict.fromkeys(settings.to):
        try:
            said.append(_send(whom, case, settings, tools))
        except Exception as error:
            said.append(f"not sent to the {whom}: {type(error).__name__}: {error}")
    return said


def _is_notice(message: Message, envelope: Envelope) -> bool:
    """Whether it is a letter of this kind itself: one about one that was held, and so on, would never end."""
    said = [decode(value).partition(";")[0].strip().lower() for value in message.fields("auto-submitted")]
    return not envelope.sender and said == ["auto-generated"]


def _send(whom: str, case: _Case, settings: Notices, tools: Tools) -> str:
    envelope = case.envelope
    address = {"admin": settings.admin, "recipient": envelope.recipient, "sender": envelope.sender}[whom]
    why = "" if _ADDRESS.fullmatch(address) else "it has no address that could be used"
    if whom == "sender":
        why = _implausible(case) or reply.why_not(case.message, envelope, ())
    if not why:
        key = hashlib.sha256(f"{case.about}\0{address.lower()}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
        once = Answer(address, envelope.recipient, "", "", f"notice-{key}", settings.every)
        text = _compose(whom, address, case, settings, tools)
        why = tools.maildir.answer(once, tools.now, lambda: tools.injector().send("", address, [text]))
    return f"not sent to the {whom} {address}: {why}" if why else f"sent to the {whom} {address}"


def _implausible(case: _Case) -> str:
    """Why the sender must not hear of it."""
    if case.plan.spam or any(verdict.finding in (Finding.VIRUS, Finding.SPAM) for verdict in case.verdicts):
        return "the sender of spam or of a virus is forged"
    if any(action.verb is Verb.BOUNCE for action in case.plan.actions):
        return "the mail server tells the sender"
    return "" if case.about in _FOR_SENDERS else f"no sender hears of {case.about}"


def _compose(whom: str, address: str, case: _Case, settings: Notices, tools: Tools) -> bytes:
    """The notice. Raises OSError or ValueError where a template cannot be used."""
    about, plan, _, message, envelope = case
    values = {
        "what": _what(plan),
        "event": about,
        "reason": plan.reason,
        "from": envelope.sender or "<>",
        "to": envelope.recipient,
        "subject": tools.subject,
        "date": _first(message, "date"),
        "message-id": _first(message, "message-id"),
        "id": ", ".join(tools.held),
        "size": str(message.size),
        "virus": plan.reason.rpartition(" the virus ")[2] if about == "virus" else "",
    }
    plain = {name: placeholders.printable(value) for name, value in values.items()}
    escaped = {name: html.escape(value) for name, value in plain.items()}
    text = placeholders.put(_template(settings.text, TEXT), plain)
    shown = placeholders.put(_template(settings.html, HTML), escaped)
    subject = placeholders.put(settings.subject, plain).strip()
    sender = settings.sender.replace("{domain}", envelope.recipient.rpartition("@")[2])
    more = b"Auto-Submitted: auto-generated\nPrecedence: bulk\n"
    if whom == "sender":  # RFC 3834 section 5: it answers a message
        more = b"".join(reply.threading(message)) + b"Auto-Submitted: auto-replied\nPrecedence: bulk\n"
    return letters.letter(sender, address, subject, text, shown, tools.now, more)


def _what(plan: Plan) -> str:
    verbs = {action.verb for action in plan.actions}
    if Verb.BOUNCE in verbs:
        return "was given back to its sender"
    return "is held in quarantine" if Verb.QUARANTINE in verbs else "was deleted"


def _first(message: Message, name: str) -> str:
    return next(map(decode, message.fields(name)), "")


def _template(path: str, built_in: str) -> str:
    return read_template(path) if path else built_in


def read_template(path: str) -> str:
    """A template's text. Raises OSError, or ValueError where it names what there is not."""
    with open(path, "rb") as file:
        data = file.read(_LARGEST_TEMPLATE + 1)
    if len(data) > _LARGEST_TEMPLATE:
        raise ValueError(f"{path}: is over 256 KiB")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8") from None
    try:
        return placeholders.check(text, NOTICE_WORDS)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
