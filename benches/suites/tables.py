#!/usr/bin/env python3
"""benches/LEADERBOARD.md from a suite's leaderboard.json: the same figures as tables that a repository shows.

    ascribe bench run benches/suites/leaderboard.toml --out out/bench
    python3 benches/suites/tables.py out/bench/leaderboard.json COMMIT MACHINE [ALL.json] > benches/LEADERBOARD.md

COMMIT is what the suite ran at, MACHINE what it ran on, in words. ALL.json is the leaderboard.json of all.toml: methods and settings that
the first has not come behind. Writes nothing that is not in the JSON. Standard library only.
"""
import json
import sys

HEADS = {
    "loo_pearson": "leaving one out, Pearson",
    "class_top1": "top example of the query's class",
    "dataset_top1": "top example of the response's dataset",
    "tv_raw": "raw",
    "tv_unseen_datasets": "on unseen datasets",
    "lds": "LDS over subsets",
    "hit_at_1": "hit@1",
    "mrr": "MRR",
}
FURTHER = [
    ("subclass_top1", "top example of the hidden class"),
    ("mislabel_auc", "wrong labels found, AUC"),
    ("mislabel_found_area", "area under the errors found"),
    ("tail_patch", "tail-patch"),
    ("removal_effect@", "margin lost"),
    ("brittleness@", "predictions turned"),
    ("removals_to_flip", "removals that turn one, median"),
]
METRICS = {"lds": "LDS", "tv_shapley": "total variation to exact Shapley shares", "recall_at_10": "recall@10"}


def number(value, form="{:.3f}"):
    # No "-0.000": what rounds to nothing has no sign.
    return "—" if value is None else form.format(round(value, 3) + 0.0)


def figure(method, name):
    return method.get(name) if name == method["metric"] else method["extra"].get(name)


def ranked(methods):
    sign = -1 if next(iter(methods))["metric"] != "tv_shapley" else 1
    key = lambda m: (figure(m, m["metric"]) is None, sign * (figure(m, m["metric"]) or 0.0), m["name"])
    return sorted(methods, key=key)


def name_of(method):
    return f"`{method['name']}`" + (" (control)" if method["control"] else "")


def table(heads, rows):
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def main_table(methods):
    metric = methods[0]["metric"]
    extra = [name for name in HEADS if name != metric and any(figure(m, name) is not None for m in methods)]
    rows = []
    for m in methods:
        value = number(figure(m, metric))
        if m["low"] is not None:
            value += f" [{number(m['low'])}, {number(m['high'])}]"
        cost = [f"{m['cpu_seconds']:.1f}", f"{m['bytes_per_example']:,.0f}"]
        rows.append([name_of(m), value, *(number(figure(m, name)) for name in extra), *cost])
    heads = ["method", f"{METRICS.get(metric, metric)} [95 %]", *(HEADS[name] for name in extra), "CPU s", "bytes an example"]
    table(heads, rows)


def further_columns(methods):
    for name, head in FURTHER:
        if not name.endswith("@"):
            yield name, head
            continue
        parts = {key[len(name):] for m in methods for key in m["extra"] if key.startswith(name)}
        parts = sorted((p for p in parts if not p.endswith(("_low", "_high"))), key=float)
        for part in parts:
            yield name + part, f"{head}, top {100 * float(part):g} % out"


def further_table(methods):
    columns = [c for c in further_columns(methods) if any(figure(m, c[0]) is not None for m in methods)]
    shown = [m for m in methods if any(figure(m, name) is not None for name, _ in columns)]
    if not shown:
        return
    form = lambda name: "{:.0f}" if name == "removals_to_flip" else "{:.3f}"
    print("Further protocols:\n")
    rows = [[name_of(m), *(number(figure(m, name), form(name)) for name, _ in columns)] for m in shown]
    table(["method", *(head for _, head in columns)], rows)


def section(report):
    methods = ranked(report["methods"].values())
    print(f"## `{report['setting']}`\n")
    about = report["about"][0].upper() + report["about"][1:]
    line = about + ("" if about.endswith("?") else ".") + f" {report['queries']:,} queries, {report['examples']:,} examples; {report['truth']['about']}."
    if report["truth"]["ceiling"]:
        line += f" Agreement of one retraining seed with the others: {report['truth']['ceiling']['mean']:.3f}."
    print(line + "\n")
    tables(report, methods)


def tables(report, methods):
    main_table(methods)
    further_table(methods)
    gates = report.get("gates", [])
    if gates:
        # A gate that no figure decides stays in the table: it was not met.
        verdict = lambda g: "no figure" if g["met"] is None else "met" if g["met"] else "**missed**"
        form = lambda g: [g["about"], f"`{g['method']}`" if g["method"] else "—", number(g["threshold"]), number(g["found"]), verdict(g)]
        table(["gate", "method", "asked", "found", ""], [form(g) for g in gates])
    for note in report.get("notes", []):
        print(f"- {note}")
    if report.get("notes"):
        print()


def main(path, commit, machine, everything=None):
    board = json.load(open(path, encoding="utf-8"))
    print("# Leaderboard\n")
    print(f"`ascribe bench run benches/suites/leaderboard.toml --out out/bench` as one run of {board['date']}, commit {commit}, {machine}")
    print(f"(products with {board['instructions']}). The command makes a page with plots (`out/bench/leaderboard.html`) and its JSON;")
    print("`benches/suites/tables.py` makes these tables of it. CPU seconds are those of all threads. What the gates say stands in")
    print("[BARS.md](BARS.md), how settings were chosen and what the protocols are in [SETTINGS.md](SETTINGS.md).\n")
    for report in board["settings"]:
        section(report)
    for name, why in board["failed"]:
        print(f"`{name}` could not run: {why}\n")
    if everything:
        rest(json.load(open(everything, encoding="utf-8")), board)


def rest(everything, board):
    shown = {report["setting"]: report["methods"] for report in board["settings"]}
    print("# Methods and settings that the suite leaves out\n")
    print(f"`ascribe bench run benches/suites/all.toml` with the scores that the suite above kept, {everything['date']}.\n")
    for report in everything["settings"]:
        if report["setting"] not in shown:
            section(report)
            continue
        others = [m for name, m in report["methods"].items() if name not in shown[report["setting"]]]
        if others:
            print(f"## `{report['setting']}`, further methods\n")
            tables({}, ranked(others))


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
