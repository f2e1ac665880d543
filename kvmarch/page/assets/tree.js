/* Stage-2 tables before and after. */

import { STATES, make } from "./base.js";

/** The entries that a row stands for: "0x2" or "0x2-0x5", first and last. */
function rangeOf([index]) {
  const ends = index.split("-").map(Number);
  return [ends[0], ends.at(-1)];
}

/** What became of a row, seen from another state of its table. Neighbours that are alike
    share a row, so a row of one state may be a part of a row of the other. */
function rowState(row, other, missing) {
  const [first, last] = rangeOf(row);
  const near = (other ? other.rows : []).filter((one) => {
    const [from, to] = rangeOf(one);
    return from <= last && first <= to;
  });
  if (!near.length) return missing;
  const [from, to] = rangeOf(near[0]);
  return from <= first && last <= to && near[0][5] === row[5] ? "same" : "changed";
}

function entryItem(row, state, inside) {
  const [index, number, kind, fields] = row;
  const [sign, said] = STATES[state];
  return make(
    "li",
    { class: `entry ${state}` },
    make("span", { class: "sign", "aria-hidden": "true" }, sign),
    sign ? make("span", { class: "hidden" }, `${said}: `) : null,
    make("span", { class: "index" }, `[${index}]`),
    " ",
    make("code", {}, number),
    " ",
    make("span", { class: "what" }, kind),
    fields ? make("span", { class: "values" }, ` ${fields}`) : null,
    inside,
  );
}

/** One table as a list; tables below it are inside the entries that lead to them. */
function tableList(name, here, there, missing, seen) {
  const table = here.get(name);
  const other = there.get(name);
  if (!table || seen.has(name)) return null;
  seen.add(name);
  const items = table.rows.map((row) => {
    const child = row[4] ? tableList(row[4], here, there, missing, seen) : null;
    return entryItem(row, rowState(row, other, missing), child);
  });
  const state = other ? "same" : missing;
  const [sign, said] = STATES[state];
  const live = table.state === "live" ? "" : `, ${table.state}`;
  const about = `table ${name}, level ${table.level}, from gfn ${table.base}${live}`;
  return make(
    "div",
    { class: `table-of ${state}` },
    make(
      "span",
      { class: "head" },
      sign ? make("span", { class: "sign", "aria-hidden": "true" }, sign) : null,
      about,
      sign ? make("span", { class: "hidden" }, `, ${said}`) : null,
    ),
    items.length ? make("ul", {}, items) : make("p", { class: "empty" }, "empty"),
  );
}

function wholeTree(here, there, missing) {
  if (!here.size) return make("p", { class: "empty" }, "no tables; entries are told above");
  const children = new Set(
    [...here.values()].flatMap((table) => table.rows.map((row) => row[4]).filter(Boolean)),
  );
  const seen = new Set();
  const roots = [...here.keys()].filter((name) => !children.has(name));
  const lists = [...roots, ...here.keys()].map((name) =>
    tableList(name, here, there, missing, seen),
  );
  return make("div", { class: "tree" }, lists.filter(Boolean));
}

/** Both trees, side by side. */
export function treePair(before, after, names) {
  const column = (title, tree) => make("div", {}, make("h4", {}, title), tree);
  return [
    column(names[0], wholeTree(before.tables, after.tables, "removed")),
    column(names[1], wholeTree(after.tables, before.tables, "added")),
  ];
}
