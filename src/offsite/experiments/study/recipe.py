"""The recipe of a study: a small YAML file, checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic import model_validator as after

from offsite.data import DEFAULT_TEXT, tasks
from offsite.data.rows import read_utf8
from offsite.data_owner.config import TuneConfig
from offsite.errors import UserError, brief, did_you_mean
from offsite.experiments.study.chain import Chain, word_of
from offsite.model import loading
from offsite.model.split import Split
from offsite.owner.methods.base import check_keep


def _listed(value: object) -> object:
    """One of a kind needs no list."""
    return value if isinstance(value, list | tuple) else [value]


def _joined(value: object) -> object:
    """Several texts are words with commas between them."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _once_each(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise UserError(f"{value!r} is named twice; name it once.")
    return values


def _fit(check: Callable[[Any], object]) -> AfterValidator:
    """Let a value pass that `check` does not refuse."""

    def passed(value: Any) -> Any:
        check(value)
        return value

    return AfterValidator(passed)


_Several = (BeforeValidator(_listed), AfterValidator(_once_each), Field(min_length=1))
_Method = Annotated[str, BeforeValidator(word_of), _fit(Chain.of)]
_Keep = Annotated[float, _fit(check_keep)]
_Task = Annotated[str, _fit(tasks.check)]
_Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Cell(NamedTuple):
    """What is tuned once: one method, or none, at one keep with one seed, and the tasks that then score it."""

    seed: int
    tasks: tuple[str, ...]
    chain: Chain | None = None
    """None: what no method has a part in."""
    keep: float | None = None
    """None: the method fixes its own size."""

    def __str__(self) -> str:
        return f"{self.what}, seed {self.seed}"

    @property
    def what(self) -> str:
        """In words, but for the seed."""
        what = self.chain.word if self.chain else "the model itself"
        keep = "" if self.keep is None else f" at keep {self.keep:g}"
        return f"{what}{keep} on {', '.join(self.tasks)}"


class Recipe(BaseModel):
    """What a study asks; each method, at each keep it has a use for, on each task with each seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, _fit(loading.check)]
    """A folder, a named model or a hub id."""
    methods: Annotated[tuple[_Method, ...], *_Several]
    """Words, or mappings of a method and its knobs (see `Chain`)."""
    keeps: Annotated[tuple[_Keep, ...], *_Several] = (0.7,)
    """Shares of the middle's parameters to store; methods that fix their own size go without."""
    tasks: Annotated[tuple[_Task, ...], *_Several]
    """Names of tasks, or files of questions."""
    train: _Task | None = None
    """What to tune on for every task; none: each task's own train split."""
    seeds: Annotated[tuple[_Seed, ...], *_Several] = (0,)
    epochs: float | None = None
    """How often each tuning sees each row, at the most; without epochs and steps as `tune` has it."""
    steps: int | None = None
    """Optimizer steps of each tuning, at the most, in place of epochs."""
    lr: float | None = None
    """Peak learning rate of all tunings; none: chosen once in the full model, for each set of rows tuned on."""
    batch_size: int = TuneConfig.batch_size
    lora_rank: int | None = None
    """Train a LoRA of this rank; none: whole layers."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many questions of each task."""
    text: Annotated[str, BeforeValidator(_joined), _fit(tasks.check_text)] = DEFAULT_TEXT
    """Public texts that methods read and distillation trains on, listed or by commas; see `text_of`."""
    blocks: Annotated[int, Field(ge=1)] | None = None
    """How many blocks of it a method reads; none: the method's number."""
    length: Annotated[int, Field(ge=2)] | None = None
    """Tokens of a block; none: the method's number."""
    bottom: int = 2
    top: int = 2

    @after(mode="after")
    def _sound(self) -> Recipe:
        """Each value is sound by itself; so are they together."""
        self.config(0)
        assert self.split
        _once_each(tuple(Path(word).stem for word in self.tasks))
        return self

    @property
    def split(self) -> Split:
        """Where the stack is cut."""
        return Split(self.bottom, self.top)

    @property
    def chains(self) -> list[Chain]:
        """The methods, read."""
        return [Chain.of(word) for word in self.methods]

    def config(self, seed: int) -> TuneConfig:
        """Of each tuning with this seed."""
        return TuneConfig(
            epochs=self.epochs, steps=self.steps, lr=self.lr, batch_size=self.batch_size,
            lora_rank=self.lora_rank, seed=seed,
        )  # fmt: skip

    def text_of(self, cell: Cell) -> str:
        """The public text for a cell: mixtures without the tasks that it trains on or scores."""
        return tasks.without(self.text, [*cell.tasks, *([self.train] if self.train else [])])

    @property
    def texts(self) -> list[str]:
        """The public texts of all cells that read one, each once."""
        return list(
            dict.fromkeys(self.text_of(cell) for cell in self.cells() if cell.chain and cell.chain.reads)
        )

    def cells(self) -> Iterator[Cell]:
        """In the order of work; what is tuned on the same data is one cell for all tasks."""
        for seed in self.seeds:
            for asked in [self.tasks] if self.train else [(task,) for task in self.tasks]:
                yield Cell(seed, asked)
                for keep in self.keeps:
                    yield from (Cell(seed, asked, chain, keep) for chain in self.chains if chain.budgeted)
                yield from (Cell(seed, asked, chain) for chain in self.chains if not chain.budgeted)


