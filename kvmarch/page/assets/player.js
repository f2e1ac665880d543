/* The player: a schedule, step by step, forward and back. */

import {
  DATA,
  STATES,
  byId,
  fillSelect,
  machineOptions,
  make,
  namedSelect,
  plural,
  scrolling,
  soft,
  textOf,
} from "./base.js";
import { lanesOf, stepText } from "./lanes.js";
import { movingRows, rowPairs, statesOf, treeDiffers } from "./states.js";
import { treePair } from "./tree.js";

const Player = {
  number: -1,
  trace: null,
  step: 0,
  states: [],
  moving: new Set(),
  parts: {},
  // What the reader has chosen to see.
  since: "step",
  every: false,
};

function label(trace) {
  const where = [trace.arch, trace.kernel, trace.machine].filter(Boolean).join(" ");
  const what = trace.property ? `${trace.property} lost` : "the scenario's own schedule";
  return `${where}: ${what}, ${plural(trace.steps.length, "step")}`;
}

/** The steps at which the property of a schedule is lost, or any if it has none. */
function lossesOf(trace) {
  const mine = ([property]) => !trace.property || property === trace.property;
  return trace.steps.flatMap((step, n) => ((step.x || []).some(mine) ? [n + 1] : []));
}

/** Show a schedule. Without a step: the one at which it loses its property. */
function openTrace(number, step = null) {
  const trace = DATA.traces[number];
  Object.assign(Player, { number, trace, states: statesOf(trace), moving: movingRows(trace) });
  byId("player-scenario").value = trace.scenario;
  const options = DATA.traces
    .map((one, n) => [n, label(one), one.scenario])
    .filter(([, , name]) => name === trace.scenario);
  fillSelect(byId("player-trace"), [["", options]], number);
  buildStage();
  go(step ?? lossesOf(trace)[0] ?? trace.steps.length);
}

/** Show a schedule because a reader asks for it elsewhere, and take him there. */
export function play(number, step = null) {
  openTrace(number, step);
  remember();
  byId("player").scrollIntoView();
  Player.parts.lanes.element.focus({ preventScroll: true });
}

// -- moves ---------------------------------------------------------------------------

function go(step) {
  Player.step = Math.max(0, Math.min(step, Player.trace.steps.length));
  show();
}

/** One step on; at the end of a schedule that goes round, to where it began to. */
function forward() {
  const { trace, step } = Player;
  go(trace.cycle && step === trace.steps.length ? trace.cycle : step + 1);
}

function nextTree() {
  for (let n = Player.step + 1; n < Player.states.length; n++) {
    if (treeDiffers(Player.states[n - 1], Player.states[n])) {
      go(n);
      return;
    }
  }
  Player.parts.live.textContent = "No later step changes a table.";
}

function nextLoss() {
  const losses = lossesOf(Player.trace);
  if (losses.length) go(losses.find((n) => n > Player.step) || losses[0]);
}

function toCycle() {
  if (Player.trace.cycle) go(Player.trace.cycle);
}

const MOVES = {
  ArrowRight: forward,
  ArrowDown: forward,
  ArrowLeft: () => go(Player.step - 1),
  ArrowUp: () => go(Player.step - 1),
  PageDown: () => go(Player.step + 10),
  PageUp: () => go(Player.step - 10),
  Home: () => go(0),
  End: () => go(Player.trace.steps.length),
  l: nextLoss,
  t: nextTree,
  c: toCycle,
};

/** A move that a reader asked for. */
function move(act) {
  act();
  remember();
}

function press(event) {
  const typing = /^(SELECT|INPUT)$/.test(event.target.tagName);
  if (event.ctrlKey || event.altKey || event.metaKey || typing || !Player.trace) return;
  // The state scrolls by itself; the steps go on from anywhere else.
  if (event.target === Player.parts.state && !/^(ArrowLeft|ArrowRight|[a-z])$/.test(event.key))
    return;
  if (!MOVES[event.key]) return;
  event.preventDefault();
  move(MOVES[event.key]);
}

let timer = 0;

/** Put schedule and step into the address; a browser allows few changes in a short time. */
function remember() {
  clearTimeout(timer);
  const url = `#play=${Player.number}&step=${Player.step}`;
  timer = setTimeout(() => history.replaceState(null, "", url), 250);
}

// -- what is seen --------------------------------------------------------------------

