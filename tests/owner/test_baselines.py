"""ShortGPT, SVD-LLM and FLAP: their scores and truncations are what the papers' formulas say, written out."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from offsite.bundles.contents import sent
from offsite.bundles.emulator import Emulator
from offsite.errors import UserError
from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build, keep_of
from offsite.owner.components import by_share, by_size, whole_where_free
from offsite.owner.factors import whitened_ranks
from offsite.owner.inputs import inputs
from offsite.owner.methods.flap import FLAP, standardised
from offsite.owner.methods.shortgpt import ShortGPT, influence
from offsite.owner.methods.svd_llm import SVDLLM
from offsite.owner.profile import Profile
from offsite.owner.records import ChannelScores, Factors, RankScores
from tests.owner.test_components import channels, ranks
from tests.test_laws import logits, states_of

SPLIT = Split(1, 1)
TOKENS = torch.randint(3, 120, (16, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """Products and passes in float32, also where bfloat16 is faster."""
    monkeypatch.setattr("offsite.owner.curvature.bf16_pays", lambda: False)
    monkeypatch.setattr("offsite.model.precision.bf16_pays", lambda: False)


def random(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def all_read(model):
    """What each linear reads over TOKENS, (tokens, in), by its layer and name."""
    decoder, seen, handles = Decoder.of(model), {}, []
    for layer in SPLIT.middle(8):
        for name in decoder.linears(layer):

            def hook(_, args, place=(layer, name)):
                seen[place] = args[0].flatten(0, -2)

            handles.append(decoder.layers[layer].get_submodule(name).register_forward_pre_hook(hook))
    logits(model, TOKENS)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_linears_read_is_summed_over_all_tokens(model):
    decoder = Decoder.of(model)
    found, wanted = (
        inputs(model, {3: list(decoder.linears(3)), 5: decoder.attention(5)}, TOKENS),
        all_read(model),
    )
    assert {layer: list(seen) for layer, seen in found.items()} == {
        3: list(decoder.linears(3)), 5: decoder.attention(5)
    }  # fmt: skip
    for layer, seen in found.items():
        for name, read in seen.items():
            states = wanted[layer, name]
            assert torch.allclose(read.mean, states.mean(0), atol=1e-5)
            assert torch.allclose(read.moment, states.T @ states / len(states), atol=1e-5)
            assert torch.allclose(read.covariance, states.T.cov(correction=0), atol=1e-5)


def test_a_weight_that_is_no_number_is_refused(llama):
    Decoder.of(llama).matrix(2, "mlp.up_proj")[5, 5] = float("nan")
    for method in (SVDLLM(), FLAP(), ShortGPT()):
        with pytest.raises(UserError, match="is not a number; look whether the model's weights are sound"):
            method.profile(llama, SPLIT, TOKENS)


class TestShortGPT:
    def test_influence_is_one_minus_the_cosine(self):
        before = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        after = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
        assert influence(before, after).tolist() == [0.0, 1.0, 2.0]

    def test_it_is_the_mean_over_tokens_for_each_layer(self, llama):
        states = states_of(llama, TOKENS)
        found = ShortGPT().profile(llama, SPLIT, TOKENS).tensors["model/influence"]
        for i, layer in enumerate(range(1, 7)):
            x, y = (state.flatten(0, 1) for state in states[layer : layer + 2])
            cosines = (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()
            assert found[i] == pytest.approx(float(1 - cosines.mean()), abs=1e-5)

    def test_the_most_influential_layers_stay_in_their_order(self, llama):
        scores = {"model/influence": torch.tensor([0.3, 0.1, 0.5, 0.2, 0.05, 0.4])}
        plan = ShortGPT().plan(Profile.of(llama, SPLIT, scores), 0.5)
        assert plan == (Place(1), Place(3), Place(6))


class TestSVDLLM:
    @pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
    def test_no_other_matrix_of_the_rank_changes_the_output_less(self, shape):
        """||W X - W' X||_F over all W' of rank 2, searched by descent from several starts."""
        weight, states = random(*shape, seed=5), random(40, shape[1]) * torch.arange(1.0, shape[1] + 1)
        factors, scores = whitened_ranks(weight, states.T @ states / len(states))

        def lost(up, down):
            return ((weight - up @ down) @ states.T).square().sum() / len(states)

        best = lost(factors.up[:, :2], factors.down[:2])
        assert torch.isclose(best, scores.score[2:].sum(), rtol=1e-3)
        u, s, vt = torch.linalg.svd(weight)
        plain = u[:, :2] * s[:2], vt[:2]
        assert lost(*plain) > best * 1.01
        for seed in range(3):
            starts = plain if not seed else (random(shape[0], 2, seed=seed), random(2, shape[1], seed=-seed))
            found = descent(lost, *starts)
            assert best * (1 - 1e-3) <= found <= 1.5 * float(lost(*plain))

    def test_all_ranks_together_are_the_weight(self):
        """Also where what is read lies in a few directions alone."""
        weight, states = random(6, 9), random(40, 3) @ random(3, 9, seed=1)
        factors, _ = whitened_ranks(weight, states.T @ states / len(states))
        assert torch.allclose(factors.up @ factors.down, weight, atol=1e-2)
        assert torch.allclose(factors.up[:, :3] @ factors.down[:3] @ states.T, weight @ states.T, atol=1e-2)

    @pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
    def test_every_linear_keeps_the_same_share_of_its_parameters(self, model):
        decoder = Decoder.of(model)
        method = SVDLLM()
        blueprint = method.plan(method.profile(model, SPLIT, TOKENS), 0.5)
        assert keep_of(build(model, SPLIT, blueprint), model) == pytest.approx(0.5, abs=0.02)
        for place in blueprint:
            assert place.channels is None
            assert set(place.weights) == set(decoder.linears(place.layer))
            for name, weight in place.weights.items():
                outputs, inputs = decoder.matrix(place.layer, name).shape
                stored = sum(matrix.numel() for matrix in weight.matrices)
                assert stored / (outputs * inputs) == pytest.approx(0.5, abs=0.08)

    def test_its_emulator_changes_outputs_less_than_plain_truncation_to_the_same_ranks(self, llama):
        method = SVDLLM()
        blueprint = method.plan(method.profile(llama, SPLIT, TOKENS), 0.5)
        decoder, read = Decoder.of(llama), all_read(llama)
        for place in blueprint:
            for name, weight in place.weights.items():
                states, matrix = read[place.layer, name], decoder.matrix(place.layer, name)
                up, down = weight.matrices
                u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
                plain = (u * s)[:, : len(down)] @ vt[: len(down)]
                ours, theirs = (((matrix - each) @ states.T).square().sum() for each in (up @ down, plain))
                assert ours < theirs


def descent(lost, up, down):
    """The least that descent finds."""
    pair = [each.clone().contiguous().requires_grad_(True) for each in (up, down)]
    optimizer = torch.optim.LBFGS(pair, max_iter=40, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = lost(*pair)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(lost(*pair).detach())


class TestFLAP:
    @pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
    def test_a_channels_score_is_its_variance_times_the_squared_norm_of_what_it_writes(self, model):
        decoder = Decoder.of(model)
        down = decoder.feed_forward(3).down
        states, weight = all_read(model)[3, down], decoder.matrix(3, down)
        profile = FLAP().profile(model, SPLIT, TOKENS)
        found = ChannelScores.read(profile.tensors, 3, down).score
        for channel in (0, 17, len(found) - 1):
            fluctuating = states[:, channel] - states[:, channel].mean()
            wanted = fluctuating.square().mean() * weight[:, channel].square().sum()
            assert torch.isclose(found[channel], wanted, rtol=1e-3)

    def test_a_ranks_score_is_the_variance_that_goes_with_it(self, llama):
        name = "self_attn.o_proj"
        states, weight = all_read(llama)[3, name], Decoder.of(llama).matrix(3, name)
        tensors = FLAP().profile(llama, SPLIT, TOKENS).tensors
        factors, score = Factors.read(tensors, 3, name), RankScores.read(tensors, 3, name).score
        assert torch.allclose(factors.up @ factors.down, weight, atol=1e-4)
        for rank in (0, 5):
            added = states @ factors.down[rank][:, None] * factors.up[:, rank]
            assert torch.isclose(score[rank], added.var(0, correction=0).sum(), rtol=1e-3)

    def test_scores_are_standardised_in_each_layer_and_then_compete(self):
        among = [channels(1, "down", 40, 24), channels(2, "down", 40, 24, scale=1e6), ranks(1, "query", 24, 24)]
        found = standardised(among)
        for each in found:
            assert float(each.score.mean()) == pytest.approx(0, abs=1e-6)
            assert float(each.score.std(correction=0)) == pytest.approx(1, abs=1e-6)
        assert torch.allclose(
            found[0].score, (among[0].score - among[0].score.mean()) / among[0].score.std(correction=0)
        )
        kept = by_share(0.0, lambda _: "all")(found, 0.3)
        assert min(each.score[k].min() for each, k in zip(found, kept, strict=True)) > max(
            each.score[[i for i in range(len(each.score)) if i not in k]].max()
            for each, k in zip(found, kept, strict=True)
        )

    @pytest.mark.parametrize("family", ["gpt2", "opt", "bloom"])
    def test_the_mean_of_what_goes_is_in_the_bias(self, model):
        """The mean output of each linear that lost something is what it was."""
        decoder, method = Decoder.of(model), FLAP()
        blueprint = method.plan(method.profile(model, SPLIT, TOKENS), 0.5)
        emulated = Decoder.of(build(model, SPLIT, blueprint).model)
        seen, read = set(), all_read(model)
        for place in blueprint:
            down = decoder.feed_forward(place.layer).down
            for name in place.weights:
                states = read[place.layer, name]
                linears = [each.layers[place.layer].get_submodule(name) for each in (decoder, emulated)]
                narrowed = states[:, list(place.channels)] if name == down and place.channels else states
                before, after = linears[0](states).mean(0), linears[1](narrowed).mean(0)
                assert torch.allclose(before, after, atol=1e-3)
                seen.add(name == down)
        assert seen == {True, False}

    def test_without_a_bias_what_stays_is_as_it_was(self, llama):
        method = FLAP()
        blueprint = method.plan(method.profile(llama, SPLIT, TOKENS), 0.7)
        emulated = build(llama, SPLIT, blueprint).model
        assert any(place.channels for place in blueprint)
        assert all("mlp.down_proj" not in place.weights for place in blueprint)
        assert not any("bias" in name for name in emulated.state_dict())
        assert keep_of(build(llama, SPLIT, blueprint), llama) == pytest.approx(0.7, abs=0.02)


def test_ranks_that_would_store_no_less_than_the_whole_all_stay():
    among = [ranks(1, "query", 24, 24), channels(1, "down", 40, 24)]
    rule = by_share(0.0, lambda each: each.name)
    free, bare = whole_where_free(rule), rule
    for level, count in ((0.4, 10), (0.5, 24), (0.9, 24)):
        assert len(free(among, level)[0]) == count
        assert len(bare(among, level)[0]) == round(24 * level)
        assert torch.equal(free(among, level)[1], bare(among, level)[1])


@pytest.mark.parametrize("level", [0.0, 0.3, 0.7, 1.0])
def test_by_size_each_stores_the_same_share(level):
    among = [ranks(1, "query", 24, 24), ranks(1, "value", 8, 24), channels(1, "down", 40, 72)]
    for each, kept in zip(among, by_size(among, level), strict=True):
        assert len(kept) == max(1, int(level * each.dense / each.cost))
        assert torch.equal(kept, each.best(len(kept)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("method", [SVDLLM(), FLAP()], ids=lambda method: method.name)
def test_its_bundle_loads_and_exports_to_the_same_model(model, tmp_path, method):
    """Feed-forwards in factors, in one piece with fewer channels, and with other biases."""
    emulator = build(model, SPLIT, method.plan(method.profile(model, SPLIT, TOKENS), 0.5), method=method.name)
    digest = emulator.save(tmp_path / "emulator")
    wanted = logits(emulator.model, TOKENS)
    assert torch.equal(logits(Emulator.load(tmp_path / "emulator").model, TOKENS), wanted)
    told = sent(tmp_path / "emulator")
    assert (told.digest, told.method) == (digest, method.name)
    assert told.middle / (6 * told.layer) == pytest.approx(0.5, abs=0.02)
    emulator.export(tmp_path / "dense")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.allclose(logits(opened, TOKENS), wanted, atol=1e-4)
