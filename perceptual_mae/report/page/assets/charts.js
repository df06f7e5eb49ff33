/* Curves over images seen: zoom and cursor are shared by all of them, each run keeps its colour. */

const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3], [1, 5], [14, 4]];
const charts = new Set();
const SHARES = /^(discriminator\.accuracy_|gradient_share\.|augment\.p$|data_wait$|skipped\.)/;

/* Lines of a chart: one for each run that has a key. Colours are the runs', or the keys' where there is one run. */
function linesOf(content, keys) {
  return keys.flatMap((key, number) => Object.entries(content.curves[key] || {}).map(([run, [seen, values]]) => ({
    key, run: Number(run), seen, values,
    ...(content.runs.length > 1 ? { color: Number(run), dash: DASHES[number % DASHES.length] } : { color: number, dash: [] }),
    label: [content.runs.length > 1 || keys.length === 1 ? content.runs[run].name : "",
      keys.length > 1 ? key.split(".").pop() : ""].filter(Boolean).join(", "),
  })));
}

function fullRange(content) {
  return [0, Math.max(1, ...content.runs.map((run) => run.seen))];
}

function meaningOf(content, key) {
  const parts = key.split(".");
  const fits = (name) => {
    const words = name.split("/");
    return words.length === parts.length && words.every((word, at) => word === parts[at] || word === word.toUpperCase());
  };
  const name = Object.keys(content.meanings).find(fits);
  return name ? content.meanings[name] : "";
}

/* A chart of some keys with all runs in it, or null where no run has logged one of them. */
function chart(content, title, keys, options = {}) {
  const lines = linesOf(content, keys);
  if (!lines.length) return null;
  const holder = make("div", {
    class: "chart", tabindex: 0, role: "group", "aria-roledescription": "chart", "aria-describedby": "chart-keys",
    "aria-label": `${title}. ${lines.map(summaryOf).join("; ")}`,
  });
  const save = make("button", { type: "button", class: "small", "aria-label": `Save ${title} as PNG` }, "save PNG");
  const figure = make("figure", { class: "card", title: keys.length === 1 ? meaningOf(content, keys[0]) : "" },
    make("figcaption", {}, make("span", {}, title), save), holder);
  const plot = { content, lines, holder, title, options, figure, uplot: null };
  save.addEventListener("click", () => saveChart(plot));
  holder.addEventListener("keydown", (event) => onChartKey(plot, event));
  charts.add(plot);
  new ResizeObserver(() => draw(plot)).observe(holder);
  return figure;
}

function summaryOf(line) {
  const name = [line.label].filter(Boolean).join("");
  const last = line.values.length - 1;
  return `${name} from ${short(line.values[0])} to ${short(line.values[last])} at ${count(line.seen[last])} images`;
}

/* Draw a chart, or fit it to its place. */
function draw(plot) {
  const width = Math.floor(plot.holder.clientWidth);
  if (!width) return;
  const height = Math.round(Math.min(240, Math.max(170, width * 0.45)));
  if (plot.uplot) {
    if (plot.uplot.width !== width) plot.uplot.setSize({ width, height });
    return;
  }
  const ink = styleOf("--ink"), grid = styleOf("--rule");
  const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 },
    font: "12px system-ui, sans-serif" };
  const range = chosen.zoom || fullRange(plot.content);
  const isShare = plot.lines.every((line) => SHARES.test(line.key));
  const isLog = Boolean(plot.options.log) && plot.lines.every((line) => line.values.every((value) => value > 0));
  const data = plot.lines.length === 1 ? [plot.lines[0].seen, plot.lines[0].values]
    : uPlot.join(plot.lines.map((line) => [line.seen, line.values]));
  plot.uplot = new uPlot({
    width, height,
    scales: {
      x: { time: false, auto: false, min: range[0], max: range[1] },
      y: { distr: isLog ? 3 : 1, range: isShare ? [0, 1] : undefined },
    },
    axes: [
      { ...axis, values: (u, ticks) => ticks.map((tick) => (tick === null ? "" : thousands(tick))), size: 32 },
      { ...axis, values: (u, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick, 3))), size: 58 },
    ],
    series: [
      { label: "images", value: (u, value) => (value === null ? "–" : count(value)) },
      ...plot.lines.map((line) => ({
        label: line.label || line.key, stroke: colorOf(line.color), width: 1.5, dash: line.dash, spanGaps: true,
        show: !chosen.hidden.has(plot.content.runs[line.run].name), value: (u, value) => short(value),
        points: { show: line.values.length < 12, size: 5 },
      })),
    ],
    cursor: {
      sync: { key: "report", setSeries: false }, drag: { x: true, y: false, dist: 5 }, focus: { prox: 16 },
      dataIdx: nearestValue, bind: { dblclick: () => () => zoomTo(null) },
    },
    legend: { markers: { width: 2, dash: (u, series) => markerOf(plot.lines[series - 1]) } },
    hooks: {
      setScale: [(u, key) => key === "x" && followZoom(plot, u)],
      draw: [(u) => drawAlarms(plot, u)],
    },
  }, data, plot.holder);
  plot.holder.querySelector(".u-legend").setAttribute("role", "presentation");
}

/* The border of a line's marker in the legend. */
function markerOf(line) {
  return ["solid", "dotted", "double"][Math.min(2, Math.max(0, DASHES.indexOf(line?.dash)))];
}

