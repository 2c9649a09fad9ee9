"""Conditions against each other: is a difference more than chance, how large is it, and what does it cost?

A group is what is compared: one model, task family, half and metric. Its conditions are the untouched model (vanilla),
both prompts in one (PIM), transplants, strategies, fine-tuned models, both together, and what an oracle over a grid
reaches, with its control. All are scored on the same documents, or refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xtransplant.record import Run

# Kinds of conditions, in the order in which they are shown. An oracle reads the labels: it has no p.
KINDS = ("vanilla", "pim", "transplant", "strategy", "sft", "sft+transplant", "upper_bound", "chance")
ORACLES = ("upper_bound", "chance")
MICRO, MACRO = "micro", "macro"


@dataclass
class Cost:
    """What was computed. None: not recorded, by a run of an earlier version."""

    seconds: float | None = None
    tokens: int | None = None
    flops: float | None = None


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
        low, high: 95 %, a paired bootstrap over documents, which are drawn with their translations.
        wins, losses: documents that are better and worse than with `against`.
        p, test: two-sided, this comparison alone. Never of an oracle.
        p_holm: p corrected (Holm) for the language pairs of the condition; None where pooled, which is one test.
        effect, effect_name: Cohen's h for scores of 0 and 1, else the standardised mean difference of the pairs, d_z.
        odds_ratio: wins over losses; None without a loss.
        minimum_detectable: the least difference that as many documents would show with 80 % power.
        could_be_chance: nothing speaks against that; None where nothing is compared.
        training: of an SFT condition its training, of a strategy the grids that it was chosen on; all 0 if there is none.
        price_flops, price_seconds: what a point gained (0.01 of a score between 0 and 1) costs beyond `against`, with the
            training; None without a gain.
        chance: of an upper bound what as many guesses would reach.
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
    price_flops: float | None = None
    price_seconds: float | None = None
    chance: float | None = None
    note: str = ""
    folder: Path | None = None


@dataclass
class Group:
    """What may be compared; `results` by language pair, then pooled, in the order of KINDS."""

    model: str
    task: str
    split: str
    metric: str
    higher_is_better: bool
    results: list[Result] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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


def compare(runs: Sequence[Run], grids: Sequence[Run] = (), trainings: Sequence[Run] = ()) -> Comparison:
    """Runs of `evaluate`, of `grid` and of `sft` beside each other."""
    raise NotImplementedError
