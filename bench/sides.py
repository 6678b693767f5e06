"""The sides that are measured: each delivers one message to one or to many of its users, all with the same duties.

Every side has users u0, u1, ... of its own with a Maildir each, reads the same kind of rules from a user's file, and
asks the same scanners, as far as it asks any.
"""

import functools
import grp
import itertools
import os
import pwd
import shutil
import socket
import subprocess
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import servers
from measure import Cost, Resident

LMTP_PATIENCE = 120.0
QUOTA = "1000000000000S,10000000C\n"

LDA = "/usr/lib/dovecot/dovecot-lda"


class Setting(NamedTuple):
    """What varies between the homes of a side: addresses of scanners ("" for none), rules, users, old messages."""

    clamd: str = ""
    spamd: str = ""
    rules: int = 1
    users: int = 1
    old: int = 0
    quota: bool = True


_LINE = b"The quick brown fox jumps over the lazy dog, as it did at the last meeting.\n"
_serial = itertools.count(1)


@functools.cache
def _body(size: int) -> tuple[bytes, bytes]:
    """Lines of text, as they are stored and as they are sent; kept, for fifty senders share one of 25 MB."""
    text = _LINE * max(1, size // len(_LINE))
    return text, text.replace(b"\n", b"\r\n") + b".\r\n"


class Message:
    """A message of about ``size`` bytes, in a file as an MTA's queue has it, if there is a directory for it; and as
    LMTP sends it, ``wire``. No two are equal, for verdicts are kept.
    """

    def __init__(self, size: int, directory: Path | None = None) -> None:
        number = f"{os.getpid()}.{next(_serial)}"
        head = (
            "Received: from mail.example.net (mail.example.net [192.0.2.1]) by mx.example.org with SMTP; "
            "22 Nov 2026 12:00:00 -0000\nFrom: A Friend <friend@example.net>\nTo: <u0@example.org>\n"
            f"Subject: Minutes of meeting {number}\nDate: Sun, 22 Nov 2026 12:00:00 +0000\n"
            f"Message-ID: <{number}@example.net>\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\n"
        ).encode()
        text, body = _body(size - len(head))
        self.wire = (head.replace(b"\n", b"\r\n"), body)
        if directory is not None:
            self.path = directory / f"message{number}"
            self.path.write_bytes(head + text)

    def discard(self) -> None:
        """Remove the file."""
        self.path.unlink()


class Side:
    """One way to deliver. ``name`` is the table's; ``scans`` says which scanners it asks."""

    name = ""
    scans = "clamd and spamd"

    def __init__(self, home: Path, setting: Setting) -> None:
        self.home = home
        self.setting = setting
        self.residents: Resident | None = None
        home.mkdir()
        for number in range(setting.users):
            self._make_user(home / f"u{number}")

    def _make_user(self, user: Path) -> None:
        for part in ("tmp", "new", "cur"):
            (user / "Maildir" / part).mkdir(parents=True, exist_ok=True)
        for number in range(self.setting.old):
            path = user / "Maildir" / "cur" / f"17{number:08}.M{number}P1V0I{number}.mx,S=0:2,S"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        self._reset(user)

    def _reset(self, user: Path) -> None:
        if self.setting.quota:
            (user / "Maildir" / "maildirsize").write_text(f"{QUOTA}{0:12} {self.setting.old:12}\n")

    def empty(self) -> int:
        """Remove the messages delivered so far and start the quota files anew; how many there were."""
        count = 0
        for user in self.home.glob("u*"):
            for path in (user / "Maildir" / "new").iterdir():
                path.unlink()
                count += 1
            self._reset(user)
        return count

    @abstractmethod
    def deliver(self, message: Message, users: int = 1, *, at_once: int = 1) -> Cost:
        """Deliver to that many users, ``at_once`` of them at the same time; seconds on the clock and of CPU."""

    @contextmanager
    def running(self) -> Iterator["Side"]:
        """Start what has to run meanwhile."""
        yield self


class CommandSide(Side):
    """A command that an MTA runs once for each recipient."""

    def deliver(self, message: Message, users: int = 1, *, at_once: int = 1) -> Cost:
        """See Side."""
        before = self.residents.cpu() if self.residents else 0.0
        begun = time.monotonic()
        cpu = 0.0
        running: list[subprocess.Popen[bytes]] = []
        for number in range(users):
            if len(running) >= at_once:
                cpu += self._finish(running.pop(0))
            running.append(self._start(message, self.home / f"u{number}"))
        for process in running:
            cpu += self._finish(process)
        wall = time.monotonic() - begun
        return Cost(wall, cpu + (self.residents.cpu() - before if self.residents else 0.0), cpu)

    def _start(self, message: Message, user: Path) -> subprocess.Popen[bytes]:
        with message.path.open("rb") as file:
            return subprocess.Popen(
                self.command(user),
                cwd=user,
                env=self.environment(user),
                stdin=file,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )

    def _finish(self, process: subprocess.Popen[bytes]) -> float:
        assert process.stdout is not None
        with process.stdout as output:
            said = output.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{self.name}: {process.args!r} ended with {process.returncode}: {said!r}")
        return used.ru_utime + used.ru_stime

    @abstractmethod
    def command(self, user: Path) -> Sequence[str]:
        """What is run, with the message on standard input, in the user's home, which is named as the user."""

    def environment(self, user: Path) -> dict[str, str]:
        """What qmail-local sets (qmail-command(8))."""
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(user),
            "USER": user.name,
            "LOGNAME": user.name,
            "SENDER": "friend@example.net",
            "NEWSENDER": "friend@example.net",
            "RECIPIENT": f"{user.name}@example.org",
            "LOCAL": user.name,
            "HOST": "example.org",
            "EXT": user.name,
            "DTLINE": f"Delivered-To: {user.name}@example.org\n",
            "RPLINE": "Return-Path: <friend@example.net>\n",
            "UFLINE": "From friend@example.net Sun Nov 22 12:00:00 2026\n",
        }


