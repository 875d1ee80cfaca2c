"use strict";

/* A drawing is { image, strokes, history, seen, problem, url }: an <img> that was opened, or strokes of [x, y] from 0 to
   1, and what it was before each change. A class is { name, hue, drawings }, a query { drawing, answer, asked }.
   Names and messages only ever become text, never markup. */

const PEN = 0.036; // width of a stroke, as a share of the field
const SENT = 280; // pixels of a drawing as it is sent
const HUES = [258, 25, 150, 320, 75, 200, 290, 110, 0, 225];
const KEPT = "maml_l2l.draw"; // in the tab, so that nothing is lost when the page is loaded anew
const state = { classes: [], queries: [], current: 0, network: "" };
const tiles = new Map(); // drawing -> what shows it
const $ = (id) => document.getElementById(id);
let start; // networks, samples and limits, as the server has them

/* --- elements --- */

function make(kind, properties = {}, ...children) {
  const node = document.createElement(kind);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children);
  return node;
}

function shape(kind, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

const ICONS = { undo: "M4 9h10a5 5 0 0 1 0 10h-3M8 5 4 9l4 4", remove: "M6 6l12 12M18 6 6 18" };

function iconButton(icon, action) {
  const svg = shape("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" });
  svg.append(shape("path", { d: ICONS[icon] }));
  return make("button", { type: "button", className: "small", onclick: action }, svg);
}

/* --- drawings --- */

function newDrawing(image = null, strokes = []) {
  return { image, strokes, history: [], seen: null, problem: null, url: null };
}

const isBlank = (drawing) => !drawing.image && !drawing.strokes.length;

async function opened(picture) {
  const image = new Image();
  image.src = picture;
  await image.decode();
  return newDrawing(image);
}

function remember(drawing) {
  drawing.history.push({ image: drawing.image, strokes: [...drawing.strokes] });
  drawing.url = drawing.seen = drawing.problem = null;
}

function clear(drawing) {
  if (isBlank(drawing)) return;
  remember(drawing);
  drawing.image = null;
  drawing.strokes = [];
}

function undo(drawing) {
  if (!drawing.history.length) return;
  Object.assign(drawing, drawing.history.pop(), { url: null, seen: null, problem: null });
}

function paint(canvas, drawing, cursor = null) {
  const context = canvas.getContext("2d");
  const side = canvas.width;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, side, side);
  if (drawing.image) {
    const { naturalWidth: width, naturalHeight: height } = drawing.image;
    const scale = side / Math.max(width, height);
    context.drawImage(drawing.image, (side - width * scale) / 2, (side - height * scale) / 2, width * scale, height * scale);
  }
  Object.assign(context, { lineWidth: PEN * side, lineCap: "round", lineJoin: "round", strokeStyle: "#191817" });
  for (const stroke of drawing.strokes) {
    context.beginPath();
    context.moveTo(stroke[0][0] * side - 0.1, stroke[0][1] * side); // not where the line goes, which would show no dot
    for (const [x, y] of stroke) context.lineTo(x * side, y * side);
    context.stroke();
  }
  if (cursor) {
    context.beginPath();
    context.arc(cursor.x * side, cursor.y * side, 1.2 * PEN * side, 0, 7);
    Object.assign(context, { lineWidth: side / 120, strokeStyle: cursor.stroke ? "#c2410c" : "#2a55d9" });
    context.stroke();
  }
}

/** The picture that the network gets, as a data URL: a file as the server made it, or the strokes. */
function urlOf(drawing) {
  if (drawing.image) return drawing.image.src;
  if (!drawing.url) {
    const canvas = make("canvas", { width: SENT, height: SENT });
    paint(canvas, drawing);
    drawing.url = canvas.toDataURL("image/png");
  }
  return drawing.url;
}

const contentOf = (drawing) => urlOf(drawing).split(",")[1];

/* --- the pen: mouse, touch, stylus, keyboard --- */

