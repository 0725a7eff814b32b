// The wall: a tile for each live stream, brought up to date by what differs; whoever is in sight has a picture.

import { ask, banner, repeat } from "./console.js";
import { lasting, many, rate } from "./figures.js";
import { Player } from "./player.js";

const LIVE_MS = 1000;
const MEASURES_MS = 2000;
const AWAY_MS = 2000;
const SAMPLES = 60; // two minutes of them
const SIGHT_MS = 150; // whoever scrolls past starts nothing
const HIDDEN_MS = 10_000; // so long a tab that nobody sees goes on playing
const MOST_PLAYERS = 12;
const MOST_ON_A_PHONE = 4;
// A key that was pasted into the filter does not go into the address.
const SECRET = /s[ck]_[A-Za-z0-9_-]{32,}/;

const phone = matchMedia("(max-width: 44rem)");
const place = (id) => document.getElementById(id);
const wall = place("wall");
const template = place("tile").content.firstElementChild;
const filters = place("filters");
const names = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
const ORDERS = {
  oldest: (a, b) => b.rank - a.rank,
  name: (a, b) => names.compare(a.name, b.name) || a.rank - b.rank,
  path: (a, b) => names.compare(a.path, b.path) || a.rank - b.rank,
  viewers: (a, b) => (b.viewers ?? -1) - (a.viewers ?? -1) || a.rank - b.rank,
};
const newest = (a, b) => a.rank - b.rank;

class Tile {
  constructor(stream) {
    this.id = stream.id;
    this.samples = [];
    this.inSight = false;
    this.element = template.cloneNode(true);
    this.element.dataset.id = stream.id;
    const part = (name) => this.element.querySelector(name);
    this.screen = part(".screen");
    this.cover = part(".cover");
    this.code = part(".path code");
    this.label = part(".label");
    this.chip = part(".chip");
    this.age = part(".age");
    this.audience = part(".viewers");
    this.line = part("polyline");
    this.bitrate = part(".bitrate");
    this.tracks = part(".tracks");
    this.player = new Player(this.screen, {
      ...stream.urls,
      readPolicy: wall.dataset.readPolicy,
      title: stream.broadcaster.display_name,
    });
    this.cover.href = wall.dataset.stream.replace("ID", stream.id);
  }

  /** Shows what differs from what it shows; false when nothing does that order and filter go by. */
  take(stream, rank) {
    const media = stream.media ?? "unknown";
    const before = `${this.rank} ${this.name} ${this.path} ${this.named} ${this.media} ${this.viewers}`;
    this.began = Date.parse(stream.started_at);
    this.rank = rank;
    this.named = stream.label ?? "";
    this.name = stream.broadcaster.display_name;
    this.path = stream.path;
    this.media = media;
    this.viewers = stream.viewers;
    this.sought = `${this.name}\n${this.path}\n${this.named}`.toLowerCase();
    write(this.cover, this.name);
    write(this.code, this.path);
    write(this.label, this.named);
    write(this.chip, stream.interrupted_at ? "reconnecting" : media === "unknown" ? "not measured" : media);
    write(this.audience, stream.viewers === null ? "" : many(stream.viewers, "viewer"));
    if (this.chip.dataset.media !== media) {
      this.chip.dataset.media = media;
      this.chip.className = `chip media ${media}`;
      this.element.classList.toggle("stalled", media === "stalled");
    }
    return before !== `${this.rank} ${this.name} ${this.path} ${this.named} ${this.media} ${this.viewers}`;
  }

  measure([bits, tracks]) {
    this.samples.push(bits ?? 0);
    if (this.samples.length > SAMPLES) this.samples.shift();
    this.bits = bits;
    this.described = tracks;
  }

  /** What changes from second to second; asked only of those in sight. */
  tick(now) {
    write(this.age, lasting((now - this.began) / 1000));
    write(this.bitrate, rate(this.bits));
    write(this.tracks, this.described ?? "");
    if (!this.samples.length) return;
    const most = Math.max(1, ...this.samples);
    const points = this.samples.map((bits, at) => `${at},${(15.5 - (15 * bits) / most).toFixed(1)}`).join(" ");
    if (this.line.getAttribute("points") !== points) this.line.setAttribute("points", points);
  }
}

