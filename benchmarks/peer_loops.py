"""All layer pairs in the libraries that people patch activations with, as their users write the loop, against ours.

    python benchmarks/peer_loops.py model=smollm2_135m task=paper_xnli_mc language_pair=en-sw \\
        [documents=1] [first_document=0] [rounds=3] [pairs_measured=3] [peers=nnsight,transformer_lens,pyvene]

The libraries are not requirements of this package; a missing one is skipped. They are best installed apart:

    pip install nnsight transformer-lens pyvene

For each library: capture the output of every layer's MLP at the source prompt's last token, once a document; then for
every pair (i, j) write layer i's vector over the output of layer j's MLP at the target prompt's last token, and score
the choices, in one batch of the full prompt with each choice, the output head where choices are read only. CPU seconds
of one thread, in the same rounds and on the same pairs as the plain loop A and our sweep D of sweep_speed.py; a few
pairs, extrapolated to all. Their log-probabilities must be ours.
"""

from __future__ import annotations

import copy
import importlib
import json
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol

import sweep_speed
import torch
from sweep_speed import Clock, Document, Sweep, choice_logprobs, choice_rows, spread
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtransplant.types import Component, Site

ALLOWED_DIFFERENCE = 1e-3
Pair = tuple[int, int]


class Peer(Protocol):
    def capture(self, source: Tensor) -> list[Tensor]:
        """Token ids [1, tokens] -> each layer's MLP output at the last token [H]."""

    def patched(self, rows: Tensor, kept: Tensor, position: int, vectors: list[Tensor], pairs: list[Pair]) -> list[Any]:
        """Logits [rows, kept, V] of token ids [rows, tokens], for each pair, with its vector written at a position."""


class NNsight:
    """One trace a pair."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        from nnsight import TransformersModel, save

        self.save = save
        self.model = TransformersModel(model, tokenizer=tokenizer, task="text-generation")

    def capture(self, source: Tensor) -> list[Tensor]:
        model = self.model
        with model.trace(source, logits_to_keep=1):
            vectors = self.save([layer.mlp.output[0, -1] for layer in model.model.layers])
        return [vector.clone() for vector in vectors]

    def patched(self, rows: Tensor, kept: Tensor, position: int, vectors: list[Tensor], pairs: list[Pair]) -> list[Any]:
        model = self.model
        found = []
        for source, target in pairs:
            with model.trace(rows, logits_to_keep=kept):
                model.model.layers[target].mlp.output[:, position] = vectors[source]
                logits = self.save(model.lm_head.output)
            found.append(logits)
        return found


class NNsightInvokes(NNsight):
    """The pairs as invokes of one trace: one forward for all that are measured."""

    def patched(self, rows: Tensor, kept: Tensor, position: int, vectors: list[Tensor], pairs: list[Pair]) -> list[Any]:
        model = self.model
        with model.trace(logits_to_keep=kept) as tracer:
            found: list[Any] = self.save([])
            for source, target in pairs:
                with tracer.invoke(rows):
                    model.model.layers[target].mlp.output[:, position] = vectors[source]
                    found.append(model.lm_head.output)
        return found


class TransformerLens:
    """`run_with_hooks` for every pair. `mlp.hook_out` is the module's output; `hook_mlp_out` may be behind a norm."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        name = str(model.config._name_or_path)
        self.bridge = TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=tokenizer, device="cpu")
        self.names = [f"blocks.{layer}.mlp.hook_out" for layer in range(model.config.num_hidden_layers)]

    def capture(self, source: Tensor) -> list[Tensor]:
        _, cache = self.bridge.run_with_cache(source, names_filter=self.names, logits_to_keep=1)
        return [cache[name][0, -1].clone() for name in self.names]

    def patched(self, rows: Tensor, kept: Tensor, position: int, vectors: list[Tensor], pairs: list[Pair]) -> list[Any]:
        def write(output: Tensor, hook: Any, vector: Tensor) -> Tensor:
            output[:, position] = vector
            return output

        return [
            self.bridge.run_with_hooks(
                rows, fwd_hooks=[(self.names[target], partial(write, vector=vectors[source]))], logits_to_keep=kept
            )
            for source, target in pairs
        ]