/** `drawing(true)` is the one that a new stroke goes to, `drawing()` the one that is shown. */
function giveThePen(canvas, drawing, changed) {
  const limit = (value) => Math.round(1000 * Math.min(1, Math.max(0, value))) / 1000;
  let stroke = null;
  let target = null; // the drawing that it is part of
  let pointer = null;
  let cursor = null;

  const show = () => paint(canvas, drawing(), cursor);
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [limit((event.clientX - box.left) / box.width), limit((event.clientY - box.top) / box.height)];
  };
  const begin = (point) => {
    target = drawing(true);
    remember(target);
    target.image = null; // a picture makes way for a drawing; undo brings it back
    target.strokes = [...target.strokes, (stroke = [point])];
  };
  const end = () => {
    if (!stroke) return;
    target.url = null; // an answer to the stroke before may have come in between, and shown it as it was
    stroke = target = pointer = null;
    if (cursor) cursor.stroke = false;
    show();
    changed();
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || pointer !== null) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    end();
    pointer = event.pointerId;
    cursor = null;
    begin(place(event));
    show();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const one of passed.length ? passed : [event]) stroke.push(place(one));
    show();
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"])
    canvas.addEventListener(name, (event) => event.pointerId === pointer && end());

  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const wantsUndo = event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey);
    const wantsClear = event.key === "Delete" || event.key === "Backspace";
    if (!(event.key in moves) && event.key !== " " && !wantsUndo && !wantsClear) return;
    event.preventDefault();
    cursor ??= { x: 0.5, y: 0.5, stroke: false };
    if (wantsUndo || wantsClear) {
      end();
      (wantsUndo ? undo : clear)(drawing());
      changed();
    } else if (event.key === " ") {
      if (stroke) end();
      else {
        begin([cursor.x, cursor.y]);
        cursor.stroke = true;
      }
    } else {
      const step = event.shiftKey ? 0.01 : 0.04;
      cursor.x = limit(cursor.x + step * moves[event.key][0]);
      cursor.y = limit(cursor.y + step * moves[event.key][1]);
      stroke?.push([cursor.x, cursor.y]);
    }
    show();
  });
  canvas.addEventListener("blur", () => {
    end();
    cursor = null;
    show();
  });
}

/* --- the signs --- */

const nameOf = (one) => one.name.trim() || "unnamed";
const isEmpty = (one) => one.drawings.every(isBlank);

function newClass(name, drawings = [newDrawing()]) {
  const used = state.classes.map((one) => one.hue);
  const free = HUES.find((hue) => !used.includes(hue));
  return { name, drawings, hue: free ?? Math.round(state.classes.length * 137.5) % 360 };
}

function classesOf(named) {
  const before = state.classes;
  state.classes = [];
  for (const [name, drawings] of named) state.classes.push(newClass(name, drawings));
  const made = state.classes;
  state.classes = before;
  return made;
}

function tileOf(one, drawing, index, label) {
  const place = () => `drawing ${index + 1} of ${nameOf(one)}`;
  const canvas = make("canvas", { width: 320, height: 320, tabIndex: 0, role: "application", "aria-describedby": "keys" });
  const hint = make("span", { className: "hint" }, "Draw here");
  const paper = make("div", { className: "paper" }, canvas, hint);
  const seen = make("img", { className: "pixels", hidden: true, alt: "", title: "What the network sees" });
  const wrong = make("p", { className: "wrong" });
  const changed = () => {
    showTile(drawing);
    ask();
  };
  giveThePen(canvas, () => drawing, changed);
  const take = () => {
    if (one.drawings.length > 1) {
      one.drawings = one.drawings.filter((other) => other !== drawing);
      showClasses();
      tiles.get(one.drawings[Math.max(0, index - 1)]).canvas.focus();
    } else clear(drawing);
    changed();
  };
  const back = iconButton("undo", () => (undo(drawing), changed()));
  const remove = iconButton("remove", take);
  label(canvas, () => `Draw: ${place()}`);
  label(back, () => `Undo in ${place()}`);
  label(remove, () => `${one.drawings.length > 1 ? "Remove" : "Clear"} ${place()}`);
  label(seen, () => `What the network sees of ${place()}`);
  tiles.set(drawing, { canvas, paper, seen, wrong });
  return [paper, make("div", { className: "under" }, seen, back, remove), wrong];
}

