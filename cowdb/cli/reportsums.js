// Histograms, free space, and the beginning of it all. Follows reporttree.js.

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
    return { label: String(low), tip: wide === 1 ? plural(low, "byte") : low + " to " + (low + wide - 1) + " bytes", parts: [0] };
  });
  for (const [length, n] of keys) keyBins[Math.floor((length - start) / wide)].parts[0] += n;
  const values = added(some.map((tree) => tree.values));
  const first = values.length ? values[0][0] : 0, last = values.length ? values.at(-1)[0] : 0;
  const brief = (bits) => { const n = bits ? 2 ** (bits - 1) : 0; return n >= 2 ** 30 ? n / 2 ** 30 + "G" : n >= 2 ** 20 ? n / 2 ** 20 + "M" : n >= 1024 ? n / 1024 + "K" : String(n); };
  const valueBins = range(first, values.length ? last - first + 1 : 0).map((bits) => ({
    label: brief(bits), tip: bits < 2 ? plural(bits, "byte") : count(2 ** (bits - 1)) + " to " + count(2 ** bits - 1) + " bytes", parts: [0],
  }));
  for (const [bits, n] of values) valueBins[bits - first].parts[0] = n;
  const valueBytes = some.reduce((sum, tree) => sum + tree.value_bytes, 0);
  const longestValue = some.reduce((most, tree) => Math.max(most, tree.longest_value), 0);
  const mean = (bytes) => (entries ? ", on average " + (bytes / entries).toFixed(1) + " bytes" : "");
  const fillFigure = histogram("How full the pages are", plural(leaves, "leaf", "leaves") + " and " + plural(branches, "branch", "branches") + "; full at the right", fillBins, [colors.kinds[LEAF], colors.kinds[BRANCH]], 4, "100 %");
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
    ? plural(all, "page") + " (" + size(all * data.page_size) + ") " + (all === 1 ? "is" : "are") + " free, " + share(all, data.pages) + " of the file. A free page can be used again when no live snapshot can see what it held; " +
      "where several can, it is counted for the oldest. " + plural(data.free.carried, "page") + (data.free.carried === 1 ? " stands" : " stand") + " in the carry list of the meta page, the others in the free tree; the longest run has " + plural(data.free.longest, "page") + "."
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
