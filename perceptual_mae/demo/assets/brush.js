/* The image one paints on: a canvas with a grid of patches, for mouse, touch and keyboard. */

const LONG_SIDE = 672;

class Brush {
  /* onpaint(mask): called whenever a stroke or a key has changed the mask, an array of 0 and 1. */
  constructor([height, width], [rows, columns], isActive, onpaint) {
    Object.assign(this, { rows, columns, onpaint, size: 1, row: 0, column: 0, stroke: null, past: [] });
    this.mask = new Uint8Array(rows * columns);
    this.scale = Math.max(1, Math.round(LONG_SIDE / Math.max(height, width)));
    this.canvas = make("canvas", { width: width * this.scale, height: height * this.scale });
    if (!isActive) {
      this.canvas.setAttribute("role", "img");
      this.canvas.setAttribute("aria-label", "what the encoders are shown");
      return;
    }
    const label = `${rows} rows and ${columns} columns of patches. Arrow keys move, space hides or shows a patch.`;
    const attributes = { role: "application", tabindex: 0, "aria-label": label, class: "brush" };
    for (const [name, value] of Object.entries(attributes)) this.canvas.setAttribute(name, value);
    const events = { pointerdown: "press", pointermove: "drag", pointerup: "lift", pointercancel: "lift", keydown: "key",
      focus: "draw", blur: "draw" };
    for (const [name, method] of Object.entries(events)) this.canvas.addEventListener(name, (event) => this[method](event));
  }

  get text() {
    return this.mask.join("");
  }

  get hidden() {
    return this.mask.reduce((sum, mark) => sum + mark, 0);
  }

  /* Take another mask, a text of 1 and 0. */
  set(text) {
    this.remember();
    this.mask = Uint8Array.from(text, Number);
    this.draw();
  }

  show(picture) {
    this.picture = picture;
    this.draw();
  }

  remember() {
    if (this.past[this.past.length - 1] !== this.text) this.past = [...this.past.slice(-49), this.text];
  }

  undo() {
    const before = this.past.pop();
    if (before === undefined) return;
    this.mask = Uint8Array.from(before, Number);
    this.draw();
    this.onpaint();
  }

  /* Row and column of the patch under a pointer. */
  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const at = (position, length, count) => Math.max(0, Math.min(count - 1, Math.floor(position / length * count)));
    return [at(event.clientY - box.top, box.height, this.rows), at(event.clientX - box.left, box.width, this.columns)];
  }

  /* A stroke does to all patches what it does to its first: hide it if it was visible, else show it. */
  press(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.remember();
    [this.row, this.column] = this.place(event);
    this.stroke = 1 - this.mask[this.row * this.columns + this.column];
    this.dab();
  }

  drag(event) {
    if (this.stroke === null) return;
    const [row, column] = this.place(event), [fromRow, fromColumn] = [this.row, this.column];
    const steps = Math.max(Math.abs(row - fromRow), Math.abs(column - fromColumn));
    for (let step = 1; step <= steps; step++) {  // a fast pointer skips patches
      this.row = Math.round(fromRow + (row - fromRow) * step / steps);
      this.column = Math.round(fromColumn + (column - fromColumn) * step / steps);
      this.dab();
    }
  }

  lift() {
    if (this.stroke === null) return;
    this.stroke = null;
    this.say();
  }

  /* Paint the patches under the brush. */
  dab() {
    const start = Math.floor((this.size - 1) / 2);
    for (let row = this.row - start; row < this.row - start + this.size; row++) {
      for (let column = this.column - start; column < this.column - start + this.size; column++) {
        if (row >= 0 && row < this.rows && column >= 0 && column < this.columns) {
          this.mask[row * this.columns + column] = this.stroke;
        }
      }
    }
    this.draw();
    this.onpaint();
  }

  key(event) {
    if (event.altKey || event.metaKey) return;
    if (event.ctrlKey) {
      if (event.key !== "z") return;
      this.undo();
    } else if (event.key === " " || event.key === "Enter") {
      this.remember();
      this.stroke = 1 - this.mask[this.row * this.columns + this.column];
      this.dab();
      this.stroke = null;
    } else {
      const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
        Home: [0, -this.columns], End: [0, this.columns], PageUp: [-this.rows, 0], PageDown: [this.rows, 0] };
      const step = steps[event.key];
      if (!step) return;
      this.row = Math.max(0, Math.min(this.rows - 1, this.row + step[0]));
      this.column = Math.max(0, Math.min(this.columns - 1, this.column + step[1]));
      this.draw();
    }
    event.preventDefault();
    this.say();
  }

  say() {
    const state = this.mask[this.row * this.columns + this.column] ? "hidden" : "visible";
    speak(`row ${this.row + 1}, column ${this.column + 1}: ${state}`);
  }

  draw() {
    const context = this.canvas.getContext("2d"), { width, height } = this.canvas;
    const patchWidth = width / this.columns, patchHeight = height / this.rows;
    context.imageSmoothingEnabled = this.scale === 1;
    context.clearRect(0, 0, width, height);
    if (this.picture) context.drawImage(this.picture, 0, 0, width, height);
    context.fillStyle = GREY;
    this.mask.forEach((mark, at) => {
      if (mark) context.fillRect(at % this.columns * patchWidth, Math.floor(at / this.columns) * patchHeight, patchWidth, patchHeight);
    });
    context.fillStyle = "rgb(255 255 255 / 35%)";
    for (let column = 1; column < this.columns; column++) context.fillRect(column * patchWidth - .5, 0, 1, height);
    for (let row = 1; row < this.rows; row++) context.fillRect(0, row * patchHeight - .5, width, 1);
    if (document.activeElement === this.canvas && this.canvas.matches(":focus-visible")) this.drawCursor(context, patchWidth, patchHeight);
  }

  drawCursor(context, patchWidth, patchHeight) {
    const box = [this.column * patchWidth + 2, this.row * patchHeight + 2, patchWidth - 4, patchHeight - 4];
    for (const [color, line] of [["black", 6], ["white", 2]]) {
      context.strokeStyle = color;
      context.lineWidth = line;
      context.strokeRect(...box);
    }
  }
}
