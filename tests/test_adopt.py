"""Moving in: maildrop's lines become ours and nothing else changes; the way back is byte-identical; ours deliver once."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import main_job
import pytest
import servers
import strace
from click.testing import CliRunner
from installed import install_once  # noqa: F401 - the fixture `installed`
from main_job import Home

from deliver.admin import qmailfile
from deliver.admin.qmailfile import Kind
from deliver.commands import cli
from deliver.commands.adopt import installed as installed_command

TOASTER = "| /usr/local/bin/maildrop /usr/local/etc/mail/mailfilter"
QMAILADMIN = "|preline /usr/local/bin/maildrop /etc/mailfilter"
QMT = "|/var/qmail/bin/preline /usr/bin/maildrop -A 'Content-Filter: maildrop-toaster' /etc/mail/mailfilter"
AUTORESPOND = "| /usr/bin/autorespond 86400 3 /x/vacation/message /x/vacation"


class Tree:
    """A vpopmail domains tree with one domain, a configuration and our command, which is /bin/true."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "domains"
        self.domain = self.root / "example.org"
        self.config = directory / "site.toml"
        self.config.write_text('maildir = "Maildir"\n')
        self.command = directory / "bin" / "deliver"
        self.command.parent.mkdir()
        self.command.symlink_to("/bin/true")
        self.backup = directory / "backup"
        self.domain.mkdir(parents=True)
        self.domain.joinpath(".qmail-default").write_text("| /home/vpopmail/bin/vdelivermail '' delete\n")

    def user(self, name: str, text: str | None, *, mode: int = 0o600) -> Path:
        """A mailbox with that .qmail; its path."""
        home = self.domain / name
        for part in ("tmp", "new", "cur"):
            (home / "Maildir" / part).mkdir(parents=True)
        if text is not None:
            (home / ".qmail").write_text(text)
            (home / ".qmail").chmod(mode)
        return home / ".qmail"

    def words(self, *options: str) -> list[str]:
        """The command line."""
        command = [
            sys.executable,
            "-m",
            "deliver",
            "adopt",
            "--config",
            str(self.config),
            "--command",
            str(self.command),
        ]
        return [*command, *options]

    def adopt(self, *options: str, code: int = 0) -> str:
        """Run it on the tree; what it said."""
        words = self.words("--backup", str(self.backup), *options, str(self.root))
        return run(words, code)

    def undo(self, *options: str, code: int = 0) -> str:
        """Go back."""
        return run(self.words("--undo", str(self.backup), *options), code)

    @property
    def ours(self) -> str:
        """Our line."""
        return f"|{self.command}\n"

    def state(self) -> dict[str, tuple[bytes, int, int, int]]:
        """Every file of the tree with owner and mode."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_file() or path.is_symlink():
                state = path.lstat()
                data = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
                found[str(path.relative_to(self.root))] = (data, state.st_mode, state.st_uid, state.st_gid)
        return found


def run(words: list[str], code: int) -> str:
    if words[1:3] == ["-m", "deliver"]:  # in this process: a hundred starts of Python take a minute
        result = CliRunner().invoke(cli, words[3:], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.output
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        TOASTER,
        f"{TOASTER} ",  # toaster_setup -s allspam ends the line so
        QMAILADMIN,
        "|preline maildrop /etc/maildroprc",
        "|/var/qmail/bin/preline /usr/bin/maildrop /var/qmail/bin/maildrop-filter",
        "|maildrop",
        "|/usr/bin/maildrop -w 90 -V 2 /etc/mailfilter",
    ],
)
def test_the_sites_filter_is_replaced(tree: Tree, line: str) -> None:
    qmail = tree.user("you", f"{line}\n")
    tree.adopt()
    assert qmail.read_text() == tree.ours


def test_every_other_line_stays_in_its_place(tree: Tree) -> None:
    before = f"# mine\n|/usr/bin/notify\n\n&friend@example.net \n{TOASTER}\n&last@example.net"
    qmail = tree.user("you", before)
    said = tree.adopt()
    assert qmail.read_text() == before.replace(f"{TOASTER}\n", tree.ours)
    assert "1 rewritten; 0 left" in said


def test_owner_and_mode_stay(tree: Tree) -> None:
    qmail = tree.user("you", f"{TOASTER}\n", mode=0o644)
    if user := servers.unprivileged():
        os.chown(qmail, user["user"], user["group"])
    before = qmail.stat()
    tree.adopt()
    after = qmail.stat()
    assert qmail.read_text() == tree.ours
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino  # a new file in the old one's place


@pytest.mark.parametrize(
    ("below", "stops"),
    [
        ("", False),
        (AUTORESPOND, True),
        (f"# note\n\n{AUTORESPOND}", True),
        (f"{AUTORESPOND}\n&friend@example.net", False),
        ("|/usr/bin/notify", False),
        ("&friend@example.net", False),
    ],
)
def test_stops_after_spam_only_before_autoresponders(tree: Tree, below: str, stops: bool) -> None:
    qmail = tree.user("you", f"&first@example.net\n{TOASTER}\n{below}\n")
    tree.adopt()
    option = " --stop-after-spam" if stops else ""
    assert qmail.read_text() == f"&first@example.net\n|{tree.command}{option}\n{below}\n"


@pytest.mark.parametrize(
    ("lines", "after"),
    [
        ([TOASTER, TOASTER], ["OURS"]),
        (["OURS", TOASTER], ["OURS"]),
        ([TOASTER, "&a@example.net", "OURS"], ["&a@example.net", "OURS"]),
        ([QMAILADMIN, TOASTER, AUTORESPOND], ["OURS --stop-after-spam", AUTORESPOND]),
    ],
)
def test_two_filters_become_one(tree: Tree, lines: list[str], after: list[str]) -> None:
    ours = tree.ours.strip()
    qmail = tree.user("you", "".join(f"{line.replace('OURS', ours)}\n" for line in lines))
    assert "second deliver" in tree.adopt()
    assert qmail.read_text() == "".join(f"{line.replace('OURS', ours)}\n" for line in after)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"{TOASTER}\n./Maildir/\n", "line 2 delivers as well"),
        (f"{TOASTER}\n|/usr/lib/dovecot/deliver\n", "line 2 delivers as well"),
        (f"{TOASTER}\n|maildrop /etc/mailfilter; true\n", "the shell does more"),
        ("|maildrop /opt/panel/filter\n", "replaces"),
        ("|maildrop -d you\n", "option -d"),
        ("|maildrop -w 80 /etc/mailfilter\n", "warn-at"),
        ("|maildrop ./missing\n", "no filter file"),
        ("|maildrop $FILTER\n", "depends on a variable"),
        ("|maildrop /etc/mailfilter first second\n", "means something to the filter alone"),
        ("| /usr/local/bin/spamc -f | /usr/local/bin/maildrop\n", "[spamd]"),
    ],
)
def test_what_is_not_understood_is_left_and_said(tree: Tree, text: str, why: str) -> None:
    qmail = tree.user("you", text)
    said = tree.adopt()
    assert qmail.read_text() == text
    assert why in said
    assert "example.org/you/.qmail:" in said
    assert not tree.backup.exists()


def test_the_rule_for_a_header_can_be_pasted(tree: Tree) -> None:
    """As it is printed, it is TOML, and then adopt has nothing against the line."""
    tree.user("you", f"{QMT}\n")
    said = tree.adopt().splitlines()
    rule = said[said.index("        [[rule]]") :][:3]
    tree.config.write_text("\n".join(rule))
    assert "1 rewritten" in tree.adopt()


def test_a_header_that_the_configuration_adds_is_no_loss(tree: Tree) -> None:
    tree.config.write_text('[[rule]]\nsees = "all"\nadd-header = { "Content-Filter" = "maildrop-toaster" }\n')
    qmail = tree.user("you", f"{QMT}\n")
    tree.adopt()
    assert qmail.read_text() == tree.ours
    # Not for all mail: a header would be missing.
    tree.config.write_text('[[rule]]\nadd-header = { "Content-Filter" = "maildrop-toaster" }\n')
    other = tree.user("other", f"{QMT}\n")
    tree.adopt()
    assert other.read_text() == f"{QMT}\n"


def test_a_spamc_in_front_is_ours_where_spamd_is_configured(tree: Tree) -> None:
    tree.config.write_text("[spamd]\n")
    plain = tree.user("plain", "| /usr/local/bin/spamc -f | /usr/local/bin/maildrop\n")
    own = tree.user("own", '|spamc -u "$EXT@$HOST" | maildrop\n')
    assert "preferences" in tree.adopt()
    assert plain.read_text() == tree.ours
    assert own.read_text().startswith("|spamc")
    tree.config.write_text('[spamd]\nuser = "{recipient}"\n')
    tree.adopt()
    assert own.read_text() == tree.ours


@pytest.mark.parametrize(
    ("line", "filter_file"),
    [
        ("|maildrop ./.mailfilter", "you/.mailfilter"),
        ("|maildrop $HOME/.mailfilter-x", ".mailfilter-x"),  # vpopmail's HOME is the domain's directory
        ("|maildrop ~/filter", "you/filter"),
        ("|maildrop", "you/.mailfilter"),
        (TOASTER, "you/.mailfilter"),  # the toaster's filter includes these three
        (TOASTER, "you/Maildir/.mailfilter"),
        (TOASTER, "you/Maildir/mailfilter"),
        ("| /var/qmail/bin/preline maildrop ROOT/you/.maildroprc", "you/.maildroprc"),
    ],
)
def test_a_users_own_filter_needs_its_conversion(tree: Tree, line: str, filter_file: str) -> None:
    text = line.replace("ROOT", str(tree.domain)) + "\n"
    qmail = tree.user("you", text)
    (tree.domain / filter_file).write_text('to "Maildir"\n')
    rules = qmail.parent / "mailfilter.toml"
    own = tree.domain / filter_file
    assert f"first deliver convert maildrop {own} -o {rules}\n" in tree.adopt()
    rules.write_text("[[rule]]\nfil = 'A'\n")  # deliver check --user refuses it
    assert "cannot be used" in tree.adopt()
    assert qmail.read_text() == text
    rules.write_text("[[rule]]\nfile = 'A'\n")
    rules.chmod(0o644)
    tree.adopt()
    assert qmail.read_text() == tree.ours


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a file that the user cannot read")
def test_a_conversion_that_the_user_cannot_read_is_none(scratch: Path) -> None:
    """Root can read it, and a delivery would go on without the user's rules."""
    tree = Tree(scratch)
    qmail = tree.user("you", "|maildrop ./.mailfilter\n")
    (tree.domain / "you" / ".mailfilter").write_text('to "Maildir"\n')
    main_job.own(tree.root)
    rules = qmail.parent / "mailfilter.toml"
    rules.write_text("[[rule]]\nfile = 'A'\n")
    rules.chmod(0o600)
    assert "cannot be used: cannot be read" in tree.adopt()
    rules.chmod(0o644)
    assert "cannot be used" not in tree.adopt()


