"""What was taken out of a model is in no emulator, nor trivially made of what is there.

An attacker here has every stored tensor and knows the architecture, and is told by us which of the model's
tensors is looked for: more than a real one has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.blueprint import raw
from offsite.owner.build import build
from offsite.owner.chain import plan
from offsite.owner.distill import DistillConfig, distill
from offsite.owner.methods import chain
from tests.families import tiny_model

LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("gpt2", "phi3")]
FAMILIES = ["llama", *LONG]  # plain, transposed, and fused linears
SPLIT = Split(2, 2)
TOKENS = torch.randint(3, 120, (24, 16), generator=torch.Generator().manual_seed(0))
QUICK = ["steps=2", "batch_size=4", "rank=4", "regressed=16"]
HOW = {  # methods, knobs, keep
    "uniform": ("uniform", [], 0.5),
    "crash": ("crash", [], 0.5),
    "svd": ("svd", [], 0.6),
    "svd-llm": ("svd-llm", [], 0.5),
    "flap": ("flap", [], 0.5),
    "shortgpt": ("shortgpt", [], 0.5),
    "gradot": ("gradot", [], 0.6),
    "gradot, as published": ("gradot-paper", [], 0.6),
    "src": ("src", ["beta=0.9"], 1.0),
    "scaleot": ("scaleot", [*QUICK, "alpha=0.5", "beta=0.8"], 1.0),
    "scaleot+gradot": ("scaleot+gradot", QUICK, 0.6),
    "uniform+src": ("uniform+src", [], 0.5),
    "uniform, distilled": ("uniform", [], 0.5),
}
_SAME = 1e-3  # distance of unit vectors; float32 leaves 1e-6
_LIKE = 0.9  # of a matrix's own size: further off than that is another matrix


@dataclass(frozen=True)
class Case:
    """A model, what was decided, and all matrices and vectors that an emulator holds."""

    decoder: Decoder
    blueprint: tuple
    emulated: Decoder
    held: dict

    @property
    def gone(self):
        """Layers of the middle that stand nowhere."""
        standing = {place.layer for place in raw(self.blueprint)}
        return [layer for layer in SPLIT.middle(len(self.decoder)) if layer not in standing]

    def slots(self):
        """(slot, place) of all places where a layer stands."""
        return list(zip(SPLIT.middle(len(self.emulated)), raw(self.blueprint), strict=True))


@cache
def owned(family):
    """A model in which no two tensors are alike, as norms of tiny models are."""
    model = tiny_model(family)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=chance))
    return model


@cache
def learnt(family, words, knobs):
    """The stages of a chain on a model; alike for all that share them."""
    return [
        (one, one.profile(owned(family), SPLIT, TOKENS)) for one in chain(words.split("+"), list(knobs), {})
    ]


@cache
def emulated(family, how):
    words, knobs, keep = HOW[how]
    model = owned(family)
    blueprint = plan(learnt(family, words, tuple(knobs)), keep)
    emulator = build(model, SPLIT, blueprint, method=words)
    if "distilled" in how:
        with TemporaryDirectory() as work:
            config = DistillConfig(steps=1, batch_size=4, length=16)
            distill(emulator, model, TOKENS, config, work=Path(work))
    return Case(Decoder.of(model), blueprint, Decoder.of(emulator.model), dict(emulator.model.state_dict()))


@pytest.fixture(params=FAMILIES, scope="module")
def family(request):
    return request.param


@pytest.fixture(params=HOW, scope="module")
def case(request, family):
    return emulated(family, request.param)


def bare(vectors):
    """Unit vectors (n, length) of the sorted sizes of values: what no permutation, sign or scale changes."""
    sizes = vectors.double().abs().sort(-1).values
    return sizes / sizes.norm(dim=-1, keepdim=True).clamp(min=1e-30)


def lines(tensor):
    """The rows and the columns of a matrix, or a vector, by their lengths."""
    if tensor.dim() == 1:
        return {tensor.numel(): tensor[None]}
    rows, columns = tensor.shape
    return {rows: torch.cat([tensor, tensor.T])} if rows == columns else {columns: tensor, rows: tensor.T}


def all_lines(tensors):
    """Those of many tensors together."""
    found = {}
    for tensor in tensors:
        for length, vectors in lines(tensor).items():
            found.setdefault(length, []).append(vectors)
    return {length: torch.cat(vectors) for length, vectors in found.items()}


def nearest(removed, held):
    """How near a row or column of the one comes to one of the other, up to order, sign and scale."""
    ours, theirs = all_lines(removed), all_lines(held)
    pairs = [(ours[length], theirs[length]) for length in ours.keys() & theirs.keys() if length >= 8]
    assert pairs
    return min(float(torch.cdist(bare(a), bare(b)).min()) for a, b in pairs)


def apart(wanted, found):
    """The distance of a matrix from the nearest multiple of another, over its own size."""
    wanted, found = wanted.double(), found.double()
    size = found.square().sum()
    nearest = found * ((wanted * found).sum() / size) if size else found
    return float((wanted - nearest).norm() / wanted.norm())


def products(case):
    """Every matrix that two stored factors of one place make, factors of linears and of harmonizers."""
    pairs = {name.removesuffix(".up.weight") for name in case.held if name.endswith(".up.weight")}
    return {name: case.held[f"{name}.up.weight"] @ case.held[f"{name}.down.weight"] for name in pairs}


def stored(case, slot, name):
    """What stands for a linear's matrix (out, in), factors multiplied."""
    place = case.emulated.name(slot, name)
    if f"{place}.up.weight" in case.held:
        return products(case)[place]
    return case.emulated.matrix(slot, name)


