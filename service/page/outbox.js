/** Audio that the server has not acknowledged yet, kept so that it can be sent once more. */
export class Outbox {
  #chunks = []; // {start, bytes}, oldest first, without gaps
  #maxBytes;
  #start = 0; // every byte before is acknowledged
  #sent = 0; // every byte before was given to the current connection
  #end = 0;

  /** @param {number} maxBytes The most that is kept. */
  constructor(maxBytes) {
    this.#maxBytes = maxBytes;
  }

  /** @returns {number} Bytes given to a connection, acknowledged ones included. */
  get sentBytes() {
    return this.#sent;
  }

  /** @returns {number} Bytes that the server has. */
  get acknowledgedBytes() {
    return this.#start;
  }

  /** @returns {number} Bytes that are kept. */
  get keptBytes() {
    return this.#end - this.#start;
  }

  /** @returns {boolean} Whether something waits to be sent. */
  get hasUnsent() {
    return this.#sent < this.#end;
  }

  /**
   * Appends audio.
   * @param {Uint8Array} bytes Owned by the outbox from now on.
   * @returns {boolean} False if there was no room; then nothing has changed.
   */
  push(bytes) {
    if (this.keptBytes + bytes.length > this.#maxBytes) return false;
    if (bytes.length > 0) this.#chunks.push({ start: this.#end, bytes });
    this.#end += bytes.length;
    return true;
  }

  /** @returns {Uint8Array} The next unsent piece, which counts as sent from now on; ask hasUnsent first. */
  next() {
    // Searched from the end: in a live connection the unsent piece is the newest.
    const chunk = this.#chunks.findLast(({ start }) => start <= this.#sent);
    const piece = chunk.bytes.subarray(this.#sent - chunk.start);
    this.#sent += piece.length;
    return piece;
  }

  /**
   * Forgets what the server has.
   * @param {number} bytes Bytes that the server has received so far.
   */
  acknowledge(bytes) {
    this.#start = Math.max(this.#start, Math.min(bytes, this.#end));
    this.#sent = Math.max(this.#sent, this.#start);
    while (this.#chunks.length > 0 && this.#chunks[0].start + this.#chunks[0].bytes.length <= this.#start) {
      this.#chunks.shift();
    }
  }

  /**
   * Goes back to where the server wants to continue on a new connection.
   * @param {number} bytes Bytes that the server has received so far.
   * @returns {boolean} False if that audio is no longer kept or was never sent.
   */
  rewind(bytes) {
    if (bytes < this.#start || bytes > this.#end) return false;
    this.#sent = bytes;
    this.acknowledge(bytes);
    return true;
  }
}
