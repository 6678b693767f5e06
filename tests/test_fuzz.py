"""Any input ends in a value or in 0, 75, 99 or 100, in bounded time and memory; and what is stored is what came.

Each target is a property of arbitrary input. `make test` tries some hundreds of inputs for each, always the same;
`make test-faults` many more. An input that once failed stays as an example beside its target.
"""

import asyncio
import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import forked
import main_job
import pytest
import servers
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from scanned import ENVELOPE, HAM, content

from deliver import config, quota, subscriptions
from deliver.arguments import Call
from deliver.commands.check import check
from deliver.envelope import envelope_of, maildir_of
from deliver.errors import Deferred
from deliver.headers import addresses, decode
from deliver.maildir import Maildir
from deliver.message import Forgeries, Message, Source, read_framing
from deliver.rules.evaluate import walk
from deliver.rules.model import Facts
from deliver.scanners.clamd import Clamd
from deliver.scanners.spamd import Spamd
from deliver.settings import Config
from deliver.units import Limit
from deliver.values import Finding

MORE = 4
"""How many times more `make test-faults` tries."""


class Target(NamedTuple):
    """A property, the inputs it takes by name, how many are tried, and inputs that once failed."""

    name: str
    holds: Callable[..., None]
    inputs: dict[str, SearchStrategy[Any]]
    examples: int
    found: tuple[dict[str, Any], ...] = ()


def pieces(*words: bytes, most: int = 30) -> SearchStrategy[bytes]:
    """Bytes made of these words and of anything."""
    anything = st.binary(max_size=8)
    return st.lists(st.one_of(st.sampled_from(words), st.sampled_from(words), anything), max_size=most).map(b"".join)


# --- messages ---

FRAMING = (b"return-path", b"delivered-to", b"x-original-to", b"envelope-to", b"delivery-date")
OURS = Forgeries(frozenset({b"x-filter-error", b"x-virus-status"}), (b"x-spam-",), b"mx.example.org")
MESSAGES = pieces(
    *(b"From ", b"Return-Path:", b"Return-Path: <a@example.net>\n", b"Delivered-To: you@example.org\r\n", b"DELIVERED-TO :\n b\n"),
    *(b"X-Original-To: x\n", b"Envelope-To: y\n", b"\n", b"\n", b"\n", b"\r\n", b"\r\n", b"\r", b" ", b" folded\n", b"\tfolded\r\n", b" \n"),
    *(b"X-Spam-Flag: YES\n", b"x-spam-", b"X-Virus-Status:\n Clean\r\n", b"X-Filter-Error", b"Subject: s\n", b"Received: x; now\n", b":", b"\0"),
    *(b"Authentication-Results: MX.example.org; dkim=pass\n", b"Authentication-Results: (c) other; a\n", b"text\n", b"\xff"),
)  # fmt: skip


def name_of(line: bytes) -> bytes:
    """RFC 5322 section 2.2 and, for blanks before the colon, 4.5: the field's name in lower case; b"" if it has none."""
    name, colon, _ = line.partition(b":")
    name = name.rstrip(b" \t")
    return name.lower() if colon and name and all(33 <= byte <= 126 for byte in name) else b""


def is_forged(field: bytes) -> bool:
    """Whether OURS says that it must go (design: X-Spam-*, X-Virus-Status, X-Filter-Error, our authserv-id)."""
    name = name_of(field)
    if name == b"authentication-results":
        value = re.sub(rb"\([^()]*\)", b" ", field.partition(b":")[2])
        words = value.replace(b";", b" ").split()
        return bool(words) and words[0].strip(b'"').lower() == b"mx.example.org"
    return name in (b"x-filter-error", b"x-virus-status") or name.startswith(b"x-spam-")


def fields_of(lines: list[bytes]) -> list[bytes]:
    """Lines with those that continue them, as far as the header goes; the rest is one more."""
    end = next((index for index, line in enumerate(lines) if line in (b"\n", b"\r\n")), len(lines))
    fields: list[bytes] = []
    for line in lines[:end]:
        if fields and line[:1] in (b" ", b"\t") and name_of(fields[-1]):
            fields[-1] += line
        else:
            fields.append(line)
    return [*fields, b"".join(lines[end:])]


