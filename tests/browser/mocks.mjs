/** Single answers of the hub that a demo does not give, given by the test. Invariant: all else comes from the real hub. */

import { readFile } from 'node:fs/promises';

import { render } from './page_helpers.mjs';

const CLIP = new URL('../../src/simulator/clip.mp4', import.meta.url);
let made = 0;

/** A moment so many seconds from now. */
export function inSeconds(seconds) {
  return new Date(Date.now() + seconds * 1000).toISOString();
}

/** The document of a job. */
export function document(job = {}) {
  const now = inSeconds(0);
  return {
    id: `job_0000000000000000000000000000${String(++made).padStart(4, '0')}`, version: 1, status: 'accepted', final: false,
    progress: null, queue_position: null, stage: null, owner: 'demo', provider: 'simulated', provider_task_id: null,
    model: 'kling-v3.0-pro', source: 'api', created_at: now, updated_at: now, started_at: null, finished_at: null,
    deadline_at: inSeconds(1800), eta_seconds: null, outputs: [], error: null, attempt: 0, next_attempt_at: null,
    cost: null, moderation: [], metadata: { prompt: 'a stand-in', platform: 'tiktok' }, ...job,
  };
}

/** The document of a job that succeeded. */
export function finished(outputs, job = {}) {
  return document({ status: 'succeeded', final: true, version: 5, progress: 100, source: 'webhook', attempt: 1, finished_at: inSeconds(2), outputs, ...job });
}

/** An output behind the provider's key, as the hub links to it. */
export function behindKey(output = {}) {
  return { type: 'video', url: '/v1/jobs/job_a/outputs/0?grant=1800000000.c2lnbmVk', duration: 5, expires_at: null, ...output };
}

/** A refusal of the hub's. */
export function problem(status, code, detail, headers = {}) {
  return { status, headers, contentType: 'application/problem+json', body: JSON.stringify({ title: code, status, code, detail, retryable: 'Retry-After' in headers }) };
}

/** How the providers are, from now on; counts the questions. */
export async function providersAre(tab, providers) {
  const told = { providers, asked: 0 };
  await tab.route('**/v1/providers', route => {
    told.asked += 1;
    return route.fulfill({ json: { providers: told.providers } });
  });
  return told;
}

/** One provider that is not well. */
export function unwell(state, reason, seconds, more = {}) {
  return { name: 'simulated', title: 'Kling', state, reason, since: inSeconds(-60), until: seconds === null ? null : inSeconds(seconds), ...more };
}

/** The next order is answered like this: by a document, or by a refusal. */
export async function nextOrderIs(tab, answer) {
  await tab.route('**/v1/videos', route => route.fulfill(answer.id ? { status: 202, json: answer } : answer), { times: 1 });
}

/** Presses the button, and gets this job. */
export async function ordered(tab, job) {
  await nextOrderIs(tab, job);
  return render(tab);
}

/** Serves the clip wherever a job's output is asked for; keeps what was asked. */
export async function outputsAreServed(tab) {
  const body = await readFile(CLIP);
  const asked = [];
  await tab.route('**/v1/jobs/*/outputs/**', route => {
    asked.push(route.request().url());
    return route.fulfill({ status: 200, contentType: 'video/mp4', headers: { 'Accept-Ranges': 'bytes' }, body });
  });
  return asked;
}
