"""Bad inputs and the outcome that a trusted delivery agent owes: one table, numbered as in docs/bad-inputs.md.

D: delivered, exit 0, exactly one whole copy. T: try again, exit 75 and nothing stored. P: given back, exit 100. Each
case also leaves nothing in tmp/, says nothing on standard error and one public line at most on standard output.
"""

import contextlib
import fcntl
import os
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import forked
import main_job
import pytest
import servers
from installed import install_once  # noqa: F401 - the fixture `installed`

ROOT = Path(__file__).resolve().parent.parent
ORDINARY = main_job.message("an ordinary one")
SPAM_LINE = b"X-Spam-Status: Yes, score=7.0 required=5.0 tests=A\n"
TRUSTED = '[spam]\ntrust-header = "X-Spam-Status"\n'
CLAMD = '[clamd]\naddress = "{}"\ntimeout = "{} s"\n'
SPAMD = '[spamd]\naddress = "{}"\ntimeout = "{} s"\n'
LOOKING = """
[[rule]]
file = "Nowhere"
[rule.when]
any = [
    { from = "nobody@example.com" },
    { to = { regex = "^nobody@(a+)+$" } },
    { subject = { contains = "no such words" } },
    { header = { "X-Any" = "*nothing*" } },
    { list-id = "*.nowhere" },
]
"""
"""Rules that look at every header field and match nothing."""


class World:
    """One delivery about to happen: a home, a message, an environment; and what is expected besides the outcome.

    ``stored`` is the message as it must be stored below our header lines, None where that is not compared; ``where``
    the folder; ``ours`` a header line that must be there; ``copies`` how many deliveries of it are made.
    """

    def __init__(self, directory: Path, prefix: Path | None, stack: contextlib.ExitStack) -> None:
        self.home = main_job.Home(directory, prefix or Path("/nonexistent"), f'[log]\nto = "{directory}/log"\n')
        self.stack = stack
        self.content = ORDINARY
        self.stored: bytes | None = None
        self.environment = self.home.environment()
        self.arguments: tuple[str, ...] = ()
        self.stdin: int | None = -1
        self.stdout: int | None = None
        self.cwd = self.home.path
        self.prepare: list[Callable[[], object]] = []
        self.meanwhile: Callable[[int], object] | None = None
        self.where = "INBOX"
        self.ours = b""
        self.line = b""
        self.copies = 1
        self.installed = prefix
        self.silent = True
        self.seconds = 20.0

    def says(self, text: str) -> None:
        """More configuration: tables."""
        self.home.config.write_text(self.home.config.read_text() + text)

    def message(self, content: bytes, stored: bytes | None = None) -> None:
        """The message, and how it must be stored if that differs."""
        self.content = content
        self.stored = stored

    def file(self, name: str, content: str | bytes = b"", mode: int = 0o600) -> Path:
        """A file of the user's, below the home."""
        path = self.home.path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.own()
        path.chmod(mode)
        return path

    def own(self) -> None:
        """Everything below the home is the user's."""
        main_job.own(self.home.path)

    def folder(self, name: str, *parts: str) -> Path:
        """A folder with some of its parts."""
        path = self.home.maildir / f".{name}"
        for part in ("", *parts):
            (path / part).mkdir()
        self.own()
        return path

    def peer(self, *steps: servers.BehaviourStep) -> str:
        """A scripted server's address."""
        return self.stack.enter_context(servers.Scripted(self.home.path, *steps)).address

    def run(self) -> forked.Ended:
        """Deliver."""
        if self.installed:
            stdin = "pipe" if self.stdin is None else "file"
            return forked.Ended(*self.home.deliver(self.content, *self.arguments, environment=self.environment, stdin=stdin), 0)
        return forked.deliver(
            self.environment,
            self.cwd,
            *self.arguments,
            stdin=self.content if self.stdin == -1 else self.stdin,
            prepare=lambda: [step() for step in self.prepare],
            meanwhile=self.meanwhile,
            stdout=self.stdout,
            seconds=self.seconds,
        )


Prepare = Callable[[World], object]


class Case(NamedTuple):
    """One bad input: its number, what it is, the outcome (D, T or P) and what makes it. ``slow``: for make test-faults."""

    number: int
    name: str
    outcome: str
    prepare: Prepare
    installed: bool = False
    slow: bool = False


def message(content: bytes, stored: bytes | None = None) -> Prepare:
    """A message, with rules that look at it."""

    def prepare(world: World) -> None:
        world.message(content, stored)
        world.says(LOOKING)

    return prepare


def environment(**variables: str | None) -> Prepare:
    """These variables; None takes one away."""

    def prepare(world: World) -> None:
        for name, value in variables.items():
            if value is None:
                world.environment.pop(name, None)
            else:
                world.environment[name] = value

    return prepare


def both(*steps: Prepare) -> Prepare:
    """One after the other."""
    return lambda world: [step(world) for step in steps]


def headers(*lines: bytes, body: bytes = b"Hello.\n") -> bytes:
    """A message of these lines."""
    return b"".join(lines) + b"\n" + body


# --- 1 to 19: the message ---


def nested(depth: int) -> bytes:
    """Multiparts in each other."""
    levels = (b'Content-Type: multipart/mixed; boundary="b%d"\n\n--b%d\n' % (level, level) for level in range(depth))
    return b"Subject: deep\n" + b"".join(levels) + b"\ntext\n"


def own_scanner_lines(world: World) -> None:
    answer = b"X-Spam-Status: No, score=0.1 required=5.0 tests=none\n"
    world.says(SPAMD.format(world.peer(servers.read_all, servers.answer(spamd_answer(answer))), 10))
    world.says('[authentication]\nname = "mx.example.org"\n')
    forged = b"X-Spam-Flag: YES\nX-Filter-Error: no\nAuthentication-Results: MX.example.org;\n dkim=pass\n"
    kept = b"Authentication-Results: other.example; spf=pass\nReturn-Path: <forged@example.net>\n"
    world.message(headers(b"Subject: x\n", forged, kept), headers(b"Subject: x\n", kept))
    world.ours = answer


def file_size_limit(world: World) -> None:
    world.message(main_job.message("large", b"y" * 5000))
    world.prepare.append(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)))


