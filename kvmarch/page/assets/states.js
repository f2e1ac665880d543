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

const RUN = /^(.* )(0x[0-9a-f]+)(?:-(0x[0-9a-f]+))?$/;

/** Pairs of rows with the same label. */
function sameLabels(before, now) {
  const pairs = new Map(before.map(({ row }) => [row[1], [row, undefined]]));
  for (const { row } of now) pairs.set(row[1], [pairs.get(row[1])?.[0], row]);
  return [...pairs.values()];
}

/** Pairs of rows that stand for runs of numbers, cut where either state cuts them. */
function cutAlike(before, now) {
  const every = [...before, ...now];
  const cuts = [...new Set(every.flatMap(({ first, last }) => [first, last + 1]))];
  cuts.sort((a, b) => a - b);
  const at = (rows, number) => rows.find(({ first, last }) => first <= number && number <= last);
  const parts = [];
  for (let n = 0; n < cuts.length - 1; n++) {
    const [old, here] = [before, now].map((rows) => at(rows, cuts[n])?.row[2]);
    const last = parts.at(-1);
    const goesOn = last && last.end === cuts[n] && last.old === old && last.here === here;
    if (goesOn) last.end = cuts[n + 1];
    else parts.push({ first: cuts[n], end: cuts[n + 1], old, here });
  }
  const [group] = every[0].row;
  const hex = (number) => `0x${number.toString(16)}`;
  return parts
    .filter(({ old, here }) => old !== undefined || here !== undefined)
    .map(({ first, end, old, here }) => {
      const numbers = end === first + 1 ? hex(first) : `${hex(first)}-${hex(end - 1)}`;
      const row = (text) => text && [group, every[0].prefix + numbers, text];
      return [row(old), row(here)];
    });
}

/** The rows of two states side by side, [before, now]; of a row that is not in both, one
    is missing. Neighbours that say the same share a row, "page 0x3-0x5", and what becomes
    of one of them must not look as if it became of all. */
export function rowPairs(before, now) {
  const families = new Map();
  [before, now].forEach((rows, which) => {
    for (const row of rows) {
      const [, prefix, first, last] = RUN.exec(row[1]) || [];
      const key = `${row[0]} ${prefix ?? row[1]}`;
      if (!families.has(key)) families.set(key, [[], []]);
      const ends = { first: Number(first), last: Number(last ?? first) };
      families.get(key)[which].push({ row, prefix, ...ends });
    }
  });
  return [...families.values()].flatMap(([old, here]) => {
    const every = [...old, ...here];
    // Of a run of entries "…" says that each has another number; only the first is told.
    const whole = every.some(({ prefix, row }) => prefix === undefined || row[2].includes("…"));
    return whole ? sameLabels(old, here) : cutAlike(old, here);
  });
}
