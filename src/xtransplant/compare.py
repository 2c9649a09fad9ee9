"""Conditions against each other: is a difference more than chance, how large is it, and what does it cost?

A group is what is compared: one model, task family, half of the documents and metric. Its conditions are the untouched
model (vanilla), both prompts in one (PIM), transplants, strategies, fine-tuned models, both together, and what an
oracle over a grid reaches, with its control. All runs of `evaluate` of a language pair are on the same documents, or
refused; a grid may have some of these. It is left out, with a note, where it does not fit.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xtransplant import conditions, stats
from xtransplant.conditions import KINDS, NOTHING, ORACLES, Cost, Entry
from xtransplant.overview import MACRO, MICRO, VANILLA, Document, natural, written
from xtransplant.record import Run
from xtransplant.types import XTransplantError

LEVEL = 0.05
# Sign flips: the smallest p is 1 over one more.
_FLIPS = 10_000
# Differences of scores that are less than this are none.
_ROUNDING = 1e-9


@dataclass
class Result:
    """A condition on one language pair, or pooled over several, against another condition.

    Attributes:
        kind: one of KINDS.
        pair: the language pair; None where pooled.
        pooled: `micro` (mean over documents) or `macro` (mean over language pairs); None for a language pair.
        pairs: how many language pairs.
        against: the condition that it is compared with; None: it is the baseline, nothing is compared.
        score, vanilla, baseline: of the condition, of the untouched base model and of `against`, on the same documents.
        difference: score less baseline; below 0 is better where the metric is one of errors.
        low, high: 95 %, a paired bootstrap over documents, which are drawn with their translations. Where no document
            differs, or all of a language pair alike, it says nothing: then for scores of 0 and 1 in one language pair
            Tango's interval, else None.
        wins, losses: documents that are better and worse than with `against`.
        p, test: two-sided, this comparison alone. Never of an oracle.
        p_holm: p corrected (Holm) for the language pairs of the condition; None where pooled, which is one test.
        effect, effect_name: Cohen's h for scores of 0 and 1, else d_z, the mean difference over the differences'
            standard deviation. Signed as `difference`.
        odds_ratio: wins over losses; None without a loss.
        minimum_detectable: the least difference that as many documents would show with 80 % power.
        could_be_chance: p is 0.05 or more, or the interval has 0 in it, or there is neither; None where nothing is
            compared.
        cost: of the condition on these documents.
        training: what it took before it: the training of an SFT condition, the grids that a strategy was chosen on (a
            fixed one on none).
        price_seconds, price_flops: what a point gained costs beyond `against`, with what was taken before; None without
            a gain. A point is 0.01 where scores lie between 0 and 1, else 1.
        chance: of an upper bound and its control what as many guesses would reach.
        note: what is to be known of it, in a sentence; may be empty.
    """

    kind: str
    condition: str
    pair: str | None
    documents: int
    score: float
    pooled: str | None = None
    pairs: int = 1
    against: str | None = None
    vanilla: float | None = None
    baseline: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    wins: int | None = None
    losses: int | None = None
    test: str | None = None
    p: float | None = None
    p_holm: float | None = None
    effect: float | None = None
    effect_name: str | None = None
    odds_ratio: float | None = None
    minimum_detectable: float | None = None
    could_be_chance: bool | None = None
    cost: Cost = field(default_factory=Cost)
    training: Cost = field(default_factory=Cost)
    price_seconds: float | None = None
    price_flops: float | None = None
    chance: float | None = None
    note: str = ""
    folder: Path | None = None


@dataclass
class Group:
    """What may be compared; `results` against vanilla first: by language pair, then pooled, in the order of KINDS.

    Attributes:
        notes: what is to be known of all of it, a sentence or two each.
        left_out: grids that could not be compared with the rest, and why; among `notes` too.
    """

    model: str
    task: str
    split: str
    metric: str
    higher_is_better: bool
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    groups: list[Group]

    def records(self) -> list[dict[str, Any]]:
        """Long form, a line per result; all lines have the same keys, numbers unrounded."""
        lines = []
        for group in self.groups:
            facts = {key: getattr(group, key) for key in ("model", "task", "split", "metric", "higher_is_better")}
            for result in group.results:
                plain = asdict(result)
                cost, training = plain.pop("cost"), plain.pop("training")
                plain |= cost | {f"training_{name}": value for name, value in training.items()}
                plain["folder"] = None if result.folder is None else str(result.folder)
                lines.append(facts | plain)
        return lines


def compare(
    runs: Sequence[Run], grids: Sequence[Run] = (), trainings: Sequence[Run] = (), against: str | None = None
) -> Comparison:
    """Every condition against vanilla of the same base model, on the same documents.

    Of a language pair, runs of `evaluate` must have the same tasks, their version, documents (by key and content) and
    prompts. A grid is held against them, or where there are none against the grid of the most documents. It may have
    some of the documents; what is recorded of all of them together then says nothing, and it is checked for each, in
    the samples of both: that its key is there, and has the same document, right answer, choices and prompts.

    Args:
        runs: of `evaluate`. Their samples are read.
        grids: of `grid`, controls among them: upper bounds, and what strategies were chosen on.
        trainings: of `sft`; those that a model's or an adapter's folder holds are found by themselves.
        against: a condition, or a kind that one condition of a group has: all are compared with it too.

    Raises:
        XTransplantError: runs of `evaluate` of one model, task, half and language pair that differ in the task's
            version, its documents or its prompts; no group has the condition `against`; a file cannot be read.
    """
    entries, left_out = conditions.comparable(runs, grids, trainings)
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.group, []).append(entry)
    order = sorted(groups, key=lambda key: (groups[key][0].model, key[1:], key[0]))
    tables = {key: _Table(groups[key]) for key in order}
    _refuse_unknown(against, tables.values())
    found = [_group(table, against, left_out.get(key, [])) for key, table in tables.items()]
    _tell_apart(found, list(tables))
    return Comparison(found)


# --- Conditions side by side -----------------------------------------------------------------------------------------


class _Table:
    """Conditions by name and language pair.

    Attributes:
        told: names that are told apart by numbers: which folder each is of.
        unclear: conditions of which a language pair has several that nothing tells apart: which of them go together
            over all pairs is not known.
    """

    def __init__(self, given: Sequence[Entry]) -> None:
        self.told: dict[str, str] = {}
        entries = self._numbered(given)
        self.cells: dict[tuple[str, str], Entry] = {}
        self.unclear: set[str] = set()
        # Name -> kin -> language pair -> treatments.
        alike: dict[str, dict[str, dict[str, list[str]]]] = {}
        for entry in entries:
            some = alike.setdefault(entry.name, {}).setdefault(entry.kin, {}).setdefault(entry.pair, [])
            if entry.treatment not in some:
                some.append(entry.treatment)
        for pair in sorted(dict.fromkeys(entry.pair for entry in entries), key=natural):
            for entry in (each for each in entries if each.pair == pair):
                self._add(entry, alike[entry.name])

    def _numbered(self, given: Sequence[Entry]) -> list[Entry]:
        """Models whose trainings go by the same words are told apart, in whatever condition they are."""
        folders: dict[str, dict[str, str]] = {}  # words -> weights -> folder
        for entry in given:
            if entry.trained:
                model = entry.run.manifest["model"]
                folder = str((model.get("adapter") or model).get("path"))
                folders.setdefault(entry.trained, {}).setdefault(entry.weights, folder)
        entries = []
        for entry in given:
            same = folders.get(entry.trained, {})
            if len(same) > 1:
                order = sorted(same, key=lambda weights: (natural(same[weights]), weights))
                number = order.index(entry.weights) + 1
                label = entry.trained if number == 1 else f"{entry.trained} #{number}"
                self.told[label] = same[entry.weights]
                entry = replace(entry, name=label + entry.name.removeprefix(entry.trained), trained=label)
            entries.append(entry)
        return entries

    def _add(self, entry: Entry, alike: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Under its name, with a number where several have that: of the same kin in all language pairs the same."""
        sizes = {kin: max(map(len, of_pairs.values())) for kin, of_pairs in alike.items()}
        before = sum(size for kin, size in itertools.takewhile(lambda each: each[0] != entry.kin, sizes.items()))
        number = 1 + before + alike[entry.kin][entry.pair].index(entry.treatment)
        name = entry.name if number == 1 else f"{entry.name} #{number}"
        if sizes[entry.kin] > 1:
            self.unclear.add(name)
        folder = f"{'' if len(alike[entry.kin]) == 1 else 'e.g. '}{entry.run.folder}"
        if sum(sizes.values()) > 1:
            self.told.setdefault(name, folder)
        twins = [
            each
            for (_, pair), each in self.cells.items()
            if (pair, each.name, each.treatment) == (entry.pair, entry.name, entry.treatment)
        ]
        if any(each.run is entry.run or written(each.run) == written(entry.run) for each in twins):
            return  # the same run in another folder
        if twins:  # where it gave something else, on another device perhaps
            name = f"{name} ({len(twins) + 1})"
            self.told.setdefault(name, f"the same run again, with another result, {folder}")
        self.cells[name, entry.pair] = entry

    @cached_property
    def pairs(self) -> list[str]:
        return list(dict.fromkeys(pair for _, pair in self.cells))

    @cached_property
    def conditions(self) -> list[str]:
        kinds = {name: entry.kind for (name, _), entry in self.cells.items()}
        return sorted(kinds, key=lambda name: (KINDS.index(kinds[name]), natural(name)))

    def kind(self, name: str) -> str:
        return next(entry.kind for (each, _), entry in self.cells.items() if each == name)

    def where(self, name: str) -> list[str]:
        """Its language pairs."""
        return [pair for pair in self.pairs if (name, pair) in self.cells]

    def whole(self, pair: str) -> int:
        """How many documents of a language pair there are; a grid may have some of them."""
        return max(entry.documents for (_, each), entry in self.cells.items() if each == pair)

    def meant(self, given: str) -> list[str]:
        """The conditions of this name or, if there is none, of this kind."""
        return [name for name in self.conditions if name == given] or [
            name for name in self.conditions if self.kind(name) == given
        ]


