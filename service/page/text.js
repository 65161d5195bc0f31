/** Numbers as people read them. */

/**
 * Writes a position in a recording.
 * @param {number} seconds Seconds from the start.
 * @returns {string} 0:07, 12:34 or 1:02:03.
 */
export function clockTime(seconds) {
  const whole = Math.floor(seconds);
  const two = (value) => String(value).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours > 0 ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

/**
 * Writes a latency.
 * @param {number | null} ms Milliseconds; null if nothing was measured.
 * @returns {string} 310 ms, 1.25 s, 12.5 s or a dash.
 */
export function duration(ms) {
  if (ms === null) return "–";
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  return `${(ms / 1000).toFixed(ms < 9995 ? 2 : 1)} s`;
}
