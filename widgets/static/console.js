// A serial console: a log that follows its end, and a line of input with a history.  The kernel holds the text.

const MUCH = 2000; // characters at once that are not read out

function render({ model, el }) {
  const label = document.createElement("label");
  const log = document.createElement("pre");
  const line = document.createElement("span"); // the last line, which has not come to its end
  const form = document.createElement("form");
  const input = document.createElement("input");
  const send = document.createElement("button");
  const keys = document.createElement("span");
  const history = [];
  let place = 0, whole = "", follows = true; // whether its end is looked at, and stays in sight

  el.classList.add("hvlab-console");
  log.setAttribute("role", "log");
  log.tabIndex = 0;
  log.append(line);
  input.autocomplete = "off";
  input.spellcheck = false;
  input.setAttribute("autocapitalize", "off");
  send.type = "submit";
  send.textContent = "Send";
  keys.className = "hv-keys";
  form.append(input, send, keys);
  el.append(label, log, form);

  // Whole lines are blocks that stay as they are: what comes is added, so that a long log costs no more than its news.
  function show() {
    const text = model.get("text"), end = text.lastIndexOf("\n") + 1;
    const grows = text.startsWith(whole), news = grows ? text.slice(whole.length, end) : text.slice(0, end);
    log.setAttribute("aria-live", !grows || news.length > MUCH ? "off" : "polite");
    if (!grows) log.replaceChildren(line);
    if (news) {
      const lines = document.createElement("div");
      lines.textContent = news;
      line.before(lines);
      whole = text.slice(0, end);
    } else if (!grows) whole = "";
    if (line.textContent !== text.slice(end)) line.textContent = text.slice(end);
    toEnd();
  }

  function toEnd() {
    if (follows) log.scrollTop = log.scrollHeight;
  }

  function describe() {
    label.textContent = model.get("label");
    log.setAttribute("aria-label", model.get("label"));
    input.setAttribute("aria-label", `${model.get("label")}: a command`);
    input.placeholder = model.get("hint");
    form.hidden = !model.get("takes_input");
    form.style.display = form.hidden ? "none" : "flex";
    keys.replaceChildren(...model.get("shell_keys").map((key) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = key;
      button.title = `Sends ${key} to the shell`;
      button.addEventListener("click", () => model.send({ kind: "key", key }));
      return button;
    }));
  }

  function recall(step) {
    place = Math.max(0, Math.min(history.length, place + step));
    input.value = history[place] ?? "";
  }

  // Ctrl-C with nothing selected interrupts, with something selected it copies; Ctrl-D ends the input of an empty line.
  function isKey(event) {
    if (!event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return "";
    const marked = input.selectionStart !== input.selectionEnd || String(document.getSelection()) !== "";
    const key = { c: marked ? "" : "Ctrl-C", d: input.value ? "" : "Ctrl-D" }[event.key.toLowerCase()] ?? "";
    return model.get("shell_keys").includes(key) ? key : "";
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const said = input.value;
    if (!said.trim() && !model.get("shell_keys").length) return;
    if (said.trim() && history.at(-1) !== said) history.push(said);
    place = history.length;
    model.send({ kind: "command", line: said });
    input.value = "";
    follows = true;
    toEnd();
  });
  input.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the notebook's own shortcuts stay out of the console
    const key = isKey(event);
    if (key) {
      input.value = key === "Ctrl-C" ? "" : input.value;
      model.send({ kind: "key", key });
    } else if (event.key === "ArrowUp") recall(-1);
    else if (event.key === "ArrowDown") recall(1);
    else return;
    event.preventDefault();
  });

  log.addEventListener("keydown", (event) => {
    if (event.key !== "Tab" && event.key !== "Escape") event.stopPropagation();
    if (event.key !== "End" && event.key !== "Home") return;
    event.preventDefault(); // a scroll that glides would come to where the end was, and one to the beginning would undo an End behind it
    follows = event.key === "End";
    if (follows) toEnd();
    else log.scrollTop = 0;
  });
  log.addEventListener("scroll", () => { follows = log.scrollHeight - log.scrollTop - log.clientHeight < 24; });
  const resized = new ResizeObserver(toEnd); // lines break elsewhere then
  resized.observe(log);
  model.on("change:text", show);
  model.on("change:label change:hint change:takes_input change:shell_keys", describe);
  describe();
  show();
  requestAnimationFrame(toEnd);
  return () => {
    resized.disconnect();
    model.off("change:text", show);
    model.off("change:label change:hint change:takes_input change:shell_keys", describe);
  };
}

export default { render };
