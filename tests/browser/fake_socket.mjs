/** A WebSocket whose other side is the test. Invariant: nothing happens to it that the test did not do. */

export class FakeSocket {
  /** All of them, oldest first. @type {FakeSocket[]} */
  static all = [];

  static get last() {
    return FakeSocket.all.at(-1);
  }

  readyState = 0;
  sent = [];
  isLetGo = false;
  onopen = null;
  onmessage = null;
  onclose = null;

  constructor(url, protocols) {
    this.url = url;
    this.protocols = protocols;
    FakeSocket.all.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.readyState = 3;
    this.isLetGo = true;
  }

  /** Lets the client in. */
  welcome({ heartbeat_ms = 25_000, expires_in = 900_000 } = {}) {
    this.readyState = 1;
    this.onopen?.();
    this.hello({ heartbeat_ms, expires_in });
  }

  hello({ heartbeat_ms = 25_000, expires_in = 900_000 } = {}) {
    const now = Date.now();
    this.say({ type: 'hello', protocol: 1, connection: 'c', heartbeat_ms, expires_at: new Date(now + expires_in).toISOString(), now: new Date(now).toISOString() });
  }

  say(frame) {
    this.onmessage?.({ data: JSON.stringify(frame) });
  }

  drop(code, reason = '') {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  frames(type) {
    return this.sent.filter(frame => frame.type === type);
  }
}

/** A document of the given version; `more` overrides. */
export function job(id, version, more = {}) {
  const status = more.status ?? 'running';
  return {
    id, version, status, final: ['succeeded', 'failed', 'cancelled'].includes(status), progress: null, queue_position: null, stage: null,
    owner: 'alice', provider: 'kling', provider_task_id: null, model: 'm', source: 'webhook', created_at: '2026-11-23T10:00:00.000Z',
    updated_at: new Date(Date.UTC(2026, 10, 23, 10, 0, version)).toISOString(), started_at: null, finished_at: null, deadline_at: null, eta_seconds: null,
    outputs: [], error: null, attempt: 1, next_attempt_at: null, metadata: {}, ...more,
  };
}

/** An unsigned JWT: the client only reads its end and its subject. */
export function jwt(expiresIn, claims = {}) {
  const part = object => Buffer.from(JSON.stringify(object)).toString('base64url');
  return `${part({ alg: 'none' })}.${part({ sub: 'alice', exp: Math.floor((Date.now() + expiresIn) / 1000), ...claims })}.x`;
}
