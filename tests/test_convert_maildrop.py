"""maildrop's filters as rules of ours: each message goes where maildrop itself delivers it."""

import asyncio
import re
import subprocess
import tomllib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import corpora
import pytest
import servers
from click.testing import CliRunner
from maildrop_filters import CASES, ENVIRONMENT, TOASTER, WEBMAIL, Case, generated

from deliver.commands.convert import convert as command
from deliver.config import load
from deliver.convert.maildrop import convert
from deliver.convert.model import Wrong
from deliver.convert.write import text
from deliver.message import Message, Source, read_framing
from deliver.replay import Family, Replayer, Settings
from deliver.rules.load import load as load_rules
from deliver.rules.model import Facts, Outside, View
from deliver.values import Envelope, Verb

RECIPIENT = ENVIRONMENT["RECIPIENT"]
FOLDERS = ["", *".A .B .C .Spam .Boss .Offers .Other .Lists.dev .Lists.other .To.shop".split()]
HARD = {100, 64, 65, 70, 76, 77, 78, 112}
"""Exit codes at which qmail-local gives the message back."""

Fate = frozenset[str]
"""Where a message is: folders with flags behind a colon, "!" before addresses, "bounce"; nothing for deleted."""


# --- the original ------------------------------------------------------------------------------------------------


class Mail:
    """A message with a number in it, by which it is found again."""

    def __init__(self, number: int, sender: str, content: bytes) -> None:
        self.number = number
        self.sender = sender
        self.content = b"Return-Path: <%s>\nX-Test-Id: %d\n" % (sender.encode(), number) + content


