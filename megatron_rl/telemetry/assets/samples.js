// The browser of samples: groups with their mates side by side; filters by run, step, verdict and text.

const SIGNS = { right: '✓', wrong: '✗', unparsable: '?', timeout: '◷', crashed: '!', unjudged: '·' };
const GROUPS_AT_ONCE = 4;

function sampleBrowser(runs, query) {
  const root = make('div', { class: 'browser' });
  const withSamples = runs.filter((run) => run.samples.groups.length);
  if (!withSamples.length) return make('p', { class: 'empty' }, 'These run folders hold no rollouts.');
  const steps = (run) => [...new Set(run.samples.groups.map((group) => group.step))];
  const state = { run: withSamples[0], step: 0, verdicts: new Set(), text: '', colour: 'surprise', most: GROUPS_AT_ONCE };
  state.step = steps(state.run).at(-1);
  const filters = make('div', { class: 'filters' }), shades = make('div', { class: 'filters' });
  const chips = make('div', { class: 'chips' }), list = make('div'), stepBox = make('select', { 'aria-label': 'Step' });
  if (query.get('verdict')) state.verdicts = new Set(query.get('verdict').split(','));
  state.text = (query.get('text') || '').toLowerCase();
  if (query.get('at') === 'all') state.step = 'all';

  function update(change) {
    Object.assign(state, { most: GROUPS_AT_ONCE }, change);
    fillSteps();
    fillChips();
    fillList();
  }

  function fillSteps() {
    stepBox.replaceChildren(make('option', { value: 'all' }, 'every sampled step'), ...steps(state.run).map((step) => make('option', { value: step }, `step ${step}`)));
    stepBox.value = String(state.step);
  }

  function fillChips() {
    const counts = new Map();
    for (const group of inStep()) for (const rollout of group.rollouts) counts.set(rollout.verdict, (counts.get(rollout.verdict) || 0) + 1);
    chips.replaceChildren(...[...counts].sort((a, b) => b[1] - a[1]).map(([verdict, count]) => make('button', {
      class: 'chip', type: 'button', 'aria-pressed': String(state.verdicts.has(verdict)),
      onclick: () => { const verdicts = new Set(state.verdicts); verdicts.delete(verdict) || verdicts.add(verdict); update({ verdicts }); },
    }, `${SIGNS[verdict] || '·'} ${verdict}`, make('b', {}, String(count)))));
  }

  const inStep = () => state.run.samples.groups.filter((group) => state.step === 'all' || group.step === state.step);
  const isWanted = (group, rollout) => (!state.verdicts.size || state.verdicts.has(rollout.verdict))
    && (!state.text || [group.prompt, group.prompt_id, group.answer, rollout.extracted, responseText(state.run, rollout)].some((text) => text.toLowerCase().includes(state.text)));

  function fillList() {
    hideTip();
    const found = inStep().map((group) => ({ group, wanted: group.rollouts.map((rollout) => isWanted(group, rollout)) })).filter((one) => one.wanted.some(Boolean));
    const shown = found.slice(0, state.most);
    list.replaceChildren(...shown.map(({ group, wanted }) => groupCard(group, wanted)));
    list.dataset.groups = found.length;
    if (!found.length) list.append(make('p', { class: 'empty' }, 'No rollout matches.'));
    if (found.length > shown.length) {
      list.append(make('button', { class: 'more', type: 'button', onclick: () => { state.most += 2 * GROUPS_AT_ONCE; fillList(); } }, `show more of ${found.length} groups`));
    }
  }

  function groupCard(group, wanted) {
    const right = group.rollouts.filter((rollout) => rollout.correct).length;
    const meta = make('div', { class: 'meta' }, make('b', {}, group.prompt_id || `group ${group.group}`), make('span', {}, `step ${group.step}`));
    if (group.source) meta.append(make('span', {}, group.source));
    if (group.answer) meta.append(make('span', {}, 'answer ', make('b', {}, group.answer.slice(0, 200))));
    meta.append(make('span', {}, `${right} of ${group.rollouts.length} right${group.size > group.rollouts.length ? ` (${group.size} in the group)` : ''}`));
    return make('article', { class: 'group' }, meta, make('div', { class: 'prompt' }, ...marked(group.prompt, state.text)),
      make('div', { class: 'mates', tabindex: '0', role: 'group', 'aria-label': 'Rollouts of this group' }, ...group.rollouts.map((rollout, n) => mate(rollout, wanted[n]))));
  }

  function mate(rollout, isIn) {
    const says = make('div', { class: 'says' }, make('span', { class: `verdict ${rollout.verdict}` }, `${SIGNS[rollout.verdict] || '·'} ${rollout.verdict}`));
    const say = (name, value) => says.append(make('span', {}, `${name} `, make('b', {}, value)));
    if (rollout.reward !== null) say('reward', written(rollout.reward));
    if (rollout.advantage.length) say('advantage', signed(rollout.advantage));
    if (rollout.extracted) say('said', rollout.extracted.slice(0, 120));
    say('tokens', `${rollout.length}${rollout.finish === 'length' ? ', cut' : ''}`);
    if (rollout.reused) say('from a draft', String(rollout.reused));
    const body = responseView(state.run, rollout, state.colour, state.text);
    if (!rollout.text) explainTokens(body, state.run, rollout);
    return make('div', { class: isIn ? 'mate' : 'mate aside' }, says, body);
  }

  const move = (by) => { const all = steps(state.run), at = all.indexOf(state.step); update({ step: all[Math.max(0, Math.min(all.length - 1, at < 0 ? all.length - 1 : at + by))] }); };
  stepBox.addEventListener('change', () => update({ step: stepBox.value === 'all' ? 'all' : Number(stepBox.value) }));
  if (withSamples.length > 1) {
    const runBox = make('select', { 'aria-label': 'Run' }, ...withSamples.map((run, n) => make('option', { value: n }, run.name)));
    runBox.addEventListener('change', () => { const run = withSamples[runBox.value]; update({ run, step: steps(run).includes(state.step) ? state.step : steps(run).at(-1), verdicts: new Set() }); });
    filters.append(runBox);
  }
  const search = make('input', { type: 'search', placeholder: 'search prompts and responses', value: state.text, 'aria-label': 'Search' });
  search.addEventListener('input', () => update({ text: search.value.toLowerCase() }));
  filters.append(make('span', { class: 'stepper' }, make('button', { type: 'button', 'aria-label': 'Earlier step', onclick: () => move(-1) }, '←'), stepBox, make('button', { type: 'button', 'aria-label': 'Later step', onclick: () => move(1) }, '→')), search, chips);
  shades.append(...colourChoice((colour) => update({ colour, most: state.most })));
  root.append(filters, shades, list);
  update({});
  return root;
}

function signed(advantages) {
  const mean = advantages.reduce((sum, value) => sum + value, 0) / advantages.length;
  return `${mean > 0 ? '+' : ''}${written(mean)}${advantages.length > 1 ? ' mean' : ''}`;
}

// What colours a token, and the legend of that colour.
function colourChoice(choose) {
  const legend = make('span', { class: 'scale' });
  const legends = {
    surprise: () => ['certain', make('i', { class: 'surprise' }), '1 in 100 or rarer'],
    advantage: () => ['pushed down', make('i', { class: 'advantage' }), 'pushed up'],
    none: () => [],
  };
  const pick = (colour) => { legend.replaceChildren(...legends[colour]()); choose(colour); };
  legend.append(...legends.surprise());
  return [choice('Token colour', [['surprise', 'surprise'], ['advantage', 'advantage'], ['none', 'plain']], 'surprise', pick), legend];
}
