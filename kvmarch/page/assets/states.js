/* The state of a machine before a schedule and after each of its steps. */

import { textOf } from "./base.js";

/** Put the states of a trace together: the first one, and one per step.
    Each is {rows: Map(group + label -> [group, label, text]), tables: Map(name -> table)}. */
export function statesOf(trace) {
  let rows = new Map();
  let tables = new Map();
  const apply = (frame) => {
    if (frame.s || frame.g) {
      rows = new Map(rows);
      for (let n = 0; n < (frame.g || []).length; n += 2)
        rows.delete(`${frame.g[n]} ${frame.g[n + 1]}`);
      for (let n = 0; n < (frame.s || []).length; n += 3) {
        const [group, label, value] = frame.s.slice(n, n + 3);
        rows.set(`${group} ${label}`, [group, label, value].map(textOf));
      }
    }
    if (frame.T || frame.G) {
      tables = new Map(tables);
      (frame.G || []).forEach((name) => tables.delete(name));
      for (const [name, table] of Object.entries(frame.T || {})) {
        tables.set(name, { ...table, rows: table.rows.map((row) => row.map(textOf)) });
      }
    }
    return { rows, tables };
  };
  return [apply(trace.start), ...trace.steps.map(apply)];
}

/** The rows of state that some step of the schedule changes. */
export function movingRows(trace) {
  const keys = new Set();
  for (const step of trace.steps) {
    for (let n = 0; n < (step.s || []).length; n += 3) keys.add(`${step.s[n]} ${step.s[n + 1]}`);
    for (let n = 0; n < (step.g || []).length; n += 2) keys.add(`${step.g[n]} ${step.g[n + 1]}`);
  }
  return keys;
}

/** Whether some table of one state is not so in another. */
export function treeDiffers(before, after) {
  if (before.tables === after.tables) return false;
  const sign = (state) => JSON.stringify([...state.tables].toSorted());
  return sign(before) !== sign(after);
}

/** What a task holds, read off the locks. */
export function holdings(state, task) {
  const held = [];
  for (const [group, label, text] of state.rows.values()) {
    if (group !== "locks") continue;
    const mine = text.split(", ").find((holder) => holder.startsWith(`${task} (`));
    if (mine)
      held.push(mine.endsWith("(write)") ? label : `${label} ${mine.slice(task.length + 1)}`);
  }
  return held;
}
