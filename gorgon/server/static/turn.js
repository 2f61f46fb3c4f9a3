// One question and its answers: runs one side or both, draws them, and says how it ended.

import { Pane, element, speedText, timeText } from "./pane.js";
import { Run } from "./run.js";
import { live } from "./stream.js";

const still = matchMedia("(prefers-reduced-motion: reduce)");
const ratioText = (ratio) => `${ratio.toFixed(2)}×`;

/** A turn on the page; `sides` are the modes in the order in which they run. */
export class Turn {
  constructor(question, sides, inspector) {
    this.inspector = inspector;
    this.runs = sides.map((mode) => new Run(mode));
    this.panes = this.runs.map((run) => new Pane(run, (step, of, pane) => inspector.show(step, of, pane)));
    this.ratio = element("b", "counting pending");
    this.status = element("p");
    this.ratio.hidden = true;
    this.verdict = element("div", "verdict", this.ratio, this.status);
    this.columns = element("div", "panes", ...this.panes.map((pane) => pane.root));
    this.root = element("article", "turn", element("h2", "question", question), this.verdict, this.columns);
    this.replaying = null;
    inspector.watch(this.runs.at(-1), this.panes.at(-1));
  }

  get isComparison() {
    return this.runs.length > 1;
  }

  /** The run whose text goes on in the chat. */
  get main() {
    return this.runs.at(-1);
  }

  /** Write all sides; throws what `live` throws. */
  async write(bodies, key, signal, together) {
    const frames = this.#animate();
    try {
      if (together) {
        await this.#both(bodies, key, signal);
      } else {
        for (const [i, body] of bodies.entries()) await this.#side(i, body, key, signal);
      }
    } finally {
      frames.stop();
    }
  }

  // One failing side ends the other too.
  async #both(bodies, key, signal) {
    const stop = new AbortController();
    const any = AbortSignal.any([signal, stop.signal]);
    const sides = bodies.map((body, i) => this.#side(i, body, key, any));
    try {
      await Promise.all(sides);
    } catch (error) {
      stop.abort();
      await Promise.allSettled(sides);
      throw error;
    }
  }

  async #side(index, body, key, signal) {
    const [run, pane] = [this.runs[index], this.panes[index]];
    pane.say("waiting", true);
    this.status.textContent = this.#progress(index);
    for await (const [name, data] of live(body, key, signal)) {
      run.take(name, data);
      if (name === "start") pane.say("writing", true);
      if (name === "step" && index && run.steps.length === 1) this.#startReplay(data.t);
    }
    pane.say(run.end.finish === "length" ? "stopped at max tokens" : "finished");
  }

  #progress(index) {
    if (!this.isComparison) return "Writing …";
    return index ? "Medusa is writing; normal is replayed beside it." : "Normal writes first, alone, so that its time is its own.";
  }

  // The first side again, beside the second, at the pace at which it was written.
  #startReplay(t) {
    if (!this.runs[0].end || still.matches) return;
    this.#draw(performance.now()); // its last steps may have come since the last frame
    this.panes[0].startReplay();
    this.replaying = performance.now() - t * 1000;
  }

  #animate() {
    let running = true;
    const frame = (now) => {
      this.#draw(now);
      if (running || this.replaying !== null) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
    return { stop: () => { running = false; } };
  }

  #draw(now) {
    const total = Math.max(...this.runs.map((run) => run.end ? run.numTokens : Math.max(run.numTokens, this.maxTokens ?? 0)));
    this.panes.forEach((pane, i) => { if (i || this.replaying === null) pane.update(total); });
    if (this.replaying !== null) {
      const over = this.panes[0].replay((now - this.replaying) / 1000, total);
      if (over && this.main.end) this.#endReplay(total);
    }
    this.inspector.run === this.main && !this.main.end && this.inspector.update(now);
    this.#drawRatio();
  }

  #endReplay(total) {
    this.replaying = null;
    this.panes[0].say(this.runs[0].end.finish === "length" ? "stopped at max tokens" : "finished");
    this.panes[0].update(total);
  }

  #drawRatio() {
    const [first, second] = this.runs;
    if (!second?.speed || !first.speed) return;
    this.ratio.hidden = false;
    this.ratio.textContent = ratioText(second.speed / first.speed);
  }

  /** Draw the end state and say how it went; the sentence, for screen readers too. */
  finish(together) {
    this.#draw(performance.now());
    this.ratio.classList.remove("pending");
    if (this.inspector.run === this.main) this.inspector.update(performance.now(), true);
    this.status.textContent = this.isComparison ? this.#compare(together) : this.#report();
    return this.isComparison ? `${this.#ratio()} ${this.status.textContent}` : this.status.textContent;
  }

  #compare(together) {
    const [normal, medusa] = this.runs;
    const same = medusa.text === normal.text;
    const parts = [
      `Medusa wrote ${same ? "the same text" : "another text"} in ${medusa.steps.length} passes instead of ` +
        `${normal.steps.length}: ${timeText(medusa.seconds)} instead of ${timeText(normal.seconds)}, prompt included.`,
    ];
    if (together) parts.push("Both ran at once and shared the machine.");
    else if (!(normal.end.quiet && medusa.end.quiet)) parts.push("Other requests ran meanwhile, so the times do not compare.");
    return parts.join(" ");
  }

  // What the large number says to the eye.
  #ratio() {
    const [a, b] = this.runs.map((run) => run.speed);
    if (!a || !b) return "";
    return `Medusa writes ${ratioText(b / a)} as fast: ${speedText(b)} against ${speedText(a)} tokens per second.`;
  }

  #report() {
    const { main } = this;
    return `${main.numTokens} tokens in ${timeText(main.seconds)}, ${speedText(main.speed)} tokens/s while writing.`;
  }

  /** Say that the reader stopped it. */
  stop() {
    this.replaying = null;
    for (const pane of this.panes) {
      if (!pane.run.end) pane.say("stopped");
      for (const spans of pane.spans) for (const span of spans) span.classList.remove("ghost");
    }
    this.#draw(performance.now());
    this.inspector.update(performance.now(), true);
    this.ratio.classList.remove("pending");
    this.status.textContent = "Stopped.";
  }

  /** Make room for the next turn. */
  fold() {
    this.replaying = null;
    this.root.classList.add("past");
    for (const pane of this.panes) pane.mark(null);
  }

  /** Replace what was written by what went wrong. */
  fail(trouble) {
    this.replaying = null;
    this.verdict.remove();
    this.columns.replaceWith(trouble);
    this.inspector.clear();
  }
}
