"use strict";
// The page of a report. Words that come from the database are only ever set as textContent.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const count = (n) => n.toLocaleString("en");
const share = (part, all) => (all ? (100 * part / all).toFixed(part && part < all / 1000 ? 2 : 1) : "0.0") + " %";
const plural = (n, word) => count(n) + " " + word + (n === 1 ? "" : word.endsWith("ch") ? "es" : "s");

function size(bytes) {
  if (bytes < 1024) return bytes + " B";
  for (const unit of ["KiB", "MiB", "GiB", "TiB"]) {
    bytes /= 1024;
    if (bytes < 1024 || unit === "TiB") return bytes.toFixed(1) + " " + unit;
  }
}

function make(tag, options, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options || {})) {
    if (name === "text") element.textContent = value;
    else if (name === "click") element.addEventListener("click", value);
    else if (name === "color") element.style.background = value;
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...inside.filter((child) => child !== null));
  return element;
}

function table(kind, heads, rows) {
  const body = make("tbody", {});
  for (const row of rows) body.append(make("tr", {}, ...row));
  const line = heads.map((head) => make("th", { scope: "col", class: head[1] || null, text: head[0] }));
  return make("table", { class: kind }, make("thead", {}, make("tr", {}, ...line)), body);
}

const cell = (text, kind) => make("td", { class: kind || null, text: String(text) });

// ---------------------------------------------------------------- columns

function bytesOf(name) {
  const text = atob(data.columns[name] || "");
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at);
  return bytes;
}

const [LOST, META, BRANCH, LEAF, OVERFLOW, FREE] = [0, 1, 2, 3, 4, 5];
const NONE = 255, DAMAGED = 128;
const KIND_NAMES = data.kinds;
const group = data.group;
const kinds = bytesOf("kind"), owners = bytesOf("tree"), fills = bytesOf("fill"), helds = bytesOf("held");
const births = new Float64Array(bytesOf("birth").buffer);
const parents = new Uint32Array(bytesOf("parent").buffer);
const cells = new Uint16Array(bytesOf("cells").buffer);
const levels = bytesOf("level");
const mix = new Uint16Array(bytesOf("mix").buffer);
const squares = kinds.length;
const reasons = new Map(data.damage.map(([page, , , reason]) => [page, reason]));
const treeName = (index) => (index < data.trees.length ? data.trees[index].name : "no tree");

let kidsOf = null;
function childrenOf(page) {  // the pages that a page refers to, from the map
  if (group > 1) return [];
  if (kidsOf === null) {
    kidsOf = new Map();
    for (let at = 0; at < squares; at++) {
      if (!parents[at]) continue;
      if (!kidsOf.has(parents[at])) kidsOf.set(parents[at], []);
      kidsOf.get(parents[at]).push(at);
    }
  }
  return kidsOf.get(page) || [];
}

// ---------------------------------------------------------------- light and dark

const LIGHT = {
  kinds: ["#cf5fa0", "#7352c7", "#e28a00", "#3a7fd5", "#159682", "#e1e6ec"], held: "#a9b4c1", damaged: "#d01226", none: "#cdd4dc",
  trees: ["#3a7fd5", "#e28a00", "#159682", "#b04fb5", "#8b9a1b", "#d9573f", "#4a4fb0", "#b98a5e"], catalog: "#5d6b7b", freeTree: "#8f9dad", others: "#b3a7c9",
  fill: ["#f7d774", "#8cc99a", "#3590b5", "#20418c"], age: ["#3d1173", "#2d6f9e", "#54b689", "#dbe8a6"], ink: "#111820", mark: "#111820",
};
const DARK = {
  kinds: ["#e98cc0", "#a58dea", "#f2a93b", "#5c9dee", "#37bca5", "#2b3440"], held: "#5d6b7c", damaged: "#ff4a5c", none: "#3d4856",
  trees: ["#5c9dee", "#f2a93b", "#37bca5", "#d682dc", "#b8c94e", "#f07f66", "#8e93f0", "#d3a67c"], catalog: "#94a3b5", freeTree: "#6f7e90", others: "#8d7fb0",
  fill: ["#6b3a6e", "#c25a5f", "#f0a04b", "#faea9e"], age: ["#faea9e", "#55bd86", "#2f7396", "#43337a"], ink: "#0c1016", mark: "#ffffff",
};
let colors = LIGHT;
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const THEMES = ["auto", "light", "dark"];
let theme = "auto";
try { theme = localStorage.getItem("cowdb-report-theme") || "auto"; } catch { /* a browser that keeps nothing */ }
if (!THEMES.includes(theme)) theme = "auto";

function dress() {
  const night = theme === "dark" || (theme === "auto" && dark.matches);
  document.documentElement.dataset.theme = night ? "dark" : "light";
  byId("theme").textContent = { auto: "As the system", light: "Light", dark: "Dark" }[theme];
  byId("theme").setAttribute("aria-label", "Light or dark: " + byId("theme").textContent);
  colors = night ? DARK : LIGHT;
}

byId("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  try { localStorage.setItem("cowdb-report-theme", theme); } catch { /* as above */ }
  dress();
  drawAll();
});
dark.addEventListener("change", () => { dress(); drawAll(); });

