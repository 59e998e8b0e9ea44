// Curves as arrays: smoothing, extents, the nearest point.

// Mean that forgets at rate `weight`, corrected for its short memory at the start; gaps stay gaps.
function smoothed(values, weight) {
  if (!weight) return values;
  let sum = 0, mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

function extent(arrays) {
  let low = Infinity, high = -Infinity;
  for (const values of arrays) {
    for (const value of values) {
      if (value === null || value === undefined) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low <= high ? [low, high] : null;
}

// Room above and below, whole ticks at the ends, and zero where it is near.
function domain(range, unit, log) {
  let [low, high] = range;
  if (log) return [logRound(low, false), logRound(high * (low === high ? 2 : 1), true)];
  if (low === high) [low, high] = low === 0 ? [0, 1] : [Math.min(0, 2 * low), Math.max(0, 2 * high)];
  if (low > 0 && low < (high - low) * 0.6) low = 0;
  const step = tickStep(high - low, 4, unit);
  const top = Math.ceil(high / step - 1e-6) * step, bottom = Math.floor(low / step + 1e-6) * step;
  return unit === 'share' ? [Math.max(0, bottom), Math.min(1, top)] : [bottom, top];
}

function scale(from, to, log) {
  const map = log ? Math.log : (value) => value;
  const [a, b] = [map(from[0]), map(from[1])];
  const slope = b === a ? 0 : (to[1] - to[0]) / (b - a);
  return (value) => to[0] + (map(value) - a) * slope;
}

function nearest(sorted, target) {
  let low = 0, high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < target) low = middle + 1; else high = middle;
  }
  return low > 0 && target - sorted[low - 1] < sorted[low] - target ? low - 1 : low;
}

// The mean over the last tenth of a curve.
function lately(values) {
  const tail = values.slice(-Math.max(1, Math.ceil(values.length / 10))).filter((value) => value !== null);
  return tail.length ? tail.reduce((sum, value) => sum + value, 0) / tail.length : null;
}

function lastOf(values) {
  for (let n = values.length - 1; n >= 0; n -= 1) if (values[n] !== null) return values[n];
  return null;
}
