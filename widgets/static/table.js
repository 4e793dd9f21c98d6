// A table of records: sorted by its headings, filtered by words, hex numbers or ranges, in pages; a row is chosen by its first cell.

const PAGE_ROWS = 100;

// What the filter's words ask of a row.  `column: words` looks in one column; `0x1000-0x2000` asks for a number in that half-open range.
function asked(text, columns) {
  return text.trim().split(/\s+(?=\S+:)|\s*;\s*/).filter(Boolean).map((part) => {
    const named = part.match(/^([^:]+):\s*(.*)$/);
    const index = named ? columns.findIndex((c) => c.name.toLowerCase().startsWith(named[1].trim().toLowerCase())) : -1;
    const words = (index >= 0 ? named[2] : part).toLowerCase();
    const range = words.match(/^(0x[0-9a-f]+|\d+)\s*-\s*(0x[0-9a-f]+|\d+)$/);
    return { index, words, range: range ? [Number(range[1]), Number(range[2])] : null };
  });
}

function fits(ask, row, cells, keys) {
  const columns = ask.index >= 0 ? [ask.index] : cells.map((_, i) => i);
  return columns.some((i) => {
    const key = keys[i][row];
    if (ask.range && typeof key === "number" && ask.range[0] <= key && key < ask.range[1]) return true;
    return cells[i][row].toLowerCase().includes(ask.words);
  });
}

function compareBy(keys, cells, down) {
  const known = keys.length ? keys : cells;
  const turn = down ? -1 : 1;
  return (a, b) => {
    const x = known[a], y = known[b];
    if (x === null || x === undefined || x === "") return y === null || y === undefined || y === "" ? a - b : 1;
    if (y === null || y === undefined || y === "") return -1;
    return (x < y ? -turn : x > y ? turn : 0) || a - b;
  };
}

function same(choice, chosen) {
  if (!choice) return false;
  if (choice.fault !== undefined && chosen.fault !== null) return choice.fault === chosen.fault;
  if (choice.address !== undefined && chosen.address !== null) {
    return BigInt(choice.address) === BigInt(chosen.address) && (choice.device === undefined || chosen.device === null || choice.device === chosen.device);
  }
  return choice.device !== undefined && choice.device === chosen.device;
}

