// The page: what is visible and on which axis, the sections, and the address that remembers it.

const data = JSON.parse(document.getElementById('data').textContent);
window.addEventListener('error', () => { page.dataset.errors = Number(page.dataset.errors) + 1; });

const query = new URLSearchParams(location.hash.slice(1));
const view = {
  axis: query.get('axis') in AXES ? query.get('axis') : 'step',
  smooth: Math.min(0.98, Math.max(0, Number(query.get('smooth') ?? suggestedSmoothing()) || 0)),
  visible: data.runs.map((_, n) => !(query.get('hidden') || '').split(',').includes(String(n))),
};
const charts = crosshair.charts;

function suggestedSmoothing() {
  const longest = Math.max(0, ...data.runs.map((run) => run.step.length));
  return longest < 15 ? 0 : longest < 100 ? 0.6 : 0.9;
}

function choice(label, options, chosen, choose) {
  const root = make('div', { class: 'choice', role: 'radiogroup', 'aria-label': label });
  fillChoice(root, options, chosen, choose);
  return root;
}

function fillChoice(root, options, chosen, choose) {
  root.replaceChildren(...options.map(([value, text]) => make('button', {
    type: 'button', role: 'radio', 'aria-checked': String(value === chosen),
    onclick: () => { fillChoice(root, options, value, choose); choose(value); },
  }, text)));
}

function renderAll() {
  for (const chart of charts) if (chart.root.offsetParent !== null || chart.root.hidden) chart.render(view);
}

function change(part) {
  Object.assign(view, part);
  const hidden = view.visible.flatMap((isVisible, n) => (isVisible ? [] : [n]));
  const kept = new URLSearchParams({ axis: view.axis, smooth: String(view.smooth), ...(hidden.length ? { hidden: hidden.join() } : {}) });
  history.replaceState(null, '', `#${kept}`);
  crosshair.move(null);
  hideTip();
  renderAll();
}

function runButton(run, n) {
  const first = run.measured[0];
  const held = run.measured.filter((one) => one.measure === first.measure && one.source === first.source).at(-1);
  const facts = [
    ['steps', run.step.length ? short(run.step.at(-1)) : '0'],
    ['rollouts', short(run.rollouts)],
    ['tokens', short(run.tokens.at(-1) || 0)],
    ['in steps', clock(run.seconds.at(-1) || 0)],
  ];
  const reward = lately(run.metrics['reward/mean'] || []);
  if (reward !== null) facts.push(['reward lately', written(reward)]);
  if (held) facts.push([`${held.source} ${held.measure}`, written(held.value, 'share')]);
  const button = make('button', { class: 'run', type: 'button', 'aria-pressed': String(view.visible[n]), title: 'show or hide this run' },
    make('span', { class: 'name' }, strokeSample(n, 30), run.name),
    make('span', { class: 'facts' }, ...facts.map(([name, value]) => make('span', { class: 'fact' }, make('b', {}, value), make('span', {}, name)))));
  button.addEventListener('click', () => {
    const visible = view.visible.map((isVisible, m) => (m === n ? !isVisible : isVisible));
    button.setAttribute('aria-pressed', String(visible[n]));
    change({ visible });
  });
  return button;
}

function metricChart(panel) {
  const key = panel.names.find(Boolean);
  const traces = (now) => data.runs.flatMap((run, n) => (panel.names[n] ? [{ run: n, name: run.name, x: run[now.axis], y: run.metrics[panel.names[n]] }] : []));
  return lineChart({ ...panel, key, traces, points: false });
}

function evaluationChart(source, measure) {
  const traces = (now) => data.runs.flatMap((run, n) => {
    const found = run.measured.filter((one) => one.source === source && one.measure === measure);
    return found.length ? [{ run: n, name: run.name, x: found.map((one) => one[now.axis]), y: found.map((one) => one.value), low: found.map((one) => one.low), high: found.map((one) => one.high) }] : [];
  });
  const all = data.runs.flatMap((run) => run.measured.filter((one) => one.source === source && one.measure === measure));
  const unit = all.every((one) => one.value === null || (one.value >= 0 && one.value <= 1)) ? 'share' : 'number';
  return lineChart({ title: source || measure, note: source ? measure : '', unit, log: false, key: `evaluation/${source}/${measure}`, traces, points: true });
}

function section(id, title, note, ...children) {
  const root = make('section', { id }, make('div', { class: 'heading' }, make('h2', {}, title)), note ? make('p', { class: 'note' }, note) : '', ...children);
  document.getElementById('sections').append(root);
  document.getElementById('links').append(make('a', { href: `#${id}`, onclick: (event) => { event.preventDefault(); root.scrollIntoView({ behavior: 'smooth' }); } }, title));
  return root;
}

