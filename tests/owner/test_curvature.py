"""What one pass sums up is what plain autograd says token by token, and the model is left as it was."""

from __future__ import annotations

import pytest
import torch

from offsite.model.decoder import Decoder
from offsite.owner import curvature as module
from offsite.owner.curvature import Moment, curvature

LAYERS = [2, 4, 5]


def text(blocks, length, seed=3):
    return torch.randint(3, 120, (blocks, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def float32(monkeypatch):
    """Products and passes in float32, also where bfloat16 is faster."""
    monkeypatch.setattr("offsite.owner.curvature.bf16_pays", lambda: False)
    monkeypatch.setattr("offsite.model.precision.bf16_pays", lambda: False)


def linears(model, layers):
    decoder = Decoder.of(model)
    return {layer: list(decoder.linears(layer)) for layer in layers}


def brute(model, layers, tokens):
    """Inputs (tokens, in), output gradients (tokens, out) and weight gradient (out, in) by layer and name."""
    decoder, seen, hooks = Decoder.of(model), {}, []

    def watch(key):
        def hook(_, args, output):
            output.retain_grad()
            seen[key] = (args[0], output)

        return hook

    for layer in layers:
        for name in decoder.linears(layer):
            linear = decoder.layers[layer].get_submodule(name)
            hooks.append(linear.register_forward_hook(watch((layer, name))))
    model.requires_grad_(True)
    logits = model(tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum").backward()
    found = {}
    for (layer, name), (states, output) in seen.items():
        gradient = decoder.layers[layer].get_submodule(name).get_parameter("weight").grad
        gradient = gradient.T if decoder.linears(layer)[name] else gradient
        rows = [each.detach().reshape(-1, each.shape[-1]) for each in (states, output.grad)]
        found[layer, name] = (*rows, gradient.clone())
    for hook in hooks:
        hook.remove()
    model.zero_grad(set_to_none=True)
    return found


def close(found, wanted, part):
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-12)) < part


def agree(model, tokens, part):
    wanted = brute(model, LAYERS, tokens)
    found = curvature(model, linears(model, LAYERS), tokens)
    assert {(layer, name) for layer in found for name in found[layer]} == set(wanted)
    for (layer, name), (states, slopes, gradient) in wanted.items():
        told, count = found[layer][name], tokens.numel()
        assert len(states) == len(slopes) == count
        assert close(told.inputs, states.T @ states / count, part), name
        assert close(told.outputs, slopes.T @ slopes / count, part), name
        assert close(told.slope, gradient / count, part), name
        assert torch.equal(told.inputs, told.inputs.T)
        assert torch.equal(told.outputs, told.outputs.T)


def test_moments_and_mean_gradients_are_those_of_plain_autograd(model, float32, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 12)
    agree(model, text(5, 6), 1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_in_bfloat16_they_are_so_to_a_tenth(model, monkeypatch):
    monkeypatch.setattr("offsite.owner.curvature.bf16_pays", lambda: True)
    monkeypatch.setattr("offsite.model.precision.bf16_pays", lambda: True)
    agree(model, text(16, 16), 0.1)


def test_only_the_linears_asked_for_are_watched(llama):
    found = curvature(llama, {3: ["mlp.down_proj"], 5: ["self_attn.q_proj"]}, text(2, 6))
    there = {(i, name) for i in found for name in found[i]}
    assert there == {(3, "mlp.down_proj"), (5, "self_attn.q_proj")}


def test_linears_that_read_the_same_states_share_one_moment(llama):
    found = curvature(llama, linears(llama, [3]), text(10, 6))[3]
    query, key, value, output, gate, up, down = (told.inputs for told in found.values())
    assert query is key
    assert key is value
    assert gate is up
    assert len({id(each) for each in (query, output, gate, down)}) == 4


def test_one_layer_alone_is_told_as_among_others(llama, float32):
    tokens = text(10, 6)
    among = curvature(llama, linears(llama, LAYERS), tokens)[4]
    alone = curvature(llama, linears(llama, [4]), tokens)[4]
    for name, told in among.items():
        for part in ("inputs", "outputs", "slope"):
            assert torch.equal(getattr(told, part), getattr(alone[name], part))


@pytest.mark.parametrize("width", [7, 384, 500, 800])
def test_a_moment_is_the_whole_symmetric_sum(width, float32):
    rows = torch.randn(3, 40, width, generator=torch.Generator().manual_seed(0))
    moment = Moment(width, rows.device)
    for batch in rows:
        moment.add(batch)
    flat = rows.flatten(0, 1)
    matrix = moment.matrix()
    assert close(matrix, flat.T @ flat, 1e-5)
    assert torch.equal(matrix, matrix.T)


def shape_of(model):
    hooks = [
        (name, len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks))
        for name, part in model.named_modules()
    ]
    flags = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    return hooks, flags, {name: part.training for name, part in model.named_modules()}


def few_trained(model, training):
    """The model with some parameters that ask for a gradient and some that do not."""
    model.train(training)
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 3 == 0)
    return model


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(model, training):
    few_trained(model, training)
    before, weights = shape_of(model), {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        curvature(model, linears(model, LAYERS), text(10, 6))
        assert not torch.is_grad_enabled()
    assert shape_of(model) == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_the_model_is_left_as_it_was_when_the_pass_breaks_off(llama, monkeypatch, error, where):
    few_trained(llama, False)
    before, count, real = shape_of(llama), [0], Moment.add

    def breaking(self, states):
        count[0] += 1
        if count[0] == {"forward": 20, "backward": 30}[where]:  # of 12 in each forward of three layers
            raise error("broken off")
        real(self, states)

    monkeypatch.setattr(Moment, "add", breaking)
    with pytest.raises(error, match="broken off"):
        curvature(llama, linears(llama, LAYERS), text(10, 6))
    assert shape_of(llama) == before


def sampled(model, tokens, seed):
    return curvature(model, {6: ["mlp.down_proj"]}, tokens, sampled=seed)[6]["mlp.down_proj"]


def test_sampled_labels_hang_on_the_seed_alone(llama):
    tokens = text(4, 6)
    first = sampled(llama, tokens, 0)
    torch.rand(5)
    assert torch.equal(first.outputs, sampled(llama, tokens, 0).outputs)
    other = sampled(llama, tokens, 1)
    assert not torch.equal(first.outputs, other.outputs)
    assert torch.equal(first.inputs, other.inputs)


def exact_fisher(model, layer, name, tokens):
    """E[g gT] at a linear's output over the model's own labels: JT (diag p - p pT) J, summed over positions."""
    seen = []
    linear = Decoder.of(model).layers[layer].get_submodule(name)
    hook = linear.register_forward_hook(lambda _, args, output: seen.append(output))
    logits = model.requires_grad_(True)(tokens[None], use_cache=False).logits[0, :-1]
    hook.remove()
    total = 0.0
    for row in logits:  # labels are drawn for each position apart, so cross terms have no mean
        units = torch.eye(len(row))
        (jacobian,) = torch.autograd.grad(row, seen[0], units, retain_graph=True, is_grads_batched=True)
        p = row.detach().softmax(0)
        fisher = p.diag() - p[:, None] * p
        total += torch.einsum("abso,ac,cbsp->op", jacobian, fisher, jacobian)
    return total / len(tokens)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sampled_labels_give_the_fisher_information_and_those_of_one_text_do_not(model, float32, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 512)
    name = Decoder.of(model).feed_forward(6).down
    tokens = text(1, 4)[0]
    many, wanted = tokens.expand(2048, -1), exact_fisher(model, 6, name, tokens)
    found = curvature(model, {6: [name]}, many, sampled=0)[6][name]
    empirical = curvature(model, {6: [name]}, many)[6][name]
    assert close(found.outputs, wanted, 0.15)
    assert not close(empirical.outputs, wanted, 0.5)


def test_kronecker_factors_are_exact_where_states_and_gradients_are_independent(float32):
    """Over all pairs of some x and some g, the mean of (gT D x)^2 is tr(DT G D A)."""
    chance = torch.Generator().manual_seed(0)
    states, slopes = (torch.randn(n, width, generator=chance) for n, width in ((9, 5), (7, 6)))
    pairs = [(x, g) for x in states for g in slopes]
    inputs, outputs = (Moment(width, states.device) for width in (5, 6))
    inputs.add(torch.stack([x for x, _ in pairs]))
    outputs.add(torch.stack([g for _, g in pairs]))
    a, g = inputs.matrix() / len(pairs), outputs.matrix() / len(pairs)
    for change in torch.randn(5, 6, 5, generator=chance):
        exact = torch.stack([(g @ change @ x).square() for x, g in pairs]).mean()
        assert torch.allclose((change.T @ g @ change @ a).trace(), exact, rtol=1e-4)


def ranked(values):
    return values.argsort().argsort().float()


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_kronecker_factors_rank_components_as_the_exact_fisher_does_to_a_correlation_of_095(model, float32):
    """Of all singular components and single columns of the layers watched."""
    tokens = text(24, 16)
    wanted, decoder = brute(model, LAYERS, tokens), Decoder.of(model)
    found = curvature(model, linears(model, LAYERS), tokens)
    exact, factored = [], []
    for (layer, name), (states, slopes, _) in wanted.items():
        u, s, vt = torch.linalg.svd(decoder.matrix(layer, name), full_matrices=False)
        left, right, told = u * s, vt, found[layer][name]
        exact.append(((slopes @ left) * (states @ right.T)).square().mean(0))
        factored.append(((told.outputs @ left) * left).sum(0) * ((right @ told.inputs) * right).sum(1))
    ranks = torch.stack([ranked(torch.cat(each)) for each in (exact, factored)])
    assert torch.corrcoef(ranks)[0, 1] > 0.95
