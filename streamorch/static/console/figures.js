// Figures as people read them.

/** Bits in a second. */
export function rate(bits) {
  if (bits === null || bits === undefined) return "";
  return bits >= 999_500 ? `${(bits / 1e6).toFixed(1)} Mbit/s` : `${Math.round(bits / 1000)} kbit/s`;
}

/** So long, as h:mm:ss. */
export function lasting(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

/** So many of what one calls `one`. */
export function many(number, one) {
  return number === 1 ? `1 ${one}` : `${number} ${one}s`;
}
