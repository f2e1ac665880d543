/* The player: a schedule, step by step, forward and back. */
"use strict";

const Player = { trace: -1, step: 0, states: [], since: "step", every: false, parts: {} };

Player.label = (trace) => {
  const where = [trace.arch, trace.kernel, trace.machine].filter(Boolean).join(" ");
  const what = trace.property ? `${trace.property} lost` : "the scenario's own schedule";
  return `${where}: ${what}, ${plural(trace.steps.length, "step")}`;
};

/** Show a schedule. Without a step: the one at which it loses its property. */
Player.open = (number, step, move) => {
  const trace = DATA.traces[number];
  Player.trace = number;
  Player.states = statesOf(trace);
  Player.keys = Player.moving(trace);
  byId("player-scenario").value = trace.scenario;
  Player.fill(trace.scenario, number);
  Player.stage(trace);
  const losses = Player.losses(trace);
  Player.go(step === null ? (losses.length ? losses[0] : trace.steps.length) : step);
  if (move) {
    byId("player").scrollIntoView();
    Player.parts.lanes.focus({ preventScroll: true });
  }
};

Player.losses = (trace) => {
  const found = [];
  trace.steps.forEach((step, n) => {
    const mine = (step.x || []).some(([property]) => !trace.property || property === trace.property);
    if (mine) found.push(n + 1);
  });
  return found;
};

Player.fill = (scenario, chosen) => {
  const options = DATA.traces
    .map((trace, n) => [n, Player.label(trace), trace.scenario])
    .filter(([, , name]) => name === scenario)
    .map(([n, text]) => [n, text]);
  fillSelect(byId("player-trace"), [["", options]], chosen);
};

function stepText(step) {
  const text = (n) => DATA.texts[n];
  if (step.l !== undefined) return `> ${text(step.l)}`;
  if (step.n !== undefined) return text(step.n);
  return step.r === undefined ? "" : `= ${text(step.r)}`;
}

function laneRow(trace, step, number) {
  const lost = (step.x || []).map(([property]) => make("strong", { class: "lost" }, `✗ ${property} is lost`));
  const cells = trace.tasks.map((task, n) =>
    make("td", { class: n === step.t ? "busy" : null }, n === step.t ? [make("span", { class: step.l === undefined ? null : "line" }, stepText(step) || "·"), lost] : null),
  );
  const row = make("tr", { class: lost.length ? "loss" : null, onclick: () => Player.go(number) }, make("th", { scope: "row" }, String(number)), cells);
  return row;
}

/** Build what belongs to one schedule. */
Player.stage = (trace) => {
  const parts = (Player.parts = {});
  parts.rows = trace.steps.map((step, n) => laneRow(trace, step, n + 1));
  const lines = [...parts.rows];
  if (trace.cycle) {
    const says = `from here on for ever: steps ${trace.cycle} to ${trace.steps.length}, again and again`;
    lines.splice(trace.cycle - 1, 0, make("tr", { class: "cycle" }, make("td", { colspan: trace.tasks.length + 1 }, `↻ ${says}`)));
  }
  parts.heads = trace.tasks.map((task) => make("th", { scope: "col" }, task, make("small", {})));
  const atEnd = trace.lost.map(([property, sentence]) => make("p", { class: "lost" }, make("strong", {}, `✗ ${property} is lost ${trace.cycle ? "by going on so" : "at the end"}: `), sentence));
  parts.lanes = make(
    "div",
    { class: "lanes scroll", tabindex: "0", role: "region", "aria-label": "Steps, one lane for each task; arrow keys step" },
    make("table", {}, make("caption", { class: "hidden" }, trace.title), make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "step"), parts.heads)), make("tbody", {}, lines)),
  );
  const button = (text, key, act, title) => make("button", { type: "button", onclick: act, title: `${title} (${key})`, "aria-keyshortcuts": key }, text);
  parts.slider = make("input", { type: "range", min: 0, max: trace.steps.length, value: 0, "aria-label": "Step" });
  parts.slider.addEventListener("input", () => Player.go(Number(parts.slider.value)));
  parts.where = make("output", { class: "where" });
  const controls = make(
    "div",
    { class: "controls", role: "group", "aria-label": "Move" },
    button("|◀ first", "Home", () => Player.go(0), "Before the first step"),
    button("◀ back", "ArrowLeft", () => Player.go(Player.step - 1), "One step back"),
    button("forward ▶", "ArrowRight", Player.forward, "One step forward"),
    button("last ▶|", "End", () => Player.go(trace.steps.length), "After the last step"),
    button("next table change", "t", Player.nextTree, "To the next step that changes a table"),
    Player.losses(trace).length ? button("✗ loss", "l", Player.nextLoss, "To the step at which a property is lost") : null,
    parts.slider,
    parts.where,
  );
  parts.live = make("p", { class: "live", "aria-live": "polite", "aria-atomic": "true" });
  parts.changes = make("div", { class: "changes" });
  parts.state = make("div", { class: "state scroll", tabindex: "0", role: "region", "aria-label": "State after the step" });
  parts.tree = make("div", { class: "trees" });
  const every = make("input", { type: "checkbox" });
  every.checked = Player.every;
  every.addEventListener("change", () => {
    Player.every = every.checked;
    Player.show();
  });
  const since = make("select", {}, [["step", "the step before"], ["start", "the beginning"]].map(([value, text]) => make("option", { value, selected: value === Player.since }, text)));
  since.addEventListener("change", () => {
    Player.since = since.value;
    Player.show();
  });
  const notes = make("ul", { class: "notes" }, trace.notes.map((note) => make("li", {}, note)));
  const replay = ["kvmarch explore", trace.scenario, ...machineOptions(trace), "--replay", trace.schedule].join(" ");
  notes.append(make("li", {}, "the same in a terminal: ", make("code", {}, replay)));
  const stage = byId("player-stage");
  stage.replaceChildren(
    make("p", { class: "trace-title" }, trace.title),
    controls,
    parts.live,
    make(
      "div",
      { class: "beside" },
      make("div", {}, parts.lanes, atEnd),
      make("div", {}, parts.changes, make("label", { class: "check" }, every, " also what never changes in this schedule"), parts.state),
    ),
    make("h3", { class: "with-choice" }, "Stage-2 tables ", make("label", {}, "after the step, beside ", since)),
    parts.tree,
    notes,
  );
};