def over_the_cap(world: World) -> None:
    world.message(main_job.message("large", b"y" * 5000))
    world.says(CLAMD.format(world.peer(servers.hang), 1) + 'max-size = "1 KiB"\n')
    world.ours = b"X-Virus-Status: Not scanned (larger than 1 KiB)\n"


def pipe(world: World, *, nonblocking: bool = False) -> int:
    """Standard input is a pipe; returns its other end."""
    read_end, write_end = os.pipe()
    world.stack.callback(os.close, read_end)
    if nonblocking:
        fcntl.fcntl(read_end, fcntl.F_SETFL, os.O_NONBLOCK)
    world.stdin = read_end
    return write_end


def small_pipe(world: World) -> None:
    write_end = pipe(world)
    os.write(write_end, world.content)
    os.close(write_end)


def late_pipe(world: World) -> None:
    """Nothing can be read at first from a descriptor that does not block."""
    write_end = pipe(world, nonblocking=True)

    def feed(_pid: int) -> None:
        os.write(write_end, world.content[:10])
        os.write(write_end, world.content[10:])
        os.close(write_end)

    world.meanwhile = feed


def large_pipe(world: World) -> None:
    world.message(main_job.message("large", b"line\n" * 200_000))
    write_end = pipe(world)

    def write() -> None:
        with open(write_end, "wb") as file:
            file.write(world.content)

    def feed(_pid: int) -> None:
        thread = threading.Thread(target=write)
        thread.start()
        world.stack.callback(thread.join)

    world.meanwhile = feed


def at_an_offset(world: World) -> None:
    path = world.file("queue", b"an envelope\n" + world.content)
    world.stdin = world.stack.enter_context(path.open("rb", buffering=0)).fileno()
    os.lseek(world.stdin, len(b"an envelope\n"), os.SEEK_SET)


def opened(path: str) -> Prepare:
    """Standard input is this file."""

    def prepare(world: World) -> None:
        world.stdin = os.open(path.format(home=world.home.path), os.O_RDONLY)
        world.stack.callback(os.close, world.stdin)

    return prepare


def closed_input(world: World) -> None:
    world.stdin = None


THE_MESSAGE = [
    Case(1, "no bytes at all", "D", message(b"")),
    Case(2, "headers only", "D", message(b"From: a@example.net\nSubject: x\n\n")),
    Case(2, "no blank line", "D", message(b"From: a@example.net\nSubject: x\n")),
    Case(2, "no headers", "D", message(b"\nonly a body\n")),
    Case(2, "neither", "D", message(b"this is no header\nnor is this\n")),
    Case(3, "no final newline", "D", message(b"Subject: x\n\nend")),
    Case(3, "no final newline in the header", "D", message(b"Subject: x")),
    Case(4, "NUL", "D", message(b"Subject: a\0b\nX-Any\0: c\n\n\0\0\n")),
    Case(4, "8-bit and no UTF-8", "D", message(b"From: \xff\xfe <\xe9@example.net>\nSubject: \xc3\x28\x80\nX-\xff: x\n\n\xff\n")),
    Case(5, "CRLF throughout", "D", message(ORDINARY.replace(b"\n", b"\r\n"), ORDINARY)),
    Case(5, "CRLF in some lines", "D", message(b"Subject: x\r\nTo: y@example.org\n\r\nHello.\r\n")),
    Case(6, "bare CR and dots", "D", message(b"Subject: a\rb\n\n.\n\r.\r\n.\r\r\n")),
    Case(7, "a line of 20 MB", "D", message(b"Subject: x\n\n" + b"x" * 20_000_000)),
    Case(7, "a line of 100 MB", "D", message(b"Subject: x\n\n" + b"x" * 100_000_000), slow=True),
    Case(8, "a header of 10 MB", "D", message(headers((b"X-Any: " + b"y" * 70 + b"\n") * 130_000))),
    Case(8, "10^5 header lines", "D", message(headers(b"X-Any: y\n" * 100_000))),
    Case(8, "a field of 1 MB", "D", message(headers(b"Subject: " + b"=?utf-8?q?a?= " * 75_000 + b"\n"))),
    Case(8, "a field of 10^5 folds", "D", message(headers(b"To: " + b"a@example.org,\n " * 100_000 + b"b@example.org\n"))),
    Case(9, "multiparts 10^4 deep", "D", message(nested(10_000))),
    Case(9, "10^5 parts", "D", message(headers(b'Content-Type: multipart/mixed; boundary="b"\n', body=b"--b\n\n" * 100_000))),
    Case(9, "no boundary", "D", message(headers(b"Content-Type: multipart/mixed\n", b"Content-Type: multipart/mixed; boundary=\n"))),
    Case(9, "a boundary of 1000", "D", message(headers(b"Content-Type: multipart/mixed; boundary=" + b"b" * 1000 + b"\n", body=b"--" + b"b" * 1000 + b"\n"))),
    Case(9, "messages in messages", "D", message(b"Content-Type: message/rfc822\n\n" * 10_000)),
    Case(11, "a leading From_ line", "D", message(b"From a@example.net Sun Nov 22 12:00:00 2026\n" + ORDINARY, ORDINARY)),
    Case(11, "a quoted From_ line", "D", message(b">From a@example.net Sun Nov 22 12:00:00 2026\n" + ORDINARY)),
    Case(11, "two From_ lines", "D", message(b"From a\nFrom b\n" + ORDINARY, b"From b\n" + ORDINARY)),
    Case(11, "From_ lines further down", "D", message(b"Subject: x\n\nFrom a@example.net Sun Nov 22 12:00:00 2026\n")),
    Case(12, "our own Delivered-To", "P", message(headers(b"Received: x\n", b"Delivered-To: you@example.org\n"))),
    Case(12, "our own Delivered-To, folded", "P", message(headers(b"Received: x\n", b"dELIVERED-tO:\n you@example.org\n"))),
    Case(12, "Delivered-To in other case", "D", message(headers(b"Received: x\n", b"Delivered-To: You@example.org\n"))),
    Case(12, "Delivered-To in the body", "D", message(headers(b"Received: x\n", body=b"Delivered-To: you@example.org\n"))),
    Case(13, "100 Received lines", "D", message(headers(*[b"Received: x\n"] * 100, *[b"Delivered-To: a@example.org\n"] * 100))),
    Case(14, "lines that forge ours", "D", own_scanner_lines),
    Case(15, "a blank before the colon", "D", message(headers(b"Subject : x\n", b": y\n", b"X-Any\t:\n"))),
    Case(15, "odd folding", "D", message(b" folded at once\nSubject: a\n \n\t\n  b\n\nHello.\n")),
    Case(15, "decoded newlines", "D", message(headers(b"Subject: =?utf-8?b?DQpCY2M6IHg=?= =?utf-8?q?=0AX-Any:_y?=\n"))),
    Case(16, "over the limit of file sizes", "T", file_size_limit),
    Case(17, "over the scanner's cap", "D", over_the_cap),
    Case(18, "a pipe", "D", small_pipe),
    Case(18, "a pipe with 1 MB", "D", large_pipe),
    Case(18, "a pipe that does not block", "D", late_pipe),
    Case(18, "a file, not from its start", "D", at_an_offset),
    Case(18, "closed", "T", closed_input),
    Case(18, "a directory", "T", opened("{home}")),
    Case(18, "EIO", "T", opened("/proc/self/mem")),  # nothing is mapped at 0: read(2) says EIO
]  # fmt: skip


