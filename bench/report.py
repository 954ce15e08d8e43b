#!/usr/bin/env python3
"""Turns the JSON of the benchmarks into docs/performance.md with SVG plots.

  build/release/bench/decode_bench --benchmark_format=json > decode.json     (likewise encode, prefill, policy)
  python3 bench/report.py --out docs decode.json encode.json prefill.json policy.json

Of runs with --benchmark_repetitions it takes the medians.
Every table names the program, its filter-free command and the machine that the JSON was made on.
"""
import argparse
import json
import os
import re
import sys

COMMANDS = {
    "decode": "build/release/bench/decode_bench --benchmark_format=json",
    "decode_l2": "build/release/bench/decode_bench --benchmark_format=json",
    "encode": "build/release/bench/encode_bench --benchmark_format=json",
    "prefill": "build/release/bench/prefill_bench --benchmark_format=json",
    "policy": "build/release/bench/policy_bench --benchmark_format=json",
}
COLORS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f", "#bcbd22"]


def fail(sentence):
    sys.exit("report: " + sentence)


def load(path):
    """The runs of one file, each with the parts of its name as fields."""
    try:
        with open(path) as file:
            data = json.load(file)
    except (OSError, ValueError) as error:
        fail(f"{path}: {error}")
    if "benchmarks" not in data:
        fail(f"{path}: no key 'benchmarks'; was the program run with --benchmark_format=json?")
    runs = []
    repeated = any(run.get("aggregate_name") == "median" for run in data["benchmarks"])
    for run in data["benchmarks"]:
        wanted = run.get("aggregate_name") == "median" if repeated else run.get("run_type", "iteration") == "iteration"
        if not wanted or run.get("error_occurred"):
            continue
        name = re.sub("/repeats:[0-9]+", "", run.get("run_name", run["name"]))
        parts = re.sub("/(manual_time|real_time|process_time)", "", name).split("/")
        fields = dict(run, kind=parts[0], words=[p for p in parts[1:] if not re.match(r"^[a-z]:\d+$", p)])
        fields.update({p.split(":")[0]: int(p.split(":")[1]) for p in parts if re.match(r"^[a-z]:\d+$", p)})
        fields["seconds"] = run["real_time"] * {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}[run["time_unit"]]
        runs.append(fields)
    return data["context"], runs


def number(value, digits=3):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.{digits}g}"


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join([" --- "] + [" ---: "] * (len(header) - 1)) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def ordered(values):
    return list(dict.fromkeys(values))


