#!/usr/bin/env python3
"""What nqkv-bench owes whoever reads its rows. Usage: bench_test.py NQKV-BENCH"""

import json
import pathlib
import subprocess
import sys
import unittest

BENCH = ""
TRACES = pathlib.Path(__file__).resolve().parent.parent / "data" / "traces"
FIELDS = ["suite", "case", "value", "unit", "baseline", "baseline_value", "ratio", "bound", "bound_ratio", "repeats", "spread_pct",
          "threads", "machine"]


def run(*arguments):
    done = subprocess.run([BENCH, *arguments, "--json"], capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


class BenchTest(unittest.TestCase):
    def test_codec_rows_have_a_ratio(self):
        code, rows, _ = run("codec", "--filter=decode/nqkv4-g128/128KiB", "--repeats=1")
        self.assertTrue(rows)
        self.assertEqual(code, 3 if any(row["ratio"] is None for row in rows) else 0)
        self.assertTrue(any(row["ratio"] is not None for row in rows))

    def test_kernels_rows_have_a_ratio_or_a_reason(self):
        code, rows, _ = run("kernels", "--repeats=1")
        self.assertIn("decode-paged/nqkv4-g64/1GiB", [row["case"] for row in rows])
        for row in rows:
            self.assertEqual([field for field in FIELDS if field not in row], [])
            self.assertEqual(row["baseline"], "d2d-copy")
            if code == 0:
                self.assertGreater(row["ratio"], 0)
            else:
                self.assertEqual(code, 3)
                self.assertIsNone(row["ratio"])
                self.assertTrue(row["reason"])

    def test_the_store_follows_the_policy_on_a_trace(self):
        trace = str(TRACES / "mooncake-conversation.jsonl.zst")
        code, rows, _ = run("trace", trace, "--filter=/2%/raw")
        self.assertEqual(code, 0)
        self.assertEqual([row["case"].rsplit("/", 1)[1] for row in rows], ["raw", "raw-lru"])
        for row in rows:
            self.assertAlmostEqual(row["value"], row["baseline_value"], delta=1.0)

    def test_4bit_blocks_hit_more_in_the_same_bytes(self):
        code, rows, _ = run("trace", str(TRACES / "mooncake-conversation.jsonl.zst"), "--filter=/2%/4bit")
        self.assertEqual(code, 0)
        rows = {row["case"].rsplit("/", 1)[1]: row for row in rows}
        self.assertGreater(rows["4bit"]["ratio"], 2)
        self.assertLess(rows["4bit-prefill"]["ratio"], 1)

    def test_a_trace_that_is_not_there_is_named(self):
        code, rows, errors = run("trace", "/nowhere.jsonl")
        self.assertEqual((code, rows), (1, []))
        self.assertIn("/nowhere.jsonl", errors)

    def test_store_rows_compare_with_one_thread(self):
        code, rows, _ = run("store", "--filter=put-evict/t2", "--repeats=1")
        self.assertEqual((code, [row["case"] for row in rows]), (0, ["put-evict/t2"]))
        self.assertGreater(rows[0]["ratio"], 0)

    def test_refuses_an_unknown_suite(self):
        code, rows, errors = run("speed")
        self.assertEqual((code, rows), (2, []))
        self.assertIn('unknown suite "speed"', errors)


if __name__ == "__main__":
    BENCH = sys.argv.pop(1)
    unittest.main()
