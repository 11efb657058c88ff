"""The whole corpus: importing a file of attacks registers them."""

from tests.hostile import (
    attacks_card,
    attacks_config,
    attacks_files,
    attacks_signature,
    attacks_tokenizer,
    attacks_weights,
    attacks_words,
)
from tests.hostile.corpus import ATTACKS

__all__ = [
    "ATTACKS",
    "attacks_card",
    "attacks_config",
    "attacks_files",
    "attacks_signature",
    "attacks_tokenizer",
    "attacks_weights",
    "attacks_words",
]
