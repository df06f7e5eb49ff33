/* The page: a section for everything that the runs hold, none for what they do not. */

const page = { content: null };

function present(content) {
  page.content = content;
  clearCharts();
  document.title = `${content.title} – perceptual-mae report`;
  const sections = [
    trained(content), scores(content), curves(content), monitor(content), samples(content), ranked(content),
    attention(content), cost(content), configurations(content), loading(content), remarks(content),
  ].filter(Boolean);
  const report = document.getElementById("report");
  report.replaceChildren(
    make("header", {}, make("h1", {}, content.title),
      content.live && make("p", { id: "freshness", role: "status" }),
      make("nav", { "aria-label": "Sections" }, make("ul", {}, sections.map((part) => make("li", {},
        make("a", { href: `#${part.id}` }, part.querySelector("h2").textContent)))))),
    make("main", {}, sections),
    make("footer", {}, "Written by pmae report. Curves are drawn by uPlot (MIT licence, © Leon Sorokin)."),
  );
  drawRibbons();
}

function trained(content) {
  return section("trained", "What was trained", content.runs.map((run) => make("p", {}, run.words)),
    runsTable(content, "Facts", content.facts));
}

function scores(content) {
  if (!content.tables.length) return null;
  return section("scores", "Scores", make("div", { class: "tables" }, content.tables.map(scoreTable)),
    content.table_notes.length > 0 && make("ul", { class: "note" }, content.table_notes.map((note) => make("li", {}, note))));
}

const CURVES = [
  ["held-out", "Held-out scores", (key) => /^evaluation\.(?!baselines|num_images|unreadable)/.test(key), true],
  ["terms", "Terms before weighting", (key) => key.startsWith("raw.") || key === "total", true],
  ["weighted", "Terms times their weights", (key) => key.startsWith("weighted."), false],
];

function isMonitored(key) {
  return /^(discriminator|augment|penalty|path_length|gradient|gradient_share|gradient_ratio)\.|^variety$/.test(key);
}

function curves(content) {
  const keys = Object.keys(content.curves);
  const groups = CURVES.map(([id, title, belongs, isOpen]) => [id, title, keys.filter(belongs), isOpen]);
  const grouped = new Set(groups.flatMap(([, , members]) => members));
  const others = keys.filter((key) => !grouped.has(key) && !isMonitored(key) && !key.startsWith("evaluation."));
  groups.push(["others", "Learning rates, speed and what else was logged", others, false]);
  const ribbon = phaseRibbon(content);
  const parts = groups.filter(([, , members]) => members.length).map(([id, title, members, isOpen]) =>
    folded(id, title, () => [make("div", { class: "grid" }, members.map((key) => chart(content, key, [key])))], isOpen));
  if (!parts.length && !ribbon) return null;
  return section("curves", "Curves over images seen", chartTools(content), ribbon, parts);
}

function chartTools(content) {
  return make("div", { class: "controls tools" },
    content.runs.length > 1 && make("fieldset", { class: "choice" }, make("legend", {}, "Runs"), content.runs.map((run, number) =>
      make("label", {}, make("input", { type: "checkbox", checked: !chosen.hidden.has(run.name),
        onchange: (event) => {
          chosen.hidden[event.target.checked ? "delete" : "add"](run.name);
          showRuns();
        } }), make("span", { class: `swatch run-${number % 8}` }), run.name))),
    make("button", { type: "button", id: "zoom-reset", disabled: !chosen.zoom, onclick: () => zoomTo(null) }, "show all images seen"),
    make("p", { id: "chart-keys", class: "note" },
      "Drag over a chart to zoom all of them, double-click to zoom out. Keyboard, on a chart: arrows move the cursor, + and − zoom, 0 shows all."));
}

function monitor(content) {
  const keys = Object.keys(content.curves);
  const has = (prefix) => keys.filter((key) => key.startsWith(prefix));
  const pair = (title, ...members) => chart(content, title, members.filter((key) => content.curves[key]));
  if (!has("discriminator.").length && !content.alarms.length && !has("gradient_share.").length) return null;
  const places = (prefix) => [...new Set(has(prefix).map((key) => key.slice(prefix.length).split(".")[0]))];
  const atPlace = (prefix, title, options) => places(prefix).map((place) =>
    chart(content, `${title}: ${nameOf(place)}`, has(`${prefix}${place}.`), options));
  const charts = [
    pair("discriminator: accuracy on real and fake", "discriminator.accuracy_real", "discriminator.accuracy_fake"),
    pair("discriminator: mean logits", "discriminator.real", "discriminator.fake"),
    pair("discriminator: loss", "discriminator.loss"),
    pair("augment: r_t", "augment.r_t"), pair("augment: p", "augment.p"), pair("variety of reconstructions", "variety"),
    ...has("gradient_ratio.").map((key) => pair(`${key} (balanced terms)`, key)),
    ...has("penalty.").map((key) => pair(key, key)), ...has("path_length.").map((key) => pair(key, key)),
  ];
  return section("gan", has("discriminator.").length ? "GAN monitor" : "Gradients",
    alarms(content), make("div", { class: "grid" }, charts),
    folded("shares", "Gradient shares of the terms, by place", () =>
      [make("div", { class: "grid" }, atPlace("gradient_share.", "share of the gradient"))], true),
    folded("norms", "Gradient norms of the terms, by place", () =>
      [make("div", { class: "grid" }, atPlace("gradient.", "gradient norm", { log: true }), has("gradient_norm.").map((key) => pair(key, key)))]));
}

