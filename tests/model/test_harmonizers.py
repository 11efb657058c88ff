"""What a harmonizer computes, learns and is read back from."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from offsite.bundles.emulator import Emulator
from offsite.errors import UserError
from offsite.model.decoder import Decoder, restack
from offsite.model.harmonizers import Harmonizer, attach, attach_by_shapes, harmonizer_tensors, normed
from offsite.owner.build import build
from offsite.owner.distill import DistillConfig, distill
from tests.families import tiny_model
from tests.test_laws import DROP, SPLIT, harmonized, logits, same, state

WIDTH, RANK = 6, 2


def random(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def by_the_number(up, down, x):
    """x + up relu(down (x / rms x)) for one vector, in plain Python."""
    rms = math.sqrt(sum(v * v for v in x) / len(x))
    inner = [max(0.0, sum(w * v / rms for w, v in zip(row, x, strict=True))) for row in down]
    return [v + sum(w * h for w, h in zip(row, inner, strict=True)) for v, row in zip(x, up, strict=True)]


def loss(model, tokens):
    return cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


class TestOne:
    def test_it_is_the_formula(self):
        up, down, states = random(WIDTH, RANK), random(RANK, WIDTH, seed=1), random(2, 3, WIDTH, seed=2)
        made = Harmonizer.of(up, down)(states)
        for x, y in zip(states.flatten(0, 1), made.flatten(0, 1), strict=True):
            wanted = by_the_number(up.tolist(), down.tolist(), x.tolist())
            assert y.tolist() == pytest.approx(wanted, abs=1e-4)

    def test_a_new_one_is_the_identity(self):
        states = random(2, 3, WIDTH)
        assert torch.equal(Harmonizer(WIDTH, RANK)(states), states)

    def test_what_it_adds_hangs_on_the_direction_alone(self):
        made, states = Harmonizer.of(random(WIDTH, RANK), random(RANK, WIDTH)), random(3, WIDTH)
        added = made(states) - states
        assert added.abs().sum() > 0
        assert torch.allclose(made(100 * states) - 100 * states, added, atol=1e-3)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_large_and_zero_states_of_half_precision_are_normed_soundly(self, dtype):
        states = torch.stack([torch.full((WIDTH,), 5e4), torch.zeros(WIDTH)]).to(dtype)
        assert torch.equal(normed(states), torch.stack([torch.ones(WIDTH), torch.zeros(WIDTH)]).to(dtype))

    def test_the_one_of_given_matrices_is_frozen_and_has_them(self):
        up, down = random(WIDTH, RANK).requires_grad_(), random(RANK, WIDTH)
        made = Harmonizer.of(up, down)
        assert same(dict(made.state_dict()), {"up.weight": up, "down.weight": down})
        assert not any(parameter.requires_grad for parameter in made.parameters())


class TestInAModel:
    def test_none_is_no_change(self, llama):
        before = list(llama.state_dict())
        attach(llama, {})
        assert harmonizer_tensors(llama) == {}
        assert list(llama.state_dict()) == before

    def test_each_is_named_by_the_layer_that_it_follows_and_its_number(self, llama):
        names = [name for name in harmonizer_tensors(emulated(llama)) if ".up." in name]
        assert [name.removesuffix(".up.weight") for name in names] == [
            "harmonizers.1.0", "harmonizers.2.0", "harmonizers.2.1", "harmonizers.3.0",
        ]  # fmt: skip

    def test_gradient_reaches_up_at_once_and_both_matrices_after_one_step(self, model, tokens):
        short = emulated(model, up=0)
        tensors = {name: tensor.requires_grad_() for name, tensor in harmonizer_tensors(short).items()}
        loss(short, tokens).backward()
        assert {name for name, t in tensors.items() if t.grad.any()} == {n for n in tensors if ".up." in n}
        with torch.no_grad():
            for tensor in tensors.values():
                tensor -= 0.1 * tensor.grad
        loss(short, tokens).backward()
        assert all(tensor.grad.any() for tensor in tensors.values())

    def test_each_changes_the_loss(self, model, tokens):
        short = emulated(model)
        with torch.no_grad():
            whole = loss(short, tokens)
            for tensor in (t for name, t in harmonizer_tensors(short).items() if ".up." in name):
                kept = tensor.clone()
                tensor.data.zero_()
                assert abs(loss(short, tokens) - whole) > 1e-5
                tensor.data.copy_(kept)
            assert loss(short, tokens) == whole

    def test_a_model_of_half_precision_has_harmonizers_of_half_precision(self, tmp_path, tokens):
        model = tiny_model("llama").bfloat16()
        emulator = build(model, SPLIT, harmonized())
        assert {tensor.dtype for tensor in harmonizer_tensors(emulator.model).values()} == {torch.bfloat16}
        found = logits(emulator.model, tokens)
        assert found.dtype == torch.bfloat16
        assert not torch.equal(found, logits(build(model, SPLIT, DROP).model, tokens))
        emulator.save(tmp_path / "emulator")
        assert same(state(Emulator.load(tmp_path / "emulator").model), state(emulator.model))


class TestRehang:
    def test_the_shapes_of_harmonizers_are_all_it_takes(self, model):
        short, bare = emulated(model), restack(model, [0, 1, 2, 4, 6, 7])
        shapes = {name: tuple(tensor.shape) for name, tensor in harmonizer_tensors(short).items()}
        assert attach_by_shapes(bare, SPLIT, shapes.get)
        assert {name: tuple(tensor.shape) for name, tensor in harmonizer_tensors(bare).items()} == shapes
        assert {tensor.device.type for tensor in harmonizer_tensors(bare).values()} == {"meta"}
        assert list(bare.state_dict()) == list(short.state_dict())

    def test_no_shapes_are_no_harmonizers(self, llama):
        assert not attach_by_shapes(llama, SPLIT, {}.get)
        assert harmonizer_tensors(llama) == {}

    @pytest.mark.parametrize("shape", [(31, 3), (32, 0), (32, 33), (32,), (32, 3, 1)])
    def test_shapes_of_none_are_refused(self, llama, shape):
        with pytest.raises(UserError, match=r"^'harmonizers\.2\.0' of the shape .* of a width of 32\.$"):
            attach_by_shapes(llama, SPLIT, {"harmonizers.2.0.up.weight": shape}.get)


def test_distilling_trains_the_harmonizers_along_with_the_middle_and_nothing_else(tmp_path, tokens):
    model = tiny_model("llama")
    emulator, whole = build(model, SPLIT, harmonized()), state(model)
    before = state(emulator.model)
    distill(emulator, model, tokens, DistillConfig(steps=2, batch_size=2, lr=3e-3), work=tmp_path / "work")
    changed = {name for name, t in emulator.model.state_dict().items() if not torch.equal(t, before[name])}
    inner = Decoder.of(emulator.model)
    assert changed == {
        *(inner.name(i, name) for i in (2, 3) for name in inner.tensors(i)),
        *harmonizer_tensors(emulator.model),
    }
    assert same(state(model), whole)
    emulator.save(tmp_path / "emulator")
    assert same(state(Emulator.load(tmp_path / "emulator").model), state(emulator.model))


def emulated(model, up=0.1):
    return build(model, SPLIT, harmonized(up)).model
