/** Times and figures in the fewest characters that still say it. */

/** @param {number} ms a span of time, short */
export function span(ms) {
  const s = Math.max(0, ms) / 1000;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5_400) return `${Math.round(s / 60)} min`;
  return s < 129_600 ? `${Math.round(s / 3_600)} h` : `${Math.round(s / 86_400)} d`;
}

/** @param {number} ms whole seconds still to go */
export function seconds(ms) {
  return Math.max(0, Math.ceil(ms / 1000));
}

/** @param {number} ms a span of time still to go, that is shown again every second */
export function left(ms) {
  const s = seconds(ms);
  return s < 90 ? `${s} s` : span(s * 1000);
}

/** @param {number} ms */
export function ago(ms) {
  return ms < 1_500 ? 'just now' : `${ms < 9_950 ? `${Math.floor(ms / 1000)} s` : span(ms)} ago`;
}

/** @param {number | string} at */
export function clock(at) {
  return new Date(at).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
}

/** @param {string} at the day only when it is another one */
export function dateAndClock(at) {
  const date = new Date(at);
  const day = date.toDateString() === new Date().toDateString() ? '' : `${date.toLocaleDateString([], { day: 'numeric', month: 'short' })}, `;
  return day + clock(at);
}

/** @param {number} value */
export function percent(value) {
  return `${Number.isInteger(value) ? value : value.toFixed(1)} %`;
}

/** @type {Record<string, string>} */
const SIGNS = { usd: 'US$', eur: '€', gbp: '£', cny: 'CN¥' };

/** @param {{ amount: number, unit: string | null }} sum of a currency, or in a provider's own unit */
export function sum({ amount, unit }) {
  const sign = SIGNS[unit ?? ''];
  const figure = amount.toLocaleString('en', { minimumFractionDigits: sign ? 2 : 0, maximumFractionDigits: 6 });
  if (sign) return `${sign} ${figure}`;
  return [figure, unit === 'unit' && amount !== 1 ? 'units' : unit].filter(Boolean).join(' ');
}
