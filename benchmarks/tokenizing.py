"""What the worker costs: rows tokenised in this process and in the worker, in pairs.

Usage: python benchmarks/tokenizing.py MODEL [--text FILE] [--rows N] [--words N] [--rounds N].
MODEL is a folder with a tokenizer, FILE plain text from which the rows are cut. Untrusted tokenizers are read
in the worker, the user's own in this process. The start of the worker is timed by itself.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from offsite.data.encoding import prepare
from offsite.data.examples import Example, Piece
from offsite.untrusted.tokenize import encode_batch, mark_untrusted, token_ids

Encode = Callable[[PreTrainedTokenizerBase, list[str]], object]


def rows(text: str, count: int, words: int) -> list[str]:
    """`count` rows of `words` words each, from the text again and again."""
    endless = itertools.cycle(text.split(" "))
    return [" ".join(itertools.islice(endless, words)) for _ in range(count)]


def seconds(encode: Encode, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    start = time.perf_counter()
    encode(tokenizer, texts)
    return time.perf_counter() - start


def training_rows(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    """What `tune` does with data: prompts and answers to ids and labels."""
    middles = ((text[: len(text) // 2], text[len(text) // 2 :]) for text in texts)
    pairs = [Example((Piece(one, learnt=False), Piece(other, learnt=True))) for one, other in middles]
    prepare(pairs, tokenizer, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, default=Path(__file__).parents[1] / "docs" / "LOG.md")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    here = AutoTokenizer.from_pretrained(asked.model)
    worker = copy.deepcopy(here)
    mark_untrusted(worker)
    texts = rows(asked.text.read_text(), asked.rows, asked.words)
    print(f"start of the worker: {seconds(token_ids, worker, ['a']):.2f} s")
    for encode in (token_ids, encode_batch, training_rows):
        pairs = [(seconds(encode, here, texts), seconds(encode, worker, texts)) for _ in range(asked.rounds)]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for other, one in pairs)
        print(f"{encode.__name__}: {len(texts)} rows, here {ours:.2f} s, ", end="")
        print(f"in the worker {theirs:.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