# --- 20 to 29: the envelope ---

STRANGE = {
    "a space": "a b@example.org",
    "a quote": '"a\\"b"@example.org',
    "newlines": "a\nBcc: x@example.org\n\nb@example.org",
    "CR": "a\r\nb@example.org",
    "8-bit": "\udcff\udc80@example.org",
    "a pipe": "|/bin/sh@example.org",
    "a substitution": "$(touch pwned)`touch pwned`@example.org",
    "a path": "../../../../tmp/pwned@example.org",
    "a leading dash": "-oQ/tmp/pwned@example.org",
    "controls": "a\x01\x1b[31m\x7f@example.org",
    "64 KB": "a" * 65536 + "@example.org",
}


def addresses(value: str) -> Prepare:
    """A sender and recipient, also as qmail's lines and as rules' matter."""

    def prepare(world: World) -> None:
        world.environment |= {"SENDER": value, "RECIPIENT": value, "LOCAL": value.rpartition("@")[0]}
        world.environment |= {"DTLINE": f"Delivered-To: {value}\n", "RPLINE": f"Return-Path: <{value}>\n"}
        world.says('[[rule]]\nfile = "Nowhere"\n[rule.when]\nsender = "x@*"\nrecipient = "x@*"\n')

    return prepare


def by_options(value: str) -> Prepare:
    """The same on the command line."""
    return lambda world: setattr(world, "arguments", (f"--recipient={value}", "--sender", value))


THE_ENVELOPE = [
    Case(20, "the null sender", "D", environment(SENDER="", RPLINE="Return-Path: <>\n")),
    Case(20, "qmail's double bounce", "D", environment(SENDER="#@[]", RPLINE="Return-Path: <#@[]>\n")),
    *(Case(22 if name == "64 KB" else 21, f"{name} in addresses", "D", addresses(value)) for name, value in STRANGE.items()),
    *(Case(21, f"{name} in options", "D", by_options(value)) for name, value in STRANGE.items() if name != "8-bit"),
    Case(23, "no such folder", "D", environment(EXT="Nope")),
    *(
        Case(24, f"the extension {extension!a}", "D", environment(EXT=extension))
        for extension in ("a/b", "..", ".", "...", "cur", "new", "&", "\udcff", "../../x", "INBOX", ".Spam", "x" * 300, "a\nb")
    ),
]  # fmt: skip


# --- 30 to 39: the environment ---


def gone_home(world: World) -> None:
    """The working directory has been removed."""
    world.cwd = world.home.path / "gone"
    world.cwd.mkdir()
    world.own()
    world.prepare.append(world.cwd.rmdir)


def umask(value: int) -> Prepare:
    """With this umask; the file is 0600 all the same."""

    def prepare(world: World) -> None:
        world.prepare.append(lambda: os.umask(value))

    return prepare


def descriptors(*closed: int) -> Prepare:
    """Without these."""

    def prepare(world: World) -> None:
        world.prepare.append(lambda: [os.close(fd) for fd in closed])

    return prepare


def many_descriptors(world: World) -> None:
    world.prepare.append(lambda: [os.open("/dev/null", os.O_RDONLY) for _ in range(200)])


def broken_answer(world: World) -> None:
    """Nobody reads what we answer; the code counts."""
    world.message(headers(b"Received: x\n", b"Delivered-To: you@example.org\n"))
    read_end, write_end = os.pipe()
    os.close(read_end)
    world.stack.callback(os.close, write_end)
    world.stdout = write_end


def stopped(*signals: signal.Signals) -> Prepare:
    """These signals come while a scanner thinks."""

    def prepare(world: World) -> None:
        asked, answer_now = threading.Event(), threading.Event()
        address = world.peer(
            servers.read_stream,
            lambda _peer: asked.set(),
            lambda _peer: answer_now.wait(20),
            servers.answer(b"stream: OK\n"),
        )
        world.says(CLAMD.format(address, 20))

        def send(pid: int) -> None:
            assert asked.wait(20)
            for number in signals:
                os.kill(pid, number)
            answer_now.set()

        world.meanwhile = send

    return prepare


def limited(kind: int, value: int) -> Prepare:
    """With a resource limit."""

    def prepare(world: World) -> None:
        world.prepare.append(lambda: resource.setrlimit(kind, (value, value)))

    return prepare


def clock(nanoseconds: int) -> Prepare:
    """A clock that stands still, and a pid that comes again: two deliveries, two names."""

    def prepare(world: World) -> None:
        world.prepare.append(lambda: setattr(time, "time_ns", lambda: nanoseconds))
        world.prepare.append(lambda: setattr(time, "time", lambda: nanoseconds / 1e9))
        world.prepare.append(lambda: setattr(os, "getpid", lambda: 4711))
        world.copies = 2

    return prepare


