// Keys for the buttons of the page, and an order of answers that is dragged or moved. The page works without it.
"use strict";

const announce = (text) => { document.getElementById("announcement").textContent = text; };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest("input, textarea, select, button, a, summary") && event.key === "Enter") return;
  if (event.target.closest("input, textarea, select, .handle")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const button = [...document.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key);
  if (button) { event.preventDefault(); button.click(); }
});

// A form is sent once. Coming back by the browser's button makes it fresh again.
for (const form of document.forms) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });
}
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

const list = document.querySelector(".answers.ranking");
if (list) {
  const items = () => [...list.children];
  const settle = (item) => {
    items().forEach((each, place) => { each.querySelector("select").value = String(place + 1); });
    announce(`Answer ${item.dataset.name} has rank ${items().indexOf(item) + 1} of ${items().length}`);
  };
  const move = (item, place) => {
    const others = items().filter((each) => each !== item);
    const at = Math.max(0, Math.min(place, others.length));
    list.insertBefore(item, others[at] || null);
    settle(item);
    item.querySelector(".handle").focus();
  };
  for (const item of items()) {
    const handle = document.createElement("button");
    handle.type = "button";
    handle.className = "handle";
    handle.textContent = "↕";
    handle.setAttribute("aria-label", `Move answer ${item.dataset.name}: drag, arrow keys, or a number`);
    item.querySelector(".answer-head").prepend(handle);
    handle.addEventListener("keydown", (event) => {
      const place = items().indexOf(item);
      if (event.key === "ArrowUp") move(item, place - 1);
      else if (event.key === "ArrowDown") move(item, place + 1);
      else if (event.key === "Enter") document.querySelector("button[value=ranking]").click();
      else if (/^[1-9]$/.test(event.key)) move(item, Number(event.key) - 1);
      else return;
      event.preventDefault();
    });
    handle.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      handle.focus();
      handle.setPointerCapture(event.pointerId);
      item.classList.add("dragged");
    });
    handle.addEventListener("pointermove", (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const middle = (each) => { const box = each.getBoundingClientRect(); return box.top + box.height / 2; };
      const before = items().find((each) => each !== item && event.clientY < middle(each));
      if (before !== item.nextElementSibling) {
        list.insertBefore(item, before || null);
        if (!handle.hasPointerCapture(event.pointerId)) handle.setPointerCapture(event.pointerId);
      }
    });
    const drop = () => { if (item.classList.contains("dragged")) { item.classList.remove("dragged"); settle(item); } };
    handle.addEventListener("pointerup", drop);
    handle.addEventListener("pointercancel", drop);
  }
}
