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

  // Keys of a column to sort by: its numbers where it has them (`data-n`, empty for "not known"), else the places of its
  // texts in the alphabet. They are worked out once, so that ten thousand rows are sorted within a frame or two.
  const collator = new Intl.Collator("en", { numeric: true });

  function keysOf(rows, column) {
    const cells = rows.map((row) => row.children[column]);
    if (cells[0]?.hasAttribute("data-n")) {
      return cells.map((cell) => Number(cell.getAttribute("data-n") || NaN));
    }
    // Symbols before a word are for the eye.
    const texts = cells.map((cell) => (cell ? cell.textContent.replace(/^[^\p{L}\p{N}]+/u, "").trim() : ""));
    const place = new Map([...new Set(texts)].sort(collator.compare).map((text, i) => [text, i]));
    return texts.map((text) => (text === "" ? NaN : place.get(text)));
  }

  // Places of rows in the order of a column; what is not known stands last, whichever way the rest is sorted.
  function orderBy(keys, direction) {
    const sign = direction === "descending" ? -1 : 1;
    return keys.map((_, place) => place).sort((a, b) => {
      const x = keys[a];
      const y = keys[b];
      if (x !== x || y !== y) return (x !== x) - (y !== y) || a - b;
      return sign * (x - y) || a - b;
    });
  }

  // Headings become buttons; `changed` hears of a new {column, direction}, or of null for the order of the page.
  function headings(table, changed) {
    const cells = [...table.tHead.rows[0].cells];
    let state = null;
    function set(next) {
      state = next;
      cells.forEach((th, i) => th.setAttribute("aria-sort", state && state.column === i ? state.direction : "none"));
    }
    cells.forEach((th, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...th.childNodes);
      th.append(button);
      button.addEventListener("click", () => {
        const turned = state && state.column === column ? { ascending: "descending" }[state.direction] : "ascending";
        set(turned ? { column, direction: turned } : null);
        changed();
      });
    });
    set(null);
    return { get: () => state, set, names: cells.map((th) => th.textContent.trim()) };
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const order = headings(table, () => {
      const state = order.get();
      const places = state ? orderBy(keysOf(rows, state.column), state.direction) : rows.keys();
      body.append(...[...places].map((place) => rows[place]));
    });
  }

  // Columns that the reader does not want to see: one rule each, however many rows there are.
  function columnChoice(box, table, names, changed) {
    const style = document.createElement("style");
    document.head.append(style);
    const boxes = names.map((name, column) => {
      if (column === 0) return null; // the row's own heading stays
      const label = document.createElement("label");
      const check = document.createElement("input");
      check.type = "checkbox";
      check.checked = true;
      label.append(check, name);
      box.append(label);
      check.addEventListener("change", () => { apply(); changed(); });
      return check;
    });
    const hidden = () => boxes.flatMap((check, column) => (check && !check.checked ? [column] : []));
    function apply() {
      style.textContent = hidden().map((c) => `table.leaderboard tr > :nth-child(${c + 1}) { display: none; }`).join("\n");
    }
    return {
      hidden,
      set: (columns) => {
        boxes.forEach((check, column) => { if (check) check.checked = !columns.includes(column); });
        apply();
      },
    };
  }

  const SHOWN = 60;

  // The leaderboard: sorted, filtered, its columns chosen, and all of that in the address, so that a view can be linked
  // to. The rows of a long one lie on several pages. From a server the others are read when they are first asked for;
  // in a folder, where a page may not read another, sorting and filters act on the page's own rows.
  function leaderboard(form, table) {
    const body = table.tBodies[0];
    const own = [...body.rows];
    const count = form.querySelector(".count");
    const more = document.querySelector("button.more");
    const fields = [...form.elements].filter((field) => field.name);
    const parts = (table.dataset.parts || "").split(" ").filter(Boolean);
    const readable = parts.length > 1 && location.protocol.startsWith("http");
    let rows = own;
    let limit = SHOWN;
    let keys = new Map();
    let texts = null;
    let loading = null;

    const order = headings(table, () => act());
    const columns = columnChoice(form.querySelector(".columns div"), table, order.names, () => save());

    async function load() {
      root.dataset.loading = "";
      count.textContent = "reading the other parts…";
      try {
        const read = await Promise.all(parts.map(async (part) => {
          if (location.pathname.endsWith(`/${part}`)) return own;
          const answer = await fetch(part);
          if (!answer.ok) throw new Error(part);
          const page = new DOMParser().parseFromString(await answer.text(), "text/html");
          return [...page.querySelector("table.leaderboard").tBodies[0].rows].map((row) => document.adoptNode(row));
        }));
        rows = read.flat();
        [keys, texts] = [new Map(), null];
      } catch { /* the part that is shown stays what is sorted */ }
      delete root.dataset.loading;
      show();
    }

    function wanted() {
      const asked = Object.fromEntries(fields.map((field) => [field.name, field.value]));
      const words = (asked.q || "").toLowerCase().split(/\s+/).filter(Boolean);
      const named = ["family", "task", "verdict", "role"].filter((name) => asked[name]);
      if (words.length && !texts) texts = rows.map((row) => row.cells[0].textContent.toLowerCase());
      const keep = (row, place) =>
        named.every((name) => row.dataset[name] === asked[name]) && words.every((word) => texts[place].includes(word));
      return { any: words.length + named.length > 0, keep };
    }

    function show() {
      const state = order.get();
      const filter = wanted();
      if (!state && !filter.any) {
        body.replaceChildren(...own);
        more.hidden = true;
        count.textContent = parts.length > 1 ? `${own.length} of ${table.dataset.total} rows` : `${own.length} rows`;
        return;
      }
      if (state && !keys.has(state.column)) keys.set(state.column, keysOf(rows, state.column));
      const places = state ? orderBy(keys.get(state.column), state.direction) : [...rows.keys()];
      const kept = places.filter((place) => filter.keep(rows[place], place));
      body.replaceChildren(...kept.slice(0, limit).map((place) => rows[place]));
      more.hidden = kept.length <= limit;
      more.textContent = `Show ${Math.min(SHOWN, kept.length - limit)} more of ${kept.length - limit}`;
      count.textContent = filter.any ? `${kept.length} of ${rows.length} rows` : `${rows.length} rows`;
    }

    function act() {
      limit = SHOWN;
      show();
      save();
      if (readable && !loading) loading = load();
    }

    function save() {
      const state = new URLSearchParams();
      for (const field of fields) if (field.value) state.set(field.name, field.value);
      const sorted = order.get();
      if (sorted) state.set("sort", `${sorted.column}.${sorted.direction}`);
      const hidden = columns.hidden();
      if (hidden.length) state.set("hide", hidden.join("."));
      const text = state.toString();
      history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
    }

    function restore() {
      if (location.hash && !location.hash.includes("=")) return; // a place on the page, and no state
      const state = new URLSearchParams(location.hash.slice(1));
      for (const field of fields) {
        const value = state.get(field.name) || "";
        const known = field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value);
        field.value = known ? value : "";
      }
      const [column, direction] = (state.get("sort") || "").split(".");
      const valid = /^\d+$/.test(column) && Number(column) < order.names.length
        && ["ascending", "descending"].includes(direction);
      order.set(valid ? { column: Number(column), direction } : null);
      columns.set((state.get("hide") || "").split(".").map(Number));
      limit = SHOWN;
      show();
      if (readable && !loading && (valid || wanted().any)) loading = load();
    }

    if (readable) document.querySelector(".parts .scope").textContent = "Sorting and filters act on all of them.";
    more.addEventListener("click", () => {
      const first = limit;
      limit += SHOWN;
      show();
      body.rows[first]?.querySelector("a")?.focus();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => { if (event.target.name) act(); });
    form.addEventListener("reset", () => setTimeout(() => { order.set(null); columns.set([]); act(); }));
    addEventListener("hashchange", restore);
    restore();
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("button.theme").forEach(themeButton);
    document.querySelectorAll("pre[data-copy]").forEach(copyButton);
    document.querySelectorAll(".scroll").forEach((box) => {
      const sides = () => {
        box.classList.toggle("moved", box.scrollLeft > 0);
        box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
      };
      box.addEventListener("scroll", sides, { passive: true });
      // The table's own width changes with the columns and rows that are shown, the box's with the window.
      const watch = new ResizeObserver(sides);
      [box, box.querySelector("table")].forEach((part) => part && watch.observe(part));
    });
    const form = document.querySelector("form.filters");
    const table = document.querySelector("table.leaderboard");
    if (form && table) leaderboard(form, table);
    document.querySelectorAll("table.sortable").forEach(sortable);
  });
})();
