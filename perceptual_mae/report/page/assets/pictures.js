/* Samples, best and worst images, attention. Images of one kind are one below the other in a strip. */

const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
const strips = new Map();

/* The decoded strip of a data URI; each is decoded once. */
function strip(uri) {
  if (!strips.has(uri)) {
    const picture = new Image();
    picture.src = uri;
    strips.set(uri, picture.decode().then(() => picture));
  }
  return strips.get(uri);
}

/* A canvas for one image of `geometry`, shown large enough for a person to see. */
function pictureCanvas(geometry, label, side = 128) {
  const [height, width] = geometry.size;
  const canvas = make("canvas", { width, height, role: "img", "aria-label": label, class: "picture" });
  canvas.style.width = `${Math.round(side * Math.min(1, width / height))}px`;
  canvas.style.aspectRatio = `${width} / ${height}`;
  if (Math.max(width, height) < 160) canvas.classList.add("pixels");
  return canvas;
}

/* Draw one image: its original, with what is hidden in grey, or what a run painted, as `part` says. */
async function paint(canvas, geometry, index, raw, part) {
  const [height, width] = geometry.size, [rows, columns] = geometry.grid;
  const original = await strip(geometry.original), painted = raw && await strip(raw);
  const context = canvas.getContext("2d", { willReadFrequently: part === "error" });
  const copy = (picture, x, y, w, h) =>
    context.drawImage(picture, x, index * height + y, w, h, x, y, w, h);
  const patchHeight = height / rows, patchWidth = width / columns;
  const hidden = [...geometry.masks[index]].flatMap((mark, at) => (mark === "1"
    ? [[at % columns * patchWidth, Math.floor(at / columns) * patchHeight]] : []));
  copy(part === "raw" ? painted : original, 0, 0, width, height);
  if (part === "masked") {
    context.fillStyle = "rgb(128 128 128)";
    for (const [x, y] of hidden) context.fillRect(x, y, patchWidth, patchHeight);
  } else if (part === "composite") {
    for (const [x, y] of hidden) copy(painted, x, y, patchWidth, patchHeight);
  } else if (part === "error") {
    const before = context.getImageData(0, 0, width, height);
    copy(painted, 0, 0, width, height);
    const after = context.getImageData(0, 0, width, height);
    context.putImageData(errorMap(before, after, hidden, patchWidth, patchHeight), 0, 0);
  }
}

/* Mean absolute difference of the channels at hidden pixels, from dark (0) to bright (half the range and more). */
function errorMap(before, after, hidden, patchWidth, patchHeight) {
  const map = new ImageData(before.width, before.height);
  for (let at = 0; at < map.data.length; at += 4) map.data.set([128, 128, 128, 40], at);
  for (const [left, top] of hidden) {
    for (let y = top; y < top + patchHeight; y++) {
      for (let x = left; x < left + patchWidth; x++) {
        const at = 4 * (y * before.width + x);
        const error = [0, 1, 2].reduce((sum, channel) =>
          sum + Math.abs(before.data[at + channel] - after.data[at + channel]), 0) / 3 / 127.5;
        map.data.set([...heat(Math.min(1, error)), 255], at);
      }
    }
  }
  return map;
}

function heat(share) {
  const place = share * (HEAT.length - 1), low = Math.min(HEAT.length - 2, Math.floor(place));
  return HEAT[low].map((value, channel) => Math.round(value + (place - low) * (HEAT[low + 1][channel] - value)));
}

function captioned(canvas, text, className = "") {
  const figure = make("figure", { class: `shot ${className}` }, canvas, make("figcaption", {}, text));
  figure.style.width = canvas.style.width;
  return figure;
}

const PARTS = [["composite", "visible pixels pasted in"], ["raw", "whole output"], ["error", "error of hidden pixels"]];