def expected_body(raw: bytes) -> bytes:
    """Line by line: without the framing on top and without forged lines, and with LF where every line had CRLF."""
    lines = re.findall(rb"[^\n]*\n|[^\n]+", raw)
    if lines and lines[0].startswith(b"From "):
        del lines[0]
    while lines and name_of(lines[0]) in FRAMING:
        del lines[0]
        while lines and lines[0][:1] in (b" ", b"\t"):
            del lines[0]
    whole = b"".join(lines)
    *header, rest = fields_of(lines)
    kept = b"".join(field for field in header if not is_forged(field)) + rest
    return kept.replace(b"\r\n", b"\n") if b"\n" in whole and whole.count(b"\n") == whole.count(b"\r\n") else kept


def message_is_kept(raw: bytes) -> None:
    """Stored is what came, minus framing, minus forgeries; every size is the true one; reading twice gives the same."""
    source = Source.of(raw)
    message = Message(source, read_framing(source.head), b"Return-Path: <r@example.net>\n", OURS)
    stored = b"".join(message.stored(b"Delivered-To: d@example.org\n", b"X-Ours: 1\n"))
    top = message.top(b"Delivered-To: d@example.org\n", b"X-Ours: 1\n")
    assert stored.startswith(top)
    assert stored[len(top) :] == expected_body(raw)
    assert message.stored_size(b"Delivered-To: d@example.org\n", b"X-Ours: 1\n") == len(stored)
    assert message.size == sum(map(len, message.chunks())) == len(b"".join(message.chunks()))
    assert b"".join(message.forwarded(b"Delivered-To: d@example.org\n", b"")).endswith(expected_body(raw))
    for line in top.split(b"\n")[:-1]:
        assert name_of(line) in (*FRAMING, b"x-ours", b"x-unfolded") or line[:1] in (b" ", b"\t")
    message.loops(["you@example.org"])
    message.received()
    for name in ("subject", "Return-Path", "x-spam-flag", "é"):
        assert all(isinstance(value, bytes) for value in message.fields(name))
    assert message.fields("x-spam-flag") == []


# --- headers ---

WORDS = pieces(
    *(b"=?utf-8?q?", b"=?utf-8?B?", b"=?iso-2022-jp?b?", b"=?utf-7?q?+", b"=?idna?q?", b"=?x?x?", b"?=", b"?= =?", b"=41", b"=C3", b"QUJD", b"=="),
    *(b"\r\n ", b"\n\t", b"\n", b"\0", b"\xc3\xa9", b"\xff", b"a@example.org", b"<", b">", b'"', b"\\", b"(", b")", b",", b";", b":", b"@", b".", b"[1]"),
    *(b"((((", b'"a b"@c', b"group: a@b, c@d;", b"\xed\xa0\x80"),
)  # fmt: skip


def header_is_read(raw: bytes) -> None:
    """Text on one line, without NUL and lone surrogates; addresses that all have an @, or are words of a host where none
    has; neither much longer than the field.
    """
    text = decode(raw)
    assert not re.search("[\0\r\n\ud800-\udfff]", text)
    assert len(text) <= 2 * len(raw) + 16
    found = addresses(raw)
    assert not any(re.search("[\0\r\n]", one) for one in found)
    assert all("@" in one for one in found) or all(re.fullmatch(r"[\w.+-]+", one) for one in found)
    assert sum(map(len, found)) <= 2 * len(raw)


# --- files of the Maildir ---

SIZES = pieces(
    *(b"10000S,5C\n", b"0S\n", b"NOQUOTA\n", b"1000000000S", b",", b"C", b"5X", b"\n", b"\n", b" ", b"-", b"114 1\n", b"       114          1\n", b"1000 1\n"),
    *(b"-1 -1\n", b"9999 4\n", b"99999999999999999999 1\n", b"9223372036854775807 1\n", b"junk\n", b"\0", b"\r\n", b"5 5 5\n", b"+1 1\n", b"1e3 1\n"),
)  # fmt: skip


