// An answer as people read it. All that comes from the server goes in as text, never as HTML.

const FIRST = 4; // demonstrations shown at once

export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function percent(share) {
  if (share >= 0.995 && share < 1) return "> 99 %";
  if (share > 0 && share < 0.01) return "< 1 %";
  return `${Math.round(share * 100)} %`;
}

export const seconds = (took) => (took < 0.995 ? `${Math.round(took * 1000)} ms` : `${took.toFixed(1)} s`);

// The mention in the middle of what stands around it.
function quoted(text, row) {
  const points = Array.from(text);
  if (row.start === null || row.mention === null) return el("p", { class: "quote" }, text);
  const from = Math.max(0, row.start - 60);
  const to = Math.min(points.length, row.end + 60);
  return el("p", { class: "quote" },
    (from ? "… " : "") + points.slice(from, row.start).join(""),
    el("mark", {}, points.slice(row.start, row.end).join("")),
    points.slice(row.end, to).join("") + (to < points.length ? " …" : ""));
}

// The first name has the row's probability; another's is lower as its score is, and scores are logarithms.
// Entities that share a name share its probability: the name stands once, with all their ids.
export function names(row) {
  const best = row.candidates[0];
  const found = new Map();
  for (const c of row.candidates) {
    const fall = c.score === best.score ? 0 : (c.score ?? -Infinity) - best.score;
    if (!found.has(c.entity)) found.set(c.entity, { share: row.probability * Math.exp(fall), ids: [] });
    if (c.entity_id !== null) found.get(c.entity).ids.push(c.entity_id);
  }
  return found;
}

function bars(row) {
  const lines = [...names(row)].map(([name, { share, ids }], place) => {
    const bar = el("span", { class: "track", "aria-hidden": "true" }, el("i"));
    bar.firstChild.style.width = `${100 * share}%`;
    return el("li", { class: place === 0 && row.status === "linked" ? "best" : "" },
      el("span", { class: "entity" }, name, el("small", {}, ids.join(", "))),
      bar, el("span", { class: "share" }, percent(share)));
  });
  return el("section", {}, el("h4", {}, "Candidates"), el("ol", { class: "bars" }, ...lines));
}

function headline(row) {
  if (row.status === "linked") {
    return el("div", { class: "headline" },
      el("div", {}, el("h3", {}, row.entity), el("p", { class: "id" }, row.entity_id ?? "without an identifier")),
      el("p", { class: "probability" }, percent(row.probability), el("small", {}, "probability")));
  }
  if (row.status === "error") {
    return el("div", { class: "headline wrong" },
      el("div", {}, el("h3", {}, "This one could not be linked"), el("p", {}, `Reason: ${row.error}`)));
  }
  const best = row.candidates?.[0];
  const why = row.mention === null
    ? "No known name was found in the caption. Select one and mark it."
    : best ? `The most likely one, ${best.entity}, has a probability of ${percent(row.probability)}: below the threshold.`
      : "Nothing in the knowledge base fits.";
  return el("div", { class: "headline nil" },
    el("div", {}, el("h3", {}, row.mention === null ? "Nothing to link" : "No entity fits well enough"), el("p", {}, why)),
    el("p", { class: "probability" }, "NIL"));
}

function demonstrations(row, ask) {
  const nearest = [...row.demonstrations].reverse(); // what is nearest to the question stands last
  const list = el("ul", { class: "shots" });
  const add = (ids) => ids.forEach((id) => {
    const place = el("li", {}, el("span", { class: "hint" }, id));
    list.append(place);
    shot(id, place, ask);
  });
  add(nearest.slice(0, FIRST));
  const rest = nearest.slice(FIRST);
  const more = el("button", { type: "button", class: "quiet", onclick: () => {
    const first = list.children.length;
    add(rest);
    list.children[first].setAttribute("tabindex", "-1");
    list.children[first].focus();
    more.remove();
  } }, `Show all ${nearest.length}`);
  return el("section", {},
    el("h4", {}, "Demonstrations", el("small", {}, " solved examples in the prompt, the last of them first")),
    list, rest.length ? more : null);
}

async function shot(id, place, ask) {
  const named = `?id=${encodeURIComponent(id)}`;
  try {
    const found = await (await ask(`v1/demonstration${named}`)).json();
    const at = found.text.indexOf(found.mention);
    const text = at < 0 ? [found.text] : [found.text.slice(0, at), el("mark", {}, found.mention),
      found.text.slice(at + found.mention.length)];
    const picture = el("span", { class: "thumb", "aria-hidden": "true" });
    place.replaceChildren(picture, el("div", {}, el("b", {}, found.target), el("p", {}, ...text)));
    if (!found.picture) return;
    const url = URL.createObjectURL(await (await ask(`v1/demonstration/picture${named}`)).blob());
    const image = el("img", { src: url, alt: "" });
    image.addEventListener("load", () => URL.revokeObjectURL(url));
    picture.replaceChildren(image);
  } catch {
    place.classList.add("missing"); // its id stands there already
  }
}

function card(row, text, ask) {
  return el("article", { class: "panel card" }, quoted(text, row), headline(row),
    row.candidates?.length && row.status !== "error" ? bars(row) : null,
    row.why ? el("p", { class: "hint" }, row.why) : null,
    row.demonstrations?.length ? demonstrations(row, ask) : null);
}

function timings(answer) {
  const took = answer.timings;
  const parts = Object.entries(took).filter(([stage]) => stage !== "total");
  const rest = took.total - parts.reduce((sum, [, s]) => sum + s, 0);
  if (rest > 0) parts.push(["other", rest]);
  const whole = parts.reduce((sum, [, s]) => sum + s, 0) || 1;
  const bar = el("div", { class: "stages", "aria-hidden": "true" }, ...parts.map(([stage, s]) => {
    const piece = el("i", { class: stage });
    piece.style.flexGrow = s / whole;
    return piece;
  }));
  const list = el("dl", {}, ...parts.map(([stage, s]) =>
    el("div", {}, el("dt", { class: stage }, stage), el("dd", {}, seconds(s)))));
  return el("section", {}, el("h4", {}, `Time: ${seconds(took.total)}`), bar, list);
}

function footer(answer) {
  const facts = [["request", answer.request_id], ["fingerprint", answer.fingerprint], ["knowledge", answer.knowledge]];
  return el("section", { class: "panel foot" }, timings(answer),
    el("dl", { class: "facts" }, ...facts.map(([n, v]) => el("div", {}, el("dt", {}, n), el("dd", {}, v)))),
    el("details", {}, el("summary", {}, "The answer as JSON"),
      el("pre", { tabindex: "0" }, JSON.stringify(answer, null, 2))));
}

// Everything that an answer shows; `ask` fetches with the API key.
export const cards = (answer, text, ask) => [...answer.links.map((row) => card(row, text, ask)), footer(answer)];

// One sentence, for the status line.
export function summary(answer) {
  const count = (status) => answer.links.filter((row) => row.status === status && row.mention !== null).length;
  const parts = [[count("linked"), "linked"], [count("nil"), "without an entity (NIL)"], [count("error"), "failed"]];
  const counts = parts.filter(([n]) => n).map(([n, what]) => `${n} ${what}`).join(", ") || "No mention found";
  return `${counts}, in ${seconds(answer.timings.total)}.`;
}
