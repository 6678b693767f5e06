"""What the variables of an rc file are to a conversion (procmailrc(5), Environment)."""

OWN = frozenset(
    "SHELL PATH LOGFILE VERBOSE LOGABSTRACT LOG LOCKFILE LOCKEXT LOCKSLEEP LOCKTIMEOUT TIMEOUT NORESRETRY SUSPEND "
    "LINEBUF SHELLFLAGS SHELLMETAS SENDMAIL SENDMAILFLAGS UMASK COMSAT MSGPREFIX DROPPRIVS".split()
)
"""Those that steer procmail itself, or the programs that it runs: a rule needs none of them."""

STEERS = {
    "INCLUDERC": "another file's recipes; convert that file and put its rules here",
    "SWITCHRC": "another file's recipes, and none of those below; convert that file and put its rules here",
    "EXITCODE": "a rule says `bounce` where mail is to go back",
    "HOST": "a rule says `file` or `discard` where nothing below is to be asked",
    "TRAP": "no program is run at the end of a delivery",
    "DELIVERED": "a rule says `discard` where mail is to be lost",
    "SHIFT": "a rule has no arguments",
}
"""Those that say what becomes of mail, each with what stands for it here."""
