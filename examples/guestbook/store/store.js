// Entries in a file of the volume, one JSON text per line. Appended and synced before the answer.
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');

const folder = process.env.DATA_FOLDER || '/data';
const file = path.join(folder, 'entries');
fs.mkdirSync(folder, { recursive: true });

function list() {
  if (!fs.existsSync(file)) return [];
  return fs.readFileSync(file, 'utf8').split('\n').filter(Boolean).map((line) => JSON.parse(line));
}

function add(text) {
  const handle = fs.openSync(file, 'a');
  try {
    fs.writeSync(handle, `${JSON.stringify(text)}\n`);
    fs.fsyncSync(handle);
  } finally {
    fs.closeSync(handle);
  }
}

const server = http.createServer(async (request, response) => {
  if (request.url !== '/entries') return response.writeHead(404).end();
  if (request.method !== 'POST') return response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(list()));
  let text = '';
  for await (const piece of request) text += piece;
  if (!text || text.length > 1000) return response.writeHead(400).end();
  add(text);
  response.writeHead(204).end();
});

server.listen(process.env.PORT || 8080, '0.0.0.0', () => console.log('store is open'));
process.on('SIGTERM', () => server.close(() => process.exit(0)));
