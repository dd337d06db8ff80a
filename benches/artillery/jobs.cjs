// Steps of the virtual users in jobs.yml: each registers a job, watches it, updates it and waits for its final version.
//
// The report contains the counters and histograms of this file with the prefix `hub.`.

'use strict';

const { randomInt } = require('node:crypto');
const { once, EventEmitter } = require('node:events');

const hub = process.env.HUB;

// Time limit for the response to a subscription, and for the final version after the last update.
const MESSAGE_TIMEOUT_MS = 10_000;
// Time limit from the subscription to the final version.
const WATCH_TIMEOUT_MS = 60_000 + MESSAGE_TIMEOUT_MS;

async function post(path, body) {
  const response = await fetch(`${hub}${path}`, {
    method: 'POST',
    headers: { Authorization: `Bearer ${process.env.WORKER}`, 'Content-Type': 'application/json' },
    body: JSON.stringify(body),
  });
  if (!response.ok) throw new Error(`POST ${path}: HTTP ${response.status} ${await response.text()}`);
  return response.json();
}

async function register(context, events) {
  // The `ensure` plugin fails on a counter that was never emitted, so each starts at 0.
  for (const name of ['version_regressions', 'missing_final_versions', 'failed_updates', 'deliveries']) {
    events.emit('counter', `hub.${name}`, 0);
  }
  const { id } = await post('/v1/jobs', { owner: 'load' });
  Object.assign(context.vars, { job: id, updateCount: 0 });
}

async function watch(context, events) {
  const { job } = context.vars;
  const messages = new EventEmitter();
  let version = 0;
  context.vars.finalVersion = once(messages, 'final', { signal: AbortSignal.timeout(WATCH_TIMEOUT_MS) });
  // `finish` handles a rejection. Until then it must not end the process as unhandled.
  context.vars.finalVersion.catch(() => {});
  const subscribed = once(messages, 'subscribed', { signal: AbortSignal.timeout(MESSAGE_TIMEOUT_MS) });
  context.ws.on('message', (data) => {
    const message = JSON.parse(data);
    if (message.type === 'subscribed') messages.emit('subscribed');
    if (message.type !== 'job') return;
    const { job: document } = message;
    if (document.version <= version) events.emit('counter', 'hub.version_regressions', 1);
    version = document.version;
    // `stage` carries the time of the update.
    const sentAt = Number(document.stage);
    if (sentAt > 0 && !document.final) {
      events.emit('counter', 'hub.deliveries', 1);
      events.emit('histogram', 'hub.delivery_latency', performance.now() - sentAt);
    }
    if (document.final) messages.emit('final');
  });
  context.ws.send(JSON.stringify({ type: 'subscribe', id: randomInt(1e9), jobs: [{ job }] }));
  await subscribed;
}

async function pushUpdate(context, events, update) {
  const startedAt = performance.now();
  try {
    await post(`/v1/jobs/${context.vars.job}/updates`, update);
    events.emit('histogram', 'hub.update_duration', performance.now() - startedAt);
  } catch (error) {
    events.emit('counter', 'hub.failed_updates', 1);
    throw error;
  }
}

async function update(context, events) {
  context.vars.updateCount += 1;
  const progress = 100 * (1 - 1 / (1 + context.vars.updateCount / 10));
  await pushUpdate(context, events, { progress, stage: String(performance.now()) });
}

async function finish(context, events) {
  await pushUpdate(context, events, { status: 'succeeded' });
  const timeout = new Promise((_, reject) => {
    setTimeout(() => reject(new Error(`no final version within ${MESSAGE_TIMEOUT_MS} ms`)), MESSAGE_TIMEOUT_MS).unref();
  });
  try {
    await Promise.race([context.vars.finalVersion, timeout]);
  } catch (error) {
    events.emit('counter', 'hub.missing_final_versions', 1);
    throw error;
  }
}

module.exports = { register, watch, update, finish };
