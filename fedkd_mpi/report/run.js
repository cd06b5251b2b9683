"use strict";
// One run: layers and clients by rounds, phases, processes, settings and events.

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
