/** What a job's document says, in words for people: what happened, and what they can do. */

import { left, percent, seconds, span } from './format.js';
import { isOver, validityWords } from './outputs.js';
import { fieldIn, sentence } from './error-text.js';
import { waitWords } from './provider-status.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/**
 * What is known beside the document.
 * @typedef {object} Beside
 * @property {import('../progress-hub.js').Provider | null} [standing] how the provider is that the job waits for, unless it is well
 * @property {boolean} [isCancelling] somebody here asked for it, and the end is not told yet
 */

/** As many times as the hub tries at most. */
export const MAX_ATTEMPTS = 5;

/** @param {Job} job */
export function titleOf(job) {
  for (const key of ['prompt', 'title', 'name']) {
    const value = job.metadata?.[key];
    if (typeof value === 'string' && value.trim()) return value.trim();
  }
  return job.stage ?? job.model ?? job.id;
}

/** @param {Job} job */
export function kindOfOutput(job) {
  const type = job.outputs[0]?.type ?? (job.provider ? 'video' : '');
  return { video: 'Clip', image: 'Image', audio: 'Sound' }[type] ?? 'Result';
}

/** Whether the job is still to be sent to its provider. @param {Job} job */
export function isWaiting(job) {
  return job.status === 'accepted' && job.provider !== null && job.error?.kind !== 'submission_unknown' && (!job.attempt || job.next_attempt_at !== null);
}

/** @param {Job} job @param {Beside} [beside] @returns {{ word: string, tone: 'calm' | 'go' | 'wait' | 'bad' | 'done' }} */
export function statusOf(job, { standing, isCancelling } = {}) {
  if (isCancelling) return { word: 'Cancelling…', tone: 'wait' };
  if (standing) return { word: 'Waiting', tone: 'wait' };
  switch (job.status) {
    case 'accepted':
      if (job.error?.kind === 'submission_unknown') return { word: 'Unsure', tone: 'wait' };
      if (job.next_attempt_at) return { word: 'Waiting to try again', tone: 'wait' };
      return job.attempt ? { word: 'Sending', tone: 'go' } : { word: 'Accepted', tone: 'calm' };
    case 'queued': return { word: 'Queued', tone: job.error ? 'wait' : 'go' };
    case 'running': return { word: 'Running', tone: job.error ? 'wait' : 'go' };
    case 'succeeded': return job.error ? { word: job.error.kind === 'result_expired' ? 'Expired' : 'Finished', tone: 'wait' } : { word: 'Finished', tone: 'done' };
    case 'failed': return { word: 'Failed', tone: 'bad' };
    case 'cancelled': return { word: 'Cancelled', tone: 'calm' };
  }
}

/**
 * What a person should know about an error, and can do.
 * @param {Job} job
 * @param {number} now
 */
export function wordsFor(job, now) {
  const error = /** @type {NonNullable<Job['error']>} */ (job.error);
  const next = job.next_attempt_at && !job.final ? seconds(Date.parse(job.next_attempt_at) - now) : null;
  switch (error.kind) {
    case 'safety': return "The provider's safety check declined this prompt. Change it and try again.";
    case 'invalid_input': {
      const field = fieldIn(error.message);
      return field ? `The provider did not accept “${field}”: ${sentence(error.message)}` : `The provider did not accept this order: ${sentence(error.message)}`;
    }
    case 'quota': return 'The provider account is out of credit.';
    case 'rate_limit':
      if (next !== null) return next ? `The provider is busy. Trying again in ${next} s.` : 'The provider is busy. Trying again now.';
      return job.final ? 'The provider stayed busy. Nothing more is tried; order it again later.' : 'The provider is busy.';
    case 'technical':
      if (next !== null) return `The provider had a hiccup. Try ${job.attempt + 1} of ${MAX_ATTEMPTS} ${next ? `in ${next} s` : 'now'}.`;
      return job.final ? 'The provider had a hiccup it did not recover from. Try again.' : 'The provider had a hiccup.';
    case 'timeout': return `No answer within ${job.deadline_at ? span(Date.parse(job.deadline_at) - Date.parse(job.created_at)) : 'its deadline'}. Nothing more is expected.`;
    case 'submission_unknown':
      return job.final
        ? "The provider's answer got lost, and no word came since. Look at the provider's own list before you order it again."
        : "The provider's answer got lost. Waiting for its word, so that you don't pay twice.";
    case 'result_expired': return 'Finished, but the provider has already deleted the clip.';
    case 'auth': return "The provider refused the hub's key. Whoever runs the hub has to look at it.";
    default: return sentence(error.message);
  }
}

/** The rest of the status line. @param {Job} job @param {number} now @param {Beside} [beside] */
export function noteOf(job, now, { standing, isCancelling } = {}) {
  if (isCancelling) return 'it was asked to stop, and may still come to another end first';
  if (standing) return waitWords(standing, now);
  if (job.error) return wordsFor(job, now);
  const parts = [];
  switch (job.status) {
    case 'accepted':
      if (!job.provider) return 'waiting for its worker';
      return job.attempt ? `to ${job.provider}${job.attempt > 1 ? `, try ${job.attempt} of ${MAX_ATTEMPTS}` : ''}` : `next it goes to ${job.provider}`;
    case 'queued':
    case 'running': {
      if (job.progress !== null) parts.push(percent(job.progress));
      if (job.queue_position !== null) parts.push(`number ${job.queue_position} in the queue`);
      if (job.stage) parts.push(job.stage);
      if (job.eta_seconds !== null) {
        const ms = job.eta_seconds * 1000 - (now - Date.parse(job.updated_at));
        parts.push(seconds(ms) ? `about ${left(ms)} left` : 'any moment now');
      }
      if (!parts.length) parts.push(job.status === 'queued' ? `waiting at ${job.provider ?? 'its worker'}` : `${job.provider ?? 'its worker'} tells no progress`);
      return parts.join(' · ');
    }
    case 'succeeded': {
      parts.push(`took ${span(Date.parse(job.finished_at ?? job.updated_at) - Date.parse(job.created_at))}`);
      if (!job.outputs.length) parts.push('no outputs');
      if (job.outputs.some(output => output.nsfw)) parts.push('marked as not safe for work');
      if (job.moderation.length) parts.push('moderation remarked on it');
      if (job.outputs.length && job.outputs.every(output => isOver(output, now))) parts.push(validityWords(job.outputs[0], now));
      return parts.join(' · ');
    }
    case 'cancelled': return 'nothing more is coming';
    case 'failed': return 'no reason was given';
  }
}
