"""The main job through the installed command: a process of its own, an ordinary user, real clamd and spamd."""

import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import main_job
import pytest
import servers
from installed import install_once  # noqa: F401 - the fixture `installed`
from main_job import Answer, Case, Home

Make = Callable[..., Home]
ONE_LINE_TEMPORARY = b"4."


@pytest.fixture
def make_one(
    scratch: Path, installed: Path, clamd_server: servers.Server, spamd_server: servers.Server
) -> Iterator[Callable[..., Home]]:
    """Make a home with the example configuration, or another, for a way in."""
    homes: list[Home] = []

    def make(way: str, configuration: str | None = None, *, quota: str = "") -> Home:
        example = main_job.example_configuration(clamd_server.address, spamd_server.address, scratch / "log")
        text = example if configuration is None else configuration
        homes.append(Home(scratch, installed, text, quota=quota, service=way == "service", lmtp=way == "lmtp"))
        return homes[-1]

    yield make
    for home in homes:
        home.stop()


@pytest.fixture(params=["alone", "service", "lmtp"])
def make_home(request: pytest.FixtureRequest, make_one: Callable[..., Home]) -> Make:
    """By the command, with and without a service, and by LMTP the same must happen."""
    return functools.partial(make_one, request.param)


@pytest.fixture(params=["alone", "service"])
def make_commanded_home(request: pytest.FixtureRequest, make_one: Callable[..., Home]) -> Make:
    """For what LMTP has no words for: options, environment, a working directory, a file on standard input."""
    return functools.partial(make_one, request.param)


@pytest.fixture
def make_lone_home(scratch: Path, installed: Path) -> Make:
    """Make a home without a service: what is measured or limited is the delivering process itself."""
    return lambda configuration, **more: Home(scratch, installed, configuration, **more)


def assert_nothing_half_done(home: Home) -> None:
    """No partial message anywhere, nothing left in tmp."""
    assert list((home.maildir / "tmp").iterdir()) == []
    quarantine = home.maildir / "deliver" / "quarantine" / "tmp"
    assert not quarantine.exists() or list(quarantine.iterdir()) == []


def assert_temporary(answer: Answer) -> None:
    """75, one public line with its status code in front and behind, silence on standard error."""
    assert answer.code == 75
    assert answer.stdout.count(b"\n") == 1
    assert answer.stdout.startswith(b"4."), answer.stdout
    code = answer.stdout.split()[0].decode()
    assert answer.stdout.endswith(f"(#{code})\n".encode())
    assert b"/" not in answer.stdout
    assert answer.stderr == b""


@pytest.mark.parametrize("case", main_job.cases(), ids=lambda case: case.name.replace(" ", "-"))
@pytest.mark.parametrize(("stdin", "sigchld"), [("file", "blocked"), ("pipe", "ignored")])
def test_the_dozen(make_home: Make, case: Case, stdin: str, sigchld: str) -> None:
    """Each message of the demo ends where the issue says."""
    home = make_home(quota=case.quota)
    environment = home.environment()
    answer = home.deliver(
        case.on_top(environment) + case.message, environment=environment, stdin=stdin, sigchld=sigchld
    )
    assert (answer.code, home.where()) == (case.code, case.where), home.logged()
    assert answer.stderr == b""
    assert (answer.stdout == b"") is (case.code == 0)
    assert_nothing_half_done(home)
    record = home.logged()[-1]
    assert record["recipient"] == main_job.RECIPIENT
    assert record["exit"] == case.code


def test_over_quota_says_so_to_the_sender(make_home: Make) -> None:
    """The line of design.md section 2: Postfix reads its front, qmail's bounce its end."""
    home = make_home(quota="2000S,1000C\n        1900            1\n")
    answer = home.deliver(main_job.message("more", b"x" * 500 + b"\n"))
    assert answer.stdout == b"5.2.2 Mailbox is full (#5.2.2)\n"
    (warning,) = home.messages()
    assert main_job.is_warning(warning)
    assert b"\n\nYour mailbox is nearly full." in warning


