"""The scorer's law: the harness's own likelihoods, whatever the task, the family and the batches."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
import torch

from offsite.data import tasks as catalogue
from offsite.scoring import scorer
from offsite.scoring.scorer import answer_likelihoods
from tests.families import tiny_model
from tests.scoring.harness import harness_says

WORDS = 40
ODD_LENGTHS = (1, 2, 3, 7, 8, 8, 13, 30)  # of prompts, in tokens; beyond and within the sliding windows


def random_tokens(rng, length):
    return [rng.randrange(WORDS, 128) for _ in range(length)]


def random_pairs(model):
    """Prompts with 1 to 4 answers each, one of them what the model itself would say."""
    rng, pairs = random.Random(0), []
    for length in ODD_LENGTHS:
        prompt = random_tokens(rng, length)
        said = model.generate(torch.tensor([prompt]), max_new_tokens=3, min_new_tokens=3, do_sample=False)
        answers = [random_tokens(rng, rng.randrange(1, 9)) for _ in range(rng.randrange(0, 4))]
        pairs += [(prompt, answer) for answer in [*answers, said[0, length:].tolist()]]
    rng.shuffle(pairs)
    return pairs


def assert_same(ours, theirs):
    assert [score.greedy for score in ours] == [greedy for _, greedy in theirs]
    assert [score.loglik for score in ours] == pytest.approx([loglik for loglik, _ in theirs], abs=1e-4)


def test_likelihoods_are_the_harness_s_own(model, tokenizer):
    pairs = random_pairs(model)
    ours = answer_likelihoods(model, pairs, lambda done, note: None)
    assert {score.greedy for score in ours} == {True, False}
    assert_same(ours, harness_says(model, tokenizer, pairs))


class Shape(NamedTuple):
    """What a task's questions are like, in tokens; long ones are cut to what the tiny models read."""

    prompt: tuple[int, int]
    choices: tuple[int, int]
    answer: tuple[int, int]
    alike: int = 0  # of the answers' tokens, how many all begin with
    head: int = 0  # of the prompts' tokens, how many all begin with


SHAPES = {
    "arc_challenge": Shape((12, 45), (3, 5), (1, 14), head=2),
    "arc_easy": Shape((10, 40), (3, 5), (1, 8), head=2),
    "hellaswag": Shape((15, 70), (4, 4), (8, 40)),
    "openbookqa": Shape((3, 25), (4, 4), (1, 8)),
    "piqa": Shape((8, 25), (2, 2), (5, 30), alike=9, head=2),
    "race": Shape((60, 140), (4, 4), (2, 12), head=1),
    "sciq": Shape((40, 110), (4, 4), (1, 3)),
    "webqs": Shape((7, 15), (1, 9), (1, 6), head=2),
}


def shaped_pairs(shape):
    rng, pairs = random.Random(0), []
    for _ in range(6):
        prompt = random_tokens(random.Random(1), shape.head) + random_tokens(rng, rng.randint(*shape.prompt))
        begun = random_tokens(rng, shape.alike)
        for _ in range(rng.randint(*shape.choices)):
            answer = begun + random_tokens(rng, rng.randint(*shape.answer))
            pairs.append((prompt[-(129 - len(answer)) :], answer))
    return pairs


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"], indirect=True)
@pytest.mark.parametrize("task", sorted(SHAPES))
def test_likelihoods_are_the_harness_s_own_on_every_task_s_shape(model, tokenizer, task):
    pairs = shaped_pairs(SHAPES[task])
    ours = answer_likelihoods(model, pairs, lambda *_: None)
    assert_same(ours, harness_says(model, tokenizer, pairs))


@pytest.mark.parametrize("small", ["_BATCH_TOKENS", "_WASTED_TOKENS", "_LOGITS"])
def test_likelihoods_do_not_depend_on_batches(family, small, monkeypatch):
    model = tiny_model(family)
    pairs, passes, done = random_pairs(model), [], []
    model.register_forward_hook(lambda *_: passes.append(1))
    whole = answer_likelihoods(model, pairs, lambda *_: None)
    fewest = len(passes)
    monkeypatch.setattr(scorer, small, 0 if small != "_WASTED_TOKENS" else -1)
    assert_same(answer_likelihoods(model, pairs, lambda n, _: done.append(n)), whole)
    assert sum(done) == len(pairs)
    assert len(passes) > 2 * fewest


