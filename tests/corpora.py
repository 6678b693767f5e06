"""Test material that nobody of this project wrote, beside the checkout; what needs it is skipped where it is absent."""

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent / "shared" / "corpora"


def needs(name: str) -> Path:
    """A set of it, by its folder's name."""
    path = ROOT / name
    if not path.is_dir():
        pytest.skip(f"the test material {name} is not beside this project")
    return path


def messages() -> Iterator[Path]:
    """Every file of every set; most are messages, and all are something that could arrive."""
    if not ROOT.is_dir():
        pytest.skip("the test material is not beside this project")
    yield from (path for path in sorted(ROOT.rglob("*")) if path.is_file())
