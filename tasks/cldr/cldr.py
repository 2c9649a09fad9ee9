"""Facts of the Unicode CLDR as four-way choices, in 16 languages, from the data of the package Babel.

A fact (say: the official language of DE is de) is chosen once for all languages, with its wrong answers, the
position of the right one and the half it belongs to; only then is it written in one language. So the
documents of all languages are parallel: same keys, same order, same labels. A SHA-256 makes every choice.

What is a fact here is what CLDR says, except for `LEFT_OUT`. Babel carries no containment of territories in
continents (UN M49), so the continent is that of the territory's time zones.
"""

# No `from __future__ import annotations`: lm-eval runs this file before it is in sys.modules, where dataclasses would
# look up annotations that are strings.

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from babel import Locale, localedata
from babel.core import get_global
from datasets import Dataset, DatasetDict

RELATIONS = ("language", "currency", "continent", "calendar")
LANGUAGES = ("en", "de", "fr", "es", "pt", "it", "ru", "zh", "ja", "ar", "hi", "tr", "sw", "vi", "id", "el")
DEV_SIZE = 12  # facts a relation that are kept for few-shot prompts
CHOICES = 4

# Subjects: the member and observer states of the United Nations, so that the label "Country" is true of each.
STATES = """
    AD AE AF AG AL AM AO AR AT AU AZ BA BB BD BE BF BG BH BI BJ BN BO BR BS BT BW BY BZ CA CD CF CG CH
    CI CL CM CN CO CR CU CV CY CZ DE DJ DK DM DO DZ EC EE EG ER ES ET FI FJ FM FR GA GB GD GE GH GM GN
    GQ GR GT GW GY HN HR HT HU ID IE IL IN IQ IR IS IT JM JO JP KE KG KH KI KM KN KP KR KW KZ LA LB LC
    LI LK LR LS LT LU LV LY MA MC MD ME MG MH MK ML MM MN MR MT MU MV MW MX MY MZ NA NE NG NI NL NO NP
    NR NZ OM PA PE PG PH PK PL PS PT PW PY QA RO RS RU RW SA SB SC SD SE SG SI SK SL SM SN SO SR SS ST
    SV SY SZ TD TG TH TJ TL TM TN TO TR TT TV TZ UA UG US UY UZ VA VC VE VN VU WS YE ZA ZM ZW
"""
LEFT_OUT = {
    # French has ceased to be an official language there, which CLDR 47 does not know yet.
    *("language:BF", "language:ML", "language:NE"),
    # The euro since 2026, likewise.
    "currency:BG",
    # On the border of two continents, or in one by geography and in another by custom.
    *("continent:AM", "continent:AZ", "continent:CY", "continent:GE", "continent:KZ", "continent:TR"),
}

# Time-zone areas -> CLDR's territory code of the continent (Africa, Americas, Asia, Oceania, Europe). Zones
# of oceans say nothing of a territory that has others, and those of Atlantic and Indian Ocean nothing at all.
CONTINENTS = {"Africa": "002", "America": "019", "Asia": "142", "Australia": "009", "Europe": "150"}
PACIFIC = "009"

DAY_OFFSETS = (-3, -2, -1, 1, 2, 3)
MONTH_OFFSETS = (-4, -3, -2, -1, 1, 2, 3, 4)


@dataclass(frozen=True)
class Labels:
    """The words before the colons: nominative, so that no name after them is inflected.

    `day` and `month` are today, tomorrow, yesterday and this, next, last month; the labels of larger offsets
    are CLDR's own ("in 2 days", "2 days ago"), whose plural forms are right in every language.
    """

    country: str
    language: str
    currency: str
    continent: str
    day: tuple[str, str, str]
    month: tuple[str, str, str]
    colon: str = ":"
    space: str = " "  # after a colon; before the answer it is the task's target_delimiter
    prefixes: tuple[str, ...] = field(default=())  # articles and noun-class prefixes that hide a common stem