const tiles = new Map();
const byElement = new WeakMap();
let skew = 0; // how far this browser's clock is behind that of the service, in ms
let isKnown = false; // has a list come?

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** The live list as it is now. */
export function update(streams) {
  const gone = new Set(tiles.keys());
  const came = [];
  let differs = false;
  streams.forEach((stream, rank) => {
    gone.delete(stream.id);
    let tile = tiles.get(stream.id);
    if (!tile) {
      tile = new Tile(stream);
      tiles.set(stream.id, tile);
      byElement.set(tile.element, tile);
      sight.observe(tile.element);
      came.push(tile);
      if (isKnown) tile.element.classList.add("fresh");
    }
    differs = tile.take(stream, rank) || differs;
  });
  const went = [...gone].map((id) => tiles.get(id));
  went.forEach(drop);
  if (differs || went.length) arrange();
  if (isKnown) announce(came, went);
  isKnown = true;
}

/** What was last measured of each stream. */
export function measure(measured) {
  for (const [id, one] of Object.entries(measured)) tiles.get(id)?.measure(one);
  tick();
}

function drop(tile) {
  const next = tile.element.nextElementSibling ?? tile.element.previousElementSibling;
  const hadFocus = tile.element.contains(document.activeElement);
  tile.player.stop();
  sight.unobserve(tile.element);
  tile.element.remove();
  tiles.delete(tile.id);
  if (hadFocus) (next?.querySelector(".cover") ?? place("main")).focus();
}

function announce(came, went) {
  const told = (some, verb) =>
    some.length > 3 ? [`${some.length} streams ${verb}.`] : some.map((tile) => `${tile.name} on ${tile.path} ${verb}.`);
  if (came.length || went.length) place("heard").textContent = [...told(came, "went live"), ...told(went, "ended")].join(" ");
}

// --- order and filter ----------------------------------------------------------------------------------------

function arrange() {
  const { q, media, sort } = wanted();
  const sought = q.toLowerCase().split(/\s+/).filter(Boolean);
  const ordered = [...tiles.values()].sort(ORDERS[sort] ?? newest);
  let shown = 0;
  for (const tile of ordered) {
    const isHidden = !((!media || tile.media === media) && sought.every((word) => tile.sought.includes(word)));
    if (tile.element.hidden !== isHidden) tile.element.hidden = isHidden;
    if (!isHidden) shown += 1;
  }
  inOrder(ordered.map((tile) => tile.element));
  const isFiltered = shown < tiles.size;
  write(place("count"), isFiltered ? `${shown} of ${tiles.size}` : String(tiles.size));
  document.title = `(${tiles.size}) Live · streamorch`;
  place("none").hidden = tiles.size > 0;
  place("unmatched").hidden = tiles.size === 0 || shown > 0;
  write(place("unmatched-count"), many(tiles.size, "stream"));
}

// Whoever is in the longest run that is in order stays: a picture that is moved begins anew in some browsers.
function inOrder(elements) {
  const at = new Map([...wall.children].map((element, index) => [element, index]));
  if (at.size === elements.length && elements.every((element, index) => at.get(element) === index)) return;
  const stays = longestRun(elements.map((element) => at.get(element) ?? -1));
  let next = null;
  for (let index = elements.length - 1; index >= 0; index--) {
    const element = elements[index];
    if (!stays.has(index)) {
      if (element.isConnected && wall.moveBefore) wall.moveBefore(element, next);
      else wall.insertBefore(element, next);
    }
    next = element;
  }
}

// The indices of a longest increasing run of these places; -1 is none.
function longestRun(places) {
  const tails = [];
  const before = [];
  places.forEach((at, index) => {
    if (at < 0) return;
    let [low, high] = [0, tails.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (places[tails[middle]] < at) low = middle + 1;
      else high = middle;
    }
    before[index] = tails[low - 1];
    tails[low] = index;
  });
  const run = new Set();
  for (let index = tails.at(-1); index !== undefined; index = before[index]) run.add(index);
  return run;
}

function wanted() {
  const { q, media, sort } = filters.elements;
  return { q: q.value.trim(), media: media.value, sort: sort.value };
}

