"""Speak the harness's `LM` contract: answer its requests with a transplant, or with the vanilla model.

Requests are grouped by document: each prompt is run once, whatever the number of its choices, and the output head
only where an answer is scored. With no transplant the answers equal the harness's own `HFLM`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, wraps
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

import lm_eval.models  # noqa: F401  (before anything is registered: else the harness does not fill its registry)
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from tqdm import tqdm

from xtransplant import selection
from xtransplant.config import EvaluateConfig, GridConfig, ModelConfig, TaskJob
from xtransplant.selection import Selection
from xtransplant.types import PAPER, Component, Intervention, LayerPair, XTransplantError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from torch import Tensor

    from xtransplant.captures import Captures, Source
    from xtransplant.engine import Decoder, Prefix

# A target prompt as token ids, and its source: the same in other languages, or None where no transplant is made. A
# third part tells draws of the same prompt apart.
Key = tuple[Any, ...]

log = logging.getLogger(__name__)

# Largest error of the run's own checks, in log-probability. Float32 gives about 1e-5; half precision is coarse
# (bfloat16 resolves a logit of 20 to 0.125), so there only a gross fault shows.
_TOLERANCE = {"float32": 1e-3, "float64": 1e-3}
_COARSE_TOLERANCE = 1.0
_CHECKED_PROMPTS = 4
# Model -> prompts -> error: most runs of a sweep ask the same prompts.
_padding_errors: WeakKeyDictionary[Any, dict[tuple[tuple[int, ...], ...], float]] = WeakKeyDictionary()


def load_decoder(config: ModelConfig) -> Decoder:
    """The model of a config behind the engine; `loading` keeps the last one, for the jobs of a sweep."""
    from xtransplant import loading
    from xtransplant.engine import Decoder, Modules

    loaded = loading.load(config)
    return Decoder(loaded.model, loaded.tokenizer, Modules(**config.modules) if config.modules else None)


def tokenizing(tokenizer: Any) -> TransplantLM:
    """The harness's contract with a tokenizer alone: what it would ask, and in which tokens."""
    return TransplantLM(cast("Decoder", SimpleNamespace(tokenizer=tokenizer)))


def captures_of(config: TaskJob) -> Captures:
    """The source vectors of a config's model: those of a grid kept beside the runs, others for the next in a sweep."""
    from xtransplant import loading
    from xtransplant.captures import Captures

    folder = Path(config.output_dir, "captures") if isinstance(config, GridConfig) else None
    provenance = loading.load(config.model).provenance
    return Captures(load_decoder(config.model), folder, provenance, config.transplant.control, config.seed)


@lru_cache(maxsize=1)
def _encoder(tokenizer: Any) -> Callable[[str, bool | None], array[int]]:
    """The tokenizer, with a memory that lasts for all jobs of a sweep with one model."""

    @lru_cache(maxsize=65536)
    def encode(text: str, add_special_tokens: bool | None) -> array[int]:
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        # 4 bytes a token, where a list takes 36.
        return array("i", tokenizer.encode(text, **special))

    return encode


@dataclass(frozen=True)
class Transplant:
    """What is read and written, as configured: the layers are resolved with the model."""

    component: Component
    layers: Any  # one pair or several, as `LayerPair.parse_several` reads them
    how: Intervention = PAPER


@dataclass
class Counts:
    """What a run did, for its manifest."""

    documents: int = 0
    prompts: int = 0  # target prompts that were run
    transplants: int = 0  # of which with a transplant; each is counted when it is really made
    promptless: int = 0  # requests without a prompt on one side, scored without a transplant
    checks: dict[str, float] = field(default_factory=dict)


