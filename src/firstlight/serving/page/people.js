// A person: what they have seen, and what they would see next.
import * as api from "./api.js";
import { announce, arrows, calm, count, empty, failure, h } from "./dom.js";
import { openItem } from "./item.js";
import { cover, skeleton, titleOf } from "./tile.js";
import { makeWall } from "./wall.js";

export function makePeople() {
  const finder = makeFinder();
  const heading = h("h1", { tabindex: "-1" }, "People");
  const facts = h("p", { class: "muted facts" });
  const history = h("div", { class: "history" });
  const person = h("div", { class: "person" });
  const element = h("div", { class: "people" }, finder.element, person);
  const state = { id: null, marked: null, stale: false };
  let asking = new AbortController();
  let known = Promise.resolve([]);
  const wall = makeWall({
    request: () => ({ user: state.id }),
    seen: () => known,
    history,
    marked: () => state.marked,
  });

  addEventListener("firstlight:changed", () => {
    state.stale = true;
  });

  function update({ id, item }) {
    finder.choose(id);
    if (id === state.id && item === state.marked && !state.stale && person.childElementCount) return;
    if (id !== state.id || item) wall.reset(Boolean(item));
    Object.assign(state, { id, marked: item, stale: false });
    load();
  }

  function load() {
    asking.abort();
    wall.stop();
    asking = new AbortController();
    if (state.id === null) {
      heading.textContent = "Whose first light?";
      const words = "Pick someone to see what they have watched and what they would be shown next.";
      person.replaceChildren(heading, empty(words, "Items that nobody has clicked yet carry the mark “New”."));
      return;
    }
    heading.replaceChildren(h("bdi", {}, state.id));
    facts.textContent = "\u00a0";
    history.replaceChildren(skeleton(12, "strip"));
    person.replaceChildren(
      h("div", { class: "person-head" }, heading, facts),
      h("section", { "aria-labelledby": "history-title" }, h("h2", { id: "history-title" }, "History"), history),
      wall.section,
    );
    known = loadHistory(asking.signal);
    wall.load(true);
  }

  async function loadHistory(signal) {
    try {
      const { history: seen, clicks } = await api.user(state.id, 60, signal);
      if (signal.aborted) return [];
      facts.textContent = count(clicks, "click");
      if (seen.length) history.replaceChildren(strip(seen));
      else history.replaceChildren(empty("No clicks yet", null));
      return seen;
    } catch (problem) {
      if (!signal.aborted) history.replaceChildren(failure(problem, load));
      return [];
    }
  }

  return { element, update, title: () => (state.id === null ? "People" : state.id) };
}

function strip(seen) {
  const entries = seen.map((item) =>
    h(
      "li",
      {},
      h(
        "button",
        {
          type: "button",
          class: "tile",
          "data-item": item.id,
          title: titleOf(item),
          "aria-label": titleOf(item),
          onclick: () => openItem(item),
        },
        h("span", { class: "frame" }, cover(item)),
      ),
    ),
  );
  return h("ul", { class: "strip" }, ...entries);
}

/** The search and its list of people. */
function makeFinder() {
  const list = h("ul", { class: "found", id: "found" });
  const field = h("input", {
    type: "search",
    id: "who",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "Search by id",
    "aria-controls": "found",
  });
  const element = h(
    "section",
    { class: "finder", "aria-label": "Choose a person" },
    h("label", { for: "who" }, "Find a person"),
    field,
    list,
  );
  let chosen = null;
  let asking = new AbortController();

  function mark() {
    for (const link of list.querySelectorAll("a")) {
      if (link.dataset.user === chosen) {
        link.setAttribute("aria-current", "true");
        // Within the list only: scrollIntoView would move the page, too.
        list.scrollTop = Math.max(0, link.offsetTop - list.clientHeight / 2);
        list.scrollLeft = Math.max(0, link.offsetLeft - list.clientWidth / 2);
      } else link.removeAttribute("aria-current");
    }
  }

  async function find(first) {
    asking.abort();
    asking = new AbortController();
    const { signal } = asking;
    const query = field.value.trim();
    list.setAttribute("aria-busy", "true");
    try {
      const { users } = await api.users(query, 50, signal);
      if (signal.aborted) return;
      list.replaceChildren(
        ...users.map((user) =>
          h(
            "li",
            {},
            h(
              "a",
              { href: `#/people/${encodeURIComponent(user.id)}`, "data-user": user.id },
              h("bdi", { class: "name" }, user.id),
              h("span", { class: "muted" }, count(user.clicks, "click")),
            ),
          ),
        ),
      );
      if (!users.length) {
        const words = query ? `Nobody is called “${query}”` : "This catalogue has no users";
        list.replaceChildren(h("li", {}, empty(words, null)));
        announce(words);
      } else if (!first) announce(`${count(users.length, "person", "people")} found`);
      mark();
    } catch (problem) {
      if (!signal.aborted) list.replaceChildren(h("li", {}, failure(problem, () => find(false))));
    } finally {
      if (!signal.aborted) list.removeAttribute("aria-busy");
    }
  }

  field.addEventListener("input", calm(160, () => find(false)));
  arrows(element, () => [field, ...list.querySelectorAll("a")]);
  find(true);

  return {
    element,
    choose(id) {
      chosen = id;
      mark();
    },
  };
}