class Pyvene:
    """An intervention of its own for every pair, with the collected vector as its source representation."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        import pyvene

        self.pyvene = pyvene
        self.model = model
        self.size = model.config.hidden_size

    def site(self, layer: int, intervention: Any) -> dict[str, Any]:
        # By the module's own name, and with the intervention made here: its registry of names lacks newer models.
        return {"layer": layer, "component": f"model.layers[{layer}].mlp.output", "intervention": intervention}

    def capture(self, source: Tensor) -> list[Tensor]:
        sites = [
            self.site(layer, self.pyvene.CollectIntervention(embed_dim=self.size))
            for layer in range(self.model.config.num_hidden_layers)
        ]
        collecting = self.pyvene.IntervenableModel(sites, self.model)
        last = source.shape[1] - 1
        (_, vectors), _ = collecting(
            {"input_ids": source, "logits_to_keep": 1}, unit_locations={"base": [[[last]]] * len(sites)}
        )
        return [vector.reshape(-1) for vector in vectors]

    def patched(self, rows: Tensor, kept: Tensor, position: int, vectors: list[Tensor], pairs: list[Pair]) -> list[Any]:
        found = []
        for source, target in pairs:
            site = self.site(target, self.pyvene.VanillaIntervention(embed_dim=self.size))
            _, patched = self.pyvene.IntervenableModel(site, self.model)(
                {"input_ids": rows, "logits_to_keep": kept},
                unit_locations={"sources->base": (None, [[[position]] * len(rows)])},
                source_representations=vectors[source].expand(len(rows), 1, -1),
            )
            found.append(patched.logits)
        return found


# Name -> class, module to import, distribution to install.
PEERS: dict[str, tuple[Callable[[PreTrainedModel, PreTrainedTokenizerBase], Peer], str, str]] = {
    "nnsight": (NNsight, "nnsight", "nnsight"),
    "nnsight, pairs as invokes": (NNsightInvokes, "nnsight", "nnsight"),
    "transformer_lens": (TransformerLens, "transformer_lens", "transformer-lens"),
    "pyvene": (Pyvene, "pyvene", "pyvene"),
}


def make(name: str, sweep: Sweep) -> Peer | str:
    """The peer around its own copy of the model, which it may change; or why there is none."""
    build, module, distribution = PEERS[name]
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"skipped: {error}. Install it, apart from this package: pip install {distribution}"
    try:
        return build(copy.deepcopy(sweep.decoder.model), sweep.decoder.tokenizer)
    except Exception as error:  # whatever a library does with a model that it does not know
        return f"failed to take the model: {type(error).__name__}: {error}"


def peer_vectors(peer: Peer, document: Document) -> list[Tensor]:
    return peer.capture(torch.tensor([document.source]))


def peer_loop(
    sweep: Sweep, peer: Peer, document: Document, vectors: list[Tensor], pairs: list[Pair]
) -> list[list[float]]:
    rows, kept = choice_rows(sweep, document)
    logits = peer.patched(rows, kept, len(document.target) - 1, vectors, pairs)
    return [choice_logprobs(each, document) for each in logits]


@torch.inference_mode()
def measure(
    sweep: Sweep, documents: list[Document], rounds: list[list[Pair]], peers: dict[str, Peer | str]
) -> dict[str, Any]:
    clock = Clock(len(documents))
    differences: dict[str, list[float]] = {name: [] for name in ("A", *peers)}
    effects: list[float] = []
    count = len(sweep.pairs)
    for name, peer in peers.items():  # the first forward of a process, and of a library, costs more
        if not isinstance(peer, str):
            try:
                peer_loop(sweep, peer, documents[0], peer_vectors(peer, documents[0]), rounds[0][:1])
            except Exception as error:
                peers[name] = f"failed to run: {type(error).__name__}: {error}"
    sweep_speed.score_choices(sweep, documents[0])
    working = {name: peer for name, peer in peers.items() if not isinstance(peer, str)}
    for pairs in rounds:
        drawn = [pairs] * len(documents)
        [ours] = clock.run("D", partial(sweep_speed.our_scores, sweep), [documents])
        vectors = clock.run("A: capture", partial(sweep_speed.source_pass, sweep), documents)
        loop = partial(sweep_speed.hooked_loop, sweep)
        found = {"A": clock.run("A: one pair", loop, documents, vectors, drawn, each=len(pairs))}
        for name, peer in working.items():
            vectors = clock.run(f"{name}: capture", partial(peer_vectors, peer), documents)
            loop = partial(peer_loop, sweep, peer)
            found[name] = clock.run(f"{name}: one pair", loop, documents, vectors, drawn, each=len(pairs))
        for name, of_documents in found.items():
            for swept, of_pairs in zip(ours, of_documents, strict=True):
                for pair, logprobs in zip(pairs, of_pairs, strict=True):
                    fast = swept[1 + sweep.pairs.index(pair)]
                    differences[name] += [abs(a - b) for a, b in zip(fast, logprobs, strict=True)]
                    effects += [abs(a - b) for a, b in zip(swept[0], logprobs, strict=True)]
    results: dict[str, Any] = {
        "pairs_in_all": count,
        "pairs_measured": f"{len(rounds[0])} in each of {len(rounds)} rounds, {sum(map(len, rounds))} different ones "
        f"of {count} in all; extrapolated to all. D: all.",
        "largest_effect_of_a_measured_pair": max(effects),
        "D, our sweep": {"seconds_a_document": spread(clock.seconds["D"])},
    }
    for name in ("A", *peers):
        if name in peers and name not in working:
            results[name] = peers[name]
            continue
        captures, loops = clock.seconds[f"{name}: capture"], clock.seconds[f"{name}: one pair"]
        whole = [capture + count * loop for capture, loop in zip(captures, loops, strict=True)]
        worst = max(differences[name])
        results["A, plain hooks" if name == "A" else name] = {
            **({} if name == "A" else {"version": version(PEERS[name][2])}),
            "seconds_of_capture": spread(captures),
            "seconds_a_pair": spread(loops),
            "seconds_a_document_extrapolated_to_all_pairs": spread(whole),
            "times_D": spread([all_pairs / d for all_pairs, d in zip(whole, clock.seconds["D"], strict=True)]),
            "largest_logprob_difference_to_D": worst,
            "equal_to_D": worst <= ALLOWED_DIFFERENCE,
        }
    return results


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # the libraries' own, of each other's versions
    chosen = [argument.partition("=")[2].split(",") for argument in arguments if argument.startswith("peers=")]
    arguments = [argument for argument in arguments if not argument.startswith("peers=")]
    own, rest = sweep_speed.own_keys(arguments, {"documents": 1, "first_document": 0, "rounds": 3, "pairs_measured": 3})
    sweep, documents, described = sweep_speed.load(rest, own["first_document"], own["documents"])
    if (sweep.component, sweep.site) != (Component.ffn, Site.module) or not documents[0].choices:
        raise SystemExit("The loops are written for a task with choices, transplant.component=ffn and site=module.")
    way = sweep_speed.way_of(sweep)
    names = [name for name, (_, module, _) in PEERS.items() if not chosen or module in chosen[0]]
    peers = {name: make(name, sweep) for name in names}
    rounds = sweep_speed.random_pairs(sweep, own["rounds"], own["pairs_measured"])
    results = measure(sweep, documents, rounds, peers)
    shown = {"way_of_D": way, "documents": [sweep_speed.describe(document) for document in documents]}
    print(json.dumps({**described, **shown, **results}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main(sys.argv[1:])
