// Draws the documents of the admin API.

import {
  $, EVERYTHING, badge, called, code, command, draw, drawSome, line, list, make, option, percent, quiet, span, strong,
  time, when, wipe,
} from "./build.js";

const BEHIND_S = 5; // an instance that was not heard of for this long is not live

function shareOf(status, scope) {
  return status.shares[scope]?.[status.candidate] ?? 0;
}

function isLatched(status, scope) {
  return status.latched.some((latch) => latch.scope === scope);
}

function moved(entry) {
  return `${percent(entry.share_before)} → ${percent(entry.share_after)}`;
}

// --- the head --------------------------------------------------------------------------------------------------------

export function title(status, trouble) {
  if (trouble) return "OLD DATA · memos_llm";
  if (status === null) return "memos_llm console";
  const latched = status.latched.length ? "LATCHED · " : "";
  const share = status.candidate ? `${status.candidate} ${percent(shareOf(status, EVERYTHING))} · ` : "";
  return `${latched}${share}memos_llm`;
}

export function pulse({ status, ageS }, trouble) {
  const place = $("pulse");
  const old = ageS === null ? "nothing seen" : `data is ${span(ageS)} old`;
  const live = ageS === null ? "asking the gateway …" : `live, ${old}`;
  place.hidden = false;
  place.className = trouble ? "pulse bad" : "pulse good";
  place.textContent = trouble ? `OLD: ${old}` : live;
  $("picture").classList.toggle("stale", trouble !== "");
  draw("trouble", [trouble, status === null], () => (trouble ? unreachable(trouble, status) : []));
}

function unreachable(trouble, status) {
  const what =
    status === null
      ? "Nothing was seen yet."
      : "What you see below was true at the last answer, and may be wrong now.";
  const without = [command("llmctl status"), " ", command("llmctl rollback")];
  return make(
    "div", "notice bad",
    line(strong(trouble), ` ${what} This page goes on asking.`),
    line("On the gateway's machine, without the gateway: ", without),
  );
}

// --- the picture -----------------------------------------------------------------------------------------------------

// `seen`: the last status, history and incidents; the last two may be null while the store does not answer.
export function picture({ status, history, incidents }) {
  const { candidate, baseline } = status;
  const entries = history?.entries ?? [];
  const known = incidents?.incidents ?? [];
  draw("move", [baseline, candidate, status.revision], () => move(status));
  const { shares, why, pins, latched } = status;
  draw("split", [shares, why, pins, latched, ends(status), faults(status)], () => split(status));
  drawSome("latches", latched.length > 0, [latched, known], () => latches(latched, known));
  drawRollback(status);
  drawSome("plan", status.plan != null, status.plan, () => facts(status.plan));
  drawSome("embeddings", status.embeddings?.length > 0, [status.embeddings, baseline], () => embeddings(status));
  draw("providers", [status.providers, baseline, candidate], () => providers(status));
  draw("instances", [status.instances.map(follower), status.revision], () => instances(status));
  draw("history", history, () => list(entries.map(change), "No changes yet."));
  draw("incidents", incidents, () => list(known.map(incident), "None: nothing was ever rolled back."));
  drawSome("windows", status.windows?.length > 0, status.windows, () => windows(status.windows));
  draw("about", [status.version, status.config?.path], () => about(status));
}

function move({ baseline, candidate, revision }) {
  const at = quiet(` · revision ${revision}`);
  if (!candidate) return [strong(baseline), " · no candidate is configured", at];
  return [baseline, " → ", make("strong", "candidate", candidate), at];
}

// What needs a hand, in sentences: the store, the configuration file, a candidate that can be sent nothing.
function faults(status) {
  const { store, config, candidate } = status;
  const found = [];
  if (store?.reachable === false) {
    found.push("The store does not answer: the last flags stay in force and cannot be changed.");
  }
  if (store?.regressed) found.push("The store has regressed: llmctl store adopt shows what adopting it would change.");
  if (store?.detail) found.push(store.detail);
  for (const error of config?.errors ?? []) found.push(`The file is wrong, the one before is in force: ${error}`);
  const waiting = config?.waiting ?? [];
  if (waiting.length) found.push(`Changed in the file, in force after a restart: ${waiting.join(", ")}`);
  for (const [name, until] of Object.entries(status.maintenance ?? {})) {
    found.push(`Maintenance of ${name} until ${time(until)}: nothing new goes there, and nothing is rolled back.`);
  }
  if (candidate && status.guard?.enabled === false) {
    found.push("The guard is switched off (rollback.enabled): nothing rolls back by itself.");
  }
  for (const said of status.guard?.blind ?? []) found.push(`The guard of this process cannot judge: ${said}.`);
  for (const held of status.guard?.held ?? []) {
    const detail = held.detail ? `: ${held.detail}` : "";
    const ago = `${span(status.at - held.at)} ago`;
    const of = `${held.provider}, ${called(held.scope)}`;
    found.push(`${held.trigger} fired for ${of}, and was held ${ago}: ${held.why}${detail}`);
  }
  const wanted = Object.keys(status.shares).some((scope) => shareOf(status, scope) > 0);
  const places = status.providers[candidate]?.endpoints ?? [];
  if (wanted && places.length && !places.some(takes)) {
    found.push(`${candidate} can be sent nothing now (see Providers): the fallback answers for it.`);
  }
  return found;
}

