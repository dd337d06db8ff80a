/** A WebSocket whose server side is controlled by the test. */

export class FakeSocket {
  /** All sockets created since the last reset, oldest first. @type {FakeSocket[]} */
  static all = [];

  static get last() {
    return FakeSocket.all.at(-1);
  }

  readyState = 0;
  sent = [];
  /** Whether the client closed the socket. */
  isClosedByClient = false;
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
    this.isClosedByClient = true;
  }

  /** Opens the socket and sends `hello`. `expires_in`: lifetime of the token in milliseconds. */
  accept({ heartbeat_ms = 25_000, expires_in = 900_000 } = {}) {
    this.readyState = 1;
    this.onopen?.();
    this.sendHello({ heartbeat_ms, expires_in });
  }

  sendHello({ heartbeat_ms = 25_000, expires_in = 900_000 } = {}) {
    const now = Date.now();
    this.sendToClient({ type: 'hello', protocol: 1, connection: 'c', heartbeat_ms, expires_at: new Date(now + expires_in).toISOString(), now: new Date(now).toISOString() });
  }

  sendToClient(frame) {
    this.onmessage?.({ data: JSON.stringify(frame) });
  }

  closeByServer(code, reason = '') {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  /** Returns the frames of a type that the client sent. */
  sentOf(type) {
    return this.sent.filter(frame => frame.type === type);
  }
}

/** Returns a job document. `fields` override the defaults. */
export function job(id, version, fields = {}) {
  const status = fields.status ?? 'running';
  return {
    id, version, status, final: ['succeeded', 'failed', 'cancelled'].includes(status), progress: null, queue_position: null, stage: null,
    owner: 'alice', provider: 'kling', provider_task_id: null, model: 'm', source: 'webhook', created_at: '2026-11-23T10:00:00.000Z',
    updated_at: new Date(Date.UTC(2026, 10, 23, 10, 0, version)).toISOString(), started_at: null, finished_at: null, deadline_at: null, eta_seconds: null,
    outputs: [], error: null, attempt: 1, next_attempt_at: null, metadata: {}, ...fields,
  };
}

/** Returns an unsigned JWT, since the client reads only the expiry and the subject. `expiresIn`: milliseconds from now. */
export function jwt(expiresIn, claims = {}) {
  const part = object => Buffer.from(JSON.stringify(object)).toString('base64url');
  return `${part({ alg: 'none' })}.${part({ sub: 'alice', exp: Math.floor((Date.now() + expiresIn) / 1000), ...claims })}.x`;
}
