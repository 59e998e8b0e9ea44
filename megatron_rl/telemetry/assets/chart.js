// A line chart of one metric over all visible runs; also the chart of evaluations, with points and intervals.

// A trace: { run, name, x: [...], y: [...], low?: [...], high?: [...] }, x in order.
function lineChart({ title, note, unit, log, key, traces, points }) {
  const { root, last, plot } = card(title, note);
  root.dataset.panel = key;
  let state = null;

  function render(view) {
    const shown = traces(view).filter((trace) => view.visible[trace.run]);
    const smooth = points ? 0 : view.smooth;
    const usable = log ? (value) => (value > 0 ? value : null) : (value) => value;
    const curves = shown.map((trace) => {
      const raw = trace.y.map((value) => (value === null ? null : usable(value)));
      return { ...trace, raw, y: smoothed(raw, smooth) };
    });
    const size = { width: plot.clientWidth || 340, height: plot.clientHeight || 196 };
    const svg = draw('svg', { viewBox: `0 0 ${size.width} ${size.height}`, role: 'img', 'aria-label': `${title}: ${note}` });
    plot.replaceChildren(svg);
    const ys = curves.flatMap((curve) => (points ? [curve.low, curve.high, curve.y] : smooth > 0.5 ? [curve.y, core(curve.raw)] : [curve.raw]));
    const yRange = extent(ys), xRange = extent(curves.map((curve) => curve.x));
    state = null;
    if (!yRange || !xRange) {
      svg.append(draw('text', { x: size.width / 2, y: size.height / 2, 'text-anchor': 'middle' }, 'no finite number'));
      return;
    }
    const start = xRange[0] === xRange[1] ? xRange[0] - 1 : Math.min(xRange[0], view.axis === 'step' ? xRange[0] : 0);
    const xDomain = [start, xRange[0] === xRange[1] ? xRange[1] + 1 : xRange[1]];
    const yDomain = domain(yRange, unit, log);
    // Smoothing leaves dust where a curve has come to rest at zero.
    const dust = (log ? 0 : yDomain[1] - yDomain[0]) * 1e-4;
    last.replaceChildren(...curves.map((curve) => make('span', { class: `own run-${curve.run % 6}`, title: curve.name }, written(settled(lastOf(curve.y), dust), unit))));
    const x = scale(xDomain, [MARGIN.left, size.width - MARGIN.right]);
    const y = scale(yDomain, [size.height - MARGIN.bottom, MARGIN.top], log);
    const inside = clip(svg, size, key);
    axes(svg, size, x, y, xDomain, yDomain, view.axis, unit, log);
    for (const curve of curves) trace(inside, curve, x, y, smooth, points);
    svg.append(inside);
    const marks = draw('g');
    svg.append(marks);
    state = { curves, x, y, size, marks, xDomain, view, dust };
  }

  // Where the crosshair stands, in units of the horizontal axis.
  function hover(place, withTip = false) {
    if (!state) return;
    state.marks.replaceChildren();
    if (place === null || place < state.xDomain[0] || place > state.xDomain[1]) return;
    const across = state.x(place);
    state.marks.append(draw('line', { class: 'cross', x1: across, x2: across, y1: MARGIN.top, y2: state.size.height - MARGIN.bottom }));
    const rows = [];
    for (const curve of state.curves) {
      const n = nearest(curve.x, place);
      if (curve.y[n] === null || curve.y[n] === undefined) continue;
      state.marks.append(draw('circle', { class: `dot fill run-${curve.run % 6}`, cx: state.x(curve.x[n]), cy: state.y(curve.y[n]), r: 4 }));
      const aside = curve.low ? `${written(curve.low[n], unit)} – ${written(curve.high[n], unit)}` : curve.y !== curve.raw ? `raw ${written(curve.raw[n], unit)}` : '';
      rows.push(tipRow(strokeSample(curve.run, 18), curve.name, written(settled(curve.y[n], state.dust), unit), aside));
    }
    if (!withTip || !rows.length) return;
    const box = plot.getBoundingClientRect();
    showTip(box.left + across, box.top, make('div', { class: 'at' }, placeName(place, state.view.axis)), ...rows);
  }

  function at(pixel) {
    if (!state) return;
    const share = (pixel - MARGIN.left) / (state.size.width - MARGIN.left - MARGIN.right);
    const rough = state.xDomain[0] + Math.min(1, Math.max(0, share)) * (state.xDomain[1] - state.xDomain[0]);
    const xs = state.curves.map((curve) => curve.x[nearest(curve.x, rough)]);
    settle(xs.reduce((best, x) => (Math.abs(x - rough) < Math.abs(best - rough) ? x : best), xs[0]));
  }

  function settle(place) {
    crosshair.move(place);
    hover(place, true);
  }

  listen(plot, at, (direction) => {
    if (!state || !state.curves.length) return;
    const xs = state.curves[0].x;
    const n = crosshair.place === null ? (direction > 0 ? 0 : xs.length - 1) : nearest(xs, crosshair.place) + direction;
    settle(xs[Math.max(0, Math.min(xs.length - 1, n))]);
  });
  return { root, render, hover };
}