class Plot:
    """Lines over a logarithmic x axis, written as SVG by hand: nothing to install."""

    WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 70, 150, 40, 50

    def __init__(self, title, x_label, y_label, y_max=None):
        self.title, self.x_label, self.y_label, self.y_max = title, x_label, y_label, y_max
        self.lines = []

    def add(self, name, points):
        if points:
            self.lines.append((name, sorted(points)))

    def write(self, path):
        import math

        xs = [x for _, points in self.lines for x, _ in points]
        ys = [y for _, points in self.lines for _, y in points]
        top = self.y_max or max(ys) * 1.1
        low, high = math.log2(min(xs)), math.log2(max(xs))
        inner_width = self.WIDTH - self.LEFT - self.RIGHT
        inner_height = self.HEIGHT - self.TOP - self.BOTTOM

        def place(x, y):
            share = (math.log2(x) - low) / (high - low) if high > low else 0.5
            return self.LEFT + share * inner_width, self.TOP + (1 - min(y, top) / top) * inner_height

        svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.WIDTH} {self.HEIGHT}" '
               'font-family="sans-serif" font-size="12">',
               f'<rect width="{self.WIDTH}" height="{self.HEIGHT}" fill="white"/>',
               f'<text x="{self.LEFT}" y="22" font-size="15">{self.title}</text>']
        for step in range(6):
            value = top * step / 5
            y = place(min(xs), value)[1]
            svg.append(f'<line x1="{self.LEFT}" x2="{self.LEFT + inner_width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
            svg.append(f'<text x="{self.LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
        for x in sorted(set(xs)):
            at = place(x, 0)[0]
            label = f"{x // 1024}k" if x >= 1024 and x < 1 << 20 else f"{x >> 20}M" if x >= 1 << 20 else str(x)
            svg.append(f'<text x="{at:.1f}" y="{self.HEIGHT - 30}" text-anchor="middle">{label}</text>')
        for i, (name, points) in enumerate(self.lines):
            color = COLORS[i % len(COLORS)]
            path_points = " ".join("%.1f,%.1f" % place(x, y) for x, y in points)
            svg.append(f'<polyline points="{path_points}" fill="none" stroke="{color}" stroke-width="2"/>')
            svg += ['<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>' % (*place(x, y), color) for x, y in points]
            y = self.TOP + 14 + 18 * i
            svg.append(f'<rect x="{self.WIDTH - self.RIGHT + 14}" y="{y - 9}" width="12" height="12" fill="{color}"/>')
            svg.append(f'<text x="{self.WIDTH - self.RIGHT + 32}" y="{y + 1}">{name}</text>')
        svg.append(f'<text x="{self.LEFT + inner_width / 2}" y="{self.HEIGHT - 8}" text-anchor="middle">{self.x_label}</text>')
        svg.append(f'<text transform="translate(16 {self.TOP + inner_height / 2}) rotate(-90)" '
                   f'text-anchor="middle">{self.y_label}</text></svg>')
        with open(path, "w") as file:
            file.write("\n".join(svg) + "\n")


def decode_section(runs, kind, out):
    runs = [run for run in runs if run["kind"] == kind]
    if not runs:
        return ""
    title = "Decode attention, keys and values out of memory" if kind == "decode" else "Decode attention, resident in L2"
    text = f"## {title}\n\n"
    if kind == "decode":
        text += ("One query token; at least 256 MiB of distinct caches walked in turn. *Bandwidth* is the share of what a loop that only "
                 "reads reaches on as large a buffer with as many threads; *bare* the time of a loop that only unpacks and multiplies, of the same "
                 "format, group and arithmetic on L1-resident data; *limit* the share of the larger of these two times; all in the same "
                 "process. A layer has eight KV heads.\n\n")
    else:
        text += "One query token over one KV head; 128 times that is the layer of eight KV heads and 16,384 tokens above.\n\n"
    for dim, group in sorted({(run["d"], run["g"]) for run in runs}, reverse=True):
        chosen = [run for run in runs if run["d"] == dim and run["g"] == group]
        rows = [[run["words"][0], run["words"][1], str(run["n"]), str(run["t"]), number(run["seconds"] * 1e6, 4),
                 number(run["bare_us"], 4), number(run["bytes_per_second"] / 1e9), number(run["elements_per_second"] / 1e9),
                 f"{100 * run.get('bandwidth_share', 0):.0f} %", f"{100 * run.get('limit_share', 0):.0f} %"]
                for run in chosen]
        text += f"head_dim {dim}, {group} query head{'s' if group > 1 else ''} per KV head:\n\n"
        text += table(["format", "instructions", "tokens", "threads", "µs", "bare µs", "GB/s", "Gelements/s", "bandwidth", "limit"], rows) + "\n"
    lengths = [run for run in runs if run["t"] == 1 and run["words"][0] == "kivi2"]
    best = ordered(run["words"][1] for run in lengths)[-1:]
    lengths = [run for run in lengths if run["words"][1] in best]
    if kind == "decode" and len({run["n"] for run in lengths}) > 3:
        plot = Plot("2-bit decode attention over growing contexts", "tokens", "share of read bandwidth")
        for group in sorted({run["g"] for run in lengths}):
            plot.add(f"group {group}", [(run["n"], run["bandwidth_share"]) for run in lengths if run["g"] == group])
        plot.write(os.path.join(out, "decode_growth.svg"))
        text += "![share of bandwidth over tokens](decode_growth.svg)\n\n"
    return text


def simple_section(runs, kind, title, header, row):
    runs = [run for run in runs if run["kind"] == kind]
    return f"## {title}\n\n" + table(header, [row(run) for run in runs]) + "\n" if runs else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="JSON of the benchmark programs")
    parser.add_argument("--out", default="docs", help="folder of performance.md and its plots")
    parser.add_argument("--machine", default="", help="what to call the machine")
    parser.add_argument("--notes", default="", help="a Markdown file whose text goes between the head and the tables")
    options = parser.parse_args()
    runs, contexts = [], []
    for path in options.files:
        context, some = load(path)
        contexts.append(context)
        runs += some
    os.makedirs(options.out, exist_ok=True)
    first = contexts[0]
    machine = options.machine or f"{first['num_cpus']} cores at {first['mhz_per_cpu']} MHz"
    text = ("# Performance\n\nWritten by `python3 bench/report.py` out of the JSON of the programs in `bench/`; "
            "absolute times drift from machine to machine and hour to hour, ratios in one run hold.\n\n"
            f"Machine: {machine}. Commands:\n\n```sh\n")
    text += "\n".join(ordered(COMMANDS[run["kind"]] for run in runs if run["kind"] in COMMANDS)) + "\n```\n\n"
    if options.notes:
        with open(options.notes) as file:
            text += file.read().rstrip() + "\n\n"
    text += decode_section(runs, "decode", options.out)
    text += decode_section(runs, "decode_l2", options.out)
    text += simple_section(runs, "prefill", "Prompts",
                           ["policy", "instructions", "head_dim", "group", "ms", "GMAC/s", "of the peak", "beyond the full cache"],
                           lambda r: [r["words"][0], r["words"][1], str(r["d"]), str(r["g"]), number(r["seconds"] * 1e3, 4),
                                      number(r["macs_per_second"] / 1e9), f"{100 * r['peak_share']:.0f} %",
                                      f"{100 * r['upkeep_share']:.1f} %" if "upkeep_share" in r else ""])
    text += simple_section(runs, "encode", "Storing rows, one core",
                           ["format", "of", "instructions", "Gelements/s"],
                           lambda r: [r["words"][0], r["words"][1], r["words"][2], number(r["elements_per_second"] / 1e9)])
    text += simple_section(runs, "policy", "What policies cost while decoding",
                           ["policy", "slots", "step µs", "attention µs", "beyond it µs", "share", "KiB", "ratio"],
                           lambda r: ["`" + r["words"][0].replace("|", "\\|") + "`", str(r["n"]), number(r["seconds"] * 1e6, 4), number(r["attention_us"], 4),
                                      number(max(0.0, r["upkeep_us"]), 3), f"{100 * r['upkeep_share']:.1f} %",
                                      number(r["bytes"] / 1024), f"{r['ratio']:.2f}"])
    with open(os.path.join(options.out, "performance.md"), "w") as file:
        file.write(text)
    print("wrote", os.path.join(options.out, "performance.md"))


if __name__ == "__main__":
    main()
