/* What the search of all interleavings says: kernels down, architectures across. */

import { DATA, byId, machineOptions, make, releaseOrder, roving, scrolling } from "./base.js";
import { Filter, panel, sayIfEmpty, scenarioText } from "./filter.js";
import { play } from "./player.js";

const SIGNS = { never: "○", sometimes: "◐", always: "●", unknown: "?" };

/** What is said of a kernel if it is not said of one property. */
const ALL = {
  never: ["nothing lost", "Nothing is lost"],
  unknown: ["nothing found, cut", "Nothing was found"],
};

/** The kernels of which something is said: release with changes and options. */
function kernelsOf(scenario) {
  const kernels = new Map();
  for (const cell of scenario.cells) {
    const { kernel, machine } = cell;
    const key = `${kernel} ${machine}`;
    if (!kernels.has(key)) kernels.set(key, { kernel, machine, cells: [] });
    kernels.get(key).cells.push(cell);
  }
  return [...kernels.values()].toSorted(
    (a, b) => releaseOrder(a.kernel) - releaseOrder(b.kernel) || a.machine.localeCompare(b.machine),
  );
}

function traceOf(cell, property) {
  return DATA.traces.findIndex(
    (one) =>
      one.scenario === cell.scenario &&
      one.arch === cell.arch &&
      one.kernel === cell.kernel &&
      one.machine === cell.machine &&
      one.property === property,
  );
}

/** Words for what was expected of a row; none if nothing was. */
function expectation(row) {
  if (!row.expected) return "";
  if (row.met === null) return `expected ${row.expected}, not decided`;
  return row.met ? "as expected" : `expected ${row.expected}`;
}

function verdictItem(cell, row, detail) {
  const whole = row.property === "all";
  const name = whole ? (ALL[row.verdict] || [row.verdict])[0] : row.property;
  const trace = whole ? -1 : traceOf(cell, row.property);
  const label = [
    whole ? name : `${name} lost ${row.verdict}`,
    row.steps ? `${row.steps} steps` : "",
    expectation(row),
  ];
  const button = make(
    "button",
    {
      type: "button",
      class: `verdict ${row.verdict}`,
      "aria-label": label.filter(Boolean).join(", ") + (trace >= 0 ? ": play" : ""),
    },
    make("span", { class: `sign ${row.verdict}` }, SIGNS[row.verdict] || ""),
    ` ${name}`,
    row.steps ? make("span", { class: "steps-of" }, ` ${row.steps}`) : null,
    row.expected && row.met !== null
      ? make("span", { class: `mark ${row.met ? "met" : "failed"}` })
      : null,
  );
  const tell = () => detail.replaceChildren(...verdictDetail(cell, row, trace));
  button.addEventListener("focus", tell);
  button.addEventListener("click", () => {
    tell();
    if (trace >= 0) play(trace);
  });
  return button;
}

function verdictDetail(cell, row, trace) {
  const where = `${cell.arch} ${cell.kernel} ${cell.machine}`.trim();
  const whole = row.property === "all";
  const subject = whole ? (ALL[row.verdict] || [row.verdict]).at(-1) : row.property;
  const parts = [
    make("b", {}, subject),
    whole ? ` on ${where}. ` : ` is lost ${row.verdict} on ${where}. `,
  ];
  const known = DATA.properties[row.property];
  if (known) parts.push(`It says: ${known[0]}. `);
  const scenario = DATA.scenarios.find((one) => one.name === cell.scenario);
  const [when, bad] = scenario.bad[row.property] || [];
  if (bad) parts.push("It is lost if ", make("code", {}, bad), `, asked ${when}. `);
  const expected = expectation(row);
  const because = row.because && expected ? ` (${row.because})` : row.because;
  if (expected || because)
    parts.push(`${expected.slice(0, 1).toUpperCase()}${expected.slice(1)}${because}. `);
  parts.push(
    `${cell.states.toLocaleString("en")} states`,
    cell.cut ? `, cut at ${cell.cut}. ` : ". ",
  );
  const command = [
    "kvmarch",
    trace >= 0 ? "explain" : "explore",
    cell.scenario,
    ...machineOptions(cell),
  ];
  if (trace >= 0) command.push("--property", row.property);
  parts.push(make("code", { class: "command" }, command.join(" ")));
  return parts;
}

