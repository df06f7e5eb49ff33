"use strict";
/* Elements, and sentences for those who hear the page. */

/* Make an element. Text is always set as text: names of runs and files are whatever their owners typed. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

function speak(text) {
  document.getElementById("spoken").textContent = text;
}

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