def host(name: str) -> Prepare:
    """A host of this name."""

    def prepare(world: World) -> None:
        known = os.uname()
        world.prepare.append(lambda: setattr(os, "uname", lambda: os.uname_result((known[0], name, *known[2:]))))

    return prepare


def garbage_environment(world: World) -> None:
    (world.home.path / "deliver").mkdir()
    (world.home.path / "deliver" / "__init__.py").write_text("raise SystemExit(100)")
    world.own()
    trap = {"PYTHONPATH": str(world.home.path), "PYTHONHOME": "/nowhere", "PYTHONSTARTUP": "/nowhere", "PATH": "/nowhere"}
    more = {"IFS": "/ae", "TZ": ":/nowhere", "LANG": "xx_YY.koi", "LC_ALL": "\udcff", "LD_LIBRARY_PATH": str(world.home.path)}
    world.environment |= trap | more | {"BASH_ENV": "/nowhere", "ENV": "/nowhere", "PYTHONMALLOC": "nonsense"}


def empty_environment(world: World) -> None:
    world.environment = {"DELIVER_CONFIG": str(world.home.config)}
    world.arguments = ("--recipient", "you@example.org", "--maildir", str(world.home.maildir))


THE_ENVIRONMENT = [
    Case(30, "no recipient", "T", environment(RECIPIENT=None, LOCAL=None, HOST=None)),
    Case(30, "an empty recipient", "T", environment(RECIPIENT="", LOCAL="", HOST="")),
    Case(30, "no HOME, elsewhere than qmail", "T", environment(HOME=None, DTLINE=None)),
    Case(30, "a relative HOME, elsewhere than qmail", "T", environment(HOME=".", DTLINE=None)),
    Case(30, "no HOME under qmail", "D", environment(HOME=None)),
    Case(30, "no EXT and no SENDER", "D", environment(EXT=None, SENDER=None, RPLINE=None, UFLINE=None)),
    Case(30, "empty lines from qmail", "D", environment(RPLINE="", DTLINE="", UFLINE="")),
    Case(30, "nothing but options", "D", empty_environment),
    Case(31, "garbage", "D", garbage_environment, installed=True),
    Case(32, "standard input closed", "T", descriptors(0)),
    Case(32, "output and error closed", "D", descriptors(1, 2)),
    Case(32, "all closed", "T", lambda world: (descriptors(0, 1, 2)(world), setattr(world, "line", b"-"))),
    Case(32, "200 descriptors open", "D", many_descriptors),
    Case(32, "the answer's reader is gone", "P", lambda world: (broken_answer(world), setattr(world, "line", b"-"))),
    Case(33, "umask 0", "D", umask(0)),
    Case(33, "umask 777", "D", umask(0o777)),
    Case(33, "the working directory is gone", "T", gone_home),
    Case(33, "the home is missing", "T", both(environment(DTLINE=None, HOME="/nonexistent"))),
    Case(33, "the home is a file", "T", both(environment(DTLINE=None, HOME="/dev/null"))),
    *(Case(34, number.name, "T", stopped(number)) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGXCPU, signal.SIGUSR1)),
    Case(34, "SIGALRM", "T", stopped(signal.SIGALRM)),
    Case(34, "SIGPIPE and SIGCHLD", "D", stopped(signal.SIGPIPE, signal.SIGCHLD, signal.SIGWINCH)),
    Case(34, "SIGTERM twice", "T", stopped(signal.SIGTERM, signal.SIGTERM)),
    Case(35, "no more descriptors", "T", limited(resource.RLIMIT_NOFILE, 3)),
    Case(37, "1970", "D", clock(0)),
    Case(37, "before 1970", "D", clock(-1_500_000_000)),
    Case(37, "2038", "D", clock(2**31 * 10**9)),
    Case(38, "a host without a name", "D", host("")),
    Case(38, "a host's name with / : and newline", "D", host("a/b:c\nd,S=1:2,T")),
    Case(38, "a host's name of 255 bytes", "D", host("h" * 255)),
]  # fmt: skip


# --- 40 to 47: files of the user and of the site ---

ONE_RULE = '[[rule]]\nfile = "Mine"\n'


def own_rules(text: str | bytes, mode: int = 0o600, *, wrong: bool = True, where: str = "INBOX") -> Prepare:
    """A user's own file; with ``wrong``, the mail arrives with a header that says so."""

    def prepare(world: World) -> None:
        world.file("mailfilter.toml", text, mode)
        world.where = where
        if wrong:
            world.ours = b"X-Filter-Error: mailfilter.toml: "

    return prepare


def in_its_place(make: Callable[[Path], object]) -> Prepare:
    """Something that is no file where the user's rules should be."""

    def prepare(world: World) -> None:
        make(world.home.path / "mailfilter.toml")
        world.own()
        world.ours = b"X-Filter-Error: mailfilter.toml: "

    return prepare


def home_mode(mode: int) -> Prepare:
    """qmail-local itself looks at the home's mode; we go by the files'."""
    return lambda world: world.home.path.chmod(mode)


def discard_and_copy(world: World) -> None:
    """A rule that keeps nothing, and a queue that takes nothing."""
    queue = world.file("qmail-queue", "#!/bin/sh\nexit 31\n", 0o755)
    world.environment["PATH"] = str(queue.parent)
    world.says('[[rule]]\ncopy = "other@example.org"\ndiscard = true\n')


def configuration(text: bytes) -> Prepare:
    """A site's configuration."""

    def prepare(world: World) -> None:
        world.home.config.write_bytes(text)
        world.line = b"4.3.5 Mail filter is not configured (#4.3.5)\n"

    return prepare


def unreadable_configuration(world: World) -> None:
    world.home.config.unlink()
    world.home.config.mkdir()
    world.line = b"4.3.5 Mail filter is not configured (#4.3.5)\n"


