/** The input level as bars that wander from right to left, or as one bar where motion is unwanted. */

import { SILENCE_DB } from "./pcm.js";

const BAR_MS = 60;
const BAR_PX = 3;
const GAP_PX = 3;
const QUIETEST_DB = -55; // an empty bar; rooms are about this quiet
const LOUDEST_DB = -6; // a full one; speech close to a microphone rarely has more
const ARIA_MS = 500; // faster changes would only flood screen readers
const FALL = 0.82; // per frame: rises at once, falls smoothly

/** Draws levels on a canvas and keeps the meter role's values. */
export class LevelMeter {
  #host;
  #canvas;
  #bars = []; // heights 0..1, oldest first
  #current = 0; // loudest since the last bar
  #smooth = 0;
  #db = SILENCE_DB;
  #barAtMs = 0;
  #ariaAtMs = 0;
  #frame = null; // the animation frame that was asked for; null while nothing moves
  #calm = matchMedia("(prefers-reduced-motion: reduce)");

  /**
   * @param {HTMLElement} host The element with role meter.
   * @param {HTMLCanvasElement} canvas Inside of it.
   */
  constructor(host, canvas) {
    this.#host = host;
    this.#canvas = canvas;
    new ResizeObserver(() => this.#draw(1)).observe(host);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw(1));
  }

  /**
   * Takes a measurement.
   * @param {number} db Level in dBFS.
   */
  push(db) {
    this.#db = db;
    const height = (db - QUIETEST_DB) / (LOUDEST_DB - QUIETEST_DB);
    this.#current = Math.max(this.#current, Math.min(1, height));
    this.#frame ??= requestAnimationFrame((nowMs) => this.#step(nowMs));
  }

  /** Back to silence. */
  reset() {
    cancelAnimationFrame(this.#frame);
    this.#frame = null;
    this.#bars = [];
    this.#current = 0;
    this.#smooth = 0;
    this.#db = SILENCE_DB;
    this.#announce();
    this.#draw(1);
  }

  #step(nowMs) {
    this.#smooth = Math.max(this.#current, this.#smooth * FALL);
    if (nowMs - this.#barAtMs >= BAR_MS) {
      this.#barAtMs = nowMs;
      this.#bars.push(this.#current);
      this.#current = 0;
    }
    if (nowMs - this.#ariaAtMs >= ARIA_MS) {
      this.#ariaAtMs = nowMs;
      this.#announce();
    }
    this.#draw(Math.min(1, (nowMs - this.#barAtMs) / BAR_MS));
    this.#frame = requestAnimationFrame((nextMs) => this.#step(nextMs));
  }

  #announce() {
    const db = Math.round(this.#db);
    this.#host.setAttribute("aria-valuenow", String(db));
    this.#host.setAttribute("aria-valuetext", db <= SILENCE_DB ? "silent" : `${db} decibels`);
  }

  #blankCanvas(width, height) {
    const pen = this.#canvas.getContext("2d");
    const size = [width, height].map((length) => Math.round(length * devicePixelRatio));
    if (size[0] !== this.#canvas.width || size[1] !== this.#canvas.height) {
      [this.#canvas.width, this.#canvas.height] = size;
    }
    pen.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    pen.clearRect(0, 0, width, height);
    return pen;
  }

  /** The newest bar comes in from the right: shift 0 is before, 1 after it. */
  #draw(shift) {
    const { clientWidth: width, clientHeight: height } = this.#host;
    const pen = this.#blankCanvas(width, height);
    const style = getComputedStyle(this.#host);
    const [quiet, loud] = [style.getPropertyValue("--quiet"), style.getPropertyValue("--loud")];
    if (this.#calm.matches) {
      drawBar(pen, quiet, 0, height / 2 - 4, width, 8);
      drawBar(pen, loud, 0, height / 2 - 4, width * this.#smooth, 8);
      return;
    }
    const step = BAR_PX + GAP_PX;
    const nBars = Math.ceil(width / step) + 1;
    this.#bars.splice(0, this.#bars.length - nBars);
    for (let i = 0; i < nBars; i += 1) {
      const level = this.#bars[this.#bars.length - 1 - i] ?? 0;
      const barHeight = Math.max(BAR_PX, level ** 1.5 * height);
      const left = width - BAR_PX - step * (i - 1 + shift);
      drawBar(pen, level > 0.05 ? loud : quiet, left, (height - barHeight) / 2, BAR_PX, barHeight);
    }
  }
}

function drawBar(pen, colour, left, top, width, height) {
  pen.fillStyle = colour;
  pen.beginPath();
  pen.roundRect(left, top, width, height, Math.min(width, height) / 2);
  pen.fill();
}
