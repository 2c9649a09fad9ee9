"""Source vectors: what the components of every layer output at the last token of the source prompts.

They do not depend on the target language, the layer pair or the task's grading: so they are computed once for the jobs
of a sweep, kept on disk in a folder for each model or in memory. Values are those of `engine.capture`. Prompts share
forward passes with the same others whatever was computed before, so that a run gives the same bits alone and in any
sweep.

A source is one prompt, or the same prompt in several languages, whose vectors are averaged.

Shapes: N layers, B sources, P positions at a prompt's end, H hidden size.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xtransplant import engine
from xtransplant.disk import replacing
from xtransplant.engine import Decoder
from xtransplant.types import Component, Control, Site

log = logging.getLogger(__name__)

Prompt = tuple[int, ...]
Source = tuple[Prompt, ...]
# Vectors of some prompts [B, N, H]: a document's lie together.
Bank = dict[Component, Tensor]

# Token ids that one forward pass takes, and the prompts of one file: what a killed run has to do again.
_TOKENS_AT_ONCE = 4096
_PROMPTS_A_FILE = 256
# Bytes that are held in memory for the next jobs of a process.
_MEMORY = 2**30
# In one forward pass, so both are kept whichever is asked for.
_ALWAYS = (Component.ffn, Component.attn)


# Of the jobs of this process: name -> vectors, those used last at the end.
_held: OrderedDict[str, Bank] = OrderedDict()


class Captures:
    """The source vectors of one model.

    Args:
        folder: where those of all runs are kept, `<model>-<hash>/<hash>.safetensors` below it; None holds them in
            memory for the next jobs of this process, if they are 1 GiB at most.
        provenance: of the loaded model; files, adapter, dtype and attention implementation make the folder's name.
        control: `noise` gives random vectors instead, each with the length of the one it replaces; `zero` gives zeros.
            Others say which prompts are the sources, not what is made of them.
        seed: of the noise.
    """

    def __init__(
        self,
        decoder: Decoder,
        folder: Path | None,
        provenance: Mapping[str, Any],
        control: Control = Control.none,
        seed: int = 0,
    ) -> None:
        self.decoder = decoder
        self.control, self.seed = control, seed
        self.computed = 0  # prompts that had to be run
        # What the vectors that were asked for take to compute, whoever did: so it does not depend on other runs.
        self.work = engine.Work()
        # Where what was prepared is, and in which row.
        self._found: dict[tuple[Prompt, Component, Site], tuple[Path | Bank, int]] = {}
        # Everything that a vector, or an answer, of this model depends on beside the prompt.
        self.model = _model_name(decoder, provenance)
        self.folder = None if folder is None else folder / self.model

    def prepare(self, sources: Sequence[Source], components: Sequence[Component], site: Site) -> None:
        """Compute and keep the vectors of those prompts that have none yet: of their last token."""
        wanted = _wanted(components)
        banks = self._banks(sources, wanted, site)
        if self.folder is None and self._bytes(banks, wanted) > _MEMORY:
            return
        for name, prompts in banks.items():
            bank = self._kept(name)
            if bank is None:
                vectors = self._capture(prompts, wanted, site)
                bank = self._keep(name, {each: vectors[each].transpose(0, 1).contiguous().cpu() for each in wanted})
            for row, prompt in enumerate(prompts):
                if (prompt, wanted[0], site) not in self._found:
                    self.work += self.decoder.work_of(len(prompt))
                for component in wanted:
                    self._found[prompt, component, site] = bank, row

    def missing(self, sources: Sequence[Source], components: Sequence[Component], site: Site) -> list[Prompt]:
        """The distinct prompts that `prepare` would have to run."""
        banks = self._banks(sources, _wanted(components), site)
        return [prompt for name, prompts in banks.items() if self._kept(name) is None for prompt in prompts]

    def vectors(
        self,
        sources: Sequence[Source],
        components: Sequence[Component],
        site: Site,
        layers: Sequence[int] | None = None,
        positions: int | None = None,
    ) -> dict[Component, Tensor]:
        """For each component [len(layers), B, H] (all layers by default) on the model's device, the mean of a source's
        prompts; with `positions` [len(layers), B, P, H].

        What `prepare` has not been asked for is computed for the given layers, and not kept.

        Raises:
            XTransplantError: a prompt has fewer tokens than `positions`.
        """
        chosen = list(range(self.decoder.num_layers) if layers is None else layers)
        if self.control is Control.zero:
            places = [] if positions is None else [positions]
            zeros = torch.zeros(len(chosen), len(sources), *places, self.decoder.hidden_size)
            return {component: zeros.to(self.decoder.device) for component in components}
        prompts = [prompt for source in sources for prompt in source]
        if positions is None and all((prompt, each, site) in self._found for prompt in prompts for each in components):
            found = {
                component: torch.stack([self._read(prompt, component, site)[chosen] for prompt in prompts], 1)
                for component in components
            }
        else:
            found = self._capture(prompts, components, site, chosen, positions)
            self.work += self.decoder.work_of(sum(map(len, prompts)))
        counts = [len(source) for source in sources]
        placed = {component: _means(vectors, counts).to(self.decoder.device) for component, vectors in found.items()}
        if self.control is not Control.noise:
            return placed
        return {component: self._noise(vectors, sources, component, chosen) for component, vectors in placed.items()}

    def _capture(
        self,
        prompts: Sequence[Prompt],
        components: Sequence[Component],
        site: Site,
        layers: list[int] | None = None,
        positions: int | None = None,
    ) -> dict[Component, Tensor]:
        parts: list[dict[Component, Tensor]] = []
        start = 0
        while start < len(prompts):
            stop, longest = start, 0
            while stop < len(prompts):
                longest = max(longest, len(prompts[stop]))
                if stop > start and longest * (stop + 1 - start) > _TOKENS_AT_ONCE:
                    break
                stop += 1
            with self.decoder.unmetered():
                parts.append(engine.capture(self.decoder, prompts[start:stop], components, site, layers, positions))
            start = stop
        self.computed += len(prompts)
        return {component: torch.cat([part[component] for part in parts], 1) for component in components}

    def _banks(
        self, sources: Sequence[Source], wanted: Sequence[Component], site: Site
    ) -> dict[str, tuple[Prompt, ...]]:
        """The distinct prompts in the portions that are computed together, by a name for all that these depend on."""
        if self.control is Control.zero:
            return {}
        prompts = sorted({prompt for source in sources for prompt in source}, key=lambda prompt: (len(prompt), prompt))
        portions = (tuple(prompts[n : n + _PROMPTS_A_FILE]) for n in range(0, len(prompts), _PROMPTS_A_FILE))
        return {hashlib.sha256(repr((some, wanted, site)).encode()).hexdigest()[:16]: some for some in portions}

    def _bytes(self, banks: Mapping[str, Sequence[Prompt]], wanted: Sequence[Component]) -> int:
        vector = self.decoder.hidden_size * self.decoder.model.dtype.itemsize
        return sum(map(len, banks.values())) * len(wanted) * self.decoder.num_layers * vector

    def _kept(self, name: str) -> Path | Bank | None:
        """A portion that was computed before."""
        if self.folder is None:
            held = _held.get(self._held_as(name))
            if held is not None:
                _held.move_to_end(self._held_as(name))
            return held
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt"):
                return path
        except (SafetensorError, OSError):
            log.warning("%s holds no source vectors and is not used; they are computed anew.", path)
            return None

    def _keep(self, name: str, bank: Bank) -> Path | Bank:
        if self.folder is None:
            _held[self._held_as(name)] = bank
            while sum(each.nbytes for held in _held.values() for each in held.values()) > _MEMORY:
                _held.popitem(last=False)
            return bank
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.safetensors"
        with replacing(path) as temporary:
            save_file({component.value: vectors for component, vectors in bank.items()}, temporary)
        return path

    def _held_as(self, name: str) -> str:
        return f"{self.model}/{self.decoder.device.type}/{name}"

    def _read(self, prompt: Prompt, component: Component, site: Site) -> Tensor:
        bank, row = self._found[prompt, component, site]
        if not isinstance(bank, Path):
            return bank[component][row]
        with safe_open(bank, framework="pt") as opened:
            found: Tensor = opened.get_slice(component.value)[row]
        return found

    def _noise(self, vectors: Tensor, sources: Sequence[Source], component: Component, layers: list[int]) -> Tensor:
        """Gaussian directions, drawn for each source, component and layer, with the lengths of the vectors."""
        drawn = torch.empty(vectors.shape)
        for n, source in enumerate(sources):
            for place, layer in enumerate(layers):
                digest = hashlib.sha256(repr((self.seed, source[0], component.value, layer)).encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
                drawn[place, n] = torch.randn(vectors.shape[2:], generator=generator)
        drawn = drawn.to(vectors.device)
        lengths = vectors.float().norm(dim=-1, keepdim=True)
        return (drawn / drawn.norm(dim=-1, keepdim=True) * lengths).to(vectors.dtype)


def _wanted(components: Sequence[Component]) -> tuple[Component, ...]:
    return tuple(dict.fromkeys([*_ALWAYS, *components]))


def _means(vectors: Tensor, counts: Sequence[int]) -> Tensor:
    """The mean over each source's prompts, which lie together on the second axis."""
    if all(count == 1 for count in counts):
        return vectors
    # In float32: half precision would lose the small differences between languages.
    return torch.stack([part.float().mean(1) for part in vectors.split(list(counts), 1)], 1).to(vectors.dtype)


def made_by(*modules: str) -> str:
    """A name for the code that computes, in the given modules of this package and in the libraries below it."""
    digest = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for module in modules:
        digest.update(Path(__file__).with_name(f"{module}.py").read_bytes())
    return digest.hexdigest()[:12]


def _model_name(decoder: Decoder, provenance: Mapping[str, Any]) -> str:
    names = ("files", "adapter", "dtype", "attn_implementation", "class")
    facts = {name: provenance.get(name) for name in names} | {"modules": vars(decoder.modules)}
    facts["made_by"] = made_by("captures", "engine")
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return f"{provenance.get('model_type', 'model')}-{digest}"
