"""procmail's rc files as rules of ours: each message goes where procmail itself delivers it."""

import re
from collections.abc import Iterator
from pathlib import Path

import converting
import pytest
import servers
from click.testing import CliRunner
from test_convert_sieve import MAILS

from deliver.commands.convert import convert as command
from deliver.convert.model import Wrong
from deliver.convert.procmail import convert
from deliver.convert.write import text

TOP = """\
MAILDIR=$HOME/Maildir
DEFAULT=$MAILDIR/
"""

FILES = {
    "one list": ":0\n* ^List-Id:.*dev\\.lists\\.example\\.org\n.Lists.dev/\n",
    "a lock and a comment": "# The list\n:0: # really\n* ^List-Id:.*<dev\\.\nlists-dev # a file\n",
    "several conditions": ":0\n* ^From:.*boss@example\\.com\n* ^Subject:.*urgent\n* ! ^X-Spam-Flag: YES\n.urgent/\n",
    "the first that takes it": """
:0
* ^Subject:.*invoice
.bills/
:0
* ^From:.*boss
.boss/
:0
.rest/
""",
    "deleted": ":0\n* ^From:.*@spam\\.example\n/dev/null\n",
    "a copy": ":0 c\n.all/\n\n:0 c\n* ^Subject:.*dev\ncopies/\n",
    "sent on": ":0\n* ^From:.*boss\n! phone@example.com other@example.com\n",
    "sent on and kept": ":0 c\n* ^Subject:.*invoice\n! books@example.com\n",
    "a block": """
:0
* ^List-Id:
{
    :0 c
    .copy/
    :0
    * ^Subject:.*urgent
    .urgent/
}
:0
* ^Subject:.*hello
.hello/
""",
    "blocks in a block": """
:0
* ^Subject:.*i
{
  :0
  * ^From:.*(root|daemon)@
  { :0
    .machines/
  }
  :0
  * > 5000
  .large/
}
:0
* < 350
.small/
""",
    "else": """
:0
* ^List-Id:
.list/
:0 E
* ^Subject:.*invoice
.bills/
:0 E
.other/
""",
    "else behind a block": """
:0
* ^From:.*boss
{ X=1 }
:0 E
* ^Subject:.*win
.spam/
:0 E
.others/
""",
    "and": """
:0 c
* ^Subject:.*dev
.copy/
:0 A
* ^From:.*boss
.boss/
:0 a
.never/
:0 A
.dev/
""",
    "A and E in a block, and first": """
:0 A
.never/
:0
* ^List-Id:
{
  :0 A
  * ^From:.*boss
  .a/
  :0 E
  .e/
}
:0 E
.x/
""",
    "names of one field": ":0\n* ^(To|Cc):.*sales\n.sales/\n:0\n* ^(X-)?(Mailer|Priority): *1?Reporter\n.mailer/\n",
    "alternatives": ":0\n* ^Subject:.*(urgent|win)|^From: root\n.some/\n:0\n* (^From:|^Sender:).*lists\\.example\n.lists/\n",
    "^TO_": ":0\n* ^TO_you@example\\.org\n.me/\n:0\n* ^TO_root\n.root/\n",
    "^TO": ":0\n* ^TOteam\n.team/\n:0\n* ^TOyou\n.me/\n",
    "^FROM_DAEMON": ":0\n* ! ^FROM_DAEMON\n.people/\n",
    "^FROM_MAILER": ":0\n* ^FROM_MAILER\n.mailers/\n",
    "the envelope": ":0\n* ^From boss@example.com\n.boss/\n:0\n* ^From.*@mail\\.shop\n.shop/\n",
    "an anchored value": ":0\n* ^Subject: pat[ch]+es\n.never/\n:0\n* ^Subject: hello$\n.a/\n:0\n* ^Subject: *\\[dev\\]\n.b/\n:0\n* ^X-Number: 1\n.c/\n:0\n* ^Subject:.*backup$\n.d/\n",
    "a field that is there": ":0\n* ^List-Id:\n.list/\n:0\n* ! ^Date:.*\n.undated/\n",
    "words": ":0\n* ^Subject:.*\\<invoice\\>\n.bills/\n:0\n* ^Subject:.*\\<dev\\>\n.dev/\n:0\n* ^Subject:.*\\<hell\\>\n.hell/\n",
    "expressions": ":0\n* ^Subject:.*inv[oi]+ce [0-9]+\n.a/\n:0\n* ^Subject:.*W(h|hi)?at\\?\n.b/\n:0\n* ^Subject:.*[$]+ n.w\n.c/\n:0\n* ^From:[^@]*boss@\n.d/\n",
    "brackets are themselves": ":0\n* ^Subject:.*back[\\]slash\n.a/\n:0\n* ^Subject:.*[]x] patches\n.b/\n",
    "with case": ":0 D\n* ^Subject:.*Win\n.a/\n:0 D\n* ^Subject:.*HELLO\n.b/\n:0 D\n* ^Subject:.*(patch|Cron)\n.c/\n",
    "the body": ":0 B\n* click here\n.a/\n:0 B\n* ^Price: [0-9]+ EUR$\n.b/\n:0\n* B ?? ^all is\n* H ?? ^From:.*root\n.c/\n",
    "header and body": ":0 HB\n* ^(Subject:.*patches|Price:)\n.either/\n",
    "sizes": ":0\n* > 10000\n.large/\n:0\n* ! > 400\n.small/\n",
    "weights as or": ":0\n* 1^0 ^Subject:.*urgent\n* 1^0 ^From:.*root\n* 1^0 ^X-Spam-Flag: YES\n.any/\n",
    "weights": ":0\n* -2^0\n* 2^0 ^List-Id:\n* 1^0 ^Subject:.*dev\n* 1.5^0 ! ^X-Mailer:\n* -1^0 ^Cc:\n.heavy/\n",
    "a weight that settles it": ":0\n* -9876543210^0 ^From:.*boss\n* 1^0 ^List-Id:\n* 9876543210^0 ^Subject:.*hello\n.settled/\n",
    "variables": 'LISTS=.Lists WHO="boss@example\\.com"\nEMPTY=\n:0\n* $ ^From:.*$WHO\n$LISTS.boss/\n:0\n* $ ^Subject:.*${EMPTY:-hello}$\n"$MAILDIR/.with blank/"\n',
    "folders by their names": """
:0
* ^Subject:.*hello
$MAILDIR/.a.b/
:0
* ^Subject:.*invoice
bills/
:0
* ^Subject:.*Win
$HOME/Maildir/.Junk/
:0
* ^List-Id:
$DEFAULT
:0
* ^From:.*root
mh/.
""",
    "two folders at once": ":0\n* ^Subject:.*dev\n.a/ .b/\n",
    "settings of procmail": "SHELL=/bin/sh\nVERBOSE=off\nUMASK=077\nLOGABSTRACT=no\n:0\n* ^Subject:.*dev\n.dev/\n",
    "a copy goes through a block": """
:0 cw
* ^Subject:.*(dev|invoice)
{
  :0
  * ^From:.*boss
  .boss/
  :0
  ! away@example.com
}
:0
* ^List-Id:
.list/
""",
    "a copy of a copy": """
:0 c
* ^From:.*(boss|root)
{
  :0
  * ^Subject:.*urgent
  .urgent/
  :0 c
  {
    :0
    * ! ^List-Id:
    ! away@example.com
    :0
    /dev/null
  }
  :0
  .people/
}
""",
    "a folder for each way": """
:0
* ^Subject:.*invoice
{ FOLDER=.bills/ }
:0 E
* ^From:.*boss
{
  FOLDER=.boss/
  :0
  * ^Subject:.*urgent
  { FOLDER=.urgent/ }
}
:0 E
{ FOLDER=.other/ }
:0
$FOLDER
""",
    "a switch": """
SPAM=no
:0
* ^Subject:.*(win|click)
{ SPAM=yes }
:0
* ^From:.*root
{ SPAM=maybe }
:0
* ^List-Id:
{ SPAM=""
}
:0
* SPAM ?? ^yes
.Junk/
:0 A
.never/
:0 E
* ! SPAM ?? ^^(no)?^^
.maybe/
:0
* SPAM ?? ^^^^
.none/
""",
    "SpamAssassin's lines": ":0\n* ^X-Spam-Status: Yes\n.Junk/\n:0\n* ^X-Spam-Level: \\*\\*\\*\\*\n.maybe/\n:0 H\n* ! ^X-Spam-Flag: YES\n.clean/\n",
    "through SpamAssassin, and a line of one's own": """
:0 fw
* < 256000
| spamc
:0 fhw
* ^Subject:.*dev
| formail -A "X-Seen: yes"
:0
* ^X-Spam-Status: Yes
.Junk/
""",
    "duplicates": """
:0 Wh: msgid.lock
| formail -D 8192 msgid.cache
:0 a
.never/
:0
* ^Subject:.*dev
.dev/
""",
    "the list's name": ":0\n* ^List-Id:.*<\\/[^.>]*\n.Lists.$MATCH/\n",
    "a list's identifier in a variable": """
:0
* ^List-Id:.*<\\/[^>]+
{
  LISTID=$MATCH
  :0
  * LISTID ?? ^\\/[^.]+
  .Lists.$MATCH/
}
""",
    "a part that is taken and not used": ":0\n* ^Subject:.*\\/invoice.*\n.bills/\n",
    "a date": "MONTH=`date +%Y-%m`\n:0 c\n.archive.$MONTH/\n:0\n* ^Subject:.*dev\n.x.`date '+%Y'`/\n",
    "weights in a variable": "ALL=9876543210\n:0\n* $ $ALL^0 ^Subject:.*urgent\n* $ ${ALL}^0 ^From:.*root\n.any/\n",
    "a quote in a condition with variables": 'ME=you\n:0\n* $ ^To:.*"$ME"@example.org\n.me/\n:0\n* $ ^Subject:.*"$ME\n.x/\n',
    "blanks and slashes of paths": "MAILDIR=$HOME/Maildir/\n:0\n* ^Subject:.*dev\n$MAILDIR/.dev/\n:0\n* ^From:.*boss\n${MAILDIR}.boss/\n",
    "counts of long ago": ":2\n^From:.*boss\n^Subject:.*urgent\n.urgent/\n:\n^From:.*root\n.root/\n:1c\n* ^Subject:.*dev\n.dev/\n",
    "SpamAssassin's example": """
:0fw
* < 256000
| spamassassin
:0e
{
  EXITCODE=75
  HOST
}
:0
* ^^rom[ ]
{
  LOG="*** Dropped F off From_ header! Fixing up. "
  :0 fhw
  | sed -e '1s/^/F/'
}
:0
* ^X-Spam-Status: Yes
.Junk/
""",
    "several header lines": ':0 fhw\n| formail -I "X-A:" -A "X-B: c" -I X-Status\n:0\n* ^Subject:.*dev\n.dev/\n',
    "another default": "DEFAULT=$MAILDIR/.Unsorted/\n:0\n* ^List-Id:\n.list/\n",
    "programs in variables": 'FORMAIL=/usr/bin/formail\n:0 fhw\n* ^Subject:.*dev\n| $FORMAIL -A "X-Seen: yes"\n:0\n* ^Subject:.*dev\n.dev/\n',
    "no condition": ":0\n* ^Subject:.*dev\n*\n* .*\n.dev/\n",
    "a condition over two lines": ":0\n* ^Subject:.*(hello|\\\n   patches)\n.a/\n",
    "what stands behind a recipe for all": ":0\n* ^List-Id:\n.list/\n:0\n.all/\n:0\n* ^From:.*boss\n.never/\n",
}


