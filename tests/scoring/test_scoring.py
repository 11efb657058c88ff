"""Laws: scores are what the likelihoods give; nothing but the scores is left behind."""

from __future__ import annotations

import copy
import math
import random
import statistics
import sys
from dataclasses import astuple, replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from offsite.data.tasks import Question, Task
from offsite.errors import UserError
from offsite.scoring import evaluate, scorer
from offsite.scoring.scorer import answer_likelihoods
from tests.families import tiny_model
from tests.scoring.harness import harness_rolls, harness_says, harness_scores
from tests.scoring.test_scorer import WORDS, random_tokens


def said(words):
    return " ".join(f"w{word}" for word in words)


@pytest.fixture
def task():
    rng = random.Random(1)
    return Task("words", tuple(random_question(rng) for _ in range(12)))


def random_question(rng):
    choices = tuple(said(random_tokens(rng, rng.randrange(1, 5))) for _ in range(rng.randrange(2, 5)))
    return Question(said(random_tokens(rng, rng.randrange(2, 20))), choices, rng.randrange(len(choices)))


# --- the scores ---------------------------------------------------------------------------------------------


def test_scores_are_what_the_harness_s_own_likelihoods_give(llama, tokenizer, task):
    score = evaluate(llama, tokenizer, [task])["words"]
    acc, acc_norm, nll, tokens = [], [], [], []
    assert score.right == tuple(question.answer for question in task.questions)
    for question, kept in zip(task.questions, score.choices, strict=True):
        prompt = tokenizer(question.prompt).input_ids
        pairs = [(prompt, tokenizer(choice).input_ids) for choice in question.choices]
        logliks = torch.tensor([loglik for loglik, _ in harness_says(llama, tokenizer, pairs)])
        assert kept == pytest.approx(logliks.tolist(), abs=2e-4)
        lengths = torch.tensor([len(choice) for choice in question.choices])
        acc.append(float(logliks.argmax() == question.answer))
        acc_norm.append(float((logliks / lengths).argmax() == question.answer))
        nll.append(-float(logliks[question.answer]))
        tokens.append(len(pairs[question.answer][1]))
    for name, values in (("acc", acc), ("acc_norm", acc_norm)):
        values = torch.tensor(values, dtype=torch.float64)
        assert getattr(score, name) == pytest.approx(values.mean().item(), abs=1e-5)
        assert getattr(score, f"{name}_stderr") == pytest.approx(values.std().item() / math.sqrt(12), abs=1e-5)
    assert score.n == 12
    assert 0 < score.acc < 1
    assert score.nll == pytest.approx(sum(nll) / sum(tokens), abs=1e-5)
    without = [(sum(nll) - a) / (sum(tokens) - t) for a, t in zip(nll, tokens, strict=True)]  # jackknife
    assert score.nll_stderr == pytest.approx(statistics.pstdev(without) * math.sqrt(11), rel=0.2)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt", "bloom"])
@pytest.mark.parametrize("scoring", ["multiple_choice", "exact_match"])
def test_a_whole_task_scores_as_in_the_harness(family, scoring, tokenizer):
    model, rng = tiny_model(family), random.Random(3)
    task = Task("asked", tuple(random_question(rng) for _ in range(20)), scoring)
    if scoring == "exact_match":
        prompt, greedy = next(
            found for found in map(continued(model), range(40, 128)) if min(found[1]) >= WORDS
        )
        hit = Question(said(prompt), (said([WORDS]), said(greedy)), 0)
        task = Task("asked", (*task.questions, hit), scoring)
    ours, theirs = evaluate(model, tokenizer, [task])["asked"], harness_scores(model, tokenizer, task)
    found = theirs["results"]["asked"]
    samples = theirs["samples"]["asked"]
    right = [sample["resps"][one.answer][0][0] for sample, one in zip(samples, task.questions, strict=True)]
    tokens = sum(len(one.choices[one.answer].split()) for one in task.questions)
    assert ours.nll == pytest.approx(-sum(right) / tokens, abs=1e-5)
    if scoring == "exact_match":
        assert ours.acc == ours.acc_norm == found["exact_match,none"]
        assert ours.acc > 0 or family == "gemma3"
    else:
        assert (ours.acc, ours.acc_norm) == (found["acc,none"], found["acc_norm,none"])
        assert ours.acc_stderr == pytest.approx(found["acc_stderr,none"])


