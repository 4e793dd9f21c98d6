// A question with radio buttons.  What is chosen is the kernel's to keep; where no kernel is left the choice stays in the page.

// Radio buttons of one name are one question, and each widget loads this module anew: nothing but chance keeps the names apart.
const newName = () => `hvlab-predict-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;

function render({ model, el }) {
  const name = newName();
  const legend = make("legend");
  const list = make("div");
  const said = make("div", { class: "hv-said hv-quiet", role: "status", "aria-live": "polite" });
  el.classList.add("hvlab-view", "hvlab-predict");
  el.append(make("fieldset", {}, legend, list), said);
  keepKeys(el);

  function choose(index) {
    model.set("chosen", index);
    try { model.save_changes(); } catch { /* no kernel: an exported page */ }
  }

  function option(text, index) {
    const input = make("input", { type: "radio", name, onchange: () => choose(index) });
    return make("label", {}, input, text);
  }

  const offTexts = onChange(model, ["question", "texts"], () => {
    legend.textContent = model.get("question");
    list.replaceChildren(...model.get("texts").map(option));
  });
  const offChosen = onChange(model, ["chosen", "texts", "words"], () => {
    const chosen = model.get("chosen"), words = model.get("words");
    list.querySelectorAll("input").forEach((input, i) => { input.checked = i === chosen; });
    said.textContent = chosen === null ? words.none : words.noted;
  });
  return () => { offTexts(); offChosen(); };
}

export default { render };
