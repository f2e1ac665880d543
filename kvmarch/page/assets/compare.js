/* The comparison: quantities by architecture, releases side by side. */

import { DATA, byId, machineOptions, make, roving, scrolling, soft } from "./base.js";
import { Filter, panel, sayIfEmpty, scenarioText, span } from "./filter.js";
import { play } from "./player.js";

/** The rows of one scenario: one per quantity and architecture, with all releases. */
function compareRows(scenario) {
  const { columns, rows } = scenario.comparison;
  const found = [];
  const quantities = [["mmu", (row) => row.mmu, -1]].concat(
    columns.map((name, n) => [name, (row) => row.values && row.values[n], n]),
  );
  for (const [quantity, value, number] of quantities) {
    for (const { name } of DATA.archs) {
      const mine = rows.filter((row) => row.arch === name);
      if (!mine.length) continue;
      const cells = DATA.releases.map((release) => {
        const row = mine.find((one) => one.kernel === release);
        if (!row || row.mmu === null) return { none: row ? row.note : "" };
        const expected = row.expected.filter(([column]) => column === number);
        return { value: value(row), expected, note: row.note, machine: row.machine };
      });
      found.push({ quantity, arch: name, cells, scenario });
    }
  }
  return found;
}

function showValue(value) {
  if (value === true) return "yes";
  if (value === false) return "no";
  return value === null ? "–" : String(value);
}

/** Neighbours that say the same become one run: {first, last, cell}. */
function runsOf(cells, from, to) {
  const runs = [];
  const sign = (cell) =>
    JSON.stringify([cell.none, cell.value, cell.expected && cell.expected.map((e) => e.slice(1))]);
  for (let n = from; n <= to; n++) {
    const last = runs.at(-1);
    if (last && sign(last.cell) === sign(cells[n])) last.last = n;
    else runs.push({ first: n, last: n, cell: cells[n] });
  }
  return runs;
}

/** Whether a quantity has several values, among these rows and the releases that are seen. */
function quantityDiffers(quantity, rows) {
  const values = rows
    .filter((row) => row.quantity === quantity)
    .flatMap((row) => row.cells.slice(Filter.from, Filter.to + 1))
    .map((cell) => cell.value)
    .filter((value) => value !== undefined);
  return new Set(values).size > 1;
}

function rowMatches(row, words) {
  const { scenario } = row;
  const texts = [scenario.name, scenario.title, ...scenario.tags, row.quantity, row.arch];
  row.cells.slice(Filter.from, Filter.to + 1).forEach((cell) => {
    if (cell.value !== undefined) texts.push(showValue(cell.value));
  });
  const all = texts.join("\n").toLowerCase();
  return words.every((word) => all.includes(word));
}

/** What is to be said of a cell, in sentences, with the way to see it. */
function cellDetail(row, run) {
  const { cell } = run;
  const where = `${row.arch}, ${span(run.first, run.last)}`;
  const parts = [make("b", {}, row.quantity), ` on ${where}: `];
  parts.push(make("code", {}, showValue(cell.value) || "nothing"), ". ");
  for (const [, value, met, because] of cell.expected) {
    parts.push(met ? "As expected" : `Expected ${showValue(value)}: failed`);
    parts.push(because ? ` (${because}). ` : ". ");
  }
  if (cell.note) parts.push(`${cell.note}. `);
  const kernel = DATA.releases[run.last];
  const options = machineOptions({ arch: row.arch, kernel, machine: cell.machine });
  const command = ["kvmarch compare", row.scenario.name, ...options].join(" ");
  parts.push(make("code", { class: "command" }, command), " ");
  const inside = new Set(DATA.releases.slice(run.first, run.last + 1));
  const trace = DATA.traces.findLastIndex(
    (one) => one.scenario === row.scenario.name && one.arch === row.arch && inside.has(one.kernel),
  );
  if (trace >= 0) {
    const text = `Play on ${DATA.traces[trace].kernel}`;
    parts.push(make("button", { type: "button", onclick: () => play(trace, 0) }, text));
  }
  return parts;
}