def test_a_model_without_a_length_is_rolled_as_in_the_harness(tokenizer):
    model = tiny_model("bloom")
    text = " ".join(f"w{4 + i % 120}" for i in range(700))
    ours = evaluate(model, tokenizer, [Task("prose", (), "perplexity", texts=(text,))])["prose"]
    [theirs] = harness_rolls(model, tokenizer, [text], longest=512)
    assert ours.nll == pytest.approx(-theirs / 700, abs=1e-4)


def test_exact_match_takes_any_listed_answer(llama, tokenizer):
    prompt, greedy = next(said for said in map(continued(llama), range(40, 128)) if min(said[1]) >= WORDS)
    other = [WORDS if token != WORDS else WORDS + 1 for token in greedy]
    hit = Question(said(prompt), (said(other), said(greedy)), 0)
    missed = Question(said(prompt), (said(other),), 0)
    score = evaluate(llama, tokenizer, [Task("asked", (hit, missed), "exact_match")])["asked"]
    assert (score.acc, score.acc_norm, score.n) == (0.5, 0.5, 2)
    assert (score.choices, score.right) == (None, None), "of several answers none is the right choice"
    marked = answer_likelihoods(llama, [(prompt, other)], lambda *_: None)[0]
    assert score.nll == pytest.approx(-marked.loglik / 2, abs=1e-5)


def continued(model):
    def tokens(first):
        prompt = [first, 90, 77, 50]
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=2, min_new_tokens=2, do_sample=False)
        return prompt, whole[0, 4:].tolist()

    return tokens


def test_every_task_by_name_and_in_order_limited(llama, tokenizer, task):
    other = Task("other", task.questions[3:5])
    scores = evaluate(llama, tokenizer, [task, other], limit=3)
    assert [(name, score.n) for name, score in scores.items()] == [("words", 3), ("other", 2)]
    alone = evaluate(llama, tokenizer, [other])["other"]
    bare = [replace(score, choices=None, right=None) for score in (scores["other"], alone)]
    assert astuple(bare[0]) == pytest.approx(astuple(bare[1]), abs=1e-5)
    assert scores["other"].right == alone.right
    for one, same in zip(scores["other"].choices, alone.choices, strict=True):
        assert one == pytest.approx(same, abs=2e-4)


def test_one_question_has_no_standard_error(llama, tokenizer, task):
    score = evaluate(llama, tokenizer, [task], limit=1)["words"]
    assert (score.acc_stderr, score.nll_stderr, score.n) == (0.0, 0.0, 1)


