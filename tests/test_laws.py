"""The laws of the house, on a tiny random model of every family."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as t
from safetensors.torch import load_file

from offsite.bundles.adapter import Adapter, adapter_tensors, swap
from offsite.bundles.aliases import aliases
from offsite.bundles.emulator import Emulator
from offsite.data.examples import Example, Piece
from offsite.data_owner.tune import TuneConfig, tune
from offsite.errors import UserError
from offsite.model.decoder import Decoder
from offsite.model.harmonizers import harmonizer_tensors
from offsite.model.linears import Weight
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build, lossless
from offsite.owner.plug import plug

SPLIT = Split(2, 2)
DROP = tuple(map(Place, (2, 4)))
SHARE = tuple(map(Place, (2, 2, 4, 4)))
BLUEPRINTS = {
    "drop": lambda model: DROP,
    "share": lambda model: SHARE,
    "thin": lambda model: thin(model),
    "harmonized": lambda model: harmonized(),
}
EXAMPLES = [
    Example((Piece(f"w{10 + i} w{20 + i} w{30 + i}", False), Piece(f" w{40 + i} w{50 + i}", True)))
    for i in range(24)
]
QUICK = TuneConfig(steps=4, batch_size=4, lr=1e-2, checks=2, max_length=32)


def thin(model):
    """Every layer of the middle with fewer channels and every other linear as two factors of random numbers."""
    decoder = Decoder.of(model)

    def factors(index, name):
        outputs, inputs = decoder.matrix(index, name).shape
        bias = getattr(decoder.layers[index].get_submodule(name), "bias", None)
        made = torch.Generator().manual_seed(index)
        up, down = (torch.randn(*size, generator=made) / 6 for size in ((outputs, 3), (3, inputs)))
        return Weight((up, down), bias)

    return tuple(
        Place(i, (0, 3, 4, 11 + i), {name: factors(i, name) for name in decoder.attention(i)})
        for i in SPLIT.middle(len(decoder))
    )


def harmonized(up=0.1):
    """The layers of DROP, and random harmonizers of rank 3 at either end of the middle and, two, within it."""
    made = torch.Generator().manual_seed(0)

    def stand_in(layer):
        return Place(layer, harmonizer=Weight((up * random(32, 3), random(3, 32) / 6)))

    def random(*size):
        return torch.randn(*size, generator=made)

    return (stand_in(3), DROP[0], stand_in(3), stand_in(5), DROP[1], stand_in(5))


@pytest.fixture(params=sorted(BLUEPRINTS))
def blueprint(request, model):
    return BLUEPRINTS[request.param](model)


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_emulator_of_everything_is_the_model(model, tokens):
    assert torch.equal(logits(lossless(model, SPLIT).model, tokens), logits(model, tokens))


def test_save_then_load_gives_the_same_logits_and_bundle(model, tokens, tmp_path, blueprint):
    emulator = build(model, SPLIT, blueprint)
    digest = emulator.save(tmp_path / "emulator")
    again = Emulator.load(tmp_path / "emulator")
    assert torch.equal(logits(again.model, tokens), logits(emulator.model, tokens))
    assert (again.origin, again.method, again.digest) == (emulator.origin, emulator.method, digest)
    assert again.save(tmp_path / "again") == digest


def test_a_plain_emulator_opens_in_transformers_alone(model, tokens, tmp_path):
    emulator = build(model, SPLIT, DROP)
    emulator.save(tmp_path / "emulator")
    opened = t.AutoModelForCausalLM.from_pretrained(tmp_path / "emulator")
    assert emulator.plain
    assert torch.equal(logits(opened, tokens), logits(emulator.model, tokens))


def test_an_emulator_that_is_not_plain_refuses_to_open_in_transformers_alone(llama, tmp_path):
    emulator = build(llama, SPLIT, SHARE)
    emulator.save(tmp_path / "emulator")
    assert not emulator.plain
    with pytest.raises(OSError, match="no file named"):
        t.AutoModelForCausalLM.from_pretrained(tmp_path / "emulator")


def test_generation_with_cache_equals_generation_without(model, tokens, blueprint):
    emulated = build(model, SPLIT, blueprint).model
    kwargs = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, attention_mask=torch.ones_like(tokens))
    cached = emulated.generate(tokens, use_cache=True, **kwargs)
    assert torch.equal(cached, emulated.generate(tokens, use_cache=False, **kwargs))


@pytest.mark.parametrize("blueprint", ["drop", "harmonized"], indirect=True)
@pytest.mark.parametrize("rank", [None, 2], ids=["whole", "lora"])
def test_the_whole_road(model, tmp_path, tokenizer, blueprint, rank):
    """Build and tune leave the model alone; tune changes just the adapter; plugging back restores."""
    before = state(model)
    emulator = build(model, SPLIT, blueprint, tokenizer=tokenizer)
    emulator.save(tmp_path / "emulator")
    untuned = state(emulator.model)
    config = TuneConfig(**{**vars(QUICK), "lora_rank": rank})
    tuned = tune(emulator, EXAMPLES, config)
    assert same(state(model), before)
    names = {k for k, v in emulator.model.state_dict().items() if not torch.equal(v, untuned[k])}
    places = SPLIT.adapter(6).values()
    decoder = Decoder.of(emulator.model)
    inside = {decoder.name(i, name) for i in places for name in decoder.tensors(i)}
    assert names
    assert names <= inside
    assert all(any(decoder.name(i, "") in name for name in names) for i in places)

    tuned.save(tmp_path / "adapter")
    adapter = Adapter.load(tmp_path / "adapter")
    fresh = Emulator.load(tmp_path / "emulator")
    swap(fresh.model, adapter)
    assert same(state(fresh.model), state(emulator.model))

    displaced = plug(model, adapter)
    assert not same(state(model), before)
    plug(model, displaced)
    assert same(state(model), before)


def test_an_untuned_adapter_changes_nothing(model):
    before = state(model)
    plug(model, Adapter.of(model, build(model, SPLIT, DROP).origin))
    assert same(state(model), before)


@pytest.mark.parametrize("blueprint", ["drop", "share", "harmonized"], indirect=True)
def test_no_dropped_layer_is_in_a_bundle(model, tmp_path, blueprint):
    sent = sent_bytes(build(model, SPLIT, blueprint), tmp_path)
    decoder = Decoder.of(model)
    for index, there in ((2, True), (3, False), (4, True), (5, False)):
        for tensor in decoder.tensors(index).values():
            if tensor.dim() > 1:
                assert (tensor.detach().numpy().tobytes() in sent) is there


def test_no_pruned_or_factored_matrix_is_in_a_bundle(model, tmp_path):
    sent = sent_bytes(build(model, SPLIT, thin(model)), tmp_path)
    decoder = Decoder.of(model)
    for index in SPLIT.middle(len(decoder)):
        for name in decoder.linears(index):
            assert decoder.matrix(index, name).contiguous().numpy().tobytes() not in sent


def sent_bytes(emulator, tmp_path):
    emulator.save(tmp_path / "emulator")
    return next((tmp_path / "emulator").glob("*.safetensors")).read_bytes()


def test_harmonizers_with_nothing_to_add_are_their_layers_dropped(model, tokens):
    silent, dropped = (build(model, SPLIT, blueprint).model for blueprint in (harmonized(up=0), DROP))
    assert torch.equal(logits(silent, tokens), logits(dropped, tokens))
    assert not torch.allclose(logits(build(model, SPLIT, harmonized()).model, tokens), logits(dropped, tokens))


def test_harmonizers_at_the_ends_of_the_middle_are_in_its_states(model, tokens):
    """What distilling and every measure of the middle reads, with the harmonizers applied by hand."""
    first, *between, last = harmonized()
    whole = build(model, SPLIT, harmonized()).model
    states, entered = states_of(whole, tokens), states_of(model, tokens)
    bare = states_of(build(model, SPLIT, (first, *between)).model, tokens)
    start, stop = SPLIT.bottom, len(Decoder.of(whole)) - SPLIT.top
    assert torch.allclose(states[start], by_hand(first, entered[start]), atol=1e-5)
    assert torch.allclose(states[stop], by_hand(last, bare[stop]), atol=1e-5)
    assert not torch.allclose(states[stop], bare[stop], atol=1e-2)


def states_of(model, tokens):
    with torch.no_grad():
        return model(tokens, output_hidden_states=True, use_cache=False).hidden_states


def by_hand(place, states):
    up, down = place.harmonizer.matrices
    size = states.square().mean(-1, keepdim=True).sqrt()
    return states + (states / size @ down.T).clamp(min=0) @ up.T


def test_a_copy_of_a_harmonized_emulator_is_one_and_its_own(model, tokens):
    original = build(model, SPLIT, harmonized()).model
    before, twin = logits(original, tokens), copy.deepcopy(original)
    assert torch.equal(logits(twin, tokens), before)
    for tensor in harmonizer_tensors(twin).values():
        tensor.data.zero_()
    assert torch.equal(logits(twin, tokens), logits(build(model, SPLIT, DROP).model, tokens))
    assert torch.equal(logits(original, tokens), before)


def test_a_harmonized_emulator_is_not_plain_and_not_exported(model, tmp_path):
    emulator = build(model, SPLIT, harmonized())
    assert not emulator.plain
    with pytest.raises(UserError, match=r"^The emulator has harmonizers, which no plain .*\.load\.$"):
        emulator.export(tmp_path / "dense")
    assert not list(tmp_path.iterdir())


def test_a_thin_emulator_exported_is_the_same_model_in_transformers_alone(model, tokens, tmp_path):
    emulator = build(model, SPLIT, thin(model))
    assert not emulator.plain
    emulator.export(tmp_path / "dense")
    opened = t.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.allclose(logits(opened, tokens), logits(emulator.model, tokens), atol=1e-5)
    assert aliases(opened).keys().isdisjoint(load_file(tmp_path / "dense" / "model.safetensors"))


def test_channels_that_nothing_reads_can_be_pruned_for_nothing(model, tokens):
    decoder = Decoder.of(model)
    kept = tuple(range(1, 64, 2))
    for index in SPLIT.middle(8):
        feed = decoder.feed_forward(index)
        read = torch.zeros(feed.width)
        read[list(kept)] = 1.0
        decoder.matrix(index, feed.down).mul_(read)
    emulated = build(model, SPLIT, tuple(Place(i, kept) for i in SPLIT.middle(8))).model
    assert torch.allclose(logits(emulated, tokens), logits(model, tokens), atol=1e-5)
    assert sum(p.numel() for p in emulated.parameters()) < sum(p.numel() for p in model.parameters())


def test_factors_of_full_rank_are_the_model(model, tokens):
    decoder = Decoder.of(model)

    def factors(index, name):
        u, s, vt = torch.linalg.svd(decoder.matrix(index, name), full_matrices=False)
        return Weight((u * s, vt), getattr(decoder.layers[index].get_submodule(name), "bias", None))

    blueprint = tuple(
        Place(i, weights={name: factors(i, name) for name in decoder.linears(i)}) for i in SPLIT.middle(8)
    )
    assert torch.allclose(
        logits(build(model, SPLIT, blueprint).model, tokens), logits(model, tokens), atol=1e-3
    )


def test_the_same_seed_gives_the_same_adapter(llama, tokenizer):
    def once(seed):
        config = TuneConfig(**{**vars(QUICK), "seed": seed})
        return tune(build(llama, SPLIT, DROP, tokenizer=tokenizer), EXAMPLES, config)

    first = once(0)
    assert same(dict(first.tensors), dict(once(0).tensors))
    assert not same(dict(first.tensors), dict(once(1).tensors))


def test_tuning_lowers_the_loss(llama, tokenizer):
    emulator = build(llama, SPLIT, DROP, tokenizer=tokenizer)
    curve = tune(emulator, EXAMPLES, TuneConfig(steps=30, batch_size=8, lr=1e-2, max_length=32)).curve
    losses = [point.loss for point in curve if point.loss is not None]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "phi3"])
def test_a_lora_equals_what_peft_itself_merges(model, tokens, tokenizer):
    """Our plug of a LoRA, renumbered into the full model, against peft's own merge in the emulator."""
    from peft import LoraConfig, get_peft_model

    emulator = build(model, SPLIT, DROP, tokenizer=tokenizer)
    theirs = build(model, SPLIT, DROP, tokenizer=tokenizer)
    tuned = tune(emulator, EXAMPLES, TuneConfig(**{**vars(QUICK), "lora_rank": 2, "lora_alpha": 4}))
    decoder = Decoder.of(theirs.model)
    places = SPLIT.adapter(6)
    names = {f"{p}.{n}": decoder.name(i, n) for p, i in places.items() for n in decoder.linears(i)}
    turned = any(decoder.linears(0).values())
    config = LoraConfig(r=2, lora_alpha=4, target_modules=list(names.values()), fan_in_fan_out=turned)
    wrapped = get_peft_model(theirs.model, config)
    own = dict(wrapped.named_parameters())
    with torch.no_grad():
        for name, tensor in tuned.tensors.items():
            site, part = name.rsplit(".lora_", 1)
            own[f"base_model.model.{names[site]}.lora_{part.replace('.weight', '.default.weight')}"].copy_(
                tensor
            )
    merged = wrapped.merge_and_unload()
    assert torch.allclose(logits(merged, tokens), logits(emulator.model, tokens), atol=1e-4)


