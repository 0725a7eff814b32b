// Before the page is drawn: scripts run here; and the colours that were chosen here, else the system's.
(() => {
  document.documentElement.dataset.scripts = "";
  let chosen = null;
  try {
    chosen = localStorage.getItem("streamorch.theme");
  } catch {
    // a browser that keeps nothing
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
