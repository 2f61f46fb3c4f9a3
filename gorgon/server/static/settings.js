// The settings panel: reads it, keeps it, and turns it into the fields of a request.

const NUMBERS = ["max_tokens", "temperature", "top_k", "top_p", "min_p"];
const KEPT = [...NUMBERS, "seed", "drafts", "tree", "acceptance", "order", "system", "mode"];
const MAX_SEED = 2 ** 32 - 2;

const parseTree = (text) => text.split(";").map((path) => path.split(",").map(Number));

/** The form's settings; kept in this browser, the key only until its tab is closed. */
export class Settings {
  constructor(form) {
    this.form = form;
    this.#restore();
    form.addEventListener("change", () => this.#changed());
    this.#changed();
  }

  #value(name) {
    return this.form.elements[name].value;
  }

  get mode() {
    return this.#value("mode");
  }

  get key() {
    return this.#value("key").trim();
  }

  get together() {
    return this.#value("order") === "together";
  }

  /** Name of the mode of the drafting side. */
  get drafting() {
    return this.#value("drafts");
  }

  get system() {
    return this.#value("system").trim();
  }

  /** Fields that both sides of a comparison share; without a seed one is drawn for both. */
  sampling() {
    const fields = Object.fromEntries(NUMBERS.map((name) => [name, Number(this.#value(name))]));
    const seed = this.#value("seed");
    if (seed !== "") fields.seed = Number(seed);
    else if (fields.temperature > 0) fields.seed = Math.floor(Math.random() * MAX_SEED);
    return fields;
  }

  /** Fields of the drafting side. */
  speculation() {
    const fields = { mode: this.drafting, acceptance: this.#value("acceptance") };
    if (fields.mode === "fixed") fields.tree = parseTree(this.#value("tree"));
    return fields;
  }

  /** Open the panel at one field, if there is such a field. */
  point(name) {
    const field = this.form.elements[name];
    if (!field?.focus || !document.getElementById("settings").contains(field)) return;
    document.getElementById("settings").open = true;
    field.focus();
  }

  #changed() {
    const { elements } = this.form;
    elements.tree.disabled = this.drafting !== "fixed";
    document.body.classList.toggle("digits", elements.digits.checked);
    document.getElementById("summary").textContent = this.#summary();
    try {
      const kept = Object.fromEntries(KEPT.map((name) => [name, this.#value(name)]));
      localStorage.setItem("gorgon", JSON.stringify({ ...kept, digits: elements.digits.checked }));
      sessionStorage.setItem("gorgon-key", this.key);
    } catch { /* a browser that keeps nothing still works */ }
  }

  #summary() {
    const temperature = Number(this.#value("temperature"));
    const parts = [`${this.#value("max_tokens")} tokens`, temperature ? `temperature ${temperature}` : "greedy"];
    if (this.drafting !== "medusa") parts.push(this.drafting === "fixed" ? "fixed tree" : "lookup only");
    if (this.#value("acceptance") === "typical") parts.push("typical acceptance");
    if (this.together) parts.push("both at once");
    return parts.join(" · ");
  }

  #restore() {
    try {
      const kept = JSON.parse(localStorage.getItem("gorgon") ?? "{}");
      for (const name of KEPT) if (typeof kept[name] === "string") this.form.elements[name].value = kept[name];
      this.form.elements.digits.checked = kept.digits === true;
      this.form.elements.key.value = sessionStorage.getItem("gorgon-key") ?? "";
    } catch { /* as above */ }
  }
}