@pytest.fixture(scope="module")
def real() -> Iterator[converting.Procmail]:
    with servers.scratch() as directory, converting.quick_scratch() as homes:
        yield converting.Procmail(directory, homes)


@pytest.mark.parametrize("name", FILES)
def test_mail_goes_where_procmail_delivers_it(name: str, tmp_path: Path, real: converting.Procmail) -> None:
    rc = TOP + FILES[name]
    conversion = convert(rc)
    assert not [one for one in conversion.reported if not one.warning]
    said = converting.rules_of(conversion)
    ours = converting.Ours(tmp_path, said)
    wanted = dict(zip(MAILS, real.fates(rc, [(one.content, one.sender) for one in MAILS.values()]), strict=True))
    found = {which: ours.fate(one.content, one.sender, one.recipient) for which, one in MAILS.items()}
    assert found == wanted, said
    assert len(set(wanted.values())) > 1, "it tells no message from another"


def test_there_are_enough_of_them() -> None:
    assert len(FILES) >= 30


# What somebody with lists and spam has; none of it knows the messages.
REAL_WORLD = {
    "lists and spam": """
:0 c
* ^Subject:.*(linux|razor)
.copies/
:0
* ^X-Spam-Flag: YES
.Junk/
:0
* 1^0 ^Subject:.*(viagra|mortgage|adv:|free )
* 1^0 ^Subject:.*[$!][$!]
* 2^0 ^Content-Type:.*charset=.?ks_c
* -2^0 ^List-Id:
* -1^0 ^In-Reply-To:
.Junk/
:0
* ^(List-Id|X-Mailing-List|Mailing-List):.*(spamassassin|ilug|exmh|fork)
{
  :0
  * ^Subject:[ ]*re:
  .lists.answers/
  :0 E
  .lists/
}
:0
* ^FROM_DAEMON
.machines/
:0
* > 10000
.large/
""",
    "people": """
:0
* ^TO_(zzzz|fork|webdev)
* ! ^X-Mailer:.*outlook
{
  :0 c
  * ^From:.*\\.com
  ! com@example.com
  :0
  * ^Sender:.*admin@
  .admin/
}
:0
* ^From:[^@]*@(yahoo|hotmail|aol)\\.
.free/
:0 E
* ^User-Agent: Mutt
.mutt/
:0
* ^FROM_MAILER
/dev/null
:0
* ^Message-ID:[ ]*<[0-9]+\\.
.numbers/
""",
}