function showTile(drawing) {
  const tile = tiles.get(drawing);
  if (!tile) return;
  paint(tile.canvas, drawing);
  tile.paper.classList.toggle("drawn", !isBlank(drawing));
  tile.seen.hidden = !drawing.seen;
  if (drawing.seen) tile.seen.src = drawing.seen;
  tile.wrong.textContent = drawing.problem ? `It ${drawing.problem}.` : "";
}

function cardOf(one) {
  const labels = [];
  const label = (node, text) => labels.push(() => node.setAttribute("aria-label", text()));
  const name = make("input", { className: "name", value: one.name, maxLength: 60, "aria-label": "Name of the sign" });
  name.oninput = () => {
    one.name = name.value;
    labels.forEach((set) => set());
    keep();
    showAnswer();
    showQueries();
  };
  const add = make("button", { type: "button", className: "small" }, "+ Drawing");
  add.onclick = () => {
    const drawing = newDrawing();
    one.drawings = [...one.drawings, drawing];
    showClasses();
    tiles.get(drawing).canvas.focus();
  };
  const open = make("button", { type: "button", className: "small" }, "Picture");
  open.onclick = () => choose({ multiple: true }, (files) => addTo(one, files));
  const remove = iconButton("remove", () => {
    offerUndo(`${nameOf(one)} is removed.`);
    state.classes = state.classes.filter((other) => other !== one);
    showClasses();
    $("classes").lastElementChild.focus();
    ask();
  });
  const tilesOfClass = one.drawings.flatMap((drawing, index) => tileOf(one, drawing, index, label));
  const head = make("div", {}, name, remove);
  const more = make("div", { className: "more" }, add, open);
  const card = make("article", { className: "class" }, head, ...tilesOfClass, more);
  label(card, () => nameOf(one));
  label(add, () => `Add a drawing of ${nameOf(one)}`);
  label(open, () => `Open pictures of ${nameOf(one)}`);
  label(remove, () => `Remove ${nameOf(one)}`);
  labels.forEach((set) => set());
  card.style.setProperty("--hue", one.hue);
  takesDrops(card, (files) => addTo(one, files));
  one.drawings.forEach(showTile);
  return card;
}

function showClasses() {
  tiles.clear();
  const add = make("button", { type: "button", className: "new" }, "+ Sign");
  add.onclick = () => {
    state.classes = [...state.classes, newClass(`sign ${state.classes.length + 1}`)];
    showClasses();
    $("classes").lastElementChild.previousElementSibling.querySelector("input").select();
    ask();
  };
  $("classes").replaceChildren(...state.classes.map(cardOf), add);
}

/* --- the queries --- */

const newQuery = (drawing = newDrawing()) => ({ drawing, answer: null, asked: null });
const query = () => state.queries[state.current];

function select(index) {
  const left = query();
  state.current = index;
  if (left && left !== query() && isBlank(left.drawing)) {
    const chosen = query();
    state.queries = state.queries.filter((one) => one !== left);
    state.current = state.queries.indexOf(chosen);
  }
  showQuery();
  showQueries();
  ask(0);
}

function addQueries(drawings) {
  const room = start.most.pictures - state.queries.length;
  if (drawings.length > room) say(`The page keeps ${start.most.pictures} drawings to name.`);
  state.queries = [...drawings.slice(0, Math.max(0, room)).map(newQuery), ...state.queries];
  state.current = 0;
  showQuery();
  showQueries();
  ask(0);
}

/** Where a stroke goes: a picture stays as it is, and the stroke begins another query. */
function queryToDraw(isNew) {
  if (isNew && query().drawing.image) {
    state.queries = [newQuery(), ...state.queries];
    state.current = 0;
  }
  return query().drawing;
}

