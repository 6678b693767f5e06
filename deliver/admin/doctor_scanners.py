"""Is each scanner there, how fast, and does it find what it is for? Nothing is changed and nothing is delivered."""

import asyncio
import contextlib
import datetime as dt
import os
import re
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

from deliver import wiring
from deliver.admin.doctor import Case, Check, Said
from deliver.message import Message, Source, read_framing
from deliver.scan import Scanner
from deliver.scanners.clamd import Clamd
from deliver.settings import SpamScanner, one_by_one
from deliver.values import Envelope, Finding, Verdict

SLOW = 3.0
"""Seconds for a message of 500 bytes. spamd takes some 0.2 s without network tests, and a second or so with them."""

OLD_SIGNATURES = 3.0
"""Days; freshclam(1) looks for new ones several times a day, and they come daily."""

OLD_RULES = 60.0
"""Days; sa-update(1) brings new rules every few weeks at least."""

_SLOW_ADVICE = (
    "mostly network tests that wait for answers which never come: a slow or missing resolver (run one on this host; "
    "`time host -t txt multi.surbl.org`), or blocked ports of DCC (UDP 6277), Razor (TCP 2703) and Pyzor (UDP 24441). "
    "Open them or switch these plug-ins off; `spamassassin -D -t < message` shows which test waits"
)


class Member(NamedTuple):
    """One scanner, or one of a pool: ``where`` stands before what is said of it, "" for the only one."""

    where: str
    address: str
    scanner: Scanner


def _members(case: Case, name: str) -> list[Member]:
    """The scanner of this name; of a pool each member by itself, since deliveries pass over a dead one in silence."""
    found = [(address, alone) for one, address, alone in one_by_one(case.settings) if one == name]
    scanners = [next(one for one in wiring.scanners(alone) if one.name == name) for _, alone in found]
    return [
        Member(f"{address}: " if len(found) > 1 else "", address, scanner)
        for (address, _), scanner in zip(found, scanners, strict=True)
    ]


def _ask(scanner: Scanner, text: bytes) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="deliver-doctor-") as maildir:
        os.mkdir(os.path.join(maildir, "tmp"))  # where a program finds its file
        begun = time.monotonic()
        envelope = Envelope("sender@example.org", "you@example.org", maildir)
        verdict = asyncio.run(scanner.scan(Message(Source.of(text), read_framing(b"")), envelope))
        return verdict._replace(seconds=time.monotonic() - begun)


def the_clamd(case: Case) -> Iterator[Said]:
    """There, and with which signatures."""
    members = _members(case, "clamd")
    if not members:
        yield Said("ok", "not configured: nothing is scanned for viruses by it")
    for where, address, scanner in members:
        if isinstance(scanner, Clamd):
            yield _signatures(case, where, address, scanner)


def _signatures(case: Case, where: str, address: str, scanner: Clamd) -> Said:
    try:
        version = asyncio.run(scanner.version())
    except Exception as error:
        advice = f"is clamd running, does it listen at {address}, and may everybody connect (LocalSocketMode 666)?"
        return Said("problem", f"{where}{error}", advice)
    found = re.search(r"/(\d+)/\w{3} (\w{3}) +(\d+) ([\d:]{8}) (\d{4})", version)
    if not found:
        return Said("warning", f"{where}{version}: does not say how old its signatures are", "has freshclam ever run?")
    made = dt.datetime.strptime(f"{found[2]} {found[3]} {found[4]} {found[5]} +0000", "%b %d %H:%M:%S %Y %z")
    days = (case.now - made.timestamp()) / 86400
    words = f"{where}{version.partition('/')[0]}, signatures {found[1]}, {max(days, 0):.0f} days old"
    return Said("warning", words, "is freshclam running? see its log") if days > OLD_SIGNATURES else Said("ok", words)