@pytest.mark.parametrize("name", REAL_WORLD)
def test_real_mail_goes_where_procmail_delivers_it(name: str, tmp_path: Path, real: converting.Procmail) -> None:
    paths = converting.some_messages(100)
    assert len(paths) == 100
    rc = TOP + REAL_WORLD[name]
    conversion = convert(rc)
    assert not [one for one in conversion.reported if not one.warning]
    ours = converting.Ours(tmp_path, converting.rules_of(conversion))
    # procmail reads a From_ line on top as its own, and we as an mbox's; neither is part of a message.
    contents = [path.read_bytes() for path in paths]
    contents = [one.partition(b"\n")[2] if one.startswith(b"From ") else one for one in contents]
    wanted = real.fates(rc, [(one, converting.SENDER) for one in contents])
    found = [ours.fate(one) for one in contents]
    differ = [(path.name, want, got) for path, want, got in zip(paths, wanted, found, strict=True) if want != got]
    assert not differ, f"{len(differ)} of {len(paths)}"
    assert len(set(wanted)) > 3


# --- the rest ----------------------------------------------------------------------------------------------------

TOOK = "the rules below are now asked about the mail that it took, too"

REPORTED = {
    "a program": (
        ":0\n* ^Subject:.*x\n| /usr/local/bin/ticket\n\n:0\n.rest/\n",
        1,
        "gives the message to a program",
    ),
    "a filter": (":0 fw\n| sed s/a/b/\n", 1, "add-header, remove-header and tag-subject alone"),
    "a condition by a program": (":0\n* ? test -f x\n.x/\n", 1, "rules ask no program"),
    "a variable looked at": ("X=$1\n:0\n* X ?? y\n.x/\n", 2, "the variable X is not looked at"),
    "a variable of a copy": (":0 c\n{ X=.y/\n:0\n.x/\n}\n:0\n$X\n", 6, "depends on the message"),
    "a match that is nothing of ours": (":0\n* ^Sender: owner-\\/[^@]+\n.$MATCH/\n", 1, "depends on the message"),
    "a list's name that is cut": (":0\n* ^List-Id:.*<\\/[a-z]+\n.$MATCH/\n", 1, "depends on the message"),
    "an address by a match": (":0\n* ^Subject: \\/.*\n! $MATCH\n", 1, "the address depends on the message"),
    "a variable cut in pieces": (":0\n* ^Subject: \\/.*\n{ X=$MATCH\n:0\n* X ?? ^a\n.x/\n}\n", 4, "is not looked at"),
    "encoded words": (":0\n* ^Subject:.*=\\?koi8-r\n.x/\n", 1, "in which there is no =?charset?"),
    "a part of a name": (":0 B\n* name=\"(love|hate)\\.exe\"\n.x/\n", 1, 'attachment = "*.exe"'),
    "base64": (":0 B\n* ^TVqQAAMAAAAEAAAA\n.x/\n", 1, "no base64 is left"),
    "an answer": (":0 Whc\n* ! ^FROM_DAEMON\n| formail -rD 8192 vacation.cache\n", 1, "[rule.reply]"),
    "what it has written": (
        ':0 fhw\n| formail -I "X-A: b"\n:0\n* ^X-A: b\n.x/\n',
        3,
        "it looks at what the recipe in line 1 has changed",
    ),
    "the subject that it has tagged": (
        ':0 fhw\n* ^From:.*x\n| formail -i "Subject: [x] `formail -xSubject:`"\n:0\n* ^Subject:.*x\n.x/\n',
        4,
        "in line 1 has changed",
    ),
    "a folder by a match": (":0\n$MATCH/\n", 1, "depends on the message"),
    "a folder by a program": ("DAY=`learn`\n", 1, "depends on the message, or on a program"),
    "a date": (":0\n.x.`date +%H`/\n", 1, "no %H of date(1)"),
    "a variable that comes with the message": (":0\n* $ ^To:.*$EXTENSION\n.x/\n", 1, "variables are depends on"),
    "weights that grow": (":0\n* 1^1 ^Received:\n* -3^0\n.x/\n", 1, "grow with each match"),
    "any line": (":0\n* viagra\n.x/\n", 1, "that begin with the name of a field"),
    "no colon": (":0\n* ^Subject\n.x/\n", 1, 'write "^Subject:"'),
    "names that are not written out": (":0\n* ^X-.*-Id: x\n.x/\n:0\n* ^[a-z]+: x\n.y/\n", 4, "is not written out"),
    "no blank behind the colon": (":0\n* ^Subject:x\n.x/\n", 1, "a blank stands behind"),
    "what may be nothing, again and again": (":0\n* ^Subject:(x*)*y\n.x/\n", 1, "repeats what may be nothing"),
    "signs behind signs": (":0\n* ^Subject:.*Wh?*at\n.x/\n", 1, "one sign of repetition is enough"),
    "several lines": (":0\n* ^Subject:.*x$^From:\n.x/\n", 1, "several lines"),
    "lines of parts": (":0 B\n* ^Content-.*name=.*\\.exe\n.x/\n", 1, 'attachment = "*.exe"'),
    "the header alone": (":0 h\n.x/\n", 1, "not the header alone"),
    "after a failure": (":0 e\n.x/\n", 1, "tried again by the mail server"),
    "an unknown flag": (":0 X\n.x/\n", 1, "there is no flag X"),
    "options of sendmail": (":0\n! -f me you@example.org\n", 1, "options for the program"),
    "no address": (":0\n! root\n", 1, '"root" is no mail address'),
    "elsewhere": (":0\n/srv/mail2/x\n", 1, "is not in the mailbox"),
    "another file": ("INCLUDERC=lists.rc\n:0\n.rest/\n", 1, f"put its rules here; {TOOK}"),
    "an exit code": ("EXITCODE=67\n", 1, "a rule says `bounce`"),
    "a late default": (":0\n* ^Subject:.*x\n.x/\nDEFAULT=$HOME/other\n", 4, "settled at the beginning"),
    "what procmail passes over": ("* ^Subject:.*x\n", 1, "procmail passes it over"),
    "a folder's name": (":0\n.100%/\n", 1, "cannot have '%'"),
}


