"use strict";
(() => {
  const input = document.getElementById("search");
  const found = document.getElementById("found");
  const rows = [...document.querySelectorAll("[data-row]")];
  // Only the innermost: a finding is found by its own words, and so is each line in it.
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const opened = new Set();
  let pending = 0;

  const reveal = (element) => {
    for (let each = element; each; each = each.parentElement) {
      if (each.tagName === "DETAILS" && !each.open) {
        each.open = true;
        opened.add(each);
      }
    }
  };

  const search = () => {
    const words = input.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    for (const each of opened) each.open = false;
    opened.clear();
    let count = 0;
    rows.forEach((row, place) => {
      const matches = words.every((word) => texts[place].includes(word));
      row.hidden = words.length > 0 && !matches;
      if (words.length > 0 && matches) {
        count += 1;
        reveal(row);
      }
    });
    found.textContent = words.length ? `${count} found` : "";
  };

  const follow = () => {
    const name = decodeURIComponent(location.hash.slice(1));
    if (name.startsWith("q=")) {
      input.value = name.slice(2);
      search();
      return;
    }
    const target = name && document.getElementById(name);
    if (!target) return;
    if (target.hidden || target.closest("[hidden]")) {
      input.value = "";
      search();
    }
    reveal(target);
    const inner = target.querySelector(":scope > details");
    if (inner) inner.open = true;
    const marked = target.querySelector("mark");
    (marked || target).scrollIntoView({ block: marked ? "center" : "start" });
  };

  input.addEventListener("input", () => {
    clearTimeout(pending);
    pending = setTimeout(search, 120);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      input.value = "";
      search();
    }
  });
  document.getElementById("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/INPUT|TEXTAREA/.test(event.target.tagName)) {
      event.preventDefault();
      input.focus();
    }
  });
  window.addEventListener("hashchange", follow);
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((each) => {
      if (!each.closest("#log, #modules")) each.open = true;
    });
  });
  follow();
})();
