// A new item: a cover and a title go in, and where it lands comes back. Nothing is retrained.
import * as api from "./api.js";
import { announce, count, empty, failure, h, ordinal } from "./dom.js";
import { tile, titleOf } from "./tile.js";

const LISTS = 8; // Of the audience, as many people's lists are looked at,
const DEPTH = 100; // this far down.

export function makeAdd() {
  const picker = makePicker();
  const title = h("input", { id: "new-title", name: "title", autocomplete: "off", maxlength: "500" });
  const id = h("input", { id: "new-id", name: "id", autocomplete: "off", spellcheck: "false", maxlength: "200" });
  const replace = h("input", { id: "new-replace", type: "checkbox" });
  const secret = h("input", { id: "new-token", type: "password", autocomplete: "off", "aria-describedby": "token-why" });
  const send = h("button", { type: "submit", class: "primary" }, "Place it");
  const trouble = h("div", { class: "trouble" });
  const field = (label, input, hint) =>
    h("div", { class: "field" }, h("label", { for: input.id }, label), input, hint);
  const hint = (words, key) => h("p", { class: "muted", id: key }, words);
  const form = h(
    "form",
    { class: "add-form", novalidate: true },
    picker.element,
    field("Title", title),
    h(
      "details",
      {},
      h("summary", {}, "Id and access"),
      field("Id", id, hint("Left empty, one is made.")),
      h("div", { class: "check" }, replace, h("label", { for: "new-replace" }, "Replace an item that has this id")),
      field("Token", secret, hint("What the server asks of those who write. Kept until this tab closes.", "token-why")),
    ),
    send,
    trouble,
  );
  const result = h("section", { class: "landing", "aria-label": "Where it lands" });
  const element = h(
    "div",
    { class: "add" },
    h(
      "div",
      {},
      h("h1", { tabindex: "-1" }, "A new item"),
      h("p", { class: "lead" }, "Nobody has clicked it. Its cover and its title say where it belongs."),
      form,
    ),
    result,
  );
  result.append(empty("Nothing placed yet", "What resembles it, who would like it and its place in their lists appear here."));

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (send.getAttribute("aria-disabled") === "true") return;
    const file = picker.file();
    trouble.replaceChildren();
    if (!file && !title.value.trim()) {
      complain(new api.Problem("A cover or a title is needed", "Without either there is nothing to go by."), picker.input);
      return;
    }
    if (secret.value) api.keepToken(secret.value);
    const body = new FormData();
    if (file) body.set("cover", file);
    if (title.value.trim()) body.set("title", title.value.trim());
    if (id.value.trim()) body.set("id", id.value.trim());
    busy(true);
    try {
      const placed = await api.add(body, replace.checked);
      await land(result, placed, { id: placed.id, title: title.value.trim(), cover: file ? api.coverOf(placed.id) : null });
      form.reset();
      picker.clear();
      form.querySelector("details").open = false; // The token was right, and is kept.
    } catch (problem) {
      const refused = problem.status === 401 || problem.status === 403;
      if (refused) form.querySelector("details").open = true;
      complain(problem, refused ? secret : null);
    } finally {
      busy(false);
    }
  });

  function busy(on) {
    // Not "disabled": that would throw the focus away.
    send.setAttribute("aria-disabled", String(on));
    send.textContent = on ? "Placing…" : "Place it";
    if (on) form.setAttribute("aria-busy", "true");
    else form.removeAttribute("aria-busy");
  }

  function complain(problem, culprit) {
    trouble.replaceChildren(failure(problem, null));
    culprit?.focus();
  }

  form.querySelector("details").open = !api.token();
  api
    .version()
    .then(({ takes_new_items: takes }) => {
      const words = "This catalogue takes no new items";
      if (!takes) form.replaceWith(empty(words, "Its model knows items by their clicks only, not by their content."));
    })
    .catch(() => {}); // Whoever sends the form will be told.
  return { element, update: () => {}, title: () => "New item" };
}

