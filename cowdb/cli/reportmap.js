// The map of all pages. Follows report.js.

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
      { label: "unreachable", color: colors.kinds[UNREACHABLE], code: UNREACHABLE },
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
      return [...found, { label: "meta, free", color: colors.kinds[FREE], code: 253 }, { label: "unreachable", color: colors.kinds[UNREACHABLE], code: 254 }];
    },
    of: (at) => {
      if ((kinds[at] & 127) === UNREACHABLE) return 254;
      const index = owners[at];
      if (index === NONE) return 253;
      return data.trees[index].system || ranked.indexOf(index) >= 0 && ranked.indexOf(index) < 8 ? index : 252;
    },
    pages: (code) => (code < 252 ? pagesIn(data.trees[code]) : code === 253 ? data.sums[FREE] + data.sums[META] : code === 254 ? data.sums[UNREACHABLE] : null),
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
      if (kind === META || kind === UNREACHABLE) return 31;
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
  if (births[at] || (kind !== META && kind !== UNREACHABLE)) rows.push(["Born in", count(births[at]) + ", " + count(Math.max(data.transaction - births[at], 0)) + " ago"]);
  if (fills[at] !== NONE) rows.push(["Fill", fills[at] / 2 + " %"]);
  if (cells[at]) rows.push([kind === BRANCH ? "Children" : "Entries", count(cells[at])]);
  if (kind === BRANCH || kind === LEAF || kind === OVERFLOW) rows.push(["Referred to by", parents[at] ? "page " + count(parents[at]) : "the meta page"]);
  if (kind === FREE && helds[at] !== NONE) rows.push(["Held back by", data.holders[helds[at]].label]);
  if (kind === META && data.slots[at]) rows.push(["Cannot be read", data.slots[at]]);
  if (kind === UNREACHABLE) rows.push(["Unreachable", "neither in use nor free" + (data.damaged ? "; a damaged page may lead to it, and cowdb recover may find its entries again" : "")]);
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
  const box = event.target, page = Number(box.value), last = data.pages - 1;
  byId("goto-note").textContent = page > last ? "the last page is " + count(last) : "";
  if (box.value === "" || !Number.isInteger(page)) return;
  box.value = Math.min(Math.max(page, 0), last);
  choose(Math.floor(Number(box.value) / group));
});
function resize(by) {
  step = SIZES[SIZES.indexOf(step) + by];
  drawMap();
  if (chosen !== null) choose(chosen);
}
byId("smaller").addEventListener("click", () => resize(-1));
byId("larger").addEventListener("click", () => resize(1));
