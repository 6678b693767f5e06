"""System calls of the resident service fail while it works: what it accepted is there once, whole; then it is well again."""

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import main_job
import pytest
import report
import servers
import strace
from installed import install_once  # noqa: F401 - the fixture `installed`
from lmtp_client import Client
from test_faults_sweep import ERRORS, FULL, SEED
from test_service import Site

pytestmark = pytest.mark.faults

ROUNDS = 60 if FULL else 12
MESSAGES = 6
"""In each round: half of them by LMTP to three recipients, half by the command."""

# Without close: an injected error keeps it from closing, which no kernel does, and a socket's peer waits for the end.
CALLS = ["openat", "write", "fsync", "linkat", "mkdirat", "newfstatat", "unlinkat", "pread64", "renameat", "getdents64", "lseek", "read"]
NOT_HERE = {"EINTR"}
LARGE = b"".join(b"%06d The quick brown fox jumps over the lazy dog, and so on and so forth.\n" % n for n in range(6000))

CONFIGURATION = """
deadline = '20 s'
[log]
to = 'HERE/you/log'
[quota]
limit = '100 MB'
[users]
maildir = 'HERE/{user}/Maildir'
[service]
socket = '/run/deliver/deliver.sock'
lmtp = ['unix:/run/deliver/lmtp.sock']
[[rule]]
copy = 'Copies'
file = 'Work'
when = { subject = '*work*' }
[[rule]]
quarantine = true
when = { subject = '*held*' }
"""


class Sent:
    """A message, whose it is, where it belongs, and what was answered: "0" and "250" are yes."""

    def __init__(self, maildir: Path, kind: str, content: bytes, answer: str) -> None:
        self.accepted = answer in ("0", "250")
        self.answer = answer
        self._content = content
        folders = {"plain": [maildir], "work": [maildir / ".Work", maildir / ".Copies"], "held": []}[kind]
        self._places = [folder / "new" for folder in folders]
        self._places += [maildir / "deliver" / "quarantine" / "messages"] * (kind == "held")

    def complaints(self) -> Iterator[str]:
        """What is wrong with it."""
        if self.answer not in ("0", "250", "75", "451", "452", "421", ""):
            yield f"the answer {self.answer}"
        for place in self._places:
            files = list(place.iterdir()) if place.is_dir() else []
            copies = sum(file.read_bytes().endswith(self._content) for file in files)
            if copies > 1 or (self.accepted and not copies):
                yield f"{self.answer}, and {copies} copies in {place}"


def test_failing_calls_in_a_service_lose_nothing(scratch: Path, installed: Path) -> None:
    strace.needed()
    begun = time.monotonic()
    answers: Counter[str] = Counter()
    wrong = []
    for number in range(ROUNDS):
        draw = random.Random(f"{SEED} service {number}")
        call = CALLS[number % len(CALLS)]
        error = draw.choice([error for error in ERRORS[call] if error not in NOT_HERE])
        step = draw.choice([1, 2, 3, 5, 7])
        fault = f"inject={call}:error={error}:when={draw.randint(1, step)}+{step}"
        (scratch / str(number)).mkdir()
        site = Site(scratch / str(number), installed, CONFIGURATION)
        users = {name: site.user(name) for name in ("anna", "bert", "carl")}
        site.serve()
        assert site.serving is not None
        try:
            with _traced(site.serving.pid, call, fault, scratch / "trace"):
                sent = [one for count in range(MESSAGES) for one in _send(site, users, draw, f"{number} {count}")]
            well = site.deliver(main_job.message("afterwards")).code == 0
        finally:
            site.stop()
        answers.update(one.answer for one in sent)
        wrong += [f"{fault}: {complaint}" for one in sent for complaint in one.complaints()]
        wrong += [f"{fault}: {path.name} is not whole" for path in _misnamed(scratch / str(number))]
        wrong += [f"{fault}: it is not well afterwards"] * (not well)
    yes = answers["0"] + answers["250"]
    report.say(
        f"service with failing calls: {ROUNDS} rounds, {answers.total()} answers, {yes} yes and all of these there, whole; "
        f"{answers.total() - yes} put off; {time.monotonic() - begun:.0f} s"
    )
    assert wrong == []
    assert 0 < yes < answers.total()


def _send(site: Site, users: dict[str, Path], draw: random.Random, number: str) -> list[Sent]:
    kind = draw.choice(["plain", "work", "held"])
    content = main_job.message(f"{kind} {number}", draw.choice([b"small\n", LARGE]))
    if draw.random() < 0.5:
        return [Sent(site.maildir, kind, content, str(site.deliver(content, stdin=draw.choice(["file", "pipe"])).code))]
    try:
        with Client(site.lmtp) as client:
            client.say("LHLO there")
            replies = client.send("friend@example.net", [f"{name}@example.org" for name in users], content)
    except (OSError, AssertionError):  # the conversation was broken off, or nobody could be looked up
        return []
    return [Sent(maildir, kind, content, reply[:3]) for maildir, reply in zip(users.values(), replies, strict=True)]


def _misnamed(directory: Path) -> Iterator[Path]:
    """Messages whose name tells another size: Dovecot breaks off a conversation over them."""
    for path in directory.glob("**/Maildir/**/new/*"):
        if path.name.rpartition(",S=")[2] != str(path.stat().st_size):
            yield path


@contextmanager
def _traced(pid: int, call: str, fault: str, log: Path) -> Iterator[None]:
    """Let calls of a process fail, from when strace has got hold of it until the end of the block."""
    words = ["strace", "-qq", "-f", "-o", str(log), "-e", f"trace={call}", "-e", fault, "-p", str(pid)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as tracer:
        try:
            servers.wait_for(lambda: all(_is_traced(task) for task in Path(f"/proc/{pid}/task").iterdir()))
            yield
        finally:
            tracer.send_signal(signal.SIGINT)  # it lets go and ends: strace(1), -p


def _is_traced(task: Path) -> bool:
    """proc(5), TracerPid."""
    return "\nTracerPid:\t0\n" not in (task / "status").read_text()
