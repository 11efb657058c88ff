"""One training run for emulators of every size: a harmonizer and a score for each layer of the middle.

Dynamic LayerReplace, ScaleOT (arXiv 2412.09812): at each step about half of the layers are replaced by their
harmonizers, which are trained to make up for that; what replacements cost changes the layers' scores.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from offsite.errors import UserError
from offsite.model.decoder import Decoder, StandIns, output_at
from offsite.model.harmonizers import Harmonizer, normed
from offsite.model.modes import frozen
from offsite.model.precision import autocast
from offsite.model.split import Split
from offsite.owner.components import root
from offsite.owner.importance import Importance, Judging
from offsite.owner.parts import Parts
from offsite.owner.records import Factors, TrainingCurves
from offsite.owner.sobolev import entering, gradients_apart, twice_differentiable
from offsite.owner.states import hidden_states
from offsite.progress import track
from offsite.training.checkpoint import optimizer_state, restore_optimizer
from offsite.training.loop import run

TRAINED = "harmonizers"
"""The part of a profile with what `harmonize` returns."""
STATE = "training"
"""The part that an interrupted run goes on from."""
_EVERY = 10  # steps between two checkpoints
_ROOM = 2 << 30  # bytes of moments at once; more layers than fit are fitted after further passes
_LEARNT, _JUDGED = 0.5, 0.25  # of the positions have their loss taken, for the head costs as much as ten layers


@dataclass(frozen=True)
class Harmonizing(Judging):
    """How harmonizers and scores are trained."""

    steps: Annotated[int, "steps"] = 150
    """Training steps: a batch for the harmonizers, and half a batch of held-out text for the scores."""
    batch_size: Annotated[int, "blocks"] = 8
    """Blocks of text in a batch."""
    lr: Annotated[float, "learning rate"] = 1e-3
    """Peak learning rate of AdamW, for the harmonizers; warmed up over a twentieth, then a cosine to zero."""
    rank: Annotated[int, "dimensions"] = 128
    """The harmonizers' inner width, at most the model's."""
    regressed: Annotated[int, "blocks"] = 256
    """Blocks of text on which harmonizers are fitted to their layers by least squares before the first step; 0:
    they start as the identity."""
    lm: Annotated[float, "weight"] = 0.0
    """Weight of the mixed stack's language-modelling loss; as published there is no other."""
    align: Annotated[float, "weight"] = 1.0
    """Weight of the distance of the mixed stack's states from the full model's, after each layer: relative
    squares, mean over layers and tokens."""
    sobolev: Annotated[float, "weight"] = 0.0
    """Weight of the distance of the gradients that reach the layers through the mixed stack from the full
    model's: relative squares, mean over layers. It makes a step several times as long."""
    seed: Annotated[int, "integer"] = 0
    """Seed of the draws and of the text's order; where `regressed` is 0, also of the harmonizers' start."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "rank", "groups", "score_step"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be above zero, not {getattr(self, name)}.")
        if self.candidates < 2:
            raise UserError(f"candidates are held against each other: take 2 or more, not {self.candidates}.")
        for name in ("regressed", "alone", "lm", "align", "sobolev"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be zero or above, not {getattr(self, name)}.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be from 0 to {2**32 - 1}, not {self.seed}.")
        if not self.lm + self.align + self.sobolev:
            raise UserError(
                "lm, align and sobolev are all 0, so there is nothing to train on; raise one of them."
            )


def harmonize(
    model: PreTrainedModel, split: Split, tokens: Tensor, config: Harmonizing, parts: Parts
) -> dict[str, Tensor]:
    """Train on `tokens` (blocks, length), going on from what `parts` hold of an interrupted run.

    Returns the tensors of the part `TRAINED`: `Factors` by the number of each layer of the middle, up (width,
    rank) and down (rank, width), `TrainingCurves`, and the last `scores` (layers). `model` stays as it is.
    Raises UserError for too little text.
    """
    check_text(tokens, config)
    with frozen(model):  # gradients of its own parameters would cost half of each step
        return _trained(_Training(model, split, tokens, config, parts))


def check_text(tokens: Tensor, config: Harmonizing) -> None:
    """Refuse blocks that are too few or too short to train on."""
    count, length = tokens.shape
    if count - _held(count) < config.batch_size or length < 2:
        raise UserError(
            f"{count} blocks of {length} tokens are too few for batches of {config.batch_size} and as much to "
            "judge on; give more text, or ask for more and shorter blocks."
        )


def _trained(training: _Training) -> dict[str, Tensor]:
    if STATE in training.parts.names:
        training.restore()
    else:
        training.start()
        training.check()
    run(training, training.config.steps, every=_EVERY, what="Training harmonizers")
    return training.result()


def reduced_rank(moment: Tensor, cross: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors up (out, rank) and down (rank, in) of the linear map nearest in least squares.

    `moment` is E[x xT] (in, in), `cross` E[x yT] (in, out). (Reduced-rank regression, Izenman 1975.)
    """
    lower = root(moment)
    fitted = torch.linalg.solve_triangular(lower, cross.double(), upper=False)  # (in, out)
    u, s, vt = torch.linalg.svd(fitted, full_matrices=False)
    down = torch.linalg.solve_triangular(lower.T, u[:, :rank], upper=True).T  # (rank, in)
    size = s[:rank].sqrt()
    return (vt[:rank].T * size).float(), (down * size[:, None]).float()