const parts = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
function between(stops, ratio) {
  const place = Math.min(Math.max(ratio, 0), 1) * (stops.length - 1);
  const at = Math.min(Math.floor(place), stops.length - 2);
  const low = parts(stops[at]), high = parts(stops[at + 1]);
  return "#" + low.map((part, i) => Math.round(part + (high[i] - part) * (place - at)).toString(16).padStart(2, "0")).join("");
}
const over = (color) => {  // the colour of words on a colour
  const [r, g, b] = parts(color);
  return 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#10151c" : "#ffffff";
};

// ---------------------------------------------------------------- head

document.title = data.name + " - cowdb report";
byId("name").textContent = data.name;
const wrong = data.damaged || data.problems.length;
byId("verdict").textContent = data.damaged ? plural(data.damaged, "damaged page") : wrong ? "Problems found" : "No damage met";
byId("verdict").classList.toggle("bad", Boolean(wrong));
for (const [label, text] of data.facts) {
  const torn = data.slots.some((reason, slot) => reason !== null && label === "Meta page " + slot);
  byId("facts").append(make("div", {}, make("dt", { text: label }), make("dd", { text, class: torn ? "bad-text" : null })));
}
byId("footer").textContent = "Made " + data.made + " by cowdb " + data.version + ", of transaction " + count(data.transaction) +
  ". Keys are shown as " + { text: "text, with \\xNN for bytes that are none", hex: "hex", redacted: "lengths alone" }[data.show] + ". The page loads nothing.";

function drawDamage() {
  byId("damage").hidden = !wrong;
  byId("problems").replaceChildren(...data.problems.map((text) => make("li", { text })));
  byId("problems").hidden = !data.problems.length;
  if (data.more_problems) byId("problems").append(make("li", { text: "and " + count(data.more_problems) + " more" }));
  if (data.damage.length) {
    const rows = data.damage.map(([page, kind, tree, reason]) => [
      make("td", { class: "number" }, pageLink(page)), cell(kind), cell(tree === NONE ? "" : treeName(tree)), cell(reason, "bad"),
    ]);
    byId("damage-list").replaceChildren(table("list", [["Page", "number"], ["Kind"], ["Tree"], ["Reason"]], rows));
  }
  byId("damage-more").hidden = data.damaged <= data.damage.length;
  byId("damage-more").textContent = "The list has the first " + count(data.damage.length) + " of " + count(data.damaged) +
    " damaged pages; cowdb pages --damaged lists all.";
}

const pageLink = (page) => make("button", {
  type: "button", class: "link", text: count(page), "aria-label": "page " + page + ", on the map",
  click: () => { choose(Math.floor(page / group)); byId("pages").focus(); },
});

// ---------------------------------------------------------------- the map: what colour

const ramp = (stops) => Array.from({ length: 21 }, (_, i) => between(stops, i / 20));
const oldest = births.reduce((least, birth, at) => (births[at] > 0 ? Math.min(least, birth) : least), data.transaction);
const reach = Math.log1p(Math.max(data.transaction - oldest, 1));
const ranked = data.trees.map((tree, index) => index).filter((index) => !data.trees[index].system && data.trees[index].depth !== null);
const pagesIn = (tree) => tree.branches + tree.leaves + tree.overflow;
ranked.sort((a, b) => pagesIn(data.trees[b]) - pagesIn(data.trees[a]) || a - b);

const MODES = {
  kind: {
    label: "Kind",
    entries: () => [
      ...[BRANCH, LEAF, OVERFLOW, META].map((kind) => ({ label: KIND_NAMES[kind], color: colors.kinds[kind], code: kind })),
      { label: "free", color: colors.kinds[FREE], code: FREE }, { label: "free, held back", color: colors.held, code: 6 },
      { label: "lost", color: colors.kinds[LOST], code: LOST },
    ],
    of: (at) => { const kind = kinds[at] & 127; return kind === FREE && helds[at] > 0 && helds[at] !== NONE ? 6 : kind; },
    pages: (code) => {
      const held = data.holders.slice(1).reduce((sum, holder) => sum + holder.pages, 0);
      return code === 6 ? Math.min(held, data.sums[FREE]) : code === FREE ? Math.max(data.sums[FREE] - held, 0) : data.sums[code];
    },
  },
  tree: {
    label: "Tree",
    entries: () => {
      const found = ranked.slice(0, 8).map((index, at) => ({ label: data.trees[index].name, color: colors.trees[at], code: index }));
      if (data.trees.length > ranked.slice(0, 8).length + 2) found.push({ label: "other trees", color: colors.others, code: 252 });
      data.trees.forEach((tree, index) => {
        if (tree.system) found.push({ label: tree.name, color: tree.name === "the catalog" ? colors.catalog : colors.freeTree, code: index });
      });
      return [...found, { label: "meta, free", color: colors.kinds[FREE], code: 253 }, { label: "lost", color: colors.kinds[LOST], code: 254 }];
    },
    of: (at) => {
      if ((kinds[at] & 127) === LOST) return 254;
      const index = owners[at];
      if (index === NONE) return 253;
      return data.trees[index].system || ranked.indexOf(index) >= 0 && ranked.indexOf(index) < 8 ? index : 252;
    },
    pages: (code) => (code < 252 ? pagesIn(data.trees[code]) : code === 253 ? data.sums[FREE] + data.sums[META] : code === 254 ? data.sums[LOST] : null),
  },
  fill: {
    label: "Fill",
    stops: () => colors.fill, ends: ["0 % full", "100 %"],
    entries: () => [
      ...ramp(colors.fill).map((color, code) => ({ color, code })),
      { label: "free", color: colors.kinds[FREE], code: 30 }, { label: "not measured", color: colors.none, code: 31 },
    ],
    of: (at) => (fills[at] !== NONE ? Math.round(fills[at] / 10) : (kinds[at] & 127) === FREE ? 30 : 31),
  },
  age: {
    label: "Age",
    stops: () => colors.age,
    ends: ["written last", plural(Math.max(data.transaction - oldest, 1), "transaction") + " ago"],
    entries: () => [
      ...ramp(colors.age).map((color, code) => ({ color, code })),
      { label: "free", color: colors.kinds[FREE], code: 30 }, { label: "no birth", color: colors.none, code: 31 },
    ],
    of: (at) => {
      const kind = kinds[at] & 127;
      if (kind === FREE) return 30;
      if (kind === META || kind === LOST) return 31;
      return Math.min(Math.round(20 * Math.log1p(Math.max(data.transaction - births[at], 0)) / reach), 20);
    },
  },
};
const HURT = 255;
let mode = "kind", focus = null, chosen = null, hovered = null;

