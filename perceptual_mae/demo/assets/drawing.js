/* Pictures: decoded once, composed of visible and filled-in patches, as maps of errors, as one PNG. */

const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
const GREY = "rgb(128 128 128)";
const SMALL = 160;

async function decoded(uri) {
  const picture = new Image();
  picture.src = uri;
  await picture.decode();
  return picture;
}

/* The context of a canvas whose pixels are read again. */
function contextOf(canvas) {
  return canvas.getContext("2d", { willReadFrequently: true });
}

/* A canvas for pictures of [height, width]; small ones are enlarged by whole pixels. */
function pictureCanvas([height, width], label) {
  const isSmall = Math.max(height, width) < SMALL;
  return make("canvas", { width, height, role: "img", "aria-label": label, class: isSmall ? "pixels" : "" });
}

/* The hidden patches of a mask, a text of 1 and 0, as [x, y, width, height] in pixels. */
function hiddenBoxes(mask, [rows, columns], [height, width]) {
  const boxWidth = width / columns, boxHeight = height / rows;
  return [...mask].flatMap((mark, at) => (mark === "1"
    ? [[at % columns * boxWidth, Math.floor(at / columns) * boxHeight, boxWidth, boxHeight]] : []));
}

/* Draw what a method made of an image: composite, raw, or the error of hidden pixels. */
function drawPart(canvas, part, original, output, boxes) {
  const context = contextOf(canvas), { width, height } = canvas;
  context.clearRect(0, 0, width, height);
  context.drawImage(part === "raw" ? output : original, 0, 0);
  if (part === "composite") {
    for (const [x, y, w, h] of boxes) context.drawImage(output, x, y, w, h, x, y, w, h);
  } else if (part === "error") {
    const before = context.getImageData(0, 0, width, height);
    context.drawImage(output, 0, 0);
    context.putImageData(errorMap(before, context.getImageData(0, 0, width, height), boxes), 0, 0);
  }
}

/* Mean absolute difference of the channels at hidden pixels, from dark (0) to bright (half the range and more). */
function errorMap(before, after, boxes) {
  const map = new ImageData(before.width, before.height);
  for (let at = 0; at < map.data.length; at += 4) map.data.set([128, 128, 128, 40], at);
  for (const [left, top, width, height] of boxes) {
    for (let y = top; y < top + height; y++) {
      for (let x = left; x < left + width; x++) {
        const at = 4 * (y * before.width + x);
        const difference = [0, 1, 2].reduce((sum, channel) =>
          sum + Math.abs(before.data[at + channel] - after.data[at + channel]), 0) / 3;
        map.data.set([...heat(Math.min(1, difference / 127.5)), 255], at);
      }
    }
  }
  return map;
}

function heat(share) {
  const place = share * (HEAT.length - 1), low = Math.min(HEAT.length - 2, Math.floor(place));
  return HEAT[low].map((value, channel) => Math.round(value + (place - low) * (HEAT[low + 1][channel] - value)));
}

/* All pictures next to each other with their captions, saved as one PNG. */
function savePictures(pictures, name) {
  const side = 256, gap = 8, line = 16;
  const lines = Math.max(...pictures.map(([, captions]) => captions.length));
  const canvas = make("canvas", { width: pictures.length * (side + gap) - gap, height: side + line * lines + gap });
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.font = "13px system-ui, sans-serif";
  pictures.forEach(([picture, captions], at) => {
    const scale = side / Math.max(picture.width, picture.height);
    context.imageSmoothingEnabled = scale < 1;
    context.drawImage(picture, at * (side + gap), 0, picture.width * scale, picture.height * scale);
    context.fillStyle = "black";
    captions.forEach((text, row) => context.fillText(text, at * (side + gap), side + line * (row + 1), side));
  });
  make("a", { href: canvas.toDataURL("image/png"), download: `${name.replace(/[^\w.+-]+/g, "_")}.png` }).click();
}
