"""Which components stay under a budget, and that nothing better is to be had from the same scores."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.build import build, keep_of
from offsite.owner.components import (
    Candidates,
    blueprint,
    by_price,
    by_share,
    candidates,
    channel_cost,
    choose,
    refitted,
    ridged,
)
from offsite.owner.factors import plain_ranks, rank_cost
from offsite.owner.profile import Profile
from offsite.owner.records import ChannelScores, Factors, RankScores, Repair
from tests.families import tiny_model

SPLIT = Split(1, 1)
KEEPS = [0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 0.97]


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def ranks(layer, name, outputs, inputs, scale=1.0, seed=0):
    count = min(outputs, inputs)
    score = scale * torch.rand(count, generator=chance(seed)).double() ** 3
    return Candidates(layer, name, False, score, outputs + inputs, outputs * inputs)


def channels(layer, name, count, cost, scale=1.0, seed=0):
    score = scale * torch.rand(count, generator=chance(seed)).double() ** 3
    return Candidates(layer, name, True, score, cost, count * cost)


def stack():
    """Three layers of two matrices and a feed-forward, the later ones worth more."""
    return [
        each
        for layer in (1, 2, 3)
        for each in (
            ranks(layer, "query", 24, 24, 3.0**layer, layer),
            ranks(layer, "value", 8, 24, 2.0**layer, layer + 10),
            channels(layer, "down", 40, 72, 5.0 * layer, layer + 20),
        )
    ]


def profile_of(among, extra=100):
    """The sizes of a stack that holds `among` and, in each layer, so many other parameters."""
    layers = range(min(c.layer for c in among), max(c.layer for c in among) + 1)
    sizes = [extra + sum(c.dense for c in among if c.layer == layer) for layer in layers]
    return Profile(SPLIT, (0, *sizes, 0))


def stored(among, kept):
    return sum(int(c.stored(torch.tensor(len(k)))) for c, k in zip(among, kept, strict=True))


def lost(among, kept):
    return sum(float(c.score.sum() - c.score[k].sum()) for c, k in zip(among, kept, strict=True))


def share(among, kept, extra=100):
    profile = profile_of(among, extra)
    rest = sum(profile.sizes) - sum(c.dense for c in among)
    return (stored(among, kept) + rest) / sum(profile.sizes)


RULES = {
    "price": by_price(0.05),
    "one pool": by_share(0.05, lambda each: 0),
    "a pool for each kind": by_share(0.05, lambda each: each.channels),
    "a pool for each": by_share(0.0, lambda each: (each.layer, each.name)),
}


@pytest.fixture(params=sorted(RULES))
def rule(request):
    return RULES[request.param]


class TestChoose:
    @pytest.mark.parametrize("keep", KEEPS)
    def test_by_price_the_budget_is_hit_to_one_leap_of_one_candidate(self, keep):
        """A leap: a component, or from a matrix's last worthwhile rank to the whole of it."""
        among = stack()
        profile = profile_of(among)
        kept = choose(profile, among, keep, by_price(0.05))
        leaps = []
        for each, indices in zip(among, kept, strict=True):
            counts = torch.arange(len(each.score) + 1)
            wholes = {int(each.stored(count)) for count in counts}
            near = sorted(abs(size - int(each.stored(torch.tensor(len(indices))))) for size in wholes)
            leaps.append(max(near[1], each.dense if len(indices) * each.cost > each.dense / 2 else 0))
        assert abs(share(among, kept) - keep) * sum(profile.sizes) <= max(leaps)

    @pytest.mark.parametrize("keep", KEEPS)
    def test_of_channels_alone_the_budget_is_hit_to_half_a_component(self, keep, rule):
        among = [channels(layer, "down", 60, 24, 3.0**layer, layer) for layer in (1, 2, 3)]
        if rule is RULES["a pool for each"]:
            among = among[:1]  # pools step together
        kept = choose(profile_of(among, 0), among, keep, rule)
        assert abs(stored(among, kept) - keep * sum(profile_of(among, 0).sizes)) <= 12 + 1e-6

    def test_more_budget_never_takes_a_component_away(self, rule):
        among = stack()
        before = [set() for _ in among]
        for keep in [0.01, *KEEPS, 1.0]:
            kept = [set(k.tolist()) for k in choose(profile_of(among), among, keep, rule)]
            assert all(old <= new for old, new in zip(before, kept, strict=True))
            before = kept

    def test_everything_stays_at_one(self, rule):
        among = stack()
        kept = choose(profile_of(among), among, 1.0, rule)
        assert [k.tolist() for k in kept] == [list(range(len(c.score))) for c in among]

    def test_what_stays_of_each_is_its_best_in_order(self, rule):
        among = stack()
        for each, indices in zip(among, choose(profile_of(among), among, 0.5, rule), strict=True):
            assert indices.tolist() == sorted(indices.tolist())
            gone = torch.ones(len(each.score), dtype=torch.bool)
            gone[indices] = False
            if gone.any():
                assert each.score[gone].max() <= each.score[indices].min()

    def test_the_floor_stays_and_one_at_the_least(self):
        among = [ranks(1, "query", 40, 40, 1e-9), channels(1, "down", 60, 24, 1e9)]
        for rule in (by_price(0.1), by_share(0.1, lambda each: 0)):
            assert [len(k) for k in choose(profile_of(among), among, 1e-9, rule)] == [4, 6]
            assert len(choose(profile_of(among), among, 0.4, rule)[0]) == 4
        assert [len(k) for k in choose(profile_of(among), among, 1e-9, by_price(0.0))] == [1, 1]

    def test_the_unit_of_the_scores_changes_nothing(self, rule):
        among = stack()
        scaled = [Candidates(**{**vars(each), "score": each.score * 1e-12}) for each in among]
        for keep in KEEPS:
            one, other = (choose(profile_of(a), a, keep, rule) for a in (among, scaled))
            assert [k.tolist() for k in one] == [k.tolist() for k in other]