function grid(added, look = 'grid') {
  charts.push(...added);
  return make('div', { class: look }, ...added.map((chart) => chart.root));
}

function evaluationSection() {
  const all = data.runs.flatMap((run) => run.measured);
  if (!all.length) return;
  const measures = [...new Set(all.map((one) => one.measure))], sources = [...new Set(all.map((one) => one.source))];
  const holder = make('div');
  const show = (measure) => {
    for (const chart of [...charts]) if (holder.contains(chart.root)) charts.splice(charts.indexOf(chart), 1);
    const has = (source) => all.some((one) => one.source === source && one.measure === measure);
    holder.replaceChildren(grid(sources.filter(has).map((source) => evaluationChart(source, measure)), 'grid wide'));
    renderAll();
  };
  const root = section('evaluation', 'Evaluation', 'Held-out prompts, with the intervals the evaluation gave.', holder);
  if (measures.length > 1) root.firstChild.append(choice('Measure', measures.map((measure) => [measure, measure]), measures[0], show));
  show(measures[0]);
}

const MOST_IN_ONE_GRID = 24;

function restSection() {
  const families = Object.entries(data.rest), every = families.flatMap(([, panels]) => panels);
  if (!every.length) return;
  const note = 'Every other number the stages, the objective and the batch reported.';
  if (every.length <= MOST_IN_ONE_GRID) {
    section('more', 'Stages and the rest', note, grid(every.map(metricChart), 'grid small'));
    return;
  }
  section('more', 'Stages and the rest', note, ...families.map(([family, panels]) => {
    const names = make('span', {}, panels.map((panel) => panel.title.replace(`${family}/`, '')).join(', '));
    const details = make('details', { class: 'family' }, make('summary', {}, `${family} `, names), grid(panels.map(metricChart), 'grid small'));
    details.addEventListener('toggle', renderAll);
    return details;
  }));
}

function foot() {
  const bounds = data.bounds, held = (run) => run.samples.groups.reduce((sum, group) => sum + group.rollouts.length, 0);
  const lines = data.runs.map((run) => `${run.name}: ${held(run)} of ${run.rollouts} rollouts are in this page, from ${new Set(run.samples.groups.map((group) => group.step)).size} of the ${run.samples.steps_kept} steps whose rollouts were kept.`
    + (run.not_finite ? ` ${run.not_finite} numbers were not finite and are gaps in its curves.` : ''));
  lines.push(`At most ${bounds.steps} steps × ${bounds.groups} groups × ${bounds.mates} rollouts of a run are shown, ${bounds.tokens} tokens of each, ${short(bounds.total_tokens)} tokens together; a curve has at most 1500 points, means over stretches of steps where a run is longer.`);
  document.getElementById('foot').append(...lines.map((line) => make('p', {}, line)));
}

function start() {
  document.body.append(tip);
  document.getElementById('runs').append(...data.runs.map(runButton));
  fillChoice(document.getElementById('axis'), Object.entries(AXES).map(([name, axis]) => [name, axis.label]), view.axis, (axis) => change({ axis }));
  const slider = document.getElementById('smooth'), shown = document.getElementById('smooth-value');
  slider.value = view.smooth;
  shown.value = view.smooth.toFixed(2);
  slider.addEventListener('input', () => { shown.value = Number(slider.value).toFixed(2); change({ smooth: Number(slider.value) }); });
  if (data.learning.length) section('learning', 'Learning', '', grid(data.learning.map(metricChart)));
  evaluationSection();
  const phases = [...new Set(data.runs.flatMap((run) => Object.keys(run.phases)))];
  if (phases.length) section('time', 'Time', '', grid(data.runs.map((run, index) => stackChart({ run, index, phases })), 'grid wide'));
  if (data.parity.length) section('parity', 'Engine and actor', 'How far the engine’s log-probabilities are from the actor’s, over the tokens written in the step. Logarithmic.', grid(data.parity.map(metricChart)));
  restSection();
  section('samples', 'Samples', 'What the model wrote: every group side by side with its mates.', sampleBrowser(data.runs, query));
  const specs = data.runs.filter((run) => run.spec);
  if (specs.length) section('configuration', 'Configuration', '', ...specs.map((run) => make('details', { class: 'spec' }, make('summary', {}, run.name), make('pre', {}, run.spec))));
  foot();
  renderAll();
  let width = 0;
  new ResizeObserver(() => { if (page.clientWidth !== width) { width = page.clientWidth; renderAll(); } }).observe(document.body);
  page.dataset.ready = 'yes';
}

start();
