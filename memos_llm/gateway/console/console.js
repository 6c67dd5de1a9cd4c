// The driver: one session per token. It looks every other second and whenever an event says that something changed,
// keeps what it saw last, and says how old that is. Only a rollback changes anything.

import { $, age, command, option, say } from "./build.js";
import { Gateway, Refused } from "./gateway.js";
import * as view from "./view.js";

const LOOK_MS = 2000;
const LOOK_HIDDEN_MS = 15000;
const LISTEN_AGAIN_MS = 3000;
const SETTLE_MS = 200; // events come in bursts: never more than five looks a second
const STALE_S = 6; // older than this without an error: this page was asleep
const KEPT = "memos_llm.token";
const LATEST = 12;

let session = null;

class Session {
  constructor(token) {
    this.gateway = new Gateway(token);
    this.status = null;
    this.history = this.incidents = null;
    this.records = ""; // what the history and the incidents were read at
    this.seenAt = null; // of this page's own clock: the machines' may differ
    this.trouble = "";
    this.woken = false; // something has changed since the last look began
    this.rouse = () => {};
  }

  wake() {
    this.woken = true;
    this.rouse();
  }

  // Seconds since what is shown was true; null before the first answer.
  get ageS() {
    return this.seenAt === null ? null : (performance.now() - this.seenAt) / 1000;
  }

  // The gateway's time now, in Unix seconds.
  get now() {
    return this.status.at + this.ageS;
  }

  async follow() {
    this.listen();
    while (!this.gateway.closed) {
      this.woken = false;
      const waitS = await this.look();
      await pause(waitS > 0 ? waitS * 1000 : SETTLE_MS);
      await this.rest();
    }
  }

  // Gives the seconds that the gateway wants to be left alone for.
  async look() {
    let waitS = 0;
    try {
      const asked = performance.now();
      const status = await this.gateway.get("status");
      this.status = status;
      this.seenAt = asked;
      this.trouble = "";
      await this.readRecords();
    } catch (error) {
      if (this.gateway.closed) return 0;
      if (error.status === 401 || error.status === 403) {
        leave(error);
        return 0;
      }
      this.trouble = describe(error);
      waitS = error.retryAfter ?? 0;
    }
    if (!this.gateway.closed) draw();
    return waitS;
  }

  // They change with the flags only, so they are not asked for every time.
  async readRecords() {
    const { revision, store, latched } = this.status;
    const now = JSON.stringify([revision, store?.reachable, latched]);
    if (now === this.records) return;
    try {
      this.history = await this.gateway.get(`history?limit=${LATEST}`);
      this.incidents = await this.gateway.get(`incidents?limit=${LATEST}`);
      this.records = now;
    } catch (error) {
      if (!(error instanceof Refused) || error.status < 500) throw error;
      // the store does not answer: the status says so, and the records of before stay on the page
    }
  }

  // A hidden page holds no stream: a browser has six connections to a gateway for all of its tabs.
  async listen() {
    while (!this.gateway.closed) {
      const hidden = new AbortController();
      const onHidden = () => document.hidden && hidden.abort();
      document.addEventListener("visibilitychange", onHidden);
      try {
        if (!document.hidden) {
          for await (const name of this.gateway.events(hidden.signal)) {
            if (name !== "refused") this.wake();
          }
        }
      } catch {
        // whether the gateway can be reached is for `look` to say: the events only make it look sooner
      } finally {
        document.removeEventListener("visibilitychange", onHidden);
      }
      await pause(LISTEN_AGAIN_MS);
    }
  }

  async rest() {
    if (this.woken) return;
    const roused = new Promise((done) => (this.rouse = done));
    await Promise.race([roused, pause(document.hidden ? LOOK_HIDDEN_MS : LOOK_MS)]);
  }
}

function pause(ms) {
  return new Promise((done) => setTimeout(done, ms));
}

