/* The filter, and the parts that it shows and hides. */

import { DATA, byId, fillSelect, make, plural } from "./base.js";

/** What the reader asks for, and every part, opened or not. Releases by their numbers. */
export const Filter = {
  archs: new Set(),
  text: "",
  from: 0,
  to: 0,
  differs: false,
  panels: [],
};

/** The releases from one to another, in words. */
export function span(first, last) {
  const names = DATA.releases;
  return first === last ? names[first] : `${names[first]} to ${names[last]}`;
}

/** What a scenario does and where it comes from, to be opened. */
export function scenarioText(scenario) {
  const tasks = scenario.tasks.map(([name, lines]) =>
    make("div", {}, make("b", {}, name), make("pre", {}, lines.join("\n"))),
  );
  if (scenario.setup.length) {
    tasks.unshift(
      make("div", {}, make("b", {}, "before"), make("pre", {}, scenario.setup.join("\n"))),
    );
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
export function panel(scenario, extra, fill) {
  const body = make("div", { class: "body" });
  const summary = make(
    "summary",
    {},
    make("h3", {}, scenario.name),
    make("span", { class: "title" }, scenario.title),
    extra,
  );
  const details = make("details", { class: "panel" }, summary, body);
  const one = { details, stale: true, changed: true, made: [] };
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
  Filter.panels.push(one);
  return one;
}

/** Say of a list that it is empty, or have it said when the filter leaves nothing of it. */
export function sayIfEmpty(list, none) {
  const some = list.children.length > 0;
  const text = some ? "The filter leaves nothing of this." : none;
  list.append(make("p", { class: some ? "empty filtered" : "empty", hidden: some }, text));
}

/** Show what the filter lets through, and say how much it is. */
export function applyFilter() {
  const words = Filter.text.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  let scenarios = 0;
  for (const one of Filter.panels) {
    const count = one.filter(words);
    one.details.hidden = !count;
    one.stale ||= one.changed;
    if (one.details.open && count) one.draw();
    shown += count;
    scenarios += count ? 1 : 0;
  }
  for (const empty of document.querySelectorAll(".filtered")) {
    empty.hidden = Boolean(empty.parentElement.querySelector(".panel:not([hidden])"));
  }
  byId("filter-count").textContent = `${plural(shown, "row")} of ${plural(scenarios, "scenario")}`;
}

export function startFilter() {
  Filter.archs = new Set(DATA.archs.map((arch) => arch.name));
  Filter.to = DATA.releases.length - 1;
  for (const arch of DATA.archs) {
    const box = make("input", { type: "checkbox", checked: true, value: arch.name });
    box.addEventListener("change", () => {
      Filter.archs[box.checked ? "add" : "delete"](arch.name);
      applyFilter();
    });
    byId("filter-archs").append(
      make("label", { class: "check", title: arch.title }, box, ` ${arch.name}`),
    );
  }
  const options = DATA.releases.map((name, n) => [n, name]);
  fillSelect(byId("filter-from"), [["", options]], 0);
  fillSelect(byId("filter-to"), [["", options]], Filter.to);
  const range = (moved) => {
    Filter.from = Number(byId("filter-from").value);
    Filter.to = Number(byId("filter-to").value);
    if (Filter.from > Filter.to) {
      if (moved === "from") Filter.to = Filter.from;
      else Filter.from = Filter.to;
      byId("filter-from").value = Filter.from;
      byId("filter-to").value = Filter.to;
    }
    applyFilter();
  };
  byId("filter-from").addEventListener("change", () => range("from"));
  byId("filter-to").addEventListener("change", () => range("to"));
  byId("filter-text").addEventListener("input", (event) => {
    Filter.text = event.target.value;
    applyFilter();
  });
  byId("filter-differs").addEventListener("change", (event) => {
    Filter.differs = event.target.checked;
    applyFilter();
  });
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
  const all = (open) => () => Filter.panels.forEach((one) => one.open(open && !one.details.hidden));
  byId("open-all").addEventListener("click", all(true));
  byId("close-all").addEventListener("click", all(false));
}
