/** Keeps a telephone's screen on while it records: a dark screen would stop the microphone. */
export class ScreenLock {
  #isHeld = false;
  #lock = null;

  /** Keeps the screen on until release. */
  hold() {
    this.#isHeld = true;
    document.addEventListener("visibilitychange", this.#request);
    this.#request();
  }

  /** Lets the screen go dark again. */
  release() {
    this.#isHeld = false;
    document.removeEventListener("visibilitychange", this.#request);
    this.#lock?.release();
    this.#lock = null;
  }

  // The browser drops the lock when the page is hidden: it is asked for again when the page comes back.
  #request = async () => {
    if (document.visibilityState !== "visible") return;
    try {
      const lock = await navigator.wakeLock?.request("screen");
      if (this.#isHeld) this.#lock = lock ?? null;
      else lock?.release();
    } catch {
      // Not allowed, for example at a low battery: then the screen goes dark as usual.
    }
  };
}