class Chain(CommandSide):
    """maildrop with Mail::Toaster's filter, version 2.17, step by step; a virus scan stands for simscan's."""

    name = "maildrop chain"

    def __init__(self, home: Path, setting: Setting) -> None:
        super().__init__(home, setting)
        self._filter = home / "mailfilter"
        self._filter.write_text(self._toaster())
        self._filter.chmod(0o600)  # maildrop refuses a filter that others can read or write
        if setting.clamd:
            # The scanner's client needs its own copy of clamd.conf.
            (home / "clamd.conf").write_text(f"LocalSocket {_path(setting.clamd)}\nStreamMaxLength 100M\n")

    def _make_user(self, user: Path) -> None:
        super()._make_user(user)
        (user / "Maildir" / ".Spam").mkdir()
        rules = user / "Maildir" / ".mailfilter"
        rules.write_text(
            "".join(
                f'if ( /^Subject: nothing {number} here$/:h )\n{{\n  to "$VHOME/Maildir/.Folder{number % 10}"\n}}\n'
                for number in range(self.setting.rules)
            )
        )
        rules.chmod(0o600)

    def _toaster(self) -> str:
        """Numbers are the steps' in the order of the original: 2.17 tests every file in a shell of its own."""
        scan_viruses = (
            f"RESULT=`clamdscan --config-file={self.home}/clamd.conf --no-summary --fdpass -`\n"
            'if ( $RETURNCODE == 1 )\n{\n  log "$TIMESTAMP - virus"\n  EXITCODE=0\n  exit\n}\n'
            "if ( $RETURNCODE != 0 )\n{\n  EXITCODE=111\n  exit\n}\n"
            if self.setting.clamd
            else ""
        )
        scan_spam = (
            "if ( /^X-Spam-Status: /:h )\n{\n"
            '  log "$TIMESTAMP - message already processed by SpamAssassin"\n}\n'
            "else\n{\n"
            "  if ( $SIZE < 256000 )\n  {\n"
            "    `test -x /usr/bin/spamc && exit 1 || exit 0`\n"
            "    if ( $RETURNCODE == 1 )\n    {\n"
            '      log "$TIMESTAMP - running message through spamc"\n'
            f"      exception {{\n        xfilter '/usr/bin/spamc -U {_path(self.setting.spamd)} -u \"$EXT@$HOST\"'\n"
            "      }\n    }\n"
            '    else\n    {\n      log "$TIMESTAMP - WARNING: no spamc"\n    }\n  }\n}\n'
            if self.setting.spamd
            else ""
        )
        return (
            # 0
            f'SHELL="/bin/sh"\nimport EXT\nimport HOST\nVHOME=`pwd`\nTIMESTAMP=`date "+%b %d %H:%M:%S"`\n'
            f'logfile "{self.home}/maildrop.log"\nlog "$TIMESTAMP - BEGIN maildrop processing for $EXT@$HOST ==="\n'
            # 1
            'if ( $EXT eq "" || $HOST eq "" )\n{\n  log "$TIMESTAMP - SOFT ERROR"\n  EXITCODE=111\n  exit\n}\n'
            + scan_viruses
            + scan_spam
            # 3
            + "`test -r $VHOME/.mailfilter && exit 1 || exit 0`\n"
            "if ( $RETURNCODE == 1 )\n{\n  exception {\n    include $VHOME/.mailfilter\n  }\n}\n"
            # 4, 5
            "`test -e $VHOME/Maildir/maildirsize && exit 1 || exit 0`\n"
            "if ( $RETURNCODE == 1 )\n{\n  MAILDIRQUOTA=`head -n1 $VHOME/Maildir/maildirsize`\n}\n"
            # 6
            "`test -d $VHOME/Maildir/.Spam && exit 1 || exit 0`\n"
            "if ( $RETURNCODE == 0 )\n{\n  `maildirmake -f Spam $VHOME/Maildir`\n}\n"
            # 7
            "if ( /^X-Spam-Status: Yes/:h )\n{\n"
            "  if ( /X-Spam-Status: Yes, (hits|score)=([0-9.-]+) /:h )\n  {\n"
            '    if ( $MATCH2 >= 12 )\n    {\n      log "$TIMESTAMP - nuking"\n      EXITCODE=0\n      exit\n    }\n'
            '    log "$TIMESTAMP - END success"\n    exception {\n      to "$VHOME/Maildir/.Spam"\n    }\n  }\n}\n'
            # 8
            'if ( /^X-Spam-Status: No, score=([0-9.-]+) /:h )\n{\n  log "$TIMESTAMP - SA clean ($MATCH1)"\n}\n'
            # 10
            "`test -r $VHOME/Maildir/.mailfilter && exit 1 || exit 0`\n"
            "if ( $RETURNCODE == 1 )\n{\n  exception {\n    include $VHOME/Maildir/.mailfilter\n  }\n}\n"
            "`test -r $VHOME/Maildir/mailfilter && exit 1 || exit 0`\n"
            "if ( $RETURNCODE == 1 )\n{\n  exception {\n    include $VHOME/Maildir/mailfilter\n  }\n}\n"
            # 11
            "`test -x /usr/bin/deliverquota && exit 1 || exit 0`\n"
            "if ( $RETURNCODE == 1 )\n{\n  exception {\n"
            '    xfilter "/usr/bin/deliverquota -w 90 $VHOME/Maildir"\n  }\n}\n'
            'else\n{\n  exception {\n    to "$VHOME/Maildir"\n  }\n}\n'
            # 12
            'if ( $RETURNCODE == 77 )\n{\n  to "|exit 100"\n}\n'
            'log "$TIMESTAMP - END success (quota)"\nEXITCODE=0\nexit\n'
        )

    def command(self, _user: Path) -> Sequence[str]:
        """See CommandSide."""
        return ("/usr/bin/maildrop", str(self._filter))


