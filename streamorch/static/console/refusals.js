// What is new, as it happens: the first page is asked for again, and what the open page lacks is put in its place.

import { ask, banner, localise, repeat } from "./console.js";

const PAUSE_MS = 2000;
const AWAY_MS = 5000;
// So many rows an open page keeps: older ones are on the next page.
const MOST = 200;

const follows = document.querySelector("[data-news]");
if (follows) follow(follows);

function follow(bar) {
  const rows = document.querySelector("[data-rows]");
  const none = document.querySelector("[data-none]");
  const body = rows.querySelector("tbody");
  const said = bar.querySelector("[data-news-said]");
  const button = bar.querySelector("[data-pause]");
  const usual = said.textContent;
  let etag = null;
  let isPaused = false;
  let isAway = false;

  const look = async () => {
    if (isPaused) return;
    try {
      const answer = await ask(bar.dataset.news, { etag });
      if (isPaused) return;
      if (answer) {
        etag = answer.etag;
        const count = put(answer.told.rows);
        if (count) said.textContent = count === 1 ? "A new one." : `${count} new ones.`;
      }
      if (isAway) said.textContent = usual;
      isAway = false;
    } catch (error) {
      isAway = true;
      if (error.status === 401) banner(error);
      said.textContent = "New ones cannot be asked for just now.";
    }
  };

  /** Puts in what is not there yet, in the order of the answer; returns how many that were. */
  const put = (html) => {
    const made = document.createElement("tbody");
    made.innerHTML = html;
    let place = body.firstElementChild;
    let count = 0;
    for (const row of [...made.children]) {
      const known = body.querySelector(`[data-id="${CSS.escape(row.dataset.id)}"]`);
      if (known) {
        place = known.nextElementSibling;
        continue;
      }
      row.classList.add("fresh");
      body.insertBefore(row, place);
      localise(row);
      count += 1;
    }
    while (body.children.length > MOST) body.lastElementChild.remove();
    rows.hidden = !body.children.length;
    none.hidden = !rows.hidden;
    return count;
  };

  bar.classList.add("on");
  const round = repeat(look, () => (isAway ? AWAY_MS : PAUSE_MS));
  button.addEventListener("click", () => {
    isPaused = !isPaused;
    button.setAttribute("aria-pressed", String(isPaused));
    said.textContent = isPaused ? "Paused." : usual;
    if (!isPaused) round();
  });
}