def test_the_stored_message_has_our_lines_and_not_the_forged(make_home: Make) -> None:
    """Return-Path and Delivered-To first, the scanners' own results, the message byte for byte behind."""
    home = make_home()
    content = main_job.message("trust me", headers=b"X-Spam-Flag: YES\nX-Virus-Status: Clean (really)\n")
    assert home.deliver(content).code == 0
    (stored,) = home.messages()
    lines = stored.split(b"\n")
    assert lines[:2] == [b"Return-Path: <friend@example.net>", b"Delivered-To: you@example.org"]
    assert b"X-Virus-Status: Clean" in lines
    assert sum(line.startswith(b"X-Virus-Status") for line in lines) == 1
    assert b"X-Spam-Flag: YES" not in lines
    assert sum(line.startswith(b"X-Spam-Status: No, score=") for line in lines) == 1
    assert stored.endswith(content.replace(b"X-Spam-Flag: YES\nX-Virus-Status: Clean (really)\n", b""))


def test_where_a_rule_asks_for_dkim_a_line_tells_what_came_of_it(make_home: Make) -> None:
    """RFC 8601, under our name; one that arrives under it is a forgery."""
    home = make_home("[authentication]\nname = 'us.example'\n[[rule]]\nflag = 'seen'\n[rule.when]\ndkim = 'pass'\n")
    forged = b"Authentication-Results: us.example; dkim=pass header.d=bank.example\n"
    assert home.deliver(main_job.message("x", headers=forged)).code == 0
    (stored,) = home.messages()
    assert stored.count(b"Authentication-Results") == 1
    assert b"\nAuthentication-Results: us.example;\n\tdkim=none\n" in stored


def test_the_name_tells_the_exact_size(make_home: Make) -> None:
    """Dovecot drops a client for ever where ,S= is wrong."""
    home = make_home()
    assert home.deliver(main_job.message("size")).code == 0
    (path,) = (home.maildir / "new").iterdir()
    assert path.name.endswith(f",S={path.stat().st_size}")
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_spam_folder_is_made_and_subscribed_at_the_first_spam(make_home: Make) -> None:
    """Not before; for Courier and for Dovecot; with maildirfolder, by which Courier finds the quota."""
    home = make_home()
    assert home.deliver(main_job.message("ham")).code == 0
    assert home.folders() == []
    assert home.deliver(main_job.MODEST_SPAM).code == 0
    assert home.folders() == ["Spam"]
    assert (home.maildir / ".Spam" / "maildirfolder").exists()
    assert (home.maildir / "courierimapsubscribed").read_bytes() == b"INBOX.Spam\n"
    assert (home.maildir / "subscriptions").read_bytes() == b"V\t2\n\nSpam\n"
    (stored,) = home.messages("Spam")
    assert b"\nX-Spam-Flag: YES\n" in stored


@pytest.mark.parametrize("broken", ["subscriptions", "courierimapsubscribed"])
def test_what_cannot_be_noted_is_in_the_log(make_home: Make, broken: str) -> None:
    """Bad input 60: the message is stored, and somebody can find out why its folder is not shown."""
    home = make_home("[quota]\nlimit = '100 MB'\n[log]\nto = 'LOG'\n[[rule]]\nfile = 'New'\n")
    home.config.write_text(home.config.read_text().replace("LOG", str(home.log)))
    (home.maildir / broken).mkdir()
    main_job.own(home.path)
    assert home.deliver(main_job.message("x")).code == 0
    assert home.where() == "New"
    assert home.logged()[-1].get("problems", "").startswith(f"{broken}: ")


def test_what_is_held_can_be_released_by_hand(make_home: Make) -> None:
    """The file is the message, the envelope says why and where it was going, and neither is anybody else's business."""
    home = make_home()
    virus = main_job.message("a file", main_job.EICAR + b"\n")
    assert home.deliver(virus).code == 0
    (held,) = home.held()
    body = home.maildir / "deliver" / "quarantine" / held["body"]
    assert body.read_bytes() == b"Return-Path: <friend@example.net>\n" + virus
    assert body.stat().st_mode & 0o777 == 0o600
    wanted = {"recipient": "you@example.org", "sender": "friend@example.net", "subject": "a file", "folder": "INBOX"}
    assert wanted.items() <= held.items()
    assert held["maildir"] == str(home.maildir)
    assert "Eicar" in held["reason"]


