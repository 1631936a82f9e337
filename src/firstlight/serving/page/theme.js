// Light, dark or what the system says. Not a module: it runs before the first paint, so that nothing flashes.
"use strict";
(() => {
  const NAMES = ["system", "light", "dark"];
  const root = document.documentElement;
  let name = "system";
  try {
    name = localStorage.getItem("firstlight.theme") ?? name;
  } catch {
    // Storage may be forbidden; then the choice lasts as long as the page.
  }

  function apply(choice) {
    name = NAMES.includes(choice) ? choice : "system";
    if (name === "system") delete root.dataset.theme;
    else root.dataset.theme = name;
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = { system: "◐", light: "☀", dark: "☾" }[name] + "\uFE0E";
      button.title = `Colours: ${name}`;
      button.setAttribute("aria-label", `Colours: ${name}. Change`);
    }
    dispatchEvent(new Event("firstlight:theme"));
  }

  apply(name);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => apply(name));
  addEventListener("DOMContentLoaded", () => {
    apply(name);
    document.getElementById("theme").addEventListener("click", () => {
      apply(NAMES[(NAMES.indexOf(name) + 1) % NAMES.length]);
      try {
        localStorage.setItem("firstlight.theme", name);
      } catch {
        // See above.
      }
    });
  });
})();