LABELS: Mapping[str, Labels] = {
    "en": Labels(
        *("Country", "Official language", "Currency", "Continent"),
        day=("Today", "Tomorrow", "Yesterday"),
        month=("This month", "Next month", "Last month"),
    ),
    "de": Labels(
        *("Land", "Amtssprache", "Währung", "Kontinent"),
        day=("Heute", "Morgen", "Gestern"),
        month=("Dieser Monat", "Nächster Monat", "Letzter Monat"),
    ),
    "fr": Labels(
        *("Pays", "Langue officielle", "Monnaie", "Continent"),
        day=("Aujourd'hui", "Demain", "Hier"),
        month=("Ce mois-ci", "Le mois prochain", "Le mois dernier"),
        colon=" :",
    ),
    "es": Labels(
        *("País", "Idioma oficial", "Moneda", "Continente"),
        day=("Hoy", "Mañana", "Ayer"),
        month=("Este mes", "El próximo mes", "El mes pasado"),
    ),
    "pt": Labels(
        *("País", "Idioma oficial", "Moeda", "Continente"),
        day=("Hoje", "Amanhã", "Ontem"),
        month=("Este mês", "Próximo mês", "Mês passado"),
    ),
    "it": Labels(
        *("Paese", "Lingua ufficiale", "Valuta", "Continente"),
        day=("Oggi", "Domani", "Ieri"),
        month=("Questo mese", "Il mese prossimo", "Il mese scorso"),
    ),
    "ru": Labels(
        # "Часть света" rather than "Континент": America and Oceania are the former only.
        *("Страна", "Официальный язык", "Валюта", "Часть света"),
        day=("Сегодня", "Завтра", "Вчера"),
        month=("Этот месяц", "Следующий месяц", "Прошлый месяц"),
    ),
    "zh": Labels(
        *("国家", "官方语言", "货币", "大洲"),
        day=("今天", "明天", "昨天"),
        month=("本月", "下个月", "上个月"),
        colon="：",
        space="",
    ),
    "ja": Labels(
        *("国", "公用語", "通貨", "大陸"),
        day=("今日", "明日", "昨日"),
        month=("今月", "来月", "先月"),
        colon="：",
        space="",
    ),
    "ar": Labels(
        *("الدولة", "اللغة الرسمية", "العملة", "القارة"),
        day=("اليوم", "غدًا", "أمس"),
        month=("هذا الشهر", "الشهر القادم", "الشهر الماضي"),
        prefixes=("ال",),
    ),
    "hi": Labels(
        *("देश", "आधिकारिक भाषा", "मुद्रा", "महाद्वीप"),
        # "कल" alone is both tomorrow and yesterday.
        day=("आज", "आने वाला कल", "बीता हुआ कल"),
        month=("इस माह", "अगला माह", "पिछला माह"),
    ),
    "tr": Labels(
        *("Ülke", "Resmî dil", "Para birimi", "Kıta"),
        day=("Bugün", "Yarın", "Dün"),
        month=("Bu ay", "Gelecek ay", "Geçen ay"),
    ),
    "sw": Labels(
        *("Nchi", "Lugha rasmi", "Sarafu", "Bara"),
        day=("Leo", "Kesho", "Jana"),
        month=("Mwezi huu", "Mwezi ujao", "Mwezi uliopita"),
        prefixes=("ki", "u"),
    ),
    "vi": Labels(
        *("Quốc gia", "Ngôn ngữ chính thức", "Tiền tệ", "Châu lục"),
        day=("Hôm nay", "Ngày mai", "Hôm qua"),
        month=("Tháng này", "Tháng sau", "Tháng trước"),
    ),
    "id": Labels(
        *("Negara", "Bahasa resmi", "Mata uang", "Benua"),
        day=("Hari ini", "Besok", "Kemarin"),
        month=("Bulan ini", "Bulan depan", "Bulan lalu"),
    ),
    "el": Labels(
        *("Χώρα", "Επίσημη γλώσσα", "Νόμισμα", "Ήπειρος"),
        day=("Σήμερα", "Αύριο", "Χθες"),
        month=("Αυτός ο μήνας", "Επόμενος μήνας", "Προηγούμενος μήνας"),
    ),
}

# CLDR's future pattern, where its word may mean "within" but the label has to say "after".
WITHIN_TO_AFTER = {"ar": ("خلال", "بعد"), "hi": ("में", "बाद")}


class Name(NamedTuple):
    """Something that has a name in every language: a kind of CLDR data and a code in it."""

    kind: str  # territory | language | currency | day | month
    code: str


@dataclass(frozen=True)
class Fact:
    key: str  # ASCII, the same in every language: language:DE, calendar:day1+2
    subject: Name
    answer: Name
    also_true: frozenset[Name]  # never among the wrong answers
    offset: int = 0  # calendar only: steps from the subject to the answer


@dataclass(frozen=True)
class Question:
    fact: Fact
    choices: tuple[Name, ...]
    label: int
    split: str  # sample | unseen


def load(relation: str, language: str, **_: Any) -> DatasetDict:
    """lm-eval's `custom_dataset`: the documents of a relation in a language, as splits `test` and `dev`.

    The harness passes its metadata as further keywords, which mean nothing here.
    """
    if relation not in RELATIONS or language not in LABELS:
        raise ValueError(
            f"cldr: relation={relation!r}, language={language!r} given; "
            f"relation is one of {', '.join(RELATIONS)}, language one of {', '.join(LANGUAGES)}"
        )
    documents = {name: [document(q, language) for q in part] for name, part in questions(relation).items()}
    return DatasetDict({name: Dataset.from_list(part) for name, part in documents.items()})


