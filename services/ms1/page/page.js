// The page of MS1. It reads GET /events and asks the rest of the API on demand.

const $ = (id) => document.getElementById(id);
const traces = document.querySelector('meta[name="traces"]').content;

const hopNames = {
  ms1_to_ms2: "MS1 to MS2", ms2_to_ms3: "MS2 to MS3", ms3_to_ms1: "MS3 to MS1", commit: "Commit", round: "Whole round",
};
const maxPoints = 300; // of the chart over time
const silence = 6000; // ms without an event until the connection counts as lost
const chartsEvery = 5; // events

// Elements

// An element is described by html or svg, and created by make or fill.
const described = (space) => (tag, attributes = {}, ...children) => ({
  space: `http://www.w3.org/${space}`, tag, attributes, children: children.flat().filter((child) => child !== null && child !== undefined),
});
const html = described("1999/xhtml");
const svg = described("2000/svg");
const words = (x, y, style, ...text) => svg("text", { x, y, class: style }, ...text);

function set(element, name, value) {
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (value === false || value === null || value === undefined) element.removeAttribute(name);
  else element.setAttribute(name, value === true ? "" : value);
}
function make(what) {
  if (!what.tag) return what; // a text or an element
  const element = document.createElementNS(what.space, what.tag);
  for (const name in what.attributes) set(element, name, what.attributes[name]);
  fill(element, ...what.children);
  return element;
}
// fill gives a box its content. It changes only what differs from the content
// before, since a browser lays out and paints again what is set. Elements with
// handlers or with a state must be made.
function fill(box, ...content) {
  const before = box.content || [];
  box.content = content;
  content.forEach((what, i) => {
    const was = before[i];
    const old = box.childNodes[i];
    if (!old) box.append(make(what));
    else if (what.tag && what.tag === was?.tag) {
      for (const name in { ...was.attributes, ...what.attributes }) if (was.attributes[name] !== what.attributes[name]) set(old, name, what.attributes[name]);
      fill(old, ...what.children);
    } else if (typeof what === "string" && typeof was === "string") {
      if (what !== was) old.data = what;
    } else if (what !== was) old.replaceWith(make(what));
  });
  while (box.childNodes.length > content.length) box.lastChild.remove();
}
// draw fills a box with what a function returns, again when the layout changes.
function draw(box, what) {
  box.drawn = what;
  fill(box, what());
}
const picture = (width, height, label, ...children) => svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...children);

// Notations

const minus = "\u2212";
const dash = "\u2013"; // for an unknown value
const [whole, tenths] = [0, 1].map((digits) => new Intl.NumberFormat("en", { maximumFractionDigits: digits }));
const count = (n) => (n === null || n === undefined ? dash : whole.format(n));
const rate = (n) => `${(n < 10 ? tenths : whole).format(n)}/s`;
const pad = (n) => String(n).padStart(2, "0");

function duration(seconds) {
  if (seconds === null || seconds === undefined) return dash;
  const size = Math.abs(seconds);
  const [scale, unit] = size < 1e-3 ? [1e6, "µs"] : size < 1 ? [1e3, "ms"] : [1, "s"];
  return `${seconds < 0 ? minus : ""}${Number((size * scale).toPrecision(3))} ${unit}`;
}

function clock(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const hours = Math.floor(s / 3600);
  return (hours ? `${hours}:${pad(Math.floor(s / 60) % 60)}` : `${Math.floor(s / 60)}`) + `:${pad(s % 60)}`;
}

const moment = (stamp) => (stamp ? stamp.slice(0, 19).replace("T", " ") : dash);
const micros = (stamp) => Date.parse(stamp.slice(0, 19) + "Z") * 1000 + Number(stamp.slice(20, 26));
const hopsOf = (hops) => Object.keys(hopNames).filter((hop) => hops && hops[hop]);

// Requests

let token = ""; // only in memory

