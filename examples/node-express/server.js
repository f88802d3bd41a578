const express = require('express');

const app = express();
app.use(express.json());

app.get('/', (request, response) => {
  response.send(`Hello from ${process.env.ARCO_COMPONENT ?? 'Express'}, revision ${process.env.ARCO_REVISION ?? '-'}\n`);
});
app.post('/echo', (request, response) => response.json(request.body));

const server = app.listen(process.env.PORT || 3000, '0.0.0.0', () => console.log(`listening on ${server.address().port}`));

// Finish what is being answered, then end.
process.on('SIGTERM', () => server.close(() => process.exit(0)));