def test_one_body_serves_many_recipients(make_home: Make, scratch: Path) -> None:
    """In a quarantine for the site the same message for two people is one file with two envelopes."""
    home = make_home()
    text = home.config.read_text().replace("{maildir}/deliver/quarantine", str(scratch / "held"))
    home.config.write_text(text)
    virus = main_job.message("a file", main_job.EICAR + b"\n")
    for recipient in ("one@example.org", "two@example.org"):
        assert home.deliver(virus, environment=home.environment(recipient=recipient)).code == 0
    assert len(list((scratch / "held" / "messages").iterdir())) == 1
    assert len(list((scratch / "held" / "held").iterdir())) == 2


def test_under_vpopmail_the_recipient_is_the_mailbox(make_commanded_home: Make) -> None:
    """RECIPIENT is DOM-user@DOM, HOME the domain's directory; the working directory is the user's."""
    home = make_commanded_home()
    environment = home.environment(
        recipient="example.org-you-Lists@example.org", EXT="you-Lists", HOME="/nonexistent", HOST="example.org"
    )
    (home.maildir / ".Lists").mkdir()
    for part in ("tmp", "new", "cur"):
        (home.maildir / ".Lists" / part).mkdir()
    main_job.own(home.path)
    assert home.deliver(main_job.message("x"), environment=environment).code == 0
    assert home.logged()[-1]["recipient"] == "you-Lists@example.org"
    assert home.where() == "Lists"
    assert home.deliver(main_job.message("v", main_job.EICAR), environment=environment).code == 0
    assert home.held()[0]["recipient"] == "you-Lists@example.org"


def test_an_extension_never_makes_a_folder(make_commanded_home: Make) -> None:
    """Anybody can write to you-Anything@."""
    home = make_commanded_home()
    for extension in ("Nope", "../x", "..", "a/b", "cur", "&", "\udcff", ".Spam"):
        assert home.deliver(main_job.message("x"), environment=home.environment(EXT=extension)).code == 0
    assert home.folders() == []
    assert len(home.messages()) == 8


NO_CONFIGURATION = b"4.3.5 Mail filter is not configured (#4.3.5)\n"


@pytest.mark.parametrize("text", ["", "no toml", "[clam]\naddress = 1\n", "[spam]\ndelete-above = 'a lot'\n", None])
def test_without_a_good_configuration_nothing_is_lost(make_commanded_home: Make, text: str | None) -> None:
    """Empty, wrong, or not there at all."""
    home = make_commanded_home()
    if text is None:
        home.config.unlink()
    else:
        home.config.write_text(text)
    answer = home.deliver(main_job.message("x"), stdin="pipe")
    assert_temporary(answer)
    assert answer.stdout == NO_CONFIGURATION
    assert home.where() == ""


def test_an_unreadable_configuration_is_none(make_commanded_home: Make) -> None:
    """As an ordinary user; root can read everything, so a directory stands in."""
    home = make_commanded_home()
    home.config.unlink()
    home.config.mkdir()
    assert home.deliver(main_job.message("x")).stdout == NO_CONFIGURATION


def test_plain_needs_no_configuration(make_commanded_home: Make) -> None:
    """--plain delivers without scanners and rules."""
    home = make_commanded_home()
    home.config.unlink()
    assert home.deliver(main_job.EICAR + b"\n", "--plain").code == 0
    (stored,) = home.messages()
    assert stored == b"Return-Path: <friend@example.net>\nDelivered-To: you@example.org\n" + main_job.EICAR + b"\n"


@pytest.mark.parametrize(
    "arguments", [("--what",), ("--sender",), ("no-address",), ("a@b", "c@d"), ("--recipient", "a@b", "c@d"), ("-x",), ("--stop-after-spam=1",)]
)
def test_a_slip_on_the_command_line_bounces_nothing(make_commanded_home: Make, arguments: tuple[str, ...]) -> None:
    """An unknown option is a slip of the admin's, not the sender's fault."""
    home = make_commanded_home()
    answer = home.deliver(main_job.message("x" * 100_000), *arguments, stdin="pipe")
    assert_temporary(answer)
    assert home.where() == ""


