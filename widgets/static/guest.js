// The guest that the next boot will take: a select that looks like those of ipywidgets, and a sentence where there is no Linux.

let selects = 0;

function render({ model, el }) {
  const id = `hvlab-guest-${++selects}`;
  const select = make("select", { id, title: "takes effect at the next boot" });
  const note = make("span", { class: "hv-note", role: "status" });
  el.classList.add("jupyter-widgets", "widget-inline-hbox", "widget-dropdown", "hvlab-guest");
  el.append(make("label", { class: "widget-label", for: id }, "Guest"), select, note);
  keepKeys(el);

  function fill() {
    select.replaceChildren(...model.get("options").map(([key, words, off]) => make("option", { value: key, disabled: off }, words)));
    select.value = model.get("value");
  }

  // A sentence with `commands` in it.
  function tell() {
    const parts = model.get("note").split("`");
    note.replaceChildren(...parts.map((part, i) => i % 2 ? make("code", {}, part) : part));
    note.hidden = !model.get("note");
  }

  select.addEventListener("focus", () => model.send({ kind: "look" }));
  select.addEventListener("change", () => model.send({ kind: "choose", key: select.value }));
  const offs = [onChange(model, ["options", "value"], fill), onChange(model, ["note"], tell)];
  return () => offs.forEach((off) => off());
}

export default { render };