@contextlib.contextmanager
def small_maildir() -> "Any":
    """A Maildir with one message of 114 bytes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "Maildir"
        for part in ("tmp", "new", "cur"):
            (path / part).mkdir(parents=True)
        (path / "cur" / "1.a.h,S=114:2,S").write_bytes(b"x" * 114)
        yield path


def maildirsize_is_survived(data: bytes) -> None:
    """Nothing is raised, nothing negative is said to be in use, and what we leave is a file that we can read."""
    with small_maildir() as path:
        (path / "maildirsize").write_bytes(data)
        with Maildir(str(path)) as maildir:
            usage = quota.assess(maildir.fd, Limit(10_000, 10))
            assert usage is not None
            assert usage.size >= 0
            assert usage.count >= 0
            usage.over(114)
            assert 0 <= usage.percent <= 100
            usage.words()
            assert quota.record(maildir.fd, usage, 114, 1) == ""
            again = quota.assess(maildir.fd, None)
            assert again is not None
            assert again.size >= 0
        assert os.listdir(path / "tmp") == []
        assert (path / "maildirsize").stat().st_size < 5120 + 26


def as_courier_does(data: bytes, stored: list[tuple[str, str, int]], big: bool) -> None:
    """What deliverquota does with the same file and the same mail, except where ours differs on purpose (see
    deliver/quota.py): there STATES and NAMES do not go.
    """
    results = []
    mail = b"Subject: x\n\n" + b"x" * (6000 if big else 101) + b"\n"
    for who in ("courier", "ours"):
        with small_maildir() as path:
            for number, (directory, name, size) in enumerate(stored):
                (path / directory).mkdir(parents=True, exist_ok=True)
                (path / directory / name.replace("#", str(number))).write_bytes(b"x" * size)
            (path / "maildirsize").write_bytes(data)
            if who == "courier":
                command = [servers.needs("deliverquota.courier"), str(path)]
                (path.parent / "message").write_bytes(mail)
                with (path.parent / "message").open("rb") as stdin:
                    done = subprocess.run(command, stdin=stdin, capture_output=True, check=False, timeout=30)
                assert done.returncode in (0, 77)
                refused = done.returncode == 77
            else:
                with Maildir(str(path)) as maildir:
                    usage = quota.assess(maildir.fd, None)
                    prepared = maildir.prepare("INBOX", [mail])
                    refused = bool(usage and usage.over(len(mail)))
                    if refused:
                        prepared.abort()
                    else:
                        prepared.commit()
                    if usage:
                        assert quota.record(maildir.fd, usage, *((0, 0) if refused else (len(mail), 1))) == ""
            lines = (path / "maildirsize").read_bytes().splitlines()
            numbers = [re.match(rb"\s*(-?\d+)\s*(-?\d+)", line) for line in lines[1:]]
            sums = [sum(int(found[column]) for found in numbers if found) for column in (1, 2)]
            limits = {found for found in re.findall(rb"(\d+)([SC])", lines[0]) if int(found[0])}  # ours writes 0S for none
            results.append((refused, sums, limits))
    assert results[0] == results[1]


STATES = st.tuples(
    st.sampled_from([b"10000S,5C", b"300S", b"3C", b"0S", b"NOQUOTA", b"5X", b"400S,5X", b"10000S, 5C", b"100,300S", b"", b"-5S"]),
    st.lists(
        st.one_of(
            st.tuples(st.integers(-300, 300), st.integers(-3, 3)).map(lambda pair: b"%12d %12d" % pair),
            st.sampled_from([b"114 1", b"1000 1", b"junk", b"", b"77", b"5 5 5", b"+1 1", b"1e3 1", b"\t5\t1\r", b"5 1junk", b" - 5 1", b"5 -", b"--5 1"]),
        ),
        max_size=6,
    ),
).map(lambda state: b"\n".join((state[0], *state[1])) + b"\n")  # fmt: skip
"""maildirsize as programs leave it, near its limit: whole lines."""

NAMES = st.tuples(
    st.sampled_from(
        [f"{folder}/{part}" for folder in (".", ".Spam", ".Trash", ".Trash.old", ".trash", "..odd", ".A.B") for part in ("new", "cur", "tmp")]
    ),
    st.sampled_from(
        ["#.h", "#.h,S=114", "#.h:2,S", "#.h,S=90:2,ST", "#.h:2,T", "#.h,S=1,W=9:2,", "#.h,W=9,S=120", ".#.h", "#.h,S=x", "#.h,S=5x:2,", "#,S=1,S=130:2,aT", "#.h,S=-5", "#.h:2,,S=7", "#.h:1,T", "#.h;2,T", "#,S=007"]
    ),
    st.sampled_from([0, 1, 114, 300]),
)  # fmt: skip
"""A directory of a Maildir, a file in it, and its size."""

LISTS = pieces(b"V\t2\n\n", b"V\t2\n", b"Spam\n", b"Spam", b"INBOX.Spam\n", b"INBOX\n", b"Sent\n", b"A\tB\n", b"\r\n", b"\n", b"\x01t", b"\0", b"\xff")


def lists_are_kept(dovecot: bytes, courier: bytes) -> None:
    """Both lists have the folder once it is subscribed to, nothing else has changed, and the second time nothing at all."""
    with small_maildir() as path:
        files = {"subscriptions": dovecot, "courierimapsubscribed": courier}
        for name, data in files.items():
            (path / name).write_bytes(data)
        fd = os.open(path, os.O_RDONLY)
        try:
            assert subscriptions.subscribe(fd, "Spam") == ""
            after = {name: (path / name).read_bytes() for name in files}
            for name, data in files.items():
                assert after[name].startswith(data)
                line = b"Spam" if name == "subscriptions" else b"INBOX.Spam"
                assert line in after[name].split(b"\n")
                assert after[name].endswith(b"\n") or after[name] == data
                assert after[name][len(data) :] in (b"", b"\n", line + b"\n", b"\n" + line + b"\n")
            assert subscriptions.subscribe(fd, "Spam") == ""
            assert {name: (path / name).read_bytes() for name in files} == after
        finally:
            os.close(fd)
        assert sorted(os.listdir(path)) == ["courierimapsubscribed", "cur", "new", "subscriptions", "tmp"]


# --- configuration ---

TOML = pieces(
    *(b"[clamd]\n", b"[spamd]\n", b"[spam]\n", b"[quota]\n", b"[log]\n", b"[users]\n", b"[[rule]]\n", b"[rule.when]\n", b"[forward]\n", b"[service]\n"),
    *(b'maildir = "Maildir"\n', b'file = "A"\n', b"discard = true\n", b'when = { subject = "*x*" }\n', b'subject = { regex = "(a|b)*" }\n', b'regex = "("\n'),
    *(b"address = ", b"timeout = ", b"max-size = ", b"required-score = ", b"delete-above = ", b"command = ", b"limit = ", b"not = ", b"any = ", b"size = "),
    *(b'"5 s"', b'"1 MB"', b"nan", b"-inf", b"1e400", b"99999999999999999999", b"true", b"[", b"]", b"{", b"}", b'"', b"'''", b"\n", b"\n", b"\n", b"=", b".", b"a", b"1979-05-27"),
    *(b'"\\u0000"', b'"unix:/s"', b'"tcp:h:1"', b'["a@b"]', b"= 1\n", b"\xff", b"\0", b"\r", b"#"),
)  # fmt: skip


def configuration_is_judged(text: bytes) -> None:
    """A configuration, or problems in words, each with its place; for a site's and for a user's file, and by `check`."""
    settings_, problems = config.parse(text, "site.toml")
    assert settings_ is not None or problems
    own, wrong = config.parse_personal(text, "mailfilter.toml", Config())
    for problem in (*problems, *wrong):
        assert problem.text
        assert isinstance(problem.path, tuple)
        config.where(problem)
    facts = Facts(content_with_fields(HAM), ENVELOPE, 3.0, spam=False, viruses=())
    rules = (*(settings_.rules if settings_ else ()), *own.rules)
    walk(rules, facts, lambda added: added > 2, lambda step: str(step.text))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "site.toml"
        path.write_bytes(text)
        done = CliRunner().invoke(check, [str(path)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code == (1 if any(not problem.warning for problem in problems) else 0)


def content_with_fields(raw: bytes) -> Message:
    """A message for rules."""
    source = Source.of(raw)
    return Message(source, read_framing(source.head))


# --- scanners ---

CLAMD = pieces(b"stream: OK\n", b"stream: ", b"OK", b"Bad FOUND\n", b" FOUND\n", b"stream:  FOUND\n", b"\n", b"\0", b" ERROR\n", b"INSTREAM size limit exceeded. ERROR\n", b"ClamAV 1\n", most=6)
SPAMD = pieces(
    *(b"SPAMD/1.1 0 EX_OK\r\n", b"SPAMD/1.1 76 EX_PROTOCOL\r\n", b"SPAMD/", b"Spam: True ; 15 / 5\r\n", b"Spam: False ; -1 / 5\r\n", b"Spam: "),
    *(b"Content-length: 20\r\n", b"Content-length: ", b"\r\n", b"\r\n", b"\n", b"X-Spam-Status: Yes, score=15\n", b"X-Spam-Flag: YES\n", b" folded\n", b"\0", b"nan"),
    most=12,
)  # fmt: skip


def clamds_answer_is_judged(answer: bytes) -> None:
    """Only one line of two forms is a verdict."""
    with servers.scratch() as directory, servers.Scripted(directory, servers.read_stream, servers.answer(answer)) as peer:
        verdict = asyncio.run(Clamd([peer.address], 10**6, 5).scan(content(HAM), ENVELOPE))
    if verdict.finding is Finding.CLEAN:
        assert answer == b"stream: OK\n"
    elif verdict.finding is Finding.VIRUS:
        assert re.fullmatch(rb"stream: [^\n]+ FOUND\n", answer)
        assert all(re.fullmatch("[ -~]{1,200}", name) for name in verdict.names)
    elif verdict.finding is Finding.SKIPPED:
        assert answer == b"INSTREAM size limit exceeded. ERROR\n"
    else:
        assert re.fullmatch("clamd [ -~]+", verdict.reason)


def spamds_answer_is_judged(answer: bytes) -> None:
    """A verdict has finite points and whole X-Spam lines; everything else is a failure."""
    with servers.scratch() as directory, servers.Scripted(directory, servers.read_all, servers.answer(answer)) as peer:
        verdict = asyncio.run(Spamd([peer.address], 10**6, 5).scan(content(HAM), ENVELOPE))
    if verdict.finding is Finding.FAILED:
        assert re.fullmatch("spamd [ -~]+", verdict.reason)
        return
    assert answer.startswith(b"SPAMD/")
    assert verdict.score is not None
    assert abs(verdict.score) < 1e300
    for line in verdict.headers.split(b"\n")[:-1]:
        assert re.match(rb"(?i)X-Spam-[!-9;-~]+:|[ \t]", line)
        assert not re.search(rb"[\r\0]", line)


# --- envelopes and whole deliveries ---

VALUES = st.one_of(
    st.sampled_from(
        ["", "you@example.org", "you-x@example.org", "example.org-you", "example.org", "you+Spam", "MAILER-DAEMON", "<>", "#@[]", "/", "..", "a\nb", "-f", "\x1b"]
    ),
    st.binary(max_size=40).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape")),
)  # fmt: skip
ENVIRONMENTS = st.dictionaries(
    st.sampled_from("SENDER RECIPIENT LOCAL HOST EXT DTLINE RPLINE UFLINE HOME USER NEWSENDER".split()), VALUES, max_size=9
)


def envelope_is_told(environment: Mapping[str, str], raw: bytes) -> None:
    """An envelope whose lines are one line each, or another try."""
    try:
        maildir = maildir_of(Call(), environment, "Maildir")
        envelope = envelope_of(Call(), environment, read_framing(raw), maildir)
    except Deferred:
        return
    assert envelope.recipient
    assert maildir.startswith("/")
    for line, name in ((envelope.return_path, b"Return-Path: "), (envelope.delivered_to, b"Delivered-To: ")):
        assert line == b"" or re.fullmatch(re.escape(name).replace(rb"\ ", rb" ?") + rb"[^\0-\x1f\x7f]*\n", line, re.IGNORECASE), line


ARGUMENTS = st.lists(
    st.one_of(
        st.sampled_from(["--plain", "--no-loop-check", "--stop-after-spam", "--sender", "--recipient=a@b.c", "--maildir", "Maildir", "--", "x@y.z", "--config", "/dev/null", "-A", "X-A: b"]),
        VALUES.filter(lambda text: "/" not in text and text not in ("serve", "..")),
    ),
    max_size=3,
)  # fmt: skip


def delivery_ends(environment: Mapping[str, str], arguments: list[str], raw: bytes, rules: bytes, size: bytes) -> None:
    """In one of the four codes, with one line at most, soon, in little memory, with nothing left half done."""
    with servers.scratch() as directory:
        home = main_job.Home(directory, Path("/nonexistent"), f'[log]\nto = "{directory}/log"\n[spam]\ntrust-header = "X-Spam-Status"\n')
        (directory / "mailfilter.toml").write_bytes(rules)
        (home.maildir / "maildirsize").write_bytes(size)
        main_job.own(directory)
        (directory / "mailfilter.toml").chmod(0o600)
        whole = home.environment() | {"PATH": "/nonexistent"} | {name: value for name, value in environment.items() if value != "\0"}
        ended = forked.deliver(whole, directory, *arguments, stdin=raw, seconds=20)
        assert ended.code in forked.CODES, ended
        assert ended.stderr == b""
        assert re.fullmatch(rb"([45]\.\d+\.\d+ [ -~]* \(#[45]\.\d+\.\d+\)\n)?", ended.stdout), ended.stdout
        assert (ended.stdout == b"") is (ended.code in (0, 99))
        assert ended.grown < 64 * 1024 * 1024
        assert os.listdir(home.maildir / "tmp") == []
        if ended.code in (75, 100):
            assert home.where() == ""
        if not environment and not arguments:
            assert ended.code != 75, "neither a message nor the owner's files are a reason to wait"


TARGETS = [
    Target("messages", message_is_kept, {"raw": MESSAGES}, 1500),
    Target("headers", header_is_read, {"raw": WORDS}, 2000),
    Target("maildirsize", maildirsize_is_survived, {"data": SIZES}, 200),
    Target("maildirsize as Courier", as_courier_does, {"data": STATES, "stored": st.lists(NAMES, max_size=6), "big": st.booleans()}, 250),
    Target("subscriptions", lists_are_kept, {"dovecot": LISTS, "courier": LISTS}, 150),
    Target("configuration", configuration_is_judged, {"text": TOML}, 500),
    Target("clamd", clamds_answer_is_judged, {"answer": CLAMD}, 80, ({"answer": b"stream:  FOUND\n"},)),
    Target("spamd", spamds_answer_is_judged, {"answer": SPAMD}, 80),
    Target("envelopes", envelope_is_told, {"environment": ENVIRONMENTS, "raw": MESSAGES}, 500),
    Target("deliveries", delivery_ends, {"environment": st.one_of(st.just({}), ENVIRONMENTS), "arguments": st.one_of(st.just([]), ARGUMENTS), "raw": MESSAGES, "rules": TOML, "size": SIZES}, 150),
]  # fmt: skip


@pytest.mark.parametrize("times", [1, pytest.param(MORE, marks=pytest.mark.faults)])
@pytest.mark.parametrize("target", TARGETS, ids=[target.name.replace(" ", "-") for target in TARGETS])
def test_any_input(target: Target, times: int) -> None:
    """The property holds, each time within five seconds."""
    test = given(**target.inputs)(target.holds)
    for inputs in target.found:
        test = example(**inputs)(test)
    run = settings(
        max_examples=target.examples * times,
        derandomize=True,
        database=None,
        deadline=5000,
        suppress_health_check=list(HealthCheck),
    )(test)
    run()
