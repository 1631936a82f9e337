// Which view is shown: the part of the address after "#" says it, so that reload, back and links work.
import { makeAdd } from "./add.js";
import { keepToken } from "./api.js";
import { closeItem, setUpDialog } from "./item.js";
import { makeMap } from "./map.js";
import { makePeople } from "./people.js";
import { makeVisitor } from "./visitor.js";

const MAKERS = { people: makePeople, visitor: makeVisitor, add: makeAdd, map: makeMap };
const made = {}; // Views stay as they were left: what was typed, found or zoomed is there when one comes back.
let shown = null;

/** `#/people/ID?item=ID` → `{view, id, item, items}` */
function route() {
  const [path, query = ""] = location.hash.slice(1).split("?");
  const [, view, id] = path.split("/");
  let name = null;
  try {
    name = id ? decodeURIComponent(id) : null;
  } catch {
    // Half an escape, typed by hand.
  }
  const items = new URLSearchParams(query).getAll("item");
  return { view: view in MAKERS ? view : "people", id: name, item: items[0] ?? null, items };
}

function show(first) {
  const where = route();
  const main = document.getElementById("main");
  closeItem();
  if (shown && shown !== where.view) made[shown].scroll = scrollY;
  const view = (made[where.view] ??= MAKERS[where.view]());
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === where.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (shown !== where.view) {
    main.replaceChildren(view.element);
    scrollTo(0, view.scroll ?? 0);
  }
  shown = where.view;
  view.update(where);
  document.title = `${view.title()} · firstlight`;
  // Whoever cannot see the change is put where it begins; on loading the page the browser begins at the top.
  if (!first) view.element.querySelector("h1")?.focus({ preventScroll: true });
}

/** `#token=…`: a link for those who may write. The secret leaves the address at once. */
function takeToken() {
  if (!location.hash.startsWith("#token=")) return;
  keepToken(new URLSearchParams(location.hash.slice(1)).get("token"));
  history.replaceState(null, "", `${location.pathname}${location.search}#/add`);
}

takeToken();
setUpDialog();
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // The address belongs to the views.
  document.getElementById("main").focus();
});
addEventListener("hashchange", () => {
  takeToken();
  show(false);
});
show(true);
