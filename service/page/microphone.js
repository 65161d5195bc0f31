/** The microphone as a source of sample blocks. */

import { Problem } from "./problems.js";
import { ScreenLock } from "./screen_lock.js";

const MAX_RATE = 48000; // what the server takes
const MIN_RATE = 8000;
const STOP_MS = 500;

const DENIED = ["NotAllowedError", "SecurityError"];
const MISSING = ["NotFoundError", "OverconstrainedError"];

/** An open microphone. */
export class Microphone {
  #context;
  #stream;
  #node;
  #ended;
  #screenLock = new ScreenLock();

  constructor(context, stream, node, { onBlock, onLost }) {
    this.#context = context;
    this.#stream = stream;
    this.#node = node;
    this.#ended = new Promise((resolve) => {
      node.port.onmessage = ({ data }) => (data === null ? resolve() : onBlock(data));
    });
    stream.getAudioTracks()[0].addEventListener("ended", onLost);
    // A telephone call interrupts the sound of some devices; afterwards it goes on.
    context.onstatechange = () => {
      if (context.state !== "closed") context.resume().catch(() => {});
    };
    this.#screenLock.hold();
  }

  /**
   * Asks for the microphone and starts it. Call it from a click: some browsers start audio only then.
   * @param {object} events
   * @param {(samples: Float32Array) => void} events.onBlock Takes 20 ms of mono samples in -1..1.
   * @param {() => void} events.onLost Called when the device vanishes.
   * @returns {Promise<Microphone>} Running.
   * @throws {Problem} Why there is none.
   */
  static async open(events) {
    if (!isSecureContext) throw new Problem("insecure_context");
    if (!navigator.mediaDevices?.getUserMedia || !("AudioWorkletNode" in globalThis)) {
      throw new Problem("microphone_unsupported");
    }
    const context = openContext();
    let stream = null;
    try {
      stream = await askForMicrophone();
      await context.audioWorklet.addModule(new URL("./recorder.js", import.meta.url));
      const node = new AudioWorkletNode(context, "recorder", {
        channelCount: 1,
        channelCountMode: "explicit",
      });
      const microphone = new Microphone(context, stream, node, events);
      // Its output stays silent; but a node that leads nowhere is not run by every browser.
      context.createMediaStreamSource(stream).connect(node).connect(context.destination);
      await context.resume();
      return microphone;
    } catch (error) {
      for (const track of stream?.getTracks() ?? []) track.stop();
      await context.close();
      throw error;
    }
  }

  /** @returns {number} Samples per second, the audio device's own rate where the server takes it. */
  get sampleRate() {
    return this.#context.sampleRate;
  }

  /** Frees the device after the samples that are under way were delivered. */
  async stop() {
    this.#context.onstatechange = null;
    this.#screenLock.release();
    this.#node.port.postMessage("stop");
    for (const track of this.#stream.getTracks()) track.stop();
    // The audio thread of a device that vanished may never answer.
    await Promise.race([this.#ended, new Promise((resolve) => setTimeout(resolve, STOP_MS))]);
    await this.#context.close();
  }
}

function openContext() {
  const context = new AudioContext({ latencyHint: "interactive" });
  if (context.sampleRate >= MIN_RATE && context.sampleRate <= MAX_RATE) return context;
  context.close();
  return new AudioContext({ latencyHint: "interactive", sampleRate: MAX_RATE });
}

async function askForMicrophone() {
  try {
    return await navigator.mediaDevices.getUserMedia({
      // Echo and noise filters distort speech, and nothing is played here; an even level helps quiet voices.
      audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true },
    });
  } catch (error) {
    if (DENIED.includes(error.name)) throw new Problem("microphone_denied");
    if (MISSING.includes(error.name)) throw new Problem("no_microphone");
    throw new Problem("microphone_busy");
  }
}
