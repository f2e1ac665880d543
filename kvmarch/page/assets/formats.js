/* Entry formats as bit diagrams, two releases one above the other. */

import { DATA, STATES, byId, fillSelect, make, namedSelect, plural, roving } from "./base.js";

const Formats = { arch: 0, machine: 0, before: 0, after: 0, differs: false };

/** Pixels: of a letter of a field's name, and of what stands beside the bits. */
const LETTER = 6.8;
const BESIDE = 64;

function fieldsOf(number) {
  if (number === null) return [];
  return DATA.formats.formats[number].fields.map((n) => DATA.formats.fields[n]);
}

/** What became of each field between two formats, by name. */
function fieldStates(before, after) {
  const one = new Map(before.map((field) => [field.name, field]));
  const other = new Map(after.map((field) => [field.name, field]));
  const states = new Map();
  for (const name of new Set([...one.keys(), ...other.keys()])) {
    const [a, b] = [one.get(name), other.get(name)];
    if (!a) states.set(name, "added");
    else if (!b) states.set(name, "removed");
    else if (a.bits !== b.bits) states.set(name, "moved");
    else states.set(name, JSON.stringify(a) === JSON.stringify(b) ? "same" : "changed");
  }
  return states;
}

/** Runs of bits from high to low, each of one field or of none. */
function bitRuns(fields, high, low) {
  const owner = (bit) =>
    fields.find((field) => field.parts.some(([top, bottom]) => bottom <= bit && bit <= top)) ||
    null;
  const runs = [];
  for (let bit = high; bit >= low; bit--) {
    const field = owner(bit);
    const last = runs.at(-1);
    if (last && last.field === field) last.low = bit;
    else runs.push({ field, high: bit, low: bit });
  }
  return runs;
}

/** What is known of a field; of some only their place is. */
function meaning(field) {
  const parts = field.doc ? [field.doc] : [];
  if (field.fixed) parts.push(`always ${field.fixed}`);
  if (field.values) parts.push(field.values.map(([value, name]) => `${value} ${name}`).join(", "));
  if (field.shift) parts.push(`the lowest ${field.shift} bits of the number are not stored`);
  return parts.join("; ");
}

/** A field where it stands in a strip; it tells what it means when it is pointed at. */
function bitButton(field, state, width, room, show) {
  const [sign, became] = STATES[state];
  const text = field.name + (field.fixed && width < 8 ? `=${Number(field.fixed)}` : "");
  const narrow = (text.length + (sign ? 2 : 0)) * LETTER > room;
  const says = [`${field.name}, bits ${field.bits}`, meaning(field)].filter(Boolean).join(": ");
  const button = make(
    "button",
    {
      type: "button",
      class: `bits ${state}${narrow ? " narrow" : ""}`,
      "aria-label": sign ? `${says}, ${became}` : says,
    },
    make("span", { "aria-hidden": "true" }, sign ? `${sign} ` : "", text),
  );
  button.addEventListener("focus", show);
  button.addEventListener("mouseenter", show);
  return button;
}

function bitStrip(release, fields, states, high, low, tell) {
  const buttons = [];
  const bit = (byId("formats-list").clientWidth - BESIDE) / (high - low + 1);
  const cells = bitRuns(fields, high, low).map(({ field, high: top, low: bottom }) => {
    const width = top - bottom + 1;
    let cell = make("span", { class: "bits none" });
    if (field) {
      const state = states.get(field.name);
      cell = bitButton(field, state, width, width * bit - 4, () => tell(release, field, state));
      buttons.push(cell);
    }
    cell.style.gridColumn = `span ${width}`;
    return cell;
  });
  const strip = make(
    "div",
    { class: "strip", role: "group", "aria-label": `${release}, bits ${high} to ${low}` },
    cells,
  );
  strip.style.gridTemplateColumns = `repeat(${high - low + 1}, minmax(0, 1fr))`;
  return [make("div", { class: "release", "aria-hidden": "true" }, release), strip, buttons];
}

function ruler(high, low) {
  const bits = [];
  for (let bit = high; bit >= low; bit--) bits.push(make("span", {}, String(bit)));
  const strip = make("div", { class: "ruler" }, bits);
  strip.style.gridTemplateColumns = `repeat(${bits.length}, minmax(0, 1fr))`;
  return strip;
}

function bitsPerRow() {
  return matchMedia("(max-width: 700px)").matches ? 16 : 32;
}

/** What a diagram shows of a kind: the fields of each release that has it. A kind that
    only one of them has is shown as it is; that all of it is new goes without saying. */
function sidesOf(group, names) {
  const sides = [
    [names[0], group.before],
    [names[1], group.after],
  ].filter(([, format]) => format !== null);
  if (sides.length === 2 && group.before === group.after) {
    return [[names[0] === names[1] ? names[0] : "both", fieldsOf(group.before)]];
  }
  return sides.map(([name, format]) => [name, fieldsOf(format)]);
}

