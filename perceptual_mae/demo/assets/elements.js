"use strict";
/* Buttons, choices and sliders. */

function button(text, onclick, attributes = {}) {
  return make("button", { type: "button", onclick, ...attributes }, text);
}

function group(legend, attributes, ...children) {
  return make("fieldset", attributes, make("legend", {}, legend), make("div", {}, children));
}

/* Radio buttons: a named choice among [value, label]. */
function radios(legend, name, options, current, onchange) {
  return group(legend, {}, options.map(([value, label]) => make("label", {}, make("input", {
    type: "radio", name, value, checked: value === current, onchange: () => onchange(value),
  }), ` ${label}`)));
}

/* A slider with its value in words. */
function slider(name, attributes, words, oninput) {
  const said = make("span", {}), input = make("input", { type: "range", ...attributes });
  const show = () => {
    said.textContent = `${name}: ${words(Number(input.value))}`;
    input.setAttribute("aria-valuetext", words(Number(input.value)));
  };
  input.addEventListener("input", () => { show(); oninput(Number(input.value)); });
  show();
  return make("label", { class: "range" }, said, input);
}
