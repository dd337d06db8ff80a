/** The page end to end: real hub, real browser, no mocks. */

import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';

import { closeBrowser, Harness } from './harness.mjs';
import { assertNoHorizontalScroll, card, openDetails, openPage, signIn, submitJob, waitForPlayback, waitForState, waitForStatus } from './page_helpers.mjs';

let harness;

before(() => assert.ok(process.env.PROGRESS_HUB_BIN, 'PROGRESS_HUB_BIN must be the path of the binary under test'));
beforeEach(() => (harness = new Harness()));
afterEach(() => harness.close());
after(closeBrowser);

/** Returns the version numbers in the details of a job, newest first. */
async function receivedVersions(tab, id) {
  return (await card(tab, id).locator('tbody tr[data-version]').evaluateAll(rows => rows.map(row => Number(row.dataset.version))));
}

/** Records every note that the cards show from now on, including short-lived ones. @returns {Promise<() => Promise<string[]>>} reads the recorded notes */
async function recordNotes(tab) {
  await tab.evaluate(() => {
    window.notes = [];
    new MutationObserver(() => {
      for (const note of document.querySelectorAll('.note')) if (!window.notes.includes(note.textContent)) window.notes.push(note.textContent);
    }).observe(document.getElementById('list'), { subtree: true, childList: true, characterData: true });
  });
  return () => tab.evaluate(() => window.notes);
}

/** Returns the document that the details show as JSON. */
async function shownDocument(tab, id) {
  return JSON.parse(await card(tab, id).locator('.snippets code').textContent());
}