/** Whether the bits from high to low are the same in both. */
function sameBits([before, after], states, high, low) {
  const runs = [before, after].map((fields) => bitRuns(fields, high, low));
  const sign = (run) => `${run.high} ${run.low} ${run.field && run.field.name}`;
  return (
    runs[0].map(sign).join() === runs[1].map(sign).join() &&
    runs[0].every(({ field }) => !field || states.get(field.name) === "same")
  );
}

function diagram(group, names, first) {
  const sides = sidesOf(group, names);
  const fields =
    sides.length === 2 ? sides.map(([, inside]) => inside) : [sides[0][1], sides[0][1]];
  const states = fieldStates(...fields);
  const formats = [group.before, group.after].filter((number) => number !== null);
  const width = Math.max(...formats.map((number) => DATA.formats.formats[number].width));
  const told = make(
    "p",
    { class: "detail" },
    first ? "Point at a field, or move to it, to read what it means." : "",
  );
  const tell = (release, field, state) =>
    told.replaceChildren(
      make("b", {}, field.name),
      ` bits ${field.bits}, ${release === "both" ? names.join(" and ") : release}`,
      meaning(field) ? `: ${meaning(field)}.` : ".",
      state === "same"
        ? ""
        : make("em", {}, ` ${STATES[state][1]} between ${names[0]} and ${names[1]}.`),
    );
  const box = make("div", { class: "diagram" });
  const rows = [];
  const step = bitsPerRow();
  for (let high = width - 1; high >= 0; high -= step) {
    const low = Math.max(high - step + 1, 0);
    box.append(make("div", {}), ruler(high, low));
    const alike = sides.length === 2 && sameBits(fields, states, high, low);
    for (const [release, inside] of alike ? [["both", fields[1]]] : sides) {
      const [label, strip, buttons] = bitStrip(release, inside, states, high, low, tell);
      box.append(label, strip);
      if (buttons.length) rows.push(buttons);
    }
  }
  roving(box, rows);
  return make("div", {}, box, told, fieldTable(fields, states, names, sides.length === 1));
}

/** The same as a table: for those who do not see the diagram, and for print. */
function fieldTable([before, after], states, names, same) {
  const find = (fields, name) => fields.find((field) => field.name === name);
  const top = ([name]) => Math.max(...(find(after, name) || find(before, name)).parts.flat());
  const ordered = [...states].toSorted((one, other) => top(other) - top(one));
  const rows = ordered.map(([name, state]) => {
    const [a, b] = [find(before, name), find(after, name)];
    const [sign, said] = STATES[state];
    const cells = same
      ? [make("td", {}, b.bits)]
      : [make("td", {}, a ? a.bits : "–"), make("td", {}, b ? b.bits : "–")];
    const text =
      a && b && meaning(a) !== meaning(b)
        ? [meaning(b), make("del", {}, meaning(a))]
        : [meaning(b || a)];
    return make(
      "tr",
      { class: state },
      make("th", { scope: "row" }, name),
      cells,
      same ? null : make("td", { class: "state" }, state === "same" ? "" : `${sign} ${said}`),
      make(
        "td",
        {},
        text.map((one, n) => (n ? [" ", one] : one)),
      ),
    );
  });
  const heads = same
    ? ["field", "bits", "meaning"]
    : ["field", names[0], names[1], "what became of it", "meaning"];
  return make(
    "details",
    { class: "fields" },
    make("summary", {}, `Fields as a table (${rows.length})`),
    make(
      "table",
      {},
      make(
        "thead",
        {},
        make(
          "tr",
          {},
          heads.map((head) => make("th", { scope: "col" }, head)),
        ),
      ),
      make("tbody", {}, rows),
    ),
  );
}

/** Kinds of entries of two sets; levels with the same formats share one. First come
    those that both have and that differ, last those that are the same in both. */
function kindGroups(before, after) {
  const pairs = new Map();
  const add = (set, which) => {
    for (const [level, kind, format] of set) {
      const key = `${kind}/${level}`;
      if (!pairs.has(key)) pairs.set(key, { kind, level, before: null, after: null });
      pairs.get(key)[which] = format;
    }
  };
  add(before, "before");
  add(after, "after");
  const groups = new Map();
  for (const pair of pairs.values()) {
    const key = JSON.stringify([pair.kind, pair.before, pair.after]);
    if (!groups.has(key)) groups.set(key, { ...pair, levels: [] });
    groups.get(key).levels.push(pair.level);
  }
  const rank = ({ before: old, after: here }) => {
    if (old === here) return 2;
    return old === null || here === null ? 1 : 0;
  };
  return [...groups.values()].toSorted((a, b) => rank(a) - rank(b));
}

/** A badge for a kind that only one of the two releases has. */
function onlyIn(group, names) {
  if (group.before === null) return make("span", { class: "badge added" }, `+ only in ${names[1]}`);
  if (group.after === null)
    return make("span", { class: "badge removed" }, `− only in ${names[0]}`);
  return null;
}

