"""Texts are predicted as the harness's own rolling windows have it, each token once."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import pytest

from offsite.data.tasks import Question, Task
from offsite.scoring import evaluate, harness
from tests.families import tiny_model

TEXTS = tuple(" ".join(f"w{4 + (i * i + n) % 120}" for i in range(n)) for n in (1, 40, 128, 300))
"""Of one token, of less than a window, of a window, of more than two."""


def harness_says(model, tokenizer):
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    own = harness.HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", max_length=min(128, 512))
    asked = [SimpleNamespace(args=(text,)) for text in TEXTS]
    return own.loglikelihood_rolling(asked, disable_tqdm=True)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3"])
def test_it_is_the_harness_s_own(family, tokenizer):
    model = tiny_model(family)
    ours = harness.roll(model, tokenizer, TEXTS)
    assert [tokens for _, tokens in ours] == [1, 40, 128, 300]
    assert [-nll for nll, _ in ours] == pytest.approx(harness_says(model, tokenizer), abs=1e-3)


def test_the_score_is_per_token_and_knows_no_accuracy(llama, tokenizer):
    task = Task("prose", (), "perplexity", texts=TEXTS)
    other = Task("ask", (Question("w5", ("w6", "w7"), 0),))
    found = evaluate(llama, tokenizer, [task, other])
    assert list(found) == ["prose", "ask"]
    score = found["prose"]
    assert (score.acc, score.acc_stderr, score.acc_norm, score.acc_norm_stderr, score.n) == (*[None] * 4, 4)
    rolled = harness.roll(llama, tokenizer, TEXTS)
    assert score.nll == pytest.approx(sum(nll for nll, _ in rolled) / 469)
    assert 0 < score.nll_stderr < math.inf
    assert found["ask"].acc is not None
    first = evaluate(llama, tokenizer, [task], limit=2)["prose"]
    assert first.n == 2
    assert first.nll == pytest.approx(sum(nll for nll, _ in rolled[:2]) / 41)


def test_one_text_has_no_standard_error(llama, tokenizer):
    task = Task("prose", (), "perplexity", texts=TEXTS[-1:])
    assert evaluate(llama, tokenizer, [task])["prose"].nll_stderr == 0.0