@pytest.mark.parametrize("longest", [0, 10, 20])
def test_likelihoods_do_not_depend_on_how_many_answers_share_a_row(llama, longest, monkeypatch):
    pairs, read = random_pairs(llama), []
    llama.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    whole, shared = answer_likelihoods(llama, pairs, lambda *_: None), sum(read)
    read.clear()
    monkeypatch.setattr(scorer, "_ROW_TOKENS", longest)
    assert_same(answer_likelihoods(llama, pairs, lambda *_: None), whole)
    assert sum(read) > shared


@pytest.mark.parametrize("wrong", ["mask", "places"])
def test_a_model_that_does_not_heed_what_it_is_shown_is_found_out(llama, tokenizer, monkeypatch, wrong):
    """Its own masks or positions, in place of those given: answers would see each other, and shift."""
    real = llama.forward

    def forward(input_ids, use_cache=None, attention_mask=None, position_ids=None, logits_to_keep=0):
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        given["attention_mask" if wrong == "mask" else "position_ids"] = None
        return real(input_ids=input_ids, use_cache=use_cache, logits_to_keep=logits_to_keep, **given)

    monkeypatch.setattr(llama, "forward", forward)
    monkeypatch.setattr(scorer, "_shared", {})
    pairs = random_pairs(tiny_model("llama"))
    assert_same(answer_likelihoods(llama, pairs, lambda *_: None), harness_says(llama, tokenizer, pairs))
    assert scorer._shared == {(llama.config.to_json_string(), torch.float32): False}


def test_the_head_is_computed_where_an_answer_follows_and_nowhere_else(llama):
    pairs, seen = [*random_pairs(llama), ([5, 6, 7], [8])], []
    llama.get_output_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.shape[1]))
    answer_likelihoods(llama, random_pairs(llama), lambda *_: None)  # a trial row, once for all
    seen.clear()
    answer_likelihoods(llama, pairs, lambda *_: None)
    assert sum(seen) == len({tuple(prompt) for prompt, _ in pairs}) + sum(
        len(answer) - 1 for _, answer in pairs
    )


def test_a_row_beyond_the_window_shares_no_batch_with_rows_of_several_answers(tokenizer):
    """Their mask has no window: the longer row would see one token more than the model does."""
    model = tiny_model("gemma3")  # which sees 6 tokens
    rng = random.Random(4)
    short, long = random_tokens(rng, 4), random_tokens(rng, 7)
    pairs = [(short, [50]), (short, [51, 52]), (long, [53, 54])]
    assert_same(answer_likelihoods(model, pairs, lambda *_: None), harness_says(model, tokenizer, pairs))


def test_a_model_with_lora(llama):
    from peft import LoraConfig, get_peft_model

    pairs = random_pairs(llama)
    before = answer_likelihoods(llama, pairs, lambda *_: None)
    lora = get_peft_model(llama, LoraConfig(target_modules=["q_proj"])).eval()
    assert_same(answer_likelihoods(lora, pairs, lambda *_: None), before)


def test_bfloat16_takes_its_softmax_in_float32(llama):
    pairs = random_pairs(llama)
    exact = answer_likelihoods(llama, pairs, lambda *_: None)
    rough = answer_likelihoods(llama.bfloat16(), pairs, lambda *_: None)
    assert [score.loglik for score in rough] == pytest.approx([score.loglik for score in exact], abs=0.5)
    assert any(score.loglik != torch.tensor(score.loglik).bfloat16().item() for score in rough)


@pytest.mark.slow
def test_smollm2_on_arc_easy_is_what_the_harness_says():
    from offsite.model import loading

    model, tokenizer = loading.load("smollm2-135m")
    questions = catalogue.load("arc_easy", "test").questions[:40]
    pairs = []
    for question in questions:
        prompt = tokenizer(question.prompt).input_ids
        whole = [tokenizer(f"{question.prompt} {choice}").input_ids for choice in question.choices]
        pairs += [(prompt, ids[len(prompt) :]) for ids in whole]
    ours = answer_likelihoods(model.eval(), pairs, lambda *_: None)
    assert_same(ours, harness_says(model, tokenizer, pairs))
