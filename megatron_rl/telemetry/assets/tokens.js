// A response, token by token, coloured by how surprising each token was or by its advantage.

const HUNDREDTH = 0.01;
const MOST_SURPRISE = 4.6;  // log 100: at one chance in a hundred the colour is full

function responseView(run, rollout, colour, query) {
  const box = make('div', { class: 'response' });
  if (rollout.error) return make('div', { class: 'response left-out' }, rollout.error);
  if (rollout.text) return make('div', { class: 'response' }, ...marked(rollout.text, query));
  const strongest = Math.max(1e-9, ...rollout.advantage.map(Math.abs));
  rollout.token.forEach((piece, n) => {
    if (n === rollout.gap) box.append(make('span', { class: 'left-out' }, ` … ${rollout.length - rollout.token.length} tokens left out … `));
    box.append(tokenView(run, rollout, piece, n, colour, strongest));
  });
  if (!rollout.token.length) box.append(make('span', { class: 'left-out' }, 'no tokens'));
  return box;
}

function tokenView(run, rollout, piece, n, colour, strongest) {
  const text = run.samples.pieces[piece];
  const span = make('span', { class: 't' }, text.replace(/\n/g, '↵\n') || '∅');
  if (/^<.{1,14}>$/.test(text)) span.classList.add('end');
  if (n < rollout.reused) span.classList.add('draft');
  span.dataset.n = n;
  const shade = colour === 'surprise' ? surpriseShade(rollout.surprise[n]) : colour === 'advantage' ? advantageShade(advantageOf(rollout, n), strongest) : '';
  if (shade) span.style.background = shade;
  return span;
}

function surpriseShade(hundredths) {
  if (hundredths === undefined) return '';
  const share = Math.min(1, (hundredths * HUNDREDTH) / MOST_SURPRISE);
  return share < 0.02 ? '' : `rgb(var(--hot) / ${(0.75 * share).toFixed(2)})`;
}

function advantageShade(value, strongest) {
  if (!value) return '';
  return `rgb(var(${value > 0 ? '--cold' : '--hot'}) / ${(0.12 + 0.5 * Math.min(1, Math.abs(value) / strongest)).toFixed(2)})`;
}

function advantageOf(rollout, n) {
  return rollout.advantage.length === 1 ? rollout.advantage[0] : rollout.advantage[n];
}

function responseText(run, rollout) {
  return rollout.text || rollout.token.map((piece) => run.samples.pieces[piece]).join('');
}

// Text with every find of `query` marked; text nodes only, whatever it holds.
function marked(text, query) {
  if (!query) return [text];
  const parts = [], hay = text.toLowerCase();
  let from = 0;
  for (let at = hay.indexOf(query); at >= 0 && parts.length < 400; at = hay.indexOf(query, from)) {
    parts.push(text.slice(from, at), make('mark', {}, text.slice(at, at + query.length)));
    from = at + query.length;
  }
  return [...parts, text.slice(from)];
}

// One listener for all tokens of a rollout; a tap shows what a mouse shows by hovering.
function explainTokens(box, run, rollout) {
  const show = (event) => {
    const span = event.target.closest('.t');
    if (!span) { hideTip(); return; }
    const n = Number(span.dataset.n), surprise = rollout.surprise[n];
    const rows = [tipRow('', 'token', JSON.stringify(run.samples.pieces[rollout.token[n]]))];
    if (surprise !== undefined) {
      rows.push(tipRow('', 'log-probability', `−${(surprise * HUNDREDTH).toFixed(2)}`));
      rows.push(tipRow('', 'probability', written(Math.exp(-surprise * HUNDREDTH), 'share')));
    }
    const advantage = advantageOf(rollout, n);
    if (advantage !== undefined) rows.push(tipRow('', 'advantage', written(advantage)));
    if (n < rollout.reused) rows.push(tipRow('', 'from a draft', ''));
    const place = span.getBoundingClientRect();
    showTip(place.left - 16, place.bottom + 6, ...rows);
  };
  box.addEventListener('pointerover', show);
  box.addEventListener('pointerdown', show);
  box.addEventListener('pointerleave', hideTip);
}