function describe(error) {
  if (!(error instanceof Refused)) return `The gateway is unreachable: ${error.message}.`;
  if (error.status === 429) return "This key's rate limit is used up.";
  return `The gateway cannot answer: ${error.message}.`;
}

// --- drawing ---------------------------------------------------------------------------------------------------------

function draw() {
  const first = $("picture").hidden && session.status !== null;
  $("picture").hidden = session.status === null;
  if (session.status !== null) view.picture(session);
  if (first) $("picture").focus({ preventScroll: true }); // the form that had it is gone
  tick();
}

// What changes by time alone.
function tick() {
  if (session === null) return;
  const { status, ageS } = session;
  const stale = ageS !== null && ageS > STALE_S && !document.hidden;
  const trouble = session.trouble || (stale ? "What is shown is old." : "");
  view.pulse(session, trouble);
  document.title = view.title(status, trouble);
  if (status !== null) age(session.now);
}

// --- coming and going ------------------------------------------------------------------------------------------------

function enter(token) {
  sessionStorage.setItem(KEPT, token);
  session = new Session(token);
  $("door").hidden = true;
  $("token").value = "";
  say($("refused"));
  $("forget").hidden = false;
  tick();
  session.follow();
}

// Forgets the token and what it showed. `error`: why the gateway does not take it.
function leave(error) {
  session?.gateway.close();
  session = null;
  sessionStorage.removeItem(KEPT);
  $("forget").hidden = true;
  $("picture").hidden = true;
  $("door").hidden = false;
  if ($("sure").open) $("sure").close("no");
  view.clear();
  say($("refused"), ...(error ? why(error) : []));
  $("token").focus();
}

function why(error) {
  const meaning =
    error.status === 401
      ? "The gateway does not know that token (401)."
      : "The gateway knows that key, but it may not look (403).";
  return [`${meaning} It says: ${error.message}.`];
}

$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = $("token").value.trim();
  if (/^[\x21-\x7e]+$/.test(token)) enter(token);
  else say($("refused"), "That is no token: it is one word of letters, digits, - and _.");
});

$("forget").addEventListener("click", () => leave(null));

document.addEventListener("visibilitychange", () => document.hidden || session?.wake());

// --- rolling back ----------------------------------------------------------------------------------------------------

let wanted = null;

$("rollback").addEventListener("submit", (event) => {
  event.preventDefault();
  wanted = { component: $("scope").value, reason: $("reason").value.trim() };
  view.summary(session.status, wanted);
  $("sure").returnValue = "no"; // what Escape leaves
  $("sure").showModal();
});

$("sure").addEventListener("close", async () => {
  if ($("sure").returnValue !== "yes" || session === null) return;
  const asking = session;
  const button = $("rollback").querySelector("button");
  button.disabled = true;
  say($("outcome"), "Rolling back; waiting for the instances to follow …");
  const lines = await rollBack(asking, wanted);
  button.disabled = false;
  if (asking !== session) return;
  say($("outcome"), ...lines);
  asking.wake();
});

// What came of it, in sentences.
async function rollBack(asking, order) {
  try {
    const change = await asking.gateway.post("rollback", order);
    $("reason").value = "";
    return view.changed(change);
  } catch (error) {
    // what fails on the gateway's side may be committed all the same: its words say so
    if (error instanceof Refused && error.status >= 500) return [`It failed (${error.status}): ${error.message}`];
    if (error instanceof Refused) return [`Not done (${error.status}): ${error.message}`];
    return [
      `Not known whether it is done: ${error.message}. Look at the split above. Without the gateway:`,
      command(`llmctl rollback${option(order.component)}`),
    ];
  }
}

// --- start -----------------------------------------------------------------------------------------------------------

$("clear-text").hidden = window.isSecureContext;
setInterval(tick, 1000);
const kept = sessionStorage.getItem(KEPT);
if (kept) enter(kept);
else leave(null);
