/* What the parts of the page share: the data, building of elements, themes. */
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);

/** Make an element. Attributes that are null or false are left out; children are
    elements or texts, never markup. */
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === false || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null));
  return element;
}

const byId = (id) => document.getElementById(id);

function plural(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** The place of a release among all others, to compare two of them. */
function releaseOrder(name) {
  const [major, minor] = name.slice(1).split(".").map(Number);
  return major * 1000 + minor;
}

/** A select with options; `groups` is a list of [label, [[value, text]…]]. */
function fillSelect(select, groups, chosen) {
  const made = groups.map(([label, options]) => {
    const inside = options.map(([value, text]) =>
      make("option", { value, selected: String(value) === String(chosen) }, text),
    );
    return label ? make("optgroup", { label }, inside) : inside;
  });
  select.replaceChildren(...made.flat());
}

/** One tab stop for many buttons: arrow keys move among those of `rows`, which are
    lists of buttons. Columns are matched by `at` (the first column of a button). */
function roving(container, rows, at = (button, index) => index) {
  const every = rows.flat();
  if (!every.length) return;
  every.forEach((button) => (button.tabIndex = -1));
  every[0].tabIndex = 0;
  const choose = (button) => {
    every.forEach((other) => (other.tabIndex = other === button ? 0 : -1));
    button.focus();
  };
  container.addEventListener("keydown", (event) => {
    const row = rows.findIndex((buttons) => buttons.includes(event.target));
    if (row < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const buttons = rows[row];
    const index = buttons.indexOf(event.target);
    let next = null;
    if (event.key === "ArrowRight") next = buttons[index + 1];
    else if (event.key === "ArrowLeft") next = buttons[index - 1];
    else if (event.key === "Home") next = buttons[0];
    else if (event.key === "End") next = buttons[buttons.length - 1];
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const other = rows[row + (event.key === "ArrowDown" ? 1 : -1)];
      const here = at(event.target, index);
      if (other) {
        next = other.filter((button, n) => at(button, n) <= here).pop() || other[0];
      }
    } else return;
    event.preventDefault();
    if (next) choose(next);
  });
  container.addEventListener("focusin", (event) => {
    if (!every.includes(event.target)) return;
    every.forEach((other) => (other.tabIndex = other === event.target ? 0 : -1));
  });
}

function setTheme(choice) {
  const root = document.documentElement;
  if (choice === "auto") delete root.dataset.theme;
  else root.dataset.theme = choice;
  for (const button of document.querySelectorAll("[data-theme-choice]")) {
    const on = button.dataset.themeChoice === choice;
    button.setAttribute("aria-pressed", String(on));
  }
  try {
    localStorage.setItem("kvmarch-theme", choice);
  } catch {
    /* A page from a file may be refused a memory; it then asks the system again. */
  }
}

function startTheme() {
  let choice = "auto";
  try {
    choice = localStorage.getItem("kvmarch-theme") || "auto";
  } catch {
    choice = "auto";
  }
  for (const button of document.querySelectorAll("[data-theme-choice]")) {
    button.addEventListener("click", () => setTheme(button.dataset.themeChoice));
  }
  setTheme(choice);
}
