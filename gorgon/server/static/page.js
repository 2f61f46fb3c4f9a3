// The page: composer, chat and what to say when something is wrong.

import { Inspector } from "./inspector.js";
import { element } from "./pane.js";
import { Settings } from "./settings.js";
import { ServerError, ready } from "./stream.js";
import { Turn } from "./turn.js";

const find = (id) => document.getElementById(id);
const form = find("composer");
const prompt = find("prompt");
const settings = new Settings(form);
const inspector = new Inspector();

const TITLES = {
  locked: "This server needs a key",
  queue_full: "The server is busy",
  not_ready: "The model is not ready",
  unreachable: "The server does not answer",
  cut_off: "The answer was cut off",
  bad_request: "The server cannot do this",
};

let history = []; // messages so far, the system prompt left out
let turn = null;
let running = null; // AbortController of what is being written

const messages = (question) => [
  ...(settings.system ? [{ role: "system", content: settings.system }] : []),
  ...history,
  { role: "user", content: question },
];

function plan(question) {
  const shared = { messages: messages(question), ...settings.sampling() };
  const normal = { ...shared, mode: "normal" };
  const medusa = { ...shared, ...settings.speculation() };
  if (settings.mode === "normal") return [normal];
  if (settings.mode === "medusa") return [medusa];
  return [normal, medusa].map((body) => ({ ...body, fresh: true }));
}

async function send(question) {
  const bodies = plan(question);
  const together = settings.together && bodies.length > 1;
  turn?.fold();
  turn = new Turn(question, bodies.map((body) => body.mode), inspector);
  turn.maxTokens = bodies[0].max_tokens;
  find("turns").append(turn.root);
  setRunning(new AbortController());
  turn.root.scrollIntoView({ block: "start" });
  try {
    await turn.write(bodies, settings.key, running.signal, together);
    say(turn.finish(together));
    remember(question, turn.main.text);
  } catch (error) {
    if (error.name === "AbortError") stopped(question);
    else failed(question, error);
  } finally {
    setRunning(null);
  }
}

function remember(question, answer) {
  history.push({ role: "user", content: question }, { role: "assistant", content: answer });
}

function stopped(question) {
  turn.stop();
  say("Stopped.");
  const written = turn.main.text || turn.runs[0].text;
  if (written) remember(question, written);
}

function failed(question, error) {
  if (!(error instanceof ServerError)) console.error(error);
  const problem = error instanceof ServerError ? error : new ServerError("page", String(error));
  turn.fail(trouble(problem, question));
  if (!prompt.value) setPrompt(question);
  if (problem.code === "locked") settings.point("key");
  else if (problem.field) settings.point(problem.field);
  if (problem.code === "not_ready" || problem.code === "unreachable") watchServer();
}

function trouble(problem, question) {
  const box = element("div", "trouble", element("strong", "", TITLES[problem.code] ?? "Something went wrong"));
  box.setAttribute("role", "alert");
  box.append(element("p", "", problem.message));
  const again = element("button", "quiet", "Try again");
  again.type = "button";
  const of = turn;
  again.addEventListener("click", () => {
    if (running) return;
    of.root.remove();
    if (prompt.value === question) setPrompt("");
    send(question);
  });
  if (problem.retryAfter) countDown(again, problem.retryAfter);
  box.append(again);
  return box;
}

function countDown(button, seconds) {
  button.disabled = seconds > 0;
  button.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
  if (seconds > 0) setTimeout(() => countDown(button, seconds - 1), 1000);
}

function setRunning(controller) {
  running = controller;
  const hadFocus = [find("send"), find("stop")].includes(document.activeElement);
  find("send").hidden = controller !== null;
  find("stop").hidden = controller === null;
  if (hadFocus) find(controller ? "stop" : "send").focus();
  find("welcome").hidden = true;
  find("new-chat").hidden = controller !== null;
}

function newChat() {
  history = [];
  turn?.fold();
  turn = null;
  inspector.clear();
  find("turns").replaceChildren();
  find("welcome").hidden = false;
  find("new-chat").hidden = true;
  prompt.focus();
}

const say = (text) => { find("announcer").textContent = text; };

function setPrompt(text) {
  prompt.value = text;
  prompt.style.height = "auto";
  if (!CSS.supports("field-sizing", "content")) prompt.style.height = `${prompt.scrollHeight}px`;
}

// -- the server's state ---------------------------------------------------------------------------

let watching = false;

const STATES = {
  loading: "loading the model …",
  failed: "the model could not be loaded; see the server’s log",
  draining: "the server is shutting down",
  stopped: "the server is shutting down",
  unreachable: "the server does not answer",
  locked: "needs a key",
};

/** Show the server's state, and ask again until it is ready. */
async function watchServer() {
  if (watching) return;
  watching = true;
  let state;
  while (true) {
    state = await ready(settings.key);
    showState(state);
    if (["ready", "locked"].includes(state.status)) break;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  watching = false;
}

function showState({ status, model, heads }) {
  const line = find("model");
  const text = status === "ready" ? `${model} · ${heads ? `${heads} Medusa heads` : "no heads, drafts by lookup"}` : STATES[status] ?? status;
  if (line.textContent !== text) line.textContent = text;
  line.classList.toggle("bad", !["ready", "loading"].includes(status));
  find("send").disabled = ["loading", "failed"].includes(status);
}

// -- what the reader does -------------------------------------------------------------------------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const question = prompt.value.trim();
  if (running || !question || find("send").disabled) return;
  find("settings").open = false;
  setPrompt("");
  send(question);
});

// A field in a closed panel cannot show what is wrong with it.
form.addEventListener("invalid", ({ target }) => {
  if (find("settings").contains(target)) find("settings").open = true;
}, true);

prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
prompt.addEventListener("input", () => setPrompt(prompt.value));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});
find("stop").addEventListener("click", () => running?.abort());
find("new-chat").addEventListener("click", newChat);
find("examples").addEventListener("click", ({ target }) => {
  if (target.localName !== "button" || find("send").disabled) return;
  send(target.textContent);
});
form.elements.key.addEventListener("change", watchServer);

watchServer();