def _refuse_unknown(against: str | None, given: Iterable[_Table]) -> None:
    if against is None:
        return
    tables = list(given)
    oracles = [name for table in tables for name in table.meant(against) if table.kind(name) in ORACLES]
    if oracles:
        raise XTransplantError(
            f"against={against}: an oracle, which reads the labels: nothing is tested against it. What it reaches is "
            "in the table. Give a condition of another kind."
        )
    several = [each for table in tables if len(each := table.meant(against)) > 1]
    if several:
        raise XTransplantError(f"against={against}: several conditions are: {', '.join(several[0])}. Give one of them.")
    if not any(table.meant(against) for table in tables):
        names = dict.fromkeys(name for table in tables for name in table.conditions)
        raise XTransplantError(
            f"against={against}: no such condition. Give one of: {', '.join(names)}; or a kind that one of them is: "
            f"{', '.join(KINDS)}."
        )


def _tell_apart(groups: Sequence[Group], keys: Sequence[tuple[str, ...]]) -> None:
    """Models of one name that are not the same get their dtype, or a number."""
    labels = [(group.model, group.task, group.split, group.metric) for group in groups]
    for group, key, label in zip(groups, keys, labels, strict=True):
        models = [other[0] for other, each in zip(keys, labels, strict=True) if each == label]
        if len(models) > 1:
            dtypes = [json.loads(model)[1] for model in models]
            mine = json.loads(key[0])[1]
            group.model += f" ({mine})" if dtypes.count(mine) == 1 else f" #{models.index(key[0]) + 1}"


