"""A bundle does not say how deep the model was: models *built* at different depths give the same bytes."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as t

from offsite.bundles.emulator import Emulator
from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from tests.cli.conftest import listing
from tests.families import FAMILIES

SPLIT = Split(1, 1)
_SMALL = dict(
    vocab_size=128, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
_EXPERTS = dict(moe_intermediate_size=16, moe_num_experts=4, moe_k=2, moe_num_shared_experts=1)
DEEP, DEEPER = 8, 14


def by_depth(family):
    """A config of the family of so many layers, in place of those in FAMILIES."""

    def make(depth):
        config = FAMILIES[family]().to_dict()
        for name in (
            "layer_types",
            "num_hidden_layers",
            "n_layer",
            "num_layers",
            "model_type",
            "max_window_layers",
        ):
            config.pop(name, None)
        return type(FAMILIES[family]())(**config, num_hidden_layers=depth)

    return make


FEW = {family: by_depth(family) for family in FAMILIES} | {
    "gpt_neo": lambda depth: t.GPTNeoConfig(
        vocab_size=128, hidden_size=32, num_layers=depth, num_heads=4, max_position_embeddings=128,
        attention_types=[[["global", "local"], depth // 2]], window_size=8, bos_token_id=1, eos_token_id=2,
    ),
    "qwen2, windows in the upper half": lambda depth: t.Qwen2Config(
        **_SMALL, num_hidden_layers=depth, max_window_layers=depth // 2, use_sliding_window=True,
        sliding_window=6,
    ),
    "qwen2, no windows": lambda depth: t.Qwen2Config(
        **_SMALL, num_hidden_layers=depth, max_window_layers=depth - 3
    ),
    "qwen3, as deep as windows": lambda depth: t.Qwen3Config(
        **_SMALL, head_dim=8, num_hidden_layers=depth, max_window_layers=depth
    ),
    "ernie4_5_moe": lambda depth: t.Ernie4_5_MoeConfig(**_SMALL, **_EXPERTS, num_hidden_layers=depth),
    "ernie4_5_moe, dense at both ends": lambda depth: t.Ernie4_5_MoeConfig(
        **_SMALL, **_EXPERTS, num_hidden_layers=depth, moe_layer_end_index=depth - 2
    ),
    "lfm2": lambda depth: t.Lfm2Config(
        **_SMALL, num_hidden_layers=depth, block_auto_adjust_ff_dim=False, full_attn_idxs=[3, depth - 1]
    ),
    "lfm2, attention everywhere": lambda depth: t.Lfm2Config(
        **_SMALL, num_hidden_layers=depth, block_auto_adjust_ff_dim=False
    ),
    "qwen3_moe": lambda depth: t.Qwen3MoeConfig(
        **_SMALL, head_dim=8, num_hidden_layers=depth, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, mlp_only_layers=[0, depth - 1],
    ),
    "deepseek_v3": lambda depth: t.DeepseekV3Config(
        **(_SMALL | dict(num_key_value_heads=4)), num_hidden_layers=depth, first_k_dense_replace=depth // 3,
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1,
        q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    ),
    "gemma4_text": lambda depth: t.Gemma4TextConfig(
        **_SMALL, head_dim=8, global_head_dim=16, num_hidden_layers=depth, sliding_window=6,
        vocab_size_per_layer_input=128, hidden_size_per_layer_input=0, num_kv_shared_layers=0,
    ),
}  # fmt: skip


def model_of(config, layers):
    """A model whose `layers` and everything around the stack hold the same weights whatever its depth."""
    model = t.AutoModelForCausalLM.from_config(config).eval()
    decoder = Decoder.of(model)
    chance = torch.Generator().manual_seed(0)
    parts = [decoder.rest(), *(decoder.tensors(index) for index in layers)]
    seen = set()
    with torch.no_grad():
        for tensor in (part[name] for part in parts for name in sorted(part)):
            if id(tensor) not in seen:
                tensor.copy_(torch.randn(tensor.shape, generator=chance))
                seen.add(id(tensor))
    return model


def kinds(config, layers):
    return [config.layer_types[index] for index in layers] if getattr(config, "layer_types", None) else None


def alike(configs):
    """Layers of either config whose kinds are the same: the first, the last, and two of the middle."""
    here, there = configs
    for a in ((3, 5), (4, 5), (2, 4), (1, 5), (5, 6)):
        for b in ((7, 9), (4, 8), (8, 9), (5, 9), (9, 10), (3, 9)):
            pair = (0, *a, DEEP - 1), (0, *b, DEEPER - 1)
            if kinds(here, pair[0]) == kinds(there, pair[1]):
                return pair
    raise AssertionError("no such layers")


@pytest.mark.parametrize("family", FEW)
def test_models_built_at_different_depths_give_the_same_bundle(tmp_path, family):
    configs = FEW[family](DEEP), FEW[family](DEEPER)
    pairs = alike(configs)
    for name, config, layers in zip("ab", configs, pairs, strict=True):
        model = model_of(config, layers)
        build(model, SPLIT, tuple(map(Place, layers[1:-1])), method="any").save(tmp_path / name)
    ones, others = listing(tmp_path / "a"), listing(tmp_path / "b")
    cards = [json.loads(each.pop("card.json")) for each in (ones, others)]
    parents = [card["origin"].pop("parent") for card in cards]
    assert parents[0] != parents[1]
    assert json.loads(ones["config.json"]) == json.loads(others["config.json"])
    assert cards[0] == cards[1]
    assert ones == others


@pytest.mark.parametrize("family", [name for name in FEW if name not in FAMILIES])
def test_a_config_told_anew_builds_the_same_model(tmp_path, family, tokens):
    """Saved and loaded, by us and by transformers alone, the emulator gives the logits that it had."""
    config = FEW[family](DEEP)
    layers = alike((config, FEW[family](DEEPER)))[0]
    emulator = build(model_of(config, layers), SPLIT, tuple(map(Place, layers[1:-1])))
    emulator.save(tmp_path / "e")
    emulator.export(tmp_path / "dense")
    opened = Emulator.load(tmp_path / "e").model, t.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    with torch.no_grad():
        logits = [model.eval()(tokens, use_cache=False).logits for model in (emulator.model, *opened)]
    assert torch.equal(logits[0], logits[1])
    assert torch.allclose(logits[0], logits[2], atol=1e-5)
