// Everything here is an addition: without it each page is complete, unsorted and unfiltered.
"use strict";

(() => {
  const root = document.documentElement;
  root.classList.add("js");

  const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("theme", theme); } catch { /* a private window */ } };
  const apply = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  apply(stored());

  const isDark = () =>
    root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  function themeButton(button) {
    const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
    button.addEventListener("click", () => {
      const next = isDark() ? "light" : "dark";
      remember(next);
      apply(next);
      label();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
    label();
  }

  function copyButton(pre) {
    if (!navigator.clipboard) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(pre.textContent);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Select and copy by hand";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    const box = document.createElement("div");
    box.className = "copyable";
    pre.replaceWith(box);
    box.append(pre, button);
  }

  // A cell sorts by its number where it has one (`data-n`, empty for "not known"), else by its text.
  function keyOf(row, column) {
    const cell = row.cells[column];
    if (!cell) return null;
    if (cell.dataset.n !== undefined) return cell.dataset.n === "" ? null : Number(cell.dataset.n);
    return cell.textContent.trim().toLowerCase();
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function sortable(table, changed) {
    const headings = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const original = [...body.rows];
    let state = null;

    function sort(column, direction) {
      state = direction ? { column, direction } : null;
      const sign = direction === "descending" ? -1 : 1;
      const rows = original.map((row, place) => ({ row, place, key: direction ? keyOf(row, column) : null }));
      rows.sort((a, b) => {
        // What is not known stands last, whichever way the rest is sorted.
        if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
        return sign * compare(a.key, b.key) || a.place - b.place;
      });
      body.append(...rows.map(({ row }) => row));
      headings.forEach((th, i) => {
        if (th.hasAttribute("aria-sort")) th.setAttribute("aria-sort", direction && i === column ? direction : "none");
      });
    }

    headings.forEach((th, column) => {
      if (th.dataset.fixed !== undefined) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...th.childNodes);
      th.append(button);
      th.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const same = state && state.column === column;
        sort(column, !same ? "ascending" : state.direction === "ascending" ? "descending" : null);
        changed();
      });
    });
    return { get: () => state, set: sort, headings };
  }

  function filterable(form, table, changed) {
    const rows = [...table.tBodies[0].rows];
    const texts = new Map(rows.map((row) => [row, row.cells[0].textContent.toLowerCase()]));
    const count = form.querySelector(".count");
    const fields = [...form.elements].filter((field) => field.name);

    function run() {
      const wanted = Object.fromEntries(fields.map((field) => [field.name, field.value]));
      const words = (wanted.q || "").toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const keep = words.every((word) => texts.get(row).includes(word))
          && ["family", "task", "verdict"].every((name) => !wanted[name] || row.dataset[name] === wanted[name]);
        row.hidden = !keep;
        shown += keep;
      }
      count.textContent = shown === rows.length ? `${rows.length} rows` : `${shown} of ${rows.length} rows`;
    }

    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => { run(); changed(); });
    form.addEventListener("reset", () => setTimeout(() => { run(); changed(); }));
    return { fields, run };
  }

  // The state of a filtered table lives in the address, so that a view can be linked to.
  function leaderboard(form, table) {
    let order;
    let filters;
    function save() {
      const state = new URLSearchParams();
      for (const field of filters.fields) if (field.value) state.set(field.name, field.value);
      const sorted = order.get();
      if (sorted) state.set("sort", `${sorted.column}.${sorted.direction}`);
      const text = state.toString();
      history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
    }
    function load() {
      const state = new URLSearchParams(location.hash.slice(1));
      for (const field of filters.fields) {
        const value = state.get(field.name) || "";
        const known = field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value);
        field.value = known ? value : "";
      }
      const [column, direction] = (state.get("sort") || "").split(".");
      const valid = /^\d+$/.test(column) && Number(column) < order.headings.length
        && ["ascending", "descending"].includes(direction);
      order.set(valid ? Number(column) : 0, valid ? direction : null);
      filters.run();
    }
    order = sortable(table, save);
    filters = filterable(form, table, save);
    addEventListener("hashchange", load);
    load();
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("button.theme").forEach(themeButton);
    document.querySelectorAll("pre[data-copy]").forEach(copyButton);
    document.querySelectorAll(".scroll").forEach((box) => {
      box.addEventListener("scroll", () => box.classList.toggle("moved", box.scrollLeft > 0), { passive: true });
    });
    const form = document.querySelector("form.filters");
    const table = document.querySelector("table.leaderboard");
    if (form && table) leaderboard(form, table);
    document.querySelectorAll("table.sortable").forEach((other) => sortable(other, () => {}));
  });
})();
