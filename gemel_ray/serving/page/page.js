// The page: from the form to a request, and from the answer to what is shown.

import { cards, el, summary } from "./answer.js";
import { Caption, fromPoints } from "./caption.js";

const at = (id) => document.getElementById(id);
const caption = new Caption(at("text"), at("behind"), drawn);
let picture = null; // a File or Blob
let running = null; // what stops the request under way

class Failed extends Error {
  constructor(message, status = 0, id = "") {
    super(message);
    Object.assign(this, { status, id });
  }
}

// fetch with the API key; whatever goes wrong is a Failed with one sentence.
async function ask(path, options = {}) {
  const key = at("key").value.trim();
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new Failed("The server cannot be reached. Is it still running?");
  }
  if (answer.ok) return answer;
  const error = (await answer.json().catch(() => ({}))).error ?? {};
  throw new Failed(error.message ?? `The server answered ${answer.status}.`, answer.status, error.request_id);
}

// --- the picture

function choose(file) {
  const wrong = file && !file.type.startsWith("image/");
  at("picture-fault").textContent = wrong ? `${file.name} is not a picture.` : "";
  if (wrong) return;
  URL.revokeObjectURL(at("preview").src);
  picture = file;
  at("pick").hidden = Boolean(file);
  at("chosen").hidden = !file;
  at("file").value = "";
  if (file) {
    at("preview").src = URL.createObjectURL(file);
    at("name").textContent = file.name || "Pasted picture";
  } else {
    at("preview").removeAttribute("src");
  }
}

const asDataUrl = (file) => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => failed(new Failed("The picture cannot be read from the disk."));
  reader.readAsDataURL(file);
});

const fileOf = (items) => [...(items ?? [])].find((item) => item.kind === "file")?.getAsFile();

function receive(event, items) {
  const file = fileOf(items);
  if (!file) return;
  event.preventDefault();
  choose(file);
}

at("file").addEventListener("change", () => at("file").files[0] && choose(at("file").files[0]));
at("remove").addEventListener("click", () => { choose(null); at("file").focus(); });
document.addEventListener("paste", (event) => receive(event, event.clipboardData?.items));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "dragover") event.preventDefault();
    if (kind === "drop") receive(event, event.dataTransfer?.items);
  });
}

// --- mentions

function drawn({ text, spans, found }) {
  at("mentions").replaceChildren(...spans.map((span) => {
    const words = text.slice(span.start, span.end);
    return el("li", { class: "chip" }, words,
      el("button", { type: "button", "aria-label": `Remove the mention ${words}`, onclick: () => {
        caption.unmark(span);
        (at("mentions").querySelector("button") ?? at("text")).focus();
        at("told").textContent = `${words} is no mention any more.`;
      } }, "×"));
  }));
  at("unmarked").hidden = spans.length > 0;
  at("unmarked").textContent = found.length
    ? "None is marked: these were found in the caption."
    : "None is marked: known names will be looked for in the caption.";
  at("keep").hidden = spans.length > 0 || found.length === 0;
  at("keep").textContent = `Keep the ${found.length} found as mentions`;
  selected();
}

function selected() {
  const span = caption.selection();
  at("mark").disabled = span === null;
  const words = span ? caption.text.slice(span.start, span.end) : "";
  at("mark").textContent = span ? `Mark “${words.length > 28 ? `${words.slice(0, 27)}…` : words}”` : "Mark the selection";
}

document.addEventListener("selectionchange", () => document.activeElement === at("text") && selected());
for (const kind of ["select", "keyup", "mouseup"]) at("text").addEventListener(kind, selected);
at("mark").addEventListener("click", () => {
  const span = caption.selection();
  if (!span) return;
  at("told").textContent = `${caption.text.slice(span.start, span.end)} is marked as a mention.`;
  at("text").focus();
  at("text").setSelectionRange(span.end, span.end);
  caption.mark(span);
});
at("keep").addEventListener("click", () => { caption.keep(); at("mentions").querySelector("button").focus(); });
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("ask").requestSubmit();
});

// --- asking

