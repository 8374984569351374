#!/usr/bin/env python3
"""Sums what several ctest runs found, in ctest's words. Usage: test_report.py FOLDER [FAILURE...]

FOLDER holds, for each part of tests/run.sh, PART.xml (ctest --output-junit) and PART.json (ctest --show-only=json-v1).
Each FAILURE is the text of a check that is no test (a build, formatting) and counts as a failed one. Prints the failed
tests, the sum, and each skipped test with its reason. Exits 1 when a test failed, when none ran, or when a test was skipped
that is not labelled gpu.
"""

import json
import pathlib
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field

GTEST_SKIP = re.compile(r"^\[  SKIPPED \] (\S+) \(\d+ ms\)$")
GTEST_REASON = re.compile(r"^\S+:\d+: Skipped$")
UNITTEST_SKIP = re.compile(r"^(\w+ \(.*\)).* \.\.\. skipped ['\"](.*)['\"]$")
UNITTEST_COUNT = re.compile(r"^OK \(.*skipped=(\d+)")


@dataclass
class Report:
    total: int = 0
    failed: list = field(default_factory=list)  # (test, why)
    skipped: list = field(default_factory=list)  # (test, reason, allowed)


def skips_in_output(output):
    """Yields (case, reason) of the cases that a GoogleTest or unittest program skipped by itself."""
    reason, collecting, named = "", False, 0
    lines = output.splitlines()
    for line in lines:
        case = GTEST_SKIP.match(line)
        if case:
            yield case.group(1), reason.strip() or "no reason given"
            reason, collecting = "", False
        elif GTEST_REASON.match(line):
            reason, collecting = "", True
        elif collecting:
            reason += line + " "
        python_case = UNITTEST_SKIP.match(line)
        if python_case:
            named += 1
            yield python_case.group(1), python_case.group(2)
        count = UNITTEST_COUNT.match(line)
        if count and int(count.group(1)) > named:
            yield f"{count.group(1)} cases", "no reason shown: run the test with --verbose"


def labels_of(tests):
    labels = {}
    for test in tests["tests"]:
        for item in test.get("properties", []):
            if item["name"] == "LABELS":
                labels[test["name"]] = item["value"]
    return labels


def add_failure(report, name, why):
    report.total += 1
    report.failed.append((name, why))


def add_part(report, part, cases, labels):
    for case in cases:
        name = f"{part}/{case.get('name')}"
        allowed = "gpu" in labels.get(case.get("name"), [])
        output = case.findtext("system-out") or ""
        report.total += 1
        skipped = case.find("skipped")
        if case.get("status") == "fail":
            report.failed.append((name, "failed"))
        elif skipped is not None and not skipped.get("message", "").startswith("SKIP_"):
            report.failed.append((name, skipped.get("message") or "did not run"))
        elif case.get("status") == "disabled":
            report.skipped.append((name, "disabled", allowed))
        elif skipped is not None:
            lines = [line for line in output.splitlines() if line.strip()]
            report.skipped.append((name, lines[-1].strip() if lines else "no reason given", allowed))
        else:
            report.skipped.extend((f"{name}: {inner}", reason, allowed) for inner, reason in skips_in_output(output))


def print_report(report):
    """Prints the closing lines; returns the exit code."""
    refused = [skip for skip in report.skipped if not skip[2]]
    for name, why in report.failed:
        print(f"FAILED: {name} ({why})")
    failed = len(report.failed)
    percent = 0 if report.total == 0 else int(100 * (report.total - failed) / report.total)
    print(f"\n{percent}% tests passed, {failed} tests failed out of {report.total}")
    print(f"\nSkipped: {len(report.skipped) or 'none'}")
    for name, reason, allowed in report.skipped:
        print(f"  {name}: {reason}{'' if allowed else '  [FAILS THE RUN: only tests labelled gpu may skip]'}")
    if report.total == 0:
        print("No test ran.")
    return 1 if failed or refused or report.total == 0 else 0


def main(folder, failures=()):
    report = Report()
    for failure in failures:
        add_failure(report, failure, "not a test")
    for listing in sorted(pathlib.Path(folder).glob("*.json")):
        part, results = listing.stem, listing.with_suffix(".xml")
        if not results.is_file():
            add_failure(report, part, "ctest left no results")
            continue
        cases = list(ElementTree.parse(results).getroot().iter("testcase"))
        if not cases:
            add_failure(report, part, "no test ran")
        add_part(report, part, cases, labels_of(json.loads(listing.read_text(encoding="utf-8"))))
    return print_report(report)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
