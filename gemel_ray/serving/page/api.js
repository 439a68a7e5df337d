// The API as openapi.json describes it. All that comes from the server goes in as text, never as HTML.

import { el } from "./answer.js";

const main = document.getElementById("api");
const nameOf = (schema) => schema.$ref?.split("/").pop();

// `words` in a description are code; its lines are broken anew, its paragraphs stay.
const prose = (text = "") => text.replace(/([^\n])\n(?!\n)/g, "$1 ").split("`")
  .map((part, n) => (n % 2 ? el("code", {}, part) : part));

// A type in words; the types that have a name are links to it.
function typed(schema) {
  if (!schema) return ["anything"];
  const name = nameOf(schema);
  if (name) return [el("a", { href: `#${name}` }, name)];
  if (schema.enum) return [schema.enum.map((v) => JSON.stringify(v)).join(", ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  const choices = schema.anyOf ?? schema.oneOf;
  if (choices) return choices.flatMap((choice, n) => [...(n ? [" or "] : []), ...typed(choice)]);
  if (schema.type === "array") return ["list of ", ...typed(schema.items)];
  if (schema.format === "binary") return ["file"];
  return [schema.type ?? "anything"];
}

function bounds(schema) {
  const all = [schema, ...(schema.anyOf ?? [])];
  const least = all.find((s) => s.minimum !== undefined)?.minimum;
  const most = all.find((s) => s.maximum !== undefined)?.maximum;
  return least === undefined || most === undefined ? [] : [`, ${least} to ${most}`];
}

const rows = (pairs) => el("dl", {}, ...pairs.flatMap(([term, about]) => [el("dt", {}, ...term), el("dd", {}, ...about)]));

const fields = (schema) => rows(Object.entries(schema.properties ?? {}).map(([name, field]) => [
  [el("code", {}, name), el("small", {}, ...typed(field), ...bounds(field),
    schema.required?.includes(name) ? ", required" : "")],
  prose(field.description),
]));

function curl(path, method, operation, schemas, keyed) {
  const address = new URL(`.${path}`, location.href).href;
  const lines = [`curl -s ${address}`];
  if (keyed && path.startsWith("/v1/")) lines.push("-H 'Authorization: Bearer KEY'");
  const json = operation.requestBody?.content["application/json"]?.schema;
  if (json) {
    const first = nameOf(json.anyOf?.[0] ?? json);
    const example = schemas[first]?.examples?.[0];
    lines.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify(example ?? {}).replaceAll("'", "'\\''")}'`);
  }
  const required = (operation.parameters ?? []).filter((p) => p.required).map((p) => `${p.name}=${p.name.toUpperCase()}`);
  if (required.length) lines[0] = `curl -s '${address}?${required.join("&")}'`;
  return lines.join(" \\\n  ");
}

function route(path, method, operation, schemas, keyed) {
  const bodies = Object.entries(operation.requestBody?.content ?? {});
  const parts = [
    el("h3", {}, el("span", { class: "verb" }, method.toUpperCase()), " ", el("code", {}, path)),
    el("p", {}, operation.summary ?? ""),
    el("p", { class: "about" }, ...prose(operation.description)),
  ];
  if (operation.parameters?.length) {
    parts.push(el("h4", {}, "Parameters"), rows(operation.parameters.map((p) => [
      [el("code", {}, p.name), el("small", {}, ...typed(p.schema), p.required ? ", required" : "")], prose(p.description)])));
  }
  for (const [kind, { schema }] of bodies) {
    parts.push(el("h4", {}, "Body, ", el("code", {}, kind)),
      schema.properties ? fields(schema) : el("p", {}, ...typed(schema)));
  }
  parts.push(el("h4", {}, "Answers"), rows(Object.entries(operation.responses).map(([status, said]) => [
    [el("code", {}, status)],
    [...prose(said.description), ...Object.entries(said.content ?? {}).flatMap(([kind, { schema }]) =>
      ["; ", el("code", {}, kind), ...(schema && nameOf(schema) ? [": ", ...typed(schema)] : [])])],
  ])));
  parts.push(el("h4", {}, "By curl"), el("pre", { tabindex: "0" }, el("code", {}, curl(path, method, operation, schemas, keyed))));
  return el("article", { class: "panel" }, ...parts);
}

function drawn(api) {
  const schemas = api.components?.schemas ?? {};
  const keyed = Boolean(api.security?.length);
  const routes = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => route(path, method, operation, schemas, keyed)));
  const types = Object.entries(schemas).map(([name, schema]) => el("article", { class: "panel", id: name },
    el("h3", {}, name), el("p", { class: "about" }, ...prose(schema.description)), fields(schema)));
  main.replaceChildren(
    el("h1", {}, "The API"), el("p", { class: "lead" }, ...prose(api.info.description)),
    ...(keyed ? [el("p", { class: "lead" }, "This server asks for an API key in every request below /v1/.")] : []),
    el("h2", {}, "Requests"), ...routes, el("h2", {}, "Types"), ...types);
  main.setAttribute("aria-busy", "false");
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

try {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error();
  drawn(await answer.json());
} catch {
  document.getElementById("said")?.replaceChildren("The server cannot be reached, or does not describe itself. Is it still running?");
}
