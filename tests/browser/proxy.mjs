/** A reverse proxy for one hub. It forwards requests and WebSocket upgrades. */

import { createServer, request } from 'node:http';

/**
 * Starts the proxy on a free loopback port.
 * @param {string} target URL of the hub
 * @param {{ prefix?: string, changesHost?: boolean }} [options] `prefix`: path that the proxy serves and removes;
 *   `changesHost`: the hub receives its own address as `Host`, not that of the browser
 * @returns {Promise<{ url: string, close: () => Promise<void> }>}
 */
export async function startProxy(target, { prefix = '', changesHost = false } = {}) {
  const { hostname, port, host } = new URL(target);
  const forward = ({ method, url, headers }) =>
    request({ hostname, port, method, path: url.slice(prefix.length) || '/', headers: changesHost ? { ...headers, host } : headers });
  const server = createServer((incoming, outgoing) => {
    if (!incoming.url.startsWith(`${prefix}/`)) return outgoing.writeHead(404).end();
    const forwarded = forward(incoming);
    forwarded.on('response', response => response.pipe(outgoing.writeHead(response.statusCode, response.headers)));
    forwarded.on('error', () => outgoing.destroy());
    incoming.pipe(forwarded);
  });
  server.on('upgrade', (incoming, socket) => {
    const forwarded = forward(incoming);
    const reply = response => socket.write(`HTTP/1.1 ${response.statusCode} ${response.statusMessage}\r\n${response.rawHeaders.map((text, index) => (index % 2 ? `${text}\r\n` : `${text}: `)).join('')}\r\n`);
    forwarded.on('response', response => {
      reply(response);
      response.pipe(socket);
    });
    forwarded.on('upgrade', (response, upstream, head) => {
      reply(response);
      // The hub's first frame may arrive together with the response.
      upstream.unshift(head);
      upstream.pipe(socket).on('error', () => upstream.destroy());
      socket.pipe(upstream).on('error', () => socket.destroy());
    });
    forwarded.on('error', () => socket.destroy());
    forwarded.end();
  });
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}${prefix}/`,
    close: () => new Promise(resolve => {
      server.close(resolve);
      server.closeAllConnections();
    }),
  };
}
