/* Put the parts together. */

import { DATA, byId, make, plural, startTheme } from "./base.js";
import { startCompare } from "./compare.js";
import { Filter, applyFilter, startFilter } from "./filter.js";
import { startFormats } from "./formats.js";
import { startPlayer } from "./player.js";
import { startRaces } from "./races.js";

/** On paper nothing opens: all that the filter lets through is shown. */
function startPrint() {
  let closed = [];
  window.addEventListener("beforeprint", () => {
    Filter.panels.forEach((one) => !one.details.hidden && one.draw());
    closed = [...document.querySelectorAll("details:not([open])")].filter((one) => !one.hidden);
    closed.forEach((one) => (one.open = true));
  });
  window.addEventListener("afterprint", () => closed.forEach((one) => (one.open = false)));
}

/** What failed, or else what there is to remark: open if it is not long. */
function noticeOf(failed, noun, look) {
  const mine = DATA.notes.filter(([, one]) => one === failed).map(([text]) => text);
  if (!mine.length) return [];
  const items = mine.map((text) => make("li", {}, text));
  const head = make("summary", {}, plural(mine.length, noun));
  const open = failed && mine.length < 8;
  return [make("details", { class: `notice ${look || ""}`, open }, head, make("ul", {}, items))];
}

function startPage() {
  const count = DATA.releases.length;
  const ends = count > 1 ? `${count} releases from ${DATA.releases[0]} to ` : "";
  byId("subtitle").textContent =
    `${plural(DATA.archs.length, "architecture")}, ${ends}${DATA.releases.at(-1)}`;
  const titles = DATA.archs.map((arch) =>
    arch.tier < 5 ? `${arch.title} (tier ${arch.tier} of 5)` : arch.title,
  );
  const named = new Intl.ListFormat("en-GB").format(titles);
  const from = [...new Set(DATA.archs.map((arch) => arch.distribution))].join(", ");
  byId("lead").textContent =
    `How KVM manages guest memory on ${named}, modelled by ${from}: ${plural(DATA.scenarios.length, "scenario")}, ${plural(DATA.traces.length, "schedule")} to step through.`;
  byId("problems").append(
    ...noticeOf(true, "failure", "failed"),
    ...noticeOf(false, "remark", null),
  );
  startTheme();
  startFilter();
  startCompare();
  startRaces();
  applyFilter();
  const first = Filter.panels.find((one) => !one.details.hidden);
  if (first) first.open(true);
  startFormats();
  startPlayer();
  startPrint();
}

startPage();
