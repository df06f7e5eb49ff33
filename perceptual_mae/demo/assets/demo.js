/* The page: its controls, and what is asked of the server, or of the answers that came with the page. */

const content = JSON.parse(document.getElementById("content").textContent);
const PARTS = [["composite", "visible pixels pasted in"], ["raw", "whole output"], ["error", "error of hidden pixels"]];
const most = content.grid[0] * content.grid[1];
const LARGEST_RATIO = Math.floor(20 * (1 - 1 / most)) / 20;
const state = {
  image: null, file: null, maskNumber: 0, kind: "random", seed: 0, ratio: Math.min(content.ratio, LARGEST_RATIO),
  part: "composite", shown: new Set(content.methods.keys()), answers: new Map(), isAsking: false, isAskedAgain: false,
};
const problem = make("p", { id: "problem", class: "problem", role: "alert" });
const status = make("p", { id: "status", role: "status" });
const brush = new Brush(content.size, content.grid, content.live, () => { state.kind = null; pressed(); ask(); });
const whole = pictureCanvas(content.size, "original");
const figures = content.methods.map(methodFigure);
const originals = new Map();

/* Send a request to the server; a sentence of its refusal is thrown as an error. */
async function post(address, body, type = "application/json") {
  let response;
  try {
    response = await fetch(address, { method: "POST", body, headers: { "Content-Type": type } });
  } catch {
    throw new Error("the demo does not answer; it may have been ended: start it again");
  }
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.error), { status: response.status });
  return answer;
}

async function answersOf(mask, methods) {
  if (!content.live) return content.answers[content.images.indexOf(state.image)][state.maskNumber];
  const ask = () => post("/answer", JSON.stringify({ image: state.image.key, mask, methods }));
  try {
    return (await ask()).answers;
  } catch (failure) {
    if (failure.status !== 410 || !state.file) throw failure;
    await post("/image", state.file);  // the server has forgotten it
    return (await ask()).answers;
  }
}

/* Have the painted mask filled in. There is one request at a time: what was painted meanwhile is asked for after it. */
async function ask() {
  if (state.isAsking) { state.isAskedAgain = true; return; }
  state.isAsking = true;
  do {
    state.isAskedAgain = false;
    try {
      await askOnce();
      problem.textContent = "";
    } catch (failure) {
      report(failure);
    }
  } while (state.isAskedAgain);
  state.isAsking = false;
}

async function askOnce() {
  const mask = brush.text, image = state.image, methods = [...state.shown].sort((a, b) => a - b);
  if (!image) return waitFor(content.live ? "Choose, drop or paste a photograph to begin." : "");
  if (!mask.includes("0")) return waitFor("Everything is hidden: paint what is to stay visible.");
  if (!methods.length) return waitFor("Choose a method to see what it makes of the image.");
  const start = performance.now();
  const answers = await answersOf(mask, methods);
  const seconds = (performance.now() - start) / 1000;
  if (image !== state.image) return;
  for (const answer of answers) {
    state.answers.set(answer.method, { ...answer, image, picture: await decoded(answer.output) });
  }
  for (const method of methods) draw(method);
  const scores = methods.map((method) => `${content.methods[method].name} ${decibels(state.answers.get(method).psnr)}`);
  const time = content.live ? `, in ${seconds.toFixed(2)} s` : "";
  status.textContent = `${brush.hidden} of ${most} patches hidden (${Math.round(100 * brush.hidden / most)} %)${time}.`;
  speak(`PSNR of hidden pixels: ${scores.join(", ")}`);
}

function waitFor(sentence) {
  status.textContent = sentence;
  state.answers.clear();
  figures.forEach((figure, method) => draw(method));
}

function report(failure) {
  problem.textContent = `${failure.message[0].toUpperCase()}${failure.message.slice(1)}.`;
}

function decibels(psnr) {
  return psnr === null ? "nothing is hidden" : `${psnr.toFixed(2)} dB`;
}

