/** The four stations of every job, told from its document and from the versions seen. Invariant: what neither of them tells is not claimed. */

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('../progress-hub.js').Source} Source */
/** @typedef {import('../progress-hub.js').Status} Status */
/** @typedef {import('./timeline.js').Seen} Seen */
/** @typedef {'accepted' | 'queued' | 'running' | 'end'} Station */

/** @type {Station[]} */
export const STATIONS = ['accepted', 'queued', 'running', 'end'];
/** @type {Record<Status, number>} */
const RANK = { accepted: 0, queued: 1, running: 2, succeeded: 3, failed: 3, cancelled: 3 };

/** @typedef {{ state: 'done' | 'here' | 'ahead' | 'skipped' | 'unseen' | 'bad', by: Source | null, at: number | null }} Stop `at`: milliseconds since the job was placed */

/**
 * How far a job came, station by station, and who said so.
 * @param {Job} job
 * @param {readonly Seen[]} seen
 * @returns {Record<Station, Stop>}
 */
export function stationsOf(job, seen) {
  const rank = RANK[job.status];
  const since = (/** @type {string | null} */ time) => (time === null ? null : Date.parse(time) - Date.parse(job.created_at));
  /** @param {number} at @param {string | null} told the time that stands in every document, whether or not this browser was there */
  const stop = (at, told) => {
    const first = seen.find(one => RANK[one.s] === at);
    return { by: first?.by ?? null, at: first ? first.at - Date.parse(job.created_at) : since(told) };
  };
  /** @param {number} at @param {string | null} told @returns {Stop} */
  const between = (at, told) => {
    if (at > rank) return { state: 'ahead', by: null, at: null };
    const known = stop(at, told);
    return { ...known, state: at === rank ? 'here' : known.by ? 'done' : passed(at, seen) };
  };
  return {
    // Only the API places jobs.
    accepted: { state: rank ? 'done' : 'here', by: 'api', at: 0 },
    queued: between(1, null),
    running: between(2, job.started_at),
    end: job.final ? { ...stop(3, job.finished_at), state: job.status === 'failed' ? 'bad' : job.status === 'succeeded' && !job.error ? 'done' : 'skipped' } : { state: 'ahead', by: null, at: null },
  };
}

/**
 * What is known of a station that no version seen stood at. A job that failed or was cancelled on the way there never
 * came there; one that went on went past.
 * @param {number} at
 * @param {readonly Seen[]} seen
 */
function passed(at, seen) {
  const before = seen.findLast(one => RANK[one.s] < at);
  const after = seen.find(one => RANK[one.s] > at);
  if (!before || after?.v !== before.v + 1) return 'unseen';
  return RANK[after.s] === 3 && after.s !== 'succeeded' ? 'ahead' : 'skipped';
}
