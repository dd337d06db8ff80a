// Express + ws + Redis: a post is published to Redis, and what Redis tells goes to every socket of the channel.
import express from 'express';
import { createClient } from 'redis';
import { WebSocketServer } from 'ws';

const [port, redisPort] = process.argv.slice(2);
const publisher = createClient({ url: `redis://127.0.0.1:${redisPort}` });
const subscriber = publisher.duplicate();
await Promise.all([publisher.connect(), subscriber.connect()]);

const channels = new Map();

async function join(name, socket) {
  let sockets = channels.get(name);
  if (!sockets) {
    sockets = new Set();
    channels.set(name, sockets);
    await subscriber.subscribe(name, message => {
      for (const each of sockets) each.send(message);
    });
  }
  sockets.add(socket);
  socket.on('close', () => sockets.delete(socket));
}

const app = express();
app.use(express.text({ limit: '1mb' }));
app.post('/publish/:channel', async (request, response) => {
  await publisher.publish(request.params.channel, request.body);
  response.status(202).end();
});

const server = app.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 });
const sockets = new WebSocketServer({ server });
sockets.on('connection', (socket, request) => join(request.url.slice('/ws/'.length), socket));
