// Baseline for the comparison: Express, ws and Redis. `POST /publish/:channel` publishes the body to Redis, and every
// process sends it to its sockets of that channel.
import express from 'express';
import { createClient } from 'redis';
import { WebSocketServer } from 'ws';

const [port, redisPort] = process.argv.slice(2);
const publisher = createClient({ url: `redis://127.0.0.1:${redisPort}` });
const subscriber = publisher.duplicate();
await Promise.all([publisher.connect(), subscriber.connect()]);

const socketsByChannel = new Map();

async function join(channel, socket) {
  let sockets = socketsByChannel.get(channel);
  if (!sockets) {
    sockets = new Set();
    socketsByChannel.set(channel, sockets);
    await subscriber.subscribe(channel, message => {
      for (const socket of sockets) socket.send(message);
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

const httpServer = app.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 });
const webSocketServer = new WebSocketServer({ server: httpServer });
webSocketServer.on('connection', (socket, request) => join(request.url.slice('/ws/'.length), socket));
