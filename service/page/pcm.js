/** Sample arithmetic: PCM encoding, levels and mono mixing. No browser interfaces, so it runs anywhere. */

export const BYTES_PER_SAMPLE = 2;
export const SILENCE_DB = -60;

/**
 * Encodes samples as signed 16-bit PCM. Typed arrays are little-endian on every platform that runs a browser.
 * @param {Float32Array} samples Samples in -1..1; what lies outside is clipped.
 * @returns {Int16Array} The same samples, full scale 32767.
 */
export function encodePcm16(samples) {
  const pcm = new Int16Array(samples.length);
  for (let i = 0; i < samples.length; i += 1) {
    pcm[i] = Math.round(32767 * Math.max(-1, Math.min(1, samples[i])));
  }
  return pcm;
}

/**
 * Measures loudness.
 * @param {Float32Array} samples Samples in -1..1.
 * @returns {number} Root mean square in dBFS, within SILENCE_DB..0.
 */
export function levelDb(samples) {
  let energy = 0;
  for (const sample of samples) energy += sample * sample;
  const rms = Math.sqrt(energy / Math.max(1, samples.length));
  return Math.max(SILENCE_DB, Math.min(0, 20 * Math.log10(rms || Number.MIN_VALUE)));
}

/**
 * Averages the channels of a decoded recording.
 * @param {AudioBuffer} buffer Decoded audio.
 * @returns {Float32Array} One channel.
 */
export function mixToMono(buffer) {
  if (buffer.numberOfChannels === 1) return buffer.getChannelData(0);
  const mono = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel += 1) {
    const samples = buffer.getChannelData(channel);
    for (let i = 0; i < mono.length; i += 1) mono[i] += samples[i] / buffer.numberOfChannels;
  }
  return mono;
}

/** Collects blocks of any size into frames of one size, so that each message carries a useful amount. */
export class Framer {
  #frame;
  #filled = 0;

  /** @param {number} frameSamples Samples per frame. */
  constructor(frameSamples) {
    this.#frame = new Float32Array(frameSamples);
  }

  /**
   * Adds samples.
   * @param {Float32Array} samples A block of any size.
   * @returns {Float32Array[]} The frames that became full, oldest first.
   */
  push(samples) {
    const full = [];
    for (let from = 0; from < samples.length;) {
      const part = samples.subarray(from, from + this.#frame.length - this.#filled);
      this.#frame.set(part, this.#filled);
      this.#filled += part.length;
      from += part.length;
      if (this.#filled === this.#frame.length) full.push(this.rest());
    }
    return full;
  }

  /** @returns {Float32Array} What is left over, perhaps nothing; the framer is empty afterwards. */
  rest() {
    const rest = this.#frame.slice(0, this.#filled);
    this.#filled = 0;
    return rest;
  }
}