@pytest.mark.parametrize("written", ["Maildir/", "Maildir/.", "./Maildir"])
def test_the_users_file_lies_beside_the_maildir_however_it_is_written(make_commanded_home: Make, written: str) -> None:
    """A trailing slash must not move it into the Maildir."""
    home = make_commanded_home()
    (home.path / "mailfilter.toml").write_text('[[rule]]\nfile = "Mine"\n')
    main_job.own(home.path)
    assert home.deliver(main_job.message("x"), "--maildir", written).code == 0
    assert home.where() == "Mine"


def test_without_a_recipient_it_is_tried_again(make_commanded_home: Make) -> None:
    """Bad input 30, as design.md reads it."""
    home = make_commanded_home()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home.path), "DELIVER_CONFIG": str(home.config)}
    assert_temporary(home.deliver(main_job.message("x"), environment=environment))
    assert home.deliver(main_job.message("x"), "you@example.org", environment=environment).code == 0
    assert home.deliver(main_job.message("x"), "--recipient", "you@example.org", environment=environment).code == 0
    assert len(home.messages()) == 2


def test_the_maildir_is_not_made_out_of_nothing(make_home: Make) -> None:
    """It may be an unmounted disk."""
    home = make_home()
    home.maildir.rename(home.path / "elsewhere")
    assert_temporary(home.deliver(main_job.message("x")))
    assert not home.maildir.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="the owner can always write; needs root to give the Maildir away")
def test_an_unwritable_maildir_is_tried_again(make_home: Make) -> None:
    """Nothing half written."""
    home = make_home()
    for path in (home.maildir / "tmp", home.maildir / "new"):
        os.chown(path, 0, 0)
        path.chmod(0o755)
    assert_temporary(home.deliver(main_job.message("x")))
    assert home.where() == ""


def test_a_full_disk_is_tried_again(make_lone_home: Make) -> None:
    """RLIMIT_FSIZE stands in for it here (EFBIG); a really full file system is the fault tests'."""
    home = make_lone_home("maildir = 'Maildir'\n")
    command = ["prlimit", "--fsize=2000", str(home._prefix / "bin" / "deliver")]
    done = subprocess.run(
        command,
        input=main_job.message("x", b"y" * 5000),
        cwd=home.path,
        env=home.environment(),
        capture_output=True,
        check=False,
        **servers.unprivileged(),
    )
    assert_temporary(Answer(done.returncode, done.stdout, done.stderr, 0))
    assert home.where() == ""
    assert_nothing_half_done(home)


WRONG_USER_FILES = {
    "no toml": ("[[rule]\n", 0o600),
    "unknown condition": ('[[rule]]\nfile = "A"\n[rule.when]\nsbject = "x"\n', 0o600),
    "a site's setting": ("[clamd]\n", 0o600),
    "writable by others": ('[[rule]]\nfile = "A"\n', 0o622),
    "too large": ("#" * (256 * 1024 + 1), 0o600),
}


@pytest.mark.parametrize("name", WRONG_USER_FILES)
def test_a_wrong_user_file_costs_only_the_users_rules(make_home: Make, name: str) -> None:
    """The mail arrives, with a header and a log line that say what is wrong."""
    home = make_home()
    text, mode = WRONG_USER_FILES[name]
    path = home.path / "mailfilter.toml"
    path.write_text(text)
    path.chmod(mode)
    main_job.own(home.path)
    path.chmod(mode)
    assert home.deliver(main_job.message("x")).code == 0
    (stored,) = home.messages()
    assert stored.count(b"\nX-Filter-Error: mailfilter.toml: ") == 1
    assert any(record.get("level") == "warning" and "mailfilter.toml" in record["detail"] for record in home.logged())


def test_a_users_own_rules_are_applied(make_home: Make) -> None:
    """After the site's."""
    home = make_home()
    (home.path / "mailfilter.toml").write_text('[[rule]]\nfile = "Friends"\n[rule.when]\nfrom = "friend@*"\n')
    main_job.own(home.path)
    assert home.deliver(main_job.message("x")).code == 0
    assert home.where() == "Friends"