describe('demo', () => {
  test('page preloads every module', async () => {
    const { url } = await harness.startDemo();
    const modules = (await readdir(new URL('../../static/page/', import.meta.url))).map(name => `page/${name}`);
    const preloaded = [...(await (await fetch(url)).text()).matchAll(/rel="modulepreload" href="([^"]+)"/g)].map(([, path]) => path);
    assert.deepEqual(preloaded.toSorted(), [...modules, 'progress-hub.js'].toSorted());
  });

  test('submitted job succeeds and its clip plays', async () => {
    const { url } = await harness.startDemo();
    const tab = await harness.newTab();
    await openPage(tab, url);
    await tab.getByText('No jobs yet.').waitFor();
    const id = await submitJob(tab);
    await waitForStatus(tab, id, 'succeeded');
    await waitForPlayback(tab, id);
    assert.equal(await tab.locator('#empty').isVisible(), false);
    // The hub may skip a superseded version. The step then shows `skipped` or `unknown`.
    assert.deepEqual((await card(tab, id).locator('.step .step-source').allTextContents()).filter(source => !source), [], 'each step shows its source');
    const source = await card(tab, id).locator('[data-step="end"]').getAttribute('data-source');
    assert.match(await card(tab, id).locator('.last-update').textContent(), new RegExp(`via ${source}$`));
    assert.deepEqual(tab.consoleErrors, []);
  });

  test('resuming a suspended provider submits the waiting job', async () => {
    const { url } = await harness.startDemo();
    const tab = await harness.newTab();
    await openPage(tab, url);
    const rejected = await submitJob(tab, { scenario: 'quota' });
    await waitForStatus(tab, rejected, 'failed');
    const row = tab.locator('#providers li');
    await row.filter({ hasText: 'Kling is suspended: the account is out of credit.' }).waitFor();
    const waiting = await submitJob(tab, { scenario: 'normal' });
    await card(tab, waiting).locator('.note', { hasText: /^Kling is suspended: the account is out of credit\./ }).waitFor();
    assert.equal(await card(tab, waiting).getAttribute('data-status'), 'accepted');
    await tab.getByRole('button', { name: 'Resume now: Kling' }).click();
    await row.filter({ hasText: 'Kling is back. Resuming queued jobs.' }).waitFor();
    assert.equal(await row.getByRole('button').isVisible(), false);
    await waitForStatus(tab, waiting, 'succeeded');
    await tab.locator('#providers').waitFor({ state: 'hidden' });
    assert.deepEqual(tab.consoleErrors, []);
  });

  test('job details show every version, the document and the snippets', async () => {
    const { url } = await harness.startDemo();
    const tab = await harness.newTab();
    await openPage(tab, url);
    const id = await submitJob(tab);
    await openDetails(tab, id);
    await waitForStatus(tab, id, 'succeeded');
    const job = await shownDocument(tab, id);
    assert.deepEqual([job.id, job.status], [id, 'succeeded']);
    const versions = await receivedVersions(tab, id);
    assert.equal(versions[0], job.version);
    assert.equal(await card(tab, id).locator('.plot g[data-source]').count(), versions.length, 'one point for each version');
    await tab.getByRole('tab', { name: 'JSON' }).focus();
    const snippets = [];
    for (let step = 0; step < 3; step++) {
      await tab.keyboard.press('ArrowRight');
      snippets.push(await card(tab, id).locator('.snippets code').textContent());
    }
    for (const snippet of snippets) assert.ok(snippet.includes(id), snippet);
    assert.ok(!snippets.join().includes('eyJ'), 'no snippet contains a token');
    assert.equal(new URL(tab.url()).hash, `#${id}`);
    await tab.keyboard.press('Escape');
    assert.equal(await card(tab, id).locator('.detail').count(), 0);
    assert.equal(await tab.evaluate(() => document.activeElement?.className), 'title');
  });

  test('reload keeps the received versions and continues', async () => {
    const { url } = await harness.startDemo();
    const tab = await harness.newTab();
    await openPage(tab, url);
    const id = await submitJob(tab, { scenario: 'slow' });
    await openDetails(tab, id);
    await waitForStatus(tab, id, 'running');
    const before = await receivedVersions(tab, id);
    await tab.reload();
    await waitForState(tab, 'live');
    await card(tab, id).locator('.detail').waitFor();
    const after = await receivedVersions(tab, id);
    assert.deepEqual(before.filter(version => !after.includes(version)), [], 'no received version is lost');
    await waitForStatus(tab, id, 'succeeded');
    await waitForPlayback(tab, id);
  });

  test('two tabs show the same document', async () => {
    const { url } = await harness.startDemo();
    const [first, second] = [await harness.newTab(), await harness.newTab()];
    await openPage(first, url);
    await openPage(second, url);
    const id = await submitJob(first, { prompt: 'shown in two tabs' });
    await card(second, id).getByText('shown in two tabs').waitFor();
    await Promise.all([waitForStatus(first, id, 'succeeded'), waitForStatus(second, id, 'succeeded')]);
    await openDetails(first, id);
    await openDetails(second, id);
    assert.deepEqual(await shownDocument(first, id), await shownDocument(second, id));
  });

  test('declined prompt shows what to do and can be edited', async () => {
    const { url } = await harness.startDemo();
    const tab = await harness.newTab();
    await openPage(tab, url);
    const id = await submitJob(tab, { scenario: 'safety', prompt: 'a prompt that the provider declines' });
    await waitForStatus(tab, id, 'failed');
    assert.equal(await card(tab, id).locator('.note').textContent(), "The provider's safety filter declined this prompt. Edit it and try again.");
    await card(tab, id).getByRole('button', { name: 'Edit and try again' }).click();
    assert.equal(await tab.inputValue('#prompt'), 'a prompt that the provider declines');
    assert.equal(await tab.evaluate(() => document.activeElement?.id), 'prompt');
  });

  test('retries after provider errors are counted down', async () => {
    const { url } = await harness.startDemo();
    const tab = await harness.newTab();
    await openPage(tab, url);
    const readNotes = await recordNotes(tab);
    const id = await submitJob(tab, { scenario: 'server-errors' });
    await waitForStatus(tab, id, 'succeeded');
    const notes = await readNotes();
    for (const attempt of [2, 3]) assert.ok(notes.some(note => new RegExp(`^Provider error\\. Retrying (in \\d+s|now) \\(attempt ${attempt} of 5\\)\\.$`).test(note)), notes.join('\n'));
  });

  test('job without webhooks is completed by polling', async () => {
    const { url } = await harness.startDemo();
    const tab = await harness.newTab();
    await openPage(tab, url);
    const id = await submitJob(tab, { scenario: 'lost-webhooks' });
    await waitForStatus(tab, id, 'succeeded');
    assert.match(await card(tab, id).locator('.last-update').textContent(), /via poll/);
    assert.equal(await card(tab, id).locator('[data-step="end"]').getAttribute('data-source'), 'poll');
  });

  test('360 px wide page never scrolls horizontally', async () => {
    const { url } = await harness.startDemo();
    const tab = await harness.newTab({ viewport: { width: 360, height: 740 } });
    await openPage(tab, url);
    await assertNoHorizontalScroll(tab, 'empty');
    const id = await submitJob(tab, { scenario: 'slow', prompt: `An${'un'.repeat(200)}breakable word` });
    await assertNoHorizontalScroll(tab, 'running');
    await openDetails(tab, id);
    for (const name of ['curl', 'JavaScript', 'SSE']) {
      await tab.getByRole('tab', { name }).click();
      await assertNoHorizontalScroll(tab, name);
    }
    await waitForStatus(tab, id, 'succeeded');
    await assertNoHorizontalScroll(tab, 'succeeded');
  });

  test('progress and status are announced to screen readers', async () => {
    const { url } = await harness.startDemo();
    const tab = await harness.newTab();
    await openPage(tab, url);
    const id = await submitJob(tab, { scenario: 'normal', prompt: 'an announced job' });
    const bar = card(tab, id).getByRole('progressbar');
    assert.equal(await bar.getAttribute('aria-label'), 'Progress of an announced job');
    await tab.locator('#live-region', { hasText: 'an announced job: Succeeded.' }).waitFor();
    assert.match(await bar.getAttribute('aria-valuetext'), /^Succeeded/);
  });

  test('stopped hub is reported and the jobs stay visible', async () => {
    const { url, process: demo } = await harness.startDemo();
    const tab = await harness.newTab();
    await openPage(tab, url);
    const id = await submitJob(tab);
    await waitForStatus(tab, id, 'succeeded');
    await demo.stop('SIGKILL');
    await tab.locator('#connection', { hasText: /^Reconnecting (in \d+s|now) \(attempt \d+\)$/ }).waitFor();
    await tab.locator('#notice', { hasText: /^Can't reach the server\. Showing data as of \d\d:\d\d; reconnecting…/ }).waitFor();
    assert.equal(await card(tab, id).getAttribute('data-status'), 'succeeded');
  });
});

describe('other origins and addresses', () => {
  test('snippet of the demo works on a page of another loopback port', async () => {
    const { url } = await harness.startDemo();
    const tab = await harness.newTab();
    await openPage(tab, url);
    const id = await submitJob(tab);
    await openDetails(tab, id);
    await tab.getByRole('tab', { name: 'JavaScript' }).click();
    const snippet = await card(tab, id).locator('.snippets code').textContent();
    const other = await harness.newTab();
    await other.goto(await harness.servePage(`<script type="module">${snippet}
      document.title = finalJob.status;</script>`));
    await other.waitForFunction(() => document.title === 'succeeded');
    assert.deepEqual(other.consoleErrors.filter(error => !error.includes('favicon')), []);
  });

  test('own page works with allowed origins of others', async () => {
    const hub = await harness.startHub({ server: 'allowed_origins = ["http://localhost:5173"]' });
    await signIn(await harness.newTab(), hub.url, await hub.token());
  });

  test('page works below the path prefix of a proxy', async () => {
    const hub = await harness.startHub();
    const url = await harness.startProxy(hub.url, { prefix: '/hub' });
    const tab = await harness.newTab();
    await tab.goto(url);
    await tab.fill('#token', await hub.token());
    await tab.keyboard.press('Enter');
    await waitForState(tab, 'live');
    await tab.fill('#model', 'kling-2.6');
    const id = await submitJob(tab);
    await waitForStatus(tab, id, 'succeeded');
    await openDetails(tab, id);
    await tab.getByRole('tab', { name: 'curl' }).click();
    assert.ok((await card(tab, id).locator('.snippets code').textContent()).includes(`${url}v1/jobs/${id}`));
    await tab.locator('#version', { hasText: /^\d/ }).waitFor();
    assert.deepEqual(tab.consoleErrors.filter(error => !error.includes('demo/session')), []);
  });

  test('refused WebSocket is distinguished from an unreachable hub', async () => {
    const hub = await harness.startHub({ server: 'public_url = "https://hub.example.com"' });
    const url = await harness.startProxy(hub.url, { changesHost: true });
    const [id] = await hub.registerJobs(1);
    const tab = await harness.newTab();
    await tab.goto(url);
    await tab.fill('#token', await hub.token());
    await tab.keyboard.press('Enter');
    await tab.locator('#notice', { hasText: 'Live updates are refused.' }).waitFor();
    await card(tab, id).waitFor();
  });
});

describe('configured hub', () => {
  test('command on the sign-in page creates a token even if other settings are invalid', async () => {
    const hub = await harness.startHub();
    const tab = await harness.newTab();
    await tab.goto(hub.url);
    await waitForState(tab, 'signed_out');
    const command = await tab.locator('.token-help code').textContent();
    const token = await hub.runCommand(command, { PROGRESS_HUB__PROVIDERS__FAL__SPEC: 'fal', PROGRESS_HUB__SERVER__BIND: 'nonsense' });
    await tab.fill('#token', token);
    await tab.keyboard.press('Enter');
    await waitForState(tab, 'live');
  });

  test('all jobs can be shown when there are more than the hub sends', async () => {
    const hub = await harness.startHub();
    const ids = await hub.registerJobs(500, n => ({ metadata: { prompt: `job number ${n}` } }));
    const tab = await signIn(await harness.newTab(), hub.url, await hub.token());
    const more = tab.getByRole('button', { name: 'Show older jobs' });
    await more.waitFor();
    assert.match(await tab.locator('#summary').textContent(), /^\d+ active, older jobs not counted$/);
    assert.equal(await card(tab, ids[0]).count(), 0);
    // The first page of 200 is read without a click.
    for (const count of [400, 500]) {
      await more.click();
      await tab.locator('#summary', { hasText: new RegExp(`^${count} active`) }).waitFor();
    }
    await card(tab, ids[0]).waitFor();
    await tab.locator('#summary', { hasText: /^500 active$/ }).waitFor();
    assert.equal(await tab.locator('#list > li').count(), 500);

    // The oldest job ends while the page is disconnected. The hub does not send it after the reconnect.
    await hub.kill();
    await waitForState(tab, 'reconnecting');
    await hub.start();
    await hub.pushUpdate(ids[0], { status: 'succeeded' });
    await waitForState(tab, 'live');
    await waitForStatus(tab, ids[0], 'succeeded');
  });

  test('frozen hub is not shown as live', async () => {
    const hub = await harness.startHub({ socket: 'heartbeat = "1s"' });
    const tab = await signIn(await harness.newTab(), hub.url, await hub.token());
    hub.process.freeze();
    try {
      await waitForState(tab, 'reconnecting');
    } finally {
      hub.process.thaw();
    }
    await waitForState(tab, 'live');
  });

  test('sign-in rejects an invalid token, keeps a valid one over a reload, and sign-out removes it', async () => {
    const hub = await harness.startHub();
    const tab = await harness.newTab();
    await tab.goto(hub.url);
    await waitForState(tab, 'signed_out');
    await tab.getByText('--config hub.toml --sub alice').waitFor();
    assert.equal(await tab.locator('#connection').textContent().then(label => label.trim()), 'Signed out');

    await tab.fill('#token', 'not a token');
    await tab.keyboard.press('Enter');
    await tab.getByText('Not a valid token.').waitFor();
    await tab.fill('#token', (await hub.token()).replace(/[^.]+$/, 'A'.repeat(43)));
    await tab.keyboard.press('Enter');
    await tab.getByText('The hub rejected this token.').waitFor();

    await tab.fill('#token', await hub.token());
    await tab.keyboard.press('Enter');
    await waitForState(tab, 'live');
    await tab.locator('#user', { hasText: 'alice' }).waitFor();
    await tab.reload();
    await waitForState(tab, 'live');
    await tab.getByRole('button', { name: 'Sign out' }).click();
    await waitForState(tab, 'signed_out');
    await tab.reload();
    await waitForState(tab, 'signed_out');
  });

  test('signed-in user submits a job', async () => {
    const hub = await harness.startHub();
    const tab = await signIn(await harness.newTab(), hub.url, await hub.token());
    await tab.locator('#submit').click();
    await tab.getByText('Enter a model.').waitFor();
    await tab.fill('#model', 'kling-2.6');
    const id = await submitJob(tab);
    await waitForStatus(tab, id, 'succeeded');
    await waitForPlayback(tab, id);
  });

  test('job completes after the hub is killed and restarted', async () => {
    const hub = await harness.startHub();
    const tab = await signIn(await harness.newTab(), hub.url, await hub.token());
    const { id } = await hub.submit(await hub.token(), { prompt: 'survives a crash', input: { scenario: 'slow' } });
    await waitForStatus(tab, id, 'running');
    await openDetails(tab, id);
    const [before] = await receivedVersions(tab, id);
    await hub.kill();
    await waitForState(tab, 'reconnecting');
    await hub.start();
    await waitForState(tab, 'live');
    await waitForStatus(tab, id, 'succeeded');
    await waitForPlayback(tab, id);
    const versions = await receivedVersions(tab, id);
    assert.ok(versions[0] > before);
    assert.deepEqual(versions, versions.toSorted((a, b) => b - a), 'versions only increase');
  });

  test('expired token signs out and leaves the jobs visible', async () => {
    const hub = await harness.startHub();
    const tab = await signIn(await harness.newTab(), hub.url, await hub.token('15s'));
    const { id } = await hub.submit(await hub.token(), { prompt: 'visible after sign-out' });
    await card(tab, id).waitFor();
    await tab.getByText('Your token has expired.').waitFor();
    assert.ok(await card(tab, id).isVisible());
    await tab.fill('#token', await hub.token());
    await tab.keyboard.press('Enter');
    await waitForStatus(tab, id, 'succeeded');
  });
});
