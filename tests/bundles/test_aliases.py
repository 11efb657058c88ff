"""What is trained shares memory with nothing else, so that no row of a table says which tokens were read."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as t
from torch import nn

from offsite.bundles.adapter import adapter_tensors
from offsite.bundles.aliases import check_adapter
from offsite.bundles.emulator import Emulator
from offsite.data.examples import Example, Piece
from offsite.data_owner.tune import TuneConfig, tune
from offsite.errors import UserError
from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from tests.families import FAMILIES, tiny_model, tiny_tokenizer
from tests.sample_bundles import edit_card, edit_tensors, refusal, sign

SPLIT = Split(1, 1)
DROP = tuple(map(Place, (2, 4)))
SHARE = tuple(map(Place, (2, 2, 4)))
EMBEDDINGS = "model.embed_tokens.weight"


def as_wide_as_the_vocabulary():
    """A llama whose feed-forward matrices have the shape of its embeddings."""
    torch.manual_seed(0)
    config = FAMILIES["llama"]()
    config.intermediate_size = config.vocab_size
    return t.AutoModelForCausalLM.from_config(config).eval()


def name_as(folder, **same_as):
    """Store the tensors `same_as` under other names, and call the weights as a bundle with shared ones must."""
    edit_tensors(folder, lambda tensors: [tensors.pop(name) for name in same_as])
    if (folder / "model.safetensors").exists():
        (folder / "model.safetensors").rename(folder / "emulator.safetensors")
    card = json.loads((folder / "card.json").read_text())
    edit_card(folder, same_as=card["same_as"] | same_as)
    sign(folder)


@pytest.mark.parametrize("layer", [0, 3], ids=["bottom", "top"])
def test_an_adapter_tensor_that_is_the_embeddings_is_refused(tmp_path, layer):
    """Tuned, its rows that moved were exactly the tokens of the private text."""
    build(as_wide_as_the_vocabulary(), SPLIT, DROP, tokenizer=tiny_tokenizer()).save(tmp_path / "e")
    name_as(tmp_path / "e", **{f"model.layers.{layer}.mlp.up_proj.weight": EMBEDDINGS})
    assert "the config does not tie them" in refusal(Emulator.load, tmp_path / "e")


LAYER = "model.layers.{}.{}.weight"
PAIRS = {
    "an adapter's with the middle's": ((0, "mlp.up_proj"), (1, "mlp.up_proj"), "config does not tie"),
    "the middle's with an adapter's": ((1, "mlp.up_proj"), (0, "mlp.up_proj"), "config does not tie"),
    "two of the adapter's": ((0, "mlp.up_proj"), (3, "mlp.up_proj"), "config does not tie"),
    "two of one adapter layer": ((0, "mlp.up_proj"), (0, "mlp.gate_proj"), "config does not tie"),
    "two of one middle layer": ((1, "mlp.up_proj"), (1, "mlp.gate_proj"), "only tensors of the same name"),
    "two of the middle's at other names": (
        (1, "mlp.up_proj"),
        (2, "mlp.gate_proj"),
        "only tensors of the same",
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_no_other_pair_may_share(tmp_path, case):
    name, source, why = PAIRS[case]
    build(tiny_model("llama"), SPLIT, DROP).save(tmp_path / "e")
    name_as(tmp_path / "e", **{LAYER.format(*name): LAYER.format(*source)})
    assert why in refusal(Emulator.load, tmp_path / "e")


def test_the_head_is_the_embeddings_where_the_config_says_so_and_nowhere_else(tmp_path):
    config = FAMILIES["llama"]()
    config.tie_word_embeddings = False
    build(t.AutoModelForCausalLM.from_config(config), SPLIT, DROP).save(tmp_path / "e")
    name_as(tmp_path / "e", **{"lm_head.weight": EMBEDDINGS})
    assert "the config does not tie them" in refusal(Emulator.load, tmp_path / "e")


def test_a_head_tied_without_its_config_is_sent_in_full(tmp_path, tokens):
    """What a careless owner shares in memory, the receiver takes all the same."""
    config = FAMILIES["llama"]()
    config.tie_word_embeddings = False
    model = t.AutoModelForCausalLM.from_config(config).eval()
    model.lm_head.weight = model.model.embed_tokens.weight
    emulator = build(model, SPLIT, DROP)
    emulator.save(tmp_path / "e")
    opened = Emulator.load(tmp_path / "e")
    assert opened.plain
    with torch.no_grad():
        assert torch.equal(opened.model(tokens).logits, emulator.model(tokens).logits)


@pytest.mark.parametrize("blueprint", [DROP, SHARE], ids=["dropped", "shared"])
def test_the_adapter_shares_memory_with_nothing_outside_itself(model, tmp_path, blueprint):
    """In every family, of every bundle as it is loaded: by address, whatever names say."""
    build(model, SPLIT, blueprint).save(tmp_path / "e")
    loaded = Emulator.load(tmp_path / "e")
    inside = {id(tensor) for tensor in adapter_tensors(loaded.model, SPLIT).values()}
    state = loaded.model.state_dict(keep_vars=True).values()
    mine = [extent(tensor) for tensor in state if id(tensor) in inside]
    others = [extent(tensor) for tensor in state if id(tensor) not in inside]
    assert mine
    assert others
    assert not [(a, b) for a in mine for b in others if a[0] < b[1] and b[0] < a[1]]


def extent(tensor):
    """Where a tensor begins and ends in memory."""
    return tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()


def test_nothing_that_is_looked_up_by_token_is_trained(model, tmp_path):
    """In every family: what moves is in the layers at the ends, and no embedding table stands there."""
    build(model, SPLIT, DROP).save(tmp_path / "e")
    loaded = Emulator.load(tmp_path / "e")
    loaded.tokenizer = tiny_tokenizer()
    tables = {id(module.weight) for module in loaded.model.modules() if isinstance(module, nn.Embedding)}
    assert tables
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    examples = [Example((Piece(f"w{i} w{i + 1}", False), Piece(f" w{i + 2}", True))) for i in range(4, 12)]
    tune(loaded, examples, TuneConfig(steps=2, batch_size=4, max_length=16))
    state = loaded.model.state_dict(keep_vars=True)
    moved = {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not {id(state[name]) for name in moved} & tables


def test_a_table_of_embeddings_inside_an_adapter_layer_is_refused():
    model = tiny_model("llama")
    Decoder.of(model).layers[0].table = nn.Embedding(128, 32)

    with pytest.raises(
        UserError, match=r"'model.layers.0.table' is a table of embeddings.* cannot be tuned\.$"
    ):
        check_adapter(model, SPLIT)
    check_adapter(tiny_model("llama"), SPLIT)


def test_a_family_that_ties_layers_is_refused_where_one_of_them_is_the_adapter():
    """Zamba's: one transformer stands in several layers."""
    config = t.ZambaConfig(
        vocab_size=128, hidden_size=32, attention_hidden_size=64, attention_head_dim=16, intermediate_size=64,
        num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4, mamba_d_state=4, mamba_dt_rank=4,
        n_mamba_heads=2, use_mamba_kernels=False,
        layers_block_type=["mamba", "hybrid"] * 4,
    )  # fmt: skip
    model = t.AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=r"are one tensor, so tuning the adapter would change .*split there\.$"):
        build(model, Split(2, 2), tuple(map(Place, (2, 3, 4, 5))))