# --- Statistics ------------------------------------------------------------------------------------------------------


def _group(table: _Table, against: str | None, left_out: list[str]) -> Group:
    entries = list(table.cells.values())
    bases = [entry for entry in entries if entry.kind == VANILLA] or entries
    first = bases[0]
    _, task, split, metric = first.group
    higher = all(entry.higher_is_better for entry in entries)
    group = Group(first.model, task, split, metric, higher, notes=list(left_out), left_out=left_out)
    if VANILLA not in table.conditions:
        group.notes.append(
            "No vanilla run of the base model is among the runs: nothing is compared with it. Run `evaluate` without "
            "an adapter and without a transplant."
        )
    lacking = sorted({pair for pair in table.pairs if (VANILLA, pair) not in table.cells}, key=natural)
    if lacking and VANILLA in table.conditions:
        group.notes.append(f"No vanilla run of the base model for {', '.join(lacking)}.")
    some = [pair for pair in table.where(VANILLA) if table.cells[VANILLA, pair].documents < table.whole(pair)]
    if some:
        group.notes.append(
            f"Vanilla of {', '.join(some)} is a grid's, on some of the documents: what was scored on more is not "
            "compared with it. Run evaluate."
        )
    group.notes += _told_apart(table)
    if any(entry.scores is None for entry in entries):
        group.notes.append(
            f"No intervals and no tests where {group.metric} is not the mean of a number for each document."
        )
    group.results = _against(table, VANILLA, group.higher_is_better)
    if against is not None:
        for base in table.meant(against):
            if base != VANILLA:
                found = _against(table, base, group.higher_is_better)
                group.results += [each for each in found if each.against == base and each.condition != VANILLA]
        if not table.meant(against):
            group.notes.append(f"Nothing here is {against}.")
    return group


