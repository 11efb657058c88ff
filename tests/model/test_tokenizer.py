"""A tokenizer that is written beside any family's model opens as it was."""

from __future__ import annotations

import json

import pytest
import transformers as t
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from offsite.bundles.emulator import Emulator
from offsite.errors import UserError
from offsite.model import checkpoint, loading
from offsite.model.split import Split
from offsite.model.tokenizer import opened
from offsite.owner.build import lossless
from tests.families import tiny_model, tiny_tokenizer

TEXTS = ["The cat sat on the mat, 12 w7 w9 Écoles <s>", "hello  world\n\tw5 don't", "ｗ８ ½"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def trained(model, trainer, pre, normalizer=None, decoder=None):
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre
    if normalizer:
        backend.normalizer = normalizer
    if decoder:
        backend.decoder = decoder
    backend.train_from_iterator(TEXTS, trainer)
    pad, bos, eos, unk = SPECIAL
    return t.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk
    )


def byte_level():
    return trained(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=290,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoder=decoders.ByteLevel(),
    )


def unigram():
    return trained(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
        pre_tokenizers.Metaspace(),
        normalizers.NFKC(),
        decoders.Metaspace(),
    )


def word_piece():
    return trained(
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer(vocab_size=80, special_tokens=SPECIAL, show_progress=False),
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(lowercase=True),
    )


def of_class(name):
    def make():
        learnt = json.loads(byte_level().backend_tokenizer.to_str())["model"]
        return getattr(t, name)(vocab=learnt["vocab"], merges=[tuple(merge) for merge in learnt["merges"]])

    return make


def altered():
    """A class of its own whose way of splitting was changed afterwards."""
    tokenizer = of_class("GPT2Tokenizer")()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    return tokenizer


KINDS = {
    "word-level": tiny_tokenizer,
    "byte-level": byte_level,
    "unigram": unigram,
    "word-piece": word_piece,
    "gpt2": of_class("GPT2Tokenizer"),
    "llama": of_class("LlamaTokenizer"),
    "qwen2": of_class("Qwen2Tokenizer"),
    "altered": altered,
}


@pytest.fixture(scope="module")
def kinds():
    return {kind: make() for kind, make in KINDS.items()}


def ids(tokenizer):
    return [tokenizer(text).input_ids for text in TEXTS]


def test_every_kind_opens_as_it_was_beside_every_family(model, kinds, tmp_path):
    for kind, tokenizer in kinds.items():
        checkpoint.write_description(tmp_path / kind, model, tokenizer)
        again = opened(tmp_path / kind)
        assert ids(again) == ids(tokenizer), kind
        assert again.special_tokens_map == tokenizer.special_tokens_map, kind


def test_a_bundle_and_a_folder_open_with_the_tokenizer_that_was_written(tmp_path, tokenizer):
    sent = lossless(tiny_model("qwen2"), Split(1, 1), tokenizer)
    sent.save(tmp_path / "sent")
    sent.export(tmp_path / "plain")
    for found in (Emulator.load(tmp_path / "sent").tokenizer, loading.load(str(tmp_path / "plain"))[1]):
        assert found("w7 w9 other").input_ids == [7, 9, 3]


def test_what_transformers_alone_would_open_as_another_is_said(tmp_path, capsys):
    checkpoint.write_description(tmp_path / "a", tiny_model("qwen2"), tiny_tokenizer())
    assert "PreTrainedTokenizerFast.from_pretrained" in capsys.readouterr().err
    checkpoint.write_description(tmp_path / "b", tiny_model("qwen3"), tiny_tokenizer())
    assert not capsys.readouterr().err


def test_one_that_would_open_as_another_is_not_written(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    real = tokenizer.save_pretrained

    def spoilt(folder, **kwargs):
        real(folder, **kwargs)
        file = folder / "tokenizer.json"
        file.write_text(file.read_text().replace('"w7": 7', '"w7": 8').replace('"w8": 8', '"w8": 7'))

    monkeypatch.setattr(tokenizer, "save_pretrained", spoilt)
    sent = lossless(tiny_model("llama"), Split(1, 1), tokenizer)
    with pytest.raises(UserError, match="would not open from its files as it is"):
        sent.save(tmp_path / "sent")
    assert not list(tmp_path.iterdir())
