#!/usr/bin/env python3
"""What nqkv-bench owes whoever reads its rows. Usage: bench_test.py NQKV-BENCH"""

import json
import subprocess
import sys
import unittest

BENCH = ""
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

    def test_refuses_an_unknown_suite(self):
        code, rows, errors = run("speed")
        self.assertEqual((code, rows), (2, []))
        self.assertIn('unknown suite "speed"', errors)


if __name__ == "__main__":
    BENCH = sys.argv.pop(1)
    unittest.main()
