// The trees to click through. Follows reportmap.js.

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
  byId("tree").append(make("option", { value: index, text: tree.name + " (" + plural(tree.entries, "entry", "entries") + ")" }));
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
  if (list.length > 1) return list.length + " pages, " + plural(entriesOf(list), "entry", "entries") + ", from " + startOf(list[0]);
  const node = list[0];
  return "page " + count(nodes.page[node]) + ", " + nodeKind(node) + ", " + plural(nodes.entries[node], "entry", "entries") + ", from " + startOf(node) +
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
    box.append(make("p", { class: "note", text: plural(nodes.cells[node] - nodes.children[node], "more child is", "more children are") + " not in this report; cowdb tree shows them." }));
  }
}
