"use strict";
// The page of the studio, run by Gradio with `element` (the markup of
// studio.html) and `server` (functions of page.py). Texts of prompts, notes and
// files are put in as text, never as markup.

const $ = (id) => element.querySelector(`#${id}`);
const MEDIA = {
  input_reference: ["First frame", "image/png,image/jpeg,image/webp"],
  last_image: ["Last frame", "image/png,image/jpeg,image/webp"],
  video: ["Video", "video/*"],
  audio: ["Sound", "audio/*,video/mp4"],
  extend: ["Clip to extend", "video/*"],
  voice: ["Reference voice", "audio/*,video/mp4"],
};
const TRIMMED = new Set(["video", "audio", "extend", "voice"]);
const KINDS = { video: "video", audio: "audio", extend: "video", voice: "audio" };
const OPEN = new Set(["queued", "running"]);
const state = {
  about: null, text: "", kinds: [], read: 0, files: {}, trims: {}, jobs: [], job: "",
  clip: null, other: null, comparing: false, source: "", draws: 0, preview: 0, clips: [],
  total: 0, timer: 0, polls: 0, mine: new Set(), failed: new Map(), failures: 0,
};

function make(name, properties = {}, ...children) {
  const { dataset, style, ...rest } = properties;
  const made = Object.assign(document.createElement(name), rest);
  if (dataset) Object.assign(made.dataset, dataset);
  if (style) Object.assign(made.style, style);
  made.append(...children);
  return made;
}

function say(message) { $("status").textContent = message; }

function announce(message) { $("news").textContent = message; }

async function call(name, argument) {
  const found = await server[name](argument);
  if (found && found.error) throw new Error(found.error);
  return found;
}

// --- Prompt ---------------------------------------------------------------

const prompt = $("prompt");

// Marks follow the server's reading of the prompt. Until it answers, typed
// text takes the mark of its neighbour.
function shift(text) {
  const old = state.text;
  let head = 0;
  while (head < Math.min(old.length, text.length) && old[head] === text[head]) head += 1;
  let tail = 0;
  const most = Math.min(old.length, text.length) - head;
  while (tail < most && old[old.length - 1 - tail] === text[text.length - 1 - tail]) tail += 1;
  const near = state.kinds[head - 1] || state.kinds[head] || "text";
  const added = new Array(text.length - head - tail).fill(near);
  state.kinds = [
    ...state.kinds.slice(0, head), ...added, ...state.kinds.slice(old.length - tail),
  ];
  state.text = text;
}

function mark() {
  const parts = [];
  for (let start = 0; start < state.text.length;) {
    let end = start + 1;
    while (end < state.text.length && state.kinds[end] === state.kinds[start]) end += 1;
    parts.push(make("span", {
      className: state.kinds[start], textContent: state.text.slice(start, end),
    }));
    start = end;
  }
  $("marks").replaceChildren(...parts);
}

async function read() {
  const number = state.read += 1;
  const text = prompt.value;
  try {
    const found = await call("read_prompt", text);
    if (number !== state.read) return;
    state.text = text;
    state.kinds = found.segments.flatMap(([kind, part]) => new Array(part.length).fill(kind));
    mark();
    $("notes").replaceChildren(
      ...found.notes.map((note) => make("li", { textContent: note })));
  } catch (error) { say(error.message); }
}

let reading = 0;
function typed() {
  shift(prompt.value);
  mark();
  clearTimeout(reading);
  reading = setTimeout(read, 120);
}

function setPrompt(text) {
  prompt.value = text;
  typed();
}

// Replace the selection; the cursor is put where `at` says.
function insert(before, after = "", space = true) {
  const { selectionStart: start, selectionEnd: end, value } = prompt;
  const gap = space && start > 0 && !/\s$/.test(value.slice(0, start)) ? " " : "";
  const chosen = value.slice(start, end);
  prompt.value = value.slice(0, start) + gap + before + chosen + after + value.slice(end);
  const place = start + gap.length + before.length + chosen.length;
  prompt.setSelectionRange(place, place);
  prompt.focus();
  typed();
}

