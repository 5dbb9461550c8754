// The network, in a worker, so that the page never waits for it. The same mathematics as model.py.

function read(header, bytes) {  // {name: Float32Array}, in the order in which tools/export/html.py writes them
  const shapes = Object.entries(header.shapes), count = (shape) => shape.reduce((a, b) => a * b, 1);
  if (header.dtype === "int8") {
    const before = (shape) => shape.length === 2 ? shape[0] : count(shape);  // its scales, or itself
    let at = shapes.reduce((sum, [, shape]) => sum + before(shape), 0), row = 0;
    const floats = new Float32Array(bytes.buffer, 0, at), whole = new Int8Array(bytes.buffer, 4 * at);
    at = 0;
    return Object.fromEntries(shapes.map(([name, shape]) => {
      const scales = floats.subarray(row, row += before(shape));
      if (shape.length !== 2) return [name, scales];
      const values = new Float32Array(count(shape));
      for (let n = 0; n < values.length; n++) values[n] = whole[at++] * scales[Math.floor(n / shape[1])];
      return [name, values];
    }));
  }
  const all = header.dtype === "float32" ? new Float32Array(bytes.buffer) : new Float32Array(bytes.length / 2);
  if (header.dtype === "float16") {
    const value = new Float32Array(65536), halves = new Uint16Array(bytes.buffer);
    for (let n = 0; n < 65536; n++) {
      const sign = n & 0x8000 ? -1 : 1, exponent = (n >> 10) & 31, fraction = n & 1023;
      value[n] = sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
    }
    for (let n = 0; n < halves.length; n++) all[n] = value[halves[n]];  // each of the 65,536 values is made once
  }
  let at = 0;
  return Object.fromEntries(shapes.map(([name, shape]) => [name, all.subarray(at, at += count(shape))]));
}

function product(w, x, y, bias) {  // y = w (y.length, x.length) times x; eight rows share each x[i] that is read
  const n = x.length, rows = y.length, whole = rows - (rows % 8);
  for (let row = 0; row < whole; row += 8) {
    let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
    for (let i = 0, at = row * n; i < n; i++, at++) {
      const v = x[i];
      a += w[at] * v; b += w[at + n] * v; c += w[at + 2 * n] * v; d += w[at + 3 * n] * v;
      e += w[at + 4 * n] * v; f += w[at + 5 * n] * v; g += w[at + 6 * n] * v; h += w[at + 7 * n] * v;
    }
    y[row] = a; y[row + 1] = b; y[row + 2] = c; y[row + 3] = d;
    y[row + 4] = e; y[row + 5] = f; y[row + 6] = g; y[row + 7] = h;
  }
  for (let row = whole; row < rows; row++) {
    let a = 0;
    for (let i = 0; i < n; i++) a += w[row * n + i] * x[i];
    y[row] = a;
  }
  if (bias) for (let row = 0; row < rows; row++) y[row] += bias[row];
}

function normalise(x, from, size, y, to, gain, bias) {  // size numbers of x into y
  let mean = 0, variance = 0;
  for (let i = 0; i < size; i++) mean += x[from + i] / size;
  for (let i = 0; i < size; i++) variance += (x[from + i] - mean) ** 2 / size;
  const scale = 1 / Math.sqrt(variance + 1e-5);
  for (let i = 0; i < size; i++) y[to + i] = (x[from + i] - mean) * scale * (gain ? gain[i] : 1) + (bias ? bias[i] : 0);
}

function erf(x) {  // Abramowitz and Stegun 7.1.26, within 1.5e-7
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const y = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(x) * (1 - y * Math.exp(-x * x));
}

const activations = {
  relu2: (x) => (x > 0 ? x * x : 0),
  exact: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
};

