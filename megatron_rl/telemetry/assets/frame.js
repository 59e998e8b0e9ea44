// What every chart shares: elements, a card, axes, a tooltip, and the crosshair that all charts show at once.

const SVG = 'http://www.w3.org/2000/svg';
const DASHES = ['', '7 4', '2 4', '9 3 2 3', '12 5', '4 2'];
const page = document.documentElement;
const MARGIN = { left: 46, right: 12, top: 10, bottom: 24 };

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function draw(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function strokeSample(run, width = 26) {
  const svg = draw('svg', { width, height: 10, 'aria-hidden': 'true' });
  svg.append(draw('line', { x1: 1, x2: width - 1, y1: 5, y2: 5, class: `line ink run-${run % 6}`, 'stroke-dasharray': DASHES[run % 6] }));
  return svg;
}

function card(title, note) {
  const last = make('div', { class: 'last' });
  const plot = make('div', { class: 'plot', tabindex: '0' });
  const root = make('figure', { class: 'card' }, make('div', { class: 'head' }, make('h3', {}, title), last), make('p', { class: 'note' }, note), plot);
  root.style.margin = '0';
  return { root, last, plot };
}

// One crosshair for all charts: moving over one moves it in every other.
const crosshair = { place: null, charts: [], move(place) { this.place = place; for (const chart of this.charts) chart.hover(place); } };

function axes(svg, size, x, y, xDomain, yDomain, axis, yUnit, log) {
  const xUnit = AXES[axis].unit;
  const bottom = size.height - MARGIN.bottom;
  const rows = log ? logTicks(...yDomain) : linearTicks(...yDomain, 4, yUnit);
  for (const tick of rows) {
    svg.append(draw('line', { class: 'gridline', x1: MARGIN.left, x2: size.width - MARGIN.right, y1: y(tick), y2: y(tick) }));
    svg.append(draw('text', { x: MARGIN.left - 7, y: y(tick) + 4, 'text-anchor': 'end' }, yLabel(tick, yUnit)));
  }
  svg.append(draw('line', { class: 'floor', x1: MARGIN.left, x2: size.width - MARGIN.right, y1: bottom, y2: bottom }));
  for (const tick of linearTicks(...xDomain, Math.max(2, Math.floor((size.width - 60) / 62)), xUnit)) {
    const place = x(tick), end = place > size.width - 34;
    if (place < MARGIN.left + 4 && tick) continue;
    svg.append(draw('text', { x: end ? size.width - 4 : place, y: size.height - 7, 'text-anchor': end ? 'end' : 'middle' }, written(tick, xUnit)));
  }
  svg.append(draw('text', { class: 'axis', x: 0, y: size.height - 7 }, AXES[axis].label));
}

function yLabel(value, unit) {
  return unit === 'share' ? `${trim((100 * value).toFixed(1))}%` : written(value, unit);
}

// Hover, touch and arrow keys of a plot move the crosshair alike.
function listen(plot, at, step) {
  const leave = () => { crosshair.move(null); hideTip(); };
  const pixel = (event) => event.clientX - plot.getBoundingClientRect().left;
  plot.addEventListener('pointermove', (event) => at(pixel(event)));
  plot.addEventListener('pointerdown', (event) => at(pixel(event)));
  plot.addEventListener('pointerleave', leave);
  plot.addEventListener('blur', leave);
  plot.addEventListener('keydown', (event) => {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!direction) return;
    event.preventDefault();
    step(direction);
  });
}

function tipRow(mark, name, value, aside) {
  return make('div', { class: 'row' }, mark, make('span', {}, name), make('b', {}, value), aside ? make('i', {}, aside) : '');
}

// The one tooltip of the page. It stands right of (x, y) in the window, or left of it where the right has no room.
const tip = make('div', { class: 'tip', hidden: '', role: 'status' });

function showTip(x, y, ...rows) {
  tip.replaceChildren(...rows);
  tip.hidden = false;
  const room = page.clientWidth, width = tip.offsetWidth;
  const left = x + 16 + width < room ? x + 16 : x - width - 12;
  tip.style.left = `${Math.max(6, Math.min(left, room - width - 6))}px`;
  tip.style.top = `${y + window.scrollY}px`;
}

function hideTip() {
  tip.hidden = true;
}

function placeName(place, axis) {
  const text = written(place, AXES[axis].unit);
  return { step: `step ${text}`, tokens: `${text} tokens`, seconds: `after ${text}` }[axis];
}
