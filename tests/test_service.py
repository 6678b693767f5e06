"""The resident service as it is installed: both doors, its limits, and what clients hear when it fails or dies."""

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import main_job
import pytest
import servers
from installed import install_once  # noqa: F401 - the fixture `installed`
from lmtp_client import Client, on_the_wire
from main_job import RECIPIENT, Answer, Home

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")

SPAMD_CLEAN = b"SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\nSpam: False ; 0.1 / 5.0\r\n\r\n"
BUSY = b"4.3.2 Mail filter is busy (#4.3.2)\n"


class ClamdStub(servers.Scripted):
    """A clamd that finds nothing, but not before ``open`` is set. ``scanned`` are the messages it has begun with."""

    def __init__(self, directory: Path, *, version: bytes = b"ClamAV 1.4.3/1/Sun") -> None:
        self.open = threading.Event()
        self.open.set()
        self.scanned: list[bytes] = []
        self._version = version
        super().__init__(directory, self._answer)

    def _answer(self, peer: servers.Peer) -> None:
        command = b""
        while not command.endswith(b"\n"):
            byte = peer.read_exactly(1)
            if not byte:  # a killed service's connection ends before its command does
                return
            command += byte
        if command == b"nVERSION\n":
            peer.connection.sendall(self._version + b"\n")
            return
        message = b""
        while size := int.from_bytes(peer.read_exactly(4)):
            message += peer.read_exactly(size)
        self.scanned.append(message)
        while not self.open.wait(0.02) and not peer.stopped.is_set():
            pass
        peer.connection.sendall(b"stream: OK\n")


