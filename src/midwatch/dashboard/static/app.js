// What HTML alone cannot do: keys, copying, current ages, the theme, and saying whether the page is live.
"use strict";

(() => {
  const page = document.body.dataset.page || "";
  document.documentElement.classList.add("js");

  // Theme: follows the system until the reader chooses; the choice is kept in a cookie so that the server draws it at once.
  function toggleTheme() {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    document.cookie = `midwatch_theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=lax`;
  }
  document.getElementById("theme").addEventListener("click", toggleTheme);

  // Ages, in the same steps as the server writes them.
  function age(seconds) {
    if (seconds < 5) return "now";
    if (seconds < 60) return `${Math.floor(seconds)} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
    if (seconds < 86400) return `${Math.floor(seconds / 3600)} h`;
    return `${Math.floor(seconds / 86400)} d`;
  }
  function refreshAges() {
    for (const time of document.querySelectorAll("time[data-age]")) {
      const text = age(Math.max(0, (Date.now() - Date.parse(time.dateTime)) / 1000));
      if (time.textContent !== text) time.textContent = text;
    }
  }
  setInterval(refreshAges, 5000);

  // Copy: the clipboard where the browser allows it (https or this machine), else the text is left selected.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    let done = "copied";
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      const range = document.createRange();
      range.selectNodeContents(source);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      done = "selected";
    }
    const before = button.dataset.label ?? button.textContent;
    button.dataset.label = before;
    button.textContent = done;
    setTimeout(() => { button.textContent = before; }, 1500);
  });

  // Keys: j and k move through the rows of the list, or the cited lines of an incident.
  function move(step) {
    const stops = [...document.querySelectorAll(page === "list" ? "[data-row]" : "[data-cited]")];
    if (!stops.length) return;
    const here = stops.indexOf(document.activeElement);
    const next = here < 0 ? (step > 0 ? 0 : stops.length - 1) : Math.min(stops.length - 1, Math.max(0, here + step));
    stops[next].focus({preventScroll: true});
    stops[next].scrollIntoView({block: "nearest"});
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
    if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "t") toggleTheme();
    else if (event.key === "u" && page === "incident") location.assign("/");
    else return;
    event.preventDefault();
  });

  // Live or not: a page that silently stopped would be worse than none.
  const live = document.getElementById("live");
  function say(state, words) {
    if (!live) return;
    live.dataset.live = state;
    live.querySelector(".live-text").textContent = words;
  }
  document.addEventListener("htmx:sse:after:connection", (event) => {
    const status = event.detail.connection.status;
    if (status >= 200 && status < 300) say("on", "live");
  });
  document.addEventListener("htmx:sse:error", () => say("off", "reconnecting"));
  document.addEventListener("htmx:sse:close", () => say("off", "not live: reload the page"));
  document.addEventListener("htmx:error", () => say("off", "not live: reload the page"));
})();
