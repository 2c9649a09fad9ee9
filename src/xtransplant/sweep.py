"""Every layer pair of a prompt pair in one pass, exact: the sweep.

Only the last prompt token changes, and only from the target layer up. So the prompt's beginning is run once; its last
token and the tree of choice tokens behind it are then run as one row, in the model's own forward, and the batch grows
inside (`shared_prefix.py`): at layer *j* a copy of the untouched row joins for each cell with that target, with the
cell's vector written at the last prompt token. The output head is run on the needed positions only (`output_head.py`).

While generating, a token's states at layers up to *j* do not see a transplant at *j*: cells whose texts agree so far
are one row up to their target layers (one row a distinct text), and are apart above it.

Where attention cannot be replaced, or more than the last prompt token is written to (see `why_slow`), the slower way is
taken: the same beginning, and a row for each cell through all layers (`engine.branches`).

Shapes: D documents, C cells, R rows = (1 + C)·D with the untouched row of each document first and the document
fastest, n nodes of the choices' tree, N layers, H hidden size.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from xtransplant import engine, output_head
from xtransplant.engine import Decoder, Writes
from xtransplant.processor import fast_products
from xtransplant.shared_prefix import Layout, OwnCache, SharedPrefix, Unsupported, forward, share
from xtransplant.types import PAPER, Cell, Component, Intervention, Scope, Site, XTransplantError

log = logging.getLogger(__name__)

_DEFAULT_MEMORY = 2 * 2**30
# Rows times tokens that keep a processor busy; more at once gains nothing.
_ENOUGH_TOKENS = {"cpu": 2048, "cuda": 32768}
# Documents at once: what a killed run has to do again, where there are few cells.
_MOST_DOCUMENTS = {"cpu": 32, "cuda": 256}


# Time of a sweep over that of its matrix products alone (benchmarks/README.md).
_OVERHEAD = 1.3
# Memory that was seen to be held over that of the tensors that are counted.
_HELD = 1.4


class Scores(NamedTuple):
    """What the cells make of one document's continuations; row 0 is the untouched prompt."""

    logprob: NDArray[np.float32]  # [1 + C, M], natural log, summed over the continuation's tokens
    greedy: NDArray[np.bool_]  # [1 + C, M], whether it is the greedy continuation


class Cost(NamedTuple):
    """An estimate for one document."""

    flops: float  # floating-point operations
    memory: int  # bytes beyond the model, at the peak


# --- Scoring ---------------------------------------------------------------------------------------------------------