@pytest.mark.parametrize("name", REPORTED)
def test_what_no_rule_can_say_is_reported_with_its_line(name: str) -> None:
    rc, line, words = REPORTED[name]
    (one,) = [one for one in convert(rc).reported if not one.warning]
    assert one.line == line
    assert words in one.reason
    assert one.text.splitlines()[0] == rc.splitlines()[line - 1]


def test_a_report_says_that_rules_below_see_the_mail_that_it_took() -> None:
    for rc, says in (
        (":0\n| x\n:0\n.x/\n", True),
        (":0 c\n| x\n:0\n.x/\n", False),
        (":0\n.x/\n:0\n| x\n", False),
        (":0\n* ? test\n{\n:0\n.x/\n}\n:0\n.y/\n", True),
    ):
        (one,) = [one for one in convert(rc).reported if not one.warning]
        assert one.reason.endswith(TOOK) == says, rc


@pytest.mark.parametrize(
    "above", [":0\n* ? test\n.a/\n", ":0\n* ^Subject:.*x\n| ticket\n", "INCLUDERC=x\n", ":0\n* ? test\n{\n:0\n.a/\n}\n"]
)
def test_nothing_is_deleted_that_a_reported_recipe_may_have_kept(above: str) -> None:
    conversion = convert(f"{above}:0\n/dev/null\n")
    assert not conversion.rules
    assert "it would lose mail that the original may have kept: see line 1" in conversion.reported[-1].reason
    (rule,) = convert(f":0\n* ^Subject:.*y\n{{\n{above}}}\n:0 E\n/dev/null\n").rules
    assert rule.table["discard"]