byId("map-note").textContent = (group > 1
  ? "This file has " + count(data.pages) + " pages, too many for a square each: a square is " + group +
    " neighbours. It has the colour of the kind and tree that most of them have, their mean fill, and the youngest one's age."
  : "A square is a page, in the order of the file.") + " Point at one to see what it is; choose one to see who refers to it.";

for (const [name, about] of Object.entries(MODES)) {
  byId("modes").append(make("button", {
    type: "button", id: "mode-" + name, text: about.label,
    click: () => { mode = name; focus = null; drawLegend(); drawMap(); },
  }));
}

const codes = new Uint8Array(squares);
function drawLegend() {
  const about = MODES[mode];
  const sums = new Map();
  for (let at = 0; at < squares; at++) {
    codes[at] = kinds[at] & DAMAGED ? HURT : about.of(at);
    sums.set(codes[at], (sums.get(codes[at]) || 0) + 1);
  }
  for (const name of Object.keys(MODES)) byId("mode-" + name).setAttribute("aria-pressed", String(name === mode));
  const legend = byId("legend");
  legend.replaceChildren();
  if (about.stops) legend.append(make("span", { text: about.ends[0] }), gradient(about.stops()), make("span", { text: about.ends[1] }));
  for (const entry of [...about.entries(), { label: "damaged", color: colors.damaged, code: HURT }]) {
    if (!entry.label || !sums.has(entry.code)) continue;
    let pages = group === 1 ? sums.get(entry.code) : entry.code === HURT ? data.damaged : about.pages ? about.pages(entry.code) : null;
    legend.append(make("button", {
      type: "button", "aria-pressed": String(focus === entry.code), title: "show these alone",
      click: () => { focus = focus === entry.code ? null : entry.code; drawLegend(); drawMap(); },
    }, make("span", { class: "chip", color: entry.color }), make("span", { text: entry.label }), make("small", { text: pages === null ? "" : count(pages) })));
  }
}

const gradient = (stops) => make("span", { class: "ramp", "aria-hidden": "true", color: "linear-gradient(90deg, " + stops.join(", ") + ")" });

// ---------------------------------------------------------------- the map: drawing and moving

const SIZES = [2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24];
const canvas = byId("pages"), marks = byId("marks"), frame = byId("frame");
let step = null, across = 1;
const rowsAt = (edge) => Math.ceil(squares / Math.max(Math.floor((frame.clientWidth - 8) / edge), 1));
const fits = (edge) => rowsAt(edge) * edge * (window.devicePixelRatio || 1) <= 16000;

function drawMap() {
  if (step === null) {
    step = SIZES[0];
    for (const edge of SIZES) if (rowsAt(edge) * edge <= 440) step = edge;
  }
  byId("smaller").disabled = step === SIZES[0];
  byId("larger").disabled = step === SIZES.at(-1) || !fits(SIZES[SIZES.indexOf(step) + 1]);
  across = Math.max(Math.floor((frame.clientWidth - 8) / step), 1);
  const wide = Math.min(across, Math.max(squares, 1)) * step, high = Math.max(Math.ceil(squares / across), 1) * step;
  const ratio = window.devicePixelRatio || 1;
  for (const each of [canvas, marks]) {
    each.width = Math.round(wide * ratio);
    each.height = Math.round(high * ratio);
    each.style.width = wide + "px";
    each.style.height = high + "px";
    each.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
  }
  const brush = canvas.getContext("2d");
  const edge = step >= 4 ? step - (step >= 16 ? 2 : 1) : step;
  const places = new Map();  // the squares of each colour together: a change of colour costs more than a square
  for (let at = 0; at < squares; at++) {
    if (!places.has(codes[at])) places.set(codes[at], []);
    places.get(codes[at]).push(at);
  }
  for (const entry of [...MODES[mode].entries(), { color: colors.damaged, code: HURT }]) {
    brush.fillStyle = entry.color;
    brush.globalAlpha = focus === null || focus === entry.code ? 1 : 0.13;
    for (const at of places.get(entry.code) || []) brush.fillRect((at % across) * step, Math.floor(at / across) * step, edge, edge);
  }
  brush.globalAlpha = 1;
  if (step >= 8) {  // damage is to be seen without its colour, too
    brush.strokeStyle = "#ffffff";
    brush.lineWidth = Math.max(step / 8, 1);
    for (const at of places.get(HURT) || []) {
      const x = (at % across) * step, y = Math.floor(at / across) * step, in_ = edge * 0.27;
      brush.beginPath();
      brush.moveTo(x + in_, y + in_); brush.lineTo(x + edge - in_, y + edge - in_);
      brush.moveTo(x + edge - in_, y + in_); brush.lineTo(x + in_, y + edge - in_);
      brush.stroke();
    }
  }
  drawMarks();
}

