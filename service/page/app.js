/** Puts the page's parts together. */

import { element, setText } from "./dom.js";
import { Exports } from "./exports.js";
import { LevelMeter } from "./level_meter.js";
import { Notice } from "./notice.js";
import { Problem, problemOfMessage } from "./problems.js";
import { savedToken, saveToken, Settings } from "./settings.js";
import { Session } from "./session.js";
import { clockTime, duration } from "./text.js";
import { Transcript } from "./transcript.js";
import { TranscriptView } from "./transcript_view.js";

const METERS_MS = 200;
const STATES = {
  idle: "Ready",
  opening: "Opening…",
  connecting: "Connecting…",
  live: "Live",
  reconnecting: "Reconnecting…",
  finishing: "Finishing…",
};

class App {
  #session = null;
  #last = null; // the session before, of which the meters still tell
  #source = null; // what to start again once a token is entered
  #transcript = new Transcript();
  #fileName = null;
  #hasSpeech = false;
  #settings = new Settings(element("settings-form"), element("language-field"));
  #level = new LevelMeter(element("level"), element("level-canvas"));
  #view = new TranscriptView({
    scroller: element("scroller"),
    segments: element("segments"),
    empty: element("empty"),
    jump: element("jump"),
    wordInfo: element("word-info"),
    announcer: element("announcer"),
  });
  #notice = new Notice(
    {
      notice: element("notice"),
      words: element("notice-words"),
      close: element("notice-close"),
      tokenForm: element("token-form"),
      token: element("token"),
    },
    (token) => this.#tokenEntered(token),
  );
  #exports = new Exports(
    {
      format: element("format"),
      copy: element("copy"),
      copyText: element("copy-text"),
      copyIcon: element("copy-icon"),
      download: element("download"),
    },
    this.#transcript,
    () => this.#about(),
  );

  constructor() {
    element("main").addEventListener("click", () => this.#mainClicked());
    element("clear").addEventListener("click", () => this.#clear());
    element("open-file").addEventListener("click", () => element("file").click());
    element("file").addEventListener("change", () => this.#filePicked());
    element("settings-toggle").addEventListener("click", () => this.#toggleSettings());
    element("settings").addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#toggleSettings(false);
    });
    addEventListener("beforeunload", (event) => {
      if (this.#session) event.preventDefault();
    });
    // A place on the server that is left without a word is kept for a while, in case the page comes back.
    // The word may be lost when the browser is in a hurry.
    addEventListener("pagehide", () => this.#session?.cancel());
    this.#acceptDrops();
    setInterval(() => this.#drawMeters(), METERS_MS);
  }

  #mainClicked() {
    if (this.#session === null) this.#startMicrophone();
    else if (this.#session.fileName === null && !this.#session.isStopping) this.#session.stop();
    else this.#session.cancel();
  }

  async #startMicrophone() {
    // Microphone recordings go on below each other; a file's times would make no sense among them.
    if (this.#fileName !== null && !(await this.#clear())) return;
    this.#fileName = null;
    this.#run(
      (session) => session.runMicrophone(),
      () => this.#startMicrophone(),
    );
  }

  async #startFile(file) {
    if (this.#session !== null || !(await this.#clear())) return;
    this.#fileName = file.name;
    this.#run(
      (session) => session.runFile(file),
      () => this.#startFile(file),
    );
  }

  #run(action, again) {
    if (this.#session !== null) return;
    this.#notice.hide();
    this.#toggleSettings(false);
    this.#source = again;
    const url = new URL("v1/stream", document.baseURI);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.#session = new Session({
      settings: { url, token: savedToken(), start: this.#settings.start },
      events: {
        onState: () => this.#drawState(),
        onMessage: (message) => this.#received(message),
        onLevel: (db) => this.#level.push(db),
        onEnd: (session, problem) => this.#ended(session, problem),
      },
    });
    action(this.#session);
  }

  #received(message) {
    if (message.type === "ready") this.#showModel(message.model);
    if (message.type === "error" && !message.fatal) this.#notice.show(problemOfMessage(message));
    if (message.type === "speech_started" || message.type === "speech_ended") {
      this.#hasSpeech = message.type === "speech_started";
      this.#drawState();
    }
    const segment = this.#transcript.apply(message);
    if (segment === null) return;
    this.#view.show(segment);
    if (segment.isFinal && segment.text !== "") this.#view.announce(segment.text);
    this.#textChanged();
  }

  #ended(session, problem) {
    this.#last = session;
    this.#session = null;
    this.#hasSpeech = false;
    for (const segment of this.#transcript.endRecording(session.sentS)) this.#view.show(segment);
    this.#level.reset();
    this.#textChanged();
    this.#drawState();
    this.#drawMeters();
    if (problem !== null) this.#notice.show(problem);
  }

  #tokenEntered(token) {
    saveToken(token);
    this.#source?.();
  }

  #filePicked() {
    const [file] = element("file").files;
    if (file) this.#startFile(file);
    element("file").value = ""; // so that the same file can be picked again
  }

  /** Empties the transcript, after asking if its text would be lost. Tells whether it is empty. */
  async #clear() {
    if (this.#exports.hasUnsaved && !(await confirmed(element("confirm")))) return false;
    if (this.#session !== null) return false;
    this.#transcript.clear();
    this.#view.clear();
    this.#fileName = null;
    this.#last = null;
    this.#textChanged();
    this.#drawMeters();
    return true;
  }

  #textChanged() {
    this.#exports.update();
    element("clear").disabled = this.#session !== null || this.#transcript.isEmpty;
  }

  #about() {
    const session = this.#session ?? this.#last;
    const stamp = new Date().toISOString().slice(0, 16).replace(/[:T]/g, "-");
    return {
      name: this.#fileName?.replace(/\.[^.]*$/, "") || `foresound-${stamp}`,
      file: this.#fileName ?? "microphone",
      model: session?.ready?.model ?? "",
      language: session?.ready?.settings?.language ?? null,
      duration: this.#transcript.durationS + (this.#session?.sentS ?? 0),
    };
  }

  #showModel(model) {
    element("model").hidden = false;
    setText(element("model"), model);
    this.#settings.showLanguageFor(model);
  }

  #toggleSettings(open = !element("settings").classList.contains("open")) {
    const hadFocus = element("settings").contains(document.activeElement);
    element("settings").classList.toggle("open", open);
    element("settings-toggle").setAttribute("aria-expanded", String(open));
    if (open) element("settings").querySelector("input:checked").focus();
    else if (hadFocus) element("settings-toggle").focus();
  }

  #drawState() {
    const session = this.#session;
    const state = session?.state ?? "idle";
    const isFile = Boolean(session) && session.fileName !== null;
    element("connection").dataset.state = state;
    const stateText = isFile && state === "live" ? "Transcribing" : STATES[state];
    setText(element("connection-text"), stateText);
    element("app").dataset.mode = session === null ? "idle" : isFile ? "file" : "microphone";
    element("app").dataset.speech = String(this.#hasSpeech);
    element("settings-note").hidden = session === null;
    element("open-file").disabled = session !== null;
    element("clear").disabled = session !== null || this.#transcript.isEmpty;
    element("level").hidden = isFile;
    element("file-progress").hidden = !isFile;
    setText(element("file-name"), session?.fileName ?? "");
    this.#drawMainButton(session, isFile);
    this.#drawBreak(state === "reconnecting");
    document.title = session === null ? "foresound" : `● ${stateText} – foresound`;
  }

  #drawMainButton(session, isFile) {
    const isRecording = session !== null && !isFile && !session.isStopping;
    const [icon, text] =
      session === null ? ["mic", "Start microphone"] : isRecording ? ["stop", "Stop"] : ["close", "Cancel"];
    element("main-icon").setAttribute("href", `#icon-${icon}`);
    setText(element("main-text"), text);
    element("main").classList.toggle("recording", isRecording);
    element("main").classList.toggle("cancelling", session !== null && !isRecording);
  }

  #drawBreak(isBroken) {
    const isShown = this.#notice.code === "reconnecting";
    if (isBroken && !isShown) this.#notice.show(new Problem("reconnecting"));
    if (!isBroken && isShown) this.#notice.hide();
  }

  #drawMeters() {
    const { latency = null, sentS = 0, acknowledgedS = 0, elapsedS = 0 } = this.#session ?? this.#last ?? {};
    for (const kind of ["shown", "committed"]) {
      const { last = null, median = null } = latency?.[kind] ?? {};
      setText(element(`${kind}-last`), duration(last));
      setText(element(`${kind}-median`), duration(median));
    }
    setText(element("sent"), `${sentS.toFixed(1)} s`);
    setText(element("acknowledged"), `${acknowledgedS.toFixed(1)} s`);
    setText(element("elapsed"), clockTime(elapsedS));
    const progress = this.#session?.progress ?? 0;
    element("progress").value = progress;
    setText(element("file-percent"), `${Math.round(100 * progress)} %`);
  }

  #acceptDrops() {
    const drop = element("drop");
    let depth = 0; // enter and leave come for every element that the pointer crosses
    const show = (step) => {
      depth = Math.max(0, depth + step);
      drop.hidden = depth === 0 || this.#session !== null;
    };
    const change = { dragenter: 1, dragleave: -1 };
    for (const type of Object.keys(change)) {
      addEventListener(type, (event) => {
        if (event.dataTransfer?.types.includes("Files")) show(change[type]);
      });
    }
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      show(-depth);
      const [file] = event.dataTransfer?.files ?? [];
      if (file) this.#startFile(file);
    });
  }
}

function confirmed(dialog) {
  dialog.returnValue = "keep";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "discard"), { once: true });
  });
}

new App();
