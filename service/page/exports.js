/** Copying and downloading the transcript. */

import { MIME_TYPES, render } from "./formats.js";

const TOLD_MS = 1800;

/** The buttons above the transcript. */
export class Exports {
  #elements;
  #transcript;
  #about;
  #isSaved = true;

  /**
   * @param {Record<string, HTMLElement>} elements format, copy, copyText, copyIcon, download.
   * @param {import("./transcript.js").Transcript} transcript What is copied.
   * @param {() => import("./formats.js").About & {name: string}} about Told in json; the name is the
   *   download's, less its suffix.
   */
  constructor(elements, transcript, about) {
    this.#elements = elements;
    this.#transcript = transcript;
    this.#about = about;
    elements.copy.addEventListener("click", () => this.#copy());
    elements.download.addEventListener("click", () => this.#download());
  }

  /** @returns {boolean} Whether words came after the last copy or download. */
  get hasUnsaved() {
    return !this.#isSaved && !this.#transcript.isEmpty;
  }

  /** Call it when the transcript has changed. */
  update() {
    this.#isSaved = false;
    const { copy, download } = this.#elements;
    copy.disabled = download.disabled = this.#transcript.isEmpty;
  }

  get #document() {
    return render(this.#transcript.segments, this.#elements.format.value, this.#about());
  }

  async #copy() {
    const isCopied = await writeToClipboard(this.#document);
    if (isCopied) this.#isSaved = true;
    this.#tell(isCopied ? "Copied" : "Not allowed", isCopied ? "check" : "alert");
    setTimeout(() => this.#tell("Copy", "copy"), TOLD_MS);
  }

  #tell(text, icon) {
    const { copy, copyText, copyIcon } = this.#elements;
    copyText.textContent = text;
    copyIcon.setAttribute("href", `#icon-${icon}`);
    copy.setAttribute("aria-label", text); // narrow windows show the icon only
  }

  #download() {
    const format = this.#elements.format.value;
    const url = URL.createObjectURL(new Blob([this.#document], { type: MIME_TYPES[format] }));
    const link = document.createElement("a");
    link.href = url;
    link.download = `${this.#about().name}.${format}`;
    link.click();
    // The browser reads it after this turn; a minute is enough even where it asks for a folder first.
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
    this.#isSaved = true;
  }
}

async function writeToClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyByCommand(text); // pages without https have no clipboard object
  }
}

function copyByCommand(text) {
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "visually-hidden";
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  return isCopied;
}
