/**
 * The four steps of a job, derived from its document and the versions that this tab received.
 *
 * Invariant: a step whose source neither of them shows is `unknown`. Nothing is guessed.
 *
 * @module
 */

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('../progress-hub.js').Source} Source */
/** @typedef {import('../progress-hub.js').Status} Status */
/** @typedef {import('./timeline.js').VersionRecord} VersionRecord */
/** @typedef {'accepted' | 'queued' | 'running' | 'end'} StepName */
/**
 * - `upcoming`: the job has not reached the step.
 * - `current`: the job is at the step.
 * - `done`: a received version shows the step.
 * - `skipped`: two consecutive versions show that the job passed over the step.
 * - `unknown`: the job passed the step, but this tab did not receive that version.
 * - `failed`: the job failed; only for `end`.
 *
 * @typedef {object} Step
 * @property {'upcoming' | 'current' | 'done' | 'skipped' | 'unknown' | 'failed'} state
 * @property {Source | null} source what reported the step
 * @property {number | null} elapsedMs time from the creation of the job to the step
 */

/** @type {StepName[]} */
export const STEPS = ['accepted', 'queued', 'running', 'end'];
/** Index of the step that a status belongs to. @type {Record<Status, number>} */
const STEP_INDEX = { accepted: 0, queued: 1, running: 2, succeeded: 3, failed: 3, cancelled: 3 };

/**
 * Returns the state of each step.
 * @param {Job} job
 * @param {readonly VersionRecord[]} records
 * @returns {Record<StepName, Step>}
 */
export function stepsFor(job, records) {
  const currentIndex = STEP_INDEX[job.status];
  const elapsedSinceCreation = (/** @type {string | null} */ time) => (time === null ? null : Date.parse(time) - Date.parse(job.created_at));
  /** @param {number} index @param {string | null} time of the step according to the document, which has it even if the version was not received */
  const reported = (index, time) => {
    const first = records.find(record => STEP_INDEX[record.s] === index);
    return { source: first?.by ?? null, elapsedMs: first ? first.at - Date.parse(job.created_at) : elapsedSinceCreation(time) };
  };
  /** @param {number} index @param {string | null} time @returns {Step} */
  const intermediate = (index, time) => {
    if (index > currentIndex) return { state: 'upcoming', source: null, elapsedMs: null };
    const step = reported(index, time);
    return { ...step, state: index === currentIndex ? 'current' : step.source ? 'done' : passedState(index, records) };
  };
  return {
    // A job is always created through the API.
    accepted: { state: currentIndex ? 'done' : 'current', source: 'api', elapsedMs: 0 },
    queued: intermediate(1, null),
    running: intermediate(2, job.started_at),
    end: job.final
      ? { ...reported(3, job.finished_at), state: job.status === 'failed' ? 'failed' : job.status === 'succeeded' && !job.error ? 'done' : 'skipped' }
      : { state: 'upcoming', source: null, elapsedMs: null },
  };
}

/**
 * Returns the state of a passed step that no received version shows. A job that failed or was cancelled before the step
 * never reached it. A job that went on to a later step skipped it.
 * @param {number} index
 * @param {readonly VersionRecord[]} records
 */
function passedState(index, records) {
  const before = records.findLast(record => STEP_INDEX[record.s] < index);
  const after = records.find(record => STEP_INDEX[record.s] > index);
  if (!before || after?.v !== before.v + 1) return 'unknown';
  return STEP_INDEX[after.s] === 3 && after.s !== 'succeeded' ? 'upcoming' : 'skipped';
}