function remember() {
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(wanted())) {
    if (value && !SECRET.test(value)) url.searchParams.set(name, value);
    else url.searchParams.delete(name);
  }
  history.replaceState(null, "", url);
}

function recall() {
  const asked = new URLSearchParams(location.search);
  for (const name of ["q", "media", "sort"]) {
    const field = filters.elements[name];
    field.value = asked.get(name) ?? "";
    if (field.selectedIndex === -1) field.value = "";
  }
}

// --- pictures ------------------------------------------------------------------------------------------------

let sightTimer = 0;
const sight = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const tile = byElement.get(entry.target);
      tile.inSight = entry.isIntersecting;
      if (tile.inSight) tile.tick(Date.now() + skew);
    }
    clearTimeout(sightTimer);
    sightTimer = setTimeout(play, SIGHT_MS);
  },
  { threshold: 0.2 },
);

function play() {
  const isOn = filters.elements.pictures.checked;
  const most = phone.matches ? MOST_ON_A_PHONE : MOST_PLAYERS;
  const waiting = [];
  let free = most;
  for (const element of wall.children) {
    const tile = byElement.get(element);
    if (!isOn || document.hidden || !tile.inSight) tile.player.stop(isOn ? "" : "Pictures are off.");
    else if (tile.player.isRunning) free -= 1;
    else waiting.push(tile.player);
  }
  waiting.forEach((player, index) => (index < free ? player.start() : player.stop(`Not played: ${most} pictures play at once.`)));
}

function tick() {
  const now = Date.now() + skew;
  for (const tile of tiles.values()) if (tile.inSight) tile.tick(now);
}

// --- what makes it go on -------------------------------------------------------------------------------------

function pictures() {
  const box = filters.elements.pictures;
  box.checked = !navigator.connection?.saveData;
  try {
    if (localStorage.getItem("streamorch.pictures")) box.checked = localStorage.getItem("streamorch.pictures") === "on";
  } catch {
    // a browser that keeps nothing
  }
  box.addEventListener("change", () => {
    try {
      localStorage.setItem("streamorch.pictures", box.checked ? "on" : "off");
    } catch {
      // the same
    }
    play();
  });
  let timer = 0;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    timer = setTimeout(play, document.hidden ? HIDDEN_MS : 0);
  });
}

// From tile to tile by the arrows.
function arrows(event) {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns(), Home: -Infinity, End: Infinity };
  const step = steps[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey || !event.target.matches(".cover")) return;
  const covers = [...wall.querySelectorAll(".tile:not([hidden]) .cover")];
  const at = covers.indexOf(event.target) + step;
  const next = covers[Number.isFinite(step) ? at : step < 0 ? 0 : covers.length - 1];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

const columns = () => getComputedStyle(wall).gridTemplateColumns.split(" ").length;

filters.hidden = false;
recall();
pictures();
filters.addEventListener("input", () => (remember(), arrange()));
filters.addEventListener("submit", (event) => event.preventDefault());
addEventListener("popstate", () => (recall(), arrange()));
wall.addEventListener("keydown", arrows);
wall.addEventListener("animationend", (event) => event.target.classList.remove("fresh"));
place("unfilter").addEventListener("click", () => {
  filters.elements.q.value = filters.elements.media.value = "";
  remember();
  arrange();
  filters.elements.q.focus();
});

let etag = null;
let isAway = false;
repeat(
  async () => {
    try {
      const answer = await ask(wall.dataset.live, { etag });
      isAway = answer?.told.stale ?? false;
      banner(isAway ? { status: 503 } : null);
      if (answer) {
        etag = answer.etag;
        update(answer.told.streams);
      }
    } catch (error) {
      isAway = true;
      banner(error);
    }
  },
  () => (isAway ? AWAY_MS : LIVE_MS),
);
repeat(
  async () => {
    try {
      const { told } = await ask(wall.dataset.measures);
      skew = told.now * 1000 - Date.now();
      measure(told.streams);
    } catch {
      // the question for the list tells
    }
  },
  () => (isAway ? AWAY_MS * 2 : MEASURES_MS),
);
setInterval(() => document.hidden || tick(), 1000);