class Site(Home):
    """A home below ``directory``/you with a service of its own, which may be started in other ways, too."""

    def __init__(self, directory: Path, prefix: Path, configuration: str, **more: Any) -> None:
        home = directory / "you"
        home.mkdir()
        configuration = configuration.replace("HERE", str(directory))
        super().__init__(home, prefix, configuration, service=True, **more)
        main_job.own(directory)
        self.directory = directory
        self.starts = True  # a service, for the command
        self._open = contextlib.ExitStack()
        self.lmtp = f"unix:{home / 'lmtp'}"

    def user(self, name: str, quota: str = "") -> Path:
        """Another user, beside "you"; the Maildir."""
        maildir = self.directory / name / "Maildir"
        for part in ("tmp", "new", "cur"):
            (maildir / part).mkdir(parents=True)
        if quota:
            (maildir / "maildirsize").write_text(quota)
        main_job.own(self.directory)
        return maildir

    def python(self, script: str, *arguments: str | Path, **settings: Any) -> "subprocess.Popen[bytes]":
        """Run the installed Python, where the installed modules are; ``sys.argv[1]`` is the configuration's path."""
        program = self._prefix / "lib" / "deliver" / "bin" / "python"
        command = [str(program), "-I", "-c", script, str(self.config), *map(str, arguments)]
        return subprocess.Popen(command, cwd="/", **{**servers.unprivileged(), **settings})

    def serve(self, patience: float | None = None, **settings: Any) -> bool:
        """Start the service and wait until it is ready; ``patience`` replaces the 30 s that requests wait."""
        if self.serving is not None or not self.starts:
            return self.serving is not None and self.serving.poll() is None
        line = f"service.Gate.PATIENCE = {patience}" if patience else ""
        script = f"import sys; from deliver import service\n{line}\nraise SystemExit(service.serve(sys.argv[1]))"
        self.serving = self.python(script, stderr=subprocess.DEVNULL, **settings)
        servers.wait_for(lambda: self.has_logged("ready") or self.serving is None or self.serving.poll() is not None)
        return self.serving.poll() is None

    def has_logged(self, words: str, times: int = 1) -> bool:
        """Whether a line of the log begins with these words."""
        return sum(str(record.get("detail", "")).startswith(words) for record in self.logged()) >= times

    def start(self, content: bytes, *, more: bool = False) -> "subprocess.Popen[bytes]":
        """Begin a delivery by the command, from a pipe, which stays open where there is ``more`` to come."""
        self.serve()
        process = subprocess.Popen(
            [str(self._prefix / "bin" / "deliver")],
            cwd=self.path,
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            **servers.unprivileged(),
        )
        assert process.stdin is not None
        self._open.callback(process.wait)
        self._open.callback(process.kill)
        self._open.enter_context(process.stdout)  # type: ignore[arg-type]
        process.stdin.write(content)
        if not more:
            process.stdin.close()
        return process

    def close(self) -> None:
        """End everything."""
        self._open.close()
        self.stop(signal.SIGKILL)

    def ask(self, request: bytes, address: str | None = None) -> bytes:
        """What the metrics' door answers."""
        with connected(address or f"unix:{self.path / 'metrics'}") as connection:
            connection.sendall(request)
            return everything(connection)

    def metrics(self) -> dict[str, float]:
        """Every sample, by its name with labels."""
        head, _, text = self.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200 ")
        lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def descriptors(self) -> list[str]:
        """What the service has open, without its own sockets and pipes."""
        assert self.serving is not None
        names = []
        for path in Path(f"/proc/{self.serving.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                names.append(os.readlink(path))
        return sorted(name for name in names if not name.startswith(("anon_inode:", "/dev/")))


def connected(address: str) -> socket.socket:
    """A connection to "unix:/path" or "tcp:host:port"."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(30)
        connection.connect(address.removeprefix("unix:"))
        return connection
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    return socket.create_connection((host, int(port)), 30)


def everything(connection: socket.socket) -> bytes:
    """What comes until the end."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while block := connection.recv(65536):
            said += block
    return said


Make = Callable[..., Site]

SERVICE = """
[service]
socket = "/run/deliver/deliver.sock"
lmtp = ["unix:/run/deliver/lmtp.sock"]
metrics = ["unix:HERE/you/metrics"]
LIMITS
[users]
maildir = "HERE/{user}/Maildir"
[log]
to = "HERE/you/log"
"""


@pytest.fixture
def make_site(scratch: Path, installed: Path) -> Iterator[Make]:
    """Make a site without scanners, or with the tables ``more`` and ``limits`` of [service]."""
    sites: list[Site] = []

    def make(more: str = "", limits: str = "", top: str = "", **settings: Any) -> Site:
        text = top + "\n" + SERVICE.replace("LIMITS", limits) + more
        sites.append(Site(scratch, installed, text, **settings))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def clamd(scratch: Path) -> Iterator[ClamdStub]:
    """A clamd that can be made to wait."""
    with ClamdStub(scratch) as stub:
        yield stub


# LMTP.


def test_the_stored_message_is_the_same_through_both_doors(make_site: Make) -> None:
    """Dots, bare CR, NUL and 8-bit come through as they are; the lines on top are the same."""
    site = make_site()
    content = main_job.message("x", b".\n..\n.x\n\0\xff\rbare\n\n.")
    assert site.deliver(content + b"\n").code == 0
    with Client(site.lmtp) as client:
        client.say("LHLO there")
        assert client.send("friend@example.net", [RECIPIENT], content) == ["250 2.0.0 Delivered"]
    one, two = site.messages()
    assert one == two
    assert one.endswith(content + b"\n")


def test_fifty_recipients_cost_one_scan_and_one_of_them_is_over_quota(
    make_site: Make, clamd: ClamdStub, scratch: Path
) -> None:
    """Replies in order; each scanner is asked once; the others are not disturbed (bad input 26)."""
    with servers.Scripted(scratch, servers.read_all, servers.answer(SPAMD_CLEAN)) as spamd:
        site = make_site(f'[clamd]\naddress = "{clamd.address}"\n[spamd]\naddress = "{spamd.address}"\n')
        maildirs = [site.user(f"u{number}", "2000S\n1999 1\n" if number == 30 else "") for number in range(50)]
        assert site.serve()
        with Client(site.lmtp) as client:
            client.say("LHLO there")
            replies = client.send("a@b", [f"u{number}@example.org" for number in range(50)], main_job.message("x"))
    assert [reply[:9] for reply in replies] == ["552 5.2.2" if number == 30 else "250 2.0.0" for number in range(50)]
    stored = [
        len([one for one in (maildir / "new").iterdir() if not main_job.is_warning(one.read_bytes())])
        for maildir in maildirs
    ]
    assert stored == [0 if number == 30 else 1 for number in range(50)]
    assert (len(clamd.scanned), len(spamd.peers)) == (1, 1)
    assert {record["recipient"] for record in site.logged() if "actions" in record} == {
        f"u{number}@example.org" for number in range(50)
    }


def test_extensions_and_unknown_users(make_site: Make) -> None:
    """user+Folder files into the folder if it is there; 550 for nobody, 451 where nobody can tell."""
    site = make_site()
    site.user("joe")
    for part in ("tmp", "new", "cur"):
        (site.maildir / ".Lists" / part).mkdir(parents=True)
    main_job.own(site.path)
    assert site.serve()
    recipients = ["you+Lists@example.org", "joe-Nope@example.org", "nobody@example.org", "YOU@example.org"]
    with Client(site.lmtp) as client:
        client.say("LHLO there")
        replies = client.send("a@b", recipients, b"Subject: x\n\nx\n")
        assert [reply[:9] for reply in replies] == ["250 2.0.0", "250 2.0.0", "550 5.1.1", "250 2.0.0"]
        assert client.say("MAIL FROM:<a@b>", "RCPT TO:<../joe@example.org>")[1][:9] == "550 5.1.3"
    assert (len(site.messages("Lists")), len(site.messages())) == (1, 1)
    assert len(list((site.directory / "joe" / "Maildir" / "new").iterdir())) == 1


def test_a_loop_is_seen_where_the_address_needs_quotes(make_site: Make) -> None:
    """RFC 5321 section 4.1.2: our Delivered-To has the quotes, and so it comes back."""
    site = make_site()
    maildir = site.user("a b")
    site.serve()
    with Client(site.lmtp) as client:
        client.say("LHLO there")
        assert client.send("x@y", ['"a b"@example.org'], b"Subject: x\n\nx\n") == ["250 2.0.0 Delivered"]
        (path,) = (maildir / "new").iterdir()
        (again,) = client.send("x@y", ['"a b"@example.org'], b"Received: by mx\n" + path.read_bytes())
    assert again.startswith("554 5.4.6 ")


def test_lmtp_without_users_is_tried_again(make_site: Make) -> None:
    """Nobody can tell; and the log says what is missing."""
    site = make_site()
    text = site.config.read_text()
    site.config.write_text(text.replace("[users]", "").replace('maildir = "' + str(site.directory), "# "))
    assert site.serve()
    with Client(site.lmtp) as client:
        client.say("LHLO there", "MAIL FROM:<a@b>")
        assert client.say(f"RCPT TO:<{RECIPIENT}>") == ["451 4.3.5 Mail filter is not configured"]
    assert site.has_logged("LMTP answers 451 to every recipient")


def test_tcp(make_site: Make) -> None:
    """Both on loopback, side by side with the command."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        lmtp, metrics = (f"tcp:127.0.0.1:{door.getsockname()[1]}" for door in (one, two))
    site = make_site()
    text = re.sub("lmtp = .*", f'lmtp = ["{lmtp}"]', site.config.read_text())
    site.config.write_text(re.sub("metrics = .*", f'metrics = ["{metrics}"]', text))
    assert site.serve()
    with Client(lmtp) as client:
        client.say("LHLO there")
        assert client.send("a@b", [RECIPIENT], b"Subject: x\n\nx\n") == ["250 2.0.0 Delivered"]
    assert b"deliver_messages_total" in site.ask(b"GET /metrics HTTP/1.0\r\n\r\n", metrics)
    assert site.deliver(main_job.message("x")).code == 0


# Scan once.


def test_fifty_commands_at_once_share_one_scan(make_site: Make, clamd: ClamdStub) -> None:
    site = make_site(f'[clamd]\naddress = "{clamd.address}"\n')
    content = main_job.message("x")
    clamd.open.clear()
    running = [site.start(content) for _ in range(50)]
    servers.wait_for(lambda: bool(clamd.scanned))
    clamd.open.set()
    assert [process.wait(60) for process in running] == [0] * 50
    assert (len(clamd.scanned), len(site.messages())) == (1, 50)
    hits = site.metrics()['deliver_scan_cache_hits_total{scanner="clamd"}']
    assert hits == 49


def test_a_new_clamd_at_the_same_address_judges_anew(make_site: Make, clamd: ClamdStub, scratch: Path) -> None:
    """A restart makes the socket anew; it may know more."""
    site = make_site(f'[clamd]\naddress = "{clamd.address}"\n')
    content = main_job.message("x")
    assert [site.deliver(content).code for _ in range(2)] == [0, 0]
    assert len(clamd.scanned) == 1
    with ClamdStub(scratch) as other:
        os.replace(other.address.removeprefix("unix:"), clamd.address.removeprefix("unix:"))
        assert [site.deliver(content).code for _ in range(2)] == [0, 0]
        assert (len(clamd.scanned), len(other.scanned)) == (1, 1)


def test_a_failed_scan_is_made_again(make_site: Make, scratch: Path) -> None:
    """[clamd] on-failure = "defer" would otherwise hold a message back for ten minutes."""
    path = scratch / "later"
    site = make_site(f'[clamd]\naddress = "unix:{path}"\n')
    recent = main_job.message("x")
    assert site.deliver(recent).code == 75
    with ClamdStub(scratch) as stub:
        Path(stub.address.removeprefix("unix:")).rename(path)
        assert site.deliver(recent).code == 0


# The command, when there is no service for it, or none any more.


@pytest.mark.parametrize("where", ["nobody listens", "no socket", "a file", "too long", "another configuration"])
def test_without_a_service_the_command_does_the_work(make_site: Make, where: str) -> None:
    """With the same result, and with its own configuration."""
    site = make_site('[[rule]]\nfile = "Here"\n')
    environment = site.environment()
    if where == "nobody listens":
        site.serve()
        site.stop(signal.SIGKILL)
        assert site.socket is not None
        assert site.socket.is_socket()
        site.starts = False
        assert site.deliver(main_job.message("x"), environment=environment).code == 0
    elif where == "another configuration":
        other = site.path / "other.toml"
        other.write_text(site.config.read_text().replace("Here", "There"))
        main_job.own(site.path)
        assert site.deliver(main_job.message("x"), environment={**environment, "DELIVER_CONFIG": str(other)}).code == 0
    else:
        file = site.path / "file"
        file.touch()
        place = {"no socket": "/nonexistent", "a file": str(file), "too long": f"/tmp/{'x' * 200}"}[where]
        assert site.deliver(main_job.message("x"), environment={**environment, "DELIVER_SOCKET": place}).code == 0
    assert site.where() == ("There" if where == "another configuration" else "Here")
    if where != "nobody listens":
        assert "deliver_messages_total" not in str(site.metrics())


def test_the_configuration_is_the_same_however_it_is_spelled(make_site: Make) -> None:
    """A relative --config starts at the client's directory."""
    site = make_site()
    assert site.deliver(main_job.message("x"), "--config", "site.toml").code == 0
    assert site.metrics()['deliver_messages_total{action="file"}'] == 1
    elsewhere = site.directory / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(site.config, elsewhere)
    main_job.own(elsewhere)
    command = [str(site._prefix / "bin" / "deliver"), "--config", "site.toml", "--maildir", str(site.maildir)]
    done = subprocess.run(
        command, cwd=elsewhere, env=site.environment(), input=b"x\n", check=False, **servers.unprivileged()
    )
    assert done.returncode == 0
    assert site.metrics()['deliver_messages_total{action="file"}'] == 1
    assert len(site.messages()) == 2


READ_REQUEST = servers.read_some(20)
DEATHS = {
    "before the whole request": ((servers.read_some(4),), 75),
    "after the request": ((READ_REQUEST,), 75),
    "with half an answer": ((READ_REQUEST, servers.answer(b"0\n")), 75),
    "with a code of nobody's": ((READ_REQUEST, servers.answer(b"17\n.")), 75),
    "with nonsense": ((READ_REQUEST, servers.answer(b"\0\xff" * 5000)), 75),
    "declining": ((READ_REQUEST, servers.answer(b"decline\n")), 0),
    "declining unread": ((servers.answer(b"decline\n"),), 0),
    "delivered": ((READ_REQUEST, servers.answer(b"0\n.")), 0),
    "refused": ((READ_REQUEST, servers.answer(b"100\n5.2.2 Mailbox is full (#5.2.2)\n.")), 100),
}


@pytest.mark.parametrize("how", DEATHS)
def test_what_the_client_says_when_the_service_dies(make_site: Make, scratch: Path, how: str) -> None:
    """Once the request is sent, any failure is 75; and standard input is read to its end, whatever happens."""
    steps, code = DEATHS[how]
    site = make_site()
    site.starts = False
    with servers.Scripted(scratch, *steps) as service:
        environment = {**site.environment(), "DELIVER_SOCKET": service.address.removeprefix("unix:")}
        process = subprocess.Popen(
            [str(site._prefix / "bin" / "deliver")],
            cwd=site.path,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **servers.unprivileged(),
        )
        with process:
            assert process.stdin is not None
            process.stdin.write(main_job.message("x", b"y" * 300_000 + b"\n"))  # more than a pipe holds: no EPIPE
            process.stdin.close()
            assert process.stdout is not None
            said = process.stdout.read()
        assert process.returncode == code
    assert len(site.messages()) == (1 if how.startswith("declining") else 0)
    assert said == {75: b"4.3.0 Temporary failure (#4.3.0)\n", 0: b"", 100: b"5.2.2 Mailbox is full (#5.2.2)\n"}[code]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_closed_descriptors(make_site: Make, closed: str) -> None:
    """A socket must not take the place of one of them."""
    site = make_site()
    assert site.serve()
    script = f'exec "$@" {closed}'
    command = ["sh", "-c", script, "sh", str(site._prefix / "bin" / "deliver")]
    done = subprocess.run(
        command,
        cwd=site.path,
        env=site.environment(),
        input=b"Subject: x\n\nx\n",
        check=False,
        **servers.unprivileged(),
    )
    assert done.returncode == (75 if "<" in closed else 0)
    assert len(site.messages()) == (0 if "<" in closed else 1)


def test_a_request_that_is_none_is_declined(make_site: Make) -> None:
    """An older or newer client; nothing has been done yet, so it may do the work itself."""
    site = make_site()
    assert site.serve()
    good = b"\0".join([b"deliver1", b"0", b"RECIPIENT=a@b"])
    requests = {
        "another version": b"\0".join([b"deliver2", b"0"]),
        "no count": b"deliver1\0x",
        "no descriptors": good,
        "empty": b"",
    }
    for request in requests.values():
        with connected(f"unix:{site.socket}") as connection:
            connection.sendall(len(request).to_bytes(4, "big") + request)
            assert everything(connection) == b"decline\n"
    with connected(f"unix:{site.socket}") as connection:
        connection.sendall((2**31).to_bytes(4, "big"))
        with contextlib.suppress(OSError):
            for _ in range(200):
                connection.sendall(b"x" * 65536)
        assert everything(connection) == b"decline\n"
    with connected(f"unix:{site.socket}") as connection, open(os.devnull) as null:
        socket.send_fds(connection, [len(good).to_bytes(4, "big") + good], [null.fileno()] * 2)
        assert everything(connection) == b"decline\n"  # /dev/null is no working directory


# Peers.

SEND_REQUEST = """
import os, socket, sys
payload = b"\\0".join([b"deliver1", b"1", b"--recipient=you@example.org", b"DTLINE=x", b"DELIVER_CONFIG=" + sys.argv[1].encode()])
connection = socket.socket(socket.AF_UNIX); connection.connect(sys.argv[2])
connection.settimeout(30)
try:
    socket.send_fds(connection, [len(payload).to_bytes(4, "big") + payload], [0, os.open(sys.argv[3], os.O_PATH)])
except BrokenPipeError:
    pass  # it has been refused already
print(connection.recv(100))
"""


@as_root
def test_another_user_is_refused(make_site: Make) -> None:
    """Also where the socket's mode would let them in."""
    site = make_site()
    assert site.serve()
    assert site.socket is not None
    assert site.socket.stat().st_mode & 0o777 == 0o600
    site.socket.chmod(0o666)
    site.directory.chmod(0o755)
    said = {}
    for name in ("daemon", "nobody"):
        user = pwd.getpwnam(name)
        process = site.python(
            SEND_REQUEST,
            site.socket,
            site.path,
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        said[name], _ = process.communicate(timeout=30)
    assert said == {"daemon": b"b'decline\\n'\n", "nobody": b"b'0\\n.'\n"}


FALSE_SERVICE = """
import os, socket, sys
door = socket.socket(socket.AF_UNIX); door.bind(sys.argv[2]); door.listen()
os.chmod(sys.argv[2], 0o666); print(flush=True)
connection, _ = door.accept(); connection.recv(1); connection.sendall(b"0\\n."); connection.close()
"""


@as_root
def test_another_users_service_is_not_believed(make_site: Make) -> None:
    """It would say "done" of what it has thrown away."""
    site = make_site()
    site.starts = False
    place = site.directory / "false"
    site.directory.chmod(0o777)
    user = pwd.getpwnam("daemon")
    settings = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "stdout": subprocess.PIPE}
    false = site.python(FALSE_SERVICE, place, **settings)
    try:
        assert false.stdout is not None
        assert false.stdout.readline() == b"\n"
        environment = {**site.environment(), "DELIVER_SOCKET": str(place)}
        assert site.deliver(main_job.message("x"), environment=environment).code == 0
    finally:
        false.kill()
        false.communicate()
    assert len(site.messages()) == 1


@as_root
def test_roots_service_delivers_roots_mail_alone(make_site: Make) -> None:
    """In another's Maildir the owner could not read what root writes, and root would follow the owner's links."""
    site = make_site()
    assert site.serve(user=0, group=0)
    command = [str(site._prefix / "bin" / "deliver")]
    done = subprocess.run(command, cwd=site.path, env=site.environment(), input=b"x: y\n\nz\n", check=False)
    assert done.returncode == 0
    (stored,) = (site.maildir / "new").iterdir()
    assert stored.stat().st_uid == pwd.getpwnam("nobody").pw_uid
    with Client(site.lmtp) as client:
        client.say("LHLO there")
        assert client.say("MAIL FROM:<a@b>", f"RCPT TO:<{RECIPIENT}>") == [
            "250 2.1.0 Ok",
            "451 4.3.5 Mail filter is not configured",  # before anything is spooled there
        ]


# Limits.


def test_over_the_limit_of_messages(make_site: Make, clamd: ClamdStub) -> None:
    """They wait, then they are told to come again; what is in work is finished."""
    site = make_site(f'[clamd]\naddress = "{clamd.address}"\n', "messages = 1")
    assert site.serve(patience=0.5)
    clamd.open.clear()
    first = site.start(main_job.message("first"))
    servers.wait_for(lambda: bool(clamd.scanned))
    begun = time.monotonic()
    answer = site.deliver(main_job.message("second", b"y" * 300_000), stdin="pipe")
    assert (answer.code, answer.stdout) == (75, BUSY)
    assert 0.5 <= time.monotonic() - begun < 10
    with Client(site.lmtp) as client:
        client.say("LHLO there")
        assert client.send("a@b", [RECIPIENT] * 2, b"Subject: x\n\nx\n") == ["451 4.3.2 Mail filter is busy"] * 2
        clamd.open.set()
        assert first.wait(30) == 0
        assert client.send("a@b", [RECIPIENT], b"Subject: x\n\nx\n") == ["250 2.0.0 Delivered"]
    assert len(site.messages()) == 2
    assert site.metrics()['deliver_failures_total{status="4.3.2"}'] == 2


def test_who_waits_gets_a_turn(make_site: Make, clamd: ClamdStub) -> None:
    """In order; also over the limit of bytes, by which a message that is larger than it still passes alone."""
    site = make_site(f'[clamd]\naddress = "{clamd.address}"\n', 'bytes = "10 KB"')
    site.serve()
    clamd.open.clear()
    queue = site.path / "queue"
    queue.write_bytes(main_job.message("large", b"y" * 20_000 + b"\n"))
    settings = {"cwd": site.path, "env": site.environment(), **servers.unprivileged()}
    running = []
    for _ in range(3):
        with queue.open("rb") as file:
            running.append(subprocess.Popen([str(site._prefix / "bin" / "deliver")], stdin=file, **settings))
    servers.wait_for(lambda: bool(clamd.scanned))
    assert site.metrics()["deliver_in_work"] == 1
    clamd.open.set()
    assert [process.wait(30) for process in running] == [0, 0, 0]
    assert site.metrics()["deliver_queue_wait_seconds_count"] == 3


def test_over_the_limit_of_connections(make_site: Make) -> None:
    """Each door has its own places."""
    site = make_site("", "connections = 2")
    assert site.serve(patience=0.3)
    with Client(site.lmtp), Client(site.lmtp), Client(site.lmtp) as third:
        assert third.greeting == "421 4.3.2 Mail filter is busy"
        assert site.deliver(main_job.message("x")).code == 0
        idle = [connected(f"unix:{site.socket}") for _ in range(2)]
        with connected(f"unix:{site.socket}") as connection:
            assert everything(connection) in (b"75\n" + BUSY + b".", b"decline\n")
        for connection in idle:
            connection.close()
    with Client(site.lmtp) as client:
        assert client.greeting.startswith("220 ")


def test_without_descriptors_it_waits_and_recovers(make_site: Make) -> None:
    """EMFILE."""
    site = make_site()
    limit = 60
    script = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
    script += "import sys; from deliver import service\nraise SystemExit(service.serve(sys.argv[1]))"
    site.serving = site.python(script, stderr=subprocess.DEVNULL)
    servers.wait_for(lambda: site.has_logged("ready"))
    with contextlib.ExitStack() as crowd:
        for _ in range(limit):
            crowd.enter_context(connected(site.lmtp))
        assert site.serving is not None
        opened = Path(f"/proc/{site.serving.pid}/fd")
        servers.wait_for(lambda: len(list(opened.iterdir())) == limit)
    assert site.deliver(main_job.message("x")).code == 0
    with Client(site.lmtp) as client:
        client.say("LHLO there")
        assert client.send("a@b", [RECIPIENT], b"Subject: x\n\nx\n") == ["250 2.0.0 Delivered"]
    assert len(site.messages()) == 2


def test_slow_and_senseless_clients_do_not_disturb_others(make_site: Make) -> None:
    """Bad input 28. More than there may be messages in work; each in another state."""
    site = make_site()
    assert site.serve()
    crowd = contextlib.ExitStack()
    for number in range(120):
        if number % 2:
            connection = connected(f"unix:{site.socket}")
            connection.sendall([b"", b"\0", b"\0\0\1\0deliver1", b"GET / HTTP/1.0\r\n\r\n"][number // 2 % 4])
        else:
            client = Client(site.lmtp)
            connection = client.connection
            if number % 3:
                client.say("LHLO there")
                client.begin("a@b", [RECIPIENT], " SIZE=1000000000" if number % 4 else "")
                connection.sendall(b"Subject: slow\r\n")
            else:
                connection.sendall(b"\0\xff" * 500)
        crowd.enter_context(connection)
    assert site.deliver(main_job.message("x"), stdin="pipe").code == 0
    with Client(site.lmtp) as client:
        client.say("LHLO there")
        assert client.send("a@b", [RECIPIENT], b"Subject: x\n\nx\n") == ["250 2.0.0 Delivered"]
    assert len(site.messages()) == 2
    crowd.close()
    servers.wait_for(lambda: len(site.descriptors()) < 20)


FLOODS = {
    "commands": (b"", b"NOOP\r\n"),
    "a message that is too big": (b"MAIL FROM:<a@b>\r\nRCPT TO:<you@example.org>\r\nDATA\r\n", b"y" * 10),
}


@pytest.mark.parametrize("name", FLOODS)
def test_who_sends_without_pause_is_not_served_alone(make_site: Make, name: str) -> None:
    """More than can be read: neither the others at this door nor those at the other one wait for the end of it."""
    begin, flood = FLOODS[name]
    site = make_site(limits='bytes = "1 MiB"')
    assert site.serve()
    # Its own process: threads of this one would share our interpreter's lock.
    script = (
        "import socket, sys, threading\n"
        "connection = socket.socket(socket.AF_UNIX)\n"
        "connection.connect(sys.argv[2])\n"
        f"connection.sendall(b'LHLO there\\r\\n' + {begin!r})\n"
        "threading.Thread(target=lambda: all(iter(lambda: connection.recv(65536), b'')), daemon=True).start()\n"
        f"flood = {flood!r} * 100_000\n"
        "print('begins', flush=True)\n"
        "while True: connection.sendall(flood)\n"
    )
    flooders = [site.python(script, site.lmtp.removeprefix("unix:"), stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for flooder in flooders:
            assert flooder.stdout is not None
            assert flooder.stdout.readline() == b"begins\n"
        for number in range(3):
            with Client(site.lmtp) as client:
                client.say("LHLO there")
                assert client.send("a@b", [RECIPIENT], b"Subject: %d\n\nx\n" % number) == ["250 2.0.0 Delivered"]
        assert site.deliver(main_job.message("x")).code == 0
    finally:
        for flooder in flooders:
            flooder.kill()
            flooder.communicate()


def test_a_slow_writer_holds_only_its_own_place(make_site: Make) -> None:
    """Standard input that comes in pieces is waited for; no thread is."""
    site = make_site("", "messages = 40")
    assert site.serve()
    writers = []
    for _ in range(30):
        process = subprocess.Popen(
            [str(site._prefix / "bin" / "deliver")],
            cwd=site.path,
            env=site.environment(),
            stdin=subprocess.PIPE,
            **servers.unprivileged(),
        )
        assert process.stdin is not None
        process.stdin.write(b"Subject: slow\n")
        process.stdin.flush()
        writers.append(process)
    servers.wait_for(lambda: site.metrics()["deliver_queue_wait_seconds_count"] == 30)
    assert site.deliver(main_job.message("x")).code == 0
    for process in writers:
        process.communicate(b"\nHere it is.\n", timeout=30)
    assert [process.returncode for process in writers] == [0] * 30
    assert sum(one.endswith(b"Subject: slow\n\nHere it is.\n") for one in site.messages()) == 30


def test_half_a_message_is_not_delivered(make_site: Make) -> None:
    """The service still holds the pipe when the command is dead, and its writer closes it."""
    site = make_site()
    assert site.serve()
    process = site.start(b"", more=True)
    assert process.stdin is not None
    process.stdin.write(b"Subject: x\n\nThe first")
    process.stdin.flush()
    servers.wait_for(lambda: site.metrics()["deliver_queue_wait_seconds_count"] == 1)
    (client,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(client), signal.SIGKILL)
    servers.wait_for(lambda: not Path(f"/proc/{client}").exists())
    process.stdin.close()
    assert process.wait(30) == 75
    servers.wait_for(lambda: site.has_logged("the command was killed"))
    assert list((site.maildir / "new").iterdir()) == []


def test_the_deadline_answers_and_what_goes_on_reads_its_own_message(make_site: Make) -> None:
    """A thread cannot be stopped: when its delivery has been answered with 75, its descriptors must stay its own."""
    site = make_site("[quota]\ncommand = ['HERE/slow']\n".replace("HERE", "DIRECTORY"), top='deadline = "1 s"')
    script = site.directory / "slow"
    script.write_text(f"#!/bin/sh\nuntil [ -e {site.directory}/go ]; do sleep 0.1; done\n")
    script.chmod(0o755)
    site.config.write_text(site.config.read_text().replace("DIRECTORY", str(site.directory)))
    content = main_job.message("first", b"a" * 500_000 + b"\n")
    begun = time.monotonic()
    answers = [site.deliver(content, stdin=stdin) for stdin in ("pipe", "file")]
    with Client(site.lmtp) as client:
        client.say("LHLO there")
        (reply,) = client.send("friend@example.net", [RECIPIENT], content)
    assert [(answer.code, answer.stdout[:6]) for answer in answers] == [(75, b"4.4.7 ")] * 2
    assert reply.startswith("451 4.4.7 ")
    assert time.monotonic() - begun < 20
    assert site.messages() == []
    # Their numbers would be given to these, and are not.
    (site.maildir / "maildirsize").write_text("100000000S\n0 0\n")
    main_job.own(site.path)
    for number in range(10):
        assert site.deliver(main_job.message("other", b"%d" % number * 400_000), stdin="pipe").code == 0
    (site.directory / "go").touch()
    servers.wait_for(lambda: len(site.messages()) == 13)
    late = [one for one in site.messages() if b"Subject: first" in one]
    assert [one.endswith(content) for one in late] == [True] * 3
    servers.wait_for(lambda: not [name for name in site.descriptors() if name.startswith(str(site.directory))])


def test_a_recipient_who_hangs_leaves_the_others_their_answers(make_site: Make) -> None:
    """RFC 2033 section 4.2: who hears 451 gets the message again, and again as long as one of them hangs."""
    script = "case $0 in slow@*) while [ -e HERE/slow ]; do sleep 0.1; done;; esac; echo NOQUOTA"
    quota = f"[quota]\ncommand = ['/bin/sh', '-c', '{script}', '{{recipient}}']\n"
    site = make_site(quota, top='deadline = "2 s"')
    maildirs = [site.user(name) for name in ("anna", "slow", "bert")]
    site.serve()
    with Client(site.lmtp) as client:
        client.say("LHLO there")
        replies = client.send("a@example.net", [f"{name}@example.org" for name in ("anna", "slow", "bert")], b"Hi\n")
    assert [reply[:9] for reply in replies] == ["250 2.0.0", "451 4.4.7", "250 2.0.0"]
    assert [len(list((maildir / "new").iterdir())) for maildir in maildirs] == [1, 0, 1]


@pytest.mark.parametrize("door", ["command", "service", "LMTP"])
def test_the_deadline_changes_nothing_once_the_message_is_stored(make_site: Make, door: str) -> None:
    """The Maildir's lock, held by its owner, keeps the quota's count waiting: 75 would bring the message again."""
    site = make_site(top='deadline = "2 s"', quota="10000000S\n5 1\n")
    lock = os.open(site.maildir, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if door == "LMTP":
            site.serve()
            with Client(site.lmtp) as client:
                client.say("LHLO there")
                (reply,) = client.send("a@example.net", [RECIPIENT], b"Subject: once\n\n")
                assert reply.startswith("250 2.0.0 ")
        else:
            site.starts = door == "service"
            assert site.deliver(b"Subject: once\n\n")[:3] == (0, b"", b"")
        assert len(site.messages()) == 1
        assert (site.maildir / "maildirsize").read_text() == "10000000S\n5 1\n"  # so that it was the deadline
    finally:
        os.close(lock)


# Stop and go.


def test_sigterm_finishes_what_is_in_work(make_site: Make, clamd: ClamdStub) -> None:
    """Both doors are closed at once; who has come in is answered."""
    site = make_site(f'[clamd]\naddress = "{clamd.address}"\n')
    clamd.open.clear()
    running = [site.start(main_job.message(f"number {number}")) for number in range(5)]
    with Client(site.lmtp) as idle, Client(site.lmtp) as client:
        client.say("LHLO there")
        client.begin("a@b", [RECIPIENT])
        client.connection.sendall(on_the_wire(b"Subject: by LMTP\n\nx\n"))
        servers.wait_for(lambda: len(clamd.scanned) == 6)
        assert site.serving is not None
        site.serving.send_signal(signal.SIGTERM)
        assert idle.reply().startswith("421 4.3.2 ")
        assert site.socket is not None
        servers.wait_for(lambda: not site.socket.exists())
        assert not (site.path / "lmtp").exists()
        clamd.open.set()
        assert client.reply() == "250 2.0.0 Delivered"
    assert [process.wait(30) for process in running] == [0] * 5
    assert site.serving.wait(30) == 0
    assert len(site.messages()) == 6
    assert site.logged()[-1]["detail"] == "stopped"


def test_sigterm_serves_those_who_wait_at_the_door(make_site: Make, clamd: ClamdStub) -> None:
    """One has the only place, one is let in and waits for it, others have not even been let in."""
    site = make_site(f'[clamd]\naddress = "{clamd.address}"\n', "connections = 1")
    assert site.serve()
    assert site.serving is not None
    clamd.open.clear()
    message = site.path / "message"
    message.write_bytes(main_job.message("x"))
    words = [b"deliver1", b"1", b"--recipient=you@example.org", b"DTLINE=x", f"DELIVER_CONFIG={site.config}".encode()]
    payload = b"\0".join(words)
    with contextlib.ExitStack() as stack:
        directory = os.open(site.path, os.O_PATH)
        stack.callback(os.close, directory)
        clients = [stack.enter_context(connected(f"unix:{site.socket}")) for _ in range(4)]
        for client in clients:
            file = stack.enter_context(message.open("rb"))
            socket.send_fds(client, [len(payload).to_bytes(4, "big") + payload], [file.fileno(), directory])
        servers.wait_for(lambda: bool(clamd.scanned))
        site.serving.send_signal(signal.SIGTERM)
        assert site.socket is not None
        servers.wait_for(lambda: not site.socket.exists())  # type: ignore[union-attr]
        clamd.open.set()
        assert [everything(client) for client in clients] == [b"0\n."] * 4
    assert site.serving.wait(30) == 0
    assert len(site.messages()) == 4


def test_sigterm_does_not_wait_for_a_clamd_that_says_no_version(make_site: Make, scratch: Path) -> None:
    """VERSION may hang for 150 s."""
    with servers.Scripted(scratch, servers.hang) as peer:
        site = make_site(f'[clamd]\naddress = "{peer.address}"\n')
        assert site.serve()
        servers.wait_for(lambda: bool(peer.peers))
        begun = time.monotonic()
        assert site.stop() == 0
        assert time.monotonic() - begun < 10


def test_sighup_reads_the_configuration_again(make_site: Make) -> None:
    site = make_site()
    assert site.deliver(main_job.message("x")).code == 0
    site.config.write_text(site.config.read_text() + '[[rule]]\nfile = "New"\n')
    assert site.deliver(main_job.message("x")).code == 0
    assert site.folders() == []
    assert site.serving is not None
    site.serving.send_signal(signal.SIGHUP)
    servers.wait_for(lambda: site.has_logged("configuration read again"))
    assert site.deliver(main_job.message("x")).code == 0
    assert site.folders() == ["New"]


@pytest.mark.parametrize("text", ["", "[[rule]]\nfile = 'a/../b'\n", "[clamd]\naddress = 1\n", None])
def test_sighup_with_a_wrong_configuration_changes_nothing(make_site: Make, text: str | None) -> None:
    """And the log says what is wrong."""
    site = make_site('[[rule]]\nfile = "Old"\n')
    assert site.serve()
    if text is None:
        site.config.unlink()
    else:
        site.config.write_text(text)
    assert site.serving is not None
    site.serving.send_signal(signal.SIGHUP)
    servers.wait_for(lambda: site.has_logged(f"still with the old configuration: {site.config}: "))
    assert site.deliver(main_job.message("x")).code == 0
    assert site.folders() == ["Old"]


def load(site: Site, messages: int, killings: int) -> tuple[Counter[int], int]:
    """Deliver ``messages`` by eight at a time, kill the service so often meanwhile; codes, and how often it answered.

    Each message says which it is; who got 0 must find it whole.
    """
    done = threading.Semaphore(0)

    def one(number: int) -> Answer:
        content = main_job.message(f"number {number}", b"z" * (number % 50) * 100 + b"\n")
        command = [str(site._prefix / "bin" / "deliver")]
        done_ = subprocess.run(
            command,
            input=content,
            cwd=site.path,
            env=site.environment(),
            capture_output=True,
            check=False,
            **servers.unprivileged(),
        )
        done.release()
        return Answer(done_.returncode, done_.stdout, done_.stderr, 0)

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(one, number) for number in range(messages)]
        for _ in range(killings):
            for _ in range(messages // (killings + 1)):
                assert done.acquire(timeout=60)
            assert site.serving is not None
            site.serving.kill()
            site.serving.wait()
            site.serving = None
            site.log.unlink()
            assert site.serve()
        answers = [future.result() for future in futures]
    stored = site.messages()
    subjects = Counter(re.findall(rb"^Subject: number (\d+)$", b"\n".join(stored), re.MULTILINE))
    for number, answer in enumerate(answers):
        content = main_job.message(f"number {number}", b"z" * (number % 50) * 100 + b"\n")
        if answer.code == 0:
            assert subjects[b"%d" % number], f"number {number} is lost"
        else:
            assert (answer.code, answer.stdout) == (75, b"4.3.0 Temporary failure (#4.3.0)\n")
        assert sum(one.endswith(content) for one in stored) == subjects[b"%d" % number]
    return Counter(answer.code for answer in answers), len(stored)


def test_kill_9_loses_nothing(make_site: Make, clamd: ClamdStub) -> None:
    """Killed again and again while it delivers: who heard 0 has the message whole; the others try again."""
    site = make_site(f'[clamd]\naddress = "{clamd.address}"\n')
    assert site.serve()
    codes, _ = load(site, 80, 3)
    assert sum(codes.values()) == 80
    assert set(codes) <= {0, 75}


@pytest.mark.faults
def test_kill_9_during_a_thousand_messages_loses_nothing(make_site: Make, clamd: ClamdStub) -> None:
    """The issue's number."""
    site = make_site(f'[clamd]\naddress = "{clamd.address}"\n')
    assert site.serve()
    codes, _ = load(site, 1000, 30)
    assert sum(codes.values()) == 1000
    assert set(codes) <= {0, 75}
    assert codes[75]


def test_kill_9_under_a_client_that_waits_is_75(make_site: Make, clamd: ClamdStub) -> None:
    site = make_site(f'[clamd]\naddress = "{clamd.address}"\n')
    clamd.open.clear()
    process = site.start(main_job.message("x"))
    servers.wait_for(lambda: bool(clamd.scanned))
    site.stop(signal.SIGKILL)
    assert process.stdout is not None
    said = process.stdout.read()
    assert (process.wait(30), said) == (75, b"4.3.0 Temporary failure (#4.3.0)\n")
    assert site.messages() == []
    assert list((site.maildir / "tmp").iterdir()) == []


# How it starts.


def test_readiness_is_told_to_systemd(make_site: Make) -> None:
    """sd_notify(3), when the sockets are there."""
    site = make_site()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(site.directory / "notify"))
        manager.settimeout(30)
        (site.directory / "notify").chmod(0o666)
        environment = {**os.environ, "NOTIFY_SOCKET": str(site.directory / "notify")}
        assert site.serve(env=environment)
        assert manager.recv(100) == b"READY=1"
        assert site.socket is not None
        assert site.socket.is_socket()
        site.stop()
        assert manager.recv(100) == b"STOPPING=1"


def complaint(site: Site) -> str:
    """What `deliver serve` says before it ends with 1."""
    command = [str(site._prefix / "bin" / "deliver"), "serve", "--config", str(site.config)]
    done = subprocess.run(
        command, cwd="/", capture_output=True, text=True, check=False, timeout=30, **servers.unprivileged()
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def test_a_service_that_cannot_listen_says_what_to_do(make_site: Make) -> None:
    site = make_site()
    text = site.config.read_text()
    socket_line = f'socket = "{site.socket}"'
    site.config.write_text(text.replace(socket_line, f'socket = "{site.path}/run/sock"'))
    assert f"make the directory {site.path}/run first" in complaint(site)
    (site.path / "file").touch()
    site.config.write_text(text.replace(socket_line, f'socket = "{site.path}/file"'))
    assert "is taken by something else" in complaint(site)
    assert (site.path / "file").is_file()
    site.config.write_text(text.replace(socket_line, f'socket = "{site.path}/{"x" * 100}"'))
    assert "107 bytes at most" in complaint(site)
    site.config.write_text(text.replace(socket_line, 'socket = "/proc/sock"'))
    assert "/proc/sock" in complaint(site)
    site.config.write_text(text)
    assert site.serve()
    assert "somebody is listening at" in complaint(site)
    assert site.deliver(main_job.message("x")).code == 0
    site.stop()
    site.config.write_text("wrong\n")
    assert f"{site.config}: is not TOML" in complaint(site)


def test_a_service_that_could_not_start_leaves_no_socket_behind(make_site: Make) -> None:
    """The first door was open already when the second could not be opened."""
    site = make_site()
    site.config.write_text(re.sub("lmtp = .*", f'lmtp = ["unix:{site.path}/no/lmtp"]', site.config.read_text()))
    complaint(site)
    assert site.socket is not None
    assert not site.socket.exists()


SERVICE_FILES = main_job.CHECKOUT / "docs" / "service"


@as_root
def test_the_run_script(make_site: Make) -> None:
    """For daemontools, s6 and runit: it makes the directory, becomes the user and stays the same process."""
    site = make_site()
    run = site.directory / "run"
    site.config.write_text(site.config.read_text().replace(str(site.socket), f"{run}/deliver.sock"))
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "DELIVER_USER": "nobody",
        "DELIVER_GROUP": "nogroup",
        "DELIVER_RUN": str(run),
        "DELIVER_CONFIG": str(site.config),
        "DELIVER_COMMAND": str(site._prefix / "bin" / "deliver"),
    }
    site.serving = subprocess.Popen(["/bin/sh", SERVICE_FILES / "run"], cwd="/", env=environment)
    servers.wait_for(lambda: site.has_logged("ready") or site.serving is None or site.serving.poll() is not None)
    ready = next(record for record in site.logged() if record.get("detail") == "ready")
    assert ready["uid"] == pwd.getpwnam("nobody").pw_uid
    status = Path(f"/proc/{site.serving.pid}/status").read_text()
    assert re.findall(r"^Groups:[ \t]*(.*?)[ \t]*$", status, re.MULTILINE) == [""]
    assert (run / "deliver.sock").is_socket()
    assert run.stat().st_mode & 0o777 == 0o711
    assert site.stop() == 0


def test_the_unit_is_one(tmp_path: Path, installed: Path) -> None:
    """systemd-analyze(1), verify; a word it does not know is said on standard error."""
    program = shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not here")
    text = (SERVICE_FILES / "deliver.service").read_text()
    for old, new in (("/usr/local", str(installed)), ("User=vpopmail", "User=mail"), ("Group=vchkpw", "Group=mail")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    unit = tmp_path / "deliver.service"
    unit.write_text(text)
    done = subprocess.run([program, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# What it tells.


def test_metrics_and_health(make_site: Make, clamd: ClamdStub) -> None:
    """Prometheus' text format, version 0.0.4."""
    site = make_site(f'[clamd]\naddress = "{clamd.address}"\n', quota="2000S\n1900 1\n")
    assert site.deliver(main_job.message("x")).code == 100
    (site.maildir / "maildirsize").unlink()
    for _ in range(2):
        assert site.deliver(main_job.message("x")).code == 0
    assert site.deliver(main_job.message("x", headers=b"Delivered-To: you@example.org\n")).code == 100
    site.maildir.rename(site.path / "gone")
    assert site.deliver(main_job.message("y")).code == 75
    found = site.metrics()
    wanted = {
        'deliver_messages_total{action="bounce"}': 2,
        'deliver_messages_total{action="file"}': 2,
        'deliver_failures_total{status="4.2.1"}': 1,
        'deliver_scans_total{scanner="clamd",finding="clean"}': 2,
        'deliver_scan_seconds_count{scanner="clamd"}': 2,
        'deliver_scan_cache_hits_total{scanner="clamd"}': 2,
        "deliver_in_work": 0,
        "deliver_queue_wait_seconds_count": 5,
    }
    assert {name: found.get(name) for name in wanted} == wanted
    assert 0 < found['deliver_scan_seconds_sum{scanner="clamd"}'] < 10
    text = site.ask(b"GET /metrics HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")[2].decode()
    for line in text.splitlines():
        assert re.fullmatch(
            r'# (HELP|TYPE) deliver_\w+ .+|deliver_\w+(\{\w+="[^"\\]*"(,\w+="[^"\\]*")*\})? [0-9.e+-]+', line
        )
    assert site.ask(b"GET /health HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\nok\n")
    assert site.ask(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 404 ")
    assert site.ask(b"\0" * 10_000).startswith(b"HTTP/1.0 404 ")


# For long.


def grown(site: Site, messages: int) -> tuple[int, list[str]]:
    """Bytes of memory after ``messages`` by LMTP, each with another content; and what is open."""
    with Client(site.lmtp) as client:
        client.say("LHLO there")
        for number in range(messages):
            content = main_job.message("x", b"%d\n" % number + b"y" * 2000 + b"\n")
            assert client.send("a@b", [RECIPIENT], content) == ["250 2.0.0 Delivered"]
            if number % 100 == 99:
                shutil.rmtree(site.maildir / "new")
                (site.maildir / "new").mkdir()
                main_job.own(site.path)
    assert site.serving is not None
    pages = int(Path(f"/proc/{site.serving.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), site.descriptors()


def test_descriptors_do_not_grow(make_site: Make, clamd: ClamdStub) -> None:
    """Through both doors, small and large, from files and pipes."""
    site = make_site(f'[clamd]\naddress = "{clamd.address}"\n')
    assert site.deliver(main_job.message("x")).code == 0
    with Client(site.lmtp) as client:
        client.say("LHLO there")
        before = site.descriptors()
        for size in (10, 400_000):
            for stdin in ("file", "pipe"):
                content = main_job.message("x", b"y" * size + b"\n")
                assert site.deliver(content, stdin=stdin).code == 0
                assert client.send("a@b", [RECIPIENT], content) == ["250 2.0.0 Delivered"]
                assert site.deliver(content, "--what", stdin=stdin).code == 75
        servers.wait_for(lambda: len(site.descriptors()) <= len(before))


@pytest.mark.faults
def test_memory_and_descriptors_do_not_grow(make_site: Make, clamd: ClamdStub) -> None:
    """Under 5 MB for thousands of messages, once all that is kept is full."""
    site = make_site(f'[clamd]\naddress = "{clamd.address}"\n')
    assert site.serve()
    before, opened = grown(site, 2000)
    after, _ = grown(site, 6000)
    assert after - before < 5_000_000
    servers.wait_for(lambda: len(site.descriptors()) <= len(opened))  # the last client has just gone
