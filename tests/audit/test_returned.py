"""What the model owner sees of an adapter: how far each tensor moved, the loss before and after."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from offsite import audit
from offsite.bundles.adapter import Adapter, Lora, adapter_linears, adapter_tensors
from offsite.errors import UserError
from offsite.owner.build import origin
from offsite.owner.plug import plug
from tests.families import tiny_model
from tests.test_laws import SPLIT

UP = "top.1.mlp.up_proj.weight"


def changed(model, amount, seed=0):
    """An adapter each tensor of which moved by about `amount` of its size, at random."""
    chance = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in adapter_tensors(model, SPLIT).items():
        spread = amount * (float(tensor.detach().norm()) or 1.0) / tensor.numel() ** 0.5
        tensors[name] = tensor.detach() + spread * torch.randn(tensor.shape, generator=chance)
    return Adapter(tensors, origin(model, SPLIT))


@pytest.fixture(params=["llama", "gemma2", "gpt2", "bloom"])
def model(request):
    return tiny_model(request.param)


def audited(model, adapter, **more):
    """The audit of an adapter, which leaves the model as it was before plugging."""
    displaced = plug(model, adapter)
    found = audit.adapter(model, displaced, **more)
    plug(model, displaced)
    return found


def shifts(found):
    return {one.tensor: one.shift for one in found.moved}


def test_an_untuned_adapter_has_not_moved(model, tokens):
    found = audited(model, Adapter.of(model, origin(model, SPLIT)), tokens=tokens)
    assert {one.shift for one in found.moved} == {0.0}
    assert found.loss.before == found.loss.after
    assert found.warnings == ()
    found.check(0.0)


def test_values_too_large_for_any_product_are_measured_and_refused(model):
    adapter = changed(model, 0.01)
    name = next(name for name, tensor in adapter.tensors.items() if tensor.dim() == 2)
    adapter.tensors[name] = torch.full_like(adapter.tensors[name], 1e38)
    found = audited(model, adapter)
    assert found.warnings
    with pytest.raises(UserError, match=name):
        found.check(1.0)


def test_scaling_the_change_scales_the_shift(model):
    once, twice = (shifts(audited(model, changed(model, amount))) for amount in (0.01, 0.02))
    assert once.keys() == twice.keys() == adapter_tensors(model, SPLIT).keys()
    for name, shift in once.items():
        assert shift > 0
        assert twice[name] == pytest.approx(2 * shift, rel=1e-3)


def test_the_figures_are_those_of_the_whole_decomposition(llama):
    adapter = changed(llama, 0.05)
    own = adapter_tensors(llama, SPLIT)
    for one in audited(llama, adapter).moved:
        old, change = own[one.tensor].detach(), (adapter.tensors[one.tensor] - own[one.tensor]).detach()
        assert one.shift == pytest.approx(float(change.norm() / old.norm()), rel=1e-4)
        if old.dim() == 2:
            largest = torch.linalg.svdvals(change)[0]
            assert one.spectral == pytest.approx(float(largest / torch.linalg.svdvals(old)[0]), rel=0.02)
            assert one.stable_rank == pytest.approx(float(change.norm() ** 2 / largest**2), rel=0.03)


def test_the_furthest_stands_first(llama):
    adapter = changed(llama, 0.01)
    with torch.no_grad():
        adapter.tensors[UP].mul_(1.5)
    found = audited(llama, adapter)
    assert found.moved[0].tensor == UP
    assert [one.shift for one in found.moved] == sorted(shifts(found).values(), reverse=True)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_lora_moves_by_its_scaled_product(family):
    model = tiny_model(family)
    own, chance, tensors = adapter_tensors(model, SPLIT), torch.Generator().manual_seed(0), {}
    wanted = {}
    for site, turned in adapter_linears(model, SPLIT).items():
        old = own[f"{site}.weight"].detach()
        rows, columns = old.T.shape if turned else old.shape
        down, up = torch.randn(2, columns, generator=chance), 0.01 * torch.randn(rows, 2, generator=chance)
        tensors |= {f"{site}.lora_A.weight": down, f"{site}.lora_B.weight": up}
        wanted[f"{site}.weight"] = float((4 / 2 * up @ down).norm() / old.norm())
    found = audited(model, Adapter(tensors, origin(model, SPLIT), lora=Lora(rank=2, alpha=4)))
    for one in found.moved:
        assert one.shift == pytest.approx(wanted.get(one.tensor, 0.0), rel=1e-3)
        assert one.stable_rank is None or one.stable_rank < 2.01


def test_a_planted_spike_of_one_rank_is_found(llama):
    adapter = changed(llama, 0.02)
    assert audited(llama, adapter).warnings == ()
    matrix = adapter.tensors[UP]
    matrix += 0.4 * matrix.norm() * torch.ones_like(matrix) / matrix.numel() ** 0.5
    found = audited(llama, adapter)
    assert found.moved[0].tensor == UP
    assert found.moved[0].stable_rank < 1.1
    assert len(found.warnings) == 1
    assert f"{UP} stands out" in found.warnings[0]


def test_a_tensor_that_moved_past_the_limit_is_refused_by_name(llama):
    found = audited(llama, changed(llama, 0.1))
    first = found.moved[0]
    found.check(first.shift)
    with pytest.raises(UserError, match=f"{first.tensor}' moved by {first.shift:.3g} .* at most 0.05"):
        found.check(0.05)


def test_trusted_adapters_give_the_bounds(llama):
    """Twice the most of what they moved each tensor, or their median one."""
    trusted = [changed(llama, 0.01, seed=1), changed(llama, 0.02, seed=2)]
    theirs = [shifts(audited(llama, one)) for one in trusted]
    alike = audited(llama, changed(llama, 0.02, seed=3), trusted=trusted)
    for one in alike.moved:
        assert one.bound >= 2 * max(each[one.tensor] for each in theirs) * 0.999
        assert not one.exceeds
    assert alike.warnings == ()
    further = audited(llama, changed(llama, 0.1, seed=3), trusted=trusted)
    assert all(one.exceeds for one in further.moved)
    assert "twice as far" in further.warnings[0]


def test_a_trusted_adapter_of_another_model_is_refused_and_the_model_stays(llama):
    displaced = plug(llama, changed(llama, 0.1))
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    other = tiny_model("llama", 7)
    with pytest.raises(UserError, match="another model"):
        audit.adapter(llama, displaced, trusted=[Adapter.of(other, origin(other, SPLIT))])
    assert all(torch.equal(before[name], tensor) for name, tensor in llama.state_dict().items())


def test_an_audit_leaves_the_model_as_it_was(model, tokens):
    displaced = plug(model, changed(model, 0.1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    audit.adapter(model, displaced, trusted=[changed(model, 0.2)], tokens=tokens)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_losses_are_those_of_the_two_models(llama, tokens):
    def direct():
        with torch.no_grad():
            logits = llama(tokens).logits[:, :-1]
        return float(cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))

    adapter = changed(llama, 0.3)
    before = direct()
    displaced = plug(llama, adapter)
    found = audit.adapter(llama, displaced, tokens=tokens)
    assert found.loss.before == pytest.approx(before, rel=0.01)
    assert found.loss.after == pytest.approx(direct(), rel=0.01)


def test_a_model_that_forgot_is_warned_of(llama, tokens):
    found = audit.AdapterAudit(audited(llama, changed(llama, 0.01)).moved, audit.Losses(3.0, 4.5))
    assert "forgot" in found.warnings[0]


def test_what_was_all_zero_counts_as_of_the_layers_size(llama):
    with torch.no_grad():
        adapter_tensors(llama, SPLIT)[UP].zero_()
    adapter = Adapter.of(llama, origin(llama, SPLIT))
    adapter.tensors[UP][0, 0] = 0.5
    half = audited(llama, adapter)
    adapter.tensors[UP][0, 0] = 1.0
    whole = audited(llama, adapter)
    assert half.moved[0].tensor == whole.moved[0].tensor == UP
    assert 0 < half.moved[0].shift == pytest.approx(whole.moved[0].shift / 2, rel=1e-4)