def test_no_row_or_column_of_a_dropped_layer_is_there(case):
    """Hence no tensor of one is, whole, transposed, permuted or scaled."""
    removed = [tensor.detach() for layer in case.gone for tensor in case.decoder.tensors(layer).values()]
    if removed:
        assert nearest(removed, case.held.values()) > _SAME


def test_no_row_or_column_of_a_pruned_channel_is_there(case):
    for _, place in case.slots():
        if place.channels is None:
            continue
        feed = case.decoder.feed_forward(place.layer)
        out = torch.tensor([j for j in range(feed.width) if j not in place.channels])
        assert len(out)
        removed = [case.decoder.matrix(place.layer, up)[feed.rows(up, out)] for up in feed.ups]
        removed.append(case.decoder.matrix(place.layer, feed.down)[:, out].T)
        for vectors in removed:  # rows of one linear, whose other sides are not whole
            theirs = all_lines(case.held.values())[vectors.shape[1]]
            assert torch.cdist(bare(vectors), bare(theirs)).min() > _SAME


def test_no_two_factors_make_a_matrix_of_a_dropped_layer(case):
    made = products(case)
    for layer in case.gone:
        for name in case.decoder.linears(layer):
            matrix = case.decoder.matrix(layer, name)
            for found in made.values():
                for each in {found, found.T}:
                    assert each.shape != matrix.shape or apart(matrix, each) > _LIKE


def test_a_truncated_matrix_lacks_what_was_cut_off(case):
    """The best estimate, of all matrices in the row or column space of what is stored, is off by the tail.

    (Eckart and Young 1936: of so many ranks none comes nearer than the largest singular values do.)
    """
    for slot, place in case.slots():
        for name in truncated(case, place):
            whole, found = case.decoder.matrix(place.layer, name).double(), stored(case, slot, name).double()
            rank = int(torch.linalg.matrix_rank(found, rtol=1e-5))
            values = torch.linalg.svdvals(whole)
            assert rank < len(values), "of full rank: nothing was taken out"
            tail = float(values[rank:].norm() / values.norm())
            assert tail > 1e-3
            assert best(whole, found, rank) >= tail - 1e-6
            assert apart(whole, found) >= tail - 1e-6


def truncated(case, place):
    """The names of linears of a place that stand with all their rows and columns, but less than their rank."""
    feed = case.decoder.feed_forward(place.layer)
    narrowed = {*feed.ups, feed.down} if place.channels is not None else set()
    return place.weights.keys() - narrowed


def best(whole, found, rank):
    """The least error, over the size of `whole`, of what lies in the column or the row space of `found`."""
    u, _, vt = torch.linalg.svd(found)
    columns, rows = u[:, :rank], vt[:rank]
    errors = whole - columns @ (columns.T @ whole), whole - (whole @ rows.T) @ rows
    return float(min(error.norm() for error in errors) / whole.norm())


class TestThatItCanFail:
    """Each search finds what is there."""

    def test_a_row_in_another_order_and_size(self):
        removed, held = torch.randn(2, 3, 32)
        assert nearest([removed], [held]) > _SAME
        held[:, 7] = 0
        hidden = torch.cat([held, -3 * removed[1:2, torch.randperm(32)]])
        assert nearest([removed], [hidden.T]) < 1e-5

    def test_factors_of_full_rank(self):
        whole = torch.randn(16, 16)
        u, s, vt = torch.linalg.svd(whole)
        assert apart(whole, 2 * (u * s) @ vt) < 1e-5
        assert best(whole, whole, 16) < 1e-5
        assert apart(whole, torch.randn(16, 16)) > _LIKE - 0.1