class Procmail(CommandSide):
    """procmail with spamc, the recipe that SpamAssassin ships."""

    name = "procmail"
    scans = "spamd"

    def _make_user(self, user: Path) -> None:
        super()._make_user(user)
        spamc = ""
        if self.setting.spamd:
            spamc = f":0fw\n* < 256000\n| /usr/bin/spamc -U {_path(self.setting.spamd)}\n\n"
        rules = "".join(
            f":0\n* ^Subject: nothing {number} here$\n.Folder{number % 10}/\n\n" for number in range(self.setting.rules)
        )
        # It takes HOME from the password file, whatever the environment says.
        (user / ".procmailrc").write_text(
            f"SHELL=/bin/sh\nPATH=/usr/bin:/bin\nHOME={user}\nMAILDIR={user}/Maildir\nDEFAULT={user}/Maildir/\n"
            f"LOGFILE={user}/log\n\n"
            f"{spamc}:0\n* ^X-Spam-Status: Yes\n.Spam/\n\n{rules}"
        )

    def command(self, user: Path) -> Sequence[str]:
        """See CommandSide."""
        return ("/usr/bin/procmail", "-t", str(user / ".procmailrc"))


class _Dovecot(Side):
    scans = "none"

    def __init__(self, home: Path, setting: Setting) -> None:
        # Its quota would be a plugin's; none is favourable to it.
        super().__init__(home, setting._replace(quota=False))
        self.socket = home / "run" / "lmtp"
        self._config = home / "dovecot.conf"
        whoami = _name(os.geteuid())
        (home / "run").mkdir()
        self._config.write_text(
            f"""base_dir = {home}/run
state_dir = {home}/run
log_path = {home}/log
protocols = lmtp
ssl = no
default_internal_user = {whoami[0]}
default_internal_group = {whoami[1]}
default_login_user = {whoami[0]}
first_valid_uid = {os.geteuid()}
first_valid_gid = {os.getegid()}
mail_location = maildir:~/Maildir
postmaster_address = postmaster@example.org
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = uid={os.geteuid()} gid={os.getegid()} home={home}/%n
}}
service anvil {{
  chroot =
}}
protocol lmtp {{
  mail_plugins = sieve
}}
protocol lda {{
  mail_plugins = sieve
}}
plugin {{
  sieve = ~/.dovecot.sieve
}}
"""
        )
        for user in home.glob("u*"):
            self._compile(user)

    def _compile(self, user: Path) -> None:
        script = user / ".dovecot.sieve"
        rules = "".join(
            f'if header :regex "subject" "^nothing {number} here$" {{ fileinto "Folder{number % 10}"; stop; }}\n'
            for number in range(self.setting.rules)
        )
        script.write_text(
            'require ["fileinto", "regex"];\n'
            f'if header :matches "X-Spam-Status" "Yes*" {{ fileinto "Spam"; stop; }}\n{rules}'
        )
        subprocess.run(
            ["/usr/bin/sievec", "-c", str(self._config), str(script)],
            check=True,
            env={"HOME": str(user), "PATH": _PATH},
        )