/* Lines have their own places on the axis: the cursor takes each one's nearest. */
function nearestValue(u, series, index) {
  const values = u.data[series];
  if (series === 0 || values[index] !== null && values[index] !== undefined) return index;
  for (let away = 1; away < values.length; away++) {
    for (const at of [index - away, index + away]) {
      if (values[at] !== null && values[at] !== undefined) return at;
    }
  }
  return index;
}

/* Alarms as marks on the time line, in the colour of their run. */
function drawAlarms(plot, u) {
  const { left, top, width, height } = u.bbox;
  u.ctx.save();
  u.ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
  u.ctx.lineWidth = devicePixelRatio;
  for (const alarm of plot.content.alarms) {
    const x = Math.round(u.valToPos(alarm.images_seen, "x", true));
    if (chosen.hidden.has(plot.content.runs[alarm.run].name) || x < left || x > left + width) continue;
    u.ctx.strokeStyle = u.ctx.fillStyle = colorOf(alarm.run);
    u.ctx.beginPath();
    u.ctx.moveTo(x, top);
    u.ctx.lineTo(x, top + height);
    u.ctx.stroke();
    u.ctx.beginPath();
    u.ctx.moveTo(x - 4 * devicePixelRatio, top);
    u.ctx.lineTo(x + 4 * devicePixelRatio, top);
    u.ctx.lineTo(x, top + 7 * devicePixelRatio);
    u.ctx.fill();
  }
  u.ctx.restore();
}

/* One chart was zoomed: all others follow, and so do the ribbons. */
function followZoom(plot, u) {
  const { min, max } = u.scales.x;
  const full = fullRange(plot.content);
  if (min === null || chosen.zoom && chosen.zoom[0] === min && chosen.zoom[1] === max) return;
  if (!chosen.zoom && min === full[0] && max === full[1]) return;
  zoomTo(min <= full[0] && max >= full[1] ? null : [min, max]);
}

function zoomTo(range) {
  const content = page.content;
  const full = fullRange(content);
  chosen.zoom = range && [Math.max(full[0], range[0]), Math.min(full[1], range[1])];
  const [min, max] = chosen.zoom || full;
  for (const plot of charts) {
    const scale = plot.uplot?.scales.x;
    if (scale && (scale.min !== min || scale.max !== max)) plot.uplot.setScale("x", { min, max });
  }
  drawRibbons();
  const reset = document.getElementById("zoom-reset");
  if (reset) reset.disabled = !chosen.zoom;
}

function showRuns() {
  for (const plot of charts) {
    plot.lines.forEach((line, at) => {
      const show = !chosen.hidden.has(plot.content.runs[line.run].name);
      if (plot.uplot && plot.uplot.series[at + 1].show !== show) plot.uplot.setSeries(at + 1, { show });
    });
    plot.uplot?.redraw();
  }
  drawRibbons();
}

/* Arrows move the cursor, + and - zoom around it, 0 and Escape show all again. */
function onChartKey(plot, event) {
  const u = plot.uplot;
  if (!u || event.ctrlKey || event.metaKey || event.altKey) return;
  const seen = u.data[0];
  const { min, max } = u.scales.x;
  const inside = seen.map((value, at) => at).filter((at) => seen[at] >= min && seen[at] <= max);
  let at = inside.includes(plot.at) ? plot.at : inside[Math.floor(inside.length / 2)];
  const step = event.shiftKey ? 10 : 1;
  const moves = { ArrowLeft: -step, ArrowRight: step, Home: -seen.length, End: seen.length };
  if (event.key in moves && inside.length) {
    const place = Math.min(inside.length - 1, Math.max(0, inside.indexOf(at) + moves[event.key]));
    at = plot.at = inside[place];
    u.setCursor({ left: u.valToPos(seen[at], "x"), top: u.over.clientHeight / 2 });
    const values = plot.lines.map((line, number) => `${line.label || line.key} ${
      short(u.data[number + 1][nearestValue(u, number + 1, at)])}`);
    speak(`${count(seen[at])} images: ${values.join(", ")}`);
  } else if (event.key === "+" || event.key === "=" || event.key === "-") {
    const centre = at === undefined ? (min + max) / 2 : seen[at];
    const half = (max - min) / 2 * (event.key === "-" ? 2 : 0.5);
    zoomTo([centre - half, centre + half]);
    speak(chosen.zoom ? `${count(chosen.zoom[0])} to ${count(chosen.zoom[1])} images` : "all images");
  } else if (event.key === "0" || event.key === "Escape") {
    zoomTo(null);
    speak("all images");
  } else {
    return;
  }
  event.preventDefault();
}

function saveChart(plot) {
  const source = plot.uplot.ctx.canvas, scale = devicePixelRatio, head = 24 * scale;
  const canvas = make("canvas", { width: source.width, height: source.height + head });
  const context = canvas.getContext("2d");
  context.fillStyle = styleOf("--paper");
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = styleOf("--ink");
  context.font = `${13 * scale}px system-ui, sans-serif`;
  context.fillText(plot.title, 8 * scale, 16 * scale);
  context.drawImage(source, 0, head);
  saveCanvas(canvas, plot.title);
}

/* Forget all charts; with `again` they are drawn anew, in the colours of another light. */
function clearCharts(again = false) {
  for (const plot of charts) {
    plot.uplot?.destroy();
    plot.uplot = null;
    if (again) draw(plot);
  }
  if (!again) charts.clear();
}