THE_FILES = [
    Case(40, "rules that the group may write", "D", own_rules(ONE_RULE, 0o620)),
    Case(40, "rules that all may write", "D", own_rules(ONE_RULE, 0o602)),
    Case(40, "a home that all may write", "D", home_mode(0o777)),
    Case(40, "a sticky home", "D", home_mode(0o1755)),
    Case(41, "no TOML", "D", own_rules("[[rule]\n")),
    Case(41, "an unknown condition", "D", own_rules('[[rule]]\nfile = "A"\n[rule.when]\nsbject = "x"\n')),
    Case(41, "NUL and 8-bit", "D", own_rules(b"\0\xff\n")),
    Case(41, "arrays 10^4 deep", "D", own_rules("a = " + "[" * 10_000 + "]" * 10_000)),
    Case(41, "conditions 1000 deep", "D", own_rules(ONE_RULE + "when = " + "{ not = " * 1000 + "{}" + " }" * 1000 + "\n")),
    Case(42, "no file", "D", lambda _world: None),
    Case(42, "an unreadable file", "D", own_rules(ONE_RULE, 0)),
    Case(42, "a directory", "D", in_its_place(Path.mkdir)),
    Case(42, "a FIFO", "D", in_its_place(os.mkfifo)),
    Case(42, "a device", "D", in_its_place(lambda path: path.symlink_to("/dev/zero"))),
    Case(42, "a dangling link", "D", in_its_place(lambda path: path.symlink_to("/nonexistent"))),
    Case(42, "100 MB", "D", in_its_place(lambda path: (path.touch(0o600), os.truncate(path, 100_000_000)))),
    Case(43, "a pattern that backtracks elsewhere", "D", both(
        own_rules('[[rule]]\nfile = "Mine"\n[rule.when]\nsubject = { regex = "^(a+)+$" }\n', wrong=False),
        lambda world: world.message(headers(b"Subject: " + b"a" * 90_000 + b"!\n")),
    )),
    Case(43, "a pattern too large", "D", own_rules('[[rule]]\nfile = "Mine"\n[rule.when]\nsubject = { regex = "((a{100}){100}){100}" }\n')),
    Case(43, "thousands of rules", "D", own_rules('[[rule]]\nadd-score = 1\n[rule.when]\nsubject = "x"\n' * 4_000, wrong=False)),
    Case(43, "10^6 rules", "D", own_rules("[[rule]]\n" * 1_000_000)),
    Case(44, "a rule into a new folder", "D", own_rules('[[rule]]\nfile = "Lists.New"\n', wrong=False, where="Lists.New")),
    Case(44, "a rule into an mbox", "D", both(
        own_rules('[[rule]]\nfile = "Mbox"\n', wrong=False), lambda world: world.file("Maildir/.Mbox", b"From a\n\nold\n")
    )),
    Case(45, "discarded, and the copy fails", "T", discard_and_copy),
    Case(47, "an unknown key", "T", configuration(b"unknown = 1\n")),
    Case(47, "a wrong type", "T", configuration(b"[clamd]\ntimeout = 5\n")),
    Case(47, "a BOM", "T", configuration(b"\xef\xbb\xbfmaildir = 'Maildir'\n")),
    Case(47, "a key twice", "T", configuration(b"maildir = 'a'\nmaildir = 'b'\n")),
    Case(47, "empty", "T", configuration(b"")),
    Case(47, "a directory", "T", unreadable_configuration),
    Case(47, "missing", "T", lambda world: world.home.config.unlink()),
]  # fmt: skip


# --- 48 to 64: the file system ---


def maildir(change: Callable[[Path], object], where: str = "INBOX") -> Prepare:
    """Something done to the Maildir."""

    def prepare(world: World) -> None:
        change(world.home.maildir)
        world.own()
        world.where = where

    return prepare


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    """A part of the Maildir that is something else."""

    def change(path: Path) -> None:
        part = path / name
        if part.is_dir():
            part.rmdir()
        make(part)

    return change


def spam(change: Callable[[Path], object], where: str = "INBOX") -> Prepare:
    """Spam arrives, and the spam folder is in some state."""

    def prepare(world: World) -> None:
        world.says(TRUSTED)
        world.message(SPAM_LINE + ORDINARY)
        maildir(lambda path: change(path / ".Spam"), where)(world)

    return prepare


def with_parts(*parts: str) -> Callable[[Path], object]:
    """A directory with these directories."""
    return lambda path: [(path / part).mkdir(parents=True) for part in ("", *parts) if not (path / part).is_dir()]


def foreign(path: Path) -> None:
    """Root's, in the user's Maildir; nothing where we are no root."""
    with_parts("new", "cur", "tmp")(path)


def give_to_root(world: World) -> None:
    if os.geteuid() == 0:
        os.chown(world.home.maildir / ".Spam", 0, 0)
        (world.home.maildir / ".Spam").chmod(0o755)
    else:
        (world.home.maildir / ".Spam").chmod(0o500)
        shutil.rmtree(world.home.maildir / ".Spam" / "tmp")


def full(text: bytes, more: str = "") -> Prepare:
    """A maildirsize."""

    def prepare(world: World) -> None:
        world.file("Maildir/maildirsize", text)
        world.says(more)

    return prepare


FULL = b"100S\n99 1\n"


def subscriptions(name: str, make: Callable[[Path], object]) -> Prepare:
    """A folder is made, and the list that should get it is in some state."""

    def prepare(world: World) -> None:
        world.says(TRUSTED)
        world.message(SPAM_LINE + ORDINARY)
        world.where = "Spam"
        make(world.home.maildir / name)
        world.own()

    return prepare


def holding(text: bytes, mode: int = 0o600) -> Callable[[Path], object]:
    """A file of that text."""
    return lambda path: (path.write_bytes(text), path.chmod(mode))


LISTS = {
    "empty": holding(b""),
    "version 1": holding(b"Sent\nA.B\n"),
    "without a last newline": holding(b"V\t2\n\nSent"),
    "CRLF": holding(b"V\t2\r\n\r\nSent\r\n"),
    "read-only": holding(b"V\t2\n\nSent\n", 0o400),
    "10 MB": holding(b"V\t2\n\n" + b"x" * 80 + b"\n" * 10_000_000),
    "a directory": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a link": lambda path: path.symlink_to("/nonexistent"),
}


def locked_list(world: World) -> None:
    """Dovecot's lock, left for ever."""
    subscriptions("subscriptions", holding(b"V\t2\n\nSent\n"))(world)
    world.file("Maildir/subscriptions.lock")


