"""Read and write activations of a Hugging Face decoder, at the last prompt token.

`capture` reads what a component of every layer outputs there; `prefill` runs prompts with such vectors written in
place of a layer's own output; `score` and `generate` continue from the resulting KV cache without any hook: the
transplant happened once, in the prefill, and lives on in the cache. This is the paper's procedure.
What departs from it (more positions, other arithmetic, later steps) is asked for by an `Intervention`.

Padding, positions, hooks and the cache are this module's own; nobody else indexes tokens or names a module.

Shapes: B prompts, T tokens (left-padded), P positions at a prompt's end, N layers, H hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from xtransplant.types import PAPER, Component, Intervention, Mode, Scope, Site, XTransplantError


@dataclass(frozen=True)
class Modules:
    """Where an architecture keeps its parts, as dotted names: `layers` from the model, the rest from a layer."""

    layers: str = "model.layers"
    attn: str = "self_attn"
    ffn: str = "mlp"
    # The module whose output is added to the residual stream, where that is not the component's own.
    attn_branch: str | None = None
    ffn_branch: str | None = None


_POST_NORM = {"attn_branch": "post_attention_layernorm", "ffn_branch": "post_feedforward_layernorm"}

# `model_type` of the checkpoint's config -> its modules. tests/equivalence/test_architectures.py checks each.
ARCHITECTURES: dict[str, Modules] = {
    "llama": Modules(),
    "mistral": Modules(),
    "mixtral": Modules(),
    "qwen2": Modules(),
    "qwen3": Modules(),
    "phi3": Modules(),
    "cohere": Modules(),
    "cohere2": Modules(),
    "gemma2": Modules(**_POST_NORM),
    "gemma3_text": Modules(**_POST_NORM),
    "gemma3": Modules(layers="model.language_model.layers", **_POST_NORM),
    "olmo2": Modules(**_POST_NORM),
    "gpt2": Modules(layers="transformer.h", attn="attn"),
    "gpt_neox": Modules(layers="gpt_neox.layers", attn="attention"),
    "falcon": Modules(layers="transformer.h", attn="self_attention"),
    # Bloom's attention and MLP modules add the residual themselves: take the projections inside them.
    "bloom": Modules(layers="transformer.h", attn="self_attention.dense", ffn="mlp.dense_4h_to_h"),
    "opt": Modules(layers="model.decoder.layers", ffn="fc2"),
}

# Logits of one forward pass are kept below this many numbers (0.5 GB in float32).
_MAX_LOGITS = 2**27


class Score(NamedTuple):
    """Log-probability of a continuation (natural log, summed over its tokens), and whether it is the greedy one."""

    logprob: float
    greedy: bool


@dataclass
class Writes:
    """What `prefill` makes of a component's output at the end of each prompt: one target layer a prompt."""

    component: Component
    layers: Sequence[int]  # target layer of each prompt
    vectors: Tensor  # [B, H] for the last token, [B, P, H] for the last P
    how: Intervention = PAPER

    @property
    def positions(self) -> int:
        return 1 if self.vectors.dim() == 2 else self.vectors.shape[1]

    def of(self, rows: Sequence[int]) -> Writes:
        """Those of some of the prompts, which may occur more than once."""
        return Writes(self.component, [self.layers[row] for row in rows], self.vectors[list(rows)], self.how)


@dataclass
class Prefix:
    """Prompts after their prefill: all that `score` and `generate` need."""

    cache: DynamicCache
    mask: Tensor  # [B, T], 1 at prompt tokens
    logits: Tensor  # [B, V] float32, of the token after the prompt
    written: int  # transplants that were really made
    later: Sequence[Writes] = ()  # those that later steps get too


@dataclass
class Work:
    """What was computed, without padding.

    Attributes:
        tokens: that went through the layers, or through the upper ones where their lower states were there.
        flops: floating-point operations: two for each weight and token, of a layer's or of the output head's. What
            attention makes of pairs of tokens is left out, as is usual.
    """

    tokens: int = 0
    flops: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.flops + other.flops)


def changed(own: Tensor, vectors: Tensor, how: Intervention) -> Tensor:
    """What is written where a module's own output is `own` [..., H] and the source vectors are `vectors`, likewise."""
    if how.mode is Mode.replace and not how.match_norm:
        return vectors.to(own)
    precise = torch.promote_types(own.dtype, torch.float32)
    old, new = own.to(precise), vectors.to(own.device, precise)
    if how.match_norm:
        length = new.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(precise).tiny)
        new = new * (old.norm(dim=-1, keepdim=True) / length)
    if how.mode is Mode.add:
        new = old + how.strength * new
    elif how.mode is Mode.interpolate:
        new = (1 - how.strength) * old + how.strength * new
    return new.to(own.dtype)