class Network {
  constructor(header, weights) {
    this.c = header.config;
    this.w = weights;
    this.modern = this.c.arch === "modern";
    this.activation = activations[this.modern ? "relu2" : this.c.gelu];
    const {n_embd: C, n_head, n_layer, n_ensemble, block_size, vocab_size} = this.c, numbers = (n) => new Float64Array(n);
    this.D = C / n_head;
    this.keys = Array.from({length: n_layer * n_ensemble}, () => new Float32Array(block_size * C));  // (head, position, D)
    this.values = this.keys.map((k) => new Float32Array(k.length));
    [this.x, this.x0, this.normed, this.mixed, this.out, this.sum] = Array.from({length: 6}, () => numbers(C));
    [this.qkv, this.hidden, this.scores, this.logits] = [numbers(3 * C), numbers(4 * C), numbers(block_size), numbers(vocab_size)];
    [this.cos, this.sin] = [numbers(this.D / 2), numbers(this.D / 2)];
    this.empty();
  }
  empty() {
    this.length = 0;
    this.text = [];  // all tokens read
  }
  token(t) { return t < 0 ? this.c.vocab_size : this.text[t]; }  // before the text: nothing
  match() {  // a row of wte_match: what came after the longest, then latest, match of the text's end, and how long it is
    const t = this.text.length - 1;
    let row = this.c.vocab_size * this.c.match, longest = 0;
    for (let end = t - 1; end >= Math.max(0, t - this.c.block_size); end--) {
      let n = 0;
      while (n < this.c.match && this.token(t - n) === this.token(end - n)) n++;
      if (n > longest) [longest, row] = [n, this.text[end + 1] * this.c.match + n - 1];
    }
    return row;
  }
  add(name, n) {  // row n of a table, to x
    const table = this.w[name], from = n * this.x.length;
    for (let i = 0; i < this.x.length; i++) this.x[i] += table[from + i];
  }
  norm(name) { normalise(this.x, 0, this.x.length, this.normed, 0, this.w[`${name}.weight`], this.w[`${name}.bias`]); }
  linear(x, name, y) { product(this.w[`${name}.weight`], x, y, this.w[`${name}.bias`]); }

  step(token, last) {  // one more token; after the last one of many, the logits
    const {x, x0, sum, c} = this;
    x.fill(0);
    this.add("wte.weight", token);
    if (this.modern) {
      const t = this.text.push(token) - 1;
      for (let n = 0; n < 3; n++) this.add(`wte_past.${n}.weight`, this.token(t - 1 - n));
      if (c.match) this.add("wte_match.weight", this.match());
      normalise(x, 0, x.length, x, 0);
      for (let i = 0, half = this.cos.length; i < half; i++) {  // rotary positions
        const angle = this.length * 10000 ** (-i / half);
        this.cos[i] = Math.cos(angle);
        this.sin[i] = Math.sin(angle);
      }
    } else this.add("wpe.weight", this.length);
    x0.set(x);
    sum.fill(0);
    for (let n = 0; n < c.n_layer * c.n_ensemble; n++) {
      this.block(n);
      if ((n + 1) % c.n_layer === 0) {  // a member of an ensemble: the mean of all goes into the head
        this.norm("ln_f");
        for (let i = 0; i < x.length; i++) sum[i] += this.normed[i] / c.n_ensemble;
        x.set(x0);
      }
    }
    this.length++;
    if (last) product(this.w[this.modern ? "lm_head.weight" : "wte.weight"], sum, this.logits);
    return this.logits;
  }

  block(n) {
    const {x, x0, normed, mixed, out, qkv, hidden} = this, name = `blocks.${n}`, mix = this.w[`${name}.mix`];
    if (mix) for (let i = 0; i < x.length; i++) x[i] = mix[0] * x[i] + mix[1] * x0[i];
    this.norm(`${name}.ln_1`);
    this.linear(normed, `${name}.attn.c_attn`, qkv);
    this.attend(this.keys[n], this.values[n]);
    this.linear(mixed, `${name}.attn.c_proj`, out);
    for (let i = 0; i < x.length; i++) x[i] += out[i];
    this.norm(`${name}.ln_2`);
    this.linear(normed, `${name}.mlp.c_fc`, hidden);
    for (let i = 0; i < hidden.length; i++) hidden[i] = this.activation(hidden[i]);
    this.linear(hidden, `${name}.mlp.c_proj`, out);
    for (let i = 0; i < x.length; i++) x[i] += out[i];
  }

  attend(keys, values) {  // from qkv into mixed; a full cache overwrites its oldest position
    const {qkv, mixed, scores, D} = this, C = mixed.length, size = this.c.block_size, held = Math.min(this.length + 1, size);
    mixed.fill(0);
    for (let head = 0; head < this.c.n_head; head++) {
      const at = head * D, from = head * size * D, slot = from + (this.length % size) * D;
      if (this.modern) for (const start of [at, C + at]) { normalise(qkv, start, D, qkv, start); this.turn(start); }
      for (let i = 0; i < D; i++) {
        keys[slot + i] = qkv[C + at + i];
        values[slot + i] = qkv[2 * C + at + i];
      }
      let most = -Infinity, total = 0;
      for (let t = 0, k = from; t < held; t++) {
        let s = 0;
        for (let i = 0; i < D; i++, k++) s += qkv[at + i] * keys[k];
        scores[t] = s / Math.sqrt(D);
        if (scores[t] > most) most = scores[t];
      }
      for (let t = 0; t < held; t++) total += scores[t] = Math.exp(scores[t] - most);
      for (let t = 0, v = from; t < held; t++) {
        const weight = scores[t] / total;
        for (let i = 0; i < D; i++, v++) mixed[at + i] += weight * values[v];
      }
    }
  }