class _Training:
    """A run, between any two of its steps; the seed and the number of a step decide what it draws."""

    def __init__(
        self, model: PreTrainedModel, split: Split, tokens: Tensor, config: Harmonizing, parts: Parts
    ) -> None:
        self.model, self.config, self.parts = model, config, parts
        self.done, self.over = 0, False
        self.layers = split.middle(len(Decoder.of(model)))
        self.stand_ins = StandIns(model)
        held = _held(len(tokens))
        self.held, self.tokens = tokens[-held:], tokens[:-held]
        self.harmonizers = _fresh(model, len(self.layers), config)
        trained = torch.nn.ModuleList(self.harmonizers)
        self.parameters = dict(trained.named_parameters())
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=config.lr, weight_decay=0.0)
        self.importance = Importance(len(self.layers), config)
        self.curves = {
            "loss": torch.zeros(config.steps),
            "judged": torch.zeros(config.steps),
            "scores": torch.zeros(config.steps, len(self.layers)),
        }

    @torch.no_grad()
    def start(self) -> None:
        """Before the first step: harmonizers by least squares, scores by replacing one layer at a time."""
        if self.config.regressed:
            at_once = max(1, _ROOM // (8 * self.model.config.hidden_size**2))
            for first in range(0, len(self.layers), at_once):
                self._regress(range(first, min(first + at_once, len(self.layers))))
        if not self.config.alone:
            return
        batch, every = self.held[: self.config.alone].to(self.model.device), torch.ones(len(self.layers)) > 0
        columns = torch.arange(batch.shape[1] - 1, device=batch.device)
        stays = [every, *(every & (torch.arange(len(every)) != one) for one in range(len(every)))]
        judged = track(stays, "Judging layers", len(stays))
        losses = torch.stack([self._loss(batch, columns, stay).cpu() for stay in judged])
        self.importance.start(losses[1:] - losses[0])

    @torch.no_grad()
    def _regress(self, some: range) -> None:
        """Start some harmonizers at the linear maps of half their rank nearest to what their layers do.

        ReLU passes a linear map where each direction stands twice, once turned round.
        """
        width = self.model.config.hidden_size
        moments, crosses = torch.zeros(2, len(some), width, width)
        for states in hidden_states(self.model, self.tokens[: self.config.regressed], "Reading states"):
            for number, layer in enumerate(self.layers[some.start : some.stop]):
                before, after = (state.flatten(0, 1).float() for state in states[layer : layer + 2])
                size = after.square().mean(-1, keepdim=True).sqrt()  # no token counts more for its size
                inputs, wanted = normed(before) / size, (after - before) / size
                moments[number] += (inputs.T @ inputs).cpu()
                crosses[number] += (inputs.T @ wanted).cpu()
        fresh = self.harmonizers[some.start : some.stop]
        fitted = track(zip(fresh, moments, crosses, strict=True), "Fitting harmonizers", len(fresh))
        for harmonizer, moment, cross in fitted:
            up, down = reduced_rank(moment, cross, len(harmonizer.down.weight) // 2)
            harmonizer.down.weight[: 2 * len(down)] = torch.cat([down, -down])
            harmonizer.up.weight[:, : 2 * len(down)] = torch.cat([up, -up], dim=1)

    def step(self) -> str:
        """Take one batch for the harmonizers and one judgement for the scores."""
        chance = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.done)
        loss = self._improve(chance)
        judged = self._judge(chance)
        scores = self.importance.scores
        for name, value in (("loss", loss), ("judged", judged), ("scores", scores)):
            self.curves[name][self.done] = value
        self.done += 1
        return f"loss {loss:.2f}, judged {judged:.2f}, scores {scores.min():.1f} to {scores.max():.1f}"

    def check(self) -> None:
        """Save all that a resumed run needs; every step judges on text not trained on."""
        self.parts.put(STATE, self._state())

    def _improve(self, chance: torch.Generator) -> float:
        """Train the harmonizers on one batch, in a mixed stack; its loss."""
        batch, stay = self._batch(self.tokens, self.config.batch_size, chance), self.importance.draw(chance)
        loss = self._trained_loss(batch, self._columns(batch, _LEARNT, chance), stay)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self._rate()
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return float(loss.detach())

    def _trained_loss(self, batch: Tensor, columns: Tensor, stay: Tensor) -> Tensor:
        aligned, loss = self.config.align > 0, torch.zeros((), device=batch.device)
        head = columns if self.config.lm else None
        with self._mixed(stay):
            out = self._run(batch, head, output_hidden_states=aligned)
        if self.config.lm:
            loss = loss + self.config.lm * _next_token_loss(out.logits, batch, columns)
        if aligned:
            with torch.no_grad():
                aims = self._run(batch, None, output_hidden_states=True).hidden_states
            pairs = [(out.hidden_states[layer + 1], aims[layer + 1]) for layer in self.layers]
            loss = loss + self.config.align * torch.stack([_apart(*pair) for pair in pairs]).mean()
        if self.config.sobolev:
            loss = loss + self.config.sobolev * self._pulled_apart(batch, columns, stay)
        return loss

    def _pulled_apart(self, batch: Tensor, columns: Tensor, stay: Tensor) -> Tensor:
        """How far gradients that pass a mixed stack are from the model's, both from the model's own loss."""
        decoder, layers = Decoder.of(self.model), [*self.layers, self.layers.stop]
        with entering(decoder, layers) as whole:
            loss = _next_token_loss(self._run(batch, columns).logits, batch, columns)
        aims = torch.autograd.grad(loss, whole)
        with self._mixed(stay), twice_differentiable(), entering(decoder, layers) as mixed:
            self._run(batch, None)
        return gradients_apart(mixed, aims)

    @torch.no_grad()
    def _judge(self, chance: torch.Generator) -> float:
        """Let what mixed stacks lose on text not trained on teach the scores; their mean loss."""
        batch = self._batch(self.held, max(1, self.config.batch_size // 2), chance)
        stays = torch.stack([self.importance.draw(chance) for _ in range(self.config.candidates)])
        columns, losses = self._columns(batch, _JUDGED, chance), torch.zeros(len(stays))
        for number, stay in enumerate(stays):
            losses[number] = self._loss(batch, columns, stay)
        self.importance.update(stays, losses)
        return float(losses.mean())

    def _loss(self, batch: Tensor, columns: Tensor, stay: Tensor) -> Tensor:
        with self._mixed(stay):
            logits = self._run(batch, columns).logits
        return _next_token_loss(logits, batch, columns)

    def _rate(self) -> float:
        """The share of the peak learning rate."""
        done, warm = self.done + 1, max(1, self.config.steps // 20)
        left = math.cos(math.pi * max(0, done - warm) / (self.config.steps - warm + 1))
        return min(1.0, done / warm) * (1 + left) / 2

    def _batch(self, tokens: Tensor, size: int, chance: torch.Generator) -> Tensor:
        return tokens[torch.randperm(len(tokens), generator=chance)[:size]].to(self.model.device)

    def _columns(self, batch: Tensor, share: float, chance: torch.Generator) -> Tensor:
        """A random share of the positions that have a next token, ascending."""
        length = batch.shape[1] - 1
        chosen = torch.randperm(length, generator=chance)[: max(1, round(share * length))]
        return chosen.sort().values.to(batch.device)

    def _run(self, batch: Tensor, columns: Tensor | None, **asked: bool) -> Any:
        """The output of the stack as it now is, with logits at these columns only."""
        with autocast(self.model):
            return output_at(self.model, columns, input_ids=batch, **asked)

    def _mixed(self, stay: Tensor) -> AbstractContextManager[None]:
        """Within, harmonizers stand for the layers that do not `stay` (bool, layers)."""
        by_layer = zip(self.layers, self.harmonizers, stay.tolist(), strict=True)
        return self.stand_ins.within({layer: one for layer, one, stays in by_layer if not stays})

    def result(self) -> dict[str, Tensor]:
        """As `harmonize` returns it."""
        found = {"scores": self.importance.scores} | TrainingCurves(**self.curves).tensors()
        for layer, harmonizer in zip(self.layers, self.harmonizers, strict=True):
            found |= Factors(harmonizer.up.weight, harmonizer.down.weight).tensors(str(layer))
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    def _state(self) -> dict[str, Tensor]:
        state = {"done": torch.tensor(self.done), "scores": self.importance.scores}
        state |= {f"curve.{name}": curve for name, curve in self.curves.items()}
        state |= optimizer_state(self.parameters, self.optimizer)
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def restore(self) -> None:
        """Go on from what an interrupted run saved."""
        state = {name: self.parts[f"{STATE}/{name}"] for name in self._state()}
        self.done = int(state["done"])
        self.importance.scores.copy_(state["scores"])
        for name, curve in self.curves.items():
            curve.copy_(state[f"curve.{name}"])
        restore_optimizer(self.parameters, self.optimizer, state)


def _held(blocks: int) -> int:
    """How many of the blocks are judged on, not trained on."""
    return max(1, blocks // 8)


def _next_token_loss(logits: Tensor, batch: Tensor, columns: Tensor) -> Tensor:
    """Cross-entropy, nats a token, of logits (rows, columns, vocabulary) at these columns of the batch."""
    return cross_entropy(logits.float().flatten(0, 1), batch[:, columns + 1].flatten())


def _apart(states: Tensor, aim: Tensor) -> Tensor:
    """The squared distance of states (..., width) from those aimed at, relative to these, mean over tokens."""
    states, aim = states.float(), aim.float()
    return ((states - aim).square().mean(-1) / aim.square().mean(-1)).mean()


def _fresh(model: PreTrainedModel, count: int, config: Harmonizing) -> list[Harmonizer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        width = model.config.hidden_size
        rank = min(config.rank, width)
        return [Harmonizer(width, rank).to(model.device) for _ in range(count)]