class Meter:
    """Seconds that answering takes; loading and checks, which are timed apart, do not count."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None  # while running
        self._apart = 0  # how deep

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._before, self._since = self.seconds, None

    @contextmanager
    def apart(self) -> Iterator[None]:
        started, self._apart = time.perf_counter(), self._apart + 1
        try:
            yield
        finally:
            self._apart -= 1
            if not self._apart and self._since is not None:
                self._since += time.perf_counter() - started


_Answers = TypeVar("_Answers", bound=Callable[..., Any])


def metered(answers: _Answers) -> _Answers:
    """Of a `TransplantLM`: a method that answers requests."""

    @wraps(answers)
    def answered(lm: TransplantLM, *args: Any, **kwargs: Any) -> Any:
        import xtransplant.engine  # noqa: F401  # brings torch and transformers: seconds that are no answering

        with lm.meter.running():
            return answers(lm, *args, **kwargs)

    return cast(_Answers, answered)


@dataclass
class Texts:
    """Requests for generated texts that share their generation arguments."""

    tokenizer: Any
    limit: int  # new tokens
    until: list[str]
    ends: set[int]  # end-of-text tokens
    sampling: dict[str, float] | None  # None: greedy
    wanted: dict[Key, list[int]]  # the requests by number

    def ended(self, tokens: list[int]) -> bool:
        if tokens[-1] in self.ends:
            return True
        # A stop sequence ends in the newest tokens; 64 of them hold any that a task has.
        text = self.tokenizer.decode(tokens[-64:])
        return any(stop in text for stop in self.until if stop)

    def text(self, tokens: list[int]) -> str:
        """The answer that the harness gets."""
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return str(postprocess_generated_text(text, stop=self.until, think_end_token=None))


class TransplantLM(TemplateLM):
    """A decoder behind the harness.

    Args:
        decoder: the model, or a function that loads it at the first request, so that a fault in the tasks shows first.
        transplant: None is the vanilla model.
        batch_size: prompts per forward pass; answers do not depend on it.
        seed: of sampled generation.
        promptless: `error` or `vanilla`: what to do with a request that has no prompt on one side.
        captures: opens the source vectors at the first request; None computes them as they are needed.
    """

    def __init__(
        self,
        decoder: Decoder | Callable[[], Decoder],
        transplant: Transplant | None = None,
        batch_size: int = 8,
        seed: int = 1234,
        promptless: str = "error",
        captures: Callable[[], Captures] | None = None,
    ) -> None:
        super().__init__()
        self._open_captures = captures
        self._decoder = decoder
        self.transplant = transplant
        self.batch_size = batch_size
        self.seed = seed
        self.promptless = promptless
        self.counts = Counts()
        self.meter = Meter()

    @property
    def decoder(self) -> Decoder:
        if callable(self._decoder):
            with self.meter.apart():
                self._decoder = self._decoder()
        return self._decoder

    @property
    def cost(self) -> dict[str, float]:
        """What the answers took: `seconds`, and `tokens` and `flops` as in `engine.Work`.

        Loading the model is no part of it, nor are the run's checks. The source prompts' tokens are, whoever computed
        their vectors, so that a run costs the same alone and in a sweep; their seconds only if this run did.
        """
        opened = self.__dict__.get("captures")
        work = self.decoder.work if opened is None else self.decoder.work + opened.work
        return {"seconds": self.meter.seconds, "tokens": work.tokens, "flops": float(work.flops)}

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """What is done while open is no part of the cost."""
        with self.meter.apart(), self.decoder.unmetered():
            yield

    @cached_property
    def captures(self) -> Captures:
        from xtransplant.captures import Captures

        return Captures(self.decoder, None, {}) if self._open_captures is None else self._open_captures()

    @cached_property
    def layer_pairs(self) -> list[LayerPair]:
        """None without a transplant."""
        if self.transplant is None:
            return []
        return LayerPair.parse_several(self.transplant.layers, self.decoder.num_layers)

    # --- the harness's contract ---

    @classmethod
    def from_config(cls, config: EvaluateConfig) -> TransplantLM:
        """The model and transplant of an evaluate config; the model is loaded at the first request."""
        selected = selection.of_run(config)
        if selected is not None:
            return _selected(selection.effective(config, selected), selected)
        chosen = config.transplant
        return cls(
            lambda: load_decoder(config.model),
            None if chosen.layers is None else Transplant(chosen.component, chosen.layers, chosen.intervention),
            batch_size=config.batch_size,
            seed=config.seed,
            promptless=config.task.empty_prompt.value,
            captures=lambda: captures_of(config),
        )

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> TransplantLM:
        """Build from the harness's `--model_args`: any key of the evaluate config, e.g.
        ``{"model": "gemma3_270m", "task": "xcopa", "language_pair": "en-sw", "transplant.layers": [17, 0]}``.

        Tasks that the harness loads later get their source prompts from the family and pair named here.
        """
        from lm_eval.tasks import TaskManager

        from xtransplant import pairing
        from xtransplant.compose import compose

        given = dict(arg_dict)
        _refuse_the_harness_own(given)
        if "pretrained" in given:
            given |= {"model": "hf", "model.path": given.pop("pretrained")}
        more = additional_config or {}
        if more.get("batch_size") not in (None, "auto"):
            given.setdefault("batch_size", more["batch_size"])
        if more.get("device") not in (None, "cuda:0"):  # the harness's default, GPU or not
            given.setdefault("model.device", more["device"])
        config = compose("evaluate", [f"{key}={_as_override(value)}" for key, value in given.items()])
        assert isinstance(config, EvaluateConfig)
        sources = pairing.Sources.of(config)
        # Who names neither a family nor languages may ask anything of the vanilla model.
        named = not config.is_vanilla or any(re.split("[.=]", key)[0] in ("task", "language_pair") for key in given)
        load = getattr(TaskManager.load, "unpaired", TaskManager.load)
        pairing_now = False

        def load_paired(manager: TaskManager, *args: Any, **kwargs: Any) -> Any:
            nonlocal pairing_now
            if pairing_now:  # a source task, which may be one of the target's names
                return load(manager, *args, **kwargs)
            try:
                loaded = load(manager, *args, **kwargs)
            except OSError as error:
                raise XTransplantError(
                    f"--tasks: their data could not be loaded: {type(error).__name__}: {str(error).strip()[:500]}. "
                    "Check the network (or HF_HUB_OFFLINE)."
                ) from error
            pairing_now = True
            try:
                pairs = {
                    name: pairing.pair_for(task, config.task, config.language_pair, sources)
                    for name, task in loaded["tasks"].items()
                }
            finally:
                pairing_now = False
            others = [str(name) for name, found in pairs.items() if found is None]
            if named and others:
                raise _no_sources(others)
            return loaded

        load_paired.unpaired = load  # type: ignore[attr-defined]
        # The harness makes the model first and its tasks after, with a manager that it does not hand over.
        TaskManager.load = load_paired
        return cls.from_config(config)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> TransplantLM:
        from lm_eval.utils import simple_parse_args_string

        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def set_cache_hook(self, cache_hook: Any) -> None:
        # The harness's response cache knows a request by its arguments alone: not by source prompt or layers.
        if getattr(cache_hook, "dbdict", None) is not None:
            raise XTransplantError("use_cache is not possible here: its key holds no layer pair. Leave it out.")
        super().set_cache_hook(cache_hook)

    @property
    def tokenizer(self) -> Any:
        return self.decoder.tokenizer

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @cached_property
    def _prefix_text(self) -> str:
        return str(self.tokenizer.decode(self.prefix_token_id))

    @property
    def max_length(self) -> int:
        return int(resolve_max_length(self.decoder.model.config, self.tokenizer))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        from xtransplant.loading import check_chat_template

        check_chat_template(self.tokenizer)
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        # As HFLM.tok_encode: the tokenizer's own special tokens, but never a second BOS.
        if add_special_tokens is None and has_bos_prefix(string, self._prefix_text):
            add_special_tokens = False
        return _encoder(self.tokenizer)(string, add_special_tokens).tolist()

    def encode(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and of what is scored or trained behind it, divided as the harness divides them."""
        if context:
            prompt, choice = self._encode_pair(context, continuation)
            return prompt, choice
        # As TemplateLM.loglikelihood, which does not let its requests through.
        prompt, choice = [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
        return (choice[:1], choice[1:]) if choice[:1] == [self.prefix_token_id] else (prompt, choice)

    @metered
    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        from xtransplant.engine import score

        self._check_prompts(requests)
        choices = self._choices(requests)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for prompts, prefix in self._prefilled(list(choices), len(requests), lambda p: len(choices[p]), disable_tqdm):
            asked = [choices[prompt] for prompt in prompts]
            scores = score(self.decoder, prefix, [[choice for _, choice in group] for group in asked])
            for group, found in zip(asked, scores, strict=True):
                for (n, _), answer in zip(group, found, strict=True):
                    answers[n] = (answer.logprob, answer.greedy)
        return answers

    def _choices(self, requests: Sequence[Instance]) -> dict[Key, list[tuple[int, list[int]]]]:
        """For each distinct (prompt, source prompt): the requests by number, and the token ids of their choices."""
        choices: dict[Key, list[tuple[int, list[int]]]] = {}
        for n, request in enumerate(requests):
            prompt, choice = self.encode(*request.args)
            if not choice:
                raise XTransplantError(f"{request.task_name}: an empty choice in document {request.doc_id}.")
            # The harness takes trailing white space of a prompt to the continuation: so for the source prompt.
            source = self._source_tokens(request, lambda text: text.rstrip(), room=0)
            # Too long: cut from the left, as HFLM; the last token of the choice is never an input.
            kept = prompt[-max(1, self.max_length + 1 - len(choice)) :]
            choices.setdefault((tuple(kept), source), []).append((n, choice))
        return choices

    @metered
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        from xtransplant.engine import generate

        self._check_prompts(requests)
        answers = [""] * len(requests)
        for work in self._texts(requests):
            sizes = {key: len(numbers) for key, numbers in work.wanted.items()}
            for prompts, prefix in self._prefilled(list(sizes), sum(sizes.values()), sizes.__getitem__, disable_tqdm):
                choose = self._chooser(work.sampling, prompts) if work.sampling else None
                found = generate(self.decoder, prefix, work.limit, work.ended, choose)
                for prompt, tokens in zip(prompts, found, strict=True):
                    for n in work.wanted[prompt]:
                        answers[n] = work.text(tokens)
        return answers

    def _texts(self, requests: Sequence[Instance]) -> Iterator[Texts]:
        """Requests with the same generation arguments, together."""
        groups: dict[str, list[int]] = {}
        for n, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(n)
        ends = self._end_tokens()
        for group in groups.values():
            arguments = normalize_gen_kwargs(requests[group[0]].args[1])
            limit = arguments.pop("max_gen_toks")
            # As HFLM: the end-of-text token's text is a stop sequence too.
            until = handle_stop_sequences(
                arguments.pop("until", None), eos=self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
            )
            sampling = self._sampling(arguments)
            if limit >= self.max_length:
                raise XTransplantError(f"max_gen_toks={limit} leaves no room in the model's {self.max_length} tokens.")
            wanted: dict[Key, list[int]] = {}
            seen: Counter[Key] = Counter()
            for n in group:
                prompt = tuple(self.tok_encode(requests[n].args[0])[-(self.max_length - limit) :])
                source = self._source_tokens(requests[n], lambda text: text, room=limit)
                # A sampled answer is drawn anew for each repeat; a greedy one is the same.
                seen[prompt, source] += 1 if sampling else 0
                wanted.setdefault((prompt, source, seen[prompt, source]), []).append(n)
            yield Texts(self.tokenizer, limit, until, ends, sampling, wanted)

    @metered
    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        if self.transplant is not None:
            raise XTransplantError(
                "A loglikelihood_rolling task has no prompt: there is nothing to transplant into. Use a task with "
                "loglikelihood, multiple_choice or generate_until requests, or transplant.layers=null."
            )
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        answers = []
        for request in tqdm(requests, desc="Scoring texts", disable=disable_tqdm or None):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pairs = [((None, None), *make_disjoint_window(window)) for window in windows]
            answers.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(pairs)))
        return answers

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        from xtransplant.engine import prefill, score

        found = []
        for _, prompt, choice in requests:
            answer = score(self.decoder, prefill(self.decoder, [prompt]), [[choice]])[0][0]
            found.append((answer.logprob, answer.greedy))
        return found

    # --- prompts ---

    def _check_prompts(self, requests: Sequence[Instance]) -> None:
        empty = [request for request in requests if not _has_prompts(request)]
        self.counts.documents += len({(request.task_name, request.doc_id) for request in requests})
        self.counts.promptless += len(empty)
        if self.transplant is not None and any(not hasattr(request, "source_prompts") for request in requests):
            names = sorted({str(request.task_name) for request in requests if not hasattr(request, "source_prompts")})
            raise _no_sources(names)
        if empty and self.transplant is not None and self.promptless == "error":
            first = empty[0]
            raise XTransplantError(
                f"{first.task_name}: {len(empty)} of {len(requests)} requests have an empty prompt, e.g. document "
                f"{first.source_key} ({str(first.args[1])[:80]!r} is all there is): nothing to transplant from or "
                "into. Use a task whose question is in the prompt, e.g. task=paper_xnli for XNLI, or "
                "task.empty_prompt=vanilla to score such requests without a transplant."
            )

    def _source_tokens(self, request: Instance, trim: Callable[[str], str], room: int) -> Source | None:
        """Token ids of the source prompts; None where no transplant is made."""
        if self.transplant is None or not _has_prompts(request):
            return None
        prompts: list[str] = request.source_prompts
        return tuple(tuple(self.tok_encode(trim(prompt))[-(self.max_length - room) :]) for prompt in prompts)

    def _prefilled(self, keys: list[Any], total: int, size: Callable[[Any], int], disable_tqdm: bool) -> Any:
        """Yield batches of (keys, their prefix); a key begins with a prompt and its source (or None)."""
        # Longest first: the first batch shows whether memory suffices.
        keys = sorted(keys, key=lambda key: (key[1] is None, -len(key[0]), key))
        self._check_lengths(keys)
        self._check_engine([key[0] for key in keys])
        if self.transplant is not None and self.transplant.how.positions == 1:
            sources = [key[1] for key in keys if key[1] is not None]
            self.captures.prepare(sources, [self.transplant.component], self.transplant.how.site)
        with tqdm(total=total, desc="Scoring requests", disable=disable_tqdm or None) as bar:
            for _, together in groupby(keys, key=lambda key: (key[1] is None, self._positions(key))):
                alike = list(together)
                for start in range(0, len(alike), self.batch_size):
                    batch = alike[start : start + self.batch_size]
                    yield batch, self._prefill(batch)
                    bar.update(sum(map(size, batch)))

    def _prefill(self, keys: list[Any]) -> Prefix:
        from xtransplant.engine import Writes, prefill

        prompts = [key[0] for key in keys]
        if keys[0][1] is None:
            prefix = prefill(self.decoder, prompts)
        else:
            assert self.transplant is not None
            component, how, pairs = self.transplant.component, self.transplant.how, self.layer_pairs
            sources, layers = [key[1] for key in keys], [pair.source for pair in pairs]
            vectors = self.captures.vectors(sources, [component], how.site, layers, self._positions(keys[0]))[component]
            writes = [
                Writes(component, [pair.target] * len(keys), read, how)
                for pair, read in zip(pairs, vectors, strict=True)
            ]
            prefix = prefill(self.decoder, prompts, *writes)
        self.counts.prompts += len(keys)
        self.counts.transplants += prefix.written
        return prefix

    def _positions(self, key: Key) -> int | None:
        """How many last tokens of a prompt are read and written; None: the last, as the paper has it."""
        positions = 1 if self.transplant is None else self.transplant.how.positions
        if positions == "all":
            return len(key[0])
        return None if positions == 1 else int(positions)

    def _check_lengths(self, keys: Sequence[Key]) -> None:
        if self.transplant is None or self.transplant.how.positions == 1:
            return
        positions = self.transplant.how.positions
        lengths = [(len(key[0]), len(source)) for key in keys if key[1] is not None for source in key[1]]
        bad = [each for each in lengths if (each[0] != each[1] if positions == "all" else min(each) < int(positions))]
        if bad:
            raise XTransplantError(
                f"transplant.positions={positions}: {len(bad)} of {len(lengths)} prompts are too short for it, or not "
                f"as long as their source, e.g. {bad[0][0]} tokens and {bad[0][1]}. Give a smaller number; all is for "
                "prompts of equal length."
            )

    def _check_engine(self, prompts: Sequence[Sequence[int]]) -> None:
        """Does the engine do on this model, on these prompts, what it claims? Once a run."""
        from xtransplant.engine import padding_error, self_transplant_error

        if self.counts.checks or not prompts:
            return
        # The longest and the shortest: the padding between them is the widest there is.
        some = [*prompts[: _CHECKED_PROMPTS // 2], *prompts[-_CHECKED_PROMPTS // 2 :]][: len(prompts)]
        known = _padding_errors.setdefault(self.decoder.model, {})
        asked = tuple(map(tuple, some))
        with self._apart():
            if asked not in known:
                known[asked] = padding_error(self.decoder, some)
            checks = {"padding_invariance": known[asked]}
            if self.transplant is not None:
                checks["self_transplant"] = self_transplant_error(
                    self.decoder, some, self.transplant.component, self.layer_pairs[0].target, self.transplant.how.site
                )
        self.counts.checks = checks
        self._refuse_failed_checks()

    def _refuse_failed_checks(self) -> None:
        dtype = str(self.decoder.model.dtype).removeprefix("torch.")
        for name, error in self.counts.checks.items():
            if not error <= _TOLERANCE.get(dtype, _COARSE_TOLERANCE):
                raise XTransplantError(
                    f"The {name} check failed: log-probabilities move by {error:.2g} where nothing should change. "
                    "Results would be wrong; run `xtransplant doctor` on this model."
                )

    # --- generation ---

    def _end_tokens(self) -> set[int]:
        configured = self.decoder.model.generation_config.eos_token_id
        if configured is None:
            return {self.eot_token_id}
        return set(configured) if isinstance(configured, list) else {configured}

    def _sampling(self, arguments: dict[str, Any]) -> dict[str, float] | None:
        """The sampling parameters, None for greedy decoding. A checkpoint's own defaults are not used."""
        allowed = {"temperature", "top_k", "top_p", "min_p"}
        given = {key: value for key, value in arguments.items() if value is not None}
        plain = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "temperature": 0.0}
        unknown = {key for key in given if key not in allowed | {"do_sample"} and given[key] != plain.get(key)}
        if unknown:
            refused = ", ".join(f"{key}={given[key]}" for key in sorted(unknown))
            raise XTransplantError(
                f"Generation arguments {refused} are not supported. Supported: until, max_gen_toks, do_sample, "
                f"{', '.join(sorted(allowed))}."
            )
        penalty = getattr(self.decoder.model.generation_config, "repetition_penalty", None)
        if penalty not in (None, 1.0):
            log.warning("The checkpoint's default repetition_penalty=%s is not applied.", penalty)
        if not given.get("do_sample"):
            return None
        return {key: float(given[key]) for key in allowed if key in given}

    def _chooser(self, sampling: dict[str, float], keys: list[Any]) -> Callable[[list[int], Tensor], list[int]]:
        """Draw next tokens; each prompt has a generator of its own, so that batches do not matter."""
        import torch
        from transformers import (
            LogitsProcessorList,
            MinPLogitsWarper,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        made: dict[str, Callable[[float], Any]] = {
            "temperature": TemperatureLogitsWarper,
            "top_k": lambda k: TopKLogitsWarper(int(k)),
            "top_p": TopPLogitsWarper,
            "min_p": MinPLogitsWarper,
        }
        neutral = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        warpers = LogitsProcessorList(
            [make(sampling[name]) for name, make in made.items() if sampling.get(name, neutral[name]) != neutral[name]]
        )
        generators = []
        for key in keys:
            digest = hashlib.sha256(repr((self.seed, *key)).encode()).digest()
            generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1))

        def choose(rows: list[int], logits: Tensor) -> list[int]:
            probabilities = warpers(None, logits).softmax(-1).cpu()  # type: ignore[arg-type]
            return [
                int(torch.multinomial(row, 1, generator=generators[n]))
                for n, row in zip(rows, probabilities, strict=True)
            ]

        return choose


