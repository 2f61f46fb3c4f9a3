// What one side has written so far, and its numbers. Knows no DOM and no network.

export const MAX_COLOUR = 5; // depths from here on share a colour

/** One generation, step by step; times in seconds. */
export class Run {
  constructor(mode) {
    this.mode = mode;
    this.start = null;
    this.steps = []; // of {t, pieces, tree}
    this.end = null;
    this.stopped = false;
    this.text = "";
    this.numTokens = 0;
    this.drafted = []; // by depth - 1
    this.accepted = [];
    this.byColour = new Array(MAX_COLOUR + 1).fill(0); // tokens; 0 is drawn by the model
  }

  /** Take an event in; the pieces that it adds. */
  take(name, data) {
    if (name === "start") this.start = data;
    if (name === "end") return this.#finish(data);
    if (name !== "step") return [];
    this.steps.push(data);
    for (const [text, depth] of data.pieces) {
      this.text += text;
      this.numTokens += 1;
      this.byColour[Math.min(depth, MAX_COLOUR)] += 1;
    }
    this.#countTree(data.tree);
    return data.pieces;
  }

  #finish(data) {
    this.end = data;
    this.text += data.rest;
    return data.rest ? [[data.rest, 0, "model"]] : [];
  }

  #countTree({ parents, path }) {
    const depths = depthsOf(parents);
    const count = (list, depth) => { list[depth - 1] = (list[depth - 1] ?? 0) + 1; };
    for (const depth of depths.slice(1)) count(this.drafted, depth);
    for (const node of path.slice(1)) count(this.accepted, depths[node]);
  }

  /** Seconds from the request to the first token. */
  get firstToken() {
    return this.steps.length ? this.steps[0].t : 0;
  }

  /** Tokens a second after the first step: while writing, without the prompt. */
  get speed() {
    if (this.steps.length < 2) return 0;
    const tokens = this.numTokens - this.steps[0].pieces.length;
    const seconds = this.end?.decode_time || this.steps.at(-1).t - this.steps[0].t;
    return seconds > 0 ? tokens / seconds : 0;
  }

  /** Seconds for everything, the wait in the queue left out. */
  get seconds() {
    return this.end ? this.end.prefill_time + this.end.decode_time : this.steps.at(-1)?.t ?? 0;
  }

  get tokensPerStep() {
    return this.steps.length ? this.numTokens / this.steps.length : 0;
  }

  /** Share of drafted tokens that were kept, null when there were none. */
  get acceptance() {
    const sum = (list) => list.reduce((total, count) => total + (count ?? 0), 0);
    const drafted = sum(this.drafted);
    return drafted ? sum(this.accepted) / drafted : null;
  }
}

/** Distance of every node from the root; parents come before children. */
export function depthsOf(parents) {
  const depths = [0];
  for (let node = 1; node < parents.length; node += 1) depths.push(depths[parents[node]] + 1);
  return depths;
}
