"""The report: its page opened in a browser, made from runs of a tiny model; and what it is made of.

The browser is the system's Chromium; without one these tests are skipped, saying so.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from tests.equivalence.tiny import save_checkpoint
from tests.integration.local_tasks import COUNTRIES, documents, write_tasks
from tests.integration.test_grid import run_evaluate, run_grid
from tests.unit.test_compare import a_run
from xtransplant import cli, command, compose, models, record, report
from xtransplant.config import EvaluateConfig, GridConfig, SftConfig, config_hash
from xtransplant.grid import Grid

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]
OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
# Whatever a document says, it is text. `ran` would be there if any of it had run.
HOSTILE = [
    "<script>window.ran = 'script'</script>",
    "</script><script>window.ran = 'end of the data'</script>",
    "<img src=x onerror=\"window.ran = 'image'\"><!-- <script>",
    "\u2028window.ran = 'line'\u2029 ${window.ran = 'template'} `]]> &lt;b&gt;",
    "<a href=\"javascript:window.ran = 'link'\">javascript:window.ran='link'</a> <style>*{display:none}</style>",
]


@dataclass
class Made:
    """Runs, and the report of them."""

    place: Path
    report: Path
    grid: Grid
    printed: str


@dataclass
class Visit:
    """The opened page, and what it said and asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = tmp_path_factory.mktemp("report")
    save_checkpoint("gemma3_text", place / "model")
    english, hostile = (
        [row | {"id": f"{row['id']}-{n}"} for n in range(4) for row in documents(code)] for code in ("en", "sw")
    )
    for n, row in enumerate(hostile):
        row["question"] = f"{HOSTILE[n % len(HOSTILE)]} {row['question']}"
        row["choices"] = [f"{COUNTRIES[(n + step) % 10]}</script>" for step in (1, 4, 6)]
    write_tasks(place / "tasks", en=english, sw=hostile)
    # A tiny random model hardly heeds what it reads: added so often, it does.
    loud = {"transplant.mode": "add", "transplant.strength": 40, "transplant.scope": "every_step"}
    _, grid = run_grid(place, "choice", split="all", **loud)
    run_grid(place, "generate", **{"limit": 4, "task.name": "written", "grid.pairs": "diagonal"})
    layers = {"transplant.layers": "[1,2]", **loud}
    for changes in ({}, layers, {**layers, "prompt": "both"}):
        run_evaluate(place, "choice", **changes)
    for pair in ("en-ar", "en-ja"):
        for changes in ({}, layers):
            cldr: dict[str, Any] = {"task": "cldr_language", "language_pair": pair, "limit": 12}
            given = {
                "model": "hf",
                "model.path": place / "model",
                "model.name": "tiny",
                "output_dir": place / "outputs",
            }
            config = compose.compose("evaluate", [f"{key}={value}" for key, value in (given | cldr | changes).items()])
            cli.run(config, shown=False)
    assert cli.main(["select", f"grid={place}/outputs/grid/*-colour-*", f"output_dir={place}/outputs"]) == 0
    train(place / "outputs" / "sft" / "tiny-colour-lora-en-0123456789ab")
    report = place / "elsewhere" / "report.html"
    assert cli.main(["report", f"runs={place}/outputs", f"output={report}"]) == 0
    return Made(place, report, grid, str(report))