def document(question: Question, language: str) -> dict[str, Any]:
    """One question in one language. `overlap`: the answer looks like the subject (Germany, German)."""
    fact, own = question.fact, names(language)
    labels = LABELS[language]
    choices = [own[name] for name in question.choices]
    subject_label, answer_label = fact_labels(fact, language)
    given = f"{subject_label}{labels.colon}{labels.space}{own[fact.subject]}"
    return {
        "key": fact.key,
        "relation": fact.key.partition(":")[0],
        "subject": own[fact.subject],
        "prompt": f"{given}\n{answer_label}{labels.colon}",
        "choices": choices,
        "label": question.label,
        "overlap": overlap(own[fact.subject], choices, question.label, language),
        "split": question.split,
        "source": f"CLDR {get_global('cldr')['version']}, Babel {version('babel')}",
    }


@cache
def questions(relation: str) -> Mapping[str, tuple[Question, ...]]:
    """The questions of a relation, before they are put in any language, as `test` and `dev`.

    Both are in the order of a hash, so that the first n of them (`limit`) are a fair sample.
    """
    facts = [fact for fact in FACTS[relation]() if fact.key not in LEFT_OUT and named(fact)]
    with_choices = {fact: wrong for fact in by_hash("order", facts) if (wrong := wrong_answers(fact, facts))}
    dev = set(by_hash("dev", with_choices)[:DEV_SIZE])
    parts = {"test": [f for f in with_choices if f not in dev], "dev": [f for f in with_choices if f in dev]}
    return {name: tuple(arrange(part, with_choices)) for name, part in parts.items()}


