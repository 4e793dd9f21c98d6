// What came of an attack: the evidence as a list of terms, and what it is about as something to choose.

const VERDICT_CLASS = { "blocked": "hv-blocked", "succeeded": "hv-succeeded", "crashed": "hv-crashed", "boot failed": "hv-failed", "not tried": "hv-untried" };

const chip = ({ mark, verdict }) => make("strong", { class: `hv-chip ${VERDICT_CLASS[verdict]}` }, make("span", { "aria-hidden": "true" }, `${mark} `), verdict);

// Terms and what is to be said of each; a term with nothing to say is left out.
function terms(pairs) {
  const list = make("dl", { class: "hv-terms" });
  for (const [name, ...said] of pairs) {
    const parts = said.filter((part) => part !== "" && part !== null && part !== undefined);
    if (parts.length) list.append(make("dt", {}, name), ...parts.map((part) => make("dd", {}, part)));
  }
  return list;
}

const proofTable = (proof) => proof.length ? make("table", { class: "hv-proof" }, make("tbody", {}, ...proof.map(([name, value]) =>
  make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, make("code", {}, value)))))) : "";

const consoleLog = (lines) => lines.length ? make("pre", { class: "hv-guest-said", tabindex: "0", "aria-label": "What the guest said" }, lines.join("\n")) : "";

// The evidence of one result; `about` is its attack's goal, way and what stands against it, `before` are terms that come first.
function evidence(cell, about, before = []) {
  return [
    make("p", {}, chip(cell), ` ${cell.meaning}.`),
    terms([
      ...before,
      ["attack", about ? `${about.name} wants ${about.goal}: ${about.way}` : ""],
      ["why", cell.fault && cell.why.includes(cell.fault) ? "" : cell.why],
      ["refused request", cell.fault, cell.without],
      ["proof", proofTable(cell.proof)],
      ["changed in the core", ...(cell.changed.length ? cell.changed : [cell.console.length ? "nothing" : ""])],
      ["stands against it", about?.against],
      ["the guest said", consoleLog(cell.console)],
      ["chosen for all views", cell.chooses],
    ]),
  ];
}