function nameOf(place) {
  return { decoder: "the decoder's input", decoder_weights: "the decoder's weights", last_layer: "the last layer" }[place]
    || (/^\d+$/.test(place) ? `images of ${place} pixels` : place);
}

function alarms(content) {
  if (!content.alarms.length) return null;
  return make("div", { class: "card wide" }, make("h3", {}, "Alarms"), make("ol", { class: "alarms" }, content.alarms.map((alarm) =>
    make("li", {}, make("span", { class: `swatch run-${alarm.run % 8}` }),
      make("button", { type: "button", class: "small", onclick: () => zoomAround(content, alarm.images_seen) },
        `${content.runs.length > 1 ? `${content.runs[alarm.run].name}, ` : ""}step ${count(alarm.step)}`), ` ${alarm.message}`))));
}

function zoomAround(content, seen) {
  const half = fullRange(content)[1] / 10;
  zoomTo([seen - half, seen + half]);
}

function samples(content) {
  return content.samples.snapshots ? section("samples", "Samples over time", samplesViewer(content)) : null;
}

function ranked(content) {
  if (!content.ranked.length) return null;
  return section("ranked", "Best and worst images", make("p", { class: "note" },
    "By the PSNR of hidden pixels, of those that pmae evaluate reconstructed."), content.ranked.map((each) => rankedImages(content, each)));
}

function attention(content) {
  if (!content.attention.length) return null;
  return section("attention", "Attention", make("p", { class: "note" },
    "Point at an image or focus it: the attention of the encoder's class token to its patches, nothing hidden",
    content.attention.some((each) => each.patches) && ", or that of the patch pointed at; arrow keys move it", "."),
  content.attention.map((each) => attentionMaps(content, each)));
}

function cost(content) {
  return content.cost.length ? section("cost", "Cost", content.cost.map(scoreTable)) : null;
}

function configurations(content) {
  return section("configuration", "Configuration",
    folded("all-keys", `${content.configuration.length} keys${content.runs.length > 1
      ? `, ${content.configuration.filter((row) => row.differs).length} of which differ` : ""}`, () => configuration(content), content.runs.length > 1));
}

function loading(content) {
  return section("loading", "Load the encoder", content.runs.map((run) => [
    content.runs.length > 1 && make("h3", {}, run.name), make("pre", { tabindex: 0 }, make("code", {}, run.code))]));
}

function remarks(content) {
  return content.notes.length ? section("remarks", "Left out", make("ul", {}, content.notes.map((note) => make("li", {}, note)))) : null;
}

/* Ask the own server for newer contents, and show them. */
async function refresh(tag = "", wait = 3000) {
  const freshness = (text) => { const line = document.getElementById("freshness"); if (line) line.textContent = text; };
  try {
    const started = performance.now();
    const answer = await fetch("content.json", { headers: tag ? { "If-None-Match": tag } : {} });
    if (answer.status === 200) {
      const content = await answer.json();
      tag = answer.headers.get("ETag") || "";
      const place = scrollY;
      present({ ...content, live: true });
      scrollTo(0, place);
      freshness(content.failure || `As of ${new Date().toLocaleTimeString()}.`);
    }
    wait = Math.max(3000, 5 * (performance.now() - started));
  } catch {
    freshness("pmae report --live has ended, or cannot be reached.");
  }
  setTimeout(() => refresh(tag, wait), wait);
}

present(JSON.parse(document.getElementById("content").textContent));
const redraw = () => { clearCharts(true); drawRibbons(); };
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
for (const [event, isPrinted] of [["beforeprint", true], ["afterprint", false]]) { // paper is light
  addEventListener(event, () => { document.documentElement.classList.toggle("printed", isPrinted); redraw(); });
}
if (page.content.live) refresh();