def _told_apart(table: _Table) -> list[str]:
    """Which condition is which, where several have one name."""
    notes = [f"{name}: {folder}." for name, folder in sorted(table.told.items(), key=lambda each: natural(each[0]))]
    unclear = [name for name in table.conditions if name in table.unclear]
    if unclear and len(table.pairs) > 1:
        notes.append(
            f"No average of {', '.join(unclear)}: which of one language pair goes with which of another is not known. "
            "Give the runs of one of them."
        )
    return notes


def _against(table: _Table, base: str, higher: bool) -> list[Result]:
    """Every condition against `base`, the latter itself included."""
    tests = _Tests(table, base)
    single = {
        name: [_single(table, tests, name, pair, higher) for pair in table.where(name)] for name in table.conditions
    }
    for results in single.values():
        tested = [each for each in results if each.p is not None]
        if tested:
            corrected = stats.holm(np.array([each.p for each in tested]))
            for each, p in zip(tested, corrected.tolist(), strict=True):
                each.p_holm = p
                each.could_be_chance = _could_be_chance(p, each)
    found = [each for pair in table.pairs for results in single.values() for each in results if each.pair == pair]
    for average in (MICRO, MACRO):
        for name in table.conditions:
            pairs = [
                pair
                for pair in table.where(name)
                if _on_the_same(table.cells.get((base, pair)), table.cells[name, pair]) is not None
            ]
            known = len(pairs) > 1 and name not in table.unclear
            pooled = _pooled(table, tests, name, pairs, average, higher) if known else None
            found += [] if pooled is None else [pooled]
    return found


def _could_be_chance(p: float, result: Result) -> bool:
    if result.low is None or result.high is None:
        return p >= LEVEL
    return p >= LEVEL or (result.low <= _ROUNDING and result.high >= -_ROUNDING)


@dataclass
class _Paired:
    """Scores of a condition and of the one that it is compared with, on the same documents."""

    scores: np.ndarray  # [D]
    base: np.ndarray  # [D]
    documents: list[Document]

    @property
    def differences(self) -> np.ndarray:
        found: np.ndarray = self.scores - self.base
        return found

    @cached_property
    def binary(self) -> bool:
        return bool(np.isin([self.scores, self.base], (0, 1)).all())


