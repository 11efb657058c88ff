"""How far an emulator's gradients are from the model's: by definition, at its ends, and without a trace."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from offsite.bundles.adapter import Adapter, adapter_tensors
from offsite.errors import UserError
from offsite.model.decoder import Decoder
from offsite.model.precision import autocast
from offsite.owner.blueprint import Place
from offsite.owner.build import build, lossless
from offsite.owner.fidelity import fidelity, held_out
from offsite.owner.fidelity import gradient as own_gradient
from offsite.owner.plug import plug
from tests.families import tiny_model
from tests.test_laws import DROP, SHARE, SPLIT, same, state, thin

TOKENS = torch.randint(3, 120, (6, 12), generator=torch.Generator().manual_seed(0))  # a batch and a half


def gradient(model):
    """By the book: one backward pass over all the tokens at once; (loss, gradient), flat and float32."""
    tensors = [t for t in adapter_tensors(model, SPLIT).values() if isinstance(t, torch.nn.Parameter)]
    for tensor in tensors:
        tensor.requires_grad_(True)
    with autocast(model):
        logits = model(TOKENS).logits[:, :-1]
    loss = cross_entropy(logits.float().flatten(0, 1), TOKENS[:, 1:].flatten())
    return loss.item(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, tensors)])


@pytest.mark.parametrize("plan", [lambda model: DROP, lambda model: SHARE, thin], ids=["drop", "share", "thin"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_it_is_what_its_definition_says(family, plan):
    model = tiny_model(family)
    emulator = build(model, SPLIT, plan(model))
    found = fidelity(emulator, model, TOKENS)
    loss, ours = gradient(emulator.model)
    full_loss, theirs = gradient(model)
    assert found.cosine == pytest.approx(float(cosine_similarity(ours, theirs, dim=0)), abs=0.01)
    assert found.relative_error == pytest.approx(float((ours - theirs).norm() / theirs.norm()), rel=0.02)
    assert (found.loss, found.full_loss) == pytest.approx((loss, full_loss), rel=1e-3)
    assert found.loss_gap == found.loss - found.full_loss
    assert found.cosine < 0.99


def test_an_emulator_of_everything_has_the_models_own_gradient(model):
    found = fidelity(lossless(model, SPLIT), model, TOKENS)
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert (found.relative_error, found.loss_gap) == (0, 0)


def test_the_models_own_gradient_serves_many_emulators(llama):
    full = own_gradient(llama, SPLIT, TOKENS)
    for plan in (DROP, SHARE):
        emulator = build(llama, SPLIT, plan)
        assert fidelity(emulator, llama, TOKENS, full) == fidelity(emulator, llama, TOKENS)


def test_a_middle_that_loses_less_has_truer_gradients(llama):
    decoder = Decoder.of(llama)
    errors = []
    for lost in (16, 4, 1):  # of 64 channels, the quietest of them
        kept = {i: loudest(decoder, i, 64 - lost) for i in SPLIT.middle(8)}
        emulator = build(llama, SPLIT, tuple(Place(i, kept[i]) for i in SPLIT.middle(8)))
        errors.append(fidelity(emulator, llama, TOKENS).relative_error)
    assert errors == sorted(errors, reverse=True)


def loudest(decoder, index, count):
    norms = decoder.matrix(index, decoder.feed_forward(index).down).norm(dim=0)
    return tuple(sorted(norms.topk(count).indices.tolist()))


def test_neither_model_keeps_a_trace_of_it(llama):
    """Weights, gradients, what requires them and which modules train are as they were, also after an error."""
    emulator = build(llama, SPLIT, SHARE)
    llama.train()
    llama.model.layers[3].eval()
    weight = llama.model.layers[0].mlp.up_proj.weight
    weight.grad = torch.ones_like(weight)
    before = [traits(m) for m in (llama, emulator.model)]
    with torch.no_grad():
        fidelity(emulator, llama, TOKENS)
    with pytest.raises(IndexError):
        fidelity(emulator, llama, TOKENS + 1000)
    for m, (weights, modes, needs, gradients, storage) in zip((llama, emulator.model), before, strict=True):
        now = traits(m)
        assert same(now[0], weights)
        assert now[1:] == (modes, needs, gradients, storage)
    assert torch.equal(weight.grad, torch.ones_like(weight))


def traits(model):
    parameters = list(model.parameters())
    return (
        state(model),
        [module.training for module in model.modules()],
        [p.requires_grad for p in parameters],
        [None if p.grad is None else p.grad.data_ptr() for p in parameters],
        [(p.dtype, p.data_ptr()) for p in parameters],
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tells_about_the_same(llama, dtype):
    exact = fidelity(build(llama, SPLIT, thin(llama)), llama, TOKENS)
    half = tiny_model("llama").to(dtype)
    emulator = build(half, SPLIT, thin(half))
    found = fidelity(emulator, half, TOKENS)
    assert found.cosine == pytest.approx(exact.cosine, abs=0.03)
    assert found.relative_error == pytest.approx(exact.relative_error, rel=0.1)
    assert found.loss == pytest.approx(exact.loss, rel=0.02)
    assert {p.dtype for p in [*half.parameters(), *emulator.model.parameters()]} == {dtype}


def test_another_models_emulator_is_refused(llama):
    with pytest.raises(UserError, match="made from another model"):
        fidelity(build(tiny_model("llama", seed=7), SPLIT, DROP), llama, TOKENS)


@pytest.mark.parametrize("tuned", ["emulator", "model"])
def test_one_that_was_tuned_since_is_refused(llama, tuned):
    emulator = build(llama, SPLIT, DROP)
    changed = emulator.model if tuned == "emulator" else llama
    adapter_tensors(changed, SPLIT)["top.0.mlp.up_proj.weight"].data[0, 0] += 1
    with pytest.raises(UserError, match="not the model's any more"):
        fidelity(emulator, llama, TOKENS)
    plug(llama, Adapter.of(emulator.model, emulator.origin))
    assert fidelity(emulator, llama, TOKENS).cosine > 0  # both tuned alike: comparable again


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        (TOKENS[:, :1], "nothing to predict"),
        (TOKENS[:0], "nothing to predict"),
        (TOKENS.repeat(1, 11), "132 tokens are longer than the 128 that the model reads"),
    ],
    ids=["of one token", "none", "too long"],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blocks_in_which_nothing_can_be_predicted_are_refused(family, tokens, why):
    model = tiny_model(family)
    with pytest.raises(UserError, match=why):
        fidelity(build(model, SPLIT, DROP), model, tokens)


def test_a_model_of_no_gradient_is_refused(llama):
    with torch.no_grad():
        llama.model.norm.weight.zero_()
    with pytest.raises(UserError, match="nothing to compare"):
        fidelity(build(llama, SPLIT, DROP), llama, TOKENS)


class TestHeldOut:
    def test_it_is_the_last_blocks_of_one_text(self, tokenizer):
        text = " ".join(f"w{4 + i % 124}" for i in range(100))
        ids = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
        found = held_out([text], tokenizer, 10, 3)
        assert found.flatten().tolist() == ids[70:100]

    def test_of_many_texts_the_first_are_not_read(self, tokenizer):
        texts = ["w4 w5"] * 50 + ["w6 w7"] * 50
        assert 4 not in held_out(texts, tokenizer, 6, 4)
        assert held_out(texts, tokenizer, 6, 4).shape == (4, 6)

    @pytest.mark.parametrize(("count", "length"), [(9, 12), (0, 4), (1, 0)])
    def test_too_little_is_refused(self, tokenizer, count, length):
        with pytest.raises(UserError, match=r"makes 8 blocks of 12 tokens where 9|There are no"):
            held_out(["w4 w5 w6 w7"] * 20, tokenizer, length, count)