function showWords(groups) {
  $("words").hidden = !groups.length;
  $("word-groups").replaceChildren(...groups.map(({ name, words }) => make(
    "div", { className: "group" },
    make("span", { textContent: name }),
    make("div", {}, ...words.map(({ text, colour }) => make(
      "button", { type: "button", onclick: () => insert(text) },
      ...(colour ? [make("i", { className: "dot", style: { background: colour } })] : []),
      text,
    ))),
  )));
}

const still = matchMedia("(prefers-reduced-motion: reduce)");

// A button with a clip that plays while it is pointed at or focused.
function thumbnail({ source, caption, about, sound }, onclick) {
  const video = make("video", {
    muted: true, loop: true, playsInline: true, preload: "none", tabIndex: -1,
  });
  video.setAttribute("aria-hidden", "true");
  video.dataset.source = source;
  if (sound) video.classList.add("sound");
  const button = make(
    "button", { type: "button", onclick }, ...(source ? [video] : []),
    make("span", { className: "caption", textContent: caption }),
    ...(about ? [make("span", { className: "about", textContent: about })] : []),
  );
  if (source) {
    const play = () => { if (!still.matches) video.play().catch(() => {}); };
    const pause = () => video.pause();
    button.addEventListener("pointerenter", play);
    button.addEventListener("focus", play);
    button.addEventListener("pointerleave", pause);
    button.addEventListener("blur", pause);
    seen.observe(video);
  }
  return make("li", {}, button);
}

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    target.preload = "metadata";
    target.src = `${target.dataset.source}#t=0.6`;
  }
}, { rootMargin: "600px" });

function showExamples(examples) {
  $("examples-label").hidden = !examples.length;
  $("examples").replaceChildren(...examples.map((each) => thumbnail(
    { source: each.source, caption: each.prompt },
    () => { setPrompt(each.prompt); prompt.focus(); },
  )));
}

// --- Given media ----------------------------------------------------------

const urls = new WeakMap();
function urlOf(file) {
  if (!urls.has(file)) urls.set(file, URL.createObjectURL(file));
  return urls.get(file);
}

function showFiles() {
  const offered = Object.entries(MEDIA).filter(([name]) => name !== "voice" || state.about.voices);
  $("files").replaceChildren(...offered.map(([name, [label, accept]]) => {
    const file = state.files[name];
    const box = make("div", { className: "file", dataset: { name } });
    if (file) {
      const kind = KINDS[name] || "img";
      const media = make(kind, { src: urlOf(file) });
      box.classList.toggle("timed", TRIMMED.has(name));
      if (kind === "img") media.alt = `${label}: ${file.name}`;
      else {
        media.controls = true;
        media.setAttribute("aria-label", `${label}: ${file.name}`);
      }
      box.append(make(
        "div", { className: "shown" }, media,
        ...(TRIMMED.has(name) ? [trimmer(name, label, media)] : []),
        make("div", { className: "name", textContent: file.name }),
        make("button", {
          type: "button", textContent: `Remove ${label.toLowerCase()}`,
          onclick: () => give(name, null),
        }),
      ));
      return box;
    }
    const input = make("input", {
      type: "file", accept, id: `file-${name}`,
      onchange: () => give(name, input.files[0] || null),
    });
    const text = make(
      "label", { htmlFor: input.id }, label,
      make("span", { textContent: "choose or drop a file" }),
    );
    box.append(text, input);
    input.ondragover = () => box.classList.add("over");
    input.ondragleave = input.ondrop = () => box.classList.remove("over");
    return box;
  }));
  const count = Object.keys(state.files).length;
  $("given-count").textContent = count ? `(${count})` : "";
}

