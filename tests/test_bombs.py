"""Archives that are made to fill memory or take for ever: each is answered in time, and never as if all were well."""

import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import corpora
import packed
import pytest
import servers
from packed import zipped

from deliver.content import attachments

HERE = str(Path(__file__).resolve().parent.parent)
SECONDS = 5.0
MEMORY = 160 * 1024  # KiB, beside some 40 MiB that the process has before

# What the delivery's own process and the child's take beside what they took before.
SCRIPT = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[1])
from deliver.content import attachments
from deliver.content.bounds import Bounds
data = open(sys.argv[2], "rb").read()
head = b"MIME-Version: 1.0\\nContent-Type: application/octet-stream; name=\\"%s\\"\\n\\n" % sys.argv[3].encode()
def chunks():
    yield head
    for at in range(0, len(data), 65536):
        yield data[at:at + 65536]
def used():  # ru_maxrss begins with what the process had that started this one
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before, start = used(), time.monotonic()
if sys.argv[4] == "read":
    found = attachments.read(chunks())
    said, number = found.unread, len(found.files)
else:
    bounds = Bounds()
    number = sum(1 for _ in attachments.contents(chunks(), bounds))
    said = bounds.exceeded
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([time.monotonic() - start, used() - before, child, number, said]))
"""


def forty_two() -> bytes:
    """As 42.zip: sixteen in each, five deep, and a large file in the last."""
    data = zipped(("0.dll", bytes(100 << 20)))
    for _ in range(5):
        data = zipped(*((f"lib {number:x}.zip", data) for number in range(16)))
    return data


def seven_zip(folder: Path, *files: tuple[str, int]) -> bytes:
    program = servers.needs("7zz")
    for name, size in files:
        with (folder / name).open("wb") as file:
            file.truncate(size)
    subprocess.run([program, "a", "-bd", "-mx=1", "bomb.7z", "."], cwd=folder, capture_output=True, check=True)
    return (folder / "bomb.7z").read_bytes()


TEN = 10 << 30
BOMBS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "ten.zip": (lambda _: packed.zip_of(b"zeros.txt", packed.zeros(10), TEN & 0xFFFFFFFF), "200 times"),
    "lies.zip": (lambda _: packed.zip_of(b"in.tar", packed.zeros(10), 100), "too much"),
    "letter.zip": (lambda _: packed.zip_of(b"a.eml", packed.zeros(30), 0xFFFFFFFF), "too much"),
    "ten.gz": (lambda _: b"\x1f\x8b\x08\x00" + bytes(6) + packed.zeros(10), "too much"),
    "zeros.xz": (lambda _: lzma.compress(b"text" * (64 << 20), preset=0), "200 times"),
    "42.zip": (lambda _: forty_two(), "too deep"),
    "quine.gz": (lambda _: packed.quine(), "too deep"),
    "overlap.zip": (lambda _: packed.overlapping(30_000, 20 << 20), "200 times"),
    "many.zip": (lambda _: zipped(*((f"{number}.txt", b"x") for number in range(100_000))), "too many files"),
    "many.docx": (
        lambda _: zipped(("[Content_Types].xml", b"x"), *((f"word/{number}.xml", b"x") for number in range(100_000))),
        "too many files",
    ),
    "zeros.7z": (lambda folder: seven_zip(folder, ("zeros", 256 << 20)), "200 times"),
    "many.7z": (lambda folder: seven_zip(folder, *((f"{number}", 0) for number in range(12_000))), "too many files"),
    "headers.zip": (lambda _: b"PK\x03\x04" * 2_000_000, "too many files"),
}


def measured(path: Path, name: str, how: str) -> tuple[float, int, int, int, str]:
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, HERE, str(path), name, how],
        capture_output=True, check=True, timeout=60, text=True,
    )  # fmt: skip
    found: tuple[float, int, int, int, str] = tuple(json.loads(done.stdout))
    return found


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str, tmp_path: Path) -> None:
    make, words = BOMBS[name]
    (tmp_path / "work").mkdir()
    path = tmp_path / "bomb"
    path.write_bytes(make(tmp_path / "work"))
    # The first takes all the time there is; in a document clamd looks itself.
    for how in ("read",) if name in {"overlap.zip", "many.docx"} else ("read", "contents"):
        seconds, memory, child, number, said = measured(path, name, how)
        assert number
        assert seconds < SECONDS, how
        assert memory < MEMORY, how
        assert child < MEMORY, how
        assert said, how
        if how == "read":
            assert words in said


def test_malformed_zips_of_others() -> None:
    """yauzl's own tests refuse each of those in failure/: something in each is not as it should be."""
    for path in sorted(corpora.needs("hostile-yauzl-zip").rglob("*.zip")):
        if not path.stat().st_size:
            continue
        head = b'Content-Type: application/zip; name="a.zip"\n\n'
        read = attachments.read([head + path.read_bytes()])
        assert read.files
        assert read.unread or len(read.files) > 1 or path.name == "empty.zip", path.name


def test_time_runs_out_in_python_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deliver.content.bounds.SECONDS", 0.0)
    head = b'Content-Type: application/zip; name="a.zip"\n\n'
    read = attachments.read([head + zipped(("evil.exe", b"MZ"))])
    assert read.unread == "archives take longer than 0 s"
