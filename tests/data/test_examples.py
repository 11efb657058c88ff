"""Examples and their token ids: what is learnt is the completion, tokenised as it will be scored."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from offsite.data.blocks import blocks
from offsite.data.encoding import IGNORED, encode
from offsite.data.examples import Example, Piece, Question, read_examples, read_questions
from offsite.errors import UserError
from offsite.untrusted import chat_renderer

PAIRS = [
    ("Question: why?\nAnswer:", " because it is so"),
    ("Question: why?\nAnswer: ", "because"),
    ("ends in a line\n\n", "and goes on"),
    ("the quick bro", "wn fox"),  # the boundary falls inside a word
    ("", "no prompt at all"),
    ("größe ", "ünïcode \N{GRINNING FACE}"),
]
CHATML = (
    "{% for m in messages %}<|im|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im|>assistant\n{% endif %}"
)


def _tokenizer(bos: bool = False, template: str | None = None, eos: str | None = "</s>"):
    """Byte-level BPE, so that decoding gives the very text back; some with a BOS, as Gemma has."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im|>", "<|end|>"]
    corpus = [prompt + completion for prompt, completion in PAIRS] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    how = {"vocab_size": 330, "special_tokens": special, "initial_alphabet": alphabet}
    backend.train_from_iterator(corpus, trainers.BpeTrainer(**how, show_progress=False))
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=eos)
    made.chat_template = template
    return made


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "bos"])
def bpe(request):
    return _tokenizer(bos=request.param, template=CHATML)


def _pair(prompt, completion, closed=True):
    return Example((Piece(prompt, False), Piece(completion, True)), closed=closed)


def _learnt(encoded):
    return [label for label in encoded.labels if label != IGNORED]


def _file(tmp_path, *rows):
    path = tmp_path / "private.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- encode -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prompt", "completion"), PAIRS)
def test_the_whole_is_the_tokenizers_and_the_completion_is_learnt(bpe, prompt, completion):
    (encoded,) = encode([_pair(prompt, completion)], bpe, 100)
    assert encoded.input_ids == [*bpe(prompt + completion)["input_ids"], bpe.eos_token_id]
    assert len(encoded.labels) == len(encoded.input_ids)
    learnt = _learnt(encoded)
    assert learnt == encoded.input_ids[-len(learnt) :]
    assert learnt[-1] == bpe.eos_token_id
    told = bpe.decode(learnt[:-1], clean_up_tokenization_spaces=False)
    spaces = prompt[len(prompt.rstrip()) :]  # go with the answer, as in the harness
    if prompt != "the quick bro":
        assert told == spaces + completion


@pytest.mark.parametrize(("prompt", "completion"), [pair for pair in PAIRS if pair[0]])
def test_the_boundary_is_lm_evals(bpe, prompt, completion):
    model = pytest.importorskip("lm_eval.api.model")

    class Harness:
        backend = "causal"
        tok_encode = staticmethod(bpe.encode)

    context, continuation = model.TemplateLM._encode_pair(Harness, prompt, completion)
    (ours,) = encode([_pair(prompt, completion, closed=False)], bpe, 100)
    assert _learnt(ours) == continuation
    assert ours.input_ids[-len(continuation) :] == continuation
    if prompt != "the quick bro":  # there the harness lets context and continuation overlap in one token
        assert ours.input_ids == context + continuation


def test_a_question_learns_the_right_choice_after_one_space_without_an_end(bpe):
    (encoded,) = encode([Question("Is it so?\nAnswer:", ("no", "yes"), 1).example()], bpe, 100)
    assert bpe.decode(_learnt(encoded)) == " yes"
    assert bpe.eos_token_id not in encoded.input_ids


def test_a_text_is_learnt_whole_with_its_end(bpe):
    (encoded,) = encode([Example((Piece("all of it", True),))], bpe, 100)
    assert encoded.labels == encoded.input_ids
    assert encoded.input_ids[-1] == bpe.eos_token_id