function racesTable(scenario, kernels, archs) {
  const detail = make(
    "p",
    { class: "detail", "aria-live": "polite" },
    "Choose a verdict to see more of it; a loss is played.",
  );
  const rows = [];
  const lines = kernels.map(({ kernel, machine, cells }) => {
    const buttons = [];
    const columns = archs.map((arch) => {
      const cell = cells.find((one) => one.arch === arch);
      if (!cell) return make("td", { class: "none", title: "not asked" }, "–");
      const items = cell.rows.map((row) => verdictItem(cell, row, detail));
      buttons.push(...items);
      return make(
        "td",
        { class: cell.rows.some((row) => row.met === false) ? "failed" : null },
        items,
      );
    });
    rows.push(buttons);
    const changed = machine ? make("small", {}, ` ${machine}`) : null;
    return make("tr", {}, make("th", { scope: "row" }, kernel, changed), columns);
  });
  const heads = ["kernel", ...archs].map((name) => make("th", { scope: "col" }, name));
  const table = make(
    "table",
    { class: "races" },
    make("caption", { class: "hidden" }, `${scenario.name}: verdicts by kernel and architecture`),
    make("thead", {}, make("tr", {}, heads)),
    make("tbody", {}, lines),
  );
  roving(
    table,
    rows.filter((row) => row.length),
  );
  return make("div", {}, scrolling("", `Verdicts of ${scenario.name}`, table), detail);
}

/** Whether the filter lets a kernel through, of which these cells are seen. */
function kernelMatches(scenario, { kernel, machine }, cells, words) {
  const order = releaseOrder(kernel);
  const [first, last] = [Filter.from, Filter.to].map((n) => releaseOrder(DATA.releases[n]));
  if (!cells.length || order < first || order > last) return false;
  const said = cells.flatMap((cell) => [
    cell.arch,
    ...cell.rows.map((row) => `${row.property} ${row.verdict}`),
  ]);
  const texts = [scenario.name, scenario.title, ...scenario.tags, kernel, machine, ...said];
  const all = texts.join("\n").toLowerCase();
  const answer = (cell) => JSON.stringify(cell.rows.map((row) => [row.property, row.verdict]));
  const differs = new Set(cells.map(answer)).size > 1;
  return words.every((word) => all.includes(word)) && (differs || !Filter.differs);
}

/** The part of one scenario, and its filter. */
function racesPanel(scenario) {
  const every = kernelsOf(scenario);
  let kernels = every;
  let archs = [];
  const one = panel(scenario, null, () => [
    racesTable(scenario, kernels, archs),
    scenarioText(scenario),
  ]);
  one.filter = (words) => {
    archs = DATA.archs
      .map((arch) => arch.name)
      .filter(
        (arch) => Filter.archs.has(arch) && scenario.cells.some((cell) => cell.arch === arch),
      );
    kernels = every.filter((kernel) => {
      const mine = kernel.cells.filter((cell) => archs.includes(cell.arch));
      return kernelMatches(scenario, kernel, mine, words);
    });
    one.keep([...kernels, archs.join()]);
    return kernels.length;
  };
  return one.details;
}

/** One group for each post, with its question, and one for the rest. */
export function startRaces() {
  const list = byId("races-list");
  const explored = DATA.scenarios.filter((one) => one.cells.length);
  const post = (scenario) => scenario.tags.find((tag) => DATA.posts[tag]) || "";
  for (const name of [...Object.keys(DATA.posts), ""]) {
    const mine = explored.filter((scenario) => post(scenario) === name);
    if (!mine.length) continue;
    const head = name
      ? make("p", { class: "post" }, make("b", {}, name), ` ${DATA.posts[name]}`)
      : null;
    list.append(make("div", { class: "group" }, head, mine.map(racesPanel)));
  }
  sayIfEmpty(list, "None of the chosen scenarios was explored.");
}
