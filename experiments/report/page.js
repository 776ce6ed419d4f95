"use strict";
// Draws what `page.drawn` has laid out. Nothing here knows an experiment: a quantity is an
// array over named axes, of which one lies horizontally, one has a line for each place, and
// all others are at the place that is chosen.

const DATA = JSON.parse(document.getElementById("data").textContent);
// For axes whose places have no colours of their own; as those of the other figures.
const OTHERS = ["#0b6e99", "#d1603d", "#3f8f55", "#8661a8", "#e0a458", "#c2407e", "#5cb8b2",
  "#8c2f14", "#b8a13a", "#4b2a66", "#7a7a7a", "#1f6f6b"];
const DENSITY = "weights remaining (%)";
const MOST_ROWS = 500; // of a table, for each run

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// --- a figure, and what is chosen of it ---

function explorer(place, names, fixed) {
  const charts = element("div", { className: "charts" });
  const controls = element("div", { className: "controls" });
  const lines = element("fieldset");
  const thinned = element("p", { className: "thinned" });
  const values = element("div", { className: "scroll", tabIndex: 0 });
  const folded = element("details", {}, element("summary", { textContent: "The values as a table" }), values);
  place.append(controls, charts, lines, thinned, folded);
  const state = { name: names[0], across: null, line: null, at: {}, hidden: new Set(), shared: null };

  const own = (run) => run.quantities[state.name];
  const having = () => DATA.runs.filter((run) => own(run)).map(own);

  // What tells a place of an axis in every run: numbers may be written shorter in one of them.
  const keys = (axis) => axis.values ? axis.values.map(String) : axis.labels;

  // The quantity as all runs together have it, made once it is chosen: every axis, with the
  // places of each of them.
  let whole = null;
  function together() {
    const every = having(), merged = new Map();
    for (const axis of every.flatMap((q) => q.axes)) {
      const known = merged.get(axis.name) ?? { ...axis, places: new Map() };
      merged.set(axis.name, known);
      keys(axis).forEach((key, i) => {
        if (!known.places.has(key)) known.places.set(key, axis.labels[i]);
      });
    }
    for (const axis of merged.values()) {
      const of = every.flatMap((q) => q.axes.filter((a) => a.name === axis.name));
      const each = of.map((own) => new Set(keys(own)));
      if (axis.values) axis.places = new Map([...axis.places].sort(([a], [b]) => a - b));
      // Where runs differ, a place that all of them have; the last one, as levels and steps.
      const common = [...axis.places.keys()].filter((key) => each.every((own) => own.has(key)));
      const usual = keys(of[0])[axis.start];
      axis.usual = common.includes(usual) ? usual : common.at(axis.start ? -1 : 0) ?? usual;
    }
    return { ...every[0], axes: [...merged.values()], density: every.find((q) => q.density)?.density };
  }
  const chosen = (axis) => state.at[axis.name] ?? axis.usual;

  function begin() {
    const q = whole = together();
    state.across = fixed.across && q.axes.some((a) => a.name === fixed.across) && !q.density
      ? fixed.across : q.across;
    state.line = q.axes.some((a) => a.name === fixed.line) ? fixed.line : q.lines;
    state.at = {};
    state.shared = null;
    state.hidden.clear();
  }

  // Density lies along the levels, so whoever has it across has no level to choose.
  const levelOf = (q) => q.axes.find((a) => a.name === "level" || a.name.endsWith("_level"));
  const taken = (q) => {
    const across = state.across === "density" ? levelOf(q)?.name : state.across;
    return [across, state.line];
  };

  // What lies horizontally: densities, an axis (of a run without densities its levels), or
  // null where a run has nothing of the kind.
  function across(q) {
    const dense = state.across === "density" && q.density;
    if (dense) return { title: DENSITY, scale: "log", falling: true, values: q.density };
    return q.axes.find((a) => a.name === taken(q)[0]) ?? null;
  }

  // Why a run cannot be drawn as it is asked for, in words.
  function lacking(q) {
    if (!across(q)) {
      const axis = whole.axes.find((a) => a.name === state.across);
      return `These results have no ${axis ? axis.title : DENSITY}.`;
    }
    for (const axis of q.axes) {
      if (taken(q).includes(axis.name)) continue;
      const asked = whole.axes.find((a) => a.name === axis.name), key = chosen(asked);
      if (!keys(axis).includes(key)) return `No ${axis.title} ${asked.places.get(key)} in these results.`;
    }
    return "";
  }

  function select(label, options, value, change) {
    const box = element("select");
    for (const [key, text] of options) box.add(new Option(text, key, false, key === value));
    box.addEventListener("change", () => {
      change(box.value);
      draw();
      // The controls are made anew: whoever came with the keyboard stays where they were.
      const again = [...controls.querySelectorAll("label")].find((l) => l.dataset.of === label);
      if (again) again.querySelector("select").focus();
    });
    const wrapped = element("label", {}, label, box);
    wrapped.dataset.of = label;
    controls.append(wrapped);
  }

  function show() {
    const q = whole;
    controls.replaceChildren();
    if (names.length > 1) {
      const title = (name) => DATA.runs.map((r) => r.quantities[name]).find((x) => x).title;
      select("quantity", names.map((n) => [n, title(n)]), state.name, (n) => { state.name = n; begin(); });
    }
    const across = q.axes.map((a) => [a.name, a.title]);
    if (q.density) across.unshift(["density", DENSITY]);
    if (across.length > 1) {
      select("across", across, state.across, (name) => {
        state.across = name;
        if (taken(q)[0] === state.line) {
          const free = q.axes.find((a) => a.name !== taken(q)[0]);
          state.line = free ? free.name : "";
        }
      });
    }
    const free = q.axes.filter((a) => a.name !== taken(q)[0]);
    if (free.length) {
      select("lines", [["", "one line"], ...free.map((a) => [a.name, a.title])], state.line,
        (name) => { state.line = name; state.hidden.clear(); });
    }
    if (DATA.runs.length > 1) {
      select("vertical axis", [["one", "one for all"], ["own", "of each run"]], alike() ? "one" : "own",
        (value) => { state.shared = value === "one"; });
    }
    for (const axis of q.axes) {
      if (taken(q).includes(axis.name)) continue;
      select(axis.title, [...axis.places], chosen(axis), (key) => { state.at[axis.name] = key; });
    }
  }

  function extent(found) {
    const low = Math.min(...found.map((r) => r.low)), high = Math.max(...found.map((r) => r.high));
    const room = (high - low) * 0.04 || Math.abs(high) * 0.05 || 1;
    return [low < 0 ? low - room : Math.max(0, low - room), high + room];
  }

  // Whether runs have one vertical axis: unless one of them would be flat on it.
  function alike() {
    if (state.shared !== null) return state.shared;
    const each = DATA.runs.map((run) => (own(run) ? rows(own(run)) : [])).filter((found) => found.length);
    const [low, high] = extent(each.flat());
    return each.every((found) => extent(found)[1] - extent(found)[0] > 0.25 * (high - low));
  }

  // The rows of a run: places of the two axes, all others as chosen.
  function rows(q) {
    if (lacking(q)) return [];
    const [level, line] = taken(q);
    const dense = state.across === "density" && q.density;
    const sizes = q.axes.map((a) => a.labels.length);
    const strides = sizes.map((_, i) => sizes.slice(i + 1).reduce((a, b) => a * b, 1));
    const indices = q.axes.map((a) => {
      if (a.name === level || a.name === line) return a.labels.map((_, i) => i);
      return [keys(a).indexOf(chosen(whole.axes.find((own) => own.name === a.name)))];
    });
    const i = q.axes.findIndex((a) => a.name === level);
    const j = q.axes.findIndex((a) => a.name === line);
    const base = indices.reduce((sum, own, k) => sum + (k === i || k === j ? 0 : own[0] * strides[k]), 0);
    const found = [];
    for (const b of j < 0 ? [null] : indices[j]) {
      for (const a of indices[i]) {
        const at = base + a * strides[i] + (b === null ? 0 : b * strides[j]);
        if (q.mean[at] === null) continue;
        const axis = q.axes[i];
        const named = axis.values === null;
        found.push({
          x: dense ? q.density[at] : named ? axis.labels[a] : axis.values[a],
          place: dense ? `${q.density[at]}` : axis.labels[a],
          line: b === null ? q.title : q.axes[j].labels[b],
          mean: q.mean[at], low: q.low[at], high: q.high[at], n: q.n[at],
        });
      }
    }
    return found;
  }

  function colors(labels) {
    const named = labels.map((l) => DATA.colors[l.replaceAll(" ", "_")]);
    const left = OTHERS.filter((c) => !named.includes(c));
    let next = 0;
    return labels.map((_, i) => named[i] ?? left[next++ % left.length]);
  }

  function specOf(q, labels, range, found) {
    const spec = structuredClone(DATA.spec), axis = across(q), x = spec.encoding.x;
    const line = q.axes.find((a) => a.name === state.line);
    x.title = axis.title;
    if (axis.values === null || axis.values === undefined) {
      x.type = "nominal";
      x.sort = axis.labels;
      x.axis.labelAngle = axis.labels.length > 4 ? -40 : 0;
      spec.encoding.xOffset = { field: "line", sort: labels };
      spec.layer.splice(1, 1); // names lie in no order that a line could follow
    } else {
      const places = [...new Set(found.map((r) => r.x))].sort((a, b) => a - b);
      const above = places.filter((p) => p > 0);
      x.scale = { type: axis.scale, nice: false, padding: 12 };
      if (axis.scale === "linear") x.scale.zero = false;
      if (axis.scale === "symlog") x.scale.constant = above[0] / 2;
      if (axis.falling) x.scale.reverse = true;
      if (axis.scale !== "linear" && places.length <= 8) x.axis.values = places;
      else if (axis.scale === "log") x.axis.values = rounds(places[0], places.at(-1));
      x.axis.format = ".6~g";
      if (places.every(Number.isInteger)) x.axis.tickMinStep = 1;
      x.axis.labelOverlap = true;
      if (places.length > 20) { // bars and points would hide each other
        spec.layer.pop();
        spec.layer[0].mark = { type: "area", opacity: 0.13 };
      }
    }
    spec.encoding.color.scale = { domain: labels, range: colors(labels) };
    spec.encoding.color.title = line ? line.title : "";
    spec.encoding.tooltip = [
      ...(line ? [{ field: "line", title: line.title }] : []),
      { field: "place", title: axis.title }, { field: "mean", title: q.title, format: ".6~g" },
      { field: "low", title: "least", format: ".6~g" }, { field: "high", title: "greatest", format: ".6~g" },
      { field: "n", title: "n", format: "d" },
    ];
    spec.layer[0].encoding.y.title = q.title;
    for (const layer of spec.layer) {
      layer.encoding.y.title = q.title;
      layer.encoding.y.scale = { zero: false, domain: range, nice: false };
    }
    spec.data.values = found;
    return spec;
  }

  function legend(labels) {
    const axis = whole.axes.find((a) => a.name === state.line);
    lines.replaceChildren(element("legend", { textContent: axis ? axis.title : "" }));
    const own = colors(labels);
    lines.hidden = labels.length < 2;
    labels.forEach((label, i) => {
      const box = element("input", { type: "checkbox", checked: !state.hidden.has(label) });
      box.addEventListener("change", () => {
        if (box.checked) state.hidden.delete(label); else state.hidden.add(label);
        paint();
      });
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = own[i];
      lines.append(element("label", {}, box, swatch, label));
    });
  }

  function tabulate(every) {
    const several = every.length > 1;
    const head = element("tr");
    const q = whole, line = q.axes.find((a) => a.name === state.line);
    const places = [...new Set(having().map(across).filter(Boolean).map((a) => a.title))].join(" or ");
    for (const name of [...(several ? ["run"] : []), ...(line ? [line.title] : []), places, q.title, "least", "greatest", "n"]) {
      head.append(element("th", { scope: "col", textContent: name }));
    }
    const body = element("tbody");
    const cut = [];
    for (const [run, found] of every) {
      if (found.length > MOST_ROWS) cut.push(`The first ${MOST_ROWS} of ${found.length} rows of ${run.name}; results.nc has all.`);
      for (const r of found.slice(0, MOST_ROWS)) {
        const cells = [...(several ? [run.name] : []), ...(line ? [r.line] : []), r.place, r.mean, r.low, r.high, r.n];
        body.append(element("tr", {}, ...cells.map((c) => element("td", { textContent: c }))));
      }
    }
    values.setAttribute("role", "region");
    values.setAttribute("aria-label", `Values of ${q.title}`);
    values.replaceChildren(
      element("table", {}, element("thead", {}, head), body),
      ...cut.map((text) => element("p", { className: "cut", textContent: text })),
    );
  }

  function missing(run) {
    if (!own(run)) return "Not in these results.";
    return lacking(own(run)) || "Nothing to draw: no replica has a value here.";
  }

  function paint() {
    const every = DATA.runs.map((run) => [run, own(run) ? rows(own(run)) : []]);
    const labels = [...new Set(every.flatMap(([, found]) => found.map((r) => r.line)))];
    const seen = every.map(([run, found]) => [run, found.filter((r) => !state.hidden.has(r.line))]);
    const all = seen.flatMap(([, found]) => found), one = alike();
    charts.replaceChildren();
    for (const [run, found] of seen) {
      const box = element("div"); // its whole width is drawn on
      const figure = element("figure", {}, element("div", { className: "chart" }, box));
      if (DATA.runs.length > 1) figure.prepend(element("figcaption", { textContent: run.name }));
      charts.append(figure);
      if (!found.length) {
        box.append(element("p", { className: "missing", textContent: missing(run) }));
        continue;
      }
      const spec = specOf(own(run), labels, extent(one ? all : found), found);
      spec.description = `${own(run).title} over ${across(own(run)).title}, of ${run.name}`;
      vegaEmbed(box, spec, { actions: false, renderer: "svg" }).catch((error) => {
        box.textContent = `This cannot be drawn: ${error.message}`;
        console.error(error);
      });
    }
    const said = [...new Set(DATA.runs.map((run) => own(run)?.thinned).filter(Boolean))];
    thinned.textContent = said.length ? `Shown are ${said.join("; ")}.` : "";
    thinned.hidden = !said.length;
    tabulate(seen);
    return labels;
  }

  function draw() {
    show();
    legend(paint());
  }

  begin();
  draw();
}