// Two handles for the part of a file that is used.
function trimmer(name, label, media) {
  const handles = ["Start", "End"].map((end) => make("input", {
    type: "range", min: 0, max: 1, step: 0.05, value: end === "End" ? 1 : 0,
    disabled: true, ariaLabel: `${end} of ${label.toLowerCase()}`,
  }));
  const [start, end] = handles;
  const said = make("div", { className: "soft small span" });
  const row = make("div", { className: "trim", dataset: { name } }, ...handles);
  // The last step of the end is the end of the file, which may lie between two.
  const span = () => {
    const length = Number(end.max);
    const last = Number(end.value);
    return [Number(start.value), last > length - Number(end.step) ? length : last, length];
  };
  const show = () => {
    const [from, to, length] = span();
    row.style.setProperty("--from", from / length);
    row.style.setProperty("--to", to / length);
    said.textContent = `${from.toFixed(2)} to ${to.toFixed(2)} of ${length.toFixed(2)} s`;
  };
  const moved = (handle) => {
    const least = 0.25;
    if (handle === start) start.value = Math.min(start.value, end.value - least);
    else end.value = Math.max(end.value, Number(start.value) + least);
    const [from, to, length] = span();
    if (from <= 0 && to >= length) delete state.trims[name];
    else state.trims[name] = [from, to];
    media.currentTime = Number(handle.value);
    show();
  };
  for (const handle of handles) handle.oninput = () => moved(handle);
  media.addEventListener("loadedmetadata", () => {
    if (!Number.isFinite(media.duration)) return;
    for (const handle of handles) {
      handle.max = media.duration;
      handle.step = Math.min(0.05, media.duration / 20);
      handle.disabled = false;
    }
    [start.value, end.value] = state.trims[name] || [0, media.duration];
    show();
  });
  return make("div", {}, row, said);
}

function give(name, file) {
  if (file && file.size > state.about.max_bytes) {
    const limit = Math.floor(state.about.max_bytes / 2 ** 20);
    say(`${file.name} is larger than ${limit} MiB and was not added; the server's limit is --max_file_mib`);
    file = null;
  }
  delete state.trims[name];
  if (file) state.files[name] = file;
  else delete state.files[name];
  showFiles();
}

// --- Requests -------------------------------------------------------------

function chosenPreset() {
  const name = element.querySelector("input[name='preset']:checked").value;
  return state.about.presets.find((preset) => preset.name === name);
}

function chosenLoras() {
  return [...element.querySelectorAll("#loras li")].flatMap((row) => {
    const [box, strength] = row.querySelectorAll("input");
    return box.checked ? [`${row.dataset.name}:${Number(strength.value)}`] : [];
  });
}

// A request to the service's API, with its key if it has one.
function request(path, options = {}) {
  const { key } = state.about;
  return fetch(path, {
    ...options, headers: key ? { Authorization: `Bearer ${key}` } : {},
  });
}

async function submit(seed) {
  const form = new FormData();
  form.set("prompt", prompt.value);
  form.set("seed", String(seed));
  for (const [name, value] of Object.entries(chosenPreset().settings)) {
    form.set(name, String(value));
  }
  for (const [name, file] of Object.entries(state.files)) form.set(name, file, file.name);
  for (const [name, span] of Object.entries(state.trims)) {
    form.set(`trim[${name}]`, span.map((x) => x.toFixed(3)).join("-"));
  }
  if ($("seconds").value) form.set("seconds", $("seconds").value);
  form.set("generate", $("tower").value);
  if ($("keep").value.trim()) form.set("keep", $("keep").value.trim());
  if ($("keep-audio-until").value) form.set("keep_audio_until", $("keep-audio-until").value);
  const loras = chosenLoras();
  if (loras.length) form.set("lora", loras.join(","));
  const response = await request(state.about.videos, { method: "POST", body: form });
  const found = await response.json();
  if (!response.ok) throw new Error(found.error ? found.error.message : "The request was refused.");
  started(found.id);
}

function started(id) {
  state.mine.add(id);
  if (!state.job) {
    state.job = id;
    state.preview = 0;
  }
  poll();
}

async function generate() {
  if (!prompt.value.trim()) {
    say("Write a prompt first.");
    prompt.focus();
    return;
  }
  $("generate").disabled = true;
  try {
    say("");
    const first = Number($("seed").value);
    const count = Math.max(1, Math.min(8, Number($("count").value) || 1));
    for (let i = 0; i < count; i += 1) await submit((first + i) % 2 ** 32);
    if (matchMedia("(max-width: 820px)").matches) $("stage").scrollIntoView({ block: "start" });
  } catch (error) { say(error.message); }
  $("generate").disabled = false;
}

function randomSeed() { return crypto.getRandomValues(new Uint32Array(1))[0]; }

