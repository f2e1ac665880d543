/* What the search of all interleavings says: kernels down, architectures across. */
"use strict";

const SIGNS = { never: "○", sometimes: "◐", always: "●", unknown: "?" };

/** The kernels of which something is said: release with changes and options. */
function kernelsOf(scenario) {
  const kernels = new Map();
  for (const cell of scenario.cells) {
    const key = `${cell.kernel} ${cell.machine}`.trim();
    if (!kernels.has(key)) kernels.set(key, { kernel: cell.kernel, machine: cell.machine, cells: [] });
    kernels.get(key).cells.push(cell);
  }
  return [...kernels.values()].sort((a, b) => releaseOrder(a.kernel) - releaseOrder(b.kernel) || a.machine.localeCompare(b.machine));
}

/** The options with which a command means the same machine. */
function machineOptions({ arch, kernel, machine }) {
  const words = machine.split(" ").filter(Boolean);
  const changes = words.map((word) =>
    word[0] === "+" ? `--with ${word.slice(1)}` : word[0] === "-" ? `--without ${word.slice(1)}` : `--set ${word}`,
  );
  return ["-a", arch, "-k", kernel, ...changes];
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

function verdictItem(cell, row, detail) {
  const none = row.property === "all";
  const name = none ? ({ never: "nothing lost", unknown: "nothing found, cut" }[row.verdict] || row.verdict) : row.property;
  const sign = make("span", { class: `sign ${row.verdict}`, "aria-hidden": "true" }, SIGNS[row.verdict] || "");
  const steps = row.steps ? make("span", { class: "steps-of" }, ` ${row.steps}`) : null;
  const said = none ? "" : ` lost ${row.verdict}`;
  const mark = row.expected ? make("span", { class: `mark ${row.met ? "met" : "failed"}` }) : null;
  const trace = none ? -1 : traceOf(cell, row.property);
  const label = `${name}${said}${row.steps ? `, ${row.steps} steps` : ""}${row.expected ? (row.met ? ", as expected" : `, expected ${row.expected}`) : ""}`;
  const button = make("button", { type: "button", class: `verdict ${row.verdict}`, "aria-label": trace >= 0 ? `${label}: play` : label }, sign, ` ${name}`, steps, mark);
  const tell = () => detail.replaceChildren(...verdictDetail(cell, row, trace));
  button.addEventListener("focus", tell);
  button.addEventListener("click", () => {
    tell();
    if (trace >= 0) Player.open(trace, null, true);
  });
  return button;
}

function verdictDetail(cell, row, trace) {
  const where = `${cell.arch} ${cell.kernel} ${cell.machine}`.trim();
  const parts = [];
  if (row.property === "all") parts.push(make("b", {}, { never: "Nothing is lost", unknown: "Nothing was found" }[row.verdict] || row.verdict), ` on ${where}. `);
  else parts.push(make("b", {}, row.property), ` is lost ${row.verdict} on ${where}. `);
  const known = DATA.properties[row.property];
  if (known) parts.push(`It says: ${known[0]}. `);
  if (!row.expected && row.because) parts.push(`${row.because}. `);
  if (row.expected) parts.push(row.met ? "As expected" : `Expected ${row.expected}`, row.because ? ` (${row.because}). ` : ". ");
  parts.push(`${cell.states.toLocaleString("en")} states`, cell.cut ? `, cut at ${cell.cut}. ` : ". ");
  const command = ["kvmarch", trace >= 0 ? "explain" : "explore", cell.scenario, ...machineOptions(cell)];
  if (trace >= 0) command.push("--property", row.property);
  parts.push(make("code", { class: "command" }, command.join(" ")));
  return parts;
}

function racesTable(scenario, kernels, archs) {
  const detail = make("p", { class: "detail", "aria-live": "polite" }, "Choose a verdict to see more of it; a loss is played.");
  const rows = [];
  const lines = kernels.map(({ kernel, machine, cells }) => {
    const buttons = [];
    const columns = archs.map((arch) => {
      const cell = cells.find((one) => one.arch === arch);
      if (!cell) return make("td", { class: "none" }, "–");
      const items = cell.rows.map((row) => verdictItem(cell, row, detail));
      buttons.push(...items);
      return make("td", { class: cell.rows.some((row) => !row.met) ? "failed" : null }, items);
    });
    rows.push(buttons);
    return make("tr", {}, make("th", { scope: "row" }, kernel, machine ? make("small", {}, ` ${machine}`) : null), columns);
  });
  const table = make(
    "table",
    { class: "races" },
    make("caption", { class: "hidden" }, `${scenario.name}: verdicts by kernel and architecture`),
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "kernel"), archs.map((arch) => make("th", { scope: "col" }, arch)))),
    make("tbody", {}, lines),
  );
  roving(table, rows.filter((row) => row.length));
  return make("div", {}, make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Verdicts of ${scenario.name}` }, table), detail);
}

function startRaces() {
  const list = byId("races-list");
  const post = (scenario) => scenario.tags.find((tag) => DATA.posts[tag]) || "~";
  const explored = DATA.scenarios.filter((one) => one.cells.length);
  for (const scenario of explored.sort((a, b) => post(a).localeCompare(post(b)))) {
    const every = kernelsOf(scenario);
    let kernels = every;
    let archs = [];
    const question = DATA.posts[post(scenario)];
    const badge = question ? make("span", { class: "badge" }, `${post(scenario)}: ${question}`) : null;
    const one = panel(scenario, badge, () => [racesTable(scenario, kernels, archs), scenarioText(scenario)]);
    one.filter = (words) => {
      const first = releaseOrder(DATA.releases[Compare.from]);
      const last = releaseOrder(DATA.releases[Compare.to]);
      archs = DATA.archs.map((arch) => arch.name).filter((arch) => Compare.archs.has(arch) && scenario.cells.some((cell) => cell.arch === arch));
      const about = [scenario.name, scenario.title, ...scenario.tags].join("\n").toLowerCase();
      kernels = every.filter((row) => {
        const mine = row.cells.filter((cell) => archs.includes(cell.arch));
        const order = releaseOrder(row.kernel);
        const says = [about, row.kernel, row.machine, ...mine.flatMap((cell) => [cell.arch, ...cell.rows.map((r) => `${r.property} ${r.verdict}`)])].join("\n").toLowerCase();
        const answers = new Set(mine.map((cell) => JSON.stringify(cell.rows.map((r) => [r.property, r.verdict]))));
        return mine.length && order >= first && order <= last && words.every((word) => says.includes(word)) && (!Compare.differs || answers.size > 1);
      });
      one.keep([...kernels, archs.join()]);
      return kernels.length;
    };
    list.append(one.details);
  }
  if (!list.children.length) list.append(make("p", { class: "empty" }, "None of the chosen scenarios was explored."));
}
