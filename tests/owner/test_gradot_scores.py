"""GradOT's scores are what their definitions say, all written out."""

from __future__ import annotations

import pytest
import torch

from offsite.model.decoder import Decoder
from offsite.owner import factors
from offsite.owner.components import ridged, root
from offsite.owner.curvature import Curvature, Moment
from offsite.owner.methods import gradot, gradot_paper
from tests.families import tiny_model

UPS = {"llama": 2, "phi3": 1, "gpt2": 1, "opt": 1}  # linears into the channels; phi3's one holds gate and up


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def spd(n, seed):
    wide = torch.randn(n, n + 2, generator=chance(seed))
    return wide @ wide.T / n


def both(records):
    """The fields of the two records that a factorisation or a scoring makes."""
    return vars(records[0]) | vars(records[1])


def told(outputs, inputs, seed=0):
    """What a pass might say of a linear, made up."""
    slope = torch.randn(outputs, inputs, generator=chance(seed + 2))
    return Curvature(spd(inputs, seed), spd(outputs, seed + 1), slope)


def reading(model, layer):
    decoder = Decoder.of(model)
    linears = enumerate(decoder.linears(layer))
    return {name: told(*decoder.matrix(layer, name).shape, seed=10 * i) for i, name in linears}


def felt(change, g, a):
    """dT (A (x) G) d of a change (out, in), the columns of it one below the other; all in float64."""
    d, g, a = change.double().T.flatten(), g.double(), a.double()
    return d @ torch.kron(a, g) @ d


def singular(weight):
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    return [-s[k] * torch.outer(u[:, k], vt[k]) for k in range(len(s))]


SHAPES = [(7, 5), (5, 7), (6, 6)]