async function again(seeds) {
  const { name } = state.clip;
  try {
    say("");
    for (const seed of seeds) started((await call("again", { name, seed })).id);
  } catch (error) { say(error.message); }
}

async function cancel(id) {
  try {
    await call("cancel", id);
    poll();
  } catch (error) { say(error.message); }
}

// --- Progress -------------------------------------------------------------

async function poll() {
  clearTimeout(state.timer);
  const number = state.polls += 1;
  try {
    const found = await call("live", [state.job, ...state.mine].filter(Boolean));
    if (number !== state.polls) return;
    if (state.failures > 2) say("");
    state.failures = 0;
    await showJobs(found);
  } catch (error) {
    state.failures += 1;
    if (state.failures === 3) say("The server does not answer; trying again.");
  }
  if (number !== state.polls) return;
  const busy = state.jobs.some((job) => OPEN.has(job.status));
  const wait = state.failures ? 2000 : busy ? 350 : 4000;
  state.timer = setTimeout(poll, document.hidden ? 4000 : wait);
}

function timeLeft(job) {
  const left = job.seconds_left === null ? ""
    : `${Math.max(1, Math.round(job.seconds_left))} s left`;
  if (job.status !== "queued") return left;
  const place = job.position ? `place ${job.position} in the queue` : "next in the queue";
  return left ? `${place}, ${left}` : place;
}

async function showJobs({ jobs, preview }) {
  const open = jobs.filter((job) => OPEN.has(job.status));
  const gone = state.jobs.filter(
    ({ id, status }) => OPEN.has(status) && !open.some((job) => job.id === id));
  state.jobs = jobs;
  for (const job of jobs) {
    if (OPEN.has(job.status)) continue;
    state.mine.delete(job.id);
    if (job.status === "failed" && job.id !== state.job) state.failed.set(job.id, job);
  }
  if (gone.length) await search();
  const running = open.find((job) => job.status === "running");
  if (!state.job && running && !state.clip) state.job = running.id;
  const shown = jobs.find((job) => job.id === state.job);
  $("live").hidden = !shown || shown.status === "finished";
  if (shown && OPEN.has(shown.status)) showProgress(shown, preview);
  else if (shown) await ended(shown);
  else if (state.job) await ended({ status: "cancelled" });
  $("nothing").hidden = !$("live").hidden || !$("result").hidden;
  showQueue([...open.filter((job) => job.id !== state.job), ...state.failed.values()]);
}

function showQueue(others) {
  $("queue").hidden = !others.length;
  const rows = others.map((job) => make(
    "li", { className: job.status },
    make("div", { className: "what" },
      make("div", { className: "clamp", textContent: job.prompt }),
      make("div", {
        className: "soft small",
        textContent: job.status === "failed" ? job.error : `seed ${job.seed}, ${
          job.status === "running" ? `step ${job.step} of ${job.num_steps}` : timeLeft(job)}`,
      })),
    ...(OPEN.has(job.status) ? [
      make("button", {
        type: "button", textContent: "Show", dataset: { key: `show ${job.id}` },
        onclick: () => { state.job = job.id; state.preview = 0; poll(); },
      }),
      make("button", {
        type: "button", textContent: "Cancel", dataset: { key: `cancel ${job.id}` },
        onclick: () => cancel(job.id),
      })] : [
      make("button", {
        type: "button", textContent: "Dismiss", dataset: { key: `dismiss ${job.id}` },
        onclick: () => { state.failed.delete(job.id); poll(); },
      })]),
  ));
  const focused = document.activeElement && document.activeElement.dataset.key;
  $("jobs").replaceChildren(...rows);
  if (focused) {
    const next = [...$("jobs").querySelectorAll("button")].find((b) => b.dataset.key === focused);
    if (next) next.focus();
  }
}

function showProgress(job, preview) {
  $("result").hidden = true;
  $("live-prompt").textContent = job.prompt;
  const queued = job.status === "queued";
  $("live-title").textContent = queued ? "Waiting"
    : job.step ? `Step ${job.step} of ${job.num_steps}` : "Preparing";
  const bar = $("progress");
  bar.max = job.num_steps || 1;
  if (queued || job.step) bar.value = job.step;
  else bar.removeAttribute("value");
  $("left").textContent = timeLeft(job);
  if (!state.preview) $("player").hidden = true;
  if (preview > state.preview) {
    state.preview = preview;
    showPreview(job.id).catch(() => {});  // the next one comes soon
  }
}

