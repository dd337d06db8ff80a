/**
 * What a token allows, by its claims.
 *
 * Invariant: this decides only what the page offers and requests. The hub decides what is done.
 *
 * @module
 */

/** @typedef {import('../progress-hub.js').Job} Job */

/** Scope of a token without the claim `scope`. */
const DEFAULT_SCOPE = 'jobs:read';

export class Permissions {
  #subject;
  /** @type {Set<string>} */ #scopes;
  /** Ids of the only jobs that the token gives access to; null if it is not limited. @type {string[] | null} */ #jobs;

  /** @param {Record<string, unknown>} claims */
  constructor(claims) {
    this.#subject = claims.sub;
    this.#scopes = new Set(String(claims.scope ?? DEFAULT_SCOPE).split(/\s+/));
    this.#jobs = Array.isArray(claims.jobs) ? claims.jobs : null;
  }

  get isAdmin() {
    return this.#scopes.has('admin') && !this.#jobs;
  }

  /** Returns whether the token may read what belongs to a job. @param {Job} job */
  mayRead(job) {
    return (this.#has('jobs:read') || this.#has('jobs:write')) && this.#isOwn(job);
  }

  /** Returns whether the token may act on a job. @param {Job} job */
  mayWrite(job) {
    return this.#has('jobs:write') && this.#isOwn(job);
  }

  /** @param {string} scope */
  #has(scope) {
    return this.#scopes.has(scope) || this.#scopes.has('admin');
  }

  /** @param {Job} job */
  #isOwn(job) {
    return this.#jobs ? this.#jobs.includes(job.id) : job.owner === this.#subject || this.isAdmin;
  }
}