class _Tests:
    """Conditions and the one that they are compared with, paired by document, and what is drawn for them.

    Args:
        base: the condition that the others are compared with.
    """

    def __init__(self, table: _Table, base: str) -> None:
        self.base = base
        self.paired: dict[tuple[str, str], _Paired] = {}
        for name, pair in table.cells:
            entry, other = table.cells[name, pair], table.cells.get((base, pair))
            if name != base and other is not None and entry.scores is not None and other.scores is not None:
                documents = sorted(entry.scores)
                if not other.scores.keys() >= entry.scores.keys():
                    continue  # the other is a grid's, on some of the documents
                # A grid keeps 32 bits: what is the same is to be equal.
                kept = np.float64 if entry.of_grid is other.of_grid else np.float32
                values = [
                    np.array([each.scores[one] for one in documents], dtype=kept).astype(np.float64)
                    for each in (entry, other)
                    if each.scores
                ]
                self.paired[name, pair] = _Paired(values[0], values[1], documents)
        alike: dict[tuple[Any, ...], dict[str, dict[str, _Paired]]] = {}
        for name in table.conditions:
            if table.kind(name) in ORACLES:
                continue
            of_pairs = {pair: known for pair in table.pairs if (known := self.paired.get((name, pair))) is not None}
            if of_pairs:
                documents_of = tuple((pair, tuple(known.documents)) for pair, known in of_pairs.items())
                alike.setdefault(documents_of, {})[name] = of_pairs
        self._drawn = {name: drawn for some in alike.values() for drawn in [_Drawn(some)] for name in some}

    def drawn(self, name: str, weights: Mapping[str, float]) -> np.ndarray:
        """[resamples] of the weighted mean difference over some language pairs."""
        of = self._drawn[name]
        found: np.ndarray = sum(
            weight * of.resampled[of.pairs.index(pair), :, of.names.index(name)] for pair, weight in weights.items()
        )  # type: ignore[assignment]
        return found

    def single_p(self, name: str, pair: str) -> float:
        """Sign flips of a language pair alone."""
        return self._drawn[name].single_p[name, pair]

    def pooled_p(self, name: str, average: str) -> float:
        """Sign flips of questions: one has the same sign in all languages."""
        return self._drawn[name].pooled_p[name, average]


class _Drawn:
    """What is computed at once, for speed, for conditions that have the same documents of the same language pairs:
    resamples and sign flips."""

    def __init__(self, given: Mapping[str, Mapping[str, _Paired]]) -> None:
        first = next(iter(given.values()))
        self.names = list(given)
        self.pairs = list(first)
        self._units = [known.documents for known in first.values()]
        self._tables = [
            np.column_stack([given[name][pair].differences for name in self.names]) for pair in self.pairs
        ]  # [D, names] for each pair

    @cached_property
    def resampled(self) -> np.ndarray:
        """[pairs, resamples, names] mean differences over documents drawn with their translations."""
        return stats.resampled_means(self._tables, self._units)

    @cached_property
    def single_p(self) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for pair, table in zip(self.pairs, self._tables, strict=True):
            p = stats.sign_flip_max_t(table, _FLIPS).p
            found |= {(name, pair): float(each) for name, each in zip(self.names, p, strict=True)}
        return found

    @cached_property
    def pooled_p(self) -> dict[tuple[str, str], float]:
        units = {unit: n for n, unit in enumerate(dict.fromkeys(unit for some in self._units for unit in some))}
        sums = np.zeros((2, len(units), len(self.names)))  # by documents, and by language pairs
        count = sum(map(len, self._tables))
        for table, names in zip(self._tables, self._units, strict=True):
            rows = [units[unit] for unit in names]
            sums[0, rows] += table / count
            sums[1, rows] += table / (len(table) * len(self.pairs))
        found: dict[tuple[str, str], float] = {}
        for average, each in zip((MICRO, MACRO), sums, strict=True):
            p = stats.sign_flip_max_t(each, _FLIPS).p.tolist()
            found |= {(name, average): value for name, value in zip(self.names, p, strict=True)}
        return found