// The clip as it is predicted now, with its sound.
async function showPreview(id) {
  const response = await request(`${state.about.videos}/${id}/content?variant=preview`);
  if (!response.ok || state.job !== id) return;
  const step = response.headers.get("X-Step");
  const isSound = response.headers.get("Content-Type").startsWith("audio/");
  const url = URL.createObjectURL(await response.blob());
  if (state.job !== id) {
    URL.revokeObjectURL(url);
    return;
  }
  const at = $("player").hidden ? 0 : first.currentTime;
  $("player").hidden = $("preview-step").hidden = false;
  $("preview-step").textContent = `Preview after step ${step} (muted).`;
  $("name-a").textContent = "";
  if ($("player").dataset.step === undefined) first.muted = true;
  $("player").dataset.step = step;
  setKind(isSound);
  showEvents({});
  setOther(null);
  setSource(url);
  first.currentTime = at;
  if (!still.matches) first.play().catch(() => {});
}

async function ended(job) {
  state.job = "";
  state.preview = 0;
  if (job.status === "finished") {
    try {
      show((await call("list_clips", { name: job.clip })).clips[0]);
      say("");
      announce("The clip is ready.");
    } catch (error) { say(error.message); }
    return;
  }
  $("live").hidden = $("player").hidden = true;
  if (state.clip) show(state.clip);
  say(job.status === "cancelled" ? "Cancelled." : job.error || "The clip could not be made.");
}

// --- Clip -----------------------------------------------------------------

const first = $("video-a");
const second = $("video-b");

function colour(name) { return getComputedStyle(element.firstElementChild).getPropertyValue(name); }

function fit(canvas) {
  const scale = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { context, width, height };
}

function drawWave(canvas, peaks, name = "--accent") {
  const { context, width, height } = fit(canvas);
  context.fillStyle = colour("--line");
  context.fillRect(0, height / 2 - 0.5, width, 1);
  context.fillStyle = colour(name);
  const loudest = Math.max(0.05, ...peaks);
  const step = width / peaks.length;
  peaks.forEach((peak, i) => {
    const size = Math.max(1, (peak / loudest) * (height - 6));
    context.fillRect(i * step, (height - size) / 2, Math.max(1, step - 0.5), size);
  });
}

async function peaksOf(source, count = 320) {
  const bytes = await (await fetch(source)).arrayBuffer();
  const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes);
  const samples = sound.getChannelData(0);
  const size = samples.length / count;
  return Array.from({ length: count }, (_, i) => {
    let most = 0;
    for (let k = Math.floor(i * size); k < (i + 1) * size; k += 1) {
      most = Math.max(most, Math.abs(samples[k] || 0));
    }
    return most;
  });
}

// Frames at equal distances, on the time axis of the waveform.
async function drawStrip(source, isCurrent) {
  const video = make("video", { muted: true, preload: "auto", src: source });
  const until = (name) => new Promise((done, failed) => {
    video.addEventListener(name, done, { once: true });
    video.addEventListener("error", () => failed(new Error("no picture")), { once: true });
  });
  await until("loadeddata");
  const { context, width, height } = fit($("strip"));
  const size = (height * video.videoWidth) / video.videoHeight;
  const count = Math.max(1, Math.round(width / size));
  for (let i = 0; i < count && isCurrent(); i += 1) {
    const sought = until("seeked");
    video.currentTime = Math.min(video.duration - 0.05, ((i + 0.5) / count) * video.duration);
    await sought;
    if (isCurrent()) context.drawImage(video, (i * width) / count, 0, width / count, height);
  }
  video.removeAttribute("src");
  video.load();
}