class DovecotLda(_Dovecot, CommandSide):
    """dovecot-lda with Sieve, as an MTA runs it for a user of the system's."""

    name = "dovecot-lda + Sieve"

    def command(self, user: Path) -> Sequence[str]:
        """See CommandSide."""
        return (LDA, "-c", str(self._config), "-f", "friend@example.net", "-a", f"{user.name}@example.org")


class LmtpSide(Side):
    """A server that speaks LMTP. The client's own CPU is nobody's: every MTA pays it."""

    socket: Path

    def deliver(self, message: Message, users: int = 1, *, at_once: int = 1) -> Cost:
        """See Side."""
        assert at_once == 1
        assert self.residents is not None
        before = self.residents.cpu()
        begun = time.monotonic()
        with lmtp(self.socket) as conversation:
            conversation.send(message.wire, [f"u{number}@example.org" for number in range(users)])
        wall = time.monotonic() - begun
        return Cost(wall, self.residents.cpu() - before, 0.0)


class DovecotLmtp(_Dovecot, LmtpSide):
    """Dovecot's LMTP server with Sieve."""

    name = "Dovecot LMTP + Sieve"

    @contextmanager
    def running(self) -> Iterator[Side]:
        """See Side."""
        process = subprocess.Popen(
            ["/usr/sbin/dovecot", "-F", "-c", str(self._config)], stdin=subprocess.DEVNULL, env={"PATH": _PATH}
        )
        try:
            wait_for(self.socket, process)
            self.residents = Resident(process.pid, children=True)
            yield self
        finally:
            process.terminate()
            process.wait(30)


class _Ours:
    """What our three doors share."""

    def configure(self, home: Path, setting: Setting) -> Path:
        """Write the site's configuration, every table that a toaster needs."""
        scanners = "".join(
            f'[{name}]\naddress = "{address}"\n'
            for name, address in (("clamd", setting.clamd), ("spamd", setting.spamd))
            if address
        )
        path = home / "site.toml"
        path.write_text(
            f'maildir = "Maildir"\n{scanners}[log]\nto = "{home}/log"\n'
            f'[service]\nsocket = "{home}/sock"\nlmtp = ["unix:{home}/lmtp"]\nmetrics = ["unix:{home}/metrics"]\n'
            f'messages = 50\nbytes = "2 GiB"\n[users]\nmaildir = "{home}/{{user}}/Maildir"\n'
        )
        for user in home.glob("u*"):
            (user / "mailfilter.toml").write_text(
                "".join(
                    f'[[rule]]\nname = "rule {number}"\nfile = "Folder{number % 10}"\n'
                    f'when = {{ subject = {{ regex = "^nothing {number} here$" }} }}\n'
                    for number in range(setting.rules)
                )
            )
        return path


class OneShot(_Ours, CommandSide):
    """`deliver` without a service."""

    name = "deliver, one-shot"
    service = "/nonexistent"

    def __init__(self, home: Path, setting: Setting, prefix: Path) -> None:
        super().__init__(home, setting)
        self._prefix = prefix
        self.config = self.configure(home, setting)

    def command(self, _user: Path) -> Sequence[str]:
        """See CommandSide."""
        return (str(self._prefix / "bin" / "deliver"),)

    def environment(self, user: Path) -> dict[str, str]:
        """See CommandSide; no extension, for LOCAL is the user alone."""
        more = {"DELIVER_CONFIG": str(self.config), "DELIVER_SOCKET": self.service, "EXT": ""}
        return super().environment(user) | more