def test_what_is_too_long_loses_the_left_of_the_prompt_and_keeps_a_bos(bpe):
    example = _pair("long and longer " * 20, "the answer")
    (whole,) = encode([example], bpe, 10_000)
    length = len(_learnt(whole)) + 5
    (cut,) = encode([example], bpe, length)
    assert len(cut.input_ids) == len(cut.labels) == length
    assert _learnt(cut) == _learnt(whole)
    assert cut.input_ids[-length + 1 :] == whole.input_ids[-length + 1 :]
    assert (cut.input_ids[0] == bpe.bos_token_id) == (whole.input_ids[0] == bpe.bos_token_id)


def test_a_bos_is_not_put_before_a_text_that_begins_with_it():
    bpe = _tokenizer(bos=True)
    (encoded,) = encode([_pair("<s>hello", " you")], bpe, 100)
    assert encoded.input_ids.count(bpe.bos_token_id) == 1


def test_an_eos_that_the_tokenizer_adds_neither_doubles_nor_moves_the_boundary():
    plain, ending = _tokenizer(), _tokenizer()
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ending.eos_token_id)]
    )
    examples = [_pair(*PAIRS[0]), _pair(*PAIRS[0], closed=False)]
    assert encode(examples, ending, 100) == encode(examples, plain, 100)


def test_without_an_eos_nothing_is_appended():
    bpe = _tokenizer(eos=None)
    (encoded,) = encode([_pair("a", " b")], bpe, 100)
    assert encoded.input_ids == bpe("a b")["input_ids"]


def test_an_example_with_nothing_to_learn_is_refused(tokenizer):
    blank = Example((Piece("w5 w6", False), Piece("  ", True)), closed=False, where="private.jsonl, line 7")
    with pytest.raises(UserError, match=r"private\.jsonl, line 7: no token is left to learn"):
        encode([blank], tokenizer, 100)
    first = Example((Piece("w5", True),), closed=False)  # nothing predicts a first token
    with pytest.raises(UserError, match="no token is left to learn"):
        encode([first], tokenizer, 100)
    with pytest.raises(UserError, match="at least 2"):
        encode([_pair("w5", "w6")], tokenizer, 1)


# --- chats ------------------------------------------------------------------------------------------------

TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "so"},
]


def test_a_chat_is_the_templates_text_and_the_assistants_turns_are_learnt(bpe, tmp_path):
    examples = read_examples(_file(tmp_path, {"messages": TURNS}, {"messages": TURNS[:4]}))
    whole, shorter = encode(examples, bpe, 1000)
    rendered = bpe.apply_chat_template(TURNS, tokenize=False)
    assert whole.input_ids == bpe(rendered, add_special_tokens=False)["input_ids"]
    assert bpe.decode(_learnt(whole)) == "hi<|end|>\nso<|end|>\n"
    assert bpe.decode(_learnt(shorter)) == "hi<|end|>\n"
    assert bpe.decode(shorter.input_ids).endswith("and?<|end|>\n")


def test_a_template_whose_generation_prompt_differs_has_its_header_learnt(tmp_path):
    bpe = _tokenizer(template=CHATML.replace("<|im|>assistant\n{% endif", "<|im|>assistant\n<think>{% endif"))
    (encoded,) = encode(read_examples(_file(tmp_path, {"messages": TURNS[:3]})), bpe, 1000)
    assert bpe.decode(_learnt(encoded)) == "<|im|>assistant\nhi<|end|>\n"


def test_a_template_that_rewrites_earlier_turns_is_refused_for_several_turns_only(tmp_path):
    thinking = CHATML.replace("{{ m.content }}", "{% if loop.last %}<t>{% endif %}{{ m.content }}")
    bpe = _tokenizer(template=thinking.replace("loop.last", "loop.last and m.role == 'assistant'"))
    (one,) = encode(read_examples(_file(tmp_path, {"messages": TURNS[:3]})), bpe, 1000)
    assert bpe.decode(_learnt(one)) == "<t>hi<|end|>\n"
    for turns in (TURNS, TURNS[:4]):
        with pytest.raises(UserError, match="line 1: the model's chat template writes earlier turns anew"):
            encode(read_examples(_file(tmp_path, {"messages": turns})), bpe, 1000)