function methodFigure(method, number) {
  const canvas = pictureCanvas(method.size, method.name), score = make("div", { class: "score" });
  const own = make("div", { class: "note" });
  const figure = make("figure", { "data-method": number }, make("h2", {}, method.name), canvas, make("figcaption", {}, score, own,
    make("div", { class: "note" }, [method.words, ...method.notes].join("; "))));
  return { figure, canvas, score, own };
}

/* Show what a method has made, as chosen. */
async function draw(number) {
  const { figure, canvas, score, own } = figures[number], answer = state.answers.get(number), method = content.methods[number];
  figure.hidden = !state.shown.has(number);
  canvas.classList.toggle("waiting", !answer);
  score.textContent = answer ? decibels(answer.psnr) : "";
  if (!answer) {
    contextOf(canvas).clearRect(0, 0, canvas.width, canvas.height);
    return;
  }
  if (answer.psnr !== null) score.dataset.psnr = answer.psnr;
  const original = await originalOf(answer.image, method.view);
  drawPart(canvas, state.part, original, answer.picture, hiddenBoxes(answer.mask, method.grid, method.size));
  const name = PARTS.find(([part]) => part === state.part)[1];
  canvas.setAttribute("aria-label", `${method.name}: ${name}, ${decibels(answer.psnr)}`);
  const hidden = [...answer.mask].filter((mark) => mark === "1").length;
  own.textContent = String(method.grid) === String(content.grid) ? ""
    : `nearest mask of its ${method.grid.join(" x ")} patches: ${hidden} of ${answer.mask.length} hidden`;
}

function originalOf(image, view) {
  const uri = image.views[view];
  if (!originals.has(uri)) originals.set(uri, decoded(uri));
  return originals.get(uri);
}

/* Show an image in place of the last one. */
async function choose(image, file = null) {
  Object.assign(state, { image, file });
  state.answers.clear();
  about.textContent = [image.label, image.note].filter(Boolean).join(": ");
  const picture = await originalOf(image, content.methods[0].view);
  contextOf(whole).drawImage(picture, 0, 0);
  whole.setAttribute("aria-label", `original: ${image.label}`);
  brush.show(picture);
  await ask();
}

/* Send a photograph of the visitor's own, and show it. */
async function upload(file) {
  if (!file) return;
  try {
    if (file.size > content.largest_file) {
      throw new Error(`${file.name || "the file"} has ${file.size.toLocaleString("en-US")} bytes, more than `
        + `${content.largest_file.toLocaleString("en-US")}, the limit`);
    }
    status.textContent = "Reading the photograph ...";
    const image = await post("/image", file, "application/octet-stream");
    image.label = file.name || "pasted photograph";
    document.querySelectorAll("input[name=image]").forEach((input) => { input.checked = false; });
    await choose(image, file);
  } catch (failure) {
    status.textContent = "";
    report(failure);
  }
}

/* Draw a mask of a kind; the same seed gives the same mask. */
async function drawMask(kind) {
  state.kind = kind;
  pressed();
  try {
    const { mask } = await post("/mask", JSON.stringify({ kind, ratio: state.ratio, seed: state.seed }));
    if (state.kind !== kind) return;
    brush.set(mask);
    await ask();
  } catch (failure) {
    report(failure);
  }
}

function fillAll(mark) {
  state.kind = null;
  pressed();
  brush.set(mark.repeat(most));
  ask();
}

/* Mark the button of the kind of mask that is shown. */
function pressed() {
  document.querySelectorAll("button[data-kind]").forEach((each) => {
    each.setAttribute("aria-pressed", each.dataset.kind === state.kind);
  });
}

function save() {
  const label = state.image?.label ?? "image", { hidden } = brush;
  const shown = figures.filter((each, number) => state.shown.has(number) && state.answers.has(number));
  savePictures([
    [whole, ["original", label]],
    [brush.canvas, ["what the encoders are shown", `${hidden} of ${most} patches hidden`]],
    ...shown.map(({ figure, canvas, score }) => [canvas, [figure.querySelector("h2").textContent, score.textContent]]),
  ], `demo ${label}`);
}