function drawMarks() {
  const brush = marks.getContext("2d");
  brush.clearRect(0, 0, marks.width, marks.height);
  const ring = (at, color, width) => {
    brush.strokeStyle = color;
    brush.lineWidth = width;
    const x = (at % across) * step, y = Math.floor(at / across) * step, edge = Math.max(step - (step >= 4 ? 1 : 0), 4);
    brush.strokeRect(x + width / 2 - 1, y + width / 2 - 1, edge + 2 - width, edge + 2 - width);
  };
  if (chosen !== null && group === 1) {
    for (const kid of childrenOf(chosen).slice(0, 2000)) ring(kid, colors.mark, 1);
    if (parents[chosen]) ring(parents[chosen], colors.mark, 2);
  }
  if (hovered !== null) ring(hovered, colors.mark, 2);
  if (chosen !== null) {
    ring(chosen, colors.mark, 3);
    ring(chosen, colors === DARK ? "#000000" : "#ffffff", 1);
  }
}

function describe(at) {
  const rows = [];
  if (group > 1) {
    const first = at * group, last = Math.min(first + group, data.pages) - 1;
    const there = KIND_NAMES.map((name, kind) => [mix[KIND_NAMES.length * at + kind], name]).filter(([n]) => n);
    rows.push(["Kinds", there.map(([n, name]) => n + " " + name).join(", ")]);
    rows.push(["Most of tree", treeName(owners[at])]);
    if (births[at]) rows.push(["Youngest birth", "transaction " + count(births[at])]);
    if (fills[at] !== NONE) rows.push(["Mean fill", fills[at] / 2 + " %"]);
    if (kinds[at] & DAMAGED) {
      const bad = data.damage.filter(([page]) => page >= first && page <= last);
      rows.push(["Damaged", bad.map(([page, , , reason]) => page + ": " + reason).join("; ") || "cowdb pages --damaged says why"]);
    }
    return { title: "Pages " + count(first) + " to " + count(last), rows };
  }
  const kind = kinds[at] & 127;
  const name = kind === OVERFLOW && levels[at] ? "overflow, further page of a run" : KIND_NAMES[kind];
  rows.push(["Kind", kind === BRANCH ? "branch at level " + levels[at] : name]);
  if (owners[at] !== NONE) rows.push(["Tree", treeName(owners[at])]);
  if (births[at] || (kind !== META && kind !== LOST)) rows.push(["Born in", count(births[at]) + ", " + count(Math.max(data.transaction - births[at], 0)) + " ago"]);
  if (fills[at] !== NONE) rows.push(["Fill", fills[at] / 2 + " %"]);
  if (cells[at]) rows.push([kind === BRANCH ? "Children" : "Entries", count(cells[at])]);
  if (kind === BRANCH || kind === LEAF || kind === OVERFLOW) rows.push(["Referred to by", parents[at] ? "page " + count(parents[at]) : "the meta page"]);
  if (kind === FREE && helds[at] !== NONE) rows.push(["Held back by", data.holders[helds[at]].label]);
  if (kind === META && data.slots[at]) rows.push(["Cannot be read", data.slots[at]]);
  if (kind === LOST) rows.push(["Lost", "neither in use nor free"]);
  if (kinds[at] & DAMAGED) rows.push(["Damaged", reasons.get(at) || "cowdb pages --damaged says why"]);
  return { title: "Page " + count(at), rows };
}

function factsTable(rows) {
  const body = make("tbody", {});
  for (const [label, text] of rows) {
    const value = label === "Referred to by" && text.startsWith("page ") ? make("td", {}, "page ", pageLink(Number(text.slice(5).replaceAll(",", "")))) : cell(text, label === "Damaged" ? "bad" : null);
    body.append(make("tr", {}, make("th", { scope: "row", text: label }), value));
  }
  return make("table", { class: "facts" }, body);
}

const nodes = data.nodes;
const nodeOf = new Map();
nodes.page.forEach((page, node) => { if (!nodeOf.has(page)) nodeOf.set(page, node); });

function choose(at) {
  if (!squares) return;
  chosen = Math.min(Math.max(at, 0), squares - 1);
  const about = describe(chosen);
  const inside = [make("h3", { text: about.title }), factsTable(about.rows)];
  const node = group > 1 ? undefined : nodeOf.has(chosen) ? nodeOf.get(chosen) : nodeOf.get(parents[chosen] || -1);
  if (node !== undefined) inside.push(make("button", { type: "button", id: "to-tree", text: "Show in its tree", click: () => toTree(node) }));
  byId("chosen").replaceChildren(...inside);
  const y = Math.floor(chosen / across) * step;
  if (y < frame.scrollTop) frame.scrollTop = y;
  else if (y + step > frame.scrollTop + frame.clientHeight - 8) frame.scrollTop = y + step - frame.clientHeight + 8;
  drawMarks();
}