def test_undo_says_where_backups_are(tree: Tree) -> None:
    assert "keeps no old files; look below /var/lib/deliver/adopt\n" in tree.undo(code=1)


def test_a_mailbox_without_maildir_is_left(tree: Tree) -> None:
    (tree.domain / ".qmail-box").write_text(f"{TOASTER}\n")
    assert "Maildir is not there" in tree.adopt()
    assert (tree.domain / ".qmail-box").read_text() == f"{TOASTER}\n"


def test_the_address_behind_the_filter_stays(tree: Tree) -> None:
    """qmailadmin's --enable-spamcmd-needs-email."""
    qmail = tree.user("you", f"{QMAILADMIN} you@example.org\n")
    tree.adopt()
    assert qmail.read_text() == f"|{tree.command} you@example.org\n"


def test_a_maildrop_that_is_our_symlink_is_left(tree: Tree, tmp_path: Path) -> None:
    """The other way in: qmailadmin's tick box knows the line as it is."""
    link = tmp_path / "maildrop"
    link.symlink_to(tree.command)
    qmail = tree.user("you", f"|{link} /etc/mailfilter\n")
    assert "symbolic link" in tree.adopt()
    assert qmail.read_text() == f"|{link} /etc/mailfilter\n"


def mixed(tree: Tree) -> None:
    """A bit of everything."""
    tree.user("a", f"{TOASTER}\n{AUTORESPOND}\n", mode=0o644)
    tree.user("b", f"\xff&x@y\r\n{QMAILADMIN}")
    tree.user("c", f"{TOASTER}\n{QMAILADMIN}\n")
    tree.user("d", None)
    tree.user("e", "|maildrop ./mine\n")
    tree.user("f", "/somewhere/Maildir/\n")


