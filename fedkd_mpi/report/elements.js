"use strict";
// What every part of the page uses: texts, elements, tables, looks and charts. Texts from logs become text nodes, or pass through safe() where plotly
// would read markup.

const data = JSON.parse(document.getElementById("data").textContent);
const find = id => document.getElementById(id);
const PALETTES = { // the order of the static figures; their blue and black are too dark on a dark page
  light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"],
  dark: ["#4aa8e0", "#ff8a3d", "#2ec79b", "#e39ac4", "#a3d8f7", "#f2bd3d", "#e6e7ea"],
};
const DASHES = ["solid", "dash", "dot", "dashdot"];
const MARKERS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star"];
const DRAWN = ["M-4,0a4,4 0 1,0 8,0a4,4 0 1,0-8,0", "M-4,-4h8v8h-8z", "M0,-4L4,4H-4z", "M0,-5L5,0L0,5L-5,0z", "M0,4L4,-4H-4z",
  "M-4,-1h3v-3h2v3h3v2h-3v3h-2v-3h-3z", "M-4,-3l1,-1l3,3l3,-3l1,1l-3,3l3,3l-1,1l-3,-3l-3,3l-1,-1l3,-3z", "M0,-5l1.5,3.5h3.5l-2.7,2.3l1,4.2l-3.3,-2.3l-3.3,2.3l1,-4.2l-2.7,-2.3h3.5z"];
let printing = false;

// --- Texts and elements ---

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const safe = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
const largest = values => values.reduce((a, b) => Math.max(a, b), 0); // Math.max(...values) has a limit, which long runs exceed
const digits = (value, most = 5) => (Number.isInteger(value) ? value.toLocaleString("en") : String(+value.toPrecision(most)));

// The unit in which the largest of some values has at least one: [divisor, name].
function unit(kind, largest) {
  const units = { bytes: [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "bytes"]], seconds: [[3600, "hours"], [60, "minutes"], [1, "seconds"], [1e-3, "ms"]] };
  return (units[kind] || []).find(([size]) => largest >= size) || (units[kind] || [[1, ""]]).at(-1);
}

function written(value, kind) {
  if (value === null || value === undefined) return "–";
  const [size, name] = unit(kind, Math.abs(value));
  return `${digits(value / size)} ${name}`.trim();
}

function option(value, text) {
  return make("option", { value }, cut(text, 150));
}

function table(heads, rows, caption) {
  const cell = text => make("td", String(text).length > 60 ? { class: "long", dir: "auto" } : { dir: "auto" }, String(text));
  const made = make("table", {}, make("thead", {}, make("tr", {}, ...heads.map(head => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map(row => make("tr", {}, ...row.map(cell)))));
  if (caption) made.prepend(make("caption", {}, caption));
  return made;
}

// --- Tables ---

function sortable(element) {
  const head = element.tHead.rows[0], body = element.tBodies[0];
  [...head.cells].forEach((cell, column) => {
    const button = make("button", { type: "button" }, cell.textContent);
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = cell.getAttribute("aria-sort") === "ascending";
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[column].textContent.trim();
      const number = text => parseFloat(text.replace(/,/g, ""));
      const numeric = [...body.rows].every(row => Number.isFinite(number(key(row))) || !/\d/.test(key(row)));
      const known = row => (numeric ? Number.isFinite(number(key(row))) : key(row) !== "-");
      const order = (a, b) => (numeric ? number(key(a)) - number(key(b)) : key(a).localeCompare(key(b), "en", { numeric: true }));
      const rows = [...body.rows].sort((a, b) => known(b) - known(a) || (known(a) ? order(a, b) * (down ? -1 : 1) : 0));
      body.append(...rows);
    });
  });
}

function filterRows(text, rows) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
}

// --- Looks and charts ---

const dark = () => !printing && matchMedia("(prefers-color-scheme: dark)").matches;
const colour = index => PALETTES[dark() ? "dark" : "light"][index % 7];
const look = index => ({ colour: colour(index), dash: DASHES[Math.floor(index / 7) % 4], marker: index % 8 });

function swatch(index) {
  const { colour: stroke, dash, marker } = look(index);
  const pattern = { solid: "none", dash: "7,4", dot: "2,3", dashdot: "7,3,2,3" }[dash];
  return make("svg", { class: "swatch", viewBox: "0 0 42 14", "aria-hidden": "true" },
    make("path", { d: "M1,7H41", stroke, "stroke-width": 2, "stroke-dasharray": pattern }),
    make("path", { d: DRAWN[marker], fill: stroke, transform: "translate(21,7)" }));
}

function layout(more) {
  const ink = dark() ? "#e6e7ea" : "#1a1a1a", grid = dark() ? "#353a43" : "#dfe1e5";
  const axis = { gridcolor: grid, linecolor: ink, zeroline: false, automargin: true, ticks: "outside", tickcolor: grid };
  const { xaxis, yaxis, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 12, family: "system-ui, sans-serif" },
    margin: { l: 50, r: 10, t: 32, b: 45 }, modebar: { bgcolor: "rgba(0,0,0,0)", color: "#888", activecolor: ink }, showlegend: false, hovermode: "closest", dragmode: "zoom",
    hoverlabel: { align: "left", namelength: -1, font: { size: 12 } }, xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

function draw(id, traces, more, alternative) {
  const element = find(id);
  element.setAttribute("aria-label", alternative);
  if (more.height) element.style.height = `${more.height}px`;
  return Plotly.react(element, traces, layout(more), {
    responsive: true, displaylogo: false, plotlyServerURL: "",
    modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]], // by name: some versions offer an upload
    toImageButtonOptions: { format: "svg", filename: `fedkd-${id}` },
  });
}

// Enlarge by a factor (0: the whole range), or move by a share of the range.
function zoom(element, factor, moveX = 0, moveY = 0) {
  if (!factor) return Plotly.relayout(element, { "xaxis.autorange": true, "yaxis.autorange": true });
  const change = {};
  for (const [name, move] of [["xaxis", moveX], ["yaxis", moveY]]) {
    const [low, high] = element._fullLayout[name].range.map(Number), half = (high - low) / 2, middle = (low + high) / 2 + 2 * half * move;
    change[`${name}.range`] = [middle - half * factor, middle + half * factor];
  }
  return Plotly.relayout(element, change);
}

function keys(event) {
  const moves = { "+": [0.5], "=": [0.5], "-": [2], 0: [0], ArrowLeft: [1, -0.2], ArrowRight: [1, 0.2], ArrowUp: [1, 0, 0.2], ArrowDown: [1, 0, -0.2] };
  if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey || event.target !== event.currentTarget) return;
  event.preventDefault();
  zoom(event.currentTarget, ...moves[event.key]);
}
