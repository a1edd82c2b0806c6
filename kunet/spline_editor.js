// A B-spline curve whose control points can be dragged, above its basis functions.
// Runs under anywidget (Jupyter) and, with a stand-in model, in a plain page: no imports, no network.
function render({ model, el }) {
  const NS = "http://www.w3.org/2000/svg";
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#777777"];
  const W = 640, H = 300, HB = 130, PAD = 30;
  const knots = model.get("knots"), degree = model.get("degree");
  const first = knots[degree], last = knots[knots.length - 1 - degree];

  // Cox-de Boor, all basis functions at u; the last non-empty span is closed on the right.
  function basis(u) {
    const end = knots[knots.length - 1];
    let values = knots.slice(0, -1).map((t, i) =>
      (u >= t && u < knots[i + 1]) || (u === end && t < end && knots[i + 1] === end) ? 1 : 0);
    for (let k = 1; k <= degree; k++) {
      values = values.slice(0, -1).map((_, i) => {
        const left = knots[i + k] - knots[i], right = knots[i + k + 1] - knots[i + 1];
        return (left > 0 ? ((u - knots[i]) / left) * values[i] : 0)
             + (right > 0 ? ((knots[i + k + 1] - u) / right) * values[i + 1] : 0);
      });
    }
    return values;
  }
  const samples = Array.from({ length: 201 }, (_, s) => first + ((last - first) * s) / 200);
  const table = samples.map(basis);
  const point = (weights) => [0, 1].map((axis) =>
    weights.reduce((sum, w, i) => sum + w * model.get("points")[i][axis], 0));

  function node(name, attributes, parent) {
    const element = document.createElementNS(NS, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    parent.appendChild(element);
    return element;
  }
  const x = (v) => PAD + v * (W - 2 * PAD), y = (v) => H - PAD - v * (H - 2 * PAD);
  const ux = (u) => PAD + ((u - first) / (last - first)) * (W - 2 * PAD), by = (v) => HB - 24 - v * (HB - 34);
  const path = (pairs) => "M" + pairs.map((p) => p.map((v) => v.toFixed(3)).join(",")).join("L");

  const top = node("svg", { viewBox: `0 0 ${W} ${H}`, role: "group", style: "width:100%;max-width:760px;touch-action:none",
    "aria-label": "B-spline curve with control points to drag" }, el);
  const polygon = node("path", { fill: "none", stroke: "currentColor", "stroke-opacity": 0.35, "stroke-dasharray": "4 4" }, top);
  const curve = node("path", { fill: "none", stroke: "currentColor", "stroke-width": 2.5, class: "kunet-curve" }, top);
  const bottom = node("svg", { viewBox: `0 0 ${W} ${HB}`, role: "img", style: "width:100%;max-width:760px",
    "aria-label": "the basis functions over the parameter u" }, el);
  const weightsOf = node("text", { x: PAD, y: 16, "font-size": 12, fill: "currentColor", "font-family": "monospace" }, top);
  model.get("points").forEach((_, i) => node("path", { fill: "none", "stroke-width": 2, stroke: COLOURS[i % 7],
    d: path(samples.map((u, s) => [ux(u), by(table[s][i])])) }, bottom));
  node("path", { d: `M${PAD},${by(0)}H${W - PAD}`, stroke: "currentColor", "stroke-opacity": 0.5 }, bottom);
  [...new Set(knots)].filter((t) => t >= first && t <= last).forEach((t) => {
    node("path", { d: `M${ux(t)},${by(0)}v6`, stroke: "currentColor" }, bottom);
    node("text", { x: ux(t), y: HB - 6, "font-size": 11, "text-anchor": "middle", fill: "currentColor" }, bottom)
      .textContent = Number(t.toFixed(2));
  });
  const cursor = node("path", { stroke: "currentColor", "stroke-dasharray": "3 3" }, bottom);
  const marker = node("circle", { r: 5, fill: "currentColor" }, top);

  const label = document.createElement("label");
  label.textContent = "u ";
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 0, max: 200, value: 70, style: "width:60%;vertical-align:middle" });
  slider.setAttribute("aria-label", "parameter u");
  label.appendChild(slider);
  el.appendChild(label);

  const handles = model.get("points").map((_, i) => node("circle", { r: 8, fill: COLOURS[i % 7], tabindex: 0,
    class: "kunet-handle", style: "cursor:grab", "aria-label": `control point ${i + 1}, arrow keys move it` }, top));
  function move(i, px, py) {
    const clip = (v) => Math.min(1, Math.max(0, v));
    model.set("points", model.get("points").map((p, j) => (j === i ? [clip(px), clip(py)] : p)));
    model.save_changes();
    draw();
  }
  handles.forEach((handle, i) => {
    handle.addEventListener("pointerdown", (event) => { handle.setPointerCapture(event.pointerId); event.preventDefault(); });
    handle.addEventListener("pointermove", (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(top.getScreenCTM().inverse());
      move(i, (at.x - PAD) / (W - 2 * PAD), (H - PAD - at.y) / (H - 2 * PAD));
    });
    handle.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const [px, py] = model.get("points")[i];
      move(i, px + step[0] * 0.02, py + step[1] * 0.02);
    });
  });
  function draw() {
    const points = model.get("points");
    polygon.setAttribute("d", path(points.map((p) => [x(p[0]), y(p[1])])));
    curve.setAttribute("d", path(table.map(point).map((p) => [x(p[0]), y(p[1])])));
    handles.forEach((handle, i) => { handle.setAttribute("cx", x(points[i][0])); handle.setAttribute("cy", y(points[i][1])); });
    const weights = table[Number(slider.value)], at = point(weights), u = samples[Number(slider.value)];
    marker.setAttribute("cx", x(at[0])); marker.setAttribute("cy", y(at[1]));
    cursor.setAttribute("d", `M${ux(u)},${by(0)}V8`);
    weightsOf.textContent = `u = ${u.toFixed(2)}: ` + weights.map((w, i) => (w > 0 ? `${w.toFixed(2)} P${i + 1}` : ""))
      .filter(Boolean).join(" + ");
  }
  slider.addEventListener("input", draw);
  model.on("change:points", draw);
  draw();
}
export default { render };