function render({ model, el }) {
  const heading = make("h4");
  const filter = make("input", { type: "search", placeholder: "filter: words, column: words, 0x1000-0x2000", size: "38", "aria-label": "Filter rows" });
  const back = make("button", { type: "button" }, "Previous rows");
  const on = make("button", { type: "button" }, "Next rows");
  const copy = make("button", { type: "button" }, "Copy rows");
  const said = make("span", { class: "hv-said", role: "status", "aria-live": "polite" });
  const table = make("table");
  const frame = make("div", { class: "hv-rows", tabindex: "0", role: "region" }, table);
  const note = make("div", { class: "hv-quiet" });
  el.classList.add("hvlab-view", "hvlab-table");
  el.append(heading, make("div", { class: "hv-bar" }, filter, copy, back, on, said), frame, note);
  keepKeys(el);
  let order = [], first = 0, sorted = null, selection = null, shownFor = "";

  const data = () => ({ columns: model.get("columns"), cells: model.get("cells"), keys: model.get("sort_keys"), choices: model.get("choices") });
  const chosen = () => selection ? selection.now() : CHOSEN;

  function arrange() {
    const { columns, cells, keys } = data();
    const count = cells.length ? cells[0].length : 0;
    const asks = asked(filter.value, columns);
    order = Array.from({ length: count }, (_, i) => i);
    if (asks.length) order = order.filter((row) => asks.every((ask) => fits(ask, row, cells, keys)));
    if (sorted && sorted.column < columns.length) order.sort(compareBy(keys[sorted.column], cells[sorted.column], sorted.down));
    first = Math.min(first, Math.max(0, Math.floor((order.length - 1) / PAGE_ROWS) * PAGE_ROWS));
  }

  function headings() {
    const { columns } = data();
    return make("tr", {}, ...columns.map((column, i) => {
      const way = sorted?.column === i ? (sorted.down ? "descending" : "ascending") : "none";
      const arrow = { ascending: " \u25B2", descending: " \u25BC", none: "" }[way];
      const button = make("button", { type: "button", onclick: () => sortBy(i) }, column.name + arrow);
      return make("th", { scope: "col", "aria-sort": way, class: column.right ? "hv-right" : null }, button);
    }));
  }

  function rowOf(row) {
    const { columns, cells, choices } = data();
    const choice = choices[row];
    const line = make("tr", { class: same(choice, chosen()) ? "hv-chosen" : null, "aria-selected": null });
    columns.forEach((column, i) => {
      const text = cells[i][row];
      const inside = i === 0 && choice ? make("button", { type: "button", class: "hv-choose", "aria-pressed": String(same(choice, chosen())),
        onclick: () => selection?.choose(choice) }, text || "choose") : text;
      line.append(make("td", { class: column.right ? "hv-right" : null }, inside));
    });
    if (choice) line.addEventListener("click", (event) => { if (event.target.tagName !== "BUTTON") selection?.choose(choice); });
    return line;
  }

  function draw() {
    const focused = table.contains(document.activeElement) ? focusPlace() : null;
    const rows = order.slice(first, first + PAGE_ROWS);
    table.replaceChildren(make("thead", {}, headings()), make("tbody", {}, ...rows.map(rowOf)));
    const total = model.get("cells")[0]?.length ?? 0;
    const which = order.length > PAGE_ROWS ? `rows ${first + 1}-${first + rows.length} of ${order.length}` : `${order.length} rows`;
    said.textContent = which + (order.length < total ? `, filtered out of ${total}` : "");
    back.hidden = on.hidden = order.length <= PAGE_ROWS;
    back.disabled = first === 0;
    on.disabled = first + PAGE_ROWS >= order.length;
    if (focused) table.rows[focused.row]?.cells[focused.cell]?.querySelector("button")?.focus();
  }

  function focusPlace() {
    const cell = document.activeElement.closest("td, th");
    return cell ? { row: cell.parentElement.rowIndex, cell: cell.cellIndex } : null;
  }

  function sortBy(column) {
    sorted = sorted?.column === column ? (sorted.down ? null : { column, down: true }) : { column, down: false };
    arrange();
    draw();
  }

  function turn(pages) {
    first = Math.max(0, first + pages * PAGE_ROWS);
    draw();
  }

  async function copyRows() {
    const { columns, cells } = data();
    const lines = [columns.map((c) => c.name), ...order.map((row) => cells.map((column) => column[row]))];
    try {
      await navigator.clipboard.writeText(lines.map((line) => line.join("\t")).join("\n"));
      said.textContent = `${order.length} rows copied`;
    } catch {
      said.textContent = "the browser does not let rows be copied here";
    }
  }

  // The row that is chosen elsewhere comes into view: its page, and its place within the frame.
  function follow(now) {
    const { choices } = data();
    const key = JSON.stringify(now);
    if (key !== shownFor && !el.contains(document.activeElement)) {
      const at = order.findIndex((row) => same(choices[row], now));
      if (at >= 0) first = Math.floor(at / PAGE_ROWS) * PAGE_ROWS;
    }
    shownFor = key;
    draw();
    const line = table.querySelector(".hv-chosen");
    if (line) frame.scrollTop = Math.max(0, line.offsetTop - frame.clientHeight / 2);
  }

  function renew() {
    heading.textContent = model.get("label");
    note.textContent = model.get("note");
    frame.setAttribute("aria-label", model.get("label"));
    arrange();
    draw();
  }

  filter.value = model.get("filter");
  filter.addEventListener("input", () => { first = 0; arrange(); draw(); });
  filter.addEventListener("change", () => { model.set("filter", filter.value); model.save_changes(); });
  back.addEventListener("click", () => turn(-1));
  on.addEventListener("click", () => turn(1));
  copy.addEventListener("click", copyRows);

  const off = onChange(model, ["columns", "cells", "sort_keys", "choices", "label", "note"], renew);
  let unfollow = () => {};
  let gone = false;
  sharedSelection(model).then((shared) => {
    if (gone) return;
    selection = shared;
    unfollow = shared.follow(follow);
  });
  return () => { gone = true; off(); unfollow(); };
}

export default { render };