def test_undo_is_byte_identical(tree: Tree) -> None:
    mixed(tree)
    before = tree.state()
    tree.adopt()
    assert tree.state() != before
    assert b"maildrop" in (tree.backup / "changes.jsonl").read_bytes()
    assert "3 files as they were" in tree.undo()
    assert tree.state() == before
    assert "3 files as they were" in tree.undo()  # again: nothing to do


def test_undo_leaves_what_was_changed_since(tree: Tree) -> None:
    qmail = tree.user("you", f"{TOASTER}\n")
    tree.adopt()
    qmail.write_text(f"{tree.ours}&new@example.net\n")
    assert "changed by others" in tree.undo(code=1)
    assert qmail.read_text() == f"{tree.ours}&new@example.net\n"


def test_again_changes_nothing(tree: Tree) -> None:
    mixed(tree)
    tree.adopt()
    once = tree.state()
    said = tree.adopt()
    assert "0 rewritten" in said
    assert tree.state() == once
    tree.undo()


def test_dry_run_shows_a_diff_and_changes_nothing(tree: Tree) -> None:
    mixed(tree)
    before = tree.state()
    said = tree.adopt("--dry-run")
    assert f"-{TOASTER}\n+|{tree.command} --stop-after-spam\n {AUTORESPOND}" in said
    assert "3 would be rewritten" in said
    assert tree.state() == before
    assert not tree.backup.exists()


