// The page's behaviour: which protocol is shown, tables, charts, one strategy's runs, downloads, light and dark.
"use strict";

const find = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const json = (id) => JSON.parse(document.getElementById(id).textContent);
const OPTIONS = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
const everything = json("data-all");
let present; // the protocol that is shown: its data, its looks, the strategies in its charts

// An element with properties and children; text is never read as HTML.
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "style") element.style.cssText = value;
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// --- tables ----------------------------------------------------------------------------------------------------------

const valueOf = (cell) => {
  const text = cell.dataset.v ?? cell.textContent.trim();
  const number = parseFloat(text);
  return text === "" ? null : Number.isNaN(number) ? text.toLowerCase() : number;
};

function sort(table, column) {
  const heads = all("thead th", table);
  const numbers = heads[column].classList.contains("n");
  const before = heads[column].getAttribute("aria-sort");
  const descending = before ? before === "ascending" : numbers;
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  const keyed = all("tbody tr", table).map((row) => [valueOf(row.cells[column]), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // what is missing comes last either way
    const order = typeof a === typeof b ? (a > b) - (a < b) : (typeof a === "string") - (typeof b === "string");
    return descending ? -order : order;
  });
  find("tbody", table).append(...keyed.map(([, row]) => row));
}

function filter(card) {
  const words = (find(".filter", card)?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const verdict = find(".verdicts", card)?.value ?? "";
  const rows = all("tbody tr", card);
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const judged = !verdict || (verdict === "run" ? row.dataset.verdict !== "not run" : row.dataset.verdict === verdict);
    row.hidden = !judged || !words.every((word) => text.includes(word));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  const said = find(".left-over", card);
  if (said) said.textContent = shown < rows.length ? `${shown} of ${rows.length} rows` : "";
}

function wakeTables(root) {
  for (const table of all("table.sortable", root)) {
    all("thead th", table).forEach((head, column) => find("button", head)?.addEventListener("click", () => sort(table, column)));
  }
  for (const card of all(".table-card", root)) {
    all(".filter, .verdicts", card).forEach((control) => control.addEventListener("input", () => filter(card)));
    filter(card);
  }
}

// --- a protocol ------------------------------------------------------------------------------------------------------

function show(index) {
  const data = json(`data-${index}`);
  present = { data, look: looks(data.lines), shown: new Set(data.lines.filter((line) => line.shown).map((line) => line.strategy)) };
  find("#section").replaceChildren(find(`#section-${index}`).content.cloneNode(true));
  find("#protocol").value = index;
  wakeTables(find("#section"));
  for (const row of all("#comparison tbody tr")) {
    const { strategy } = row.dataset;
    find(".open", row).addEventListener("click", () => open(strategy));
    const box = find("input", row);
    if (!box) continue;
    box.style.setProperty("--mine", `var(${present.look.get(strategy).variable})`);
    box.checked = present.shown.has(strategy);
    box.addEventListener("change", () => toggle(strategy, box.checked));
  }
  const costs = [...new Set(data.lines.flatMap((line) => Object.keys(line.costs)))];
  find("#cost").append(...costs.map((name) => new Option(name)));
  find("#cost").addEventListener("input", draw);
  find("#small-matrices").append(...data.lines.map(smallMatrix));
  drawChips();
  whenNear(find("#charts"), draw);
  showPictures();
}

// Charts are drawn when they are near: their library is large, and the table does not wait for it.
function whenNear(place, act) {
  const watcher = new IntersectionObserver((seen) => {
    if (!seen.some((one) => one.isIntersecting)) return;
    watcher.disconnect();
    place.dataset.drawn = "";
    act();
  }, { rootMargin: "400px" });
  watcher.observe(place);
}

function library() {
  if (!window.Plotly) document.head.append(make("script", {}, find("#plotly").textContent));
  return window.Plotly;
}

function toggle(strategy, on) {
  if (on) present.shown.add(strategy);
  else present.shown.delete(strategy);
  const box = all("#comparison tbody tr").find((row) => row.dataset.strategy === strategy);
  find("input", box).checked = on;
  const chip = all("#chips button").find((one) => one.dataset.strategy === strategy);
  if (chip) chip.setAttribute("aria-pressed", on);
  else drawChips();
  draw();
}

function drawChips() {
  const shown = present.data.lines.filter((line) => present.shown.has(line.strategy));
  find("#chips").replaceChildren(...shown.map((line) => {
    const chip = make("button", { type: "button", "aria-pressed": "true" }, make("i", { style: `color: var(${present.look.get(line.strategy).variable})`, "aria-hidden": "true" }, present.look.get(line.strategy).sign), line.strategy);
    chip.dataset.strategy = line.strategy;
    chip.addEventListener("click", () => toggle(line.strategy, !present.shown.has(line.strategy)));
    return chip;
  }));
}

function draw() {
  if (!("drawn" in find("#charts").dataset)) return;
  const lines = present.data.lines.filter((line) => present.shown.has(line.strategy));
  const { look } = present;
  const whole = { xaxis: { dtick: present.data.lines[0]?.so_far.length > 12 ? undefined : 1 } };
  const cost = find("#cost").value;
  const drawn = {
    "chart-acc": [soFar(lines, look), layout("experiences learned", "accuracy so far (%)", whole), "Accuracy so far"],
    "chart-forgetting": [forgetting(lines, look), layout("experience", "forgetting (points)", whole), "Forgetting by experience"],
    "chart-plane": [
      points(lines, look, (line) => line.learning_accuracy, (line) => line.mean_forgetting),
      layout("learning accuracy (%)", "forgetting (points)"), "Learning accuracy against forgetting",
    ],
    "chart-cost": [
      points(lines, look, (line) => line.costs[cost], (line) => line.acc, (value) => value),
      layout(cost, "ACC (%)", { xaxis: { type: lines.some((line) => line.costs[cost]?.[0] === 0) ? "linear" : "log" } }), `ACC against ${cost}`,
    ],
  };
  for (const [id, [traces, axes, said]] of Object.entries(drawn)) {
    const chart = document.getElementById(id);
    chart.setAttribute("aria-label", `${said} of ${lines.map((line) => line.strategy).join(", ")}; the table above has the numbers.`);
    library().react(chart, traces, axes, OPTIONS);
  }
}

function smallMatrix(line) {
  const cells = line.matrix.flatMap((row) => row.map((value) => make("i", { style: `background:${heat(value)}` })));
  const columns = line.matrix[0].length;
  const button = make(
    "button", { type: "button", "aria-label": `${line.strategy}, ACC ${interval(line.acc)} %: open its matrix` },
    make("b", {}, line.strategy), make("small", {}, `ACC ${written(line.acc[0], 1)} %`),
    make("span", { className: "cells", style: `grid-template-columns: repeat(${columns}, 1fr)`, "aria-hidden": "true" }, ...cells),
  );
  button.addEventListener("click", () => open(line.strategy));
  return button;
}

async function showPictures() {
  const { data } = present;
  const place = find("#made .pictures");
  for (const strategy of Object.keys(data.runs)) {
    if (!data.pictured.includes(strategy)) continue;
    for (const run of await unpack(data.runs[strategy])) place.append(...run.pictures.map((path) => picture(path, strategy, run)));
  }
  find("#made").hidden = !place.children.length;
}

const picture = (path, strategy, run) => make(
  "figure", { className: "card" }, make("figcaption", {}, `${strategy}, seed ${run.seed}`),
  make("img", { src: path, loading: "lazy", alt: `Images made by ${strategy}, seed ${run.seed}` }),
);

// --- the runs of a strategy ------------------------------------------------------------------------------------------

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

async function open(strategy) {
  const runs = await unpack(present.data.runs[strategy]);
  const line = present.data.lines.find((one) => one.strategy === strategy);
  const views = runs.map((run) => [`seed ${run.seed}`, () => ofRun(run, strategy)]);
  if (line) views.unshift(["mean", () => [titled("Accuracy matrix, mean over seeds", matrix(line.matrix))]]);
  const panel = make("div", { role: "tabpanel" });
  const tabs = make("div", { className: "tabs", role: "tablist", "aria-label": "Seeds" });
  views.forEach(([name, content], index) => {
    const tab = make("button", { type: "button", role: "tab" }, name);
    tab.addEventListener("click", () => choose(index));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) choose((index + step + views.length) % views.length, true);
    });
    tabs.append(tab);
  });
  function choose(index, focus = false) {
    [...tabs.children].forEach((tab, at) => {
      tab.setAttribute("aria-selected", at === index);
      tab.tabIndex = at === index ? 0 : -1;
      if (at === index && focus) tab.focus();
    });
    panel.replaceChildren(...views[index][1]());
  }
  choose(0);
  find("#run-body").replaceChildren(
    make("h2", { id: "run-title" }, strategy),
    make("p", { className: "lede" }, present.data.protocol),
    tabs, panel, titled("Settings", pairs(runs[0].settings)),
  );
  find("#run").showModal();
}