function showQuery() {
  paint($("query"), query().drawing);
  document.querySelector(".large").classList.toggle("drawn", !isBlank(query().drawing));
  $("undo").disabled = !query().drawing.history.length;
  $("clear").disabled = isBlank(query().drawing);
  showAnswer();
}

function showQueries() {
  const focused = document.activeElement?.closest?.("#queries") !== null;
  const items = state.queries.map((one, index) => {
    const found = one.answer && best(one.answer);
    const label = make("span", {}, found ? nameOf(found) : isBlank(one.drawing) ? "new" : "…");
    if (found) {
      label.className = "named";
      label.style.setProperty("--hue", found.hue);
    }
    const image = make("img", { src: urlOf(one.drawing), alt: "" });
    const button = make("button", { type: "button", onclick: () => select(index) }, image, label);
    button.setAttribute("aria-label", `Drawing ${index + 1} to name: ${label.textContent}`);
    button.setAttribute("aria-current", String(index === state.current));
    return make("li", {}, button);
  });
  $("queries").replaceChildren(...items);
  if (focused) items[state.current]?.firstElementChild.focus();
}

/* --- asking --- */

let timer = 0;
let asking = new AbortController();

/** Ask a moment later; what was asked before is given up. */
function ask(delay = 150) {
  keep();
  clearTimeout(timer);
  asking.abort();
  $("answer").setAttribute("aria-busy", "true");
  timer = setTimeout(answer, delay);
}

