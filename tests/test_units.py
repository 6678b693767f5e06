"""Sizes and spans of time, as people write them."""

import pytest

from deliver.units import parse_size, parse_span, span_words


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512 B", 512),
        ("1 KB", 1000),
        ("1 KiB", 1024),
        ("25 MiB", 25 * 1024 * 1024),
        ("25MiB", 25 * 1024 * 1024),
        ("100 MB", 100_000_000),
        ("2 GB", 2_000_000_000),
        ("2 GiB", 2_147_483_648),
        ("1.5 KiB", 1536),
        (" 1 kb ", 1000),
        ("9007199254740993 B", 9_007_199_254_740_993),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5 min", 300.0),
        ("150 s", 150.0),
        ("1.5 h", 5400.0),
        ("2 d", 172_800.0),
        ("2d", 172_800.0),
        ("1 w", 604_800.0),
        ("1 second", 1.0),
        ("90 seconds", 90.0),
        ("1 minute", 60.0),
        ("2 minutes", 120.0),
        ("1 hour", 3600.0),
        ("3 hours", 10_800.0),
        ("1 day", 86_400.0),
        ("30 days", 2_592_000.0),
        ("1 week", 604_800.0),
        ("2 Weeks", 1_209_600.0),
    ],
)
def test_a_span_is_read(text: str, seconds: float) -> None:
    assert parse_span(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "MiB", "-1 MB", "+1 MB", "1e3", "nan", "inf", "1 K", "5 mb x", "1,5 MB", "٣ MB", "9" * 5000]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r'expected a size such as "25 MiB".*KiB'):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "5", "5 m", "5 months", "-5 s", "1 h 30 min", "nan s", "inf d", "1e9 s", "٣ s"])
def test_what_is_no_span_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r'expected a span of time such as "5 min" \(units s, min, h, d, w\)'):
        parse_span(text)


@pytest.mark.parametrize(
    ("seconds", "words"), [(2592000.0, "30 d"), (300, "5 min"), (5400, "90 min"), (7200, "2 h"), (0.5, "0.5 s"), (0, "0 s")]
)
def test_a_span_in_words_is_read_as_the_same(seconds: float, words: str) -> None:
    assert span_words(seconds) == words
    assert parse_span(words) == seconds