class Decoder:
    """A causal language model with its tokenizer and the names of its modules.

    `work` is what it computed so far.

    Raises:
        XTransplantError: the architecture is unknown, or a probe forward shows that the named modules are not
            called once per forward pass with a hidden state.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, modules: Modules | None = None
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.modules = modules or _known_modules(model)
        text_config = model.config.get_text_config(decoder=True)
        self.hidden_size: int = text_config.hidden_size
        self.vocab_size: int = text_config.vocab_size
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        try:
            self.layers = _module_list(model, self.modules.layers)
            for component in (Component.attn, Component.ffn):
                for site in Site:
                    self.module_at(0, component, site)
        except AttributeError as error:
            raise XTransplantError(f"{_module_help(model)}\nGiven: {self.modules}. {error}") from None
        self.num_layers = len(self.layers)
        self.layer_weights = [sum(each.numel() for each in layer.parameters()) for layer in self.layers]
        self.work = Work()
        with self.unmetered():
            self._probe()

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    def work_of(self, tokens: int, logits: int = 0) -> Work:
        """So many tokens through all layers, so many hidden states through the output head."""
        head = self.hidden_size * self.vocab_size
        return Work(tokens, 2 * sum(self.layer_weights) * tokens + 2 * head * logits)

    @contextmanager
    def unmetered(self) -> Iterator[None]:
        """What is computed while open, such as a check, is no part of `work`."""
        before = Work(self.work.tokens, self.work.flops)
        try:
            yield
        finally:
            self.work = before

    def module_name(self, layer: int, component: Component, site: Site) -> str:
        """Dotted name, from the model, of the module that is read or written."""
        name = self.modules.ffn if component is Component.ffn else self.modules.attn
        if site is Site.branch:
            branch = self.modules.ffn_branch if component is Component.ffn else self.modules.attn_branch
            name = branch or name
        return f"{self.modules.layers}.{layer}.{name}"

    def module_at(self, layer: int, component: Component, site: Site) -> nn.Module:
        return self.model.get_submodule(self.module_name(layer, component, site))

    def forward(
        self,
        prompts: Sequence[Sequence[int]],
        cache: DynamicCache | None = None,
        past_mask: Tensor | None = None,
        keep: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Run the model on token ids; return logits of the kept positions and the attention mask.

        Left-padded without a cache, right-padded behind one: so tokens stay contiguous and sliding windows, which
        count columns, and ALiBi, which counts the mask, see true distances.

        Args:
            prompts: token ids of each row.
            cache, past_mask: an earlier prefix and its mask [B, T_past]; the cache is extended in place.
            keep: rows and columns (two index tensors [K]) whose logits are wanted; None skips the output head.

        Returns:
            logits [K, V] in float32 (or None), mask [B, T_past + T].
        """
        width = max(map(len, prompts))
        # Any id will do: padding is masked.
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, tokens in enumerate(prompts):
            at = slice(width - len(tokens), width) if past_mask is None else slice(0, len(tokens))
            ids[row, at] = torch.tensor(tokens, dtype=torch.long)
            mask[row, at] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        if past_mask is not None:
            mask = torch.cat([past_mask, mask], dim=1)
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": cache is not None}
        if cache is not None:
            arguments["past_key_values"] = cache
        if self.takes_positions:
            arguments["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -width:]
        if keep is None:
            self.model.base_model(**arguments)
            self.work += self.work_of(sum(map(len, prompts)))
            return None, mask
        rows, columns = keep[0].to(self.device), keep[1].to(self.device)

        def only_kept(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # The head is called on [B, T, H]; on one row of kept positions it does no more than is asked for, and
            # what the model does to logits afterwards (soft caps, scaling) still happens.
            return (args[0][rows.to(args[0].device), columns.to(args[0].device)][None], *args[1:])

        with self.model.get_output_embeddings().register_forward_pre_hook(only_kept):
            logits: Tensor = self.model(**arguments).logits
        self.work += self.work_of(sum(map(len, prompts)), len(rows))
        return logits[0].float(), mask

    @torch.inference_mode()
    def _probe(self) -> None:
        """A short forward with every site hooked: each must be called once and give one vector a token."""
        components = [Component.attn, Component.ffn]
        for site in Site:
            for component, vectors in capture(self, [range(4)], components, site).items():
                if vectors.shape != (self.num_layers, 1, self.hidden_size):
                    raise XTransplantError(
                        f"{self.module_name(0, component, site)} gave {list(vectors.shape)}, not [layers, prompts, "
                        f"hidden size] = [{self.num_layers}, 1, {self.hidden_size}]. {_module_help(self.model)}"
                    )


@torch.inference_mode()
def capture(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    components: Sequence[Component],
    site: Site = Site.module,
    layers: Sequence[int] | None = None,
    positions: int | None = None,
) -> dict[Component, Tensor]:
    """The components' output at each prompt's end, in one forward pass without the output head.

    Args:
        positions: the last so many tokens; None is the last one, without an axis for it.

    Returns:
        for each component a tensor [len(layers), B, H], or [len(layers), B, P, H] (all layers by default), copied:
        what the model does to its own tensors later, in place or not, does not reach it.

    Raises:
        XTransplantError: a module was not called exactly once, or a prompt is too short.
    """
    _refuse_short(prompts, positions or 1)
    end: Any = -1 if positions is None else slice(-positions, None)
    wanted = range(decoder.num_layers) if layers is None else layers
    found: dict[tuple[Component, int], list[Tensor]] = {(c, n): [] for c in components for n in wanted}
    inputs: dict[int, Tensor] = {}
    shape = (len(prompts), max(map(len, prompts)))

    def read_input(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            inputs[layer] = hidden[:, end].clone()

        return hook

    def read(component: Component, layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            last = first_tensor(output).reshape(*shape, -1)[:, end].clone()
            if component is Component.attn_as_released:
                last += inputs[layer].to(last.device)
            found[component, layer].append(last)

        return hook

    with ExitStack() as stack:
        for component, layer in found:
            if component is Component.attn_as_released:
                handle = decoder.layers[layer].register_forward_pre_hook(read_input(layer), with_kwargs=True)
                stack.enter_context(handle)
            module = decoder.module_at(layer, component, site)
            stack.enter_context(module.register_forward_hook(read(component, layer)))
        decoder.forward(prompts)
    for (component, layer), reads in found.items():
        if len(reads) != 1:
            name = decoder.module_name(layer, component, site)
            raise XTransplantError(f"{name} was called {len(reads)} times in one forward pass, not once.")
    return {c: torch.stack([found[c, n][0].to(decoder.device) for n in wanted]) for c in components}


@torch.inference_mode()
def prefill(decoder: Decoder, prompts: Sequence[Sequence[int]], *writes: Writes) -> Prefix:
    """Run the prompts; in row *b*, write each `writes`' `vectors[b]` at the last token of its `layers[b]`.

    `attn_as_released` is written where `attn` is: the target's own residual is added on top, as the authors' code does.

    Raises:
        XTransplantError: not every transplant was made exactly once, or a prompt is too short.
    """
    cache = DynamicCache()
    width = max(map(len, prompts))
    last = torch.arange(len(prompts)), torch.full((len(prompts),), width - 1)
    for each in writes:
        _refuse_short(prompts, each.positions)
    with _written(decoder, writes, (len(prompts), width)) as count:
        logits, mask = decoder.forward(prompts, cache, keep=last)
    assert logits is not None
    return Prefix(cache, mask, logits, count(), _later(writes))


@torch.inference_mode()
def branches(decoder: Decoder, prompt: Sequence[int], writes: Writes) -> Prefix:
    """One prompt with each of the writes, a row for each: as `prefill` of copies, but all before the first token that
    is written to is run once, since no transplant reaches it.

    Raises:
        XTransplantError: as `prefill`.
    """
    count, end = len(writes.layers), writes.positions
    if len(prompt) <= end:
        return prefill(decoder, [prompt] * count, writes)
    beginning = DynamicCache()
    _, mask = decoder.forward([prompt[:-end]], beginning)
    rows = torch.zeros(count, dtype=torch.long, device=mask.device)
    cache = _select(beginning, rows)
    keep = torch.arange(count), torch.full((count,), end - 1)
    with _written(decoder, [writes], (count, end)) as made:
        logits, mask = decoder.forward([prompt[-end:]] * count, cache, mask[rows], keep)
    assert logits is not None
    return Prefix(cache, mask, logits, made(), _later([writes]))


def _later(writes: Sequence[Writes]) -> list[Writes]:
    """What later steps are written with: the last position's vectors."""
    return [
        Writes(each.component, each.layers, each.vectors if each.vectors.dim() == 2 else each.vectors[:, -1], each.how)
        for each in writes
        if each.how.scope is Scope.every_step
    ]


def _refuse_short(prompts: Sequence[Sequence[int]], positions: int) -> None:
    shortest = min(map(len, prompts))
    if shortest < positions:
        raise XTransplantError(
            f"transplant.positions={positions}: a prompt has {shortest} tokens only. Give a smaller number."
        )


@contextmanager
def _written(
    decoder: Decoder, writes: Sequence[Writes], shape: tuple[int, int], everywhere: bool = False
) -> Iterator[Callable[[], int]]:
    """While open, forwards on [B, T] tokens are written to at their last columns, as many as there are vectors for, or
    everywhere; yields the count of rows written to, which is checked at the end."""
    written = 0

    def write(each: Writes, rows: list[int]) -> Callable[..., Any]:
        vectors = each.vectors[rows]
        if vectors.dim() == 2:
            vectors = vectors[:, None]
        start = 0 if everywhere else shape[1] - vectors.shape[1]

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            nonlocal written
            own = first_tensor(output)
            # Cloned: the module's output may alias a tensor that somebody else still reads.
            new = own.reshape(*shape, -1).clone()
            new[rows, start:] = changed(new[rows, start:], vectors, each.how)
            written += len(rows)
            new = new.reshape(own.shape)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    with ExitStack() as stack:
        for each in writes:
            rows_at: dict[int, list[int]] = {}
            for row, layer in enumerate(each.layers):
                rows_at.setdefault(layer, []).append(row)
            for layer, rows in rows_at.items():
                module = decoder.module_at(layer, each.component, each.how.site)
                stack.enter_context(module.register_forward_hook(write(each, rows)))
        yield lambda: written
    if written != shape[0] * len(writes):
        raise XTransplantError(f"{written} transplants were made for {shape[0]} prompts, {len(writes)} each.")


@torch.inference_mode()
def score(decoder: Decoder, prefix: Prefix, continuations: Sequence[Sequence[Sequence[int]]]) -> list[list[Score]]:
    """Log-probabilities of each prompt's continuations (token ids, none empty), as the harness defines them.

    The first token is read off the prefill; the rest of each distinct beginning is run once behind its row's cache.
    """
    # Where each scored token's distribution comes from: its row and the continuation up to it.
    beginnings = [
        (row, tuple(choice[:-1])) for row, choices in enumerate(continuations) for choice in choices if len(choice) > 1
    ]
    unique = sorted(set(beginnings), key=lambda item: (len(item[1]), item))
    wanted: dict[tuple[int, tuple[int, ...]], set[int]] = {}
    for row, choices in enumerate(continuations):
        for choice in choices:
            for n, token in enumerate(choice):
                wanted.setdefault((row, tuple(choice[:n])), set()).add(token)
    found: dict[tuple[int, tuple[int, ...], int], tuple[float, bool]] = {}

    def look_up(places: list[tuple[int, tuple[int, ...]]], logits: Tensor) -> None:
        normaliser = logits.logsumexp(-1)
        best = logits.argmax(-1)
        # One gather for all wanted tokens, one copy from the device.
        entries = [(n, token, place) for n, place in enumerate(places) for token in wanted.get(place, ())]
        index = torch.tensor([n for n, _, _ in entries], device=logits.device)
        tokens = torch.tensor([token for _, token, _ in entries], device=logits.device)
        logprobs = (logits[index, tokens] - normaliser[index]).tolist()
        greedy = (best[index] == tokens).tolist()
        for (_, token, (row, begun)), logprob, is_best in zip(entries, logprobs, greedy, strict=True):
            found[row, begun, token] = (logprob, is_best)

    look_up([(row, ()) for row in range(len(continuations))], prefix.logits)
    tokens_at_once = max(1, _MAX_LOGITS // decoder.vocab_size)
    rows_at_once = max(16, 4 * len(continuations))  # each row has a copy of its prompt's cache
    for chunk in _chunks(unique, tokens_at_once, rows_at_once):
        numbers = [row for row, _ in chunk]
        rows = torch.tensor(numbers, device=prefix.mask.device)
        keep = [(n, m) for n, (_, begun) in enumerate(chunk) for m in range(len(begun))]
        shape = len(chunk), max(len(begun) for _, begun in chunk)
        with _written(decoder, [each.of(numbers) for each in prefix.later], shape, everywhere=True):
            logits, _ = decoder.forward(
                [begun for _, begun in chunk],
                _select(prefix.cache, rows),
                prefix.mask[rows],
                keep=(torch.tensor([n for n, _ in keep]), torch.tensor([m for _, m in keep])),
            )
        assert logits is not None
        look_up([(chunk[n][0], chunk[n][1][: m + 1]) for n, m in keep], logits)
    return [
        [
            Score(
                sum(found[row, tuple(choice[:n]), token][0] for n, token in enumerate(choice)),
                all(found[row, tuple(choice[:n]), token][1] for n, token in enumerate(choice)),
            )
            for choice in choices
        ]
        for row, choices in enumerate(continuations)
    ]


@torch.inference_mode()
def generate(
    decoder: Decoder,
    prefix: Prefix,
    max_new_tokens: int,
    ended: Callable[[list[int]], bool],
    choose: Callable[[list[int], Tensor], list[int]] | None = None,
) -> list[list[int]]:
    """Continue each prompt until `ended(new tokens)` or `max_new_tokens`; rows that have ended leave the batch.

    Args:
        choose: (rows of the prompts that go on [K], logits [K, V]) -> next token of each; None is greedy.

    Returns:
        the new token ids of each prompt, the ending token included.
    """
    generated: list[list[int]] = [[] for _ in range(len(prefix.logits))]
    active = list(range(len(generated)))
    cache = _select(prefix.cache, torch.arange(len(active), device=prefix.mask.device))
    mask, logits = prefix.mask, prefix.logits
    for step in range(max_new_tokens):
        following = logits.argmax(-1).tolist() if choose is None else choose(active, logits)
        for row, token in zip(active, following, strict=True):
            generated[row].append(token)
        going = [n for n, row in enumerate(active) if not ended(generated[row])]
        if not going or step == max_new_tokens - 1:
            break
        if len(going) < len(active):
            rows = torch.tensor(going, device=mask.device)
            cache, mask = _select(cache, rows), mask[rows]
            active = [active[n] for n in going]
        last = [[generated[row][-1]] for row in active]
        keep = torch.arange(len(active)), torch.zeros(len(active), dtype=torch.long)
        with _written(decoder, [each.of(active) for each in prefix.later], (len(active), 1)):
            kept, mask = decoder.forward(last, cache, mask, keep)
        assert kept is not None
        logits = kept
    return generated


def read_and_write(
    decoder: Decoder,
    source_prompts: Sequence[Sequence[int]],
    target_prompts: Sequence[Sequence[int]],
    component: Component,
    source_layer: int,
    target_layer: int,
    how: Intervention = PAPER,
) -> Prefix:
    """One layer pair: capture the source prompts' vectors and prefill the target prompts with them.

    Raises:
        XTransplantError: a prompt is too short for `how.positions`; "all" asks for prompts of one length.
    """
    lengths = {len(prompt) for prompt in (*source_prompts, *target_prompts)}
    if how.positions == "all" and len(lengths) > 1:
        raise XTransplantError(f"transplant.positions=all: prompts of {', '.join(map(str, sorted(lengths)))} tokens.")
    positions = max(lengths) if how.positions == "all" else int(how.positions)
    vectors = capture(decoder, source_prompts, [component], how.site, [source_layer], positions)[component][0]
    return prefill(decoder, target_prompts, Writes(component, [target_layer] * len(target_prompts), vectors, how))


# --- Checks of the engine on a model, used by every run (on its first documents) and by `xtransplant doctor` ---


def self_transplant_error(
    decoder: Decoder, prompts: Sequence[Sequence[int]], component: Component, layer: int, site: Site = Site.module
) -> float:
    """Largest change of a next-token log-probability when a prompt's own vector is written back: should be 0.

    `attn_as_released` is not a no-op even then, so `attn` is checked in its place.
    """
    if component is Component.attn_as_released:
        component = Component.attn
    written = read_and_write(decoder, prompts, prompts, component, layer, layer, Intervention(site))
    return _logprob_difference(written.logits, prefill(decoder, prompts).logits)


def padding_error(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> float:
    """Largest difference of a next-token log-probability between a padded batch and the prompts run one at a time."""
    alone = torch.cat([prefill(decoder, [prompt]).logits for prompt in prompts])
    return _logprob_difference(prefill(decoder, prompts).logits, alone)


@torch.inference_mode()
def residual_error(decoder: Decoder, prompts: Sequence[Sequence[int]], site: Site = Site.branch) -> float:
    """Largest part of a layer's change of the residual stream that captured attn + ffn leave unexplained.

    Relative to the change's norm; about 1e-6 in float32 where the site is what is added to the residual stream.
    """
    before: list[Tensor] = []
    after: list[Tensor] = []

    def read_before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before.append((args[0] if args else kwargs["hidden_states"])[:, -1].to(decoder.device).clone())

    def read_after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        after.append(first_tensor(output)[:, -1].to(decoder.device).clone())

    parts = capture(decoder, prompts, [Component.attn, Component.ffn], site)
    with ExitStack() as stack:
        for layer in decoder.layers:
            stack.enter_context(layer.register_forward_pre_hook(read_before, with_kwargs=True))
            stack.enter_context(layer.register_forward_hook(read_after))
        decoder.forward(prompts)
    change = torch.stack(after).double() - torch.stack(before).double()
    explained = parts[Component.attn].double() + parts[Component.ffn].double()
    return float(((change - explained).norm(dim=-1) / change.norm(dim=-1)).max())


@torch.inference_mode()
def full_forward_error(decoder: Decoder, prompt: Sequence[int], continuation: Sequence[int]) -> float:
    """Difference of a continuation's log-probability between `score` and one plain forward over all its tokens."""
    fast = score(decoder, prefill(decoder, [prompt]), [[continuation]])[0][0].logprob
    ids = torch.tensor([[*prompt, *continuation]], device=decoder.device)
    logprobs = decoder.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    slow = sum(float(logprobs[len(prompt) - 1 + n, token]) for n, token in enumerate(continuation))
    return abs(fast - slow)


def _logprob_difference(one: Tensor, other: Tensor) -> float:
    # Far tails are not compared: a log-probability of -40 carries no weight in any score. Asked so that a NaN is.
    one, other = one.log_softmax(-1), other.log_softmax(-1)
    return float((one - other).abs()[~(torch.maximum(one, other) <= -20)].max())


def _module_list(model: PreTrainedModel, name: str) -> list[nn.Module]:
    found = model.get_submodule(name)
    if not isinstance(found, nn.ModuleList):
        raise AttributeError(f"{name} is a {type(found).__name__}, not a list of layers")
    return list(found)


def _known_modules(model: PreTrainedModel) -> Modules:
    kind = model.config.model_type
    if kind not in ARCHITECTURES:
        raise XTransplantError(_module_help(model))
    return ARCHITECTURES[kind]


def _module_help(model: PreTrainedModel) -> str:
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1
    ]
    name, longest = max(lists, key=lambda item: len(item[1]), default=("?", nn.ModuleList([nn.Identity()])))
    inside = ", ".join(child for child, _ in longest[0].named_children())
    keys = ", ".join(field.name for field in fields(Modules))
    return (
        f"The engine knows no modules for architecture {model.config.model_type!r} "
        f"({type(model).__name__}; known: {', '.join(sorted(ARCHITECTURES))}). Name them in the model config, e.g. "
        f"'model.modules={{layers: {name}, attn: self_attn, ffn: mlp}}' (keys: {keys}; the last two only where a "
        f"norm follows the module). The longest list of layers here is {name!r}; its first layer holds: {inside}. "
        "Then run `xtransplant doctor` on the model."
    )


def index(rows: Sequence[int], device: torch.device) -> Tensor:
    """Row numbers on a device. A list as an index would make the processor wait for all that a GPU has to do."""
    return torch.tensor(rows, dtype=torch.long).to(device, non_blocking=True)


def first_tensor(output: Any) -> Tensor:
    first = output[0] if isinstance(output, tuple) else output
    if not isinstance(first, Tensor):
        raise XTransplantError(f"A hooked module returned {type(first).__name__}, not a tensor.")
    return first


def _select(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A new cache with a copy of the given rows."""
    # Every layer of a cache made without a config is a DynamicLayer, with keys and values [B, heads, T, head size].
    parts: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore
    # Layers may lie on several devices.
    return DynamicCache([(keys[rows.to(keys.device)], values[rows.to(values.device)]) for keys, values in parts])


def _chunks(
    items: Sequence[tuple[int, tuple[int, ...]]], tokens_at_once: int, rows_at_once: int
) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    chunk: list[tuple[int, tuple[int, ...]]] = []
    tokens = 0
    for item in items:
        if chunk and (tokens + len(item[1]) > tokens_at_once or len(chunk) == rows_at_once):
            yield chunk
            chunk, tokens = [], 0
        chunk.append(item)
        tokens += len(item[1])
    if chunk:
        yield chunk
