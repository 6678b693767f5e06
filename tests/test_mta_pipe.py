"""The command as real mail servers call it: Postfix's pipe(8) and local(8), and Exim's pipe transport.

Their settings are those of docs/install-postfix.md and docs/install-exim.md, read from there, with other paths.
"""

import os
import pwd
import re
import shutil
import smtplib
import socket
import subprocess
from pathlib import Path

import main_job
import pytest
import servers
from installed import install_once  # noqa: F401 - the fixture `installed`
from main_job import Home
from test_mta_lmtp import (
    EXIM_CONF,
    MAIN_CF,
    MASTER_CF,
    PATIENCE,
    Unpack,
    libraries,
    listens,
    unpack_packages,  # noqa: F401 - the fixture `unpack`
)

DOCS = Path(__file__).parent.parent / "docs"
BODY = b"Hello.\n.\n..\nFrom here\n\n"
MESSAGE = (
    b"From: <friend@example.net>\nTo: <you@example.org>\nSubject: %b\nMessage-ID: <1@example.net>\nX-Filter-Error: forged\n\n"
    + BODY
)


def block(page: str, begin: str) -> str:
    """The indented block of a page from the line that begins so to its end."""
    text = (DOCS / page).read_text()
    found = re.search(rf"(?m)^    {re.escape(begin)}.*\n(?:(?:    .*)?\n)*", text)
    assert found, begin
    return re.sub(r"(?m)^    ", "", found[0])


@pytest.fixture(name="home")
def make_home(scratch: Path, installed: Path) -> Home:
    """You with the folder lists; "full" is over quota, "gone" has no Maildir."""
    scratch.chmod(0o755)
    (scratch / "you").mkdir()
    home = Home(scratch / "you", installed, f'[log]\nto = "{scratch}/you/log"\n')
    for folder in ("you/Maildir/.lists", "full/Maildir"):
        for part in ("tmp", "new", "cur"):
            (scratch / folder / part).mkdir(parents=True)
    (scratch / "full" / "Maildir" / "maildirsize").write_text("2000S\n1999 1\n")
    main_job.own(scratch)
    return home


def check(stored: bytes, sender: bytes) -> None:
    """One Return-Path, at the top, no From_ line, no forged line, and the body as it was."""
    head, _, body = stored.partition(b"\n\n")
    names = [line.partition(b":")[0].lower() for line in head.split(b"\n")]
    assert names[:2] == [b"return-path", b"delivered-to"]
    assert (names.count(b"return-path"), names.count(b"delivered-to"), names.count(b"x-filter-error")) == (1, 1, 0)
    assert head.partition(b"\n")[0].partition(b": ")[2] == b"<" + sender + b">"
    assert b"\nFrom " not in b"\n" + head
    assert body == BODY