def test_stop_after_spam_is_99_only_under_qmail(make_commanded_home: Make) -> None:
    """99 bounces elsewhere."""
    home = make_commanded_home()
    assert home.deliver(main_job.MODEST_SPAM, "--stop-after-spam").code == 99
    assert home.deliver(main_job.message("x"), "--stop-after-spam").code == 0
    elsewhere = {name: value for name, value in home.environment().items() if name != "UFLINE"}
    assert home.deliver(main_job.MODEST_SPAM, "--stop-after-spam", environment=elsewhere).code == 0


def test_fifty_at_once(make_commanded_home: Make) -> None:
    """All there, and the quota file right."""
    home = make_commanded_home("[quota]\nlimit = '100 MB'\n", quota="100000000S\n           0            0\n")
    content = main_job.message("x", b"y" * 1000 + b"\n")
    queue = home.path / "queue"
    queue.write_bytes(content)
    if home.socket:
        home.serve()
    command = [str(home._prefix / "bin" / "deliver")]
    running = []
    for _ in range(50):
        with queue.open("rb") as file:
            running.append(
                subprocess.Popen(
                    command,
                    stdin=file,
                    cwd=home.path,
                    env=home.environment(),
                    stdout=subprocess.DEVNULL,
                    **servers.unprivileged(),
                )
            )
    assert [process.wait(120) for process in running] == [0] * 50
    stored = home.messages()
    assert len(stored) == 50
    rows = [line.split() for line in (home.maildir / "maildirsize").read_text().splitlines()[1:]]
    assert [sum(int(row[0]) for row in rows), sum(int(row[1]) for row in rows)] == [sum(map(len, stored)), 50]


def test_a_quarantine_that_cannot_be_written_is_tried_again(make_home: Make) -> None:
    """A virus is never dropped, and never delivered, because the quarantine failed."""
    home = make_home()
    (home.maildir / "deliver").write_text("a file where the directory belongs")
    main_job.own(home.path)
    assert_temporary(home.deliver(main_job.message("a file", main_job.EICAR + b"\n")))
    assert home.where() == ""


def test_a_200_mb_message_needs_no_memory_for_its_size(make_lone_home: Make, scratch: Path) -> None:
    """Less than 60 MB above the bare interpreter, from a pipe; not parsed whole."""
    home = make_lone_home(f"[clamd]\naddress='unix:/nowhere'\n[log]\nto = '{scratch / 'log'}'\n")
    head = main_job.message("large", b"")
    program = home._prefix / "lib" / "deliver" / "bin" / "python"
    measure = (
        "import resource, subprocess, sys; r = subprocess.run(sys.argv[1:]).returncode; "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, r)"
    )

    feed = (
        "import sys\nsys.stdout.buffer.write(sys.argv[1].encode())\n"
        "for _ in range(200): sys.stdout.buffer.write(b'x' * 999_999 + b'\\n')"
    )

    def peak(command: list[str]) -> tuple[int, int]:
        feeder = subprocess.Popen(
            [
                str(program),
                "-I",
                "-c",
                feed,
                head.decode(),
            ],
            stdout=subprocess.PIPE,
        )
        done = subprocess.run(
            [str(program), "-I", "-c", measure, *command],
            stdin=feeder.stdout,
            cwd=home.path,
            env=home.environment(),
            stdout=subprocess.PIPE,
            check=True,
            **servers.unprivileged(),
        )
        feeder.stdout.close()  # type: ignore[union-attr]
        feeder.wait()
        kilobytes, code = done.stdout.split()[-2:]
        return int(kilobytes), int(code)

    bare, _ = peak([str(program), "-I", "-c", "import sys\nwhile sys.stdin.buffer.read(65536): pass"])
    ours, code = peak([str(home._prefix / "bin" / "deliver")])
    assert code == 0
    (path,) = (home.maildir / "new").iterdir()
    assert path.stat().st_size > 200_000_000
    assert ours - bare < 60_000