def test_dovecots_program_may_stand_in_a_variable() -> None:
    rc = "DELIVER=/usr/lib/dovecot/deliver\n:0 w\n* ^Subject:.*x\n| $DELIVER -m A\n:0 w\n| $DELIVER\n"
    conversion = convert(rc)
    assert not conversion.reported
    assert [rule.table["file"] for rule in conversion.rules] == ["A"]


def test_what_depends_on_a_reported_recipe_is_reported() -> None:
    rc = ":0\n* ? test\n.a/\n:0 A\n.b/\n:0 E\n.c/\n:0\n.d/\n"
    conversion = convert(rc)
    assert [one.line for one in conversion.reported] == [1, 4, 6]
    assert [rule.table["file"] for rule in conversion.rules] == ["d"]


NEARLY = {
    "a variable that only a message brings": ("X=$1\n", "depends on the message"),
    "a word of the message": ("FROM=`formail -rtzxTo:`\n", "depends on the message"),
    "a list's capital letters": (":0\n* ^List-Id:.*<\\/[^.>]*\n.$MATCH/\n", "in small letters"),
    "files by their names": (':0 B\n* name=".*\\.(exe|scr)"?$\n.x/\n', "attachments are asked for by their names"),
    "lines of DOS": ("MAILDIR=$HOME/Maildir\r\n:0\r\n* ^Subject:.*x\r\n.x/\r\n", "end in CR LF"),
    "a setting of procmail": ("VERBOSE=on\n", "a setting of procmail itself"),
    "the scanner": (":0 fw\n| /usr/bin/spamc -s 256000\n", "the site's configuration says what scans mail"),
    "the body": (":0 B\n* x\n.x/\n", "decoded text"),
    "a field's beginning": (":0\n* ^Subject.*x\n.x/\n", 'is taken for "^Subject:.*"'),
    "X-Spam lines": (":0\n* ^X-Spam-Report:.*x\n.x/\n", "are removed before rules are asked"),
    "duplicates": (":0 Wh\n| formail -D 8192 cache\n", "remembered for a week"),
    "a copy that falls through": (":0 c\n{\n:0\n* ^Subject:.*x\n.x/\n}\n", "a second time"),
    "never reached": (":0\n.x/\n:0\n.y/\n", "no message comes to it"),
    "a line beside another": (':0 fw\n| formail -a "X-A: b"\n', "whether or not one of its name is there"),
    "a line for another": (':0 fw\n| formail -i "X-A: b"\n', "whether or not one of its name is there"),
    "a line on an earlier copy": (':0 c\n.x/\n:0 fw\n| formail -A "X-A: b"\n', "on every place of a message"),
}


