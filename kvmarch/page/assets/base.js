/* What the parts of the page share: the data, building of elements, themes. */

export const DATA = JSON.parse(document.getElementById("data").textContent);

/** Make an element. Attributes that are null or false are left out; children are
    elements or texts, never markup. */
export function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === false || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null));
  return element;
}

export const byId = (id) => document.getElementById(id);

export function plural(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}

/** A text that may go on in the next line after each underscore. */
export function soft(text) {
  return text.split(/(?<=_)/).flatMap((part, n) => (n ? [make("wbr"), part] : [part]));
}

/** What became of something between two releases or two steps: sign, words. */
export const STATES = {
  same: ["", "the same in both"],
  moved: ["⇄", "moved"],
  added: ["+", "added"],
  removed: ["−", "removed"],
  changed: ["≠", "changed"],
};

/** The place of a release among all others, to compare two of them. */
export function releaseOrder(name) {
  const [major, minor] = name.slice(1).split(".").map(Number);
  return major * 1000 + minor;
}

/** The options with which a command means the same machine. */
export function machineOptions({ arch, kernel, machine }) {
  const signs = { "+": "--with ", "-": "--without " };
  const words = machine.split(" ").filter(Boolean);
  const changes = words.map((word) =>
    signs[word[0]] ? signs[word[0]] + word.slice(1) : `--set ${word}`,
  );
  return ["-a", arch, "-k", kernel, ...changes];
}

/** A text of the data; each is there once, and told by its number. */
export const textOf = (number) => DATA.texts[number];

/** A region that scrolls by itself, also by keys. */
export function scrolling(look, label, ...children) {
  const about = { class: `${look} scroll`, tabindex: "0", role: "region", "aria-label": label };
  return make("div", about, ...children);
}

/** A select without options yet, and what it is called. */
export function namedSelect(id, text) {
  return make("label", {}, `${text} `, make("select", { id }));
}

/** A select with options; `groups` is a list of [label, [[value, text]…]]. */
export function fillSelect(select, groups, chosen) {
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
export function roving(container, rows, at = (button, index) => index) {
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
    else if (event.key === "End") next = buttons.at(-1);
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const other = rows[row + (event.key === "ArrowDown" ? 1 : -1)];
      const here = at(event.target, index);
      if (other) {
        next = other.findLast((button, n) => at(button, n) <= here) || other[0];
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

export function startTheme() {
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
