/**
 * Transcripts as txt, srt, vtt and json, the same documents that `foresound transcribe` writes.
 * Subtitles are cut here: a segment may be half a minute long, a subtitle may not.
 */

export const FORMATS = ["txt", "srt", "vtt", "json"];
export const MIME_TYPES = {
  txt: "text/plain",
  srt: "application/x-subrip",
  vtt: "text/vtt",
  json: "application/json",
};

const LINE_CHARS = 42; // a usual limit for subtitles, as in broadcasters' guidelines
const CUE_CHARS = 2 * LINE_CHARS;
const CUE_PAUSE_MS = 1000; // a silence this long ends a subtitle
const MIN_CUE_MS = 100;
const SENTENCE_ENDS = [".", "?", "!", "。", "？", "！"];

/**
 * @typedef {object} About
 * @property {string} file The input's name.
 * @property {string} model The recogniser's name.
 * @property {string | null} language The language asked for.
 * @property {number} duration Seconds of audio.
 */

/**
 * Writes a transcript.
 * @param {import("./transcript.js").Segment[]} segments In order.
 * @param {string} format One of FORMATS.
 * @param {About} about Told in json.
 * @returns {string} The document, with a line break at its end.
 */
export function render(segments, format, about) {
  const spoken = segments.filter((segment) => segment.text.trim() !== "");
  const writers = { txt: renderText, srt: renderSrt, vtt: renderVtt, json: renderJson };
  return `${writers[format](spoken, about).trimEnd()}\n`;
}

/**
 * Cuts line breaks, control characters and surrounding blanks.
 * @param {string} text Recognised text.
 * @returns {string} The same words on one line.
 */
export function oneLine(text) {
  return text.replace(/[\p{Cc}\s]+/gu, " ").trim();
}

/**
 * Finds the blanks before each word; some scripts have none.
 * @param {string} text A segment's text.
 * @param {string[]} words Its words.
 * @returns {string[]} Each word with the blanks before it as in the text.
 */
export function spacedTexts(text, words) {
  const spaced = [];
  let position = 0;
  for (const word of words) {
    const found = text.indexOf(word, position);
    // Where words and text disagree, trust the words.
    if (found < 0 || text.slice(position, found).trim() !== "") return words.map((each) => ` ${each}`);
    spaced.push(text.slice(position, found + word.length));
    position = found + word.length;
  }
  return spaced;
}

function renderText(segments) {
  return segments.map((segment) => oneLine(segment.text)).join("\n");
}

function renderSrt(segments) {
  const stamp = (ms) => timestamp(ms, { hours: true, mark: "," });
  const cues = segments.flatMap(cuesOf);
  return cues
    .map((cue, i) => `${i + 1}\n${stamp(cue.startMs)} --> ${stamp(cue.endMs)}\n${arrowless(cue.text)}\n`)
    .join("\n");
}

function renderVtt(segments) {
  const stamp = (ms) => timestamp(ms, { hours: false, mark: "." });
  const cues = segments.flatMap(cuesOf);
  const blocks = cues.map((cue) => `${stamp(cue.startMs)} --> ${stamp(cue.endMs)}\n${escapeVtt(cue.text)}\n`);
  return ["WEBVTT\n", ...blocks].join("\n");
}

function renderJson(segments, { file, model, language, duration }) {
  const entries = segments.map((segment) => ({
    id: segment.id,
    start: rounded(segment.start, 3),
    end: rounded(segment.end, 3),
    text: oneLine(segment.text),
    second_pass: segment.secondPass,
    words: segment.words.map(({ text, start, end, confidence }) => ({
      word: text,
      start: rounded(start, 3),
      end: rounded(end, 3),
      probability: rounded(confidence, 4),
    })),
  }));
  const text = oneLine(segments.map((segment) => segment.text).join(" "));
  return JSON.stringify(
    { text, segments: entries, language, file, model, duration: rounded(duration, 3) },
    null,
    2,
  );
}

/** Cuts a segment into subtitles of at most two lines, at pauses and sentence ends. */
function cuesOf(segment) {
  const words = segment.words.filter((word) => word.text.trim() !== "");
  const [startMs, endMs] = [milliseconds(segment.start), milliseconds(segment.end)];
  if (words.length === 0) {
    return [{ startMs, endMs: Math.max(endMs, startMs + MIN_CUE_MS), text: twoLines(oneLine(segment.text)) }];
  }
  const texts = spacedTexts(
    segment.text,
    words.map((word) => word.text),
  );
  const starts = words.map((word) => milliseconds(word.start));
  const ends = words.map((word) => milliseconds(word.end));
  const cues = [];
  for (let first = 0, i = 1; i <= words.length; i += 1) {
    const text = oneLine(texts.slice(first, i).join(""));
    if (i < words.length) {
      const grown = oneLine(texts.slice(first, i + 1).join(""));
      const longPause = starts[i] - ends[i - 1] > CUE_PAUSE_MS;
      const sentenceEnds = nChars(text) >= LINE_CHARS && SENTENCE_ENDS.some((mark) => text.endsWith(mark));
      const tooShort = starts[i] - starts[first] < MIN_CUE_MS; // nobody could read it
      if (tooShort || (nChars(grown) <= CUE_CHARS && !longPause && !sentenceEnds)) continue;
    }
    const shortest = starts[first] + MIN_CUE_MS;
    const limit = i < words.length ? starts[i] : Math.max(ends[i - 1], endMs);
    const end = Math.min(Math.max(ends[i - 1], shortest), Math.max(limit, shortest));
    cues.push({ startMs: starts[first], endMs: end, text: twoLines(text) });
    first = i;
  }
  return cues;
}

/** Breaks a long subtitle at the blank nearest to its middle. */
function twoLines(text) {
  const chars = [...text];
  const blanks = chars.flatMap((char, i) => (char === " " ? [i] : []));
  if (chars.length <= LINE_CHARS || blanks.length === 0) return text;
  const middle = chars.length >> 1;
  const cut = blanks.reduce((best, i) => (Math.abs(i - middle) < Math.abs(best - middle) ? i : best));
  return `${chars.slice(0, cut).join("")}\n${chars.slice(cut + 1).join("")}`;
}

function timestamp(ms, { hours, mark }) {
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  const rest = String(ms % 1000).padStart(3, "0");
  const hour = hours || ms >= 3_600_000 ? `${two(ms / 3_600_000)}:` : "";
  return `${hour}${two((ms / 60_000) % 60)}:${two((ms / 1000) % 60)}${mark}${rest}`;
}

/** An arrow in a text would read as a cue's times. */
function arrowless(text) {
  return text.replaceAll("-->", "->");
}

/** Escapes what WebVTT reads as markup (W3C WebVTT 1, section 4.2.2). */
function escapeVtt(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function milliseconds(seconds) {
  return Math.round(1000 * seconds);
}

function rounded(value, digits) {
  return Number(value.toFixed(digits));
}

function nChars(text) {
  return [...text].length;
}