/* Before and after: two pictures with a divider, and all runs next to each other, at one time of training. */
function samplesViewer(content) {
  const { scenes, snapshots } = content.samples;
  const holder = make("div", { class: "samples" });
  const focusAgain = () => {
    const focused = document.activeElement;
    const name = holder.contains(focused) ? focused.dataset.name || focused.name && `${focused.name}=${focused.value}` : null;
    fill();
    if (name) [...holder.querySelectorAll("input, select")]
      .find((each) => each.dataset.name === name || `${each.name}=${each.value}` === name)?.focus();
  };
  const change = (key) => (value) => { chosen[key] = value; focusAgain(); };
  const fill = () => {
    chosen.scene = Math.min(chosen.scene, scenes.length - 1);
    const scene = scenes[chosen.scene], ofScene = snapshots.filter((each) => each.scene === chosen.scene);
    const images = scene.masks.length;
    chosen.image = Math.min(chosen.image, images - 1);
    const times = [...new Set(ofScene.map((each) => each.seen))].sort((a, b) => a - b);
    const runs = [...new Set(ofScene.map((each) => each.run))];
    const pick = { raw: [], time: times.length - 1 };
    pick.time = Math.round(chosen.time * (times.length - 1));
    const at = (run) => ofScene.filter((each) => each.run === run && each.seen <= times[pick.time]).pop()
      || ofScene.find((each) => each.run === run);
    const first = (run) => ofScene.find((each) => each.run === run);
    const when = (snapshot) => `epoch ${snapshot.epoch}, ${count(snapshot.seen)} images seen`;
    const sides = [["original", "original"], ["masked", "what the encoder is shown"],
      ...runs.map((run) => [`run ${run}`, `${content.runs[run].name}, now`]),
      ...runs.filter((run) => ofScene.filter((each) => each.run === run).length > 1)
        .map((run) => [`first ${run}`, `${content.runs[run].name}, first`])];
    const named = (side) => sides.some(([value]) => value === side);
    if (!named(chosen.left)) chosen.left = "original";
    if (!named(chosen.right)) chosen.right = `run ${runs[0]}`;
    const snapshotOf = (side) => (side.startsWith("run ") ? at(Number(side.slice(4)))
      : side.startsWith("first ") ? first(Number(side.slice(6))) : null);
    const show = (canvas, side) => {
      const snapshot = snapshotOf(side);
      paint(canvas, scene, chosen.image, snapshot?.raw, snapshot ? chosen.part : side);
    };
    const labelOf = (side) => {
      const snapshot = snapshotOf(side);
      return snapshot ? `${content.runs[snapshot.run].name}, ${when(snapshot)}`
        : sides.find(([value]) => value === side)[1];
    };
    const strip = [
      ["original", "original"], ["masked", "what the encoder is shown"],
      ...runs.map((run) => [`run ${run}`, labelOf(`run ${run}`)]),
    ].map(([side, label]) => {
      const canvas = pictureCanvas(scene, label, 160);
      show(canvas, side);
      return captioned(canvas, label);
    });
    holder.replaceChildren(
      make("div", { class: "controls" },
        scenes.length > 1 && selection("Images and masks", scenes.map((each, number) => [String(number),
          `set ${number + 1}: ${[...new Set(snapshots.filter((s) => s.scene === number)
            .map((s) => content.runs[s.run].name))].join(", ")}`]),
        String(chosen.scene), (value) => change("scene")(Number(value))),
        thumbnails(scene, images, change("image")),
        radios("Shown of a run", "part", PARTS, chosen.part, change("part")),
        times.length > 1 && timeRange(times, pick.time, ofScene, (value) => change("time")(value)),
      ),
      make("div", { class: "sides-and-strip" },
        divider(scene, sides, show, labelOf, change),
        make("div", {}, make("h3", {}, "The same image and mask"), make("div", { class: "strip" }, strip),
          chosen.part === "error" && legendOfErrors(),
          make("button", { type: "button", class: "small", onclick: () => saveStrip(strip) }, "save PNG")),
      ),
    );
  };
  fill();
  return holder;
}