def arrange(facts: Sequence[Fact], wrong: Mapping[Fact, tuple[Name, ...]]) -> Iterator[Question]:
    """Spread right answers evenly over the positions, and the facts of a position evenly over the halves."""
    place: dict[Fact, tuple[int, str]] = {}
    ordered = by_hash("label", facts)
    for label in range(CHOICES):
        start, end = (len(facts) * i // CHOICES for i in (label, label + 1))
        half = end // 2 - start // 2  # of odd parts, every other one is rounded up
        for i, fact in enumerate(by_hash("half", ordered[start:end])):
            place[fact] = (label, "sample" if i < half else "unseen")
    for fact in facts:
        label, split = place[fact]
        yield Question(fact, (*wrong[fact][:label], fact.answer, *wrong[fact][label:]), label, split)


def wrong_answers(fact: Fact, facts: Sequence[Fact]) -> tuple[Name, ...]:
    """Three wrong answers, or none if there are not three.

    They are right answers of other facts, each as likely as the next. So a common right answer (English, Euro) is
    more often right than wrong: choosing the most common of the four scores more than a quarter.
    """
    candidates = {other.answer for other in facts if other.answer.kind == fact.answer.kind}
    candidates -= {fact.answer, fact.subject, *fact.also_true}
    chosen: list[Name] = []
    for name in sorted(candidates, key=lambda name: digest(fact.key, name.code)):
        if not any(same_name(name, other) for other in (fact.answer, *chosen)):
            chosen.append(name)
        if len(chosen) == CHOICES - 1:
            return tuple(chosen)
    return ()


def by_hash(salt: str, facts: Iterable[Fact]) -> list[Fact]:
    return sorted(facts, key=lambda fact: digest(salt, fact.key))


def digest(salt: str, text: str) -> bytes:
    return sha256(f"{salt} {text}".encode()).digest()


def named(fact: Fact) -> bool:
    """Whether both sides of a fact have a name of their own in every language."""
    return all(name in names(language) for language in LANGUAGES for name in (fact.subject, fact.answer))


def same_name(one: Name, other: Name) -> bool:
    return any(names(language)[one].casefold() == names(language)[other].casefold() for language in LANGUAGES)


def language_facts() -> Iterator[Fact]:
    """States with one official language, in any script; wrong answers are official in no part of it."""
    for state in STATES.split():
        spoken = get_global("territory_languages")[state]
        status = {code: about["official_status"] for code, about in spoken.items()}
        anywhere = {code for code, kind in status.items() if kind}
        official = {code for code in anywhere if status[code] != "official_regional"}
        # Without the script: CLDR lists Serbian of Serbia as sr and sr_Latn. A language that is there with a
        # script only (Montenegro's sr_Latn) bears another name in that state.
        languages = {code.partition("_")[0] for code in official}
        if len(languages) == 1 and languages <= official:
            yield Fact(
                f"language:{state}",
                Name("territory", state),
                Name("language", languages.pop()),
                frozenset(Name("language", code.partition("_")[0]) for code in anywhere),
            )


def currency_facts() -> Iterator[Fact]:
    """States with one legal tender; no currency that they ever had is among the wrong answers."""
    for state in STATES.split():
        history = get_global("territory_currencies")[state]
        current = {code for code, _start, end, tender in history if end is None and tender}
        if len(current) == 1:
            yield Fact(
                f"currency:{state}",
                Name("territory", state),
                Name("currency", current.pop()),
                frozenset(Name("currency", code) for code, *_ in history),
            )


def continent_facts() -> Iterator[Fact]:
    """States all of whose time zones, but for those of oceans, are of one continent."""
    for state in STATES.split():
        areas = {zone.partition("/")[0] for zone in get_global("territory_zones").get(state, ())}
        found = {CONTINENTS[area] for area in areas if area in CONTINENTS}
        if areas == {"Pacific"}:
            found = {PACIFIC}
        if len(found) == 1:
            answer = Name("territory", found.pop())
            yield Fact(f"continent:{state}", Name("territory", state), answer, frozenset())


def calendar_facts() -> Iterator[Fact]:
    """Weekdays (1 is Monday) and months, some steps on or back."""
    for kind, length, offsets in (("day", 7, DAY_OFFSETS), ("month", 12, MONTH_OFFSETS)):
        for start in range(length):
            for offset in offsets:
                answer = Name(kind, str((start + offset) % length + 1))
                key = f"calendar:{kind}{start + 1}{offset:+d}"
                yield Fact(key, Name(kind, str(start + 1)), answer, frozenset(), offset)


FACTS = {
    "language": language_facts,
    "currency": currency_facts,
    "continent": continent_facts,
    "calendar": calendar_facts,
}


def fact_labels(fact: Fact, language: str) -> tuple[str, str]:
    """The labels of a fact's subject and answer."""
    labels = LABELS[language]
    relation = fact.key.partition(":")[0]
    if relation != "calendar":
        return labels.country, getattr(labels, relation)
    now, following, previous = getattr(labels, fact.subject.kind)
    near = {1: following, -1: previous}
    return now, near.get(fact.offset) or distance(fact.subject.kind, fact.offset, language)


def distance(unit: str, offset: int, language: str) -> str:
    """CLDR's "in 2 days" or "2 days ago", as the start of a line."""
    patterns = own_data(language)["date_fields"][unit]["future" if offset > 0 else "past"]
    text: str = patterns[Locale(language).plural_form(abs(offset))].format(abs(offset))
    if language in WITHIN_TO_AFTER:
        text = text.replace(*WITHIN_TO_AFTER[language])
    return text[0].upper() + text[1:]


@cache
def own_data(language: str) -> Mapping[str, Any]:
    """What CLDR says of a language itself, without what it inherits.

    Read from Babel's file rather than through `Locale`: there, a missing name is inherited without notice,
    and stand-alone month and weekday names come in the language asked for first (Babel issue 1234).
    """
    data: Mapping[str, Any] = pickle.loads(Path(localedata.resolve_locale_filename(language)).read_bytes())
    return data


@cache
def names(language: str) -> Mapping[Name, str]:
    """CLDR's display names in a language, without those that only repeat the code."""
    data = own_data(language)
    sections = {
        "territory": data["territories"],
        "language": data["languages"],
        "currency": data["currency_names"],
        # CLDR counts weekdays from 0, Monday; months from 1.
        "day": {str(code + 1): name for code, name in standing_alone(data["days"]).items()},
        "month": {str(code): name for code, name in standing_alone(data["months"]).items()},
    }
    everything = chain.from_iterable(
        ((Name(kind, code), name) for code, name in section.items()) for kind, section in sections.items()
    )
    return {
        name: text
        for name, text in everything
        if text != name.code and not (name.kind == "currency" and name.code in text)
    }


def standing_alone(forms: Mapping[str, Any]) -> Mapping[int, str]:
    """Full names in the form used outside a date, where that differs (Russian январь, not января)."""
    wide: Mapping[int, str] = forms.get("stand-alone", {}).get("wide") or forms["format"]["wide"]
    return wide


def overlap(subject: str, choices: Sequence[str], label: int, language: str) -> bool:
    """Whether a word of the right answer starts as one of the subject does, and not so in every choice.

    Three letters count (two in Japanese, one in Chinese), with and without an article or class prefix:
    Kijerumani and Ujerumani are alike. What all choices share (Vietnamese "Tháng") gives nothing away.
    """
    starts = [word_starts(choice, language) for choice in choices]
    return bool((starts[label] - frozenset.intersection(*starts)) & word_starts(subject, language))


def word_starts(text: str, language: str) -> frozenset[str]:
    length = {"zh": 1, "ja": 2}.get(language, 3)
    words = [word.strip("().,") for word in text.casefold().split()]
    bare = [word.removeprefix(prefix) for word in words for prefix in LABELS[language].prefixes]
    return frozenset(word[:length] for word in (*words, *bare) if len(word) >= length)
