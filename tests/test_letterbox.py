"""One LMTP conversation over a socket pair: what it asks its desk for, and what it answers whatever goes wrong."""

import asyncio
import gc
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import servers
from lmtp_client import Client, on_the_wire

from deliver.errors import Deferred
from deliver.exits import from_error
from deliver.letterbox import Desk, Incoming, Letterbox
from deliver.settings import Config, Service, Span
from deliver.users import CannotTell, Found
from deliver.values import Reply

LARGE = b"Subject: x\n\n" + b"0123456789abcdef" * 4 * 5000 + b"\n"  # more than is kept in memory


class Office:
    """Where conversations are led, in a thread with its own event loop; and what they brought."""

    def __init__(self, directory: Path, config: Config) -> None:
        self.config = config
        self.directory = directory
        self.incoming: list[tuple[Incoming, bytes]] = []
        self.excused: list[str] = []
        self.reply: Callable[[Incoming], Sequence[Reply]] = lambda incoming: [Reply(0)] * len(incoming.envelopes)
        self.loop = asyncio.new_event_loop()
        self.stopping = asyncio.Event()
        self.idle: set[asyncio.Timeout] = set()
        self.thread = threading.Thread(target=self.loop.run_forever)

    def desk(self) -> Desk:
        return Desk(self.config, self.look_up, self.deliver, self.excuse, asyncio.to_thread)

    async def look_up(self, address: str) -> Found | None:
        user, _, _ = address.partition("@")
        match user:
            case "nobody":
                return None
            case "unknown":
                raise CannotTell("the database is down")
            case "broken":
                raise ValueError("a fault of ours")
        return Found(str(self.directory / user), "")

    async def deliver(self, incoming: Incoming) -> Sequence[Reply]:
        content = b"".join(incoming.source.at(at, 65536) for at in range(0, incoming.source.size, 65536))
        self.incoming.append((incoming, content))
        return self.reply(incoming)

    def excuse(self, error: Exception, recipient: str) -> Reply:
        self.excused.append(f"{recipient}: {error}")
        return from_error(error)

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A conversation, which must end with the client's connection."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(20)

        async def converse() -> None:
            try:
                await Letterbox(ours, self.desk, self.stopping, self.idle).converse()
            except OSError:
                pass
            finally:
                ours.close()

        ended = asyncio.run_coroutine_threadsafe(converse(), self.loop)
        with Client(theirs) as client:
            yield client
        ended.result(20)

    def stop(self) -> None:
        """As the service does it."""

        def tell() -> None:
            self.stopping.set()
            for limit in self.idle:
                limit.reschedule(self.loop.time())

        self.loop.call_soon_threadsafe(tell)


def settings(**service: Any) -> Config:
    return Config(service=Service(**service))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    for user in ("ann", "joe", "zoe"):
        for part in ("tmp", "new", "cur"):
            (tmp_path / user / part).mkdir(parents=True)
    one = Office(tmp_path, settings())
    one.thread.start()
    yield one
    one.loop.call_soon_threadsafe(one.loop.stop)
    one.thread.join()
    one.loop.run_until_complete(one.loop.shutdown_default_executor())
    one.loop.close()