const titled = (title, content) => make("div", {}, make("h3", {}, title), content);
const pairs = (values) => make("dl", { className: "pairs" }, ...Object.entries(values).flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)]));

function ofRun(run, strategy) {
  const parts = [];
  if (run.complete) parts.push(titled("Accuracy matrix", matrix(run.matrix)));
  else parts.push(make("p", {}, make("span", { className: "chip failed" }, "failed"), ` ${run.reason}`));
  const copy = make("button", { type: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(run.command);
      copy.textContent = "Copied";
    } catch { // a browser may forbid it to a page from disk: then it is marked, to be copied by hand
      getSelection().selectAllChildren(find(".command code"));
    }
  });
  parts.push(titled("Repeat it", make("div", { className: "command" }, make("code", {}, run.command), copy)));
  const measured = Object.fromEntries(Object.entries(run.metrics).map(([name, value]) => [name, value === null ? `not defined${run.undefined[name] ? `: ${run.undefined[name]}` : ""}` : `${written(value)} %`]));
  parts.push(make(
    "div", { className: "halves" }, titled("Metrics", pairs({ ...measured, seconds: `${run.seconds}` })),
    ...(Object.keys(run.costs).length ? [titled("What it took", pairs(run.costs))] : []), titled("Ran on", pairs(run.environment)),
  ));
  if (run.answered) parts.push(...ofAnswers(run.answered));
  if (run.made) parts.push(...ofMade(run.made));
  if (run.pictures.length) parts.push(make("div", { className: "pictures" }, ...run.pictures.map((path) => picture(path, strategy, run))));
  return parts;
}

