"""One scan for many: what is shared, what is remembered and what is forgotten. The scanners are real adapters."""

import asyncio
import os
from pathlib import Path

import pytest
import servers
from scanned import ENVELOPE, HAM, content

from deliver import scan_once
from deliver.scan_once import ScanOnce, Version
from deliver.scanners.clamd import Clamd
from deliver.scanners.spamd import Spamd
from deliver.values import Content, Envelope, Finding, Verdict

CLEAN = b"stream: OK\n"
HAM_ANSWER = b"SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\nSpam: False ; 0.1 / 5.0\r\n\r\n"


def clamd(directory: Path, answer: bytes = CLEAN, seconds: float = 0.0) -> servers.Scripted:
    """A clamd that says the same of everything."""
    return servers.Scripted(directory, servers.read_stream, servers.wait(seconds), servers.answer(answer))


def once(peer: servers.Scripted, **settings: object) -> ScanOnce:
    """A shared scanner in front of ``peer``."""
    return ScanOnce(Clamd([peer.address], 10**9, 10), **{"per_user": False, "identity": lambda: "same", **settings})  # type: ignore[arg-type]


def test_fifty_at_once_share_one_scan(scratch: Path) -> None:
    with clamd(scratch, b"stream: Eicar FOUND\n", 0.2) as peer:
        scanner = once(peer)

        async def fifty() -> list[Verdict]:
            return await asyncio.gather(*(scanner.scan(content(HAM), ENVELOPE) for _ in range(50)))

        verdicts = asyncio.run(fifty())
    assert {verdict.finding for verdict in verdicts} == {Finding.VIRUS}
    assert (len(peer.peers), scanner.hits) == (1, 49)


def test_a_verdict_is_remembered_for_the_same_bytes_alone(scratch: Path) -> None:
    with clamd(scratch) as peer:
        scanner = once(peer)

        async def three() -> None:
            await scanner.scan(content(HAM), ENVELOPE)
            await scanner.scan(content(HAM), ENVELOPE._replace(recipient="c@example.com"))
            await scanner.scan(content(HAM + b"."), ENVELOPE)

        asyncio.run(three())
    assert (len(peer.peers), scanner.hits) == (2, 1)


def test_a_failed_scan_is_shared_but_never_kept(scratch: Path) -> None:
    with clamd(scratch, b"", 0.2) as peer:  # it closes without an answer
        scanner = once(peer)

        async def twice() -> list[Verdict]:
            together = await asyncio.gather(*(scanner.scan(content(HAM), ENVELOPE) for _ in range(2)))
            return [*together, await scanner.scan(content(HAM), ENVELOPE)]

        verdicts = asyncio.run(twice())
    assert {verdict.finding for verdict in verdicts} == {Finding.FAILED}
    assert len(peer.peers) == 2


def test_another_identity_asks_anew(scratch: Path) -> None:
    with clamd(scratch) as peer:
        identity = ["ClamAV 1/1"]
        scanner = once(peer, identity=lambda: identity[0])

        async def reloaded() -> None:
            await scanner.scan(content(HAM), ENVELOPE)
            identity[0] = "ClamAV 1/2"
            await scanner.scan(content(HAM), ENVELOPE)

        asyncio.run(reloaded())
    assert (len(peer.peers), scanner.hits) == (2, 0)


def test_a_scan_across_a_reload_is_not_kept_and_not_shared_with_those_who_came_after_it(scratch: Path) -> None:
    with clamd(scratch, CLEAN, 0.3) as peer:
        identity = ["ClamAV 1/1"]
        scanner = once(peer, identity=lambda: identity[0])

        async def reloaded() -> None:
            first = asyncio.create_task(scanner.scan(content(HAM), ENVELOPE))
            await asyncio.to_thread(servers.wait_for, lambda: bool(peer.peers))
            identity[0] = "ClamAV 1/2"
            await asyncio.gather(first, scanner.scan(content(HAM), ENVELOPE))
            identity[0] = "ClamAV 1/1"
            await scanner.scan(content(HAM), ENVELOPE)

        asyncio.run(reloaded())
    assert (len(peer.peers), scanner.hits) == (3, 0)


def test_users_with_preferences_of_their_own_do_not_share(scratch: Path) -> None:
    with servers.Scripted(scratch, servers.read_all, servers.answer(HAM_ANSWER)) as peer:
        scanner = ScanOnce(Spamd([peer.address], 10**9, 10, "{recipient}"), per_user=True, identity=lambda: "same")

        async def three() -> None:
            for recipient in ("one@example.com", "two@example.com", "one@example.com"):
                await scanner.scan(content(HAM), ENVELOPE._replace(recipient=recipient))

        asyncio.run(three())
    users = [b"User: one@example.com\r\n" in one.received for one in peer.peers]
    assert users == [True, False]
    assert b"User: two@example.com\r\n" in peer.peers[1].received


