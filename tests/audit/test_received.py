"""What the data owner sees of an emulator: true figures, primed ones flagged, honest ones not."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
import torch

from offsite import audit
from offsite.audit.weights import leading, odd
from offsite.bundles.adapter import adapter_tensors
from offsite.bundles.emulator import Emulator
from offsite.data.encoding import encode
from offsite.data.examples import Example, Piece
from offsite.data_owner.tune import TuneConfig, tune
from offsite.errors import UserError
from offsite.model.decoder import Decoder
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from offsite.training.batches import answer_loss, pad
from tests.families import tiny_model
from tests.test_laws import SPLIT, thin

PRIMING = TuneConfig(steps=40, batch_size=8, lr=1e-2, patience=99)


def emulator(tokenizer, family="llama", seed=0):
    model = tiny_model(family, seed)
    return build(model, SPLIT, (Place(2), Place(4)), tokenizer=tokenizer)


CHAT = (
    "{% for m in messages %}{{ 'w4' if m.role == 'user' else 'w5' }} {{ m.content }} w6 {% endfor %}"
    "{% if add_generation_prompt %}w5 {% endif %}"
)


def talking(tokenizer):
    made = copy.deepcopy(tokenizer)
    made.chat_template = CHAT
    return made


def as_chats(examples, first=()):
    """The same questions and answers as turns, perhaps after others."""
    return [
        replace(
            one,
            closed=False,
            pieces=(
                *first,
                Piece(one.pieces[0].text, False, "user"),
                Piece(one.pieces[1].text.strip(), True, "assistant"),
            ),
        )
        for one in examples
    ]


def rows(count, seed):
    """Prompts of random words; one of them says which of four answers is right."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        key = chance.randrange(4)
        prompt = f"w{chance.randrange(20, 90)} w{chance.randrange(20, 90)} w{4 + key}"
        found.append(Example((Piece(prompt, False), Piece(f" w{100 + 3 * key} w{101 + 3 * key}", True))))
    return found


def test_the_figures_are_what_they_say(tokenizer):
    ours, examples = emulator(tokenizer), rows(5, 1)
    found = audit.emulator(ours, examples, max_length=32)

    def loss(texts):
        encoded = [row._asdict() for row in encode(texts, tokenizer, 32)]
        with torch.no_grad():
            losses = [float(answer_loss(ours.model, pad(0)([row]))) for row in encoded]
        return sum(losses) / len(losses)

    prompts = [Example((Piece(one.pieces[0].text, True),), closed=False) for one in examples]
    assert found.start.examples == 5
    assert found.start.loss == pytest.approx(loss(examples), rel=0.02)
    assert found.start.prompts == pytest.approx(loss(prompts), rel=0.02)
    decoder = Decoder.of(ours.model)
    layer = decoder.stored([0])
    size = found.parameters
    assert (size.trainable, size.middle, size.factored) == ((SPLIT.bottom + SPLIT.top) * layer, 2 * layer, 0)
    assert size.all == sum(parameter.numel() for parameter in ours.model.parameters())


def test_factors_are_counted_where_they_were_sent(tokenizer):
    model = tiny_model("llama")
    ours = build(model, SPLIT, thin(model), tokenizer=tokenizer)
    named = ours.model.state_dict().items()
    wanted = sum(tensor.numel() for name, tensor in named if name.endswith((".up.weight", ".down.weight")))
    assert audit.emulator(ours, rows(2, 1)).parameters.factored == wanted > 0


def test_an_audit_changes_neither_the_emulator_nor_what_is_drawn_at_random(tokenizer):
    ours = emulator(tokenizer)
    before = {name: tensor.clone() for name, tensor in ours.model.state_dict().items()}
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    audit.emulator(ours, rows(40, 1), max_length=32)
    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.model.state_dict().items())


def test_a_sample_is_taken_of_many(tokenizer):
    assert audit.emulator(emulator(tokenizer), rows(50, 1), sample=7).start.examples == 7


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom", "phi3"])
def test_honest_emulators_are_not_flagged(tokenizer, family):
    found = audit.emulator(emulator(tokenizer, family), rows(24, 2), max_length=32)
    assert found.warnings == ()


def test_a_primed_emulator_is_flagged(tokenizer, tmp_path):
    """Tuned on auxiliary rows like the private ones, none of which it saw; sent as an honest one would be."""
    ours = emulator(tokenizer)
    tune(ours, rows(200, 1), PRIMING)
    ours.save(tmp_path / "em")
    found = audit.emulator(Emulator.load(tmp_path / "em"), rows(24, 2), max_length=32)
    assert len(found.warnings) == 1
    assert "your data" in found.warnings[0] or "your answers" in found.warnings[0]


TURNS = [(), (Piece("w7 w8", False, "user"), Piece("w9", True, "assistant"))]


@pytest.mark.parametrize("first", TURNS, ids=["one turn", "two turns"])
def test_a_primed_emulator_is_flagged_on_chats_and_an_honest_one_is_not(tokenizer, first):
    ours = emulator(talking(tokenizer))
    private = as_chats(rows(24, 2), first)
    before = audit.emulator(ours, private, max_length=64)
    assert before.warnings == ()
    assert before.start.prompts > 0
    assert before.start.swapped > 0
    tune(ours, as_chats(rows(200, 1), first), PRIMING)
    found = audit.emulator(ours, private, max_length=64)
    assert found.start.loss < found.start.swapped
    assert len(found.warnings) == 1
    assert "your data" in found.warnings[0] or "your answers" in found.warnings[0]


