/** The native protocol's client: one recording over as many websockets as it takes. */

import { Outbox } from "./outbox.js";
import { diagnose, Problem, problemOfClose, problemOfMessage } from "./problems.js";

const RETRY_MS = [250, 500, 1000, 2000, 4000];
const DEFAULT_RESUME_S = 30;
const CONNECT_MS = 8000; // until ready
const PING_MS = 5000; // after this silence the server is asked for a sign of life
const DEAD_MS = 20000; // after this silence the connection is given up: a lost Wi-Fi closes nothing
const TICK_MS = 1000;
const CLOSE_MS = 3000; // from a fatal error to the close, in which the last finals come
const HIGH_BUFFER_BYTES = 256 * 1024; // a fuller buffer of the browser only hides that the network is slow
const PUMP_MS = 50;

/**
 * @typedef {object} ConnectionEvents
 * @property {(state: "connecting" | "open" | "reconnecting") => void} onState
 * @property {(message: object) => void} onMessage Every message of the server, none twice.
 * @property {(end: {done?: object, problem?: Problem}) => void} onEnd Called once; nothing follows.
 */

/** Sends audio, receives messages, and resumes a broken connection where the server stopped hearing. */
export class Connection {
  #url;
  #token;
  #start;
  #events;
  #outbox;
  #socket = null;
  #state = "connecting";
  #resumeToken = null;
  #resumeS = DEFAULT_RESUME_S;
  #lastSeq = 0;
  #wantsStop = false;
  #stopSent = false;
  #ended = false;
  #failure = null; // a fatal error of which the close has not come yet
  #lostAtMs = null;
  #heardAtMs = 0;
  #attempts = 0;
  #timers = new Map();
  #waiters = []; // {bytes, resolve}: callers of roomFor

  /**
   * @param {object} options
   * @param {URL} options.url Address of the native protocol.
   * @param {string} options.token Access token; empty if none is needed.
   * @param {object} options.start Fields of the start message.
   * @param {number} options.maxBytes The most unacknowledged audio that is kept.
   * @param {ConnectionEvents} options.events What happens.
   */
  constructor({ url, token, start, maxBytes, events }) {
    this.#url = url;
    this.#token = token;
    this.#start = start;
    this.#events = events;
    this.#outbox = new Outbox(maxBytes);
  }

  /** @returns {number} Bytes of audio sent. */
  get sentBytes() {
    return this.#outbox.sentBytes;
  }

  /** @returns {number} Bytes of audio that the server has confirmed. */
  get acknowledgedBytes() {
    return this.#outbox.acknowledgedBytes;
  }

