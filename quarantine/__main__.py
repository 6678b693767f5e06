"""`python -m quarantine`."""

from quarantine.commands import cli

if __name__ == "__main__":
    cli(prog_name="quarantine")
