#!/usr/bin/env python3
"""The table of tests/quality/results.json in the READMEs.

tests/quality/readme_table.py           writes it between the markers
tests/quality/readme_table.py --check   fails when a README says something else
"""

import argparse
import json
import pathlib
import sys

QUALITY = pathlib.Path(__file__).resolve().parent
RESULTS = QUALITY / "results.json"
READMES = (QUALITY / "README.md", QUALITY.parent.parent / "README.md")
BEGIN = "<!-- perplexity: made by tests/quality/readme_table.py -->\n"
END = "<!-- end of perplexity -->\n"


def with_interval(figures, name, digits):
    low, high = figures[f"{name}_interval"]
    return f"{figures[name]:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def markdown(results):
    lines = [
        "| prefix stored as | bits an element | planes kept raw, % | perplexity | over raw, % | KL from raw, nats"
        " | same top choice, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figures in results["codecs"].items():
        raw_planes = f"{100 * figures['raw_planes_share']:.0f}" if "raw_planes_share" in figures else ""
        cells = [name, f"{figures['bits_per_element']:.2f}", raw_planes, f"{figures['perplexity']:.3f}"]
        if name == "raw":
            cells[2] = "100"
            cells += ["", "", ""]
        else:
            cells.append(with_interval(figures, "perplexity_over_raw_percent", 2))
            cells.append(with_interval(figures, "kl", 5))
            cells.append(with_interval(figures, "top1_agreement_percent", 2))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def described(results):
    windows = results["scored_tokens"] // results["scored_tokens_per_window"]
    return (
        f"{results['model']}, `{results['text']}`, {windows} windows, the first {results['prefix_tokens']} tokens of"
        f" each loaded,\n{results['scored_tokens']:,} tokens scored; 95 % intervals in brackets."
        f" {results['date']}, commit {results['commit']}.\n"
    )


def with_table(document, table):
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n" + table + "\n" + END + after


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    args = parser.parse_args()

    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    table = described(results) + "\n" + markdown(results)
    documents = {path: path.read_text(encoding="utf-8") for path in READMES if path.exists()}
    with_markers = {path: document for path, document in documents.items() if BEGIN in document}
    if READMES[0] not in with_markers:
        sys.exit(f"{READMES[0]} has no place for the table")
    for path, document in with_markers.items():
        wanted = with_table(document, table)
        if not args.check:
            path.write_text(wanted, encoding="utf-8")
        elif document != wanted:
            sys.exit(f"{path} differs from {RESULTS}: run tests/quality/readme_table.py")


if __name__ == "__main__":
    main()