function thumbnails(scene, images, onchange) {
  return make("fieldset", { class: "thumbnails" }, make("legend", {}, "Image"), Array.from({ length: images }, (_, index) => {
    const canvas = pictureCanvas(scene, `image ${index + 1}`, 48);
    paint(canvas, scene, index, null, "original");
    return make("label", {}, make("input", {
      type: "radio", name: "image", value: index, checked: index === chosen.image, onchange: () => onchange(index),
    }), canvas);
  }));
}

function timeRange(times, at, snapshots, onchange) {
  const epoch = snapshots.find((each) => each.seen === times[at]).epoch;
  const text = `epoch ${epoch}, ${count(times[at])} images seen`;
  return make("label", { class: "field wide" }, make("span", {}, `Time: ${text}`), make("input", {
    type: "range", min: 0, max: times.length - 1, step: 1, value: at, "data-name": "time",
    "aria-label": "Time of training", "aria-valuetext": text,
    oninput: (event) => onchange(Number(event.target.value) / (times.length - 1)),
  }));
}

/* Two pictures one over the other; the divider says where the left one ends. */
function divider(scene, sides, show, labelOf, change) {
  const left = pictureCanvas(scene, labelOf(chosen.left), 320), right = pictureCanvas(scene, labelOf(chosen.right), 320);
  show(left, chosen.left);
  show(right, chosen.right);
  const line = make("span", { class: "divider", "aria-hidden": "true" });
  const stage = make("div", { class: "stage" }, right, left, line);
  const range = make("input", {
    type: "range", min: 0, max: 100, step: 1, value: chosen.divider, "data-name": "divider",
    "aria-label": `Divider: left ${labelOf(chosen.left)}, right ${labelOf(chosen.right)}`,
  });
  const move = () => {
    chosen.divider = Number(range.value);
    left.style.clipPath = `inset(0 ${100 - chosen.divider}% 0 0)`;
    line.style.left = `${chosen.divider}%`;
    range.setAttribute("aria-valuetext", `${chosen.divider} % of the left picture`);
  };
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    const box = stage.getBoundingClientRect();
    range.value = 100 * (event.clientX - box.left) / box.width;
    move();
  };
  range.addEventListener("input", move);
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); drag(event); });
  stage.addEventListener("pointermove", drag);
  move();
  return make("div", { class: "compared" }, make("h3", {}, "Before and after"), stage, range,
    make("div", { class: "sides" }, selection("Left", sides, chosen.left, change("left")),
      selection("Right", sides, chosen.right, change("right"))));
}

function legendOfErrors() {
  return make("p", { class: "note" }, "Error: the mean absolute difference of the channels, from ",
    make("span", { class: "heat" }), " 0 (dark) to 0.5 and more of the range from black to white (bright); visible pixels are grey.");
}

/* All pictures of a strip in one file, with their captions. */
function saveStrip(figures) {
  const canvases = figures.map((figure) => figure.querySelector("canvas"));
  const side = 256, canvas = make("canvas", { width: canvases.length * (side + 8), height: side + 24 });
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  context.font = "12px system-ui, sans-serif";
  canvases.forEach((picture, at) => {
    const scale = side / Math.max(picture.width, picture.height);
    context.drawImage(picture, at * (side + 8), 0, picture.width * scale, picture.height * scale);
    context.fillStyle = "black";
    context.fillText(picture.getAttribute("aria-label"), at * (side + 8), side + 16, side);
  });
  saveCanvas(canvas, "samples");
}

function rankedImages(content, ranked) {
  const rows = ranked.labels.map((label, index) => {
    const shots = [["original", "original"], ["masked", "hidden in grey"], ["composite", "composite"],
      ["error", "error"]].map(([part, name]) => {
      const canvas = pictureCanvas(ranked, `${label}: ${name}`, 96);
      paint(canvas, ranked, index, ranked.composite, part);
      return captioned(canvas, name);
    });
    return make("div", { class: "ranked" }, make("h4", {}, label), make("div", { class: "strip" }, shots));
  });
  return make("div", {}, make("h3", {}, `${content.runs[ranked.run].name} (${ranked.report})`),
    make("div", { class: "grid broad" }, rows));
}

