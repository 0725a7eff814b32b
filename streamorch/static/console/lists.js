// The filters by moment are in the zone of this browser, and say so.

const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
for (const place of document.querySelectorAll("[data-zone]")) place.textContent = zone ? `(${zone})` : "(your time)";
