"""Facts of a language that results are read against: script, direction, resources; and what a tokenizer makes of it.

Scripts and directions are the Unicode CLDR's, from the package Babel. Resource classes are those of Joshi et al. 2020,
"The State and Fate of Linguistic Diversity and Inclusion in the NLP World" (https://aclanthology.org/2020.acl-main.560):
0, hardly any data, to 5, as much as English. A language that is not in the table, or a dialect or another script of one
that is, has none.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtransplant.catalogue import language_name

# https://microsoft.github.io/linguisticdiversity/assets/lang2tax.txt, languages of our task families only.
_CLASSES = {
    5: "ar de en es fr ja zh",
    4: "ca cs eu fa fi hi hr hu it ko nl pl pt ru sr sv tr vi",
    3: "af be bg bn bs ceb da el et gl he id ka kk lt lv ms ro sk sl ta th tl uk ur uz",
    2: "am ga ha ht is lo mr mt pa sw ti tn wo xh yo zu",
    1: "as az bm bo cy ee gn gu hy ig ilo jv km kn ky lb lg ln mg mk ml my ne om or qu rw sd sm sn so sq ss su te tg "
    "ts tw",
}
_CLASS_OF = {code: number for number, codes in _CLASSES.items() for code in codes.split()}
# Written without spaces between words, so that these cannot be counted.
_UNSPACED = {"Hans", "Hant", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"}


@dataclass(frozen=True)
class Language:
    """A language.

    Attributes:
        name, own_name: in English and in itself; the code where CLDR has none.
        script: name of the script in English; empty where it is not known.
        spaced: words stand between spaces.
        resources: class of Joshi et al., 0 to 5; None: not in their table, or not in ours.
    """

    code: str
    name: str
    own_name: str
    script: str
    spaced: bool
    right_to_left: bool
    resources: int | None


def language(code: str) -> Language:
    """What is known of a language, by its code as in language pairs, e.g. sw or zh-Hant."""
    from babel import Locale, UnknownLocaleError
    from babel.core import get_global

    name = language_name(code)
    likely = get_global("likely_subtags")
    tag = code.replace("-", "_")
    full = likely.get(tag) or likely.get(tag.partition("_")[0], "")
    given = next((part for part in tag.split("_")[1:] if len(part) == 4), None)
    script = given or next((part for part in full.split("_")[1:] if len(part) == 4), "")
    try:
        locale = Locale.parse(tag)
        own, right_to_left = locale.get_language_name() or "", locale.character_order == "right-to-left"
    except (UnknownLocaleError, ValueError):
        own, right_to_left = "", script in ("Arab", "Hebr", "Thaa", "Syrc", "Nkoo")
    return Language(
        *(code, name or code, own or name or code, Locale("en").scripts.get(script, "")),
        spaced=script not in _UNSPACED,
        right_to_left=right_to_left,
        resources=_CLASS_OF.get(code),
    )


@dataclass(frozen=True)
class Tokens:
    """How a tokenizer cuts some prompts.

    Attributes:
        words: between spaces.
        source: tokens of the same prompts in the source language.
    """

    prompts: int
    tokens: int
    words: int
    source: int


def count_tokens(tokenizer: Path, prompts: Sequence[tuple[str, str]]) -> Tokens | None:
    """Count the tokens of (source, target) prompts with a tokenizer.json; None if that cannot be read."""
    own = _tokenizer(str(tokenizer))
    if own is None:
        return None

    def count(texts: Sequence[str]) -> int:
        return sum(len(each.ids) for each in own.encode_batch(list(texts), add_special_tokens=False))

    targets = [target for _, target in prompts]
    words = sum(len(text.split()) for text in targets)
    return Tokens(len(prompts), count(targets), words, count([source for source, _ in prompts]))


@functools.cache
def _tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(path)
    except Exception:  # the package raises plain exceptions
        return None
