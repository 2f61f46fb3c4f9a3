// Draws one token tree as SVG. What was written runs along the top; dropped guesses hang below.

import { MAX_COLOUR, depthsOf } from "./run.js";

const NODE = { width: 98, height: 24, gapX: 24, gapY: 7 };
const TOP = 26;
const CHARS = 9;

const svg = (name, attributes = {}, ...children) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

/** A token with its white space made visible. */
export const visible = (text) =>
  text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ /, "").replaceAll(" ", "·") || "␣";

const shorten = (text) => {
  const chars = [...visible(text)];
  return chars.length > CHARS ? `${chars.slice(0, CHARS - 1).join("")}…` : chars.join("");
};

const percent = (share) => (share >= 0.995 ? "100" : share < 0.01 ? "<1" : String(Math.round(share * 100)));

/** Nodes of a step with place and kind; the model's own draw is the last one. */
function layOut({ parents, text, sources, survival, path, drawn }) {
  const kept = new Set(path);
  const depths = depthsOf(parents);
  const nodes = text.map((token, i) => ({
    token, depth: depths[i], parent: i ? parents[i] : null, chance: i ? survival[i] : null,
    kind: i === 0 ? "model" : kept.has(i) ? "kept" : "lost", lookup: sources[i] === "lookup",
  }));
  const last = path.at(-1);
  nodes.push({ token: drawn, depth: depths[last] + 1, parent: last, chance: null, kind: "model", lookup: false });
  const below = nodes.map(() => []);
  nodes.forEach((node, i) => { if (node.parent !== null) below[node.parent].push(i); });
  let row = 0;
  const place = (i) => {
    const order = below[i].sort((a, b) => (nodes[a].kind === "lost") - (nodes[b].kind === "lost"));
    nodes[i].row = row;
    order.forEach((child, n) => { if (n) row += 1; place(child); });
  };
  place(0);
  return { nodes, rows: row + 1, columns: Math.max(...nodes.map((node) => node.depth)) + 1 };
}

const xOf = (depth) => 1 + depth * (NODE.width + NODE.gapX);
const yOf = (row) => TOP + row * (NODE.height + NODE.gapY);
const colour = (depth) => `d${Math.min(depth, MAX_COLOUR)}`;

function edge(from, to) {
  const [x1, y1] = [xOf(from.depth) + NODE.width, yOf(from.row) + NODE.height / 2];
  const [x2, y2] = [xOf(to.depth), yOf(to.row) + NODE.height / 2];
  const middle = (x1 + x2) / 2;
  const d = from.row === to.row ? `M${x1} ${y1}H${x2}` : `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`;
  const line = svg("path", { d, class: `${to.kind} ${colour(to.depth)}` });
  if (to.kind === "lost") line.setAttribute("stroke-width", 1 + 2 * to.chance);
  return line;
}

function box(node) {
  const [x, y] = [xOf(node.depth), yOf(node.row)];
  const names = [node.kind, node.kind === "kept" ? colour(node.depth) : "", node.lookup ? "by-lookup" : ""];
  const group = svg("g", { class: names.filter(Boolean).join(" ") },
    svg("rect", { x, y, width: NODE.width, height: NODE.height, rx: node.kind === "model" ? 12 : 6 }));
  const label = svg("text", { x: x + 9, y: y + 16 });
  label.textContent = shorten(node.token);
  const title = svg("title");
  title.textContent = JSON.stringify(node.token);
  group.append(label, title);
  if (node.chance !== null) {
    const chance = svg("text", { x: x + NODE.width - 7, y: y + 16, class: "chance" });
    chance.textContent = percent(node.chance);
    group.append(chance);
  }
  return group;
}

function heading(depth) {
  const text = svg("text", { x: xOf(depth) + 2, y: 12, class: "column" });
  text.textContent = depth === 0 ? "known" : `${depth} ahead`;
  return text;
}

/** The sentence that a screen reader gets instead of the drawing. */
export function describe({ text, path, drawn }) {
  const drafts = text.length - 1;
  const kept = path.slice(1).map((node) => JSON.stringify(text[node]));
  if (!drafts) return `Nothing was guessed after ${JSON.stringify(text[0])}; the model drew ${JSON.stringify(drawn)}.`;
  const list = kept.length ? `, kept ${kept.length}: ${kept.join(", ")}` : ", kept none";
  return `After ${JSON.stringify(text[0])}: ${drafts} guessed${list}; then the model drew ${JSON.stringify(drawn)}.`;
}

/** The tree of one step as an `<svg>` element. */
export function drawTree(tree) {
  const { nodes, rows, columns } = layOut(tree);
  const width = xOf(columns) - NODE.gapX + 1;
  const height = yOf(rows);
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": describe(tree) });
  for (let depth = 0; depth < columns; depth += 1) picture.append(heading(depth));
  const order = [...nodes].sort((a, b) => (a.kind !== "lost") - (b.kind !== "lost"));
  for (const node of order) if (node.parent !== null) picture.append(edge(nodes[node.parent], node));
  for (const node of order) picture.append(box(node));
  return picture;
}
