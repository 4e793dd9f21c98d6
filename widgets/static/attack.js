// One attack on the live guest: what it wants and how, the button, and afterwards its verdict with the evidence.

function render({ model, el }) {
  const heading = make("h4");
  const attack = make("select", { "aria-label": "Attack" });
  const device = make("select", { "aria-label": "By the device" }, make("option", { value: "" }, "the first there is"));
  const go = make("button", { type: "submit" }, "Attack");
  const form = make("form", { class: "hv-bar" }, make("label", {}, "Attack ", attack), make("label", {}, "by ", device), go);
  const what = make("div");
  const said = make("div", { class: "hv-said", role: "status", "aria-live": "polite" });
  const panel = make("div", { class: "hv-evidence", role: "region", "aria-label": "What came of the attack" });
  el.classList.add("hvlab-view", "hvlab-attack");
  el.append(heading, form, what, said, panel);
  keepKeys(form);
  let selection = null;

  const about = (name) => model.get("attacks").find((known) => known.name === name);

  function fill() {
    attack.replaceChildren(...model.get("attacks").map(({ name }) => make("option", { value: name }, name)));
    device.replaceChildren(device.firstChild, ...model.get("devices").map((name) => make("option", { value: name }, name)));
    describe();
  }

  function describe() {
    const { goal, way, against, early } = about(attack.value) ?? {};
    what.replaceChildren(terms([["wants", goal], ["way", way], ["against it", against],
      ["beware", model.get("boots") || (early ? "the device is at work before the core: the machine is booted anew for it" : "")]]));
  }

  function state() {
    heading.textContent = model.get("label");
    said.textContent = model.get("said");
    form.hidden = what.hidden = !(model.get("takes") && selection?.live());
    go.disabled = !model.get("enabled");
    describe();
  }

  function show() {
    const result = model.get("result");
    panel.hidden = !result.verdict;
    if (panel.hidden) return;
    const of = [["machine", `${result.machine}; ${model.get("of")}`], ["device", result.device]];
    const choose = result.choice ? make("p", {}, make("button", { type: "button", onclick: () => selection?.choose(result.choice) }, `Choose ${result.chooses}`)) : "";
    panel.replaceChildren(make("h5", {}, result.attack), ...evidence({ ...result, chooses: "" }, null, of), choose);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    model.send({ kind: "attack", name: attack.value, device: device.value });
  });
  attack.addEventListener("change", describe);
  const offs = [
    onChange(model, ["attacks", "devices"], fill),
    onChange(model, ["label", "said", "enabled", "boots", "takes"], state),
    onChange(model, ["result", "of"], show),
  ];
  const leave = withSelection(model, (shared) => { selection = shared; state(); });
  return () => { offs.forEach((off) => off()); leave(); };
}

export default { render };
