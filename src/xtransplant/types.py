"""The words everybody uses: component, site, layer pair, cell, strategy. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple


class XTransplantError(Exception):
    """A fault the user can act on: printed as it is, without a traceback."""


class Component(Enum):
    """Which module's last-token output is transplanted (the released code's "granularity")."""

    ffn = "ffn"
    attn = "attn"
    #: What the authors' released code does: the stored attention output has the layer's input
    #: residual added in place, so the vector is attn(x) + x (in ``modelwrapper_attn``, lines 65 to 71).
    attn_as_released = "attn_as_released"


class Site(Enum):
    """Where a component is read and written when a norm follows the module."""

    module = "module"  #: the module's own output, as the paper's models have it
    branch = "branch"  #: what is added to the residual stream (after Gemma's or OLMo 2's post-norm)


class Control(Enum):
    """What stands in for the parallel prompt's vector, to see what a transplant of anything would do."""

    none = "none"
    random_document = "random_document"  #: another document's source prompt
    noise = "noise"  #: random vectors of the same length
    self = "self"  #: the target prompt itself: equal layers change nothing
    zero = "zero"  #: zeros: the module is deactivated there


class Mode(Enum):
    """What becomes of the module's own output *o* and the source vector *v*, with a strength *s*."""

    replace = "replace"  #: v, as in the paper
    add = "add"  #: o + s v
    interpolate = "interpolate"  #: (1 - s) o + s v


class Scope(Enum):
    """Which forward passes are written to."""

    first_token = "first_token"  #: the prompt's only, which gives the first new token: as in the paper
    every_step = "every_step"  #: and every later token's, of a generated text as of a choice that is scored


@dataclass(frozen=True)
class Intervention:
    """How a component is read and written; the defaults are the paper's.

    Attributes:
        match_norm: the source vector is first scaled to the length of the module's own output.
        positions: the last so many prompt tokens are read and written, or "all", for prompts of equal length.
            Later steps (`scope`) are written with the last one's vector.
    """

    site: Site = Site.module
    mode: Mode = Mode.replace
    strength: float = 1.0
    match_norm: bool = False
    positions: int | str = 1
    scope: Scope = Scope.first_token


PAPER = Intervention()

# Strategies: those that choose one cell for all documents, and those that combine cells for each document. All of the
# latter but `vote` need the log-probabilities of choices. What each does is in strategies.py.
ONE_CELL = ("overall", "source_last", "target_first", "fixed", "cross_validated")
PER_DOCUMENT = ("margin", "entropy", "vote", "mean_logprob", "band", "router")
STRATEGIES = (*ONE_CELL, *PER_DOCUMENT)
# The paper's settings by kind of task (its coarse ones): component, source, target.
FIXED: dict[str, tuple[str, str, str]] = {
    "understanding": ("attn", "last", "first"),
    "generation": ("ffn", "first", "first"),
    "culture": ("ffn", "first", "first"),
}


@dataclass(frozen=True)
class LayerPair:
    """Source layer *i* and target layer *j*, 0-based and non-negative."""

    source: int
    target: int

    @classmethod
    def parse(cls, given: Any, num_layers: int, key: str = "transplant.layers") -> LayerPair:
        """Read ``[source, target]``; each an index, a negative index from the end, `first` or `last`.

        Raises:
            XTransplantError: not two layers, or a layer outside ``[-num_layers, num_layers)``.
        """
        example = {
            "transplant.layers": "Give two layers, e.g. transplant.layers=[17,0] or [last,first]; several pairs at "
            "once as [[17,0],[17,1]]; null is the vanilla model.",
            "grid.pairs": "Give pairs of layers, e.g. 'grid.pairs=[[17,0],[13,2]]'.",
        }.get(key, f"Give two layers, e.g. {key}=[17,0].")
        if isinstance(given, str) or not hasattr(given, "__len__") or len(given) != 2:
            raise XTransplantError(f"{key}={given!r}: not a pair of layers. {example}")
        return cls(*(_layer_index(layer, num_layers, key, example) for layer in given))

    @classmethod
    def parse_several(cls, given: Any, num_layers: int, key: str = "transplant.layers") -> list[LayerPair]:
        """Read what `parse` reads, or a list of such pairs, written at once; by target, then source.

        Raises:
            XTransplantError: as `parse`; or a target layer that is named twice.
        """
        several = isinstance(given, list) and bool(given) and all(isinstance(each, list) for each in given)
        pairs = [cls.parse(each, num_layers, key) for each in (given if several else [given])]
        targets = [pair.target for pair in pairs]
        if len(set(targets)) < len(targets):
            raise XTransplantError(
                f"{key}={given!r}: two pairs have the same target layer. Give each target layer once, e.g. "
                f"'{key}=[[17,0],[17,1]]'."
            )
        return sorted(pairs, key=lambda pair: (pair.target, pair.source))

    @classmethod
    def parse_set(cls, given: Any, num_layers: int) -> list[LayerPair]:
        """Read `all`, `source_last`, `target_first`, `diagonal` or a list of pairs; by source, then target.

        Raises:
            XTransplantError: none of these, no pair, or a pair that `parse` refuses.
        """
        layers = range(num_layers)
        named: dict[str, Callable[[], Iterator[LayerPair]]] = {
            "all": lambda: (cls(source, target) for source in layers for target in layers),
            "source_last": lambda: (cls(num_layers - 1, target) for target in layers),
            "target_first": lambda: (cls(source, 0) for source in layers),
            "diagonal": lambda: (cls(layer, layer) for layer in layers),
        }
        if isinstance(given, str) and given in named:
            # A model whose depth is not known yet: the name is all that can be judged.
            return list(named[given]()) if num_layers < 10**6 else []
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            raise XTransplantError(
                f"grid.pairs={given!r}: no set of layer pairs. Give {', '.join(named)}, or a list of pairs, e.g. "
                "'grid.pairs=[[17,0],[13,2]]'."
            )
        return sorted(
            {cls.parse(pair, num_layers, "grid.pairs") for pair in given}, key=lambda pair: (pair.source, pair.target)
        )


class Cell(NamedTuple):
    """One cell of the map over all layer pairs: what is transplanted, from which layer, to which. Layers from 0."""

    component: Component
    source: int
    target: int

    @property
    def order(self) -> tuple[int, int, int]:
        """Of equally good cells the smallest is taken, as in the paper: the smallest target layer, then the largest
        source layer; then ffn before attn."""
        return self.target, -self.source, list(Component).index(self.component)


def _layer_index(given: Any, num_layers: int, key: str, example: str) -> int:
    named = {"first": 0, "last": num_layers - 1}
    if isinstance(given, str) and given in named:
        return named[given]
    if isinstance(given, bool) or not isinstance(given, int):
        raise XTransplantError(f"{key}: {given!r} is not a layer. {example}")
    if not -num_layers <= given < num_layers:
        raise XTransplantError(
            f"{key}: layer {given} is out of range. The model has {num_layers} layers: "
            f"0 to {num_layers - 1}, or -{num_layers} to -1 from the end. {example}"
        )
    return given % num_layers
