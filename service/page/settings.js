/** What the user chose, kept for the next visit; the access token is kept for this tab only. */

const SETTINGS_KEY = "foresound.settings";
const TOKEN_KEY = "foresound.token";

/** The settings form. */
export class Settings {
  #form;
  #languageField;

  /**
   * @param {HTMLFormElement} form Holds latency, second_pass and language.
   * @param {HTMLElement} languageField Hidden while the server's model knows one language only.
   */
  constructor(form, languageField) {
    this.#form = form;
    this.#languageField = languageField;
    this.#restore();
    form.addEventListener("change", () => this.#save());
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  /** @returns {object} The start message's fields latency, second_pass and language. */
  get start() {
    const { latency, second_pass: secondPass, language } = this.#form.elements;
    const spoken = language.value.trim().toLowerCase();
    const isChosen = !this.#languageField.hidden && spoken !== "" && spoken !== "auto";
    return { latency: latency.value, second_pass: secondPass.checked, language: isChosen ? spoken : null };
  }

  /**
   * Shows the choice of language where there is one.
   * @param {string} model The server's model; Whisper names those that know only English something.en.
   */
  showLanguageFor(model) {
    this.#languageField.hidden = model.endsWith(".en");
  }

  #save() {
    const { latency, second_pass: secondPass, language } = this.#form.elements;
    const settings = { latency: latency.value, secondPass: secondPass.checked, language: language.value };
    store(() => localStorage, SETTINGS_KEY, JSON.stringify(settings));
  }

  #restore() {
    const settings = parsed(stored(() => localStorage, SETTINGS_KEY));
    const { latency, second_pass: secondPass, language } = this.#form.elements;
    const known = [...latency].some((radio) => radio.value === settings.latency);
    if (known) latency.value = settings.latency;
    secondPass.checked = settings.secondPass === true;
    language.value = typeof settings.language === "string" ? settings.language : "";
  }
}

/** @returns {string} The access token of this tab; empty if there is none. */
export function savedToken() {
  return stored(() => sessionStorage, TOKEN_KEY) ?? "";
}

/** @param {string} token Kept until the tab is closed. */
export function saveToken(token) {
  store(() => sessionStorage, TOKEN_KEY, token);
}

/** A browser that forbids storage throws as soon as it is named; the page works without. */
function stored(area, key) {
  try {
    return area().getItem(key);
  } catch {
    return null;
  }
}

function store(area, key, value) {
  try {
    area().setItem(key, value);
  } catch {
    // Then the choice lasts as long as the page.
  }
}

function parsed(json) {
  try {
    return JSON.parse(json) ?? {};
  } catch {
    return {};
  }
}