canvas.addEventListener("pointermove", (event) => {
  const box = canvas.getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / step), row = Math.floor((event.clientY - box.top) / step);
  const at = row * across + column;
  if (column < 0 || column >= across || at < 0 || at >= squares) { unhover(); return; }
  if (at !== hovered) {
    hovered = at;
    const about = describe(at);
    byId("tip").replaceChildren(make("h3", { text: about.title }), factsTable(about.rows));
    drawMarks();
  }
  const tip = byId("tip");
  tip.hidden = false;
  const left = event.clientX + 16 + tip.offsetWidth > window.innerWidth ? event.clientX - 14 - tip.offsetWidth : event.clientX + 16;
  const top = event.clientY + 16 + tip.offsetHeight > window.innerHeight ? event.clientY - 14 - tip.offsetHeight : event.clientY + 16;
  tip.style.left = Math.max(left, 4) + "px";
  tip.style.top = Math.max(top, 4) + "px";
});
function unhover() {
  if (hovered === null) return;
  hovered = null;
  byId("tip").hidden = true;
  drawMarks();
}
canvas.addEventListener("pointerleave", unhover);
canvas.addEventListener("click", () => { if (hovered !== null) choose(hovered); });
canvas.addEventListener("focus", () => { if (chosen === null) choose(0); });
canvas.addEventListener("keydown", (event) => {
  const far = across * Math.max(Math.floor(frame.clientHeight / step / 2), 1);
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, PageDown: far, PageUp: -far, Home: -Infinity, End: Infinity };
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key in moves) choose((chosen || 0) + moves[event.key]);
  else if (event.key === "Enter" && byId("to-tree")) byId("to-tree").click();
  else return;
  event.preventDefault();
});
byId("goto").max = data.pages - 1;
byId("goto").addEventListener("change", (event) => {
  const page = Number(event.target.value);
  if (event.target.value !== "" && Number.isInteger(page)) choose(Math.floor(page / group));
});
function resize(by) {
  step = SIZES[SIZES.indexOf(step) + by];
  drawMap();
  if (chosen !== null) choose(chosen);
}
byId("smaller").addEventListener("click", () => resize(-1));
byId("larger").addEventListener("click", () => resize(1));

// ---------------------------------------------------------------- the trees

const above = new Int32Array(nodes.page.length).fill(-1);
nodes.page.forEach((_, node) => { for (let i = 0; i < nodes.children[node]; i++) above[nodes.first[node] + i] = node; });
const rooted = new Map();
data.trees.forEach((tree, index) => { if (tree.root !== null) rooted.set(tree.root, index); });
let at = null;  // what is zoomed to: a node, and which of its children
const CROWD = 120, LINES = 50;

byId("tree-note").textContent = "Widths are entries, colours are fill. Choose a page to zoom in on it, the topmost one to zoom out. " +
  "Neighbours in a crowd are drawn as one until you zoom in on them." +
  (nodes.page.some((_, node) => nodes.level[node] && !nodes.damaged[node] && nodes.children[node] < nodes.cells[node])
    ? " These trees are larger than a report: of some branches not all children are in it. cowdb tree shows them." : "");

data.trees.forEach((tree, index) => {
  if (tree.depth === null) return;
  byId("tree").append(make("option", { value: index, text: tree.name + " (" + plural(tree.entries, "entry").replace("entrys", "entries") + ")" }));
});
byId("tree").addEventListener("change", (event) => {
  const root = data.trees[Number(event.target.value)].root;
  zoom(root === null ? null : root);
});

function toTree(node) {
  zoom(node);
  byId("tree-title").scrollIntoView({ behavior: "smooth", block: "start" });
}

function zoom(node, low, high) {
  at = node === null ? null : { node, low: low || 0, high: high === undefined ? nodes.children[node] : high };
  if (node !== null) {
    let top = node;
    while (above[top] >= 0) top = above[top];
    byId("tree").value = String(rooted.get(top));
  }
  drawTree();
}

const entriesOf = (list) => list.reduce((sum, node) => sum + Math.max(nodes.entries[node], 1), 0);
const range = (first, length) => Array.from({ length }, (_, i) => first + i);
function crowds(list, most) {  // neighbours together, so that there are no more than `most`
  const each = Math.ceil(list.length / Math.max(most, 1));
  return Array.from({ length: Math.ceil(list.length / each) || 0 }, (_, i) => list.slice(i * each, (i + 1) * each));
}
const colorOf = (list) => {
  if (list.some((node) => nodes.damaged[node])) return colors.damaged;
  const known = list.filter((node) => nodes.fill[node] >= 0);
  return known.length ? between(colors.fill, known.reduce((sum, node) => sum + nodes.fill[node], 0) / known.length / 1000) : colors.none;
};
const nodeKind = (node) => (nodes.level[node] ? "branch at level " + nodes.level[node] : "leaf");
const fillText = (node) => (nodes.fill[node] < 0 ? "" : (nodes.fill[node] / 10).toFixed(1) + " %");
function labelOf(list) {
  if (list.length > 1) return list.length + " pages, " + count(entriesOf(list)) + " entries, from " + startOf(list[0]);
  const node = list[0];
  return "page " + count(nodes.page[node]) + ", " + nodeKind(node) + ", " + count(nodes.entries[node]) + " entries, from " + startOf(node) +
    (nodes.damaged[node] ? ", DAMAGED" : ", " + fillText(node) + " full");
}
const startOf = (node) => (nodes.from[node] === null ? "the beginning" : nodes.from[node]);