def corpus() -> list[bytes]:
    """A hundred small messages of other people's.

    Without those that hold messages: maildrop looks at their headers, too, and ours never does (docs/moving-in.md).
    """
    found: list[bytes] = []
    for path in sorted(corpora.needs("sa-public").rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        content = re.sub(rb"\AFrom [^\n]*\n", b"", content)
        content = re.sub(rb"(?mi)\A((?:[^\n]+\n)*?)(?:Return-Path|Delivered-To):[^\n]*\n", rb"\1", content)
        if b":" in content[:80] and len(content) < 12_000 and b"message/rfc822" not in content:
            found.append(content)
    return found[:100]


def mails() -> list[Mail]:
    """All messages that every filter is tried with."""
    pairs = [*generated(), *(("list@corpus.example", content) for content in corpus())]
    return [Mail(number, sender, content) for number, (sender, content) in enumerate(pairs)]


def run_maildrop(home: Path, case: Case, folders: list[str], sent: list[Mail]) -> dict[int, Fate]:
    """What maildrop itself makes of each message. It takes HOME and SHELL from the password file: the filter says them."""
    for folder in (*FOLDERS, *folders):
        for part in ("tmp", "new", "cur"):
            (home / "Maildir" / folder / part).mkdir(parents=True)
    for place, _ in case.elsewhere:
        (home / place).parent.mkdir(exist_ok=True)
    (home / "sent").mkdir()
    (home / "sendmail").write_text(
        '#!/bin/sh\nid=$(sed -n "s/^X-Test-Id: //p")\nfor one in "$@"; do\n'
        f'  case "$one" in *@*) echo "$one" >> {home}/sent/$id ;; esac\ndone\n'
    )
    (home / "bouncesaying").write_text("#!/bin/sh\ncat > /dev/null\nexit 100\n")
    for program in ("sendmail", "bouncesaying"):
        (home / program).chmod(0o755)
    prelude = f'HOME="{home}"\nSHELL="/bin/sh"\nDEFAULT="$HOME/Maildir"\nSENDMAIL="{home}/sendmail"\n{case.prelude}'
    (home / "filter").write_text(prelude + case.text)
    (home / "filter").chmod(0o600)
    script = (
        "for number in $(ls messages); do read -r SENDER < senders/$number; export SENDER; "
        'maildrop filter < messages/$number >>output 2>>errors; echo "$number $?"; done'
    )
    (home / "messages").mkdir()
    (home / "senders").mkdir()
    for mail in sent:
        (home / "senders" / str(mail.number)).write_text(f"{mail.sender}\n")
        (home / "messages" / str(mail.number)).write_bytes(mail.content)
    user = servers.unprivileged()
    if user:
        subprocess.run(["chown", "-R", f"{user['user']}:{user['group']}", str(home)], check=True)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", **ENVIRONMENT}
    done = subprocess.run(
        ["/bin/sh", "-c", script], cwd=home, env=environment, stdout=subprocess.PIPE, check=True, timeout=120, **user
    )
    codes = dict(map(int, line.split()) for line in done.stdout.decode().splitlines())
    failed = {number: code for number, code in codes.items() if code not in HARD and code != 0}
    assert not failed, (home / "errors").read_text()[:2000]
    fates: dict[int, set[str]] = {number: {"bounce"} if code in HARD else set() for number, code in codes.items()}
    for number, place in _stored(home, case):
        fates[number].add(place)
    for path in (home / "sent").iterdir():
        fates[int(path.name)] |= {f"!{one}" for one in path.read_text().split()}
    return {number: frozenset(fate) for number, fate in fates.items()}


def _stored(home: Path, case: Case) -> Iterator[tuple[int, str]]:
    for path in (home / "Maildir").rglob("*"):
        if path.parent.name in ("new", "cur") and path.is_file():
            folder = path.parent.parent.name.removeprefix(".")
            flags = path.name.partition(":2,")[2]
            place = ("INBOX" if folder == "Maildir" else folder) + (f":{''.join(sorted(flags))}" if flags else "")
            yield _number(path.read_bytes()), place
    for place, folder in case.elsewhere:
        for number in re.findall(rb"^X-Test-Id: (\d+)$", (home / place).read_bytes(), re.MULTILINE):
            yield int(number), folder


def _number(content: bytes) -> int:
    found = re.search(rb"^X-Test-Id: (\d+)$", content, re.MULTILINE)
    assert found
    return int(found[1])


# --- ours --------------------------------------------------------------------------------------------------------


def checked(case: Case) -> str:
    """The converted filter, as `deliver check` and tomllib take it, and the same twice."""
    conversion = convert(case.text)
    assert not [one for one in conversion.reported if not one.warning]
    said = text(conversion, "filter")
    assert said == text(convert(case.text), "filter")
    assert tomllib.loads(said).get("rule", []) == [rule.table for rule in conversion.rules]
    assert not load_rules([rule.table for rule in conversion.rules], "converted", user=True)[1]  # not even a doubt
    return said


def run_ours(directory: Path, case: Case, sent: list[Mail]) -> dict[int, Fate]:
    """What the converted rules make of each message, by the evaluator of real deliveries."""
    said = checked(case)
    if "X-Spam" in case.text and not case.site:
        # Who filters by X-Spam lines trusts their writer; and nothing is deleted that the filter does not delete.
        said = f'[spam]\ntrust-header = "X-Spam-Status"\ndelete-above = 1000\n{said}'
    path = directory / "mailfilter.toml"
    path.write_text(said)
    replayer = Replayer(Settings(load(str(path))))

    async def all_of_them() -> dict[int, Fate]:
        return {mail.number: await one(mail) for mail in sent}

    async def one(mail: Mail) -> Fate:
        family = Family({}, {"envelope": {"recipient": RECIPIENT}})
        plan = (await replayer.judge("", Source.of(mail.content), family)).plan
        said: set[str] = set()
        for action in plan.actions:
            match action.verb:
                case Verb.FILE:
                    said.add(action.target + (f":{plan.flags}" if plan.flags else ""))
                case Verb.FORWARD:
                    said.add(f"!{action.target}")
                case Verb.BOUNCE:
                    said.add("bounce")
                case verb:
                    assert verb is Verb.DISCARD
        return frozenset(said)

    return asyncio.run(all_of_them())


class Both(NamedTuple):
    """The messages of one filter, where maildrop delivered each, and where the converted rules do."""

    sent: list[Mail]
    theirs: dict[int, Fate]
    ours: dict[int, Fate]


@pytest.fixture(scope="module", name="fates")
def both() -> Iterator[dict[str, Future[Both]]]:
    """For each filter the messages, where maildrop delivered each, and where the converted rules do."""
    servers.needs("maildrop")
    servers.needs("reformail")
    everything, made = mails(), len(generated())

    def work(item: tuple[int, Case]) -> Both:
        number, case = item
        home = directory / str(number)
        home.mkdir()
        # A sixteenth of the corpus for each filter, not the same one: all of it would take a minute.
        scanned = "X-Spam" in case.text
        sent = [mail for mail in everything if mail.number < made or mail.number % 16 == number % 16]
        sent = [mail for mail in sent if scanned or b"\nX-Spam-Status: " not in mail.content]
        ours = run_ours(home, case, sent)
        folders = {
            place.partition(":")[0] for fate in ours.values() for place in fate if "." in place and "@" not in place
        }
        missing = sorted(f".{one}" for one in folders - {one[1:] for one in FOLDERS})
        return Both(sent, run_maildrop(home, case, missing, sent), ours)

    with servers.scratch() as directory, ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(work, item) for name, item in zip(CASES, enumerate(CASES.values()), strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_mail_goes_where_maildrop_delivers_it(fates: dict[str, Future[Both]], name: str) -> None:
    sent, original, ours = fates[name].result()
    for mail in sent:
        theirs = original[mail.number]
        assert ours[mail.number] == theirs, mail.content.decode("latin-1")[:600]


# Filters that send every message the same way.
UNIFORM = {"what is known", "the date in a folder's name", "an empty line behind the condition"}


@pytest.mark.parametrize("name", CASES)
def test_messages_hit_and_miss(fates: dict[str, Future[Both]], name: str) -> None:
    assert len(set(fates[name].result().theirs.values())) > 1 or name in UNIFORM


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 40


# --- what cannot be said -----------------------------------------------------------------------------------------

SCORED = "if (/^X-Spam-Status: (Yes|No), score=([0-9]+)/)\n{\n  if ($MATCH2 >= 12)\n  {\n    to x\n  }\n}\n"
HIT = "if (/^Subject:.*hello/)\n{\n  BODY\n}\n"

REPORTED = {
    'if (/paypal/)\n  to "$HOME/Maildir/.A"\n': (1, "any header field|names no header field"),
    "if (/^From: <boss/)\n  to $HOME/Maildir/.A\n": (1, "takes away the <> of an address"),
    "/^Subject: *(.*)/\nxfilter \"reformail -I 'Subject: [x] $MATCH1'\"\nif (/^Subject:.*x/)\n  to x\n": (3, "itself has"),
    "if (/^Subject: (?!re)/)\n  to $HOME/Maildir/.A\n": (1, "RE2 has no lookahead"),
    "if (/^Subject: (a)\\1/)\n  to $HOME/Maildir/.A\n": (1, r"RE2 has no \\1"),
    "if (/^Subject:.*x/:h,1,1 > 3)\n  to $HOME/Maildir/.A\n": (1, "weighted scoring"),
    SCORED: (1, "it reads more of X-Spam-Status"),
    "/anything (x)/\nif ($MATCH1 == 3)\n  to x\n": (2, "the pattern that sets it has no counterpart"),
    "if (/^Subject: (.*)/ && $MATCH1 =~ /a(b)/)\n  to $HOME/Maildir/.$MATCH1\n": (2, "the pattern that sets it"),
    HIT.replace("BODY", 'to "|/usr/local/bin/ticket -q support"'): (3, r"\[programs\], ticket = "),
    HIT.replace("BODY", 'cc "|/usr/local/bin/ticket"'): (3, "only programs that the site names"),
    HIT.replace("BODY", 'to "| mailbot -t $HOME/away -D 3 $SENDMAIL -t"'): (3, 'text = what is in .*every = "3 d"'),
    HIT.replace("BODY", 'cc "| /usr/bin/vacation you"'): (3, r"\[rule.reply\]"),
    HIT.replace("BODY", "EXITCODE=75\n  exit"): (4, "cannot make a message wait"),
    HIT.replace("BODY", "to $HOME/Maildir/.$1"): (3, "argument of maildrop's command line"),
    HIT.replace("BODY", "X=`whoami`\n  to $HOME/Maildir/.$X"): (4, "known only when it runs: whoami"),
    "`/usr/local/bin/learn`\n": (1, "run no program of a user's: /usr/local/bin/learn"),
    'system "touch x"\n': (1, "run no program"),
    'xfilter "/usr/bin/bogofilter -e -p"\n': (1, "nobody runs bogofilter here"),
    'xfilter "sed -e s/a/b/"\n': (1, "run no program"),
    'xfilter "reformail -R From: X-From:"\n': (1, "cannot change a message in this way"),
    "xfilter \"reformail -A 'X-A: b'\"\nif (/^X-A:/)\n  to x\n": (2, "itself has written"),
    'include "$HOME/rules"\n': (1, "convert .*/rules as well"),
    '/^To:(.*)/\nif (lookup($MATCH1, "list"))\n  to x\n': (2, r"\[lists\]"),
    "while ($X < 3)\n{\n  cc x\n}\n": (1, "rules have no loops"),
    "foreach /^To:.*/\n{\n  cc x\n}\n": (1, "rules have no loops"),
    "MAILDROP_OLD_REGEXP=1\nif (/^Subject: !a!/)\n  to x\n": (2, "maildrop 1"),
    "if ($LINES > 3)\n  to x\n": (1, "what LINES is"),
    "if (/^X-Spam-Status: Yes, score=[5-9]/)\n  to x\n": (1, "score = "),
    "`test -f $HOME/.away`\nif ($RETURNCODE == 0)\n  to x\n": (2, "whether the file .* is there"),
    HIT.replace("BODY", 'to "$HOME/Maildir/.a&b"'): (1, "a folder's name cannot have"),
}


@pytest.mark.parametrize("original", REPORTED)
def test_what_no_rule_can_say_is_reported(original: str) -> None:
    line, words = REPORTED[original]
    reported = [one for one in convert(original).reported if not one.warning]
    found = [one for one in reported if one.line == line and re.search(words, one.reason)]
    assert found, reported
    assert found[0].text.startswith(original.splitlines()[line - 1])
    assert f"line {line}, not converted: " in text(convert(original), "filter")


@pytest.mark.parametrize(
    "original",
    [
        "if (/anything/)\n  to $HOME/Maildir/.A\n\nif (/^Subject: x/)\n  to /dev/null\n",
        "if (/anything/)\n  to $HOME/Maildir/.A\nelse\n  exit\n",
        "if (/anything/)\n{\n  cc $HOME/Maildir/.A\n}\nexit\n",
        "foreach /^To:.*/\n{\n  cc $HOME/Maildir/.A\n}\nexit\n",
        "cc $HOME/Maildir/.$1\nexit\n",
        "if (/anything/)\n  X=1\n\nif ($X)\n{\n  to $HOME/Maildir/.A\n}\nEXITCODE=77\nexit\n",
        "EXITCODE=`status`\nexit\n",
    ],
)
def test_nothing_is_lost_for_what_was_not_understood(original: str) -> None:
    """Where the original may have kept a message above, no rule below deletes it or gives it back."""
    conversion = convert(original)
    assert not any({"discard", "bounce"} & set(rule.table) for rule in conversion.rules)
    assert any(not one.warning for one in conversion.reported)


def test_lines_of_dos_are_told() -> None:
    """maildrop would carry out every block there."""
    first, *others = convert("# mine\r\n" + HIT.replace("BODY", "exit").replace("\n", "\r\n")).reported
    assert not others
    assert (first.line, first.text, first.warning) == (1, "# mine", True)
    assert "end in CR LF" in first.reason


def test_what_has_no_place_stays_in_the_inbox() -> None:
    """Else a rule below would take it."""
    original = HIT.replace("BODY", 'to "|/usr/local/bin/ticket"') + "to /dev/null\n"
    first, second = [rule.table for rule in convert(original).rules]
    assert first == {"file": "INBOX", "when": {"subject": "*hello*"}}
    assert second == {"discard": True}


def test_the_known_part_of_an_alternative_is_converted() -> None:
    conversion = convert("if (/^Subject: a/ || /any/)\n  to $HOME/Maildir/.A\n")
    assert [rule.table for rule in conversion.rules] == [{"file": "A", "when": {"subject": "a*"}}]
    assert [one.line for one in conversion.reported if not one.warning] == [1]


def test_what_no_message_comes_to_is_nothing() -> None:
    """Where two questions contradict each other."""
    inside = "if (/^Subject:.*a/)\n{\n  cc $HOME/Maildir/.A\n}\n"
    conversion = convert(f"if (!(/^From:.*x/ || /^Subject:.*a/))\n{{\n{inside}}}\n")
    assert not conversion.rules
    assert not conversion.reported


def test_an_if_without_effect_is_nothing() -> None:
    conversion = convert("`test -f x`\nif ($RETURNCODE == 1)\n{\n  `maildirmake $HOME/Maildir/.A`\n  LOG=x\n}\n")
    assert not conversion.rules
    assert not [one for one in conversion.reported if not one.warning]


# --- what it looks like ------------------------------------------------------------------------------------------


def test_comments_stay_where_they_stood() -> None:
    said = text(convert("# who I am\n\n## the boss\nif (/^From: b/) # of all\n  to $HOME/Maildir/.A\n\n# done\n"), "f")
    assert said == (
        '# Converted from f.\n\n# who I am\n# the boss\n# of all\n[[rule]]\nfile = "A"\n[rule.when]\n'
        'header = { From = { regex = \'^(?:<?b|"b[^"@.,:;<>()\\[\\]\\\\]*")\' } }\n\n# done\n'
    )


def test_the_toasters_filter_becomes_settings() -> None:
    conversion = convert(TOASTER)
    assert not conversion.rules
    assert conversion.settings == {
        "quota": {"command": ["/nonexistent/vuserinfo", "-Q", "{recipient}"]},
        "spam": {"trust-header": "X-Spam-Status", "delete-above": 11.99, "folder": "Spam"},
    }
    # Where it asks spamd itself, so do we.
    asking = "if ( $SIZE < 256000 )\n{\n  exception {\n    xfilter '/usr/bin/spamc -u \"$EXT@$HOST\"'\n  }\n}\n"
    settings = convert(TOASTER.replace("# tagged", f"{asking}# tagged")).settings
    assert settings["spamd"] == {"user": "{recipient}", "max-size": 256000}
    assert "trust-header" not in settings["spam"]


def test_sqwebmails_names_are_kept() -> None:
    tables = [rule.table for rule in convert(WEBMAIL).rules]
    assert [table["name"] for table in tables] == ["offers & sales", "boss", "questions", "not again", "large", "other"]
    assert tables[0] == {"name": "offers & sales", "file": "Offers", "when": {"subject": "*50% off (really)*"}}
    answering = WEBMAIL.replace("##Folder:exit", "##Folder:+away").replace(
        "    exit\n}\n\n##Op:isl", "    X=1\n}\n\n##Op:isl"
    )
    (reported,) = convert(answering).reported
    assert "[rule.reply] with text = what is in autoresponses/away" in reported.reason
    # Whoever edits the code is believed, not the comments.
    edited = convert(
        WEBMAIL.replace("\n##Op:hasrecipient", '\ncc "$HOME/Maildir/.All"\nif (1)\n  X=1\n##Op:hasrecipient')
    )
    assert {"copy": "All"} in [rule.table for rule in edited.rules]


def test_copies_of_messages(scratch: Path) -> None:
    """reformail -D tells the second one; so does ours, for real, since a replay has seen nothing before."""
    case = Case("`reformail -D 8000 $HOME/cache`\nif ($RETURNCODE == 0)\n{\n  to $HOME/Maildir/.A\n}\n")
    content = b"From: a@b.example\nMessage-ID: <1@b.example>\nSubject: x\n\n"
    twice = [Mail(1, "a@b.example", content), Mail(2, "a@b.example", content)]
    original = run_maildrop(scratch, case, [], twice)
    assert original == {1: frozenset({"INBOX"}), 2: frozenset({"A"})}
    (rule,), problems = load_rules([one.table for one in convert(case.text).rules], "converted", user=True)
    assert not problems
    for mail, seen in zip(twice, (None, 1.0), strict=True):
        source = Source.of(mail.content)
        outside = Outside(last_seen=lambda _message_id, seen=seen: seen)
        message = Message(source, read_framing(source.head))
        facts = Facts(
            message, Envelope("", RECIPIENT, "/nowhere"), None, spam=False, viruses=(), now=2.0, outside=outside
        )
        assert rule.condition.matches(View(facts)) is (original[mail.number] == {"A"})


# --- files that are none -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("original", "line", "words"),
    [
        ("to x\nif (/^A:/) {\n  to x\n}\n", 2, "{ stands on the next one"),
        ("if (/^A:/)\n{\n  to x\n", 2, "this { has no }"),
        ("}\n", 1, "closes nothing"),
        ("if (/^A:/)\n{\n  to x\n}\n\nelse\n{\n  to y\n}\n", 6, "right behind a }"),
        ('to "x\n', 1, "no end on its line"),
        ("if (/^A:)\n  to x\n", 1, "no second /"),
        ("if /^A:/\n  to x\n", 1, "condition in brackets"),
        ("to x y ) z\n", 1, "should end before"),
        ("foreach $x\n  to x\n", 1, "foreach wants a pattern"),
        ("if ($X =~ foo)\n  to x\n", 1, "stands a pattern"),
        ("(" * 200 + "\n", 1, "deep"),
    ],
)
def test_a_file_that_maildrop_would_refuse(scratch: Path, original: str, line: int, words: str) -> None:
    with pytest.raises(Wrong) as caught:
        convert(original)
    assert caught.value.line == line
    assert words in str(caught.value)
    if "deep" not in words:
        with pytest.raises(AssertionError):
            run_maildrop(scratch, Case(original), [], [Mail(1, "a@b.example", b"Subject: x\n\n")])


def test_a_tag_before_the_subject() -> None:
    for line in ("'Subject: [x] $MATCH1'", "-I'Subject: [x] $S'"):
        original = f'/^Subject: *(.*)/\nS=`formail -zxSubject:`\nxfilter "reformail -I {line.removeprefix("-I")}"\n'
        original += "if (/^To:.*you/)\n  to $HOME/Maildir/.A\n"
        assert convert(original).rules[0].table == {"tag-subject": "[x]"}


def test_stars_in_brackets_are_counted_and_stars_of_stars_are_not() -> None:
    first, *_ = convert("if (/^X-Spam-Level: (\\*{5,})$/)\n  to $HOME/Maildir/.A\n").rules
    assert first.table["when"] == {"score": ">= 5"}
    assert not convert("if (/^X-Spam-Level: \\*(\\*)*$/)\n  to $HOME/Maildir/.A\n").rules
    assert not convert("if (/^X-Spam-Level: (\\*\\*)*$/)\n  to $HOME/Maildir/.A\n").rules


def test_long_files_take_no_time() -> None:
    chain = "".join(f"elsif (/^Subject: {one}/)\n{{\n  to $HOME/Maildir/.X{one}\n}}\n" for one in range(500))
    assert len(convert(f"if (/^Subject: a/)\n{{\n  to $HOME/Maildir/.A\n}}\n{chain}").rules) == 501
    hostile = 'X="' + "a" * 40 + '!"\nif ($X =~ /^(a+)+$/)\n  to x\nif (/^X:' + "( )?" * 400 + "x/)\n  to x\n"
    assert [one.line for one in convert(hostile).reported if not one.warning] == [2, 4]


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "mailfilter"
    path.write_text(HIT.replace("BODY", "to $HOME/Maildir/.A") + "`learn`\n")
    done = CliRunner().invoke(command, ["maildrop", str(path)])
    assert done.exit_code == 0
    assert f"{path}:5: not converted: rules run no program" in done.stderr
    assert tomllib.loads(done.stdout) == {"rule": [{"file": "A", "when": {"subject": "*hello*"}}]}
    assert CliRunner().invoke(command, ["maildrop", "--strict", str(path)]).exit_code == 1
    path.write_text("{\n")
    assert f"{path}:1: this {{ has no }}" in CliRunner().invoke(command, ["maildrop", str(path)]).stderr
