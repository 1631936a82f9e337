// Covers: the picture of an item, or its title set as one where there is no picture.
import { h, listed } from "./dom.js";
import { openItem } from "./item.js";

let shaped = false;

/** Catalogues have covers of one shape, square or upright or wide: the first one that arrives sets the wall's. */
function shape(image) {
  if (shaped || !image.naturalWidth) return;
  shaped = true;
  const ratio = Math.min(16 / 9, Math.max(2 / 3, image.naturalWidth / image.naturalHeight));
  document.documentElement.style.setProperty("--cover-ratio", ratio.toFixed(4));
}

/** A steady hue for an item without a picture. */
function hue(id) {
  let sum = 7;
  for (const sign of id) sum = (sum * 31 + sign.codePointAt(0)) % 360;
  return sum;
}

/** The words that stand for an item. */
export const titleOf = (item) => item.title || item.id;

/** The picture. Its title stands beside it in text, so to a screen reader the picture adds nothing. */
export function cover(item, { eager = false } = {}) {
  const drawn = () => {
    const plain = h("span", { class: "cover plain", "aria-hidden": "true", dir: "auto" }, titleOf(item));
    plain.style.setProperty("--hue", hue(item.id));
    return plain;
  };
  if (!item.cover) return drawn();
  const image = h("img", { class: "cover", alt: "", decoding: "async", loading: eager ? "eager" : "lazy" });
  image.addEventListener("load", () => shape(image));
  image.addEventListener("error", () => image.replaceWith(drawn()));
  image.src = item.cover;
  return image;
}

export const newMark = () => h("span", { class: "new" }, "New");

/** The titles of the items that stand for the hyperedge of a reason: a group that training found. */
export const groupOf = (why) => (why?.hyperedge?.items ?? []).map(titleOf);

/** Why an item is in a list, in a line; null where the server gives no reason. */
function reason(why, historyCover) {
  if (!why) return null;
  const group = groupOf(why).filter((name) => name !== titleOf({ id: why.item, title: why.title }));
  return h(
    "p",
    { class: "why" },
    historyCover && cover({ id: why.item, title: why.title, cover: historyCover }),
    h(
      "span",
      { class: "why-text" },
      h("span", { class: "why-like" }, "like ", h("bdi", {}, titleOf({ id: why.item, title: why.title }))),
      why.view && h("span", { class: "why-view" }, h("span", { class: "unseen" }, ", "), `by ${why.view}`),
      group.length > 0 &&
        h(
          "span",
          { class: "why-group", title: `Grouped by ${why.view} with ${group.join(", ")}` },
          h("span", { class: "unseen" }, ", "),
          "grouped with ",
          ...listed(group, (name) => h("bdi", {}, name)),
        ),
    ),
  );
}

/**
 * One item of a wall.
 * @param {Object} item `{id, title, cover, new, why}`
 * @param {Object} [options] `historyCover`: picture of the reason; `marked`: it stands out; `onreason(id|null)`: called
 *   while the item is pointed at or focused.
 */
export function tile(item, { historyCover = null, marked = false, onreason = null, eager = false } = {}) {
  const button = h(
    "button",
    {
      type: "button",
      class: "tile",
      "data-item": item.id,
      "aria-label": item.new ? `${titleOf(item)}, new` : titleOf(item),
      onclick: () => openItem(item),
    },
    h("span", { class: "frame" }, cover(item, { eager }), item.new && newMark()),
    h("span", { class: "title", dir: "auto" }, titleOf(item)),
  );
  const entry = h("li", { class: marked ? "marked" : null }, button, reason(item.why, historyCover));
  if (onreason && item.why) {
    for (const [start, end] of [["pointerenter", "pointerleave"], ["focusin", "focusout"]]) {
      entry.addEventListener(start, () => onreason(item.why.item));
      entry.addEventListener(end, () => onreason(null));
    }
  }
  return entry;
}

/** A wall in the shape of what is about to come. */
export function skeleton(n, kind = "wall") {
  const ghosts = Array.from({ length: n }, () => h("li", {}, h("span", { class: "frame ghost" })));
  return h("ul", { class: kind, "aria-hidden": "true" }, ...ghosts);
}
