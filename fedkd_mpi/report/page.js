"use strict";
// The controls and charts of the report. Texts from logs become text nodes, or pass through safe() where plotly would read markup.

const data = JSON.parse(document.getElementById("data").textContent);
const find = id => document.getElementById(id);
const logsOf = data.groups.map((_, group) => data.logs.filter(log => log.group === group));
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

// --- Looks ---

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

// --- Curves ---

const chosen = () => [...document.querySelectorAll("#runs input")].flatMap((box, index) => (box.checked ? [index] : []));

function distance(log, along, row) {
  if (along === "rounds") return log.rounds[row];
  return along === "seconds" ? log.seconds[row] : log.bytes[row] / (along === "client" ? log.clients || Infinity : 1);
}

// The points of some logs that differ in the seed alone, where all of them have a value.
function curve(logs, key, along) {
  const points = [], length = Math.min(...logs.map(log => (log.values[key] || []).length));
  for (let row = 0; row < length; row++) {
    const values = logs.map(log => log.values[key][row]);
    if (values.includes(null)) continue;
    const at = name => mean(logs.map(log => distance(log, name, row)));
    points.push({ x: at(along), y: mean(values), low: Math.min(...values), high: Math.max(...values), round: logs[0].rounds[row],
      bytes: at("client"), seconds: at("seconds") });
  }
  return points;
}

function curves() {
  const measure = data.measures.find(each => each.key === find("measure").value), along = find("along").value;
  const lines = chosen().flatMap(group => (find("each").checked
    ? logsOf[group].map(log => ({ group, logs: [log], label: `${data.groups[group].id}, seed ${log.seed}` }))
    : [{ group, logs: logsOf[group], label: data.groups[group].label }]));
  for (const line of lines) line.points = curve(line.logs, measure.key, along);
  return { measure, along, lines: lines.filter(line => line.points.length) };
}

function plotCurves() {
  const { measure, along, lines } = curves();
  const points = lines.flatMap(line => line.points);
  const kind = along === "rounds" ? "number" : along === "seconds" ? "seconds" : "bytes";
  const [sizeX, nameX] = unit(kind, Math.max(0, ...points.map(point => point.x)));
  const [sizeY, nameY] = unit(measure.kind, Math.max(0, ...points.map(point => point.high)));
  const traces = [];
  for (const { group, logs, label, points: own } of lines) {
    const { colour: ink, dash, marker } = look(group), x = own.map(point => point.x / sizeX);
    if (logs.length > 1) {
      traces.push({ x: [...x, ...[...x].reverse()], y: [...own.map(point => point.high), ...own.map(point => point.low).reverse()].map(y => y / sizeY),
        fill: "toself", fillcolor: `${ink}26`, line: { width: 0 }, mode: "lines", hoverinfo: "skip" });
    }
    traces.push({ x, y: own.map(point => point.y / sizeY), name: safe(label), mode: "lines+markers", line: { color: ink, dash, width: 2 },
      marker: { symbol: MARKERS[marker], size: 8, maxdisplayed: own.length > 12 ? 10 : 0 }, hoverinfo: "text",
      customdata: own.map(() => data.logs.indexOf(logs[0])), text: own.map(point => safe(cut(label, 100)) + `<br>round ${digits(point.round)}, ${written(point.bytes, "bytes")} per client, ${written(point.seconds, "seconds")}`
        + `<br>${safe(measure.axis)}: ${written(point.y, measure.kind)}`
        + (logs.length > 1 ? ` (${written(point.low, measure.kind)} to ${written(point.high, measure.kind)}, ${plural(logs.length, "seed")})` : "")) });
  }
  const { key, value } = data.target, goal = value !== null && key === measure.key;
  const axis = (text, name, log) => ({ title: { text: safe(name ? `${text} (${name})` : text), standoff: 8 }, type: log ? "log" : "linear" });
  const title = find("along").selectedOptions[0].text;
  draw("plot", traces, {
    uirevision: [measure.key, along, find("logx").checked, find("logy").checked].join(),
    xaxis: axis(title.replace(/^seconds$/, "time"), kind === "number" ? "" : nameX, find("logx").checked),
    yaxis: axis(measure.axis, nameY, find("logy").checked),
    shapes: goal ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: { color: "#888", width: 1 } }] : [],
  }, `${measure.text} over ${title}: ${plural(lines.length, "line")}. The values are in the table below.`);
  const seen = new Map(), covering = [];
  for (const line of lines) {
    const shape = JSON.stringify(line.points.map(({ x, y }) => [x, y])), name = line.label.split(": ")[0];
    if (seen.has(shape)) covering.push(`; ${name} lies on ${seen.get(shape)}`);
    else seen.set(shape, name);
  }
  const last = lines.slice(0, 4).map(line => `${line.label.split(": ")[0]} ends at ${written(line.points.at(-1).y, measure.kind)}`);
  find("status").textContent = `${chosen().length} of ${plural(data.groups.length, "run")} chosen, ${plural(points.length, "value")}. ${last.join("; ")}${covering.join("")}`;
  if (find("values").open) listValues();
}