/** The rows of state that some step of the schedule changes. */
Player.moving = (trace) => {
  const keys = new Set();
  for (const step of trace.steps) {
    for (let n = 0; n < (step.s || []).length; n += 3) keys.add(`${step.s[n]} ${step.s[n + 1]}`);
    for (let n = 0; n < (step.g || []).length; n += 2) keys.add(`${step.g[n]} ${step.g[n + 1]}`);
  }
  return keys;
};

Player.go = (step) => {
  const trace = DATA.traces[Player.trace];
  Player.step = Math.max(0, Math.min(step, trace.steps.length));
  Player.show();
  if (Player.quiet) return;
  // A browser allows few changes of the address in a short time.
  clearTimeout(Player.timer);
  const url = `#play=${Player.trace}&step=${Player.step}`;
  Player.timer = setTimeout(() => history.replaceState(null, "", url), 250);
};

/** One step on; at the end of a schedule that goes round, to where it began to. */
Player.forward = () => {
  const trace = DATA.traces[Player.trace];
  const again = trace.cycle && Player.step === trace.steps.length;
  Player.go(again ? trace.cycle : Player.step + 1);
};

Player.nextTree = () => {
  for (let n = Player.step + 1; n < Player.states.length; n++) {
    if (treeDiffers(Player.states[n - 1], Player.states[n])) return Player.go(n);
  }
  Player.parts.live.textContent = "No later step changes a table.";
};

Player.nextLoss = () => {
  const losses = Player.losses(DATA.traces[Player.trace]);
  Player.go(losses.find((n) => n > Player.step) || losses[0]);
};

/** What a task holds, read off the locks. */
function holdings(state, task) {
  const held = [];
  for (const [group, label, text] of state.rows.values()) {
    if (group !== "locks") continue;
    const mine = text.split(", ").find((holder) => holder.startsWith(`${task} (`));
    if (mine) held.push(mine.endsWith("(write)") ? label : `${label} ${mine.slice(task.length + 1)}`);
  }
  return held;
}

/** Mark the row of a step, and those that come after it; only what differs is touched. */
function markRows(parts, step) {
  const [from, to] = parts.marked === undefined ? [0, parts.rows.length] : [parts.marked, step].sort((a, b) => a - b);
  for (let n = Math.max(from, 1); n <= to; n++) {
    const row = parts.rows[n - 1];
    row.classList.toggle("current", n === step);
    row.classList.toggle("future", n > step);
    if (n === step) row.setAttribute("aria-current", "step");
    else row.removeAttribute("aria-current");
  }
  parts.marked = step;
}

Player.show = () => {
  const trace = DATA.traces[Player.trace];
  const { parts, step } = Player;
  const now = Player.states[step];
  const before = Player.states[Math.max(step - 1, 0)];
  const taken = step ? trace.steps[step - 1] : null;
  parts.slider.value = step;
  parts.where.textContent = `${step} of ${trace.steps.length}`;
  const task = taken ? trace.tasks[taken.t] : "";
  const changes = taken ? (taken.c || []).map((n) => DATA.texts[n]) : [];
  const losses = taken ? [...(taken.x || [])] : [];
  const words = taken ? `Step ${step} of ${trace.steps.length}, ${task}: ${stepText(taken) || "goes on"}.` : "Before the first step.";
  if (step === trace.steps.length) losses.push(...trace.lost);
  parts.live.replaceChildren(words, ...losses.map(([property, sentence]) => make("strong", { class: "lost" }, ` ✗ ${property} is lost: ${sentence}.`)));
  markRows(parts, step);
  const row = parts.rows[Math.max(step - 1, 0)];
  const { lanes } = parts;
  if (row) lanes.scrollTop = step ? row.offsetTop - lanes.clientHeight / 2 : 0;
  parts.heads.forEach((head, n) => {
    const held = holdings(now, trace.tasks[n]);
    head.lastChild.textContent = held.length ? `holds ${held.join(", ")}` : "holds nothing";
  });
  const title = taken ? "What the step changes" : "Before the first step";
  parts.changes.replaceChildren(make("h3", {}, title), changes.length ? make("ul", {}, changes.map((one) => make("li", {}, one))) : make("p", { class: "empty" }, "nothing that is watched"));
  drawState(now, before);
  const base = Player.since === "start" ? Player.states[0] : before;
  const names = [Player.since === "start" ? "At the beginning" : step > 1 ? `After step ${step - 1}` : "Before the first step", step ? `After step ${step}` : "Before the first step"];
  parts.tree.replaceChildren(...treePair(base, now, names));
};

