/** Everything that can go wrong, said so that a person knows what to do. */

const DIAGNOSE_MS = 5000;

const PROBLEMS = {
  insecure_context: [
    "The microphone needs a secure page",
    "Browsers give it only to https pages and localhost. Open this page over https, or open an audio file.",
  ],
  microphone_denied: [
    "The microphone is blocked",
    "Allow it for this page in the browser's site settings (the icon beside the address), then start again.",
  ],
  no_microphone: ["No microphone found", "Connect a microphone or switch it on, then start again."],
  microphone_busy: [
    "The microphone cannot be opened",
    "Another program may be using it. Close that program, then start again.",
  ],
  microphone_unsupported: [
    "This browser cannot record",
    "It lacks AudioWorklet. Update the browser, or open an audio file instead.",
  ],
  microphone_lost: ["The microphone was disconnected", "What was said until then is transcribed."],
  file_unreadable: [
    "This file holds no audio that the browser can read",
    "It reads WAV, MP3, M4A, FLAC, Ogg and more. Convert the file, or use foresound stream in a terminal.",
  ],
  file_empty: ["This file holds no sound", "It was decoded, but it is empty."],
  server_gone: [
    "The server does not answer",
    "Check that it is running and that this device is online, then start again.",
  ],
  server_full: [
    "The server is full",
    "All of its places are taken or it is about to restart. Try again in a few seconds.",
  ],
  token_needed: [
    "This server asks for an access token",
    "Enter the token that you were given, then connect.",
  ],
  token_wrong: ["The access token was not accepted", "Check it for missing characters, then connect."],
  refused: [
    "The server refused the connection",
    "Its places may all be taken: try again in a few seconds. If it asks for an access token, enter it here.",
  ],
  reconnecting: [
    "The connection is lost",
    "Trying again. Your words are kept and sent as soon as the server is back.",
  ],
  connection_lost: [
    "The connection could not be restored",
    "The text so far is kept. Start again to go on below it.",
  ],
  backlog: [
    "Too much audio is waiting",
    "The connection or the server is too slow. The text so far is kept; start again to go on below it.",
  ],
  unknown_resume_token: [
    "The server no longer knows this recording",
    "It was restarted or the break was too long. The text so far is kept; start again to go on below it.",
  ],
  taken_over: [
    "This recording went on in another window",
    "It can be connected only once. Start again to begin a new one here.",
  ],
  shutting_down: [
    "The server is shutting down",
    "Everything it had heard is transcribed. Start again in a moment.",
  ],
  idle_timeout: [
    "No sound arrived for a long time",
    "The server ended the recording. Start again to go on below it.",
  ],
  session_limit: [
    "The longest recording time is reached",
    "Everything is transcribed. Start again to go on below it.",
  ],
  model_error: [
    "The recogniser failed",
    "The text so far is kept. Start again; if it happens again, see the server's log.",
  ],
  bad_audio: [
    "The server cannot read the audio",
    "Start again; if it happens again, report it together with the server's log.",
  ],
  too_many_errors: [
    "The server ended the recording",
    "It received too many invalid messages. Reload the page, then start again.",
  ],
  message_too_big: [
    "The server ended the recording",
    "A message was larger than it accepts. Reload the page, then start again.",
  ],
};

/** Close codes of the native protocol that no new attempt would change. */
const CLOSE_CODES = {
  1007: "too_many_errors",
  1009: "message_too_big",
  4400: "bad_audio",
  4404: "unknown_resume_token",
  4408: "idle_timeout",
  4409: "taken_over",
  4410: "session_limit",
  4429: "too_many_errors",
  4500: "model_error",
};

/** A failure with a title, an explanation and, where a token would help, a wish for one. */
export class Problem extends Error {
  /**
   * @param {string} code A key of the table above, or a code of the server's own.
   * @param {string} [detail] Said instead of the table's explanation.
   */
  constructor(code, detail) {
    const [title, text] = PROBLEMS[code] ?? ["The server reported an error", `Its code is ${code}.`];
    super(title);
    this.name = "Problem";
    this.code = code;
    this.title = title;
    this.text = detail ?? text;
  }

  /** @returns {boolean} Whether the page should ask for an access token. */
  get wantsToken() {
    return ["token_needed", "token_wrong", "refused"].includes(this.code);
  }
}

/**
 * Turns the server's error message into a problem.
 * @param {{code: string, message: string}} message A message of type error.
 * @returns {Problem} Our own words for codes that we know, the server's otherwise.
 */
export function problemOfMessage(message) {
  return new Problem(message.code, Object.hasOwn(PROBLEMS, message.code) ? undefined : message.message);
}

/**
 * Tells what a close code means.
 * @param {number} code A websocket's close code.
 * @returns {Problem | null} Null where a new attempt may help.
 */
export function problemOfClose(code) {
  return Object.hasOwn(CLOSE_CODES, code) ? new Problem(CLOSE_CODES[code]) : null;
}

/**
 * Finds out why the first connection failed: a browser hides the status of a websocket handshake, but an
 * ordinary request to the same address is answered with it.
 * @param {URL} streamUrl The websocket's address.
 * @param {boolean} hasToken Whether a token was sent.
 * @returns {Promise<Problem>} The likely reason.
 */
export async function diagnose(streamUrl, hasToken) {
  try {
    const address = new URL(streamUrl);
    address.protocol = address.protocol === "wss:" ? "https:" : "http:";
    const options = { cache: "no-store", signal: AbortSignal.timeout(DIAGNOSE_MS) };
    const stream = await fetch(address, options);
    if (stream.status === 401 || stream.status === 403) {
      return new Problem(hasToken ? "token_wrong" : "token_needed");
    }
    const ready = await fetch(new URL("../readyz", address), options);
    return new Problem(stream.status === 503 || ready.status === 503 ? "server_full" : "refused");
  } catch {
    return new Problem("server_gone");
  }
}