def train(folder: Path) -> None:
    """What a training leaves, as far as a report reads it."""
    record.open_run(folder, "seed: 1\n")
    lines = [{"step": n, "loss": 2.0 / n, "learning_rate": 1e-4, "seconds": n} for n in range(1, 9)]
    lines += [{"step": n, "eval_loss": 2.5 / n, "seconds": n} for n in (4, 8)]
    (folder / "training.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record.write(folder / "results.json", record.as_json({"loss": 0.25, "eval_loss": 0.3125, "steps": 8}))
    facts = {"job": "sft", "model_name": "tiny", "data": "colour", "languages": ["en"], "method": "lora", "steps": 8}
    record.close_run(
        folder, facts | {"training": "training.jsonl", "cost": {"seconds": 9.0, "tokens": 80, "flops": 1e9}}
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Browser, made: Made) -> Iterator[Visit]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(5_000)
    seen = Visit(page)
    page.on("console", lambda message: seen.complaints.append(message.text))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(made.report.as_uri())
    yield seen
    page.close()


@pytest.fixture
def page(visit: Visit) -> Page:
    return visit.page


def rows_of(table: Locator) -> list[list[str]]:
    return [row.locator("th, td").all_inner_texts() for row in table.locator("tbody tr").all()]


def the_map(page: Page) -> Locator:
    choose(page.locator("#maps"), "Task", "colour")
    return page.locator("#maps table.map")


def choose(part: Locator, label: str, value: str) -> None:
    part.get_by_label(label, exact=True).select_option(label=value)


class TestInABrowser:
    pytestmark = needs_browser

    def test_nothing_is_fetched_and_nothing_is_wrong(self, visit: Visit, made: Made) -> None:
        for part in visit.page.locator("main > section").all():
            part.scroll_into_view_if_needed()
        assert visit.complaints == []
        assert visit.requests == [made.report.as_uri()]
        assert made.report.stat().st_size < 2_000_000

    def test_every_part_is_there(self, page: Page) -> None:
        empty = [part.get_attribute("id") for part in page.locator("main > section").all() if not drawn(part)]
        assert empty == []
        # Nobody made a table of strategies: what to run is said.
        assert "xtransplant strategies" in page.locator("#selection").inner_text()

    def test_a_map_has_the_numbers_of_its_grid(self, page: Page, made: Made) -> None:
        drawn_map = the_map(page)
        gains = made.grid.quality.mean(axis=0) - made.grid.vanilla_quality.mean()
        assert drawn_map.locator("[data-cell]").count() == len(made.grid.cells) == 16
        assert len({round(gain, 3) for gain in gains}) > 2, "a map of one colour tests nothing"
        for cell, gain in zip(made.grid.cells, gains, strict=True):
            shown = drawn_map.locator(f"[data-cell='{cell.source}>{cell.target}']")
            points = int(np.floor(100 * gain + 0.5 + 1e-9))
            assert number(shown.inner_text()) == points, cell
            assert f"{cell.source} into {cell.target}, gain" in (shown.get_attribute("aria-label") or "")
            shown.hover()
            read = page.locator("#maps .readout").inner_text().split("\n")
            assert float(read[read.index("acc") + 1]) == pytest.approx(
                made.grid.scores[0][:, made.grid.columns([cell])[0]].mean(), abs=6e-4
            )

    def test_the_colour_says_what_the_sign_says(self, page: Page) -> None:
        for cell in the_map(page).locator("[data-cell]").all():
            value = number(cell.inner_text())
            kind = (cell.get_attribute("class") or "").split()[0]
            assert kind == ("up" if value > 0 else "down" if value < 0 else "none")

    def test_a_click_shows_the_documents_that_the_pair_changed(self, page: Page, made: Made) -> None:
        drawn_map = the_map(page)
        up_and_down = [
            (int((column > made.grid.vanilla[0]).sum()), int((column < made.grid.vanilla[0]).sum()))
            for column in made.grid.scores[0].T
        ]
        place = max(range(16), key=lambda n: (min(up_and_down[n]), sum(up_and_down[n])))
        assert sum(up_and_down[place]) > 0
        (up, down), cell, column = up_and_down[place], made.grid.cells[place], made.grid.scores[0][:, place]
        drawn_map.locator(f"[data-cell='{cell.source}>{cell.target}']").click()
        shown = page.locator("#maps .documents")
        assert f"{up} wrong → right, {down} right → wrong" in shown.locator(":scope > h3").inner_text()
        keys = shown.locator(".flip .name").all_inner_texts()
        changed = np.flatnonzero(column != made.grid.vanilla[0])
        assert sorted(keys) == sorted(made.grid.documents[row].rpartition("/")[2] for row in changed)[: len(keys)]
        # The model's answers are the grid's.
        assert made.grid.logprob is not None
        for key, card in zip(keys, shown.locator(".flip").all(), strict=True):
            row = [name.rpartition("/")[2] for name in made.grid.documents].index(key)
            answered = int(made.grid.logprob[row, place].argmax())
            choices = card.get_by_role("heading", name="Choices").locator("xpath=../p").inner_text().split("\n")
            mine = card.get_by_role("heading", name=f"With ffn {cell.source}>{cell.target}").locator("xpath=../p")
            assert mine.inner_text() == choices[answered]

    def test_a_map_can_be_used_with_the_keyboard(self, page: Page) -> None:
        drawn_map = the_map(page)
        assert drawn_map.locator("td[tabindex='0']").count() == 1
        drawn_map.locator("td[tabindex='0']").focus()
        for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press(key)
        focused = page.locator("*:focus")
        assert focused.get_attribute("data-cell") == "0>0"
        page.keyboard.press("ArrowUp")
        page.keyboard.press("ArrowRight")
        assert focused.get_attribute("data-cell") == "1>1"
        page.keyboard.press("Enter")
        assert focused.inner_text().startswith("ffn 1>1:")
        page.keyboard.press("Escape")
        assert focused.get_attribute("data-cell") == "1>1"

    def test_a_map_of_texts_shows_what_was_written(self, page: Page) -> None:
        choose(page.locator("#maps"), "Task", "written")
        assert page.locator("#maps table.map [data-cell]").count() == 4
        assert page.locator("#maps table.map td.void").count() == 12

    def test_a_table_sorts(self, page: Page) -> None:
        table = page.locator("#languages table")
        head = table.get_by_role("columnheader", name="Score")
        for direction, sign in (("descending", -1), ("ascending", 1)):
            head.get_by_role("button").click()
            assert head.get_attribute("aria-sort") == direction
            place = table.locator("thead th").all_inner_texts().index(head.inner_text())
            scores = [float(row[place]) for row in rows_of(table)]
            assert len(set(scores)) > 2
            assert scores == sorted(scores, key=lambda score: sign * score)
        # With the keyboard, and by letters.
        table.get_by_role("columnheader", name="Pair").get_by_role("button").focus()
        page.keyboard.press("Enter")
        pairs = [row[0].split("\n")[0] for row in rows_of(table)]
        assert pairs == sorted(pairs)

    @pytest.mark.parametrize("words", ["arabic", "العربية", "ar"])
    def test_a_table_filters(self, page: Page, words: str) -> None:
        part = page.locator("#languages")
        everything = len(rows_of(part.locator("table")))
        part.get_by_label("Search").fill(words)
        left = rows_of(part.locator("table"))
        assert 0 < len(left) < everything
        if words != "ar":
            assert all(row[0].startswith("en-ar") for row in left)
        assert part.get_by_role("status").inner_text() == f"{len(left)} of {everything} rows"
        part.get_by_label("Search").fill("")
        choose(part, "Kind", "fixed pair")
        assert all("fixed pair" in " ".join(row) for row in rows_of(part.locator("table")))

    def test_answers_that_changed_between_two_conditions(self, page: Page, made: Made) -> None:
        part = page.locator("#flips")
        choose(part, "Documents", "colour, English into Swahili, all")
        runs = {
            run.manifest["condition"]: run for run in record.find_runs([f"{made.place}/outputs/evaluate/*-colour-*"])
        }
        before, after = (scores(runs[name]) for name in ("vanilla", "ffn 1>2 (add40, every_step)"))
        choose(part, "From", "vanilla")
        choose(part, "To", "ffn 1>2 (add40, every_step)")
        for shown, wanted in (
            ("wrong → right", [key for key in before if after[key] > before[key]]),
            ("right → wrong", [key for key in before if after[key] < before[key]]),
            ("right in both", [key for key in before if after[key] == before[key] == 1]),
            ("wrong in both", [key for key in before if after[key] == before[key] == 0]),
        ):
            choose(part, "Shown", shown)
            while (more := part.get_by_role("button", name="more document")).count():
                more.click()
            assert sorted(part.locator(".flip .name").all_inner_texts()) == sorted(wanted)
        choose(part, "Shown", "wrong in both")
        part.get_by_label("Search prompts and answers").fill("onerror")
        found = part.locator(".flip").all()
        assert found and all("onerror" in each.inner_text() for each in found)

    def test_a_document_cannot_run(self, visit: Visit) -> None:
        page = visit.page
        the_map(page)
        for cell in page.locator("#maps [data-cell]").all()[:4]:
            cell.click()
        for shown in ("right in both", "all that changed", "wrong in both"):
            choose(page.locator("#flips"), "Documents", "colour, English into Swahili, all")
            choose(page.locator("#flips"), "Shown", shown)
        assert page.evaluate("typeof window.ran") == "undefined"
        assert page.locator("main script, main img, main style, main b, main a[href^='javascript']").count() == 0
        assert page.locator("script").count() == 2 and page.locator("style").count() == 1
        assert any(HOSTILE[1] in text for text in page.locator("#flips .text").all_inner_texts())
        # Even what got in would not run.
        page.evaluate(
            "const made = document.createElement('div'); made.innerHTML = '<img src=x onerror=\"window.ran = 1\">';"
            "const own = document.createElement('script'); own.textContent = 'window.ran = 1';"
            "document.body.append(made, own)"
        )
        page.wait_for_timeout(100)
        assert page.evaluate("typeof window.ran") == "undefined"
        assert any("Content Security Policy" in each for each in visit.complaints)

    def test_text_is_in_its_own_language_and_direction(self, page: Page) -> None:
        part = page.locator("#flips")
        for language, script, direction in (
            ("ar", "\u0600-\u06ff", "rtl"),
            ("ja", "\u3040-\u30ff\u4e00-\u9fff", "ltr"),
        ):
            name = {"ar": "Arabic", "ja": "Japanese"}[language]
            choose(part, "Documents", f"cldr_language, English into {name}, all")
            choose(part, "Shown", "wrong in both")
            asked = part.locator(f".text[lang='{language}']").first
            assert re.search(f"[{script}]", asked.inner_text())
            assert asked.evaluate("node => getComputedStyle(node).direction") == direction
            assert part.locator(".text[lang='en']").first.evaluate("node => getComputedStyle(node).direction") == "ltr"

    def test_light_and_dark(self, page: Page) -> None:
        def paper() -> float:
            return float(page.evaluate(f"{SCRIPTS} luminanceOf('body')"))

        assert paper() > 0.8
        page.emulate_media(color_scheme="dark")
        assert paper() < 0.05
        button = page.get_by_role("button", name="Colours")
        button.click()
        assert "light" in button.inner_text() and paper() > 0.8
        page.emulate_media(color_scheme="light")
        button.click()
        assert "dark" in button.inner_text() and paper() < 0.05
        page.reload()
        assert paper() < 0.05, "the choice is kept"

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_what_is_written_can_be_read(self, page: Page, scheme: Any) -> None:
        """Contrast of at least 4.5 (WCAG AA), the numbers on the map's colours among them."""
        page.emulate_media(color_scheme=scheme)
        the_map(page).locator("[data-cell]").first.click()
        low = page.evaluate(f"{SCRIPTS} contrasts()")
        assert low["checked"] > 300
        assert low["low"] == []

    def test_who_cannot_see_the_page_can_use_it(self, page: Page) -> None:
        for landmark in ("banner", "navigation", "main", "contentinfo"):
            assert page.get_by_role(landmark).count() == 1
        assert page.evaluate(f"{SCRIPTS} nameless()") == []
        levels = [
            int(each) for each in page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => h.tagName[1])")
        ]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
        assert len(ids) == len(set(ids))
        page.keyboard.press("Tab")
        assert page.locator("*:focus").inner_text() == "Skip to the results"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"

    def test_curves_have_their_numbers_as_a_table(self, page: Page, made: Made) -> None:
        part = page.locator("#layers")
        choose(part, "Task", "colour")
        figure = part.locator("figure").first
        figure.get_by_text("The numbers").click()
        means = [float(row[1]) for row in rows_of(figure.locator("table"))]
        scores_of = made.grid.scores[0].mean(axis=0)
        for layer, mean in enumerate(means):
            own = [scores_of[n] for n, cell in enumerate(made.grid.cells) if cell.source == layer]
            assert mean == pytest.approx(np.mean(own), abs=6e-4)

    def test_axes_are_round_numbers_told_apart(self, page: Page) -> None:
        """Those of a learning rate too."""
        for plot in page.locator("main svg.plot[role='img']").all():
            values = plot.locator("text[text-anchor='end']").all_text_contents()
            assert len(values) > 1 and len(set(values)) == len(values), values
        rates = page.get_by_role("img", name="Learning rate").locator("text[text-anchor='end']").all_text_contents()
        assert all(re.fullmatch(r"\d(\.\d+)? × 10⁻⁴", each) for each in rates), rates

    @pytest.mark.parametrize("width", [360, 1000, 1250])
    def test_it_fits_a_telephone_and_any_window(self, page: Page, width: int) -> None:
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") <= width + 1

    def test_it_can_be_printed(self, page: Page) -> None:
        page.emulate_media(media="print", color_scheme="dark")
        assert float(page.evaluate(f"{SCRIPTS} luminanceOf('body')")) > 0.9
        assert not page.locator("nav").is_visible()

    def test_conditions_that_only_some_language_pairs_have(self, browser: Browser, made: Made, tmp_path: Path) -> None:
        """They are in the headline, with what they stand on; and so is an oracle of fewer documents."""
        found = report.Found()
        for pair in ("en-ar", "en-sw"):
            found.evaluated += [
                a_run(tmp_path, "vanilla", pair, red=[0] * 6 + [1] * 4),
                a_run(tmp_path, "b", pair, red=[1] * 10),
            ]
        found.evaluated.append(a_run(tmp_path, "c", "en-ar", red=[1] * 2 + [0] * 4 + [1] * 4))
        found.compare()
        oracle = {"kind": "upper_bound", "condition": "bound", "documents": 4, "score": 1.0, "vanilla": 0.25}
        [few] = [line for line in found.records if line["condition"] == "c"]
        found.records.append(few | oracle | {"difference": 0.75, "note": "the best of 9 cells"})
        known = the_data(made.report)["languages"]
        with opened(browser, tmp_path, records=found.records, languages=known) as page:
            table = page.locator("#comparison table")
            rows = {row[0].split()[0]: " ".join(" ".join(row).split()) for row in rows_of(table)}
            assert list(rows) == ["vanilla", "b", "c", "bound"]
            assert "2 of 2 pairs 20 documents" in rows["b"] and "1.000 from 0.400" in rows["b"]
            assert "1 of 2 pairs: English into Arabic 10 documents" in rows["c"] and "0.600 from 0.400" in rows["c"]
            assert "4 documents" in rows["bound"] and "1.000 from 0.250" in rows["bound"]
            assert page.locator("#comparison li").all_inner_texts() == ["bound: the best of 9 cells"]
            lead = page.locator("#lead").inner_text()
            assert "b scores 1.000: +0.600" in lead and "better than chance explains" in lead
            assert "c (1 of 2 pairs: English into Arabic, 10 documents; untouched 0.400) scores 0.600" in lead
            bound = page.locator("#languages tbody tr", has_text="bound").locator("td").all_inner_texts()
            assert bound[1:3] == ["4", "1.000\nfrom 0.250"]

    def test_a_map_of_some_pairs_has_no_empty_rows(self, browser: Browser, made: Made, tmp_path: Path) -> None:
        """And a pair that was looked at on few documents, which a budget does, is told apart."""
        data = the_data(made.report)
        [whole] = [each for each in data["maps"] if each["task"] == "colour"]
        part = whole["components"]["ffn"]
        kept = [n for n, cell in enumerate(made.grid.cells) if cell.source == 3]
        for lists in (part, part["logprob"]):
            lists |= {
                name: [each[n] for n in kept]
                for name, each in lists.items()
                if isinstance(each, list) and len(each) == 16
            }
        part["seen"][1] = 2
        part["gain"][1] = -1.0
        with opened(browser, tmp_path, **data | {"maps": [whole]}) as page:
            drawn_map = page.locator("#maps table.map")
            assert drawn_map.locator("tbody tr").count() == 1 and drawn_map.locator("[data-cell]").count() == 4
            few = drawn_map.locator("[data-cell]").nth(1)
            assert "few" in (few.get_attribute("class") or "")
            assert "on 2 documents only" in (few.get_attribute("aria-label") or "")
            few.hover()
            read = page.locator("#maps .readout").inner_text().split("\n")
            mean = float(read[read.index("acc") + 1].replace("−", "-"))
            assert float(read[read.index("untouched there") + 1]) == pytest.approx(mean + 1, abs=2e-3)
            assert "fewer documents" in page.locator("#maps .key").inner_text()


