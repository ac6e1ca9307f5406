"use strict";
// Live parts: the server renders them again and sends the HTML of those that have changed.
(() => {
  // The notice about a command is shown once.
  if (location.search.startsWith("?done=")) history.replaceState(null, "", location.pathname);

  const address = document.body.dataset.events;
  const connection = document.getElementById("connection");
  if (!address) return;

  const show = (state, text) => {
    if (connection.dataset.state === state) return;
    connection.dataset.state = state;
    connection.textContent = text;
  };

  // A form that somebody fills in is left alone.
  const isInUse = (part) => [...part.querySelectorAll("input")].some(
    (input) => input.type !== "hidden" && (input === document.activeElement || input.value !== input.defaultValue));

  const replace = (part, html) => {
    const active = part.contains(document.activeElement) ? document.activeElement : null;
    const all = (selector) => [...part.querySelectorAll(selector)];
    const place = active && all("a, button, summary, [tabindex]").indexOf(active);
    const scrolled = all(".wide").map((region) => region.scrollLeft);
    const opened = all("details").map((details) => details.open);
    part.innerHTML = html;
    all("details").forEach((details, index) => { if (opened[index]) details.open = true; });
    all(".wide").forEach((region, index) => { region.scrollLeft = scrolled[index] || 0; });
    if (active) all("a, button, summary, [tabindex]")[place]?.focus({ preventScroll: true });
  };

  let source = null;
  const connect = () => {
    source = new EventSource(address);
    source.addEventListener("open", () => show("live", "Live"));
    source.addEventListener("error", () => show("lost", "Not connected: is rowmill watch still running?"));
    source.addEventListener("parts", (event) => {
      for (const [name, html] of Object.entries(JSON.parse(event.data))) {
        const part = document.getElementById(name);
        if (part && !isInUse(part)) replace(part, html);
      }
    });
    source.addEventListener("announce", (event) => {
      document.getElementById("announcement").textContent = JSON.parse(event.data);
    });
  };

  // A page that nobody sees is not rendered again, and takes no connection from other tabs.
  const follow = () => {
    if (document.hidden) {
      source?.close();
      source = null;
    } else if (source === null) {
      connect();
    }
  };
  document.addEventListener("visibilitychange", follow);
  follow();
})();
