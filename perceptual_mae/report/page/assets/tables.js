/* Tables: scores, facts, configurations. */

function scrolled(label, table) {
  return make("div", { class: "scrolled", role: "region", tabindex: 0, "aria-label": label }, table);
}

/* A table of `pmae compare`; rows of the paper are in italics. */
function scoreTable(table) {
  const notes = table.notes.length > 0 && make("ul", { class: "note" }, table.notes.map((note) => make("li", {}, note)));
  return make("div", { class: "card wide" }, scrolled(table.title, make("table", { class: "scores" },
    make("caption", {}, table.title),
    make("thead", {}, make("tr", {}, table.header.map((heading) =>
      (heading ? make("th", { scope: "col" }, heading) : make("td", {}))))),
    make("tbody", {}, table.rows.map((row) => make("tr", { class: row.is_paper ? "paper" : "" },
      make("th", { scope: "row" }, row.label), row.cells.map((cell) => make("td", {}, cell))))),
  )), notes);
}

/* Rows of a key and a value for each run; those that differ are marked. */
function runsTable(content, caption, rows, extra = "") {
  const several = content.runs.length > 1;
  return scrolled(caption, make("table", { class: `facts ${extra}` },
    make("caption", {}, caption),
    several && make("thead", {}, make("tr", {}, make("td", {}), content.runs.map((run) => make("th", { scope: "col" }, run.name)))),
    make("tbody", {}, rows.map((row) => make("tr", { class: row.differs ? "differs" : "" },
      make("th", { scope: "row" }, row.differs && make("span", { title: "the runs differ" }, "≠ "), row.key),
      row.values.map((value) => make("td", {}, value))))),
  ));
}

function configuration(content) {
  const several = content.runs.length > 1 && content.configuration.some((row) => row.differs);
  const holder = make("div", {});
  const fill = () => holder.replaceChildren(runsTable(content, "Configuration", content.configuration.filter((row) =>
    (!several || !chosen.differing || row.differs) && row.key.includes(chosen.filter.trim())), "code"));
  fill();
  return [
    make("div", { class: "controls" },
      several && make("label", {}, make("input", { type: "checkbox", checked: chosen.differing,
        onchange: (event) => { chosen.differing = event.target.checked; fill(); } }), " only what differs"),
      make("label", { class: "field" }, "Keys that contain ", make("input", { type: "search", value: chosen.filter,
        oninput: (event) => { chosen.filter = event.target.value; fill(); } }))),
    holder,
  ];
}