def test_it_says_what_qmailadmin_needs(tree: Tree) -> None:
    tree.user("you", f"{TOASTER}\n")
    said = tree.adopt()
    assert f"--enable-spam-command='|{tree.command}'" in said
    assert f"--undo {tree.backup}" in said


def test_json_has_every_line(tree: Tree) -> None:
    mixed(tree)
    *files, summary = map(json.loads, tree.adopt("--json").splitlines())
    assert {one["file"] for one in files} == {"example.org/.qmail-default"} | {
        f"example.org/{name}/.qmail" for name in "abcef"
    }
    assert [line["kind"] for line in files[1]["lines"]] == ["maildrop", "autoresponder"]
    assert (summary["rewritten"], summary["left"], summary["failed"]) == (3, 1, 0)


def test_a_program_of_the_users_own_is_left(tree: Tree) -> None:
    """Whatever it is called."""
    for place in (f"{tree.domain}/you/bin", "~/bin", "$HOME/bin"):
        text = f"|{place}/maildrop /etc/mailfilter\n"
        qmail = tree.domain / "you" / ".qmail"
        if qmail.parent.exists():
            qmail.write_text(text)
        else:
            tree.user("you", text)
        assert "a program of the user's own" in tree.adopt()
        assert qmail.read_text() == text


def test_symbolic_links_are_not_followed(tree: Tree, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for part in ("tmp", "new", "cur"):
        (outside / "Maildir" / part).mkdir(parents=True)
    (outside / ".qmail").write_text(f"{TOASTER}\n")
    (tree.domain / "linked").symlink_to(outside)
    qmail = tree.user("you", None)
    qmail.symlink_to(outside / ".qmail")
    assert "symbolic link" in tree.adopt(code=1)
    assert (outside / ".qmail").read_text() == f"{TOASTER}\n"
    assert qmail.is_symlink()


def test_a_backup_inside_the_tree_is_refused(tree: Tree) -> None:
    """A file .qmail-something there would be a live address."""
    tree.user("you", f"{TOASTER}\n")
    tree.backup = tree.domain / "backup"
    before = tree.state()
    assert "must be outside" in tree.adopt(code=1)
    assert tree.state() == before


def test_a_command_that_is_not_there_is_refused(tree: Tree) -> None:
    """All mail would wait."""
    tree.user("you", f"{TOASTER}\n")
    tree.command.unlink()
    assert f'there is no program "{tree.command}"' in tree.adopt("--dry-run")
    assert f'there is no program "{tree.command}"' in tree.adopt(code=1)


def test_the_command_is_the_installed_one(tmp_path: Path) -> None:
    """PREFIX/lib/deliver and PREFIX/bin/deliver, as `make install` lays them out."""
    assert installed_command(f"{tmp_path}/lib/deliver") == "/usr/local/bin/deliver"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "deliver").symlink_to("/bin/true")
    assert installed_command(f"{tmp_path}/lib/deliver") == f"{tmp_path}/bin/deliver"
    assert installed_command(f"{tmp_path}") == "/usr/local/bin/deliver"


