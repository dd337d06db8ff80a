/** Titles, status labels and messages for a job. */

import { fieldNamedIn, toSentence } from './error-text.js';
import { countdown, percent, seconds, span } from './format.js';
import { isExpired, validityText } from './outputs.js';
import { providerStatusText } from './provider-status.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/**
 * State of a job that its document does not contain.
 * @typedef {object} JobState
 * @property {import('../progress-hub.js').Provider | null} [limitedProvider] the provider that the job waits for, if it is not available
 * @property {boolean} [isCancelling] whether cancellation was requested in this tab and the job is not final
 */

/** The hub's limit of submission attempts per job. */
export const MAX_ATTEMPTS = 5;

/** Returns the prompt, title or name from the metadata, else the stage, model or id. @param {Job} job */
export function jobTitle(job) {
  for (const key of ['prompt', 'title', 'name']) {
    const value = job.metadata?.[key];
    if (typeof value === 'string' && value.trim()) return value.trim();
  }
  return job.stage ?? job.model ?? job.id;
}

/** @param {Job} job */
export function outputLabel(job) {
  const type = job.outputs[0]?.type ?? (job.provider ? 'video' : '');
  return { video: 'Clip', image: 'Image', audio: 'Audio' }[type] ?? 'Result';
}

/** Returns whether the job waits for its first or next submission attempt. @param {Job} job */
export function isPendingSubmission(job) {
  return job.status === 'accepted' && job.provider !== null && job.error?.kind !== 'submission_unknown' && (!job.attempt || job.next_attempt_at !== null);
}

/** @param {Job} job @param {JobState} [state] @returns {{ label: string, tone: 'neutral' | 'active' | 'waiting' | 'error' | 'success' }} */
export function jobStatus(job, { limitedProvider, isCancelling } = {}) {
  if (isCancelling) return { label: 'Cancelling…', tone: 'waiting' };
  if (limitedProvider) return { label: 'Waiting', tone: 'waiting' };
  switch (job.status) {
    case 'accepted':
      if (job.error?.kind === 'submission_unknown') return { label: 'Submission unconfirmed', tone: 'waiting' };
      if (job.next_attempt_at) return { label: 'Retrying', tone: 'waiting' };
      return job.attempt ? { label: 'Submitting', tone: 'active' } : { label: 'Accepted', tone: 'neutral' };
    case 'queued': return { label: 'Queued', tone: job.error ? 'waiting' : 'active' };
    case 'running': return { label: 'Running', tone: job.error ? 'waiting' : 'active' };
    case 'succeeded':
      if (!job.error) return { label: 'Succeeded', tone: 'success' };
      return { label: job.error.kind === 'result_expired' ? 'Expired' : 'Succeeded', tone: 'waiting' };
    case 'failed': return { label: 'Failed', tone: 'error' };
    case 'cancelled': return { label: 'Cancelled', tone: 'neutral' };
  }
}

/**
 * Returns the message for the job's error: what happened, and what the user can do. The job must have an error.
 * @param {Job} job
 * @param {number} now
 */
export function jobErrorText(job, now) {
  const error = /** @type {NonNullable<Job['error']>} */ (job.error);
  const retrySeconds = job.next_attempt_at && !job.final ? seconds(Date.parse(job.next_attempt_at) - now) : null;
  const retryTime = retrySeconds ? `in ${retrySeconds}s` : 'now';
  switch (error.kind) {
    case 'safety': return "The provider's safety filter declined this prompt. Edit it and try again.";
    case 'invalid_input': {
      const field = fieldNamedIn(error.message);
      return `The provider rejected ${field ? `the field “${field}”` : 'this request'}: ${toSentence(error.message)}`;
    }
    case 'quota': return 'The provider account is out of credit.';
    case 'rate_limit':
      if (retrySeconds !== null) return `The provider is busy. Retrying ${retryTime}.`;
      return job.final ? 'The provider is too busy, and the hub has used all attempts. Submit the job again later.' : 'The provider is busy.';
    case 'technical':
      if (retrySeconds !== null) return `Provider error. Retrying ${retryTime} (attempt ${job.attempt + 1} of ${MAX_ATTEMPTS}).`;
      return job.final ? 'Provider error. Try again.' : 'Provider error.';
    case 'timeout': return `No response within ${job.deadline_at ? span(Date.parse(job.deadline_at) - Date.parse(job.created_at)) : 'the deadline'}.`;
    case 'submission_unknown':
      return job.final
        ? 'The submission was never confirmed. Check the job list at the provider before you submit again, to avoid a double charge.'
        : "Checking with the provider; the hub won't resubmit, to avoid a double charge.";
    case 'result_expired': return 'Finished, but the provider has already deleted the file.';
    case 'auth': return "The provider rejected the hub's API key. Ask the operator of this hub to check it.";
    default: return toSentence(error.message);
  }
}

/** Returns the text after the status label. @param {Job} job @param {number} now @param {JobState} [state] */
export function jobNote(job, now, { limitedProvider, isCancelling } = {}) {
  if (isCancelling) return 'Cancellation requested. The job may still finish first.';
  if (limitedProvider) return providerStatusText(limitedProvider, now);
  if (job.error) return jobErrorText(job, now);
  const parts = [];
  switch (job.status) {
    case 'accepted':
      if (!job.provider) return 'waiting for a worker';
      return job.attempt ? `to ${job.provider}${job.attempt > 1 ? `, attempt ${job.attempt} of ${MAX_ATTEMPTS}` : ''}` : `not yet submitted to ${job.provider}`;
    case 'queued':
    case 'running': {
      if (job.progress !== null) parts.push(percent(job.progress));
      if (job.queue_position !== null) parts.push(`#${job.queue_position} in queue`);
      if (job.stage) parts.push(job.stage);
      if (job.eta_seconds !== null) {
        const ms = job.eta_seconds * 1000 - (now - Date.parse(job.updated_at));
        parts.push(seconds(ms) ? `~${countdown(ms)} left` : 'almost done');
      }
      if (!parts.length) parts.push(job.status === 'queued' ? `waiting for ${job.provider ?? 'the worker'} to start` : `${job.provider ?? 'the worker'} does not report progress`);
      return parts.join(' · ');
    }
    case 'succeeded': {
      parts.push(`took ${span(Date.parse(job.finished_at ?? job.updated_at) - Date.parse(job.created_at))}`);
      if (!job.outputs.length) parts.push('no outputs');
      if (job.outputs.some(output => output.nsfw)) parts.push('flagged as not safe for work');
      if (job.moderation.length) parts.push('has moderation messages');
      if (job.outputs.length && job.outputs.every(output => isExpired(output, now))) parts.push(validityText(job.outputs[0], now));
      return parts.join(' · ');
    }
    case 'cancelled': return '';
    case 'failed': return 'the provider reported no reason';
  }
}
