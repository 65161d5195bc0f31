/** What was recognised: segments in order, the newest still growing. */

/**
 * @typedef {object} Word
 * @property {string} text With its punctuation.
 * @property {number} start Seconds from the transcript's start.
 * @property {number} end
 * @property {number} confidence 0..1
 * @property {boolean} stable Whether the word is committed.
 */

/**
 * @typedef {object} Segment
 * @property {number} id 0, 1, 2... in the transcript.
 * @property {boolean} isFinal Nothing changes any more.
 * @property {boolean} secondPass Whether the text is that of the second pass.
 * @property {string} committed
 * @property {string} draft
 * @property {string} text Committed and draft text together.
 * @property {Word[]} words
 * @property {number} start Seconds from the transcript's start.
 * @property {number} end
 */

/**
 * Collects the messages of one or more recordings. The times of a later recording go on where the one before
 * ended, so that stopping and starting again reads like a pause.
 */
export class Transcript {
  #segments = new Map(); // id -> Segment
  #baseId = 0;
  #baseS = 0;

  /** @returns {Segment[]} In order; segments that say nothing are left out. */
  get segments() {
    const ordered = [...this.#segments.values()].sort((a, b) => a.id - b.id);
    return ordered.filter((segment) => segment.text.trim() !== "");
  }

  /** @returns {boolean} Whether nothing was said. */
  get isEmpty() {
    return this.segments.length === 0;
  }

  /** @returns {number} Seconds of all recordings that have ended. */
  get durationS() {
    return this.#baseS;
  }

  /**
   * Takes in a message of the server.
   * @param {object} message Of any type.
   * @returns {Segment | null} The segment that changed, if it is a partial or final.
   */
  apply(message) {
    if (message.type !== "partial" && message.type !== "final") return null;
    const id = this.#baseId + message.segment;
    if (this.#segments.get(id)?.isFinal) return null;
    const isFinal = message.type === "final";
    const committed = isFinal ? message.text : message.committed;
    const draft = isFinal ? "" : message.draft;
    const words = (message.words ?? []).map((word) =>
      this.#shift({ ...word, stable: isFinal || word.stable }),
    );
    const start = isFinal ? this.#baseS + message.start : (words[0]?.start ?? this.#baseS + message.time);
    const end = isFinal ? this.#baseS + message.end : (words.at(-1)?.end ?? start);
    const text = committed + draft;
    const segment = {
      id,
      isFinal,
      secondPass: Boolean(message.second_pass),
      committed,
      draft,
      text,
      words,
      start,
      end,
    };
    this.#segments.set(id, segment);
    return segment;
  }

  /**
   * Ends a recording: what was not final stays as it is, the next recording follows after it.
   * @param {number} audioS Its length in seconds.
   * @returns {Segment[]} The segments that became final by this.
   */
  endRecording(audioS) {
    const open = [...this.#segments.values()].filter((segment) => !segment.isFinal);
    for (const segment of open) {
      segment.isFinal = true;
      segment.committed = segment.text;
      segment.draft = "";
      for (const word of segment.words) word.stable = true;
    }
    this.#baseId = Math.max(-1, ...this.#segments.keys()) + 1;
    this.#baseS += audioS;
    return open;
  }

  /** Forgets everything. */
  clear() {
    this.#segments.clear();
    this.#baseId = 0;
    this.#baseS = 0;
  }

  #shift(word) {
    return { ...word, start: this.#baseS + word.start, end: this.#baseS + word.end };
  }
}
