/* Which terms were on, and when: a row for each term of each run, on the axis of the curves. */

const ribbons = new Set();

function ribbonRows(content) {
  return content.phases.flatMap((phases, run) => Object.entries(phases).map(([term, intervals]) => {
    const canvas = make("canvas", { class: "ribbon", role: "img", "aria-label": intervalsInWords(intervals) });
    ribbons.add({ canvas, run, intervals, content });
    const name = content.runs.length > 1 ? `${content.runs[run].name}: ${term}` : term;
    return make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, canvas));
  }));
}

function intervalsInWords(intervals) {
  const parts = intervals.slice(0, 8).map(([from, to, share]) =>
    `${count(from)} to ${count(to)} images${share < 1 ? ` on ${Math.round(100 * share)} % of them` : ""}`);
  return `on from ${parts.join(", ")}${intervals.length > 8 ? ` and ${intervals.length - 8} more times` : ""}`;
}

function drawRibbons() {
  for (const { canvas, run, intervals, content } of ribbons) {
    const width = canvas.clientWidth;
    if (!width) continue;
    canvas.width = width * devicePixelRatio;
    canvas.height = canvas.clientHeight * devicePixelRatio;
    const context = canvas.getContext("2d");
    const [min, max] = chosen.zoom || fullRange(content);
    context.fillStyle = colorOf(run);
    for (const [from, to, share] of intervals) {
      const left = (from - min) / (max - min) * canvas.width, right = (to - min) / (max - min) * canvas.width;
      context.globalAlpha = chosen.hidden.has(content.runs[run].name) ? 0.15 : 0.25 + 0.65 * share;
      context.fillRect(left, 0, Math.max(1, right - left), canvas.height);
    }
  }
  const ends = document.getElementById("ribbon-ends");
  if (ends && page.content) {
    const [min, max] = chosen.zoom || fullRange(page.content);
    ends.replaceChildren(make("span", {}, thousands(min)), make("span", {}, "images seen"), make("span", {}, thousands(max)));
  }
}

function phaseRibbon(content) {
  ribbons.clear();
  const rows = ribbonRows(content);
  if (!rows.length) return null;
  const table = make("table", { class: "ribbons" }, make("caption", {}, "Which terms were on"),
    make("colgroup", {}, make("col", { class: "names" }), make("col")),
    make("tbody", {}, rows, make("tr", {}, make("td", {}), make("td", { id: "ribbon-ends", class: "ends" }))));
  new ResizeObserver(drawRibbons).observe(table);
  return make("div", { class: "card wide" }, table);
}