@pytest.mark.parametrize("name", NEARLY)
def test_what_is_nearly_the_same_is_a_warning(name: str) -> None:
    rc, words = NEARLY[name]
    conversion = convert(rc)
    assert [one.warning for one in conversion.reported] == [True]
    assert words in conversion.reported[0].reason
    converting.rules_of(conversion)


ATTACHED = """\
From: a@b.example
Subject: files
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="x"

--x
Content-Type: text/plain

Look at holiday.exe, name it.
--x
Content-Type: application/octet-stream; NAME
Content-Disposition: attachment; filename="FILE"
Content-Transfer-Encoding: base64

TVqQAAMAAAAEAAAA
--x--
"""


@pytest.mark.parametrize(
    "pattern",
    [
        "^Content-Disposition: attachment;.*$.*filename=.*\\.(exe|scr)",
        'filename=".*\\.(exe|pif|scr|vb[es]?)"',
        '(file)?name="?.*\\.(exe|scr|pif)"?$',
        "^Content-Disposition: *attachment",
        '^Content-(Type|Disposition):.*name="[^"]*\\.scr"',
    ],
)
def test_files_are_asked_for_by_their_names(pattern: str, tmp_path: Path, real: converting.Procmail) -> None:
    rc = f"{TOP}:0 B\n* {pattern}\n.files/\n"
    conversion = convert(rc)
    if "$." in pattern:  # over two lines
        assert not conversion.rules
        return
    assert not [one for one in conversion.reported if not one.warning]
    ours = converting.Ours(tmp_path, converting.rules_of(conversion))
    names = [("name=\"A.EXE\"", "A.EXE"), ("name=\"a.txt\"", "a.txt"), ("name=\"b.scr\"", "b.scr"), ("x=y", "c.vbs")]
    mails = [ATTACHED.replace("NAME", name).replace("FILE", file).encode() for name, file in names]
    mails.append(b"From: a@b.example\nSubject: none\n\nNothing.\n")
    wanted = real.fates(rc, [(one, converting.SENDER) for one in mails])
    assert [ours.fate(one) for one in mails] == wanted
    assert len(set(wanted)) == 2


