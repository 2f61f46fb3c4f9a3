// One side of a turn: numbers, lane and text. Draws a Run; does not know where it comes from.

import { MAX_COLOUR } from "./run.js";

const NAMES = { normal: "Normal", medusa: "Medusa", lookup: "Lookup", fixed: "Medusa, fixed tree" };

export const element = (name, className = "", ...children) => {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
};

export const speedText = (speed) => (speed >= 1000 ? Math.round(speed).toLocaleString("en") : speed.toFixed(1));
export const timeText = (seconds) => (seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(2)} s`);

/** A card that shows `run`; `onPick(step, run, pane)` when a token is clicked. */
export class Pane {
  constructor(run, onPick) {
    this.run = run;
    this.numShown = 0; // steps in the text
    this.spans = []; // of each step
    this.inked = Infinity; // steps at full strength while the run is replayed
    this.note = element("small");
    this.speed = element("b", "", "–");
    this.facts = element("p", "facts");
    this.lane = element("div", "lane");
    this.segments = Array.from({ length: MAX_COLOUR + 1 }, (_, i) => element("i", i ? `d${i}` : ""));
    this.lane.append(...this.segments);
    this.answer = element("div", "answer");
    this.answer.tabIndex = 0;
    const title = element("h3", "", NAMES[run.mode], this.note);
    const head = element("div", "pane-head", title, element("p", "speed", this.speed, "tokens/s"), this.facts);
    this.root = element("section", `pane ${run.mode}`, head, this.lane, this.answer);
    this.root.setAttribute("aria-label", NAMES[run.mode]);
    this.answer.setAttribute("aria-label", `${NAMES[run.mode]} answer`);
    this.answer.setAttribute("role", "region");
    this.answer.addEventListener("click", ({ target }) => {
      if (target.dataset.step) onPick(Number(target.dataset.step), run, this);
    });
  }

  /** What is going on, beside the name. */
  say(text, busy = false) {
    this.note.textContent = text;
    this.root.classList.toggle("busy", busy);
    this.answer.setAttribute("aria-busy", busy);
  }

  /** Bring text and numbers up to the run; the lane is as long as `total` tokens at most. */
  update(total) {
    const follow = this.answer.scrollHeight - this.answer.scrollTop - this.answer.clientHeight < 48;
    for (; this.numShown < this.run.steps.length; this.numShown += 1) this.#write(this.numShown);
    if (this.run.end?.rest && !this.rest) {
      this.rest = element("span", "t", this.run.end.rest);
      this.answer.append(this.rest);
    }
    if (follow) this.answer.scrollTop = this.answer.scrollHeight;
    this.#numbers();
    this.drawLane(this.run.byColour, total);
  }

  #write(index) {
    this.spans[index] = [];
    for (const [text, depth, source] of this.run.steps[index].pieces) {
      const span = element("span", depth ? `t d${Math.min(depth, MAX_COLOUR)}` : "t", text.trimStart());
      if (source === "lookup") span.classList.add("lookup");
      if (depth) span.dataset.depth = depth;
      span.dataset.step = index;
      this.spans[index].push(span);
      // White space before a word stays plain: marked, it would hang over the ends of lines.
      this.answer.append(text.slice(0, text.length - text.trimStart().length), span);
    }
  }

  #numbers() {
    const { run } = this;
    this.speed.textContent = run.speed ? speedText(run.speed) : "–";
    const facts = [`${run.tokensPerStep.toFixed(2)} tokens/step`, `${run.numTokens} tokens`];
    if (run.acceptance !== null) facts.push(`${Math.round(100 * run.acceptance)} % kept`);
    if (run.steps.length) facts.push(`first after ${timeText(run.firstToken)}`);
    this.facts.textContent = facts.join(" · ");
  }

  /** The bar of tokens by depth. */
  drawLane(byColour, total) {
    this.segments.forEach((segment, i) => { segment.style.width = `${(100 * byColour[i]) / Math.max(total, 1)}%`; });
  }

  /** Fade everything, to be inked again at the pace at which it was written. */
  startReplay() {
    this.inked = 0;
    for (const spans of this.spans) for (const span of spans) span.classList.add("ghost");
    this.answer.scrollTop = 0;
    this.say("replay of its run");
  }

  /** Ink what had been written `seconds` after the request; whether that is all. */
  replay(seconds, total) {
    const { steps } = this.run;
    while (this.inked < steps.length && steps[this.inked].t <= seconds) {
      for (const span of this.spans[this.inked]) span.classList.remove("ghost");
      this.inked += 1;
    }
    const byColour = this.run.byColour.map(() => 0);
    for (const { pieces } of steps.slice(0, this.inked)) byColour[0] += pieces.length;
    this.drawLane(byColour, total);
    const front = this.spans[Math.max(0, this.inked - 1)]?.[0];
    if (front) this.answer.scrollTop = front.offsetTop - this.answer.offsetTop - this.answer.clientHeight + 56;
    return this.inked >= steps.length;
  }

  /** Show which tokens came from step `index`. */
  mark(index) {
    for (const span of this.answer.querySelectorAll(".here")) span.classList.remove("here");
    for (const span of (index === null ? [] : this.spans[index] ?? [])) span.classList.add("here");
    if (index !== null) this.spans[index]?.[0]?.scrollIntoView({ block: "nearest" });
  }
}
