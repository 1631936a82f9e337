// The wall of recommendations, whoever they are for.
import * as api from "./api.js";
import { announce, count, empty, failure, h } from "./dom.js";
import { skeleton, tile } from "./tile.js";

const PAGE = 24;
const MOST = 96;

/**
 * A section with the list and the choice of what may be in it.
 * @param {Object} options `request()`: who it is for, as the API takes it; `seen()`: promise of the items of the history;
 *   `history`: element whose entries light up as the reason of what is pointed at; `marked()`: id of an item that
 *   stands out, or null.
 */
export function makeWall({ request, seen, history, marked = () => null }) {
  const controls = h("div", { class: "controls", role: "group", "aria-label": "Which items" });
  const wall = h("div", {});
  const state = { k: PAGE, onlyNew: false };
  let asking = new AbortController();
  const section = h(
    "section",
    { "aria-labelledby": "wall-title" },
    h("div", { class: "row" }, h("h2", { id: "wall-title" }, "Recommended"), controls),
    wall,
  );
  controls.append(choice("All items", false), choice("New only", true));
  press();

  /** Ask and draw; `fresh`: for somebody else than before. */
  async function load(fresh) {
    asking.abort();
    asking = new AbortController();
    const { signal } = asking;
    if (fresh) wall.replaceChildren(skeleton(12));
    wall.setAttribute("aria-busy", "true");
    try {
      const wanted = { ...request(), k: state.k, only_new: state.onlyNew };
      const [{ items, basis, unknown = [] }, past] = await Promise.all([api.recommend(wanted, signal), seen()]);
      if (!signal.aborted) draw(items, new Map(past.map((one) => [one.id, one.cover])), basis === "popular", unknown);
    } catch (problem) {
      if (!signal.aborted) wall.replaceChildren(failure(problem, () => load(true)));
    } finally {
      if (!signal.aborted) wall.removeAttribute("aria-busy");
    }
  }

  function draw(items, covers, popular, unknown) {
    const onreason = (id) => {
      for (const one of history.querySelectorAll("[data-item]")) {
        one.classList.toggle("lit", id !== null && one.dataset.item === id);
      }
    };
    const entries = items.map((item, place) =>
      tile(item, {
        historyCover: item.why && covers.get(item.why.item),
        marked: item.id === marked(),
        onreason,
        eager: place < 6,
      }),
    );
    const fresh = items.filter((item) => item.new).length;
    const words = popular ? count(items.length, "popular item") : `${count(items.length, "recommendation")}, ${fresh} of them new`;
    if (!items.length) {
      const hint = state.onlyNew ? "Every new item has been seen, or there is none." : "Everything has been seen.";
      wall.replaceChildren(...gone(unknown), empty("Nothing to recommend", hint));
      announce("Nothing to recommend");
      return;
    }
    const focused = wall.contains(document.activeElement);
    const before = wall.querySelectorAll("li").length;
    const list = h("ol", { class: "wall", "aria-label": words }, ...entries);
    const told = "Training saw no click of this person, so these are the items with most clicks.";
    wall.replaceChildren(...gone(unknown), ...(popular ? [h("p", { class: "muted told" }, told)] : []), list);
    if (items.length >= state.k && state.k < MOST) {
      const more = () => {
        state.k += PAGE;
        load(false);
      };
      wall.append(h("button", { type: "button", class: "more", onclick: more }, "Show more"));
    }
    if (focused) wall.querySelectorAll(".tile")[before]?.focus({ preventScroll: true });
    announce(words);
    const found = wall.querySelector(".marked");
    if (found) found.scrollIntoView({ block: "center" });
    else if (marked()) announce(`${words}. The item looked for is further down.`);
  }

  /** What of the history plays no part. */
  function gone(unknown) {
    return unknown.length ? [h("p", { class: "muted told" }, `Not in the catalogue: ${unknown.join(", ")}`)] : [];
  }

  function choice(label, value) {
    const take = () => {
      if (state.onlyNew === value) return;
      Object.assign(state, { onlyNew: value, k: PAGE });
      press();
      load(true);
    };
    return h("button", { type: "button", onclick: take }, label);
  }

  function press() {
    [...controls.children].forEach((one, at) => one.setAttribute("aria-pressed", String(state.onlyNew === (at === 1))));
  }

  return {
    section,
    load,
    stop: () => asking.abort(),
    /** Begin at the top again; `everything`: with old and new items. */
    reset(everything) {
      state.k = PAGE;
      if (everything) state.onlyNew = false;
      press();
    },
  };
}
