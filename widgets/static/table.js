// A table of records: sorted by its headings, filtered by words, hex numbers or ranges, in pages; a row is chosen by its first cell.

const PAGE_ROWS = 100;

// The number of the column whose name, or a word of it, begins with `name`; the first of several, -1 for none.
function columnNamed(name, columns) {
  const wanted = name.toLowerCase(), names = columns.map((c) => c.name.toLowerCase());
  const tries = [(n) => n === wanted, (n) => n.startsWith(wanted), (n) => n.split(" ").some((word) => word.startsWith(wanted))];
  return tries.map((fit) => names.findIndex(fit)).find((i) => i >= 0) ?? -1;
}

// What the filter's words ask of a row: each of them, somewhere.  `column: words` looks in one column, up to a semicolon or the next
// column; `0x1000-0x2000` asks for a number in that half-open range.
function asked(text, columns) {
  const asks = [], all = columns.map((_, i) => i);
  let where = all;
  for (const token of text.replace(/\s+-\s+/g, "-").match(/;|[^\s;]+/g) ?? []) {
    const [, name, rest] = token.match(/^([^:]+):(.*)$/) ?? [];
    const column = name === undefined ? -1 : columnNamed(name, columns);
    if (token === ";" || column >= 0) where = token === ";" ? all : [column];
    const words = token === ";" ? "" : column >= 0 ? rest : token;
    if (words) asks.push(ask(words, where));
  }
  return asks;
}

function ask(words, columns) {
  const [, from, to] = words.match(/^(0x[0-9a-f]+|\d+)-(0x[0-9a-f]+|\d+)$/i) ?? [];
  return { columns, pattern: new RegExp(words.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "i"), range: from ? [Number(from), Number(to)] : null };
}

function fits({ columns, pattern, range }, row, cells, keys) {
  for (const i of columns) {
    const key = range ? keys[i][row] : null;
    if (typeof key === "number" ? range[0] <= key && key < range[1] : pattern.test(cells[i][row])) return true;
  }
  return false;
}

// The numbers of the rows in a column's ascending order, then those of the rows without a value.
function ascending(keys, cells) {
  const known = keys.length ? keys : cells, full = [], empty = [];
  known.forEach((key, row) => (key === null || key === "" ? empty : full).push(row));
  const words = [...new Set(full.map((row) => known[row]).filter((key) => typeof key === "string"))].sort();
  const rank = new Map(words.map((word, i) => [word, i]));
  const value = Float64Array.from(known, (key) => typeof key === "string" ? rank.get(key) ?? 0 : key ?? 0);
  return { full: Uint32Array.from(full).sort((a, b) => value[a] - value[b] || a - b), empty };
}

// Addresses of choices and of the selection are hex without leading zeros: alike when they are the same.
function same(choice, chosen) {
  if (!choice) return false;
  if (choice.fault !== undefined && chosen.fault !== null) return choice.fault === chosen.fault;
  if (choice.address !== undefined && chosen.address !== null) {
    return choice.address === chosen.address && (choice.device === undefined || chosen.device === null || choice.device === chosen.device);
  }
  return choice.device !== undefined && choice.device === chosen.device;
}

