// What is known of the chosen address.  The kernel gathers it; an address can be written, too.

function render({ model, el }) {
  const heading = make("h4");
  const field = make("input", { type: "text", size: "22", spellcheck: "false", autocomplete: "off", placeholder: "0x7a3e1000", "aria-label": "Address" });
  const form = make("form", { class: "hv-bar" }, field, make("button", { type: "submit" }, "Look"));
  const said = make("div", { class: "hv-said", role: "status", "aria-live": "polite" });
  const facts = make("dl");
  el.classList.add("hvlab-view", "hvlab-lens");
  el.append(heading, form, said, facts);
  keepKeys(form);
  let selection = null;

  function look(event) {
    event.preventDefault();
    const words = field.value.trim();
    let address;
    try {
      address = BigInt(words);
    } catch {
      address = -1n;
    }
    if (!words || address < 0n || address >> 64n) {
      said.textContent = `'${words}' is no address: write it like 0x7a3e1000`;
      return;
    }
    selection?.choose({ address: hex(address) });
  }

  function draw() {
    heading.textContent = model.get("label");
    said.textContent = model.get("said");
    if (document.activeElement !== field || model.get("address")) field.value = model.get("address");
    facts.replaceChildren(...model.get("facts").flatMap(([about, says, range]) => [
      make("dt", {}, about),
      make("dd", {}, says, range ? make("div", { class: "hv-quiet hv-number" }, range) : null),
    ]));
  }

  form.addEventListener("submit", look);
  const off = onChange(model, ["facts", "said", "address", "label"], draw);
  const leave = withSelection(model, (shared) => { selection = shared; });
  return () => { off(); leave(); };
}

export default { render };