async function drawTimeline() {
  const { source, other } = state;
  const number = state.draws += 1;
  const isCurrent = () => number === state.draws;
  if (!source) return;
  drawWave($("wave-a"), []);  // until it is read, or if there is no sound
  const isSound = $("player").classList.contains("sound");
  const tasks = [isSound ? null : drawStrip(source, isCurrent), (async () => {
    const peaks = await peaksOf(source);
    if (isCurrent()) drawWave($("wave-a"), peaks);
  })()];
  if (other) {
    tasks.push((async () => {
      const peaks = await peaksOf(other.source);
      if (isCurrent()) drawWave($("wave-b"), peaks, "--sound");
    })());
  }
  await Promise.allSettled(tasks);
}

function setSource(source) {
  if (state.source === source) return;
  if (state.source.startsWith("blob:")) URL.revokeObjectURL(state.source);
  state.source = source;
  if (first.getAttribute("src") !== source) first.src = source;
  drawTimeline();
}

// Of sound alone there are no frames.
function setKind(isSound) {
  $("player").classList.toggle("sound", isSound);
}

// Marks on the time axis, and how many there are in words.
function showEvents(found) {
  const names = { video: "picture", audio: "sound" };
  const said = [];
  for (const [name, what] of Object.entries(names)) {
    const times = found[name] || [];
    $(`marks-${name}`).replaceChildren(...times.map((at) => make("i", {
      title: `${what}, ${at.toFixed(2)} s`, dataset: { at },
    })));
    if (times.length) said.push(`${times.length} in the ${what}`);
  }
  $("events").textContent = said.length ? `Events: ${said.join(", ")}.` : "";
  $("events").hidden = !said.length;
  placeEvents();
}

function placeEvents() {
  for (const each of $("timeline").querySelectorAll(".events i")) {
    each.style.left = `${(100 * each.dataset.at) / (first.duration || Infinity)}%`;
  }
}

async function findEvents(clip) {
  try {
    const found = await call("find_events", clip.name);
    if (state.clip === clip && !$("result").hidden) showEvents(found);
  } catch {  // of a long clip
    if (state.clip === clip) showEvents({});
  }
}

// The clip with what its sound attends to; drawn by the server when it is asked for.
async function attention() {
  const { clip } = state;
  const button = $("attention");
  if (button.getAttribute("aria-pressed") === "true") {
    show(clip);
    return;
  }
  button.disabled = true;
  button.textContent = "Drawing attention";
  try {
    const { source } = await call("draw_attention", clip.name);
    if (state.clip === clip && !$("result").hidden) {
      const at = first.currentTime;
      const paused = first.paused;
      first.src = source;
      first.currentTime = at;
      if (!paused) first.play().catch(() => {});
      setAttention(true);
    }
  } catch (error) { say(error.message); }
  button.disabled = false;
  if (button.getAttribute("aria-pressed") !== "true") setAttention(false);
}

function setAttention(on) {
  $("attention").setAttribute("aria-pressed", String(on));
  $("attention").textContent = on ? "Hide attention" : "Show attention";
}

function show(clip) {
  const isNew = state.clip !== clip;
  state.clip = clip;
  setKind(clip.kind === "audio");
  setAttention(false);
  $("attention").hidden = !clip.attention;
  delete $("player").dataset.step;
  $("live").hidden = $("nothing").hidden = $("preview-step").hidden = true;
  $("player").hidden = $("result").hidden = false;
  $("get-mp4").href = clip.source;
  $("get-mp4").textContent = clip.kind === "audio" ? "wav" : "mp4";
  $("get-json").href = clip.recipe;
  $("get-latents").href = clip.latents;
  $("get-latents").hidden = !clip.latents;
  $("again").disabled = $("vary").disabled = !clip.repeatable;
  $("again").title = $("vary").title = clip.repeatable ? "" : "This clip was made by sample.py with files or LoRAs"
    + " that the studio does not have; add them above and generate it again.";
  $("settings").replaceChildren(...clip.settings.map(([name, value]) => make(
    "div", { className: value.length > 40 ? "wide" : "" },
    make("dt", { textContent: name }), make("dd", { textContent: value }),
  )));
  first.muted = false;
  setOther(state.other && state.other.name !== clip.name ? state.other : null);
  $("name-a").textContent = state.other ? `A: ${clip.prompt}` : clip.prompt;
  if (first.getAttribute("src") !== clip.source) first.src = clip.source;
  setSource(clip.source);
  if (isNew || !$("marks-video").children.length) findEvents(clip);
  markCurrent();
}