@contextmanager
def opened(browser: Browser, place: Path, **data: Any) -> Iterator[Page]:
    """The page of such data."""
    path = place / "report.html"
    path.write_text(report.page(report.gather(report.Found()) | data), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(path.as_uri())
    yield page
    page.close()


def drawn(part: Locator) -> bool:
    return part.locator("[data-part] > *").count() > 0 and not part.locator(":scope > .absent").is_visible()


def number(text: str) -> int:
    return int(text.replace("−", "-"))


def scores(run: record.Run) -> dict[str, float]:
    [path] = run.folder.glob("samples_*.jsonl")
    with path.open(encoding="utf-8") as lines:  # what splits lines elsewhere is within them
        rows = list(map(json.loads, lines))
    return {row["key"]: row["acc"] for row in rows}


SCRIPTS = Path(__file__).with_name("report_checks.js").read_text(encoding="utf-8")


# --- Without a browser -----------------------------------------------------------------------------------------------


def test_the_command_of_a_run_gives_its_hash(made: Made) -> None:
    """Each run's command composes to the config of the very run."""
    data = the_data(made.report)
    assert len(data["runs"]) == 10
    told = {(run["job"], run["task"], run["condition"]): run for run in data["runs"] if run["job"] != "sft"}
    del told["evaluate", "cldr_language", "ffn 1>2 (add40, every_step)"], told["evaluate", "colour", "vanilla"]
    for run in told.values():
        _, job, *overrides = shlex.split(run["command"])
        config = compose.compose(job, overrides)
        assert isinstance(config, EvaluateConfig | GridConfig)
        assert config_hash(config, models.num_layers(config.model)) == run["hash"], run["command"]


def the_data(report: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', report.read_text("utf-8"))
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_same_runs_give_the_same_page(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    again = made.report.with_name("again.html")
    assert cli.main(["report", f"runs={made.place}/outputs", f"output={again}"]) == 0
    assert capsys.readouterr().out == f"{again}\n"
    assert again.read_bytes() == made.report.read_bytes()
    assert cli.main(["report", f"runs={made.place}/outputs", f"output={again}"]) == 2
    assert "there is one" in capsys.readouterr().err


def test_a_place_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", f"runs={tmp_path}", f"output={tmp_path / 'r.html'}"]) == 2
    assert "no finished run" in capsys.readouterr().err
    assert cli.main(["report", "runs=[]", f"output={tmp_path}", "seed=-1"]) == 2
    said = capsys.readouterr().err
    assert all(each in said for each in ("runs=[]", "a folder", "seed=-1"))


def test_commands_are_reproduced_for_presets_too() -> None:
    for line in (
        "xtransplant evaluate task=xcopa language_pair=en-sw limit=5",
        "xtransplant evaluate model=smollm2_135m task=cldr_continent language_pair=de-en task.num_fewshot=2",
    ):
        _, job, *overrides = shlex.split(line)
        config = compose.compose(job, overrides)
        from xtransplant.config import to_dict

        said = command.command(job, to_dict(config))
        again = compose.compose(job, shlex.split(said)[2:])
        assert to_dict(again) == to_dict(config)
        assert len(said) < len(line) + 20, said


def test_a_command_has_no_setting_that_acts_in_others_of_its_sweep_only() -> None:
    """Alone it would be refused for it."""
    from xtransplant.config import to_dict

    config = compose.compose("sft", ["task=cldr_language", "data.languages=[en,sw]", "steps=2", "method=full"])
    assert isinstance(config, SftConfig)
    config.lora.rank = 4
    said = command.command("sft", to_dict(config))
    assert "lora" not in said and compose.compose("sft", shlex.split(said)[2:])
