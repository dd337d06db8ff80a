/** The job document, and commands that read the job by API. Invariant: a snippet never contains a token. */

import { HUB_URL } from './address.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {'JSON' | 'curl' | 'JavaScript' | 'SSE'} Tab */
/** @type {Tab[]} */
export const TABS = ['JSON', 'curl', 'JavaScript', 'SSE'];

/** @param {Tab} tab @param {Job} job @param {boolean} isDemo whether the hub issues demo tokens */
export function snippet(tab, job, isDemo) {
  const url = HUB_URL.href;
  const token = isDemo
    ? `TOKEN=$(curl -s ${url}demo/session | sed -E 's/.*"token": ?"([^"]+)".*/\\1/')`
    : `TOKEN=$(progress-hub token --config hub.toml \\
  --sub ${job.owner} --scope "jobs:read jobs:write")`;
  const header = '-H "Authorization: Bearer $TOKEN"';
  switch (tab) {
    case 'JSON': return JSON.stringify(job, null, 2);
    case 'curl': return `${token}

# read the current document
curl -s ${header} \\
  ${url}v1/jobs/${job.id}

# wait up to 30 seconds for a version newer than ${job.version}
curl -s ${header} \\
  "${url}v1/jobs/${job.id}?wait=30&since=${job.version}"`;
    case 'JavaScript': return `import { ProgressHub } from '${url}progress-hub.js';

const hub = new ProgressHub({
  url: '${url}',
  token: ${isDemo ? `() => fetch('${url}demo/session').then(r => r.json()).then(s => s.token)` : "() => fetch('/my/hub-token').then(r => r.text())"},
});
hub.watch('${job.id}', job => {
  console.log(job.version, job.status, job.progress, job.source);
});
const finalJob = await hub.finished('${job.id}');`;
    case 'SSE': return `${token}

curl -N ${header} \\
  "${url}v1/events?job=${job.id}"`;
  }
}