function listValues() {
  const { measure, lines } = curves();
  const rows = lines.flatMap(line => line.points.map(point => [cut(line.label, 100), point.round, written(point.bytes, "bytes"), written(point.seconds, "seconds"),
    written(point.y, measure.kind), written(point.low, measure.kind), written(point.high, measure.kind)]));
  const made = table(["run", "round", "bytes per client", "seconds", measure.axis, "smallest", "largest"], rows, measure.text);
  find("values").querySelector(".wide").replaceChildren(made);
  sortable(made);
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

// --- One run ---

const current = id => data.logs[find(id).value];

function heat(id, map, names, kind, title, logarithmic) {
  const shown = map || { values: [], step: 1 };
  const flat = shown.values.flat().filter(value => value !== null);
  const least = flat.reduce((a, b) => Math.min(a, b), Infinity), most = flat.reduce((a, b) => Math.max(a, b), -Infinity);
  const [size, unitName] = unit(kind, most);
  const scaled = value => (value === null || (logarithmic && value <= 0) ? null : logarithmic ? Math.log10(value / size) : value / size);
  const log = current("one"), firstOf = column => log.rounds[column * shown.step];
  const lastOf = column => log.rounds[Math.min((column + 1) * shown.step, log.rounds.length) - 1];
  const every = Math.max(1, Math.ceil(names.length / 40));
  // Columns of which nothing is known, as rounds without an evaluation, are left out: their neighbours are drawn wider.
  const columns = (shown.values[0] || []).map((_, column) => column).filter(column => shown.values.some(row => row[column] !== null));
  const x = columns.map(column => (firstOf(column) + lastOf(column)) / 2);
  const bar = { title: { text: unitName, side: "top" }, thickness: 12, outlinewidth: 0, ticks: "outside", nticks: 6 };
  if (logarithmic && most > 0) {
    const powers = Array.from({ length: 12 }, (_, at) => 10 ** (Math.floor(Math.log10(most / size)) - at));
    Object.assign(bar, { tickvals: powers.map(Math.log10), ticktext: powers.map(power => digits(power)) });
  }
  draw(id, [{
    type: "heatmap", z: shown.values.map(row => columns.map(column => scaled(row[column]))), x, colorscale: "Cividis", colorbar: bar, hoverinfo: "text", hoverongaps: false,
    text: shown.values.map((row, line) => columns.map(column => {
      const rounds = firstOf(column) === lastOf(column) ? `round ${firstOf(column)}` : `mean of rounds ${firstOf(column)} to ${lastOf(column)}`;
      return `${safe(cut(names[line], 100))}<br>${rounds}<br>${safe(title)}: ${written(row[column], kind)}`;
    })),
  }], {
    height: Math.min(900, Math.max(220, 110 + 20 * names.length)),
    xaxis: { title: { text: "round" }, showgrid: false },
    yaxis: { autorange: "reversed", showgrid: false, tickfont: { size: names.length > 30 ? 9 : 11 }, tickvals: names.flatMap((_, at) => (at % every ? [] : [at])),
      ticktext: names.filter((_, at) => at % every === 0).map(name => safe(cut(name, find(id).clientWidth < 600 ? 22 : 44))) },
    annotations: flat.length ? [] : [{ text: "nothing was logged", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
  }, `${title} by ${id === "layers" ? "layer" : "client"} and round, ${plural(names.length, "row")}, from ${written(least, kind)} to ${written(most, kind)}.`);
}

function plotLayers() {
  const { layers } = current("one"), what = find("layerwhat").value;
  const names = layers.names.map((name, at) => (find("layers").clientWidth < 600 ? name : `${name}  ${layers.shapes[at]}`));
  const kind = what.endsWith("bytes") ? "bytes" : "number";
  heat("layers", layers[what], names, kind, kind === "bytes" ? `${what} per message` : what, find("layerlog").checked);
}

function plotClients() {
  const { clientMaps } = current("one"), what = find("clientwhat").value;
  heat("clients", clientMaps[what], clientMaps.names, /bytes$/.test(what) ? "bytes" : /^seconds/.test(what) ? "seconds" : "number", what, false);
}

function plotTimes() {
  const log = current("one"), { names, values, step } = log.phases;
  const x = (values[0] || []).map((_, column) => log.rounds[Math.min(column * step, log.rounds.length - 1)]);
  const named = { orientation: "h", yref: "container", x: 0, y: 0, yanchor: "bottom" };
  draw("phases", values.map((row, at) => ({
    x, y: row, name: names[at] === "total" ? "whole round" : names[at], mode: "lines",
    line: { color: names[at] === "total" ? (dark() ? "#fff" : "#000") : colour(at), shape: "hvh", width: 1.5, dash: DASHES[at % 4] },
    hoverinfo: "text", text: row.map((value, column) => `${names[at] === "total" ? "whole round" : `${names[at]}: ${safe(data.phases[names[at]])}`}<br>round ${x[column]}: ${written(value, "seconds")}`),
  })), { height: 380, showlegend: true, legend: named, xaxis: { title: { text: step > 1 ? `round, means over ${step}` : "round" } }, yaxis: { title: { text: "seconds per round" }, rangemode: "tozero" } },
  `Seconds by phase and round. Whole run: ${written(log.seconds.at(-1), "seconds")}.`);
  const { seconds_compute: computed, seconds_wait: waited } = log.processes, ranks = computed.map((_, rank) => rank);
  const bar = (seconds, name, at, pattern) => ({ type: "bar", orientation: "h", x: seconds, y: ranks, name, marker: { color: colour(at), pattern: { shape: pattern } },
    hoverinfo: "text", textposition: "none", text: seconds.map((value, rank) => `MPI rank ${rank}${rank ? "" : " (server)"}<br>${name}: ${written(value, "seconds")}`) });
  draw("processes", [bar(computed, "computing", 0, ""), bar(waited, "waiting", 5, "/")], {
    height: Math.min(900, 190 + 24 * ranks.length), barmode: "stack", bargap: 0.25, showlegend: true, legend: named,
    xaxis: { title: { text: "seconds, whole run" } }, yaxis: { title: { text: "MPI rank" }, autorange: "reversed", tickformat: "d", dtick: Math.ceil(ranks.length / 30) } },
  `Seconds of computing and waiting of ${ranks.length} MPI processes.`);
}

function listSettings() {
  const rows = Object.entries(current("one").configuration);
  find("configuration").replaceChildren(table(["key", "value"], rows));
  filterRows(find("keys").value, find("configuration").querySelectorAll("tbody tr"));
}

function choices(id, keys) {
  const before = find(id).value;
  find(id).replaceChildren(...keys.map(key => option(key, key)));
  if (keys.includes(before)) find(id).value = before;
}

function showRun() {
  const log = current("one");
  find("facts").textContent = `${log.name}, seed ${log.seed}, ${log.status}, ${plural(log.clients, "client")}; ${log.path}`;
  choices("layerwhat", Object.keys(log.layers).filter(key => !["names", "shapes"].includes(key) && log.layers[key]));
  choices("clientwhat", Object.keys(log.clientMaps).filter(key => key !== "names"));
  plotLayers();
  plotClients();
  plotTimes();
  listSettings();
  find("provenance").replaceChildren(table(["attribute", "value"], Object.entries(log.provenance)));
  const more = log.eventCount > log.events.length ? `, the last ${log.events.length}` : "";
  find("eventcount").textContent = `(${log.eventCount}${more})`;
  const events = log.events.map(([round, client, level, message]) => [round, client < 0 ? "" : client, level, message]);
  find("events").replaceChildren(events.length ? table(["round", "client", "level", "message"], events) : "none");
}

// --- Difference of two runs ---

const STAGES = { start: "threshold and cohort", training: "local training", uplink: "uplink", downlink: "downlink", scores: "losses, scores and sums of the round" };

function parting(a, b) {
  const rounds = a.rounds.filter(round => b.rounds.includes(round));
  const sum = (log, stage, round) => log.checksums[stage].substr(8 * log.rounds.indexOf(round), 8);
  for (const round of rounds) {
    for (const stage of Object.keys(STAGES)) {
      if (sum(a, stage, round) !== sum(b, stage, round)) return `their bits part in round ${round}: ${STAGES[stage]}`;
    }
  }
  return rounds.length ? `equal in all columns but times and placement, ${plural(rounds.length, "round")}` : "they have no round in common";
}

function showDifference() {
  const a = current("first"), b = current("second"), rows = [];
  for (const part of ["configuration", "provenance"]) {
    for (const key of new Set([...Object.keys(a[part]), ...Object.keys(b[part])])) {
      if (a[part][key] !== b[part][key]) rows.push([part, key, a[part][key] ?? "(none)", b[part][key] ?? "(none)"]);
    }
  }
  const command = make("code", {}, `fedkd report --diff ${a.quoted} ${b.quoted}`);
  find("bits").replaceChildren(`A and B: ${parting(a, b)}. Client, layer and column: `, command);
  find("differences").replaceChildren(rows.length ? table(["part", "key", "A", "B"], rows) : "Configuration and provenance are equal.");
}

// --- Start ---

function chooser() {
  const count = data.groups.length, entries = data.groups.map((group, index) => {
    const box = make("input", { type: "checkbox" });
    box.checked = count <= 12 || index < 12;
    box.addEventListener("change", plotCurves);
    return make("li", {}, make("label", {}, box, swatch(index), make("span", { dir: "auto" }, group.label)));
  });
  find("runs").replaceChildren(...entries);
  find("search").parentElement.hidden = count < 8;
  find("search").addEventListener("input", () => filterRows(find("search").value, entries));
  for (const [id, state] of [["all", true], ["none", false]]) {
    find(id).addEventListener("click", () => {
      for (const entry of entries) if (!entry.hidden) entry.querySelector("input").checked = state;
      plotCurves();
    });
  }
}

function redraw() {
  document.querySelectorAll("#runs .swatch").forEach((old, index) => old.replaceWith(swatch(index)));
  plotCurves();
  plotLayers();
  plotClients();
  plotTimes();
}

function connect() {
  find("measure").replaceChildren(...data.measures.map(({ key, text }) => option(key, text)));
  if (data.measures.some(({ key }) => key === data.target.key)) find("measure").value = data.target.key;
  const names = data.logs.map(log => `${data.groups[log.group].id}, seed ${log.seed}: ${log.path}`);
  for (const id of ["one", "first", "second"]) find(id).replaceChildren(...names.map((text, index) => option(index, text)));
  find("second").value = Math.min(1, names.length - 1);
  for (const id of ["measure", "along", "logx", "logy", "each"]) find(id).addEventListener("change", plotCurves);
  find("axes").addEventListener("submit", event => event.preventDefault());
  document.querySelectorAll("[data-zoom]").forEach(button => button.addEventListener("click", () => zoom(find("plot"), +button.dataset.zoom)));
  document.querySelectorAll(".chart").forEach(chart => chart.addEventListener("keydown", keys));
  find("values").addEventListener("toggle", listValues);
  find("one").addEventListener("change", showRun);
  for (const id of ["layerwhat", "layerlog"]) find(id).addEventListener("change", plotLayers);
  find("clientwhat").addEventListener("change", plotClients);
  find("keys").addEventListener("input", listSettings);
  for (const id of ["first", "second"]) find(id).addEventListener("change", showDifference);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  for (const [name, state] of [["beforeprint", true], ["afterprint", false]]) {
    addEventListener(name, () => {
      printing = state;
      redraw();
    });
  }
}

async function library() {
  const bytes = Uint8Array.from(atob(find("plotly").textContent), mark => mark.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(make("script", {}, await new Response(stream).text()));
}

async function start() {
  const tables = document.querySelectorAll("#tables table");
  tables.forEach(sortable);
  find("filter").addEventListener("input", () => filterRows(find("filter").value, document.querySelectorAll("#tables tbody tr")));
  if (!data.logs.some(log => log.rounds.length)) return; // nothing to draw
  await library();
  connect();
  chooser();
  document.querySelectorAll(".scripted").forEach(element => { element.hidden = false; });
  for (const element of document.querySelectorAll("#difference, [href='#difference']")) element.hidden = data.logs.length < 2;
  document.querySelectorAll(".static").forEach(element => { element.hidden = true; });
  plotCurves();
  find("plot").on("plotly_click", event => {
    find("one").value = event.points[0].customdata;
    showRun();
    find("run").scrollIntoView();
  });
  showRun();
  showDifference();
}

start().catch(error => {
  console.error(error);
  document.querySelectorAll(".scripted").forEach(element => { element.hidden = true; });
  document.querySelectorAll(".static").forEach(element => { element.hidden = false; });
  document.querySelector("header").append(make("p", { class: "problem" }, "The charts need a browser of 2023 or later. Tables and figures are below."));
});
