/** The page as a person meets it: the real binary, a real browser, nothing scripted in between. */

import assert from 'node:assert/strict';
import { readdir } from 'node:fs/promises';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';

import { closeBrowser, House } from './harness.mjs';
import { arrive, card, comesTo, fitsItsWidth, isState, open, plays, render } from './page_helpers.mjs';

let house;

before(() => assert.ok(process.env.PROGRESS_HUB_BIN, 'PROGRESS_HUB_BIN names the binary to test'));
beforeEach(() => (house = new House()));
afterEach(() => house.close());
after(closeBrowser);

/** Version numbers in the list of one opened job, newest first. */
async function versionsSeen(tab, id) {
  return (await card(tab, id).locator('tbody tr[data-v]').evaluateAll(rows => rows.map(row => Number(row.dataset.v))));
}

/** Keeps what the cards say from now on, so that nothing is missed that stood there for a second only. @returns {Promise<() => Promise<string[]>>} */
async function everyNote(tab) {
  await tab.evaluate(() => {
    window.notes = [];
    new MutationObserver(() => {
      for (const note of document.querySelectorAll('.note')) if (!window.notes.includes(note.textContent)) window.notes.push(note.textContent);
    }).observe(document.getElementById('list'), { subtree: true, childList: true, characterData: true });
  });
  return () => tab.evaluate(() => window.notes);
}

async function rawDocument(tab, id) {
  return JSON.parse(await card(tab, id).locator('.take code').textContent());
}

