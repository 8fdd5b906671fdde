"use strict";
// The page of a rater. Two sources of items: the server of a study, and a
// static bundle, which keeps answers in the browser and ends with a code.

const $ = (id) => document.getElementById(id);
const SECTIONS = ["loading", "consent", "headphones", "pair", "done", "failed"];
const CHOICES = [
  ["left", "A"], ["equal", "Equal"], ["right", "B"],
  ["cannot_judge", "Cannot judge"],
];
const PLAYED = 0.95; // part of a clip that has to be played

const parameters = new URLSearchParams(location.hash.slice(1));

const storage = {
  get(name) {
    try { return localStorage.getItem(name); } catch { return null; }
  },
  set(name, value) {
    try { localStorage.setItem(name, value); } catch { /* private mode */ }
  },
};

class Refused extends Error {}

class Server {
  async request(path, body) {
    const options = { headers: {}, cache: "no-store" };
    if (this.token) options.headers.Authorization = `Bearer ${this.token}`;
    if (body !== undefined) {
      options.method = "POST";
      options.headers["Content-Type"] = "application/json";
      options.body = JSON.stringify(body);
    }
    const response = await fetch(path, options);
    const value = await response.json();
    if (!response.ok) {
      const error = new Refused(value.error || "The server refused this.");
      error.status = response.status;
      throw error;
    }
    return value;
  }

  async texts() {
    const texts = await this.request("api/study");
    this.name = `study-${texts.id}`;
    return texts;
  }

  async session() {
    const given = parameters.get("code");
    if (given) storage.set(`${this.name}-code`, given);
    this.token = parameters.get("rater") || storage.get(this.name) || "";
    this.resumed = Boolean(given && this.token);
    if (this.token) {
      try {
        const session = await this.request("api/session");
        this.remember();
        return session;
      } catch (error) {
        if (error.status !== 401 || !given) throw error;
        this.token = "";
        this.resumed = false;
      }
    }
    this.token = (await this.request("api/join", { code: given || "" })).token;
    this.remember();
    return this.request("api/session");
  }

  // The address resumes the session, also in another browser.
  remember() {
    storage.set(this.name, this.token);
    history.replaceState(null, "", `#rater=${this.token}`);
  }

  get code() {
    return parameters.get("code") || storage.get(`${this.name}-code`) || "";
  }

  // Joins as a new rater on this device.
  another() {
    storage.set(this.name, "");
    history.replaceState(null, "", `#code=${this.code}`);
    location.reload();
  }

  start(headphones) { return this.request("api/start", { headphones }); }

  answer(answer) { return this.request("api/answer", answer); }
}

class Bundle {
  async texts() {
    const response = await fetch("sessions.json", { cache: "no-store" });
    if (!response.ok) throw new Refused("The list of sessions is missing.");
    const content = await response.json();
    this.sessions = content.sessions;
    this.id = content.texts.id;
    return content.texts;
  }

  async session() {
    const key = `bundle-${this.id}`;
    let number = parseInt(parameters.get("session") || storage.get(key), 10);
    if (!(number >= 0 && number < this.sessions.length)) {
      number = Math.floor(Math.random() * this.sessions.length);
    }
    storage.set(key, number);
    this.number = number;
    this.name = `bundle-${this.id}-${number}`;
    this.state = JSON.parse(storage.get(this.name) || "null") || {
      run: [...crypto.getRandomValues(new Uint8Array(8))]
        .map((byte) => byte.toString(16).padStart(2, "0")).join(""),
      headphones: null, consented: false, answers: [],
    };
    return this.current();
  }

  current() {
    const items = this.sessions[this.number];
    const done = this.state.answers.length;
    return {
      consented: this.state.consented, answered: done, total: items.length,
      items: items.slice(done, done + 2).map((item, index) => (
        { item: String(done + index), prompt: item[2], media: item.slice(0, 2) }
      )),
    };
  }

  save() { storage.set(this.name, JSON.stringify(this.state)); }

  async start(headphones) {
    Object.assign(this.state, { headphones, consented: true });
    this.save();
    return this.current();
  }

  async answer({ item, choices, seconds, plays }) {
    if (Number(item) === this.state.answers.length) {
      const letters = questions.map((question) => choices[question.id][0]);
      this.state.answers.push([letters.join(""), Math.round(seconds), ...plays]);
      this.save();
    }
    return this.current();
  }

