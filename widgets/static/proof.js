// Claims with their verdicts; of each that does not hold an access that speaks against it, with its way, which can be chosen for all views.

function render({ model, el }) {
  const heading = make("h4");
  const prove = make("button", { type: "button", onclick: () => { said.textContent = "Proving."; model.send({ kind: "prove" }); } }, "Prove");
  const said = make("span", { class: "hv-said", role: "status", "aria-live": "polite" });
  const verdict = make("p", { class: "hv-verdict" });
  const of = make("p", { class: "hv-quiet" });
  const stale = make("p", { class: "hv-stale" });
  const list = make("ol", { class: "hv-claims" });
  const note = make("p", { class: "hv-quiet" });
  el.classList.add("hvlab-view", "hvlab-proof");
  el.append(heading, make("div", { class: "hv-bar" }, prove, said), verdict, of, stale, list, note);
  let selection = null;

  const sign = (holds) => make("strong", { class: holds ? "hv-holds" : "hv-broken" }, make("span", { "aria-hidden": "true" }, holds ? "\u2713 " : "\u2717 "),
    holds ? "holds" : "does not hold");

  function steps(rows) {
    if (!rows.length) return "";
    const head = make("tr", {}, ...["step", "what it says", "raw", "at"].map((name) => make("th", { scope: "col" }, name)));
    const body = rows.map(([what, text, raw, at]) => make("tr", {}, make("th", { scope: "row" }, what), make("td", {}, text), make("td", { class: "hv-number" }, raw), make("td", { class: "hv-number" }, at)));
    return make("div", { class: "hv-way", tabindex: "0", role: "region", "aria-label": "The way, step by step" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  }

  function isChosen({ choice }, now) {
    return now.fault === null && choice.address === now.address && choice.space === now.space && (choice.device ?? null) === now.device;
  }

  function counterexample(example, number) {
    const facts = make("dl", {}, ...example.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
    const button = make("button", { type: "button", class: "hv-choose", "data-claim": number, "aria-pressed": "false", onclick: () => selection?.choose(example.choice) },
      `Choose ${example.choice.address}${example.choice.device === undefined ? "" : ` of ${bdf(example.choice.device)}`} in all views`);
    return make("details", {}, make("summary", {}, "Counterexample"), facts, button, steps(example.steps));
  }

  function draw() {
    const claims = model.get("claims"), open = [...list.querySelectorAll("details")].map((d) => d.open ? d.closest("li").dataset.claim : null);
    heading.textContent = model.get("label");
    verdict.hidden = of.hidden = !claims.length;
    verdict.classList.toggle("hv-through", model.get("holds"));
    verdict.textContent = `${model.get("holds") ? "\u2713" : "\u2717"} ${model.get("verdict")}`;
    of.textContent = `Of ${model.get("of")}`;
    note.textContent = model.get("note");
    list.replaceChildren(...claims.map(({ claim, holds, why, example }, i) => make("li", { "data-claim": claim },
      make("div", {}, sign(holds), ` ${claim}`), make("div", { class: "hv-quiet" }, why), example ? counterexample(example, i) : null)));
    for (const details of list.querySelectorAll("details")) details.open = open.includes(details.closest("li").dataset.claim);
    if (selection) follow(selection.now());
    state();
  }

  function state() {
    prove.hidden = !selection?.live();
    prove.textContent = model.get("claims").length ? "Prove again" : "Prove";
    said.textContent = model.get("said") || (model.get("claims").length ? `Proved: ${model.get("verdict")}.` : "");
    stale.textContent = model.get("stale");
    stale.hidden = !model.get("stale");
  }

  function follow(now) {
    const claims = model.get("claims");
    for (const button of list.querySelectorAll(".hv-choose")) {
      button.setAttribute("aria-pressed", String(isChosen(claims[Number(button.dataset.claim)].example, now)));
    }
  }

  const offs = [
    onChange(model, ["claims", "verdict", "holds", "of", "note", "label"], draw),
    onChange(model, ["said", "stale"], state),
  ];
  const leave = withSelection(model, (shared) => { selection = shared; state(); }, follow);
  return () => { offs.forEach((off) => off()); leave(); };
}

export default { render };
