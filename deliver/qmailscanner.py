"""qmail-scanner's own two logs, line by line, for the programs that read them: qss, qms-analog, munin, log-report.sh.

quarantine.log has six fields parted by TAB: date (RFC 5322), sender, recipient, subject, event, scanner versions. A
line of mailstats.csv: date, status, seconds, bytes, sender, recipient, subject, Message-ID, then NAME:BYTES for each
file. One line is for one recipient. qmail-scanner replaced blanks by "_" in what it gave syslog, not here.
"""

import ipaddress
import re
import time
from collections.abc import Iterator

from deliver import __version__
from deliver.actions import Tools
from deliver.headers import decode
from deliver.message import Message
from deliver.settings import Log
from deliver.values import Envelope, Finding, Plan, Verb, Verdict
from quarantine.store import kind_of

_LONGEST_FIELD = 500  # characters
_MOST_FILES = 50
_BLANKS = b"\r\n\t ="
_BRACKETED = re.compile(r"[\[(]([0-9A-Fa-f:.]{3,45})[\])]")


def lines(
    settings: Log, plan: Plan, verdicts: tuple[Verdict, ...], message: Message, envelope: Envelope, tools: Tools
) -> Iterator[tuple[str, str]]:
    """The paths that are asked for, each with the line for it."""
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(tools.now))
    sender, recipient, subject = envelope.sender, envelope.recipient, tools.subject
    if settings.quarantine_log and _kept_back(plan):
        event, versions = _event(plan, verdicts), _versions(verdicts)
        yield settings.quarantine_log, _line(date, sender, recipient, subject, event, versions)
    if settings.mailstats:
        seconds = f"{max((verdict.seconds for verdict in verdicts), default=0.0):.6f}"
        status = f"{_status(plan, verdicts)}:RC:0({_client(message)}):{_points(verdicts)}:"
        message_id = next(map(decode, message.fields("message-id")), "")
        fields = (date, status, seconds, str(message.size), sender, recipient, subject, message_id, *_files(message))
        yield settings.mailstats, _line(*fields)


def _line(*fields: str) -> str:
    """One line: whatever parts fields or lines for any reader becomes "_"."""
    safe = (re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", "_", field[:_LONGEST_FIELD]) for field in fields)
    return "\t".join(safe) + "\n"


def _kept_back(plan: Plan) -> bool:
    verbs = {action.verb for action in plan.actions}
    return bool(verbs & {Verb.QUARANTINE, Verb.BOUNCE}) or verbs == {Verb.DISCARD}


def _event(plan: Plan, verdicts: tuple[Verdict, ...]) -> str:
    """The virus's name, or what else it was."""
    names = [name for verdict in verdicts if verdict.finding is Finding.VIRUS for name in verdict.names]
    return ", ".join(dict.fromkeys(names)) or plan.reason


def _status(plan: Plan, verdicts: tuple[Verdict, ...]) -> str:
    """Clear, or what qmail-scanner 2 calls its three quarantines with the event's name."""
    if not _kept_back(plan):
        return "Clear"
    kind = kind_of(plan.reason, {verdict.finding.value for verdict in verdicts})
    name = {"virus": "Quarantine:virus", "spam": "Quarantine:spam"}.get(kind, "Quarantine:policy")
    return f"{name}:{_event(plan, verdicts)}"


def _points(verdicts: tuple[Verdict, ...]) -> str:
    """SA:1(8.9/5.0) for spam, SA:0(?/?) where nobody said."""
    said = next((verdict for verdict in verdicts if verdict.score is not None), None)
    if said is None or said.score is None:
        return "SA:0(?/?)"
    required = "?" if said.required is None else f"{said.required:.1f}"
    return f"SA:{int(said.finding is Finding.SPAM)}({said.score:.1f}/{required})"


def _client(message: Message) -> str:
    """The address from which the top Received that names one took it; 127.0.0.1 as qmail-scanner has it for none."""
    for value in message.fields("received"):
        for found in _BRACKETED.finditer(decode(value)):
            try:
                return str(ipaddress.ip_address(found[1]))
            except ValueError:
                continue
    return "127.0.0.1"


def _versions(verdicts: tuple[Verdict, ...]) -> str:
    """As "clamd: -. deliver: 0.1.0.", for scanners do not say their versions with a verdict."""
    names = dict.fromkeys(verdict.scanner for verdict in verdicts)
    return "".join(f"{name}: -. " for name in names) + f"deliver: {__version__}."


def _files(message: Message) -> Iterator[str]:
    from deliver.content import mime  # late: few sites ask for this log

    class Sizes(mime.Watch):
        encoded = 0

        def header(self, _part: mime.Part, _block: bytes) -> None:
            self.encoded = 0

        def body(self, part: mime.Part, piece: bytes) -> None:
            self.encoded += len(piece.translate(None, _BLANKS) if part.encoding == "base64" else piece)

    sizes = Sizes()
    number = 0
    for part in mime.parts(message.chunks(), lambda _part: 0, sizes):
        if part.names and number < _MOST_FILES:
            number += 1
            size = sizes.encoded * 3 // 4 if part.encoding == "base64" else sizes.encoded
            yield f"{part.names[0][:200].replace(':', '_')}:{size}"
