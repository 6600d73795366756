// The panels of dashboard.json, drawn by Grafana's own components from what Prometheus answered (data.json).
import React from 'react';
import { createRoot } from 'react-dom/client';
import {
  createTheme, FieldType, getDisplayProcessor, toDataFrame, dateTime, ThemeContext, LoadingState,
} from '@grafana/data';
import { BigValue, GlobalStyles, PanelChrome, TimeSeries } from '@grafana/ui';
import 'uplot/dist/uPlot.min.css';
import data from './data.json';

const theme = createTheme({ colors: { mode: 'light' } });
const [COLUMNS, ROW, GAP, WIDTH] = [24, 30, 8, 1600];
const cell = WIDTH / COLUMNS;

const range = {
  from: dateTime(data.from * 1000), to: dateTime(data.to * 1000),
  raw: { from: dateTime(data.from * 1000), to: dateTime(data.to * 1000) },
};

function frames(panel) {
  const defaults = panel.fieldConfig?.defaults ?? {};
  let index = 0;
  return panel.series.map(({ legend, times, values }) => {
    const frame = toDataFrame({
      name: legend,
      fields: [
        { name: 'Time', type: FieldType.time, values: times.map((t) => t * 1000), config: { interval: data.step * 1000 } },
        { name: 'Value', type: FieldType.number, values,
          config: { color: { mode: panel.type === 'stat' ? 'thresholds' : 'palette-classic' }, ...defaults, displayName: legend, custom: { ...defaults.custom } } },
      ],
    });
    for (const field of frame.fields) {
      field.state = { seriesIndex: index };
      field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
    }
    index += 1;
    return frame;
  });
}

function Stat({ panel, width, height }) {
  const [frame] = frames(panel);
  if (!frame) { return <Empty panel={panel} />; }
  const field = frame.fields[1];
  const known = field.values.filter((value) => value !== null);
  return (
    <BigValue theme={theme} width={width} height={height} value={field.display(known[known.length - 1])}
      sparkline={panel.options.graphMode === 'area' ? { y: field, x: frame.fields[0], timeRange: range } : undefined}
      colorMode={panel.options.colorMode} graphMode={panel.options.graphMode} justifyMode="auto" />
  );
}

function Series({ panel, width, height }) {
  const all = frames(panel);
  if (all.length === 0) { return <Empty panel={panel} />; }
  return (
    <TimeSeries frames={all} structureRev={1} timeRange={range} timeZone="utc" width={width} height={height}
      legend={{ showLegend: true, calcs: [], ...panel.options.legend }} options={{}} />
  );
}

const Empty = ({ panel }) => (
  <div style={{ display: 'grid', placeItems: 'center', height: '100%' }}>
    {panel.fieldConfig?.defaults?.noValue ?? 'No data'}
  </div>
);

function Panel({ panel }) {
  const { x, y, w, h } = panel.gridPos;
  const box = { position: 'absolute', left: x * cell, top: y * (ROW + GAP), width: w * cell - GAP, height: h * (ROW + GAP) - GAP };
  if (panel.type === 'row') {
    return <div style={{ ...box, font: '500 16px sans-serif', paddingTop: 8 }}>⌄ {panel.title}</div>;
  }
  return (
    <div style={box}>
      <PanelChrome title={panel.title} description={panel.description} width={box.width} height={box.height} loadingState={LoadingState.Done}>
        {(width, height) => panel.type === 'stat'
          ? <Stat panel={panel} width={width} height={height} />
          : <Series panel={panel} width={width} height={height} />}
      </PanelChrome>
    </div>
  );
}

class Shown extends React.Component {
  state = {};
  static getDerivedStateFromError(error) { return { error }; }
  render() { return this.state.error ? <pre>{String(this.state.error.stack)}</pre> : this.props.children; }
}

createRoot(document.getElementById('root')).render(
  <ThemeContext.Provider value={theme}>
    <GlobalStyles />
    {data.panels.map((panel) => <Shown key={panel.id}><Panel panel={panel} /></Shown>)}
  </ThemeContext.Provider>
);