def test_a_reply_for_each_recipient_in_their_order(office: Office) -> None:
    """RFC 2033 section 4.2; RFC 5321 section 4.2.3 for the codes."""
    replies = {
        "ann": Reply(0),
        "joe": Reply(100, "5.2.2 Mailbox is full (#5.2.2)"),
        "zoe": from_error(Deferred("", "4.2.1 Mailbox is not accessible")),
        "ann+x": Reply(100, "5.7.1 Not wanted (#5.7.1)"),
        "joe+x": Reply(100, "5.4.6 This message is looping (#5.4.6)"),
    }
    office.reply = lambda incoming: [replies[one.recipient.partition("@")[0]] for one in incoming.envelopes]
    with office.client() as client:
        client.say("LHLO there")
        assert client.send("a@b", [f"{user}@example.org" for user in replies], b"Subject: x\n\n.\n") == [
            "250 2.0.0 Delivered",
            "552 5.2.2 Mailbox is full",
            "451 4.2.1 Mailbox is not accessible",
            "550 5.7.1 Not wanted",
            "554 5.4.6 This message is looping",
        ]
    ((incoming, content),) = office.incoming
    assert content == b"Subject: x\n\n.\n"
    first = incoming.envelopes[0]
    assert (first.sender, first.recipient, first.maildir) == ("a@b", "ann@example.org", str(office.directory / "ann"))
    assert (first.return_path, first.delivered_to) == (b"Return-Path: <a@b>\n", b"Delivered-To: ann@example.org\n")
    assert first.loop_addresses == ("ann@example.org",)


def test_nobody_and_nobody_can_tell(office: Office) -> None:
    """Bad input 25: 550 for an unknown user, 451 where the lookup failed; the others get the message."""
    with office.client() as client:
        client.say("LHLO there")
        users = ("nobody", "ann", "unknown", "broken", "joe")
        replies = client.send("a@b", [f"{user}@example.org" for user in users], b"Subject: x\n\nx\n")
    assert [reply[:9] for reply in replies] == ["550 5.1.1", "250 2.0.0", "451 4.3.0", "451 4.3.0", "250 2.0.0"]
    assert "a fault" not in replies[3]
    assert len(office.excused) == 2
    assert [one.recipient[:3] for one in office.incoming[0][0].envelopes] == ["ann", "joe"]


def test_the_return_path_is_what_mail_from_says(office: Office) -> None:
    """One that stands on top is a sender's word; a Delivered-To there is an MTA's (Postfix lmtp(8), flags=DR)."""
    content = b"Return-Path: <forged@example.net>\nDelivered-To: list@example.org\nSubject: x\n\nx\n"
    with office.client() as client:
        client.say("LHLO there")
        client.send("", ["ann@example.org"], content)
    ((incoming, _),) = office.incoming
    assert (incoming.return_path, incoming.framing.return_path) == (b"Return-Path: <>\n", b"")
    assert incoming.framing.delivered_to == b"Delivered-To: list@example.org\n"


def test_a_large_message_is_spooled_where_it_can_be_and_the_spool_is_closed(office: Office) -> None:
    """The first recipient's disk may be the one that is full."""
    shutil.rmtree(office.directory / "ann")
    with office.client() as client:
        client.say("LHLO there")
        assert len(client.send("a@b", ["ann@example.org", "joe@example.org"], LARGE)) == 2
        assert office.incoming[0][1] == LARGE
        spools = [name for name in descriptors() if name.startswith(str(office.directory / "joe" / "tmp"))]
        assert len(spools) == 1
        office.incoming.clear()
        client.say("NOOP")
    gc.collect()
    assert not [name for name in descriptors() if name.startswith(str(office.directory))]
    assert not list((office.directory / "joe" / "tmp").iterdir())


def descriptors() -> list[str]:
    """What the descriptors of this process are open on."""
    names = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the one that lists them
            continue
    return names


def test_a_message_that_cannot_be_spooled_is_every_recipients_trouble(office: Office) -> None:
    """452, and the conversation goes on."""
    for user in ("ann", "joe"):
        shutil.rmtree(office.directory / user)
    with office.client() as client:
        client.say("LHLO there")
        assert (
            client.send("a@b", ["ann@example.org", "joe@example.org"], LARGE)
            == ["452 4.3.1 Message cannot be spooled"] * 2
        )
        assert client.send("a@b", ["zoe@example.org"], LARGE) == ["250 2.0.0 Delivered"]
    assert len(office.excused) == 1
    assert len(office.incoming) == 1