function drawState(now, before) {
  const keys = new Set([...before.rows.keys(), ...now.rows.keys()]);
  const moving = Player.every ? null : Player.keys;
  const groups = DATA.groups.map((group) => {
    const lines = [];
    for (const key of keys) {
      const [old, here] = [before.rows.get(key), now.rows.get(key)];
      const [of, label] = here || old;
      if (of !== group || (moving && !moving.has(key))) continue;
      const same = old && here && old[2] === here[2];
      const state = same ? "same" : !old ? "added" : !here ? "removed" : "changed";
      const text = same ? [here[2]] : [old ? make("del", {}, old[2]) : null, old && here ? " → " : null, here ? make("ins", {}, here[2]) : null];
      lines.push([label, make("tr", { class: state }, make("th", { scope: "row" }, make("span", { class: "sign" }, STATES[state][0]), label), make("td", {}, text))]);
    }
    if (!lines.length) return null;
    lines.sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
    return make("table", {}, make("caption", {}, group), make("tbody", {}, lines.map(([, line]) => line)));
  });
  Player.parts.state.replaceChildren(...groups.filter(Boolean));
}

Player.press = (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || /^(SELECT|INPUT)$/.test(event.target.tagName)) return;
  // The state scrolls by itself; the steps go on from anywhere else.
  if (event.target === Player.parts.state && !/^(ArrowLeft|ArrowRight|l|t)$/.test(event.key)) return;
  const last = DATA.traces[Player.trace].steps.length;
  const moves = {
    ArrowRight: Player.forward,
    ArrowDown: Player.forward,
    ArrowLeft: () => Player.go(Player.step - 1),
    ArrowUp: () => Player.go(Player.step - 1),
    PageDown: () => Player.go(Player.step + 10),
    PageUp: () => Player.go(Player.step - 10),
    Home: () => Player.go(0),
    End: () => Player.go(last),
    l: Player.nextLoss,
    t: Player.nextTree,
  };
  if (!moves[event.key]) return;
  event.preventDefault();
  moves[event.key]();
};

/** The scenario to begin with: of the first post of which something is shown. */
function firstPost() {
  const lossy = DATA.traces.filter((trace) => trace.property).map((trace) => trace.scenario);
  const order = Object.keys(DATA.posts);
  const rank = (scenario) => scenario.tags.reduce((least, tag) => Math.min(least, order.indexOf(tag) >= 0 ? order.indexOf(tag) : order.length), order.length);
  const known = DATA.scenarios.filter((scenario) => lossy.includes(scenario.name));
  return known.sort((a, b) => rank(a) - rank(b)).map((scenario) => scenario.name)[0];
}

function startPlayer() {
  if (!DATA.traces.length) {
    byId("player-stage").append(make("p", { class: "empty" }, "No schedule was followed."));
    return;
  }
  const select = (id, text) => make("label", {}, `${text} `, make("select", { id }));
  byId("player-form").append(select("player-scenario", "Scenario"), select("player-trace", "Schedule"));
  const names = [...new Set(DATA.traces.map((trace) => trace.scenario))];
  fillSelect(byId("player-scenario"), [["", names.map((name) => [name, name])]], names[0]);
  const firstOf = (name) => DATA.traces.findIndex((trace) => trace.scenario === name);
  byId("player-scenario").addEventListener("change", (event) => Player.open(firstOf(event.target.value), 0));
  byId("player-trace").addEventListener("change", (event) => Player.open(Number(event.target.value), 0));
  byId("player-form").addEventListener("submit", (event) => event.preventDefault());
  byId("player-stage").addEventListener("keydown", Player.press);
  const asked = /^#play=(\d+)(?:&step=(\d+))?$/.exec(location.hash);
  const number = asked && DATA.traces[Number(asked[1])] ? Number(asked[1]) : -1;
  const lossy = DATA.traces.findIndex((trace) => trace.property && trace.scenario === firstPost());
  Player.quiet = number < 0;
  Player.open(number >= 0 ? number : Math.max(lossy, 0), number >= 0 && asked[2] ? Number(asked[2]) : null, number >= 0);
  Player.quiet = false;
}
