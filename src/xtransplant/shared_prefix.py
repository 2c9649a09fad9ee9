"""The model's own forward on rows that share their beginning and join on the way up.

The beginning's keys and values are kept once a document and never copied: every row attends to them and to its own few
tokens, and the two parts of the softmax are merged by their log-sum-exp. Works where a model calls Transformers'
attention interface; `Unsupported` says where it does not.

Shapes: D documents, R rows (the document is the fastest index), n tokens of a row in this forward, t own tokens of a
row so far, P tokens of the beginning (left-padded), H hidden size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from xtransplant.engine import Decoder, index

_ATTENTION = "xtransplant_shared"
# Of a tensor of attention logits, of which a few are held at once.
_LOGIT_BYTES = 2**26


@dataclass
class SharedPrefix:
    """The beginnings of D prompts: all but their last token."""

    layers: list[tuple[Tensor, Tensor]]  # keys, values [D, heads, P, head size]
    mask: Tensor  # [D, P] bool
    lengths: Tensor  # [D]: tokens of the beginning, hence the position of the prompt's last token
    last: list[int]  # its token id


def share(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> SharedPrefix:
    """Run the beginnings of D prompts, each of two tokens or more."""
    cache = DynamicCache()
    _, mask = decoder.forward([prompt[:-1] for prompt in prompts], cache)
    layers: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore
    return SharedPrefix(layers, mask.bool(), mask.sum(1).cpu(), [prompt[-1] for prompt in prompts])


class Unsupported(Exception):
    """The model's attention has a part that the shared attention does not know."""


class Layout:
    """What the attention function needs beside its arguments, during one forward."""

    def __init__(self, prefix: SharedPrefix, depth: Tensor, own_depth: Tensor, own_visible: Tensor) -> None:
        """depth [D, n] of the queries behind the beginning; own_depth [D, t], own_visible [D, n, t] of own tokens."""
        self.prefix, self.depth, self.own_depth, self.own_visible = prefix, depth, own_depth, own_visible
        self.calls = 0
        self._masks: dict[Any, Any] = {}

    def prefix_visible(self, window: int | None, device: torch.device) -> tuple[int, Tensor | None]:
        """The first column that any query sees, and, from there on, [D, n, P] where not all see all."""
        key = ("prefix", window, device)
        if key not in self._masks:
            mask = self.prefix.mask.cpu()
            columns = mask.shape[1]
            visible = mask[:, None, :].expand(-1, self.depth.shape[1], -1)
            if window is not None:
                distance = columns + self.depth[:, :, None] - torch.arange(columns)
                visible = visible & (distance < window)
            used = visible.any(0).any(0)
            first = int(used.to(torch.int8).argmax()) if bool(used.any()) else columns
            visible = visible[:, :, first:]
            self._masks[key] = first, None if bool(visible.all()) else visible.to(device)
        found: tuple[int, Tensor | None] = self._masks[key]
        return found

    def own_bias(self, window: int | None, device: torch.device) -> Tensor | None:
        """[D, n, t]: 0 where a query sees an own token, else -inf; None if all see all."""
        key = ("own", window, device)
        if key not in self._masks:
            visible = self.own_visible
            if window is not None:
                visible = visible & (self.depth[:, :, None] - self.own_depth[:, None, :] < window)
            bias = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
            self._masks[key] = None if bool(visible.all()) else bias.to(device)
        found: Tensor | None = self._masks[key]
        return found


@dataclass
class OwnCache:
    """Own keys and values of every layer while generating: [rows, heads, t, head size], a pair for each layer.

    Rows at layer l: one for each distinct text, then the cells with a target below l.
    """

    rows_below: list[int] = field(default_factory=list)  # for each layer, cells with a target below it
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def select(self, texts: Sequence[int], cells: Sequence[int]) -> None:
        """Keep the given texts (a text that branches is there twice) and cells, both as rows of their own kind."""
        some = next(iter(self.layers))
        old = len(self.layers[some][0]) - self.rows_below[some]  # texts so far
        for layer, (keys, values) in self.layers.items():
            kept = [cell for cell in cells if cell < self.rows_below[layer]]
            rows = index([*texts, *(old + cell for cell in kept)], keys.device)
            self.layers[layer] = keys[rows], values[rows]
            self.rows_below[layer] = len(kept)


