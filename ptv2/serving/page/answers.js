// The kinds of task: what they take, and how their answers look. All text is inserted as text.

const HUES = 8;
const FIRST = 8; // labels of an answer, or numbers of a vector, that are shown at once

/** An element with a class and children, of which strings become text. */
export function element(tag, className = "", ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** A kind of task: its `fields`, those it `needs`, its request's `body`, and its answer's nodes. */
export const KINDS = {
  "sequence-classification": {
    fields: ["text", "pair"],
    needs: ["text"],
    body: ({ text, pair }) => ({ inputs: pair ? [[text, pair]] : [text] }),
    nodes: ([scores]) => classes(scores),
  },
  "token-classification": {
    fields: ["text"],
    needs: ["text"],
    body: ({ text }) => ({ inputs: text }),
    nodes: (entities, { text }) => tags(entities, text),
  },
  "question-answering": {
    fields: ["question", "context"],
    needs: ["question", "context"],
    body: ({ question, context }) => ({ inputs: { question, context } }),
    nodes: (answer, { context }) => span(answer, context),
  },
  "multiple-choice": {
    fields: ["question", "choices"],
    needs: ["question", "choices"],
    body: ({ question, choices }) => ({
      inputs: { question, choices: lines(choices) },
      parameters: { top_k: Math.max(1, lines(choices).length) },
    }),
    nodes: (choices) => bars(choices.map(({ text, score }) => [text, score])),
  },
  "feature-extraction": {
    fields: ["text"],
    needs: ["text"],
    body: ({ text }) => ({ inputs: text }),
    nodes: vector,
  },
};

function lines(text) {
  return text.split("\n").map((line) => line.trim()).filter(Boolean);
}

function classes(scores) {
  if (scores.length > 1) return bars(scores.map(({ label, score }) => [label, score]));
  const [{ label, score }] = scores; // a regression's number has no bounds, so it has no bar
  return [element("p", "number", score.toPrecision(4)), element("p", "quiet", label)];
}

/** Names with their scores of 0 to 1 as bars; behind the first ones, the rest unfolds. */
function bars(scores) {
  const rows = scores.map(([name, score]) => {
    const fill = element("span");
    fill.style.width = `${100 * score}%`;
    return element(
      "li", "",
      element("span", "name", name),
      element("span", "score", score.toFixed(3)),
      element("span", "track", fill),
    );
  });
  const list = element("ul", "bars", ...rows.slice(0, FIRST));
  if (rows.length <= FIRST) return [list];
  const rest = element("ul", "bars", ...rows.slice(FIRST));
  const summary = element("summary", "", `${rows.length - FIRST} more`);
  return [list, element("details", "", summary, rest)];
}

function tags(entities, text) {
  const marks = entities.map(({ entity_group: name, score, start, end }) => {
    return { start, end, hue: hue(name), note: `${name || "entity"} ${score.toFixed(2)}` };
  });
  const nodes = [marked(text, marks)];
  if (!entities.length) nodes.push(element("p", "quiet", "No entity."));
  return nodes;
}

function span({ answer, score, start, end }, context) {
  const none = start < 0; // the task may say that there is no answer
  return [
    element("p", none ? "quiet" : "found", none ? "No answer." : answer),
    element("p", "quiet", `score ${score.toFixed(3)}`),
    marked(context, none ? [] : [{ start, end, hue: 0 }]),
  ];
}

function vector(values) {
  const norm = Math.hypot(...values);
  const first = values.slice(0, FIRST).map((value) => value.toFixed(3)).join(", ");
  const more = values.length > FIRST ? ", …" : "";
  return [
    element("p", "", `${values.length} dimensions, norm ${norm.toPrecision(4)}`),
    element("p", "numbers", `${first}${more}`),
  ];
}

/** A text with marks, whose places count Unicode characters, not JavaScript's UTF-16 units. */
function marked(text, marks) {
  const characters = Array.from(text);
  const part = (start, end) => characters.slice(start, end).join("");
  const block = element("p", "marked");
  let last = 0;
  for (const { start, end, hue, note } of marks) {
    const mark = element("mark", `hue-${hue}`, part(start, end));
    if (note) mark.append(element("small", "", note));
    block.append(part(last, start), mark);
    last = end;
  }
  block.append(part(last));
  return block;
}

/** One of the colours for a name, the same one in every answer. */
function hue(name) {
  let sum = 0;
  for (const character of name) sum = (31 * sum + character.codePointAt(0)) % 997;
  return sum % HUES;
}
