/* The comparison: quantities by architecture, releases side by side. */
"use strict";

const Compare = {
  archs: new Set(),
  text: "",
  from: 0,
  to: 0,
  differs: false,
  panels: [],
};

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
        return { value: value(row), expected, note: row.note };
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
    const last = runs[runs.length - 1];
    if (last && sign(last.cell) === sign(cells[n])) last.last = n;
    else runs.push({ first: n, last: n, cell: cells[n] });
  }
  return runs;
}

function rowDiffers(row, rows, from, to) {
  const said = (one) => one.cells.slice(from, to + 1).map((cell) => cell.value);
  const values = new Set(
    rows
      .filter((one) => one.quantity === row.quantity)
      .flatMap(said)
      .filter((value) => value !== undefined),
  );
  return values.size > 1;
}

function rowMatches(row, words) {
  const { scenario } = row;
  const texts = [scenario.name, scenario.title, ...scenario.tags, row.quantity, row.arch];
  row.cells.slice(Compare.from, Compare.to + 1).forEach((cell) => {
    if (cell.value !== undefined) texts.push(showValue(cell.value));
  });
  const all = texts.join("\n").toLowerCase();
  return words.every((word) => all.includes(word));
}

function span(first, last) {
  const names = DATA.releases;
  return first === last ? names[first] : `${names[first]} to ${names[last]}`;
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
  const command = `kvmarch compare ${row.scenario.name} -a ${row.arch} -k ${kernel}`;
  parts.push(make("code", { class: "command" }, command), " ");
  const inside = DATA.releases.slice(run.first, run.last + 1);
  const trace = DATA.traces.findLastIndex(
    (one) =>
      one.scenario === row.scenario.name && one.arch === row.arch && inside.includes(one.kernel),
  );
  if (trace >= 0) {
    const text = `Play on ${DATA.traces[trace].kernel}`;
    parts.push(make("button", { type: "button", onclick: () => Player.open(trace, 0, true) }, text));
  }
  return parts;
}

function compareCell(row, run, detail) {
  const { cell } = run;
  const colspan = run.last - run.first + 1;
  if (cell.none !== undefined) {
    return [make("td", { colspan, class: "none", title: cell.none }, cell.none || "–"), null];
  }
  const failed = cell.expected.some(([, , met]) => !met);
  const mark = failed ? "failed" : cell.expected.length ? "met" : "";
  const said = mark === "met" ? ", as expected" : failed ? ", not as expected" : "";
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
  return [make("td", { colspan, class: failed ? "failed" : null }, button), button];
}

