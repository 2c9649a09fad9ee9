"use strict";
(() => {
const data = JSON.parse(document.getElementById("report-data").textContent);
const DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
const SVG = "http://www.w3.org/2000/svg";
const PAGE = 10; // documents, or other long things, that are shown at once
const ROWS = 400; // of a table

// --- Elements. What comes from the data is text, never markup: only textContent, never innerHTML. ---------------------

function fill(node, given, children) {
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (name === "vars") for (const [key, each] of Object.entries(value)) node.style.setProperty(key, each);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(3)) {
    if (child !== undefined && child !== null && child !== false && child !== "") node.append(child);
  }
  return node;
}
const el = (name, given = {}, ...children) => fill(document.createElement(name), given, children);
const svg = (name, given = {}, ...children) => fill(document.createElementNS(SVG, name), given, children);
const hidden = (text) => el("span", { class: "hidden-text" }, text);

// --- Numbers and words -----------------------------------------------------------------------------------------------

const known = (value) => value !== null && value !== undefined;
const minus = (text) => text.replace("-", "\u2212");
const number = (value, digits = 3) => (known(value) ? minus(value.toFixed(digits)) : "\u2013");
const signed = (value, digits = 3) => (known(value) ? (value > 0 ? "+" : "") + number(value, digits) : "\u2013");
const percent = (value) => `${number(value * 100, 0)}\u00a0%`;
const between = (low, high, digits = 3) => (known(low) ? `${signed(low, digits)} to ${signed(high, digits)}` : "\u2013");
const chance = (p) => (!known(p) ? "\u2013" : p < 0.001 ? "< 0.001" : p.toFixed(3));
const count = (value) => (known(value) ? value.toLocaleString("en") : "\u2013");
const many = (n, one, more = `${one}s`) => `${count(n)} ${n === 1 ? one : more}`;
const unique = (values) => [...new Set(values)];
const codesOf = (pair) => String(pair).split(/ #/)[0].split(/-(?=[a-z])/);
const languageOf = (code) => data.languages[code] || { code, name: code, own_name: code, resources: null, script: "" };
const pairName = (pair) => {
  const [from, to] = codesOf(pair).map((code) => languageOf(code).name);
  return to ? `${from} into ${to}` : from;
};
function large(value) {
  if (!known(value)) return "\u2013";
  if (value < 1e4) return value.toLocaleString("en", { maximumFractionDigits: 1 });
  const power = Math.floor(Math.log10(value));
  return value < 1e6 ? Math.round(value).toLocaleString("en") : `${(value / 10 ** power).toFixed(1)} \u00d7 10${superscript(power)}`;
}
const superscript = (power) => [...String(power)].map((digit) => "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"[digit] ?? "\u207b").join("");
function duration(seconds) {
  if (!known(seconds)) return "\u2013";
  if (seconds < 90) return `${seconds.toFixed(1)} s`;
  return seconds < 5400 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
const KINDS = {
  vanilla: "untouched", pim: "both prompts", transplant: "fixed pair", strategy: "strategy", sft: "fine-tuned",
  "sft+transplant": "fine-tuned + transplant", upper_bound: "oracle", chance: "control",
};
const ORACLES = ["upper_bound", "chance"];
const isTested = (record) => known(record.difference) && !ORACLES.includes(record.kind);
const improves = (record) => (record.higher_is_better === false ? -1 : 1) * record.difference > 0;

/** What a result comes to: [class, mark, words]. The mark and the words say what the colour says. */
function verdict(record) {
  if (record.kind === "upper_bound") return ["chance", "\u25cb", record.could_be_chance === false ? "oracle, beyond its control" : "oracle, could be chance"];
  if (record.kind === "chance") return ["chance", "\u25cb", "the oracle\u2019s control"];
  if (!known(record.difference)) return ["chance", "", record.against ? "not compared" : "the baseline"];
  if (record.could_be_chance === true) return ["chance", "\u2248", "could be chance"];
  if (record.could_be_chance === false) {
    return improves(record) ? ["better", "\u25b2", "better, beyond chance"] : ["worse", "\u25bc", "worse, beyond chance"];
  }
  return ["chance", "?", "not tested"];
}
function verdictShown(record) {
  const [name, mark, words] = verdict(record);
  return el("span", { class: `verdict ${name}` }, mark && el("span", { "aria-hidden": "true" }, `${mark} `), words);
}
/** The same with p, and how many documents speak for and against it. */
const groundsShown = (record) => [verdictShown(record), [
  known(record.p_holm ?? record.p) && `p ${chance(record.p_holm ?? record.p)}`,
  known(record.wins) && `${count(record.wins)} better, ${count(record.losses)} worse`,
].filter(Boolean).map((each) => el("span", { class: "sub" }, each))];
const chip = (words) => [" ", el("span", { class: "kind" }, words)];
const kindShown = (record) => chip(KINDS[record.kind] || record.kind);
const differenceShown = (record) =>
  known(record.difference)
    ? el("span", {}, signed(record.difference), known(record.low) && el("span", { class: "sub" }, between(record.low, record.high)))
    : "\u2013";

// --- Tables that sort ------------------------------------------------------------------------------------------------

// What is too wide scrolls in a box of its own, which the keyboard reaches where it does scroll.
const widths = new ResizeObserver((entries) => entries.forEach(({ target }) => { target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1; }));
function scroller(label, ...children) {
  const node = el("div", { class: "scroll", role: "region", "aria-label": label }, ...children);
  widths.observe(node);
  return node;
}

/** A table of `rows`; columns: {head, value(row), show(row), num, rowHead, fixed}. A click on a heading sorts. */
function table({ caption, columns, rows, sorted = null, descending = false, limit = ROWS }) {
  let shown = rows, by = sorted, down = descending, all = false;
  const body = el("tbody");
  const more = el("button", { type: "button", hidden: true, on: { click: () => { all = true; draw(); } } });
  const heads = columns.map((column, place) => {
    const cell = el("th", { scope: "col", class: column.num && "num" });
    if (column.fixed) fill(cell, {}, [column.head]);
    else {
      cell.append(el("button", { type: "button", on: { click: () => {
        down = by === place ? !down : Boolean(column.num);
        by = place;
        draw();
      } } }, column.head));
    }
    return cell;
  });
  function draw() {
    let ordered = [...shown];
    if (by !== null) {
      const value = columns[by].value;
      ordered.sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        if (!known(a) || !known(b)) return Number(known(b)) - Number(known(a));
        const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
        return down ? -order : order;
      });
    }
    heads.forEach((cell, place) => {
      if (columns[place].fixed) return;
      cell.setAttribute("aria-sort", by === place ? (down ? "descending" : "ascending") : "none");
    });
    const left = all ? 0 : Math.max(0, ordered.length - limit);
    if (left) ordered = ordered.slice(0, limit);
    body.replaceChildren(...ordered.map((row) => el("tr", {}, columns.map((column) => {
      const what = column.show ? column.show(row) : column.value(row);
      const given = { class: column.num && "num" };
      return column.rowHead ? el("th", { scope: "row" }, what) : el("td", given, known(what) ? what : "\u2013");
    }))));
    more.hidden = !left;
    more.textContent = `Show ${many(left, "more row")}`;
  }
  draw();
  const node = scroller(caption,
    el("table", { class: "data" }, el("caption", {}, el("span", {}, caption)), el("thead", {}, el("tr", {}, heads)), body), more);
  return { node, show(some) { shown = some; all = false; draw(); } };
}

let fields = 0;
function labelled(label, control) {
  fields += 1;
  control.id = `field-${fields}`;
  return el("div", { class: "field" }, el("label", { for: control.id }, label), control);
}
function choose(label, options, act, value) {
  const select = el("select", { on: { change: () => act(select.value) } },
    options.map(([key, text]) => el("option", { value: key, selected: key === value }, text)));
  return labelled(label, select);
}
function search(label, act) {
  const input = el("input", { type: "search", autocomplete: "off", spellcheck: "false", on: { input: () => act(input.value) } });
  return labelled(label, input);
}
const folded = (text) => String(text).normalize("NFKC").toLocaleLowerCase();

/** Selects that together name one of `items`, one for each of `names` that they differ in. */
function facets(items, names, act) {
  let chosen = items[0];
  const bar = el("div", { class: "controls" });
  function draw(focused) {
    const selects = names.filter(([name]) => unique(items.map((item) => String(item[name]))).length > 1).map(([name, label, words]) => {
      const values = unique(items.map((item) => String(item[name])));
      return choose(label, values.map((value) => [value, words ? words(value) : value]), (value) => {
        const fits = items.filter((item) => String(item[name]) === value);
        const alike = (item) => names.filter(([other]) => String(item[other]) === String(chosen[other])).length;
        chosen = fits.reduce((best, item) => (alike(item) > alike(best) ? item : best));
        draw(name);
        act(chosen);
      }, String(chosen[name]));
    });
    bar.replaceChildren(...selects);
    const place = names.filter(([name]) => unique(items.map((item) => String(item[name]))).length > 1).findIndex(([name]) => name === focused);
    if (place >= 0) bar.children[place].querySelector("select").focus();
  }
  draw();
  return { bar, first: chosen };
}

// --- Pictures --------------------------------------------------------------------------------------------------------

/** A difference and its interval on an axis from -limit to limit. Beside numbers that say the same: hidden from readers. */
function interval(record, limit) {
  if (!known(record.low)) return "";
  const at = (value) => 112 + (Math.max(-limit, Math.min(limit, value)) / limit) * 104;
  return svg("svg", { class: `interval ${verdict(record)[0]}`, viewBox: "0 0 224 24", "aria-hidden": "true" },
    svg("line", { class: "axis", x1: 4, x2: 220, y1: 12, y2: 12 }),
    svg("line", { class: "zero", x1: 112, x2: 112, y1: 1, y2: 23 }),
    svg("line", { class: "range", x1: at(record.low), x2: at(record.high), y1: 12, y2: 12 }),
    svg("circle", { class: "point", cx: at(record.difference), cy: 12, r: 5 }));
}
const intervalColumn = (limit) => ({
  head: [hidden("Picture of the interval, from "), el("span", { class: "ends" }, el("span", {}, signed(-limit, 2)), el("span", {}, "0"), el("span", {}, signed(limit, 2)))],
  fixed: true, show: (row) => interval(row, limit),
});
const widest = (records) => Math.max(1e-9, ...records.filter((each) => known(each.low)).flatMap((each) => [Math.abs(each.low), Math.abs(each.high)]));

/** Round numbers on an axis and how they are written: as many digits as their distance needs, tiny ones by a power of 10. */
function ticks(low, high, wanted = 5) {
  const raw = (high - low) / wanted || 1;
  const step = [1, 2, 2.5, 5, 10].map((each) => each * 10 ** Math.floor(Math.log10(raw))).find((each) => each >= raw * 0.999);
  const values = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) values.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  const power = Math.floor(Math.log10(Math.max(Math.abs(low), Math.abs(high)) || 1));
  const unit = power < -2 ? 10 ** power : 1;
  const isWhole = (value) => Math.abs(value - Math.round(value)) < 1e-6;
  const digits = [0, 1, 2, 3].find((each) => isWhole((step / unit) * 10 ** each)) ?? 4;
  const write = (value) => (unit === 1 ? number(value, digits) : value ? `${number(value / unit, digits)} \u00d7 10${superscript(power)}` : "0");
  return { values, write };
}
/** Axes for numbers x and y; returns the picture, the scales, and where to draw. */
function axes({ xs, ys, xLabel, yLabel, title, xTicks = null }) {
  const [width, height, left, right, top, bottom] = [520, 270, 74, 12, 10, 40];
  const span = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [low - room, high + room];
  };
  const [x0, x1] = span(xs), [y0, y1] = span(ys);
  const x = (value) => left + ((value - x0) / (x1 - x0)) * (width - left - right);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - top - bottom);
  const picture = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  const levels = ticks(y0, y1), places = xTicks ? { values: xTicks, write: String } : ticks(x0, x1, 8);
  for (const value of levels.values) {
    picture.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, levels.write(value)));
  }
  for (const value of places.values) {
    picture.append(svg("text", { x: x(value), y: height - bottom + 17, "text-anchor": "middle" }, places.write(value)));
  }
  picture.append(svg("text", { class: "label", x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, xLabel),
    svg("text", { class: "label", transform: `translate(12 ${(height - bottom + top) / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel));
  return { picture, x, y, left, right: width - right };
}
function path(points) {
  let drawn = "", pen = false;
  for (const [x, y] of points) {
    if (!known(y) || Number.isNaN(y)) { pen = false; continue; }
    drawn += `${pen ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    pen = true;
  }
  return drawn;
}
/** Lines over a common x; series: {name, values, low, high}; base: a level line; joined: over what is not known, too. With
 *  the numbers as a table below. */
function lines({ xs, series, base, xLabel, yLabel, title, digits = 3, joined = false }) {
  const drawn = series.filter((each) => each.values.some(known));
  const ys = drawn.flatMap((each) => [each.values, each.low || [], each.high || []].flat()).concat(base ? [base.value] : []).filter(known);
  if (!ys.length) return "";
  const every = Math.ceil(xs.length / 12);
  const plot = axes({ xs, ys, xLabel, yLabel, title, xTicks: xs.length <= 40 ? xs.filter((_, place) => place % every === 0) : null });
  const at = (values) => xs.map((x, place) => [plot.x(x), known(values[place]) ? plot.y(values[place]) : null]);
  if (base) plot.picture.append(svg("line", { class: "base", x1: plot.left, x2: plot.right, y1: plot.y(base.value), y2: plot.y(base.value) }));
  drawn.forEach((each) => {
    if (!each.low) return;
    const [low, high] = [at(each.low), at(each.high)].map((points) => points.filter(([, y]) => known(y)));
    if (low.length) plot.picture.append(svg("path", { class: "band", d: `${path(high)}${path(low.reverse()).replace("M", "L")}Z` }));
  });
  drawn.forEach((each, place) => {
    const all = at(each.values), points = all.filter(([, y]) => known(y));
    plot.picture.append(svg("path", { class: `line s${place + 1}`, d: path(joined ? points : all) }));
    if (points.length < 40) {
      for (const [x, y] of points) plot.picture.append(svg("circle", { class: `line s${place + 1}`, cx: x, cy: y, r: 1.6 }));
    }
  });
  const legend = el("ul", { class: "legend" },
    drawn.map((each, place) => el("li", {}, svg("svg", { class: "plot", viewBox: "0 0 36 12", "aria-hidden": "true" }, svg("path", { class: `line s${place + 1}`, d: "M1 6H35" })), each.name)),
    base && el("li", {}, svg("svg", { class: "plot", viewBox: "0 0 36 12", "aria-hidden": "true" }, svg("path", { class: "base", d: "M1 6H35" })), base.name));
  const numbers = el("details", {}, el("summary", {}, "The numbers"));
  numbers.addEventListener("toggle", () => {
    if (numbers.children.length > 1) return;
    numbers.append(table({ caption: title, rows: xs.map((x, place) => ({ x, place })), columns: [
      { head: xLabel, num: true, value: (row) => row.x, rowHead: true },
      ...drawn.map((each) => ({ head: each.name, num: true, value: (row) => each.values[row.place], show: (row) => number(each.values[row.place], digits) })),
    ] }).node);
  });
  return el("figure", {}, el("figcaption", {}, title), plot.picture, legend, numbers);
}

// --- Documents -------------------------------------------------------------------------------------------------------

const levelOf = (levels, digit) => (digit === "." || digit === undefined ? null : levels[DIGITS.indexOf(digit)]);
const isBinary = (levels) => levels.every((each) => each === 0 || each === 1);
const text = (place) => (place < 0 || !known(place) ? null : data.texts[place].trim());
const spoken = (content, code, name = "p") => el(name, { class: "text", dir: "auto", lang: code }, content);

/** The text of an answer: the number of a choice, or of a text. */
function answerOf(asked, answer) {
  if (!known(answer) || answer < 0) return null;
  return text(asked.choices.length ? asked.choices[answer] : answer);
}
/** One document: both prompts, what each of some conditions answered, and what is right. */
function card(asked, languages, answers, change) {
  const [source, target] = languages;
  const shown = (answer) => {
    const own = answerOf(asked, answer.answer);
    const right = answer.score === (answer.higher ? 1 : 0); // of a metric of errors 0 is right
    const mark = !known(answer.score) ? "" : answer.binary ? (right ? "\u2713 right" : "\u2717 wrong") : `scores ${number(answer.score)}`;
    return el("div", {}, el("h3", {}, answer.label), el("span", { class: `mark ${right ? "better" : "worse"}` }, mark),
      known(own) ? spoken(own, target) : el("p", { class: "text" }, el("em", {}, "the text is not kept in this page")));
  };
  return el("li", { class: "flip" },
    el("header", {}, el("strong", { class: change[0] }, change[1]), el("span", { class: "name mono" }, asked.key)),
    el("div", { class: "pairwise" },
      el("div", {}, el("h3", {}, `Asked, in ${languageOf(target).name}`), spoken(text(asked.target), target)),
      el("div", {}, el("h3", {}, `Read for a transplant, in ${languageOf(source).name}`), spoken(text(asked.source), source))),
    el("div", { class: "pairwise answers" }, answers.map(shown),
      el("div", {}, el("h3", {}, "Right answer"), spoken(text(asked.gold) || "\u2013", target)),
      asked.choices.length > 1 && el("div", {}, el("h3", {}, "Choices"), spoken(asked.choices.map(text).join("\n"), target))));
}
/** Cards, a page at a time. */
function cards(items, draw) {
  const list = el("ul", { class: "flips" });
  const more = el("button", { type: "button", on: { click: () => show() } });
  let shown = 0;
  function show() {
    const next = items.slice(shown, shown + PAGE).map(draw);
    shown += next.length;
    list.append(...next);
    more.hidden = shown >= items.length;
    more.textContent = `Show ${many(Math.min(PAGE, items.length - shown), "more document")} of ${count(items.length - shown)}`;
  }
  show();
  return [list, more];
}
const changeOf = (before, after, binary, sign) => {
  const up = sign * (after - before) > 0;
  const words = binary ? (up ? "wrong \u2192 right" : "right \u2192 wrong") : up ? "better" : "worse";
  return [up ? "better" : "worse", `${up ? "\u25b2" : "\u25bc"} ${words}`];
};

// --- The parts -------------------------------------------------------------------------------------------------------

const parts = {};
/** What may be compared, by table; what has an oracle only comes last. */
const groups = (() => {
  const found = new Map();
  for (const record of data.records) {
    const key = JSON.stringify([record.model, record.task, record.split, record.metric]);
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(record);
  }
  return [...found.values()].sort((one, other) => Number(other.some(isTested)) - Number(one.some(isTested)));
})();
/** Of each condition its line over all language pairs that have it; where there is no average, the lines of its pairs. */
function summaryOf(group) {
  const order = Object.keys(KINDS);
  return unique(group.map((record) => record.condition)).flatMap((condition) => {
    const own = group.filter((record) => record.condition === condition);
    return ["micro", "macro", null].map((pooled) => own.filter((record) => record.pooled === pooled)).find((some) => some.length);
  }).sort((one, other) => order.indexOf(one.kind) - order.indexOf(other.kind));
}
const pairsOf = (group) => unique(group.map((record) => record.pair).filter(known));
const where = (record) => `${record.model} on ${record.task}, ${record.split === "all" ? "all documents" : `${record.split} half`}`;
const over = (record) => `${record.pair ? pairName(record.pair) : many(record.pairs, "language pair")}, ${many(record.documents, "document")}${record.pooled === "macro" ? ", mean over pairs" : ""}`;
/** Which of a group's language pairs a line is of. */
const share = (record, group) => `${record.pairs} of ${many(pairsOf(group).length, "pair")}${record.pair ? `: ${pairName(record.pair)}` : ""}${record.pooled === "macro" ? ", mean over pairs" : ""}`;
const partial = (record, group) => record.pairs < pairsOf(group).length;
/** Do rows stand on unlike numbers of documents? Then these are shown. */
const unlike = (rows) => unique(rows.map((row) => row.documents).filter(known)).length > 1;
const documentsColumn = { head: "Documents", num: true, value: (row) => row.documents, show: (row) => count(row.documents) };
/** A score; with what the untouched model reaches on its documents, where that differs from row to row. */
const scoreColumn = (head, uneven) => ({
  head, num: true, value: (row) => row.score,
  show: (row) => [number(row.score), uneven && known(row.difference) && el("span", { class: "sub" }, `from ${number(row.vanilla)}`)],
});
const detectableColumn = { head: "Detectable", num: true, value: (row) => row.minimum_detectable, show: (row) => number(row.minimum_detectable) };

/** Operations for a document as a multiple of the untouched model's on the same language pairs; null: not known. */
function timesUntouched(record, group) {
  const pairs = record.pair ? [record.pair] : pairsOf(group.filter((each) => each.condition === record.condition));
  const bases = group.filter((each) => each.kind === "vanilla" && pairs.includes(each.pair));
  const sum = (name) => bases.reduce((total, each) => (known(total) && known(each[name]) ? total + each[name] : null), 0);
  const base = bases.length === pairs.length && sum("flops");
  return base && known(record.flops) ? record.flops / record.documents / (base / sum("documents")) : null;
}
const times = (value) => (known(value) ? `${number(value, value < 10 ? 1 : 0)} \u00d7` : "\u2013");

// A run with an adapter calls itself by what was done beside: the comparison knows it as fine-tuned.
const compared = new Map(data.records.filter((record) => record.folder && record.pair && !ORACLES.includes(record.kind)).map((record) => [record.folder, record.condition]));
const conditionOf = (run) => compared.get(run.folder) ?? `${run.condition}${run.weights.adapter ? ", with an adapter" : ""}`;

parts.comparison = () => {
  const blocks = groups.filter((group) => group.some(isTested)).map((group) => {
    const records = summaryOf(group);
    const limit = widest(records);
    const lower = records[0].higher_is_better === false ? ", lower is better" : "";
    const uneven = unique(records.map((row) => JSON.stringify([row.pair, row.pairs, row.pooled, row.documents]))).length > 1;
    const columns = [
      { head: "Condition", rowHead: true, value: (row) => row.condition, show: (row) => [row.condition, kindShown(row), uneven && [share(row, group), many(row.documents, "document")].map((each) => el("span", { class: "sub" }, each))] },
      scoreColumn(records[0].metric, uneven),
      { head: "Difference, 95 %", num: true, value: (row) => row.difference, show: differenceShown },
      records.some((row) => known(row.low)) && intervalColumn(limit),
      { head: "In words", value: (row) => verdict(row)[2], show: groundsShown },
      records.some((row) => known(row.minimum_detectable)) && detectableColumn,
      records.some((row) => known(timesUntouched(row, group))) && { head: "Operations", num: true, value: (row) => timesUntouched(row, group), show: (row) => [times(timesUntouched(row, group)), row.training_flops > 0 && el("span", { class: "sub" }, `${large(row.training_flops)} before`)] },
    ].filter(Boolean);
    const caption = `${where(records[0])}: ${records[0].metric}${lower} (${uneven ? many(pairsOf(group).length, "language pair") : over(records[0])})`;
    const about = unique(records.map((record) => record.note).filter(Boolean))
      .map((note) => `${unique(records.filter((record) => record.note === note).map((record) => record.condition)).join("; ")}: ${note}`);
    const notes = [...about, ...data.notes.filter((each) => ["model", "task", "split", "metric"].every((name) => each[name] === records[0][name])).map((each) => each.text)];
    return [table({ caption, columns, rows: records }).node, notes.length > 0 && el("ul", { class: "note" }, notes.map((note) => el("li", {}, note)))];
  });
  // Oracles alone, and models that nothing was done to: one table of all.
  const rest = groups.filter((group) => !group.some(isTested)).map(summaryOf).flatMap((records) => {
    const others = records.filter((record) => record.kind !== "vanilla");
    return others.length ? others : records;
  });
  const untested = rest.length > 0 && table({ caption: "What the untouched model and oracles over grids reach, where no condition was tested", rows: rest, columns: [
    { head: "Model and documents", rowHead: true, value: where, show: (row) => [where(row), el("span", { class: "sub" }, over(row))] },
    { head: "Condition", value: (row) => row.condition, show: (row) => [row.condition, kindShown(row)] },
    { head: "Untouched", num: true, value: (row) => row.vanilla, show: (row) => [number(row.vanilla), el("span", { class: "sub" }, row.metric)] },
    { head: "Score", num: true, value: (row) => row.score, show: (row) => number(row.score) },
    { head: "Difference", num: true, value: (row) => row.difference, show: differenceShown },
    { head: "In words", value: (row) => verdict(row)[2], show: groundsShown },
    rest.some((row) => row.note) && { head: "Known of it", value: (row) => row.note || null },
  ].filter(Boolean) }).node;
  const refused = data.refused.length ? el("details", {}, el("summary", {}, `Not compared: ${many(data.refused.length, "group")} of runs that differ in more than the condition`), data.refused.map((each) => el("p", { class: "refused" }, each))) : "";
  return [blocks, untested, refused];
};

parts.languages = () => {
  const rows = groups.flat().filter((record) => record.pair);
  if (!rows.length) return [];
  const state = { words: "", kind: "", model: "", task: "", said: "" };
  const limit = widest(rows);
  const target = (row) => languageOf(codesOf(row.pair).at(-1));
  const several = (name) => unique(rows.map((row) => row[name])).length > 1;
  const place = (row) => `${row.task}, ${row.split}`;
  const columns = [
    { head: "Pair", rowHead: true, value: (row) => row.pair, show: (row) => [row.pair, [pairName(row.pair), several("model") && row.model, (several("task") || several("split")) && place(row)].filter(Boolean).map((each) => el("span", { class: "sub" }, each))] },
    { head: "Condition", value: (row) => row.condition, show: (row) => [row.condition, kindShown(row)] },
    documentsColumn,
    scoreColumn("Score", rows.some((row) => rows.some((other) => other.pair === row.pair && place(other) === place(row) && other.documents !== row.documents))),
    { head: "Difference, 95 %", num: true, value: (row) => row.difference, show: differenceShown },
    rows.some((row) => known(row.low)) && intervalColumn(limit),
    { head: "In words, p (Holm)", value: (row) => row.p_holm ?? row.p, show: groundsShown },
    detectableColumn,
  ].filter(Boolean);
  const made = table({ caption: "Language pairs", columns, rows });
  const shown = el("p", { class: "count", role: "status" }, `${many(rows.length, "row")}`);
  function filter() {
    const words = folded(state.words).split(/\s+/).filter(Boolean);
    const some = rows.filter((row) => {
      const line = folded([row.pair, pairName(row.pair), target(row).own_name, target(row).script, row.model, row.task, row.split, row.condition, row.kind, verdict(row)[2]].join(" "));
      return words.every((word) => line.includes(word)) && (!state.kind || row.kind === state.kind) && (!state.model || row.model === state.model)
        && (!state.task || place(row) === state.task) && (!state.said || verdict(row)[2] === state.said);
    });
    made.show(some);
    shown.textContent = some.length === rows.length ? many(rows.length, "row") : `${count(some.length)} of ${many(rows.length, "row")}`;
  }
  const set = (name) => (value) => { state[name] = value; filter(); };
  const options = (all, values, words = (value) => value) => [["", all], ...unique(values).map((value) => [value, words(value)])];
  const bar = el("div", { class: "controls" },
    search("Search language, condition, script \u2026", set("words")),
    choose("Kind", options("all kinds", rows.map((row) => row.kind), (kind) => KINDS[kind] || kind), set("kind"), ""),
    several("model") && choose("Model", options("all models", rows.map((row) => row.model)), set("model"), ""),
    (several("task") || several("split")) && choose("Task", options("all tasks", rows.map(place)), set("task"), ""),
    choose("Outcome", options("all outcomes", rows.map((row) => verdict(row)[2])), set("said"), ""), shown);
  return [bar, made.node];
};

const titleOf = (map) => `${map.model}, ${map.task}, ${pairName(map.pair)}, ${map.split === "all" ? "all documents" : `${map.split} half`}${map.control ? `, control ${map.control}` : ""}`;
const MAP_FACETS = [["model", "Model"], ["task", "Task"], ["pair", "Language pair", pairName], ["split", "Half"], ["control", "Vectors", (value) => (value === "null" ? "of the parallel prompt" : `control: ${value}`)], ["name", "Settings"]];
const COMPONENTS = { ffn: "feed-forward", attn: "attention", attn_as_released: "attention, as released" };
/** Maps with what was computed, in words; those that are alike in that too are told apart by their hashes. */
function namedMaps() {
  const name = (map) => [
    Object.entries(map.components).map(([component, part]) => `${COMPONENTS[component] || component} in ${part.source.length === map.layers ** 2 ? "all" : count(part.source.length)} pairs of layers`).join(", "),
    many(map.count, "document"),
  ].join(", ");
  const place = (map) => JSON.stringify([...["model", "task", "pair", "split", "control"].map((each) => map[each]), name(map)]);
  const places = data.maps.map(place);
  return data.maps.map((map) => ({ ...map, name: places.filter((each) => each === place(map)).length > 1 ? `${name(map)}, ${data.runs[map.run].hash}` : name(map) }));
}

parts.maps = () => {
  const maps = namedMaps();
  if (!maps.length) return [];
  const place = el("div"), detail = el("div"), more = el("div", { class: "controls" });
  let component = null, quantity = "score";
  function draw(map) {
    const names = Object.keys(map.components);
    if (!names.includes(component)) [component] = names;
    if (quantity === "logprob" && !map.components[component].logprob) quantity = "score";
    const redraw = () => draw(map);
    detail.replaceChildren();
    more.replaceChildren(
      choose("Component", names.map((name) => [name, COMPONENTS[name] || name]), (value) => { component = value; redraw(); }, component),
      choose("Shown", [["score", `gain in ${map.metric}`], ...(map.components[component].logprob ? [["logprob", "gain in the right choice\u2019s log-probability"]] : [])], (value) => { quantity = value; redraw(); }, quantity));
    place.replaceChildren(heatmap(map, component, quantity, detail), detail);
  }
  const chosen = facets(maps, MAP_FACETS, draw);
  draw(chosen.first);
  return [el("div", { class: "controls" }, chosen.bar, more), place];
};

function heatmap(map, component, quantity, detail) {
  const part = map.components[component];
  const numbers = quantity === "logprob" ? part.logprob : part;
  const unit = quantity === "logprob" ? 1 : Math.max(...map.levels.map(Math.abs)) <= 1 ? 100 : 1;
  const of = new Map(part.source.map((source, cell) => [`${source}>${part.target[cell]}`, cell]));
  // With a budget some pairs were looked at on a few documents only: they do not set the scale.
  const whole = (cell) => part.seen[cell] === map.count;
  const gains = numbers.gain.filter((gain, cell) => known(gain) && (whole(cell) || !part.seen.some((seen) => seen === map.count)));
  const ordered = gains.map(Math.abs).sort((a, b) => a - b);
  const limit = Math.max(...gains, ordered[Math.floor(0.9 * (ordered.length - 1))] ?? 0) || (ordered.at(-1) ?? 1) || 1;
  const best = gains.length ? part.source.map((_, cell) => cell).filter((cell) => whole(cell) && known(numbers.gain[cell])).reduce((top, cell) => (top === null || numbers.gain[cell] > numbers.gain[top] + 1e-9 ? cell : top), null) : null;
  // Layers without any pair are left out.
  const [sources, targets] = [part.source, part.target].map((side) => unique(side).sort((a, b) => a - b));
  const shown = (gain) => (quantity === "logprob" ? signed(gain, 1).replace("0.", ".") : signed(Math.round(gain * unit), 0));
  const sign = map.higher ? 1 : -1;
  const changes = (cell) => {
    let up = 0, down = 0;
    for (let row = 0; row < map.kept; row += 1) {
      const [before, after] = [map.vanilla.scores[row], part.scores[cell][row]].map((digit) => levelOf(map.levels, digit));
      if (!known(after) || after === before) continue;
      if (sign * (after - before) > 0) up += 1; else down += 1;
    }
    return [up, down];
  };
  const binary = isBinary(map.levels);
  const name = (cell) => `${component} ${part.source[cell]}>${part.target[cell]}`;
  const readout = el("aside", { class: "readout", "aria-label": "The pair under the pointer or the cursor" });
  function read(cell) {
    const [up, down] = changes(cell);
    const rows = [
      ["documents", count(part.seen[cell])],
      [map.metric, number(part.mean[cell])], ["untouched there", number(part.mean[cell] - sign * part.gain[cell])], ["gain", signed(part.gain[cell])],
      [binary ? "wrong \u2192 right" : "better", count(up)], [binary ? "right \u2192 wrong" : "worse", count(down)],
      ["p, this pair alone", chance(part.p[cell])], ["p, all pairs (max-T)", chance(part.adjusted[cell])], ["false discovery rate", chance(part.q[cell])],
      ...(part.logprob ? [["log-probability, nats", signed(part.logprob.gain[cell])], ["its p, all pairs", chance(part.logprob.adjusted[cell])]] : []),
    ];
    readout.replaceChildren(el("h3", {}, name(cell)), el("dl", {}, rows.map(([term, value]) => [el("dt", {}, term), el("dd", {}, value)])),
      el("p", { class: "note" }, `Layer ${part.source[cell]} of the ${languageOf(map.languages[0]).name} prompt, written into layer ${part.target[cell]} of the ${languageOf(map.languages[1]).name} one.`));
  }
  let current = best ?? 0;
  const cells = new Map();
  function move(cell) {
    cells.get(current)?.setAttribute("tabindex", "-1");
    current = cell;
    cells.get(cell).setAttribute("tabindex", "0");
    cells.get(cell).focus();
  }
  function open(cell) {
    for (const [other, node] of cells) node.setAttribute("aria-selected", String(other === cell));
    showDocuments(map, component, cell, detail, () => cells.get(cell).focus());
  }
  function key(event, cell) {
    const [source, target] = [part.source[cell], part.target[cell]];
    const steps = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };
    if (event.key === "Enter" || event.key === " ") open(cell);
    else if (event.key === "Home") move(Math.min(...[...of].filter(([pair]) => pair.startsWith(`${source}>`)).map(([, each]) => each)));
    else if (event.key === "End") move(Math.max(...[...of].filter(([pair]) => pair.startsWith(`${source}>`)).map(([, each]) => each)));
    else if (steps[event.key]) {
      // Of a grid with some pairs only, on to the next that is there.
      const [up, right] = steps[event.key];
      for (let n = 1; n < map.layers; n += 1) {
        const next = of.get(`${source + n * up}>${target + n * right}`);
        if (next !== undefined) { move(next); break; }
      }
    } else return;
    event.preventDefault();
  }
  const body = [...sources].reverse().map((source) => el("tr", { role: "row" },
    el("th", { scope: "row", role: "rowheader" }, String(source)),
    targets.map((target) => {
      const cell = of.get(`${source}>${target}`);
      if (cell === undefined || !known(numbers.gain[cell])) return el("td", { class: "void", role: "gridcell", "aria-label": `${source} into ${target}: not computed` });
      const gain = numbers.gain[cell];
      const sure = known(numbers.adjusted[cell]) && numbers.adjusted[cell] <= 0.05;
      const classes = [gain > 0 ? "up" : gain < 0 ? "down" : "none", sure && "sure", cell === best && gain > 0 && "best", !whole(cell) && "few"].filter(Boolean).join(" ");
      const node = el("td", {
        class: classes, role: "gridcell", tabindex: cell === current ? "0" : "-1", "aria-selected": "false", "data-cell": `${source}>${target}`,
        "aria-label": `${shown(gain)}: ${source} into ${target}, gain ${signed(gain)}${quantity === "logprob" ? " nats" : ""}${sure ? ", beyond chance" : ""}${cell === best && gain > 0 ? ", the best" : ""}${whole(cell) ? "" : `, on ${part.seen[cell]} documents only`}`,
        vars: { "--much": Math.min(1, Math.abs(gain) / limit).toFixed(3) },
        on: { click: () => { move(cell); open(cell); }, keydown: (event) => key(event, cell), focus: () => read(cell), mouseenter: () => read(cell) },
      }, shown(gain));
      cells.set(cell, node);
      return node;
    })));
  read(current);
  const ramp = [-1, -0.6, -0.2, 0.2, 0.6, 1].map((each) => el("i", { class: each > 0 ? "up" : "down", vars: { "--tone": `var(--${each > 0 ? "better" : "worse"})`, "--much": Math.abs(each) } }));
  const edge = (value) => signed(value * unit, quantity === "logprob" ? 2 : 0);
  const sign4 = (name, words) => el("span", {}, el("i", { class: `sign ${name}`, "aria-hidden": "true" }), words);
  const present = (name) => [...cells.values()].some((node) => node.classList.contains(name));
  const pairs = part.source.length === map.layers ** 2 ? `all ${count(map.layers ** 2)}` : `${count(part.source.length)} of ${count(map.layers ** 2)}`;
  return el("div", { class: "map-wrap" },
    el("div", {},
      el("p", { class: "side" }, "columns: written into layer \u2192; rows: layer that was read \u2191"),
      el("div", { class: "scroll" }, el("table", { class: `map${targets.length > 22 ? " dense" : ""}`, role: "grid", "aria-label": `${titleOf(map)}: gain of each pair of layers, ${component}` },
        el("thead", {},
          el("tr", { role: "row" }, el("th", { scope: "col" }, hidden("layer read")), targets.map((layer) => el("th", { scope: "col", role: "columnheader" }, String(layer))))),
        el("tbody", {}, body))),
      el("p", { class: "side" }, `${titleOf(map)}. ${many(map.count, "document")}, ${pairs} pairs of layers${sources.length < map.layers || targets.length < map.layers ? "; layers without a pair are not drawn" : ""}. Numbers: ${quantity === "logprob" ? "nats" : unit === 100 ? "points (hundredths)" : map.metric}.`),
      el("div", { class: "key" }, el("span", {}, `worse ${edge(-limit)}`), el("span", { class: "ramp", "aria-hidden": "true" }, ramp), el("span", {}, `${edge(limit)} better`),
        present("best") ? sign4("best", "the best pair") : el("span", {}, "no pair gains"), present("sure") ? sign4("sure", "differs beyond chance, for all pairs together (max-T, 5 %)") : el("span", {}, "none differs beyond chance, for all pairs together (max-T, 5 %)"),
        present("few") && sign4("few", "looked at on fewer documents (budget)"), cells.size < sources.length * targets.length && sign4("void", "not computed"))),
    readout);
}

function showDocuments(map, component, cell, detail, back) {
  const part = map.components[component];
  const sign = map.higher ? 1 : -1, binary = isBinary(map.levels);
  const items = [];
  for (let row = 0; row < map.kept; row += 1) {
    const before = levelOf(map.levels, map.vanilla.scores[row]), after = levelOf(map.levels, part.scores[cell][row]);
    if (known(after) && after !== before) items.push({ row, before, after, up: sign * (after - before) > 0 });
  }
  items.sort((one, other) => Number(other.up) - Number(one.up));
  const up = items.filter((each) => each.up).length;
  const kept = items.filter((each) => map.documents[each.row] >= 0);
  const answer = (row) => (part.answers ? DIGITS.indexOf(part.answers[cell][row]) : part.texts?.[cell]?.[row]);
  const heading = el("h3", { tabindex: "-1" }, `${component} ${part.source[cell]}>${part.target[cell]}: ${up} ${binary ? "wrong \u2192 right" : "better"}, ${items.length - up} ${binary ? "right \u2192 wrong" : "worse"}`);
  const left = [map.kept < map.count && `Of ${many(map.count, "document")} the first ${count(map.kept)} are listed by pair in this page.`, kept.length < items.length && `The texts of ${many(items.length - kept.length, "changed document")} are left out, to keep the page small.`].filter(Boolean);
  detail.replaceChildren(el("section", { class: "documents", "aria-label": "Documents that the pair changed" },
    heading, left.length ? el("p", { class: "note" }, left.join(" ")) : "",
    items.length ? "" : el("p", {}, "This pair changes no answer."),
    cards(kept, ({ row, before, after }) => card(data.pool[map.documents[row]], map.languages, [
      { label: "Untouched model", answer: map.vanilla.answers?.[row], score: before, binary, higher: map.higher },
      { label: `With ${component} ${part.source[cell]}>${part.target[cell]}`, answer: answer(row), score: after, binary, higher: map.higher },
    ], changeOf(before, after, binary, sign)))));
  detail.onkeydown = (event) => { if (event.key === "Escape") back(); };
  heading.focus();
}

parts.layers = () => {
  const maps = namedMaps();
  if (!maps.length) return [];
  const place = el("div");
  function draw(map) {
    const base = { name: "untouched model", value: map.vanilla.score };
    place.replaceChildren(...Object.entries(map.components).flatMap(([component, part]) => {
      const figures = ["source", "target"].flatMap((side) => {
        const curve = part.curves[side];
        const title = `${component}, by the layer ${side === "source" ? "read" : "written"}`;
        return [
          // Of a grid with some pairs only, a single layer makes no curve.
          ...(curve.mean.filter(known).length < 2 ? [] : [lines({ title: `${title}: ${map.metric}`, xs: curve.layer, xLabel: side === "source" ? "layer read" : "layer written", yLabel: map.metric, base, series: [
            { name: "mean of its pairs, 95 %", values: curve.mean, low: curve.mean_low, high: curve.mean_high },
            { name: "best of its pairs", values: curve.best },
            { name: "any of its pairs (oracle)", values: curve.union },
            { name: "as many guesses", values: curve.chance },
          ] }),
          lines({ title: `${title}: change of the right choice\u2019s log-probability`, xs: curve.layer, xLabel: side === "source" ? "layer read" : "layer written", yLabel: "nats", base: { name: "untouched model", value: 0 }, series: [{ name: "mean of its pairs", values: curve.logprob }] })]),
        ];
      });
      return [el("h3", {}, `${titleOf(map)}, ${many(map.count, "document")}: ${component}`),
        figures.length ? el("div", { class: "plots" }, figures) : el("p", { class: "note" }, "No side of this grid has two layers with pairs that were looked at on all documents, so there is no curve.")];
    }));
  }
  const chosen = facets(maps, MAP_FACETS, draw);
  draw(chosen.first);
  return [chosen.bar, place];
};

const cellsShown = (cells) => (!cells || !cells.length ? "none: the untouched model" : cells.slice(0, 4).map(([component, source, target]) => `${component} ${source}>${target}`).join(", ") + (cells.length > 4 ? `, \u2026 (${cells.length})` : ""));

parts.selection = () => {
  const used = (row) => row.reason || (row.cells ? cellsShown(row.cells) : known(row.number) ? many(row.number, "pair") : null);
  const found = [];
  if (data.selections.length) {
    found.push(table({ caption: "What was chosen, and on what", rows: data.selections, columns: [
      { head: "Strategy", rowHead: true, value: (row) => row.strategy, show: (row) => [row.strategy, row.pooled && chip("one for all pairs")] },
      { head: "Model and task", value: (row) => `${row.model}, ${row.task}` },
      { head: "Language pairs", value: (row) => row.pairs.join(", ") },
      { head: "Pairs of layers", value: (row) => cellsShown(row.cells) },
      { head: "Documents", num: true, value: (row) => row.documents, show: (row) => count(row.documents) },
      { head: "Score there", num: true, value: (row) => row.score, show: (row) => [number(row.score), known(row.score) && el("span", { class: "sub" }, "optimistic")] },
      { head: "Untouched", num: true, value: (row) => row.vanilla, show: (row) => number(row.vanilla) },
    ] }).node);
    found.push(el("details", {}, el("summary", {}, "The commands"), unique(data.selections.map((each) => each.command)).map(command)));
  }
  for (const each of data.strategies) {
    found.push(table({ caption: `${each.model}, ${each.task}, ${pairName(each.pair)}, ${each.split}: every strategy`, rows: each.rows, columns: [
      { head: "Strategy", rowHead: true, value: (row) => row.name, show: (row) => [row.name, chip(row.kind)] },
      unlike(each.rows) && documentsColumn,
      { head: each.metric, num: true, value: (row) => row.score, show: (row) => number(row.score) },
      { head: "Gain, 95 %", num: true, value: (row) => row.difference, show: differenceShown },
      { head: "p", num: true, value: (row) => row.p, show: (row) => chance(row.p) },
      { head: "On the sample", num: true, value: (row) => row.sample_score, show: (row) => number(row.sample_score) },
      { head: "Gap closed", num: true, value: (row) => row.gap_closed, show: (row) => (known(row.gap_closed) ? [percent(row.gap_closed), el("span", { class: "meter", "aria-hidden": "true" }, el("i", { vars: { "--share": Math.max(0, Math.min(1, row.gap_closed)) } })), known(row.gap_low) && el("span", { class: "sub" }, `${percent(row.gap_low)} to ${percent(row.gap_high)}`)] : "\u2013") },
      { head: "Pairs of layers", value: used, show: (row) => [used(row) ?? "\u2013",
        known(row.chance) && el("span", { class: "sub" }, `as many guesses: ${number(row.chance)}`), known(row.reference) && el("span", { class: "sub" }, `the real vectors there, on the same documents: ${number(row.reference)}, better by ${signed(row.above)} (${between(row.above_low, row.above_high)})`)] },
    ].filter(Boolean) }).node);
  }
  if (data.selections.length && !data.strategies.length) {
    found.push(el("p", { class: "absent" }, "How much of the gap each strategy closes: ", el("code", {}, "xtransplant strategies 'grid=outputs/grid/*-sample-*' 'unseen=outputs/grid/*-unseen-*'"), ", which needs an unseen grid too."));
  }
  return found;
};

parts.training = () => data.training.map((each) => {
  const steps = unique(each.curve.map((line) => line[0])).sort((a, b) => a - b);
  const values = (place) => { const of = new Map(each.curve.filter((line) => known(line[place])).map((line) => [line[0], line[place]])); return steps.map((step) => of.get(step) ?? null); };
  const what = [each.method, each.trained && `in ${each.trained.map((code) => languageOf(code).name).join(", ")}`, known(each.steps) && many(each.steps, "step")].filter(Boolean).join(", ");
  return [el("h3", {}, each.name), el("p", { class: "note" }, what), el("div", { class: "plots" },
    lines({ title: "Loss", xs: steps, xLabel: "step", yLabel: "loss", joined: true, series: [{ name: "training", values: values(1) }, { name: "held-out documents", values: values(2) }] }),
    lines({ title: "Learning rate", xs: steps, xLabel: "step", yLabel: "rate", digits: 7, series: [{ name: "learning rate", values: values(3) }] }))];
});

parts.flips = () => {
  const sets = data.sets.filter((set) => set.columns.length > 1);
  if (!sets.length) return [];
  const place = el("div");
  const setName = (set) => `${set.task}, ${pairName(set.pair)}, ${set.split}`;
  const state = { set: 0, from: 0, to: 1, what: "changed", words: "" };
  const KEPT = { changed: "all that changed", up: "wrong \u2192 right", down: "right \u2192 wrong", neither: "wrong in both", both: "right in both" };
  const list = el("div"), said = el("p", { class: "count", role: "status" }), four = el("div");
  function draw() {
    const set = sets[state.set], binary = isBinary(set.levels), sign = set.higher ? 1 : -1;
    const [a, b] = [set.columns[state.from], set.columns[state.to]];
    const rows = [...Array(set.count).keys()].map((row) => ({ row, before: levelOf(set.levels, a.scores[row]), after: levelOf(set.levels, b.scores[row]) }));
    const good = (value) => value === (set.higher ? 1 : 0);
    const tests = {
      changed: (each) => each.before !== each.after, up: (each) => sign * (each.after - each.before) > 0, down: (each) => sign * (each.after - each.before) < 0,
      neither: (each) => !good(each.before) && !good(each.after), both: (each) => good(each.before) && good(each.after),
    };
    const words = folded(state.words).split(/\s+/).filter(Boolean);
    const chosen = rows.filter(tests[state.what]);
    const kept = chosen.filter((each) => set.documents[each.row] >= 0).filter((each) => {
      if (!words.length) return true;
      const asked = data.pool[set.documents[each.row]];
      const line = folded([asked.key, text(asked.source), text(asked.target), text(asked.gold), ...asked.choices.map(text), answerOf(asked, a.answers[each.row]), answerOf(asked, b.answers[each.row])].join("\n"));
      return words.every((word) => line.includes(word));
    });
    kept.sort((one, other) => sign * ((other.after - other.before) - (one.after - one.before)));
    const absent = chosen.filter((each) => set.documents[each.row] < 0).length;
    said.textContent = `${many(kept.length, "document")}${words.length ? " with these words" : ""} of ${count(set.count)}${absent ? `; the texts of ${count(absent)} more are left out, to keep the page small` : ""}`;
    const number4 = (name) => rows.filter(tests[name]).length;
    four.replaceChildren(binary ? scroller("Answers of both", el("table", { class: "data" },
      el("caption", {}, `${many(set.count, "document")}: ${a.label} ${number(a.score)}, ${b.label} ${number(b.score)}`),
      el("thead", {}, el("tr", {}, el("td"), el("th", { scope: "col", class: "num" }, `${b.label}: right`), el("th", { scope: "col", class: "num" }, `${b.label}: wrong`))),
      el("tbody", {}, el("tr", {}, el("th", { scope: "row" }, `${a.label}: right`), el("td", { class: "num" }, count(number4("both"))), el("td", { class: "num worse" }, `\u25bc ${number4("down")}`)),
        el("tr", {}, el("th", { scope: "row" }, `${a.label}: wrong`), el("td", { class: "num better" }, `\u25b2 ${number4("up")}`), el("td", { class: "num" }, count(number4("neither"))))))) : "");
    list.replaceChildren(...cards(kept, ({ row, before, after }) => card(data.pool[set.documents[row]], set.languages, [
      { label: a.label, answer: a.answers[row], score: before, binary, higher: set.higher }, { label: b.label, answer: b.answers[row], score: after, binary, higher: set.higher },
    ], before === after ? ["chance", state.what === "both" ? "= right in both" : "= wrong in both"] : changeOf(before, after, binary, sign))));
  }
  function bar(focused) {
    const set = sets[state.set];
    const columns = set.columns.map((column, index) => [String(index), column.label]);
    const to = (name) => (value) => { state[name] = Number(value); draw(); };
    const binary = isBinary(set.levels);
    const kinds = Object.entries(KEPT).filter(([name]) => binary || !["neither", "both"].includes(name)).map(([name, label]) => [name, binary ? label : { up: "better", down: "worse" }[name] || label]);
    place.replaceChildren(
      sets.length > 1 ? choose("Documents", sets.map((each, index) => [String(index), setName(each)]), (value) => { Object.assign(state, { set: Number(value), from: 0, to: 1, what: "changed" }); bar(true); draw(); }, String(state.set)) : "",
      choose("From", columns, to("from"), String(state.from)), choose("To", columns, to("to"), String(state.to)),
      choose("Shown", kinds, (value) => { state.what = value; draw(); }, state.what),
      search("Search prompts and answers", (value) => { state.words = value; draw(); }), said);
    if (focused) place.querySelector("select").focus();
  }
  place.className = "controls";
  bar(false);
  draw();
  return [place, four, list];
};

parts.resources = () => {
  const rows = data.records.filter((record) => record.pair && known(record.difference) && !ORACLES.includes(record.kind));
  if (!rows.length) return [];
  const name = (record) => `${record.model}, ${record.task}, ${record.split}: ${record.condition}`;
  const names = unique(rows.map(name));
  // Most is to be seen where there are most languages.
  let chosen = names.reduce((best, each) => (rows.filter((row) => name(row) === each).length > rows.filter((row) => name(row) === best).length ? each : best));
  const tokensOf = (row) => data.tokens.find((each) => each.model === row.model && each.task === row.task && each.pair === codesOf(row.pair).join("-"));
  // The language that is not English says more of the pair; of two others, the one that is answered.
  const languageFor = (row) => { const [source, target] = codesOf(row.pair); return languageOf(target === "en" ? source : target); };
  const fertility = (row) => { const found = tokensOf(row); const target = languageOf(codesOf(row.pair).at(-1)); return found && target.spaced ? found.tokens / found.words : null; };
  const premium = (row) => { const found = tokensOf(row); return found ? found.tokens / found.source : null; };
  const axis = {
    resources: ["Resource class (0 hardly any data, 5 most)", (row) => languageFor(row).resources],
    fertility: ["Tokens per word of the asked prompts", fertility],
    premium: ["Tokens of the asked prompts per token of the parallel ones", premium],
  };
  let by = "resources";
  const place = el("div");
  function draw() {
    const own = rows.filter((row) => name(row) === chosen);
    const [label, value] = axis[by];
    const points = own.filter((row) => known(value(row)));
    let figure = el("p", { class: "absent" }, by === "resources" ? "None of these languages is in the table of classes." : "Not measured: the model\u2019s tokenizer was not on the machine that wrote this page, or the language has no spaces between words.");
    if (points.length) {
      const plot = axes({ xs: by === "resources" ? [0, 5] : points.map(value), ys: points.flatMap((row) => [row.low ?? row.difference, row.high ?? row.difference, 0]), xLabel: label, yLabel: `difference in ${own[0].metric}`, title: `${chosen}: difference by ${label}`, xTicks: by === "resources" ? [0, 1, 2, 3, 4, 5] : null });
      plot.picture.append(svg("line", { class: "base", x1: plot.left, x2: plot.right, y1: plot.y(0), y2: plot.y(0) }));
      const places = new Map();
      for (const row of points) {
        const at = value(row), beside = places.get(at) ?? 0;
        places.set(at, beside + 1);
        const x = plot.x(at) + beside * 11;
        if (known(row.low)) plot.picture.append(svg("line", { class: "whisker", x1: x, x2: x, y1: plot.y(row.low), y2: plot.y(row.high) }));
        plot.picture.append(svg("circle", { class: "dot", cx: x, cy: plot.y(row.difference), r: 4.5 }, svg("title", {}, `${pairName(row.pair)}: ${signed(row.difference)}`)),
          svg("text", { class: "label", x: x + 6, y: plot.y(row.difference) - 5 }, languageFor(row).code));
      }
      figure = el("figure", {}, plot.picture);
    }
    const columns = [
      { head: "Language", rowHead: true, value: (row) => languageFor(row).name, show: (row) => [languageFor(row).name, el("span", { class: "sub" }, el("bdi", { lang: languageFor(row).code }, languageFor(row).own_name))] },
      { head: "Pair", value: (row) => row.pair },
      unlike(own) && documentsColumn,
      { head: "Class", num: true, value: (row) => languageFor(row).resources, show: (row) => (known(languageFor(row).resources) ? String(languageFor(row).resources) : "\u2013") },
      { head: "Script", value: (row) => languageFor(row).script || null, show: (row) => [languageFor(row).script || "\u2013", languageFor(row).right_to_left && el("span", { class: "sub" }, "right to left")] },
      { head: "Tokens per word", num: true, value: fertility, show: (row) => (tokensOf(row) && !languageOf(codesOf(row.pair).at(-1)).spaced ? "no spaces" : number(fertility(row), 2)) },
      { head: "Per source token", num: true, value: premium, show: (row) => number(premium(row), 2) },
      { head: "Untouched", num: true, value: (row) => row.vanilla ?? row.baseline, show: (row) => number(row.vanilla ?? row.baseline) },
      { head: "Difference, 95 %", num: true, value: (row) => row.difference, show: differenceShown },
      { head: "In words", value: (row) => verdict(row)[2], show: verdictShown },
    ].filter(Boolean);
    place.replaceChildren(el("div", { class: "single" }, figure), table({ caption: chosen, columns, rows: own }).node);
  }
  const bar = el("div", { class: "controls" },
    choose("Condition", names.map((each) => [each, each]), (value) => { chosen = value; draw(); }, chosen),
    choose("Against", Object.entries(axis).map(([key, [label]]) => [key, label]), (value) => { by = value; draw(); }, by));
  draw();
  return [bar, place, el("p", { class: "note" }, "Sources. Class: Joshi et al. (2020), The State and Fate of Linguistic Diversity and Inclusion in the NLP World. Script and direction: Unicode CLDR, from Babel. Tokens: of this model\u2019s tokenizer, on the prompts of these runs, the parallel prompts being those of the source language.")];
};

parts.cost = () => {
  if (!data.runs.length) return [];
  const sums = new Map();
  for (const run of data.runs) {
    const what = run.job === "grid" ? `layer pairs${run.control ? `, control ${run.control}` : ""}` : run.job === "sft" ? `training${run.trained ? ` (${run.trained.join(", ")})` : ""}` : conditionOf(run);
    const key = JSON.stringify([run.job, run.model, run.task, run.split, what]);
    if (!sums.has(key)) sums.set(key, { job: run.job, model: run.model, task: run.task, split: run.split, what, runs: 0, documents: 0, seconds: 0, tokens: 0, flops: 0 });
    const group = sums.get(key);
    group.runs += 1;
    group.documents += run.documents || 0;
    // A sum with something unknown in it is not known.
    for (const name of ["seconds", "tokens", "flops"]) group[name] = known(group[name]) && known(run.cost[name]) ? group[name] + run.cost[name] : null;
  }
  const rows = [...sums.values()];
  const most = Math.max(...rows.map((row) => row.seconds ?? 0)) || 1;
  const made = [table({ caption: "Runs, summed over language pairs", rows, sorted: 6, descending: true, columns: [
    { head: "What", rowHead: true, value: (row) => row.what, show: (row) => [row.what, chip(row.job)] },
    { head: "Model, task", value: (row) => `${row.model ?? ""}${row.task ? `, ${row.task}` : ""}${row.split ? `, ${row.split}` : ""}` },
    { head: "Runs", num: true, value: (row) => row.runs },
    { head: "Documents", num: true, value: (row) => row.documents || null, show: (row) => (row.documents ? count(row.documents) : "\u2013") },
    { head: "Time", num: true, value: (row) => row.seconds, show: (row) => [duration(row.seconds), known(row.seconds) && el("span", { class: "meter", "aria-hidden": "true" }, el("i", { vars: { "--share": row.seconds / most } }))] },
    { head: "Tokens", num: true, value: (row) => row.tokens, show: (row) => large(row.tokens) },
    { head: "Floating-point operations", num: true, value: (row) => row.flops, show: (row) => large(row.flops) },
  ] }).node];
  const priced = groups.flatMap(summaryOf).filter((record) => (known(record.price_flops) || known(record.price_seconds)));
  if (priced.length) {
    made.push(table({ caption: "What a point gained (0.01) costs beyond the baseline, with training or selection", rows: priced, columns: [
      { head: "Condition", rowHead: true, value: (row) => row.condition, show: (row) => [row.condition, kindShown(row)] },
      { head: "Model, task", value: (row) => `${row.model}, ${row.task}, ${row.split}` },
      unlike(priced) && documentsColumn,
      { head: "Difference, 95 %", num: true, value: (row) => row.difference, show: differenceShown },
      { head: "Time", num: true, value: (row) => row.price_seconds, show: (row) => duration(row.price_seconds) },
      { head: "Floating-point operations", num: true, value: (row) => row.price_flops, show: (row) => large(row.price_flops) },
      { head: "In words", value: (row) => verdict(row)[2], show: verdictShown },
    ].filter(Boolean) }).node);
  }
  return made;
};

const TRANSLATED = {
  machine: ["\u26a0", "machine-translated"], both: ["\u26a0", "partly machine-translated, or by a machine and then mended by people"],
  people: ["", "translated by people"], original: ["", "not translated: made in each language"],
};
parts.data = () => (data.tasks.length ? [table({ caption: "Task families", rows: data.tasks, columns: [
  { head: "Task", rowHead: true, value: (row) => row.name },
  { head: "What it is", value: (row) => row.about || null },
  { head: "Translation", value: (row) => (TRANSLATED[row.translated] || ["", "not known"])[1], show: (row) => { const [mark, words] = TRANSLATED[row.translated] || ["?", "not known to xtransplant"]; return el("span", { class: ["machine", "both"].includes(row.translated) ? "worse" : "" }, mark && el("span", { "aria-hidden": "true" }, `${mark} `), words); } },
  { head: "Documents a language", num: true, value: (row) => row.documents },
] }).node] : []);

function command(line) {
  const button = el("button", { type: "button", on: { click: async () => {
    try { await navigator.clipboard.writeText(line); button.textContent = "Copied"; } catch { button.textContent = "Select it to copy"; }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  } } }, "Copy");
  return el("div", { class: "command" }, el("pre", { tabindex: "0", "aria-label": "Command" }, line), button);
}
const listed = (values) => (values ? Object.entries(values).map(([name, value]) => `${name} ${value && value.slice && value.length > 20 ? value.slice(0, 12) : value}`).join(", ") : "\u2013");

parts.asked = () => {
  if (!data.runs.length) return [];
  const state = { words: "" };
  const list = el("div"), said = el("p", { class: "count", role: "status" });
  function one(run) {
    const name = [run.job, run.model, run.task, run.pair, run.split, run.job === "grid" ? run.control && `control ${run.control}` : run.job === "evaluate" && conditionOf(run)].filter(Boolean).join(" \u00b7 ");
    const node = el("details", { class: "run" }, el("summary", {}, name, " ", el("code", {}, run.hash || "")));
    node.addEventListener("toggle", () => {
      if (node.children.length > 1) return;
      const environment = data.environments[run.environment] || {};
      const git = environment.git;
      const weights = run.weights;
      const rows = [
        ["folder", run.folder], ["hash of the config", run.hash], ["seed", run.seed], ["documents", count(run.documents)],
        ["commit", git ? `${git.commit}${git.changed ? ", with changes" : ""}` : "not from a checkout"],
        ["versions", `Python ${environment.python ?? "?"}, ${listed(environment.versions)}`], ["platform", environment.platform],
        ["model", [weights.path, weights.revision, weights.dtype, weights.device, known(weights.parameters) && many(weights.parameters, "parameter"), weights.licence].filter(Boolean).join(", ")],
        ["model\u2019s files, sha256", listed(weights.files)], ["adapter\u2019s files", weights.adapter && listed(weights.adapter)],
        ["checks", run.checks && listed(run.checks)],
        ...Object.entries(run.tasks).map(([task, each]) => [`task ${task}`, `version ${each.version}, ${many(each.documents ?? 0, "document")}, prompts ${listed(each.prompts_sha256)}, keys ${String(each.keys_sha256).slice(0, 12)}`]),
      ].filter(([, value]) => known(value) && value !== false && value !== "");
      node.append(command(run.command), el("dl", {}, rows.map(([term, value]) => [el("dt", {}, term), el("dd", {}, String(value))])),
        el("details", {}, el("summary", {}, "Resolved config"), el("pre", { tabindex: "0", "aria-label": "Resolved config" }, run.config)));
    });
    return node;
  }
  function draw() {
    const words = folded(state.words).split(/\s+/).filter(Boolean);
    const some = data.runs.filter((run) => words.every((word) => folded(`${run.folder} ${run.command}`).includes(word)));
    said.textContent = words.length ? `${count(some.length)} of ${many(data.runs.length, "run")}` : many(data.runs.length, "run");
    list.replaceChildren(...some.map(one));
  }
  draw();
  const versions = (name) => unique(data.environments.map((each) => each.versions && each.versions[name]).filter(Boolean));
  const commits = unique(data.environments.map((each) => each.git && each.git.commit.slice(0, 10) + (each.git.changed ? " with changes" : "")).filter(Boolean));
  const made = [...["xtransplant", "lm_eval", "torch", "transformers"].filter((name) => versions(name).length).map((name) => `${name.replace("_", "-")} ${versions(name).join(" and ")}`), commits.length && `commit ${commits.join(" and ")}`].filter(Boolean);
  return [made.length > 0 && el("p", { class: "note" }, `Made with ${made.join(", ")}.`), el("div", { class: "controls" }, search("Search runs", (value) => { state.words = value; draw(); }), said), list];
};

// --- The page --------------------------------------------------------------------------------------------------------

/** What was found, in sentences: the untouched model, how many conditions are beyond chance, and the best of them. */
function findings(group) {
  const records = summaryOf(group);
  const bases = records.filter((record) => record.kind === "vanilla"), tested = records.filter(isTested);
  if (!bases.length || !tested.length) return [];
  const words = { "could be chance": "which could be chance", "better, beyond chance": "better than chance explains", "worse, beyond chance": "worse than chance explains" };
  const said = (record) => {
    const cost = timesUntouched(record, group);
    const takes = known(cost) ? ` It takes ${number(cost, 1)} times the untouched model\u2019s operations${record.training_flops > 0 ? `, and ${large(record.training_flops)} before, to train or to choose it` : ""}.` : "";
    // Of some of the documents above the untouched model has another score.
    const some = partial(record, group) || record.documents !== bases[0].documents;
    return `${record.condition}${some ? ` (${share(record, group)}, ${many(record.documents, "document")}; untouched ${number(record.vanilla)})` : ""} scores ${number(record.score)}: ${signed(record.difference)}${known(record.low) ? ` (95\u00a0%: ${between(record.low, record.high)})` : ""}, ${words[verdict(record)[2]] || verdict(record)[2]}.${takes}`;
  };
  const [base] = bases;
  const head = `On ${base.task}${base.split === "all" ? "" : ` (${base.split} half)`}, ${over(base)}, ${base.model} scores ${number(base.score)} untouched.`;
  if (tested.length < 3) return [head, ...tested.map(said)];
  const outcomes = unique(tested.map((record) => verdict(record)[2])).map((each) => `${count(tested.filter((record) => verdict(record)[2] === each).length)} ${each}`).sort();
  const gain = (record) => (record.higher_is_better === false ? -1 : 1) * record.difference;
  const best = tested.reduce((top, record) => (gain(record) > gain(top) ? record : top));
  return [head, `${many(tested.length, "condition")} beside it: ${outcomes.join("; ")}.`, `The best of them, which being picked flatters: ${said(best)}`];
}

function lead() {
  const sentences = groups.map(findings).filter((some) => some.length).slice(0, 2).flat();
  const values = (name) => unique(data.runs.map((run) => run[name]).filter(known));
  const few = (list) => (list.length > 4 ? `${list.slice(0, 4).join(", ")} and ${list.length - 4} more` : list.join(", ")) || "\u2013";
  const facts = [
    ["Models", few(values("model"))], ["Tasks", few(values("task"))], ["Language pairs", few(values("pair"))], ["Runs", count(data.runs.length)],
  ];
  document.getElementById("lead").append(
    el("p", { class: "lead" }, sentences.join(" ") || "Nothing here was tested against the untouched model on the same documents. What an oracle over a grid reaches was chosen on these very documents: no result, but a bound."),
    el("dl", { class: "facts" }, facts.map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value)))));
}

