// Speaks Claude Code's stream-json and does what its prompt says.
'use strict';
const childProcess = require('child_process');
const fs = require('fs');
const http = require('http');
const readline = require('readline');

const directory = process.env.HOME + '/.fake';
const login = directory + '/login.json';
const say = (value) => process.stdout.write(JSON.stringify(value) + '\n');
const read = () => { try { return fs.readFileSync(login, 'utf8'); } catch { return 'nobody'; } };
const write = (text) => {
  fs.mkdirSync(directory, { recursive: true });
  fs.writeFileSync(login + '.new', text, { mode: 0o600 });
  fs.renameSync(login + '.new', login);
};
const firstLine = (then) => {
  const lines = readline.createInterface({ input: process.stdin });
  lines.once('line', (line) => { lines.close(); then(line.trim()); });
};

const [mode, ...rest] = process.argv.slice(2);
if (mode === 'status') {
  process.exit(fs.existsSync(login) ? 0 : 1);
} else if (mode === 'login') {
  firstLine((key) => { write(key); console.log('took ' + key); process.exit(0); });
} else if (mode === 'paste') {
  console.log('Open https://login.fake.example/device?x=1 and paste what it says');
  firstLine((code) => { if (code === 'wrong') { console.error('refused'); process.exit(1); } write(code); process.exit(0); });
} else {
  hot();
}

function hot() {
  let conversation = [];
  let session = 'session-' + process.pid + '-' + Date.now();
  const resumed = rest.indexOf('--resume');
  if (resumed >= 0) { session = rest[resumed + 1]; conversation = ['resumed']; }
  let timer = null;
  let deaf = false;
  const text = (piece) => say({ type: 'stream_event', event: { type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text: piece } } });
  const result = (extra) => say({ type: 'result', subtype: 'success', is_error: false, session_id: session, result: '', usage: { input_tokens: 1, output_tokens: 1 }, ...extra });
  const answer = (piece) => { text(piece); result(); };
  const lines = readline.createInterface({ input: process.stdin });
  lines.on('close', () => process.exit(0));
  lines.on('line', (line) => {
    const value = JSON.parse(line);
    if (value.type === 'control_request') {
      if (value.request.subtype === 'interrupt' && !deaf) {
        clearInterval(timer);
        say({ type: 'control_response', response: { subtype: 'success', request_id: value.request_id } });
        result({ is_error: true, subtype: 'error_during_execution' });
      } else if (value.request.subtype !== 'interrupt') {
        say({ type: 'control_response', response: { subtype: 'success', request_id: value.request_id, response: {} } });
      }
      return;
    }
    const prompt = value.message.content[0].text;
    if (prompt === '/clear') {
      conversation = [];
      session += 'x';
      say({ type: 'system', subtype: 'init', session_id: session });
      result();
      return;
    }
    say({ type: 'system', subtype: 'init', session_id: session });
    say({ type: 'stream_event', event: { type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } } });
    conversation.push(prompt);
    const [word, ...more] = prompt.split(' ');
    const what = more.join(' ');
    switch (word) {
      case 'echo': return answer(what);
      case 'history': return answer(conversation.join('|'));
      case 'pid': return answer(String(process.pid));
      case 'who': return answer(read());
      case 'login': write(what); return answer('logged in');
      // The login changes and nothing is heard of the agent any more.
      case 'login-and-hang': write(what); text('changed'); return;
      case 'write': fs.mkdirSync(directory, { recursive: true }); fs.writeFileSync(directory + '/note', what); return answer('written');
      case 'read': try { return answer(fs.readFileSync(directory + '/note', 'utf8')); } catch { return answer('nothing'); }
      case 'drop': fs.writeFileSync('/tmp/left', what); return answer('dropped');
      case 'found': try { return answer(fs.readFileSync('/tmp/left', 'utf8')); } catch { return answer('nothing'); }
      case 'slow': timer = setInterval(() => text('.'), 20); return;
      case 'deaf': deaf = true; timer = setInterval(() => text('.'), 20); return;
      case 'exit': process.exit(Number(what));
      case 'flood': {
        const count = Number(what);
        for (let at = 0; at < count; at += 1) text(String(at % 10).repeat(1000) + ';');
        return result();
      }
      case 'sh': try { return answer(childProcess.execSync(what, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })); } catch (error) { return answer('failed: ' + error.stderr); }
      case 'sh-and-hang': childProcess.execSync(what); text('changed'); return;
      case 'environment': return answer(Object.keys(process.env).sort().join(' '));
      case 'get': {
        const proxy = new URL(process.env.HTTP_PROXY);
        const request = http.request({ host: proxy.hostname, port: proxy.port, path: what, headers: { host: new URL(what).host } }, (response) => {
          response.resume();
          response.on('end', () => answer(String(response.statusCode)));
        });
        request.on('error', (error) => answer(error.message));
        return request.end();
      }
      default: return answer('?');
    }
  });
}
