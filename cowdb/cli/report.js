"use strict";
// The page of a report. Words that come from the database are only ever set as textContent.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const count = (n) => n.toLocaleString("en");
const share = (part, all) => (all ? (100 * part / all).toFixed(part && part < all / 1000 ? 2 : 1) : "0.0") + " %";
const plural = (n, one, more) => count(n) + " " + (n === 1 ? one : more || one + "s");

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

const [UNREACHABLE, META, BRANCH, LEAF, OVERFLOW, FREE] = [0, 1, 2, 3, 4, 5];
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
  byId("theme").textContent = "Theme: " + { auto: "as the system", light: "light", dark: "dark" }[theme];
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
byId("verdict").textContent = data.damaged ? plural(data.damaged, "damaged page") : wrong ? "Problems found" : "Sound";
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