function thumbnails() {
  return group("Image", { class: "thumbnails" }, content.images.map((image, number) => {
    const canvas = pictureCanvas(content.size, image.label);
    originalOf(image, content.methods[0].view).then((picture) => contextOf(canvas).drawImage(picture, 0, 0));
    return make("label", {}, make("input", {
      type: "radio", name: "image", value: number, checked: number === 0, "aria-label": image.label, onchange: () => choose(image),
    }), canvas);
  }), content.live && make("label", { class: "file" }, "Your photograph ", make("input", {
    type: "file", id: "file", accept: "image/*", class: "spoken", onchange: (event) => upload(event.target.files[0]),
  })));
}

function maskControls() {
  if (!content.live) {
    return radios("Mask", "mask", content.masks.map(({ label }, number) => [number, label]), 0, (number) => {
      state.maskNumber = number;
      brush.set(content.masks[number].mask);
      ask();
    });
  }
  const largest = Math.max(1, Math.min(8, ...content.grid));
  return group("Mask", { class: "wide" },
    content.kinds.map((kind) => button(kind, () => { state.seed++; drawMask(kind); }, { "data-kind": kind, "aria-pressed": false })),
    button("everything but", () => fillAll("1"), { title: "Hide everything; then paint what is to stay visible." }),
    button("nothing", () => fillAll("0"), { title: "Show everything; then paint what is to be hidden." }),
    button("undo", () => brush.undo()),
    slider("Ratio", { id: "ratio", min: .05, max: LARGEST_RATIO, step: .05, value: state.ratio },
      (ratio) => `${Math.round(100 * ratio)} %`, (ratio) => { state.ratio = ratio; drawMask(state.kind || "random"); }),
    slider("Brush", { id: "brush-size", min: 1, max: largest, step: 1, value: 1 },
      (size) => (size === 1 ? "1 patch" : `${size} x ${size} patches`), (size) => { brush.size = size; }));
}

function methodControls() {
  return content.methods.length > 1 && group("Methods", {}, content.methods.map((method, number) => make("label", {}, make("input", {
    type: "checkbox", name: "method", value: number, checked: true, onchange: (event) => {
      state.shown[event.target.checked ? "add" : "delete"](number);
      draw(number);
      ask();
    },
  }), ` ${method.name}`)));
}

const about = make("p", { id: "about", class: "note" });
const legend = make("p", { class: "note", hidden: true }, "Error: the mean absolute difference of the channels, from ",
  make("span", { class: "heat" }), " 0 (dark) to 0.5 and more of the range from black to white (bright); visible pixels are grey.");
document.getElementById("demo").append(
  make("h1", {}, content.live ? "Paint a mask" : "What masked autoencoders fill in"),
  make("p", {}, content.live
    ? "Paint on the image: what you paint is hidden, and each method fills it in from the rest. Photographs can also be dropped or pasted here; they stay on this machine."
    : "Choose an image and a mask: each method fills in what is hidden, from the rest."),
  make("div", { class: "controls" }, thumbnails(), maskControls(), methodControls(),
    radios("Shown of a method", "part", PARTS, state.part, (part) => {
      state.part = part;
      legend.hidden = part !== "error";
      figures.forEach((figure, number) => draw(number));
    })),
  problem,
  make("div", { class: "stage" },
    make("figure", {}, make("h2", {}, content.live ? "Paint here" : "Shown to the encoders"), brush.canvas,
      make("figcaption", {}, status, button("Save as PNG", save))),
    make("div", {}, make("div", { class: "results" }, figures.map(({ figure }) => figure),
      make("figure", {}, make("h2", {}, "original"), whole, make("figcaption", {}, about))), legend,
      make("p", { class: "note" }, "The number is the PSNR of hidden pixels: higher is closer to the original."))),
);

if (content.live) {
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
  addEventListener("dragleave", () => document.body.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    upload(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => upload(event.clipboardData.files[0]));
}
figures.forEach((figure, number) => draw(number));
(async () => {
  if (content.live) await drawMask("random");
  else brush.set(content.masks[0].mask);
  if (content.images.length) await choose(content.images[0]);
  else ask();
})();
