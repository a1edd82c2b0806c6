// One learned edge phi(x) = w base(x) + sum_j c_j B_j(x), whose control values c_j can be dragged up and down.
// Runs under anywidget (Jupyter) and, with a stand-in model, in a plain page: no imports, no network.
function render({ model, el }) {
  const NS = "http://www.w3.org/2000/svg";
  const BLUE = "#0072B2", ORANGE = "#D55E00", GREEN = "#009E73";
  // As wide as its place, so that a telephone shows letters of the same size; unknown before it stands in a page.
  const W = Math.min(760, Math.max(320, el.clientWidth || 640));
  const H = 374, LEFT = 46, RIGHT = 16, TOP = 10, BOTTOM = 268, STRIP = 280, AXIS = 338;
  const [knots, degree, outside, abscissae, xs, base, start, samples, edge] =
    ["knots", "degree", "outside", "abscissae", "x", "base", "start", "samples", "edge"].map((name) => model.get(name));
  const lower = knots[degree], upper = knots[knots.length - 1 - degree];

  // Cox-de Boor; the last non-empty span is closed on the right.
  function coxDeBoor(u, degree) {
    const end = knots[knots.length - 1];
    let values = knots.slice(0, -1).map((t, i) =>
      (u >= t && u < knots[i + 1]) || (u === end && t < end && knots[i + 1] === end) ? 1 : 0);
    for (let k = 1; k <= degree; k++) {
      values = values.slice(0, -1).map((_, i) =>
        ratio(u - knots[i], i, k) * values[i] + ratio(knots[i + k + 1] - u, i + 1, k) * values[i + 1]);
    }
    return values;
  }
  function ratio(numerator, i, k) {
    const width = knots[i + k] - knots[i];
    return width > 0 ? numerator / width : 0;
  }
  // Outside its grid the layer lets the spline fade ("zero"), go on as its tangent, or keep its end value.
  function basis(u) {
    const clamped = Math.min(upper, Math.max(lower, u));
    const values = coxDeBoor(outside === "zero" ? u : clamped, degree);
    if (outside !== "linear" || degree === 0 || clamped === u) return values;
    // The tangent from inside: at the upper end, the cell to the right begins.
    const below = coxDeBoor(Math.min(clamped, upper - 1e-9 * (upper - lower)), degree - 1);
    return values.map((v, i) =>
      v + (u - clamped) * degree * (ratio(below[i], i, degree) - ratio(below[i + 1], i + 1, degree)));
  }
  const table = xs.map(basis);
  const phi = (values) => xs.map((_, s) => {
    if (base[s] === null) return null; // the base is not finite here: the curves have a gap
    return values.reduce((sum, c, i) => sum + c * table[s][i], base.length ? base[s] : 0);
  });

  let low = 0, high = 0, step = 1, held = start.length >> 1, dragging = false; // y range, tick distance, the point held
  const X = (v) => LEFT + ((v - xs[0]) / (xs[xs.length - 1] - xs[0])) * (W - LEFT - RIGHT);
  const Y = (v) => BOTTOM - ((v - low) / (high - low)) * (BOTTOM - TOP);
  const B = (v) => AXIS - v * (AXIS - STRIP);
  const line = (us, vs, y = Y) => us.map((u, s) => vs[s] === null ? "" :
    (s && vs[s - 1] !== null ? "L" : "M") + X(u).toFixed(2) + "," + y(vs[s]).toFixed(2)).join("");
  const short = (v) => String(Number(v.toPrecision(3))).replace("-", "\u2212");
  const small = (i) => String(i).replace(/\d/g, (d) => "₀₁₂₃₄₅₆₇₈₉"[d]);

  function node(name, attributes, parent, text) {
    const element = document.createElementNS(NS, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    parent.appendChild(element);
    return element;
  }
  function html(name, style, parent, text) {
    const element = document.createElement(name);
    element.setAttribute("style", style);
    if (text !== undefined) element.textContent = text;
    parent.appendChild(element);
    return element;
  }
  const ink = (opacity, more) => ({ fill: "none", stroke: "currentColor", "stroke-opacity": opacity, ...more });
  const FONT = { "font-size": 12, fill: "currentColor" };
  const looks = {
    start: ink(0.35, { "stroke-width": 5, "stroke-linejoin": "round" }),
    base: { fill: "none", stroke: GREEN, "stroke-width": 2, "stroke-dasharray": "6 4" },
    hull: ink(0.55, { "stroke-dasharray": "2 3" }),
    curve: ink(1, { "stroke-width": 2.5, "stroke-linejoin": "round" }),
    held: { fill: ORANGE, "fill-opacity": 0.4, stroke: ORANGE, "stroke-width": 2 },
    rug: ink(0.45),
  };

  // The legend is text of the page: it wraps on a telephone, where text in a figure would only shrink.
  const box = html("div", "max-width:760px;font:14px/1.5 system-ui,sans-serif;color:inherit", el);
  const legend = html("div", "display:flex;flex-wrap:wrap;gap:0 1.2em;padding-left:7%", box);
  function entry(text, draw) {
    const item = html("span", "display:inline-flex;align-items:center;gap:.4em;white-space:nowrap", legend);
    draw(node("svg", { width: 24, height: 14, viewBox: "0 0 24 14", "aria-hidden": true }, item));
    item.append(text);
  }
  const stroke = (look) => (svg) => node("path", { ...looks[look], d: "M1,7H23" }, svg);
  const sampled = samples.map(basis);
  const felt = start.map((_, i) => sampled.filter((row) => row[i] !== 0).length); // samples that feel each point
  const reached = felt.map((n) => n > 0 || !samples.length);
  const dot = (filled) => ({ r: 6, fill: BLUE, stroke: BLUE, "stroke-width": 2.5, "fill-opacity": filled ? 1 : 0 });
  entry("φ(x)", stroke("curve"));
  entry("at the start", stroke("start"));
  if (base.length) entry("w base(x) alone", stroke("base"));
  entry("control points", (svg) => node("circle", { ...dot(true), cx: 12, cy: 7, r: 5 }, svg));
  if (reached.includes(false)) {
    entry("… that no sample feels", (svg) => node("circle", { ...dot(false), cx: 12, cy: 7, r: 5 }, svg));
  }
  const away = samples.filter((u) => u < xs[0] || u > xs[xs.length - 1]).length;
  if (samples.length) {
    entry(`${samples.length} samples` + (away ? `, ${away} beyond the figure` : ""),
      (svg) => node("path", { ...looks.rug, d: "M4,12v-9M9,12v-9M11,12v-9M18,12v-9" }, svg));
  }

  const svg = node("svg", { viewBox: `0 0 ${W} ${H}`, role: "group", style: "display:block;width:100%",
    "aria-label": `the edge from input ${edge[0] + 1} to output ${edge[1] + 1}, with control points to drag` }, box);
  const shade = (x0, x1, look, top = TOP) =>
    node("rect", { x: X(x0), width: X(x1) - X(x0), y: top, height: AXIS - top, ...look }, svg);
  shade(lower, upper, { fill: "currentColor", "fill-opacity": 0.06 });
  node("text", { ...FONT, x: X((lower + upper) / 2), y: TOP + 14, "text-anchor": "middle", "fill-opacity": 0.6 }, svg,
    "grid range");
  const reach = shade(lower, upper, { fill: ORANGE, "fill-opacity": 0.1 });
  const ticks = node("g", {}, svg);
  // Frames of their own clip what a drag, or a tangent that goes on, pushes out of the range.
  const frame = (top, bottom) => node("svg", { x: LEFT, y: top, width: W - LEFT - RIGHT, height: bottom - top,
    overflow: "hidden", viewBox: `${LEFT} ${top} ${W - LEFT - RIGHT} ${bottom - top}` }, svg);
  const panel = frame(TOP, BOTTOM), strip = frame(STRIP - 2, AXIS + 1);
  const curves = Object.fromEntries(["start", "base", "hull", "curve"].map((name) =>
    [name, node("path", { ...looks[name], class: `kunet-edge-${name}` }, panel)]));
  const rug = samples.map((u) => `M${X(u).toFixed(2)},${BOTTOM}v-10`).join("");
  node("path", { ...looks.rug, class: "kunet-edge-rug", d: rug }, panel);
  // One basis function where it is not zero (and where it touches zero): many lines along the axis would hide it.
  const lonely = (i) => table.map((row, s) =>
    row[i] || (s && table[s - 1][i]) || (s + 1 < xs.length && table[s + 1][i]) ? row[i] : null);
  start.forEach((_, i) => node("path", { ...ink(0.35), d: line(xs, lonely(i), B) }, strip));
  const bump = node("path", { ...looks.held, class: "kunet-edge-basis" }, strip);
  node("path", { ...ink(0.8), d: `M${LEFT},${TOP}V${BOTTOM}M${LEFT},${AXIS}H${W - RIGHT}` }, svg);
  const NAME = { ...FONT, "font-size": 14, "text-anchor": "end" };
  node("text", { ...NAME, x: LEFT - 6, y: TOP + 10 }, svg, "φ(x)");
  node("text", { ...NAME, x: LEFT - 6, y: B(0.4) }, svg, "Bⱼ(x)");
  node("text", { ...NAME, x: W - RIGHT, y: H - 3 }, svg, "x");
  // Ticks stand at every knot; numbers where there is room, at the grid's ends first.
  const numbered = [];
  [lower, upper, ...knots].forEach((t, n) => {
    if (n > 1) node("path", { ...ink(0.8), class: "kunet-edge-knot", d: `M${X(t)},${AXIS}v6` }, svg);
    const half = 4 + 3.5 * short(t).length;
    if (numbered.some(([x, other]) => Math.abs(x - X(t)) < half + other)) return;
    numbered.push([X(t), half]);
    node("text", { ...FONT, x: X(t), y: AXIS + 20, "text-anchor": "middle" }, svg, short(t));
  });

  // A handle is larger than it looks, for fingers; only handles keep a touch from scrolling the page.
  const gap = Math.min(...abscissae.slice(1).map((v, i) => X(v) - X(abscissae[i])), 32);
  const handles = abscissae.map((_, i) => {
    const handle = node("g", { class: "kunet-edge-handle", tabindex: 0, role: "slider", "aria-orientation": "vertical",
      style: "cursor:ns-resize;touch-action:none;outline:none" }, svg);
    node("circle", { r: Math.max(8, gap / 2), fill: "transparent" }, handle);
    const mark = node("circle", dot(reached[i]), handle);
    const ring = node("circle", ink(0, { r: 11, "stroke-width": 2 }), handle);
    const pointer = (event) =>
      new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).y;
    const hold = () => { if (!dragging) { held = i; draw(); } };
    let grip = 0; // where on the handle it was taken hold of, so that it does not jump
    handle.addEventListener("focus", () => { ring.setAttribute("stroke-opacity", 1); hold(); });
    handle.addEventListener("blur", () => ring.setAttribute("stroke-opacity", 0));
    handle.addEventListener("pointerenter", hold);
    handle.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      handle.focus({ preventScroll: true });
      handle.setPointerCapture(event.pointerId);
      grip = pointer(event) - Y(model.get("values")[i]);
      dragging = true;
    });
    handle.addEventListener("pointermove", (event) => {
      if (!dragging || !handle.hasPointerCapture(event.pointerId)) return;
      const y = Math.min(BOTTOM, Math.max(TOP, pointer(event) - grip));
      move(i, low + ((BOTTOM - y) / (BOTTOM - TOP)) * (high - low));
    });
    handle.addEventListener("lostpointercapture", () => { dragging = false; draw(); });
    handle.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: 0.1, ArrowDown: -0.1, PageUp: 1, PageDown: -1 }[event.key];
      if (!steps) return;
      event.preventDefault();
      held = i;
      move(i, model.get("values")[i] + steps * step);
    });
    return { handle, mark };
  });
  function set(values) {
    model.set("values", values);
    model.save_changes();
    draw();
  }
  const move = (i, value) => set(model.get("values").map((v, j) => (j === i ? value : v)));

  const foot = html("div", "display:flex;gap:1em;align-items:baseline;padding-left:7%;min-height:3.2em", box);
  const button = html("button", "font:inherit;color:inherit;background:none;border:1px solid;border-radius:4px;" +
    "padding:0 .6em;cursor:pointer", foot, "reset");
  button.addEventListener("click", () => set([...start]));
  const words = html("span", "", foot);

  // The range follows what is drawn, but not under a hand that drags: the scale would run away from it.
  function fit(ys) {
    const all = ys.filter((v) => v !== null), bottom = Math.min(...all), top = Math.max(...all);
    const span = top - bottom || 1;
    const room = 0.03 * (high - low);
    if (high > low && bottom > low + room && top < high - room && span > 0.3 * (high - low)) return;
    [low, high] = [bottom - 0.25 * span, top + 0.25 * span];
    const power = 10 ** Math.floor(Math.log10((high - low) / 5));
    step = power * [1, 2, 5, 10].find((m) => m * power >= (high - low) / 6);
    ticks.replaceChildren();
    for (let n = Math.ceil(low / step); n * step <= high; n++) {
      node("path", { ...ink(n ? 0.12 : 0.5), d: `M${LEFT},${Y(n * step)}H${W - RIGHT}` }, ticks);
      if (Y(n * step) < TOP + 20) continue; // there the axis's name stands
      node("text", { ...FONT, x: LEFT - 6, y: Y(n * step) + 4, "text-anchor": "end" }, ticks, short(n * step));
    }
  }
  function draw() {
    const values = model.get("values"), now = phi(values), then = phi(start);
    if (!dragging) fit([0, ...now, ...then, ...values, ...base]);
    curves.curve.setAttribute("d", line(xs, now));
    curves.start.setAttribute("d", line(xs, then));
    curves.base.setAttribute("d", line(base.length ? xs : [], base));
    curves.hull.setAttribute("d", degree ? line(abscissae, values) : "");
    bump.setAttribute("d", line(xs, lonely(held), B));
    handles.forEach(({ handle, mark }, i) => {
      handle.setAttribute("transform", `translate(${X(abscissae[i]).toFixed(2)},${Y(values[i]).toFixed(2)})`);
      for (const name of ["fill", "stroke"]) mark.setAttribute(name, i === held ? ORANGE : BLUE);
      mark.setAttribute("r", i === held ? 7.5 : 6);
      const about = { label: `control value ${i} at x = ${short(abscissae[i])}`, valuenow: values[i],
        valuemin: low, valuemax: high, valuetext: short(values[i]) };
      for (const name in about) handle.setAttribute(`aria-${name}`, about[name]);
    });
    // Where the held control value counts; a spline that goes on outside the grid takes its end functions along.
    const ends = outside === "zero" ? [-Infinity, Infinity] : [lower, upper], last = xs.length - 1;
    const from = Math.max(knots[held], ends[0]), to = Math.min(knots[held + degree + 1], ends[1]);
    const before = outside !== "zero" && table[0][held] !== 0, after = outside !== "zero" && table[last][held] !== 0;
    const left = X(before ? xs[0] : from), right = X(after ? xs[last] : to);
    reach.setAttribute("x", left);
    reach.setAttribute("width", right - left);
    const cells = new Set(knots.filter((t) => t >= from && t <= to)).size - 1;
    words.textContent = `c${small(held)} = ${short(values[held])} moves φ only for ` +
      `${before ? "" : short(from) + "\u00a0<\u00a0"}x${after ? "" : "\u00a0<\u00a0" + short(to)}: ` +
      `${cells} cell${cells === 1 ? "" : "s"}${before || after ? " and beyond the grid" : ""}` +
      (samples.length ? `, ${felt[held]} of ${samples.length} samples` : "");
  }
  model.on("change:values", draw);
  draw();
}
export default { render };