def _selected(config: EvaluateConfig, chosen: Selection) -> TransplantLM:
    """What a selection asks for: vanilla, one layer pair, or a rule over several."""
    promptless = config.task.empty_prompt.value
    how = config.transplant.intervention
    if len(chosen.cells) > 1:
        from xtransplant.sweep_lm import Sweep, SweepLM

        components = tuple(dict.fromkeys(cell.component for cell in chosen.cells))
        return SweepLM(
            lambda: load_decoder(config.model),
            Sweep(components, how, cells=tuple(chosen.cells)),
            selection=chosen,
            seed=config.seed,
            promptless=promptless,
            captures=lambda: captures_of(config),
        )
    only = chosen.cells[0] if chosen.cells else None
    return TransplantLM(
        lambda: load_decoder(config.model),
        None if only is None else Transplant(only.component, [only.source, only.target], how),
        batch_size=config.batch_size,
        seed=config.seed,
        promptless=promptless,
        captures=lambda: captures_of(config),
    )


def _has_prompts(request: Instance) -> bool:
    return all(prompt.strip() for prompt in (request.args[0], *getattr(request, "source_prompts", [])))


# Keys of the evaluate config that the harness's command line decides, and how.
_HARNESS_OWN = {
    "limit": "--limit",
    "split": "--samples",
    "task.num_fewshot": "--num_fewshot",
    "task.apply_chat_template": "--apply_chat_template",
    "task.fewshot_as_multiturn": "--fewshot_as_multiturn",
    "task.system_instruction": "--system_instruction",
    "overwrite": "--output_path",
}