def test_a_chat_needs_a_template_that_takes_it(tmp_path):
    examples = read_examples(_file(tmp_path, {"messages": TURNS}))
    with pytest.raises(UserError, match=r"private\.jsonl, line 1: .*no chat template"):
        encode(examples, _tokenizer(), 100)
    with pytest.raises(UserError, match=r"line 1: the model's chat template refuses it: no system"):
        encode(examples, _tokenizer(template="{{ raise_exception('no system') }}"), 100)


def test_many_examples_in_one_process(bpe, tmp_path, monkeypatch):
    """One is started for all chats of a call, and none where there are none."""
    started = []
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *line, **how: started.append(line) or real(*line, **how))
    first, *rest = encode(read_examples(_file(tmp_path, *[{"messages": TURNS}] * 5)), bpe, 1000)
    assert rest == [first] * 4
    assert len(started) == 1
    encode([_pair("a", " b")], bpe, 100)
    assert len(started) == 1


def test_a_chat_template_without_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_renderer, "_PATIENCE", 1)
    hog = "{% set r = range(1000)|list %}" + "{% for i in r %}" * 4 + "{% endfor %}" * 4
    rows = read_examples(_file(tmp_path, {"messages": TURNS}))
    with pytest.raises(
        UserError, match=r"line 1: the model's chat template takes more than 1 seconds.* sender"
    ):
        encode(rows, _tokenizer(template=hog), 1000)


def test_several_templates_need_a_usual_one(tmp_path):
    rows = read_examples(_file(tmp_path, {"messages": TURNS}))
    (one,) = encode(rows, _tokenizer(template={"default": CHATML, "tool_use": "x"}), 1000)
    assert [one] == encode(rows, _tokenizer(template=CHATML), 1000)
    with pytest.raises(UserError, match=r"line 1: the model's chat template refuses it: .*no default"):
        encode(rows, _tokenizer(template={"a": "x", "b": "y"}), 1000)


# --- reading ----------------------------------------------------------------------------------------------


def test_kinds_of_rows_may_be_mixed(tmp_path):
    path = _file(
        tmp_path,
        {"prompt": "p", "completion": "c", "id": 3},
        {"text": "t", "completion": None},
        {"prompt": "q", "choices": ["x", "y"], "answer": 0},
        {"messages": TURNS[1:3]},
    )
    pair, text, question, chat_renderer = read_examples(path)
    assert pair == _pair("p", "c")
    assert text == Example((Piece("t", True),))
    assert question == Question("q", ("x", "y"), 0).example()
    assert chat_renderer.is_chat
    assert [e.text for e in (pair, text, question, chat_renderer)] == ["pc", "t", "q x", "hello\nhi"]
    assert chat_renderer.where == "private.jsonl, line 4"


