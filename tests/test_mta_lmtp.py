"""LMTP from those who will really speak it: Postfix, Exim, swaks and Python's smtplib.

Debian's packages of the two mail servers conflict with each other, so they are downloaded and unpacked, never
installed. Postfix's master(8) must be root; Exim runs as whoever runs the tests, to whom a private passwd file gives
Debian's name for it.
"""

import contextlib
import functools
import os
import pwd
import shutil
import smtplib
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import main_job
import pytest
import servers
from installed import install_once  # noqa: F401 - the fixture `installed`
from main_job import Home

PATIENCE = 60.0  # seconds for a message to arrive
RECIPIENTS = ("you", "you+Lists", "full", "joe")


# Downloads the packages, and those libraries that they depend on and that are not installed here.
UNPACK = """
libraries=$(apt-cache depends "$@" | sed -n 's/^ *Depends: \\(lib[^ ]*\\)$/\\1/p' | sort -u)
missing=$(apt-get -qs --no-install-recommends install $libraries | sed -n 's/^Inst \\([^ ]*\\) (.*/\\1/p') # no upgrades
apt-get -q download "$@" $missing
for package in *.deb; do dpkg-deb -x $package .; done
rm *.deb
"""

Unpack = Callable[..., Path]


@pytest.fixture(scope="module", name="unpack")
def unpack_packages() -> Iterator[Unpack]:
    """Unpack Debian packages in a directory of their own. Skips, or fails under CI, where they cannot be had."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def unpack(*packages: str) -> Path:
            directory = Path(tempfile.mkdtemp(prefix="deliver-mta-", dir="/tmp"))
            stack.callback(shutil.rmtree, directory)
            directory.chmod(0o755)
            command = ["sh", "-ec", UNPACK, "sh", *packages]
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode == 0:
                return directory
            reason = f"{packages} cannot be downloaded (apt-get update): {done.stderr.strip()[-300:]}"
            raise (pytest.fail.Exception if os.environ.get("CI") == "true" else pytest.skip.Exception)(reason)

        yield unpack


def libraries(root: Path) -> str:
    """Where the unpacked libraries are."""
    return f"{root}/usr/lib/{os.uname().machine}-linux-gnu"


class Site:
    """Three users of one service: "you" with the folder Lists, "joe", and "full" who is over quota."""

    def __init__(self, directory: Path, prefix: Path) -> None:
        self.directory = directory
        directory.chmod(0o755)
        (directory / "you").mkdir()
        with socket.create_server(("127.0.0.1", 0)) as door:
            self.port = door.getsockname()[1]
        configuration = f"""
