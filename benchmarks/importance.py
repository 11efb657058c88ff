"""Which importance of layers makes the truer emulator, and how alike three trainings' scores are.

    python benchmarks/importance.py smollm2-135m profiles/scaleot-fisher-0 profiles/scaleot-fisher-1

The profiles are of `offsite profile --method scaleot` with different seeds. For the first one's harmonizers:
the fidelity of emulators with a quarter and with half of the layers replaced, in the order of its learnt
scores, of those after its first step (each layer replaced alone), of block influence (1 - the cosine between a
layer's input and output) and of the norm of the layer's gradient. Printed as Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from offsite.data import tasks
from offsite.data.blocks import blocks
from offsite.model import loading
from offsite.model.decoder import Decoder
from offsite.model.precision import autocast
from offsite.owner.build import build
from offsite.owner.fidelity import fidelity, held_out
from offsite.owner.methods.scaleot import ScaleOT
from offsite.owner.profile import Profile
from offsite.owner.states import hidden_states

SHARES = (0.25, 0.5)


def block_influence(model: PreTrainedModel, tokens: Tensor, middle: range) -> Tensor:
    """(layers): how much each layer turns the state, mean over tokens (ShortGPT, arXiv 2403.03853)."""
    turned = torch.zeros(len(middle))
    for states in hidden_states(model, tokens, "Block influence"):
        pairs = ((states[layer].float(), states[layer + 1].float()) for layer in middle)
        turned += torch.stack([(1 - cosine_similarity(*pair, dim=-1)).mean() for pair in pairs])
    return turned


def gradient_norm(model: PreTrainedModel, tokens: Tensor, middle: range) -> Tensor:
    """(layers): the norm of the loss's gradient at each layer's weights."""
    model.requires_grad_(True)
    for start in range(0, len(tokens), 4):
        batch = tokens[start : start + 4]
        with autocast(model):
            model(batch, labels=batch, use_cache=False).loss.backward()
    layers = Decoder.of(model).layers
    grads = [[weight.grad for weight in layers[layer].parameters()] for layer in middle]
    found = [torch.stack([g.square().sum() for g in some if g is not None]).sum().sqrt() for some in grads]
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return torch.stack(found)


def likeness(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation."""
    ranks = torch.stack([scores.argsort().argsort().float() for scores in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def ordered(profile: Profile, scores: Tensor) -> Profile:
    """The profile with other scores."""
    return replace(profile, tensors=dict(profile.tensors) | {"harmonizers/scores": scores})


def compare(model: PreTrainedModel, orders: dict[str, Profile], tokens: Tensor) -> None:
    """A row for each order: its likeness to the first and what its emulators are worth."""
    learnt = next(iter(orders.values())).tensors["harmonizers/scores"]
    print("| order | rank correlation | replaced | cosine | relative error | loss |\n|---|---|---|---|---|---|")
    for name, profile in orders.items():
        alike = likeness(profile.tensors["harmonizers/scores"], learnt)
        for share in SHARES:
            method = ScaleOT(alpha=share, beta=1.0)
            found = fidelity(build(model, profile.split, method.plan(profile, 1.0)), model, tokens)
            figures = f"{found.cosine:.3f} | {found.relative_error:.2f} | {found.loss:.3f}"
            print(f"| {name} | {alike:.2f} | {share:.0%} | {figures} |", flush=True)


def stability(profiles: Sequence[Profile]) -> None:
    """The rank correlations between trainings, of where they started and of where they ended."""
    for what, key in (("started", "curve.scores"), ("ended", "scores")):
        found = [profile.tensors[f"harmonizers/{key}"] for profile in profiles]
        scores = [each[0] if each.dim() > 1 else each for each in found]
        pairs = [likeness(a, b) for i, a in enumerate(scores) for b in scores[:i]]
        print(f"Rank correlations between the trainings where they {what}: {[round(p, 3) for p in pairs]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("profiles", nargs="+", type=Path)
    parser.add_argument("--text", default="wikipedia")
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    args = parser.parse_args()
    model, tokenizer = loading.load(args.model)
    profiles = [Profile.load(folder) for folder in args.profiles]
    stability(profiles)
    first, texts = profiles[0], tasks.texts(args.text)
    read = blocks(texts, tokenizer, args.length, args.blocks)
    others = {
        "each layer alone (the start)": first.tensors["harmonizers/curve.scores"][0],
        "block influence": block_influence(model, read, first.middle),
        "gradient norm": gradient_norm(model, read, first.middle),
    }
    orders = {"learnt": first} | {name: ordered(first, scores) for name, scores in others.items()}
    compare(model, orders, held_out(texts, tokenizer, args.length, args.blocks))


if __name__ == "__main__":
    main()
