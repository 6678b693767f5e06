"""What the MTA is told: from a plan or an error to an exit code and one public line.

0, 75 and 100 mean the same to qmail, Postfix, Exim, OpenSMTPD and Courier; every other code bounces mail somewhere.
"""

import re
from collections.abc import Mapping

from deliver.errors import DeliverError
from deliver.values import Outcome, Plan, Reply, Verb

OK = 0
TRY_AGAIN = 75
GIVE_BACK = 100
STOP = 99
"""qmail-command(8): done, and the rest of .qmail is not for this message. A bounce everywhere else."""

_STATUS = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3}) (.*)")


def public(line: str) -> str:
    """A line as Postfix reads it, status code in front, and as qmail writes it, code behind."""
    clean = re.sub(r"[^ -~]+", " ", line).strip()
    found = _STATUS.fullmatch(clean)
    return f"{clean} (#{found[1]})" if found else clean


def from_plan(plan: Plan) -> Reply:
    """The reply for a plan that was carried out."""
    for action in plan.actions:
        if action.verb is Verb.BOUNCE:
            return Reply(GIVE_BACK, public(action.text))
        if action.verb is Verb.DEFER:
            return Reply(TRY_AGAIN, public(action.text))
    return Reply(OK)


def from_error(error: BaseException) -> Reply:
    """The reply for a delivery that failed: 75, whatever failed."""
    return Reply(TRY_AGAIN, public(error.line if isinstance(error, DeliverError) else "4.3.0 Temporary failure"))


def answer(outcome: Outcome, environment: Mapping[str, str]) -> Reply:
    """The reply to a command that was called with --stop-after-spam; without it the environment is given empty.

    99 is for a message that was discarded, held or filed as spam, and only where qmail-command(8)'s variables prove
    that qmail reads it.
    """
    verbs = {action.verb for action in outcome.plan.actions}
    gone = bool(verbs & {Verb.DISCARD, Verb.QUARANTINE}) or (outcome.plan.spam and Verb.FILE in verbs)
    under_qmail = all(environment.get(name) for name in ("RPLINE", "DTLINE", "UFLINE"))
    return Reply(STOP) if gone and under_qmail and outcome.reply.code == OK else outcome.reply