def forward(
    decoder: Decoder,
    layout: Layout,
    ids: Tensor,
    positions: Tensor,
    more: Callable[[int, Tensor], Tensor | None],
    store: OwnCache | None,
    tokens: int | None = None,
) -> Tensor:
    """The base model on token ids [rows, n], where `more(layer, hidden)` says which rows join before a layer.

    Args:
        positions: [rows, n], from the beginning of the prompt.
        store: where the rows' own keys and values are kept for the next token; None: nowhere.
        tokens: of the ids, without padding; None: all. Rows that join have as many as those that they are copies of.

    Returns:
        final hidden states [all rows, n, H].

    Raises:
        Unsupported: some layer's attention is not the shared one, or has a part that it does not know.
    """
    base = len(positions)
    tokens = ids.numel() if tokens is None else tokens
    seen = int(positions.min())
    # So many rows join that every layer's tensors outgrow the last one's. Later tokens are too short to be worth it.
    trims = store is None or not store.layers

    def join(layer: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            named = not args
            hidden: Tensor = kwargs["hidden_states"] if named else args[0]
            joining = more(layer, hidden)
            if joining is not None:
                if trims and hidden.device.type == "cpu":
                    _return_freed_memory()
                hidden = torch.cat([hidden, joining.to(hidden)])
            decoder.work.flops += 2 * decoder.layer_weights[layer] * (len(hidden) * tokens // base)
            if base > 1:  # a single document's positions are broadcast
                kwargs = {name: _repeated(value, base, len(hidden)) for name, value in kwargs.items()}
                args = tuple(_repeated(value, base, len(hidden)) for value in args)
            if named:
                return args, {**kwargs, "hidden_states": hidden}
            return (hidden, *args[1:]), kwargs

        return hook

    with ExitStack() as stack:
        for layer, module in enumerate(decoder.layers):
            stack.enter_context(module.register_forward_pre_hook(join(layer), with_kwargs=True))
        stack.enter_context(_attention_of(decoder, layout))
        device = decoder.device
        output = decoder.model.base_model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            past_key_values=Cache(layers=[_OwnTokens(n, store, seen) for n in range(decoder.num_layers)]),
            use_cache=True,
        )
    if layout.calls != decoder.num_layers:
        raise Unsupported(f"{layout.calls} of {decoder.num_layers} layers call the attention function")
    hidden: Tensor = output.last_hidden_state
    decoder.work.tokens += len(hidden) * tokens // base
    return hidden


def _return_freed_memory() -> None:
    """Give back what the C library keeps of freed tensors.

    It keeps those of up to 32 MB for later ones, which are larger here and find no room in it: without this, a sweep
    whose tensors took 0.4 GB at a time was seen to hold 1.6 GB.
    """
    if _trim is not None:
        _trim(0)


def _find_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None  # another C library than glibc
    return found


_trim = _find_trim()


def _repeated(value: Any, base: int, rows: int) -> Any:
    """What belongs to the D untouched rows, for all rows: the document is the fastest index."""
    if isinstance(value, tuple):
        return tuple(_repeated(each, base, rows) for each in value)
    if isinstance(value, Tensor) and value.dim() > 1 and len(value) == base:
        return value.repeat(rows // base, *[1] * (value.dim() - 1))
    return value


@contextmanager
def _attention_of(decoder: Decoder, layout: Layout) -> Iterator[None]:
    """While open, the model's attention is the shared one."""
    global _active
    config = decoder.model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    AttentionInterface.register(_ATTENTION, _shared_attention)
    _active = layout
    # Set without the checks of the public setter: they ask what the model supports of the known implementations.
    config._attn_implementation_internal = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation_internal = before
        _active = None


class _OwnTokens(DynamicLayer):
    """A cache layer that hands back a row's own tokens only."""

    def __init__(self, layer: int, store: OwnCache | None, seen: int) -> None:
        super().__init__()
        self.layer, self.store, self.seen = layer, store, seen

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.store is None:
            return key_states, value_states
        before = self.store.layers.get(self.layer)
        if before is None:
            # Rows that join at this layer have the untouched row's keys and values here.
            kept = slice(0, 1 + self.store.rows_below[self.layer])
            self.store.layers[self.layer] = key_states[kept], value_states[kept]
            return key_states, value_states
        keys = torch.cat([before[0], key_states], dim=2)
        values = torch.cat([before[1], value_states], dim=2)
        self.store.layers[self.layer] = keys, values
        return keys, values

    def get_seq_length(self) -> int:
        return self.seen


_active: Layout | None = None


def _shared_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of rows to the shared beginning and to their own tokens.

    Args:
        query: [R, heads, n, head size]; key, value: own tokens only, [R, key heads, t, head size].

    Returns:
        [R, n, heads, head size].
    """
    layout, layer = _active, getattr(module, "layer_idx", None)
    unknown = [name for name in ("s_aux", "position_bias", "head_mask") if kwargs.get(name) is not None]
    if layout is None or layer is None or attention_mask is not None or unknown:
        raise Unsupported(f"{type(module).__name__}: {', '.join(unknown) or 'mask or layer index'}")
    layout.calls += 1
    keys, values = layout.prefix.layers[layer]
    rows, heads, n, size = query.shape
    documents, key_heads = keys.shape[:2]
    groups, copies = heads // key_heads, rows // documents
    scale = size**-0.5 if scaling is None else scaling
    split = query.reshape(copies, documents, key_heads, groups, n, size)

    # The shared part: the queries of all of a document's rows in one call.
    first, visible = layout.prefix_visible(sliding_window, query.device)
    folded = split.permute(1, 2, 0, 3, 4, 5).reshape(documents, key_heads, copies * groups * n, size)
    if visible is not None:
        visible = visible[:, None, None, None].expand(-1, 1, copies, groups, -1, -1).flatten(2, 4)
    shared_out, shared_lse = _attend(folded, keys[:, :, first:], values[:, :, first:], visible, scale, softcap)
    shared_out = shared_out.view(documents, key_heads, copies, groups, n, -1).permute(2, 0, 1, 3, 4, 5)
    shared_lse = shared_lse.view(documents, key_heads, copies, groups, n).permute(2, 0, 1, 3, 4)

    # The row's own tokens.
    logits = torch.matmul(split.reshape(rows, key_heads, groups * n, size), key.transpose(-1, -2)).float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.view(copies, documents, key_heads, groups, n, -1)
    bias = layout.own_bias(sliding_window, query.device)
    if bias is not None:
        logits = logits + bias[:, None, None]

    largest = torch.maximum(logits.amax(-1), shared_lse)
    own = torch.exp(logits - largest[..., None])
    weight = torch.exp(shared_lse - largest)
    total = own.sum(-1) + weight
    own_out = torch.matmul(own.view(rows, key_heads, groups * n, -1).to(value), value)
    own_out = own_out.view(copies, documents, key_heads, groups, n, -1)
    out = (own_out + weight[..., None] * shared_out) / total[..., None]
    # [copies, D, key heads, groups, n, size] -> [R, n, heads, size]
    return out.permute(0, 1, 4, 2, 3, 5).reshape(rows, n, heads, -1).to(query.dtype), None


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Attention [D, heads, L, size] and the log-sum-exp of its logits [D, heads, L] (-inf where nothing is seen)."""
    plain = query.device.type == "cpu" and softcap is None and query.shape[-1] == values.shape[-1]
    if not plain or visible is not None:
        # Logits, or a mask of their size, are held: some queries at a time.
        at_once = max(1, _LOGIT_BYTES // (4 * len(query) * query.shape[1] * max(1, keys.shape[2])))
        if query.shape[2] > at_once:
            queries = query.split(at_once, 2)
            seen = [None] * len(queries) if visible is None else visible.split(at_once, 2)
            parts = [_attend(some, keys, values, own, scale, softcap) for some, own in zip(queries, seen, strict=True)]
            return torch.cat([out for out, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)
    if keys.shape[2] == 0:
        return query.new_zeros(*query.shape[:3], values.shape[-1]), query.new_full(query.shape[:3], float("-inf"))
    if plain:
        bias = None if visible is None else torch.zeros(visible.shape).masked_fill_(~visible, float("-inf")).to(query)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, False, attn_mask=bias, scale=scale
        )
    else:
        logits = torch.matmul(query, keys.transpose(-1, -2)).float() * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if visible is not None:
            logits = logits.masked_fill(~visible, float("-inf"))
        largest = logits.amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
        weights = torch.exp(logits - largest)
        total = weights.sum(-1, keepdim=True)
        out = torch.matmul((weights / total.clamp(min=1e-30)).to(values), values)
        lse = (largest + torch.log(total)).squeeze(-1)
    if visible is not None:
        # The kernel gives 0 there.
        lse = lse.masked_fill(~visible.any(-1), float("-inf"))
    return out, lse
