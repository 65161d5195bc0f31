/** Runs in the audio thread: posts the microphone's samples to the page in blocks of 20 ms. */

const BLOCK_S = 0.02; // an audio thread calls every 128 samples; a message for each would load the page

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Float32Array(Math.round(sampleRate * BLOCK_S));
    this.filled = 0;
    this.running = true;
    this.port.onmessage = () => this.stop();
  }

  /** Takes one render quantum; the node mixes down to one channel. */
  process([[samples]]) {
    if (!this.running) return false;
    for (let from = 0; samples && from < samples.length;) {
      const part = samples.subarray(from, from + this.block.length - this.filled);
      this.block.set(part, this.filled);
      this.filled += part.length;
      from += part.length;
      if (this.filled === this.block.length) this.post();
    }
    return true;
  }

  /** Sends what is collected; the page owns the memory from then on. */
  post() {
    const samples = this.block.slice(0, this.filled);
    this.port.postMessage(samples, [samples.buffer]);
    this.filled = 0;
  }

  /** Sends the rest, then null as the end mark. */
  stop() {
    this.post();
    this.port.postMessage(null);
    this.running = false;
  }
}

registerProcessor("recorder", Recorder);