def stale_files(number: int) -> Callable[[Path], object]:
    """What killed deliveries left."""
    return lambda path: [(path / "tmp" / f"1.{index}.host").touch() for index in range(number)]


def modes(mode: int) -> Callable[[Path], object]:
    """All directories have this mode."""
    return lambda path: [directory.chmod(mode) for directory in (path, path / "tmp", path / "new", path / "cur")]


THE_FILE_SYSTEM = [
    Case(48, "no Maildir", "T", lambda world: shutil.rmtree(world.home.maildir)),
    Case(48, "the Maildir is a file", "T", lambda world: (shutil.rmtree(world.home.maildir), world.file("Maildir"))),
    *(Case(49, f"no {part}", "D", maildir(replaced(part, lambda _path: None))) for part in ("tmp", "new", "cur")),
    Case(49, "neither tmp nor new nor cur", "D", maildir(lambda path: [(path / part).rmdir() for part in ("tmp", "new", "cur")])),
    *(Case(49, f"{part} is a file", "T", maildir(replaced(part, Path.touch))) for part in ("tmp", "new", "cur")),
    *(Case(49, f"{part} is a FIFO", "T", maildir(replaced(part, os.mkfifo))) for part in ("tmp", "new", "cur")),
    Case(50, "the spam folder is missing", "D", spam(lambda _path: None, "Spam")),
    Case(50, "the spam folder is a file", "D", spam(Path.touch)),
    Case(50, "the spam folder is a link to nowhere", "D", spam(lambda path: path.symlink_to("/nonexistent"))),
    Case(50, "the spam folder is a link to another", "D", spam(lambda path: path.symlink_to("cur"))),
    Case(50, "the spam folder is a FIFO", "D", spam(os.mkfifo)),
    Case(50, "the spam folder is somebody else's", "D", both(spam(foreign), give_to_root)),
    *(Case(50, f"the spam folder has {parts or 'nothing'}", "D", spam(with_parts(*parts), "Spam")) for parts in (
        (), ("cur",), ("new",), ("tmp",), ("cur", "new"), ("cur", "tmp"), ("new", "tmp"), ("cur", "new", "tmp"),
    )),
    Case(50, "a part of the spam folder is a file", "D", spam(lambda path: (with_parts("cur", "tmp")(path), (path / "new").touch()))),
    Case(58, "full", "P", full(FULL)),
    Case(58, "full, from the null sender", "P", both(full(FULL), environment(SENDER="", RPLINE="Return-Path: <>\n"))),
    Case(58, "full, and to be tried again", "T", full(FULL, '[quota]\nover = "defer"\n')),
    *(Case(60, f"Dovecot's list is {name}", "D", subscriptions("subscriptions", make)) for name, make in LISTS.items()),
    *(Case(60, f"Courier's list is {name}", "D", subscriptions("courierimapsubscribed", make)) for name, make in LISTS.items()),
    Case(60, "Dovecot's list is locked for ever", "D", locked_list),
    Case(61, "2000 stale files", "D", maildir(stale_files(2000))),
    Case(61, "10^5 stale files", "D", maildir(stale_files(100_000)), slow=True),
    *(Case(63, f"directories of mode {mode:o}", "D", maildir(modes(mode))) for mode in (0o770, 0o2770, 0o1777, 0o700)),
]  # fmt: skip


# --- 65 to 75: scanners ---


def spamd_answer(lines: bytes, spam_: bytes = b"False ; 0.1 / 5.0", length: int | None = None) -> bytes:
    """spamd/PROTOCOL: the answer to HEADERS."""
    size = len(lines) if length is None else length
    return b"SPAMD/1.1 0 EX_OK\r\nContent-length: %d\r\nSpam: %b\r\n\r\n%b" % (size, spam_, lines)


def clamd(*steps: servers.BehaviourStep, seconds: float = 10) -> Prepare:
    """A clamd that does this once it has the message."""
    return lambda world: world.says(CLAMD.format(world.peer(servers.read_stream, *steps), seconds))


def clamd_says(answer: bytes) -> Prepare:
    """A clamd that answers this."""
    return clamd(servers.answer(answer))


def spamd(*steps: servers.BehaviourStep, seconds: float = 10, ours: bytes = b"X-Spam-Status: Not scanned (spamd ") -> Prepare:
    """A spamd that does this once it has the message; the mail comes with a header that says it was not scanned."""

    def prepare(world: World) -> None:
        world.says(SPAMD.format(world.peer(servers.read_all, *steps), seconds))
        world.ours = ours

    return prepare


def no_socket(table: str, kind: str) -> Prepare:
    """A scanner that is not there."""

    def prepare(world: World) -> None:
        path = world.home.path / "scanner"
        if kind == "refused":
            import socket

            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
            path.chmod(0o666)
        elif kind == "forbidden":
            path = world.home.path / "locked" / "scanner"
            path.parent.mkdir()
            path.parent.chmod(0)
        world.says(table.format(f"unix:{path}", 5))
        if table is SPAMD:
            world.ours = b"X-Spam-Status: Not scanned (spamd did not answer)\n"

    return prepare


def quarantined(world: World) -> None:
    """A virus by one scanner, failure of the other."""
    both(clamd_says(b"stream: Bad FOUND\n"), no_socket(SPAMD, "missing"))(world)
    world.where, world.ours = "quarantine", b""


def sick(world: World) -> None:
    """A virus, and no place to hold it."""
    clamd_says(b"stream: Bad FOUND\n")(world)
    world.file("Maildir/deliver", b"a file where the directory belongs")


def marked(answer: bytes, name: bytes) -> Prepare:
    """A virus whose name is hostile; it goes into a header, a log and a bounce."""

    def prepare(world: World) -> None:
        clamd_says(b"stream: " + answer + b" FOUND\n")(world)
        world.says('on-virus = "mark"\n')
        world.ours = b"X-Virus-Status: Infected (" + name + b")\n"

    return prepare