def test_lines_of_procmail_are_shown_with_what_to_do(tree: Tree) -> None:
    text = "|preline /usr/bin/procmail\n"
    qmail = tree.user("you", text)
    (qmail.parent / ".procmailrc").write_text(":0\n.Lists/\n")
    convert = f"deliver convert procmail {qmail.parent}/.procmailrc -o {qmail.parent}/mailfilter.toml"
    said = tree.adopt()
    assert f"example.org/you/.qmail:1: left: calls procmail; {convert}, then write |{tree.command}" in said
    assert "1 left" in said
    assert qmail.read_text() == text


def test_what_is_inside_a_maildir_is_no_address(tree: Tree) -> None:
    qmail = tree.user("you", None)
    inside = qmail.parent / "Maildir" / ".qmail-x"
    inside.write_text(f"{TOASTER}\n")
    tree.adopt()
    assert inside.read_text() == f"{TOASTER}\n"


def test_a_home_that_is_a_maildir_has_its_own_file(tree: Tree) -> None:
    qmail = tree.user("you", f"{TOASTER}\n")
    for part in ("tmp", "new", "cur"):
        (qmail.parent / part).mkdir()
    tree.adopt()
    assert qmail.read_text() == tree.ours


def test_names_are_bytes(tree: Tree) -> None:
    """A report in UTF-8 can be told of any; and the way back finds it."""
    odd, last = (tree.user(os.fsdecode(name), f"{TOASTER}\n") for name in (b"a\xff\xe9", b"b"))
    before = tree.state()
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    for options in (["--dry-run", "-v"], ["-v"]):
        words = tree.words("--backup", str(tree.backup), *options, str(tree.root))
        done = subprocess.run(words, env=environment, capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert rb"example.org/a\udcff\udce9/.qmail:1: maildrop" in done.stdout
    assert {odd.read_text(), last.read_text()} == {tree.ours}
    tree.undo()
    assert tree.state() == before


@pytest.mark.faults
def test_killed_at_any_system_call_every_file_is_old_or_new(tree: Tree, tmp_path: Path) -> None:
    """And running it again finishes, and undo finds everything."""
    strace.needed()
    first = tree.user("a", f"&x@y\n{TOASTER}\n")
    second = tree.user("b", f"{QMAILADMIN}\n")
    before = tree.state()
    old = {path: path.read_bytes() for path in (first, second)}
    log = tmp_path / "log"
    command = [sys.executable, *tree.words("--backup", str(tree.backup), str(tree.root))[1:]]
    calls, _ = strace.baseline(command, log, re.compile(rf"openat\(.*{tree.root.name}"))
    new = {path: path.read_bytes() for path in (first, second)}
    after = tree.state()
    assert all(new[path] != old[path] for path in old)
    tree.undo()
    assert tree.state() == before
    interesting = [
        call for call in calls if re.match(r"open|mkdir|write|fsync|rename|fch|unlink|close|flock|clone", call.name)
    ]
    assert len(interesting) > 20
    for call in interesting:
        strace.inject(strace.Fault(call, "SIGKILL"), command, log)
        for path, text in old.items():
            assert path.read_bytes() in (text, new[path]), call
        names = {name for name in tree.state() if ".qmail" in name and not name.endswith(".qmail")}
        assert not {name for name in names if os.path.basename(name).startswith(".qmail")} - {
            "example.org/.qmail-default"
        }
        tree.adopt()
        assert tree.state() == after, call
        tree.undo()
        assert tree.state() == before, call


# Under qmail-local's contract, with the installed command: qmail-command(8).


class Qmail:
    """Runs the lines of a vpopmail user's .qmail as vdelivermail does; ``codes`` are what its commands ended with."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.codes: list[int] = []
        domain = home.path.parent.name
        self.environment = home.environment(
            recipient=f"{domain}-you@{domain}",
            EXT="you",
            HOST=domain,
            LOCAL=f"{domain}-you",
            HOME=str(home.path.parent),
        )

    def deliver(self, message: bytes) -> int:
        """0, 100 or 111, as qmail-local makes it of the exit codes."""
        self.codes = []
        queued = self.home.path / "queued"
        queued.write_bytes(message)
        for line in qmailfile.parse((self.home.path / ".qmail").read_bytes()):
            if not line.raw.startswith(b"|"):
                assert line.kind in (Kind.COMMENT, Kind.BLANK, Kind.FORWARD)
                continue
            with queued.open("rb") as file:
                done = subprocess.run(
                    ["/bin/sh", "-c", line.text[1:].rstrip()],
                    stdin=file,
                    capture_output=True,
                    cwd=self.home.path,
                    env=self.environment,
                    check=False,
                    timeout=120,
                    **servers.unprivileged(),
                )
            self.codes.append(done.returncode)
            if done.returncode == 99:
                return 0
            if done.returncode:
                return 100 if done.returncode in (64, 65, 70, 76, 77, 78, 100, 112) else 111
        return 0


CONFIGURATION = '[spam]\ntrust-header = "X-Spam-Status"\n[log]\nto = "stderr"\n'
SPAM = main_job.message("an offer", headers=b"X-Spam-Status: Yes, score=7.1 required=5.0 tests=A\n")


@pytest.fixture
def you(scratch: Path, installed: Path) -> Home:
    domain = scratch / "domains" / "example.org"
    (domain / "you").mkdir(parents=True)
    home = Home(domain / "you", installed, CONFIGURATION)
    script = scratch / "autorespond"
    script.write_text('#!/bin/sh\ncat >/dev/null\necho answered >>"$2"\n')
    script.chmod(0o755)
    main_job.own(scratch)
    return home


def adopted(you: Home, installed: Path, text: str) -> Qmail:
    """The .qmail with this text, adopted."""
    (you.path / ".qmail").write_text(text)
    root = you.path.parent.parent
    words = [str(installed / "bin" / "deliver"), "adopt", "--config", str(you.config), str(root)]
    words += ["--command", str(installed / "bin" / "deliver"), "--backup", str(root.parent / "backup")]
    run(words, 0)
    main_job.own(root)
    return Qmail(you)


@pytest.mark.parametrize("line", [TOASTER, QMAILADMIN, "|maildrop"])
def test_ours_delivers_once_under_qmail(you: Home, installed: Path, line: str) -> None:
    qmail = adopted(you, installed, f"{line}\n{line}\n&friend@example.net\n")
    assert qmail.deliver(main_job.message("lunch")) == 0
    assert qmail.codes == [0]
    assert len(you.messages()) == 1


def test_spam_is_not_answered_and_other_mail_is(you: Home, installed: Path) -> None:
    answers = you.path / "answers"
    script = you.path.parent.parent.parent / "autorespond"
    qmail = adopted(you, installed, f"{TOASTER}\n|{script} 86400 {answers}\n")
    assert qmail.deliver(SPAM) == 0
    assert qmail.codes == [99]
    assert len(you.messages("Spam")) == 1
    assert not answers.exists()
    assert qmail.deliver(main_job.message("lunch")) == 0
    assert qmail.codes == [0, 0]
    assert len(you.messages()) == 1
    assert answers.read_text() == "answered\n"


def test_exit_codes_reach_qmail(you: Home, installed: Path) -> None:
    qmail = adopted(you, installed, f"{TOASTER}\n")
    looped = main_job.message("round", headers=b"Delivered-To: you@example.org\n")
    assert (qmail.deliver(looped), qmail.codes) == (100, [100])
    you.config.unlink()
    assert (qmail.deliver(main_job.message("lunch")), qmail.codes) == (111, [75])
    assert you.messages() == []


def test_by_the_name_of_maildrop_the_line_stays(you: Home, installed: Path) -> None:
    """The other way in: one symbolic link, and out again by removing it."""
    link = you.path.parent.parent.parent / "maildrop"
    link.symlink_to(installed / "bin" / "deliver")
    you.config.write_text(CONFIGURATION + '[maildrop]\nreplaces = ["/etc/mailfilter"]\n')
    text = f"|{link} /etc/mailfilter\n"
    qmail = adopted(you, installed, text)
    assert (you.path / ".qmail").read_text() == text
    assert (qmail.deliver(main_job.message("lunch")), qmail.codes) == (0, [0])
    assert len(you.messages()) == 1
