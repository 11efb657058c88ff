"""GradOT's emulators are what was asked for, in every family, and an interruption changes nothing."""

from __future__ import annotations

import pytest
import torch
import transformers as t

from offsite.errors import UserError
from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner import factors, scored
from offsite.owner.blueprint import everything
from offsite.owner.build import build, keep_of, lossless
from offsite.owner.components import candidates, with_privacy
from offsite.owner.methods import chain, method_named
from offsite.owner.methods.gradot import GradOT
from offsite.owner.methods.gradot_paper import GradOTPaper
from offsite.owner.parts import Parts
from offsite.owner.profile import Profile
from offsite.owner.records import ChannelScores
from tests.conftest import BY_FAMILY
from tests.families import tiny_model

SPLIT = Split(1, 1)
FORMS = {"fisher": GradOT, "paper": GradOTPaper}
TOKENS = torch.randint(3, 120, (16, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=BY_FAMILY)
def profiled(request):
    """A model of each family, and its profiles in both forms."""
    model = tiny_model(request.param)
    methods = {form: kind() for form, kind in FORMS.items()}
    return model, {form: method.profile(model, SPLIT, TOKENS) for form, method in methods.items()}


@pytest.mark.parametrize("form", ["fisher", "paper"])
class TestEveryFamily:
    @pytest.mark.parametrize("keep", [0.2, 0.4, 0.6, 0.8])
    def test_keep_is_what_is_stored(self, profiled, form, keep):
        model, profiles = profiled
        emulator = build(model, SPLIT, FORMS[form]().plan(profiles[form], keep))
        assert keep_of(emulator, model) == pytest.approx(keep, abs=0.02)
        with torch.no_grad():
            assert emulator.model(TOKENS).logits.isfinite().all()

    def test_keeping_everything_is_the_lossless_emulator(self, profiled, form):
        model, profiles = profiled
        blueprint = FORMS[form]().plan(profiles[form], 1.0)
        assert blueprint == everything(SPLIT, 8)
        with torch.no_grad():
            both = [
                each.model(TOKENS).logits for each in (build(model, SPLIT, blueprint), lossless(model, SPLIT))
            ]
        assert torch.equal(*both)

    def test_what_is_kept_is_nearer_to_the_model_than_what_is_dropped(self, profiled, form):
        """Scores the other way round make a worse emulator."""
        model, profiles = profiled
        profile = profiles[form]
        turned = {key: -x if key.endswith(".score") else x for key, x in profile.tensors.items()}
        for key in [key for key in turned if key.endswith(".score")]:
            turned[key] = turned[key] - turned[key].min() + profile.tensors[key].min()
        gaps = []
        with torch.no_grad():
            whole = model(TOKENS).logits
            for tensors in (profile.tensors, turned):
                plan = FORMS[form]().plan(Profile(SPLIT, profile.sizes, tensors), 0.7)
                gaps.append((build(model, SPLIT, plan).model(TOKENS).logits - whole).square().mean())
        assert gaps[0] < gaps[1]


def same(one, other):
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("method", [GradOT(), GradOTPaper(), GradOT(labels="sampled")], ids=str)
@pytest.mark.parametrize("room", [1, 1 << 30], ids=["a pass for each layer", "one pass"])
def test_stopped_between_layers_it_goes_on_to_the_same_end(llama, tmp_path, monkeypatch, method, room):
    undisturbed = method.profile(llama, SPLIT, TOKENS).tensors
    monkeypatch.setattr(factors, "_ROOM", room)
    learnt, real = [], Parts.put

    def stopping(self, part, tensors):
        if len(learnt) in (2, 5) and learnt[-1] is not None:
            learnt.append(None)
            raise KeyboardInterrupt
        learnt.append(part)
        real(self, part, tensors)

    monkeypatch.setattr(Parts, "put", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            method.profile(llama, SPLIT, TOKENS, tmp_path / "work")
    found = method.profile(llama, SPLIT, TOKENS, tmp_path / "work").tensors
    assert [part for part in learnt if part] == [str(i) for i in range(1, 7)]
    assert same(found, undisturbed)


def test_the_text_is_read_once_where_the_sums_fit_into_memory(llama, monkeypatch):
    passes, real = [], scored.curvature

    def counted(model, layers, *rest, **more):
        passes.append(list(layers))
        return real(model, layers, *rest, **more)

    monkeypatch.setattr(scored, "curvature", counted)
    GradOT().profile(llama, SPLIT, TOKENS)
    assert passes == [[1, 2, 3, 4, 5, 6]]
    passes.clear()
    monkeypatch.setattr(factors, "_ROOM", 1)
    GradOT().profile(llama, SPLIT, TOKENS)
    assert passes == [[1], [2], [3], [4], [5], [6]]


def test_a_profile_of_other_labels_is_refused(llama):
    profile = GradOT().profile(llama, SPLIT, TOKENS)
    GradOT(lambda_channels=0.5, lambda_attention=0.5, ranks=0.9).check(profile)
    with pytest.raises(UserError, match="made with labels=text, not sampled; leave"):
        GradOT(labels="sampled").check(profile)
    with pytest.raises(UserError, match="made with labels=sampled, not text; leave"):
        GradOT().check(GradOT(labels="sampled").profile(llama, SPLIT, TOKENS))


def test_a_profile_of_the_other_form_is_refused(llama):
    kinds = list(FORMS.values())
    for kind, other in (kinds, kinds[::-1]):
        with pytest.raises(UserError, match=f"of the method '{other.name}', not of '{kind.name}'; leave"):
            kind().check(other().profile(llama, SPLIT, TOKENS))


@pytest.mark.parametrize("form", ["paper", "fisher"])
def test_what_form_was_is_answered_with_the_method(form):
    with pytest.raises(UserError, match="gradot has no knob 'form': form=paper is the method gradot-paper"):
        method_named("gradot", [f"form={form}"])
    with pytest.raises(UserError, match="form=paper is the method gradot-paper"):
        chain(["scaleot", "gradot"], [f"form={form}"])


def test_a_mixture_of_experts_is_refused_before_any_text_is_read(monkeypatch):
    config = t.MixtralConfig(
        vocab_size=128, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    monkeypatch.setattr(scored, "curvature", lambda *_, **__: pytest.fail("text was read"))
    with pytest.raises(UserError, match="'mixtral' model has no plain feed-forward"):
        GradOT().profile(t.AutoModelForCausalLM.from_config(config), SPLIT, TOKENS)


@pytest.mark.parametrize("form", ["fisher", "paper"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi3"])
def test_weights_have_the_models_type_and_biases_stay(model, dtype, form):
    model.to(dtype)
    method = FORMS[form]()
    blueprint = method.plan(method.profile(model, SPLIT, TOKENS), 0.4)
    emulated = build(model, SPLIT, blueprint).model
    assert {p.dtype for p in emulated.parameters()} == {dtype}
    old, new = Decoder.of(model), Decoder.of(emulated)
    factored = 0
    for place in blueprint:
        feed = old.feed_forward(place.layer)
        kept = torch.arange(feed.width) if place.channels is None else torch.tensor(place.channels)
        for name in old.linears(place.layer):
            was = getattr(old.layers[place.layer].get_submodule(name), "bias", None)
            linear = new.layers[place.layer].get_submodule(name)
            low = hasattr(linear, "up")
            factored += low
            bias = linear.up.bias if low else getattr(linear, "bias", None)
            wanted = was[feed.rows(name, kept)] if was is not None and name in feed.ups else was
            assert (bias is None) == (was is None)
            assert bias is None or torch.equal(bias, wanted)
    assert factored
    with torch.no_grad():
        assert emulated(TOKENS).logits.isfinite().all()


@pytest.mark.parametrize("form", ["fisher", "paper"])
class TestLambda:
    def test_when_large_what_raises_the_loss_goes_first(self, llama, form):
        profile = FORMS[form]().profile(llama, SPLIT, TOKENS)
        mixed = 0
        for place in FORMS[form](lambda_channels=1e6).plan(profile, 0.5):
            slope = ChannelScores.read(profile.tensors, place.layer, "mlp.down_proj").slope
            stays = torch.ones(len(slope), dtype=torch.bool)
            if place.channels is not None:
                mixed += 1
                stays[:] = False
                stays[list(place.channels)] = True
                assert slope[~stays].min() >= slope[stays].max() - 1e-6
        assert mixed

    def test_it_weighs_each_kind_by_itself(self, llama, form):
        profile = FORMS[form]().profile(llama, SPLIT, TOKENS)
        for knob in ("lambda_channels", "lambda_attention"):
            method = FORMS[form](**{knob: 0.3})
            for plain in candidates(profile):
                weights = method.lambda_attention, method.lambda_channels
                (weighed,) = (each.score for each in with_privacy([plain], *weights))
                slope = plain.slope
                mine = plain.channels == (knob == "lambda_channels")
                wanted = plain.score - 0.3 * slope if mine else plain.score
                assert torch.allclose(weighed, wanted)

    @pytest.mark.parametrize("keep", [0.3, 0.6, 0.9, 1.0])
    @pytest.mark.parametrize("weight", [1.0, 1e4])
    def test_keep_is_kept(self, llama, form, keep, weight):
        profile = FORMS[form]().profile(llama, SPLIT, TOKENS)
        method = FORMS[form](lambda_channels=weight, lambda_attention=weight)
        emulator = build(llama, SPLIT, method.plan(profile, keep))
        assert keep_of(emulator, llama) == pytest.approx(keep, abs=0.02)


class TestOddModels:
    """What some real models hold, and what is then no reason to fail."""

    @pytest.mark.parametrize("form", ["fisher", "paper"])
    @pytest.mark.parametrize("name", ["self_attn.o_proj", "self_attn.q_proj", "mlp.down_proj", "mlp.up_proj"])
    def test_a_matrix_of_zeros(self, llama, name, form):
        """As layers that were added to a model begin; nothing flows back through it."""
        Decoder.of(llama).matrix(3, name).zero_()
        self.check(llama, FORMS[form](), 0.6)

    def test_channels_that_are_never_read_go_for_nothing(self, llama):
        Decoder.of(llama).matrix(3, "mlp.down_proj")[:, :40] = 0
        place = self.check(llama, GradOT(), 0.9)[2]
        assert place.channels is not None
        assert min(place.channels) >= 40

    @pytest.mark.parametrize(("name", "size"), [("self_attn.q_proj", 20), ("mlp.down_proj", 5)])
    def test_keeping_everything_keeps_also_what_is_worth_nothing(self, llama, name, size):
        Decoder.of(llama).matrix(3, name)[:, :size] = 0
        profile = GradOT().profile(llama, SPLIT, TOKENS)
        assert GradOT().plan(profile, 1.0) == everything(SPLIT, 8)

    @pytest.mark.parametrize("form", ["fisher", "paper"])
    def test_a_weight_that_is_no_number_is_refused(self, llama, form):
        Decoder.of(llama).matrix(3, "mlp.up_proj")[5, 5] = float("nan")
        with pytest.raises(UserError, match="is not a number; look whether the model's weights are sound"):
            FORMS[form]().profile(llama, SPLIT, TOKENS)

    def check(self, model, method, keep):
        blueprint = method.plan(method.profile(model, SPLIT, TOKENS), keep)
        emulator = build(model, SPLIT, blueprint)
        assert keep_of(emulator, model) == pytest.approx(keep, abs=0.02)
        with torch.no_grad():
            assert emulator.model(TOKENS).logits.isfinite().all()
        return blueprint