@pytest.mark.parametrize(
    ("end", "table"),
    [
        ("EXITCODE=77\n HOST\n", {"bounce": True}),
        ("EXITCODE=67 # nobody\n :0\n /dev/null\n", {"bounce": True}),
        ("EXITCODE=0 HOST=\n", {"discard": True}),
        ("HOST\n", {"discard": True}),
    ],
)
def test_where_it_ends_with_a_code_mail_goes_back(end: str, table: dict[str, bool]) -> None:
    """procmailrc(5), EXITCODE and HOST; 3.23pre ends with 77, 67, 0, 0 and stores nothing."""
    conversion = convert(f":0\n* ^From:.*x\n{{\n {end}}}\n:0\n.rest/\n")
    assert not conversion.reported
    first, second = (rule.table for rule in conversion.rules)
    assert first == {"sees": "all", **table, "when": {"header": {"From": "*x*"}}}
    assert second == {"sees": "all", "file": "rest"}


@pytest.mark.parametrize(
    "end", ["EXITCODE=75\n HOST\n", "EXITCODE=77\n :0\n .x/\n", "EXITCODE=77\n :0 c\n /dev/null\n", "HOST=there\n"]
)
def test_other_ends_are_reported(end: str) -> None:
    conversion = convert(f":0\n* ^From:.*x\n{{\n {end}}}\n")
    assert [one for one in conversion.reported if not one.warning]
    assert not [rule for rule in conversion.rules if "bounce" in rule.table]


@pytest.mark.parametrize(
    "command",
    [
        'formail -i "Subject: [SPAM] $SUBJECT"',
        "formail -I 'Subject: [SPAM]'\"$SUBJECT\"",
        'formail -I"Subject: [SPAM] `formail -zxSubject:`"',
        "sed -e 's/^Subject:[ ]*/Subject: [SPAM] /'",
        "sed 's/^Subject: */Subject: [SPAM] /i'",
    ],
)
def test_a_tag_before_the_subject(command: str) -> None:
    rc = f"SUBJECT=`formail -xSubject:`\n:0 fhw\n* ^List-Id:\n| {command}\n"
    conversion = convert(rc)
    assert not [one for one in conversion.reported if not one.warning]
    (rule,) = conversion.rules
    assert rule.table == {"sees": "all", "tag-subject": "[SPAM]", "when": {"header": {"List-Id": "*"}}}
    converting.rules_of(conversion)


def test_a_second_copy_goes_where_the_recipes_for_it_say() -> None:
    (rule,) = convert(":0 Whc\n| formail -D 8192 cache\n:0 a\n.again/\n").rules
    assert rule.table == {"sees": "all", "file": "again", "when": {"duplicate": True}}


def test_header_lines_are_those_that_formail_writes(tmp_path: Path, real: converting.Procmail) -> None:
    rc = (
        TOP
        + """
:0 fhw
| formail -A "X-Loop: you@example.org"
:0 fhw
| formail -I "X-Mailer: none"
:0 fhw
| formail -I "X-Number:"
"""
    )
    for which in ("list", "cron"):
        mail = MAILS[which]
        (stored,) = real.stored(rc, [(mail.content, mail.sender)])
        ours = converting.Ours(tmp_path, converting.rules_of(convert(rc)))
        plan, _steps = ours.decision(mail.content, mail.sender)
        lines = set(stored.decode().partition("\n\n")[0].splitlines())
        kept = [
            line
            for line in mail.content.decode().partition("\n\n")[0].splitlines()
            if line.partition(":")[0].lower().encode() not in plan.edits.removed
        ]
        assert {line for line in lines if not line.startswith("From ")} == {*kept, *plan.headers.decode().splitlines()}