function drawTree() {
  const icicle = byId("icicle");
  icicle.replaceChildren();
  byId("scale").replaceChildren(make("span", { text: "0 % full" }), gradient(colors.fill), make("span", { text: "100 %" }),
    ...(nodes.damaged.some(Boolean) ? [make("span", { class: "chip", color: colors.damaged }), make("span", { text: "damaged" })] : []));
  byId("way").replaceChildren();
  if (at === null) {
    byId("scale").replaceChildren();
    byId("children").replaceChildren(make("p", { class: "note", text: "This tree is empty: it has no page." }));
    return;
  }
  drawWay();
  const kids = range(nodes.first[at.node] + at.low, at.high - at.low);
  const whole = at.low === 0 && at.high === nodes.children[at.node];
  const top = make("div", { class: "row" });
  const middle = make("div", { class: "row" });
  const bottom = make("div", { class: "row" });
  const grid = [[], [], []];
  const add = (line, row, list, wide, upper, words, click) => {
    const color = colorOf(list);
    const button = make("button", { type: "button", class: "cell", tabindex: -1, title: labelOf(list), "aria-label": labelOf(list), color, click, text: words });
    button.style.color = over(color);
    button.style.flexGrow = wide;
    line.append(button);
    grid[row].push({ button, upper });
  };
  const out = () => (whole ? (above[at.node] >= 0 ? zoom(above[at.node]) : null) : zoom(at.node));
  const own = (whole ? "page " + count(nodes.page[at.node]) : "children " + (at.low + 1) + " to " + at.high + " of page " + count(nodes.page[at.node]));
  add(top, 0, [at.node], 1, 0, own, () => { out(); refocus(0); });
  const wide = icicle.clientWidth || 900, all = entriesOf(kids);
  const lists = crowds(kids, CROWD);
  for (const list of lists) {
    const weight = entriesOf(list) / all;
    add(middle, 1, list, weight, 0, lists.length <= 16 ? (list.length > 1 ? list.length + " pages" : count(nodes.page[list[0]])) : "", () => { enter(list); refocus(0); });
    const below = list.length === 1 ? range(nodes.first[list[0]], nodes.children[list[0]]) : [];
    const under = make("div", { class: "row" });
    under.style.flex = weight + " 1 0";
    under.style.minWidth = "0";
    under.style.marginBottom = "0";
    if (!below.length) under.append(make("span", { class: "gap" }));
    const least = below.length ? crowds(below, Math.min(Math.floor(weight * wide / 5), CROWD)) : [];
    for (const some of least) {
      add(under, 2, some, entriesOf(some) / entriesOf(below), grid[1].length - 1, "", () => { enter(some); refocus(0); });
    }
    bottom.append(under);
  }
  icicle.append(top, ...(kids.length ? [middle] : []), ...(grid[2].length ? [bottom] : []));
  grid[0][0].button.tabIndex = 0;
  icicle.onkeydown = (event) => walk(event, grid);
  byId("children").scrollTop = 0;
  drawChildren(kids, LINES);
}

const refocus = () => { const first = byId("icicle").querySelector("button"); if (first) first.focus({ preventScroll: true }); };
function enter(list) {
  if (list.length === 1) zoom(list[0]);
  else { const node = above[list[0]]; zoom(node, list[0] - nodes.first[node], list.at(-1) + 1 - nodes.first[node]); }
}
function walk(event, grid) {
  let row = -1, column = -1;
  grid.forEach((line, i) => line.forEach((each, j) => { if (each.button === event.target) [row, column] = [i, j]; }));
  if (row < 0) return;
  if (event.key === "ArrowRight") column += 1;
  else if (event.key === "ArrowLeft") column -= 1;
  else if (event.key === "ArrowUp") [row, column] = [row - 1, row === 2 ? grid[2][column].upper : 0];
  else if (event.key === "ArrowDown") [row, column] = [row + 1, row === 1 ? grid[2].findIndex((each) => each.upper === column) : 0];
  else return;
  event.preventDefault();
  const next = (grid[row] || [])[column];
  if (!next) return;
  event.target.tabIndex = -1;
  next.button.tabIndex = 0;
  next.button.focus();
}

function drawWay() {
  const way = [];
  for (let node = at.node; node >= 0; node = above[node]) way.unshift(node);
  const last = at.low !== 0 || at.high !== nodes.children[at.node];
  way.forEach((node, i) => {
    if (i) byId("way").append(make("span", { "aria-hidden": "true", text: "/" }));
    const words = (i ? "" : "root ") + "page " + count(nodes.page[node]);
    if (i === way.length - 1 && !last) byId("way").append(make("strong", { text: words }));
    else byId("way").append(make("button", { type: "button", class: "link", text: words, click: () => zoom(node) }));
  });
  if (last) byId("way").append(make("span", { "aria-hidden": "true", text: "/" }), make("strong", { text: "children " + (at.low + 1) + " to " + at.high }));
}

