// What every part of the page is built of: elements, and the words for shares and times.
// Whatever came from the gateway is set by textContent: no HTML is ever parsed. A part is drawn anew only when what it
// shows has changed, so that a selection in it lives on.

export const EVERYTHING = "*";

export const $ = (id) => document.getElementById(id);
const drawn = new Map();

// --- building --------------------------------------------------------------------------------------------------------

// An element. Children are elements or text; null ones are left out.
export function make(tag, kind, ...children) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...nodes(children));
  return made;
}

function nodes(children) {
  const some = [children].flat(2).filter((child) => child !== null);
  return some.map((child) => (child instanceof Node ? child : text(child)));
}

function text(value) {
  const made = document.createElement("span");
  made.textContent = String(value);
  return made;
}

export const line = (...children) => make("p", "", ...children);
export const strong = (...children) => make("strong", "", ...children);
export const code = (...children) => make("code", "", ...children);
export const quiet = (...children) => make("span", "quiet", ...children);

export function command(line) {
  return make("code", "command", line);
}

export function list(rows, nothing) {
  return rows.length ? make("ul", "rows", rows.map((row) => make("li", "", row))) : make("p", "quiet", nothing);
}

export function badge(kind, words) {
  return make("span", `badge ${kind}`, words);
}

// Replaces what a part of the page shows, if `of` is something else than the last time.
export function draw(id, of, build) {
  const now = JSON.stringify(of);
  if (drawn.get(id) === now) return;
  drawn.set(id, now);
  $(id).replaceChildren(...nodes(build()));
}

// The same for a part that is there only when it has something to show.
export function drawSome(id, some, of, build) {
  $(`${id}-card`).hidden = !some;
  draw(id, some ? of : null, some ? build : () => []);
}

// Says sentences in a place of their own; none empties it.
export function say(place, ...lines) {
  place.replaceChildren(...lines.map((line) => make("p", "", line)));
}

// --- words -----------------------------------------------------------------------------------------------------------

// 0.3 → 30%, exact to the ppm that shares are kept in.
export function percent(share) {
  return `${parseFloat((share * 100).toFixed(4))}%`;
}

// 75.2 → 1m 15s
export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  for (const [size, unit, smaller, name] of [[86400, "d", 3600, "h"], [3600, "h", 60, "m"], [60, "m", 1, "s"]]) {
    if (whole >= size) return `${Math.floor(whole / size)}${unit} ${Math.floor((whole % size) / smaller)}${name}`;
  }
  return `${whole}s`;
}

function moment(at) {
  return `${new Date(at * 1000).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

export const time = moment;

// A moment, and how long ago that is: `age` keeps the second part true.
export function when(at) {
  const ago = make("span", "ago");
  ago.dataset.at = at;
  return make("span", "when", moment(at), " · ", ago);
}

// Brings every "… ago" up to the gateway's time now.
export function age(now) {
  for (const one of document.querySelectorAll(".ago")) {
    const seconds = now - Number(one.dataset.at);
    one.textContent = seconds < 0 ? `in ${span(-seconds)}` : `${span(seconds)} ago`;
  }
}

export function called(scope) {
  return scope === EVERYTHING ? "everything (*)" : scope;
}

// How the command line names a scope.
export function option(scope) {
  return scope === EVERYTHING ? "" : ` --component ${scope}`;
}

// Empties parts of the page, and remembers nothing of them.
export function wipe(ids) {
  drawn.clear();
  for (const id of ids) $(id).replaceChildren();
}