/* What one patch attends to, laid over the image: from dark (0) to bright (the largest), its own place outlined. */
function paintPatch(canvas, picture, attention, index, patch) {
  const [rows, columns] = attention.grid, patches = rows * columns;
  const row = make("canvas", { width: patches, height: 1 }).getContext("2d");
  row.drawImage(picture, 0, index * patches + patch, patches, 1, 0, 0, patches, 1);
  const { data } = row.getImageData(0, 0, patches, 1);
  const context = canvas.getContext("2d"), height = canvas.height / rows, width = canvas.width / columns;
  const corner = (at) => [at % columns * width, Math.floor(at / columns) * height];
  context.globalAlpha = 0.8;
  for (let at = 0; at < patches; at++) {
    context.fillStyle = `rgb(${heat(data[4 * at] / 255).join(" ")})`;
    context.fillRect(...corner(at), width, height);
  }
  context.globalAlpha = 1;
  context.strokeStyle = "white";
  context.strokeRect(...corner(patch).map((side) => side + 0.5), width - 1, height - 1);
}

/* The image; while it is pointed at or focused the attention of its class token, or of a patch. */
function attentionFigure(attention, index) {
  const name = `image ${index + 1}`, [rows, columns] = attention.grid;
  const canvas = pictureCanvas(attention, name, 128);
  const hasPatches = index < (attention.mapped || 0);
  let patch = Math.floor(rows / 2) * columns + Math.floor(columns / 2), latest = 0;
  const show = async (kind) => {
    const byPatch = kind === "patch" && hasPatches, [height, width] = attention.size;
    const view = byPatch ? "original" : kind in attention.views ? kind : "mean";
    const turn = ++latest;
    const picture = await strip(attention.views[view]), maps = byPatch && await strip(attention.patches);
    if (turn !== latest) return;
    canvas.getContext("2d").drawImage(picture, 0, index * height, width, height, 0, 0, width, height);
    if (byPatch) paintPatch(canvas, maps, attention, index, patch);
    const place = `the patch in row ${Math.floor(patch / columns) + 1}, column ${patch % columns + 1}`;
    canvas.setAttribute("aria-label", `${name}, ${kind === "original" ? kind : `attention: ${byPatch ? place : view}`}`);
  };
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (place, count) => Math.min(count - 1, Math.max(0, Math.floor(place * count)));
    patch = at((event.clientY - box.top) / box.height, rows) * columns + at((event.clientX - box.left) / box.width, columns);
    show(chosen.attention);
  };
  const move = async (event) => {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (chosen.attention !== "patch" || !hasPatches || !(event.key in steps)) return;
    event.preventDefault();
    const [down, right] = steps[event.key];
    const row = Math.floor(patch / columns) + down, column = patch % columns + right;
    if (row < 0 || row >= rows || column < 0 || column >= columns) return;
    patch = row * columns + column;
    await show("patch");
    speak(canvas.getAttribute("aria-label"));
  };
  show("original");
  return make("figure", { class: "shot attention", tabindex: 0, onpointerenter: point, onpointermove: point,
    onkeydown: move, onfocus: () => show(chosen.attention),
    onpointerleave: () => show("original"), onblur: () => show("original") }, canvas);
}

function attentionMaps(content, attention) {
  const kinds = Object.keys(attention.views).filter((name) => name !== "original").map((name) => [name, name]);
  if (attention.patches) kinds.unshift(["patch", "the patch pointed at"]);
  const current = kinds.some(([name]) => name === chosen.attention) ? chosen.attention : "mean";
  return make("div", {}, make("h3", {}, `${content.runs[attention.run].name} (${attention.file})`),
    radios("Attention of", `attention-${attention.run}`, kinds, current,
      (name) => { chosen.attention = name; }),
    make("div", { class: "strip" }, Array.from({ length: attention.count }, (_, index) => attentionFigure(attention, index))));
}
