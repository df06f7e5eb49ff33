"use strict";
/* Numbers as text, folded parts and choices, and what the reader has chosen, which survives an update of the contents. */

const chosen = {
  hidden: new Set(), zoom: null, open: {}, scene: 0, image: 0, time: 1, part: "composite",
  left: "original", right: null, divider: 50, attention: "patch", differing: true, filter: "",
};

/* A number in at most `digits` significant digits. */
function short(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return Number(value.toPrecision(digits - 1)).toExponential();
  return String(Number(value.toPrecision(digits)));
}

function count(value) {
  return Math.round(value).toLocaleString("en-US");
}

/* An image count on an axis: 1500 -> 1.5k. */
function thousands(value) {
  if (value >= 1e6) return `${short(value / 1e6)}M`;
  return value >= 1e3 ? `${short(value / 1e3)}k` : short(value);
}

/* The colour of a run, as the style sheet has it in this light. */
function colorOf(run) {
  return styleOf(`--run-${run % 8}`);
}

function styleOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function section(id, title, ...children) {
  return make("section", { id, "aria-labelledby": `${id}-title` }, make("h2", { id: `${id}-title` }, title), children);
}

/* A part that is folded away; its contents are made when it is first opened. */
function folded(id, title, fill, isOpen = false) {
  const details = make("details", { id }, make("summary", {}, title));
  let isFilled = false;
  const unfold = () => {
    chosen.open[id] = details.open;
    if (details.open && !isFilled) {
      isFilled = true;
      details.append(...fill());
    }
  };
  details.addEventListener("toggle", unfold);
  if (chosen.open[id] ?? isOpen) {
    details.open = true;
    unfold();
  }
  return details;
}

/* A named choice: radio buttons. */
function radios(legend, name, options, current, onchange) {
  return make("fieldset", { class: "choice" }, make("legend", {}, legend), options.map(([value, label]) =>
    make("label", {}, make("input", {
      type: "radio", name, value, checked: value === current, onchange: () => onchange(value),
    }), label)));
}

function selection(label, options, current, onchange) {
  return make("label", { class: "field" }, `${label} `, make("select", {
    onchange: (event) => onchange(event.target.value),
  }, options.map(([value, text]) => make("option", { value, selected: value === current }, text))));
}

function saveCanvas(canvas, name) {
  const link = make("a", { href: canvas.toDataURL("image/png"), download: `${name.replace(/[^\w.+-]+/g, "_")}.png` });
  link.click();
}