def test_a_client_that_vanishes_delivers_nothing(office: Office) -> None:
    """Bad input 27: before the last dot."""
    with office.client() as client:
        client.say("LHLO there")
        client.begin("a@b", ["ann@example.org"])
        client.connection.sendall(LARGE.replace(b"\n", b"\r\n"))
    assert office.incoming == []
    gc.collect()
    assert not [name for name in descriptors() if name.startswith(str(office.directory))]


def test_a_silent_client_is_told_so(office: Office) -> None:
    """RFC 5321 section 3.8: 421."""
    office.config = settings(idle=Span(0.1))
    with office.client() as client:
        assert client.reply() == f"421 4.4.2 {os.uname().nodename} Nothing was said for too long"
        assert client.reply() == ""


def test_a_message_that_drips_in_has_an_end(office: Office) -> None:
    """A byte now and then is not silence, but the deadline is for the whole message."""
    office.config = Config(deadline=Span(0.5))
    with office.client() as client:
        client.say("LHLO there")
        client.begin("a@b", ["ann@example.org"])
        begun = time.monotonic()
        client.connection.settimeout(0.02)
        said = b""
        while not said:
            client.connection.sendall(b"x")
            try:
                said = client.connection.recv(1000)
            except TimeoutError:
                assert time.monotonic() < begun + 20
    assert said.startswith(b"421 4.4.2 ")
    assert office.incoming == []


def test_a_client_that_does_not_listen_is_left(office: Office) -> None:
    """Its replies fill the socket; then its time runs."""
    office.config = settings(idle=Span(0.3))
    with office.client() as client:
        client.connection.settimeout(20)
        with pytest.raises(ConnectionError):
            for _ in iter(lambda: client.connection.sendall(b"NOOP\r\n" * 10_000), 1):
                pass


def test_when_the_service_stops_idle_conversations_end(office: Office) -> None:
    with office.client() as client:
        client.say("LHLO there")
        servers.wait_for(lambda: bool(office.idle))
        office.stop()
        assert client.reply() == f"421 4.3.2 {os.uname().nodename} Service is stopping"
    with office.client() as late:
        assert late.reply().startswith("421 4.3.2 ")


def test_when_the_service_stops_a_message_under_way_is_finished(office: Office) -> None:
    """And no other is begun."""
    with office.client() as client:
        client.say("LHLO there")
        client.begin("a@b", ["ann@example.org"])
        office.stop()
        client.connection.sendall(on_the_wire(b"Subject: x\n\nx\n"))
        assert client.reply() == "250 2.0.0 Delivered"
        assert client.reply().startswith("421 4.3.2 ")
    assert len(office.incoming) == 1


def test_a_conversation_outlives_a_reload(office: Office) -> None:
    """The next message is for the new configuration."""
    with office.client() as client:
        client.say("LHLO there")
        assert client.send("a@b", ["nobody@example.org"], b"x\n")[0][:3] == "550"
        assert client.say("RSET")[0][:3] == "250"

        async def everybody(_address: str) -> Found:
            return Found(str(office.directory / "ann"), "")

        office.look_up = everybody  # type: ignore[method-assign]
        assert client.send("a@b", ["nobody@example.org"], b"x\n")[0][:3] == "250"


def test_too_large_is_said_and_the_conversation_goes_on(office: Office) -> None:
    """RFC 1870: by SIZE before, by counting otherwise; each recipient is told (RFC 2033 section 4.2)."""
    office.config = settings(bytes=1000)
    with office.client() as client:
        assert "250 SIZE 1000" in client.say("LHLO there")[0]
        assert client.say("MAIL FROM:<a@b> SIZE=1001")[0].startswith("552 5.3.4 ")
        replies = client.send("a@b", ["ann@example.org", "joe@example.org"], LARGE)
        assert [reply[:9] for reply in replies] == ["552 5.3.4"] * 2
        assert client.send("a@b", ["ann@example.org"], b"x\n")[0][:3] == "250"
    assert len(office.incoming) == 1