function kindPart(group, names, first) {
  const levels = group.levels.toSorted((a, b) => b - a);
  const badge = onlyIn(group, names);
  const states = badge
    ? []
    : [...fieldStates(fieldsOf(group.before), fieldsOf(group.after)).values()];
  const count = states.filter((state) => state !== "same").length;
  const note = count
    ? `${plural(count, "field")} ${count === 1 ? "differs" : "differ"}`
    : "the same in both";
  const title = `level${levels.length > 1 ? "s" : ""} ${levels.join(", ")}${badge ? "" : `: ${note}`}`;
  return make(
    "article",
    { class: "kind" },
    make("h3", {}, group.kind, make("span", { class: "title" }, ` ${title}`), badge),
    diagram(group, names, first),
  );
}

function drawFormats() {
  const arch = DATA.formats.archs[Formats.arch];
  const machine = arch.machines[Formats.machine];
  const names = [Formats.before, Formats.after].map((n) => DATA.formats.releases[n]);
  const sets = [Formats.before, Formats.after].map((n) => DATA.formats.sets[machine.sets[n]] || []);
  const groups = kindGroups(...sets).filter(
    (group) => fieldsOf(group.after ?? group.before).length,
  );
  const shown = groups.filter((group) => !Formats.differs || group.before !== group.after);
  byId("formats-list").replaceChildren(
    make(
      "p",
      { class: "on-paper" },
      `${arch.title}, ${machineName(machine.settings)}: ${names.join(" and ")}.`,
    ),
    ...shown.map((group, n) => kindPart(group, names, n === 0)),
  );
  if (!shown.length) {
    byId("formats-list").append(
      make(
        "p",
        { class: "empty" },
        groups.length
          ? `No kind of entry differs between ${names.join(" and ")}.`
          : "Neither release has such a machine.",
      ),
    );
  }
}

/** The two releases to begin with: the oldest and the newest that have such a machine. */
function farthest(sets) {
  const there = sets.map((set, n) => [set, n]).filter(([set]) => set >= 0);
  if (!there.length) return [0, sets.length - 1];
  return [there[0][1], there.at(-1)[1]];
}

function formatOptions() {
  const arch = DATA.formats.archs[Formats.arch];
  const machine = arch.machines[Formats.machine];
  const { sets } = machine;
  const groups = [];
  DATA.formats.releases.forEach((name, n) => {
    if (sets[n] < 0) return;
    const last = groups.at(-1);
    if (last && last.set === sets[n]) last.options.push([n, name]);
    else groups.push({ set: sets[n], options: [[n, name]] });
  });
  const named = groups.map(({ options }) => {
    const ends = [options[0][1], options.at(-1)[1]];
    return [ends[0] === ends[1] ? `${ends[0]} alone` : `alike, ${ends[0]} to ${ends[1]}`, options];
  });
  fillSelect(byId("formats-before"), named, Formats.before);
  fillSelect(byId("formats-after"), named, Formats.after);
}

function machineName(settings) {
  const words = Object.entries(settings).map(([name, value]) => `${name}=${value}`);
  return words.join(" ") || "usual machine";
}

function chooseArch(number) {
  Formats.arch = number;
  const { machines } = DATA.formats.archs[number];
  fillSelect(
    byId("formats-machine"),
    [["", machines.map((one, n) => [n, machineName(one.settings)])]],
    0,
  );
  chooseMachine(0);
}

function chooseMachine(number) {
  Formats.machine = number;
  const { sets } = DATA.formats.archs[Formats.arch].machines[number];
  [Formats.before, Formats.after] = farthest(sets);
  formatOptions();
  drawFormats();
}

export function startFormats() {
  if (!DATA.formats.archs.length) {
    byId("formats-list").append(make("p", { class: "empty" }, "No format is known."));
    return;
  }
  byId("formats-form").append(
    namedSelect("formats-arch", "Architecture"),
    namedSelect("formats-machine", "Machine"),
    namedSelect("formats-before", "Release"),
    namedSelect("formats-after", "and"),
    make(
      "label",
      { class: "check" },
      make("input", { type: "checkbox", id: "formats-differs" }),
      " only kinds that differ",
    ),
  );
  fillSelect(byId("formats-arch"), [["", DATA.formats.archs.map((arch, n) => [n, arch.title])]], 0);
  const on = (id, act) => byId(id).addEventListener("change", (event) => act(event.target));
  on("formats-arch", (one) => chooseArch(Number(one.value)));
  on("formats-machine", (one) => chooseMachine(Number(one.value)));
  for (const which of ["before", "after"]) {
    on(`formats-${which}`, (one) => {
      Formats[which] = Number(one.value);
      drawFormats();
    });
  }
  on("formats-differs", (box) => {
    Formats.differs = box.checked;
    drawFormats();
  });
  byId("formats-form").addEventListener("submit", (event) => event.preventDefault());
  let width = window.innerWidth;
  let timer = 0;
  window.addEventListener("resize", () => {
    clearTimeout(timer);
    if (window.innerWidth === width) return;
    timer = setTimeout(() => {
      width = window.innerWidth;
      drawFormats();
    }, 200);
  });
  chooseArch(0);
}