function controlsOf(trace) {
  const button = (text, key, title) =>
    make(
      "button",
      {
        type: "button",
        onclick: () => move(MOVES[key]),
        title: `${title} (${key})`,
        "aria-keyshortcuts": key,
      },
      text,
    );
  const slider = make("input", {
    type: "range",
    min: 0,
    max: trace.steps.length,
    value: 0,
    "aria-label": "Step",
  });
  slider.addEventListener("input", () => move(() => go(Number(slider.value))));
  const where = make("span", { class: "where" });
  const element = make(
    "div",
    { class: "controls", role: "group", "aria-label": "Move" },
    button("|◀ first", "Home", "Before the first step"),
    button("◀ back", "ArrowLeft", "One step back"),
    button("forward ▶", "ArrowRight", "One step forward"),
    button("last ▶|", "End", "After the last step"),
    button("next table change", "t", "To the next step that changes a table"),
    lossesOf(trace).length
      ? button("✗ loss", "l", "To the step at which a property is lost")
      : null,
    trace.cycle ? button("↻ cycle", "c", "To the step from which it goes on for ever") : null,
    slider,
    where,
  );
  return { element, slider, where };
}

/** Build what belongs to one schedule. */
function buildStage() {
  const { trace } = Player;
  const lanes = lanesOf(trace, (step) => move(() => go(step)));
  const parts = {
    lanes,
    controls: controlsOf(trace),
    live: make("p", { class: "live", "aria-live": "polite", "aria-atomic": "true" }),
    changes: make("div", { class: "changes" }),
    state: scrolling("state", "State after the step"),
    trees: make("div", { class: "trees" }),
  };
  Player.parts = parts;
  const every = make("input", { type: "checkbox" });
  every.checked = Player.every;
  every.addEventListener("change", () => {
    Player.every = every.checked;
    show();
  });
  const since = make("select");
  const choices = [
    ["step", "the step before"],
    ["start", "the beginning"],
  ];
  fillSelect(since, [["", choices]], Player.since);
  since.addEventListener("change", () => {
    Player.since = since.value;
    show();
  });
  const how = trace.cycle ? "by going on so" : "at the end";
  const atEnd = trace.lost.map(([property, sentence]) =>
    make("p", { class: "lost" }, make("strong", {}, `✗ ${property} is lost ${how}: `), sentence),
  );
  const replay = [
    "kvmarch explore",
    trace.scenario,
    ...machineOptions(trace),
    "--replay",
    trace.schedule,
  ];
  byId("player-stage").replaceChildren(
    make("p", { class: "trace-title" }, trace.title),
    parts.controls.element,
    parts.live,
    make(
      "div",
      { class: "beside" },
      make("div", {}, lanes.element, atEnd),
      make(
        "div",
        {},
        parts.changes,
        make("label", { class: "check" }, every, " also what never changes in this schedule"),
        parts.state,
      ),
    ),
    make(
      "h3",
      { class: "with-choice" },
      "Stage-2 tables ",
      make("label", {}, "after the step, beside ", since),
    ),
    parts.trees,
    make(
      "ul",
      { class: "notes" },
      trace.notes.map((note) => make("li", {}, note)),
      make("li", {}, "the same in a terminal: ", make("code", {}, replay.join(" "))),
    ),
  );
}

function show() {
  const { trace, parts, step } = Player;
  const now = Player.states[step];
  const before = Player.states[Math.max(step - 1, 0)];
  const taken = step ? trace.steps[step - 1] : null;
  parts.controls.slider.value = step;
  parts.controls.where.textContent = `${step} of ${trace.steps.length}`;
  parts.lanes.show(step, now);
  parts.live.replaceChildren(...stepSays(trace, taken, step));
  const changes = taken ? (taken.c || []).map((n) => make("li", {}, textOf(n))) : [];
  parts.changes.replaceChildren(
    make("h3", {}, taken ? "What the step changes" : "Before the first step"),
    changes.length
      ? make("ul", {}, changes)
      : make("p", { class: "empty" }, "nothing, locks apart"),
  );
  parts.state.replaceChildren(...stateTables(now, before));
  const first = step ? `After step ${step}` : "Before the first step";
  const earlier = step > 1 ? `After step ${step - 1}` : "Before the first step";
  const [base, name] =
    Player.since === "start" ? [Player.states[0], "At the beginning"] : [before, earlier];
  parts.trees.replaceChildren(...treePair(base, now, [name, first]));
}