function theme() {
  const button = document.getElementById("theme");
  const words = { auto: "Colours: system", light: "Colours: light", dark: "Colours: dark" };
  const order = Object.keys(words);
  let chosen = "auto";
  // A page opened from a file may have no storage.
  try { chosen = words[localStorage.getItem("xtransplant-theme")] ? localStorage.getItem("xtransplant-theme") : "auto"; } catch { /* as the system */ }
  function apply() {
    if (chosen === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = chosen;
    button.textContent = words[chosen];
  }
  button.addEventListener("click", () => {
    chosen = order[(order.indexOf(chosen) + 1) % order.length];
    try { localStorage.setItem("xtransplant-theme", chosen); } catch { /* for this visit only */ }
    apply();
  });
  apply();
}

theme();
lead();
const contents = document.getElementById("contents");
for (const [name, make] of Object.entries(parts)) {
  const section = document.getElementById(name);
  const made = make().flat(3).filter((each) => known(each) && each !== false && each !== "");
  section.querySelector("[data-part]").append(...made);
  section.querySelector(":scope > .absent").hidden = made.length > 0;
  if (!made.length) section.querySelector(".note")?.remove();
  contents.append(el("li", {}, el("a", { href: `#${name}`, class: !made.length && "empty" }, section.querySelector("h2").textContent, !made.length && hidden(" (nothing here)"))));
}
document.getElementById("footer").textContent = `Written by xtransplant ${data.version} from ${many(data.runs.length, "run")}. Nothing is fetched and nothing leaves this page. To stay small it keeps ${many(data.pool.length, "document")}, each text to ${count(data.longest)} characters; scores and counts are of all documents.`;
})();
