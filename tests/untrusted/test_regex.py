"""Which patterns are refused, and that no honest one is."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from offsite.errors import UserError
from offsite.untrusted.regex import check_patterns

FILE = Path("tokenizer.json")

HONEST_PATTERNS = [  # of gpt2, llama 3, qwen 2, o200k, deepseek v3, bloom, t5, clip, and below
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?:'[sS]|'[tT])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|"
    r"'m|'ll|'d)?|\p{N}{1,3}",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r" {2,}",
    # o200k whole
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    # cl100k as it was published
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
    r"\s*[\r\n]|\s+(?!\S)|\s",
    # kimi k2
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{M}&&[^\p{Han}]]+(?i:'s|'t)?|\p{N}{1,3}",
    # deepseek coder, one after another; falcon
    r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"\s+$", "[一-龥ࠀ-一가-퟿]+", r"\p{N}+", "[0-9][0-9][0-9]",
    "(?:ab){2}c", r"(?<word>\w+) ",
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
]  # fmt: skip
ENDLESS_PATTERNS = [
    "(a+)+$", "(a|aa)+$", "(?:a*)*b", "((a+)b?)+c", r"(.*)\1", "(?i:a|b|ab)*c", "(a?){30}", "(?<x>a)\\k<x>",
    "[^0]*[^0]*[^0]*[^0]*0[xy]", "[^0]*[^0]*0[xy]", "a+a+b", "a{0,65}a{0,65}b", "a{1,3}+$", "(?:a{1,3}+|b)c",
    "a?" * 24 + "a" * 24, "(?:a|aa)" * 12 + "b", "a{0,64}a{0,64}a{0,64}b", "a{2,}{2,}b", "a+{2,9}b", "a**b",
    "(?<x>a*a*a*:b)", "a*(?i)|a*(?i)|a*(?i)|a*b", "(?~a)(?~a)b", "(?:x*y*)?(?:x*y*)?z", "a{2,}?a{2,}?a{2,}?b",
    "(?x)(?:a+) +b", "(?x:(?:a+) +)b", r"(?:a\c)+b)+c", r"(?:a\C-)+b)+c", "(?:x*x)(?:x*y)", "(?:x*x)?(?:x*y)",
    "(?:(?:x*x)(?:y|z))(?:x*y)", "(" * 17 + "a" + ")" * 17, "(" * 2400 + "a" + ")" * 2400,
    "a*a*a*", "x" * 6000, "[" * 1_000_000, "([a-z]+)*!", "(a{2,})*b",
]  # fmt: skip


@pytest.mark.parametrize("pattern", HONEST_PATTERNS)
def test_no_honest_pattern_is_refused(pattern):
    check_patterns(FILE, [pattern])


@pytest.mark.parametrize("pattern", ENDLESS_PATTERNS)
def test_a_pattern_without_end_is_refused(pattern):
    with pytest.raises(UserError, match="may take for ever"):
        check_patterns(FILE, [pattern])


def test_all_patterns_of_a_file_share_one_budget():
    start = time.process_time()
    for patterns in (["(" * 2000 + "a" + ")" * 2000] * 2000, ["(?:a)(?:b)" * 100] * 2000):
        with pytest.raises(UserError, match="together; at most 20000 are read"):
            check_patterns(FILE, patterns)
    assert time.process_time() - start < 0.5


def test_the_largest_patterns_that_are_read_take_little_time():
    start = time.process_time()
    for pattern in ("(" * 15 + "a" * 4900 + ")" * 15, "(?:a)" * 1000, "[[a]" * 1200, "(a" * 2400):
        with contextlib.suppress(UserError):
            check_patterns(FILE, [pattern] * 4)
    assert time.process_time() - start < 2