[service]
socket = ""
lmtp = ["unix:/run/deliver/lmtp.sock", "tcp:127.0.0.1:{self.port}"]
[users]
maildir = "{directory}/{{user}}/Maildir"
[log]
to = "{directory}/you/log"
"""
        self.home = Home(directory / "you", prefix, configuration, service=True)
        self.home.socket = None
        self.lmtp = directory / "you" / "lmtp"
        for folder in ("you/Maildir/.Lists", "joe/Maildir", "full/Maildir"):
            for part in ("tmp", "new", "cur"):
                (directory / folder / part).mkdir(parents=True)
        (directory / "full" / "Maildir" / "maildirsize").write_text("2000S\n1999 1\n")
        main_job.own(directory)

    def stored(self, folder: str) -> list[bytes]:
        """The messages below a directory, without warnings."""
        found = [path.read_bytes() for path in sorted((self.directory / folder / "new").iterdir())]
        return [one for one in found if not main_job.is_warning(one)]

    def check(self, body: bytes) -> None:
        """The message has come to three of the four, once; the fourth has none, and one line in the log each."""
        servers.wait_for(lambda: all(map(self.stored, ("you/Maildir", "you/Maildir/.Lists", "joe/Maildir"))), PATIENCE)
        for folder in ("you/Maildir", "you/Maildir/.Lists", "joe/Maildir"):
            (one,) = self.stored(folder)
            head, _, rest = one.partition(b"\n\n")
            assert rest == body
            assert head.startswith(b"Return-Path: <sender@example.net>\nDelivered-To: ")
            assert b"\r" not in head
        assert self.stored("full/Maildir") == []


@pytest.fixture
def site(scratch: Path, installed: Path) -> Iterator[Site]:
    """A service without scanners, which runs."""
    one = Site(scratch, installed)
    assert one.home.serve()
    servers.wait_for(lambda: servers.listens(one.lmtp))
    yield one
    one.home.stop()


BODY = b".\n..\n.x\nFrom here\n" + "Grüße\n".encode() + b"z" * 900 + b"\nend\n"  # swaks takes a last dot for itself
MESSAGE = b"From: <sender@example.net>\nTo: <you@example.org>\nSubject: interop\nMessage-ID: <1@example.net>\n\n" + BODY
WIRE = MESSAGE.replace(b"\n", b"\r\n")


# Postfix.

MAIN_CF = """
compatibility_level = 3.6
maillog_file = {home}/log
maillog_file_prefixes = /tmp
queue_directory = {home}/queue
data_directory = {home}/data
meta_directory = {home}
command_directory = {root}/usr/sbin
daemon_directory = {root}/usr/lib/postfix/sbin
shlib_directory = {root}/usr/lib/postfix
mail_owner = {owner}
setgid_group = {group}
default_privs = nobody
import_environment = MAIL_CONFIG TZ LANG=C LD_LIBRARY_PATH={libraries}
myhostname = mx.example.org
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
recipient_delimiter = +
smtputf8_enable = no
virtual_mailbox_domains = example.org
virtual_transport = {transport}
lmtp_destination_recipient_limit = 50
"""

MASTER_CF = """
127.0.0.1:{port} inet n - n - - smtpd
pickup    unix  n       -       n       60      1       pickup
cleanup   unix  n       -       n       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
rewrite   unix  -       -       n       -       -       trivial-rewrite
bounce    unix  -       -       n       -       0       bounce
defer     unix  -       -       n       -       0       bounce
trace     unix  -       -       n       -       0       bounce
proxymap  unix  -       -       n       -       -       proxymap
lmtp      unix  -       -       n       -       -       lmtp
error     unix  -       -       n       -       -       error
retry     unix  -       -       n       -       -       error
discard   unix  -       -       n       -       -       discard
anvil     unix  -       -       n       -       1       anvil
postlog   unix-dgram n  -       n       -       1       postlogd
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="Postfix's master(8) must be root")
@pytest.mark.parametrize("transport", ["lmtp:unix:LMTP", "lmtp:inet:127.0.0.1:PORT"])
def test_postfix(site: Site, scratch: Path, unpack: Unpack, transport: str) -> None:
    """Four recipients in one transaction; the one who is over quota is bounced alone, with our words."""
    root = unpack("postfix")
    program = root / "usr/lib/postfix/sbin/master"
    path = f"{root}/usr/lib/postfix:{libraries(root)}"
    home = scratch / "postfix"
    owner = pwd.getpwnam("mail")
    for name in "active bounce corrupt defer deferred flush hold incoming private saved trace maildrop public".split():
        (home / "queue" / name).mkdir(parents=True)
        os.chown(home / "queue" / name, owner.pw_uid, 0)
    (home / "queue" / "pid").mkdir()
    (home / "data").mkdir()
    os.chown(home / "data", owner.pw_uid, 0)
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    transport = transport.replace("LMTP", str(site.lmtp)).replace("PORT", str(site.port))
    (home / "main.cf").write_text(
        MAIN_CF.format(home=home, root=root, owner="mail", group="games", transport=transport, libraries=path)
    )
    (home / "master.cf").write_text(MASTER_CF.format(port=port))
    environment = {"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": path}
    with subprocess.Popen(
        [program, "-c", home, "-d"], env=environment, cwd="/", start_new_session=True, stderr=subprocess.PIPE
    ) as master:
        try:
            servers.wait_for(lambda: listens(port) or master.poll() is not None)
            with smtplib.SMTP("127.0.0.1", port) as client:
                client.sendmail("sender@example.net", [f"{user}@example.org" for user in RECIPIENTS], WIRE)
            site.check(BODY)
            log = home / "log"
            servers.wait_for(lambda: log.read_text().count("dsn=") >= len(RECIPIENTS), PATIENCE)
        finally:
            master.terminate()
            master.wait(30)
    lines = [line for line in log.read_text().splitlines() if "dsn=" in line]
    sent = [line for line in lines if "status=sent (250 2.0.0 Delivered)" in line]
    bounced = [line for line in lines if "status=bounced" in line]
    assert (len(sent), len(bounced)) == (3, 1)
    assert "dsn=5.2.2" in bounced[0]
    assert "said: 552 5.2.2 Mailbox is full (in reply to end of DATA command)" in bounced[0]


def listens(port: int) -> bool:
    """Whether somebody listens on loopback."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


# Exim.

EXIM_CONF = """
primary_hostname = mx.example.org
spool_directory = {home}/spool
log_file_path = {home}/%slog
keep_environment = LD_LIBRARY_PATH : LD_PRELOAD : NSS_WRAPPER_PASSWD : NSS_WRAPPER_GROUP
domainlist local_domains = example.org
trusted_users = Debian-exim
deliver_drop_privilege
never_users =
prdr_enable = false
begin acl
begin routers
filtered:
  driver = accept
  domains = +local_domains
  transport = filtered
  condition = ${{if eq{{{transport}}}{{lmtp}}}}