async function post(path, type, content, signal) {
  let response;
  try {
    response = await fetch(path, { method: "POST", headers: { "Content-Type": type }, body: content, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server has ended. Start it again: python -m maml_l2l.draw");
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Error(sentence(error ?? `the server answers ${response.status}.`));
}

// What begins with a file's name stays as it is.
const sentence = (text) => (/^[a-z]+ /.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text);

async function answer() {
  const { signal } = (asking = new AbortController());
  const classes = state.classes.filter((one) => !isEmpty(one));
  try {
    if (classes.length < 2) throw new Error("Draw two signs or more above: the network learns to tell them apart.");
    const learnt = classes.map((one) => one.drawings.filter((drawing) => !isBlank(drawing)));
    const support = learnt.map((drawings) => drawings.map(contentOf));
    const asked = JSON.stringify([state.network, support]);
    const current = query();
    await answerSome(isBlank(current.drawing) ? [] : [current], { classes, learnt, support, asked, signal });
    $("answer").setAttribute("aria-busy", "false");
    const waiting = () => state.queries.filter((one) => !isBlank(one.drawing) && one.asked !== asked);
    while (waiting().length)
      await answerSome(waiting().slice(0, start.most.queries), { classes, learnt, support, asked, signal });
  } catch (error) {
    if (signal.aborted) return;
    for (const one of state.queries) one.answer = one.asked = null;
    latest = { error: error.message };
    showAnswer();
    showQueries();
    $("answer").setAttribute("aria-busy", "false");
  }
}

let latest = {}; // what was last learnt: classes, loss; or the error

async function answerSome(queries, { classes, learnt, support, asked, signal }) {
  const question = { network: state.network, support, queries: queries.map((one) => contentOf(one.drawing)) };
  const began = performance.now();
  const response = await post("api/answer", "application/json", JSON.stringify(question), signal);
  const found = await response.json();
  if (signal.aborted) return;
  $("speed").textContent = `The last answer took ${Math.round(performance.now() - began)} ms.`;
  learnt.flat().forEach((drawing, index) => {
    Object.assign(drawing, found.support[index]);
    showTile(drawing);
  });
  queries.forEach((one, index) => {
    const { seen, problem, probabilities } = found.queries[index];
    Object.assign(one.drawing, { seen, problem });
    Object.assign(one, { answer: { classes, probabilities }, asked });
  });
  latest = { classes, loss: found.loss };
  showAnswer();
  showQueries();
}

/* --- the answer --- */

const percent = (share) => `${share < 0.9995 ? (100 * share).toFixed(1) : 100} %`;

function best({ classes, probabilities }, step = probabilities.length - 1) {
  const row = probabilities[step];
  return { ...classes[row.indexOf(Math.max(...row))], share: Math.max(...row) };
}

function showAnswer() {
  const { drawing, answer: found } = query();
  const shown = isBlank(drawing) ? null : found;
  const first = shown && best(shown);
  $("verdict").replaceChildren();
  if (first) $("verdict").append(nameOf(first), make("span", { className: "quiet" }, percent(first.share)));
  else if (!latest.error) $("verdict").append(make("span", { className: "quiet" }, isBlank(drawing) ? "Draw one of your signs." : "…"));
  const problem = shown && drawing.problem;
  const blind = problem === "shows no ink" ? " The network sees nothing, so this answer means nothing." : "";
  $("problem").textContent = latest.error ?? (problem ? `Your drawing ${problem}.${blind}` : "");
  $("seen").hidden = !(shown && drawing.seen);
  if (shown && drawing.seen) $("seen").src = drawing.seen;
  $("seen").alt = "What the network sees of the drawing";
  showBars(shown, first);
  showCharts(shown, first);
}

function showBars(shown, first) {
  const last = shown && shown.probabilities[shown.probabilities.length - 1];
  const places = shown ? shown.classes : state.classes.filter((one) => !isEmpty(one));
  const bars = state.classes.map((one) => {
    const index = places.indexOf(one);
    const share = shown && index >= 0 ? last[index] : 0;
    const fill = make("div");
    fill.style.width = `${100 * share}%`;
    const text = index < 0 ? "" : shown ? percent(share) : "";
    const row = make(
      "li",
      { className: first && one.hue === first.hue ? "first" : "" },
      make("span", { className: "label", title: nameOf(one) }, nameOf(one)),
      index < 0 ? make("span", { className: "quiet" }, "no drawing yet") : make("div", { className: "track" }, fill),
      make("span", { className: "share" }, text),
    );
    row.style.setProperty("--hue", one.hue);
    return row;
  });
  $("bars").replaceChildren(...bars);
}

function showCharts(shown, first) {
  const { loss } = latest;
  const facts = start.networks[state.network];
  const before = facts.prototype ? "prototypes" : "not adapted";
  for (const svg of [$("chart-probability"), $("chart-loss")]) svg.closest("figure").hidden = !facts.steps; // one point is no chart
  const lines = !shown
    ? []
    : shown.classes.map(({ hue }, index) => ({
        values: shown.probabilities.map((row) => row[index]),
        hue,
        kind: hue === first.hue ? "first" : "",
      }));
  chart($("chart-probability"), lines, 1, ["0", "100 %"], before);
  const top = loss ? Math.max(...loss, 0.1) : 1;
  chart($("chart-loss"), loss ? [{ values: loss, kind: "first loss" }] : [], top, ["0", top.toFixed(1)], before);
  $("story").textContent = shown && loss ? story(shown, first, loss, facts) : "";
  $("chart-probability").setAttribute("aria-label", shown ? $("story").textContent : "Probability, step by step");
  $("chart-loss").setAttribute("aria-label", loss ? `Loss: ${loss.map((one) => one.toFixed(2)).join(", ")}` : "Loss");
}

function story(shown, first, loss, facts) {
  const start = best(shown, 0);
  const steps = loss.length - 1;
  if (!steps)
    return "This network has learned your signs at once, as the mean of each one's pictures (prototypes), without a gradient step. Other networks take steps.";
  const after = steps === 1 ? "one gradient step" : `${steps} gradient steps`;
  const fell = `the loss on your signs went from ${loss[0].toFixed(2)} to ${loss[steps].toFixed(2)}.`;
  const how = facts.prototype
    ? " This network compares with the mean of each sign's drawings (prototypes) even before that; one without starts from guessing."
    : "";
  return `Before: ${nameOf(start)} ${percent(start.share)}. After ${after}: ${nameOf(first)} ${percent(first.share)}; ${fell}${how}`;
}

function chart(svg, lines, top, [low, high], before) {
  const [left, right, upper, lower] = [40, 250, 12, 118];
  const steps = lines.length ? lines[0].values.length - 1 : 1;
  const x = (step) => left + ((right - left) * step) / Math.max(1, steps);
  const y = (value) => lower - ((lower - upper) * value) / top;
  const parts = [
    shape("path", { class: "axis", fill: "none", d: `M${left} ${upper}V${lower}H${right}` }),
    shape("text", { x: left - 6, y: upper + 5, "text-anchor": "end" }, high),
    shape("text", { x: left - 6, y: lower + 4, "text-anchor": "end" }, low),
    shape("text", { x: left, y: lower + 20 }, before),
    shape("text", { x: right, y: lower + 20, "text-anchor": "end" }, ["", "1 step"][steps] ?? `${steps} steps`),
  ];
  for (const { values, hue, kind } of [...lines].sort((one, other) => one.kind.length - other.kind.length)) {
    const points = values.map((value, step) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`);
    const line = shape("polyline", { class: `line ${kind}`, points: points.join(" ") });
    const dots = values.map((value, step) => shape("circle", { class: `dot ${kind}`, cx: x(step), cy: y(value), r: kind ? 4 : 3 }));
    for (const node of [line, ...dots]) node.style.setProperty("--hue", hue ?? 0);
    parts.push(line, ...dots);
  }
  svg.replaceChildren(...parts);
}

/* --- files --- */

const isPicture = (path) => {
  const name = path.split("/").pop().toLowerCase();
  const hidden = path.split("/").some((part) => /^(\.|__MACOSX$|@eaDir$)/.test(part));
  return !hidden && !/^(thumbs\.db|desktop\.ini)$|\.(txt|json|csv|md)$/.test(name);
};

function choose(properties, chosen) {
  const input = $("files");
  Object.assign(input, { multiple: false, accept: "", webkitdirectory: false, value: "" }, properties);
  input.onchange = () =>
    attempt(() => chosen([...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file }))));
  input.click();
}

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    say(error.message);
  }
}

/** The drawing of each file, as the server reads it; what it cannot read is named. */
async function read(files) {
  const wanted = files.filter(({ path }) => isPicture(path));
  if (!wanted.length) throw new Error("There are no pictures among these files.");
  if (wanted.length > start.most.pictures) throw new Error(`These are ${wanted.length} pictures; the page takes ${start.most.pictures}.`);
  const read = [];
  const refused = [];
  for (const { path, file } of wanted) {
    if (wanted.length > 9) say(`Reading picture ${read.length + refused.length + 1} of ${wanted.length}`);
    try {
      const name = encodeURIComponent(file.name.slice(0, 100).toWellFormed?.() ?? file.name.slice(0, 100));
      const answer = await post(`api/picture?name=${name}`, "application/octet-stream", file);
      read.push({ path, drawing: await opened((await answer.json()).picture) });
    } catch (error) {
      refused.push(error.message);
    }
  }
  hush();
  if (refused.length) say(refused.length > 1 ? `${refused[0]} (and ${refused.length - 1} more)` : refused[0]);
  return read;
}

async function addTo(one, files) {
  const drawings = (await read(files)).map(({ drawing }) => drawing);
  one.drawings = [...one.drawings.filter((drawing) => !isBlank(drawing)), ...drawings];
  if (!one.drawings.length) one.drawings = [newDrawing()];
  showClasses();
  ask(0);
}

async function addQueryFiles(files) {
  const drawings = (await read(files)).map(({ drawing }) => drawing);
  if (drawings.length) addQueries(drawings);
}

/** `fish/1.png`, below any folders that all share: a class `fish`. */
function learnFolders(read) {
  const sorted = [...read].sort((one, other) => (one.path < other.path ? -1 : 1));
  const found = sorted.map(({ path, drawing }) => ({ folders: path.split("/").slice(0, -1), drawing }));
  while (found.length && found.every(({ folders }) => folders.length > 1 && folders[0] === found[0].folders[0]))
    for (const one of found) one.folders.shift();
  if (found.some(({ folders }) => !folders.length))
    throw new Error("Some pictures are in no folder. Put those of each sign into a folder of its own.");
  const named = new Map();
  for (const { folders, drawing } of found) {
    const name = folders.join("/");
    named.set(name, [...(named.get(name) ?? []), drawing]);
  }
  if (!named.size) return;
  if (named.size > start.most.classes) throw new Error(`These are ${named.size} signs; the page takes ${start.most.classes}.`);
  offerUndo(`Read: ${named.size} ${named.size === 1 ? "sign" : "signs"}, ${found.length} ${found.length === 1 ? "picture" : "pictures"}.`);
  state.classes = classesOf(named);
  showClasses();
  ask(0);
}

async function openZip(file) {
  const found = await (await post("api/unzip", "application/zip", file)).json();
  const read = await Promise.all(found.files.map(async ({ path, picture }) => ({ path, drawing: await opened(picture) })));
  learnFolders(read);
}

async function saveZip() {
  const classes = state.classes
    .filter((one) => !isEmpty(one))
    .map((one) => ({ name: nameOf(one), pictures: one.drawings.filter((drawing) => !isBlank(drawing)).map(contentOf) }));
  if (!classes.length) throw new Error("There is nothing to save yet. Draw a sign first.");
  const response = await post("api/zip", "application/json", JSON.stringify({ classes }));
  const address = URL.createObjectURL(await response.blob());
  make("a", { href: address, download: "signs.zip" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

/** What a drop holds, folders too, before the browser takes it away: it reads the first level at once. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const plain = [...transfer.files].map((file) => ({ path: file.name, file }));
  const walk = async (entry) => {
    if (entry.isFile) {
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      return [{ path: entry.fullPath.replace(/^\//, ""), file }];
    }
    const reader = entry.createReader();
    const found = [];
    for (;;) {
      const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
      if (!some.length) break;
      found.push(...some);
    }
    return (await Promise.all(found.map(walk))).flat();
  };
  return entries.length ? (await Promise.all(entries.map(walk))).flat() : plain;
}

function takesDrops(node, action) {
  const mark = (event, isOver) => {
    event.preventDefault();
    event.stopPropagation();
    node.classList.toggle("over", isOver);
  };
  node.addEventListener("dragover", (event) => mark(event, true));
  node.addEventListener("dragleave", (event) => mark(event, false));
  node.addEventListener("drop", (event) => {
    mark(event, false);
    const files = dropped(event.dataTransfer);
    attempt(async () => openDropped(await files, action));
  });
}

async function openDropped(files, action) {
  if (files.length === 1 && /\.zip$/i.test(files[0].path)) await openZip(files[0].file);
  else await action(files);
}

async function openAnywhere(files) {
  if (files.some(({ path }) => path.includes("/"))) learnFolders(await read(files));
  else await addQueryFiles(files);
}

/* --- notices, and what is kept --- */

let restore = null;
let closing = 0;

function say(text) {
  restore = null;
  clearTimeout(closing);
  closing = setTimeout(hush, 12000);
  $("restore").hidden = true;
  $("notice").hidden = false;
  $("notice").firstElementChild.textContent = text;
}

/** Say what is about to happen to the signs and queries, and offer to take it back. */
function offerUndo(text) {
  const { classes, queries, current } = state;
  say(text);
  $("restore").hidden = false;
  restore = { classes, queries, current };
}

function hush() {
  $("notice").hidden = true;
}

const bare = ({ image, strokes }) => ({ picture: image?.src ?? null, strokes });

function keep() {
  const { classes, queries, current, network } = state;
  const content = {
    classes: classes.map(({ name, drawings }) => [name, drawings.map(bare)]),
    queries: queries.map(({ drawing }) => bare(drawing)),
    current,
    network,
  };
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(content));
  } catch {
    sessionStorage.removeItem(KEPT); // too much for the tab: the page then opens with the samples
  }
}

async function kept() {
  const content = JSON.parse(sessionStorage.getItem(KEPT));
  if (!content) return false;
  const filled = ({ picture, strokes }) => (picture ? opened(picture) : newDrawing(null, strokes));
  const classes = content.classes.map(async ([name, drawings]) => [name, await Promise.all(drawings.map(filled))]);
  state.classes = classesOf(await Promise.all(classes));
  state.queries = (await Promise.all(content.queries.map(filled))).map(newQuery);
  state.current = content.current;
  if (content.network in start.networks) state.network = content.network;
  return query() !== undefined;
}

async function takeSamples() {
  const named = new Map();
  for (const { path, picture } of start.support) named.set(path.split("/")[0], [await opened(picture)]);
  const queries = await Promise.all(start.queries.map(({ picture }) => opened(picture)));
  if (!named.size) return takeNothing();
  state.classes = classesOf(named);
  state.queries = queries.map(newQuery);
  if (!queries.length) state.queries = [newQuery()];
  state.current = 0;
}

function takeNothing() {
  state.classes = classesOf([1, 2, 3].map((number) => [`sign ${number}`, undefined]));
  state.queries = [newQuery()];
  state.current = 0;
}

function showAll() {
  $("network").value = state.network;
  const { ways, steps, drawings, prototype } = start.networks[state.network];
  $("then").textContent = steps ? "watch it learn" : "see which it finds";
  const signs = ways === null ? "any number of signs" : `up to ${ways} signs`;
  $("about").textContent = `${drawings ? "For drawings" : "For pictures like those it was trained on"}: ${signs}, ${steps || "no"} inner ${steps > 1 ? "steps" : "step"}`;
  showClasses();
  showQuery();
  showQueries();
  ask(0);
}

/* --- the beginning --- */

function connect() {
  const changed = () => {
    query().asked = null; // it is asked again, though another may be looked at by then
    showQuery();
    showQueries();
    ask();
  };
  const canvas = $("query");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Draw: the sign to name");
  canvas.setAttribute("aria-describedby", "keys");
  giveThePen(canvas, queryToDraw, changed);
  $("undo").onclick = () => (undo(query().drawing), changed());
  $("clear").onclick = () => (clear(query().drawing), changed());
  $("another").onclick = () => {
    if (!isBlank(query().drawing)) addQueries([newDrawing()]);
    canvas.focus();
  };
  $("open-queries").onclick = () => choose({ multiple: true }, addQueryFiles);
  $("open-folder").onclick = () => choose({ webkitdirectory: true }, async (files) => learnFolders(await read(files)));
  $("open-zip").onclick = () => choose({ accept: ".zip" }, ([{ file }]) => openZip(file));
  $("save").onclick = () => attempt(saveZip);
  $("samples").onclick = async () => {
    offerUndo("These are the sample drawings.");
    await takeSamples();
    showAll();
  };
  $("empty").onclick = () => {
    offerUndo("All is cleared.");
    takeNothing();
    showAll();
  };
  $("restore").onclick = () => {
    const before = restore;
    offerUndo("It is as it was before.");
    Object.assign(state, before);
    showAll();
  };
  $("dismiss").onclick = hush;
  $("network").onchange = () => {
    state.network = $("network").value;
    showAll();
  };
  takesDrops($("sheet"), addQueryFiles);
  takesDrops(document.body, openAnywhere);
}

async function begin() {
  start = await (await fetch("api/start")).json();
  const names = Object.keys(start.networks);
  state.network = names[0];
  $("network").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  if (!(await kept().catch(() => false))) await takeSamples();
  connect();
  showAll();
}

begin();
