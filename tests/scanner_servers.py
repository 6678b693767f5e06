"""Real scanners beside clamd and spamd, private to the tests: rspamd, and c-icap with its echo and virus services.

As in ``servers``: context managers, everything below the given directory, gone afterwards.
"""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import servers
from scanned import EICAR

RSPAMD = Path("/etc/rspamd/rspamd.conf")
# Modules that ask the network; their defaults would make every scan wait for name servers.
_ASKING = "rbl surbl spf dkim dmarc arc fuzzy_check asn mx_check dkim_signing rspamd_update phishing hfilter"
_C_ICAP_MODULES = "/usr/lib/*/c_icap"
_PATIENCE = 2.0  # seconds for an answer to a ping
_STARTING = 60.0  # seconds


def clam_database(directory: Path) -> Path:
    """A directory with one signature, EICAR's, for clamscan --database (see servers.clamd for the format)."""
    database = directory / "database"
    database.mkdir()
    (database / "test.ndb").write_text(f"Eicar-Test-Signature:0:*:{EICAR.hex()}\n")
    return database


@contextmanager
def rspamd(directory: Path) -> Iterator[servers.Server]:
    """An rspamd with Debian's rules, without network and redis."""
    program = servers.needs("rspamd")
    home = servers._home(directory, "rspamd")
    path = home / "s"
    override = home / "override.d"
    override.mkdir()
    files = {
        "worker-normal.inc": f'bind_socket = "{path} mode=0666";\ncount = 1;\n',
        # No name server answers; and what it would compile at its start, half a minute long, is not what is tested.
        "options.inc": 'dns { nameserver = ["127.0.0.1:9"]; timeout = 0.05s; retransmits = 1; }\n'
        f'disable_hyperscan = true;\nurl_tld = "{home}/tld";\n',
        "logging.inc": 'type = "console";\nlevel = "warning";\n',
        **dict.fromkeys([f"worker-{name}.inc" for name in ("controller", "proxy", "fuzzy")], "enabled = false;\n"),
        **dict.fromkeys([f"{name}.conf" for name in _ASKING.split()], "enabled = false;\n"),
    }
    (home / "tld").write_text("com\norg\n")
    for name, text in files.items():
        (override / name).write_text(text)
    # --insecure: as nobody it has no other user to change to.
    command = [program, "--no-fork", "--insecure", f"--config={RSPAMD}"]
    command += [f"--var={name}={home}" for name in ("DBDIR", "RUNDIR", "LOGDIR", "LOCAL_CONFDIR")]
    ping = (b"GET /ping HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK")
    with _running(command, home, str(path), *ping) as server:
        yield server


@contextmanager
def c_icap(directory: Path, clamd: str) -> Iterator[servers.Server]:
    """A c-icap with the services "echo" and "avscan"; that one asks the clamd at the address ``clamd``."""
    program = servers.needs("c-icap")
    modules = next(iter(Path("/").glob(f"{_C_ICAP_MODULES[1:]}/virus_scan.so")), None)
    if modules is None:
        servers.needs("c-icap's virus_scan")
        raise RuntimeError("unreachable")
    home = servers._home(directory, "c-icap")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = [
        f"PidFile {home}/pid",
        f"CommandsSocket {home}/control",
        "StartServers 1",
        "MaxServers 1",
        "ThreadsPerChild 5",
        f"Port 127.0.0.1:{port}",
        f"TmpDir {home}",
        f"ModulesDir {modules.parent}",
        f"ServicesDir {modules.parent}",
        "LoadMagicFile /etc/c-icap/c-icap.magic",
        "TemplateDir /usr/share/c_icap/templates/",
        f"ServerLog {home}/server.log",
        f"AccessLog {home}/access.log",
        "Service echo srv_echo.so",
        "Module common clamd_mod.so",
        f"clamd_mod.ClamdSocket {clamd.removeprefix('unix:')}",
        "Service antivirus_module virus_scan.so",
        "ServiceAlias avscan virus_scan?allow204=on&sizelimit=off&mode=simple",
        "virus_scan.ScanFileTypes TEXT DATA EXECUTABLE ARCHIVE",
        "virus_scan.MaxObjectSize 5M",
        "virus_scan.DefaultEngine clamd",
    ]
    configuration = home / "c-icap.conf"
    configuration.write_text("".join(f"{line}\n" for line in settings))
    options = b"OPTIONS icap://localhost/avscan ICAP/1.0\r\nHost: localhost\r\n\r\n"
    command = [program, "-N", "-D", "-f", str(configuration)]
    with _running(command, home, ("127.0.0.1", port), options, b"ICAP/1.0 200") as server:
        yield server


@contextmanager
def _running(
    command: list[str], home: Path, target: str | tuple[str, int], ping: bytes, pong: bytes
) -> Iterator[servers.Server]:
    """As servers._running, for what listens before it answers and forgets who has come meanwhile."""
    log = home / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            **servers.unprivileged(),
        )

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{command!r} did not start:\n{log.read_text(errors='replace')[-2000:]}")
        family = socket.AF_UNIX if isinstance(target, str) else socket.AF_INET
        with suppress(OSError), socket.socket(family) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect(target)
            connection.sendall(ping)
            return connection.recv(len(pong), socket.MSG_WAITALL) == pong
        return False

    try:
        servers.wait_for(answers, _STARTING)
        address = f"unix:{target}" if isinstance(target, str) else f"tcp:{target[0]}:{target[1]}"
        yield servers.Server(address, process, log)
    finally:
        servers._stop(process)