SCANNERS = [
    *(Case(65, f"clamd is {kind}", "T", no_socket(CLAMD, kind)) for kind in ("missing", "refused", "forbidden")),
    *(Case(65, f"spamd is {kind}", "D", no_socket(SPAMD, kind)) for kind in ("missing", "refused", "forbidden")),
    Case(66, "clamd never answers", "T", clamd(servers.hang, seconds=1)),
    Case(66, "clamd answers a byte at a time", "T", clamd(servers.drip(b"stream: OK" + b" " * 100, 0.05), seconds=1)),
    Case(66, "clamd's answer has no end", "T", clamd_says(b"stream: OK")),
    Case(66, "clamd closes", "T", clamd()),
    Case(66, "spamd never answers", "D", spamd(servers.hang, seconds=1)),
    Case(66, "spamd answers a byte at a time", "D", spamd(servers.drip(spamd_answer(b"X-Spam-Status: No\n"), 0.05), seconds=1)),
    Case(66, "spamd closes", "D", spamd()),
    *(Case(67, f"clamd says {answer[:40]!r}", "T", clamd_says(answer)) for answer in (
        b"\n", b"garbage\n", b"\x00\xff\n", b"ERROR\n", b"stream: ERROR\n", b"stream:  OK\n", b"STREAM: OK\n", b"stream: ok\n",
        b"stream: OK\nstream: OK\n", b"stream: Bad FOUND\nstream: OK\n", b"x" * 10_000 + b"\n", b"stream:  FOUND\n",
    )),
    Case(67, "clamd says 1 GB", "T", clamd(servers.endless(b"", b"x" * 65536))),
    Case(67, "clamd's own size limit", "D", clamd_says(b"INSTREAM size limit exceeded. ERROR\n")),
    Case(67, "a virus's name with CR", "D", marked(b"A\rX-Any: y", b"A?X-Any: y")),
    Case(67, "a virus's name in 8-bit", "D", marked(b"A\xff\x1b[31m", b"A??[31m")),
    Case(67, "a virus's name of 1000 bytes", "D", marked(b"A" * 1000, b"A" * 200)),
    *(Case(67, f"spamd says {answer[:40]!r}", "D", spamd(servers.answer(answer))) for answer in (
        b"", b"\r\n", b"garbage", b"SPAMD/1.1 0 EX_OK\r\n\r\n", b"SPAMD/1.1 76 EX_PROTOCOL\r\n\r\n", b"\x00\xff" * 5000,
        b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; nan / inf\r\nContent-length: 0\r\n\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; 1e999 / 5\r\nContent-length: 0\r\n\r\n",
    )),
    Case(67, "spamd says 1 GB", "D", spamd(servers.endless(spamd_answer(b""), b"X-Spam-Any: y\n" * 4096))),
    Case(68, "spamd: too long a Content-length", "D", spamd(servers.answer(spamd_answer(b"X-Spam-Status: No\n", length=10**6)))),
    Case(68, "spamd: too short a Content-length", "D", spamd(servers.answer(spamd_answer(b"X-Spam-Status: No\n", length=1)))),
    Case(68, "spamd gives another message", "D", spamd(
        servers.answer(spamd_answer(b"X-Spam-Status: No\nSubject: another\nX-Any: y\n\nanother body\n")), ours=b"X-Spam-Status: No\n",
    )),
    Case(68, "spamd gives nothing back", "D", spamd(servers.answer(spamd_answer(b"")), ours=b"")),
    Case(72, "a warning with FOUND in it", "T", clamd_says(b"LibClamAV Warning: old signatures FOUND\n")),
    Case(72, "a warning before the answer", "T", clamd_says(b"WARNING: signatures are 7 days old\nstream: OK\n")),
    Case(73, "a virus, and spamd fails", "D", quarantined),
    Case(73, "no spam, and clamd fails", "T", both(
        no_socket(CLAMD, "missing"), spamd(servers.answer(spamd_answer(b"X-Spam-Status: No\n")))
    )),
    Case(74, "no place for the quarantine", "T", sick),
]  # fmt: skip


# --- 79 to 84: the hostile user ---


def log_is_harmless(world: World) -> None:
    """The log has the Subject and addresses, and no control character of theirs."""
    world.says("")
    world.home.config.write_text(world.home.config.read_text() + "subject = true\n")
    world.message(headers(b"Subject: \x1b]0;owned\x07 =?utf-8?b?G1szMW0=?= \xc2\x9b31m\n"))
    world.environment["SENDER"] = "\x1b[2J\x9b@example.net"
    world.stack.callback(lambda: assert_printable(world.home.log.read_bytes()))


def assert_printable(log: bytes) -> None:
    """Every byte is ASCII that a terminal shows."""
    assert re.fullmatch(rb"[ -~\n]+", log)
    assert b"owned" in log


def no_shared_tmp(world: World) -> None:
    """What comes through a pipe and is large is never spooled elsewhere than in the Maildir."""
    world.environment |= {"TMPDIR": "/nonexistent", "TMP": "/nonexistent", "TEMP": "/nonexistent"}
    large_pipe(world)


HOSTILE = [
    Case(79, "no TMPDIR", "D", no_shared_tmp),
    Case(81, "options in the recipient", "T", lambda world: setattr(world, "arguments", ("-d", "you@example.org"))),
    Case(81, "an option behind --", "D", lambda world: setattr(world, "arguments", ("--", "--config=x@example.org"))),
    Case(82, "a rule into another's Maildir", "D", own_rules('[[rule]]\nfile = "../../other/Maildir"\n')),
    Case(82, "a rule that runs a program", "D", own_rules('[[rule]]\nprogram = "touch pwned"\n')),
    Case(84, "escapes for terminals", "D", log_is_harmless),
]

CASES = THE_MESSAGE + THE_ENVELOPE + THE_ENVIRONMENT + THE_FILES + THE_FILE_SYSTEM + SCANNERS + HOSTILE

