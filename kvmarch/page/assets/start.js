/* Put the parts together. */
"use strict";

/** On paper nothing opens: all that the filter lets through is shown. */
function startPrint() {
  let closed = [];
  window.addEventListener("beforeprint", () => {
    Compare.panels.forEach((one) => !one.details.hidden && one.draw());
    closed = [...document.querySelectorAll("details:not([open])")].filter((one) => !one.hidden);
    closed.forEach((one) => (one.open = true));
  });
  window.addEventListener("afterprint", () => closed.forEach((one) => (one.open = false)));
}

function startPage() {
  const archs = DATA.archs.map((arch) => arch.name);
  const ends = [DATA.releases[0], DATA.releases[DATA.releases.length - 1]];
  byId("subtitle").textContent = `${plural(archs.length, "architecture")}, ${ends[0]} to ${ends[1]}`;
  const titles = DATA.archs.map((arch) => (arch.tier < 5 ? `${arch.title} (tier ${arch.tier} of 5)` : arch.title));
  const named = titles.length > 1 ? `${titles.slice(0, -1).join(", ")} and ${titles.at(-1)}` : titles[0];
  const from = [...new Set(DATA.archs.map((arch) => arch.distribution))].join(", ");
  byId("lead").textContent = `How KVM manages guest memory on ${named}, modelled by ${from}: ${plural(DATA.scenarios.length, "scenario")}, ${plural(DATA.traces.length, "schedule")} to step through.`;
  const problems = [...DATA.refused, ...DATA.formats.failed, ...DATA.notes.filter((note) => note.includes(": FAILED "))];
  if (problems.length) {
    byId("problems").append(make("div", { class: "notice", role: "note" }, make("ul", {}, problems.map((one) => make("li", {}, one)))));
  }
  startTheme();
  startFilter();
  startCompare();
  startRaces();
  applyFilter();
  const first = Compare.panels.find((one) => !one.details.hidden);
  if (first) first.open(true);
  startFormats();
  startPlayer();
  startPrint();
}

startPage();
