/* The lanes of a schedule: a row for each step, a column for each task. */

import { make, plural, scrolling, soft, textOf } from "./base.js";
import { holdings } from "./states.js";

/** What a step does, in one line. */
export function stepText(step) {
  if (step.l !== undefined) return `> ${textOf(step.l)}`;
  if (step.n !== undefined) return textOf(step.n);
  return step.r === undefined ? "" : `= ${textOf(step.r)}`;
}

function laneRow(trace, step, number, go) {
  const lost = (step.x || []).map(([property]) =>
    make("strong", { class: "lost" }, `✗ ${property} is lost`),
  );
  const said = make(
    "span",
    { class: step.l === undefined ? null : "line" },
    soft(stepText(step) || "·"),
  );
  return make(
    "tr",
    { class: lost.length ? "loss" : null, onclick: () => go(number) },
    make("th", { scope: "row" }, String(number)),
    trace.tasks.map((_task, n) =>
      n === step.t ? make("td", { class: "busy" }, said, lost) : make("td"),
    ),
  );
}

/** The lanes of a schedule: `element`, and `show(step, state)`, which says where it is.
    A click on a row calls `go` with the number of its step. */
export function lanesOf(trace, go) {
  const rows = trace.steps.map((step, n) => laneRow(trace, step, n + 1, go));
  const lines = [...rows];
  if (trace.cycle) {
    const says = `from here on for ever: steps ${trace.cycle} to ${trace.steps.length}, again and again`;
    const cell = make("td", { colspan: trace.tasks.length + 1 }, `↻ ${says}`);
    lines.splice(trace.cycle - 1, 0, make("tr", { class: "cycle" }, cell));
  }
  const heads = trace.tasks.map((task) => make("th", { scope: "col" }, task, make("small")));
  const element = scrolling(
    "lanes",
    `${plural(rows.length, "step")}, one lane for each task; arrow keys step`,
    make(
      "table",
      {},
      make("caption", { class: "hidden" }, trace.title),
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "step"), heads)),
      make("tbody", {}, lines),
    ),
  );
  let shown = null;
  /** Only rows between this step and the one before are touched: there may be many. */
  const mark = (step) => {
    const [from, to] = shown === null ? [0, rows.length] : [shown, step].toSorted((a, b) => a - b);
    for (let n = Math.max(from, 1); n <= to; n++) {
      const row = rows[n - 1];
      row.classList.toggle("current", n === step);
      row.classList.toggle("future", n > step);
      if (n === step) row.setAttribute("aria-current", "step");
      else row.removeAttribute("aria-current");
    }
    shown = step;
  };
  const show = (step, state) => {
    mark(step);
    const row = rows[step - 1];
    element.scrollTop = row ? row.offsetTop - element.clientHeight / 2 : 0;
    heads.forEach((head, n) => {
      const held = holdings(state, trace.tasks[n]);
      head.lastChild.textContent = held.length ? `holds ${held.join(", ")}` : "holds nothing";
    });
  };
  return { element, show };
}
