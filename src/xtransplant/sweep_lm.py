"""Answer the harness's requests in many cells at once: for a grid, or for a rule that combines cells.

`SweepLM` leaves on every request what each cell answers, and hands the harness either the untouched model's answer (a
grid: its other cells are graded afterwards, by the task's own code) or what a selection's rule makes of the cells.
Batches of responses are written to a folder as they come, and found there again by what was asked.

Shapes: C cells, M choices of a document; row 0 is the untouched prompt, then the cells in their order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from xtransplant import disk, strategies, sweep
from xtransplant.captures import Captures, Source, made_by
from xtransplant.disk import replacing
from xtransplant.engine import Decoder, Prefix
from xtransplant.grid import show
from xtransplant.lm import Key, Texts, Transplant, TransplantLM, metered
from xtransplant.selection import Selection
from xtransplant.types import PAPER, Cell, Component, Control, Intervention, LayerPair, XTransplantError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

log = logging.getLogger(__name__)

# First, middle and last cell of the first document, compared with single transplants as `evaluate` makes them.
_CELL_CHECK = "sweep_against_single_pairs"
# Modules that a cell's answer depends on.
_CODE = ("engine", "output_head", "processor", "shared_prefix", "sweep")


@dataclass(frozen=True)
class Sweep:
    """What is swept, as configured; the cells are resolved with the model's number of layers.

    Attributes:
        pairs: a set of layer pairs as `LayerPair.parse_set` reads it, or None if `cells` says all.
        memory: bytes that a batch may take beside the model; None: what `sweep.usual_memory` says.
    """

    components: tuple[Component, ...]
    how: Intervention = PAPER
    pairs: Any = "all"
    cells: tuple[Cell, ...] | None = None
    memory: int | None = None

    def resolve(self, num_layers: int) -> list[Cell]:
        if self.cells is not None:
            return list(self.cells)
        pairs = LayerPair.parse_set(self.pairs, num_layers)
        return [Cell(component, pair.source, pair.target) for component in self.components for pair in pairs]


class Shards:
    """Responses on disk, a file for each batch, found by the hash of what was asked; and what they took.

    Args:
        folder: None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._found: dict[str, dict[str, np.ndarray]] = {}
        for path in sorted(folder.glob("[!.]*.npz")) if folder is not None and folder.is_dir() else []:
            try:
                arrays = disk.arrays_of(path)
                for name, array in arrays.items():
                    question, _, part = name.partition(".")
                    self._found.setdefault(question, {})[part] = array
            except (OSError, ValueError):
                log.warning("%s cannot be read; its documents are computed anew.", path)

    def __len__(self) -> int:
        return len(self._found)

    def get(self, question: str) -> dict[str, np.ndarray] | None:
        """Those of a question. `spent`: what its batch took, where an earlier process answered; of one of a batch."""
        return self._found.get(question)

    def remove(self) -> None:
        """Once all is in the run's own files."""
        if self.folder is not None and self.folder.is_dir():
            shutil.rmtree(self.folder)

    def add(self, answers: dict[str, dict[str, np.ndarray]], spent: np.ndarray) -> None:
        """Keep a batch, and what it took; on disk at once or not at all."""
        self._found |= answers
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("".join(sorted(answers)).encode()).hexdigest()[:16]
        arrays: dict[str, Any] = {f"{q}.{part}": array for q, parts in answers.items() for part, array in parts.items()}
        arrays[f"{next(iter(answers))}.spent"] = spent
        with replacing(self.folder / f"{name}.npz") as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, **arrays)  # a name would get the suffix .npz