  turn(start) {  // the first half of a head's channels is paired with the second
    const {qkv, cos, sin} = this, half = cos.length;
    for (let i = start, j = 0; j < half; i++, j++) {
      const a = qkv[i], b = qkv[i + half];
      qkv[i] = a * cos[j] - b * sin[j];
      qkv[i + half] = b * cos[j] + a * sin[j];
    }
  }
}

// -------------------------------------------------------------------------- text to ids; a string's characters are bytes of UTF-8

const latin = (text) => Array.from(new TextEncoder().encode(text), (b) => String.fromCharCode(b)).join("");
const bytes = (text) => Uint8Array.from(text, (c) => c.charCodeAt(0));
const PIECES = /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;  // GPT-2's

function known(text) {  // unknown marks replaced by plain ones that are known
  if (header.kind !== "char") return text;
  const has = (other) => Array.from(other).every((c) => ids.has(latin(c)));
  return Array.from(text, (c) => has(c) ? c : (header.plain[c] ?? []).find(has) ?? c).join("");
}

function encode(text) {  // throws {unknown}
  if (header.kind === "char") {
    const unknown = [...new Set(text)].filter((c) => !ids.has(latin(c)));
    if (unknown.length) throw {unknown: unknown.slice(0, 8).join(" ")};
    return Array.from(text, (c) => ids.get(latin(c)));
  }
  return (text.match(PIECES) ?? []).flatMap((piece) => {
    const tokens = [...latin(piece)];
    for (;;) {  // the pair that was learned first is joined first
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < tokens.length; i++) {
        const rank = ids.get(tokens[i] + tokens[i + 1]) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) return tokens.map((token) => ids.get(token));
      tokens.splice(at, 2, tokens[at] + tokens[at + 1]);
    }
  });
}

// -------------------------------------------------------------------------- picking a token

