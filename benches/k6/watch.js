// Watches jobs over WebSockets while a worker updates them, and checks what arrives.
//
//   k6 run -e HUB=http://127.0.0.1:8080 -e READER=… -e WORKER=… benches/k6/watch.js
//
// READER is a token of sub `load` with jobs:read, WORKER one with jobs:publish; benches/README.md says how to
// mint them. Also: SOCKETS (100), JOBS (20), RATE (50 updates a second), SECONDS (30).
//
// A failed threshold ends k6 with 99: a version that did not rise, an end that never came, an update that was
// refused, or times beyond what is set here for a hub on the same machine.

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

// Until all sockets are open, and until the last document has to be there.
const RAMP = 5;
const PATIENCE = 10;

const arrival = new Trend('update_to_socket', true);
const deliveries = new Counter('deliveries');
const backwards = new Counter('versions_backwards');
const missing = new Counter('ends_missing');
const refused = new Counter('subscriptions_refused');

export const options = {
  scenarios: {
    watch: {
      executor: 'per-vu-iterations',
      exec: 'watch',
      vus: SOCKETS,
      iterations: 1,
      maxDuration: `${RAMP + SECONDS + PATIENCE + 5}s`,
    },
    // Open: a slow answer delays no other update.
    update: {
      executor: 'constant-arrival-rate',
      exec: 'update',
      startTime: `${RAMP}s`,
      duration: `${SECONDS}s`,
      rate: RATE,
      timeUnit: '1s',
      preAllocatedVUs: 50,
      maxVUs: 500,
    },
    end: {
      executor: 'shared-iterations',
      exec: 'end',
      startTime: `${RAMP + SECONDS + 1}s`,
      vus: Math.min(JOBS, 20),
      iterations: JOBS,
    },
  },
  thresholds: {
    versions_backwards: ['count==0'],
    ends_missing: ['count==0'],
    subscriptions_refused: ['count==0'],
    dropped_iterations: ['count==0'],
    deliveries: ['count>0'],
    http_req_failed: ['rate<0.001'],
    checks: ['rate>0.999'],
    update_to_socket: ['p(50)<25', 'p(99)<250'],
    'http_req_duration{scenario:update}': ['p(99)<250'],
    ws_connecting: ['p(99)<1000'],
  },
};

const as = (token) => ({
  headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' },
});

function push(job, news) {
  return http.post(`${HUB}/v1/jobs/${job}/updates`, JSON.stringify(news), {
    ...as(__ENV.WORKER),
    tags: { name: '/v1/jobs/{id}/updates' },
  });
}

export function setup() {
  const jobs = [];
  for (let n = 0; n < JOBS; n += 1) {
    const answer = http.post(`${HUB}/v1/jobs`, JSON.stringify({ owner: 'load' }), as(__ENV.WORKER));
    if (answer.status !== 201) {
      exec.test.abort(`a job can't be registered: ${answer.status} ${answer.body}`);
    }
    jobs.push(answer.json('id'));
  }
  return { jobs };
}

export function watch({ jobs }) {
  // Each socket watches one job, all jobs evenly.
  const job = jobs[exec.vu.idInTest % jobs.length];
  const socket = new WebSocket(`${HUB.replace(/^http/, 'ws')}/v1/ws`, 'progress-hub.v1', as(__ENV.READER));
  let version = 0;
  let isOver = false;
  const finish = () => {
    if (!isOver) {
      missing.add(1);
      socket.close();
    }
  };
  const patience = setTimeout(finish, (RAMP + SECONDS + PATIENCE) * 1000);

  socket.addEventListener('open', () => {
    socket.send(JSON.stringify({ type: 'subscribe', id: 1, jobs: [{ job }] }));
  });
  socket.addEventListener('message', ({ data }) => {
    const message = JSON.parse(data);
    if (message.type === 'subscribed' && message.jobs[job] === 'not_found') refused.add(1);
    if (message.type === 'error') refused.add(1);
    if (message.type !== 'job') return;
    const { job: document } = message;
    if (document.version <= version) backwards.add(1);
    version = document.version;
    // The stage carries when the update was sent; k6 runs all of this on one clock.
    const sent = Number(document.stage);
    if (sent > 0 && !document.final) {
      deliveries.add(1);
      arrival.add(Date.now() - sent);
    }
    if (document.final) {
      isOver = true;
      clearTimeout(patience);
      socket.close();
    }
  });
  socket.addEventListener('close', () => {
    // A client would come back with its version; here an early end is a failure.
    if (!isOver) missing.add(1);
    isOver = true;
    clearTimeout(patience);
  });
}

export function update({ jobs }) {
  const turn = exec.scenario.iterationInTest;
  const answer = push(jobs[turn % jobs.length], {
    progress: (90 * (turn + 1)) / (RATE * SECONDS + 1),
    stage: String(Date.now()),
  });
  check(answer, { 'an update is taken': ({ status }) => status === 200 });
}

export function end({ jobs }) {
  const answer = push(jobs[exec.scenario.iterationInTest], { status: 'succeeded' });
  check(answer, { 'an end is taken': ({ status }) => status === 200 });
}
