"""`deliver sample`: a message to try a configuration with."""

import click

_HEAD = """\
From: Sample Sender <sender@example.org>
To: {recipient}
Subject: {subject}
Message-ID: <{kind}.sample@example.org>
Date: Sun, 22 Nov 2026 12:00:00 +0000
MIME-Version: 1.0
Content-Type: text/plain; charset=us-ascii

"""

# Both test strings are put together here so that neither this file nor a mail about it sets off a scanner.
_GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*" + "GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL" + "*C.34X"
_EICAR = r"X5O!P%@AP[4\PZX54(P^)7CC)7}$" + "EICAR-STANDARD-ANTIVIRUS" + "-TEST-FILE!$H+H*"

_BODIES = {
    "ham": ("A quiet message", "Hello,\n\nthis is a message like any other.\n"),
    "spam": ("An offer", f"SpamAssassin gives this line 1000 points (GTUBE):\n\n{_GTUBE}\n"),
    "virus": ("A file for you", f"{_EICAR}\n"),
}


def sample_message(kind: str, recipient: str = "you@example.org") -> str:
    """A whole message with LF line ends: "ham", "spam" (GTUBE) or "virus" (the EICAR test file, harmless)."""
    subject, body = _BODIES[kind]
    return _HEAD.format(kind=kind, recipient=recipient, subject=subject) + body


@click.command()
@click.argument("kind", type=click.Choice(sorted(_BODIES)))
@click.option("--recipient", default="you@example.org", show_default=True, help="The address in the To line.")
def sample(kind: str, recipient: str) -> None:
    """Print a sample message: ham, spam (GTUBE) or virus (EICAR).

    Try `deliver sample spam | deliver replay -`.
    """
    click.echo(sample_message(kind, recipient), nl=False)