def eicar(case: Case) -> Iterator[Said]:
    """The test virus must be found; and clamd must take what we send."""
    for where, _, scanner in _members(case, "clamd"):
        said = _virus_seen(where, _ask(scanner, case.samples["virus"]))
        yield said
        if said.level == "ok" and _ask(scanner, b"\n" * scanner.max_size).finding is Finding.SKIPPED:
            words = f"{where}clamd takes less than [clamd] max-size, {scanner.max_size} bytes"
            yield Said("warning", words, "raise its StreamMaxLength")


def _virus_seen(where: str, verdict: Verdict) -> Said:
    if verdict.finding is Finding.VIRUS:
        return Said("ok", f"{where}EICAR seen as {', '.join(verdict.names)} in {verdict.seconds:.2f} s")
    words = f"{where}EICAR was not seen: {verdict.finding.value} {verdict.reason}".rstrip()
    return Said("problem", words, verdict.detail or "are its signatures loaded? see its log")


def the_spamd(case: Case) -> Iterator[Said]:
    """There, which version, and how fast."""
    members = _members(case, "spamd")
    if not members:
        yield Said("ok", "not configured: nothing is scanned for spam by it")
    for where, address, scanner in members:
        verdict = _ask(scanner, case.samples["ham"])
        if verdict.finding is Finding.FAILED:
            advice = f"{verdict.detail}; is spamd running, and does it listen at {address}?"
            yield Said("problem", f"{where}{verdict.reason}", advice)
            continue
        found = re.search(rb"X-Spam-Checker-Version: (SpamAssassin \S+)", verdict.headers)
        version = found[1].decode("ascii", "replace") if found else "spamd"
        words = f"{where}{version}, a short message in {verdict.seconds:.2f} s"
        yield Said("warning", f"{words}: slow", _SLOW_ADVICE) if verdict.seconds > SLOW else Said("ok", words)
        if verdict.finding is Finding.SPAM:
            words = f"{where}the sample of good mail is spam to it"
            yield Said("warning", words, "see its rules: `deliver sample ham | spamc -R`")
    if members:
        yield from _age_of_rules(case)


def _age_of_rules(case: Case) -> Iterator[Said]:
    """sa-update(1) makes one directory for each version; none where spamd runs on another host."""
    base = os.path.join(case.root, "var/lib/spamassassin")
    with contextlib.suppress(OSError):
        times = [os.stat(entry).st_mtime for entry in os.scandir(base) if re.match(r"\d+\.\d+$", entry.name)]
        days = (case.now - max(times)) / 86400 if times else 0.0
        if days > OLD_RULES:
            yield Said("warning", f"SpamAssassin's rules are {days:.0f} days old", "run sa-update from cron")


def gtube(case: Case) -> Iterator[Said]:
    """The test spam must be seen."""
    for where, _, scanner in _members(case, "spamd"):
        verdict = _ask(scanner, case.samples["spam"])
        if verdict.finding is not Finding.FAILED:  # the check before has said that
            yield _spam_seen(where, verdict)


def _spam_seen(where: str, verdict: Verdict) -> Said:
    if verdict.finding is Finding.SPAM:
        return Said("ok", f"{where}GTUBE seen, {verdict.score} points in {verdict.seconds:.2f} s")
    if verdict.score is not None:
        words = f"{where}GTUBE was not seen: {verdict.score} points"
        return Said("problem", words, "it runs without its rules: sa-update for spamd; for rspamd `gtube_patterns`")
    return Said(
        "problem", f"{where}GTUBE was not seen: {verdict.finding.value} {verdict.reason}".rstrip(), verdict.detail
    )


def the_others(case: Case) -> Iterator[Said]:
    """Every [[scanner]]: each must find what it is there for."""
    for one in case.settings.scanners:
        kind, seen = ("spam", _spam_seen) if isinstance(one, SpamScanner) else ("virus", _virus_seen)
        for where, _, scanner in _members(case, one.name):
            yield seen(f"{one.name}: {where}", _ask(scanner, case.samples[kind]))


CHECKS: tuple[Check, ...] = (
    ("clamd", the_clamd),
    ("EICAR", eicar),
    ("spamd", the_spamd),
    ("GTUBE", gtube),
    ("scanner", the_others),
)