const after = (rows) => rows.map((row, index) => (rows.length === 1 && row.length > 1 ? "all" : String(index + 1)));

function matrix(rows) {
  return heatTable(rows, "after \\ on", after(rows), rows[0].map((_, index) => String(index + 1)), "Accuracy in percent, on each experience (column) after each (row)");
}

// Numbers as a table whose cells have their colours.
function heatTable(rows, corner, down, across, said, shade = (value) => value, text = (value) => written(value, 1)) {
  const head = make("tr", {}, make("th", { scope: "col" }, corner), ...across.map((name) => make("th", { scope: "col" }, name)));
  const body = rows.map((row, index) => make(
    "tr", {}, make("th", { scope: "row" }, down[index]),
    ...row.map((value, column) => {
      if (value === null) return make("td", {}, "");
      const share = shade(value, row, column);
      const cell = make("td", { style: `background:${heat(share)};color:${share < 0.6 ? "#fff" : "#111"}` }, text(value));
      cell.dataset.v = value;
      return cell;
    }),
  ));
  return make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": said }, make("table", { className: "heat" }, make("thead", {}, head), make("tbody", {}, ...body)));
}

// How a generator's images of each class fare: nearer to real ones is brighter.
function ofMade({ classes, frechet, reverse }) {
  const farthest = Math.max(...frechet.flat());
  return [
    titled("Frechet distance by class", heatTable(frechet, "after \\ class", after(frechet), classes, "Frechet distance of each class's images (column) after each experience (row)", (value) => 1 - value / farthest, (value) => value.toFixed(1))),
    titled("Reverse accuracy by class", heatTable(reverse, "after \\ class", after(reverse), classes, "Accuracy in percent on real images of each class (column), of a classifier trained on what was generated after each experience (row)")),
  ];
}

