"""Tokenizers, opened as their files say, and written so that they open as they were."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from offsite.errors import UserError

SETTINGS = "tokenizer_config.json"
_VERBATIM = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that take tokenizer.json as it is; others set how texts are split anew."""


def opened(where: str | Path, *, local: bool = False) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a folder or of a hub id as what its settings call it."""
    # AutoTokenizer does not heed the settings for some model types (qwen2), and takes the type's own class.
    settings = get_tokenizer_config(where, local_files_only=local)
    verbatim = settings.get("tokenizer_class") in _VERBATIM
    kind: Any = PreTrainedTokenizerFast if verbatim else AutoTokenizer
    found: PreTrainedTokenizerBase = kind.from_pretrained(
        where, trust_remote_code=False, local_files_only=local
    )
    return found


def settle(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Have `tokenizer`, written into its model's `folder`, open there as it was; a UserError if it cannot."""
    auto: Any = AutoTokenizer
    if _opens(folder, tokenizer, auto.from_pretrained):
        return
    told = json.loads((folder / SETTINGS).read_text(encoding="utf-8")) | {"tokenizer_class": _VERBATIM[0]}
    (folder / SETTINGS).write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if not _opens(folder, tokenizer, opened):
        raise UserError(
            f"The tokenizer, a {type(tokenizer).__name__}, would not open from its files as it is; convert it "
            "to a PreTrainedTokenizerFast."
        )
    if not _opens(folder, tokenizer, auto.from_pretrained):
        sys.stderr.write(
            "AutoTokenizer would open this tokenizer as its model type's own and split texts in another way; "
            "use PreTrainedTokenizerFast.from_pretrained outside offsite.\n"
        )


def _opens(folder: Path, tokenizer: PreTrainedTokenizerBase, how: Any) -> bool:
    try:
        return _behaviour(how(folder)) == _behaviour(tokenizer)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException:  # the tokenizers library panics with what is no Exception
        return False


def _behaviour(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return all that decides which ids a text becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rest: dict[str, Any] = {"class": type(tokenizer), "vocabulary": tokenizer.get_vocab()}
    else:
        of_a_call = ("truncation", "padding")  # set anew by each
        rest = {key: value for key, value in json.loads(backend.to_str()).items() if key not in of_a_call}
    return rest | {"special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()}}