class TestPaperScores:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_ranks_is_the_1_norm_of_h_d(self, shape):
        weight, seen = torch.randn(*shape, generator=chance(5)), told(*shape)
        found = both(gradot_paper.rank_scores(weight, seen))
        for score, slope, change in zip(found["score"], found["slope"], singular(weight), strict=True):
            product = torch.kron(seen.inputs, seen.outputs) @ change.T.flatten()
            assert torch.allclose(score, product.abs().sum(), rtol=1e-4)
            assert torch.allclose(slope, (seen.slope * change).sum(), atol=1e-4)

    @pytest.mark.parametrize("family", UPS)
    def test_a_channels_is_the_sum_over_its_column_and_all_of_its_rows(self, family):
        model = tiny_model(family)
        decoder, seen = Decoder.of(model), reading(model, 3)
        feed = decoder.feed_forward(3)
        found = vars(gradot_paper.channel_scores(decoder, 3, seen))
        fused = {up: decoder.matrix(3, up).shape[0] // feed.width for up in feed.ups}
        assert (len(fused), sum(fused.values())) == (UPS[family], 2 if family in ("llama", "phi3") else 1)
        for channel in (0, 1, feed.width - 1):
            changes = []
            column = torch.zeros(decoder.matrix(3, feed.down).shape)
            column[:, channel] = -decoder.matrix(3, feed.down)[:, channel]
            changes.append((feed.down, column))
            for up, blocks in fused.items():
                for block in range(blocks):
                    row, place = torch.zeros(decoder.matrix(3, up).shape), channel + block * feed.width
                    row[place] = -decoder.matrix(3, up)[place]
                    changes.append((up, row))
            norm = sum((seen[name].outputs @ d @ seen[name].inputs).abs().sum() for name, d in changes)
            slope = sum((seen[name].slope * d).sum() for name, d in changes)
            assert torch.allclose(found["score"][channel], norm, rtol=1e-4)
            assert torch.allclose(found["slope"][channel], slope, rtol=1e-4, atol=1e-4)


class TestFisherScores:
    @pytest.fixture(params=SHAPES, ids=str)
    def ranks(self, request):
        """A weight, what the pass told of it with the ridge in float64, and its components."""
        weight, seen = torch.randn(*request.param, generator=chance(5)), told(*request.param)
        return weight, ridged(seen.outputs), ridged(seen.inputs), both(factors.fisher_ranks(weight, seen)), seen

    def test_a_ranks_is_what_the_loss_feels_of_its_removal(self, ranks):
        _, g, a, found, seen = ranks
        for k, (score, slope) in enumerate(zip(found["score"], found["slope"], strict=True)):
            change = -torch.outer(found["up"][:, k], found["down"][k])
            assert torch.allclose(score.double(), felt(change, g, a), rtol=1e-3)
            assert torch.allclose(slope, (seen.slope * change).sum(), atol=1e-4)

    def test_ranks_together_make_the_weight_and_come_in_order(self, ranks):
        weight, _, _, found, _ = ranks
        assert torch.allclose(found["up"] @ found["down"], weight, atol=1e-4)
        assert torch.equal(found["score"], found["score"].sort(descending=True).values)

    @pytest.mark.parametrize("kept", [[0, 1, 2], [1, 4], [3]], ids=str)
    def test_the_scores_of_those_dropped_add_up(self, ranks, kept):
        """They are the squared Frobenius norm of LT (W - W_kept) R, and what the loss feels of it all."""
        weight, g, a, found, _ = ranks
        dropped = [k for k in range(len(found["score"])) if k not in kept]
        change = weight - found["up"][:, kept] @ found["down"][kept]
        norm = (torch.linalg.cholesky(g).T @ change.double() @ torch.linalg.cholesky(a)).square().sum()
        assert torch.allclose(found["score"][dropped].sum().double(), norm, rtol=1e-3)
        assert torch.allclose(norm, felt(change, g, a), rtol=1e-3)

    def test_no_other_matrix_of_the_rank_is_felt_less(self, ranks):
        weight, g, a, found, _ = ranks
        up, down = found["up"][:, :2], found["down"][:2]
        best = felt(weight - up @ down, g, a)
        parts = torch.linalg.svd(weight, full_matrices=False)
        others = [(parts.U[:, :2] * parts.S[:2], parts.Vh[:2])]
        for seed in range(50):
            for size in (0.001, 0.03, 1.0):
                made = chance(seed)
                noise = [size * torch.randn(m.shape, generator=made) for m in (up, down)]
                others.append((up + noise[0], down + noise[1]))
        assert all(felt(weight - u @ d, g, a) >= best * (1 - 1e-5) for u, d in others)

    @pytest.mark.parametrize("family", UPS)
    def test_a_channels_is_what_the_loss_feels_when_all_the_others_have_mended_it(self, family):
        model = tiny_model(family)
        decoder, seen = Decoder.of(model), reading(model, 3)
        feed = decoder.feed_forward(3)
        found, here = both(gradot.channel_scores(decoder, 3, seen[feed.down])), seen[feed.down]
        weight = decoder.matrix(3, feed.down).double()
        a = ridged(here.inputs)
        root = torch.linalg.cholesky(a)
        for channel in (0, 17, feed.width - 1):
            others = [j for j in range(feed.width) if j != channel]
            best = torch.linalg.lstsq(root[others].T, (weight @ root).T).solution.T
            change = -weight
            change[:, others] += best
            rise = (here.outputs.double() @ change @ a @ change.T).trace()
            assert torch.allclose(found["score"][channel].double(), rise, rtol=1e-3)
            column = torch.zeros_like(here.slope)
            column[:, channel] = -weight[:, channel]
            assert torch.allclose(found["slope"][channel], (here.slope * column).sum(), atol=1e-4)


def test_the_papers_channel_scores_are_on_the_device_of_the_model():
    """On no device at all here: what mixes devices fails."""
    decoder = Decoder.of(tiny_model("llama").to("meta"))
    seen = {
        name: Curvature(*(part.to("meta") for part in vars(each).values()))
        for name, each in reading(tiny_model("llama"), 3).items()
    }
    found = gradot_paper.channel_scores(decoder, 3, seen)
    assert (found.score.device.type, found.slope.device.type) == ("meta", "meta")


@pytest.mark.parametrize("kind", ["a large mean", "a token in a hundred that is huge"])
def test_states_that_are_nearly_one_in_bfloat16_can_be_factorised(monkeypatch, kind):
    """The rounding of their products outweighs the ridge; real models have such states."""
    monkeypatch.setattr("offsite.owner.curvature.bf16_pays", lambda: True)
    made = chance(0)
    common, moment = torch.randn(768, generator=made), Moment(768, torch.device("cpu"))
    huge = torch.full((512, 1), 10.0) if kind == "a large mean" else torch.zeros(512, 1)
    huge[::100] = 100.0 if huge[0] == 0 else 10.0
    for _ in range(4):
        moment.add((huge * common + torch.randn(512, 768, generator=made)).bfloat16())
    weight = torch.randn(5, 768, generator=made)
    seen = Curvature(moment.matrix() / 2048, spd(5, 1), weight)
    found = both(factors.fisher_ranks(weight, seen))
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert torch.allclose(found["up"] @ found["down"], weight, atol=1e-2)
    model = tiny_model("gpt2")
    told_of = Curvature(seen.inputs[:128, :128], spd(32, 1), torch.zeros(32, 128))
    decoder = Decoder.of(model)
    channels = both(gradot.channel_scores(decoder, 3, told_of))
    assert channels["score"].isfinite().all()
    assert (channels["score"] >= 0).all()


def test_evenly_adds_the_mean_energy_of_g_in_every_direction_and_nothing_else():
    seen = told(6, 9)
    evened = factors.evened(seen, 2.0)
    added = evened.outputs - seen.outputs
    assert torch.allclose(added, 2.0 * seen.outputs.diagonal().mean() * torch.eye(6))
    assert evened.inputs is seen.inputs
    assert torch.equal(factors.evened(seen, 0.0).outputs, seen.outputs)


def test_the_more_evenly_the_nearer_is_the_truncation_to_that_of_the_output_alone():
    """With G out of the way the truncation is the best for E[|d x|^2]."""
    seen, weight = told(6, 9), torch.randn(6, 9, generator=chance(5))
    lower = root(seen.inputs).float()

    def lost(evenly):
        found = both(factors.fisher_ranks(weight, factors.evened(seen, evenly)))
        return (((weight - found["up"][:, :3] @ found["down"][:3]) @ lower) ** 2).sum()

    best = torch.linalg.svdvals(weight @ lower)[3:].square().sum()
    assert lost(0.0) > lost(1.0) > lost(1e4)
    assert torch.isclose(lost(1e4), best, rtol=1e-2)
