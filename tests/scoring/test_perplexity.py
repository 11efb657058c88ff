"""Texts are predicted as the harness's own rolling windows have it, each token once."""

from __future__ import annotations

import math

import pytest

from offsite.data.tasks import Question, Task
from offsite.scoring import evaluate
from offsite.scoring.scorer import answer_likelihoods
from offsite.scoring.tokens import reads, windows
from tests.families import tiny_model
from tests.scoring.harness import harness_rolls

TEXTS = tuple(" ".join(f"w{4 + (i * i + n) % 120}" for i in range(n)) for n in (1, 40, 128, 300))
"""Of one token, of less than a window, of a window, of more than two."""


def predicted(model, tokenizer):
    """The negative log-likelihood of each text, and its tokens."""
    asked = windows(TEXTS, tokenizer, reads(model, tokenizer))
    flat = iter(answer_likelihoods(model, [pair for one in asked for pair in one], lambda *_: None))
    return [(-sum(next(flat).loglik for _ in one), sum(len(said) for _, said in one)) for one in asked]


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3"])
def test_it_is_the_harness_s_own(family, tokenizer):
    model = tiny_model(family)
    ours = predicted(model, tokenizer)
    theirs = harness_rolls(model, tokenizer, TEXTS, longest=128)
    assert [tokens for _, tokens in ours] == [1, 40, 128, 300]
    assert [-nll for nll, _ in ours] == pytest.approx(theirs, abs=1e-3)


def test_the_score_is_per_token_and_knows_no_accuracy(llama, tokenizer):
    task = Task("prose", (), "perplexity", texts=TEXTS)
    other = Task("ask", (Question("w5", ("w6", "w7"), 0),))
    found = evaluate(llama, tokenizer, [task, other])
    assert list(found) == ["prose", "ask"]
    score = found["prose"]
    assert (score.acc, score.acc_stderr, score.acc_norm, score.acc_norm_stderr, score.n) == (*[None] * 4, 4)
    rolled = predicted(llama, tokenizer)
    assert score.nll == pytest.approx(sum(nll for nll, _ in rolled) / 469)
    assert 0 < score.nll_stderr < math.inf
    assert found["ask"].acc is not None
    first = evaluate(llama, tokenizer, [task], limit=2)["prose"]
    assert first.n == 2
    assert first.nll == pytest.approx(sum(nll for nll, _ in rolled[:2]) / 41)


def test_one_text_has_no_standard_error(llama, tokenizer):
    task = Task("prose", (), "perplexity", texts=TEXTS[-1:])
    assert evaluate(llama, tokenizer, [task])["prose"].nll_stderr == 0.0