class TestByPrice:
    def test_no_other_choice_of_all_loses_less_at_the_same_or_smaller_size(self):
        """Against every combination of prefixes."""
        among = [ranks(1, "a", 7, 7, 1.0, 1), ranks(1, "b", 4, 9, 2.0, 2), channels(1, "c", 8, 13, 1.5, 3)]
        worth = [each.score.sort(descending=True).values for each in among]
        every = []
        for counts in product(*(range(1, len(each.score) + 1) for each in among)):
            size = sum(int(e.stored(torch.tensor(c))) for e, c in zip(among, counts, strict=True))
            every.append((size, sum(float(w[c:].sum()) for w, c in zip(worth, counts, strict=True))))
        seen = set()
        for level in torch.linspace(0, 0.3, 200):
            kept = by_price(0.0)(among, float(level))
            size, loss = stored(among, kept), lost(among, kept)
            seen.add(size)
            assert loss <= min(other for other_size, other in every if other_size <= size) + 1e-9
        assert len(seen) > 8

    def test_a_matrix_is_whole_or_stored_as_less_than_that(self):
        """Ranks that would store as much as the whole are not chosen short of the whole."""
        among = stack()
        for level in torch.linspace(0, 0.6, 120):
            for each, kept in zip(among, by_price(0.05)(among, float(level)), strict=True):
                assert len(kept) == len(each.score) or len(kept) * each.cost < each.dense
                assert int(each.stored(torch.tensor(len(kept)))) <= each.dense

    def test_no_more_than_the_share_of_ranks_and_all_channels(self):
        among = stack()
        for each, kept in zip(among, by_price(0.05, 0.3)(among, 1.0), strict=True):
            assert len(kept) == (len(each.score) if each.channels else int(0.3 * len(each.score)))


