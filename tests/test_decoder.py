"""The laws of the one file that knows transformers' layout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers as t

import offsite
from offsite.decoder import Decoder, own, reduced_config, restack, skeleton
from offsite.errors import UserError
from tests.families import tiny_model

SOURCE = Path(offsite.__file__).parent


def logits(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


def test_keeping_every_layer_gives_the_same_logits(model, tokens):
    assert torch.equal(logits(restack(model, range(8)), tokens), logits(model, tokens))


def test_a_shorter_stack_survives_saving_and_loading(model, tokens, tmp_path):
    short = restack(model, [0, 1, 3, 6, 7])
    short.save_pretrained(tmp_path)
    again = t.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again, tokens), logits(short, tokens))
    assert not torch.equal(logits(short, tokens), logits(model, tokens))


def test_restacking_shares_storage_and_owning_ends_that(llama):
    short = restack(llama, [0, 1, 4, 7])
    name = "model.layers.2.mlp.up_proj.weight"
    theirs = llama.model.layers[4].mlp.up_proj.weight
    assert short.state_dict()[name].data_ptr() == theirs.data_ptr()
    own(short, [name])
    assert short.state_dict()[name].data_ptr() != theirs.data_ptr()
    assert torch.equal(short.state_dict()[name], theirs)


def test_a_layer_named_twice_is_one_set_of_parameters(model):
    layers = Decoder.of(restack(model, [0, 1, 4, 4, 7])).layers
    pairs = zip(layers[2].parameters(), layers[3].parameters(), strict=True)
    assert all(a is b for a, b in pairs)


def test_lists_with_an_entry_a_layer_follow_the_order():
    config = t.Gemma3TextConfig(num_hidden_layers=8, vocab_size=16)
    reduced = reduced_config(config, [0, 5, 6])
    assert reduced.layer_types == [config.layer_types[i] for i in (0, 5, 6)]
    assert (config.num_hidden_layers, reduced.num_hidden_layers) == (8, 3)


def test_a_skeleton_takes_no_memory(llama):
    assert {p.device.type for p in skeleton(llama.config).parameters()} == {"meta"}


def test_an_encoder_decoder_is_refused():
    config = t.T5Config(vocab_size=32, d_model=16, d_ff=16, num_layers=4, num_heads=2, d_kv=8)
    with pytest.raises(UserError, match="'t5'"):
        Decoder.of(t.T5ForConditionalGeneration(config))


def test_a_model_whose_layer_kind_follows_from_its_number_is_refused():
    config = t.Qwen2MoeConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_experts=4,
        shared_expert_intermediate_size=8, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=2,
        decoder_sparse_step=2,
    )  # fmt: skip
    with pytest.raises(UserError, match="would change its kind"):
        restack(t.AutoModelForCausalLM.from_config(config), [0, 2, 3, 5])


def test_a_model_that_scales_by_layer_number_is_refused():
    model = tiny_model("gpt2")
    model.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(UserError, match="scale_attn_by_inverse_layer_idx"):
        restack(model, [0, 1, 7])


def test_no_other_file_knows_the_layout():
    layout = re.compile(r"layer_idx|layer_id\b|model\.layers|\.transformer\.h\b|_no_split_modules")
    knowing = [p.name for p in SOURCE.rglob("*.py") if layout.search(p.read_text())]
    assert knowing == ["decoder.py"]