  code() {
    const { run, headphones, answers } = this.state;
    const text = JSON.stringify([this.id, this.number, run, headphones, answers]);
    return `${btoa(text).replaceAll("+", "-").replaceAll("/", "_")}.${sum(text)}`;
  }
}

// FNV-1a: detects a code that was not copied completely.
function sum(text) {
  let hash = 0x811c9dc5;
  for (const letter of text) {
    hash = Math.imul(hash ^ letter.charCodeAt(0), 0x01000193) >>> 0;
  }
  return hash.toString(16).padStart(8, "0");
}

const isBundle = document.documentElement.dataset.mode === "bundle";
const source = isBundle ? new Bundle() : new Server();
let texts;
let questions = [];
let session;
let shown; // the item that is shown
let since = 0;
let retry = begin;
let preloaded = [];

function say(text) { $("status").textContent = text; }

function show(name) {
  for (const section of SECTIONS) $(section).hidden = section !== name;
  // Also where a link to join found the session of who used this device before.
  const isOffered = name === "done"
    || (source.resumed && ["consent", "pair"].includes(name));
  $("another-rater").hidden = isBundle || !source.code || !isOffered;
  say("");
  const heading = $(name).querySelector("h1");
  if (heading) heading.focus();
  window.scrollTo(0, 0);
}

function fail(error, again) {
  retry = again;
  $("reason").textContent = error instanceof Refused
    ? error.message
    : "The server cannot be reached. Your answers so far are stored.";
  show("failed");
}

async function begin() {
  show("loading");
  try {
    texts = await source.texts();
    questions = texts.questions;
    session = await source.session();
  } catch (error) {
    fail(error, begin);
    return;
  }
  document.title = $("title").textContent = texts.title;
  $("instructions").textContent = texts.instructions;
  $("consent-text").textContent = texts.consent;
  buildQuestions();
  proceed();
}

function proceed() {
  if (!session.consented) {
    show("consent");
  } else if (session.items.length) {
    showPair();
  } else {
    finish();
  }
}

function finish() {
  for (const player of players) player.unload();
  show("done");
  if (isBundle) {
    $("done-text").textContent = "You have answered all pairs.";
    $("result").hidden = false;
    $("code").value = source.code();
  }
}

// Consent and sound check.

async function start(headphones) {
  try {
    session = await source.start(headphones);
    proceed();
  } catch (error) {
    fail(error, () => start(headphones));
  }
}

const check = { trial: 0, correct: 0, quiet: 0, inverted: 0, context: null };

function nextTrial() {
  if (check.trial === texts.headphone_trials) {
    start(check.correct);
    return;
  }
  check.trial += 1;
  check.quiet = Math.floor(Math.random() * 3);
  const others = [0, 1, 2].filter((tone) => tone !== check.quiet);
  check.inverted = others[Math.floor(Math.random() * 2)];
  $("trial").textContent = `Trial ${check.trial} of ${texts.headphone_trials}`;
  for (const button of document.querySelectorAll(".tone")) button.disabled = true;
  $("tones").disabled = false;
  $("tones").focus();
}

// One tone is 6 dB quieter, another one has its channels in antiphase:
// loudspeakers cancel it, so that without headphones it sounds quietest.
function playTones() {
  check.context = check.context || new AudioContext();
  const context = check.context;
  context.resume();
  const rate = context.sampleRate;
  for (let tone = 0; tone < 3; tone += 1) {
    const buffer = context.createBuffer(2, rate, rate);
    for (let channel = 0; channel < 2; channel += 1) {
      const data = buffer.getChannelData(channel);
      const sign = tone === check.inverted && channel === 1 ? -1 : 1;
      const gain = 0.25 * sign * (tone === check.quiet ? 0.5 : 1);
      for (let i = 0; i < rate; i += 1) {
        const ramp = Math.min(1, i / rate / 0.1, (rate - i) / rate / 0.1);
        data[i] = gain * ramp * Math.sin(2 * Math.PI * 200 * i / rate);
      }
    }
    const node = context.createBufferSource();
    node.buffer = buffer;
    node.connect(context.destination);
    node.start(context.currentTime + 0.1 + tone * 1.4);
  }
  for (const button of document.querySelectorAll(".tone")) button.disabled = false;
}