class TestByShare:
    def test_each_pool_keeps_its_share(self):
        among = stack()
        for level in (0.1, 0.35, 0.5, 0.8, 1.0):
            for rule, pools in (
                (by_share(0.0, lambda each: each.channels), [[0, 1, 3, 4, 6, 7], [2, 5, 8]]),
                (by_share(0.0, lambda each: 0), [list(range(9))]),
                (by_share(0.0, lambda each: (each.layer, each.name)), [[i] for i in range(9)]),
            ):
                kept = rule(among, level)
                for pool in pools:
                    whole = sum(len(among[i].score) for i in pool)
                    short = sum(len(kept[i]) == 1 for i in pool)  # one always stays
                    assert abs(sum(len(kept[i]) for i in pool) - level * whole) <= 0.5 + short

    def test_scores_in_a_pool_are_compared_across_matrices(self):
        among = [channels(1, "a", 10, 5, 1.0), channels(2, "b", 10, 5, 100.0)]
        least, most = (len(k) for k in by_share(0.0, lambda each: 0)(among, 0.5))
        assert least < most


class TestCandidates:
    @pytest.fixture
    def described(self):
        """Parts as a method would leave them, of layers 2 and 10."""
        found = {}
        for layer in (2, 10):
            records = {
                "q": [
                    Factors(torch.rand(5, 4), torch.rand(4, 4)),
                    RankScores(torch.rand(4), torch.tensor([9, 20])),
                ],
                "down": [
                    ChannelScores(torch.rand(6), torch.tensor([30, 180])),
                    Repair(torch.rand(5, 6), torch.rand(6, 6)),
                ],
            }
            for name, each in records.items():
                for record in each:
                    found |= {f"{layer}/{key}": tensor for key, tensor in record.tensors(name).items()}
        return found

    def test_are_told_by_scores_and_costs_and_nothing_else_is_read(self, described):
        read = []

        class Reading(dict):
            def __getitem__(self, key):
                read.append(key)
                return super().__getitem__(key)

        found = candidates(Profile(SPLIT, (0,) * 12, Reading(described)))
        told = {(c.layer, c.name, c.channels, c.cost, c.dense, len(c.score)) for c in found}
        assert told == {
            (layer, *rest) for layer in (2, 10) for rest in (("q", False, 9, 20, 4), ("down", True, 30, 180, 6))
        }
        for c in found:
            kind = ChannelScores if c.channels else RankScores
            assert torch.equal(c.score, kind.read(described, c.layer, c.name).score.double())
        assert {key.rsplit(".", 1)[1] for key in read} == {"score", "cost"}

    def test_costs_are_what_a_component_stores(self, model):
        """All components cost what the layer's matrices hold; a channel a row of each up, a column of down."""
        decoder = Decoder.of(model)
        feed = decoder.feed_forward(3)
        for name in decoder.attention(3):
            outputs, inputs = decoder.matrix(3, name).shape
            assert rank_cost(decoder.matrix(3, name)).tolist() == [outputs + inputs, outputs * inputs]
        cost, dense = channel_cost(decoder, 3).tolist()
        assert dense == sum(decoder.matrix(3, name).numel() for name in (*feed.ups, feed.down))
        assert cost == dense / feed.width


def spd(n, seed):
    root = torch.randn(n, n + 2, generator=chance(seed))
    return root @ root.T / n