// request fetches a path with the token, for which it asks when MS1 refuses.
async function request(path, options = {}) {
  for (;;) {
    const used = token;
    const headers = { ...options.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    const answer = await fetch(path, { ...options, headers, cache: "no-store" });
    if (answer.status !== 401) return answer;
    if (used === token) await askToken();
    if (!token) return answer; // the question was cancelled
  }
}

let asking = null;
function askToken() {
  asking ??= new Promise((resolve) => {
    $("token").value = $("ask").returnValue = "";
    $("ask").showModal();
    $("ask").addEventListener("close", () => {
      token = $("ask").returnValue === "ok" ? $("token").value : "";
      $("token").value = "";
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}

async function get(path) {
  const answer = await request(path);
  const stranger = new Error(`Status ${answer.status} of another server than MS1.`); // such as a proxy
  const body = await answer.json().catch((error) => {
    throw error instanceof SyntaxError ? stranger : error;
  });
  if (!answer.ok) throw body.detail ? new Error(body.detail) : stranger;
  return body;
}

const reason = (error) => (error instanceof TypeError ? "MS1 does not answer." : error.message);

// Events

let lastID = "0"; // at first all that MS1 has kept
let latest = null; // event
let points = []; // events of the current session
let distributions = null; // of the current session
let online = false;
const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));

async function listen() {
  for (let wait = 500; ; wait = Math.min(2 * wait, 5000)) {
    const abort = new AbortController();
    let timer;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(), silence);
    };
    try {
      const answer = await request("events", { headers: { "Last-Event-ID": lastID }, signal: abort.signal });
      if (!answer.ok || !answer.headers.get("Content-Type")?.startsWith("text/event-stream")) throw new Error("no events");
      const reader = answer.body.getReader();
      const decoder = new TextDecoder();
      let text = "";
      for (alive(); ;) {
        const { value, done } = await reader.read();
        if (done) break;
        alive();
        const parts = (text + decoder.decode(value, { stream: true })).split("\n\n");
        text = parts.pop();
        parts.forEach(receive);
        if (parts.length) {
          wait = 500;
          setTimeout(() => setOnline(true)); // whose errors must not look like those of the connection
        }
      }
    } catch {
      // The next attempt follows.
    }
    clearTimeout(timer);
    setOnline(false);
    await pause(wait);
  }
}

function receive(text) {
  const [id, data] = text.split("\ndata: ");
  lastID = id.slice("id: ".length);
  const event = JSON.parse(data);
  const before = latest;
  latest = event;
  if (event.session?.id !== before?.session?.id) {
    points = [];
    distributions = null;
    sinceCharts = 0;
  }
  if (event.state !== "idle" || points.length) points.push(event);
  if (points.length > maxPoints) points.shift();
  if (!before) loadHistogram();
  else if (event.state !== before.state || event.session?.id !== before.session?.id) changed(event);
}

// changed announces a new state, and brings in what belongs to it.
function changed({ state, session }) {
  if (!session) return; // MS1 has restarted and not read the database yet
  if (state === "running") $("announce").textContent = `Session ${session.id} is running.`;
  if (state === "idle") {
    $("problem").textContent = "";
    $("announce").textContent = `Session ${session.id} has ended: ${count(session.generated)} generated, ${count(session.stored)} stored, ${count(session.lost)} lost.`;
    loadHistogram();
  }
  if (view() === "sessions") loadSessions();
  if (location.hash === `#session/${session.id}`) loadSession(String(session.id));
}

let readable = true; // MS1 answers, and its database is ready
function setOnline(now) {
  const before = readable;
  online = now;
  $("offline").hidden = now;
  readable = now && latest.checks.database === "ok";
  if (readable && !before && document.querySelector("main .problem:not(:empty)")) navigate(false);
  show();
}

// Live view

let sinceCharts = 0; // events
function show() {
  const badge = $("state");
  const state = online ? latest.state : "offline";
  if (badge.textContent !== state) {
    badge.textContent = state;
    badge.className = `badge ${state === "offline" ? "lost" : state}`;
  }
  const recent = online && latest.state !== "idle" ? latest.recent : null;
  const due = !recent || sinceCharts++ % chartsEvery === 0;
  // A browser draws its window for a title; who sees the page needs none.
  const title = recent && document.hidden ? `${rate(recent.stored_per_second)} ${dash} tricycle` : "tricycle";
  if (due && document.title !== title) document.title = title;
  if (latest === null) return;
  $("start").disabled = !online || latest.state !== "idle";
  $("stop").disabled = !online || latest.state === "idle";
  if (view() !== "live" || document.hidden) return;
  draw($("round"), () => drawRound(recent));
  showSession();
  if (!due) return;
  draw($("over-time"), drawOverTime);
  if (latest.session) showHops();
  if (recent) loadHistogram();
}

function showSession() {
  const s = latest.session;
  if (!s) {
    fill($("progress-text"), "No session yet.");
    return;
  }
  const running = latest.state !== "idle";
  const left = s.interval_seconds - s.total_seconds;
  $("progress").max = s.interval_seconds;
  $("progress").value = running ? Math.min(s.total_seconds, s.interval_seconds) : s.interval_seconds;
  const text = latest.state === "running"
    ? `Session ${s.id}: ${clock(s.total_seconds)} of ${clock(s.interval_seconds)}, ${clock(left)} left`
    : running ? `Session ${s.id}: draining, waiting for the messages in flight`
      : `Session ${s.id} ended: ${s.end_reason}${s.total_seconds === null ? "" : ` after ${s.total_seconds.toFixed(1)} s`}`;
  fill($("progress-text"), s.error ? `${text}. ${s.error}` : text);
  fill($("figures"), ...figures({ ...s, lost: running ? s.lost - latest.messages_in_flight : s.lost }, running ? latest.messages_in_flight : 0));
}

function showHops() {
  fill($("hops"), hopTable(latest.session.hops || distributions, "Latency of the session"));
}

function figures(s, inFlight) {
  const pair = (name, value, style) => html("div", {}, html("dt", {}, name), html("dd", { class: style }, value));
  return [
    pair("Generated", count(s.generated)), pair("Stored", count(s.stored)),
    inFlight === undefined ? null : pair("In flight", count(inFlight)),
    pair("Resent", count(s.resent)), pair("Duplicates", count(s.duplicates)),
    pair("Lost", count(s.lost), s.lost > 0 ? "bad" : null),
  ].filter(Boolean);
}

function hopTable(hops, caption) {
  const shown = hopsOf(hops);
  if (!shown.length) return html("p", {}, "No message is stored yet.");
  const skewed = shown.some((hop) => hops[hop].negative);
  return html("table", {}, html("caption", { class: "hidden" }, caption),
    html("thead", {}, html("tr", {}, ...["Hop", "p50", "p95", "p99", "Max", ...(skewed ? ["Negative"] : [])].map((name) => html("th", { scope: "col" }, name)))),
    html("tbody", {}, ...shown.map((hop) => {
      const h = hops[hop];
      return html("tr", {}, html("th", { scope: "row" }, hopNames[hop]),
        ...[h.p50_seconds, h.p95_seconds, h.p99_seconds, h.max_seconds].map((t) => html("td", {}, duration(t))),
        skewed ? html("td", { class: h.negative ? "bad" : null }, h.negative ? `${count(h.negative)} (clocks differ)` : "0") : null);
    })));
}

// The round: the parts and the edges between them, in two layouts.

const layouts = {
  wide: {
    size: [720, 325], box: [112, 62],
    parts: { ms1: [4, 60], ms2: [200, 60], kafka: [402, 60], ms3: [604, 60], database: [4, 255] },
    edges: {
      ms1_to_ms2: { path: "M116 91H192", head: [200, 91, 0], label: [158, 14, "middle"] },
      produce: { path: "M312 91H394", head: [402, 91, 0] },
      ms2_to_ms3: { path: "M514 91H596", head: [604, 91, 0], label: [458, 14, "middle"] },
      ms3_to_ms1: { path: "M660 122V210H88V130", head: [88, 122, 270], label: [374, 200, "middle", 1] },
      commit: { path: "M32 122V247", head: [32, 255, 90], label: [132, 274, ""] },
      round: { label: [716, 274, "end"] },
    },
  },
  tall: {
    size: [360, 660], box: [140, 66],
    parts: { ms1: [30, 10], ms2: [30, 140], kafka: [30, 270], ms3: [30, 400], database: [30, 530] },
    edges: {
      ms1_to_ms2: { path: "M100 76V132", head: [100, 140, 90], label: [114, 94, ""] },
      produce: { path: "M100 206V262", head: [100, 270, 90] },
      ms2_to_ms3: { path: "M100 336V392", head: [100, 400, 90], label: [114, 354, ""] },
      ms3_to_ms1: { path: "M170 433H348V43H178", head: [170, 43, 180], label: [182, 452, ""] },
      commit: { path: "M30 43H10V563H22", head: [30, 563, 0], label: [182, 545, ""] },
      round: { label: [114, 624, ""] },
    },
  },
};
const edgeNames = { ms1_to_ms2: "WebSocket", ms2_to_ms3: "through Kafka", ms3_to_ms1: "POST /store", commit: "INSERT", round: "Whole round" };
const partNames = { ms1: "MS1", ms2: "MS2", kafka: "Kafka", ms3: "MS3", database: "Database" };
const narrow = matchMedia("(max-width: 40rem)");
narrow.addEventListener("change", () => {
  fit();
  for (const box of document.querySelectorAll("*")) if (box.drawn) draw(box, box.drawn);
});

// health returns the class and the text of a part's health.
function health(part) {
  if (!online) return ["", "unknown"];
  const check = part === "ms1" ? "ok" : latest.checks[part];
  if (check === undefined) return ["", "not checked"];
  return check === "ok" ? ["ok", "\u2713 ready"] : ["failed", `\u2715 ${check}`];
}

// The dashes move once an event: a steady animation would cost a tab more than
// all the rest of the page. They have an element of their own, whose change does
// not reach the labels.
let step = 0;
function drawRound(recent) {
  const layout = layouts[narrow.matches ? "tall" : "wide"];
  const [width, height] = layout.box;
  const rates = recent && {
    ms1_to_ms2: recent.sent_per_second, ms2_to_ms3: recent.returned_per_second, ms3_to_ms1: recent.returned_per_second,
    commit: recent.stored_per_second, round: recent.stored_per_second,
  };
  const spoken = [];
  const edges = Object.values(layout.edges).filter(({ path }) => path).map(({ path, head: [x, y, turn] }) => [
    svg("path", { class: "edge", d: path }), svg("path", { class: "head", d: "M0 0l-9 -5v10z", transform: `translate(${x} ${y}) rotate(${turn})` }),
  ]);
  const labels = Object.entries(layout.edges).filter(([, { label }]) => label).map(([name, { label: [x, y, style, above] }]) => {
    const hop = recent?.hops?.[name];
    const lines = [
      rates ? rate(rates[name]) : "",
      hop ? `p50 ${duration(hop.p50_seconds)}, p99 ${duration(hop.p99_seconds)}` : "",
    ].filter(Boolean);
    if (lines.length) spoken.push(`${edgeNames[name]}: ${lines.join(", ")}`);
    const top = above ? y - 16 * lines.length : y;
    return [words(x, top, `strong ${style}`, edgeNames[name]), ...lines.map((line, i) => words(x, top + 16 * (i + 1), style, line))];
  });
  const parts = Object.entries(layout.parts).map(([name, [x, y]]) => {
    const [style, text] = health(name);
    spoken.unshift(`${partNames[name]} ${text}`);
    return svg("g", {}, svg("rect", { class: `part ${style}`, x, y, width, height, rx: 9 }),
      words(x + width / 2, y + 29, "strong middle", partNames[name]),
      words(x + width / 2, y + 50, `middle ${{ ok: "good", failed: "failed-text" }[style] || "soft"}`, text));
  });
  return picture(...layout.size, `MS1 sends to MS2, MS2 through Kafka to MS3, MS3 back to MS1, MS1 stores in the database. ${spoken.join(". ")}.`,
    svg("g", recent?.returned_per_second > 0 ? { class: "moving", "stroke-dashoffset": (step -= 5) } : {}, ...edges.flat()), ...labels.flat(), ...parts);
}

// Charts

const chart = { width: 520, height: 250, left: 62, right: 52, top: 14, bottom: 34 };
const inner = { width: 0, height: chart.height - chart.top - chart.bottom };
function fit() {
  chart.width = narrow.matches ? 340 : 520;
  inner.width = chart.width - chart.left - chart.right;
}
fit();

// decades returns the powers of ten that enclose the values.
function decades(values) {
  const low = Math.floor(Math.log10(Math.min(...values)) + 1e-9);
  return [low, Math.max(low + 1, Math.ceil(Math.log10(Math.max(...values)) - 1e-9))];
}

function powers([low, high]) {
  return Array.from({ length: high - low + 1 }, (_, i) => low + i);
}

const nothing = (text) => html("p", {}, text);

function drawOverTime() {
  const hop = $("hop").value;
  const shown = points.filter((event) => event.recent?.hops?.[hop]);
  const values = shown.flatMap(({ recent: { hops } }) => [hops[hop].p50_seconds, hops[hop].p99_seconds]).filter((t) => t > 0);
  if (!values.length) {
    const negative = shown.some(({ recent: { hops } }) => hops[hop].negative);
    return nothing(negative ? "All times are negative, because clocks differ." : "No message in the last minutes.");
  }
  const range = decades(values);
  const from = micros(shown[0].at);
  const span = Math.max(10e6, micros(shown.at(-1).at) - from);
  const x = (event) => chart.left + (inner.width * (micros(event.at) - from)) / span;
  const y = (seconds) => chart.top + inner.height * (1 - (Math.log10(seconds) - range[0]) / (range[1] - range[0]));
  const line = (quantile) => {
    let d = "";
    for (const event of shown) {
      const t = event.recent.hops[hop][quantile];
      if (t > 0) d += `${d ? "L" : "M"}${x(event).toFixed(1)} ${y(t).toFixed(1)}`;
    }
    return d.includes("L") ? d : `${d}h2`;
  };
  const last = shown.at(-1);
  const end = (quantile, name, style) => {
    const t = last.recent.hops[hop][quantile];
    return t > 0 ? words(x(last) + 6, y(t) + 4, style, name) : null;
  };
  return picture(chart.width, chart.height,
    `${hopNames[hop]} over time. Now p50 ${duration(last.recent.hops[hop].p50_seconds)}, p99 ${duration(last.recent.hops[hop].p99_seconds)}.`,
    ...powers(range).map((p) => [
      svg("line", { class: "grid", x1: chart.left, x2: chart.left + inner.width, y1: y(10 ** p), y2: y(10 ** p) }),
      words(chart.left - 8, y(10 ** p) + 4, "soft end", duration(10 ** p)),
    ]).flat(),
    ...[0, 0.5, 1].map((part) => words(chart.left + inner.width * part, chart.height - 10, `soft ${part ? "middle" : ""}`, `${Math.round((span * part) / 1e6)} s`)),
    svg("path", { class: "tail", d: line("p99_seconds") }), svg("path", { class: "median", d: line("p50_seconds") }),
    end("p99_seconds", "p99", "tail-text"), end("p50_seconds", "p50", "median-text"));
}

function drawHistogram(hops, hop) {
  const h = hops?.[hop];
  const note = h?.negative ? `${count(h.negative)} messages have a negative time, because clocks differ.` : null;
  if (!h?.buckets.length) return nothing(note || "No message is stored yet.");
  const least = (bucket) => bucket.from_seconds || bucket.to_seconds / 10 ** 0.1;
  const range = decades(h.buckets.flatMap((b) => [least(b), b.to_seconds]));
  const most = Math.max(...h.buckets.map((b) => b.count));
  const x = (seconds) => chart.left + (inner.width * (Math.log10(seconds) - range[0])) / (range[1] - range[0]);
  const y = (n) => chart.top + inner.height * (1 - n / most);
  const mark = (quantile, name, style, line) => {
    if (!(h[quantile] > 0)) return null;
    const at = x(h[quantile]);
    const left = name === "p50" && at > chart.left + 90; // where it does not cover p99
    return svg("g", {}, svg("line", { class: style, x1: at, x2: at, y1: chart.top, y2: chart.top + inner.height }),
      words(at + (left ? -5 : 5), chart.top + line, `${style}-text ${left ? "end" : ""}`, `${name} ${duration(h[quantile])}`));
  };
  return html("div", {}, picture(chart.width, chart.height,
    `Histogram, ${hopNames[hop]}: p50 ${duration(h.p50_seconds)}, p99 ${duration(h.p99_seconds)}, maximum ${duration(h.max_seconds)}.`,
    ...[0, 0.5, 1].map((part) => [
      svg("line", { class: "grid", x1: chart.left, x2: chart.left + inner.width, y1: y(most * part), y2: y(most * part) }),
      words(chart.left - 8, y(most * part) + 4, "soft end", part === 0.5 && most < 2 ? "" : count(Math.round(most * part))),
    ]).flat(),
    ...h.buckets.map((b) => svg("rect", {
      class: "bar", x: x(least(b)).toFixed(1), width: (x(b.to_seconds) - x(least(b))).toFixed(1),
      y: Math.min(y(b.count), chart.top + inner.height - 1).toFixed(1), height: Math.max(1, chart.top + inner.height - y(b.count)).toFixed(1),
    }, svg("title", {}, `${duration(b.from_seconds)} to ${duration(b.to_seconds)}: ${count(b.count)}`))),
    ...powers(range).map((p) => words(x(10 ** p), chart.height - 10, "soft middle", duration(10 ** p))),
    mark("p99_seconds", "p99", "tail", 12), mark("p50_seconds", "p50", "median", 28)), note ? nothing(note) : null);
}

async function loadHistogram() {
  if (!latest?.session) return;
  try {
    const { session_id, hops } = await get(`sessions/${latest.session.id}/hops`);
    if (session_id !== latest.session?.id) return;
    distributions = hops;
  } catch {
    return; // the next event asks again
  }
  draw($("histogram"), () => drawHistogram(distributions, $("hop").value));
  showHops();
}

// hopChoice fills a selection of hops.
function hopChoice(select, hops) {
  const before = select.value || "round";
  fill(select, ...hops.map((hop) => html("option", { value: hop, selected: hop === before }, hopNames[hop])));
}

// Sessions

const pages = [""]; // queries of the pages up to the shown one
let next = null; // also until the answer is there
async function loadSessions() {
  const query = pages.at(-1);
  next = null;
  try {
    const page = await get(`sessions${query}`);
    if (query !== pages.at(-1)) return;
    next = page.next;
    fill($("session-list"), page.sessions.length ? html("table", {},
      html("thead", {}, html("tr", {}, ...["Session", "Started, UTC", "Generated", "Stored", "Lost", "Interval", "In flight", "End"].map((name) => html("th", { scope: "col" }, name)))),
      html("tbody", {}, ...page.sessions.map((s) => html("tr", {},
        html("td", {}, html("a", { href: `#session/${s.id}`, "aria-label": `Session ${s.id}` }, String(s.id))),
        html("td", {}, moment(s.started_at)), html("td", {}, count(s.generated)), html("td", {}, count(s.stored)),
        html("td", { class: s.end_reason && s.lost > 0 ? "bad" : null }, s.end_reason ? count(s.lost) : dash),
        html("td", {}, `${s.interval_seconds} s`), html("td", {}, count(s.in_flight)),
        html("td", {}, s.end_reason || "open"))))) : nothing("No session yet."));
  } catch (error) {
    if (query !== pages.at(-1)) return;
    fill($("session-list"), html("p", { class: "problem" }, reason(error)));
  }
  $("older").disabled = next === null;
  $("newer").disabled = pages.length === 1;
}

async function loadSession(id) {
  const box = $("session");
  const shown = () => location.hash === `#session/${id}`;
  fill(box, html("section", { class: "card" }, html("h2", { tabindex: "-1" }, `Session ${id}`), nothing("Loading.")));
  try {
    const s = await get(`sessions/${id}`);
    if (!shown()) return;
    const histogram = make(html("div", {}, nothing("Loading.")));
    const slowest = make(html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Slowest messages" }, nothing("Loading.")));
    fill(box, html("section", { class: "card" },
      html("div", { class: "row" }, html("h2", { tabindex: "-1" }, `Session ${id}`),
        html("span", {}, download(id, "csv"), " ", download(id, "ndjson"))),
      html("p", {}, `Started ${moment(s.started_at)} UTC, ${s.end_reason ? `ended ${moment(s.ended_at)} UTC: ${s.end_reason}` : "still open"}. `
        + `Interval ${s.interval_seconds} s, at most ${count(s.in_flight)} in flight.`),
      html("dl", { class: "figures" }, ...figures({ ...s, lost: s.end_reason ? s.lost : null })),
      html("h3", {}, "Latency"), histogram,
      html("h3", {}, "Slowest messages"), slowest,
      html("h3", {}, "Lost messages"), lostMessages(s)));
    if (!document.activeElement.closest("header")) box.querySelector("h2").focus();
    get(`sessions/${id}/hops`).then(({ hops }) => showDistributions(histogram, hops), (error) => fill(histogram, nothing(reason(error))));
    get(`sessions/${id}/messages?order=slowest&limit=10`).then(({ messages }) => showMessages(slowest, messages), (error) => fill(slowest, nothing(reason(error))));
  } catch (error) {
    if (!shown()) return;
    fill(box, html("section", { class: "card" }, html("h2", { tabindex: "-1" }, `Session ${id}`), html("p", { class: "problem", role: "alert" }, reason(error))));
  }
}

function download(id, format) {
  return html("a", { class: "button", href: `sessions/${id}/messages?format=${format}`, download: `session-${id}.${format}` }, format.toUpperCase());
}

function showDistributions(box, hops) {
  const shown = hopsOf(hops);
  if (!shown.length) {
    fill(box, nothing("No message is stored."));
    return;
  }
  const graph = make(html("figure"));
  const graphed = () => drawHistogram(hops, choice.value);
  const choice = make(html("select", { onchange: () => draw(graph, graphed) }));
  hopChoice(choice, shown);
  draw(graph, graphed);
  fill(box, html("div", { class: "charts" },
    html("div", {}, html("div", { class: "row" }, html("label", {}, "Hop ", choice)), graph),
    html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Latency by hop" }, hopTable(hops, "Latency by hop"))));
}

// traceURL returns the address of a trace. That of Jaeger may end with a slash
// or a query.
function traceURL(id) {
  const url = new URL(traces);
  url.pathname = url.pathname.replace(/\/*$/, `/trace/${id}`);
  return url.href;
}

function showMessages(box, messages) {
  if (!messages.length) {
    fill(box, nothing("No message is stored."));
    return;
  }
  const rows = messages.map((m, i) => {
    const cell = make(html("td", { class: "detail", colspan: 3 }));
    draw(cell, () => waterfall(m));
    const detail = make(html("tr", { hidden: true, id: `message-${i}` }, cell));
    const row = make(html("tr", {},
      html("td", {}, html("button", {
        type: "button", class: "plain", "aria-expanded": "false", "aria-controls": detail.id,
        onclick: ({ target }) => {
          detail.hidden = !detail.hidden;
          row.classList.toggle("open", !detail.hidden);
          target.setAttribute("aria-expanded", String(!detail.hidden));
        },
      }, m.service1_timestamp.slice(11, 26))),
      html("td", {}, duration((micros(m.end_timestamp) - micros(m.service1_timestamp)) / 1e6)),
      html("td", {}, traces ? html("a", { href: traceURL(m.trace_id), rel: "noreferrer", "aria-label": `Trace of the message of ${m.service1_timestamp}` }, "Trace") : html("code", {}, m.trace_id.slice(0, 8)))));
    return [row, detail];
  });
  fill(box, html("table", {},
    html("thead", {}, html("tr", {}, ...["Sent, UTC", "Round", "Trace"].map((name) => html("th", { scope: "col" }, name)))),
    html("tbody", {}, ...rows.flat())));
}

// waterfall draws the three hops of a message on a common axis.
function waterfall(m) {
  const start = micros(m.service1_timestamp);
  const at = [0, ...["service2_timestamp", "service3_timestamp", "end_timestamp"].map((name) => (micros(m[name]) - start) / 1e6)];
  const low = Math.min(...at);
  const span = Math.max(...at) - low || 1e-6;
  const width = narrow.matches ? 380 : 600;
  const x = (seconds) => 100 + ((width - 185) * (seconds - low)) / span;
  const hops = ["ms1_to_ms2", "ms2_to_ms3", "ms3_to_ms1"].map((hop, i) => ({ name: hopNames[hop], from: at[i], to: at[i + 1], time: at[i + 1] - at[i] }));
  return html("div", {},
    picture(width, 118, `Waterfall: ${hops.map((hop) => `${hop.name} ${duration(hop.time)}`).join(", ")}.`,
      svg("line", { class: "grid", x1: x(0), x2: x(0), y1: 4, y2: 112 }),
      ...hops.map(({ name, from, to, time }, i) => svg("g", {},
        words(0, 26 + 36 * i, "", name),
        svg("rect", { class: `bar ${time < 0 ? "negative" : ""}`, x: x(Math.min(from, to)), y: 10 + 36 * i, width: Math.max(2, x(Math.max(from, to)) - x(Math.min(from, to))), height: 24 }),
        words(x(Math.max(from, to)) + 6, 26 + 36 * i, "", duration(time))))),
    html("p", {}, hops.some((hop) => hop.time < 0) ? "A negative time means that the clocks of two machines differ. " : "",
      "Trace id ", html("code", {}, m.trace_id)));
}

function lostMessages(s) {
  if (!s.end_reason) return nothing("Known when the session has ended.");
  if (s.lost === null) return nothing("Unknown: the session was interrupted.");
  if (s.lost === 0) return nothing("None.");
  return html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Lost messages" },
    nothing(`${s.lost === 1 ? "1 message is" : `${count(s.lost)} messages are`} lost${s.lost > s.lost_messages.length ? `, the first ${count(s.lost_messages.length)} recorded ones are listed` : ""}.`),
    html("table", {},
      html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "Sent, UTC"), html("th", { scope: "col", class: "left" }, "Reason"))),
      html("tbody", {}, ...s.lost_messages.map((m) => html("tr", {}, html("td", {}, m.service1_timestamp.slice(11, 26)), html("td", { class: "left" }, m.reason))))));
}

// Views and controls

const views = ["live", "sessions", "session"];
const route = () => (location.hash.slice(1) || "live").split("/");
const view = () => route()[0];
const known = ([name, ...rest]) => (name === "session" ? /^[1-9]\d*$/.test(rest.join("/")) : views.includes(name));

function navigate(focus) {
  const [name, id] = route();
  if (!known(route())) {
    location.replace("#live");
    return;
  }
  for (const other of views) $(other).hidden = other !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}` || (link.hash === "#sessions" && name === "session")) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "sessions") loadSessions();
  if (name === "session") loadSession(id);
  if (name === "live" && latest) {
    sinceCharts = 0;
    show();
    if (latest.state === "idle") loadHistogram();
  }
  if (focus && name !== "session") $(name).querySelector("h2").focus();
}

// act sends /start or /stop and shows a refusal.
async function act(path) {
  $("problem").textContent = "";
  for (const id of ["start", "stop"]) $(id).disabled = true;
  try {
    await get(path);
  } catch (error) {
    $("problem").textContent = reason(error);
    if (latest) show();
  }
}

$("control").addEventListener("submit", (event) => {
  event.preventDefault();
  act(`start?interval=${$("interval").valueAsNumber}&in_flight=${$("in-flight").valueAsNumber}`);
});
$("stop").addEventListener("click", () => act("stop"));
$("hop").addEventListener("change", () => {
  draw($("over-time"), drawOverTime);
  draw($("histogram"), () => drawHistogram(distributions, $("hop").value));
});
$("older").addEventListener("click", () => {
  if (next === null) return; // a second click, before the answer
  pages.push(`?before=${next}`);
  loadSessions();
});
$("newer").addEventListener("click", () => {
  if (pages.length > 1) pages.pop();
  loadSessions();
});
addEventListener("hashchange", () => navigate(true));
document.addEventListener("visibilitychange", () => {
  sinceCharts = 0;
  show();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});

hopChoice($("hop"), Object.keys(hopNames));
navigate(false);
listen();
