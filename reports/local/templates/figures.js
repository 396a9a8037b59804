// What the charts draw: numbers of a protocol's lines -> traces and axes of Plotly.
"use strict";

const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star"];
const SIGNS = ["●", "■", "◆", "▲", "✚", "✖", "★"]; // the same, as text
const DASHES = ["solid", "dash", "dot", "dashdot"];
const COLOURS = 7;
const percent = (value) => 100 * value;
const written = (value, digits = 2) => (value === null || value === undefined ? "" : percent(value).toFixed(digits));
const interval = ([mean, half]) => written(mean) + (half === null ? "" : ` ± ${written(half)}`);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A look for each line: colours first, then other dashes and symbols. Those that are shown at first come first.
function looks(lines) {
  const order = [...lines].sort((a, b) => b.shown - a.shown);
  return new Map(order.map((line, index) => [line.strategy, {
    variable: `--c${index % COLOURS}`,
    symbol: SYMBOLS[(index + Math.floor(index / COLOURS)) % SYMBOLS.length],
    sign: SIGNS[(index + Math.floor(index / COLOURS)) % SYMBOLS.length],
    dash: DASHES[Math.floor(index / COLOURS) % DASHES.length],
  }]));
}

function transparent(colour, alpha) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

const errors = (values, colour) => ({
  type: "data", array: values.map((one) => percent(one[1] || 0)), thickness: 1.2, width: 3, color: colour, visible: true,
});

function soFar(lines, look) {
  const longest = Math.max(...lines.map((line) => line.so_far.length), 1);
  return lines.flatMap((line) => {
    const { variable, symbol, dash } = look.get(line.strategy);
    const colour = css(variable);
    const atOnce = line.so_far.length === 1;
    const x = atOnce ? [longest] : line.so_far.map((_, index) => index + 1);
    const main = {
      x, y: line.so_far.map(([mean]) => percent(mean)), name: line.strategy, mode: "lines+markers",
      line: { color: colour, dash, width: 2 }, marker: { color: colour, symbol, size: atOnce ? 11 : 7 },
      text: line.so_far.map(interval), hovertemplate: "%{text}<extra>%{fullData.name}</extra>",
    };
    if (atOnce) return [{ ...main, error_y: errors(line.so_far, colour) }];
    const edge = (sign) => line.so_far.map(([mean, half]) => percent(mean + sign * (half || 0)));
    const band = {
      x: [...x, ...[...x].reverse()], y: [...edge(1), ...edge(-1).reverse()], fill: "toself", mode: "lines",
      line: { width: 0 }, fillcolor: transparent(colour, 0.16), hoverinfo: "skip",
    };
    return [band, main];
  });
}

function forgetting(lines, look) {
  return lines.filter((line) => line.forgetting.length).map((line) => {
    const { variable, symbol, dash } = look.get(line.strategy);
    const colour = css(variable);
    return {
      x: line.forgetting.map((_, index) => index + 1), y: line.forgetting.map(([mean]) => percent(mean)),
      error_y: errors(line.forgetting, colour), name: line.strategy, mode: "lines+markers",
      line: { color: colour, dash, width: 1.5 }, marker: { color: colour, symbol, size: 8 },
      text: line.forgetting.map(interval), hovertemplate: "%{text}<extra>%{fullData.name}</extra>",
    };
  });
}

function points(lines, look, across, up, scale = percent) {
  return lines.filter((line) => across(line) && up(line)).map((line) => {
    const { variable, symbol } = look.get(line.strategy);
    const colour = css(variable);
    const [x, y] = [across(line), up(line)];
    return {
      x: [scale(x[0])], y: [percent(y[0])], error_y: errors([y], colour),
      error_x: { type: "data", array: [scale(x[1] || 0)], thickness: 1.2, width: 3, color: colour },
      name: line.strategy, mode: "markers", marker: { color: colour, symbol, size: 12, line: { color: css("--card"), width: 1 } },
      hovertemplate: "%{x:.4~g}, %{y:.2f}<extra>%{fullData.name}</extra>",
    };
  });
}

function duels(found) {
  const colours = { better: css("--c2"), level: css("--soft"), worse: css("--c1") };
  const symbols = { better: "triangle-right", level: "circle", worse: "triangle-left" };
  return Object.keys(colours).map((verdict) => {
    const own = found.filter((duel) => duel.verdict === verdict);
    return {
      x: own.map((duel) => percent(duel.difference.mean)), y: own.map((duel) => `${duel.strategy} · ${duel.protocol}`),
      error_x: { type: "data", array: own.map((duel) => percent(duel.difference.half_width || 0)), color: colours[verdict], thickness: 1.5, width: 3 },
      name: verdict, mode: "markers", marker: { color: colours[verdict], symbol: symbols[verdict], size: 10 },
      text: own.map((duel) => `${duel.counterpart}: ${written(duel.theirs.mean)}; ours: ${written(duel.ours.mean)}`),
      hovertemplate: "%{x:+.2f}<br>%{text}<extra></extra>",
    };
  });
}

function layout(across, up, more = {}) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: css("--soft") },
    margin: { l: 52, r: 16, t: 14, b: 44 }, hoverlabel: { namelength: -1 },
    xaxis: { ...axis, title: { text: across, standoff: 8 }, ...more.xaxis },
    yaxis: { ...axis, title: { text: up, standoff: 6 }, ...more.yaxis },
    ...more.rest,
  };
}

// viridis, at five points: the colours of all heat maps here.
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function heat(value) {
  const at = Math.min(Math.max(value, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return `rgb(${VIRIDIS[low].map((from, i) => Math.round(from + (at - low) * (VIRIDIS[low + 1][i] - from))).join(",")})`;
}