def _single(table: _Table, tests: _Tests, name: str, pair: str, higher: bool) -> Result:
    entry, base, vanilla = (table.cells.get((each, pair)) for each in (name, tests.base, VANILLA))
    assert entry is not None
    result = Result(
        *(entry.kind, name, pair, entry.documents, entry.score),
        cost=entry.cost,
        training=_total(entry.before),
        chance=entry.chance,
        note=_noted(_part(entry.documents, table.whole(pair)), entry.note),
        folder=entry.run.folder,
        vanilla=_on_the_same(vanilla, entry),
    )
    if base is None or name == tests.base:
        return result
    result.against = tests.base
    result.baseline = _on_the_same(base, entry)
    if result.baseline is None:
        return result
    result.difference = entry.score - result.baseline
    known = tests.paired.get((name, pair))
    if known is not None:
        _count(result, known, higher)
    if entry.kind in ORACLES:
        result.could_be_chance = not entry.beyond_chance
    elif known is None:
        result.could_be_chance = True
        result.note = _noted(result.note, "no interval: the metric is no mean over documents")
    else:
        if known.binary and np.ptp(known.differences) == 0:
            result.low, result.high = stats.paired_interval(known.scores, known.base)
        else:
            result.low, result.high = _interval(tests.drawn(name, {pair: 1.0}))
        _effect(result, [known], 1.0)
        if known.binary:
            result.p, result.test = stats.mcnemar(known.scores, known.base), "McNemar's exact test"
            discordance = float((known.differences != 0).mean())
            result.minimum_detectable = stats.detectable(entry.documents, discordance)
        else:
            result.p, result.test = tests.single_p(name, pair), "sign flips"
            result.minimum_detectable = _by_error(_variance(known) ** 0.5 / len(known.scores) ** 0.5)
    _price(result, base.cost + _total(base.before), higher)
    return result


def _pooled(table: _Table, tests: _Tests, name: str, pairs: list[str], average: str, higher: bool) -> Result | None:
    """A condition over language pairs in which it can be compared. None: what is no mean over documents has none over
    all of them."""
    entries, bases = ([table.cells[each, pair] for pair in pairs] for each in (name, tests.base))
    vanilla = [table.cells.get((VANILLA, pair)) for pair in pairs]
    known = [tests.paired.get((name, pair)) for pair in pairs]
    whole = [each for each in known if each is not None]
    if len(whole) < len(pairs) and average == MICRO and name != tests.base:
        return None
    if any(entry.scores is None for entry in entries) and average == MICRO:
        return None
    counts = np.array([entry.documents for entry in entries], dtype=float)
    weights = counts / counts.sum() if average == MICRO else np.full(len(pairs), 1 / len(pairs))
    before = {key: cost for entry in entries for key, cost in entry.before.items()}

    def mean(scores: Sequence[float | None]) -> float | None:
        return None if None in scores else float(weights @ np.array(scores, dtype=float))

    score = mean([entry.score for entry in entries])
    assert score is not None
    result = Result(
        *(entries[0].kind, name, None, int(counts.sum()), score),
        pooled=average,
        pairs=len(pairs),
        vanilla=mean([_on_the_same(each, entry) for each, entry in zip(vanilla, entries, strict=True)]),
        cost=sum((entry.cost for entry in entries), NOTHING),
        training=_total(before),
        chance=mean([entry.chance for entry in entries]),
    )
    missing = [pair for pair in table.pairs if pair not in pairs]
    result.note = _noted(
        f"over {len(pairs)} of {len(table.pairs)} language pairs, without {', '.join(missing)}" if missing else "",
        _part(result.documents, sum(map(table.whole, pairs))),
    )
    if name == tests.base:
        return result
    result.against = tests.base
    result.baseline = mean([_on_the_same(each, entry) for each, entry in zip(bases, entries, strict=True)])
    assert result.baseline is not None
    result.difference = score - result.baseline
    if len(whole) == len(pairs):
        for each in whole:
            _count(result, each, higher)
    if result.kind in ORACLES:
        result.could_be_chance = not all(entry.beyond_chance for entry in entries)
    elif len(whole) < len(pairs):
        result.could_be_chance = True
    else:
        drawn = tests.drawn(name, dict(zip(pairs, weights.tolist(), strict=True)))
        result.low, result.high = _interval(drawn)
        result.p, result.test = tests.pooled_p(name, average), "sign flips of questions"
        _effect(result, whole, weights)
        result.minimum_detectable = None if result.low is None else _by_error(float(drawn.std(ddof=1)))
        result.could_be_chance = _could_be_chance(result.p, result)
    total = sum((entry.cost for entry in bases), NOTHING)
    _price(result, total + _total({key: cost for entry in bases for key, cost in entry.before.items()}), higher)
    return result