// What a run answered on the test stream: confusion after an experience, accuracy by class, recency bias.
function ofAnswers({ confusion, by_class: byClass, recency }) {
  const classes = byClass[0].map((_, index) => String(index));
  const times = Object.keys(confusion);
  const place = make("div", { className: "confusion" });
  const choice = make("select", { className: "confusion-of" }, ...times.map((time) => new Option(time)));
  const show = () => place.replaceChildren(heatTable(
    confusion[choice.value], "is \\ answered", classes, classes, `How often each class (row) was answered with each (column) after experience ${choice.value}`,
    (value, row) => value / Math.max(1, row.reduce((a, b) => a + b, 0)), String,
  ));
  choice.value = times.at(-1);
  choice.addEventListener("input", show);
  show();
  const parts = [
    titled("Confusion", make("div", {}, make("p", {}, make("label", {}, "After experience ", choice)), place)),
    titled("Accuracy by class", heatTable(byClass, "after \\ class", after(byClass), classes, "Accuracy in percent on each class (column) after each experience (row)")),
  ];
  if (recency) {
    parts.push(titled("Recency bias", make(
      "div", {}, make("p", { className: "lede" }, "How much more often the latest experience's classes are answered than they are there, in points, among the samples of the experiences learned so far."),
      heatTable([recency], "after", ["points"], recency.map((_, index) => String(index + 1)), "Recency bias in points after each experience (column)", Math.abs, (value) => written(value, 1)),
    )));
  }
  return parts;
}

// --- the page --------------------------------------------------------------------------------------------------------

function download(what) {
  const files = {
    csv: () => [`${present.data.protocol.replaceAll("/", "-")}.csv`, present.data.csv],
    latex: () => [`${present.data.protocol.replaceAll("/", "-")}.tex`, present.data.latex],
    published: () => ["published.csv", everything.published],
    "all.csv": () => ["comparison.csv", everything.csv],
  };
  const [name, text] = files[what]();
  const link = make("a", { href: URL.createObjectURL(new Blob([text])), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  find("#theme").setAttribute("aria-pressed", name === "dark");
}

function drawDuels() {
  const chart = find("#chart-duels");
  if (!chart || !("drawn" in chart.dataset)) return;
  const { duels: found } = everything;
  chart.style.height = `${90 + 22 * found.length}px`;
  library().react(chart, duels(found), layout("ours minus Avalanche's (points of ACC)", "", { yaxis: { autorange: "reversed", title: {} }, xaxis: { zeroline: true, zerolinewidth: 2, zerolinecolor: css("--soft") }, rest: { margin: { l: 10, r: 16, t: 14, b: 44 } } }), OPTIONS);
}

function start() {
  theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  find("#theme").addEventListener("click", () => {
    theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    draw();
    drawDuels();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-download]");
    if (button) download(button.dataset.download);
  });
  find("#run").addEventListener("click", (event) => event.target === event.currentTarget && event.currentTarget.close());
  find("#protocol").addEventListener("input", (event) => {
    location.replace(`#/${event.target.selectedOptions[0].text}`);
    show(event.target.value);
    scrollTo(0, 0);
  });
  wakeTables(document);
  const named = [...find("#protocol").options].find((option) => `#/${option.text}` === decodeURIComponent(location.hash));
  show(named ? named.value : 0);
  if (find("#chart-duels")) whenNear(find("#chart-duels"), drawDuels);
  addEventListener("beforeprint", () => {
    all("#charts, #chart-duels").forEach((place) => (place.dataset.drawn = ""));
    theme("light");
    draw();
    drawDuels();
  });
}

start();
