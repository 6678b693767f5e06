"""clamd is shown what is in a message beside the message: each finds what the other misses."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
import report
import servers
import tricks
from scanned import EICAR, ENVELOPE, HAM, HEADER, InMemory, content, with_attachment, zipped

from deliver import config, wiring
from deliver.content import attachments
from deliver.scanners.attachments import Attached
from deliver.scanners.clamd import Clamd, Contents
from deliver.settings import Attachments
from deliver.values import Finding, Verdict

OK = b"stream: OK\n"


def scan(addresses: list[str], message: bytes | InMemory, contents: Contents | None, seconds: float = 30) -> Verdict:
    message = content(message) if isinstance(message, bytes) else message
    return asyncio.run(Clamd(addresses, 10**9, seconds, contents).scan(message, ENVELOPE))


def holding(*files: bytes) -> Contents:
    """A message in which these files are."""
    return lambda _chunks: iter([(f"file {number}", data) for number, data in enumerate(files, 1)])


def test_each_finds_what_the_other_misses(clamd_server: servers.Server) -> None:
    """And what both miss is objected to, so that it is never clean."""
    table = Attachments()
    scanner = Attached(table.forbidden, table.tricks, table.types)
    raw, extracted, missed = set(), set(), set()
    messages = tricks.tricks(EICAR)
    for name, message in messages.items():
        alone = scan([clamd_server.address], message, None)
        files = [scan([clamd_server.address], data, None) for _, data in attachments.contents([message])]
        together = scan([clamd_server.address], message, attachments.contents)
        if alone.finding is Finding.VIRUS:
            raw.add(name)
        if any(one.finding is Finding.VIRUS for one in files):
            extracted.add(name)
        assert (together.finding is Finding.VIRUS) == (name in raw | extracted), name
        objections = asyncio.run(scanner.scan(content(message), ENVELOPE)).objections
        if name not in raw | extracted and not objections:
            missed.add(name)
    both = len(raw | extracted)
    report.say(f"tricks: {len(messages)}; clamd finds {len(raw)} raw, {len(extracted)} extracted, {both} both ways")
    assert raw - extracted
    assert extracted - raw
    assert missed == set()


def test_the_name_and_where_it_was(clamd_server: servers.Server) -> None:
    message = with_attachment(zipped("a.com", EICAR), "a.zip")
    verdict = scan([clamd_server.address], HAM, lambda _: attachments.contents([message]))
    assert (verdict.finding, verdict.names) == (Finding.VIRUS, ("Eicar-Test-Signature.UNOFFICIAL",))
    assert verdict.detail == "in a.zip"  # clamd opens the archive itself
    assert scan([clamd_server.address], message, attachments.contents).detail == ""  # the message was enough


@pytest.mark.parametrize(("table", "times"), [("", 1), ("[attachments]\n", 3)])
def test_only_where_attachments_are_configured(scratch: Path, table: str, times: int) -> None:
    with servers.Scripted(scratch, servers.read_stream, servers.answer(OK)) as peer:
        settings, _ = config.parse(f'[clamd]\naddress = "{peer.address}"\n{table}'.encode(), "")
        assert settings is not None
        [clamd] = [one for one in wiring.scanners(settings) if one.name == "clamd"]
        message = with_attachment(b"hello\n", "a.txt")
        assert asyncio.run(clamd.scan(content(message), ENVELOPE)).finding is Finding.CLEAN
        assert [bytes(one.received) for one in peer.peers] == [message, b"See the attachment.", b"hello\n"][:times]


def test_what_clamd_takes_is_not_counted_as_unpacking(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deliver.content.bounds.SECONDS", 0.5)
    files = [zipped(f"{number}.txt", b"file %d\n" % number) for number in range(4)]
    message = with_attachment(b"first\n", "a.txt").replace(
        b"--=_b--",
        b"".join(
            b"--=_b\nContent-Type: application/zip\nContent-Transfer-Encoding: base64\n\n%s\n"
            % base64.encodebytes(data)
            for data in files
        )
        + b"--=_b--",
    )
    with servers.Scripted(scratch, servers.read_stream, servers.wait(0.2), servers.answer(OK)) as peer:
        settings, _ = config.parse(f'[clamd]\naddress = "{peer.address}"\n[attachments]\n'.encode(), "")
        assert settings is not None
        [clamd] = [one for one in wiring.scanners(settings) if one.name == "clamd"]
        assert asyncio.run(clamd.scan(content(message), ENVELOPE)).finding is Finding.CLEAN
        shown = [bytes(one.received) for one in peer.peers]
    assert [one for one in shown if one.startswith(b"file ")] == [b"file %d\n" % number for number in range(4)]


def after(first: bytes, *then: servers.BehaviourStep) -> servers.BehaviourStep:
    """One answer to the message ``HAM``, other steps for what is in it."""

    def step(peer: servers.Peer) -> None:
        servers.read_stream(peer)
        for one in (servers.answer(first),) if bytes(peer.received) == HAM else then:
            one(peer)

    return step


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ((), "clamd did not answer"),
        ((servers.hang,), "clamd did not answer in time"),
        ((servers.answer(b"stream: No memory ERROR\n"),), "clamd reported an error"),
        ((servers.answer(b"what?\n"),), "clamd answered nonsense"),
    ],
)
def test_a_file_that_is_not_judged_is_a_failure(
    scratch: Path, steps: tuple[servers.BehaviourStep, ...], reason: str
) -> None:
    with servers.Scripted(scratch, after(OK, *steps)) as peer:
        verdict = scan([peer.address], HAM, holding(b"one", b"two"), 1)
        assert (verdict.finding, verdict.reason) == (Finding.FAILED, reason)
        assert len(peer.peers) == 2  # the second file was not tried


def test_a_message_that_is_not_judged_is_one_at_once(scratch: Path) -> None:
    with servers.Scripted(scratch, after(b"stream: No memory ERROR\n", servers.answer(OK))) as peer:
        assert scan([peer.address], HAM, holding(b"one")).finding is Finding.FAILED
        assert len(peer.peers) == 1


def test_all_of_it_has_one_deadline(scratch: Path) -> None:
    slow = (servers.wait(0.3), servers.answer(OK))
    with servers.Scripted(scratch, after(OK, *slow)) as peer:
        verdict = scan([peer.address], HAM, holding(*[b"x"] * 20), 1)
    assert (verdict.finding, verdict.reason) == (Finding.FAILED, "clamd did not answer in time")
    assert len(peer.peers) < 6


@pytest.mark.parametrize("steps", [(b"stream: Evil FOUND\n", OK), (OK, b"stream: Evil FOUND\n")])
def test_the_first_virus_ends_it(scratch: Path, steps: tuple[bytes, bytes]) -> None:
    with servers.Scripted(scratch, after(steps[0], servers.answer(steps[1]))) as peer:
        verdict = scan([peer.address], HAM, holding(b"one", b"two"))
        assert (verdict.finding, verdict.names) == (Finding.VIRUS, ("Evil",))
        assert len(peer.peers) == 1 + (steps[0] == OK)


def test_a_file_over_clamds_limit_is_skipped_and_a_virus_counts_more(scratch: Path) -> None:
    large = b"x" * (1024 * 1024 + 1)
    with servers.clamd(scratch, stream_max_length="1M") as server:
        verdict = scan([server.address], HAM, holding(large, b"small"))
        assert (verdict.finding, verdict.reason) == (
            Finding.SKIPPED,
            "a file in it is larger than clamd's own limit",
        )
        assert verdict.detail == "file 1"
        assert scan([server.address], HAM, holding(large, EICAR)).finding is Finding.VIRUS
        assert scan([server.address], HEADER + b"\n" + large, holding(EICAR)).finding is Finding.VIRUS
        assert scan([server.address], HEADER + b"\n" + large, holding(b"small")).finding is Finding.SKIPPED


def test_the_next_member_of_a_pool_gets_the_whole_file(scratch: Path) -> None:
    bad = servers.Scripted(scratch, after(OK))
    good = servers.Scripted(scratch, servers.read_stream, servers.answer(OK))
    with servers.all_of(bad, good) as addresses:
        assert scan(list(addresses), HAM, holding(b"one")).finding is Finding.CLEAN
        assert [bytes(one.received) for one in good.peers] == [b"one"]


def test_what_cannot_be_walked_is_no_clean_message(clamd_server: servers.Server) -> None:
    def broken(_chunks: object) -> Iterator[tuple[str, bytes]]:
        raise OSError("gone")
        yield "", b""

    with pytest.raises(OSError, match="gone"):  # scan_all makes a failure of it
        scan([clamd_server.address], HAM, broken)
