"use strict";
// The theme, the tips of marks by mouse, touch and arrow keys, and sortable tables. Nothing is fetched or stored.
const root = document.documentElement;
document.getElementById("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

const tip = document.getElementById("tip");
let current = null;
function show(mark) {
  if (current) current.classList.remove("now");
  current = mark;
  tip.classList.toggle("on", Boolean(mark));
  if (!mark) return;
  mark.classList.add("now");
  tip.textContent = mark.dataset.tip;
  const box = mark.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left + box.width / 2 - tip.offsetWidth / 2), innerWidth - tip.offsetWidth - 8);
  const above = box.top - tip.offsetHeight - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 4 ? above : box.bottom + 8}px`;
}
// The mark nearest to the pointer, if one is near: small dots are hard to hit.
function nearest(figure, x, y) {
  let best = null, least = 22;
  for (const mark of figure.querySelectorAll("[data-tip]")) {
    const box = mark.getBoundingClientRect();
    const dx = Math.max(box.left - x, 0, x - box.right), dy = Math.max(box.top - y, 0, y - box.bottom);
    const away = Math.hypot(dx, dy);
    if (away <= least) { best = mark; least = away; if (!away && mark.tagName === "rect") continue; }
  }
  return best;
}
for (const figure of document.querySelectorAll("svg")) {
  figure.addEventListener("pointermove", (event) => show(nearest(figure, event.clientX, event.clientY)));
  figure.addEventListener("pointerdown", (event) => show(nearest(figure, event.clientX, event.clientY)));
  figure.addEventListener("pointerleave", () => show(null));
  figure.addEventListener("blur", () => show(null));
  figure.addEventListener("keydown", (event) => {
    const marks = [...figure.querySelectorAll("[data-tip]")];
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") return show(null);
    if (!step || !marks.length) return undefined;
    event.preventDefault();
    const now = marks.indexOf(current);
    return show(marks[now < 0 ? 0 : (now + step + marks.length) % marks.length]);
  });
}

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
    const head = button.parentElement, up = head.getAttribute("aria-sort") !== "ascending";
    for (const each of table.querySelectorAll("th")) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return up ? order : -order;
    });
    body.append(...rows);
  }));
}
