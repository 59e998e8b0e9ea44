// Numbers as a reader wants them, and the ticks of an axis.

const AXES = {
  step: { label: 'steps', unit: 'count' },
  tokens: { label: 'tokens', unit: 'count' },
  seconds: { label: 'time', unit: 'time' },
};

function short(value) {
  const size = Math.abs(value);
  if (value === 0) return '0';
  for (const [unit, mark] of [[1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e4, 'k']]) {
    if (size >= unit) return trim((value / (mark === 'k' ? 1e3 : unit)).toPrecision(3)) + mark;
  }
  if (size < 1e-3) return value.toExponential(1).replace('e-', 'e−');
  if (size >= 1000) return String(Math.round(value));
  return trim(value.toPrecision(3));
}

function trim(text) {
  return text.includes('.') ? text.replace(/\.?0+$/, '') : text;
}

function clock(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return (seconds < 10 ? trim(seconds.toFixed(1)) : whole) + ' s';
  const minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
  if (hours >= 48) return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  if (hours) return `${hours} h ${String(minutes % 60).padStart(2, '0')}`;
  return `${minutes}:${String(whole % 60).padStart(2, '0')} min`;
}

function written(value, unit) {
  if (value === null || value === undefined) return '–';
  if (unit === 'share') return trim((100 * value).toFixed(Math.abs(value) < 0.1 ? 2 : 1)) + '%';
  if (unit === 'seconds' || unit === 'time') return clock(value);
  return short(value).replace('-', '−');
}

const DURATIONS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];

function tickStep(span, wanted, unit) {
  const rough = span / Math.max(1, wanted);
  if (unit === 'time' && rough > 1) {
    return DURATIONS.find((step) => step >= rough) || Math.ceil(rough / 86400) * 86400;
  }
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
}

function linearTicks(low, high, wanted, unit) {
  const step = tickStep(high - low || 1, wanted, unit);
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n += 1) ticks.push(n === 0 ? 0 : n * step);
  return ticks;
}

// 1, 2 and 5 of each decade where few decades are shown, else whole decades.
function logTicks(low, high) {
  const first = Math.floor(Math.log10(low) + 1e-9), last = Math.ceil(Math.log10(high) - 1e-9);
  const factors = last - first <= 2 ? [1, 2, 5] : [1], stride = Math.max(1, Math.ceil((last - first) / 5));
  const ticks = [];
  for (let power = first; power <= last; power += stride) ticks.push(...factors.map((factor) => factor * 10 ** power));
  return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}

// The next 1, 2 or 5 of a decade, above (or below) a positive number.
function logRound(value, up) {
  const power = 10 ** Math.floor(Math.log10(value)), factors = [1, 2, 5, 10];
  return power * (up ? factors.find((factor) => factor * power >= value * 0.999) : factors.filter((factor) => factor * power <= value * 1.001).at(-1));
}