/** What a step does and loses, as elements and texts. */
function stepSays(trace, taken, step) {
  const losses = taken ? [...(taken.x || [])] : [];
  if (step === trace.steps.length) losses.push(...trace.lost);
  const task = taken ? trace.tasks[taken.t] : "";
  const says = taken
    ? `Step ${step} of ${trace.steps.length}, ${task}: ${stepText(taken) || "goes on"}.`
    : "Before the first step.";
  const lost = losses.map(([property, sentence]) =>
    make("strong", { class: "lost" }, ` ✗ ${property} is lost: ${sentence}.`),
  );
  return [says, ...lost];
}

/** The rows of the state, a table for each group. */
function stateTables(now, before) {
  const seen = ({ rows }) =>
    [...rows].filter(([key]) => Player.every || Player.moving.has(key)).map(([, row]) => row);
  const pairs = rowPairs(seen(before), seen(now));
  const name = ([old, here]) => (here || old)[1];
  const tables = DATA.groups.map((group) => {
    const lines = pairs
      .filter(([old, here]) => (here || old)[0] === group)
      .toSorted((a, b) => name(a).localeCompare(name(b), "en", { numeric: true }))
      .map(([old, here]) => stateRow(old, here));
    if (!lines.length) return null;
    return make("table", {}, make("caption", {}, group), make("tbody", {}, lines));
  });
  const found = tables.filter(Boolean);
  return found.length ? found : [make("p", { class: "empty" }, "nothing changes in this schedule")];
}

function stateRow(old, here) {
  const [, name] = here || old;
  let state = "changed";
  let text = [make("del", {}, old ? old[2] : ""), " → ", make("ins", {}, here ? here[2] : "")];
  if (!old) [state, text] = ["added", make("ins", {}, here[2])];
  else if (!here) [state, text] = ["removed", make("del", {}, old[2])];
  else if (old[2] === here[2]) [state, text] = ["same", here[2]];
  const [sign, said] = STATES[state];
  return make(
    "tr",
    { class: state },
    make(
      "th",
      { scope: "row" },
      make("span", { class: "sign", "aria-hidden": "true" }, sign),
      soft(name),
      state === "same" ? null : make("span", { class: "hidden" }, `, ${said}`),
    ),
    make("td", {}, text),
  );
}

// -- the beginning -------------------------------------------------------------------

/** The schedule to begin with: of a loss, of the first post of which one is shown. */
function firstTrace() {
  const order = Object.keys(DATA.posts);
  const tags = new Map(DATA.scenarios.map((scenario) => [scenario.name, scenario.tags]));
  const rank = (trace) => {
    const post = order.findIndex((tag) => tags.get(trace.scenario).includes(tag));
    return post < 0 ? order.length : post;
  };
  const lossy = DATA.traces.map((trace, n) => [trace, n]).filter(([trace]) => trace.property);
  const [first] = lossy.toSorted(([a], [b]) => rank(a) - rank(b));
  return first ? first[1] : 0;
}

export function startPlayer() {
  if (!DATA.traces.length) {
    byId("player-stage").append(make("p", { class: "empty" }, "No schedule was followed."));
    return;
  }
  byId("player-form").append(
    namedSelect("player-scenario", "Scenario"),
    namedSelect("player-trace", "Schedule"),
  );
  const names = [...new Set(DATA.traces.map((trace) => trace.scenario))];
  fillSelect(byId("player-scenario"), [["", names.map((name) => [name, name])]], names[0]);
  const firstOf = (name) => DATA.traces.findIndex((trace) => trace.scenario === name);
  const choose = (number) => move(() => openTrace(number, 0));
  byId("player-scenario").addEventListener("change", (event) =>
    choose(firstOf(event.target.value)),
  );
  byId("player-trace").addEventListener("change", (event) => choose(Number(event.target.value)));
  byId("player-form").addEventListener("submit", (event) => event.preventDefault());
  byId("player-stage").addEventListener("keydown", press);
  const asked = /^#play=(\d+)(?:&step=(\d+))?$/.exec(location.hash);
  if (asked && DATA.traces[Number(asked[1])]) {
    openTrace(Number(asked[1]), asked[2] ? Number(asked[2]) : null);
    byId("player").scrollIntoView({ behavior: "instant" });
    Player.parts.lanes.element.focus({ preventScroll: true });
  } else {
    openTrace(firstTrace());
  }
}