def _refuse_the_harness_own(given: dict[str, Any]) -> None:
    own = [f"{key} (give {option})" for key, option in _HARNESS_OWN.items() if key in given]
    if own:
        raise XTransplantError(f"--model_args: {', '.join(own)}: the harness's command line says that.")
    if given.get("selection") is not None:
        raise XTransplantError(
            "--model_args: selection: the harness does not keep the documents apart that it was made on. Use "
            "xtransplant evaluate selection=…, or give transplant.component and transplant.layers."
        )


def _as_override(value: Any) -> str:
    """A value as Hydra's command line writes it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_as_override, value))}]"
    if isinstance(value, str):
        # Already in Hydra's form, or plain; anything else is quoted.
        return value if re.fullmatch(r"[\w.\-/]+|\[.*\]", value) else json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def _no_sources(names: Sequence[str]) -> XTransplantError:
    return XTransplantError(
        f"No source prompts for {', '.join(names)}: not a target task of the configured family and language pair. "
        "Give task= and language_pair= that name it."
    )


def lm_eval_main(arguments: list[str]) -> None:
    """The harness's own command line, with this model registered and our tasks found."""
    from importlib.resources import files

    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import model_registry

    model_registry.register("xtransplant", target="xtransplant.lm:TransplantLM")
    if arguments[:1] in (["run"], ["ls"]) and "--include_path" not in arguments:
        arguments = [*arguments, "--include_path", str(files("xtransplant.tasks"))]
    sys.argv = ["lm-eval", *arguments]
    try:
        cli_evaluate()
    except ValueError as error:
        if not str(error).startswith("Tasks not found"):
            raise
        raise XTransplantError(
            f"--tasks: {error}. xtransplant list tasks shows our families, xtransplant lm-eval ls tasks all tasks."
        ) from error