def _on_the_same(other: Entry | None, entry: Entry) -> float | None:
    """Another condition's score, on the documents of this one; None if it has not all of them."""
    if other is None:
        return None
    if entry.scores is None or other.scores is None:
        return other.score if other.documents == entry.documents else None
    if other.scores.keys() == entry.scores.keys():
        return other.score
    values = [other.scores.get(document) for document in entry.scores]
    return None if None in values else float(np.mean(np.array(values, dtype=float)))


def _part(documents: int, whole: int) -> str:
    return f"on {documents} of {whole} documents" if documents < whole else ""


def _noted(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _interval(drawn: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """Nothing where no document differs, or all alike: resamples of one number do not say that it is the only one."""
    if np.ptp(drawn) < _ROUNDING:
        return None, None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _count(result: Result, known: _Paired, higher: bool) -> None:
    better = known.differences if higher else -known.differences
    result.wins = (result.wins or 0) + int((better > 0).sum())
    result.losses = (result.losses or 0) + int((better < 0).sum())


def _effect(result: Result, known: Sequence[_Paired], weights: Any) -> None:
    assert result.baseline is not None and result.difference is not None
    if all(each.binary for each in known):
        result.effect, result.effect_name = stats.cohens_h(_share(result.score), _share(result.baseline)), "Cohen's h"
        result.odds_ratio = result.wins / result.losses if result.losses and result.wins is not None else None
        return
    # Within language pairs: that some are easier is no noise of the difference.
    spread = float(np.sum(np.array([_variance(each) for each in known]) * weights)) ** 0.5
    result.effect_name = "d_z"
    result.effect = result.difference / spread if spread > 0 else None


def _variance(known: _Paired) -> float:
    """Of the differences; 0 where all are alike but for rounding, or there is one."""
    if len(known.differences) < 2 or np.ptp(known.differences) < _ROUNDING:
        return 0.0
    return float(known.differences.var(ddof=1))


def _share(value: float) -> float:
    return min(1.0, max(0.0, value))


def _by_error(error: float) -> float | None:
    """None where no document differs, or all alike: nothing is known of how much they could."""
    return stats.detectable_mean(float(error)) if error > 0 else None


def _total(costs: Mapping[str, Cost]) -> Cost:
    return sum(costs.values(), NOTHING)


def _price(result: Result, base: Cost, higher: bool) -> None:
    """What a point gained costs more than the baseline did."""
    assert result.difference is not None and result.baseline is not None
    gain = result.difference if higher else -result.difference
    if gain < _ROUNDING or result.kind in ORACLES:
        return
    share = min(result.score, result.baseline) >= 0 and max(result.score, result.baseline) <= 1
    points = gain / (0.01 if share else 1.0)
    mine = result.cost + result.training

    def price(of: Callable[[Cost], float | None]) -> float | None:
        one, other = of(mine), of(base)
        return None if one is None or other is None else (one - other) / points

    result.price_seconds, result.price_flops = price(lambda cost: cost.seconds), price(lambda cost: cost.flops)
