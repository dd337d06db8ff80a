/** Short formats for times, percentages and amounts of money. */

/** Durations below each limit use tenths of seconds, whole seconds, minutes and hours. */
const TENTHS_BELOW_SECONDS = 9.95;
const WHOLE_BELOW_SECONDS = 90;
const MINUTES_BELOW_SECONDS = 5_400;
const HOURS_BELOW_SECONDS = 129_600;

/** Formats a duration as `0.7s`, `42s`, `3 min`, `2 hr` or `3 days`. @param {number} ms */
export function span(ms) {
  const s = Math.max(0, ms) / 1000;
  if (s < TENTHS_BELOW_SECONDS) return `${s.toFixed(1)}s`;
  if (s < WHOLE_BELOW_SECONDS) return `${Math.round(s)}s`;
  if (s < MINUTES_BELOW_SECONDS) return `${Math.round(s / 60)} min`;
  return s < HOURS_BELOW_SECONDS ? `${Math.round(s / 3_600)} hr` : `${Math.round(s / 86_400)} days`;
}

/** Returns the time remaining in whole seconds, rounded up and never negative. @param {number} ms */
export function seconds(ms) {
  return Math.max(0, Math.ceil(ms / 1000));
}

/** Formats the time remaining for a countdown: whole seconds below 90 seconds, otherwise as {@link span}. @param {number} ms */
export function countdown(ms) {
  const s = seconds(ms);
  return s < WHOLE_BELOW_SECONDS ? `${s}s` : span(s * 1000);
}

/** Formats an age as `just now` or `3 min ago`. @param {number} ms */
export function ago(ms) {
  return ms < 1_500 ? 'just now' : `${ms < TENTHS_BELOW_SECONDS * 1000 ? `${Math.floor(ms / 1000)}s` : span(ms)} ago`;
}

/** Formats a time as `19:31`. @param {number | string} at */
export function clock(at) {
  return new Date(at).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
}

/** Formats a time, with the date unless it is today. @param {string} at */
export function dateAndClock(at) {
  const date = new Date(at);
  const day = date.toDateString() === new Date().toDateString() ? '' : `${date.toLocaleDateString([], { day: 'numeric', month: 'short' })}, `;
  return day + clock(at);
}

/** Formats a time as `19:31:04`, with the date unless it is today. @param {string} at */
export function dateAndSeconds(at) {
  return `${dateAndClock(at)}:${String(new Date(at).getSeconds()).padStart(2, '0')}`;
}

const BYTE_UNITS = ['bytes', 'kB', 'MB', 'GB', 'TB'];

/** Formats a size as `812 bytes` or `4.2 MB`. @param {number} count */
export function bytes(count) {
  let unit = 0;
  let value = count;
  while (value >= 999.5 && unit < BYTE_UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit && value < 9.95 ? value.toFixed(1) : Math.round(value)} ${BYTE_UNITS[unit]}`;
}

/** @param {number} value from 0 to 100 */
export function percent(value) {
  return `${Number.isInteger(value) ? value : value.toFixed(1)}%`;
}

/** @type {Record<string, string>} */
const CURRENCY_SYMBOLS = { usd: '$', eur: '€', gbp: '£', cny: 'CN¥' };

/** Formats an amount as `$0.35` for a known currency, or as `12 credits`. @param {{ amount: number, unit: string | null }} money */
export function money({ amount, unit }) {
  const symbol = CURRENCY_SYMBOLS[unit ?? ''];
  const figure = amount.toLocaleString('en', { minimumFractionDigits: symbol ? 2 : 0, maximumFractionDigits: 6 });
  if (symbol) return symbol + figure;
  return [figure, unit === 'unit' && amount !== 1 ? 'units' : unit].filter(Boolean).join(' ');
}