function render({ model, el }) {
  const heading = make("h4");
  const filter = make("input", { type: "search", placeholder: "filter: words, column: words, 0x1000-0x2000", size: "38", "aria-label": "Filter rows" });
  const back = make("button", { type: "button" }, "Previous rows");
  const on = make("button", { type: "button" }, "Next rows");
  const copy = make("button", { type: "button" }, "Copy rows");
  const act = make("button", { type: "button" });
  const said = make("span", { class: "hv-said", role: "status", "aria-live": "polite" });
  const table = make("table");
  const frame = make("div", { class: "hv-rows", tabindex: "0", role: "region" }, table);
  const note = make("div", { class: "hv-quiet" });
  el.classList.add("hvlab-view", "hvlab-table");
  el.append(heading, make("div", { class: "hv-bar" }, filter, copy, act, back, on, said), frame, note);
  keepKeys(el);
  let order = [], first = 0, sorted = null, selection = null, shownFor = "", picked = -1;
  const orders = new Map();

  const data = () => ({ columns: model.get("columns"), cells: model.get("cells"), keys: model.get("sort_keys"), choices: model.get("choices") });
  const chosen = () => selection ? selection.now() : CHOSEN;

  function arrange() {
    const { columns, cells, keys } = data();
    const asks = asked(filter.value, columns);
    const rows = sorted && sorted.column < columns.length ? sortedRows(keys, cells) : (cells[0] ?? []).keys();
    order = [];
    for (const row of rows) if (asks.every((ask) => fits(ask, row, cells, keys))) order.push(row);
    first = Math.min(first, Math.max(0, Math.floor((order.length - 1) / PAGE_ROWS) * PAGE_ROWS));
  }

  // Each column is sorted once; rows without a value stay last.
  function sortedRows(keys, cells) {
    const { column, down } = sorted;
    if (!orders.has(column)) orders.set(column, ascending(keys[column], cells[column]));
    const { full, empty } = orders.get(column);
    return [...(down ? full.toReversed() : full), ...empty];
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
    const pick = () => { picked = row; selection?.choose(choice); };
    const line = make("tr", { class: same(choice, chosen()) ? "hv-chosen" : null, "aria-selected": null });
    columns.forEach((column, i) => {
      const text = cells[i][row];
      const inside = i === 0 && choice ? make("button", { type: "button", class: "hv-choose", "aria-pressed": String(same(choice, chosen())),
        onclick: pick }, text || "choose") : text;
      line.append(make("td", { class: column.right ? "hv-right" : null }, inside));
    });
    if (choice) line.addEventListener("click", (event) => { if (event.target.tagName !== "BUTTON") pick(); });
    return line;
  }

  function draw() {
    const focused = table.contains(document.activeElement) ? focusPlace() : null;
    const rows = order.slice(first, first + PAGE_ROWS);
    table.replaceChildren(make("thead", {}, headings()), make("tbody", {}, ...rows.map(rowOf)));
    const total = model.get("cells")[0]?.length ?? 0;
    const which = order.length > PAGE_ROWS ? `rows ${first + 1}-${first + rows.length} of ${order.length}` : `${order.length} ${order.length === 1 ? "row" : "rows"}`;
    said.textContent = which + (order.length < total ? `, filtered out of ${total}` : "");
    back.hidden = on.hidden = order.length <= PAGE_ROWS;
    back.disabled = first === 0;
    on.disabled = first + PAGE_ROWS >= order.length;
    offer();
    rove(table.querySelector(".hv-chosen .hv-choose") ?? rowButtons()[0]);
    if (focused) (table.rows[focused.row]?.cells[focused.cell]?.querySelector("button") ?? frame).focus();
  }

  // The row that is chosen: the one that was clicked, where several choose the same.
  function chosenRow() {
    const { choices } = data(), now = chosen();
    return picked >= 0 && same(choices[picked], now) ? picked : choices.findIndex((choice) => same(choice, now));
  }

  // The button for the row that is chosen; only where a kernel answers.
  function offer() {
    act.textContent = model.get("act");
    act.hidden = !model.get("act") || !selection?.live();
    act.setAttribute("aria-disabled", String(act.hidden || !model.get("can_act") || chosenRow() < 0));
  }

  const rowButtons = () => [...table.querySelectorAll("button.hv-choose")];

  // One row's button is in the order of Tab, the arrow keys go to the others.
  function rove(button) {
    for (const other of rowButtons()) other.tabIndex = other === button ? 0 : -1;
  }

  function moveTo(event) {
    const buttons = rowButtons(), at = buttons.indexOf(event.target);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const button = buttons[Math.max(0, Math.min(buttons.length - 1, to))];
    rove(button);
    button.focus();
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
    const elsewhere = key !== shownFor && !table.contains(document.activeElement);
    if (elsewhere) {
      const at = order.findIndex((row) => same(choices[row], now));
      if (at >= 0) first = Math.floor(at / PAGE_ROWS) * PAGE_ROWS;
    }
    shownFor = key;
    draw();
    const line = table.querySelector(".hv-chosen");
    if (line && elsewhere) frame.scrollTop = Math.max(0, line.offsetTop - frame.clientHeight / 2);
  }

  function renew() {
    heading.textContent = model.get("label");
    note.textContent = model.get("note");
    frame.setAttribute("aria-label", model.get("label"));
    orders.clear();
    picked = -1;
    arrange();
    draw();
  }

  filter.value = model.get("filter");
  filter.addEventListener("input", () => { first = 0; arrange(); draw(); });
  filter.addEventListener("change", () => { model.set("filter", filter.value); model.save_changes(); });
  back.addEventListener("click", () => turn(-1));
  on.addEventListener("click", () => turn(1));
  copy.addEventListener("click", copyRows);
  act.addEventListener("click", () => { if (act.getAttribute("aria-disabled") === "false") model.send({ kind: "act", row: chosenRow() }); });
  table.addEventListener("keydown", moveTo);

  const off = onChange(model, ["columns", "cells", "sort_keys", "choices", "label", "note"], renew);
  const unoffer = onChange(model, ["act", "can_act"], offer);
  const leave = withSelection(model, (shared) => { selection = shared; }, follow);
  return () => { off(); unoffer(); leave(); };
}

export default { render };