function random(seed) {  // mulberry32, not PyTorch's: the same seed writes another text there
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function pick(logits, job, draw, allowed) {
  const order = allowed ?? header.tokens.map((_, n) => n);
  order.sort((a, b) => logits[b] - logits[a]);
  if (!job.temperature) return order[0];
  const weights = order.map((n) => Math.exp((logits[n] - logits[order[0]]) / job.temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  let kept = 0, reached = 0;
  while (kept < weights.length && (kept === 0 || reached < job.top_p * total)) reached += weights[kept++];
  let u = draw() * reached, n = 0;
  while (n < kept - 1 && u >= weights[n]) u -= weights[n++];
  return order[n];
}

// -------------------------------------------------------------------------- who may speak, as drama/sampling/cast.py says it

class Director {
  constructor(job) {
    const wide = ids.has(latin("："));
    this.headings = job.cast.map((name) => latin(known(name) + (wide && /[^\x00-\u2e7f]/.test(name) ? "：" : ":") + "\n"));
    job.cast.forEach((name) => encode(known(name)));
    this.job = job;
    this.text = latin(job.start);
    this.prompt = this.text.length;
    this.underWay = /[^\n]/.test(this.text) && !this.text.endsWith("\n\n");
    this.turns = job.in_order ? job.cast.length + this.underWay : job.turns;
  }
  begin() {  // where the turns begin
    if (this.underWay) return this.prompt - this.text.endsWith("\n", this.prompt);
    let at = this.prompt;
    while (this.text[at] === "\n") at++;
    return at;
  }
  end() {  // where the last turn ends, with its empty line; undefined before
    let at = this.begin();
    for (let n = 0; n < this.turns; n++) {
      at = this.text.indexOf("\n\n", at);
      if (at < 0) return undefined;
      at += 2;
    }
    return this.turns ? at : undefined;
  }
  paragraph(end) {  // where the one begins that holds what stands before end
    const begin = end < 2 ? -1 : this.text.lastIndexOf("\n\n", end - 2);
    return begin >= 0 ? begin + 2 : Math.min(/^\n*/.exec(this.text)[0].length, end);
  }
  allowed() {  // the tokens that may follow; undefined: all
    const begin = this.paragraph(this.text.length), begun = this.text.slice(begin);
    if (!this.headings.some((heading) => heading.startsWith(begun))) return undefined;
    const rests = this.next(begin).filter((heading) => heading.startsWith(begun)).map((heading) => heading.slice(begun.length));
    const tokens = new Set(rests.flatMap((rest) => Array.from(rest, (_, n) => ids.get(rest.slice(0, n + 1)))));
    tokens.delete(undefined);
    return tokens.size ? [...tokens] : undefined;
  }
  next(begin) {  // the headings that the speech may have that begins there
    if (this.job.in_order) {
      const n = this.text.slice(this.begin()).split("\n\n").length - 1 - this.underWay;
      return this.headings.slice(n, n + 1);
    }
    if (this.job.repeat || this.headings.length === 1) return this.headings;
    const end = this.text.slice(0, begin).replace(/\n+$/, "").length, before = this.paragraph(end);
    const last = this.text.slice(before, this.text.indexOf("\n", before) + 1);
    return this.headings.filter((heading) => heading !== last);
  }
  whole() {  // how much there is without a last speech whose name is not whole yet
    const before = this.text.lastIndexOf("\n\n"), begun = this.text.slice(before + 2);
    return before > 0 && this.headings.some((heading) => heading.startsWith(begun)) ? before : this.text.length;
  }
}

// -------------------------------------------------------------------------- writing

let header, network, ids, running = 0, tokens = [], unread = [];  // of the text that the network has read

function take(all) {  // the tokens of a text to continue: what has been read of it is not read again
  const goesOn = tokens.length > 0 && tokens.every((token, n) => token === all[n]);
  const rest = goesOn ? [...unread, ...all.slice(tokens.length)] : [];
  tokens = all;
  if (rest.length && rest.length + (network.modern ? 0 : network.length) <= network.c.block_size) unread = rest;
  else {
    network.empty();
    unread = all.slice(-network.c.block_size);
  }
}

async function write(job) {  // posts what is added to the text, until it is done or another job begins
  const mine = ++running, post = (message) => running === mine && postMessage({...message, job: job.job});
  let shown = performance.now();
  const pause = async (message) => {  // to hear whether to stop
    post(message);
    await new Promise((done) => setTimeout(done));
    shown = performance.now();
  };
  try {
    job.start = known(job.start);
    const start = encode(job.start || (job.cast.length || !ids.has("\n") ? "" : "\n\n"));
    take(start.length ? start : [ids.get("\n") ?? 0]);
    const director = new Director(job), draw = random(job.seed), decoder = new TextDecoder();
    const limit = director.turns ? 1000 * director.turns : job.length;
    let sent = director.prompt, end;
    const more = (upto) => {
      const added = decoder.decode(bytes(director.text.slice(sent, upto)), {stream: true});
      sent = Math.max(sent, upto);
      return added;
    };
    await pause({start: job.start});
    for (let n = 0; n < limit && end === undefined; n++) {
      let logits;
      while (unread.length && running === mine) {
        logits = network.step(unread.shift(), unread.length === 0);
        if (unread.length && performance.now() - shown > 50) await pause({reading: true});
      }
      if (running !== mine) return;
      const token = pick(logits, job, draw, job.cast.length ? director.allowed() : undefined);
      director.text += header.tokens[token];
      tokens.push(token);
      unread = [token];
      if (network.length === network.c.block_size && !network.modern) {  // learned positions end: half is read again
        network.empty();
        unread = tokens.slice(-Math.max(1, network.c.block_size >> 1));
      }
      end = director.end();
      if (performance.now() - shown > 50 && end === undefined)
        await pause({more: more(director.text.slice(0, director.whole()).replace(/\n+$/, "").length)});
    }
    post({more: more(end ?? director.whole()), done: true, endless: end === undefined && director.turns ? limit : undefined});
  } catch (e) {
    post(e.unknown ? {unknown: e.unknown, done: true} : {error: String(e), done: true});
  }
}

onmessage = ({data}) => {
  if (data.header) {
    header = data.header;
    ids = new Map(header.tokens.map((token, n) => [token, n]));
    network = new Network(header, read(header, data.bytes));
    postMessage({job: 0});
  } else if (data.stop) running++;
  else write(data);
};