function takes(endpoint) {
  return endpoint.up !== false && endpoint.breaker !== "open";
}

function ends({ revision, baseline, candidate, configured_share }) {
  return [revision > 0, baseline, candidate, configured_share];
}

function split(status) {
  const { candidate, baseline, shares, configured_share: filed } = status;
  const notes = faults(status).map((fault) => make("p", "notice warn", fault));
  if (status.revision === 0) notes.push(make("p", "quiet", `No flags yet: everything goes to ${baseline}.`));
  if (!candidate) return [...notes, line(`No candidate is configured: everything goes to ${baseline}.`)];
  const legend = make(
    "p", "legend quiet", make("span", "key candidate"), candidate, make("span", "key baseline"), baseline,
  );
  const stored = shares[EVERYTHING]?.[candidate];
  const differs = stored !== undefined && stored !== filed && !isLatched(status, EVERYTHING);
  const said =
    `The file's routing.share is ${percent(filed)}; the store's ${percent(stored ?? 0)} is in force. ` +
    "(The file's seeds a new store only.)";
  const file = differs ? make("p", "quiet", said) : null;
  const rows = make("ul", "shares", Object.keys(shares).map((scope) => share(status, scope)));
  return [...notes, legend, rows, file];
}

function share(status, scope) {
  const { candidate, baseline, pins } = status;
  const pinned = pins?.[scope];
  const elsewhere = pinned !== undefined && pinned !== candidate && pinned !== baseline;
  const now = shareOf(status, scope);
  const why = pinned === undefined ? (status.why?.[scope] ?? "") : `pinned to ${pinned} by the configuration`;
  const latched = isLatched(status, scope) || why.startsWith("latched");
  return make(
    "li", latched ? "latched" : "",
    make("span", "scope", called(scope)),
    make("span", "share", elsewhere ? "–" : percent(now)),
    elsewhere ? null : bar(now),
    make("span", "why quiet", latched ? badge("bad", why || "latched") : why),
  );
}

// What is above 0 or below 1 never looks like none or all.
function bar(share) {
  const made = document.createElement("progress");
  made.value = share > 0 && share < 1 ? Math.min(0.98, Math.max(0.02, share)) : share;
  made.setAttribute("aria-hidden", "true"); // the figure beside it says the same
  return made;
}

function latches(latched, known) {
  return list(
    latched.map((latch) => {
      const record = known.find((one) => one.id === latch.incident);
      const reason = record?.reason || "no reason given";
      const cause = record ? line(strong(record.trigger), ` by ${record.actor}: ${reason}`) : null;
      const lift = command(`llmctl rearm${option(latch.scope)} --reason "…"`);
      return [
        line(badge("bad", "latched"), " ", strong(called(latch.scope)), " · ", latch.provider, " gets 0%"),
        line("since ", when(latch.since)),
        cause,
        latch.holddown_until > latch.since ? line("hold-down until ", when(latch.holddown_until)) : null,
        latch.holddown_until > latch.since ? make("p", "quiet", "until then only --force lifts it") : null,
        make("p", "quiet", "incident ", code(latch.incident)),
        line("Lift it when the cause is mended: ", lift),
      ];
    }),
    "",
  );
}

