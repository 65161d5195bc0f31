/** How long after a word was spoken it is on the screen. */

const ANCHOR_S = 1;
const N_ANCHORS = 120;
const N_RECENT = 200;

/**
 * Maps a position in the audio to the time at which it was captured.
 *
 * Blocks arrive late when the page is busy, never early: of each second's blocks the earliest arrival counts.
 * An anchor per second follows a sound card's clock that drifts and a microphone that pauses.
 */
export class CaptureClock {
  #anchors = []; // {startS, endS, offsetMs}: until endS, audio was captured at 1000 * position + offsetMs

  /**
   * Notes an arrival.
   * @param {number} endS Position of a block's end in the audio, in seconds.
   * @param {number} nowMs When it arrived.
   */
  note(endS, nowMs) {
    const offsetMs = nowMs - 1000 * endS;
    const last = this.#anchors.at(-1);
    if (last === undefined || endS > last.startS + ANCHOR_S) {
      this.#anchors.push({ startS: endS, endS, offsetMs });
      if (this.#anchors.length > N_ANCHORS) this.#anchors.shift();
    } else {
      last.endS = endS;
      last.offsetMs = Math.min(last.offsetMs, offsetMs);
    }
  }

  /**
   * Looks a position up.
   * @param {number} positionS Seconds from the audio's start.
   * @returns {number | null} When it was captured, in ms; null before the first block.
   */
  capturedAt(positionS) {
    const anchor = this.#anchors.find(({ endS }) => positionS <= endS) ?? this.#anchors.at(-1);
    return anchor === undefined ? null : 1000 * Math.min(positionS, anchor.endS) + anchor.offsetMs;
  }
}

/** The newest value and the median of the recent ones. */
export class RecentValues {
  #values = [];

  /** @param {number} value A measurement. */
  add(value) {
    this.#values.push(value);
    if (this.#values.length > N_RECENT) this.#values.shift();
  }

  /** @returns {number | null} The newest value. */
  get last() {
    return this.#values.at(-1) ?? null;
  }

  /** @returns {number | null} The middle value; of an even number the mean of the two middle ones. */
  get median() {
    if (this.#values.length === 0) return null;
    const sorted = [...this.#values].sort((a, b) => a - b);
    const middle = sorted.length >> 1;
    return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }
}

/** Measures each word twice: when its spelling first appears and when it is committed. */
export class WordLatency {
  shown = new RecentValues();
  committed = new RecentValues();
  #clock;
  #segments = new Map(); // segment -> {spellings: string[], nCommitted: number}

  /** @param {CaptureClock} clock Tells when audio was captured. */
  constructor(clock) {
    this.#clock = clock;
  }

  /**
   * Measures the words of a partial or final message that are new.
   * @param {object} message A message of type partial or final.
   * @param {number} nowMs When it arrived.
   */
  observe(message, nowMs) {
    const isFinal = message.type === "final";
    const seen = this.#segments.get(message.segment) ?? { spellings: [], nCommitted: 0 };
    // A second pass chooses its words anew, long after the words of the first were read: not a latency.
    const words = isFinal && message.second_pass ? [] : (message.words ?? []);
    words.forEach((word, i) => {
      const latencyMs = nowMs - (this.#clock.capturedAt(word.end) ?? nowMs);
      const spelling = word.text.toLowerCase().replace(/[\p{P}\s]/gu, "");
      if (seen.spellings[i] !== spelling) {
        seen.spellings[i] = spelling;
        this.shown.add(latencyMs);
      }
      if ((word.stable || isFinal) && i >= seen.nCommitted) {
        seen.nCommitted = i + 1;
        this.committed.add(latencyMs);
      }
    });
    if (isFinal) this.#segments.delete(message.segment);
    else this.#segments.set(message.segment, seen);
  }
}
