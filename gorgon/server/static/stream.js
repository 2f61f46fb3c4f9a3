// Talks to the server: readiness, and one generation as a stream of steps. Knows no DOM.

/** What the server, or the way to it, answered instead of a stream. */
export class ServerError extends Error {
  constructor(code, message, { field = null, retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { code, field, retryAfter });
  }
}

const headersFor = (key) => (key ? { Authorization: `Bearer ${key}` } : {});

/** State of the server: `{status, model, heads}`; status "unreachable" when nobody answers. */
export async function ready(key) {
  try {
    const reply = await fetch("/ready", { headers: headersFor(key), cache: "no-store" });
    const state = await reply.json();
    return state.status ? state : { status: reply.status === 401 ? "locked" : "unreachable" };
  } catch {
    return { status: "unreachable" };
  }
}

/** Yields `[name, data]` of every event of `POST /live`; throws ServerError. */
export async function* live(body, key, signal) {
  const reply = await reach("/live", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headersFor(key) },
    body: JSON.stringify(body),
    signal,
  });
  if (!reply.ok) throw await refusal(reply);
  let ended = false;
  for await (const [name, data] of events(reply.body)) {
    if (name === "error") throw new ServerError(data.code, data.message);
    ended ||= name === "end";
    yield [name, data];
  }
  if (!ended) throw new ServerError("cut_off", "The connection broke before the answer was complete.");
}

async function reach(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("unreachable", "Is it still running? Start it and try again.");
  }
}

async function refusal(reply) {
  const retryAfter = Number(reply.headers.get("Retry-After")) || 0;
  try {
    const { error } = await reply.json();
    const code = reply.status === 401 || reply.status === 403 ? "locked" : error.code;
    return new ServerError(code, error.message, { field: error.param, retryAfter });
  } catch {
    return new ServerError("http_error", `The server answered with status ${reply.status}.`);
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const blocks = held.split("\n\n");
      held = blocks.pop();
      for (const block of blocks) yield parse(block);
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ServerError) throw error;
    throw new ServerError("cut_off", "The connection broke before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  const field = (name) => block.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
  return [field("event"), JSON.parse(field("data"))];
}
