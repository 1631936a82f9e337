// One item, close up, over whatever view it was opened from.
import { similar } from "./api.js";
import { announce, count, empty, failure, h, listed } from "./dom.js";
import { cover, groupOf, newMark, skeleton, tile, titleOf } from "./tile.js";

let asking = new AbortController();

/** Open an item. Items beside it open in its place; Escape leads back to where it was opened. */
export function openItem(item) {
  const dialog = document.getElementById("item");
  const group = groupOf(item.why);
  const beside = h("div", { class: "beside" });
  const heading = h("h2", { id: "item-title", tabindex: "-1", dir: "auto" }, titleOf(item));
  dialog.replaceChildren(
    h("button", { type: "button", class: "quiet close", "aria-label": "Close", onclick: () => dialog.close() }, "✕"),
    h(
      "div",
      { class: "closeup" },
      h("div", { class: "frame" }, cover(item, { eager: true }), item.new && newMark()),
      h(
        "div",
        {},
        heading,
        h("p", { class: "muted" }, h("bdi", {}, item.id)),
        item.new && h("p", {}, "Nobody has clicked it in training: its place comes from its content."),
        item.why &&
          h(
            "p",
            {},
            "Here because of ",
            h("q", { dir: "auto" }, titleOf({ id: item.why.item, title: item.why.title })),
            item.why.view ? `, most alike by ${item.why.view}.` : ".",
          ),
        group.length > 0 &&
          h(
            "p",
            { class: "group" },
            `By ${item.why.view} the model groups it with `,
            ...listed(group, (name) => h("q", { dir: "auto" }, name)),
            ".",
          ),
        h(
          "p",
          { class: "actions" },
          h("a", { href: `#/map?item=${encodeURIComponent(item.id)}` }, "See it on the map"),
          h("a", { href: `#/visitor?item=${encodeURIComponent(item.id)}` }, "Recommend from it"),
        ),
      ),
    ),
    h("h3", {}, "Items like it"),
    beside,
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  heading.focus();
  fill(item, beside);
}

async function fill(item, beside) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  beside.replaceChildren(skeleton(6, "wall small"));
  try {
    const { items } = await similar(item.id, 10, signal);
    if (signal.aborted) return;
    if (items.length) beside.replaceChildren(h("ol", { class: "wall small" }, ...items.map((one) => tile(one))));
    else beside.replaceChildren(empty("Nothing is like it", "The catalogue holds no other item."));
    announce(`${titleOf(item)}: ${count(items.length, "similar item")}`);
  } catch (problem) {
    if (!signal.aborted) beside.replaceChildren(failure(problem, () => fill(item, beside)));
  }
}

export function closeItem() {
  asking.abort();
  document.getElementById("item").close();
}

/** A press on the backdrop closes, as people expect. */
export function setUpDialog() {
  const dialog = document.getElementById("item");
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("close", () => asking.abort());
}
