"""What an emulator of factors and fewer channels must be, or it is refused, though signed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, MixtralConfig

from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from tests.bundles.test_emulator import check, edit
from tests.families import tiny_model, tiny_tokenizer
from tests.sample_bundles import edit_card, edit_tensors
from tests.test_laws import SPLIT, thin

MLP = "model.layers.2.mlp."
QUERY = "model.layers.2.self_attn.q_proj."


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulators")
    for family in ("llama", "gpt2"):
        model = tiny_model(family)
        build(model, SPLIT, thin(model), tokenizer=tiny_tokenizer()).save(folder / family)
    return folder


@pytest.fixture
def copy_of(saved, tmp_path):
    return lambda family: shutil.copytree(saved / family, tmp_path / "emulator")


def several(**new):
    """Put tensors by their names; those that are None go."""

    def change(tensors):
        for name, tensor in new.items():
            tensors.pop(name, None) if tensor is None else tensors.update({name: tensor})

    return lambda folder: edit_tensors(folder, change)


def factors(up, down, at=QUERY):
    """A linear as two factors of these shapes, whatever it was."""
    return several(
        **{f"{at}up.weight": torch.ones(up), f"{at}down.weight": torch.ones(down), f"{at}weight": None}
    )


def channels(up, gate, down):
    """The feed-forward of the first place with matrices of these shapes."""
    sizes = {"up_proj": up, "gate_proj": gate, "down_proj": down}
    return several(**{f"{MLP}{name}.weight": torch.ones(size) for name, size in sizes.items()})


def alias_more(folder, **names):
    card = json.loads((folder / "card.json").read_text())
    edit_card(folder, same_as=card["same_as"] | names)


def borrowing(*names, **new):
    """The second place with these tensors of the first one's, and others of its own."""

    def alter(folder):
        mine = {f"model.layers.3.{name}": f"model.layers.2.{name}" for name in names}
        several(**dict.fromkeys(mine), **new)(folder)
        alias_more(folder, **mine)

    return alter


