"""Tokens that the model has no embeddings for: rows are padded with another, and refused if they hold one."""

from __future__ import annotations

import pytest

from offsite.audit import priming
from offsite.bundles.emulator import Emulator
from offsite.data.examples import Example, Piece
from offsite.data_owner.tune import TuneConfig, tune
from offsite.errors import UserError
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from tests.families import tiny_model, tiny_tokenizer
from tests.sample_bundles import is_sentence

CONFIG = TuneConfig(steps=1, batch_size=2, max_length=16)
EXAMPLES = [
    Example((Piece("w5" + " w6" * length, learnt=False), Piece(" w7", learnt=True)), where=f"row {length}")
    for length in (1, 5)
]


def _received(folder, **tokens):
    """An emulator from a sender who added tokens and did not resize the embeddings."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(tokens)
    build(tiny_model("llama"), Split(1, 1), (Place(3),), tokenizer=tokenizer).save(folder / "sent")
    return Emulator.load(folder / "sent")


def test_rows_are_padded_with_a_token_that_the_model_has(tmp_path):
    emulator = _received(tmp_path, pad_token="<new>")
    assert (emulator.tokenizer.pad_token_id, emulator.vocabulary, emulator.padding) == (128, 128, 0)
    priming.start(emulator, EXAMPLES, 16)
    tune(emulator, EXAMPLES, CONFIG)


@pytest.mark.parametrize("use", [
    lambda emulator: tune(emulator, EXAMPLES, CONFIG),
    lambda emulator: priming.start(emulator, EXAMPLES, 16),
], ids=["tune", "priming"])  # fmt: skip
def test_a_row_of_a_token_that_the_model_lacks_is_refused(tmp_path, use):
    emulator = _received(tmp_path, eos_token="<end>")
    with pytest.raises(
        UserError, match=r"row 1: the tokenizer's token '<end>' has the number 128, .* 128 tokens"
    ) as caught:
        use(emulator)
    assert is_sentence(str(caught.value))