def test_an_adapter_of_another_model_is_refused_and_changes_nothing(model, family):
    from tests.families import tiny_model

    other = tiny_model(family, seed=7)
    before = state(model)
    with pytest.raises(UserError, match="another model"):
        plug(model, Adapter.of(other, build(other, SPLIT, DROP).origin))
    assert same(state(model), before)


def test_a_lora_is_refused_once_its_base_has_changed(llama, tokenizer):
    emulator = build(llama, SPLIT, DROP, tokenizer=tokenizer)
    lora = tune(emulator, EXAMPLES, TuneConfig(**{**vars(QUICK), "lora_rank": 2}))
    plug(llama, lora)
    with pytest.raises(UserError, match="were changed since"):
        plug(llama, lora)


def test_half_precision_models_are_tuned_in_float32_and_come_back_in_half(tokenizer, tokens):
    from tests.families import tiny_model

    model = tiny_model("llama").bfloat16()
    model.config.dtype = torch.bfloat16
    emulator = build(model, SPLIT, DROP, tokenizer=tokenizer)
    tuned = tune(emulator, EXAMPLES, QUICK)
    assert {tensor.dtype for tensor in tuned.tensors.values()} == {torch.bfloat16}
    plug(model, tuned)
    assert same(adapter_tensors(model, SPLIT), dict(tuned.tensors))
