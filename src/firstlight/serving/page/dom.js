// Elements without markup: everything that comes from data goes in as text, so nothing of it can be code.

/**
 * Make an element.
 * @param {string} tag
 * @param {Object} [props] `class`, `on*` listeners, `data-*`/`aria-*` and other attributes; false and null are left out.
 * @param {...(Node|string|null|false)} children Strings become text nodes.
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

let clearing = 0;

/** Tell a screen reader; the same words twice in a row are told twice. */
export function announce(words) {
  const live = document.getElementById("live");
  clearTimeout(clearing);
  live.textContent = "";
  clearing = setTimeout(() => {
    live.textContent = words;
  }, 60);
}

/** The function, called once things have been quiet for `ms`. */
export function calm(ms, run) {
  let timer = 0;
  return (...words) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...words), ms);
  };
}

/** Let the arrow keys go up and down between stops; `stops()` gives them in order. */
export function arrows(element, stops) {
  element.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const all = stops();
    const next = all[all.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1)];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
}

const rules = new Intl.PluralRules("en", { type: "ordinal" });
const numbers = new Intl.NumberFormat("en");

/** 1st, 2nd, 3rd, … */
export function ordinal(n) {
  return numbers.format(n) + { one: "st", two: "nd", few: "rd", other: "th" }[rules.select(n)];
}

const lists = new Intl.ListFormat("en");

/** "a", "a and b", "a, b, and c", each wrapped by `wrap`: the pieces as nodes and strings. */
export function listed(words, wrap) {
  return lists.formatToParts(words).map(({ type, value }) => (type === "element" ? wrap(value) : value));
}

/** "1 item", "2,000 items". */
export function count(n, one, many = `${one}s`) {
  return `${numbers.format(n)} ${n === 1 ? one : many}`;
}

/** Nothing to show, and what to do about it. */
export function empty(title, detail, ...actions) {
  return h("div", { class: "state" }, h("p", { class: "state-title" }, title), detail && h("p", {}, detail), ...actions);
}

/** What went wrong, and a way to try again. */
export function failure(problem, again) {
  return h(
    "div",
    { class: "state bad", role: "alert" },
    h("p", { class: "state-title" }, problem.title || "Something went wrong"),
    problem.message && h("p", {}, problem.message),
    again && h("button", { type: "button", onclick: again }, "Try again"),
  );
}