@torch.inference_mode()
@fast_products()
def score_cells(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    vectors: Mapping[Component, Tensor],
    cells: Sequence[Cell],
    continuations: Sequence[Sequence[Sequence[int]]],
    how: Intervention = PAPER,
    memory: int = _DEFAULT_MEMORY,
) -> list[Scores]:
    """Log-probabilities of every document's continuations in every cell, and untouched.

    Args:
        prompts: token ids of the D target prompts.
        vectors: for each component that the cells name [N, D, H], as `engine.capture` gives it for the source prompts;
            [N, D, P, H] where `how` says P positions.
        continuations: token ids of each document's continuations, none empty.
        memory: bytes to stay below, beside the model; cells are taken in several passes where they do not fit.

    Raises:
        XTransplantError: a transplant was not made exactly once.
    """
    found: list[Scores | None] = [None] * len(prompts)
    slow = why_slow(decoder, how) is not None
    trees = [_Tree.of(choices) for choices in continuations]
    for chunk in batches(decoder, prompts, [tree.nodes for tree in trees], len(cells), memory):
        if slow or any(len(prompts[d]) == 1 for d in chunk):
            for d in chunk:
                found[d] = _score_slowly(decoder, prompts[d], vectors, d, cells, continuations[d], how, memory)
            continue
        nodes = max(trees[d].nodes for d in chunk)
        prefix = share(decoder, [prompts[d] for d in chunk])
        parts: dict[int, list[Scores]] = {d: [] for d in chunk}
        kept = sum(_prefix_bytes(decoder, len(prompts[d])) for d in chunk)
        rows_at_once = max(1, (memory - kept) // (len(chunk) * _row_bytes(decoder, nodes)) - 1)
        order = sorted(range(len(cells)), key=lambda c: cells[c].target)
        for start in range(0, max(1, len(order)), rows_at_once):
            some = [cells[c] for c in order[start : start + rows_at_once]]
            hidden = _grow(decoder, prefix, [trees[d] for d in chunk], chunk, vectors, some, how)
            for position, d in enumerate(chunk):
                parts[d].append(_score_tree(decoder, hidden[:, position], trees[d]))
        back = np.argsort(order, kind="stable")
        for d in chunk:
            joined = [np.concatenate([part[k][1:] for part in parts[d]])[back] for k in (0, 1)]
            first = parts[d][0]
            found[d] = Scores(
                np.concatenate([first.logprob[:1], joined[0]]), np.concatenate([first.greedy[:1], joined[1]])
            )
    return [scores for scores in found if scores is not None]


def usual_memory(decoder: Decoder) -> int:
    """Bytes beside the model: on a GPU a quarter of its memory, or half of what is free if that is less."""
    if decoder.device.type != "cuda":
        return _DEFAULT_MEMORY
    free, total = torch.cuda.mem_get_info(decoder.device)
    return min(total // 4, free // 2)


def count_nodes(choices: Sequence[Sequence[int]]) -> int:
    """Tokens that are run behind a prompt to score its choices, its last token included."""
    return _Tree.of(choices).nodes


@dataclass
class _Tree:
    """The distinct inputs behind a prompt: node 0 is its last token, the others the choices' tokens but the last."""

    tokens: list[int | None]  # [n]; None is the prompt's last token
    depth: list[int]  # [n]
    parents: list[int]  # [n]
    paths: list[list[tuple[int, int]]]  # for each choice, (node, token) of its factors

    @property
    def nodes(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, choices: Sequence[Sequence[int]]) -> _Tree:
        tree = cls([None], [0], [0], [])
        child: dict[tuple[int, int], int] = {}
        for choice in choices:
            node, path = 0, []
            for n, token in enumerate(choice):
                path.append((node, token))
                if n == len(choice) - 1:
                    break
                if (node, token) not in child:
                    child[node, token] = tree.nodes
                    tree.tokens.append(token)
                    tree.depth.append(tree.depth[node] + 1)
                    tree.parents.append(node)
                node = child[node, token]
            tree.paths.append(path)
        return tree

    def visible(self, width: int) -> Tensor:
        """[width, width]: which nodes a node attends to, itself and those before it; padding sees node 0."""
        seen = torch.zeros(width, width, dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            seen[node] |= seen[parent]
            seen[node, node] = True
        seen[self.nodes :, 0] = True
        return seen


def _grow(
    decoder: Decoder,
    prefix: SharedPrefix,
    trees: Sequence[_Tree],
    documents: Sequence[int],
    vectors: Mapping[Component, Tensor],
    cells: Sequence[Cell],
    how: Intervention,
    store: OwnCache | None = None,
) -> Tensor:
    """Final hidden states [1 + C, D, n, H] of the untouched rows and of the cells, given in the order of targets."""
    width = max(tree.nodes for tree in trees)
    ids = torch.tensor(
        [
            [last if token is None else token for token in tree.tokens] + [last] * (width - tree.nodes)
            for tree, last in zip(trees, prefix.last, strict=True)
        ]
    )
    depth = torch.tensor([tree.depth + [0] * (width - tree.nodes) for tree in trees])
    layout = Layout(prefix, depth, depth, torch.stack([tree.visible(width) for tree in trees]))
    count = len(documents)
    # Runs of one component: rows are in the order of the cells, whatever the components' order within a target.
    runs = [(key, list(run)) for key, run in groupby(cells, key=lambda cell: (cell.target, cell.component))]
    joining = Counter(cell.target for cell in cells)
    if store is not None:
        store.rows_below = [sum(joining[below] for below in range(layer)) for layer in range(decoder.num_layers)]
    written = 0
    own_vectors = {component: vectors[component][:, list(documents)] for component in {c.component for c in cells}}

    def write(start: int, group: list[Cell], component: Component) -> Callable[..., None]:
        sources = engine.index([cell.source for cell in group], own_vectors[component].device)

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            nonlocal written
            own = engine.first_tensor(output)
            rows = own.view(-1, width, own.shape[-1])[start : start + len(group) * count]
            chosen = own_vectors[component][sources]
            # In place: these rows are copies that nobody else reads.
            rows[:, 0] = engine.changed(rows[:, 0], chosen.reshape(-1, chosen.shape[-1]), how)
            written += len(rows)

        return hook

    def more(layer: int, hidden: Tensor) -> Tensor | None:
        return hidden[:count].repeat(joining[layer], 1, 1) if joining[layer] else None

    with ExitStack() as stack:
        row = count
        for (layer, component), run in runs:
            module = decoder.module_at(layer, component, how.site)
            stack.enter_context(module.register_forward_hook(write(row, run, component)))
            row += len(run) * count
        tokens = sum(tree.nodes for tree in trees)
        hidden = forward(decoder, layout, ids, prefix.lengths[:, None] + depth, more, store, tokens)
    if written != len(cells) * count:
        raise XTransplantError(f"{written} transplants were made for {len(cells)} cells of {count} prompts.")
    return hidden.view(1 + len(cells), count, width, -1)


def _score_tree(decoder: Decoder, hidden: Tensor, tree: _Tree) -> Scores:
    """Scores of one document from its rows' final hidden states [1 + C, n, H]."""
    tokens = sorted({token for path in tree.paths for _, token in path})
    place = {token: n for n, token in enumerate(tokens)}
    rows = len(hidden)
    flat = hidden[:, : tree.nodes].reshape(rows * tree.nodes, -1)
    found = output_head.read(decoder, flat, tokens)
    largest, normaliser = found.largest.view(rows, -1), found.normaliser.view(rows, -1)
    best = None if found.best is None else found.best.view(rows, -1)
    asked = found.asked.view(rows, tree.nodes, -1)
    logprobs, greedy = [], []
    for path in tree.paths:
        nodes = engine.index([node for node, _ in path], hidden.device)
        own = torch.stack([asked[:, node, place[token]] for node, token in path], 1)  # [1 + C, tokens]
        logprobs.append((own - normaliser[:, nodes]).double().sum(1).float())
        first = own >= largest[:, nodes]
        if best is not None:
            first &= best[:, nodes] == engine.index([token for _, token in path], best.device)
        greedy.append(first.all(1))
    return Scores(torch.stack(logprobs, 1).cpu().numpy(), torch.stack(greedy, 1).cpu().numpy())


def _score_slowly(
    decoder: Decoder,
    prompt: Sequence[int],
    vectors: Mapping[Component, Tensor],
    document: int,
    cells: Sequence[Cell],
    choices: Sequence[Sequence[int]],
    how: Intervention,
    memory: int,
) -> Scores:
    found: list[list[engine.Score]] = [[] for _ in range(1 + len(cells))]
    found[0] = engine.score(decoder, engine.prefill(decoder, [prompt]), [choices])[0]
    for rows, prefix in _slow_prefixes(decoder, prompt, vectors, document, cells, how, memory):
        for row, scores in zip(rows, engine.score(decoder, prefix, [choices] * len(rows)), strict=True):
            found[row] = scores
    return Scores(
        np.array([[score.logprob for score in scores] for scores in found], np.float32),
        np.array([[score.greedy for score in scores] for scores in found], np.bool_),
    )


def _slow_prefixes(
    decoder: Decoder,
    prompt: Sequence[int],
    vectors: Mapping[Component, Tensor],
    document: int,
    cells: Sequence[Cell],
    how: Intervention,
    memory: int,
) -> Iterator[tuple[list[int], engine.Prefix]]:
    """(rows of the result, their prefix): one row a cell through all layers, the prompt's beginning run once."""
    # A row has its own copy of the beginning's cache, and logits over the vocabulary in float32.
    per_row = _cache_bytes(decoder) * len(prompt) * 3 + 8 * decoder.vocab_size
    at_once = int(max(1, memory // per_row))
    for component in dict.fromkeys(cell.component for cell in cells):
        rows = [1 + c for c, cell in enumerate(cells) if cell.component is component]
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            chosen = [cells[row - 1] for row in some]
            written = vectors[component][[cell.source for cell in chosen], document]
            yield (
                some,
                engine.branches(decoder, prompt, Writes(component, [cell.target for cell in chosen], written, how)),
            )


# --- Generation ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
@fast_products()
def generate_cells(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    vectors: Mapping[Component, Tensor],
    cells: Sequence[Cell],
    max_new_tokens: int,
    ended: Callable[[list[int]], bool],
    how: Intervention = PAPER,
    memory: int = _DEFAULT_MEMORY,
    choose: Callable[[int, list[int], Tensor], list[int]] | None = None,
) -> list[list[list[int]]]:
    """Continue every document in every cell, and untouched (row 0), until `ended(new tokens)` or `max_new_tokens`.

    Args:
        choose: (document, rows that go on [K], logits [K, V]) -> next token of each; None is greedy. Given, the slower
            way is taken, which has all logits.

    Returns:
        for each document 1 + C lists of new token ids, the ending token included.
    """
    if max_new_tokens < 1:
        return [[[] for _ in range(1 + len(cells))] for _ in prompts]
    found = []
    slow = why_slow(decoder, how) is not None or choose is not None
    for d, prompt in enumerate(prompts):
        if slow or len(prompt) == 1:
            found.append(
                _generate_slowly(decoder, prompt, vectors, d, cells, max_new_tokens, ended, how, memory, choose)
            )
            continue
        prefix = share(decoder, [prompt])
        per_row = _row_bytes(decoder, 1) + 2 * _cache_bytes(decoder) * (max_new_tokens + 1)
        kept = _prefix_bytes(decoder, len(prompt)) + output_head.screen_bytes(decoder)
        at_once = max(1, (memory - kept) // per_row)
        order = sorted(range(len(cells)), key=lambda c: cells[c].target)
        texts: list[list[int]] = [[] for _ in range(1 + len(cells))]
        for start in range(0, max(1, len(order)), at_once):
            some = order[start : start + at_once]
            chosen = [cells[c] for c in some]
            generated = _generate_fast(decoder, prefix, d, vectors, chosen, max_new_tokens, ended, how)
            for row, text in zip([0, *(1 + c for c in some)], generated, strict=True):
                texts[row] = text
        found.append(texts)
    return found


def _generate_fast(
    decoder: Decoder,
    prefix: SharedPrefix,
    document: int,
    vectors: Mapping[Component, Tensor],
    cells: Sequence[Cell],
    max_new_tokens: int,
    ended: Callable[[list[int]], bool],
    how: Intervention,
) -> list[list[int]]:
    """Texts of the untouched prompt and of the cells, which are in the order of their targets."""
    top = decoder.num_layers - 1
    store = OwnCache()
    hidden = _grow(decoder, prefix, [_Tree.of([[0]])], [document], vectors, cells, how, store)
    tokens = output_head.greedy(decoder, hidden[:, 0, 0])
    generated = [[token] for token in tokens]
    # Row 0 is the untouched prompt; a transplant at the top layer leaves no trace in the cache, so both only ever
    # need the row of their text.
    alive = [row for row in range(1 + len(cells)) if not ended(generated[row])]
    stays = [True, *(cell.target == top for cell in cells)]
    # Texts before this step as rows of the store, and the cells that have rows there.
    text_rows: dict[tuple[int, ...], int] = {(): 0}
    stored = [row for row in range(1, 1 + len(cells)) if not stays[row]]
    for step in range(1, max_new_tokens):
        if not alive:
            break
        texts = list(dict.fromkeys(tuple(generated[row]) for row in alive))
        place = {text: n for n, text in enumerate(texts)}
        apart = [row for row in alive if not stays[row]]
        at = {row: n for n, row in enumerate(stored)}
        store.select([text_rows[text[:-1]] for text in texts], [at[row] for row in apart])
        text_rows, stored = place, apart
        joining: list[list[int]] = [[] for _ in range(decoder.num_layers)]
        for row in apart:
            joining[cells[row - 1].target + 1].append(place[tuple(generated[row])])

        def more(layer: int, hidden: Tensor, joining: list[list[int]] = joining) -> Tensor | None:
            return hidden[engine.index(joining[layer], hidden.device)] if joining[layer] else None

        own = torch.arange(step + 1)[None]
        layout = Layout(prefix, own[:, -1:], own, torch.ones(1, 1, step + 1, dtype=torch.bool))
        ids = torch.tensor([[text[-1]] for text in texts])
        states = forward(decoder, layout, ids, prefix.lengths[:, None] + step, more, store)
        # Rows of the answers: a cell's own, or that of its text.
        needed = {row: len(texts) + n for n, row in enumerate(apart)}
        needed |= {row: place[tuple(generated[row])] for row in alive if stays[row]}
        rows = sorted(set(needed.values()))
        answers = output_head.greedy(decoder, states[engine.index(rows, states.device), 0])
        following = dict(zip(rows, answers, strict=True))
        for row in alive:
            generated[row].append(following[needed[row]])
        memo = {text: ended(list(text)) for text in {tuple(generated[row]) for row in alive}}
        alive = [row for row in alive if not memo[tuple(generated[row])]]
    return generated


def _generate_slowly(
    decoder: Decoder,
    prompt: Sequence[int],
    vectors: Mapping[Component, Tensor],
    document: int,
    cells: Sequence[Cell],
    max_new_tokens: int,
    ended: Callable[[list[int]], bool],
    how: Intervention,
    memory: int,
    choose: Callable[[int, list[int], Tensor], list[int]] | None,
) -> list[list[int]]:
    def continued(rows: list[int], prefix: engine.Prefix) -> list[list[int]]:
        def of_rows(going: list[int], logits: Tensor) -> list[int]:
            assert choose is not None
            return choose(document, [rows[row] for row in going], logits)

        return engine.generate(decoder, prefix, max_new_tokens, ended, of_rows if choose is not None else None)

    texts: list[list[int]] = [[] for _ in range(1 + len(cells))]
    texts[0] = continued([0], engine.prefill(decoder, [prompt]))[0]
    for rows, prefix in _slow_prefixes(decoder, prompt, vectors, document, cells, how, memory):
        for row, text in zip(rows, continued(rows, prefix), strict=True):
            texts[row] = text
    return texts


# --- Which way, and what it costs ------------------------------------------------------------------------------------

_slow: WeakKeyDictionary[nn.Module, dict[tuple[Site, bool], str | None]] = WeakKeyDictionary()


def why_slow(decoder: Decoder, how: Intervention = PAPER) -> str | None:
    """Why a model's cells are not swept in the growing batch; None if they are.

    Found once a model by trying: a few cells of two short prompts must give what the slower way gives.
    """
    known = _slow.setdefault(decoder.model, {})
    only_last = how.positions == 1 and how.scope is Scope.first_token
    if (how.site, only_last) not in known:
        with decoder.unmetered():
            why = _try(decoder, how.site) if only_last else "more than the last prompt token is written to"
        known[how.site, only_last] = why
        if why is not None:
            log.info("Slower, exact sweep (one row a cell through all layers): %s.", why)
        else:
            log.info("Fast sweep: rows join at their target layers and share the prompt's cache.")
    return known[how.site, only_last]


@torch.inference_mode()
@fast_products()
def _try(decoder: Decoder, site: Site) -> str | None:
    if not decoder.takes_positions:
        return "the model takes no position ids"
    if type(decoder.model.get_output_embeddings()) is not nn.Linear:
        return "the output head is not a plain linear layer"
    top = decoder.num_layers - 1
    components = (Component.ffn, Component.attn)
    cells = [Cell(component, *pair) for component in components for pair in ((top, 0), (0, top), (top // 2, top // 2))]
    prompts = [[token % decoder.vocab_size for token in range(5, 5 + length)] for length in (9, 6)]
    choices = [[[7, 8], [7, 9], [4]], [[6]]]
    vectors = engine.capture(decoder, prompts[::-1], components, site)
    try:
        prefix = share(decoder, prompts)
        trees = [_Tree.of(each) for each in choices]
        ordered = sorted(cells, key=lambda cell: cell.target)
        how = Intervention(site)
        hidden = _grow(decoder, prefix, trees, [0, 1], vectors, ordered, how)
        worst = 0.0
        for d in (0, 1):
            fast = _score_tree(decoder, hidden[:, d], trees[d])
            exact = _score_slowly(decoder, prompts[d], vectors, d, ordered, choices[d], how, _DEFAULT_MEMORY)
            # Relative: these prompts are no text, and a log-probability of -50 has rounding errors of its own size.
            difference = np.abs(fast.logprob - exact.logprob) / (1 + np.abs(exact.logprob))
            worst = float(np.maximum(worst, difference.max()))  # unlike max, it keeps a NaN
    except torch.OutOfMemoryError:
        raise  # says nothing about the model
    except (Unsupported, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        if isinstance(error, RuntimeError):
            log.warning("The fast sweep failed on this model, for a reason that is not foreseen: %s.", why)
        return f"its attention cannot be replaced ({why})"
    if not worst <= (1e-3 if decoder.model.dtype.itemsize >= 4 else 0.1):
        return f"rows that join give log-probabilities that differ by {worst:.2g} of their size"
    return None


@torch.inference_mode()
@fast_products()
def seconds(decoder: Decoder, flops: float) -> float:
    """How long so many floating-point operations of a sweep take here, from the measured rate of a matrix product."""
    weight = decoder.model.get_input_embeddings().weight[: output_head.COLUMNS]
    hidden = torch.ones(output_head.ROWS, weight.shape[1], dtype=weight.dtype, device=weight.device)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        # Read back: a GPU has then finished.
        functional.linear(hidden, weight)[0, 0].item()
        times.append(time.perf_counter() - started)
    rate = 2 * hidden.numel() * len(weight) / min(times)
    return _OVERHEAD * flops / rate


def cost(
    decoder: Decoder, prompt_tokens: int, nodes: int, cells: Sequence[Cell], how: Intervention, new_tokens: int = 0
) -> Cost:
    """Floating-point operations and peak memory of one document's sweep, estimated; its source vectors are there.

    Args:
        nodes: tokens run behind the prompt for its choices, its last token included; 1 when generating.
        new_tokens: of a generated answer; every cell is counted as if its text were its own.
    """
    per_layer = decoder.work_of(1).flops / decoder.num_layers  # a token in one layer
    head = decoder.work_of(0, 1).flops
    fast = why_slow(decoder, how) is None
    row_layers = sum(decoder.num_layers - cell.target if fast else decoder.num_layers for cell in cells)
    tokens = nodes + max(0, new_tokens - 1)
    flops = decoder.work_of(prompt_tokens).flops + tokens * (row_layers * per_layer + (1 + len(cells)) * head)
    per_row, kept = _row_bytes(decoder, nodes), _prefix_bytes(decoder, prompt_tokens)
    if new_tokens:
        per_row += 2 * _cache_bytes(decoder) * new_tokens
        kept += output_head.screen_bytes(decoder) if fast else 0
    return Cost(flops, per_row * (1 + len(cells)) + kept)


def _row_bytes(decoder: Decoder, nodes: int) -> int:
    """Peak bytes of a row in a layer: hidden states, the widest module, queries and their folded copies."""
    config = decoder.model.config.get_text_config(decoder=True)
    inner = getattr(config, "intermediate_size", None) or 4 * decoder.hidden_size
    heads = config.num_attention_heads * (getattr(config, "head_dim", None) or 0) or decoder.hidden_size
    width: int = 6 * decoder.hidden_size + 3 * inner + 8 * heads
    return int(_HELD * nodes * width * max(4, decoder.model.dtype.itemsize))


def _prefix_bytes(decoder: Decoder, prompt_tokens: int) -> int:
    """Of a document's beginning: its cache, and what is in a layer at once while it is run."""
    return prompt_tokens * (_cache_bytes(decoder) + _row_bytes(decoder, 1))


def _cache_bytes(decoder: Decoder) -> int:
    """Keys and values of a token in all layers."""
    config = decoder.model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or decoder.hidden_size // config.num_attention_heads
    return int(2 * decoder.num_layers * heads * size * decoder.model.dtype.itemsize)


def batches(
    decoder: Decoder, prompts: Sequence[Sequence[int]], nodes: Sequence[int], cells: int, memory: int
) -> Iterator[list[int]]:
    """Documents to take at once: one if it keeps the processor busy, else several of like length, the longest first."""
    order = sorted(range(len(prompts)), key=lambda d: (-len(prompts[d]), d))
    enough = _ENOUGH_TOKENS.get(decoder.device.type, _ENOUGH_TOKENS["cuda"])
    most = _MOST_DOCUMENTS.get(decoder.device.type, _MOST_DOCUMENTS["cuda"])
    chunk: list[int] = []
    for d in order:
        width = max([nodes[d], *(nodes[each] for each in chunk)])
        documents = len(chunk) + 1
        rows = documents * (1 + cells)
        longest = len(prompts[chunk[0]]) if chunk else 0
        needed = rows * _row_bytes(decoder, width) + documents * _prefix_bytes(decoder, longest)
        if chunk and (documents > most or rows * width > enough or needed > memory):
            yield chunk
            chunk = []
        chunk.append(d)
    if chunk:
        yield chunk
