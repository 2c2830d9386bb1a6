// Shows the progress as it is now, every five seconds. Without scripts the page has a link for it.
"use strict";

setInterval(async () => {
  if (document.hidden) return;
  try {
    const answer = await fetch("/owner", { credentials: "same-origin" });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const scrolled = document.querySelector(".scroll").scrollLeft;
    document.getElementById("main").replaceChildren(...page.getElementById("main").childNodes);
    document.querySelector(".scroll").scrollLeft = scrolled;
  } catch { /* the server is away; the next try may find it */ }
}, 5000);