FITS = "would fit the linears around it"
THIN = {  # the tiny llama: 32 wide, 64 channels of which 4 are left, factors of rank 3
    "a rank of zero": (factors((32, 0), (0, 32)), "do not make one matrix"),
    "factors that do not chain": (factors((32, 3), (4, 32)), "do not make one matrix"),
    "a rank above both sides": (factors((32, 33), (33, 32)), "do not make one matrix"),
    "a factor of one dimension": (factors((32,), (3, 32)), "do not make one matrix"),
    "a factor of three dimensions": (factors((32, 3, 1), (3, 32)), "do not make one matrix"),
    "factors of more outputs": (factors((33, 3), (3, 32)), FITS),
    "factors of more inputs": (factors((32, 3), (3, 33)), FITS),
    "an input past all memory": (factors((32, 1), (1, 10**6)), FITS),
    "factors of another precision": (
        edit(f"{QUERY}up.weight", lambda x: x.bfloat16()),
        "stored as torch.bfloat16",
    ),
    "factors that hold NaN": (edit(f"{QUERY}up.weight", lambda x: x * float("nan")), "holds NaN"),
    "an attention matrix narrowed": (
        several(
            **{f"{QUERY}weight": torch.ones(16, 32), f"{QUERY}up.weight": None, f"{QUERY}down.weight": None}
        ),
        FITS,
    ),
    "a weight beside its factors": (
        several(**{f"{QUERY}weight": torch.ones(32, 32)}),
        r"q_proj\.(up|down)\.weight' does not belong",
    ),
    "a narrow weight beside its factors": (several(**{f"{QUERY}weight": torch.ones(16, 32)}), FITS),
    "one factor alone": (
        several(**{f"{QUERY}down.weight": None}),
        r"q_proj\.(up\.)?weight' (is missing|does not)",
    ),
    "the other factor alone": (
        several(**{f"{QUERY}up.weight": None}),
        r"q_proj\.(down\.)?weight' (is missing|does not)",
    ),
    "factors of factors": (
        several(**{f"{QUERY}up.up.weight": torch.ones(32, 1), f"{QUERY}up.down.weight": torch.ones(1, 3)}),
        "does not belong",
    ),
    "factors in an adapter layer": (
        factors((32, 3), (3, 32), at="model.layers.0.self_attn.q_proj."),
        r"'model\.layers\.0\.self_attn\..*",
    ),
    "fewer channels in an adapter layer": (
        edit("model.layers.7.mlp.up_proj.weight", lambda x: x[:4]),
        r"\(4, 32\) where the config says .*\(64, 32\)",
    ),
    "channels that gate and up count apart": (channels((4, 32), (5, 32), (32, 4)), FITS),
    "channels that down counts apart": (channels((4, 32), (4, 32), (32, 5)), FITS),
    "channels that factors count apart": (factors((5, 2), (2, 32), at=f"{MLP}up_proj."), FITS),
    "channels without end": (channels((65, 32), (65, 32), (32, 65)), FITS),
    "no channels": (channels((0, 32), (0, 32), (32, 0)), r"\(0, 32\)|\(32, 0\)"),
    "a place narrower than the layer that it shares": (
        borrowing(
            "mlp.up_proj.weight",
            "mlp.gate_proj.weight",
            **{"model.layers.3.mlp.down_proj.weight": torch.ones(32, 3)},
        ),
        FITS,
    ),
    "a place of less rank than the layer that it shares": (
        borrowing(
            "self_attn.q_proj.up.weight",
            **{"model.layers.3.self_attn.q_proj.down.weight": torch.ones(2, 32)},
        ),
        "do not make one matrix",
    ),
    "a place that shares an adapter layer's channels": (
        lambda f: (
            several(**{f"{MLP}up_proj.weight": None})(f),
            alias_more(f, **{f"{MLP}up_proj.weight": "model.layers.0.mlp.up_proj.weight"}),
        ),
        FITS,
    ),
}
BIASES = {  # of a tiny gpt2
    "of factors, too short": ("transformer.h.2.attn.c_proj.up.bias", lambda x: x[:-1], r"\(31,\)"),
    "of factors, missing": ("transformer.h.2.attn.c_proj.up.bias", None, "is missing"),
    "of fewer channels, too long": ("transformer.h.2.mlp.c_fc.bias", lambda x: torch.cat([x, x]), r"\(8,\)"),
    "of a narrowed reader, too short": ("transformer.h.2.mlp.c_proj.bias", lambda x: x[:4], r"\(4,\)"),
    "of the inner factor": ("transformer.h.2.attn.c_proj.down.bias", torch.ones(3), "does not belong"),
}


@pytest.mark.parametrize("case", THIN)
def test_odd_factors_and_channels_are_refused_though_signed(copy_of, case):
    check(copy_of("llama"), case, THIN)


@pytest.mark.parametrize("case", BIASES)
def test_odd_biases_of_factors_and_channels_are_refused_though_signed(copy_of, case):
    name, make, why = BIASES[case]
    folder = copy_of("gpt2")
    alter = edit(name, make) if callable(make) else several(**{name: make})
    check(folder, case, {case: (alter, why)})


@pytest.mark.parametrize("middle", [thin, lambda _: (Place(2), Place(2), Place(4))], ids=["thin", "shared"])
def test_an_export_stores_a_tied_head_once(middle, tmp_path):
    model = tiny_model("llama")
    assert model.config.tie_word_embeddings
    build(model, SPLIT, middle(model)).export(tmp_path / "dense")
    _, about = AutoModel.from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not about["unexpected_keys"]
    assert "lm_head.weight" not in load_file(tmp_path / "dense" / "model.safetensors")


def test_an_export_splits_fused_experts_as_transformers_does(tmp_path):
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    emulator = build(AutoModelForCausalLM.from_config(config).eval(), Split(1, 1), (Place(1), Place(1)))
    emulator.export(tmp_path / "dense")
    stored, ids = load_file(tmp_path / "dense" / "model.safetensors"), torch.arange(8)[None]
    assert "model.layers.2.block_sparse_moe.experts.1.w1.weight" in stored
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert torch.equal(opened(ids).logits, emulator.model(ids).logits)
