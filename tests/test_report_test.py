#!/usr/bin/env python3
"""tests/test_report.py: a run may not end well when a test failed, vanished or skipped without leave."""

import contextlib
import io
import json
import pathlib
import tempfile
import unittest

import test_report


class ReportTest(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.addCleanup(self._folder.cleanup)
        self.folder = pathlib.Path(self._folder.name)

    def write_part(self, part, cases, gpu=()):
        names = [name for name, _, _ in cases]
        listing = {"tests": [{"name": name, "properties": [{"name": "LABELS", "value": ["gpu" if name in gpu else "unit"]}]}
                             for name in names]}
        (self.folder / f"{part}.json").write_text(json.dumps(listing))
        body = "".join(f'<testcase name="{name}" status="{status}">{inner}</testcase>' for name, status, inner in cases)
        (self.folder / f"{part}.xml").write_text(f"<testsuite>{body}</testsuite>")

    def report(self, failures=()):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = test_report.main(self.folder, failures)
        return code, out.getvalue()

    def test_sums_the_parts(self):
        self.write_part("asan", [("a", "run", "<system-out>fine</system-out>")])
        self.write_part("test", [("a", "run", ""), ("b", "run", "")])
        code, text = self.report()
        self.assertEqual(code, 0)
        self.assertIn("100% tests passed, 0 tests failed out of 3", text)
        self.assertIn("Skipped: none", text)

    def test_names_the_part_of_a_failed_test(self):
        self.write_part("test", [("a", "run", ""), ("b", "fail", "<failure/>")])
        code, text = self.report()
        self.assertEqual(code, 1)
        self.assertIn("FAILED: test/b", text)
        self.assertIn("50% tests passed, 1 tests failed out of 2", text)

    def test_never_rounds_up_to_all_passed(self):
        self.write_part("test", [(f"t{n}", "run", "") for n in range(999)] + [("b", "fail", "")])
        self.assertIn("99% tests passed, 1 tests failed out of 1000", self.report()[1])

    def test_a_missing_program_is_a_failure(self):
        self.write_part("test", [("a", "notrun", '<skipped message="Unable to find executable"/>')], gpu=["a"])
        self.assertEqual(self.report()[0], 1)

    def test_a_gpu_test_may_skip_and_tells_why(self):
        self.write_part("test", [("a", "notrun", '<skipped message="SKIP_RETURN_CODE=77"/><system-out>x\nno GPU\n'
                                  "</system-out>")], gpu=["a"])
        code, text = self.report()
        self.assertEqual(code, 0)
        self.assertIn("test/a: no GPU", text)

    def test_any_other_skip_fails_the_run(self):
        self.write_part("test", [("a", "notrun", '<skipped message="SKIP_RETURN_CODE=77"/>')])
        self.assertEqual(self.report()[0], 1)

    def test_finds_cases_that_a_program_skipped_by_itself(self):
        self.write_part("test", [("a", "run", "<system-out>[ RUN      ] Tier.Reads\n/src/t.cc:3: Skipped\nno huge pages\n\n"
                                  "[  SKIPPED ] Tier.Reads (0 ms)\n[  PASSED  ] 4 tests.\n[  SKIPPED ] 1 test, listed below:\n"
                                  "[  SKIPPED ] Tier.Reads\n</system-out>")])
        code, text = self.report()
        self.assertEqual(code, 1)
        self.assertIn("test/a: Tier.Reads: no huge pages", text)
        self.assertIn("Skipped: 1\n", text)

    def test_finds_cases_that_python_skipped(self):
        self.write_part("test", [("a", "run", "<system-out>s..\nOK (skipped=2)\n</system-out>")])
        code, text = self.report()
        self.assertEqual(code, 1)
        self.assertIn("test/a: 2 cases", text)

    def test_no_test_at_all_fails(self):
        self.assertEqual(self.report()[0], 1)

    def test_a_part_without_tests_fails(self):
        self.write_part("asan", [("a", "run", "")])
        self.write_part("test", [])
        self.assertEqual(self.report()[0], 1)

    def test_a_build_that_failed_fails_the_run(self):
        self.write_part("test", [("a", "run", "")])
        code, text = self.report(["asan does not build"])
        self.assertEqual(code, 1)
        self.assertIn("FAILED: asan does not build", text)
        self.assertIn("50% tests passed, 1 tests failed out of 2", text)

    def test_a_part_without_results_fails(self):
        self.write_part("test", [("a", "run", "")])
        (self.folder / "asan.json").write_text('{"tests": []}')
        code, text = self.report()
        self.assertEqual(code, 1)
        self.assertIn("FAILED: asan (ctest left no results)", text)


if __name__ == "__main__":
    unittest.main()
