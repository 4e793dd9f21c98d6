// The moments that the machine can go back to: a box that keeps them, a table with a radio button a row, and what can be done with one.

let tables = 0;

function render({ model, el }) {
  const box = make("input", { type: "checkbox" });
  const every = make("select", { "aria-label": "a moment every" });
  const remember = make("button", { type: "button" }, "Remember now");
  const back = make("button", { type: "button" }, "Go back");
  const said = make("p", { class: "hv-said", role: "status", "aria-live": "polite" });
  const body = make("tbody");
  const names = ["moment", "time since power-on", "why it is kept", "memory"];
  const head = make("thead", {}, make("tr", {}, ...names.map((name, i) => make("th", { scope: "col", class: i % 2 ? "hv-right" : null }, name))));
  const frame = make("div", { class: "hv-rows", role: "region", "aria-label": "Moments", tabindex: "0" }, make("table", {}, head, body));
  const note = make("p", { class: "hv-quiet" });
  const group = `hvlab-moments-${++tables}`;
  let chosen = null;
  el.classList.add("hvlab-view", "hvlab-moments");
  el.append(make("h4", {}, "Moments that the machine can go back to"),
    make("div", { class: "hv-bar" }, make("label", {}, box, " keep moments"), make("label", {}, "a moment every ", every)),
    make("div", { class: "hv-bar" }, remember, back), said, frame, note);
  every.append(...model.get("choices").map((name) => make("option", {}, name)));
  keepKeys(el);

  // What cannot be done now keeps the focus, and does nothing.
  const can = (control) => control.getAttribute("aria-disabled") !== "true";

  function keep(event) {
    if (can(event.target)) model.send({ kind: "keep", keep: box.checked, every: every.value });
    else state();
  }

  function choose(number) {
    chosen = number;
    for (const row of body.rows) row.className = Number(row.dataset.number) === chosen ? "hv-chosen" : "";
    state();
  }

  function rowOf([number, time, what, size]) {
    const radio = make("input", { type: "radio", name: group, value: number, onchange: () => choose(number), "aria-label": `moment ${number}, ${time}, ${what}` });
    radio.checked = number === chosen;
    const row = make("tr", { "data-number": number, class: number === chosen ? "hv-chosen" : "", onclick: () => { radio.checked = true; choose(number); } },
      make("td", {}, make("label", {}, radio, ` ${number}`)), make("td", { class: "hv-right" }, time), make("td", {}, what), make("td", { class: "hv-right" }, size));
    return row;
  }

  function fill() {
    const rows = model.get("rows"), focused = body.contains(document.activeElement);
    if (!rows.some(([number]) => number === chosen)) chosen = null;
    body.replaceChildren(...rows.map(rowOf));
    frame.hidden = rows.length === 0;
    frame.scrollTop = frame.scrollHeight;
    if (focused) (body.querySelector("input:checked") ?? body.querySelector("input") ?? box).focus();
    state();
  }

  function state() {
    const enabled = model.get("enabled");
    box.checked = model.get("keep");
    every.value = model.get("every");
    for (const control of [box, every, remember]) control.setAttribute("aria-disabled", String(!enabled));
    back.setAttribute("aria-disabled", String(!enabled || chosen === null));
    back.textContent = chosen === null ? "Go back" : `Go back to moment ${chosen}`;
    note.textContent = model.get("note");
  }

  box.addEventListener("change", keep);
  every.addEventListener("change", keep);
  remember.addEventListener("click", () => { if (can(remember)) model.send({ kind: "remember" }); });
  back.addEventListener("click", () => { if (can(back)) model.send({ kind: "back", number: chosen }); });
  const offs = [onChange(model, ["rows"], fill), onChange(model, ["keep", "every", "note", "enabled"], state),
    onChange(model, ["said"], () => { said.textContent = model.get("said"); })];
  return () => offs.forEach((off) => off());
}

export default { render };