ELSEWHERE = {
    19: "test_message.py::test_a_file_that_shrinks_is_tried_again",
    29: "test_maildir.py::test_a_failing_directory_sync_defers_and_keeps_the_message",
    36: "test_launcher.py::test_missing_interpreter_is_try_again",
    39: "test_main_job.py::test_fifty_at_once",
    51: "test_maildir.py::test_a_failing_disk_defers_and_leaves_nothing",
    52: "test_maildir.py::test_a_full_disk_defers",
    53: "test_maildir.py::test_a_failing_disk_defers_and_leaves_nothing",
    54: "test_maildir.py::test_a_poor_file_system_is_good_enough",
    55: "test_maildir.py::test_a_poor_file_system_is_good_enough",
    56: "test_maildir.py::test_new_is_made_again_when_it_vanishes_before_the_commit",
    57: "test_quota.py::test_every_state_of_maildirsize",
    59: "test_quota.py::test_a_limit_that_cannot_be_checked_in_time_does_not_hold",
    62: "test_maildir.py::test_a_poor_file_system_is_good_enough",
    76: "test_security.py::test_a_part_swapped_during_the_delivery",
    77: "test_security.py::test_what_is_planted_is_neither_written_nor_read",
    78: "test_maildir.py::test_another_message_is_never_replaced",
}
"""Bad inputs that need more than a table's row."""

LEFT_OUT = {
    10: "archives have tests of their own",
    25: "LMTP has tests of its own",
    26: "LMTP has tests of its own",
    27: "LMTP has tests of its own",
    28: "LMTP has tests of its own",
    46: "programs of rules have tests of their own",
    64: "a power cut needs root and loop devices: the fault tests",
    69: "no scanner gets a file of ours: clamd and spamd see a stream",
    70: "no scanner is a child process of ours; a daemon that dies closes its connection (66)",
    71: "the service has tests of its own",
    75: "no message is ever rewritten",
    80: "the service has tests of its own",
    83: "a full disk is 52, and the MTA's patience is the MTA's",
}
"""Bad inputs without a case, and why."""


@pytest.fixture
def world(scratch: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """A fresh home for one case."""
    case: Case = request.param
    prefix = request.getfixturevalue("installed") if case.installed else None
    with contextlib.ExitStack() as stack:
        made = World(scratch, prefix, stack)
        case.prepare(made)
        yield made


def name_of(case: Case) -> str:
    """Such as 12-our-own-Delivered-To."""
    return f"{case.number}-" + re.sub(r"[^A-Za-z0-9^.-]+", "-", case.name)[:60].strip("-")


def parameters() -> list[object]:
    """The table for pytest."""
    return [
        pytest.param(case, case, id=name_of(case), marks=[pytest.mark.faults] if case.slow else []) for case in CASES
    ]


@pytest.mark.parametrize(("world", "case"), parameters(), indirect=["world"])
def test_a_bad_input_has_its_outcome(world: World, case: Case) -> None:
    """Exit code, answer and what is stored are as promised, nothing is left half done, and it does not take long."""
    stale = set(os.listdir(world.home.maildir / "tmp")) if (world.home.maildir / "tmp").is_dir() else set()
    answers = [world.run() for _ in range(world.copies)]
    world.home.path.chmod(0o755)
    for answer in answers:
        assert answer.code == {"D": 0, "T": 75, "P": 100}[case.outcome], (answer, world.home.logged())
        assert_public(case.outcome, answer, world.line)
        assert answer.grown < 64 * 1024 * 1024
    assert_stored(case.outcome, world)
    if (world.home.maildir / "tmp").is_dir():
        assert set(os.listdir(world.home.maildir / "tmp")) == stale
    assert not list(world.home.path.rglob("pwned"))
    assert not Path("/tmp/pwned").exists()


def assert_public(outcome: str, answer: forked.Ended, line: bytes) -> None:
    """Nothing on success; otherwise one line with its code in front and behind, without a path."""
    assert answer.stderr == b""
    if line == b"-":
        return
    if outcome == "D":
        assert answer.stdout == b""
        return
    assert answer.stdout == line or not line
    found = re.fullmatch(rb"([45]\.\d+\.\d+) [ -~]* \(#([45]\.\d+\.\d+)\)\n", answer.stdout)
    assert found, answer.stdout
    assert found[1] == found[2]
    assert found[1].startswith(b"4" if outcome == "T" else b"5")
    assert b"/" not in answer.stdout


def assert_stored(outcome: str, world: World) -> None:
    """Exactly one whole copy for each delivery, or none."""
    if not world.home.maildir.is_dir():
        assert outcome == "T"
        return
    if outcome != "D":
        assert [one for one in world.home.messages() if not main_job.is_warning(one)] == []
        assert world.home.held() == []
        return
    assert world.home.where() == ", ".join([world.where] * world.copies)
    if world.where == "quarantine":
        return
    expected = world.content if world.stored is None else world.stored
    for stored in world.home.messages(world.where):
        top, body = stored[: len(stored) - len(expected)], stored[len(stored) - len(expected) :]
        assert body == expected
        assert world.ours in top
        # Only whole header lines of ours stand before it.
        for one in top.splitlines():
            assert re.match(rb"(Return-Path|Delivered-To|X-Spam-[A-Za-z-]+|X-Virus-Status|X-Filter-Error): |X-Unfolded:$|[ \t]", one), one
    root = world.home.maildir if world.where == "INBOX" else world.home.maildir / f".{world.where}"
    for path in (root / "new").iterdir():
        assert path.name.endswith(f",S={path.stat().st_size}")
        assert path.stat().st_mode & 0o777 == 0o600
        assert re.fullmatch(r"[0-9-]+\.M[0-9]+P[0-9]+Q[0-9]+R[0-9a-f]{16}\.[A-Za-z0-9._-]{1,64},S=[0-9]+", path.name)


def test_every_number_has_a_case_or_a_reason() -> None:
    """The 84 of them."""
    numbers = {case.number for case in CASES}
    assert numbers | set(ELSEWHERE) | set(LEFT_OUT) == set(range(1, 85))
    assert not numbers & set(LEFT_OUT)


@pytest.mark.parametrize("number", ELSEWHERE)
def test_what_is_tested_elsewhere_is(number: int) -> None:
    """A renamed test must not leave a hole."""
    file, _, function = ELSEWHERE[number].partition("::")
    assert f"\ndef {function}(" in (ROOT / "tests" / file).read_text()


def test_the_page_tells_every_deviation_and_gap() -> None:
    """docs/bad-inputs.md names each number that is left out, with its reason."""
    page = (ROOT / "docs" / "bad-inputs.md").read_text()
    for number, reason in LEFT_OUT.items():
        assert f"| {number} | {reason} |" in page
