"""All layer pairs of a document at once (`xtransplant.sweep`) against a loop over the pairs and the authors' procedure.

    python benchmarks/sweep_speed.py model=gemma3_270m task=paper_xnli_mc language_pair=en-sw \\
        [documents=2] [first_document=0] [rounds=3] [pairs_measured=3] [shape=llama2_7b]

Keys are those of `xtransplant evaluate` (transplant.component and transplant.site among them) and the five shown.
`shape`: random weights of that size, made in place, with the tokenizer of `model`. Prints JSON. Per document, in CPU
seconds of one thread, with `model.device=cuda` in seconds of the clock; all interleaved in every round:

    S   one source pass
    V   one stock forward over all choices of the document: a batch of the full prompt with each choice, the output
        head where choices are read only; and once with the head everywhere, as most harnesses run it
    A   the loop over pairs: S once, then V with a hook for every pair
    B   the authors' procedure: for every pair a source pass and 20 greedy tokens of the target prompt
    D   our sweep: every pair, the source pass included; all documents in one call, as a grid has them

A and B run on a few random pairs, others in each round, and are extrapolated to all. A task that generates is compared
with B alone, V being the vanilla generation. S, V, A and B are transformers and plain hooks: they share no code with
the sweep but the module that is hooked.
"""

from __future__ import annotations

import functools
import json
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PretrainedConfig

from xtransplant import engine, pairing
from xtransplant.compose import compose
from xtransplant.config import EvaluateConfig
from xtransplant.engine import Decoder
from xtransplant.lm import TransplantLM, load_decoder
from xtransplant.processor import fast_products
from xtransplant.types import Cell, Component, Intervention, Site

AUTHORS_NEW_TOKENS = 20
HEAD_COLUMNS = 8192  # of the vocabulary in one product, where the output head's rate is measured
GB = 1e9
# Random weights are as fast as trained ones.
SHAPES = {
    "llama2_7b": LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        max_position_embeddings=4096,
    )
}
T = TypeVar("T")


@dataclass
class Document:
    key: str
    source: list[int]  # token ids of the source prompt
    target: list[int]  # of the target prompt
    choices: list[list[int]]  # of each choice; empty where the task generates
    max_new_tokens: int


@dataclass
class Sweep:
    """What is measured: a model's component at a site, on all layer pairs."""

    decoder: Decoder
    component: Component
    site: Site

    @functools.cached_property
    def memory(self) -> int:
        """Bytes beside the model, as a grid has by default."""
        from xtransplant.sweep import usual_memory

        return usual_memory(self.decoder)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        layers = range(self.decoder.num_layers)
        return [(source, target) for source in layers for target in layers]

    @property
    def cells(self) -> list[Cell]:
        return [Cell(self.component, *pair) for pair in self.pairs]

    def module(self, layer: int) -> nn.Module:
        return self.decoder.module_at(layer, self.component, self.site)


# --- S, V, A, B: transformers and hooks --------------------------------------------------------------------------


def source_pass(sweep: Sweep, document: Document) -> list[Tensor]:
    """The last token's output of the component in every layer: N vectors [H]."""
    found: list[Tensor] = []
    handles = [
        sweep.module(layer).register_forward_hook(lambda module, args, output: found.append(_hidden(output)[0, -1]))
        for layer in range(sweep.decoder.num_layers)
    ]
    sweep.decoder.model.base_model(input_ids=on_device(sweep, [document.source]), use_cache=False)
    for handle in handles:
        handle.remove()
    return [vector.clone() for vector in found]


def score_choices(sweep: Sweep, document: Document) -> list[float]:
    """Log-probability of every choice: one forward, one row a choice, logits where choices are read only."""
    rows, at = choice_rows(sweep, document)
    logits = sweep.decoder.model(input_ids=rows, use_cache=False, logits_to_keep=at).logits
    return choice_logprobs(logits, document)


def score_choices_all_logits(sweep: Sweep, document: Document) -> list[float]:
    """The same, with the logits of every token of the prompt."""
    rows, at = choice_rows(sweep, document)
    logits = sweep.decoder.model(input_ids=rows, use_cache=False).logits[:, at]
    return choice_logprobs(logits, document)


