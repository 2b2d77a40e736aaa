// The list of tasks with the state of the bank, the fields, and the answers of the chosen tasks.

import { KINDS, element } from "./answers.js";

const REFRESH = 5000; // milliseconds between two looks at the bank
const STEP = 100; // tasks that the list shows at once, and more at each wish for more
const CHOSEN = "ptv2.chosen"; // in localStorage
const KEY = "ptv2.key"; // in sessionStorage

const at = (id) => document.getElementById(id);
const fields = [...document.querySelectorAll("[data-field]")];
const rows = new Map(); // a task's name to its row in the list
const chosen = new Set(JSON.parse(localStorage.getItem(CHOSEN) ?? "[]"));
let tasks = new Map(); // a task's name to what /info says of it
let shown = STEP;
let timer;
let asking = new AbortController();

/** The JSON that the server answers with; throws its error. */
async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key === null ? {} : { Authorization: `Bearer ${key}` };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.status === 401) wantKey(key);
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error ?? `The server answered ${response.status}.`);
  return body;
}

function wantKey(refused) {
  if (refused !== sessionStorage.getItem(KEY)) return; // there is another one since
  at("key-form").hidden = false;
  at("key-problem").textContent = refused === null ? "" : "This key was refused.";
}

async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    show(await call("info"));
    at("problem").hidden = at("key-form").hidden = true;
  } catch (error) {
    at("problem").textContent = `The state of the server is unknown: ${error.message}`;
    at("problem").hidden = !at("key-form").hidden;
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, REFRESH);
}

function show(info) {
  const { used, budget } = info.memory;
  const share = budget ? used / budget : 0;
  const before = [...tasks.keys()].join();
  tasks = new Map(Object.entries(info.tasks));
  const placed = [...tasks.values()].filter((task) => task.on_device).length;
  at("backbone").textContent = `${info.backbone.name_or_path} (${info.backbone.model_type})`;
  at("waiting").textContent = info.waiting;
  at("placed").textContent = `${placed} of ${tasks.size}`;
  at("memory").textContent = `${bytes(used)} of ${bytes(budget)}`;
  at("memory-fill").style.width = `${100 * share}%`;
  for (const [name, { place, facts }] of rows) {
    if (tasks.has(name)) describe(tasks.get(name), place, facts);
    else rows.delete(name);
  }
  if ([...tasks.keys()].join() !== before) {
    list();
    fit();
  }
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  for (; count >= 1024 && power < units.length - 1; power++) count /= 1024;
  return `${power && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[power]}`;
}

function describe(task, place, facts) {
  place.textContent = task.on_device ? "device" : "host";
  place.classList.toggle("on-device", task.on_device);
  const labels = task.labels ? [`${task.labels} label${task.labels === 1 ? "" : "s"}`] : [];
  facts.textContent = [task.task, ...labels, `v${task.version}`, task.sha256.slice(0, 8)].join(" · ");
}

/** The row of a task, made when it is first seen. */
function row(name) {
  if (!rows.has(name)) {
    const box = element("input");
    box.type = "checkbox";
    box.addEventListener("change", () => choose(name, box.checked));
    const [place, facts] = [element("span", "place"), element("span", "facts")];
    const label = element("label", "", box, element("span", "name", name), place, facts);
    describe(tasks.get(name), place, facts);
    rows.set(name, { item: element("li", "", label), box, place, facts });
  }
  rows.get(name).box.checked = chosen.has(name);
  return rows.get(name).item;
}

/** Show the tasks that are searched for, the first ones of them. */
function list() {
  const words = at("search").value.toLowerCase().split(/\s+/);
  const found = [...tasks].filter(([name, { task }]) => {
    const wanted = chosen.has(name) || !at("only-chosen").checked;
    return wanted && words.every((word) => `${name} ${task}`.toLowerCase().includes(word));
  });
  const focused = document.activeElement;
  at("tasks").replaceChildren(...found.slice(0, shown).map(([name]) => row(name)));
  focused.focus({ preventScroll: true }); // a row that is moved loses it
  at("more").hidden = found.length <= shown;
  at("more").textContent = `Show more of the other ${found.length - shown}`;
  at("count").dataset.found = found.length;
  count();
}

function chosenTasks() {
  return [...tasks].filter(([name]) => chosen.has(name));
}

function count() {
  const { found } = at("count").dataset;
  at("count").textContent = `${found} of ${tasks.size} tasks, ${chosenTasks().length} chosen`;
}

function choose(name, wanted) {
  if (wanted) chosen.add(name);
  else chosen.delete(name);
  remember();
}

function remember() {
  localStorage.setItem(CHOSEN, JSON.stringify([...chosen]));
  count();
  fit();
}

/** Show the fields that the chosen tasks take; that of a text if none is chosen. */
function fit() {
  const taken = new Set(chosenTasks().flatMap(([, { task }]) => KINDS[task]?.fields ?? []));
  if (!taken.size) taken.add("text");
  for (const field of fields) field.hidden = !taken.has(field.dataset.field);
}

async function ask() {
  const wanted = chosenTasks();
  if (!wanted.length) {
    at("progress").textContent = "Choose a task first.";
    return;
  }
  asking.abort(); // nobody waits for the answers before
  asking = new AbortController();
  const { signal } = asking;
  const values = Object.fromEntries(fields.map((x) => [x.dataset.field, at(x.dataset.field).value]));
  const cards = wanted.map(([name, { task }]) => {
    const card = element("article", "panel", element("h3", "", name), element("p", "quiet", task));
    card.setAttribute("aria-busy", "true");
    return card;
  });
  at("answers").replaceChildren(...cards);
  at("progress").textContent = `Asking ${wanted.length}…`;
  const begun = performance.now();
  const done = await Promise.all(
    wanted.map(([name, { task }], i) => fill(cards[i], name, task, values, signal)),
  );
  if (signal.aborted) return;
  const failed = done.filter((good) => !good).length;
  const errors = failed ? `, ${failed} failed` : "";
  const milliseconds = Math.round(performance.now() - begun);
  at("progress").textContent = `${done.length - failed} answered${errors}, ${milliseconds} ms`;
  refresh();
}

/** Put a task's answer into its card, or what went wrong; whether there is an answer. */
async function fill(card, name, kind, values, signal) {
  let nodes, good = true;
  try {
    nodes = await answer(name, kind, values, signal);
  } catch (error) {
    nodes = [element("p", "error", error.message)];
    good = false;
  }
  card.append(...nodes);
  card.removeAttribute("aria-busy");
  return good;
}

async function answer(name, kind, values, signal) {
  if (!(kind in KINDS)) throw new Error(`This page cannot ask tasks of the kind ${kind}.`);
  const { needs, body, nodes } = KINDS[kind];
  const missing = needs.filter((field) => !values[field].trim());
  if (missing.length) throw new Error(`Missing: ${missing.join(" and ")}.`);
  const content = JSON.stringify(body(values));
  const path = `models/${encodeURIComponent(name)}`;
  return nodes(await call(path, { method: "POST", body: content, signal }), values);
}

at("search").addEventListener("input", () => {
  shown = STEP;
  list();
});
at("only-chosen").addEventListener("change", list);
at("more").addEventListener("click", () => {
  shown += STEP;
  list();
});
at("choose-none").addEventListener("click", () => {
  chosen.clear();
  remember();
  list();
});
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("ask").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  at("ask").requestSubmit();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value);
  at("key-form").hidden = true;
  refresh();
});
document.addEventListener("visibilitychange", refresh);
fit();
refresh();