/** Show where a new item landed. */
async function land(result, placed, item) {
  const shown = { ...item, new: true };
  const { similar = [], audience = [] } = placed;
  const heading = h("h2", { tabindex: "-1" }, h("bdi", {}, titleOf(item)), " is in");
  const places = h("ol", { class: "audience" });
  const undo = h("button", { type: "button", class: "quiet" }, "Take it out again");
  undo.addEventListener("click", async () => {
    try {
      await api.remove(item.id);
      result.replaceChildren(empty("Taken out", `${titleOf(item)} is no longer in the catalogue.`));
      announce("Taken out of the catalogue");
      document.getElementById("new-title").focus();
    } catch (problem) {
      undo.after(failure(problem, null));
    }
  });
  const big = h("ul", { class: "wall one" }, tile(shown, { eager: true }));
  result.replaceChildren(
    h(
      "div",
      { class: "arrived" },
      big,
      h(
        "div",
        {},
        heading,
        h("p", {}, "From now on it competes in everyone’s list. Nothing was retrained, and no other item moved."),
        h(
          "p",
          { class: "actions" },
          h("a", { class: "button", href: `#/map?item=${encodeURIComponent(item.id)}` }, "See it on the map"),
          undo,
        ),
      ),
    ),
    h("h3", {}, "What it resembles"),
    similar.length
      ? h("ol", { class: "wall small" }, ...similar.slice(0, 10).map((one) => tile(one)))
      : empty("Nothing", "It is the only item."),
    h("h3", {}, "Who would like it"),
    audience.length ? places : empty("Nobody to ask", "This catalogue has no users."),
  );
  heading.focus({ preventScroll: true });
  result.scrollIntoView({ block: "start" });
  announce(`Placed. ${count(similar.length, "similar item")}, ${count(audience.length, "person", "people")} would like it.`);
  await rank(places, audience.slice(0, LISTS), item.id);
}

/** The people who would like the item, each with its place in their list. */
async function rank(places, audience, item) {
  if (!audience.length) return;
  const rows = audience.map(({ user }) => {
    const place = h("span", { class: "place muted" }, "…");
    const where = `#/people/${encodeURIComponent(user)}?item=${encodeURIComponent(item)}`;
    places.append(h("li", {}, h("a", { href: where }, h("bdi", {}, user)), place));
    return place;
  });
  let answers = [];
  try {
    ({ answers } = await api.recommendBatch(audience.map(({ user }) => ({ user, k: DEPTH }))));
  } catch {
    // The item is in all the same.
  }
  rows.forEach((place, at) => {
    const found = answers[at]?.items?.findIndex((one) => one.id === item) ?? null;
    if (found === null) place.textContent = "place unknown";
    else place.textContent = found < 0 ? `not among the first ${DEPTH}` : `${ordinal(found + 1)} in their list`;
    place.classList.toggle("muted", found === null || found < 0);
  });
}

/** The field for the cover: press, drop or paste. */
function makePicker() {
  const input = h("input", { type: "file", id: "new-cover", accept: "image/*", class: "unseen" });
  const preview = h("canvas", { class: "preview", hidden: true, width: "480", height: "480", "aria-hidden": "true" });
  const words = h("span", { class: "drop-words" }, "Drop a cover here, or choose one");
  const zone = h("label", { class: "drop", for: "new-cover" }, preview, words);
  const element = h("div", { class: "field" }, input, zone);
  let file = null;

  async function take(candidate) {
    if (!candidate) return;
    file = candidate;
    words.textContent = candidate.name || "Pasted picture";
    zone.classList.add("full");
    preview.hidden = true;
    try {
      // Drawn, not linked: "blob:" need not be allowed as a source of images.
      const bitmap = await createImageBitmap(candidate);
      if (file !== candidate) return;
      const scale = Math.max(preview.width / bitmap.width, preview.height / bitmap.height);
      const [width, height] = [bitmap.width * scale, bitmap.height * scale];
      const [left, top] = [(preview.width - width) / 2, (preview.height - height) / 2];
      preview.getContext("2d").clearRect(0, 0, preview.width, preview.height);
      preview.getContext("2d").drawImage(bitmap, left, top, width, height);
      preview.hidden = false;
    } catch {
      words.textContent = `${candidate.name}: this browser cannot show it`; // The server has the last word.
    }
    announce(`Cover: ${words.textContent}`);
  }

  input.addEventListener("change", () => take(input.files[0]));
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    if (element.isConnected) take(event.clipboardData?.files[0]);
  });

  return {
    element,
    input,
    file: () => file,
    clear() {
      file = null;
      preview.hidden = true;
      zone.classList.remove("full");
      words.textContent = "Drop a cover here, or choose one";
    },
  };
}