// Players: one plays at a time, and no part can be skipped.

class Player {
  constructor(letter) {
    this.letter = letter.toUpperCase();
    this.video = $(`video-${letter}`);
    this.button = $(`play-${letter}`);
    this.figure = $(`figure-${letter}`);
    this.state = $(`state-${letter}`);
    this.button.addEventListener("click", () => this.toggle());
    this.button.addEventListener("focus", () => select(this));
    this.video.addEventListener("click", () => this.toggle());
    for (const name of ["play", "pause", "timeupdate"]) {
      this.video.addEventListener(name, () => this.draw());
    }
    this.video.addEventListener("ended", () => this.end());
    this.video.addEventListener("error", () => {
      if (this.video.getAttribute("src")) {
        say(`Clip ${this.letter} cannot be loaded. Press Play to try again.`);
        this.broken = true;
      }
    });
  }

  load(url) {
    Object.assign(this, { plays: 0, done: false, broken: false });
    this.video.src = url;
    this.draw();
  }

  unload() {
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
  }

  toggle() {
    select(this);
    if (!this.video.paused) {
      this.video.pause();
      return;
    }
    for (const other of players) if (other !== this) other.video.pause();
    if (this.broken) {
      this.broken = false;
      this.video.load();
      say("");
    }
    this.video.play().catch(() => this.draw());
  }

  end() {
    let seconds = 0;
    const { played, duration } = this.video;
    for (let i = 0; i < played.length; i += 1) {
      seconds += played.end(i) - played.start(i);
    }
    this.plays += 1;
    if (seconds >= PLAYED * duration) this.done = true;
    this.draw();
    if (players.every((player) => player.done)) {
      unlock();
    } else {
      const other = players.find((player) => !player.done);
      const isFocused = document.activeElement === this.button;
      select(other);
      // Space presses the button that has the focus.
      if (isFocused) other.button.focus({ preventScroll: true });
    }
  }

  draw() {
    const { paused, currentTime, duration, ended } = this.video;
    this.button.textContent = paused
      ? `\u25b6 Play ${this.letter}`
      : `\u275a\u275a Pause ${this.letter}`;
    const at = Number.isFinite(duration) && !ended && currentTime > 0
      ? `${currentTime.toFixed(1)} of ${duration.toFixed(1)} s` : "";
    this.state.textContent = [this.done ? "\u2713 played" : "", at]
      .filter(Boolean).join(", ");
  }
}

const players = [new Player("a"), new Player("b")];
let current = players[0];

function select(player) {
  current = player;
  for (const each of players) {
    each.figure.classList.toggle("current", each === player);
  }
}

// Questions.

function buildQuestions() {
  $("questions").replaceChildren(...questions.map((question, number) => {
    const fieldset = document.createElement("fieldset");
    fieldset.disabled = true;
    fieldset.setAttribute("aria-label", question.text);
    const legend = document.createElement("legend");
    const text = document.createElement("span");
    text.textContent = question.text;
    legend.append(text);
    const choices = document.createElement("div");
    choices.className = "choices";
    CHOICES.forEach(([value, label], index) => {
      const choice = document.createElement("label");
      choice.className = "choice";
      const input = document.createElement("input");
      input.type = "radio";
      input.name = `question-${number}`;
      input.value = value;
      const key = document.createElement("kbd");
      key.textContent = String(index + 1);
      key.setAttribute("aria-hidden", "true");
      choice.append(input, key, label);
      choices.append(choice);
    });
    fieldset.append(legend, choices);
    return fieldset;
  }));
}

const fieldsets = () => [...$("questions").querySelectorAll("fieldset")];
const chosen = (fieldset) => fieldset.querySelector("input:checked");

function showPair() {
  [shown] = session.items;
  show("pair");
  $("progress").textContent = `Pair ${session.answered + 1} of ${session.total}`;
  $("bar").max = session.total;
  $("bar").value = session.answered;
  $("prompt").textContent = shown.prompt;
  $("prompt").hidden = !shown.prompt;
  players.forEach((player, side) => player.load(shown.media[side]));
  $("questions").reset();
  for (const fieldset of fieldsets()) fieldset.disabled = true;
  $("lock").textContent = "Play both clips to the end to answer.";
  $("next").disabled = true;
  since = performance.now();
  select(players[0]);
  players[0].button.focus({ preventScroll: true });
  // The next pair is loaded while this one is judged.
  preloaded = (session.items[1]?.media || []).map((url) => {
    const video = document.createElement("video");
    video.preload = "auto";
    video.muted = true;
    video.src = url;
    return video;
  });
}