def test_a_verdict_is_kept_for_ten_minutes(scratch: Path) -> None:
    """design.md section 5."""
    with clamd(scratch) as peer:
        now = [0.0]
        scanner = once(peer, clock=lambda: now[0])

        async def later() -> None:
            for now[0] in (0.0, 599.0, 601.0):
                await scanner.scan(content(HAM), ENVELOPE)

        asyncio.run(later())
    assert (len(peer.peers), scanner.hits) == (2, 1)


class Wordy:
    """A scanner that has much to say."""

    name = "wordy"
    max_size = 10**9

    def __init__(self) -> None:
        self.at_once = self.most = 0

    async def scan(self, _content: Content, _envelope: Envelope) -> Verdict:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        return Verdict(self.name, Finding.CLEAN, headers=b"X-Spam-Report: " + b"x" * 10_000 + b"\n")


def test_what_is_kept_is_bounded_in_bytes() -> None:
    """A thousand reports of 10 KB would be ten times as much."""
    scanner = ScanOnce(Wordy(), per_user=False, identity=lambda: "same")

    async def many() -> None:
        for number in range(1000):
            await scanner.scan(content(b"%d" % number), ENVELOPE)
        assert scanner.hits == 0
        await scanner.scan(content(b"999"), ENVELOPE)

    asyncio.run(many())
    assert scanner.hits == 1
    kept = sum(len(verdict.headers) for _, verdict in scanner._kept.values())
    assert scan_once.LARGEST // 2 < kept <= scan_once.LARGEST


def test_a_crowd_does_not_fall_on_the_scanner() -> None:
    """1,000 recipients with preferences of their own."""
    wordy = Wordy()
    scanner = ScanOnce(wordy, per_user=True, identity=lambda: "same")

    async def crowd() -> None:
        await asyncio.gather(
            *(scanner.scan(content(HAM), ENVELOPE._replace(recipient=f"{number}@x")) for number in range(1000))
        )

    asyncio.run(crowd())
    assert 1 < wordy.most <= scan_once.AT_ONCE


def test_who_gives_up_does_not_take_the_scan_from_the_others(scratch: Path) -> None:
    with clamd(scratch, CLEAN, 0.3) as peer:
        scanner = once(peer)

        async def one_gives_up() -> Verdict:
            impatient = asyncio.create_task(scanner.scan(content(HAM), ENVELOPE))
            await asyncio.to_thread(servers.wait_for, lambda: bool(peer.peers))
            patient = asyncio.create_task(scanner.scan(content(HAM), ENVELOPE))
            await asyncio.sleep(0)
            impatient.cancel()
            with pytest.raises(asyncio.CancelledError):
                await impatient
            return await patient

        assert asyncio.run(one_gives_up()).finding is Finding.CLEAN
    assert len(peer.peers) == 1


def test_a_new_socket_file_is_a_new_scanner(scratch: Path) -> None:
    """Restarted, a scanner makes its socket anew; gone, it is yet another."""
    path = scratch / "socket"
    version = Version((f"unix:{path}", "tcp:127.0.0.1:3310"), None)
    seen = [version()]
    path.touch()
    seen.append(version())
    other = scratch / "other"
    other.touch()
    os.replace(other, path)
    seen += [version(), version()]
    assert len(set(seen)) == 3
    assert seen[2] == seen[3]


def test_the_version_is_asked_again_and_again(scratch: Path) -> None:
    """What clamd says changes when it has read new signatures; what was gone for a while was perhaps restarted."""
    answers = [b"ClamAV 1.4.3/27000/Sun\n", b"ClamAV 1.4.3/27001/Mon\n", b"", b"ClamAV 1.4.3/27001/Mon\n"]

    def answer(peer: servers.Peer) -> None:
        peer.read(100)
        peer.connection.sendall(answers[min(len(scripted.peers), len(answers)) - 1])

    with servers.Scripted(scratch, answer) as scripted:
        version = Version((), Clamd([scripted.address], 1, 5).version, interval=0.01)
        seen = [(version(), 0)]

        async def watch() -> None:
            watching = asyncio.create_task(version.watch())
            async with asyncio.timeout(20):
                while len(scripted.peers) < len(answers) + 3:
                    if version() != seen[-1][0]:
                        seen.append((version(), len(scripted.peers)))
                    await asyncio.sleep(0)
            watching.cancel()

        asyncio.run(watch())
    assert len({identity for identity, _ in seen}) == len(answers)
    # Not with the first answer, nor with those that are the same as before.
    assert [asked >= number for number, (_, asked) in enumerate(seen[1:], 2)] == [True] * 3
