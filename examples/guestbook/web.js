// The page. Entries live in the component `store` when it is bound (STORE_URL), else in memory.
const http = require('node:http');

const store = process.env.STORE_URL;
const kept = [];

const escape = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

async function list() {
  if (!store) return kept;
  const answer = await fetch(`${store}/entries`);
  if (!answer.ok) throw new Error(`the store answered ${answer.status}`);
  return answer.json();
}

async function add(text) {
  if (!store) return kept.push(text);
  const answer = await fetch(`${store}/entries`, { method: 'POST', body: text });
  if (!answer.ok) throw new Error(`the store answered ${answer.status}`);
}

async function body(request) {
  let text = '';
  for await (const piece of request) {
    text += piece;
    if (text.length > 10_000) throw new Error('the entry is too long');
  }
  return text;
}

const server = http.createServer(async (request, response) => {
  try {
    if (request.method === 'POST' && request.url === '/') {
      const text = new URLSearchParams(await body(request)).get('entry')?.trim();
      if (text) await add(text);
      response.writeHead(303, { location: '/' }).end();
    } else if (request.url === '/') {
      const entries = (await list()).map((entry) => `<li>${escape(entry)}</li>`).join('');
      response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' });
      response.end(`<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Guestbook</title></head><body><h1>Guestbook</h1>
<form method="post"><input name="entry" aria-label="Entry" maxlength="200"><button>Sign</button></form>
<ul>${entries}</ul><p>Kept ${store ? 'in the store' : 'in memory'}</p></body></html>\n`);
    } else {
      response.writeHead(404).end('not found\n');
    }
  } catch (error) {
    console.error(error);
    response.writeHead(502).end('the guestbook cannot be read now\n');
  }
});

server.listen(process.env.PORT || 8080, '0.0.0.0', () => console.log('guestbook is open'));
process.on('SIGTERM', () => server.close(() => process.exit(0)));