QUESTION = {"prompt": "p", "choices": ["a", "b"], "answer": 0}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p"}, r'expected {"prompt", "completion"}, .* found "prompt"'),
        ({}, "found nothing"),
        ({"completion": "c"}, '"prompt" to be a string, found nothing'),
        ({"prompt": ["p"], "completion": "c"}, '"prompt" to be a string, found a list'),
        ({"prompt": "p", "completion": 3}, '"completion" to be a string, found a number'),
        ({"prompt": "p", "completion": " "}, '"completion" is blank'),
        ({"text": ""}, '"text" is blank'),
        ({"text": "\ud800"}, "half of a surrogate pair"),
        ({"messages": "hi"}, 'expected "messages" to be a list of'),
        ({"messages": ["hi"]}, 'expected "messages" to be a list of'),
        ({"messages": []}, 'of the role "assistant"'),
        ({"messages": TURNS[:2]}, 'of the role "assistant"'),
        ({"messages": [{"content": "x"}]}, "the role of message 1 to be a string"),
        ({"messages": [{"role": "user", "content": [1]}]}, "the content of message 1 to be a string"),
        (QUESTION | {"choices": ["a"]}, "at least 2 strings"),
        (QUESTION | {"choices": "ab"}, "at least 2 strings"),
        (QUESTION | {"choices": ["a", 1]}, "choice 1 to be a string, found a number"),
        (QUESTION | {"choices": ["a", " "]}, "choice 1 is blank"),
        (QUESTION | {"answer": 2}, "number from 0 to 1, found 2"),
        (QUESTION | {"answer": -1}, "number from 0 to 1, found -1"),
        (QUESTION | {"answer": True}, "number from 0 to 1, found True"),
        (QUESTION | {"answer": "A"}, "number from 0 to 1, found 'A'"),
        (QUESTION | {"prompt": ""}, '"prompt" is blank'),
    ],
)
def test_a_malformed_row_is_refused_with_its_line(tmp_path, row, said):
    path = _file(tmp_path, {"text": "fine"}, row)
    with pytest.raises(UserError, match=rf"^private\.jsonl, line 2: .*{said}.*\.$"):
        read_examples(path)


def test_questions_are_read_as_questions(tmp_path):
    assert read_questions(_file(tmp_path, QUESTION)) == [Question("p", ("a", "b"), 0)]
    with pytest.raises(UserError, match='line 2: expected "choices"'):
        read_questions(_file(tmp_path, QUESTION, {"prompt": "p", "completion": "c"}))


# --- blocks -----------------------------------------------------------------------------------------------


def test_blocks_are_the_texts_joined_by_eos_and_cut():
    bpe = _tokenizer()
    texts = ["one text", "another text, longer", "and a third"]
    stream = [i for text in texts for i in [*bpe(text)["input_ids"], bpe.eos_token_id]]
    found = blocks(texts, bpe, 7, None)
    assert found.dtype == torch.long
    assert found.shape == (len(stream) // 7, 7)
    assert found.flatten().tolist() == stream[: found.numel()]
    assert torch.equal(blocks(texts, bpe, 7, 2), found[:2])


def test_each_block_begins_with_the_bos_that_the_tokenizer_adds():
    with_bos = blocks(["some text of some length"] * 9, _tokenizer(bos=True), 8, None)
    without = blocks(["some text of some length"] * 9, _tokenizer(), 7, None)
    assert (with_bos[:, 0] == _tokenizer().bos_token_id).all()
    assert torch.equal(with_bos[:, 1:], without)


def test_too_little_text_is_refused_with_what_there_is():
    bpe = _tokenizer()
    with pytest.raises(UserError, match="makes 2 blocks of 7 tokens where 50 are wanted"):
        blocks(["w"] * 7, bpe, 7, 50)  # a token and an EOS each
    with pytest.raises(UserError, match="makes 0 blocks"):
        blocks([], bpe, 7, None)
    with pytest.raises(UserError, match="no room for text"):
        blocks(["x"], _tokenizer(bos=True), 1, None)


# --- the real tokenizer -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_real_questions_and_tokenizer_what_is_learnt_is_what_is_scored():
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoConfig, AutoModelForCausalLM

    from offsite.data import tasks
    from offsite.model import loading

    folder = loading.fetch("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder, num_hidden_layers=1, dtype="float32")
    harness = HFLM(pretrained=AutoModelForCausalLM.from_config(config), tokenizer=tokenizer)
    for name in ("arc_easy", "openbookqa", "piqa", "sciq", "hellaswag"):
        questions = tasks.load(name, "test").questions[:200]
        encoded = encode([question.example() for question in questions], tokenizer, 4096)
        for question, ours in zip(questions, encoded, strict=True):
            right = " " + question.choices[question.answer]
            context, continuation = harness._encode_pair(question.prompt, right)
            assert ours.input_ids == context + continuation
            assert _learnt(ours) == continuation
