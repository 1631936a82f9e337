// A person: what they have seen, and what they would see next.
import * as api from "./api.js";
import { announce, calm, count, empty, failure, h } from "./dom.js";
import { openItem } from "./item.js";
import { cover, skeleton, tile, titleOf } from "./tile.js";

const PAGE = 24;
const MOST = 96;

export function makePeople() {
  const finder = makeFinder();
  const heading = h("h1", { tabindex: "-1" }, "People");
  const facts = h("p", { class: "muted facts" });
  const history = h("div", { class: "history" });
  const controls = h("div", { class: "controls" });
  const wall = h("div", {});
  const person = h("div", { class: "person" });
  const element = h("div", { class: "people" }, finder.element, person);
  const state = { id: null, marked: null, k: PAGE, onlyNew: false, stale: false };
  let asking = new AbortController();
  let askingWall = new AbortController();
  let known = Promise.resolve([]);

  addEventListener("firstlight:changed", () => {
    state.stale = true;
  });

  function update({ id, item }) {
    finder.choose(id);
    if (id === state.id && item === state.marked && !state.stale && person.childElementCount) return;
    if (id !== state.id) state.k = PAGE;
    Object.assign(state, { id, marked: item, stale: false });
    if (item) state.onlyNew = false;
    load();
  }

  function load() {
    asking.abort();
    askingWall.abort();
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
    drawControls();
    person.replaceChildren(
      h("div", { class: "person-head" }, heading, facts),
      h("section", { "aria-labelledby": "history-title" }, h("h2", { id: "history-title" }, "History"), history),
      h(
        "section",
        { "aria-labelledby": "wall-title" },
        h("div", { class: "row" }, h("h2", { id: "wall-title" }, "Recommended"), controls),
        wall,
      ),
    );
    known = loadHistory(asking.signal);
    loadWall(true);
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

  async function loadWall(fresh) {
    askingWall.abort();
    askingWall = new AbortController();
    const { signal } = askingWall;
    if (fresh) wall.replaceChildren(skeleton(12));
    wall.setAttribute("aria-busy", "true");
    try {
      const request = { user: state.id, k: state.k, only_new: state.onlyNew };
      const [{ items }, seen] = await Promise.all([api.recommend(request, signal), known]);
      if (!signal.aborted) drawWall(items, new Map(seen.map((one) => [one.id, one.cover])));
    } catch (problem) {
      if (!signal.aborted) wall.replaceChildren(failure(problem, () => loadWall(true)));
    } finally {
      if (!signal.aborted) wall.removeAttribute("aria-busy");
    }
  }

  function drawWall(items, covers) {
    const onreason = (id) => {
      for (const one of history.querySelectorAll("[data-item]")) {
        one.classList.toggle("lit", id !== null && one.dataset.item === id);
      }
    };
    const entries = items.map((item, place) =>
      tile(item, {
        historyCover: item.why && covers.get(item.why.item),
        marked: item.id === state.marked,
        onreason,
        eager: place < 6,
      }),
    );
    const fresh = items.filter((item) => item.new).length;
    const words = `${count(items.length, "recommendation")}, ${fresh} of them new`;
    if (!items.length) {
      const hint = state.onlyNew ? "Every new item has been seen, or there is none." : "Everything has been seen.";
      wall.replaceChildren(empty("Nothing to recommend", hint));
      announce("Nothing to recommend");
      return;
    }
    const focused = wall.contains(document.activeElement);
    const before = wall.querySelectorAll("li").length;
    wall.replaceChildren(h("ol", { class: "wall", "aria-label": words }, ...entries));
    if (items.length >= state.k && state.k < MOST) {
      const more = () => {
        state.k += PAGE;
        loadWall(false);
      };
      wall.append(h("button", { type: "button", class: "more", onclick: more }, "Show more"));
    }
    if (focused) wall.querySelectorAll(".tile")[before]?.focus({ preventScroll: true });
    announce(words);
    const marked = wall.querySelector(".marked");
    if (marked) marked.scrollIntoView({ block: "center" });
    else if (state.marked) announce(`${words}. The item looked for is further down.`);
  }

  function drawControls() {
    const choice = (label, value) =>
      h(
        "button",
        {
          type: "button",
          "aria-pressed": String(state.onlyNew === value),
          onclick: () => {
            if (state.onlyNew === value) return;
            Object.assign(state, { onlyNew: value, k: PAGE });
            for (const one of controls.children) {
              one.setAttribute("aria-pressed", String(one === controls.children[Number(value)]));
            }
            loadWall(true);
          },
        },
        label,
      );
    controls.replaceChildren(choice("All items", false), choice("New only", true));
    controls.setAttribute("role", "group");
    controls.setAttribute("aria-label", "Which items");
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
  element.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const stops = [field, ...list.querySelectorAll("a")];
    const next = stops[stops.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1)];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  find(true);

  return {
    element,
    choose(id) {
      chosen = id;
      mark();
    },
  };
}
