"""Linears of factors and of fewer channels: what they compute, and their way into files and out again."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from offsite.errors import UserError
from offsite.model.decoder import Decoder, skeleton
from offsite.model.linears import LowRank, Weight, dense, reshape
from offsite.owner.blueprint import everything
from offsite.owner.build import build
from tests.families import tiny_model
from tests.test_laws import SPLIT, thin


def random(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def linear(kind, outputs, inputs, dtype=torch.float32, bias=True):
    made = nn.Linear(inputs, outputs, bias=bias) if kind == "Linear" else Conv1D(outputs, inputs)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(random(*parameter.shape, seed=9))
    return made.to(dtype)


class TestLowRank:
    def test_it_is_the_product_of_its_factors(self):
        module = LowRank(5, 2, 7, bias=True, dtype=torch.float32)
        inputs = random(3, 4, 5)
        wanted = inputs @ (module.up.weight @ module.down.weight).T + module.up.bias
        assert torch.allclose(module(inputs), wanted, atol=1e-6)

    def test_it_stores_two_factors_and_one_bias(self):
        shapes = {
            k: tuple(v.shape) for k, v in LowRank(5, 2, 7, bias=True, dtype=torch.half).state_dict().items()
        }
        assert shapes == {"down.weight": (2, 5), "up.weight": (7, 2), "up.bias": (7,)}
        bare = LowRank(5, 2, 7, bias=False, dtype=torch.half)
        assert set(bare.state_dict()) == {"down.weight", "up.weight"}
        assert {p.dtype for p in bare.parameters()} == {torch.half}


class TestWeight:
    @pytest.mark.parametrize("size", [(8, 8), (4, 12), (12, 4)])
    def test_the_smaller_form_is_stored(self, size):
        """Factors only where they hold fewer numbers than their product."""
        outputs, inputs = size
        for rank in range(1, min(size) + 1):
            up, down = random(outputs, rank), random(rank, inputs, seed=1)
            made = Weight.of(up, down)
            assert (len(made.matrices) == 2) == (rank * (outputs + inputs) < outputs * inputs)
            assert sum(m.numel() for m in made.matrices) == min(rank * sum(size), outputs * inputs)
            product = torch.linalg.multi_dot(made.matrices) if len(made.matrices) > 1 else made.matrices[0]
            assert torch.allclose(product, up @ down)

    @pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
    @pytest.mark.parametrize("bias", [None, 2.0], ids=["own bias", "new bias"])
    @pytest.mark.parametrize("rank", [None, 2])
    def test_the_module_computes_the_matrix_and_the_bias(self, kind, bias, rank):
        like = linear(kind, 7, 5)
        up, down = random(7, 2), random(2, 5, seed=1)
        given = None if bias is None else torch.full((7,), bias)
        made = Weight((up, down) if rank else (up @ down,), given).module(like)
        assert type(made) is (LowRank if rank else type(like))
        inputs, wanted = random(3, 4, 5, seed=2), like.bias if bias is None else given
        assert torch.allclose(made(inputs), inputs @ (up @ down).T + wanted, atol=1e-5)

    @pytest.mark.parametrize("rank", [None, 2])
    def test_without_a_bias_there_is_none(self, rank):
        made = Weight((random(7, 2), random(2, 5)) if rank else (random(7, 5),)).module(
            linear("Linear", 7, 5, bias=False)
        )
        assert not [name for name in made.state_dict() if "bias" in name]

    @pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
    @pytest.mark.parametrize("rank", [None, 2])
    def test_the_module_has_type_and_mode_of_what_it_replaces_and_is_frozen(self, kind, rank):
        matrices = (random(7, 2), random(2, 5)) if rank else (random(7, 5),)
        for training in (True, False):
            made = Weight(matrices, random(7)).module(linear(kind, 7, 5, torch.bfloat16).train(training))
            assert {p.dtype for p in made.parameters()} == {torch.bfloat16}
            assert {part.training for part in made.modules()} == {training}
            assert not any(p.requires_grad for p in made.parameters())
            assert all(p.is_contiguous() for p in made.parameters())

    @pytest.mark.parametrize("rank", [None, 2])
    def test_the_module_is_on_the_device_of_what_it_replaces(self, rank):
        """Parts come from a file, the model may be elsewhere; here it is on no device."""
        matrices = (random(7, 2), random(2, 5)) if rank else (random(7, 5),)
        made = Weight(matrices, random(7)).module(linear("Linear", 7, 5).to("meta"))
        assert {p.device.type for p in made.parameters()} == {"meta"}


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def reshaped(model, told):
    """A model of the same config on no device, its middle given the shapes `told`."""
    blank = skeleton(model.config)
    reshape(blank, SPLIT, told.get)
    return blank


def test_reshaping_makes_the_modules_that_build_made(model):
    emulated = build(model, SPLIT, thin(model)).model
    made = reshaped(emulated, shapes(emulated))
    assert shapes(made) == shapes(emulated)
    assert {p.device.type for p in made.parameters()} == {"meta"}
    kinds = [{name: type(part) for name, part in each.named_modules()} for each in (made, emulated)]
    assert kinds[0] == kinds[1]


def test_shapes_that_are_the_configs_own_change_nothing(model):
    blank = skeleton(model.config)
    before = dict(blank.named_modules())
    reshape(blank, SPLIT, shapes(model).get)
    assert dict(blank.named_modules()) == before


def test_only_the_middle_is_reshaped(llama):
    told = shapes(build(llama, SPLIT, thin(llama)).model)
    told |= {name.replace(".2.", ".0."): shape for name, shape in told.items() if ".layers.2." in name}
    made = shapes(reshaped(llama, told))
    assert all(made[name] == shape for name, shape in shapes(llama).items() if ".layers.0." in name)


def test_dense_gives_every_tensor_the_shape_that_the_config_says(model):
    emulated = build(model, SPLIT, thin(model)).model
    whole = skeleton(emulated.config)
    assert {name: tuple(x.shape) for name, x in dense(emulated, whole, SPLIT)} == shapes(whole)


def test_dense_multiplies_factors_and_fills_with_zeros(model):
    """What was kept comes first, and pruning the rest of the dense state gives back what was there."""
    emulated = build(model, SPLIT, thin(model)).model
    whole = skeleton(emulated.config)
    state, inner, decoder = dict(dense(emulated, whole, SPLIT)), Decoder.of(emulated), Decoder.of(whole)
    for index in SPLIT.middle(8):
        feed = decoder.feed_forward(index)
        kept = torch.arange(4)
        for name, turned in decoder.linears(index).items():
            linear, place = inner.layers[index].get_submodule(name), decoder.name(index, name)
            matrix = state[f"{place}.weight"].T if turned else state[f"{place}.weight"]
            bias = state.get(f"{place}.bias")
            if isinstance(linear, LowRank):
                assert torch.allclose(matrix, linear.up.weight @ linear.down.weight)
                continue
            weight = linear.weight.T if turned else linear.weight
            stays = (slice(None), kept) if name == feed.down else (feed.rows(name, kept),)
            assert torch.equal(matrix[stays], weight)
            assert matrix.count_nonzero() == weight.count_nonzero()
            if bias is not None and name != feed.down:
                assert torch.equal(bias[stays], linear.bias)
                assert bias.count_nonzero() == linear.bias.count_nonzero()


def test_of_a_whole_model_dense_is_its_state(model):
    emulated = build(model, SPLIT, everything(SPLIT, 8)).model
    state = dict(dense(emulated, skeleton(emulated.config), SPLIT))
    assert state.keys() == emulated.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in emulated.state_dict().items())


def test_dense_and_reshape_leave_what_they_are_given(llama):
    emulated = build(llama, SPLIT, thin(llama)).model
    before = {name: tensor.clone() for name, tensor in emulated.state_dict().items()}
    dict(dense(emulated, skeleton(emulated.config), SPLIT))
    assert before.keys() == emulated.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in emulated.state_dict().items())


def test_a_refusal_leaves_the_place_as_it_was():
    llama = tiny_model("llama")
    blank = skeleton(llama.config)
    told = shapes(llama) | {"model.layers.3.mlp.up_proj.weight": (4, 32)}
    with pytest.raises(UserError, match="would fit the linears around it"):
        reshape(blank, SPLIT, told.get)
    assert shapes(blank) == shapes(llama)