class SweepLM(TransplantLM):
    """A decoder behind the harness that answers in many cells.

    After the harness has asked, every request has `cells`: for a choice, log-probabilities [1 + C] and whether it is
    the greedy continuation [1 + C]; for a text, 1 + C texts. NaN, and None, where a budget left a cell out.

    Args:
        selection: the rule that makes one answer of all cells; None answers as the untouched model.
        shards: where responses are kept.
        halving: [(documents, cells)]: successive halving. So many documents of each round are swept in the so many
            cells that were best in the rounds before; None sweeps all of them in all cells.
        quality: for halving: a document's requests -> how good each row is [1 + C], higher is better.
    """

    def __init__(
        self,
        decoder: Decoder | Callable[[], Decoder],
        plan: Sweep,
        selection: Selection | None = None,
        shards: Shards | None = None,
        halving: Callable[[int, int], list[tuple[int, int]]] | None = None,
        quality: Callable[[list[Instance]], np.ndarray] | None = None,
        seed: int = 1234,
        promptless: str = "error",
        captures: Callable[[], Captures] | None = None,
    ) -> None:
        # Which layers says the sweep; those named here are where a prompt's own vector is written back, as a check.
        some = Transplant(plan.components[0], ["first", "first"], plan.how)
        super().__init__(decoder, some, seed=seed, promptless=promptless, captures=captures)
        self.sweep = plan
        self.selection = selection
        self.shards = Shards(None) if shards is None else shards
        self.halving, self.quality = halving, quality
        self.left_out: list[str] = []  # what a budget left out, for the log and the manifest
        self._spent_before = np.zeros(3)  # by earlier processes, on responses that are used
        self._spent_kept = np.zeros(3)  # by this one, on those that are on disk

    @property
    def cost(self) -> dict[str, float]:
        seconds, tokens, flops = self._spent_before.tolist()
        mine = super().cost
        return {
            "seconds": mine["seconds"] + seconds,
            "tokens": mine["tokens"] + int(tokens),
            "flops": mine["flops"] + flops,
        }

    @cached_property
    def cells(self) -> list[Cell]:
        return self.sweep.resolve(self.decoder.num_layers)

    @metered
    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self._check_prompts(requests)
        _refuse_repeats(requests)
        rows = 1 + len(self.cells)
        for request in requests:
            request.cells = (np.full(rows, np.nan, np.float32), np.zeros(rows, np.bool_))
        self._in_rounds(requests, self._score, disable_tqdm)
        if self.selection is None:
            return [(float(request.cells[0][0]), bool(request.cells[1][0])) for request in requests]
        answers: dict[int, tuple[float, bool]] = {}
        for document in _documents(requests):
            logprob = np.stack([request.cells[0] for request in document], 1)
            answer = strategies.answer(self.selection, logprob)
            # Whether a mixture of rows is the greedy continuation has no meaning; of vanilla it does.
            answers |= {
                id(request): (float(value), bool(request.cells[1][0]))
                for request, value in zip(document, answer, strict=True)
            }
        return [answers[id(request)] for request in requests]

    @metered
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self._check_prompts(requests)
        _refuse_repeats(requests)
        for request in requests:
            request.cells = [None] * (1 + len(self.cells))
        self._in_rounds(requests, self._generate, disable_tqdm)
        if self.selection is None:
            return [str(request.cells[0]) for request in requests]
        return [str(request.cells[strategies.answer_text(self.selection, request.cells)]) for request in requests]

    # --- rounds ---

    def _in_rounds(
        self, requests: list[Instance], work: Callable[[list[Instance], list[int], Any], None], disable_tqdm: bool
    ) -> None:
        """Sweep all requests; with a budget in rounds, each on more documents and fewer cells."""
        documents = _documents(requests)
        everything = list(range(len(self.cells)))
        plan = [(len(documents), len(everything))]
        if self.halving is not None:
            plan = self.halving(*plan[0])
            # Drawn by content, so that the first ones are no chapter of the data set.
            documents.sort(key=lambda each: hashlib.sha256(repr(each[0].args).encode()).digest())
        ends = list(accumulate(count for count, _ in plan))
        rounds = [documents[end - count : end] for end, (count, _) in zip(ends, plan, strict=True)]
        asked = [[request for document in some for request in document] for some in rounds]
        keys = self._keys(requests)
        self._check_lengths(keys)
        sources = [key[1] for key in keys if key[1] is not None]
        with self._apart():
            self._announce(asked, [kept for _, kept in plan], sources)
        if self.sweep.how.positions == 1:
            self.captures.prepare(sources, self.sweep.components, self.sweep.how.site)
        total = np.zeros(1 + len(everything))
        alive = everything
        with tqdm(
            total=sum(len(self._keys(some)) for some in asked), desc="Sweeping", disable=disable_tqdm or None
        ) as bar:
            for number, (some, (_, kept)) in enumerate(zip(rounds, plan, strict=True)):
                if number:
                    # Stable: equal ones stay in the order of the paper's ties.
                    order = sorted(alive, key=lambda c: (-round(total[1 + c], 9), *self.cells[c].order))
                    alive = sorted(order[:kept])
                work(asked[number], alive, bar)
                if self.halving is None:
                    return
                assert self.quality is not None
                for document in some:
                    total += np.nan_to_num(self.quality(document))
                self.left_out.append(
                    f"round {number + 1}: {len(some)} documents in {len(alive)} of {len(everything)} cells"
                )
        for line in self.left_out:
            log.info("Budget: %s", line)

    def _keys(self, requests: Sequence[Instance]) -> list[Key]:
        if requests[0].request_type == "generate_until":
            return [key for work in self._texts(requests) for key in work.wanted]
        return list(self._choices(requests))

    def _known(self, question: str) -> dict[str, np.ndarray] | None:
        known = self.shards.get(question)
        if known is not None and "spent" in known:
            self._spent_before += known["spent"]
        return known

    def _keep(self, answers: dict[str, dict[str, np.ndarray]]) -> None:
        work = self.decoder.work
        spent = np.array([self.meter.seconds, work.tokens, work.flops])
        self.shards.add(answers, spent - self._spent_kept)
        self._spent_kept = spent

    @cached_property
    def _memory(self) -> int:
        """Bytes; asked for with the first batch, when the model is loaded."""
        return self.sweep.memory or sweep.usual_memory(self.decoder)

    # --- batches ---

    def _score(self, requests: list[Instance], chosen: list[int], bar: Any) -> None:
        from xtransplant.engine import prefill, score

        groups = self._choices(requests)
        cells = [self.cells[c] for c in chosen]
        rows = [0, *(1 + c for c in chosen)]
        waiting: dict[Key, str] = {}
        for key, group in groups.items():
            choices = [choice for _, choice in group]
            question = self._question("score", key, choices, cells)
            if key[1] is None:
                # No transplant is possible: every cell is the untouched model.
                [plain] = score(self.decoder, prefill(self.decoder, [key[0]]), [choices])
                once = {"logprob": np.array([[each.logprob for each in plain]]), "greedy": np.array(
                    [[each.greedy for each in plain]])}  # fmt: skip
                _spread(requests, group, rows, {part: array.repeat(len(rows), 0) for part, array in once.items()})
            elif (known := self._known(question)) is not None:
                _spread(requests, group, rows, known)
            else:
                waiting[key] = question
        bar.update(len(groups) - len(waiting))
        keys = list(waiting)
        self._check_engine(sorted((key[0] for key in keys), key=len, reverse=True))
        continuations = [[choice for _, choice in groups[key]] for key in keys]
        nodes = [sweep.count_nodes(choices) for choices in continuations]
        for chunk in sweep.batches(self.decoder, [key[0] for key in keys], nodes, len(cells), self._memory):
            some = [keys[n] for n in chunk]
            asked = [continuations[n] for n in chunk]
            vectors = self._vectors(some)
            found = sweep.score_cells(
                self.decoder, [key[0] for key in some], vectors, cells, asked, self.sweep.how, self._memory
            )
            _refuse_overflow(found, cells)
            self._check_scores(some[0], asked[0], vectors, cells, found[0])
            answers = {
                waiting[key]: {"logprob": scores.logprob, "greedy": scores.greedy}
                for key, scores in zip(some, found, strict=True)
            }
            self._keep(answers)
            for key in some:
                _spread(requests, groups[key], rows, answers[waiting[key]])
            self._count(some, cells)
            bar.update(len(some))

    def _generate(self, requests: list[Instance], chosen: list[int], bar: Any) -> None:
        cells = [self.cells[c] for c in chosen]
        rows = [0, *(1 + c for c in chosen)]
        for work in self._texts(requests):
            questions = {key: self._text_question(work, key, cells) for key in work.wanted}
            waiting = [key for key, question in questions.items() if self.shards.get(question) is None]
            self._check_engine(sorted((key[0] for key in waiting), key=len, reverse=True))
            for key, question in questions.items():
                if self.shards.get(question) is None:
                    texts = [work.text(tokens) for tokens in self._continued(key, work, cells)]
                    distinct = list(dict.fromkeys(texts))
                    stored: dict[str, np.ndarray] = {
                        "texts": np.frombuffer(json.dumps(distinct).encode(), np.uint8),
                        "text": np.array([distinct.index(text) for text in texts], np.int32),
                    }
                    self._keep({question: stored})
                known = self._known(question)
                assert known is not None
                distinct = json.loads(known["texts"].tobytes())
                for n in work.wanted[key]:
                    for row, place in zip(rows, known["text"], strict=True):
                        requests[n].cells[row] = distinct[place]
                bar.update(1)

    def _continued(self, key: Key, work: Texts, cells: Sequence[Cell]) -> list[list[int]]:
        """New tokens of a prompt, untouched and in the cells."""
        from xtransplant.engine import generate, prefill

        choose = self._chooser(work.sampling, [key] * (1 + len(cells))) if work.sampling else None
        if key[1] is None:
            # No transplant is possible: every cell is the untouched model.
            [tokens] = generate(self.decoder, prefill(self.decoder, [key[0]]), work.limit, work.ended, choose)
            return [tokens] * (1 + len(cells))
        vectors = self._vectors([key])
        of_one = None if choose is None else _for_one(choose)
        how, memory = self.sweep.how, self._memory
        [found] = sweep.generate_cells(
            self.decoder, [key[0]], vectors, cells, work.limit, work.ended, how, memory, of_one
        )
        self._count([key], cells)
        if choose is None:
            self._check_texts(key, work, vectors, cells, found)
        return found

    def _announce(self, rounds: Sequence[list[Instance]], kept: Sequence[int], sources: Sequence[Source]) -> None:
        """The estimate of what is about to be computed: at most so long, so much memory, so many bytes on disk.

        Args:
            rounds, kept: requests of each round, and the number of its cells; which they are is not known yet.
            sources: token ids of the source prompts of each document.
        """
        missing = self.captures.missing(sources, self.sweep.components, self.sweep.how.site)
        flops: float = self.decoder.work_of(sum(map(len, missing))).flops
        prompts, memory, size = 0, 0, 0
        for number, (requests, count) in enumerate(zip(rounds, kept, strict=True)):
            for cost, numbers in self._ahead(requests, skip=number == 0):
                prompts += 1
                flops += cost.flops * count / len(self.cells)
                memory = max(memory, cost.memory)
                size += numbers * (1 + count)
        if prompts:
            log.info(
                "Estimate: %d prompts in %d cells%s, %.2g floating-point operations, about %s here; "
                "%.1f GB beside the model; %.1f MB of responses before compression.",
                prompts,
                len(self.cells),
                "" if len(kept) == 1 else f" at first, {kept[-1]} at last",
                flops,
                _duration(sweep.seconds(self.decoder, flops)),
                min(memory, self._memory) / 2**30,
                size / 2**20,
            )

    def _ahead(self, requests: list[Instance], skip: bool) -> Iterator[tuple[sweep.Cost, int]]:
        """For each prompt its cost in all cells, and bytes of a response; without those answered already, to `skip`."""
        how = self.sweep.how
        if requests[0].request_type == "generate_until":
            for work in self._texts(requests):
                for key in work.wanted:
                    if not skip or self.shards.get(self._text_question(work, key, self.cells)) is None:
                        yield sweep.cost(self.decoder, len(key[0]), 1, self.cells, how, work.limit), 4
            return
        for key, group in self._choices(requests).items():
            choices = [choice for _, choice in group]
            if not skip or self.shards.get(self._question("score", key, choices, self.cells)) is None:
                nodes = sweep.count_nodes(choices)
                yield sweep.cost(self.decoder, len(key[0]), nodes, self.cells, how), 5 * len(choices)

    def _vectors(self, keys: Sequence[Key]) -> dict[Component, Any]:
        how = self.sweep.how
        sources = [key[1] for key in keys]
        return self.captures.vectors(sources, self.sweep.components, how.site, positions=self._positions(keys[0]))

    def _count(self, keys: Sequence[Key], cells: Sequence[Cell]) -> None:
        self.counts.prompts += len(keys)
        self.counts.transplants += len(keys) * len(cells)

    def _check_scores(
        self, key: Key, choices: Any, vectors: dict[Component, Any], cells: Sequence[Cell], found: sweep.Scores
    ) -> None:
        """Some cells of the first document against single transplants, as `evaluate` makes them. Once a run."""
        from xtransplant.engine import score

        def difference(c: int) -> float:
            singles = score(self.decoder, self._single(key, vectors, cells[c]), [choices])[0]
            expected = np.array([single.logprob for single in singles], np.float32)
            with np.errstate(invalid="ignore"):  # of -inf on both sides, which are equal
                differences = np.abs(found.logprob[1 + c] - expected)
            return float(np.where(found.logprob[1 + c] == expected, 0, differences).max())

        self._check_cells(cells, difference)

    def _check_texts(
        self, key: Key, work: Texts, vectors: dict[Component, Any], cells: Sequence[Cell], found: Sequence[list[int]]
    ) -> None:
        """Likewise texts: where one leaves that of a single transplant, both tokens have to be equally probable."""
        from xtransplant.engine import generate, score

        def difference(c: int) -> float:
            text = found[1 + c]
            [single] = generate(self.decoder, self._single(key, vectors, cells[c]), work.limit, work.ended)
            if text == single:
                return 0.0
            same = next((n for n, (a, b) in enumerate(zip(text, single, strict=False)) if a != b), None)
            if same is None:
                return float("inf")  # one of them ended where the other did not
            either = [text[: same + 1], single[: same + 1]]
            scores = score(self.decoder, self._single(key, vectors, cells[c]), [either])[0]
            return abs(scores[0].logprob - scores[1].logprob)

        self._check_cells(cells, difference)

    def _check_cells(self, cells: Sequence[Cell], difference: Callable[[int], float]) -> None:
        if _CELL_CHECK in self.counts.checks or not cells:
            return
        some = sorted({0, len(cells) // 2, len(cells) - 1})
        with self._apart():
            # Not max(), which loses a NaN.
            self.counts.checks[_CELL_CHECK] = float(np.max([difference(c) for c in some]))
        self._refuse_failed_checks()

    def _single(self, key: Key, vectors: dict[Component, Any], cell: Cell) -> Prefix:
        """A prompt with one cell's transplant."""
        from xtransplant.engine import Writes, prefill

        vector = vectors[cell.component][cell.source, :1]
        return prefill(self.decoder, [key[0]], Writes(cell.component, [cell.target], vector, self.sweep.how))

    @cached_property
    def _made_by(self) -> str:
        return made_by(*_CODE)

    def _text_question(self, work: Texts, key: Key, cells: Sequence[Cell]) -> str:
        asked = [work.limit, work.until, sorted(work.ends), work.sampling, self.seed if work.sampling else None]
        return self._question("text", key, asked, cells)

    def _question(self, kind: str, key: Key, asked: Any, cells: Sequence[Cell]) -> str:
        """A name for what was asked, of which model, so that no other answer is taken for it."""
        described = [(cell.component.value, cell.source, cell.target) for cell in cells]
        model = (self.captures.model, self.decoder.device.type, self._made_by)
        control = (self.captures.control.value, self.captures.seed if self.captures.control is Control.noise else None)
        text = repr((kind, key, asked, described, self.sweep.how, control, model))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _documents(requests: Sequence[Instance]) -> list[list[Instance]]:
    """Requests by document, in the order of its choices."""
    groups: dict[Any, list[Instance]] = {}
    for request in requests:
        groups.setdefault((request.task_name, request.doc_id), []).append(request)
    return [sorted(group, key=lambda request: int(request.idx)) for group in groups.values()]


def _spread(
    requests: Sequence[Instance], group: Sequence[tuple[int, Any]], rows: list[int], found: dict[str, np.ndarray]
) -> None:
    for choice, (n, _) in enumerate(group):
        requests[n].cells[0][rows] = found["logprob"][:, choice]
        requests[n].cells[1][rows] = found["greedy"][:, choice]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _for_one(choose: Callable[[list[int], Any], list[int]]) -> Callable[[int, list[int], Any], list[int]]:
    """The engine's way to choose tokens, where the only document is known."""
    return lambda _, rows, logits: choose(rows, logits)


def _refuse_repeats(requests: Sequence[Instance]) -> None:
    if len({id(request) for request in requests}) < len(requests):
        raise XTransplantError("A task that repeats its requests has no single answer in a cell. Use repeats: 1.")


def _refuse_overflow(found: Sequence[sweep.Scores], cells: Sequence[Cell]) -> None:
    """NaN says elsewhere that a cell was not looked at."""
    for scores in found:
        bad = np.flatnonzero((np.isnan(scores.logprob) | (scores.logprob == np.inf)).any(axis=1))
        if len(bad):
            where = "the untouched model" if bad[0] == 0 else show(cells[bad[0] - 1])
            raise XTransplantError(
                f"{len(bad)} of {len(scores.logprob)} cells, e.g. {where}, give log-probabilities that are no numbers: "
                "the activations overflow. In float16 they often do: use model.dtype=bfloat16, or float32. Else look "
                "at the model: xtransplant doctor."
            )


def rounds(budget: float) -> Callable[[int, int], list[tuple[int, int]]]:
    """A plan of successive halving that stays within a share of the whole grid.

    R rounds cost R / (2^R - 1) of it: each has twice the documents and half of the cells of the one before.

    Raises:
        XTransplantError: no plan is that cheap for so few documents.
    """

    def plan(documents: int, cells: int) -> list[tuple[int, int]]:
        for number in range(1, 32):
            if 2**number - 1 > documents or 2 ** (number - 1) > cells:
                break
            shares = [2**r / (2**number - 1) for r in range(number)]
            ends = [round(documents * sum(shares[: r + 1])) for r in range(number)]
            counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
            kept = [max(1, cells // 2**r) for r in range(number)]
            cost = sum(count * kept_cells for count, kept_cells in zip(counts, kept, strict=True))
            if cost <= budget * documents * cells * (1 + 1e-9):
                return list(zip(counts, kept, strict=True))
        raise XTransplantError(
            f"grid.budget={budget:g}: too little for {documents} documents and {cells} cells. Give more documents "
            "(limit), or a larger share."
        )

    return plan