function settled(value, dust) {
  return value !== null && Math.abs(value) < dust ? 0 : value;
}

// The middle 98% of a noisy curve decide its frame, so that one spike does not flatten the rest once it is smoothed.
function core(values) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  const cut = Math.floor(sorted.length / 100);
  return sorted.slice(cut, sorted.length - cut);
}

function clip(svg, size, key) {
  const id = `clip-${key.replace(/[^a-zA-Z0-9]/g, '-')}-${Math.random().toString(36).slice(2, 8)}`;
  const box = draw('rect', { x: MARGIN.left - 3, y: MARGIN.top - 6, width: Math.max(0, size.width - MARGIN.left - MARGIN.right + 6), height: size.height - MARGIN.top - MARGIN.bottom + 9 });
  svg.append(draw('defs', {}, draw('clipPath', { id }, box)));
  return draw('g', { 'clip-path': `url(#${id})` });
}

function trace(group, curve, x, y, smooth, points) {
  const look = `run-${curve.run % 6}`;
  if (curve.low) group.append(draw('path', { class: `band fill ${look}`, d: bandPath(curve, x, y) }));
  if (smooth) group.append(draw('path', { class: `raw ink ${look}`, d: linePath(curve.x, curve.raw, x, y) }));
  const count = curve.y.filter((value) => value !== null).length;
  group.append(draw('path', { class: `line ink ${look}`, d: linePath(curve.x, curve.y, x, y), 'stroke-dasharray': DASHES[curve.run % 6], 'data-run': curve.name, 'data-points': count }));
  curve.y.forEach((value, n) => {
    if (value === null || (count > 1 && !points)) return;
    if (curve.low) group.append(draw('line', { class: `whisker ink ${look}`, x1: x(curve.x[n]), x2: x(curve.x[n]), y1: y(curve.low[n]), y2: y(curve.high[n]) }));
    group.append(marker(curve.run, x(curve.x[n]), y(value), look));
  });
}

// Runs differ by shape as well as by colour.
function marker(run, x, y, look) {
  const shape = ['M-4,0A4,4,0,1,0,4,0A4,4,0,1,0,-4,0', 'M-4,-4H4V4H-4Z', 'M0,-5L5,4H-5Z', 'M0,-5L5,0L0,5L-5,0Z', 'M0,5L5,-4H-5Z', 'M-5,-1.5H-1.5V-5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5Z'][run % 6];
  return draw('path', { class: `dot fill ${look}`, d: shape, transform: `translate(${x.toFixed(1)},${y.toFixed(1)})` });
}

function linePath(xs, ys, x, y) {
  let path = '', pen = 'M';
  for (let n = 0; n < xs.length; n += 1) {
    if (ys[n] === null) { pen = 'M'; continue; }
    path += `${pen}${x(xs[n]).toFixed(1)},${y(ys[n]).toFixed(1)}`;
    pen = 'L';
  }
  return path;
}

function bandPath(curve, x, y) {
  const places = curve.x.map((_, n) => n).filter((n) => curve.low[n] !== null && curve.high[n] !== null);
  if (!places.length) return '';
  const over = places.map((n) => `${x(curve.x[n]).toFixed(1)},${y(curve.high[n]).toFixed(1)}`);
  const under = places.reverse().map((n) => `${x(curve.x[n]).toFixed(1)},${y(curve.low[n]).toFixed(1)}`);
  return `M${[...over, ...under].join('L')}Z`;
}
