// The page of one stream: its picture, its figures as they come, and its end when it comes.

import { ask, banner, localise, repeat } from "./console.js";
import { many, rate } from "./figures.js";
import { Player } from "./player.js";

const NOW_MS = 2000;
const ENDED_MS = 10_000;
const SAMPLES = 900; // half an hour of them
const SVG = "http://www.w3.org/2000/svg";

const place = (id) => document.getElementById(id);
const state = place("state");
const { now, hls, webrtc, readPolicy, name } = state.dataset;
const parts = new Map([...document.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
const shown = new Map();
const samples = [];
const player = new Player(place("screen"), { webrtc, hls, readPolicy, title: name, controls: true });
let status = state.dataset.status;

function take(told) {
  for (const [part, html] of Object.entries(told.parts)) {
    if (shown.get(part) === html) continue;
    shown.set(part, html);
    parts.get(part).innerHTML = html; // made by the service, which escapes all that others wrote
    localise(parts.get(part));
  }
  if (told.status !== status) become(told.status);
  if (status === "active") {
    samples.push({ at: performance.now(), ...told });
    if (samples.length > SAMPLES) samples.shift();
    draw(told);
  }
}

function become(next) {
  status = next;
  state.dataset.status = next;
  place("heard").textContent = parts.get("state").textContent.trim();
  if (next === "active") player.start();
  if (next !== "ended") return;
  document.title = `Ended: ${document.title}`;
  place("ending")?.remove(); // with a dialog that is open
  place("watch")?.remove();
  // What was drawn stays; what was so a moment ago is no more.
  for (const id of ["bitrate-now", "viewers-now"]) place(id).textContent = "";
  if (!place("bitrate-plot").childElementCount) place("plots").hidden = true;
  player.stop("This stream has ended.");
}

// --- plots ---------------------------------------------------------------------------------------------------

function draw(told) {
  const mean = told.mean_bitrate;
  place("plots").hidden = false;
  place("bitrate-now").textContent = told.bitrate === null ? "not measured" : rate(told.bitrate);
  place("viewers-now").textContent = told.viewers ?? "not counted";
  if (samples.length < 2 || samples.every((one) => one.bitrate === null)) return;
  const bits = samples.map((one) => one.bitrate ?? 0);
  const audience = samples.map((one) => one.viewers ?? 0);
  plot(place("bitrate-plot"), bits, 120, mean);
  plot(place("viewers-plot"), audience, 60);
  place("bitrate-plot").setAttribute("aria-label", `Bitrate: from ${rate(Math.min(...bits))} to ${rate(Math.max(...bits))}, now ${rate(told.bitrate)}`);
  place("viewers-plot").setAttribute("aria-label", `Viewers: at most ${Math.max(...audience)}, now ${many(told.viewers ?? 0, "viewer")}`);
}

function plot(svg, values, height, mean = null) {
  const [first, last] = [samples[0].at, samples.at(-1).at];
  const most = Math.max(1, mean ?? 0, ...values) * 1.1;
  const x = (at) => (600 * (at - first)) / (last - first);
  const y = (value) => height - (height * value) / most;
  const drawn = [];
  samples.forEach((one, index) => {
    if (one.media !== "stalled" || index === 0) return;
    const from = x(samples[index - 1].at);
    drawn.push(shape("rect", { class: "still", x: from, y: 0, width: x(one.at) - from, height }));
  });
  if (mean !== null) drawn.push(shape("line", { class: "mean", x1: 0, x2: 600, y1: y(mean), y2: y(mean) }));
  const points = samples.map((one, index) => `${x(one.at).toFixed(1)},${y(values[index]).toFixed(1)}`).join(" ");
  drawn.push(shape("polyline", { class: "line", points }));
  svg.replaceChildren(...drawn);
}

function shape(kind, attributes) {
  const made = document.createElementNS(SVG, kind);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}

if (status === "active") player.start();
else if (status === "ended") player.stop("This stream has ended.");
else player.stop("Not live yet.");

repeat(
  async () => {
    try {
      take((await ask(now)).told);
      banner(null);
    } catch (error) {
      banner(error);
    }
  },
  // Until its connection is closed, which takes a second as a rule, the end is news.
  () => (status === "ended" && !place("closing") ? ENDED_MS : NOW_MS),
);
