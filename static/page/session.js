/**
 * Who is here, and the one connection to the hub that follows from it.
 *
 * Invariant: a token is kept in this tab's session storage only, and only while the hub takes it.
 *
 * @module
 */

import { ProgressHub, claimsOf } from '../progress-hub.js';

/** @typedef {import('../progress-hub.js').Job} Job */
/** @typedef {import('../progress-hub.js').State} State */
/** @typedef {{ name: string, title: string, expect: string }} Scenario */
/** @typedef {{ token: string, owner: string, provider: string, model: string, scenarios: Scenario[] }} Demo */
/**
 * @typedef {object} Events
 * @property {(demo: Demo | null) => void} onKnown whether this hub is a demo
 * @property {(owner: string, isAnother: boolean) => void} onEntered
 * @property {() => void} onLeft by their own wish
 * @property {(state: State, before: State) => void} onState
 * @property {(job: Job) => void} onJob
 */

const TOKEN_KEY = 'progress-hub.token';
const RETRY_MS = 500;
const RETRY_CAP_MS = 10_000;

export class Session {
  /** @type {ProgressHub | null} */ hub = null;
  /** @type {Demo | null} */ demo = null;
  /** @type {State} */ state = { name: 'connecting', attempt: 0, retryAt: null, since: Date.now(), reason: null };
  #events;
  #owner = '';

  /** @param {Events} events */
  constructor(events) {
    this.#events = events;
  }

  /** The hub's clock. */
  now() {
    return this.hub?.now() ?? Date.now();
  }

  async start() {
    this.demo = await this.#untilAnswered();
    this.#events.onKnown(this.demo);
    if (this.demo) {
      let first = /** @type {string | null} */ (this.demo.token);
      // The session just read is the first token; every further one is a new session.
      return this.#enter(async () => {
        const token = first ?? (await demoSession())?.token ?? null;
        first = null;
        return token;
      }, this.demo.owner);
    }
    const token = sessionStorage.getItem(TOKEN_KEY);
    if (token) this.#enter(token, subject(token));
    else this.#change(signedOut());
  }

  /** @param {string} token */
  signIn(token) {
    sessionStorage.setItem(TOKEN_KEY, token);
    this.#enter(token, subject(token));
  }

  signOut() {
    const { hub } = this;
    this.hub = null;
    hub?.close();
    this.#events.onLeft();
    this.#change(signedOut());
  }

  async #untilAnswered() {
    const since = Date.now();
    for (let attempt = 1; ; attempt++) {
      try {
        return await demoSession();
      } catch {
        const wait = Math.min(RETRY_MS * 2 ** attempt, RETRY_CAP_MS);
        this.#change({ name: 'reconnecting', attempt, retryAt: Date.now() + wait, since, reason: 'unreachable' });
        await new Promise(resolve => setTimeout(resolve, wait));
      }
    }
  }

  /** @param {import('../progress-hub.js').Token} token @param {string} owner */
  #enter(token, owner) {
    this.hub?.close();
    const hub = this.hub = new ProgressHub({ token });
    this.#events.onEntered(owner, owner !== this.#owner);
    this.#owner = owner;
    hub.on('state', state => {
      if (this.hub === hub) this.#change(state);
    });
    hub.watchMine(job => this.#events.onJob(job));
  }

  /** @param {State} state */
  #change(state) {
    const before = this.state;
    this.state = state;
    if (state.name === 'signed_out') sessionStorage.removeItem(TOKEN_KEY);
    this.#events.onState(state, before);
  }
}

/** @returns {Promise<Demo | null>} null where there is no demo */
async function demoSession() {
  const answer = await fetch('/demo/session', { cache: 'no-store' });
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`session: ${answer.status}`);
  return answer.json();
}

/** @param {string} token */
function subject(token) {
  return String(claimsOf(token).sub ?? '');
}

/** @returns {State} */
function signedOut() {
  return { name: 'signed_out', attempt: 0, retryAt: null, since: Date.now(), reason: 'no_token' };
}
