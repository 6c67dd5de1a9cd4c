// The admin API, as this page asks it. Knows no page: takes a token, gives documents and events.

const LIMIT_MS = 4000; // for an answer to a look
const CHANGE_LIMIT_MS = 30000; // the gateway waits up to 10 s for instances to follow

// It answered, and said no. `status` is HTTP's; `retryAfter` in seconds, where it said so.
export class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

// It did not answer, or what answered is no gateway.
export class Unreachable extends Error {}

export class Gateway {
  #token;
  #over = new AbortController();

  constructor(token) {
    this.#token = token;
  }

  // Ends every look and stream under way. A change that was asked for goes on: it may be done already.
  close() {
    this.#over.abort();
  }

  get closed() {
    return this.#over.signal.aborted;
  }

  async get(verb) {
    const signal = AbortSignal.any([AbortSignal.timeout(LIMIT_MS), this.#over.signal]);
    return await this.#document(verb, { signal });
  }

  async post(verb, order) {
    const headers = { "content-type": "application/json" };
    const signal = AbortSignal.timeout(CHANGE_LIMIT_MS);
    return await this.#document(verb, { method: "POST", headers, body: JSON.stringify(order), signal });
  }

  // The names of the events, one by one, until the stream ends. `signal` ends it too.
  // Read through fetch: EventSource cannot send a token but in the address, where logs would keep it.
  async *events(signal) {
    const answer = await this.#ask("events", { signal: AbortSignal.any([signal, this.#over.signal]) });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let kept = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (kept + value).split("\n");
      kept = lines.pop();
      for (const line of lines) if (line.startsWith("event: ")) yield line.slice("event: ".length);
    }
  }

  async #document(verb, options) {
    const answer = await this.#ask(verb, options);
    try {
      return await answer.json();
    } catch {
      throw new Unreachable("its answer broke off, or is no JSON");
    }
  }

  async #ask(verb, options) {
    let answer;
    try {
      answer = await fetch(`admin/v1/${verb}`, {
        cache: "no-store",
        redirect: "error",
        ...options,
        headers: { ...options.headers, authorization: `Bearer ${this.#token}` },
      });
    } catch (error) {
      throw new Unreachable(error.name === "TimeoutError" ? "it does not answer" : "it cannot be connected to");
    }
    if (answer.ok) return answer;
    throw new Refused(answer.status, await said(answer), Number(answer.headers.get("retry-after")) || null);
  }
}

// Why it was refused, in the gateway's words; a proxy before it has none that are ours.
async function said(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `HTTP ${answer.status}`;
  }
}