function drawChildren(kids, lines) {
  const node = at.node, box = byId("children");
  if (!nodes.level[node] || !kids.length) {
    const page = nodes.page[node];
    const rows = [["Page", count(page)], ["Kind", nodeKind(node)], ["Entries", count(nodes.entries[node])], ["Fill", fillText(node)], ["Born in", count(nodes.birth[node])], ["Keys from", startOf(node)]];
    const square = Math.floor(page / group);
    const runs = group === 1 && !nodes.level[node] ? childrenOf(page).filter((kid) => !levels[kid]) : [];
    if (runs.length) rows.push(["Overflow runs", count(runs.length) + ", at page " + runs.slice(0, 30).map(count).join("; ") + (runs.length > 30 ? "; ..." : "")]);
    if (nodes.damaged[node]) rows.push(["Damaged", reasons.get(page) || "cowdb pages --damaged says why"]);
    else if (nodes.level[node]) rows.push(["Children", count(nodes.cells[node]) + ", not in this report; cowdb tree shows them"]);
    box.replaceChildren(factsTable(rows.filter(([, text]) => text !== "")));
    if (square < squares) box.append(make("p", {}, make("button", { type: "button", text: "Show on the map", click: () => { choose(square); canvas.focus(); byId("map-title").scrollIntoView({ behavior: "smooth" }); } })));
    return;
  }
  const rows = kids.slice(0, lines).map((kid) => [
    make("td", { class: "number" }, make("button", { type: "button", class: "link", text: count(nodes.page[kid]), click: () => { zoom(kid); refocus(); } })),
    cell(nodeKind(kid)), cell(count(nodes.entries[kid]), "number"), cell(nodes.damaged[kid] ? "damaged" : fillText(kid), nodes.damaged[kid] ? "number bad" : "number"),
    cell(count(nodes.birth[kid]), "number"), nodes.from[kid] === null ? cell("(the beginning)", "note") : cell(nodes.from[kid], "key"),
  ]);
  box.replaceChildren(table("list", [["Page", "number"], ["Kind"], ["Entries", "number"], ["Full", "number"], ["Born in", "number"], ["Keys from"]], rows));
  if (kids.length > lines) {
    box.append(make("p", {}, make("button", { type: "button", text: "Show more of the " + count(kids.length) + " children", click: () => drawChildren(kids, lines * 4) })));
  }
  if (nodes.children[node] < nodes.cells[node]) {
    box.append(make("p", { class: "note", text: count(nodes.cells[node] - nodes.children[node]) + " more children are not in this report; cowdb tree shows them." }));
  }
}

// ---------------------------------------------------------------- histograms

