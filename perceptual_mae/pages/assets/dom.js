"use strict";
/* Elements of a page, and sentences for those who hear it. */

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