REAL_MAILDROP = """#!/bin/sh
cat >{0}
echo "$@" >>{0}
"""


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        ((), True),
        (("/etc/mailfilter",), True),
        (("-V", "3", "-w", "90", "-A", "Content-Filter: maildrop-toaster", "/etc/../etc/mailfilter"), True),
        (("-f", "other@example.net", "/etc/mailfilter", "you@example.org"), True),
        # Postfix's MAILDROP_README and panels: behind -d stand $1, $2 and so on (maildrop(1)), and no filter file.
        (("-d", "you@example.org", "lists", "friend@example.net", "example.org"), True),
        (("/home/you/.mailfilter",), False),
    ],
)
def test_called_as_maildrop(make_commanded_home: Make, scratch: Path, arguments: tuple[str, ...], *, ours: bool) -> None:
    """Its options are understood; a user's own filter is the real maildrop's."""
    home = make_commanded_home()
    program = scratch / "maildrop.real"
    program.write_text(REAL_MAILDROP.format(scratch / "said"))
    program.chmod(0o755)
    text = home.config.read_text().replace("replaces = []", 'replaces = ["/etc/mailfilter"]')
    home.config.write_text(text.replace('program = ""', f'program = "{program}"'))
    link = scratch / "maildrop"
    link.symlink_to(home._prefix / "bin" / "deliver")
    answer = home.deliver(main_job.message("x"), *arguments, program=str(link))
    assert (answer.code, answer.stderr) == (0, b"")
    assert len(home.messages()) == ours
    assert (scratch / "said").exists() is not ours
    if "-A" in arguments:
        assert b"\nContent-Filter: maildrop-toaster\n" in home.messages()[0]
    if ours:
        assert home.logged()[-1]["recipient"] == "you@example.org"
    if "-f" in arguments:
        assert home.logged()[-1]["sender"] == "other@example.net"
    if not ours:
        assert (scratch / "said").read_bytes() == main_job.message("x") + b"/home/you/.mailfilter\n"


def test_a_filter_of_maildrops_without_maildrop_waits(make_commanded_home: Make, scratch: Path) -> None:
    """What we cannot run we must not skip."""
    home = make_commanded_home()
    link = scratch / "maildrop"
    link.symlink_to(home._prefix / "bin" / "deliver")
    assert_temporary(home.deliver(main_job.message("x"), ".mailfilter", program=str(link)))
    assert_temporary(home.deliver(main_job.message("x"), "-v", program=str(link)))


QUEUE = """#!/bin/sh
cat >{0}/queued
exec cat <&1 >>{0}/queued
"""


def test_a_rule_sends_on_through_qmails_queue(make_commanded_home: Make, scratch: Path) -> None:
    """With our Delivered-To, by which a loop is found, and the sender it came with."""
    home = make_commanded_home()
    programs = scratch / "bin"
    programs.mkdir()
    (programs / "qmail-queue").write_text(QUEUE.format(scratch))
    (programs / "qmail-queue").chmod(0o755)
    (home.path / "mailfilter.toml").write_text('[[rule]]\nforward = "else@example.com"\n')
    main_job.own(home.path)
    content = main_job.message("x")
    answer = home.deliver(content, environment=home.environment(PATH=f"{programs}:/usr/bin:/bin"))
    assert (answer.code, home.where()) == (0, ""), home.logged()
    queued = (scratch / "queued").read_bytes()
    assert queued.startswith(b"Delivered-To: you@example.org\n")
    assert queued.endswith(content + b"Ffriend@example.net\0Telse@example.com\0\0")
    (programs / "qmail-queue").write_text("#!/bin/sh\nexit 100\n")
    assert_temporary(home.deliver(content, environment=home.environment(PATH=f"{programs}:/usr/bin:/bin")))


def test_a_loop_check_can_be_switched_off(make_commanded_home: Make) -> None:
    """fetchmail and getmail fetch mail that has been delivered to the same address already."""
    home = make_commanded_home()
    looped = main_job.message("x", headers=b"Delivered-To: you@example.org\n")
    answer = home.deliver(looped)
    assert (answer.code, answer.stdout[:6]) == (100, b"5.4.6 ")
    said = home.logged()[-1]
    assert (said["actions"], said["reason"], said["exit"], said["verdicts"]) == (
        ["bounce"],
        "the message has been delivered here before",
        100,
        [],
    )
    assert home.deliver(looped, "--no-loop-check").code == 0
    assert len(home.messages()) == 1