filtered_by_tcp:
  driver = manualroute
  domains = +local_domains
  route_list = * 127.0.0.1
  self = send
  transport = filtered_by_tcp
bounces:
  driver = redirect
  data = :blackhole:
begin transports
filtered:
  driver = lmtp
  socket = {socket}
  batch_max = 50
filtered_by_tcp:
  driver = smtp
  protocol = lmtp
  port = {port}
  hosts_try_fastopen =
"""


@pytest.mark.parametrize("transport", ["lmtp", "smtp"])
def test_exim(site: Site, scratch: Path, unpack: Unpack, transport: str) -> None:
    """Its two LMTP clients: the lmtp transport on the UNIX socket, the smtp one with protocol = lmtp on loopback."""
    root = unpack("exim4-daemon-light", "libnss-wrapper")
    program = root / "usr/sbin/exim4"
    (wrapper,) = root.glob("usr/lib/*/libnss_wrapper.so")
    home = scratch / "exim"
    home.mkdir()
    user = servers.unprivileged()
    uid, gid = user.get("user", os.geteuid()), user.get("group", os.getegid())
    passwd, group = home / "passwd", home / "group"
    passwd.write_text(f"root:x:0:0::/root:/bin/sh\nDebian-exim:x:{uid}:{gid}::/nonexistent:/bin/false\n")
    group.write_text(f"root:x:0:\nDebian-exim:x:{gid}:\n")
    configuration = home / "exim.conf"
    configuration.write_text(EXIM_CONF.format(home=home, socket=site.lmtp, port=site.port, transport=transport))
    environment = {
        "PATH": "/usr/bin:/bin",
        "LD_LIBRARY_PATH": libraries(root),
        "LD_PRELOAD": str(wrapper),
        "NSS_WRAPPER_PASSWD": str(passwd),
        "NSS_WRAPPER_GROUP": str(group),
    }
    main_job.own(home)
    program = Path(shutil.copy(program, home / "exim4"))
    program.chmod(0o755)  # LD_PRELOAD does not survive a setuid bit (ld.so(8))
    command = [program, "-C", configuration, "-odf", "-oi", "-oee", "-f", "sender@example.net", "--"]
    done = subprocess.run(
        [*command, *(f"{user}@example.org" for user in RECIPIENTS)],
        input=MESSAGE,
        env=environment,
        cwd="/",
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        **user,
    )
    log = (home / "mainlog").read_text() if (home / "mainlog").exists() else ""
    assert done.returncode == 0, (done, log)
    site.check(BODY)
    delivered = [line for line in log.splitlines() if " => " in line or " -> " in line]
    assert len([line for line in delivered if "example.org" in line]) == 3, log
    (failed,) = (line for line in log.splitlines() if " ** full@example.org" in line)
    assert "552 5.2.2 Mailbox is full" in failed


# Clients for people and programs.


def test_swaks(site: Site, unpack: Unpack) -> None:
    """One recipient is refused at RCPT; --pipeline sends everything at once."""
    program = unpack("swaks") / "usr/bin/swaks"
    message = site.directory / "message"
    message.write_bytes(MESSAGE[:-1])  # swaks ends the last line
    for more in ((), ("--pipeline",)):
        words = ["--protocol", "LMTP", "--socket", site.lmtp, "--from", "sender@example.net", "--data", f"@{message}"]
        done = subprocess.run(
            [program, *words, *more, "--to", "nobody@example.org,joe@example.org"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LC_ALL": "C"},
        )
        assert "550 5.1.1 There is no such user" in done.stdout, done
        assert "250 2.0.0 Delivered" in done.stdout
    assert [one.partition(b"\n\n")[2] for one in site.stored("joe/Maildir")] == [BODY] * 2


def test_smtplib(site: Site) -> None:
    """Python's own client, over both kinds of sockets."""
    for host, port in ((str(site.lmtp), 0), ("127.0.0.1", site.port)):
        with smtplib.LMTP(host, port) as client:
            client.ehlo("there")
            assert client.has_extn("pipelining")
            client.sendmail("sender@example.net", ["joe@example.org"], WIRE)
            with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
                client.sendmail("sender@example.net", ["nobody@example.org"], WIRE)
            assert caught.value.recipients["nobody@example.org"][0] == 550
    assert [one.partition(b"\n\n")[2] for one in site.stored("joe/Maildir")] == [BODY] * 2
