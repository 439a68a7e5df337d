// The caption and the mentions marked in it. Spans are kept in UTF-16 units, as the browser counts; the
// endpoint counts characters (code points): `toPoints` and `fromPoints` stand between the two.

export const toPoints = (text, unit) => Array.from(text.slice(0, unit)).length;
export const fromPoints = (text, point) => Array.from(text).slice(0, point).join("").length;

// The spans as they stand after an edit; one that was touched is given up.
export function moved(spans, before, after) {
  let head = 0;
  const least = Math.min(before.length, after.length);
  while (head < least && before[head] === after[head]) head += 1;
  let tail = 0;
  while (tail < least - head && before[before.length - 1 - tail] === after[after.length - 1 - tail]) tail += 1;
  const end = before.length - tail;
  const by = after.length - before.length;
  return spans.flatMap((span) => {
    if (span.end <= head) return [span];
    if (span.start >= end) return [{ start: span.start + by, end: span.end + by }];
    return [];
  });
}

export class Caption {
  constructor(field, behind, changed) {
    this.field = field;
    this.behind = behind;
    this.changed = changed;
    this.spans = []; // marked by the user
    this.found = []; // by Detect, in the last answer
    this.last = "";
    field.addEventListener("input", () => this.edited());
  }

  get text() {
    return this.field.value;
  }

  set(text, spans) {
    this.field.value = text;
    this.last = text;
    this.spans = spans;
    this.found = [];
    this.draw();
  }

  edited() {
    this.spans = moved(this.spans, this.last, this.text);
    this.found = moved(this.found, this.last, this.text);
    this.last = this.text;
    this.draw();
  }

  // The selected words without the blanks around them, or null.
  selection() {
    let { selectionStart: start, selectionEnd: end } = this.field;
    while (start < end && /\s/.test(this.text[start])) start += 1;
    while (end > start && /\s/.test(this.text[end - 1])) end -= 1;
    return end > start ? { start, end } : null;
  }

  // Those that overlap the new one give way to it.
  mark(span) {
    const apart = this.spans.filter((s) => s.end <= span.start || s.start >= span.end);
    this.spans = [...apart, span].sort((a, b) => a.start - b.start);
    this.found = [];
    this.draw();
  }

  unmark(span) {
    this.spans = this.spans.filter((s) => s !== span);
    this.draw();
  }

  propose(spans) {
    this.found = spans;
    this.draw();
  }

  keep() {
    this.found.forEach((span) => this.mark(span));
    this.found = [];
    this.draw();
  }

  // What the endpoint takes: null lets Detect look for mentions.
  mentions() {
    const place = ({ start, end }) => ({ start: toPoints(this.text, start), end: toPoints(this.text, end) });
    return this.spans.length ? this.spans.map(place) : null;
  }

  draw() {
    const shown = this.spans.length ? this.spans : this.found;
    const parts = [];
    let at = 0;
    for (const { start, end } of [...shown].sort((a, b) => a.start - b.start)) {
      if (start < at) continue;
      const mark = document.createElement("mark");
      mark.textContent = this.text.slice(start, end);
      mark.className = this.spans.length ? "" : "found";
      parts.push(this.text.slice(at, start), mark);
      at = end;
    }
    this.behind.replaceChildren(...parts, `${this.text.slice(at)}\u200b`);
    this.changed(this);
  }
}