def read(path: Path, over: Sequence[str] = ()) -> Recipe:
    """The recipe in the file `path`, `over` which `key=value` words go (values as in YAML).

    Raises:
        UserError: what is no YAML, with its line; keys that are not known, values that make no sense.
    """
    lines, values = _parsed(path)
    for word in over:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"A value of the recipe is set as key=value, not {word!r}.")
        values[key] = _loaded(value, f"--set {word}")
        lines.pop(key, None)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _refused(error, path.name, lines) from error


def _parsed(path: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """The lines of the keys, and the values by key."""
    text = read_utf8(path)
    values = _loaded(text, path.name)
    if not isinstance(values, dict):
        raise UserError(f"{path.name} holds no recipe; write lines such as 'model: smollm2-135m'.")
    lines: dict[str, int] = {}
    root = yaml.compose(text, yaml.SafeLoader)
    assert root is not None, "a mapping was loaded"
    for key, _ in root.value:
        line = key.start_mark.line + 1
        if lines.setdefault(str(key.value), line) != line:
            raise UserError(f"{path.name}, line {line}: {key.value!r} stands there twice; name it once.")
    return lines, {str(key): value for key, value in values.items()}


def _loaded(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        why = brief(getattr(error, "problem", None) or error)
        raise UserError(f"{where}{line}: not well-formed YAML ({why}).") from error


def _refused(error: ValidationError, name: str, lines: dict[str, int]) -> UserError:
    """The first thing that is wrong, in a sentence with its line."""
    wrong = error.errors()  # of a mistyped key and the key that it stands for, the former
    first = next((each for each in wrong if each["type"] == "extra_forbidden"), wrong[0])
    cause = first.get("ctx", {}).get("error")
    key = str(first["loc"][0] if first["loc"] else cause).partition(" ")[0]  # a refusal may begin with its key
    where = f"{name}, line {lines[key]}" if key in lines else name
    if first["type"] == "extra_forbidden":
        return UserError(f"{where}: there is no {key!r} in a recipe; {did_you_mean(key, Recipe.model_fields)}")
    if first["type"] == "missing":
        return UserError(f"{where}: the recipe lacks {key!r}; add a line '{key}: ...'.")
    if isinstance(cause, UserError):
        return UserError(f"{where}: {cause}")
    found = brief(first["input"], 60)
    return UserError(f"{where}: {key}: {brief(first['msg'])}, found {found!r}.")
