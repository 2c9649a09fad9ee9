"""The words everybody uses: component, site, layer pair. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class XTransplantError(Exception):
    """A fault the user can act on: printed as it is, without a traceback."""


class Component(Enum):
    """Which module's last-token output is transplanted (METHOD: "granularity")."""

    ffn = "ffn"
    attn = "attn"
    # What the authors' released code does: the stored attention output has the layer's input
    # residual added in place, so the vector is attn(x) + x (modelwrapper_attn/*.py:65-71).
    attn_as_released = "attn_as_released"


class Site(Enum):
    """Where a component is read and written when a norm follows the module."""

    module = "module"  # the module's own output, as the paper's models have it
    branch = "branch"  # what is added to the residual stream (after Gemma's or OLMo 2's post-norm)


@dataclass(frozen=True)
class LayerPair:
    """Source layer *i* and target layer *j*, 0-based and non-negative."""

    source: int
    target: int

    @classmethod
    def parse(cls, given: Any, num_layers: int) -> LayerPair:
        """Read ``[source, target]``; each an index, a negative index from the end, `first` or `last`.

        Raises:
            XTransplantError: not two layers, or a layer outside ``[-num_layers, num_layers)``.
        """
        example = "Give two layers, e.g. transplant.layers=[17,0] or [last,first]; null is the vanilla model."
        if isinstance(given, str) or not hasattr(given, "__len__") or len(given) != 2:
            raise XTransplantError(f"transplant.layers={given!r}: not a pair of layers. {example}")
        return cls(*(_layer_index(layer, num_layers, example) for layer in given))


def _layer_index(given: Any, num_layers: int, example: str) -> int:
    named = {"first": 0, "last": num_layers - 1}
    if isinstance(given, str) and given in named:
        return named[given]
    if isinstance(given, bool) or not isinstance(given, int):
        raise XTransplantError(f"transplant.layers: {given!r} is not a layer. {example}")
    if not -num_layers <= given < num_layers:
        raise XTransplantError(
            f"transplant.layers: layer {given} is out of range. The model has {num_layers} layers: "
            f"0 to {num_layers - 1}, or -{num_layers} to -1 from the end. {example}"
        )
    return given % num_layers
