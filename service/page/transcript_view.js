/** Shows a transcript as it grows, follows its end, and tells about single words. */

import { setText } from "./dom.js";
import { spacedTexts } from "./formats.js";
import { clockTime } from "./text.js";

const FOLLOW_PX = 48; // this close to the end counts as reading along
const UNSURE = 0.5; // words below this confidence are marked
const INFO_GAP_PX = 6;
const N_ANNOUNCED = 5; // finals that wait to be read out

/** The transcript's part of the page. */
export class TranscriptView {
  #elements;
  #rows = new Map(); // segment id -> {row, time, text, words: [{span, blank, word}]}
  #follows = true;
  #activeWord = null;

  /** @param {Record<string, HTMLElement>} elements scroller, segments, empty, jump, wordInfo, announcer. */
  constructor(elements) {
    this.#elements = elements;
    const { scroller, jump } = elements;
    scroller.addEventListener("scroll", () => this.#scrolled());
    scroller.addEventListener("keydown", (event) => this.#keyPressed(event));
    scroller.addEventListener("click", (event) => this.#showWord(event.target.closest(".word")));
    scroller.addEventListener("focusout", () => this.#showWord(null));
    new ResizeObserver(() => this.#followEnd()).observe(scroller);
    jump.addEventListener("click", () => {
      this.#follows = true;
      this.#followEnd();
      scroller.focus({ preventScroll: true });
    });
  }

  /**
   * Draws a segment that is new or has changed.
   * @param {import("./transcript.js").Segment} segment One of the transcript.
   */
  show(segment) {
    if (segment.text.trim() === "") {
      this.#rows.get(segment.id)?.row.remove();
      this.#rows.delete(segment.id);
      return;
    }
    const view = this.#rows.get(segment.id) ?? this.#addRow(segment.id);
    setText(view.time, clockTime(segment.start));
    view.row.dataset.state = segment.isFinal ? "final" : "open";
    view.row.classList.toggle("second-pass", segment.secondPass);
    this.#drawWords(view, segment);
    this.#elements.empty.hidden = true;
    if (this.#follows) this.#followEnd();
    else this.#elements.jump.hidden = false;
  }

  /**
   * Has a finished text read out by screen readers.
   * @param {string} text A final's text.
   */
  announce(text) {
    const { announcer } = this.#elements;
    const line = document.createElement("span");
    line.textContent = `${text} `;
    announcer.append(line);
    if (announcer.childElementCount > N_ANNOUNCED) announcer.firstElementChild.remove();
  }

  /** Empties the view. */
  clear() {
    this.#rows.clear();
    this.#showWord(null);
    this.#follows = true;
    this.#elements.segments.replaceChildren();
    this.#elements.announcer.replaceChildren();
    this.#elements.empty.hidden = false;
    this.#elements.jump.hidden = true;
  }

  #addRow(id) {
    const row = document.createElement("li");
    const time = document.createElement("span");
    const text = document.createElement("p");
    time.className = "stamp";
    row.append(time, text);
    row.dataset.id = id;
    const rows = [...this.#elements.segments.children];
    const next = rows.find((each) => Number(each.dataset.id) > id) ?? null;
    this.#elements.segments.insertBefore(row, next);
    const view = { row, time, text, words: [] };
    this.#rows.set(id, view);
    return view;
  }

  /** Changes only the words that differ, so that a selection or the word in focus survives. */
  #drawWords(view, segment) {
    const words = wordsOf(segment);
    const texts = spacedTexts(
      segment.text,
      words.map((word) => word.text),
    );
    for (const { span, blank } of view.words.splice(words.length)) {
      span.remove();
      blank.remove();
    }
    words.forEach((word, i) => {
      view.words[i] ??= addWord(view.text);
      const shown = view.words[i];
      shown.word = word;
      setText(shown.blank, i === 0 ? "" : texts[i].slice(0, texts[i].length - word.text.length));
      setText(shown.span, word.text);
      shown.span.className = wordClass(word);
      if (shown.span === this.#activeWord) this.#showWord(shown.span); // it may have other times by now
    });
    if (this.#activeWord !== null && !this.#activeWord.isConnected) this.#showWord(null);
  }

  #followEnd() {
    const { scroller, jump } = this.#elements;
    if (!this.#follows) return;
    scroller.scrollTop = scroller.scrollHeight;
    jump.hidden = true;
  }

  #scrolled() {
    const { scroller, jump } = this.#elements;
    this.#follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < FOLLOW_PX;
    if (this.#follows) jump.hidden = true;
    this.#placeInfo();
  }

  #keyPressed(event) {
    if (event.key === "Escape" && this.#activeWord !== null) {
      this.#showWord(null);
      this.#elements.scroller.focus({ preventScroll: true });
      return;
    }
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const spans = step ? [...this.#elements.segments.querySelectorAll(".word")] : [];
    if (spans.length === 0) return;
    const from = spans.indexOf(this.#activeWord);
    const to = from < 0 ? (step > 0 ? 0 : spans.length - 1) : from + step;
    const span = spans[Math.max(0, Math.min(spans.length - 1, to))];
    event.preventDefault();
    span.focus();
    this.#showWord(span);
  }

  #showWord(span) {
    const { wordInfo } = this.#elements;
    this.#activeWord?.removeAttribute("aria-describedby");
    this.#activeWord?.classList.remove("active");
    const shown =
      span && [...this.#rows.values()].flatMap((view) => view.words).find((each) => each.span === span);
    this.#activeWord = shown?.word.start === undefined ? null : span;
    wordInfo.hidden = this.#activeWord === null;
    if (this.#activeWord === null) return;
    wordInfo.textContent = describe(shown.word);
    span.setAttribute("aria-describedby", wordInfo.id);
    span.classList.add("active");
    this.#placeInfo();
  }

  #placeInfo() {
    const { wordInfo, scroller } = this.#elements;
    if (this.#activeWord === null) return;
    const word = this.#activeWord.getBoundingClientRect();
    const frame = scroller.getBoundingClientRect();
    wordInfo.hidden = word.bottom < frame.top || word.top > frame.bottom;
    const left = word.left + word.width / 2 - wordInfo.offsetWidth / 2;
    const rightmost = frame.right - wordInfo.offsetWidth - INFO_GAP_PX;
    wordInfo.style.left = `${Math.max(frame.left + INFO_GAP_PX, Math.min(rightmost, left))}px`;
    wordInfo.style.top = `${word.top - wordInfo.offsetHeight - INFO_GAP_PX}px`;
  }
}

/** A server that sends no words still has its text shown. */
function wordsOf(segment) {
  if (segment.words.length > 0) return segment.words;
  const parts = [
    { text: segment.committed.trim(), stable: true, confidence: 1 },
    { text: segment.draft.trim(), stable: false, confidence: 1 },
  ];
  return parts.filter((part) => part.text !== "");
}

function addWord(parent) {
  const blank = document.createTextNode("");
  const span = document.createElement("span");
  span.tabIndex = -1;
  parent.append(blank, span);
  return { blank, span, word: null };
}

function wordClass(word) {
  const unsure = word.stable && word.confidence < UNSURE ? " unsure" : "";
  return `word ${word.stable ? "stable" : "draft"}${unsure}`;
}

function describe(word) {
  const times = `${word.start.toFixed(2)} – ${word.end.toFixed(2)} s`;
  const certainty = `${Math.round(100 * word.confidence)} % confident`;
  return `${times} · ${certainty}${word.stable ? "" : " · draft"}`;
}
