// Comfort only: the page is complete without it. A filter, a switch that opens everything, jumps from the map.
// Works on what the server drew; builds no markup out of text.
(() => {
  "use strict";
  const responses = [...document.querySelectorAll("details.response")];
  const groups = [...document.querySelectorAll(".group")];
  const tools = document.getElementById("tools");
  const find = document.getElementById("find");
  const all = document.getElementById("all");
  const found = document.getElementById("found");
  const heat = document.getElementById("heat");

  const filter = () => {
    const wanted = find.value.trim().toLowerCase();
    let shown = 0;
    for (const response of responses) {
      response.hidden = wanted !== "" && !response.textContent.toLowerCase().includes(wanted);
      if (!response.hidden) shown += 1;
    }
    for (const group of groups) {
      group.hidden = wanted !== "" && !group.querySelector("details.response:not([hidden])");
    }
    found.textContent = wanted === "" ? "" : `${shown} of ${responses.length}`;
  };
  find.addEventListener("input", filter);

  all.addEventListener("click", () => {
    const open = all.getAttribute("aria-pressed") !== "true";
    all.setAttribute("aria-pressed", String(open));
    all.textContent = open ? "Close all" : "Open all";
    for (const response of responses) response.open = open;
  });

  const reveal = (id) => {
    const target = document.getElementById(id);
    if (!target) return;
    const box = target.closest("details");
    if (box) {
      box.hidden = false;
      box.closest(".group").hidden = false;
      box.open = true;
    }
    (box ?? target).scrollIntoView({ block: "start" });
  };
  heat.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-r]");
    if (cell) reveal(`r${cell.dataset.r}`);
  });
  const follow = () => {
    if (/^#r\d+$/.test(location.hash)) reveal(location.hash.slice(1));
  };
  addEventListener("hashchange", follow);
  follow();

  tools.hidden = false;
  document.documentElement.classList.add("scripted");
})();