def test_an_autocast_around_the_call_holds_inside(llama, tokenizer, task):
    exact = evaluate(llama, tokenizer, [task])["words"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = evaluate(llama, tokenizer, [task])["words"]
    assert rough.nll != pytest.approx(exact.nll, abs=1e-5)
    assert rough.nll == pytest.approx(exact.nll, abs=0.05)


# --- the tokens ---------------------------------------------------------------------------------------------


def scored_tokens(monkeypatch, model, tokenizer, task):
    seen = []
    real = scorer.answer_likelihoods
    monkeypatch.setattr(
        scorer, "answer_likelihoods", lambda model, pairs, advance: (
            seen.extend(pairs), real(model, pairs, advance)
        )[1]
    )  # fmt: skip
    evaluate(model, tokenizer, [task])
    return seen


def adding(tokenizer, template):
    adds = copy.deepcopy(tokenizer)
    adds.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return adds


@pytest.mark.parametrize(
    ("template", "prompt", "tokens"),
    [
        ("$A", "w5 w6", [5, 6]),
        ("<s> $A", "w5 w6", [1, 5, 6]),
        ("<s> $A", "<s> w5 w6", [1, 5, 6]),
        ("<s> $A", "w5 w6  ", [1, 5, 6]),
        ("<s> $A </s>", "w5 w6", [1, 5, 6]),
    ],
)
def test_prompts_are_tokenized_by_the_tokenizer_s_defaults(
    llama, tokenizer, monkeypatch, template, prompt, tokens
):
    task = Task("asked", (Question(prompt, ("w7", "w8 w9"), 0),))
    seen = scored_tokens(monkeypatch, llama, adding(tokenizer, template), task)
    assert seen == [(tokens, [7]), (tokens, [8, 9])]


def test_training_learns_the_tokens_that_are_scored(llama, tokenizer, monkeypatch, task):
    from offsite.data.encoding import IGNORED, encode

    bos = adding(tokenizer, "<s> $A")
    seen = scored_tokens(monkeypatch, llama, bos, task)
    for question in task.questions:
        [learnt] = encode([question.example()], bos, 128)
        answer = [label for label in learnt.labels if label != IGNORED]
        assert (learnt.input_ids[: -len(answer)], answer) in seen


def test_what_the_model_cannot_read_goes_from_the_left(llama, tokenizer, task):
    rng = random.Random(2)
    prompts = [random_tokens(rng, 140), random_tokens(rng, 126)]
    question = [Question(said(prompt), (said([9] * 4), said([8])), 0) for prompt in prompts]
    with pytest.warns(UserWarning, match="3 answers follow .* reads 128 tokens"):
        score = evaluate(llama, tokenizer, [Task("long", tuple(question))])["long"]
    theirs = harness_says(llama, tokenizer, [(prompt, [9] * 4) for prompt in prompts])
    assert score.nll == pytest.approx(-sum(loglik for loglik, _ in theirs) / 8, abs=1e-5)


# --- what is left behind ------------------------------------------------------------------------------------


def test_nothing_else_changes(llama, tokenizer, task, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    llama.train()
    llama.model.layers[2].eval()
    weights = copy.deepcopy(llama.state_dict())
    modes = [module.training for module in llama.modules()]
    before = (random.getstate(), torch.get_rng_state().tolist())
    first = evaluate(llama, bare, [task])
    assert (random.getstate(), torch.get_rng_state().tolist()) == before
    torch.manual_seed(2)
    assert evaluate(llama, bare, [task]) == first
    assert bare.pad_token is None
    assert [module.training for module in llama.modules()] == modes
    assert all(torch.equal(weights[name], tensor) for name, tensor in llama.state_dict().items())
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_the_mode_comes_back_when_scoring_fails(llama, tokenizer):
    llama.train()
    with pytest.raises(UserError, match="tokens"):
        evaluate(llama, tokenizer, [Task("asked", (Question(" ", ("w7", "w8"), 0),))])
    assert llama.training


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "choices", "refusal"),
    [
        (" ", ("w7", "w8"), "'  ?' has no tokens"),
        ("w5", ("w7", " "), "has no tokens after its prompt"),
        ("w5", ("w7", said([9] * 129)), "has 129 tokens, the model reads 128"),
    ],
)
def test_questions_that_cannot_be_scored(llama, tokenizer, prompt, choices, refusal):
    with pytest.raises(UserError, match=refusal):
        evaluate(llama, tokenizer, [Task("asked", (Question(prompt, choices, 0),))])


@pytest.mark.parametrize(
    ("names", "limit", "refusal"),
    [
        ([], None, "no task to score"),
        (["words", "words"], None, "'words' is named 2 times"),
        (["words", "empty"], None, "'empty' has no questions"),
        (["words"], 0, "A limit of 0 leaves no question"),
    ],
)
def test_requests_that_ask_nothing(llama, tokenizer, task, names, limit, refusal):
    known = {"words": task, "empty": Task("empty", ())}
    with pytest.raises(UserError, match=refusal):
        evaluate(llama, tokenizer, [known[name] for name in names], limit=limit)


def test_scoring_needs_no_harness(llama, tokenizer, task, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in ("lm_eval", "datasets")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("lm_eval", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    assert evaluate(llama, tokenizer, [task])["words"].n == 12