function setOther(other) {
  const changed = state.other !== other;
  state.other = other;
  $("figure-b").hidden = $("wave-b").hidden = $("sound-of").hidden = !other;
  $("compare").textContent = other ? "Stop comparing"
    : state.comparing ? "Choose a clip in the gallery" : "Compare";
  $("compare").setAttribute("aria-pressed", String(Boolean(other) || state.comparing));
  if (other) {
    if (second.getAttribute("src") !== other.source) second.src = other.source;
    $("name-b").textContent = `B: ${other.prompt}`;
    second.currentTime = first.currentTime;
    if (!first.paused) second.play().catch(() => {});
  } else if (changed) {
    second.pause();
    second.removeAttribute("src");
    second.load();
    second.muted = true;
    element.querySelector("input[name='sound-of'][value='a']").checked = true;
    first.muted = false;
  }
  if (changed) drawTimeline();
}

function compare() {
  const stop = state.other || state.comparing;
  state.comparing = !stop;
  setOther(null);
  show(state.clip);
  if (!stop) $("search").closest("section").scrollIntoView({ block: "nearest" });
}

function choose(clip) {
  if (state.comparing && state.clip && clip.name !== state.clip.name) {
    state.comparing = false;
    setOther(clip);
    show(state.clip);
  } else {
    state.job = "";
    show(clip);
  }
  $("stage").scrollIntoView({ block: "nearest" });
}

function follow() {
  const length = first.duration || 1;
  const at = first.currentTime;
  $("playhead").style.left = `${(100 * at) / length}%`;
  const line = $("timeline");
  line.setAttribute("aria-valuemax", length.toFixed(2));
  line.setAttribute("aria-valuenow", at.toFixed(2));
  line.setAttribute("aria-valuetext", `${at.toFixed(2)} of ${length.toFixed(2)} seconds`);
  if (state.other && Math.abs(second.currentTime - at) > 0.12) second.currentTime = at;
}

function showAxis() {
  const marks = [];
  for (let t = 0; !t || t < first.duration - 0.3; t += first.duration > 8 ? 2 : 1) {
    marks.push(make("span", {
      textContent: `${t} s`, style: { left: `${(100 * t) / first.duration}%` },
    }));
  }
  $("axis").replaceChildren(...marks);
  placeEvents();
  follow();
}

function seek(at) {
  first.currentTime = Math.max(0, Math.min(first.duration || 0, at));
  follow();
}

function pointed(event) {
  const box = $("timeline").getBoundingClientRect();
  seek(((event.clientX - box.left) / box.width) * first.duration);
}

// --- Gallery --------------------------------------------------------------

async function search(more = false) {
  const query = $("search").value;
  try {
    const found = await call("list_clips", { query, start: more ? state.clips.length : 0 });
    if (query !== $("search").value) return;
    state.clips = more ? [...state.clips, ...found.clips] : found.clips;
    state.total = found.total;
    showGallery();
  } catch (error) { say(error.message); }
}

function showGallery() {
  const { clips, total } = state;
  $("gallery-count").textContent = total ? `(${total})` : "";
  $("gallery-empty").hidden = total > 0;
  $("more").hidden = clips.length >= total;
  const kept = new Map([...$("clips").children].map((row) => [row.dataset.name, row]));
  $("clips").replaceChildren(...clips.map((clip) => {
    const old = kept.get(clip.name);
    if (old && old.dataset.version === clip.version) return old;
    const row = thumbnail(
      {
        source: clip.source, caption: clip.prompt, about: clip.about,
        sound: clip.kind === "audio",
      }, () => choose(clip));
    Object.assign(row.dataset, { name: clip.name, version: clip.version });
    return row;
  }));
  markCurrent();
}

function markCurrent() {
  for (const row of $("clips").children) {
    const current = [state.clip, state.other].some((c) => c && c.name === row.dataset.name);
    row.firstElementChild.setAttribute("aria-current", String(current));
  }
}

// --- Start ----------------------------------------------------------------

function showTheme() {
  const dark = document.body.classList.contains("dark");
  $("theme").setAttribute("aria-pressed", String(dark));
}