class Service(OneShot):
    """`deliver` as the client of `deliver serve`."""

    name = "deliver, service"

    @contextmanager
    def running(self) -> Iterator[Side]:
        """See Side."""
        self.service = str(self.home / "sock")
        with serving(self._prefix, self.config, self.home / "lmtp") as self.residents:
            yield self


class Lmtp(_Ours, LmtpSide):
    """`deliver serve` by LMTP."""

    name = "deliver, LMTP"

    def __init__(self, home: Path, setting: Setting, prefix: Path) -> None:
        super().__init__(home, setting)
        self._prefix = prefix
        self.config = self.configure(home, setting)
        self.socket = home / "lmtp"

    @contextmanager
    def running(self) -> Iterator[Side]:
        """See Side."""
        with serving(self._prefix, self.config, self.socket) as self.residents:
            yield self


@contextmanager
def serving(prefix: Path, config: Path, socket_path: Path) -> Iterator[Resident]:
    """Run `deliver serve`."""
    process = subprocess.Popen(
        [str(prefix / "bin" / "deliver"), "serve", "--config", str(config)], cwd="/", stdin=subprocess.DEVNULL
    )
    try:
        wait_for(socket_path, process)
        yield Resident(process.pid)
    finally:
        process.terminate()
        process.wait(60)


class Conversation:
    """An LMTP client's side of one connection, with PIPELINING as far as the protocol lets it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._replies = connection.makefile("rb")
        self._expect(b"220")
        connection.sendall(b"LHLO mx.example.org\r\n")
        self._expect(b"250")

    def send(self, wire: Sequence[bytes], recipients: Sequence[str]) -> None:
        """Give one message to all of them; RuntimeError where anybody's was not taken."""
        commands = [b"MAIL FROM:<friend@example.net>\r\n"]
        commands += [b"RCPT TO:<%s>\r\n" % recipient.encode() for recipient in recipients]
        self._connection.sendall(b"".join(commands) + b"DATA\r\n")
        for _ in commands:
            self._expect(b"250")
        self._expect(b"354")
        for part in wire:
            self._connection.sendall(part)
        for _ in recipients:
            self._expect(b"250")

    def _expect(self, code: bytes) -> None:
        while line := self._replies.readline():
            if line[3:4] != b"-":
                break
        if not line.startswith(code):
            raise RuntimeError(f"LMTP: {code!r} was expected, not {line!r}")


@contextmanager
def lmtp(path: Path) -> Iterator[Conversation]:
    """A conversation with the LMTP server at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(LMTP_PATIENCE)
        connection.connect(str(path))
        yield Conversation(connection)
        with suppress(OSError):
            connection.sendall(b"QUIT\r\n")


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until somebody listens at the socket."""

    def listening() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(OSError):
            probe.connect(str(path))
            return True
        return False

    servers.wait_for(listening)


def missing() -> dict[type[Side], str]:
    """The sides that cannot be measured here, and the Debian package that each needs."""
    needed: tuple[tuple[type[Side], str, str], ...] = (
        (Chain, "/usr/bin/maildrop", "maildrop"),
        (Chain, "/usr/bin/deliverquota", "courier-base"),
        (Chain, "/usr/bin/clamdscan", "clamdscan"),
        (Chain, "/usr/bin/spamc", "spamc"),
        (Procmail, "/usr/bin/procmail", "procmail"),
        (DovecotLda, LDA, "dovecot-core"),
        (DovecotLda, "/usr/bin/sievec", "dovecot-sieve"),
        (DovecotLmtp, "/usr/lib/dovecot/lmtp", "dovecot-lmtpd"),
        (DovecotLmtp, "/usr/bin/sievec", "dovecot-sieve"),
    )
    return {side: package for side, program, package in needed if not os.path.exists(program)}


@contextmanager
def all_sides(directory: Path, prefix: Path, setting: Setting, kinds: Sequence[type[Side]]) -> Iterator[list[Side]]:
    """Make those sides, below ``directory``, and start what has to run."""
    directory.mkdir()
    absent = missing()
    with ExitStack() as stack:
        sides: list[Side] = []
        for kind in kinds:
            if kind in absent:
                continue
            home = directory / kind.__name__.lower()
            side = kind(home, setting, prefix) if issubclass(kind, OneShot | Lmtp) else kind(home, setting)
            sides.append(stack.enter_context(side.running()))
        yield sides
    shutil.rmtree(directory)


def _path(address: str) -> str:
    return address.removeprefix("unix:")


def _name(uid: int) -> tuple[str, str]:
    return pwd.getpwuid(uid).pw_name, grp.getgrgid(os.getegid()).gr_name


_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