def test_our_scanners_word_counts_where_a_recipe_looked_at_another_ones(tmp_path: Path) -> None:
    ours = converting.Ours(
        tmp_path, converting.rules_of(convert(":0 fw\n| spamc\n:0\n* ^X-Spam-Status: Yes\n.Junk/\n"))
    )
    spam = {"spamd": {"finding": "spam", "score": 5.5, "required": 5.0}}
    assert ours.fate(MAILS["plain"].content, scan=spam).places == {("Junk", frozenset())}
    clean = {"spamd": {"finding": "clean", "score": 1.5, "required": 5.0}}
    assert ours.fate(MAILS["plain"].content, scan=clean).places == {("INBOX", frozenset())}


def test_dovecots_delivery_agent_names_a_folder() -> None:
    for program in ("/usr/lib/dovecot/deliver -m Lists/a", "dovecot-lda -d you -m INBOX.Lists.a -e"):
        (rule,) = convert(f":0 w\n| {program}\n").rules
        assert rule.table == {"sees": "all", "file": "Lists.a"}


def test_comments_stay_where_they_stood() -> None:
    rc = """\
# My recipes
MAILDIR=$HOME/Maildir  # here
# lists
:0
# by their name
* ^List-Id:
{
  # some
  :0
  .x/
  # no more
}
# a program
:0
| x
# the end
"""
    lines = [line for line in text(convert(rc), "f").splitlines() if line]
    assert lines[lines.index("# My recipes") :] == [
        "# My recipes",
        "# here",
        "# lists",
        "# by their name",
        "# some",
        "[[rule]]",
        'sees = "all"',
        'file = "x"',
        "[rule.when]",
        'header = { List-Id = "*" }',
        "# no more",
        "# a program",
        "# line 14, not converted: it gives the message to a program; the site may name one in [programs], for `pipe`",
        "#     :0",
        "#     | x",
        "# the end",
    ]


def test_the_same_file_becomes_the_same_rules() -> None:
    for rc in (*FILES.values(), *(rc for rc, *_ in REPORTED.values())):
        assert text(convert(rc), "f") == text(convert(rc), "f")


@pytest.mark.parametrize(
    ("rc", "line", "words"),
    [
        (":0\n* ^Subject:\n", 1, "has no action line"),
        ("\n:0\n{\n:0\n.x/\n", 2, "is never closed"),
        (":2\n^Subject:\n", 1, "has no action line"),
        ('X=1\nY="a\n', 2, "is never closed"),
        (":0\n{\n" * 100, 102, "deep"),
    ],
)
def test_what_is_no_rc_file_is_refused_with_its_line(rc: str, line: int, words: str) -> None:
    with pytest.raises(Wrong, match=re.escape(words)) as error:
        convert(rc)
    assert error.value.line == line


def test_hostile_expressions_take_no_time() -> None:
    """Compared by trying every way these take minutes, or years."""
    value = f'X={"a" * 1000}\n:0\n* X ?? a*a*a*(a+)+b\n.x/\n'
    (never,) = convert(value).reported
    assert never.reason == "no message comes to it"
    sed = ":0 fw\n| sed -e 's/^Subject:/Subject:" + " " * 5000 + "/'\n"
    assert "tag-subject alone" in convert(sed).reported[0].reason
    assert convert(f":0\n* {'1' * 5000}^0 ^Subject: x\n.{'x' * 5000}/\n").rules == ()
    for wild in ("[ ]*", '"*'):
        assert convert(f":0 B\n* name={wild * 40}x\n.x/\n").rules == ()


def test_what_is_no_text_is_compared_with_nothing() -> None:
    (line,) = convert("X=\udcff\n:0\n* X ?? y\n.x/\n").reported
    assert "cannot be tried" in line.reason


def test_the_command_converts_them(tmp_path: Path) -> None:
    rc = tmp_path / ".procmailrc"
    rc.write_text(":0\n* ^Subject:.*x\n.x/\n")
    done = CliRunner().invoke(command, ["procmail", "--strict", str(rc)])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == text(convert(rc.read_text()), str(rc))
