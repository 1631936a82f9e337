// The catalogue from above: near each other is alike. Points far out, covers close up.
import * as api from "./api.js";
import { announce, calm, count, empty, failure, h } from "./dom.js";
import { openItem } from "./item.js";
import { drawMap } from "./paint.js";
import { cover, newMark, titleOf } from "./tile.js";
import { topicsOf } from "./topics.js";
import { Viewport, normalise, towards } from "./viewport.js";

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const BESIDE = 44; // Pixels from the middle of an item to its card: half a cover, and some air.
const HELP =
  "Drag to move, scroll or pinch to zoom. With the keyboard: arrows go from item to item, plus and minus zoom, " +
  "0 shows everything, Enter opens.";

export function makeMap() {
  const canvas = h("canvas", { "aria-hidden": "true" });
  const card = h("div", { class: "card", hidden: true });
  const tool = (label, sign, run) =>
    h("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick: run }, sign);
  const stage = h("div", {
    class: "stage-keys",
    tabindex: "0",
    role: "application",
    "aria-label": "Map of the catalogue",
    "aria-describedby": "map-help",
  }, canvas, card);
  const tools = h(
    "div",
    { class: "tools", role: "group", "aria-label": "Zoom" },
    tool("Zoom in", "+", () => zoom(1.6)),
    tool("Zoom out", "−", () => zoom(1 / 1.6)),
    tool("Show everything", "⤢", whole),
  );
  const legend = h("ul", { class: "legend", "aria-label": "Topics" });
  const found = h("ul", { class: "found" });
  const search = h("input", { type: "search", id: "map-find", autocomplete: "off", placeholder: "Title or id" });
  const facts = h("p", { class: "muted" });
  const side = h(
    "aside",
    { "aria-label": "Find and filter" },
    h("label", { for: "map-find" }, "Find an item"),
    search,
    found,
    h("h2", {}, "Topics"),
    legend,
  );
  const frame = h("div", { class: "stage" });
  const element = h(
    "div",
    { class: "map" },
    h("div", { class: "map-head" }, h("h1", { tabindex: "-1" }, "Map"), facts),
    frame,
    side,
    h("p", { class: "muted help", id: "map-help" }, HELP),
  );

  const state = { points: [], view: new Viewport(), topics: [], chosen: null, cursor: null, onlyNew: false };
  let [stale, wanted, asked, painting] = [true, null, null, 0];

  // Data

  async function load() {
    asked?.abort();
    asked = new AbortController();
    const { signal } = asked;
    stale = false;
    frame.replaceChildren(h("div", { class: "ghost", "aria-hidden": "true" }));
    frame.setAttribute("aria-busy", "true");
    try {
      const { items } = await api.map(signal);
      if (!signal.aborted) take(items);
    } catch (problem) {
      if (signal.aborted) return;
      stale = true;
      frame.replaceChildren(failure(problem, load));
    } finally {
      if (!signal.aborted) frame.removeAttribute("aria-busy");
    }
  }

  function take(items) {
    state.points = normalise(items).map((point) => ({ ...point, cover: api.coverOf(point.id) }));
    state.topics = topicsOf(state.points);
    state.cursor = null;
    const fresh = state.points.filter((point) => point.new).length;
    facts.textContent = `${count(items.length, "item")}, ${fresh} of them new`;
    side.hidden = !items.length;
    if (!items.length) {
      frame.replaceChildren(empty("Nothing to map", "The catalogue is empty."));
      return;
    }
    frame.replaceChildren(stage, tools);
    drawLegend(fresh);
    measure();
    whole();
    announce(facts.textContent);
    goTo(wanted);
  }

  function goTo(id) {
    wanted = null;
    if (id === null || !state.points.length) return;
    const point = state.points.find((one) => one.id === id);
    if (point) {
      state.view.centre(point);
      pointAt(point);
    } else announce("This item is not on the map.");
  }

  // Drawing

  const visible = () =>
    state.points.filter(
      (point) => (state.chosen === null || point.topic === state.chosen) && (!state.onlyNew || point.new),
    );

  function paint() {
    cancelAnimationFrame(painting);
    painting = requestAnimationFrame(() => {
      drawMap(canvas, state, new Set(visible()), paint);
      placeCard();
    });
  }

  function measure() {
    const { clientWidth: width, clientHeight: height } = stage;
    if (!width) return;
    Object.assign(state.view, { width, height });
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.round(height * devicePixelRatio);
    paint();
  }

  function placeCard() {
    const point = state.cursor;
    card.hidden = point === null || !state.view.sees(point);
    if (card.hidden) return;
    const [x, y] = state.view.toScreen(point);
    const right = x + BESIDE + card.offsetWidth < state.view.width;
    const left = right ? x + BESIDE : x - BESIDE - card.offsetWidth;
    const top = Math.min(state.view.height - card.offsetHeight - 8, Math.max(8, y - card.offsetHeight / 2));
    card.style.transform = `translate(${Math.max(8, left)}px, ${top}px)`;
  }

  function pointAt(point, speak = true) {
    if (state.cursor === point) return paint();
    state.cursor = point;
    if (point) {
      const topic = state.topics.find((one) => one.topic === point.topic);
      card.replaceChildren(
        h("span", { class: "frame" }, cover(point, { eager: true }), point.new && newMark()),
        h("span", { class: "title", dir: "auto" }, titleOf(point)),
        h("span", { class: "muted" }, topic.label),
      );
      if (speak) announce(`${titleOf(point)}${point.new ? ", new" : ""}. ${topic.label}`);
    }
    return paint();
  }

  function drawLegend(fresh) {
    const entry = (label, size, pressed, swatch, press) =>
      h(
        "li",
        {},
        h("button", { type: "button", "aria-pressed": String(pressed), onclick: press }, swatch, h("span", {}, label), h("span", { class: "muted" }, String(size))),
      );
    const swatch = (colour) => {
      const dot = h("span", { class: "swatch", "aria-hidden": "true" });
      dot.style.setProperty("--dot", colour);
      return dot;
    };
    const refresh = (place) => {
      drawLegend(fresh);
      legend.querySelectorAll("button")[place].focus();
      paint();
    };
    legend.replaceChildren(
      entry("New items only", fresh, state.onlyNew, h("span", { class: "swatch diamond", "aria-hidden": "true" }), () => {
        state.onlyNew = !state.onlyNew;
        refresh(0);
      }),
      ...state.topics.map(({ topic, label, size, colour }, place) =>
        entry(label, size, state.chosen === topic, swatch(colour), () => {
          state.chosen = state.chosen === topic ? null : topic;
          refresh(place + 1);
        }),
      ),
    );
  }

  // What people do

  function zoom(factor, x, y) {
    state.view.zoomAt(factor, x, y);
    paint();
  }

  /** Zoom around the item that the keys are at, which stays in sight. */
  function zoomCursor(factor) {
    const { cursor, view } = state;
    if (cursor && view.sees(cursor)) zoom(factor, ...view.toScreen(cursor));
    else zoom(factor);
    if (cursor && factor > 1 && !view.sees(cursor, 60)) view.centre(cursor, view.zoom);
  }

  function whole() {
    state.view.reset();
    paint();
  }

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const under = (event) => state.view.nearest(visible(), ...place(event), event.pointerType === "touch" ? 26 : 16);

  const fingers = new Map();
  let travelled = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
    travelled = fingers.size > 1 ? Infinity : 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const from = fingers.get(event.pointerId);
    if (!from) {
      const point = under(event);
      canvas.classList.toggle("over", point !== null);
      pointAt(point, false);
      return;
    }
    const to = place(event);
    if (fingers.size === 2) {
      const [, other] = [...fingers].find(([id]) => id !== event.pointerId);
      const gap = ([x, y]) => Math.hypot(x - other[0], y - other[1]) || 1;
      zoom(gap(to) / gap(from), (to[0] + other[0]) / 2, (to[1] + other[1]) / 2);
    }
    state.view.pan((to[0] - from[0]) / fingers.size, (to[1] - from[1]) / fingers.size);
    travelled += Math.hypot(to[0] - from[0], to[1] - from[1]);
    fingers.set(event.pointerId, to);
    paint();
  });
  canvas.addEventListener("pointerup", (event) => {
    const point = travelled < 6 ? under(event) : null;
    fingers.delete(event.pointerId);
    if (point) {
      pointAt(point, false);
      openItem(point);
    }
  });
  canvas.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("pointerleave", () => {
    if (document.activeElement !== stage) pointAt(null);
  });
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), ...place(event));
    },
    { passive: false },
  );
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { view } = state;
    const act = {
      "+": () => zoomCursor(1.6),
      "=": () => zoomCursor(1.6),
      "-": () => zoomCursor(1 / 1.6),
      0: whole,
      Enter: () => state.cursor && openItem(state.cursor),
    }[event.key];
    if (act) act();
    else if (event.key in ARROWS) {
      const points = visible();
      const next = state.cursor
        ? towards(points, state.cursor, ...ARROWS[event.key])
        : view.nearest(points, view.width / 2, view.height / 2, Infinity);
      if (!next) return announce("No item further this way.");
      pointAt(next);
      if (!view.sees(next, 40)) view.centre(next, view.zoom);
    } else return;
    event.preventDefault();
  });

  search.addEventListener(
    "input",
    calm(120, () => {
      const query = search.value.trim().toLowerCase();
      const hit = (point) => titleOf(point).toLowerCase().includes(query) || point.id.toLowerCase().includes(query);
      const hits = query ? state.points.filter(hit) : [];
      const show = (point) =>
        h("li", {}, h("button", { type: "button", onclick: () => { stage.focus(); goTo(point.id); } }, h("bdi", {}, titleOf(point)), point.new && newMark()));
      found.replaceChildren(...hits.slice(0, 6).map(show));
      if (query) announce(hits.length ? `${count(hits.length, "item")} found` : "No item found");
      if (query && !hits.length) found.append(h("li", { class: "muted" }, "No item found"));
    }),
  );
  new ResizeObserver(measure).observe(stage);
  addEventListener("firstlight:theme", paint);
  addEventListener("firstlight:changed", () => {
    stale = true;
  });

  function update({ item }) {
    wanted = item;
    if (stale) load();
    else goTo(item);
  }

  return { element, update, title: () => "Map" };
}
