/** One recording or file from its start to its last word. */

import { decodeFile, FILE_RATE } from "./audiofile.js";
import { Connection } from "./connection.js";
import { CaptureClock, WordLatency } from "./latency.js";
import { Microphone } from "./microphone.js";
import { BYTES_PER_SAMPLE, encodePcm16, Framer, levelDb } from "./pcm.js";
import { Problem } from "./problems.js";

const LATENCY_MS = { minimal: 80, low: 160, medium: 300, high: 600 };

const FRAME_MS = 100; // a message per frame; shorter ones where that would delay the chunks
const FILE_FRAME_S = 0.5;
const FILE_WINDOW_S = 10; // audio of a file under way; enough that the server never waits
const KEPT_S = 120; // audio of a microphone that survives a broken connection

/**
 * @typedef {object} SessionEvents
 * @property {(session: Session) => void} onState The state changed.
 * @property {(message: object, session: Session) => void} onMessage A message of the server came.
 * @property {(db: number) => void} onLevel The level of 20 ms of the microphone, in dBFS.
 * @property {(session: Session, problem: Problem | null) => void} onEnd Called once; nothing follows.
 */

/** Connects a source of audio with the server and counts what went where. */
export class Session {
  /** Measured against the wall clock; null for files, which are not spoken now. */
  latency = null;
  /** The server's ready message, once it came. */
  ready = null;
  /** Name of the file, or null for the microphone. */
  fileName = null;
  #settings;
  #events;
  #connection = null;
  #connectionState = "connecting";
  #microphone = null;
  #sampleRate = FILE_RATE;
  #totalSamples = null;
  #isStopping = false;
  #hasEnded = false;
  #problem = null; // told at the end, although the session went on

  /**
   * @param {object} options
   * @param {{url: URL, token: string, start: object}} options.settings Where to connect, and fields of the
   *   start message.
   * @param {SessionEvents} options.events What happens.
   */
  constructor({ settings, events }) {
    this.#settings = settings;
    this.#events = events;
  }

  /** @returns {string} opening, connecting, live, reconnecting or finishing. */
  get state() {
    if (this.#connection === null) return "opening";
    if (this.#connectionState !== "open") return this.#connectionState;
    return this.#isStopping && this.fileName === null ? "finishing" : "live";
  }

  /** @returns {boolean} Whether no more sound is taken in. */
  get isStopping() {
    return this.#isStopping;
  }

  /** @returns {number} Seconds of audio sent. */
  get sentS() {
    return this.#seconds(this.#connection?.sentBytes ?? 0);
  }

  /** @returns {number} Seconds of audio that the server has confirmed. */
  get acknowledgedS() {
    return this.#seconds(this.#connection?.acknowledgedBytes ?? 0);
  }

  /** @returns {number} Seconds of speech, or of a file what the server has. */
  get elapsedS() {
    return this.fileName === null ? this.sentS : this.acknowledgedS;
  }

  /** @returns {number | null} Share of a file that the server has, 0..1; null for the microphone. */
  get progress() {
    if (this.#totalSamples === null) return null;
    return Math.min(1, (this.acknowledgedS * FILE_RATE) / this.#totalSamples);
  }

  /** Opens the microphone and streams until stop. */
  async runMicrophone() {
    this.#events.onState(this);
    let framer = null;
    let heardSamples = 0;
    const clock = new CaptureClock();
    this.latency = new WordLatency(clock);
    const onBlock = (samples) => {
      if (framer === null || this.#hasEnded) return;
      heardSamples += samples.length;
      clock.note(heardSamples / this.#sampleRate, performance.now());
      this.#events.onLevel(levelDb(samples));
      for (const frame of framer.push(samples)) this.#send(frame);
      if (this.#isStopping) this.#send(framer.rest());
    };
    const microphone = await this.#open(() =>
      Microphone.open({ onBlock, onLost: () => this.#microphoneLost() }),
    );
    if (microphone === null) return;
    if (this.#hasEnded) {
      await microphone.stop(); // cancelled while the browser asked for permission
      return;
    }
    this.#microphone = microphone;
    this.#sampleRate = microphone.sampleRate;
    framer = new Framer(Math.round((this.#frameMs() / 1000) * this.#sampleRate));
    this.#connect(KEPT_S);
  }

  /**
   * Decodes a file and streams it as fast as the server takes it.
   * @param {File} file Audio that the browser can decode.
   */
  async runFile(file) {
    this.fileName = file.name;
    this.#events.onState(this);
    const samples = await this.#open(() => decodeFile(file));
    if (samples === null || this.#hasEnded) return;
    this.#totalSamples = samples.length;
    this.#connect(FILE_WINDOW_S + FILE_FRAME_S);
    const windowBytes = FILE_WINDOW_S * FILE_RATE * BYTES_PER_SAMPLE;
    const frameSamples = FILE_FRAME_S * FILE_RATE;
    for (let from = 0; from < samples.length; from += frameSamples) {
      if (!(await this.#connection.roomFor(windowBytes))) return;
      this.#send(samples.subarray(from, from + frameSamples));
    }
    this.#finish();
  }

  /** Stops taking in sound; the rest is recognised, then the session ends. */
  async stop() {
    if (this.#isStopping || this.#hasEnded) return;
    if (this.#connection === null) {
      this.cancel(); // nothing was heard yet
      return;
    }
    this.#isStopping = true;
    this.#events.onState(this);
    await this.#microphone?.stop();
    this.#finish();
  }

  /** Ends at once. */
  cancel() {
    this.#connection?.cancel();
    this.#end(null);
  }

  async #open(source) {
    try {
      return await source();
    } catch (error) {
      this.#end(error instanceof Problem ? error : new Problem("microphone_busy", String(error)));
      return null;
    }
  }

  #connect(keptS) {
    const { url, token, start } = this.#settings;
    this.#connection = new Connection({
      url,
      token,
      start: { ...start, sample_rate: this.#sampleRate, encoding: "pcm_s16le", channels: 1, words: true },
      maxBytes: keptS * this.#sampleRate * BYTES_PER_SAMPLE,
      events: {
        onState: (state) => {
          this.#connectionState = state;
          this.#events.onState(this);
        },
        onMessage: (message) => this.#receive(message),
        onEnd: ({ done, problem }) => {
          const drained = done?.reason === "drain" ? new Problem("shutting_down") : null;
          this.#end(problem ?? drained ?? this.#problem);
        },
      },
    });
    this.#connection.open();
  }

  #receive(message) {
    if (message.type === "ready") this.ready = message;
    if (message.type === "partial" || message.type === "final") {
      this.latency?.observe(message, performance.now());
    }
    this.#events.onMessage(message, this);
  }

  #send(samples) {
    this.#connection.send(new Uint8Array(encodePcm16(samples).buffer));
  }

  #finish() {
    this.#isStopping = true;
    this.#connection?.finish();
    this.#events.onState(this);
  }

  #microphoneLost() {
    this.#problem = new Problem("microphone_lost");
    this.stop();
  }

  #end(problem) {
    if (this.#hasEnded) return;
    this.#hasEnded = true;
    if (!this.#isStopping) this.#microphone?.stop();
    this.#events.onEnd(this, problem);
  }

  #frameMs() {
    return Math.min(FRAME_MS, LATENCY_MS[this.#settings.start.latency] / 2);
  }

  #seconds(bytes) {
    return bytes / BYTES_PER_SAMPLE / this.#sampleRate;
  }
}
