// The page of a comparison: sorts and filters the table, draws parallel coordinates and learning curves.
// All text enters the page as text, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = data.rows;
  const table = document.getElementById("settings");
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells].filter((cell) => cell.dataset.key);
  const filterBox = document.getElementById("filter");
  const state = { sort: data.by, descending: null, brushes: new Map(), kept: rows.map(() => true) };
  document.body.classList.add("script");

  const svgElement = (name, attributes = {}, text = null) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    return made;
  };
  const number = (value) => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
    return String(Number(value.toPrecision(3)));
  };
  const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value));

  // --- what belongs to a setting lights up together -----------------------------------------------------------------
  const heat = (row, on) => {
    for (const part of document.querySelectorAll(`[data-row="${row}"]`)) part.classList.toggle("hot", on);
  };
  for (const [name, on] of [["pointerover", true], ["pointerout", false], ["focusin", true], ["focusout", false]]) {
    document.addEventListener(name, (event) => {
      const part = event.target.closest ? event.target.closest("[data-row]") : null;
      if (part) heat(part.dataset.row, on);
    });
  }

  // --- sorting ------------------------------------------------------------------------------------------------------
  const better = (key) => (data.metrics[key] ? data.metrics[key][2] : "");
  const cellOf = (line, key) => [...line.cells].find((cell) => cell.dataset.key === key);

  function sort(key, descending) {
    state.sort = key;
    state.descending = descending;
    const keyed = [...body.rows].map((line) => {
      const cell = cellOf(line, key);
      return { line, value: cell.dataset.value, text: cell.textContent, row: Number(line.dataset.row) };
    });
    const sign = descending ? -1 : 1;
    keyed.sort((a, b) => {
      const missing = (a.text === "") - (b.text === ""); // what has no value stands last either way
      if (missing) return missing;
      if (a.value !== undefined && b.value !== undefined) return sign * (a.value - b.value) || a.row - b.row;
      if (a.value !== undefined || b.value !== undefined) return sign * (a.value !== undefined ? -1 : 1);
      return sign * a.text.localeCompare(b.text) || a.row - b.row;
    });
    body.append(...keyed.map((entry) => entry.line));
    for (const head of heads) {
      head.setAttribute("aria-sort", head.dataset.key === key ? (descending ? "descending" : "ascending") : "none");
    }
  }
  for (const head of heads) {
    head.querySelector("button").addEventListener("click", () => {
      const key = head.dataset.key;
      const current = head.getAttribute("aria-sort");
      sort(key, current === "none" ? better(key) === "higher" : current === "ascending");
      remember();
    });
  }

  // --- filter: words that the row holds, and comparisons such as rank>=2 ---------------------------------------------
  const texts = [...body.rows].sort((a, b) => a.dataset.row - b.dataset.row)
    .map((line) => `${line.textContent} ${line.cells[0].title}`.toLowerCase());
  const comparisons = {
    "=": (a, b) => a === b, "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b,
  };
  function valuesNamed(row, name) { // of the options and measures whose name ends so
    const all = { ...row.means, ...row.options };
    return Object.keys(all).filter((key) => key === name || key.endsWith(`.${name}`) || key.endsWith(`/${name}`))
      .map((key) => all[key]);
  }
  function matches(i, word) {
    const found = /^([^<>=]+)(<=|>=|<|>|=)(.+)$/.exec(word);
    if (!found) return texts[i].includes(word.toLowerCase());
    const [, name, sign, given] = found;
    const inName = sign === "=" && texts[i].includes(word.toLowerCase());
    return inName || valuesNamed(rows[i], name).some((value) =>
      typeof value === "number" ? comparisons[sign](value, Number(given)) : sign === "=" && shown(value) === given);
  }
  function weigh() { // which settings are chosen; lines fade at once
    const words = filterBox.value.trim().split(/\s+/).filter(Boolean);
    state.kept = rows.map((row, i) => words.every((word) => matches(i, word))
      && [...state.brushes].every(([axis, range]) => {
        const at = axis.position(row);
        return at !== null && at >= range[0] && at <= range[1];
      }));
    for (const line of document.querySelectorAll("#axes .line")) {
      line.classList.toggle("off", !state.kept[Number(line.dataset.row)]);
    }
  }
  function choose() {
    weigh();
    for (const line of body.rows) line.hidden = !state.kept[Number(line.dataset.row)];
    const n = state.kept.filter(Boolean).length;
    document.getElementById("count").textContent = `${n} of ${rows.length} shown`;
    drawCurves();
  }
  filterBox.addEventListener("input", () => { choose(); remember(); });
  document.getElementById("clear").addEventListener("click", () => {
    filterBox.value = "";
    state.brushes.clear();
    choose();
    drawAxes();
    remember();
  });

  // --- columns ------------------------------------------------------------------------------------------------------
  const visible = new Set(data.main);
  document.getElementById("columns").addEventListener("change", (event) => {
    const key = event.target.value;
    if (event.target.checked) visible.add(key); else visible.delete(key);
    show(key);
    state.brushes.clear();
    makeAxes();
    drawAxes();
    choose();
  });
  function show(key) {
    for (const line of table.rows) {
      const cell = cellOf(line, key);
      if (cell) cell.hidden = !visible.has(key);
    }
  }

  // --- scales -------------------------------------------------------------------------------------------------------
  // Positions run from 0 (bottom) to 1 (top).
  function numericScale(values, log) {
    const at = log ? Math.log10 : (value) => value;
    const low = Math.min(...values.map(at)), high = Math.max(...values.map(at));
    const position = (value) => (high > low ? (at(value) - low) / (high - low) : 0.5);
    const distinct = [...new Set(values)].sort((a, b) => a - b);
    let ticks = distinct;
    if (distinct.length > 6) {
      ticks = [0, 1, 2, 3, 4].map((i) => low + (i * (high - low)) / 4).map((x) => (log ? 10 ** x : x));
    }
    return { position, ticks: ticks.map((value) => [position(value), number(value)]) };
  }
  const isLog = (values) => Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) >= 30;

  // --- parallel coordinates -----------------------------------------------------------------------------------------
  let axes = [];
  function makeAxes() {
    const options = data.options.map((key) => ({ key, of: (row) => row.options[key] }));
    const measures = Object.keys(data.metrics).filter((key) => visible.has(key))
      .map((key) => ({ key, of: (row) => row.means[key], arrow: { lower: " ↓", higher: " ↑" }[better(key)] || "" }));
    axes = [...options, ...measures];
    for (const axis of axes) {
      const values = rows.map(axis.of).filter((value) => value !== undefined && value !== "");
      if (values.length && values.every((value) => typeof value === "number")) {
        const scale = numericScale(values, isLog(values));
        axis.ticks = scale.ticks;
        axis.position = (row) => (typeof axis.of(row) === "number" ? scale.position(axis.of(row)) : null);
      } else {
        const names = [...new Set(values.map(shown))].sort((a, b) => a - b || a.localeCompare(b));
        const place = (name) => (names.length > 1 ? names.indexOf(name) / (names.length - 1) : 0.5);
        const step = Math.ceil(names.length / 14); // more names than that would overlap
        axis.ticks = names.filter((_, i) => i % step === 0).map((name) => [place(name), name]);
        axis.position = (row) => {
          const value = axis.of(row);
          return value === undefined || value === "" ? null : place(shown(value));
        };
      }
    }
  }
  const short = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

  function drawAxes() {
    const host = document.querySelector("#axes .drawing");
    const gap = 150, top = 56, height = 270, left = 70;
    const width = Math.max(host.parentElement.clientWidth - 4, left + 90 + gap * (axes.length - 1));
    const x = (i) => left + (axes.length > 1 ? (i * (width - left - 90)) / (axes.length - 1) : width / 2 - left);
    const y = (position) => top + (1 - position) * height;
    const picture = svgElement("svg", {
      width, height: top + height + 24, role: "img", "aria-label": "Parallel coordinates of options and measures",
    });
    rows.forEach((row, i) => {
      const points = axes.map((axis, j) => [x(j), axis.position(row)]).filter((point) => point[1] !== null);
      const line = svgElement("polyline", {
        class: state.kept[i] ? "line" : "line off", stroke: row.colour, "data-row": i,
        points: points.map(([at, position]) => `${at.toFixed(1)},${y(position).toFixed(1)}`).join(" "),
      });
      line.append(svgElement("title", {}, row.name));
      picture.append(line);
    });
    axes.forEach((axis, j) => {
      const cut = Math.max(axis.key.lastIndexOf("."), axis.key.lastIndexOf("/"));
      const name = `${axis.key.slice(cut + 1).replaceAll("_", " ")}${axis.arrow || ""}`;
      const group = axis.key.slice(0, Math.max(cut, 0));
      const label = svgElement("g");
      label.append(svgElement("title", {}, data.metrics[axis.key] ? data.metrics[axis.key].slice(0, 2).join(", ") : axis.key));
      label.append(svgElement("text", { x: x(j), y: 16, "text-anchor": "middle" }, group));
      label.append(svgElement("text", { x: x(j), y: 32, "text-anchor": "middle", class: "name" }, short(name, 22)));
      picture.append(label, svgElement("line", { class: "axis", x1: x(j), x2: x(j), y1: y(1), y2: y(0) }));
      for (const [position, text] of axis.ticks) {
        picture.append(svgElement("line", { class: "axis", x1: x(j) - 4, x2: x(j), y1: y(position), y2: y(position) }));
        const tick = svgElement("text", { class: "halo", x: x(j) + 6, y: y(position) + 4 }, short(text, 16));
        tick.append(svgElement("title", {}, text));
        picture.append(tick);
      }
      const range = svgElement("rect", { class: "range", x: x(j) - 10, width: 20 });
      const mark = () => {
        const chosen = state.brushes.get(axis);
        range.setAttribute("y", chosen ? y(chosen[1]) : 0);
        range.setAttribute("height", chosen ? y(chosen[0]) - y(chosen[1]) : 0);
      };
      mark();
      const brush = svgElement("rect", {
        class: "brush", x: x(j) - 16, width: 32, y: top - 12, height: height + 24, "data-axis": axis.key,
      });
      const at = (event) => 1 - (event.clientY - picture.getBoundingClientRect().top - top) / height;
      let start = null;
      brush.addEventListener("pointerdown", (event) => {
        start = at(event);
        try { brush.setPointerCapture(event.pointerId); } catch { /* a pointer that is not there any more */ }
        event.preventDefault();
      });
      brush.addEventListener("pointermove", (event) => {
        if (start === null) return;
        state.brushes.set(axis, [Math.min(start, at(event)), Math.max(start, at(event))]);
        mark();
        weigh(); // the table above waits: rows that go would move the axes from under the pointer
      });
      brush.addEventListener("pointerup", (event) => {
        if (start === null) return;
        if (Math.abs(at(event) - start) * height < 3) state.brushes.delete(axis);
        start = null;
        mark();
        const before = picture.getBoundingClientRect().top;
        choose();
        scrollBy({ top: picture.getBoundingClientRect().top - before, behavior: "instant" });
      });
      brush.addEventListener("pointercancel", () => { start = null; choose(); });
      picture.append(range, brush);
    });
    host.replaceChildren(picture);
  }

  // --- learning curves ----------------------------------------------------------------------------------------------
  const stages = [...new Set(rows.flatMap((row) => row.curves.flatMap(Object.keys)))];
  const measuresOf = (stage) => [...new Set(rows.flatMap((row) => row.curves.flatMap((run) => Object.keys(run[stage] || {}))))];
  const stageBox = document.getElementById("stage"), measureBox = document.getElementById("measure");
  const logBox = document.getElementById("log");
  const fill = (box, names) => {
    const before = box.value;
    box.replaceChildren(...names.map(([value, text]) => new Option(text, value)));
    if (names.some(([value]) => value === before)) box.value = before;
  };
  function fillMeasures() {
    const due = stageBox.value ? [stageBox.value] : stages;
    const names = [...new Set(due.flatMap(measuresOf))];
    const first = ["val_loss", "train_loss"].filter((name) => names.includes(name));
    fill(measureBox, [...new Set([...first, ...names])].map((name) => [name, name.replaceAll("_", " ")]));
  }
  function drawCurves() {
    const host = document.querySelector("#curves .drawing");
    const due = stageBox.value ? [stageBox.value] : stages;
    const wide = Math.max(280, Math.min(900, Math.floor(host.clientWidth / due.length) - 16));
    host.replaceChildren(...due.map((stage) => panel(stage, measureBox.value, wide, due.length > 1 ? 240 : 340)));
  }
  function panel(stage, measure, width, height) {
    const box = document.createElement("div");
    const title = document.createElement("h3");
    title.textContent = stage;
    box.append(title);
    const lines = [];
    rows.forEach((row, i) => row.curves.forEach((run, j) => {
      const curve = (run[stage] || {})[measure];
      if (curve && curve[0].length && state.kept[i]) lines.push({ row, i, x: curve[0], y: curve[1], run: row.runs[j] });
    }));
    if (!lines.length) {
      const empty = document.createElement("p");
      empty.className = "note";
      empty.textContent = measuresOf(stage).includes(measure) ? "No setting is chosen." : "No such measure in this stage.";
      box.append(empty);
      return box;
    }
    const values = lines.flatMap((line) => line.y), epochs = lines.flatMap((line) => line.x);
    let low = Infinity, high = -Infinity, first = Infinity, last = -Infinity;
    for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
    for (const value of epochs) { first = Math.min(first, value); last = Math.max(last, value); }
    const log = logBox.checked && low > 0;
    const scale = numericScale([low, high], log);
    const left = 62, bottom = 36, top = 8;
    const x = (value) => left + (last > first ? (value - first) / (last - first) : 0.5) * (width - left - 12);
    const y = (position) => top + (1 - position) * (height - top - bottom);
    const picture = svgElement("svg", { width, height, role: "img", "aria-label": `${stage}: ${measure} by epoch` });
    const ticks = high > low ? [0, 0.25, 0.5, 0.75, 1] : [0.5];
    for (const position of ticks) {
      const value = log ? low ** (1 - position) * high ** position : low + position * (high - low);
      picture.append(svgElement("line", { class: "grid", x1: left, x2: width - 12, y1: y(position), y2: y(position) }));
      picture.append(svgElement("text", { x: left - 6, y: y(position) + 4, "text-anchor": "end" }, number(value)));
    }
    for (const value of new Set([first, Math.round((first + last) / 2), last])) {
      picture.append(svgElement("text", { x: x(value), y: height - 18, "text-anchor": "middle" }, number(value)));
    }
    picture.append(svgElement("text", { x: (left + width) / 2, y: height - 3, "text-anchor": "middle" }, "epoch"));
    for (const line of lines) {
      const points = line.x.map((value, k) => `${x(value).toFixed(1)},${y(scale.position(line.y[k])).toFixed(1)}`);
      // A single point would be no line.
      const drawn = points.length > 1
        ? svgElement("polyline", { class: "line", points: points.join(" ") })
        : svgElement("circle", { class: "line", cx: points[0].split(",")[0], cy: points[0].split(",")[1], r: 3 });
      drawn.setAttribute("stroke", line.row.colour);
      drawn.setAttribute("data-row", line.i);
      drawn.append(svgElement("title", {}, `${line.row.name} (${line.run})`));
      picture.append(drawn);
    }
    box.append(picture);
    return box;
  }
  stageBox.addEventListener("change", () => { fillMeasures(); drawCurves(); });
  measureBox.addEventListener("change", drawCurves);
  logBox.addEventListener("change", drawCurves);

  // --- the address holds order and filter, so that a view can be kept and passed on ---------------------------------
  function remember() {
    const kept = new URLSearchParams();
    if (state.descending !== null) {
      kept.set("sort", state.sort);
      kept.set("order", state.descending ? "descending" : "ascending");
    }
    if (filterBox.value) kept.set("filter", filterBox.value);
    history.replaceState(null, "", `#${kept}`);
  }
  function recall() {
    const kept = new URLSearchParams(location.hash.slice(1));
    const key = [kept.get("sort"), `option ${kept.get("sort")}`].find((name) => heads.some((head) => head.dataset.key === name));
    if (key) sort(key, kept.has("order") ? kept.get("order") === "descending" : better(key) === "higher");
    filterBox.value = kept.get("filter") || "";
  }
  recall();
  makeAxes();
  const comparable = rows.length > 1 && axes.length > 1;
  if (comparable) drawAxes(); else document.getElementById("axes").hidden = true;
  if (stages.length) {
    fill(stageBox, [["", "all, side by side"], ...stages.map((stage) => [stage, stage])]);
    fillMeasures();
  } else {
    document.getElementById("curves").hidden = true;
  }
  choose();
  let pending = null;
  addEventListener("resize", () => {
    clearTimeout(pending);
    pending = setTimeout(() => { if (comparable) drawAxes(); drawCurves(); }, 120);
  });
  addEventListener("hashchange", () => { recall(); choose(); });
})();
