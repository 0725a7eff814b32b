// The state of the system as it changes, and what the doctor says.

import { ask, banner, localise, repeat } from "./console.js";

const PAUSE_MS = 5000;
const DOCTOR_MS = 20_000;

const state = document.querySelector("[data-state]");
let before = null;

/** Draws the state again when it is another; not under the focus of somebody who reads it. */
async function look() {
  try {
    const { told } = await ask(state.dataset.state);
    if (told.html === before || state.contains(document.activeElement)) return;
    before = told.html;
    state.innerHTML = told.html;
    localise(state);
  } catch (error) {
    if (error.status === 401) banner(error);
  }
}

repeat(look, () => PAUSE_MS);

const form = document.querySelector("[data-doctor]");
form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  const said = form.querySelector("[data-doctor-said]");
  const findings = document.querySelector("[data-findings]");
  button.disabled = true;
  findings.setAttribute("aria-busy", "true");
  said.textContent = "The doctor looks: up to ten seconds.";
  try {
    const { told } = await ask(form.action, { within: DOCTOR_MS });
    findings.innerHTML = told.html;
    const summary = findings.querySelector("strong");
    said.textContent = summary.textContent;
    summary.remove(); // it is said once
  } catch (error) {
    if (error.status === 401) banner(error);
    said.textContent = error.status === 429 ? "It is at work already. Try again in ten seconds." : "It could not look. Try again.";
  } finally {
    findings.removeAttribute("aria-busy");
    button.disabled = false;
    button.focus();
  }
});