// Round numbers on a logarithmic axis.
function rounds(low, high) {
  const found = [];
  for (let power = -4; power <= 6; power++) {
    for (const digit of [1, 2, 5]) {
      const tick = digit * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
    }
  }
  return found.length > 1 ? found : [low, high];
}

// --- pictures of masks ---

function maskPictures(place, run) {
  const own = run.pictures;
  if (!own) return;
  if (DATA.runs.length > 1) place.append(element("h3", { className: "run", textContent: run.name }));
  const id = `level-${DATA.runs.indexOf(run)}`;
  const slider = element("input", { type: "range", id, min: 0, max: own.levels.length - 1, value: own.levels.length - 1, step: 1 });
  const output = element("output");
  output.htmlFor = id;
  const controls = element("div", { className: "slider" }, element("label", { htmlFor: id, textContent: "level" }), slider, output);
  let chain = 0;
  if (own.chains.length > 1) {
    const box = element("select");
    own.chains.forEach((name, i) => box.add(new Option(name, i)));
    box.addEventListener("change", () => { chain = Number(box.value); draw(); });
    controls.prepend(element("label", {}, "chain ", box));
  }
  const pictures = element("div", { className: "pictures" });
  place.append(controls, pictures);
  const layers = own.layers.map((layer) => {
    const bytes = Uint8Array.from(atob(layer.bytes), (c) => c.charCodeAt(0));
    const canvas = element("canvas", { width: layer.columns, height: layer.rows });
    canvas.setAttribute("role", "img");
    const caption = element("figcaption");
    pictures.append(element("figure", {}, canvas, caption));
    // A picture that would be a line is drawn higher than it is.
    const ratio = Math.min(3, Math.max(1 / 3, layer.columns / layer.rows));
    canvas.style.aspectRatio = `${ratio}`;
    return { ...layer, bytes, canvas, caption };
  });

  function draw() {
    const at = Number(slider.value);
    output.textContent = `level ${own.levels[at]}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    layers.forEach((layer, j) => {
      const size = layer.rows * layer.columns;
      const begin = (chain * own.levels.length + at) * size;
      const image = new ImageData(layer.columns, layer.rows);
      for (let i = 0; i < size; i++) {
        const share = layer.bytes[begin + i] / 255;
        // From white to the blue of tickets.
        image.data.set([255 - share * 244, 255 - share * 178, 255 - share * 125, 255], 4 * i);
      }
      layer.canvas.getContext("2d").putImageData(image, 0, 0);
      const density = own.densities ? `${Number(own.densities[chain][at][j]).toPrecision(3)}% survive` : "";
      layer.caption.textContent = `${layer.name}${density ? `: ${density}` : ""}`;
      layer.canvas.setAttribute("aria-label", `Mask of ${layer.name} at level ${own.levels[at]}${density ? `: ${density}` : ""}`);
    });
  }
  slider.addEventListener("input", draw);
  draw();
}

// --- the page ---

const NAMES = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.quantities)))];
const figure = document.getElementById("explorer");
if (NAMES.length) explorer(figure, NAMES, {});
else figure.append(element("p", { textContent: "These results hold nothing that has an axis to be drawn over." }));
const layerFigure = document.getElementById("layer-explorer");
if (layerFigure) explorer(layerFigure, ["layer_density"], { line: "layer" });
const masks = document.getElementById("mask-pictures");
if (masks) DATA.runs.forEach((run) => maskPictures(masks, run));
