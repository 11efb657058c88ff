"""The laws of the one file that knows transformers' layout."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers as t

import offsite
from offsite.bundles.aliases import aliases
from offsite.errors import UserError
from offsite.model.decoder import Decoder, StandIns, own, restack, skeleton
from offsite.model.depth import reduced_config
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


def test_lists_as_long_as_the_stack_by_chance_stay_whole():
    ids, factors = [1, 5, 6, 7, 9], [1.0, 0.5, 2.0, 1.0, 3.0]
    config = t.FalconH1Config(num_hidden_layers=5, vocab_size=16, eos_token_id=ids, ssm_multipliers=factors)
    config.architectures = ["A", "B", "C", "D", "E"]
    reduced = reduced_config(config, [0, 2, 4])
    assert reduced.num_hidden_layers == 3
    assert (reduced.eos_token_id, reduced.ssm_multipliers) == (ids, factors)
    assert reduced.architectures == config.architectures


def test_ends_of_text_as_many_as_layers_go_along(model):
    model.config.eos_token_id = list(range(2, 10))
    assert restack(model, [0, 3, 7]).config.eos_token_id == list(range(2, 10))


def test_a_skeleton_takes_no_memory(llama):
    assert {p.device.type for p in skeleton(llama.config).parameters()} == {"meta"}


def test_an_encoder_decoder_is_refused():
    config = t.T5Config(vocab_size=32, d_model=16, d_ff=16, num_layers=4, num_heads=2, d_kv=8)
    with pytest.raises(UserError, match="'t5'"):
        Decoder.of(t.T5ForConditionalGeneration(config))


def test_the_stack_is_found_where_layers_have_a_class_of_another_name(llama):
    for layer in llama.model.layers:  # as FSDP leaves them
        layer.__class__ = type("FSDPLlamaDecoderLayer", (type(layer),), {})
    assert Decoder.of(llama).path == "model.layers"


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


UPS = {  # the linears into the channels, of those that have not one gate and one up
    "gpt2": {"mlp.c_fc": 1},
    "opt": {"fc1": 1},
    "bloom": {"mlp.dense_h_to_4h": 1},
    "gpt_neox": {"mlp.dense_h_to_4h": 1},
    "phi3": {"mlp.gate_up_proj": 2},
}
FUSED = {"bloom": 2, "gpt2": 2, "gpt_neox": 2, "phi3": 2}  # linears of an attention that has q, k, v in one


def test_a_layers_linears_are_its_attentions_and_its_feed_forwards(model, family):
    decoder = Decoder.of(model)
    attention, feed = decoder.attention(3), decoder.feed_forward(3)
    assert feed.ups == UPS.get(family, {"mlp.gate_proj": 1, "mlp.up_proj": 1})
    assert [*attention, *feed.ups, feed.down] == list(decoder.linears(3))
    assert len(attention) == FUSED.get(family, 4)


def test_a_matrix_is_out_by_in_and_a_view_of_the_weight(model):
    decoder = Decoder.of(model)
    for name in decoder.linears(3):
        linear, matrix = decoder.layers[3].get_submodule(name), decoder.matrix(3, name)
        bias = getattr(linear, "bias", None)
        inputs = torch.randn(5, matrix.shape[1], generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert torch.allclose(linear(inputs), torch.nn.functional.linear(inputs, matrix, bias), atol=1e-5)
        assert matrix.data_ptr() == linear.get_parameter("weight").data_ptr()
        assert not matrix.requires_grad


def test_a_channel_is_its_rows_and_its_column_and_nothing_else(model):
    """Without the rows of a channel (weight and bias) what its column reads is zero, and only that."""
    decoder = Decoder.of(model)
    feed, gone = decoder.feed_forward(3), torch.tensor([0, 5, 63])
    down, read = decoder.layers[3].get_submodule(feed.down), []
    inputs = torch.randint(3, 120, (2, 6), generator=torch.Generator().manual_seed(0))
    down.register_forward_pre_hook(lambda _, args: read.append(args[0].detach().reshape(-1, feed.width)))
    logits(model, inputs)
    for up in feed.ups:
        rows = feed.rows(up, gone)
        decoder.matrix(3, up)[rows] = 0
        bias = getattr(decoder.layers[3].get_submodule(up), "bias", None)
        if bias is not None:
            bias.detach()[rows] = 0
    logits(model, inputs)
    before, after = read
    stays = torch.ones(feed.width, dtype=torch.bool)
    stays[gone] = False
    assert before[:, gone].abs().sum() > 0
    assert not after[:, gone].any()
    assert torch.allclose(before[:, stays], after[:, stays], atol=1e-6)


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_experts_are_no_plain_feed_forward(kind):
    small = dict(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    config = {
        "mixtral": lambda: t.MixtralConfig(**small, num_local_experts=2),
        "qwen2_moe": lambda: t.Qwen2MoeConfig(
            **small, num_experts=2, moe_intermediate_size=8, shared_expert_intermediate_size=8
        ),
    }[kind]()
    decoder = Decoder.of(t.AutoModelForCausalLM.from_config(config))
    with pytest.raises(UserError, match=f"Layer 1 of this '{kind}' model has no plain feed-forward"):
        decoder.feed_forward(1)


FUNCTIONS = {3: lambda states: 0.5 * states, 4: lambda states: states.flip(-1), 6: torch.tanh}


def replaced(model, functions):
    """`model`, with each of the functions put for what the layer of its index gives, whatever that is."""

    def put(function):
        def hook(_, args, output):
            return (function(args[0]), *output[1:]) if isinstance(output, tuple) else function(args[0])

        return hook

    model = copy.deepcopy(model)
    for index, function in functions.items():
        Decoder.of(model).layers[index].register_forward_hook(put(function))
    return model


class TestStandIns:
    def test_they_are_their_layers_replaced_by_hand(self, model, tokens):
        whole, wanted = logits(model, tokens), logits(replaced(model, FUNCTIONS), tokens)
        with StandIns(model).within(FUNCTIONS):
            assert torch.equal(logits(model, tokens), wanted)
        assert not torch.allclose(wanted, whole)
        assert torch.equal(logits(model, tokens), whole)

    def test_a_layer_that_another_stands_for_rests(self, model, tokens):
        short = restack(model, [0, 1, 3, 5, 7])
        whole, stands = logits(short, tokens), StandIns(model)
        for index in (2, 4, 6):
            for tensor in Decoder.of(model).tensors(index).values():
                tensor.data.fill_(float("nan"))
        with stands.within(dict.fromkeys((2, 4, 6), torch.clone)):
            assert torch.equal(logits(model, tokens), whole)

    def test_afterwards_the_model_is_as_it_was_also_after_an_exception(self, model, tokens):
        def fail(states):
            raise KeyboardInterrupt

        whole, stands, layers = logits(model, tokens), StandIns(model), Decoder.of(model).layers
        with pytest.raises(KeyboardInterrupt), stands.within(FUNCTIONS | {5: fail}):
            logits(model, tokens)
        assert not any("forward" in vars(layer) or layer._forward_hooks for layer in layers)
        assert torch.equal(logits(model, tokens), whole)

    def test_one_mixture_after_another_is_each_its_own(self, llama, tokens):
        stands, halves = (
            StandIns(llama),
            [dict(list(FUNCTIONS.items())[part]) for part in (slice(2), slice(2, 3))],
        )
        for functions in halves:
            with stands.within(functions):
                assert torch.equal(
                    logits(llama, tokens), logits(replaced(tiny_model("llama"), functions), tokens)
                )

    @pytest.mark.parametrize("family", ["llama", "bloom"])
    def test_a_gradient_flows_through_them(self, model, tokens):
        scale = torch.ones((), requires_grad=True)
        with StandIns(model).within({3: lambda states: scale * states}):
            model(tokens).logits.square().mean().backward()
        assert scale.grad != 0


def test_no_other_file_knows_the_layout():
    layout = re.compile(r"layer_idx|layer_id\b|model\.layers|\.transformer\.h\b|_no_split_modules")
    knowing = [p.name for p in SOURCE.rglob("*.py") if layout.search(p.read_text())]
    assert knowing == ["decoder.py"]


def test_stand_ins_put_back_what_another_library_had_put_there():
    model = tiny_model("llama")
    layer, stand_ins = Decoder.of(model).layers[3], StandIns(model)
    layer.forward = patched = layer.forward
    with stand_ins.within({3: lambda states: states}):
        assert layer.forward is not patched
    assert layer.forward is patched


def test_a_skeleton_draws_no_random_numbers_and_shares_what_the_model_shares(model, monkeypatch):
    """On the meta device they took most of the time in which a bundle was opened."""
    for name in ("uniform_", "normal_", "trunc_normal_"):
        monkeypatch.setattr(torch.Tensor, name, None, raising=False)
    bare = skeleton(model.config)
    assert aliases(bare) == aliases(model)
    assert {n: x.shape for n, x in bare.state_dict().items()} == {
        n: x.shape for n, x in model.state_dict().items()
    }
    assert not bare.training
