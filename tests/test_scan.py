"""All scanners about one message; addresses; pools; what importing costs."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import servers
from scanned import EICAR, ENVELOPE, GTUBE, HAM, HEADER, content

from deliver.scan import scan_all
from deliver.scanners.address import Address, TcpAddress, UnixAddress, parse
from deliver.scanners.clamd import Clamd
from deliver.scanners.pool import BadAnswer, NoAnswer, first_answer
from deliver.scanners.spamd import Spamd
from deliver.values import Content, Envelope, Finding, Step, Verdict, unheard

SPAMD_CLEAN = b"SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\nSpam: False ; 0.1 / 5.0\r\n\r\n"


class Fake:
    """A scanner that says what it is told to."""

    def __init__(self, name: str, scan: Callable[[], Awaitable[Verdict]], max_size: int = 1000) -> None:
        self.name = name
        self.max_size = max_size
        self._scan = scan

    async def scan(self, _content: Content, _envelope: Envelope) -> Verdict:
        return await self._scan()


async def clean() -> Verdict:
    return Verdict("fake", Finding.CLEAN)


def scan(scanners, message: bytes = HAM, note=unheard) -> tuple[Verdict, ...]:
    return asyncio.run(scan_all(scanners, content(message), ENVELOPE, note))


def test_a_scanner_that_raises_has_failed_and_the_others_are_heard():
    async def broken() -> Verdict:
        raise KeyError("a bug\n/private/path")

    failed, other = scan([Fake("broken", broken), Fake("fake", clean)])
    assert failed.finding is Finding.FAILED
    assert failed.reason == "broken failed"
    assert "KeyError" in failed.detail
    assert "\n" not in failed.detail
    assert other.finding is Finding.CLEAN


@pytest.mark.parametrize(
    ("max_size", "words"),
    [(256 * 1024, "256 KiB"), (25 * 1024 * 1024, "25 MiB"), (1000, "1000 bytes"), (1536, "1536 bytes")],
)
def test_a_message_over_the_cap_is_skipped_unasked(max_size, words):
    async def never() -> Verdict:
        raise AssertionError

    (at_the_cap,) = scan([Fake("fake", clean, max_size)], b"x" * max_size)
    assert at_the_cap.finding is Finding.CLEAN
    (over,) = scan([Fake("fake", never, max_size)], b"x" * (max_size + 1))
    assert over == Verdict("fake", Finding.SKIPPED, reason=f"larger than {words}")


def test_every_verdict_is_told_in_words_in_the_scanners_order():
    async def slow_spam() -> Verdict:
        await asyncio.sleep(0.05)
        return Verdict("spamd", Finding.SPAM, names=("GTUBE", "NO_RELAYS"), score=15.06, required=5.0)

    async def virus() -> Verdict:
        return Verdict("clamd", Finding.VIRUS, names=("Eicar",))

    steps: list[Step] = []
    verdicts = scan([Fake("spamd", slow_spam), Fake("clamd", virus), Fake("big", clean, 1)], note=steps.append)
    assert [step.kind for step in steps] == ["scan"] * 3
    assert steps[0].text.startswith("spamd: spam, 15.1 of 5.0 points, ")
    assert steps[0].text.endswith(" ms (GTUBE, NO_RELAYS)")
    assert steps[1].text.startswith("clamd: virus Eicar, ")
    assert steps[2].text == "big: skipped, larger than 1 bytes"
    assert verdicts[0].seconds >= 0.05


def test_no_scanners_no_verdicts():
    assert scan([]) == ()


def test_the_slower_scanner_sets_the_time(scratch):
    """Each answers after 0.5 s: at once that is 0.5 s, one after the other 1 s."""
    with (
        servers.Scripted(scratch, servers.read_stream, servers.wait(0.5), servers.answer(b"stream: OK\n")) as virus,
        servers.Scripted(scratch, servers.read_all, servers.wait(0.5), servers.answer(SPAMD_CLEAN)) as spam,
    ):
        scanners = [Clamd([virus.address], 10**6, 5), Spamd([spam.address], 10**6, 5)]
        scan(scanners)  # imports the packages, once
        start = time.monotonic()
        verdicts = scan(scanners)
        elapsed = time.monotonic() - start
    assert [verdict.finding for verdict in verdicts] == [Finding.CLEAN, Finding.CLEAN], verdicts
    assert 0.5 <= elapsed < 0.9


def test_real_servers_see_virus_and_spam_at_once(clamd_server, spamd_server):
    scanners = [Clamd([clamd_server.address], 10**6, 30), Spamd([spamd_server.address], 10**6, 30)]
    virus, spam = scan(scanners, HEADER + b"\n" + GTUBE + b"\n" + EICAR + b"\n")
    assert virus.finding is Finding.VIRUS
    assert spam.finding is Finding.SPAM
    assert "GTUBE" in spam.names
    virus, spam = scan(scanners, HAM)
    assert (virus.finding, spam.finding) == (Finding.CLEAN, Finding.CLEAN)


# Pools.


def ask_pool(members: dict[str, Callable[[float], Awaitable[str]]], seconds: float = 5) -> str:
    addresses = [UnixAddress(f"/{name}") for name in members]

    async def ask(address: Address, deadline: float) -> str:
        assert isinstance(address, UnixAddress)
        return await members[address.path[1:]](deadline)

    return asyncio.run(first_answer("x", addresses, seconds, ask))


async def yes(_deadline: float) -> str:
    return "yes"


async def refused(_deadline: float) -> str:
    raise ConnectionRefusedError(111, "Connection refused")


async def nonsense(_deadline: float) -> str:
    raise BadAnswer("hello\x1b[2J")


async def hangs(_deadline: float) -> str:
    await asyncio.sleep(3600)
    raise AssertionError


async def bug(_deadline: float) -> str:
    raise ZeroDivisionError


@pytest.mark.parametrize("failure", [refused, nonsense, hangs, bug])
def test_every_kind_of_failure_passes_to_the_next(failure):
    assert ask_pool({"first": failure, "second": yes}, 1.0) == "yes"


def test_members_share_one_deadline_evenly_and_the_last_gets_the_rest():
    shares: list[float] = []

    async def fails(deadline: float) -> str:
        shares.append(deadline - time.monotonic())
        raise OSError

    with pytest.raises(NoAnswer):
        ask_pool({"a": fails, "b": fails, "c": fails}, 30)
    assert shares == pytest.approx([10, 15, 30], abs=0.5)

    start = time.monotonic()
    with pytest.raises(NoAnswer) as caught:
        ask_pool({"a": hangs, "b": hangs, "c": hangs}, 0.6)
    assert 0.5 < time.monotonic() - start < 1.0
    assert caught.value.reason == "x did not answer in time"


def test_when_all_fail_the_public_reason_names_no_place_and_the_detail_names_all():
    with pytest.raises(NoAnswer) as caught:
        ask_pool({"a": refused, "b": nonsense})
    assert caught.value.reason == "x answered nonsense"
    assert "/" not in caught.value.reason
    detail = caught.value.detail
    assert "unix:/a: Connection refused" in detail
    assert "unix:/b: hello" in detail
    assert detail.isprintable()


# Addresses.


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/clamav/clamd.ctl", UnixAddress("/run/clamav/clamd.ctl")),
        ("unix:/" + "x" * 106, UnixAddress("/" + "x" * 106)),  # 107 bytes: unix(7)
        ("unix:/with:colon", UnixAddress("/with:colon")),
        ("tcp:127.0.0.1:783", TcpAddress("127.0.0.1", 783)),
        ("tcp:scan.example.com:3310", TcpAddress("scan.example.com", 3310)),
        ("tcp:[::1]:783", TcpAddress("::1", 783)),
        ("tcp:[fe80::1%eth0]:65535", TcpAddress("fe80::1%eth0", 65535)),
    ],
)
def test_an_address_is_read_and_shown_as_it_was_written(text, address):
    assert parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "write"),
        ("/run/clamd.ctl", 'write "unix:/path'),
        ("localhost:783", 'or "tcp:host:port"'),
        ("unix:run/clamd.ctl", "absolute path"),
        ("unix:", "absolute path"),
        ("unix:/a\0b", "absolute path"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
        ("unix:/" + "ö" * 54, "at most 107 bytes"),
        ("tcp:localhost", "a port from 1 to 65535"),
        ("tcp:localhost:", "a port"),
        ("tcp:localhost:0", "a port"),
        ("tcp:localhost:65536", "a port"),
        ("tcp:localhost:7_83", "a port"),
        ("tcp:localhost:٧٨٣", "a port"),
        ("tcp:::1:783", "in brackets"),
        ("tcp::783", "neither a host name nor an IP address"),
        ("tcp:[localhost]:783", "neither"),
        ("tcp:a b:783", "neither"),
        ("tcp:a/b:783", "neither"),
    ],
)
def test_what_is_no_address_says_what_was_expected(text, words):
    with pytest.raises(ValueError, match="is not an address") as caught:
        parse(text)
    assert words in str(caught.value)


def test_a_scanner_refuses_a_wrong_address_when_it_is_made():
    for scanner in (Clamd, Spamd):
        with pytest.raises(ValueError, match="brackets"):
            scanner(["tcp:127.0.0.1:783", "tcp:::1:783"], 1, 1)


# What importing costs.


def python(code: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, check=False, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=60, **options
    )


def test_the_adapters_load_their_packages_only_when_they_scan():
    done = python(
        "import sys, deliver.scan, deliver.scanners.clamd, deliver.scanners.spamd\n"
        "print(*sorted({'clamd', 'aiospamc', 'loguru', 'pkg_resources', 'email'} & set(sys.modules)))"
    )
    assert (done.stdout, done.stderr) == ("\n", "")


@pytest.mark.parametrize("module", ["clamd_socket", "spamd_connection"])
def test_the_packages_write_nothing_and_leave_pkg_resources_alone(module, tmp_path):
    (tmp_path / "pkg_resources.py").write_text("import sys; print('imported', file=sys.stderr)\n")
    done = python(
        "import sys, os; before = dict(os.environ)\n"
        f"import deliver.scanners.{module}\n"
        "assert dict(os.environ) == before\n"
        "print('pkg_resources' in sys.modules)",
        env={"PYTHONWARNINGS": "always", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_spamds_package_can_be_imported_by_a_user_without_a_name():
    """A container's uid often has no entry in the password file; getpass.getuser() then raises KeyError."""
    done = python(
        "import pwd\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "import deliver.scanners.spamd_connection, os\n"
        "print('LOGNAME' in os.environ)",
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