/** Whether a cell says what is expected: the class of its mark, and words for it. */
function markOf(expected) {
  if (!expected.length) return ["", ""];
  return expected.every(([, , met]) => met)
    ? ["met", ", as expected"]
    : ["failed", ", not as expected"];
}

function compareCell(row, run, detail) {
  const { cell } = run;
  const colspan = run.last - run.first + 1;
  if (cell.none !== undefined) {
    return [make("td", { colspan, class: "none", title: cell.none }, cell.none || "–"), null];
  }
  const [mark, said] = markOf(cell.expected);
  const text = showValue(cell.value);
  const button = make(
    "button",
    { type: "button", class: "value", title: text.length > 7 ? text : null },
    make("span", {}, text || "\u00a0"),
    text ? null : make("span", { class: "hidden" }, "nothing"),
    mark ? make("span", { class: `mark ${mark}` }, make("span", { class: "hidden" }, said)) : null,
  );
  button.dataset.first = run.first;
  const tell = () => detail.replaceChildren(...cellDetail(row, run));
  button.addEventListener("focus", tell);
  button.addEventListener("click", tell);
  return [make("td", { colspan, class: mark === "failed" ? "failed" : null }, button), button];
}

function compareTable(scenario, rows) {
  const detail = make(
    "p",
    { class: "detail", "aria-live": "polite" },
    "Choose a value to see more of it.",
  );
  const releases = DATA.releases.slice(Filter.from, Filter.to + 1);
  const head = make(
    "thead",
    {},
    make(
      "tr",
      {},
      make("th", { scope: "col", class: "quantity" }, "quantity"),
      make("th", { scope: "col", class: "arch" }, "arch"),
      releases.map((name) => make("th", { scope: "col" }, name)),
    ),
  );
  const buttons = [];
  const bodies = [];
  const quantities = [...new Set(rows.map((row) => row.quantity))];
  for (const quantity of quantities) {
    const mine = rows.filter((row) => row.quantity === quantity);
    const lines = mine.map((row, n) => {
      const made = runsOf(row.cells, Filter.from, Filter.to).map((run) =>
        compareCell(row, run, detail),
      );
      buttons.push(made.map(([, button]) => button).filter(Boolean));
      return make(
        "tr",
        {},
        n
          ? null
          : make(
              "th",
              { scope: "rowgroup", rowspan: mine.length, class: "quantity" },
              soft(quantity),
            ),
        make("th", { scope: "row", class: "arch" }, row.arch),
        made.map(([cell]) => cell),
      );
    });
    bodies.push(make("tbody", {}, lines));
  }
  const table = make(
    "table",
    { class: "compare" },
    make("caption", { class: "hidden" }, `${scenario.name}: ${scenario.title}`),
    head,
    bodies,
  );
  // It scrolls sideways only if its columns have no room.
  table.style.minWidth = `${14 + 3.2 * releases.length}rem`;
  roving(
    table,
    buttons.filter((row) => row.length),
    (button) => Number(button.dataset.first),
  );
  return make("div", {}, scrolling("", `Table of ${scenario.name}`, table), detail);
}

/** The part of one scenario, and its filter. */
function comparePanel(scenario) {
  const every = compareRows(scenario);
  const failed = every.some((row) =>
    row.cells.some((cell) => (cell.expected || []).some(([, , met]) => !met)),
  );
  const note = failed ? make("span", { class: "badge failed" }, "an expectation fails") : null;
  let rows = every;
  const one = panel(scenario, note, () => [compareTable(scenario, rows), scenarioText(scenario)]);
  one.filter = (words) => {
    const chosen = every.filter((row) => Filter.archs.has(row.arch));
    rows = chosen.filter(
      (row) => rowMatches(row, words) && (!Filter.differs || quantityDiffers(row.quantity, chosen)),
    );
    one.keep([...rows, span(Filter.from, Filter.to)]);
    return rows.length;
  };
  return one.details;
}

export function startCompare() {
  const list = byId("compare-list");
  list.append(...DATA.scenarios.filter((one) => one.comparison).map(comparePanel));
  sayIfEmpty(list, "None of the chosen scenarios has something to compare.");
}
