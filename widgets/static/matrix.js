// Policies by attacks: a grid of verdicts, gone through by arrow keys, with the evidence of the chosen cell beneath.

function render({ model, el }) {
  const heading = make("h4");
  const run = make("button", { type: "button", onclick: () => model.send({ kind: model.get("running") ? "stop" : "run" }) });
  const progress = make("progress", { "aria-label": "Attacks that are done" });
  const said = make("span", { class: "hv-said" });
  const told = make("span", { class: "hv-unseen", role: "status", "aria-live": "polite" });
  const intro = make("p", { class: "hv-quiet" });
  const table = make("table");
  const frame = make("div", { class: "hv-frame", role: "region" }, table);
  const legend = make("p", { class: "hv-quiet" });
  const panel = make("div", { class: "hv-evidence", role: "region", "aria-label": "Evidence", tabindex: "0" });
  const more = make("details", {}, make("summary", {}, "What the policies and the attacks are"));
  el.classList.add("hvlab-view", "hvlab-matrix");
  el.append(heading, intro, make("div", { class: "hv-bar" }, run, progress, said, told), frame, legend, panel, more);
  keepKeys(frame);
  let selection = null, focus = [0, 0];

  const names = (what) => model.get(what).map(({ name }) => name);
  const about = (attack) => model.get("attacks").find(({ name }) => name === attack);

  function choose(policy, attack) {
    const key = `${policy}/${attack}`, cell = model.get("cells")[key];
    if (!cell) return;
    model.set("chosen", key);
    try { model.save_changes(); } catch { /* no kernel: an exported page */ }
    if (cell.choice) selection?.choose(cell.choice);
    told.textContent = `${policy}, ${attack}: ${cell.verdict}. ${cell.why}. The evidence is below the grid.`;
  }

  function cellOf(policy, attack, row, column) {
    const key = `${policy}/${attack}`, cell = model.get("cells")[key];
    if (!cell) return make("td", { class: "hv-none" }, make("span", { class: "hv-quiet" }, "\u00b7"), make("span", { class: "hv-unseen" }, "not run"));
    const now = model.get("chosen") === key;
    const button = make("button", {
      type: "button", class: VERDICT_CLASS[cell.verdict], "aria-pressed": String(now), "data-row": row, "data-column": column,
      tabindex: row === focus[0] && column === focus[1] ? "0" : "-1", title: cell.why, onclick: () => { focus = [row, column]; choose(policy, attack); },
    }, make("span", { "aria-hidden": "true" }, `${cell.mark} `), cell.verdict);
    return make("td", {}, button);
  }

  function grid() {
    const policies = names("policies"), attacks = names("attacks");
    const at = table.contains(document.activeElement);
    frame.hidden = !policies.length;
    // The focus has a cell that is there.
    if (!model.get("cells")[`${policies[focus[0]]}/${attacks[focus[1]]}`]) focus = [0, 0];
    const head = make("tr", {}, make("th", { scope: "col" }, "policy"), ...attacks.map((name) => make("th", { scope: "col", title: about(name)?.goal }, ...breakable(name))));
    const rows = policies.map((policy, row) => make("tr", {}, make("th", { scope: "row" }, ...breakable(policy)), ...attacks.map((attack, column) => cellOf(policy, attack, row, column))));
    table.replaceChildren(make("caption", { class: "hv-unseen" }, model.get("label")), make("thead", {}, head), make("tbody", {}, ...rows));
    frame.setAttribute("aria-label", model.get("label"));
    if (at) button(...focus)?.focus();
    const signs = new Map(Object.values(model.get("cells")).map(({ verdict, mark, meaning }) => [verdict, `${mark} ${verdict}: ${meaning}`]));
    legend.textContent = [...signs.values()].join("; ");
    if (signs.size) legend.append(make("br"), "Arrow keys go from field to field; Enter or a click shows the evidence of one, and all views follow it.");
  }

  const breakable = (name) => name.split(/(?<=-)/).flatMap((part, i) => i ? [make("wbr"), part] : [part]);
  const button = (row, column) => table.querySelector(`button[data-row="${row}"][data-column="${column}"]`);

  function move(event) {
    const last = [model.get("policies").length - 1, model.get("attacks").length - 1];
    const [row, column] = focus;
    const to = { ArrowDown: [row + 1, column], ArrowUp: [row - 1, column], ArrowRight: [row, column + 1], ArrowLeft: [row, column - 1], Home: [row, 0], End: [row, last[1]] }[event.key];
    if (!to || event.target.tagName !== "BUTTON") return;
    event.preventDefault();
    const next = button(...to.map((n, i) => Math.max(0, Math.min(last[i], n))));
    if (!next) return;
    button(...focus)?.setAttribute("tabindex", "-1");
    focus = [Number(next.dataset.row), Number(next.dataset.column)];
    next.setAttribute("tabindex", "0");
    next.focus();
  }

  function showEvidence() {
    const cell = model.get("cells")[model.get("chosen")];
    panel.hidden = !cell;
    if (!cell) return;
    const [policy, attack] = model.get("chosen").split("/");
    const words = model.get("policies").find(({ name }) => name === policy)?.words;
    panel.setAttribute("aria-label", `Evidence: ${attack} under the policy ${policy}`);
    const boot = model.get("buttons") && selection?.live() ? make("p", {}, make("button", { type: "button", onclick: () => model.send({ kind: "boot", policy }) }, "Boot this policy"),
      make("span", { class: "hv-quiet" }, " sets its options above and boots the machine with them")) : "";
    panel.replaceChildren(make("h5", {}, `${attack} under the policy ${policy}`), ...evidence(cell, about(attack), [["policy", words ? `${policy}: ${words}` : policy]]), boot);
  }

  function words() {
    const attacks = model.get("attacks"), policies = model.get("policies");
    more.hidden = !policies.length;
    more.replaceChildren(more.firstChild, make("h5", {}, "Policies"), terms(policies.map(({ name, words }) => [name, words])), make("h5", {}, "Attacks"),
      terms(attacks.map(({ name, goal, way, against }) => [name, goal && `wants ${goal}`, way, against && `Against it: ${against}`])));
  }

  function state() {
    const running = model.get("running"), done = Object.keys(model.get("cells")).length, all = model.get("policies").length * model.get("attacks").length;
    heading.textContent = model.get("label");
    run.hidden = !(model.get("buttons") && selection?.live());
    intro.hidden = run.hidden;
    intro.textContent = "A wicked driver in the guest tries every attack under every policy, on a second machine of the same kind: yours goes on as it is.";
    run.textContent = running ? "Stop the attacks" : done ? "Run all attacks again" : "Run all attacks";
    progress.hidden = !running;
    progress.max = all || 1;
    progress.value = done;
    said.textContent = model.get("said");
    if (!running) told.textContent = model.get("said");
  }

  frame.addEventListener("keydown", move);
  const offs = [
    onChange(model, ["cells", "policies", "attacks", "label", "chosen"], () => { grid(); showEvidence(); }),
    onChange(model, ["policies", "attacks"], words),
    onChange(model, ["cells", "running", "said", "label", "buttons"], state),
  ];
  const leave = withSelection(model, (shared) => { selection = shared; state(); showEvidence(); });
  return () => { offs.forEach((off) => off()); leave(); };
}

export default { render };