def choice_rows(sweep: Sweep, document: Document) -> tuple[Tensor, Tensor]:
    """The full prompt with each choice, and the positions where choices are read.

    Padded at the end, where causal attention keeps it from mattering.
    """
    longest = max(map(len, document.choices))
    rows = [document.target + choice + [0] * (longest - len(choice)) for choice in document.choices]
    first = len(document.target) - 1
    at = torch.arange(first, first + longest, device=sweep.decoder.device)
    return on_device(sweep, rows)[:, :-1], at


def choice_logprobs(logits: Tensor, document: Document) -> list[float]:
    """Logits [choices, longest choice, V] -> natural log, summed over each choice's tokens."""
    logprobs = logits.float().log_softmax(-1)
    return [
        float(sum(logprobs[row, n, token] for n, token in enumerate(choice)))
        for row, choice in enumerate(document.choices)
    ]


@contextmanager
def written(module: nn.Module, position: int, vector: Tensor) -> Iterator[None]:
    """Inside, the module's output at a prompt's last token is the given vector; in its first call only."""
    calls = 0

    def write(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:  # a later token of a generation
            return output
        hidden = _hidden(output).clone()
        hidden[:, position] = vector
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = module.register_forward_hook(write)
    try:
        yield
    finally:
        handle.remove()


def hooked_loop(
    sweep: Sweep, document: Document, vectors: list[Tensor], pairs: list[tuple[int, int]]
) -> list[list[float]]:
    """A, without its source pass: V with a hook for every pair."""
    found = []
    for source, target in pairs:
        with written(sweep.module(target), len(document.target) - 1, vectors[source]):
            found.append(score_choices(sweep, document))
    return found


def authors_loop(sweep: Sweep, document: Document, pairs: list[tuple[int, int]]) -> list[list[int]]:
    """B: the authors' procedure for every pair. The new tokens."""
    return [authors_procedure(sweep, document, pair) for pair in pairs]


def authors_procedure(sweep: Sweep, document: Document, pair: tuple[int, int]) -> list[int]:
    """B, one pair: the source prompt generates one token, the target prompt its answer."""
    source, target = pair
    found: list[Tensor] = []
    module = sweep.module(source)
    handle = module.register_forward_hook(lambda module, args, output: found.append(_hidden(output)[0, -1].clone()))
    stock_generate(sweep, document.source, 1)
    handle.remove()
    with written(sweep.module(target), len(document.target) - 1, found[0]):
        return stock_generate(sweep, document.target, document.max_new_tokens)


def stock_generate(sweep: Sweep, prompt: list[int], max_new_tokens: int) -> list[int]:
    """Greedy; ends with the model's end-of-text token. The new tokens."""
    model = sweep.decoder.model
    ends = end_tokens(sweep.decoder)
    ids = on_device(sweep, [prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=ends[0]
        ),
    )
    return out[0, len(prompt) :].tolist()


def on_device(sweep: Sweep, ids: list[list[int]]) -> Tensor:
    return torch.tensor(ids, device=sweep.decoder.device)


def end_tokens(decoder: Decoder) -> list[int]:
    ends = decoder.model.generation_config.eos_token_id
    ends = decoder.tokenizer.eos_token_id if ends is None else ends
    return list(ends) if isinstance(ends, list) else [ends]


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


# --- D -----------------------------------------------------------------------------------------------------------


def our_scores(sweep: Sweep, documents: list[Document]) -> list[list[list[float]]]:
    """D: of every document, vanilla and then every pair: the log-probability of every choice."""
    from xtransplant.sweep import score_cells

    vectors = engine.capture(sweep.decoder, [d.source for d in documents], [sweep.component], sweep.site)
    targets, choices = [d.target for d in documents], [d.choices for d in documents]
    found = score_cells(sweep.decoder, targets, vectors, sweep.cells, choices, Intervention(sweep.site), sweep.memory)
    return [scores.logprob.tolist() for scores in found]


def our_texts(sweep: Sweep, documents: list[Document]) -> list[list[list[int]]]:
    """D of a task that generates: of every document, vanilla and then every pair: the new tokens."""
    from xtransplant.sweep import generate_cells

    ends = set(end_tokens(sweep.decoder))
    vectors = engine.capture(sweep.decoder, [d.source for d in documents], [sweep.component], sweep.site)
    return generate_cells(
        sweep.decoder,
        [d.target for d in documents],
        vectors,
        sweep.cells,
        max(d.max_new_tokens for d in documents),
        lambda tokens: tokens[-1] in ends,
        Intervention(sweep.site),
        sweep.memory,
    )


def way_of(sweep: Sweep) -> str:
    """Which way the model is swept. Found once a model, on made-up prompts of a few tokens: not a document's cost."""
    from xtransplant.sweep import why_slow

    reason = why_slow(sweep.decoder, Intervention(sweep.site))
    return "fast: rows join at their target layers" if reason is None else f"slower: {reason}"


# --- The least that D can cost -----------------------------------------------------------------------------------


@dataclass
class Products:
    """Matrix products of one part of D: tokens that pass through linear layers of the given shapes."""

    tokens: int  # how many in all, each through every shape
    shapes: list[tuple[int, int]]  # (inputs, outputs)
    rows: int  # tokens of one product, where the rate is measured

    @property
    def operations(self) -> int:
        return 2 * self.tokens * sum(inputs * outputs for inputs, outputs in self.shapes)


def products_of(sweep: Sweep, document: Document) -> dict[str, Products]:
    """Every matrix product with weights that a sweep of one document makes.

    N layers, n tokens in a row: the prompt's last and those of the choices that another token follows, each distinct
    beginning once. The rows that are written at layer j begin at layer j: N rows through N - j layers, in all
    N^2 (N+1) / 2 row-layers, and one vanilla row through N.
    """
    N = sweep.decoder.num_layers
    n = nodes_of(document)
    shapes = _linear_shapes(sweep.decoder.layers[0])
    if any(sorted(_linear_shapes(layer)) != sorted(shapes) for layer in sweep.decoder.layers):
        raise SystemExit("The layers differ in shape: their operations are not counted.")
    prefix = len(document.target) - 1
    head = sweep.decoder.model.get_output_embeddings().weight
    return {
        "source pass": Products(len(document.source) * N, shapes, len(document.source)),
        "prefix": Products(prefix * N, shapes, prefix),
        # The rate in the middle layer: half of the rows.
        "rows": Products(n * (N + N * N * (N + 1) // 2), shapes, n * (1 + N * N // 2)),
        "head": Products(n * (1 + N * N), [(head.shape[1], head.shape[0])], 256),
    }


def nodes_of(document: Document) -> int:
    """Distinct beginnings of the choices that a token is read after, the empty one included."""
    return len({tuple(choice[:n]) for choice in document.choices for n in range(len(choice))})


def _linear_shapes(layer: nn.Module) -> list[tuple[int, int]]:
    linear = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    counted = sum(module.weight.numel() for module in linear)
    if counted != sum(weight.numel() for weight in layer.parameters() if weight.ndim > 1):
        raise SystemExit("A layer holds weights outside of linear layers: their operations are not counted.")
    return [(module.in_features, module.out_features) for module in linear]


def attention_operations(sweep: Sweep, document: Document) -> int:
    """Queries times keys and weights times values, of all parts of D; full attention. They are not in the bound."""
    config = sweep.decoder.model.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    N = sweep.decoder.num_layers
    prefix = len(document.target) - 1
    depths = {tuple(choice[:n]): n for choice in document.choices for n in range(len(choice))}
    seen = N * len(document.source) * (len(document.source) + 1) // 2  # positions that a query sees, summed
    seen += N * prefix * (prefix + 1) // 2
    seen += (N + N * N * (N + 1) // 2) * sum(prefix + depth + 1 for depth in depths.values())
    return 4 * heads * head_size * seen


def matrix_rates(sweep: Sweep, products: dict[str, Products]) -> dict[str, dict[str, float]]:
    """Floating-point operations a second, for each way of multiplying and each part's own shapes."""
    rates: dict[str, dict[str, float]] = {"stock": {}, "the sweep's": {}}
    for part, product in products.items():
        shapes = [(inputs, min(outputs, HEAD_COLUMNS)) for inputs, outputs in product.shapes]
        operations = 2 * product.rows * sum(inputs * outputs for inputs, outputs in shapes)
        for way, of_part in rates.items():
            seconds = sum(_linear_seconds(sweep, product.rows, *shape, way != "stock") for shape in shapes)
            of_part[part] = operations / seconds
    return rates


def _linear_seconds(sweep: Sweep, rows: int, inputs: int, outputs: int, ours: bool) -> float:
    """The fastest of five: a bound is wanted."""
    like = sweep.decoder.model.get_input_embeddings().weight
    x = torch.randn(rows, inputs, dtype=like.dtype, device=like.device)
    weight = torch.randn(outputs, inputs, dtype=like.dtype, device=like.device)
    with torch.inference_mode(), fast_products() if ours else nullcontext():
        return min(timed(lambda: F.linear(x, weight))[0] for _ in range(5))


# --- Measuring ---------------------------------------------------------------------------------------------------


def now() -> float:
    """CPU seconds of this process; seconds of the clock once a GPU is used, whose work so far is waited for."""
    if not torch.cuda.is_initialized():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def timed(call: Callable[[], T]) -> tuple[float, T]:
    started = now()
    result = call()
    return now() - started, result


def peak_memory() -> float:
    """GB; the most that this process ever held, of the GPU's memory where it uses one. So it never falls."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / GB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / GB


def own_keys(arguments: list[str], own: dict[str, T]) -> tuple[dict[str, T], list[str]]:
    """This script's own keys, and the other arguments."""
    rest = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = type(own[key])(value)  # type: ignore[call-arg]
        else:
            rest.append(argument)
    return own, rest


def load(arguments: list[str], first: int, count: int, shape: str = "") -> tuple[Sweep, list[Document], dict[str, Any]]:
    """The model and the documents that an evaluate config names, tokenised as our LM does; what they are, in words."""
    config = compose("evaluate", [*arguments, f"limit={first + count}"])
    assert isinstance(config, EvaluateConfig)
    if config.transplant.component is Component.attn_as_released:
        raise SystemExit("transplant.component=attn_as_released is not measured here. Use ffn or attn.")
    [found] = pairing.load(config.task, config.language_pair, config.split, config.limit)
    found.target.build_all_requests(samples=found.rows[first:])
    decoder = load_decoder(config.model)
    if shape:
        decoder = random_decoder(decoder, SHAPES[shape])
    lm = TransplantLM(decoder)
    documents: dict[Any, Document] = {}
    for request in found.target.instances:
        if request.request_type == "generate_until":
            source, target = lm.tok_encode(request.source_prompts[0]), lm.tok_encode(request.args[0])
            choice, limit = [], request.args[1].get("max_gen_toks", AUTHORS_NEW_TOKENS)
        else:
            source = lm.tok_encode(request.source_prompts[0].rstrip())
            target, choice = lm._encode_pair(*request.args)
            limit = AUTHORS_NEW_TOKENS
        document = documents.setdefault(request.doc_id, Document(request.source_key, source, target, [], limit))
        if target != document.target:
            raise SystemExit(f"{found.name}: the prompt of a document differs between its choices.")
        if choice:
            document.choices.append(choice)
    described = {
        "model": f"{shape}, random weights" if shape else config.model.name,
        "task": found.name,
        "language_pair": f"{config.language_pair.source}-{config.language_pair.target}",
        "component": config.transplant.component.value,
        "site": config.transplant.site.value,
        "dtype": str(decoder.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processor": processor(decoder),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return Sweep(decoder, config.transplant.component, config.transplant.site), list(documents.values()), described


def random_decoder(small: Decoder, shape: PretrainedConfig) -> Decoder:
    """Random weights, with the small model's tokenizer, where and in the precision that it is loaded in."""
    shape.vocab_size = small.vocab_size
    torch.manual_seed(0)
    with torch.device(small.device):
        model = AutoModelForCausalLM.from_config(shape, dtype=small.model.dtype)
    return Decoder(model.eval().requires_grad_(False), small.tokenizer)


def processor(decoder: Decoder) -> str:
    if decoder.device.type == "cuda":
        return torch.cuda.get_device_name(decoder.device)
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def describe(document: Document) -> dict[str, Any]:
    return {
        "key": document.key,
        "source_tokens": len(document.source),
        "target_tokens": len(document.target),
        "choice_tokens": [len(choice) for choice in document.choices],
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


class Clock:
    """Seconds (`now`) per document of each part and round, and the peak memory after each part's first round."""

    def __init__(self, documents: int) -> None:
        self.documents = documents
        self.seconds: dict[str, list[float]] = {}
        self.peak_gb: dict[str, float] = {"model loaded": peak_memory()}

    def run(self, part: str, call: Callable[..., T], *columns: Sequence[Any], each: int = 1) -> list[T]:
        """Call on every document's row of the columns; `each`: pairs that a call goes through, to divide by."""
        seconds, results = timed(lambda: [call(*row) for row in zip(*columns, strict=True)])
        self.seconds.setdefault(part, []).append(seconds / self.documents / each)
        self.peak_gb.setdefault(part, peak_memory())
        return results

    def ratio(self, one: Callable[[dict[str, float]], float], other: Callable[[dict[str, float]], float]) -> Any:
        """Ratio of two costs, each a function of the parts' seconds: of every round, then median and range."""
        rounds = [
            {part: values[n] for part, values in self.seconds.items()}
            for n in range(min(map(len, self.seconds.values())))
        ]
        return spread([one(parts) / other(parts) for parts in rounds])


@torch.inference_mode()
def measure_choices(sweep: Sweep, documents: list[Document], rounds: list[list[tuple[int, int]]]) -> dict[str, Any]:
    clock = Clock(len(documents))
    products = [products_of(sweep, document) for document in documents]
    score_choices(sweep, documents[0])  # the first forward of a process costs more
    rates: list[dict[str, dict[str, float]]] = []
    differences: list[float] = []
    vanilla_differences: list[float] = []
    effects: list[float] = []
    argmax_equal: list[bool] = []
    for pairs in rounds:
        drawn = [pairs] * len(documents)
        # On the first document's shapes: others differ in the length of their prompts alone.
        rates.append(matrix_rates(sweep, products[0]))
        sources = clock.run("S", partial(source_pass, sweep), documents)
        vanilla = clock.run("V", partial(score_choices, sweep), documents)
        hooked = clock.run("A, one pair", partial(hooked_loop, sweep), documents, sources, drawn, each=len(pairs))
        clock.run("B, one pair", partial(authors_loop, sweep), documents, drawn, each=len(pairs))
        [ours] = clock.run("D", partial(our_scores, sweep), [documents])
        clock.run("V, all logits", partial(score_choices_all_logits, sweep), documents)
        for swept, plain, of_pairs in zip(ours, vanilla, hooked, strict=True):
            vanilla_differences += _differences(swept[0], plain)
            for pair, slow in zip(pairs, of_pairs, strict=True):
                fast = swept[1 + sweep.pairs.index(pair)]
                differences += _differences(fast, slow)
                effects += _differences(slow, plain)
                argmax_equal.append(_best(fast) == _best(slow))
    count = len(sweep.pairs)
    mean_products = {part: sum(p[part].operations for p in products) / len(documents) for part in products[0]}
    bounds = {
        way: statistics.median(
            sum(operations / round_[way][part] for part, operations in mean_products.items()) for round_ in rates
        )
        for way in rates[0]
    }
    return {
        **_measured(clock, rounds, count),
        "seconds_a_document_extrapolated_to_all_pairs": {
            "A": spread([s + count * a for s, a in zip(clock.seconds["S"], clock.seconds["A, one pair"], strict=True)]),
            "B": spread([count * b for b in clock.seconds["B, one pair"]]),
        },
        "ratios": {
            "B/D": clock.ratio(lambda s: count * s["B, one pair"], lambda s: s["D"]),
            "A/D": clock.ratio(lambda s: s["S"] + count * s["A, one pair"], lambda s: s["D"]),
            "D/V": clock.ratio(lambda s: s["D"], lambda s: s["V"]),
            "D/V, all logits": clock.ratio(lambda s: s["D"], lambda s: s["V, all logits"]),
            **{f"D/bound ({way})": statistics.median(clock.seconds["D"]) / bound for way, bound in bounds.items()},
        },
        "floating_point_bound": {
            "tokens_in_a_row": [nodes_of(document) for document in documents],
            "operations_a_document": mean_products,
            "attention_operations_not_in_the_bound": sum(attention_operations(sweep, d) for d in documents)
            / len(documents),
            "operations_a_second": {
                way: {part: statistics.median(round_[way][part] for round_ in rates) for part in rates[0][way]}
                for way in rates[0]
            },
            "seconds_a_document": bounds,
        },
        "agreement_of_D_with_A": {
            "pairs_compared": len(argmax_equal),
            "largest_logprob_difference": max(differences),
            "largest_logprob_difference_vanilla_with_V": max(vanilla_differences),
            "largest_effect_of_a_transplant": max(effects),
            "best_choice_equal": sum(argmax_equal),
        },
    }


@torch.inference_mode()
def measure_texts(sweep: Sweep, documents: list[Document], rounds: list[list[tuple[int, int]]]) -> dict[str, Any]:
    clock = Clock(len(documents))
    stock_generate(sweep, documents[0].target, 1)  # the first forward of a process costs more
    unequal: list[dict[str, Any]] = []
    compared = changed = vanilla_equal = 0
    ours: list[list[list[int]]] = []
    decode = sweep.decoder.tokenizer.decode
    limits = [document.max_new_tokens for document in documents]

    def compare(document: Document, pair: tuple[int, int], plain: list[int], fast: list[int], slow: list[int]) -> None:
        nonlocal compared, changed
        compared += 1
        changed += slow != plain
        if fast != slow:
            unequal.append({"document": document.key, "pair": pair, "B": decode(slow), "D": decode(fast)})

    for pairs in rounds:
        drawn = [pairs] * len(documents)
        targets = [document.target for document in documents]
        vanilla = clock.run("V", partial(stock_generate, sweep), targets, limits)
        authors = clock.run("B, one pair", partial(authors_loop, sweep), documents, drawn, each=len(pairs))
        [ours] = clock.run("D", partial(our_texts, sweep), [documents])
        for document, swept, plain, of_pairs in zip(documents, ours, vanilla, authors, strict=True):
            vanilla_equal += swept[0] == plain
            for pair, slow in zip(pairs, of_pairs, strict=True):
                compare(document, pair, plain, swept[1 + sweep.pairs.index(pair)], slow)
    # Most pairs leave a text as it is; so also some that do not, by our own account. Not timed.
    for document, swept in zip(documents, ours, strict=True):
        changing = [n for n in range(1, len(swept)) if swept[n] != swept[0]]
        for n in random.Random(0).sample(changing, min(len(rounds[0]), len(changing))):
            pair = sweep.pairs[n - 1]
            compare(document, pair, swept[0], swept[n], authors_procedure(sweep, document, pair))
    count = len(sweep.pairs)
    return {
        **_measured(clock, rounds, count),
        "new_tokens_at_most": limits,
        "stop_sequences": "none in B and D: the answer ends with the model's own end-of-text",
        "seconds_a_document_extrapolated_to_all_pairs": {
            "B": spread([count * b for b in clock.seconds["B, one pair"]])
        },
        "ratios": {
            "B/D": clock.ratio(lambda s: count * s["B, one pair"], lambda s: s["D"]),
            "D/V": clock.ratio(lambda s: s["D"], lambda s: s["V"]),
        },
        "agreement_of_D_with_B": {
            "pairs_compared": compared,
            "texts_equal": compared - len(unequal),
            "of_which_differ_from_vanilla": changed,
            "vanilla_equal": f"{vanilla_equal} of {len(rounds) * len(documents)}",
            "unequal": unequal,
        },
        "distinct_texts_a_document": [len(set(map(tuple, swept))) for swept in ours],
    }


def _measured(clock: Clock, rounds: list[list[tuple[int, int]]], count: int) -> dict[str, Any]:
    return {
        "pairs_in_all": count,
        "pairs_measured": f"A and B (one pair): {len(rounds[0])} in each of {len(rounds)} rounds, "
        f"{sum(map(len, rounds))} different ones of {count} in all; extrapolated to all. D: all.",
        "seconds_a_document": {part: {**spread(v), "rounds": v} for part, v in clock.seconds.items()},
        "peak_memory_gb": {
            "what": "high-water mark of the process after each part's first run, in this order: it never falls, so a "
            "later part's value is an upper bound of its own",
            **clock.peak_gb,
        },
    }


def _differences(one: list[float], other: list[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(one, other, strict=True)]


def _best(logprobs: list[float]) -> int:
    return max(range(len(logprobs)), key=logprobs.__getitem__)


def random_pairs(sweep: Sweep, rounds: int, each: int) -> list[list[tuple[int, int]]]:
    """Different pairs in every round; the same ones in every run."""
    drawn = random.Random(0).sample(sweep.pairs, rounds * each)
    return [drawn[n * each : (n + 1) * each] for n in range(rounds)]


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    own, rest = own_keys(arguments, {"documents": 2, "first_document": 0, "rounds": 3, "pairs_measured": 3})
    shape, rest = own_keys(rest, {"shape": ""})
    sweep, documents, described = load(rest, own["first_document"], own["documents"], shape["shape"])
    shown: dict[str, Any] = {"way_of_D": way_of(sweep)}
    rounds = random_pairs(sweep, own["rounds"], own["pairs_measured"])
    measure = measure_choices if documents[0].choices else measure_texts
    results = measure(sweep, documents, rounds)
    shown["documents"] = [describe(document) for document in documents]
    print(json.dumps({**described, **shown, **results}, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main(sys.argv[1:])
