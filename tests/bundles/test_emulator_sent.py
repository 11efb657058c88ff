"""What goes along with an emulator that is sent, and what is not sent."""

from __future__ import annotations

import pytest
import torch
import transformers as t

import offsite
from offsite.bundles.emulator import Emulator
from offsite.errors import UserError
from offsite.owner.build import build
from tests.bundles.test_emulator import DROP, SPLIT, UP, emulator
from tests.families import tiny_model, tiny_tokenizer


def test_what_it_says_of_generation_goes_along(tmp_path):
    sent = emulator()
    sent.model.generation_config = t.GenerationConfig(max_new_tokens=7, eos_token_id=[2, 5])
    sent.save(tmp_path / "emulator")
    Emulator.load(tmp_path / "emulator").export(tmp_path / "dense")
    told = t.GenerationConfig.from_pretrained(tmp_path / "dense")
    assert (told.max_new_tokens, told.eos_token_id) == (7, [2, 5])


def test_several_chat_templates_go_along(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "other": "{{ messages }}"}
    emulator(tokenizer=tokenizer).save(tmp_path / "emulator")
    assert Emulator.load(tmp_path / "emulator").tokenizer.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_precision_is_the_weights_own_whatever_the_config_said(tmp_path, dtype):
    sent = build(tiny_model("llama").to(dtype), SPLIT, DROP, tokenizer=tiny_tokenizer())
    sent.save(tmp_path / "emulator")
    assert Emulator.load(tmp_path / "emulator").model.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_what_is_written_of_any_precision_is_taken_or_refused_before(model, tmp_path, dtype):
    model.to(dtype)
    if dtype == torch.float64:
        with pytest.raises(UserError, match=r"is torch\.float64 .* `model\.to\(torch\.float32\)`"):
            offsite.compress(model, tiny_tokenizer(), "uniform", 0.5)
        with pytest.raises(UserError, match=r"is torch\.float64"):
            build(model, SPLIT, DROP).save(tmp_path / "emulator")
        assert not list(tmp_path.iterdir())
        return
    offsite.compress(model, tiny_tokenizer(), "uniform", 0.5).emulator.save(tmp_path / "emulator")
    assert Emulator.load(tmp_path / "emulator").model.dtype == dtype


def test_a_model_of_several_precisions_is_not_sent(llama, tmp_path):
    llama.to(torch.bfloat16).model.norm.float()
    with pytest.raises(UserError, match=r"'model\.norm\.weight' is torch\.float32 and its type"):
        build(llama, SPLIT, DROP).save(tmp_path / "emulator")
    assert not list(tmp_path.iterdir())


def test_a_model_that_holds_nan_is_not_sent(tmp_path):
    sent = emulator()
    with torch.no_grad():
        sent.model.get_parameter(UP).fill_(float("nan"))
    with pytest.raises(UserError, match=f"'{UP}' holds NaN or infinity"):
        sent.save(tmp_path / "emulator")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_files_that_no_receiver_would_take_is_not_sent(tmp_path, monkeypatch):
    sent = emulator()
    real = sent.tokenizer.save_pretrained

    def odd(folder, **kwargs):
        real(folder, **kwargs)
        (folder / "bpe.codes").write_text("a b")

    monkeypatch.setattr(sent.tokenizer, "save_pretrained", odd)
    with pytest.raises(UserError, match=r"'bpe\.codes', which no emulator may hold"):
        sent.save(tmp_path / "emulator")
    assert not list(tmp_path.iterdir())
