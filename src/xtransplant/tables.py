"""Results as text: for a terminal, a spreadsheet, a web page, a paper."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from xtransplant.answer_language import CONSISTENCY, JUDGED
from xtransplant.compare import Comparison, Group, Result
from xtransplant.conditions import NOTHING, ORACLES, Cost
from xtransplant.measures import measures
from xtransplant.overview import MICRO, UNPARSED, Block, Cell, Overview, Unfinished, overview
from xtransplant.record import Run
from xtransplant.types import STRATEGIES

# Metrics that are shown beside the main one, where a run has them, and what they say.
_BESIDE = {
    UNPARSED: "share of answers in which the task's rule finds no option; they count as wrong",
    CONSISTENCY: "0.75 of 40%: of 40% of the answers the language can be told, 0.75 of them are in the target's",
}
# Columns of a terminal. A table that is wider is turned: a row per condition.
_WIDTH = 120
# How many of the comparisons are named that are worse than vanilla.
_WORST = 10


def run_table(run: Run) -> str:
    """One run: a row per task and metric, with the trivial baseline and the number of documents that it speaks of."""
    rows = [
        [each.task, each.name, _number(each.value, each.stderr), _number(each.trivial), str(each.documents)]
        for several in measures(run, of_documents=False).values()
        for each in several
    ]
    return table(["task", "metric", "value ± stderr", "trivial", "documents"], rows)


def training_table(runs: Sequence[Run]) -> str:
    """Runs of `sft`: a row each, with its loss at the end, on its own last step and on the documents held out."""
    header = ["model", "data", "method", "languages", "examples", "steps", "loss", "held out", "tokens", "seconds"]
    rows = []
    for run in runs:
        facts = run.manifest
        steps, best = facts["steps"], facts["best_step"]
        rows.append(
            [
                *(facts["model_name"], facts["data"], facts["method"], " ".join(facts["languages"])),
                str(sum(sides["training"] for sides in facts["examples"].values())),
                str(steps) if steps == best else f"{steps}, best {best}",
                *("-" if loss is None else f"{loss:.3f}" for loss in (facts["loss"], facts["eval_loss"])),
                str(facts["cost"]["tokens"]),
                f"{facts['cost']['seconds']:.0f}",
            ]
        )
    return table(header, rows)


# --- Many runs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Heading:
    text: str


@dataclass(frozen=True)
class _Table:
    header: list[str]
    rows: list[list[str]]
    tail: list[list[str]] = field(default_factory=list)  # rows below a rule


@dataclass(frozen=True)
class _Notes:
    lines: list[str]


_Piece = _Heading | _Table | _Notes


def summary(runs: Sequence[Run], form: str = "text", unfinished: Sequence[Unfinished] = ()) -> str:
    """Runs of `evaluate` beside each other; what is computed, and from what, is in `overview`.

    Args:
        form: `csv` has a line per cell and average with all numbers as they are. `text`, `markdown` and `latex` are to
            be read: for each model, task, half, metric and settings a table with a row per language pair and a column
            per condition (the other way round if that is wider than a terminal), then which cells are worse than
            vanilla, worst first. `latex` needs the package booktabs.
        unfinished: runs without a result, named where theirs would be.

    Raises:
        XTransplantError: a run's samples cannot be read.
    """
    found = overview(runs, unfinished)
    if form == "csv":
        return _csv(found.records())
    turned = [_columns(_upright(block)) > _WIDTH for block in found.blocks]
    pieces = [piece for block, turn in zip(found.blocks, turned, strict=True) for piece in _block(block, turn)]
    pieces.append(_Notes([f"{each.folder.name}: {_said(each)}" for each in found.unplaced]))
    pieces += [_Notes(_legend(found, any(turned))), *_worst(found)]
    return _WRITE[form]([piece for piece in pieces if not isinstance(piece, _Notes) or piece.lines])


def _block(block: Block, turned: bool) -> list[_Piece]:
    pieces: list[_Piece] = [_Heading(_title(block))]
    pieces += _turned(block) if turned else [_upright(block)]
    for name in _BESIDE:
        cells = [cell for row in block.rows for cell in row.cells.values()]
        if any(name in cell.beside or (name == CONSISTENCY and JUDGED in cell.beside) for cell in cells):
            pieces += _beside(block, name, turned)
    return [*pieces, _Notes(_remarks(block))]


def _title(block: Block) -> str:
    labels = [block.model, block.task, block.split, *([block.settings] if block.settings else [])]
    return f"{', '.join(labels)}: {block.metric}{'' if block.higher_is_better else ' (lower is better)'}"


def _upright(block: Block) -> _Table:
    """A row per language pair, a column per condition."""

    def line(label: str, cells: Mapping[str, Cell], missing: Mapping[str, Unfinished]) -> list[str]:
        return [label, *_common(cells), *(_whole(cells.get(name), missing.get(name)) for name in block.conditions)]

    rows = [line(row.label, row.cells, row.missing) for row in block.rows]
    tail = [line(kind, cells, {}) for kind, cells in block.averages.items()]
    return _Table(["pair", "docs", "trivial", *block.conditions], rows, tail)


def _turned(block: Block) -> list[_Table]:
    """A row per condition, a column per language pair."""
    columns = [
        [
            row.label,
            *_common(row.cells),
            *(_brief(row.cells.get(name), row.missing.get(name)) for name in block.conditions),
        ]
        for row in block.rows
    ]
    columns += [
        [kind, *_common(cells), *(_whole(cells.get(name), None) for name in block.conditions)]
        for kind, cells in block.averages.items()
    ]
    return _side_by_side(["", "docs", "trivial", *block.conditions], columns)


def _beside(block: Block, name: str, turned: bool) -> list[_Table]:
    """A metric beside the main one, laid out like the main table."""

    def shown(cell: Cell | None) -> str:
        value = None if cell is None else cell.beside.get(name)
        if cell is None or name != CONSISTENCY or JUDGED not in cell.beside:
            return _number(value)
        return f"{_number(value)} of {cell.beside[JUDGED]:.0%}"

    columns = [[row.label, *(shown(row.cells.get(condition)) for condition in block.conditions)] for row in block.rows]
    first = [name, *block.conditions]
    if turned:
        return _side_by_side(first, columns)
    return [_Table(first, columns)]


def _side_by_side(first: list[str], columns: Sequence[list[str]]) -> list[_Table]:
    """Tables with these columns beside the first, as many in each as a terminal has room for."""
    tables: list[_Table] = []
    for column in columns:
        if tables:
            wider = _Table([*tables[-1].header, column[0]], [*map(_with, tables[-1].rows, column[1:])])
            if _columns(wider) <= _WIDTH:
                tables[-1] = wider
                continue
        tables.append(_Table([first[0], column[0]], [list(pair) for pair in zip(first[1:], column[1:], strict=True)]))
    return tables


def _with(row: list[str], cell: str) -> list[str]:
    return [*row, cell]


def _columns(of: _Table) -> int:
    """How wide it is as text."""
    return max(map(len, table(of.header, of.rows, of.tail).splitlines()))


def _common(cells: Mapping[str, Cell]) -> list[str]:
    """Documents and trivial baseline: the same for all conditions."""
    some = next(iter(cells.values()), None)
    return ["-", "-"] if some is None else [str(some.documents), _number(some.trivial)]


def _whole(cell: Cell | None, missing: Unfinished | None) -> str:
    if cell is None:
        return "-" if missing is None else missing.status
    if cell.difference is None:
        return _number(cell.score) + ("" if cell.stderr is None else f" ±{_bare(f'{cell.stderr:.3f}')}")
    text = f"{_number(cell.score)} {cell.difference:+.3f}"
    if cell.interval is None:
        return text
    if cell.interval == (0, 0):
        return f"{text} [no change]"
    return f"{text} [{' '.join(_bare(f'{edge:+.3f}') for edge in cell.interval)}]"


def _brief(cell: Cell | None, missing: Unfinished | None) -> str:
    if cell is None:
        return "-" if missing is None else missing.status
    if cell.difference is None:
        return _number(cell.score)
    return f"{cell.difference:+.3f}" + ("*" if cell.interval is not None and not _spans_zero(cell.interval) else "")


def _spans_zero(interval: tuple[float, float]) -> bool:
    return interval[0] <= 0 <= interval[1]


def _bare(number: str) -> str:
    """Without the zero before the point."""
    return re.sub(r"^([+-]?)0\.", r"\1.", number)


def _remarks(block: Block) -> list[str]:
    lines = [
        f"{row.label}, {condition}: {_said(missing)}"
        for row in block.rows
        for condition, missing in row.missing.items()
    ]
    if any(cell.values is None for row in block.rows for cell in row.cells.values()):
        lines.append(f"No intervals where {block.metric} is not the mean of a number for each document.")
    if block.averages and MICRO not in block.averages:
        lines.append("No micro average, for the same reason.")
    left_out = [row.label for row in block.rows if row not in block.averaged]
    if len(block.rows) > 1 and not block.averages:
        lines.append("No averages: no language pair has all conditions.")
    elif block.averages and left_out:
        lines.append(
            f"micro and macro: over the {len(block.averaged)} of {len(block.rows)} language pairs that have all "
            f"conditions, without {', '.join(left_out)}."
        )
    return lines


def _said(missing: Unfinished) -> str:
    why = " ".join(missing.why.split())
    return f"{missing.status}{': ' if why else ''}{why[:200]}{'…' if len(why) > 200 else ''}"


def _legend(found: Overview, turned: bool) -> list[str]:
    if not found.blocks:
        return []
    compared, rows = bool(found.comparisons()), [row for block in found.blocks for row in block.rows]
    names = {name for row in rows for cell in row.cells.values() for name in cell.beside}
    names |= {CONSISTENCY} if JUDGED in names else set()
    conditions = {name for block in found.blocks for name in block.conditions}
    lines = [
        "Scores are on the pair's target language, the second, ± a standard error"
        + ("; after a score its difference to vanilla on the same documents [95 % interval]." if compared else ".")
    ]
    if any(cell.interval is not None for row in rows for cell in row.cells.values()):
        lines.append(
            "Intervals: Tango's for scores of 0 and 1, else and for averages a bootstrap; `compare` bootstraps all."
        )
    if turned:
        lines.append(
            "Where conditions are the rows: a number with a sign is a difference to vanilla, with * if its 95 % "
            "interval is without 0; format=csv has the scores and all intervals."
        )
    if any(block.averages for block in found.blocks):
        lines.append("micro: the mean over documents; macro: over language pairs.")
    if any(cell.trivial is not None for row in rows for cell in row.cells.values()):
        lines.append("trivial: a guess that does not read the question.")
    if any(">" in name for name in conditions):
        lines.append(
            "ffn I>J (attn I>J): the feed-forward (attention) output of layer I, read at the last token of the prompt "
            "in the source language, put in place of layer J's at the last token of the same prompt in the target "
            "language."
        )
    if any(name.partition(" ")[0] in STRATEGIES for name in conditions):
        lines.append("A strategy's name (overall, vote, …): what its selection says, see `xtransplant select`.")
    return lines + [f"{name}: {text}." for name, text in _BESIDE.items() if name in names]


def _worst(found: Overview) -> list[_Piece]:
    """The cells that are worse than vanilla, a list for each metric."""
    pieces: list[_Piece] = []
    for metric, compared in found.comparisons().items():
        worse = [each for each in compared if each.loss > 0]
        count = f"{len(compared)} comparison{'s' if len(compared) > 1 else ''} by {metric}"
        if not worse:
            pieces.append(_Notes([f"None of {count} is worse than vanilla."]))
            continue
        labels = {
            name: [getattr(each.block, name) for each in compared] for name in ("model", "task", "split", "settings")
        }
        varied = [name for name, values in labels.items() if len(set(values)) > 1]
        rows = [
            [
                *(getattr(each.block, name) or "-" for name in varied),
                *(each.row.label, each.condition, str(each.cell.documents)),
                *(_number(each.cell.score - (each.cell.difference or 0)), _number(each.cell.score)),
                f"{each.cell.difference:+.3f}",
                "-" if each.cell.interval is None else " to ".join(f"{edge:+.3f}" for edge in each.cell.interval),
                *(_p(each.cell.p), _p(each.cell.q)),
            ]
            for each in worse[:_WORST]
        ]
        shown = f", the worst {_WORST} of them below" if len(worse) > _WORST else ""
        header = [*varied, "pair", "condition", "docs", "vanilla", "score", "difference", "95 % interval", "p", "q"]
        pieces += [_Heading(f"Worse than vanilla: {len(worse)} of {count}{shown}"), _Table(header, rows)]
        tests = sorted({each.cell.test for each in compared if each.cell.test})
        if tests:
            note = f"p: {' or '.join(tests)}, two-sided; q: p adjusted for all {count} (false discovery rate)."
            pieces.append(_Notes([note]))
    return pieces


def _p(value: float | None) -> str:
    return "-" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"


# --- Conditions against each other --------------------------------------------------------------------------------


def comparison(found: Comparison, form: str = "text") -> str:
    """Conditions against a baseline; what is computed, and from what, is in `compare`.

    Args:
        form: `csv` has a line per comparison, numbers as they are; `text`, `markdown` and `latex` are to be read.
    """
    if form == "csv":
        return _csv(found.records())
    pieces = [piece for group in found.groups for piece in _compared(group)]
    pieces.append(_Notes(_comparison_legend(found)))
    return _WRITE[form]([piece for piece in pieces if not isinstance(piece, _Notes) or piece.lines])


def _compared(group: Group) -> list[_Piece]:
    labels = f"{group.model}, {group.task}, {group.split}: {group.metric}"
    title = f"{labels}{'' if group.higher_is_better else ' (lower is better)'}"
    pieces: list[_Piece] = []
    bases: list[str | None] = list(dict.fromkeys(each.against for each in group.results if each.against is not None))
    first = bases[0] if bases else None
    # Where nothing is compared there are scores.
    columns = len(_HEADER) if bases else _HEADER.index("score") + 1
    for base in bases or [None]:
        results = _beside_each_other(group.results, base, first)
        higher = group.higher_is_better
        rows = [[_place(each), *_row(each, higher)][:columns] for each in results if each.pooled is None]
        tail = [[_place(each), *_row(each, higher)][:columns] for each in results if each.pooled is not None]
        pieces.append(_Heading(f"{title}{'' if base is None else f', against {base}'}"))
        pieces.append(_Notes(group.notes if base == first else []))
        pieces.append(_Table(_HEADER[:columns], rows, tail))
    own = [each for each in group.results if each.against in (None, first)]
    pieces.append(_Heading(f"What it costs: {labels}"))
    pieces.append(_Table(_COST_HEADER, [_cost_row(each) for each in _whole_of_each(own)]))
    # The same note of several language pairs is one.
    notes: dict[str, list[str]] = {}
    for each in own:
        if each.note:
            notes.setdefault(f"{each.condition}: {each.note}.", []).append(_place(each))
    return [*pieces, _Notes([f"{', '.join(places)}: {note}" for note, places in notes.items()])]


_HEADER = [
    *("pair", "condition", "docs", "score", "difference [95 %]", "won:lost", "p", "effect", "detectable", "reading"),
]


def _beside_each_other(results: Sequence[Result], base: str | None, first: str | None) -> list[Result]:
    """The rows of a table: what is compared with `base`, below the latter's own score; in the first table also what is
    compared with nothing."""
    order = {place: number for number, place in enumerate(dict.fromkeys(map(_place, results)))}
    found: dict[tuple[str, str], Result] = {}
    for each in results:
        where = _place(each), each.condition
        if each.against == base:
            found[where] = each
        elif each.condition == base:
            alone = replace(each, difference=None, low=None, high=None, wins=None, losses=None, p=None, p_holm=None)
            found.setdefault(where, replace(alone, effect=None, minimum_detectable=None, could_be_chance=None))
        elif each.against is None and base == first:
            found.setdefault(where, each)
    return sorted(found.values(), key=lambda each: (order[_place(each)], each.condition != base))


def _place(result: Result) -> str:
    return str(result.pair or result.pooled)


def _row(result: Result, higher: bool) -> list[str]:
    difference = "-" if result.difference is None else f"{result.difference:+.3f}"
    if result.low is not None and result.high is not None:
        difference += f" [{' '.join(_bare(f'{edge:+.3f}') for edge in (result.low, result.high))}]"
    return [
        *(result.condition, str(result.documents), _number(result.score), difference),
        "-" if result.wins is None else f"{result.wins}:{result.losses}",
        _p(result.p if result.pooled else result.p_holm),
        "-" if result.effect is None else f"{result.effect:+.2f} {'d' if result.effect_name == 'd_z' else 'h'}",
        _number(result.minimum_detectable),
        _reading(result, higher),
    ]


def _reading(result: Result, higher: bool) -> str:
    if result.could_be_chance is None or result.difference is None:
        return ""
    if result.kind == "chance":
        return "control"
    if result.kind in ORACLES:
        return "oracle, could be chance" if result.could_be_chance else "oracle, beyond its control"
    if result.could_be_chance:
        return "could be chance"
    # Not by documents won and lost: few large changes may outweigh many small ones.
    return "better" if (result.difference > 0) is higher else "worse"


_COST_HEADER = [
    "condition",
    "pair",
    "docs",
    "seconds",
    "tokens",
    "flops",
    "before: seconds",
    "flops",
    "a point: seconds",
    "flops",
]


def _whole_of_each(results: Iterable[Result]) -> list[Result]:
    """Of each condition what is said of all of its documents."""
    found: dict[str, Result] = {}
    for each in results:
        before = found.get(each.condition)
        if before is None or (before.pooled is None and each.pooled is not None):
            found[each.condition] = each
    return list(found.values())


def _cost_row(result: Result) -> list[str]:
    def numbers(cost: Cost) -> list[str]:
        seconds = "-" if cost.seconds is None else f"{cost.seconds:.1f}"
        return [seconds, "-" if cost.flops is None else f"{cost.flops:.2e}"]

    seconds, flops = numbers(result.cost)
    before = ["", ""] if result.training == NOTHING else numbers(result.training)
    price = numbers(Cost(result.price_seconds, None, result.price_flops))
    pairs = result.pair or f"all {result.pairs}"
    tokens = "-" if result.cost.tokens is None else str(result.cost.tokens)
    return [result.condition, pairs, str(result.documents), seconds, tokens, flops, *before, *price]


def _comparison_legend(found: Comparison) -> list[str]:
    results = [each for group in found.groups for each in group.results]
    tests = sorted({each.test for each in results if each.test})
    lines = []
    if any(each.difference is not None for each in results):
        lines.append(
            "difference: score less that of the condition compared with, on the same documents"
            + (" [95 %: a bootstrap; `summarize` gives Tango's interval for scores of 0 and 1]." if tests else ".")
        )
    if tests:
        lines += [
            f"p: {' or '.join(tests)}, two-sided; of a language pair corrected (Holm) for the condition's language "
            "pairs. Not corrected for the number of conditions.",
            "effect: Cohen's h of two shares; d: the mean difference over the differences' standard deviation. "
            "detectable: the least difference that so many documents show with 80 % power; - if none would or, pooled "
            "or for other scores than 0 and 1, where no document differs or all alike.",
            "could be chance: p is 0.05 or more, or the interval has 0 in it.",
        ]
    lines.append(
        "Costs are of all documents of the condition: - where not recorded. before: its training, or the grids that it "
        "was chosen on. a point: what 0.01 gained costs beyond the condition compared with, all included."
    )
    if any(each.pooled for each in results):
        lines.append("micro: the mean over documents; macro: over language pairs.")
    if any(each.kind in ORACLES for each in results):
        lines.append(
            "An oracle reads the labels of the documents that it is scored on: it is no method, and has no p. Its "
            "control does the same with vectors of other documents, or noise."
        )
    return lines


# --- Forms ---------------------------------------------------------------------------------------------------------


def _text(pieces: Sequence[_Piece]) -> str:
    parts = []
    for piece in pieces:
        if isinstance(piece, _Heading):
            parts.append(piece.text)
        elif isinstance(piece, _Table):
            parts.append(table(piece.header, piece.rows, piece.tail))
        else:
            parts.append("\n".join(wrapped for line in piece.lines for wrapped in textwrap.wrap(line, _WIDTH)))
    return "\n\n".join(parts)


def _markdown(pieces: Sequence[_Piece]) -> str:
    def escape(text: str) -> str:
        return re.sub(r"([\\|*\[\]])", r"\\\1", text).replace("<", "&lt;")

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(escape, cells))} |"

    parts = []
    for piece in pieces:
        if isinstance(piece, _Heading):
            parts.append(f"### {escape(piece.text)}")
        elif isinstance(piece, _Table):
            rule = f"|{' --- |' * len(piece.header)}"
            parts.append("\n".join([line(piece.header), rule, *map(line, piece.rows), *map(line, piece.tail)]))
        else:
            parts.append("\n".join(f"- {escape(each)}" for each in piece.lines))
    return "\n\n".join(parts)


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "…": r"\ldots{}",
}


def _latex(pieces: Sequence[_Piece]) -> str:
    """Each table floats, with the heading before it as its caption."""

    def escape(text: str) -> str:
        # A sign before a number, not a hyphen.
        parts = re.split(r"(?<![\w.])([+-])(?=\.?\d)", text)
        return "".join(
            f"${part}$" if odd % 2 else "".join(_LATEX.get(character, character) for character in part)
            for odd, part in enumerate(parts)
        )

    def line(cells: Sequence[str]) -> str:
        text = " & ".join(map(escape, cells))
        # After the end of a row these would be read as its options.
        return ("{}" if text.startswith(("[", "*")) else "") + text + r" \\"

    parts, caption = [r"% Needs \usepackage{booktabs}."], ""
    for piece in pieces:
        if isinstance(piece, _Heading):
            caption = escape(piece.text)
        elif isinstance(piece, _Table):
            tail = [r"\midrule", *map(line, piece.tail)] if piece.tail else []
            parts.append(
                "\n".join(
                    [
                        *(r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"),
                        *(rf"\begin{{tabular}}{{{'l' * len(piece.header)}}}", r"\toprule", line(piece.header)),
                        *(r"\midrule", *map(line, piece.rows), *tail, r"\bottomrule"),
                        *(r"\end{tabular}", r"\end{table}"),
                    ]
                )
            )
        else:
            parts.append("\n\n".join(map(escape, piece.lines)))
    return "\n\n".join(parts)


_WRITE = {"text": _text, "markdown": _markdown, "latex": _latex}


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0] if lines else ["status"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: str(value).lower() if isinstance(value, bool) else value for key, value in line.items()} for line in lines
    )
    return text.getvalue().removesuffix("\n")


# --- One run, and what both need -----------------------------------------------------------------------------------


def _number(value: float | None, error: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], tail: Sequence[Sequence[str]] = ()) -> str:
    """Columns as wide as their widest cell; a rule above the rows of `tail`."""
    widths = [max(len(line[column]) for line in [header, *rows, *tail]) for column in range(len(header))]
    rule = ["-" * width for width in widths]
    lines = [header, rule, *rows, *([rule] if tail else []), *tail]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