describe('the demo', () => {
  test('every part of the page is asked for at once', async () => {
    const { url } = await house.demo();
    const parts = (await readdir(new URL('../../static/page/', import.meta.url))).map(name => `/page/${name}`);
    const asked = [...(await (await fetch(url)).text()).matchAll(/rel="modulepreload" href="([^"]+)"/g)].map(([, path]) => path);
    assert.deepEqual(asked.toSorted(), [...parts, '/progress-hub.js'].toSorted());
  });

  test('one press, and a clip plays', async () => {
    const { url } = await house.demo();
    const tab = await house.tab();
    await arrive(tab, url);
    await tab.getByText('No jobs yet.').waitFor();
    const id = await render(tab);
    await comesTo(tab, id, 'succeeded');
    await plays(tab, id);
    assert.equal(await tab.locator('#empty').isVisible(), false);
    // A busy hub may leave out what is outdated; then the station says so.
    assert.deepEqual((await card(tab, id).locator('.station .teller').allTextContents()).filter(teller => !teller), [], 'each station tells who told it');
    const source = await card(tab, id).locator('[data-at="end"]').getAttribute('data-source');
    assert.match(await card(tab, id).locator('.news').textContent(), new RegExp(`by ${source}$`));
    assert.deepEqual(tab.complaints, []);
  });

  test('a provider without credit is tried again by a press, and what waited for it runs', async () => {
    const { url } = await house.demo();
    const tab = await house.tab();
    await arrive(tab, url);
    const refused = await render(tab, { scenario: 'quota' });
    await comesTo(tab, refused, 'failed');
    const line = tab.locator('#providers li');
    await line.filter({ hasText: 'Kling is stopped: the account has no credit left' }).waitFor();
    const waiting = await render(tab, { scenario: 'normal' });
    await card(tab, waiting).locator('.note', { hasText: /^waits for Kling: the account has no credit left/ }).waitFor();
    assert.equal(await card(tab, waiting).getAttribute('data-status'), 'accepted');
    await tab.getByRole('button', { name: 'Try Kling again now' }).click();
    await line.filter({ hasText: 'Kling is open again: what waits for it is sent, one job at first' }).waitFor();
    assert.equal(await line.getByRole('button').isVisible(), false);
    await comesTo(tab, waiting, 'succeeded');
    await tab.locator('#providers').waitFor({ state: 'hidden' });
    assert.deepEqual(tab.complaints, []);
  });

  test('one job opened shows every version, its document, and how to get it', async () => {
    const { url } = await house.demo();
    const tab = await house.tab();
    await arrive(tab, url);
    const id = await render(tab);
    await open(tab, id);
    await comesTo(tab, id, 'succeeded');
    const job = await rawDocument(tab, id);
    assert.deepEqual([job.id, job.status], [id, 'succeeded']);
    const versions = await versionsSeen(tab, id);
    assert.equal(versions[0], job.version);
    assert.equal(await card(tab, id).locator('.plot g[data-source]').count(), versions.length, 'a dot for each version');
    await tab.getByRole('tab', { name: 'Document' }).focus();
    const snippets = [];
    for (let step = 0; step < 3; step++) {
      await tab.keyboard.press('ArrowRight');
      snippets.push(await card(tab, id).locator('.take code').textContent());
    }
    for (const snippet of snippets) assert.ok(snippet.includes(id), snippet);
    assert.ok(!snippets.join().includes('eyJ'), 'no token is shown');
    assert.equal(new URL(tab.url()).hash, `#${id}`);
    await tab.keyboard.press('Escape');
    assert.equal(await card(tab, id).locator('.detail').count(), 0);
    assert.equal(await tab.evaluate(() => document.activeElement?.className), 'title');
  });

  test('a reload in the middle keeps what was seen and goes on', async () => {
    const { url } = await house.demo();
    const tab = await house.tab();
    await arrive(tab, url);
    const id = await render(tab, { scenario: 'slow' });
    await open(tab, id);
    await comesTo(tab, id, 'running');
    const before = await versionsSeen(tab, id);
    await tab.reload();
    await isState(tab, 'live');
    await card(tab, id).locator('.detail').waitFor();
    const after = await versionsSeen(tab, id);
    assert.deepEqual(before.filter(version => !after.includes(version)), [], 'nothing seen is forgotten');
    await comesTo(tab, id, 'succeeded');
    await plays(tab, id);
  });

  test('two tabs show the same', async () => {
    const { url } = await house.demo();
    const [here, there] = [await house.tab(), await house.tab()];
    await arrive(here, url);
    await arrive(there, url);
    const id = await render(here, { prompt: 'seen from two sides' });
    await card(there, id).getByText('seen from two sides').waitFor();
    await Promise.all([comesTo(here, id, 'succeeded'), comesTo(there, id, 'succeeded')]);
    await open(here, id);
    await open(there, id);
    assert.deepEqual(await rawDocument(here, id), await rawDocument(there, id));
  });

  test('a declined prompt says what a person can do', async () => {
    const { url } = await house.demo();
    const tab = await house.tab();
    await arrive(tab, url);
    const id = await render(tab, { scenario: 'safety', prompt: 'something the provider will not draw' });
    await comesTo(tab, id, 'failed');
    assert.equal(await card(tab, id).locator('.note').textContent(), "The provider's safety check declined this prompt. Change it and try again.");
    await card(tab, id).getByRole('button', { name: 'Edit and try again' }).click();
    assert.equal(await tab.inputValue('#prompt'), 'something the provider will not draw');
    assert.equal(await tab.evaluate(() => document.activeElement?.id), 'prompt');
  });

  test('a hiccup is counted down, then gets through', async () => {
    const { url } = await house.demo();
    const tab = await house.tab();
    await arrive(tab, url);
    const notes = await everyNote(tab);
    const id = await render(tab, { scenario: 'server-errors' });
    await comesTo(tab, id, 'succeeded');
    const said = await notes();
    for (const attempt of [2, 3]) assert.ok(said.some(note => new RegExp(`^The provider had a hiccup\\. Try ${attempt} of 5 (in \\d+ s|now)\\.$`).test(note)), said.join('\n'));
  });

  test('without webhooks the poller is seen to rescue the job', async () => {
    const { url } = await house.demo();
    const tab = await house.tab();
    await arrive(tab, url);
    const id = await render(tab, { scenario: 'lost-webhooks' });
    await comesTo(tab, id, 'succeeded');
    assert.match(await card(tab, id).locator('.news').textContent(), /by poll/);
    assert.equal(await card(tab, id).locator('[data-at="end"]').getAttribute('data-source'), 'poll');
  });

  test('360 px need no horizontal scrollbar, whatever is shown', async () => {
    const { url } = await house.demo();
    const tab = await house.tab({ viewport: { width: 360, height: 740 } });
    await arrive(tab, url);
    await fitsItsWidth(tab, 'empty');
    const id = await render(tab, { scenario: 'slow', prompt: `An${'un'.repeat(200)}breakable word` });
    await fitsItsWidth(tab, 'under way');
    await open(tab, id);
    for (const name of ['curl', 'JavaScript', 'SSE']) {
      await tab.getByRole('tab', { name }).click();
      await fitsItsWidth(tab, name);
    }
    await comesTo(tab, id, 'succeeded');
    await fitsItsWidth(tab, 'finished');
  });

  test('the bar and the status speak to those who do not see them', async () => {
    const { url } = await house.demo();
    const tab = await house.tab();
    await arrive(tab, url);
    const id = await render(tab, { scenario: 'normal', prompt: 'spoken aloud' });
    const bar = card(tab, id).getByRole('progressbar');
    assert.equal(await bar.getAttribute('aria-label'), 'Progress of spoken aloud');
    await tab.locator('#say', { hasText: 'spoken aloud: Finished.' }).waitFor();
    assert.match(await bar.getAttribute('aria-valuetext'), /^Finished/);
  });

  test('a hub that is gone is told by the pill, and nothing shown is lost', async () => {
    const { url, program } = await house.demo();
    const tab = await house.tab();
    await arrive(tab, url);
    const id = await render(tab);
    await comesTo(tab, id, 'succeeded');
    await program.stop('SIGKILL');
    await tab.locator('#pill', { hasText: /^reconnecting (in \d+ s|now) \(attempt \d+\)$/ }).waitFor();
    await tab.locator('#notice', { hasText: /^The hub has not answered since \d\d:\d\d\./ }).waitFor();
    assert.equal(await card(tab, id).getAttribute('data-status'), 'succeeded');
  });
});