// The choice is kept over a redraw.
function drawRollback(status) {
  const { candidate } = status;
  $("rollback-card").hidden = !candidate;
  if (!candidate) return;
  const scopes = Object.keys(status.shares);
  const before = $("scope").value;
  draw("scope", [scopes, scopes.map((scope) => shareOf(status, scope))], () =>
    scopes.map((scope) => {
      const made = document.createElement("option");
      made.value = scope;
      made.textContent = `${called(scope)}, now ${percent(shareOf(status, scope))}`;
      return made;
    }),
  );
  if (scopes.includes(before)) $("scope").value = before;
  draw("onward", candidate, () =>
    make(
      "ul", "rows",
      make("li", "", command(`llmctl shift --${candidate} 5% --component C --reason "…"`)),
      make("li", "", command('llmctl rearm --component C --reason "…"')),
      make("li", "quiet", "Without --component: everything. From another machine: llmctl --gateway URL …"),
    ),
  );
}

// What the roll back that is about to be confirmed will do.
export function summary(status, { component, reason }) {
  const { candidate, baseline } = status;
  const change = `${candidate} ${percent(shareOf(status, component))} → 0%, latched`;
  const effect = `New requests go to ${baseline}; those that run finish where they are.`;
  $("summary").replaceChildren(
    line(strong(called(component)), `: ${change}. ${effect}`),
    line(`Reason: ${reason || "none given"}`),
    make("p", "quiet", "The share stays 0 until somebody lifts the latch (llmctl rearm) and raises it again."),
  );
}

// What a change has done, in sentences.
export function changed(change) {
  const shares = `${change.provider} ${percent(change.share_before)} → ${percent(change.share)}`;
  const incident = change.latched ? `, incident ${change.latched}` : "";
  return [
    `Done: ${called(change.scope)}, ${shares}, revision ${change.revision}${incident}.`,
    change.confirmed.length ? `Seen to follow: ${change.confirmed.join(", ")}.` : null,
    ...(change.notes ?? []),
    ...(change.warnings ?? []),
  ].filter((line) => line !== null);
}

// --- the rest --------------------------------------------------------------------------------------------------------

// The scalar fields of a document whose shape this page does not know.
function facts(document) {
  const rows = Object.entries(document).filter(([, value]) => value !== null && typeof value !== "object");
  return list(rows.map(([name, value]) => make("span", "", `${name}: `, strong(value))), "");
}

function embeddings({ embeddings: models, baseline }) {
  return list(
    models.map(({ model, verified }) => {
      if (verified) {
        const proof = `least cosine ${verified.cosine_min.toFixed(6)}, ${verified.texts} texts`;
        return [strong(model), ` verified equal (${proof})`];
      }
      const verify = command(`llmctl embeddings verify ${model} --file F`);
      return [strong(model), ` not verified: stays on ${baseline} `, verify];
    }),
    "",
  );
}

function providers({ providers: all, baseline, candidate }) {
  return list(
    Object.entries(all).map(([name, provider]) => {
      const role = name === baseline ? "baseline" : name === candidate ? "candidate" : "";
      const places = provider.endpoints ?? [];
      return [
        make(
          "p", "provider",
          state(provider.up), " ", strong(name), " ", quiet(role),
          provider.in_flight ? ` ${provider.in_flight} in flight` : null,
        ),
        places.length ? make("ul", "endpoints", places.map(endpoint)) : make("p", "quiet", "not probed"),
      ];
    }),
    "No provider is configured.",
  );
}

function state(up) {
  if (up === null || up === undefined) return badge("unknown", "not probed");
  return up ? badge("good", "up") : badge("bad", "DOWN");
}

function endpoint(one) {
  const models = one.models === null ? "models unknown" : one.models.join(", ") || "no models";
  const broken = one.breaker && one.breaker !== "closed";
  return make(
    "li", "",
    line(state(one.up), " ", code(one.url), " ", quiet(one.version ?? "")),
    one.up === false && one.detail ? make("p", "fault", one.detail) : null,
    one.breaker ? line("breaker ", badge(broken ? "bad" : "good", one.breaker)) : null,
    one.up ? make("p", "quiet models", models) : null,
  );
}

function follower({ id, kind, revision, age_s: ageS }) {
  return [id, kind, revision, ageS > BEHIND_S ? Math.round(ageS) : 0];
}

function instances({ instances: all, revision }) {
  return list(
    all.map((one) => [
      at(one.revision, revision),
      " ", strong(one.id), " ", quiet(one.kind),
      one.age_s > BEHIND_S ? make("span", "fault", ` not heard of for ${span(one.age_s)}`) : null,
    ]),
    "None is known: the store does not answer, or nothing follows it.",
  );
}

function at(revision, newest) {
  return revision >= newest ? badge("good", `revision ${revision}`) : badge("bad", `revision ${revision}, behind`);
}

