// The tree of a chosen step, and how many guesses were kept by depth.

import { drawTree } from "./tree.js";
import { MAX_COLOUR } from "./run.js";

const REDRAW_MS = 350; // while running: slow enough to be read

const find = (id) => document.getElementById(id);

/** Shows one run at a time; follows it until the reader picks a step. */
export class Inspector {
  constructor() {
    this.run = null;
    this.pane = null;
    this.following = true;
    this.drawnAt = 0;
    this.slider = find("step");
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value) - 1));
  }

  /** Watch `run`, written in `pane`. */
  watch(run, pane) {
    this.pane?.mark(null);
    Object.assign(this, { run, pane, following: true, drawnAt: 0 });
    find("inspector").hidden = true;
  }

  /** Forget everything. */
  clear() {
    this.watch(null, null);
  }

  /** Redraw if there is news and it is time. */
  update(now, final = false) {
    if (!this.run?.steps.length || (!final && now - this.drawnAt < REDRAW_MS)) return;
    this.drawnAt = now;
    find("inspector").hidden = false;
    this.slider.max = this.run.steps.length;
    if (this.following) this.#draw(final ? this.#tellingStep() : this.run.steps.length - 1);
    this.#count();
  }

  /** Show step `index` of `run` because the reader wants to. */
  show(index, run = this.run, pane = this.pane) {
    if (run !== this.run) this.watch(run, pane);
    this.following = false;
    find("inspector").hidden = false;
    this.slider.max = run.steps.length;
    this.#draw(index);
    this.#count();
    pane.mark(index);
  }

  // When all is over, the last step that kept most says more than the very last one.
  #tellingStep() {
    let best = this.run.steps.length - 1;
    this.run.steps.forEach(({ tree }, i) => {
      if (tree.path.length >= this.run.steps[best].tree.path.length) best = i;
    });
    return best;
  }

  #draw(index) {
    this.slider.value = index + 1;
    this.slider.setAttribute("aria-valuetext", `step ${index + 1} of ${this.run.steps.length}`);
    find("step-number").textContent = `${index + 1} of ${this.run.steps.length}`;
    find("tree").replaceChildren(drawTree(this.run.steps[index].tree));
  }

  #count() {
    const rows = grouped(this.run.drafted).map((drafted, i) =>
      depthRow(i + 1, drafted, grouped(this.run.accepted)[i] ?? 0));
    document.querySelector("#depths tbody").replaceChildren(...(rows.length ? rows : [noDrafts()]));
  }
}

/** Counts by colour: depths from MAX_COLOUR on together. */
function grouped(counts) {
  const result = [];
  counts.forEach((count, i) => {
    const group = Math.min(i, MAX_COLOUR - 1);
    result[group] = (result[group] ?? 0) + (count ?? 0);
  });
  return result;
}

function depthRow(depth, drafted, accepted) {
  const row = document.createElement("tr");
  row.className = `d${depth}`;
  const name = document.createElement("th");
  name.scope = "row";
  name.textContent = `${depth}${depth === MAX_COLOUR ? "+" : ""} ahead`;
  const bar = document.createElement("div");
  bar.className = "meter";
  const fill = document.createElement("i");
  fill.style.width = `${(100 * accepted) / drafted}%`;
  bar.append(fill);
  const numbers = document.createElement("small");
  numbers.textContent = `${accepted} of ${drafted}`;
  const cells = [document.createElement("td"), document.createElement("td")];
  cells[0].append(bar);
  const percent = String(Math.round((100 * accepted) / drafted)).padStart(3, "\u2007");
  cells[1].append(numbers, ` ${percent} %`);
  row.append(name, ...cells);
  return row;
}

function noDrafts() {
  const row = document.createElement("tr");
  const cell = row.insertCell();
  cell.colSpan = 3;
  cell.textContent = "Nothing was guessed.";
  return row;
}