function options() {
  const wanted = {};
  if (at("candidates").value) wanted.candidates = Number(at("candidates").value);
  if (at("threshold").value) wanted.nil_threshold = Number(at("threshold").value);
  if (at("search").value) wanted.search = at("search").value;
  if (at("shown").value) wanted.demonstrations = false;
  return wanted;
}

async function request() {
  const body = { text: caption.text, mentions: caption.mentions(), options: options() };
  if (picture) body.image = await asDataUrl(picture);
  return JSON.stringify(body);
}

function busy(controller) {
  running = controller;
  at("link").textContent = controller ? "Stop" : "Link";
  at("answer").setAttribute("aria-busy", String(Boolean(controller)));
}

async function link() {
  const blank = !caption.text.trim();
  at("text-fault").textContent = blank ? "Write the caption first." : "";
  at("text").setAttribute("aria-invalid", String(blank));
  if (blank) return at("text").focus();
  const controller = new AbortController();
  const text = caption.text;
  busy(controller);
  at("fault").hidden = true;
  at("said").textContent = "Linking …";
  try {
    const headers = { "Content-Type": "application/json" };
    const sent = { method: "POST", headers, body: await request(), signal: controller.signal };
    show(await (await ask("v1/link", sent)).json(), text);
  } catch (fault) {
    fail(fault);
  } finally {
    busy(null);
  }
}

function show(answer, text) {
  at("empty").hidden = true;
  at("said").textContent = summary(answer);
  at("links").replaceChildren(...cards(answer, text, ask));
  if (!caption.spans.length && caption.text === text) {
    const placed = answer.links.filter((row) => row.start !== null && row.mention !== null);
    caption.propose(placed.map((row) => ({ start: fromPoints(text, row.start), end: fromPoints(text, row.end) })));
  }
  if (window.innerWidth < 900) at("said").scrollIntoView();
}

function fail(fault) {
  at("said").textContent = fault.name === "AbortError" ? "Stopped." : "";
  if (fault.name === "AbortError") return;
  at("links").replaceChildren();
  at("empty").hidden = true;
  const id = fault.id ? el("p", { class: "hint" }, `Request ${fault.id}`) : null;
  at("fault").replaceChildren(el("h3", {}, "That did not work"), el("p", {}, fault.message), ...(id ? [id] : []));
  at("fault").hidden = false;
  if (fault.status === 401) {
    at("key-field").hidden = false;
    at("key").focus();
  }
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else link();
});

// --- examples, and how the server is

async function use(example) {
  const text = example.text;
  const place = (span) => ({ start: fromPoints(text, span.start), end: fromPoints(text, span.end) });
  caption.set(text, (example.mentions ?? []).map(place));
  choose(null);
  if (example.picture) {
    const blob = await (await ask(example.picture)).blob();
    choose(new File([blob], example.picture.split("/").pop(), { type: blob.type }));
  }
  if (running) running.abort();
  await link();
}

async function examples() {
  const found = await (await ask("v1/examples")).json();
  at("examples").replaceChildren(...found.map((example) => el("li", {},
    el("button", { type: "button", onclick: () => use(example).catch(fail) },
      example.picture ? el("img", { src: example.picture, alt: "", width: "44", height: "44" })
        : el("span", { class: "letters", "aria-hidden": "true" }, "Aa"),
      el("span", {}, el("b", {}, example.title), el("span", { class: "hint" }, example.text))))));
  document.querySelector(".examples").hidden = found.length === 0;
}

async function state() {
  let current = ["down", "The server cannot be reached"];
  try {
    const answer = await fetch("readyz");
    const body = await answer.json().catch(() => ({}));
    current = answer.ok ? ["up", "Ready"] : ["waiting", body.reason ?? body.error?.message ?? "Not ready"];
  } catch { /* shown already */ }
  at("state").className = `state ${current[0]}`;
  if (at("state-text").textContent !== current[1]) at("state-text").textContent = current[1];
  setTimeout(state, current[0] === "up" ? 30000 : 3000);
}

caption.draw();
examples().catch((fault) => { if (fault.status === 401) at("key-field").hidden = false; });
at("key").addEventListener("change", () => examples().catch(() => {}));
state();