@pytest.mark.skipif(os.geteuid() != 0, reason="Postfix's master(8) must be root")
def test_postfix(home: Home, scratch: Path, installed: Path, unpack: Unpack) -> None:
    """Stored, into the folder of the extension, given back, kept for later: as the page says, by pipe(8) and local(8)."""
    root = unpack("postfix")
    path = f"{root}/usr/lib/postfix:{libraries(root)}"
    postfix = scratch / "postfix"
    owner = pwd.getpwnam("mail")
    for name in "active bounce corrupt defer deferred flush hold incoming private saved trace maildrop public".split():
        (postfix / "queue" / name).mkdir(parents=True)
        os.chown(postfix / "queue" / name, owner.pw_uid, 0)
    (postfix / "queue" / "pid").mkdir()
    (postfix / "data").mkdir()
    os.chown(postfix / "data", owner.pw_uid, 0)
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    command = f"{installed}/bin/deliver"
    (postfix / "main.cf").write_text(
        MAIN_CF.format(home=postfix, root=root, owner="mail", group="games", transport="deliver", libraries=path)
        + f"""
mydestination = local.example.org
local_recipient_maps =
mailbox_command = {command} --maildir {home.maildir}
export_environment = TZ LANG DELIVER_CONFIG={home.config} DELIVER_SOCKET=/nonexistent
deliver_destination_recipient_limit = 1
virtual_mailbox_maps = inline:{{ you@example.org=x full@example.org=x gone@example.org=x }}
"""
    )
    service = block("install-postfix.md", "deliver   unix")
    for old, new in (
        ("/usr/local/bin/deliver", command),
        ("vmail:vmail", "nobody:nogroup"),
        ("/var/vmail/${domain}", str(scratch)),
    ):
        assert service.count(old) == 1, old
        service = service.replace(old, new)
    local = "local     unix  -       n       n       -       -       local\n"
    (postfix / "master.cf").write_text(MASTER_CF.format(port=port) + local + service)
    sent = [
        ("friend@example.net", "You@Example.org", b"pipe"),
        ("", "you@example.org", b"null sender"),
        ("friend@example.net", "you+Lists@example.org", b"extension"),
        ("friend@example.net", "nobody@local.example.org", b"local"),
        ("friend@example.net", "full@example.org", b"full"),
        ("friend@example.net", "gone@example.org", b"gone"),
    ]
    log = postfix / "log"
    with subprocess.Popen(
        [root / "usr/lib/postfix/sbin/master", "-c", postfix, "-d"],
        env={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": path},
        cwd="/",
        start_new_session=True,
        stderr=subprocess.PIPE,
    ) as master:
        try:
            servers.wait_for(lambda: listens(port) or master.poll() is not None)
            for sender, recipient, subject in sent:
                with smtplib.SMTP("127.0.0.1", port) as client:
                    client.sendmail(sender, [recipient], (MESSAGE % subject).replace(b"\n", b"\r\n"))
            ours = r"relay=(?:deliver|local).*dsn="
            servers.wait_for(lambda: log.exists() and len(re.findall(ours, log.read_text())) == len(sent), PATIENCE)
        finally:
            master.terminate()
            master.wait(30)
    said = {found[1].lower(): found[0] for found in re.finditer(r"to=<([^>]*)>.*relay=(?:deliver|local).*", log.read_text())}
    assert "dsn=5.2.2, status=bounced (Mailbox is full (#5.2.2)" in said["full@example.org"]
    assert "dsn=4.2.1, status=deferred (Mailbox is not accessible (#4.2.1)" in said["gone@example.org"]
    for recipient in ("you@example.org", "you+lists@example.org", "nobody@local.example.org"):
        assert "status=sent" in said[recipient]
    inbox = {re.search(rb"Subject: (.*)", one)[1]: one for one in home.messages()}  # type: ignore[index]
    assert set(inbox) == {b"pipe", b"null sender", b"local"}
    check(inbox[b"pipe"], b"friend@example.net")
    check(inbox[b"local"], b"friend@example.net")
    check(inbox[b"null sender"], b"")
    (filed,) = home.messages("lists")
    check(filed, b"friend@example.net")
    assert {one["sender"] for one in home.logged() if "sender" in one} == {"friend@example.net", ""}


@pytest.mark.parametrize("settings", ["as documented", "defaults"])
def test_exim(home: Home, scratch: Path, installed: Path, unpack: Unpack, settings: str) -> None:
    """The same; by default Exim puts a From_ line before the message and an empty line behind it."""
    root = unpack("exim4-daemon-light", "libnss-wrapper")
    (wrapper,) = root.glob("usr/lib/*/libnss_wrapper.so")
    directory = scratch / "exim"
    directory.mkdir()
    user = servers.unprivileged()
    uid, gid = user.get("user", os.geteuid()), user.get("group", os.getegid())
    (directory / "passwd").write_text(f"root:x:0:0::/root:/bin/sh\nDebian-exim:x:{uid}:{gid}::/nonexistent:/bin/false\n")
    (directory / "group").write_text(f"root:x:0:\nDebian-exim:x:{gid}:\n")
    mailboxes = directory / "mailboxes"
    mailboxes.write_text("".join(f"{name}@example.org: {scratch}/{name}\n" for name in ("you", "full", "gone")))
    (scratch / "gone").mkdir()
    router = block("install-exim.md", "deliver_virtual:").partition("# transports")[0]
    router = router.replace("/etc/exim4/mailboxes", str(mailboxes))
    transport = block("install-exim.md", "deliver_local:").partition("# transports")[2]
    for old, new in (("/usr/local/bin/deliver", f"{installed}/bin/deliver"), ("deliver_local:", "deliver_virtual:")):
        assert transport.count(old) == 1, old
        transport = transport.replace(old, new)
    if settings == "defaults":
        transport = re.sub(r"(?m)^  (message_|return_path|envelope_to|delivery_date).*\n", "", transport)
    transport += f"  home_directory = $address_data\n  environment = DELIVER_CONFIG={home.config}\n"
    conf = EXIM_CONF.format(home=directory, socket="/nonexistent", port=1, transport="none")
    conf = conf.replace("begin routers\n", f"begin routers\n{router}\n")
    conf = conf.replace("begin transports\n", f"begin transports\n{transport}")
    (directory / "exim.conf").write_text(conf)
    main_job.own(scratch)
    program = Path(shutil.copy(root / "usr/sbin/exim4", directory / "exim4"))
    program.chmod(0o755)  # LD_PRELOAD does not survive a setuid bit (ld.so(8))
    environment = {
        "PATH": "/usr/bin:/bin",
        "LD_LIBRARY_PATH": libraries(root),
        "LD_PRELOAD": str(wrapper),
        "NSS_WRAPPER_PASSWD": str(directory / "passwd"),
        "NSS_WRAPPER_GROUP": str(directory / "group"),
    }
    for sender, recipient, subject in (
        ("friend@example.net", "you@example.org", b"pipe"),
        ("<>", "you@example.org", b"null sender"),
        ("friend@example.net", "full@example.org", b"full"),
        ("friend@example.net", "gone@example.org", b"gone"),
    ):
        subprocess.run(
            [program, "-C", directory / "exim.conf", "-odf", "-oi", "-oee", "-f", sender, "--", recipient],
            input=MESSAGE % subject,
            env=environment,
            cwd="/",
            capture_output=True,
            check=False,
            timeout=PATIENCE,
            **user,
        )
    log = (directory / "mainlog").read_text()
    assert log.count(" => you <you@example.org>") + log.count(" => you@example.org") == 2, log
    assert re.search(r"\*\* full@example.org .* returned 100 from command", log), log
    assert re.search(r"== gone@example.org .* returned 75 \(could mean temporary error\)", log), log
    assert "transport output: 4.2.1 Mailbox is not accessible (#4.2.1)" in log
    inbox = {re.search(rb"Subject: (.*)", one)[1]: one for one in home.messages()}  # type: ignore[index]
    assert set(inbox) == {b"pipe", b"null sender"}
    for subject, sender in ((b"pipe", b"friend@example.net"), (b"null sender", b"")):
        stored = inbox[subject]
        if settings == "defaults":
            assert stored.endswith(b"\n\n\n")  # message_suffix
            stored = stored[:-1]
        else:
            assert b"\nEnvelope-to: you@example.org\n" in stored
        check(stored, sender)
