// Load test: watches jobs over WebSockets while a worker updates them, and verifies the received versions.
//
//   k6 run -e HUB=http://127.0.0.1:8080 -e READER=… -e WORKER=… benches/k6/watch.js
//
// READER is a token with the subject `load` and the scopes jobs:read and admin. WORKER is a token with the scope jobs:publish.
// benches/README.md shows how to create them. Optional variables: SOCKETS (default 100), JOBS (20), RATE (50 updates
// per second) and SECONDS (30).
//
// k6 exits with 99 if a threshold is crossed: a version that did not increase, a final version that did not arrive, a
// rejected update, or a latency above the limits below. The limits are meant for a hub on the same machine.

import http from 'k6/http';
import exec from 'k6/execution';
import { check } from 'k6';
import { Counter, Trend } from 'k6/metrics';
import { setTimeout, clearTimeout } from 'k6/timers';
import { WebSocket } from 'k6/websockets';

const HUB = (__ENV.HUB || 'http://127.0.0.1:8080').replace(/\/+$/, '');
const SOCKETS = Number(__ENV.SOCKETS || 100);
const JOBS = Number(__ENV.JOBS || 20);
const RATE = Number(__ENV.RATE || 50);
const SECONDS = Number(__ENV.SECONDS || 30);

// Time to open all sockets before the first update.
const RAMP_UP_SECONDS = 5;
// Time for the final versions to arrive after the last update.
const FINAL_VERSION_TIMEOUT_SECONDS = 10;

const deliveryLatency = new Trend('delivery_latency', true);
const deliveries = new Counter('deliveries');
const versionRegressions = new Counter('version_regressions');
const missingFinalVersions = new Counter('missing_final_versions');
const rejectedSubscriptions = new Counter('rejected_subscriptions');

export const options = {
  scenarios: {
    watch: {
      executor: 'per-vu-iterations',
      exec: 'watch',
      vus: SOCKETS,
      iterations: 1,
      maxDuration: `${RAMP_UP_SECONDS + SECONDS + FINAL_VERSION_TIMEOUT_SECONDS + 5}s`,
    },
    // An open workload: a slow response does not delay the next update.
    update: {
      executor: 'constant-arrival-rate',
      exec: 'update',
      startTime: `${RAMP_UP_SECONDS}s`,
      duration: `${SECONDS}s`,
      rate: RATE,
      timeUnit: '1s',
      preAllocatedVUs: 50,
      maxVUs: 500,
    },
    finish: {
      executor: 'shared-iterations',
      exec: 'finish',
      startTime: `${RAMP_UP_SECONDS + SECONDS + 1}s`,
      vus: Math.min(JOBS, 20),
      iterations: JOBS,
    },
  },
  thresholds: {
    version_regressions: ['count==0'],
    missing_final_versions: ['count==0'],
    rejected_subscriptions: ['count==0'],
    dropped_iterations: ['count==0'],
    deliveries: ['count>0'],
    http_req_failed: ['rate<0.001'],
    checks: ['rate>0.999'],
    delivery_latency: ['p(50)<25', 'p(99)<250'],
    'http_req_duration{scenario:update}': ['p(99)<250'],
    ws_connecting: ['p(99)<1000'],
  },
};

const withToken = (token) => ({
  headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' },
});

function pushUpdate(job, update) {
  return http.post(`${HUB}/v1/jobs/${job}/updates`, JSON.stringify(update), {
    ...withToken(__ENV.WORKER),
    tags: { name: '/v1/jobs/{id}/updates' },
  });
}

export function setup() {
  const jobs = [];
  for (let n = 0; n < JOBS; n += 1) {
    const response = http.post(`${HUB}/v1/jobs`, JSON.stringify({ owner: 'load' }), withToken(__ENV.WORKER));
    if (response.status !== 201) {
      exec.test.abort(`failed to register a job: HTTP ${response.status} ${response.body}`);
    }
    jobs.push(response.json('id'));
  }
  return { jobs };
}

export function watch({ jobs }) {
  // Sockets are distributed evenly over the jobs.
  const job = jobs[exec.vu.idInTest % jobs.length];
  const socket = new WebSocket(`${HUB.replace(/^http/, 'ws')}/v1/ws`, 'progress-hub.v1', withToken(__ENV.READER));
  let version = 0;
  let isFinal = false;
  const onTimeout = () => {
    if (!isFinal) {
      missingFinalVersions.add(1);
      socket.close();
    }
  };
  const timeout = setTimeout(onTimeout, (RAMP_UP_SECONDS + SECONDS + FINAL_VERSION_TIMEOUT_SECONDS) * 1000);

  socket.addEventListener('open', () => {
    socket.send(JSON.stringify({ type: 'subscribe', id: 1, jobs: [{ job }] }));
  });
  socket.addEventListener('message', ({ data }) => {
    const message = JSON.parse(data);
    if (message.type === 'subscribed' && message.jobs[job] === 'not_found') rejectedSubscriptions.add(1);
    if (message.type === 'error') rejectedSubscriptions.add(1);
    if (message.type !== 'job') return;
    const { job: document } = message;
    if (document.version <= version) versionRegressions.add(1);
    version = document.version;
    // `stage` carries the time of the update. Sender and receiver share the clock of this process.
    const sentAt = Number(document.stage);
    if (sentAt > 0 && !document.final) {
      deliveries.add(1);
      deliveryLatency.add(Date.now() - sentAt);
    }
    if (document.final) {
      isFinal = true;
      clearTimeout(timeout);
      socket.close();
    }
  });
  socket.addEventListener('close', () => {
    // A real client would reconnect and resume. This test counts an early close as a failure.
    if (!isFinal) missingFinalVersions.add(1);
    isFinal = true;
    clearTimeout(timeout);
  });
}

export function update({ jobs }) {
  const iteration = exec.scenario.iterationInTest;
  const response = pushUpdate(jobs[iteration % jobs.length], {
    progress: (90 * (iteration + 1)) / (RATE * SECONDS + 1),
    stage: String(Date.now()),
  });
  check(response, { 'update accepted': ({ status }) => status === 200 });
}

export function finish({ jobs }) {
  const response = pushUpdate(jobs[exec.scenario.iterationInTest], { status: 'succeeded' });
  check(response, { 'final update accepted': ({ status }) => status === 200 });
}
