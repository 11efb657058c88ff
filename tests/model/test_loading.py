"""Every word a user may give for a model: what it opens, and the one sentence where it cannot."""

from __future__ import annotations

import json
import math
import shutil
import time

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from offsite.errors import UserError
from offsite.model import loading
from tests.conftest import BY_FAMILY
from tests.families import FAMILIES, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    tiny_model("qwen3").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved model, to be spoilt."""
    return shutil.copytree(saved, tmp_path / "tiny")


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refusal(word):
    with pytest.raises(UserError) as caught:
        loading.load(str(word))
    said = str(caught.value)
    assert str(word) in said
    assert "\n" not in said
    assert said.endswith((".", "?"))
    return said


class TestLoad:
    def test_it_opens_what_was_saved(self, saved, tokens):
        model, tokenizer = loading.load(str(saved))
        assert not model.training
        assert model.device.type == loading.device().type
        expected = tiny_model("qwen3")(tokens).logits
        torch.testing.assert_close(model.cpu()(tokens).logits, expected, rtol=0, atol=1e-5)
        assert tokenizer("w7 w9").input_ids == [7, 9]

    @pytest.mark.parametrize("family", BY_FAMILY)
    def test_it_opens_every_family_tied_or_not(self, tmp_path, tokenizer, family):
        tiny_model(family).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        model, _ = loading.load(str(tmp_path))
        expected = tiny_model(family).state_dict()
        assert model.state_dict().keys() == expected.keys()
        assert all(torch.equal(value.cpu(), expected[name]) for name, value in model.state_dict().items())

    @pytest.mark.parametrize("card", ["{}", '{"format": "offsite-emulator\\/1"}', "half of one {"])
    def test_a_bundle_is_no_model_whatever_its_card_says(self, saved, tmp_path, card):
        folder = shutil.copytree(saved, tmp_path / "sent")
        (folder / "card.json").write_text(card)
        assert "sent' holds a card.json, as bundles do, and is no plain model" in refusal(folder)

    def test_a_link_to_nowhere_for_a_card_is_one(self, saved, tmp_path):
        folder = shutil.copytree(saved, tmp_path / "sent")
        (folder / "card.json").symlink_to("no-such-file")
        assert "holds a card.json" in refusal(folder)

    def test_it_keeps_the_checkpoints_precision(self, tmp_path, tokenizer):
        tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        assert loading.load(str(tmp_path))[0].dtype == torch.bfloat16

    def test_float64_becomes_float32_which_bundles_hold(self, tmp_path, tokenizer):
        tiny_model("llama").to(torch.float64).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        assert loading.load(str(tmp_path))[0].dtype == torch.float32

    def test_a_pad_id_beyond_the_vocabulary_is_dropped(self, folder):
        edit_config(folder, pad_token_id=49152)
        assert loading.load(str(folder))[0].config.pad_token_id is None

    @pytest.mark.parametrize(
        "values",
        [
            {"attn_implementation": "flash_attention_2"},
            {"output_attentions": True},
            {"use_cache": False},
            {"dtype": "float8_e4m3fn"},
        ],
        ids=str,
    )
    def test_settings_of_another_machine_do_not_stop_it(self, folder, tokens, values):
        edit_config(folder, **values)
        model = loading.load(str(folder))[0].cpu()
        expected = tiny_model("qwen3")(tokens).logits
        torch.testing.assert_close(model(tokens).logits, expected, rtol=0, atol=1e-5)

    def test_it_says_nothing_and_leaves_the_libraries_as_they_were(self, saved, capfd):
        transformers.logging.set_verbosity_warning()
        transformers.logging.enable_progress_bar()
        try:
            loading.load(str(saved))
            assert transformers.logging.get_verbosity() == transformers.logging.WARNING
            assert transformers.logging.is_progress_bar_enabled()
        finally:
            transformers.logging.set_verbosity_error()
            transformers.logging.disable_progress_bar()
        assert capfd.readouterr() == ("", "")


class TestWords:
    def test_a_folder_is_itself(self, saved):
        assert loading.resolve(str(saved)) == str(saved)

    def test_a_hub_id_is_itself(self):
        assert loading.resolve("owner/name-1.0_b") == "owner/name-1.0_b"

    def test_a_folder_goes_before_a_named_model(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "smollm2-135m").mkdir()
        assert loading.resolve("smollm2-135m") == "smollm2-135m"

    def test_a_near_miss_is_answered_with_the_name(self):
        with pytest.raises(UserError, match=r"'smollm-135m' is neither .* did you mean 'smollm2-135m'\?$"):
            loading.resolve("smollm-135m")

    @pytest.mark.parametrize("word", ["/no/such/place", "../nowhere", "a/b/c", "nothing at all"])
    def test_what_is_nothing_is_said_so(self, word):
        with pytest.raises(UserError, match="neither a folder, nor a named model, nor a hub id"):
            loading.resolve(word)

    def test_a_file_is_no_model(self, saved):
        with pytest.raises(UserError, match="is a file"):
            loading.resolve(str(saved / "config.json"))

    def test_fetch_knows_its_names(self):
        with pytest.raises(UserError, match=r"'gemma3'; did you mean 'gemma3-270m'\?"):
            loading.fetch("gemma3")

    def test_a_hub_id_that_cannot_be_had_names_itself_and_what_needs_no_network(self):
        said = refusal("nobody/no-such-model")
        assert "smollm2-135m" in said
        assert "local folder" in said


class TestRefusals:
    def test_a_folder_that_is_no_model(self, tmp_path):
        assert "no config.json" in refusal(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"model_type": "nope"}', '{"model_type": 3}', "\0"])
    def test_a_config_that_makes_no_sense(self, folder, text):
        (folder / "config.json").write_text(text)
        assert "config.json" in refusal(folder)

    def test_a_config_with_a_value_of_the_wrong_kind(self, folder):
        edit_config(folder, hidden_size="wide")
        assert "config.json" in refusal(folder)

    def test_code_of_its_own_is_not_run(self, folder):
        edit_config(
            folder,
            model_type="theirs",
            auto_map={"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"},
        )
        ran = folder / "ran"
        (folder / "theirs.py").write_text(f"open({str(ran)!r}, 'w').close()")
        assert "code of its own" in refusal(folder)
        assert not ran.exists()

    @pytest.mark.parametrize("kind", ["t5", "bart", "bert", "roberta", "vit", "clip"])
    def test_other_kinds_of_model(self, folder, kind):
        transformers.AutoConfig.for_model(kind).save_pretrained(folder)
        assert f"a {kind} model, not a causal language model" in refusal(folder)

    def test_quantised_weights(self, folder):
        edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
        assert "quantised" in refusal(folder)

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        assert "no safetensors weights" in refusal(folder)

    def test_pickled_weights_are_not_opened(self, folder):
        (folder / "model.safetensors").unlink()
        torch.save(tiny_model("qwen3").state_dict(), folder / "pytorch_model.bin")
        assert "no safetensors weights" in refusal(folder)

    @pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
    def test_truncated_weights(self, folder, keep):
        path = folder / "model.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
        assert "cut short or damaged" in refusal(folder)

    def test_weights_that_may_not_be_read(self, folder, monkeypatch):
        monkeypatch.setattr("os.access", lambda path, mode: "safetensors" not in str(path))
        assert "model.safetensors in" in (said := refusal(folder))
        assert "may not be read" in said

    def test_a_missing_shard(self, folder):
        (folder / "model.safetensors").unlink()
        tiny_model("qwen3").save_pretrained(folder, max_shard_size="50KB")
        shards = sorted(folder.glob("model-*.safetensors"))
        assert len(shards) > 1
        shards[0].unlink()
        assert "no safetensors weights that can be read" in refusal(folder)

    @pytest.fixture
    def shards(self, folder):
        (folder / "model.safetensors").unlink()
        tiny_model("qwen3").save_pretrained(folder, max_shard_size="100KB")
        return sorted(folder.glob("model-*.safetensors"))

    def test_a_missing_shard_is_named(self, folder, shards):
        shards[1].unlink()
        said = refusal(folder)
        assert "model.safetensors.index.json names" in said
        assert shards[1].name in said

    def test_a_shard_that_the_index_does_not_name(self, folder, shards):
        index = folder / "model.safetensors.index.json"
        data = json.loads(index.read_text())
        data["weight_map"] = {k: v for k, v in data["weight_map"].items() if v != shards[0].name}
        index.write_text(json.dumps(data))
        assert f"{shards[0].name}, which model.safetensors.index.json does not name" in refusal(folder)

    def test_shards_beside_a_whole_file(self, folder, shards):
        save_file(tiny_model("qwen3", seed=1).state_dict(), folder / "model.safetensors")
        said = refusal(folder)
        assert "model.safetensors and the shards that model.safetensors.index.json names" in said

    @pytest.mark.parametrize(
        "other", ["pytorch_model.bin", "model-old.safetensors", "consolidated.00.pth", "a.gguf"]
    )
    def test_what_is_not_read_beside_the_weights_is_said(self, folder, other, capsys):
        (folder / other).write_bytes(b"other")
        loading.load(str(folder))
        said = capsys.readouterr().err
        assert f"reading model.safetensors in {str(folder)!r}, and not {other}\n" == said

    def test_a_trainers_own_files_beside_the_weights_are_not_spoken_of(self, folder, capsys):
        for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "trainer_state.json"):
            (folder / name).write_bytes(b"other")
        loading.load(str(folder))
        assert not capsys.readouterr().err

    def test_ends_of_text_that_differ_are_said(self, folder, capsys):
        file = folder / "generation_config.json"
        for ends, said in (([2, 9], ""), (9, "says eos_token_id 9 and config.json 2")):
            file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": ends}))
            loading.load(str(folder))
            err = capsys.readouterr().err
            assert said in err
            assert bool(err) == bool(said)

    @pytest.mark.parametrize(
        ("family", "kind", "way"), [("phi3", "su", "'longrope'"), ("llama", "nope", "yarn")]
    )
    @pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
    def test_a_rope_type_that_is_not_known(self, tmp_path, tokenizer, family, kind, way, key):
        tiny_model(family).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        factors = {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4, "factor": 2.0, "rope_theta": 1e4}
        edit_config(tmp_path, **{key: {"rope_type": kind, **factors}})
        said = refusal(tmp_path)
        assert f"rope type {kind!r}" in said
        assert way in said

    def test_a_sentencepiece_tokenizer_without_sentencepiece(self, folder, monkeypatch):
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02")
        monkeypatch.setattr("offsite.model.fit.find_spec", lambda name: None)
        said = refusal(folder)
        assert "tokenizer.model" in said
        assert "pip install sentencepiece" in said

    def test_a_broken_index_of_shards(self, folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text("{}")
        assert "damaged" in refusal(folder)

    def test_missing_tensors_are_not_made_up(self, folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        gone = "model.layers.3.mlp.up_proj.weight"
        del tensors[gone]
        save_file(tensors, path, metadata={"format": "pt"})
        assert f"1 tensors are missing or of another shape, {gone}" in refusal(folder)

    def test_more_layers_than_the_config_says(self, folder):
        config = json.loads((folder / "config.json").read_text())
        kinds = config.get("layer_types", [])[:5]
        edit_config(folder, num_hidden_layers=5, **({"layer_types": kinds} if kinds else {}))
        said = refusal(folder)
        assert "have no place" in said
        assert "model.layers.5." in said

    def test_fewer_layers_than_the_config_says(self, folder):
        edit_config(folder, num_hidden_layers=9, layer_types=["full_attention"] * 9)
        said = refusal(folder)
        assert "missing" in said
        assert "model.layers.8." in said

    def test_a_list_of_layers_of_another_length_than_the_stack(self, folder):
        edit_config(folder, num_hidden_layers=9, layer_types=["full_attention"] * 8)
        said = refusal(folder)
        assert "num_hidden_layers" in said
        assert "layer_types" in said

    @pytest.mark.parametrize("family", ["llama", "qwen3"])
    def test_a_bias_of_attention_that_the_config_denies(self, tmp_path, tokenizer, family):
        config = FAMILIES[family]()
        config.attention_bias = True
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        edit_config(tmp_path, attention_bias=False)
        said = refusal(tmp_path)
        assert "32 tensors have no place" in said
        assert "_proj.bias" in said

    @pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt_neox"])
    def test_a_head_of_its_own_that_the_config_denies(self, tmp_path, tokenizer, family):
        config = FAMILIES[family]()
        config.tie_word_embeddings = False
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        edit_config(tmp_path, tie_word_embeddings=True)
        assert "says tie_word_embeddings: true, but its weights hold a head" in refusal(tmp_path)

    def test_a_head_that_the_config_asks_for_and_the_weights_lack(self, tmp_path, tokenizer):
        tiny_model("llama").save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        edit_config(tmp_path, tie_word_embeddings=False)
        assert "1 tensors are missing or of another shape, lm_head.weight" in refusal(tmp_path)

    def test_biases_that_the_config_denies(self, tmp_path, tokenizer):
        model = tiny_model("qwen2")
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        tensors["model.layers.0.self_attn.o_proj.bias"] = torch.ones(32)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert "1 tensors have no place" in refusal(tmp_path)

    def test_a_lora_beside_a_model_or_alone(self, folder):
        (folder / "adapter_config.json").write_text("{}")
        said = refusal(folder)
        assert "(config.json)" in said
        assert "(adapter_config.json)" in said
        (folder / "config.json").unlink()
        assert "no model; merge it" in refusal(folder)

    def test_tensors_of_another_shape(self, folder):
        edit_config(folder, intermediate_size=48)
        assert "24 tensors are missing or of another shape" in refusal(folder)

    @pytest.mark.parametrize("family", BY_FAMILY)
    def test_no_tokenizer(self, tmp_path, family):
        tiny_model(family).save_pretrained(tmp_path)
        assert "no tokenizer" in refusal(tmp_path)

    def test_a_broken_tokenizer(self, folder):
        (folder / "tokenizer.json").write_text("{")
        assert "no tokenizer" in refusal(folder)


@pytest.mark.slow
class TestReal:
    def continuation(self, name, prompt):
        start = time.monotonic()
        model, tokenizer = loading.load(name)
        seconds = time.monotonic() - start
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        return tokenizer.decode(tokens[0], skip_special_tokens=True), seconds

    def perplexity(self, name, text):
        model, tokenizer = loading.load(name)
        tokens = tokenizer(text, return_tensors="pt").input_ids.to(model.device)
        with torch.no_grad():
            return math.exp(model(tokens, labels=tokens).loss.item())

    def test_smollm2_knows_paris_and_loads_fast_the_second_time(self):
        loading.fetch("smollm2-135m")
        said, seconds = self.continuation("smollm2-135m", "The capital of France is")
        assert "Paris" in said
        assert seconds < 20
        _, tokenizer = loading.load("smollm2-135m")
        assert "<|im_start|>user\nHi<|im_end|>" in tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False
        )

    def test_gemma3_knows_france_and_reads_english(self):
        said, _ = self.continuation("gemma3-270m", "Paris is the capital of")
        assert "France" in said
        text = (
            "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France. It is "
            "named after the engineer Gustave Eiffel, whose company designed and built it from 1887 to 1889."
        )
        # Far higher without the start token, which its tokenizer must put.
        assert self.perplexity("gemma3-270m", text) < 20