function connect() {
  prompt.addEventListener("input", typed);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      generate();
    }
  });
  $("compose").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
  $("add-speech").onclick = () => insert(...state.about.tags.speech);
  $("add-sound").onclick = () => {
    const end = prompt.value.length;
    prompt.setSelectionRange(end, end);
    insert(...state.about.tags.sound);
  };
  $("clear").onclick = () => { setPrompt(""); prompt.focus(); };
  $("random-seed").onclick = () => { $("seed").value = randomSeed(); };
  $("cancel").onclick = () => cancel(state.job);
  $("again").onclick = () => again([(state.clip.seed + 1) % 2 ** 32]);
  $("vary").onclick = () => again([randomSeed(), randomSeed(), randomSeed()]);
  $("use").onclick = () => {
    setPrompt(state.clip.prompt);
    $("seed").value = state.clip.seed;
    prompt.focus();
  };
  $("compare").onclick = compare;
  $("attention").onclick = attention;
  $("more").onclick = () => search(true);
  let searching = 0;
  $("search").oninput = () => {
    clearTimeout(searching);
    searching = setTimeout(search, 200);
  };
  $("theme").onclick = () => document.body.classList.toggle("dark");
  new MutationObserver(() => {
    showTheme();
    drawTimeline();
  }).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  for (const name of ["timeupdate", "seeked", "play", "pause"]) first.addEventListener(name, follow);
  first.addEventListener("loadedmetadata", showAxis);
  first.addEventListener("play", () => { if (state.other) second.play().catch(() => {}); });
  first.addEventListener("pause", () => second.pause());
  const frame = () => {
    if (!first.paused) follow();
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
  const line = $("timeline");
  line.addEventListener("pointerdown", (event) => {
    line.setPointerCapture(event.pointerId);
    pointed(event);
  });
  line.addEventListener("pointermove", (event) => { if (event.buttons) pointed(event); });
  line.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1 / 24, ArrowRight: 1 / 24, PageDown: -1, PageUp: 1 };
    if (event.key in steps) seek(first.currentTime + steps[event.key]);
    else if (event.key === "Home") seek(0);
    else if (event.key === "End") seek(first.duration);
    else if (event.key === " ") { if (first.paused) first.play(); else first.pause(); }
    else return;
    event.preventDefault();
  });
  $("sound-of").onchange = (event) => {
    first.muted = event.target.value === "b";
    second.muted = event.target.value !== "b";
  };
  let drawing = 0;
  let width = 0;
  new ResizeObserver(() => {
    if (line.clientWidth === width) return;
    width = line.clientWidth;
    clearTimeout(drawing);
    drawing = setTimeout(drawTimeline, 150);
  }).observe(line);
}

function showSettings({ presets, seed, loras, seconds, max_seconds: longest, towers }) {
  $("seconds").placeholder = String(seconds);
  $("seconds").max = longest;
  $("towers").hidden = towers.length < 2;
  if (towers.length < 2) $("tower").replaceChildren(make("option", { value: towers[0] }));
  $("presets").replaceChildren(...presets.map(({ name, about }, i) => make(
    "label", {},
    make("input", { type: "radio", name: "preset", value: name, checked: i === 0 }),
    name, make("span", { textContent: about }),
  )));
  $("seed").value = seed;
  $("adapters").hidden = !loras.length;
  $("loras").replaceChildren(...loras.map((name) => make(
    "li", { dataset: { name } },
    make("label", {}, make("input", { type: "checkbox" }), name),
    make("input", {
      type: "number", min: -4, max: 4, step: 0.05, value: 1, ariaLabel: `Strength of ${name}`,
    }),
  )));
}

async function start() {
  connect();
  showTheme();
  try {
    state.about = await call("about", null);
    prompt.maxLength = state.about.max_characters;
    $("weights").textContent = state.about.weights;
    showSettings(state.about);
    showWords(state.about.words);
    showFiles();
    showExamples(state.about.examples);
    await search();
    if (state.clips.length && !state.clip) show(state.clips[0]);
  } catch (error) { say(error.message); }
  poll();
  element.firstElementChild.dataset.ready = "true";
}

start();