def test_the_controls_of_a_chat_are_its_last_question_and_anothers_answer(tokenizer):
    ours, made = emulator(talking(tokenizer)), talking(tokenizer)
    chats = as_chats(rows(3, 1), TURNS[1])
    found = audit.emulator(ours, chats, max_length=64).start

    def loss(texts):
        encoded = [row._asdict() for row in encode(texts, made, 64)]
        with torch.no_grad():
            losses = [float(answer_loss(ours.model, pad(0)([row]))) for row in encoded]
        return sum(losses) / len(losses)

    asked = [
        replace(
            one,
            pieces=(one.pieces[0], one.pieces[1]._replace(learnt=False), one.pieces[2]._replace(learnt=True)),
        )
        for one in chats
    ]
    assert found.loss == pytest.approx(loss(chats), rel=0.02)
    assert found.prompts == pytest.approx(loss(asked), rel=0.02)


def test_a_template_that_refuses_the_controls_is_warned_of(tokenizer):
    strict = talking(tokenizer)
    ends = "messages[-1].role == 'user' and not add_generation_prompt"
    refusal = f"{{% if {ends} %}}{{{{ raise_exception('no') }}}}{{% endif %}}"
    strict.chat_template = refusal + CHAT
    found = audit.emulator(emulator(strict), as_chats(rows(4, 1)), max_length=64)
    assert (found.start.prompts, found.start.swapped) == (None, None)
    assert found.start.loss > 0
    assert "not be checked for priming: an example: the model's chat template refuses it" in found.warnings[0]


@pytest.mark.parametrize("whole", [True, False])
def test_texts_without_prompts_have_no_controls(tokenizer, whole):
    examples = [Example((Piece(f"w{i} w9", learnt=whole), Piece(" w7 w8", learnt=True))) for i in range(4, 8)]
    found = audit.emulator(emulator(tokenizer), examples).start
    assert (found.prompts is None) == (found.swapped is None) == whole


def test_what_cannot_be_measured_is_refused(tokenizer):
    with pytest.raises(UserError, match="without a tokenizer"):
        audit.emulator(emulator(None), rows(2, 1))
    with pytest.raises(UserError, match="no examples"):
        audit.emulator(emulator(tokenizer), [])


def spike(matrix):
    matrix += 60 * torch.outer(torch.ones(len(matrix)), torch.ones(matrix.shape[1])) / len(matrix)


PLANTED = {
    "a spike": (spike, "largest singular values"),
    "a size": (lambda x: x.mul_(50), "its size over"),
    "dead outputs": (lambda x: x[3:5].zero_(), "dead or constant outputs is 2"),
    "dead inputs": (lambda x: x[:, 3].zero_(), "dead or constant inputs is 1"),
    "one entry": (lambda x: x[2, 2].fill_(20), "kurtosis"),
    "nothing": (lambda x: x.zero_(), "entries that are zero"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_what_is_planted_is_found_where_it_is(tokenizer, case):
    ours = emulator(tokenizer)
    assert odd(ours) == ()
    plant, said = PLANTED[case]
    with torch.no_grad():
        plant(adapter_tensors(ours.model, SPLIT)["top.1.mlp.up_proj.weight"])
    found = odd(ours)
    assert {one.where for one in found} == {"top.1 mlp.up_proj"}
    assert any(said in str(one) for one in found)
    assert "top.1 mlp.up_proj" in audit.emulator(ours, rows(2, 1)).warnings[-1]


def test_a_layer_sent_twice_and_an_outlying_embedding_are_found(tokenizer):
    ours = emulator(tokenizer)
    layers = Decoder.of(ours.model).layers
    with torch.no_grad():
        for name, tensor in layers[0].state_dict().items():
            layers[1].get_parameter(name).copy_(tensor)
        ours.model.get_input_embeddings().weight[9] *= 30
    doubled, row = odd(ours)
    assert (doubled.where, row.where) == ("bottom.1", "embeddings")
    assert "token 9's row" in row.what


@pytest.mark.parametrize("rank", [2, 4, 7])
def test_what_lies_past_the_rank_of_a_matrix_is_rounding_and_no_step(tokenizer, rank):
    ours = emulator(tokenizer)
    weight = adapter_tensors(ours.model, SPLIT)["top.1.mlp.up_proj.weight"]
    with torch.no_grad():
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        weight.copy_((left[:, :rank] * values[:rank]) @ right[:rank])
    assert odd(ours) == ()


def test_layers_that_share_by_design_are_not_odd(tokenizer):
    shared = build(tiny_model("llama"), SPLIT, (Place(3), Place(3), Place(5)), tokenizer=tokenizer)
    assert odd(shared) == ()


def test_leading_singular_values_are_those_of_the_whole_decomposition():
    matrix = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(leading(matrix), torch.linalg.svdvals(matrix)[:8], rtol=0.01)