describe('a configured hub', () => {
  test('asks for a token, refuses a bad one, forgets a good one', async () => {
    const hub = await house.serve();
    const tab = await house.tab();
    await tab.goto(hub.url);
    await isState(tab, 'signed_out');
    await tab.getByText('progress-hub token --sub alice').waitFor();
    assert.equal(await tab.locator('#pill').textContent().then(words => words.trim()), 'signed out');

    await tab.fill('#token', 'not a token');
    await tab.keyboard.press('Enter');
    await tab.getByText('That does not look like a token').waitFor();
    await tab.fill('#token', (await hub.token()).replace(/[^.]+$/, 'A'.repeat(43)));
    await tab.keyboard.press('Enter');
    await tab.getByText('The hub did not accept this token').waitFor();

    await tab.fill('#token', await hub.token());
    await tab.keyboard.press('Enter');
    await isState(tab, 'live');
    await tab.locator('#who', { hasText: 'alice' }).waitFor();
    await tab.reload();
    await isState(tab, 'live');
    await tab.getByRole('button', { name: 'Sign out' }).click();
    await isState(tab, 'signed_out');
    await tab.reload();
    await isState(tab, 'signed_out');
  });

  test('renders for whoever is signed in', async () => {
    const hub = await house.serve();
    const tab = await signedIn(hub);
    await tab.locator('#submit').click();
    await tab.getByText('Name the model that should render it.').waitFor();
    await tab.fill('#model', 'kling-2.6');
    const id = await render(tab);
    await comesTo(tab, id, 'succeeded');
    await plays(tab, id);
  });

  test('killed and started again in the middle, it brings the job to its end', async () => {
    const hub = await house.serve();
    const tab = await signedIn(hub);
    const { id } = await hub.submit(await hub.token(), { prompt: 'outlives a crash', input: { scenario: 'slow' } });
    await comesTo(tab, id, 'running');
    await open(tab, id);
    const [before] = await versionsSeen(tab, id);
    await hub.kill();
    await isState(tab, 'reconnecting');
    await hub.start();
    await isState(tab, 'live');
    await comesTo(tab, id, 'succeeded');
    await plays(tab, id);
    const versions = await versionsSeen(tab, id);
    assert.ok(versions[0] > before);
    assert.deepEqual(versions, versions.toSorted((a, b) => b - a), 'versions never go back');
  });

  test('a token that ends signs the page out and leaves the last known', async () => {
    const hub = await house.serve();
    const tab = await signedIn(hub, '15s');
    const { id } = await hub.submit(await hub.token(), { prompt: 'still here afterwards' });
    await card(tab, id).waitFor();
    await tab.getByText('Your token has expired.').waitFor();
    assert.ok(await card(tab, id).isVisible());
    await tab.fill('#token', await hub.token());
    await tab.keyboard.press('Enter');
    await comesTo(tab, id, 'succeeded');
  });
});

async function signedIn(hub, ttl) {
  const tab = await house.tab();
  await tab.goto(hub.url);
  await tab.fill('#token', await hub.token(ttl));
  await tab.keyboard.press('Enter');
  await isState(tab, 'live');
  return tab;
}
