// Somebody whom training never saw: what they would be shown, from the items that are picked for them.
import * as api from "./api.js";
import { announce, arrows, calm, count, empty, failure, h } from "./dom.js";
import { cover, titleOf } from "./tile.js";
import { makeWall } from "./wall.js";

const FOUND = 30;
const MOST = 100; // picked items

export function makeVisitor() {
  const picked = new Map(); // id → item, in the order of picking
  const heading = h("h1", { tabindex: "-1" }, "A visitor");
  const facts = h("p", { class: "muted facts" });
  const head = h("div", { class: "person-head" }, heading, facts);
  const strip = h("ul", { class: "strip" });
  const clear = h("button", { type: "button", class: "quiet", onclick: () => change(() => picked.clear()) }, "Clear");
  const wall = makeWall({
    request: () => ({ history: [...picked.keys()] }),
    seen: async () => [...picked.values()],
    history: strip,
  });
  const finder = makeItemFinder(picked, (item) => change(() => toggle(item)));
  const person = h("div", { class: "person" });
  const element = h("div", { class: "people" }, finder.element, person);
  const history = h(
    "section",
    { "aria-labelledby": "picked-title" },
    h("div", { class: "row" }, h("h2", { id: "picked-title" }, "Picked for them"), clear),
    strip,
  );
  const nobody = empty(
    "Nothing picked yet",
    "Pick what they have watched: the list of somebody who is in no log appears at once, and nothing is trained.",
  );
  let asking = new AbortController();
  let stale = false;
  let lost = []; // ids of the address that cannot be found

  addEventListener("firstlight:changed", () => {
    stale = true;
  });

  /** The address says what is picked, so that reload and links work. */
  async function update({ items }) {
    const known = items.length === picked.size && items.every((id) => picked.has(id));
    if (stale) finder.find(true);
    if (known && person.childElementCount) {
      if (stale && picked.size) wall.load(true);
      stale = false;
      return;
    }
    stale = false;
    asking.abort();
    asking = new AbortController();
    const { signal } = asking;
    const answers = await Promise.allSettled(items.slice(0, MOST).map((id) => api.item(id, signal)));
    if (signal.aborted) return;
    picked.clear();
    for (const { value } of answers) if (value) picked.set(value.id, value);
    lost = items.slice(0, MOST).filter((id) => !picked.has(id));
    draw();
    if (lost.length) announce(`${count(lost.length, "item")} of this address cannot be found`);
  }

  function toggle(item) {
    if (picked.delete(item.id)) return;
    if (picked.size < MOST) picked.set(item.id, item);
    else announce(`${MOST} items are the most`);
  }

  function change(how) {
    how();
    lost = [];
    const words = [...picked.keys()].map((id) => `item=${encodeURIComponent(id)}`).join("&");
    window.history.replaceState(null, "", `#/visitor${words && `?${words}`}`);
    draw();
  }

  function draw() {
    const fresh = !person.contains(wall.section);
    const known = picked.size ? count(picked.size, "item") : "In no log, never trained on";
    facts.textContent = lost.length ? `${known}; cannot be found: ${lost.join(", ")}` : known;
    strip.replaceChildren(...[...picked.values()].map(entry));
    finder.mark();
    if (!picked.size) {
      wall.stop();
      wall.reset(true);
      person.replaceChildren(head, nobody);
      return;
    }
    if (fresh) person.replaceChildren(head, history, wall.section);
    wall.load(fresh);
  }

  function entry(item, place) {
    const out = () => {
      change(() => picked.delete(item.id));
      const left = strip.querySelectorAll("button");
      (left[Math.min(place, left.length - 1)] ?? finder.field).focus();
      announce(`${titleOf(item)} taken out`);
    };
    const words = `Take out ${titleOf(item)}`;
    return h(
      "li",
      {},
      h(
        "button",
        { type: "button", class: "tile", "data-item": item.id, title: words, "aria-label": words, onclick: out },
        h("span", { class: "frame" }, cover(item), h("span", { class: "out", "aria-hidden": "true" }, "✕")),
      ),
    );
  }

  return { element, update, title: () => "Visitor" };
}

/** The search for items, and those that it found. */
function makeItemFinder(picked, onpick) {
  const list = h("ul", { class: "found", id: "found-items" });
  const field = h("input", {
    type: "search",
    id: "which",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "Search by title or id",
    "aria-controls": "found-items",
  });
  const element = h(
    "section",
    { class: "finder", "aria-label": "Choose items" },
    h("label", { for: "which" }, "Find an item"),
    field,
    list,
  );
  let asking = new AbortController();

  function mark() {
    for (const one of list.querySelectorAll("button[data-item]")) {
      one.setAttribute("aria-pressed", String(picked.has(one.dataset.item)));
    }
  }

  async function find(first) {
    asking.abort();
    asking = new AbortController();
    const { signal } = asking;
    list.setAttribute("aria-busy", "true");
    try {
      const { items } = await api.items(field.value.trim(), FOUND, signal);
      if (signal.aborted) return;
      list.replaceChildren(
        ...items.map((item) =>
          h(
            "li",
            {},
            h(
              "button",
              { type: "button", "data-item": item.id, "aria-pressed": "false", onclick: () => onpick(item) },
              h("span", { class: "frame", "aria-hidden": "true" }, cover(item)),
              h("span", { class: "name", dir: "auto" }, titleOf(item)),
            ),
          ),
        ),
      );
      if (!items.length) {
        const words = field.value.trim() ? `Nothing is called “${field.value.trim()}”` : "This catalogue is empty";
        list.replaceChildren(h("li", {}, empty(words, null)));
        announce(words);
      } else if (!first) announce(`${count(items.length, "item")} found`);
      mark();
    } catch (problem) {
      if (!signal.aborted) list.replaceChildren(h("li", {}, failure(problem, () => find(false))));
    } finally {
      if (!signal.aborted) list.removeAttribute("aria-busy");
    }
  }

  field.addEventListener("input", calm(160, () => find(false)));
  arrows(element, () => [field, ...list.querySelectorAll("button[data-item]")]);
  find(true);
  return { element, field, mark, find };
}
