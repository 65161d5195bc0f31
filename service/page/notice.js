/** Says above the transcript what went wrong, and asks for the access token where one is needed. */

/** Shows one problem at a time. */
export class Notice {
  #elements;

  /**
   * @param {Record<string, HTMLElement>} elements notice, words, close, tokenForm, token.
   * @param {(token: string) => void} onToken The user entered an access token.
   */
  constructor(elements, onToken) {
    this.#elements = elements;
    elements.close.addEventListener("click", () => this.hide());
    elements.tokenForm.addEventListener("submit", (event) => {
      event.preventDefault();
      onToken(elements.token.value.trim());
    });
  }

  /**
   * Shows a problem until it is dismissed or replaced.
   * @param {import("./problems.js").Problem} problem What went wrong.
   */
  show(problem) {
    const { notice, words, tokenForm, token } = this.#elements;
    const title = document.createElement("strong");
    title.textContent = problem.title;
    const text = document.createElement("span");
    text.textContent = ` ${problem.text}`;
    notice.hidden = false;
    notice.dataset.code = problem.code;
    words.replaceChildren(title, text);
    tokenForm.hidden = !problem.wantsToken;
    if (problem.wantsToken) token.focus();
  }

  /** @returns {string | null} Code of the problem on show. */
  get code() {
    return this.#elements.notice.hidden ? null : this.#elements.notice.dataset.code;
  }

  /** Takes the notice away. */
  hide() {
    const { notice, words, tokenForm, token } = this.#elements;
    notice.hidden = true;
    tokenForm.hidden = true;
    words.replaceChildren();
    token.value = "";
  }
}
