/* The state of a machine after each step, and its stage-2 tables before and after. */
"use strict";

/** Put the states of a trace together: the first one, and one per step.
    Each is {rows: Map(group + label -> [group, label, text]), tables: Map(name -> table)}. */
function statesOf(trace) {
  const text = (n) => DATA.texts[n];
  let rows = new Map();
  let tables = new Map();
  const apply = (frame) => {
    if (frame.s || frame.g) {
      rows = new Map(rows);
      for (let n = 0; n < (frame.g || []).length; n += 2) rows.delete(`${frame.g[n]} ${frame.g[n + 1]}`);
      for (let n = 0; n < (frame.s || []).length; n += 3) {
        const [group, label, value] = frame.s.slice(n, n + 3);
        rows.set(`${group} ${label}`, [text(group), text(label), text(value)]);
      }
    }
    if (frame.T || frame.G) {
      tables = new Map(tables);
      (frame.G || []).forEach((name) => tables.delete(name));
      for (const [name, table] of Object.entries(frame.T || {})) {
        tables.set(name, { ...table, rows: table.rows.map((row) => row.map(text)) });
      }
    }
    return { rows, tables };
  };
  return [apply(trace.start), ...trace.steps.map(apply)];
}

/** Rows of a table by index, as text that can be compared. */
function entriesOf(table) {
  return new Map((table ? table.rows : []).map((row) => [row[0], row.join(" ")]));
}

function entryItem(row, state, inside) {
  const [index, number, kind, fields] = row;
  const sign = STATES[state][0];
  return make(
    "li",
    { class: `entry ${state}` },
    make("span", { class: "sign" }, sign, make("span", { class: "hidden" }, state === "same" ? "" : ` ${STATES[state][1]}: `)),
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
  const says = entriesOf(other);
  const items = table.rows.map((row) => {
    const before = says.get(row[0]);
    const state = before === undefined ? missing : before === row.join(" ") ? "same" : "changed";
    return entryItem(row, state, row[4] ? tableList(row[4], here, there, missing, seen) : null);
  });
  const state = other ? "same" : missing;
  const about = `table ${name}, level ${table.level}, from gfn ${table.base}${table.state === "live" ? "" : `, ${table.state}`}`;
  return make(
    "div",
    { class: `table-of ${state}` },
    make("span", { class: "head" }, STATES[state][0] ? `${STATES[state][0]} ` : "", about, make("span", { class: "hidden" }, state === "same" ? "" : `, ${STATES[state][1]}`)),
    items.length ? make("ul", {}, items) : make("p", { class: "empty" }, "empty"),
  );
}

function wholeTree(here, there, missing) {
  if (!here.size) return make("p", { class: "empty" }, "no tables; entries are told above");
  const children = new Set([...here.values()].flatMap((table) => table.rows.map((row) => row[4]).filter(Boolean)));
  const seen = new Set();
  const roots = [...here.keys()].filter((name) => !children.has(name));
  const lists = [...roots, ...here.keys()].map((name) => tableList(name, here, there, missing, seen));
  return make("div", { class: "tree" }, lists.filter(Boolean));
}

function treeDiffers(before, after) {
  if (before.tables === after.tables) return false;
  const sign = (state) => JSON.stringify([...state.tables].sort());
  return sign(before) !== sign(after);
}

/** Both trees, side by side. */
function treePair(before, after, names) {
  const column = (title, tree) => make("div", {}, make("h4", {}, title), tree);
  return [
    column(names[0], wholeTree(before.tables, after.tables, "removed")),
    column(names[1], wholeTree(after.tables, before.tables, "added")),
  ];
}
