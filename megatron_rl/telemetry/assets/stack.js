// Where the seconds of each step went: one stacked chart a run.

function stackChart({ run, index, phases }) {
  const total = phases.reduce((sum, phase) => sum + spent(run, phase), 0) || 1;
  const { root, last, plot } = card(run.name, 'seconds a step, by phase');
  root.dataset.panel = `time/${run.name}`;
  root.querySelector('h3').prepend(strokeSample(index, 22), ' ');
  const colour = (phase) => `phase-${phases.indexOf(phase) % 7}`;
  root.append(make('div', { class: 'key' }, ...phases.filter((phase) => spent(run, phase) > 0).map((phase) =>
    make('span', {}, make('i', { class: `swatch ${colour(phase)}` }), `${phase} ${written(spent(run, phase) / total, 'share')}`))));
  let state = null;

  function render(view) {
    root.hidden = !view.visible[index];
    const size = { width: plot.clientWidth || 340, height: plot.clientHeight || 196 };
    const svg = draw('svg', { viewBox: `0 0 ${size.width} ${size.height}`, role: 'img', 'aria-label': `Seconds a step of ${run.name}` });
    plot.replaceChildren(svg);
    const bins = binned(run, phases, run[view.axis], Math.max(8, Math.floor((size.width - 60) / 5)));
    state = null;
    if (!bins.length) return;
    const high = Math.max(...bins.map((bin) => bin.total)) || 1;
    const yDomain = domain([0, high], 'number', false);
    const xDomain = [bins[0].from, bins[bins.length - 1].to];
    const x = scale(xDomain, [MARGIN.left, size.width - MARGIN.right]);
    const y = scale(yDomain, [size.height - MARGIN.bottom, MARGIN.top]);
    axes(svg, size, x, y, xDomain, yDomain, view.axis, 'seconds', false);
    const base = bins.map(() => 0);
    for (const phase of phases) {
      let path = '';
      bins.forEach((bin, n) => {
        const left = x(bin.from), width = Math.max(0.8, x(bin.to) - left - 0.7), value = bin.seconds[phase];
        if (!value) return;
        const top = y(base[n] + value), height = y(base[n]) - top;
        path += `M${left.toFixed(1)},${top.toFixed(2)}h${width.toFixed(1)}v${height.toFixed(2)}h${(-width).toFixed(1)}Z`;
        base[n] += value;
      });
      svg.append(draw('path', { class: `fill ${colour(phase)}`, d: path, 'data-phase': phase, 'data-points': bins.length }));
    }
    const marks = draw('g');
    svg.append(marks);
    last.replaceChildren(`${written(bins.reduce((sum, bin) => sum + bin.total, 0) / bins.length, 'seconds')} a step`);
    state = { bins, x, size, marks, view, xDomain };
  }

  function hover(place, withTip = false) {
    if (!state) return;
    state.marks.replaceChildren();
    if (place === null || place < state.xDomain[0] || place > state.xDomain[1]) return;
    const bin = state.bins.find((one) => place <= one.to);
    const across = state.x((bin.from + bin.to) / 2);
    state.marks.append(draw('line', { class: 'cross', x1: across, x2: across, y1: MARGIN.top, y2: state.size.height - MARGIN.bottom }));
    if (!withTip) return;
    const rows = [...phases].reverse().filter((phase) => bin.seconds[phase]).map((phase) =>
      tipRow(make('i', { class: `swatch ${colour(phase)}` }), phase, written(bin.seconds[phase], 'seconds'), written(bin.seconds[phase] / bin.total, 'share')));
    const box = plot.getBoundingClientRect();
    showTip(box.left + across, box.top, make('div', { class: 'at' }, `${placeName(bin.to, state.view.axis)}: ${written(bin.total, 'seconds')}`), ...rows);
  }

  function settle(place) {
    crosshair.move(place);
    hover(place, true);
  }

  listen(plot, (pixel) => {
    if (!state) return;
    const share = (pixel - MARGIN.left) / (state.size.width - MARGIN.left - MARGIN.right);
    settle(state.xDomain[0] + Math.min(1, Math.max(0.001, share)) * (state.xDomain[1] - state.xDomain[0]));
  }, (direction) => {
    if (!state) return;
    const n = crosshair.place === null ? 0 : state.bins.findIndex((bin) => crosshair.place <= bin.to) + direction;
    settle(state.bins[Math.max(0, Math.min(state.bins.length - 1, n))].to);
  });
  return { root, render, hover };
}

function spent(run, phase) {
  return (run.phases[phase] || []).reduce((sum, value) => sum + (value || 0), 0);
}

// Means over equal stretches of steps, each placed from the end of the stretch before to its own end.
function binned(run, phases, xs, most) {
  const size = Math.max(1, Math.ceil(xs.length / most)), bins = [];
  for (let start = 0; start < xs.length; start += size) {
    const stop = Math.min(xs.length, start + size), seconds = {};
    let total = 0;
    for (const phase of phases) {
      const values = (run.phases[phase] || []).slice(start, stop).map((value) => value || 0);
      seconds[phase] = values.reduce((sum, value) => sum + value, 0) / (stop - start);
      total += seconds[phase];
    }
    bins.push({ from: start ? xs[start - 1] : Math.max(0, 2 * xs[0] - (xs[1] ?? 2 * xs[0])), to: xs[stop - 1], seconds, total });
  }
  return bins;
}
