"""The whole corpus: importing a file of attacks registers them."""

from tests.hostile import attacks_card, attacks_config, attacks_files, attacks_tokenizer, attacks_weights
from tests.hostile.corpus import ATTACKS

__all__ = ["ATTACKS", "attacks_card", "attacks_config", "attacks_files", "attacks_tokenizer", "attacks_weights"]
