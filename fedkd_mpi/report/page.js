"use strict";
// The curves of all runs, the difference of two, and the controls of the page.

const logsOf = data.groups.map((_, group) => data.logs.filter(log => log.group === group));

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
  const [sizeX, nameX] = unit(kind, largest(points.map(point => point.x)));
  const [sizeY, nameY] = unit(measure.kind, largest(points.map(point => point.high)));
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
  const points = lines.flatMap(line => line.points.map(point => ({ label: cut(line.label, 100), ...point })));
  const columns = [["round", "round", "number"], ["bytes", "bytes per client", "bytes"], ["seconds", "seconds", "seconds"],
    ["y", measure.axis, measure.kind], ["low", "smallest", measure.kind], ["high", "largest", measure.kind]];
  const heads = ["run"], cells = points.map(point => [point.label]);
  for (const [key, title, kind] of columns) { // one unit per column, by which a click can sort
    const [size, name] = unit(kind, largest(points.map(point => Math.abs(point[key]))));
    heads.push(name && name !== title ? `${title} (${name})` : title);
    points.forEach((point, row) => cells[row].push(digits(point[key] / size)));
  }
  const made = table(heads, cells, measure.text);
  find("values").querySelector(".wide").replaceChildren(made);
  sortable(made);
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