  /** Opens the first connection. Audio may be sent before it is up. */
  open() {
    this.#events.onState(this.#state);
    this.#connect();
    addEventListener("online", this.#retryNow);
    this.#every(TICK_MS, "watch", () => this.#watch());
  }

  /**
   * Sends audio, now or when the connection is back.
   * @param {Uint8Array} bytes Whole samples; owned by the connection from now on.
   */
  send(bytes) {
    if (this.#ended) return;
    if (this.#outbox.push(bytes)) this.#pump();
    else this.#end({ problem: new Problem("backlog") });
  }

  /**
   * Waits until the server has caught up.
   * @param {number} bytes The most unacknowledged audio to wait for.
   * @returns {Promise<boolean>} False if the connection has ended.
   */
  roomFor(bytes) {
    return new Promise((resolve) => {
      this.#waiters.push({ bytes, resolve });
      this.#wake();
    });
  }

  /** Says that no more audio comes; the rest is recognised, then the connection ends. */
  finish() {
    this.#wantsStop = true;
    this.#pump();
  }

  /** Ends at once; what is not recognised yet is lost. */
  cancel() {
    if (this.#ended) return;
    this.#sendJson({ type: "stop" }); // frees the place at once instead of keeping it for a resume
    this.#end({});
  }

  #address() {
    const url = new URL(this.#url);
    if (this.#token) url.searchParams.set("token", this.#token);
    if (this.#resumeToken) url.searchParams.set("resume_token", this.#resumeToken);
    return url;
  }

  #connect() {
    const socket = new WebSocket(this.#address());
    this.#socket = socket;
    this.#stopSent = false;
    this.#heardAtMs = performance.now();
    // A socket that was given up may still fire; it has no say any more.
    const current = (handler) => (event) => {
      if (socket === this.#socket) handler(event);
    };
    socket.onopen = current(() => {
      const resume = { resume_token: this.#resumeToken, last_seq: this.#lastSeq };
      this.#sendJson({ ...this.#start, ...(this.#resumeToken ? resume : {}), type: "start" });
    });
    socket.onmessage = current((event) => this.#receive(JSON.parse(event.data)));
    socket.onclose = current((event) => this.#lost(event.code));
    this.#after(CONNECT_MS, "connect", () => this.#lost(null));
  }

  #receive(message) {
    this.#heardAtMs = performance.now();
    if (message.seq !== undefined) {
      if (message.seq <= this.#lastSeq) return;
      this.#lastSeq = message.seq;
    }
    switch (message.type) {
      case "ready":
        this.#ready(message);
        break;
      case "ack":
        this.#outbox.acknowledge(message.bytes);
        this.#pump();
        break;
      case "error":
        this.#failed(message);
        break;
    }
    if (this.#ended) return;
    const isDone = message.type === "done";
    if (isDone && message.reason === "stop") this.#outbox.acknowledge(this.#outbox.sentBytes);
    this.#events.onMessage(message);
    if (isDone) this.#end({ done: message });
  }

  #ready(message) {
    this.#clear("connect");
    this.#resumeToken = message.resume_token;
    this.#resumeS = message.limits?.resume_s ?? DEFAULT_RESUME_S;
    this.#attempts = 0;
    this.#lostAtMs = null;
    if (!this.#outbox.rewind(message.bytes ?? 0)) {
      this.#end({ problem: new Problem("connection_lost") });
      return;
    }
    this.#setState("open");
    this.#pump();
  }

  #failed(message) {
    if (message.fatal) {
      this.#failure = problemOfMessage(message);
      this.#after(CLOSE_MS, "close", () => this.#end({ problem: this.#failure }));
    } else if (this.#state !== "open") {
      this.#end({ problem: problemOfMessage(message) }); // the start message was refused
    }
  }

  async #lost(code) {
    const known = this.#failure ?? problemOfClose(code);
    this.#drop();
    if (known) this.#end({ problem: known });
    else if (this.#resumeToken === null) {
      const problem = await diagnose(this.#address(), this.#token !== "");
      this.#end({ problem });
    } else this.#retryLater();
  }

  #retryLater() {
    const nowMs = performance.now();
    this.#lostAtMs ??= nowMs;
    this.#setState("reconnecting");
    if (nowMs - this.#lostAtMs > 1000 * this.#resumeS) {
      this.#end({ problem: new Problem("connection_lost") });
      return;
    }
    const delayMs = RETRY_MS[Math.min(this.#attempts, RETRY_MS.length - 1)];
    this.#attempts += 1;
    // Spread, so that the clients of a restarted server do not all come at once.
    this.#after(delayMs * (0.75 + 0.5 * Math.random()), "retry", () => this.#connect());
  }

  #retryNow = () => {
    if (this.#timers.has("retry")) {
      this.#clear("retry");
      this.#connect();
    }
  };

  #watch() {
    if (this.#state !== "open" || this.#socket === null) return;
    const silentMs = performance.now() - this.#heardAtMs;
    if (silentMs > DEAD_MS) this.#lost(null);
    else if (silentMs > PING_MS) this.#sendJson({ type: "ping", id: null });
  }

  #pump() {
    if (this.#ended || this.#state !== "open") return;
    while (this.#outbox.hasUnsent && this.#socket.bufferedAmount < HIGH_BUFFER_BYTES) {
      this.#socket.send(this.#outbox.next());
    }
    if (this.#outbox.hasUnsent) this.#after(PUMP_MS, "pump", () => this.#pump());
    else if (this.#wantsStop && !this.#stopSent) {
      this.#stopSent = true;
      this.#sendJson({ type: "stop" });
    }
    this.#wake();
  }

  #wake() {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) {
      if (this.#ended) waiter.resolve(false);
      else if (this.#outbox.keptBytes < waiter.bytes) waiter.resolve(true);
      else this.#waiters.push(waiter);
    }
  }

  #sendJson(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #setState(state) {
    if (state === this.#state) return;
    this.#state = state;
    this.#events.onState(state);
  }

  #drop() {
    for (const name of ["connect", "pump"]) this.#clear(name);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  #end(end) {
    if (this.#ended) return;
    this.#ended = true;
    removeEventListener("online", this.#retryNow);
    for (const name of [...this.#timers.keys()]) this.#clear(name);
    this.#drop();
    this.#wake();
    this.#events.onEnd(end);
  }

  #after(ms, name, action) {
    this.#clear(name);
    const timer = setTimeout(() => {
      this.#timers.delete(name);
      action();
    }, ms);
    this.#timers.set(name, timer);
  }

  #every(ms, name, action) {
    this.#timers.set(name, setInterval(action, ms));
  }

  #clear(name) {
    clearTimeout(this.#timers.get(name)); // clears intervals as well (HTML standard, 8.7)
    this.#timers.delete(name);
  }
}