function change(entry) {
  return [
    entry.command === "maintain"
      ? line(strong("maintenance"), ` ${entry.provider} · ${entry.actor}`)
      : line(strong(entry.command), ` ${called(entry.scope)} `, strong(moved(entry)), ` · ${entry.actor}`),
    entry.reason ? make("p", "reason", entry.reason) : null,
    make("p", "quiet", when(entry.at), ` · revision ${entry.revision}`),
  ];
}

const EVIDENCE = ["limit", "n", "k", "estimate", "low", "high"];

// Both arms as the first process saw them, and who else came to the same.
function sides({ id, evidence = [] }) {
  const [first] = evidence;
  if (!first) return [];
  const arms = (first.windows ?? []).map((arm) => {
    const of = arm.component || arm.model || "everything";
    const rate = arm.n ? ` (${rough(arm.failures / arm.n)})` : "";
    const p95 = arm.p95_ms == null ? "" : `, p95 ${Math.round(arm.p95_ms)} ms`;
    return line(`${arm.provider}, ${of}: ${arm.failures} of ${arm.n} failed${rate}${p95}`);
  });
  const others = evidence.length - 1;
  const also = others > 0 ? `, and ${others} more` : "";
  return [...arms, make("p", "quiet", `seen by ${first.by}${also} · all of it: `, command(`llmctl incidents ${id}`))];
}

function incident(one) {
  const evidence = EVIDENCE.filter((name) => one[name] != null).map((name) => `${name} ${figure(name, one[name])}`);
  const shares = Object.entries(one.shares_before ?? {}).map(([scope, share]) => `${called(scope)} ${percent(share)}`);
  const before = shares.length ? ` · before: ${shares.join(", ")}` : null;
  return [
    line(strong(called(one.scope)), ` · ${one.provider} · ${one.trigger} · ${one.actor}`),
    one.reason ? make("p", "reason", one.reason) : null,
    one.rule && one.rule !== one.reason ? line(one.rule) : null,
    evidence.length ? line(evidence.join(" · ")) : null,
    ...sides(one),
    make("p", "quiet", when(one.at), " · ", code(one.id), before),
  ];
}

const RATES = ["error_rate", "error_limit", "estimate", "low", "high"];
const WINDOW = [
  "provider", "component", "model", "n", "failures", "error_rate", "error_limit", "p95_ms", "p95_limit_ms", "verdict",
  "reason", "missing",
];
const RULE = ["provider", "component", "model", "trigger", "verdict", "reason", "n", "k", "estimate", "low", "limit",
  "missing", "text"];

// Every sum against its limits; then, rule by rule, how far each is from its limit and what data is missing.
function windows(rows) {
  const rules = rows.flatMap(({ provider, component, model, rules: own = [] }) =>
    own.map((rule) => ({ provider, component, model, ...rule })),
  );
  return [figures(rows, WINDOW), rules.length ? make("h3", "", "Rule by rule") : null,
    rules.length ? figures(rules, RULE) : null];
}

function figures(rows, wanted) {
  const columns = wanted.filter((name) => rows.some((row) => row[name] !== undefined && row[name] !== ""));
  const head = columns.map((name) => {
    const made = make("th", kind(rows[0], name), name.replaceAll("_", " "));
    made.scope = "col";
    return made;
  });
  const cell = (row, name) => make("td", kind(row, name), figure(name, row[name]));
  return make(
    "table", "",
    make("thead", "", make("tr", "", head)),
    make("tbody", "", rows.map((row) => make("tr", "", columns.map((name) => cell(row, name))))),
  );
}

function kind(row, name) {
  return typeof row[name] === "number" ? "figure" : "";
}

function figure(name, value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return typeof value === "object" ? JSON.stringify(value) : value;
  if (RATES.includes(name) || (name === "limit" && value < 1)) return rough(value);
  return name.endsWith("_ms") ? Math.round(value) : parseFloat(value.toFixed(4));
}

// To three digits: a rate that was counted is no more certain than that.
function rough(rate) {
  return `${parseFloat((rate * 100).toPrecision(3))}%`;
}

function about({ version, config }) {
  return [`memos_llm ${version}`, config?.path, "times are UTC"].filter(Boolean).join(" · ");
}

// --- forgetting ------------------------------------------------------------------------------------------------------

export function clear() {
  const parts = ["move", "pulse", "trouble", "split", "latches", "scope", "outcome", "onward", "summary", "plan"];
  parts.push("embeddings", "providers", "instances", "history", "incidents", "windows", "about");
  wipe(parts);
  $("pulse").hidden = true;
  $("reason").value = "";
  document.title = "memos_llm console";
}
