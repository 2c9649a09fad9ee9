"""Source vectors: what the components of every layer output at the last token of the source prompts.

They do not depend on the target language, the layer pair or the task's grading: so they are computed once, kept on disk
in a folder for each model, and found again by the prompt's token ids. Values are those of `engine.capture`.

A source is one prompt, or the same prompt in several languages, whose vectors are averaged.

Shapes: N layers, B sources, P positions at a prompt's end, H hidden size.
"""

from __future__ import annotations

import hashlib
import json
import logging
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
# Token ids that one forward pass takes, and the prompts of one file: what a killed run has to do again.
_TOKENS_AT_ONCE = 4096
_PROMPTS_A_FILE = 256
# In one forward pass, so both are kept whichever is asked for.
_ALWAYS = (Component.ffn, Component.attn)


class Captures:
    """The source vectors of one model.

    Args:
        folder: where those of all runs are kept, `<model>-<hash>/<hash>.safetensors` below it; None keeps none.
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
        self._found: dict[tuple[str, Component, Site], tuple[Path, int]] = {}
        self._held: dict[tuple[Prompt, Component, Site], Tensor] = {}
        # Everything that a vector, or an answer, of this model depends on beside the prompt.
        self.model = _model_name(decoder, provenance)
        self.folder = None if folder is None else folder / self.model
        if self.folder is not None and self.folder.is_dir():
            for path in sorted(self.folder.glob("*.safetensors")):
                self._index(path)

    def prepare(self, sources: Sequence[Source], components: Sequence[Component], site: Site) -> None:
        """Compute and keep the vectors of those prompts that have none yet: of their last token."""
        missing = sorted(self.missing(sources, components, site), key=len)
        wanted = tuple(dict.fromkeys([*_ALWAYS, *components]))
        for start in range(0, len(missing), _PROMPTS_A_FILE):
            some = missing[start : start + _PROMPTS_A_FILE]
            vectors = self._capture(some, wanted, site)
            if self.folder is None:
                for component in wanted:
                    for n, prompt in enumerate(some):
                        self._held[prompt, component, site] = vectors[component][:, n].cpu()
                continue
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{hashlib.sha256(repr((some, wanted, site)).encode()).hexdigest()[:16]}.safetensors"
            # A document's vectors lie together: [B, N, H].
            tensors = {each.value: vectors[each].transpose(0, 1).contiguous().cpu() for each in wanted}
            described = {"site": site.value, "prompts": json.dumps([_digest(prompt) for prompt in some])}
            with replacing(path) as temporary:
                save_file(tensors, temporary, metadata=described)
            self._index(path)

    def missing(self, sources: Sequence[Source], components: Sequence[Component], site: Site) -> list[Prompt]:
        """The distinct prompts that have no vectors yet, and need them."""
        if self.control is Control.zero:
            return []
        return [
            prompt
            for prompt in dict.fromkeys(prompt for source in sources for prompt in source)
            if any(
                (_digest(prompt), component, site) not in self._found and (prompt, component, site) not in self._held
                for component in components
            )
        ]

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
        if positions is None and not self.missing(sources, components, site):
            found = {
                component: torch.stack([self._kept(prompt, component, site)[chosen] for prompt in prompts], 1)
                for component in components
            }
        else:
            found = self._capture(prompts, components, site, chosen, positions)
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
            parts.append(engine.capture(self.decoder, prompts[start:stop], components, site, layers, positions))
            start = stop
        self.computed += len(prompts)
        return {component: torch.cat([part[component] for part in parts], 1) for component in components}

    def _kept(self, prompt: Prompt, component: Component, site: Site) -> Tensor:
        held = self._held.get((prompt, component, site))
        if held is not None:
            return held
        path, row = self._found[_digest(prompt), component, site]
        with safe_open(path, framework="pt") as opened:
            found: Tensor = opened.get_slice(component.value)[row]
        return found

    def _index(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as opened:
                described = opened.metadata()
                names = list(opened.keys())
            site = Site(described["site"])
            for row, digest in enumerate(json.loads(described["prompts"])):
                for name in names:
                    self._found[digest, Component(name), site] = path, row
        except (SafetensorError, OSError, KeyError, ValueError, TypeError):
            log.warning("%s holds no source vectors and is not used; they are computed anew.", path)

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


def _digest(prompt: Prompt) -> str:
    return hashlib.sha256(repr(tuple(prompt)).encode()).hexdigest()[:32]


def _model_name(decoder: Decoder, provenance: Mapping[str, Any]) -> str:
    names = ("files", "adapter", "dtype", "attn_implementation", "class")
    facts = {name: provenance.get(name) for name in names} | {"modules": vars(decoder.modules)}
    facts["made_by"] = made_by("captures", "engine")
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return f"{provenance.get('model_type', 'model')}-{digest}"
