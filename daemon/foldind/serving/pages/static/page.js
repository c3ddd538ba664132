// Follows the daemon's events, and puts the parts of the page that changed in their places.
"use strict";

const AGAIN_MILLISECONDS = 3000;

const parts = new Map();
for (const part of document.querySelectorAll("[data-live]")) {
  parts.set(part.dataset.live, part);
}

function put(name, html) {
  const part = parts.get(name);
  if (!part) {
    return;
  }
  if (name === "said") {
    part.textContent = html;
    return;
  }
  const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
  const open = [...part.querySelectorAll("details")].map((details) => details.open);
  part.innerHTML = html;
  part.querySelectorAll("details").forEach((details, index) => {
    details.open = Boolean(open[index]);
  });
  if (focused) {
    document.getElementById(focused)?.focus({ preventScroll: true });
  }
}

function follow() {
  const events = new EventSource("/events");
  events.onmessage = (event) => {
    document.documentElement.dataset.connection = "live";
    for (const [name, html] of Object.entries(JSON.parse(event.data))) {
      put(name, html);
    }
  };
  events.onerror = () => {
    document.documentElement.dataset.connection = "lost";
    // After a refusal the browser gives up; else it comes again by itself.
    if (events.readyState === EventSource.CLOSED) {
      setTimeout(follow, AGAIN_MILLISECONDS);
    }
  };
  addEventListener("pagehide", () => events.close(), { once: true });
}

addEventListener("pageshow", (event) => {
  if (event.persisted) {
    follow();
  }
});
follow();