class TestMending:
    def test_it_is_least_squares(self):
        """W R ~ V R_K with A + ridge = R RT, solved by lstsq."""
        moment, weight = spd(12, 1), torch.randn(5, 12, generator=chance(2))
        kept = torch.tensor([0, 3, 4, 7, 11])
        root = torch.linalg.cholesky(ridged(moment))
        wanted = torch.linalg.lstsq(root[kept].T, (weight.double() @ root).T).solution.T
        assert torch.allclose(refitted(weight, moment, kept).double(), wanted, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_with_all_kept_the_weight_stays_and_so_does_its_type(self, dtype):
        moment, weight = spd(12, 1), torch.randn(5, 12, generator=chance(2)).to(dtype)
        found = refitted(weight, moment, torch.arange(12))
        assert found.dtype == dtype
        assert torch.allclose(found, weight, atol=1e-5)

    def test_channels_that_always_say_the_same_are_taken_over(self):
        """Channel 1 is twice channel 0: without it, column 0 takes it over, but for the ridge."""
        states = torch.randn(200, 6, generator=chance(1))
        states[:, 1] = 2 * states[:, 0]
        weight = torch.randn(4, 6, generator=chance(2))
        kept = torch.tensor([0, 2, 3, 4, 5])
        found = refitted(weight, states.T @ states / 200, kept)
        wanted = weight[:, kept].clone()
        wanted[:, 0] += 2 * weight[:, 1]
        assert torch.allclose(found, wanted, atol=0.1)
        assert not torch.allclose(found, weight[:, kept], atol=0.5)

    @pytest.mark.parametrize("moment", [torch.zeros(4, 4), torch.diag(torch.tensor([1.0, 0.0, 2.0, 0.0]))])
    def test_channels_that_are_always_zero_do_no_harm(self, moment):
        weight = torch.randn(3, 4, generator=chance(0))
        found = refitted(weight, moment, torch.tensor([1, 2]))
        assert torch.allclose(found, weight[:, [1, 2]], atol=1e-4)

    def test_the_ridge_is_a_part_of_each_channels_own_energy(self):
        """So the unit of a channel changes nothing."""
        moment, units = spd(6, 3).double(), torch.logspace(-1, 1, 6).double()
        scaled = ridged(moment * units * units[:, None])
        assert torch.allclose(scaled, ridged(moment) * units * units[:, None], rtol=1e-3)


def test_a_blueprint_holds_what_was_kept_and_leaves_the_whole_alone():
    model = tiny_model("llama")
    decoder = Decoder.of(model)
    found = {}
    for layer in range(1, 7):
        records = {name: plain_ranks(decoder.matrix(layer, name)) for name in decoder.attention(layer)}
        scores = torch.rand(64, generator=chance(layer))
        records["mlp.down_proj"] = [ChannelScores(scores, channel_cost(decoder, layer))]
        for name, each in records.items():
            for record in each:
                found |= {f"{layer}/{key}": tensor for key, tensor in record.tensors(name).items()}
    profile = Profile.of(model, SPLIT, found)
    among = candidates(profile)
    kept = [torch.arange(len(each.score)) for each in among]
    at = {(each.layer, each.name): i for i, each in enumerate(among)}
    kept[at[2, "self_attn.q_proj"]] = torch.tensor([0, 5, 6])
    kept[at[3, "self_attn.q_proj"]] = torch.arange(1, 32)  # as factors larger than the whole
    kept[at[4, "mlp.down_proj"]] = torch.tensor([1, 2, 40])
    made = blueprint(profile, among, kept)
    assert [place.layer for place in made] == [1, 2, 3, 4, 5, 6]
    assert [place.describe() for place in made if place.layer in (1, 5, 6)] == [{"layer": i} for i in (1, 5, 6)]
    low, whole = (made[layer - 1].weights["self_attn.q_proj"].matrices for layer in (2, 3))
    query = decoder.matrix(2, "self_attn.q_proj")
    u, s, vt = torch.linalg.svd(query, full_matrices=False)
    assert torch.allclose(low[0] @ low[1], (u * s)[:, [0, 5, 6]] @ vt[[0, 5, 6]], atol=1e-5)
    assert [len(low), len(whole)] == [2, 1]
    assert made[3].channels == (1, 2, 40)
    assert not made[3].weights  # without a moment there is nothing to mend with
    wanted = (stored(among, kept) + sum(profile.sizes) - sum(c.dense for c in among)) / sum(profile.sizes)
    assert keep_of(build(model, SPLIT, made), model) == pytest.approx(wanted)
