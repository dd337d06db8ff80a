/** Mocked responses for cases that the demo does not produce. All other requests reach the real hub. */

import { readFile } from 'node:fs/promises';

import { submitJob } from './page_helpers.mjs';

const CLIP = new URL('../../crates/simulator/src/clip.mp4', import.meta.url);
let jobCount = 0;

/** Returns the timestamp `seconds` from now. */
export function timestampIn(seconds) {
  return new Date(Date.now() + seconds * 1000).toISOString();
}

/** Returns a job document with a unique id. `fields` override the defaults. */
export function jobDocument(fields = {}) {
  const now = timestampIn(0);
  return {
    id: `job_0000000000000000000000000000${String(++jobCount).padStart(4, '0')}`, version: 1, status: 'accepted', final: false,
    progress: null, queue_position: null, stage: null, owner: 'demo', provider: 'simulated', provider_task_id: null,
    model: 'kling-v3.0-pro', source: 'api', created_at: now, updated_at: now, started_at: null, finished_at: null,
    deadline_at: timestampIn(1800), eta_seconds: null, outputs: [], error: null, attempt: 0, next_attempt_at: null,
    cost: null, moderation: [], metadata: { prompt: 'a mocked job', platform: 'tiktok' }, ...fields,
  };
}

/** Returns the document of a succeeded job. */
export function succeededJob(outputs, fields = {}) {
  return jobDocument({ status: 'succeeded', final: true, version: 5, progress: 100, source: 'webhook', attempt: 1, finished_at: timestampIn(2), outputs, ...fields });
}

/** Returns an output that the hub proxies because only the provider's key can read it. */
export function proxiedOutput(fields = {}) {
  return { type: 'video', url: '/v1/jobs/job_a/outputs/0?grant=1800000000.c2lnbmVk', duration: 5, expires_at: null, ...fields };
}

/** Returns an error response of the hub. */
export function problemResponse(status, code, detail, headers = {}) {
  return { status, headers, contentType: 'application/problem+json', body: JSON.stringify({ title: code, status, code, detail, retryable: 'Retry-After' in headers }) };
}

/** Returns a provider in a given state. `seconds`: time until the next request, or null. */
export function providerState(state, reason, seconds, fields = {}) {
  return { name: 'simulated', title: 'Kling', state, reason, since: timestampIn(-60), until: seconds === null ? null : timestampIn(seconds), ...fields };
}

/** Mocks the provider list. Assign `providers` of the result to change it; `requestCount` counts the requests. */
export async function mockProviders(tab, providers) {
  const mock = { providers, requestCount: 0 };
  await tab.route('**/v1/providers', route => {
    mock.requestCount += 1;
    return route.fulfill({ json: { providers: mock.providers } });
  });
  return mock;
}

/** Returns a delivery of a job. `fields` override the defaults. */
export function deliveryOf(job, fields = {}) {
  const { destination = 'app', event = 'job.succeeded' } = fields;
  return {
    id: `${job}.5.${event.replace('.', '-')}.${destination}`, job, version: 5, event, destination, owner: 'demo', address: 'https://app.example.com/…',
    state: 'delivered', created_at: timestampIn(-10), next_attempt_at: null, ended_at: timestampIn(-9), attempt_count: 1, attempts: [attempt()], ...fields,
  };
}

/** Returns an attempt of a delivery. */
export function attempt(status = 200, error = null, fields = {}) {
  return { at: timestampIn(-9), duration_ms: 31, status, error, ...fields };
}

/** Returns a destination. `fields` override the defaults. */
export function destinationState(state, fields = {}) {
  return {
    name: 'app', kind: 'webhook', address: 'https://app.example.com/…', state, waiting: 0, consecutive_failures: 0, failing_since: null,
    paused_until: null, disabled: null, last_success_at: timestampIn(-120), last_error: null, ...fields,
  };
}

/** Mocks the deliveries of every job. Assign `deliveries` or `response` of the result to change it; `requests` has the URLs. */
export async function mockDeliveries(tab, deliveries = []) {
  const mock = { deliveries, response: null, next_cursor: null, requests: [] };
  await tab.route('**/v1/deliveries?*', route => {
    mock.requests.push(route.request().url());
    return route.fulfill(mock.response ?? { json: { deliveries: mock.deliveries, next_cursor: mock.next_cursor } });
  });
  return mock;
}

/** Mocks the list of destinations. Assign `destinations` of the result to change it; `requestCount` counts the requests. */
export async function mockDestinations(tab, destinations) {
  const mock = { destinations, requestCount: 0 };
  await tab.route('**/v1/destinations', route => {
    mock.requestCount += 1;
    return route.fulfill({ json: { destinations: mock.destinations } });
  });
  return mock;
}

/** Mocks the response to the next submission: a job document, or an error response. */
export async function mockNextSubmit(tab, response) {
  await tab.route('**/v1/videos', route => route.fulfill(response.id ? { status: 202, json: response } : response), { times: 1 });
}

/** Submits the form and responds with the given job. @returns {Promise<string>} the job's id */
export async function submitMockedJob(tab, job) {
  await mockNextSubmit(tab, job);
  return submitJob(tab);
}

/** Serves a clip for every proxied output. @returns {Promise<string[]>} the requested URLs, updated with each request */
export async function mockOutputs(tab) {
  const body = await readFile(CLIP);
  const requests = [];
  await tab.route('**/v1/jobs/*/outputs/**', route => {
    requests.push(route.request().url());
    return route.fulfill({ status: 200, contentType: 'video/mp4', headers: { 'Accept-Ranges': 'bytes' }, body });
  });
  return requests;
}
