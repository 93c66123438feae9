"use strict";
// A live page loads itself again and keeps its place; everything else works without this script.
(() => {
  const root = document.documentElement;
  const boxes = () => [...document.querySelectorAll("details")];
  const toggle = document.getElementById("toggle-dialogues");
  if (toggle) {
    const dialogues = [...document.querySelectorAll("details.dialogue")];
    toggle.hidden = false;
    toggle.addEventListener("click", () => {
      const open = toggle.getAttribute("aria-pressed") !== "true";
      dialogues.forEach((box) => { box.open = open; });
      toggle.setAttribute("aria-pressed", String(open));
      toggle.textContent = open ? "Close all" : "Open all";
    });
  }
  const seconds = Number(root.dataset.refreshS || 0);
  if (!seconds) return;
  const key = "selfemo:" + location.pathname;
  const kept = JSON.parse(sessionStorage.getItem(key) || "{}");
  const pause = document.getElementById("pause");
  let paused = Boolean(kept.paused);
  boxes().forEach((box) => { if ((kept.open || []).includes(box.id)) box.open = true; });
  if (kept.scroll) scrollTo({ top: kept.scroll, behavior: "instant" });
  const keep = () => {
    const open = boxes().filter((box) => box.open && box.id).map((box) => box.id);
    sessionStorage.setItem(key, JSON.stringify({ open, paused, scroll: scrollY }));
  };
  const show = () => {
    pause.textContent = paused ? "Paused: follow again" : "Live: pause";
    pause.setAttribute("aria-pressed", String(paused));
  };
  pause.hidden = false;
  pause.addEventListener("click", () => { paused = !paused; show(); keep(); });
  show();
  setInterval(() => { if (!paused) { keep(); location.reload(); } }, seconds * 1000);
})();
