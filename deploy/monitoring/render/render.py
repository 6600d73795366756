#!/usr/bin/env python3
"""Draws dashboard.json from metrics of a Weir that works, and says which panels show nothing.

    cargo build --release --workspace; sudo deploy/monitoring/render/render.py [--bench target/release/weir-bench] [--out DIR]

A cluster at work (weir-bench show: the real programs in network namespaces) is scraped by a real Prometheus for three
minutes. Every query of every panel is asked through Prometheus' HTTP API: it must have an answer whose series have
the labels that the panel's legend names. What was answered is drawn by Grafana's own components (@grafana/ui:
stat, time series, panel) in a page, of which chromium takes a picture: units, legends, thresholds and places are the
dashboard's. It is not Grafana itself: its variables, rows that fold, tooltips and its reading of the JSON are not tried.

Needs root, and prometheus, chromium, node and npm in PATH (or PROMETHEUS, CHROMIUM). Exit code 1: something is wrong.
"""
import argparse
import ctypes
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
DASHBOARD = HERE.parent / "dashboard.json"
SCRAPE = 5
PROMETHEUS = "127.0.0.1:9090"
# nothing goes wrong in this way in the cluster that is looked at
MAY_BE_EMPTY = {("Kernel errors and repairs", "A")}


def program(name):
    path = os.environ.get(name.upper()) or shutil.which(name)
    return path or sys.exit(f"render.py: no {name} in PATH, and no {name.upper()} in the environment")


def page(out):
    """The folder with Grafana's components, built once."""
    folder = out / "page"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "panels.jsx"):
        shutil.copy(HERE / name, folder / name)
    if not (folder / "node_modules/@grafana/ui").is_dir():
        npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--legacy-peer-deps"]
        subprocess.run(npm, cwd=folder, check=True)
    return folder


def enter(namespace):
    """This thread, which is the only one, into a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(namespace, "rb") as file:
        if libc.setns(file.fileno(), 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), "cannot enter the network namespace (root?)")


def ask(path, **query):
    with urllib.request.urlopen(f"http://{PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return json.load(answer)["data"]


def legend(text, labels):
    """As Grafana makes it, and the labels that it wanted in vain."""
    wanted = re.findall(r"\{\{\s*(\w+)\s*\}\}", text)
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda m: labels.get(m[1], ""), text), [w for w in wanted if w not in labels]


def series(panel, begin, end, step, problems):
    interval = max(step + SCRAPE, 4 * SCRAPE)
    found = []
    for target in panel.get("targets", []):
        expr = target["expr"].replace("$__rate_interval", f"{interval}s")
        where = f"{panel['title']}, {target['refId']}: {target['expr']}"
        result = ask("query_range", query=expr, start=begin, end=end, step=step)["result"]
        if not result and (panel["title"], target["refId"]) not in MAY_BE_EMPTY:
            problems.append(f"{where}: no data")
        for one in result:
            name, missing = legend(target.get("legendFormat", ""), one["metric"])
            if missing:
                problems.append(f"{where}: the legend wants {', '.join(missing)}, there is {one['metric']}")
            values = {float(at): float(value) for at, value in one["values"]}
            times = [begin + n * step for n in range(int((end - begin) // step) + 1)]
            numbers = [values.get(at) for at in times]
            # JSON has no NaN: a quantile of nothing, which Grafana draws as a gap
            numbers = [None if n is None or n != n else n for n in numbers]
            if all(n is None for n in numbers):
                problems.append(f"{where}: no number, ever")
            found.append({"legend": name, "times": times, "values": numbers, "refId": target["refId"]})
    return found


def observe(bench, out, seconds):
    """The answers to all queries, and what is wrong with them."""
    show = subprocess.Popen([bench, "show", "--seconds", str(seconds)], stdout=subprocess.PIPE, text=True)
    try:
        places = json.loads(show.stdout.readline())
        jobs = [{"job_name": job, "static_configs": [{"targets": places[key]}]}
                for job, key in (("weir-controller", "controllers"), ("weir-agent", "agents"))]
        config = {"global": {"scrape_interval": f"{SCRAPE}s"}, "scrape_configs": jobs}
        (out / "prometheus.yml").write_text(json.dumps(config))
        enter(places["namespace"])
        shutil.rmtree(out / "data", ignore_errors=True)
        with open(out / "prometheus.log", "w") as log:
            prometheus = subprocess.Popen([
                program("prometheus"), f"--config.file={out}/prometheus.yml", f"--storage.tsdb.path={out}/data",
                f"--web.listen-address={PROMETHEUS}"], stdout=log, stderr=log)
        try:
            begin = int(time.time()) + 2 * SCRAPE
            # the last minute is another round of the same
            while show.poll() is None and time.time() < begin + seconds - 20:
                time.sleep(1)
            end, problems = int(time.time()), []
            step = SCRAPE
            down = [t["scrapeUrl"] for t in ask("targets")["activeTargets"] if t["health"] != "up"]
            problems += [f"{url} cannot be scraped" for url in down]
            panels = json.loads(DASHBOARD.read_text())["panels"]
            for panel in panels:
                panel["series"] = series(panel, begin, end, step, problems)
            return {"from": begin, "to": end, "step": step, "panels": panels}, problems
        finally:
            prometheus.terminate()
            prometheus.wait()
    finally:
        show.kill()
        show.wait()


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bench", default=ROOT / "target/release/weir-bench", type=pathlib.Path)
    options.add_argument("--out", default=pathlib.Path("/tmp/weir-dashboard"), type=pathlib.Path)
    options.add_argument("--seconds", default=180, type=int)
    options.add_argument("--again", action="store_true", help="draw the answers of the last time")
    options = options.parse_args()
    out = options.out.resolve()
    folder = page(out)
    answers = folder / "data.json"
    problems = []
    if not options.again:
        data, problems = observe(options.bench.resolve(), out, options.seconds)
        answers.write_text(json.dumps(data))
    subprocess.run([folder / "node_modules/.bin/esbuild", "panels.jsx", "--bundle", "--outfile=bundle.js", "--jsx=automatic",
                    "--log-level=warning", "--loader:.svg=dataurl", "--loader:.ttf=empty", '--define:process.env.NODE_ENV="production"'],
                   cwd=folder, check=True)
    (folder / "index.html").write_text(
        '<!doctype html><meta charset="utf-8"><link rel="stylesheet" href="bundle.css">'
        '<body style="margin:8px"><div id="root"></div><script src="bundle.js"></script>')
    picture = out / "dashboard.png"
    subprocess.run([program("chromium"), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                    "--allow-file-access-from-files", "--window-size=1616,1900", "--virtual-time-budget=8000",
                    f"--screenshot={picture}", f"file://{folder}/index.html"],
                   check=True, stderr=subprocess.DEVNULL, timeout=120)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{picture}: look at it")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
