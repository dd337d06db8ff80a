/** What a person does on the page, and what they then see. */

import assert from 'node:assert/strict';

import { PATIENCE_MS } from './harness.mjs';

/** Opens the page and waits until it is live. */
export async function arrive(tab, url) {
  await tab.goto(url);
  await isState(tab, 'live');
}

export function isState(tab, state) {
  return tab.locator(`body[data-state="${state}"]`).waitFor();
}

/** Presses the button. @returns {Promise<string>} the job's id */
export async function render(tab, { scenario, prompt } = {}) {
  if (prompt) await tab.fill('#prompt', prompt);
  if (scenario) {
    if (!(await tab.locator('#scenarios').evaluate(details => details.open))) await tab.locator('#scenarios summary').click();
    await tab.locator(`[name=scenario][value="${scenario}"]`).check();
  }
  const answered = tab.waitForResponse(answer => answer.request().method() === 'POST' && answer.url().endsWith('/v1/videos'));
  await tab.locator('#submit').click();
  const job = await (await answered).json();
  await card(tab, job.id).waitFor();
  return job.id;
}

export function card(tab, id) {
  return tab.locator(`[id="${id}"]`);
}

export function comesTo(tab, id, status) {
  return tab.locator(`[id="${id}"][data-status="${status}"]`).waitFor({ timeout: PATIENCE_MS });
}

/** The clip is shown when its time goes on. */
export async function plays(tab, id) {
  await tab.waitForFunction(job => {
    const video = document.getElementById(job)?.querySelector('video');
    return video && video.videoWidth > 0 && video.currentTime > 0.1 && !video.paused;
  }, id);
}

export async function open(tab, id) {
  await card(tab, id).locator('.title').click();
  await card(tab, id).locator('.detail').waitFor();
}

export async function fitsItsWidth(tab, when) {
  const { content, window } = await tab.evaluate(() => ({ content: document.documentElement.scrollWidth, window: innerWidth }));
  assert.ok(content <= window, `${when}: ${content} px in a window of ${window}`);
}
