"""Counts the tests in a JUnit file of ctest or pytest.

A CTest test is a whole program; where its output is GoogleTest's or unittest's, the tests inside are counted. Names
every failure; the last line is "N passed N failed". A skipped test counts as failed: nothing here may be skipped.

usage: count_junit.py FILE
"""

import re
import sys
import xml.etree.ElementTree as ElementTree


def cases_inside(output):
    """(passed, failed) of the tests that a test program ran, or None if its output does not tell."""
    ran = re.findall(r"^\[==========\] (\d+) tests? from .* ran\.", output, re.MULTILINE)
    if ran:
        passed = re.findall(r"^\[  PASSED  \] (\d+) tests?", output, re.MULTILINE)
        ran, passed = sum(map(int, ran)), sum(map(int, passed))
        return passed, ran - passed
    ran = re.search(r"^Ran (\d+) tests? in ", output, re.MULTILINE)
    if ran:
        failed = sum(map(int, re.findall(r"(?:failures|errors|skipped)=(\d+)", output)))
        return int(ran[1]) - failed, failed
    return None


def count(case):
    """(passed, failed) of one <testcase>."""
    bad = case.get("status", "run") != "run" or any(case.find(tag) is not None
                                                     for tag in ("failure", "error", "skipped"))
    inside = cases_inside(case.findtext("system-out") or "")
    passed, failed = inside or ((0, 1) if bad else (1, 0))
    if bad and failed == 0:
        failed = 1  # it crashed, hung or could not start, whatever its tests said before
    return passed, failed


def main():
    try:
        cases = list(ElementTree.parse(sys.argv[1]).iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        print(f"FAILED: no results: {error}")
        cases = []
    passed = failed = 0
    for case in cases:
        case_passed, case_failed = count(case)
        passed += case_passed
        failed += case_failed
        if case_failed:
            print(f"FAILED: {case.get('classname', '')} {case.get('name')}")
    if not cases:
        failed += 1
    print(f"{passed} passed {failed} failed")


if __name__ == "__main__":
    main()
