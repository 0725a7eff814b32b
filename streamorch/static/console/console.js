// What every page has: local times, copying, dialogs, colours, shortcuts, and the banner of an outage.

const ALIVE_MS = 5000;
const AWAY_MS = 2000;
const ANSWER_MS = 8000; // a network that is gone may say so minutes later

/** Shows each moment as this browser's time, and as UTC under the pointer. */
export function localise(root = document) {
  for (const time of root.querySelectorAll("time[datetime]:not([data-local])")) {
    const moment = new Date(time.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    const today = moment.toDateString() === new Date().toDateString();
    time.textContent = moment.toLocaleString([], today ? { timeStyle: "medium" } : { dateStyle: "medium", timeStyle: "medium" });
    time.title = `${moment.toISOString().slice(0, 19).replace("T", " ")} UTC`;
    time.dataset.local = "";
  }
}

/** Says a sentence, to eyes and screen readers. */
export function say(sentence) {
  const said = document.getElementById("said");
  said.hidden = false;
  said.textContent = sentence;
}

/** What the service answers within so many ms; null when it is as `etag` has it. Throws a Refused. */
export async function ask(url, { etag, within = ANSWER_MS } = {}) {
  const headers = { Accept: "application/json" };
  if (etag) headers["If-None-Match"] = etag;
  const answer = await fetch(url, { headers, signal: AbortSignal.timeout(within), cache: "no-store" });
  if (answer.status === 304) return null;
  if (!answer.ok) throw new Refused(answer.status);
  return { told: await answer.json(), etag: answer.headers.get("ETag") };
}

/** An answer that is a problem. */
export class Refused extends Error {
  constructor(status) {
    super(`status ${status}`);
    this.status = status;
  }
}

/** Shows the banner that fits what happened to a question; hides it when nothing did. */
export function banner(error) {
  const place = document.getElementById("banner");
  const sentence = !error
    ? ""
    : error.status === 401
      ? "Your session is over."
      : error.status === 503
        ? "The database does not answer. What you see may be old; encoders that are live stay live."
        : error.status
          ? `The service answers with a problem (${error.status}).`
          : "The service does not answer.";
  if (place.dataset.sentence === sentence) return;
  place.dataset.sentence = sentence;
  place.hidden = !sentence;
  place.textContent = sentence;
  if (error?.status === 401) {
    const link = document.createElement("a");
    link.href = `${document.body.dataset.door}?next=${encodeURIComponent(location.pathname + location.search)}`;
    link.textContent = "Sign in";
    place.append(" ", link);
  }
}

/** Asks again and again while the page is seen: `ask()` after `pause()` ms, at once when it is seen again. */
export function repeat(ask, pause) {
  let timer = 0;
  let running = false;
  const round = async () => {
    clearTimeout(timer);
    if (document.hidden || running) return;
    running = true;
    try {
      await ask();
    } finally {
      running = false;
      timer = setTimeout(round, pause());
    }
  };
  document.addEventListener("visibilitychange", round);
  round();
  return round;
}

function watchService() {
  const url = document.body.dataset.alive;
  if (!url || document.querySelector("[data-watches]")) return; // a page whose own questions tell
  let away = false;
  const look = async () => {
    try {
      await ask(url);
      banner(null);
      if (away || document.querySelector("[data-return]")) location.reload();
    } catch (error) {
      away = !(error.status === 401);
      banner(error);
    }
  };
  repeat(look, () => (away || document.querySelector("[data-return]") ? AWAY_MS : ALIVE_MS));
}

function copying() {
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
      say(`${button.getAttribute("aria-label").replace(/^Copy /, "")}: copied.`);
    } catch {
      // No permission, or plain http: marked, so that Ctrl-C copies it.
      getSelection().selectAllChildren(source);
      button.textContent = "Press Ctrl-C";
    }
    setTimeout(() => {
      button.textContent = label;
    }, 2000);
  });
}

function dialogs() {
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-open]");
    if (opener) document.getElementById(opener.dataset.open).showModal();
    else if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
    else if (event.target instanceof HTMLDialogElement) event.target.close(); // beside it
  });
}

function theme() {
  const button = document.querySelector("[data-theme-toggle]");
  const names = { system: "as the system has them", light: "light", dark: "dark" };
  const order = Object.keys(names);
  const show = (chosen) => {
    if (chosen === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = chosen;
    button.setAttribute("aria-label", `Colours: ${names[chosen]}`);
  };
  show(document.documentElement.dataset.theme ?? "system");
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "system";
    const next = order[(order.indexOf(now) + 1) % order.length];
    keep("streamorch.theme", next);
    show(next);
  });
}

function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // a browser that keeps nothing
  }
}

function kept(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function shortcuts() {
  const box = document.querySelector("[data-shortcuts]");
  if (!box) return;
  box.checked = kept("streamorch.shortcuts") !== "off";
  box.addEventListener("change", () => keep("streamorch.shortcuts", box.checked ? "on" : "off"));
  let goes = false;
  document.addEventListener("keydown", (event) => {
    const writes = event.target.closest("input, select, textarea, [contenteditable]");
    if (!box.checked || writes || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const entry = goes && document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
    goes = event.key === "g";
    if (entry) entry.click();
    else if (event.key === "?") document.getElementById("help").showModal();
    else if (event.key === "/") document.querySelector("[data-filter]")?.focus();
    else return;
    event.preventDefault();
  });
}

function forgetTold() {
  const url = new URL(location.href);
  if (!url.searchParams.has("told")) return;
  url.searchParams.delete("told");
  history.replaceState(null, "", url);
}

/** A field for a moment: shown in this browser's time, sent in UTC. */
function moments() {
  for (const field of document.querySelectorAll("input[data-moment]")) {
    const sent = document.createElement("input");
    sent.type = "hidden";
    sent.name = field.name;
    field.removeAttribute("name");
    field.after(sent);
    const moment = new Date(field.dataset.moment);
    if (!Number.isNaN(moment.getTime())) {
      sent.value = moment.toISOString();
      field.value = new Date(moment.getTime() - moment.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
    }
    field.addEventListener("input", () => {
      sent.value = field.value && new Date(field.value).toISOString();
    });
  }
}

localise();
moments();
copying();
dialogs();
theme();
shortcuts();
forgetTold();
watchService();
