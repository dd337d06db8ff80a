/** Real processes and a real browser for the tests. Invariant: whatever was started here is stopped by `close`, whether the test passed or not. */

import { spawn, execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';

import { chromium } from 'playwright-core';

const BIN = process.env.PROGRESS_HUB_BIN;
const START_WITHIN_MS = 20_000;
/** The longest that anything on the page is waited for. */
export const PATIENCE_MS = 40_000;

const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

/** A running program and what it says. */
class Program {
  #child;
  #said = '';
  #ended;

  constructor(file, args, env = {}) {
    this.#child = spawn(file, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#ended = new Promise(resolve => this.#child.once('exit', resolve));
    for (const stream of [this.#child.stdout, this.#child.stderr]) stream.on('data', data => (this.#said += data));
  }

  /** The first match of what it says. @param {RegExp} pattern @returns {Promise<RegExpExecArray>} */
  says(pattern) {
    return new Promise((resolve, reject) => {
      const look = () => {
        const found = pattern.exec(this.#said);
        if (found) done(() => resolve(found));
      };
      const fail = why => done(() => reject(new Error(`${why}; it said:\n${this.#said}`)));
      const timer = setTimeout(() => fail(`nothing like ${pattern} in time`), START_WITHIN_MS);
      const onExit = () => fail('it ended');
      const done = then => {
        clearTimeout(timer);
        this.#child.stdout.off('data', look);
        this.#child.stderr.off('data', look);
        this.#child.off('exit', onExit);
        then();
      };
      this.#child.stdout.on('data', look);
      this.#child.stderr.on('data', look);
      this.#child.once('exit', onExit);
      look();
    });
  }

  signal(name) {
    this.#child.kill(name);
  }

  /** Ends it, the hard way when it does not listen. */
  async stop(signal = 'SIGTERM') {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill(signal);
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 3_000);
    await this.#ended;
    clearTimeout(timer);
  }
}

async function freePort() {
  const server = createServer();
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address();
  await new Promise(resolve => server.close(resolve));
  return port;
}

let browser = null;

/** One browser serves all tests; each tab has a profile of its own. */
export async function closeBrowser() {
  await browser?.close();
  browser = null;
}

/** Everything that one test needs. */
export class House {
  #closers = [];

  /** Runs the demo. @returns {Promise<{ url: string, program: Program }>} */
  async demo() {
    const program = this.#keep(new Program(BIN, ['demo', '--bind', '127.0.0.1:0']));
    const [url] = await program.says(/http:\/\/127\.0\.0\.1:\d+\//);
    return { url, program };
  }

  /** A configured hub with the simulator as its provider. @param {{ store?: string }} [options] */
  async serve({ store } = {}) {
    const folder = await mkdtemp(join(tmpdir(), 'progress-hub-'));
    this.#closers.push(() => rm(folder, { recursive: true, force: true }));
    const secret = 'whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=';
    const simulator = this.#keep(new Program(BIN, ['simulator', '--bind', '127.0.0.1:0', '--api-key', 'key-of-the-simulator', '--webhook-secret', secret]));
    const [provider] = await simulator.says(/http:\/\/127\.0\.0\.1:\d+/);
    const port = await freePort();
    const config = join(folder, 'progress-hub.toml');
    await writeFile(config, `
[server]
bind = "127.0.0.1:${port}"
public_url = "http://127.0.0.1:${port}"
[auth]
hs256_secrets = ["a-secret-of-the-browser-tests-only-0123456789"]
[store]
url = "${store ?? `sqlite://${join(folder, 'hub.db')}`}"
[callback]
secret = "a-callback-secret-of-the-browser-tests-0123456789"
[defaults]
provider = "kling"
[providers.kling]
spec = "kling"
base_url = "${provider}"
api_key = "key-of-the-simulator"
webhook_secrets = ["${secret}"]
poll_after = "3s"
poll_every = "1s"
`);
    const hub = new Served(config, `http://127.0.0.1:${port}/`);
    this.#closers.push(() => hub.program?.stop());
    await hub.start();
    return hub;
  }

  /**
   * A tab of its own profile; whatever the browser complains about is in `tab.complaints`.
   * @param {import('playwright-core').BrowserContextOptions} [options]
   */
  async tab(options = {}) {
    browser ??= await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: FLAGS });
    const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
    this.#closers.push(() => context.close());
    context.setDefaultTimeout(PATIENCE_MS);
    const tab = await context.newPage();
    tab.complaints = [];
    tab.on('pageerror', error => tab.complaints.push(String(error.stack)));
    tab.on('console', message => {
      if (message.type() === 'error') tab.complaints.push(`${message.text()} ${message.location().url}`);
    });
    return tab;
  }

  async close() {
    for (const close of this.#closers.reverse()) await close();
  }

  #keep(program) {
    this.#closers.push(() => program.stop());
    return program;
  }
}

/** A hub that can be killed and started again on its port and store. */
class Served {
  constructor(config, url) {
    this.config = config;
    this.url = url;
    this.program = null;
  }

  async start() {
    this.program = new Program(BIN, ['serve', '--config', this.config]);
    await this.program.says(/http:\/\/127\.0\.0\.1:\d+/);
  }

  async kill() {
    await this.program.stop('SIGKILL');
  }

  /** @returns {Promise<string>} */
  async token(ttl = '15m') {
    const args = ['token', '--config', this.config, '--sub', 'alice', '--scope', 'jobs:read jobs:write', '--ttl', ttl];
    const { stdout } = await promisify(execFile)(BIN, args);
    return stdout.trim();
  }

  /** Places an order as a program would. @param {string} token @param {object} order */
  async submit(token, order) {
    const answer = await fetch(`${this.url}v1/videos`, {
      method: 'POST',
      headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json', 'Idempotency-Key': crypto.randomUUID() },
      body: JSON.stringify({ model: 'kling-2.6', duration: 5, ...order }),
    });
    if (answer.status !== 202) throw new Error(`submit: ${answer.status} ${await answer.text()}`);
    return answer.json();
  }
}