const SVG = "http://www.w3.org/2000/svg";
function shape(tag, options, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(options)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function histogram(title, words, bins, paints, every, end) {
  const W = 350, H = 190, left = 44, bottom = 24, top = 8;
  const sums = bins.map((bin) => bin.parts.reduce((a, b) => a + b, 0));
  const most = Math.max(...sums, 1);
  const power = 10 ** Math.floor(Math.log10(most));
  const tick = [0.5, 1, 2, 5].map((n) => n * power).find((n) => most / n <= 4 && n >= 1) || Math.ceil(most / 3);
  const high = Math.ceil(most / tick) * tick;
  const svg = shape("svg", { viewBox: "0 0 " + (W + 14) + " " + H, role: "img", "aria-label": title + ". " + words });
  const y = (n) => top + (H - top - bottom) * (1 - n / high);
  const brief = (n) => (n >= 1e6 ? n / 1e6 + " M" : n >= 1e4 ? n / 1e3 + " k" : count(n));
  for (let n = 0; n <= high; n += tick) {
    svg.append(shape("line", { x1: left, x2: W, y1: y(n), y2: y(n) }), shape("text", { x: left - 7, y: y(n) + 4, "text-anchor": "end" }, brief(n)));
  }
  const wide = (W - left) / Math.max(bins.length, 1);
  const bar = Math.min(wide - 2, 46);
  bins.forEach((bin, i) => {
    let done = 0;
    bin.parts.forEach((n, part) => {
      if (!n) return;
      const rise = Math.max(y(done) - y(done + n), 1);
      const rect = shape("rect", { x: left + i * wide + (wide - bar) / 2, y: y(done) - rise, width: Math.max(bar, 1), height: rise, fill: paints[part], rx: 1.5 });
      rect.append(shape("title", {}, bin.tip + ": " + count(sums[i]) + (bin.names ? " (" + bin.names[part] + " " + count(n) + ")" : "")));
      svg.append(rect);
      done += n;
    });
    if (i % every === 0) svg.append(shape("text", { x: left + i * wide + (end ? 0 : wide / 2), y: H - 7, "text-anchor": end && i === 0 ? "start" : "middle" }, bin.label));
  });
  if (end) svg.append(shape("text", { x: W, y: H - 7, "text-anchor": "end" }, end));
  return make("figure", { class: "figure" }, make("h3", { text: title }), make("div", { class: "note", text: words }), svg);
}

function added(lists) {
  const sums = new Map();
  for (const list of lists) for (const [key, n] of list) sums.set(key, (sums.get(key) || 0) + n);
  return [...sums].sort((a, b) => a[0] - b[0]);
}

function drawHistograms() {
  const pick = byId("weigh").value;
  const some = data.trees.filter((tree, index) => (pick === "all" ? !tree.system : String(index) === pick));
  const leaf = range(0, 20).map((bin) => some.reduce((sum, tree) => sum + tree.leaf_fill[bin], 0));
  const branch = range(0, 20).map((bin) => some.reduce((sum, tree) => sum + tree.branch_fill[bin], 0));
  const leaves = leaf.reduce((a, b) => a + b, 0), branches = branch.reduce((a, b) => a + b, 0);
  const fillBins = leaf.map((n, bin) => ({ label: 5 * bin + " %", tip: 5 * bin + " to " + (5 * bin + 5) + " % full", parts: [n, branch[bin]], names: ["leaves", "branches"] }));
  const keys = added(some.map((tree) => tree.keys));
  const entries = keys.reduce((sum, [, n]) => sum + n, 0);
  const keyBytes = keys.reduce((sum, [length, n]) => sum + length * n, 0);
  const least = keys.length ? keys[0][0] : 0, longest = keys.length ? keys.at(-1)[0] : 0;
  const wide = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((n) => (longest - least) / n < 24) || 2000;
  const start = Math.floor(least / wide) * wide;
  const keyBins = range(0, Math.floor((longest - start) / wide) + 1).map((bin) => {
    const low = start + bin * wide;
    return { label: String(low), tip: wide === 1 ? low + " bytes" : low + " to " + (low + wide - 1) + " bytes", parts: [0] };
  });
  for (const [length, n] of keys) keyBins[Math.floor((length - start) / wide)].parts[0] += n;
  const values = added(some.map((tree) => tree.values));
  const first = values.length ? values[0][0] : 0, last = values.length ? values.at(-1)[0] : 0;
  const brief = (bits) => { const n = bits ? 2 ** (bits - 1) : 0; return n >= 2 ** 30 ? n / 2 ** 30 + "G" : n >= 2 ** 20 ? n / 2 ** 20 + "M" : n >= 1024 ? n / 1024 + "K" : String(n); };
  const valueBins = range(first, values.length ? last - first + 1 : 0).map((bits) => ({
    label: brief(bits), tip: bits < 2 ? bits + (bits ? " byte" : " bytes") : count(2 ** (bits - 1)) + " to " + count(2 ** bits - 1) + " bytes", parts: [0],
  }));
  for (const [bits, n] of values) valueBins[bits - first].parts[0] = n;
  const valueBytes = some.reduce((sum, tree) => sum + tree.value_bytes, 0);
  const longestValue = some.reduce((most, tree) => Math.max(most, tree.longest_value), 0);
  const mean = (bytes) => (entries ? ", on average " + (bytes / entries).toFixed(1) + " bytes" : "");
  const fillFigure = histogram("How full the pages are", plural(leaves, "leaf").replace("leafs", "leaves") + " and " + plural(branches, "branch") + "; full at the right", fillBins, [colors.kinds[LEAF], colors.kinds[BRANCH]], 4, "100 %");
  fillFigure.append(make("div", { class: "legend" }, make("span", { class: "chip", color: colors.kinds[LEAF] }), make("span", { text: "leaves" }), make("span", { class: "chip", color: colors.kinds[BRANCH] }), make("span", { text: "branches" })));
  byId("histograms").replaceChildren(
    fillFigure,
    histogram("Length of the keys, in bytes", entries ? size(keyBytes) + mean(keyBytes) + ", the longest " + count(longest) : "no keys", keyBins, [colors.trees[2]], Math.ceil(keyBins.length / 9)),
    histogram("Length of the values, in bytes", entries ? size(valueBytes) + mean(valueBytes) + ", the longest " + count(longestValue) + "; a bar is twice as wide as the one before it" : "no values", valueBins, [colors.trees[3]], Math.ceil(valueBins.length / 11)),
  );
}

byId("weigh").append(make("option", { value: "all", text: "all trees of data" }));
data.trees.forEach((tree, index) => byId("weigh").append(make("option", { value: index, text: tree.name })));
byId("weigh").addEventListener("change", drawHistograms);

// ---------------------------------------------------------------- free space

function drawFree() {
  const all = data.holders.reduce((sum, holder) => sum + holder.pages, 0);
  byId("free-note").textContent = all
    ? plural(all, "page") + " (" + size(all * data.page_size) + ") are free, " + share(all, data.pages) + " of the file. A free page can be used again when no live snapshot can see what it held; " +
      "where several can, it is counted for the oldest. " + count(data.free.carried) + " pages stand in the carry list of the meta page, the others in the free tree; the longest run has " + plural(data.free.longest, "page") + "."
    : "No page of this file is free.";
  const paints = data.holders.map((_, i) => (i ? colors.trees[(i - 1) % colors.trees.length] : colors.held));
  const bar = byId("free-bar");
  bar.replaceChildren();
  bar.hidden = !all;
  bar.setAttribute("aria-label", data.holders.map((holder) => holder.label + ": " + share(holder.pages, all)).join("; "));
  const rows = [];
  data.holders.forEach((holder, i) => {
    if (holder.pages) {
      const piece = make("div", { color: paints[i], title: holder.label + ": " + plural(holder.pages, "page") });
      piece.style.flexGrow = holder.pages;
      bar.append(piece);
    }
    const chip = make("span", { class: "chip", color: paints[i] });
    chip.style.display = "inline-block";
    chip.style.marginRight = "9px";
    rows.push([make("td", {}, chip, holder.label), cell(count(holder.runs), "number"), cell(count(holder.pages), "number"), cell(size(holder.pages * data.page_size), "number"), cell(share(holder.pages, all), "number")]);
  });
  byId("free").replaceChildren(table("list", [["Held back by"], ["Runs", "number"], ["Pages", "number"], ["Size", "number"], ["Share", "number"]], rows));
}

// ---------------------------------------------------------------- all of it

function drawAll() {
  drawDamage();
  drawLegend();
  drawMap();
  drawTree();
  drawHistograms();
  drawFree();
}

dress();
const best = data.trees.findIndex((tree) => tree.root !== null && !tree.system);
const begin = best >= 0 ? best : data.trees.findIndex((tree) => tree.root !== null);
if (begin >= 0) zoom(data.trees[begin].root);
drawAll();
let wait = null;
window.addEventListener("resize", () => {
  clearTimeout(wait);
  wait = setTimeout(() => { step = fits(step) ? step : null; drawMap(); drawTree(); }, 120);
});