function compareTable(scenario, rows) {
  const detail = make("p", { class: "detail", "aria-live": "polite" }, "Choose a value to see more of it.");
  const releases = DATA.releases.slice(Compare.from, Compare.to + 1);
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
      const made = runsOf(row.cells, Compare.from, Compare.to).map((run) => compareCell(row, run, detail));
      buttons.push(made.map(([, button]) => button).filter(Boolean));
      const name = quantity.replaceAll("_", "_\u200b");
      return make(
        "tr",
        {},
        n ? null : make("th", { scope: "rowgroup", rowspan: mine.length, class: "quantity" }, name),
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
  roving(table, buttons.filter((row) => row.length), (button) => Number(button.dataset.first));
  const region = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Table of ${scenario.name}` }, table);
  return make("div", {}, region, detail);
}

function scenarioText(scenario) {
  const tasks = scenario.tasks.map(([name, lines]) =>
    make("div", {}, make("b", {}, name), make("pre", {}, lines.join("\n"))),
  );
  if (scenario.setup.length) {
    tasks.unshift(make("div", {}, make("b", {}, "before"), make("pre", {}, scenario.setup.join("\n"))));
  }
  return make(
    "details",
    { class: "steps" },
    make("summary", {}, "Steps and source"),
    make("p", { class: "source" }, scenario.source),
    make("div", { class: "tasks" }, tasks),
  );
}

/** A part that opens: its inside is made when it is first wanted. */
function panel(scenario, extra, fill) {
  const body = make("div", { class: "body" });
  const summary = make("summary", {}, make("h3", {}, scenario.name), make("span", { class: "title" }, scenario.title), extra);
  const details = make("details", { class: "panel" }, summary, body);
  const one = { details, stale: true, changed: true, made: [], scenario };
  one.draw = () => {
    if (!one.stale) return;
    body.replaceChildren(...fill());
    one.stale = false;
  };
  /** Open or close it; "toggle" comes a task later, and a reader must not see it empty. */
  one.open = (open) => {
    if (open) one.draw();
    details.open = open;
  };
  /** Hear what the inside is made of; it is made again only if that is something else. */
  one.keep = (made) => {
    one.changed = made.length !== one.made.length || made.some((part, n) => part !== one.made[n]);
    one.made = made;
  };
  details.addEventListener("toggle", () => details.open && one.draw());
  Compare.panels.push(one);
  return one;
}

function startCompare() {
  const list = byId("compare-list");
  for (const scenario of DATA.scenarios.filter((one) => one.comparison)) {
    const every = compareRows(scenario);
    const failed = every.some((row) => row.cells.some((cell) => (cell.expected || []).some(([, , met]) => !met)));
    const note = failed ? make("span", { class: "badge failed" }, "an expectation fails") : null;
    let rows = every;
    const one = panel(scenario, note, () => [compareTable(scenario, rows), scenarioText(scenario)]);
    one.filter = (words) => {
      const filtered = every.filter(
        (row) =>
          Compare.archs.has(row.arch) &&
          rowMatches(row, words) &&
          (!Compare.differs || rowDiffers(row, every.filter((o) => Compare.archs.has(o.arch)), Compare.from, Compare.to)),
      );
      one.keep([...filtered, span(Compare.from, Compare.to)]);
      rows = filtered;
      return rows.length;
    };
    list.append(one.details);
  }
  if (!list.children.length) list.append(make("p", { class: "empty" }, "None of the chosen scenarios has something to compare."));
}

/** Show what the filter lets through, and say how much it is. */
function applyFilter() {
  const words = Compare.text.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  let scenarios = 0;
  for (const one of Compare.panels) {
    const count = one.filter(words);
    one.details.hidden = !count;
    one.stale ||= one.changed;
    if (one.details.open && count) one.draw();
    shown += count;
    scenarios += count ? 1 : 0;
  }
  byId("filter-count").textContent = `${plural(shown, "row")} of ${plural(scenarios, "scenario")}`;
}

function startFilter() {
  Compare.archs = new Set(DATA.archs.map((arch) => arch.name));
  Compare.to = DATA.releases.length - 1;
  for (const arch of DATA.archs) {
    const box = make("input", { type: "checkbox", checked: true, value: arch.name });
    box.addEventListener("change", () => {
      Compare.archs[box.checked ? "add" : "delete"](arch.name);
      applyFilter();
    });
    byId("filter-archs").append(make("label", { class: "check", title: arch.title }, box, ` ${arch.name}`));
  }
  const options = DATA.releases.map((name, n) => [n, name]);
  fillSelect(byId("filter-from"), [["", options]], 0);
  fillSelect(byId("filter-to"), [["", options]], Compare.to);
  const range = (moved) => {
    Compare.from = Number(byId("filter-from").value);
    Compare.to = Number(byId("filter-to").value);
    if (Compare.from > Compare.to) {
      if (moved === "from") Compare.to = Compare.from;
      else Compare.from = Compare.to;
      byId("filter-from").value = Compare.from;
      byId("filter-to").value = Compare.to;
    }
    applyFilter();
  };
  byId("filter-from").addEventListener("change", () => range("from"));
  byId("filter-to").addEventListener("change", () => range("to"));
  byId("filter-text").addEventListener("input", (event) => {
    Compare.text = event.target.value;
    applyFilter();
  });
  byId("filter-differs").addEventListener("change", (event) => {
    Compare.differs = event.target.checked;
    applyFilter();
  });
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
  const all = (open) => () => Compare.panels.forEach((one) => one.open(open && !one.details.hidden));
  byId("open-all").addEventListener("click", all(true));
  byId("close-all").addEventListener("click", all(false));
}