function unlock() {
  if (!fieldsets().some((fieldset) => fieldset.disabled)) return;
  for (const fieldset of fieldsets()) fieldset.disabled = false;
  $("lock").textContent = "You can answer now, and play the clips again.";
}

function changed() {
  $("next").disabled = !fieldsets().every(chosen);
}

async function next() {
  const choices = {};
  fieldsets().forEach((fieldset, number) => {
    choices[questions[number].id] = chosen(fieldset).value;
  });
  for (const player of players) player.video.pause();
  const answer = {
    item: shown.item, choices,
    seconds: Math.min((performance.now() - since) / 1000, 86400),
    plays: players.map((player) => player.plays),
  };
  $("next").disabled = true;
  say("Storing\u2026");
  try {
    session = await source.answer(answer);
    proceed();
  } catch (error) {
    if (error.status === 409) { // answered in another window
      begin();
      return;
    }
    $("next").disabled = false;
    say(error instanceof Refused ? error.message
      : "The server cannot be reached. Your answers are kept: press Next again.");
  }
}

// Keys.

function answerByKey(index) {
  const every = fieldsets();
  if (every.some((fieldset) => fieldset.disabled)) return;
  const focused = every.find((f) => f.contains(document.activeElement));
  const fieldset = focused || every.find((f) => !chosen(f)) || every.at(-1);
  fieldset.querySelectorAll("input")[index].checked = true;
  changed();
  const open = every.find((f) => !chosen(f));
  (open ? open.querySelector("input") : $("next")).focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const tag = event.target.tagName;
  if ($("headphones").hidden === false && "123".includes(event.key)) {
    const button = document.querySelectorAll(".tone")[Number(event.key) - 1];
    if (!button.disabled) button.click();
    return;
  }
  if ($("pair").hidden) return;
  if (event.key === " " && tag !== "BUTTON" && tag !== "INPUT") {
    event.preventDefault();
    current.toggle();
    return;
  }
  if (event.key === "Enter" && tag === "INPUT" && event.target.type === "radio") {
    event.preventDefault();
    if (!$("next").disabled) next();
    return;
  }
  if (!$("shortcuts").checked) return;
  const key = event.key.toLowerCase();
  if (key === "a" || key === "b") players["ab".indexOf(key)].toggle();
  if (event.key.length === 1 && "1234".includes(event.key)) {
    answerByKey(Number(event.key) - 1);
  }
});

$("agree").addEventListener("change", () => {
  $("begin").disabled = !$("agree").checked;
});
$("begin").addEventListener("click", () => {
  if (!texts.headphone_trials) {
    start(null);
    return;
  }
  Object.assign(check, { trial: 0, correct: 0 });
  show("headphones");
  nextTrial();
});
$("tones").addEventListener("click", playTones);
for (const button of document.querySelectorAll(".tone")) {
  button.addEventListener("click", () => {
    if (Number(button.dataset.tone) === check.quiet) check.correct += 1;
    nextTrial();
  });
}
$("questions").addEventListener("change", changed);
$("questions").addEventListener("submit", (event) => event.preventDefault());
$("next").addEventListener("click", next);
$("retry").addEventListener("click", () => retry());
$("shortcuts").addEventListener("change", () => {
  storage.set("shortcuts", $("shortcuts").checked ? "on" : "off");
});
$("shortcuts").checked = storage.get("shortcuts") !== "off";
$("copy").addEventListener("click", () => {
  $("code").select();
  navigator.clipboard?.writeText($("code").value)
    .then(() => say("Copied."), () => say("Press Ctrl-C to copy."));
});
$("another").addEventListener("click", () => {
  if ($("pair").hidden || window.confirm(
    "The answers so far are stored. Begin as another person?",
  )) source.another();
});
// Another link of this study was opened in the same window.
window.addEventListener("hashchange", () => location.reload());

begin();
