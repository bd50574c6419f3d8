"""What every committed file keeps to: no path of somebody's machine, no test switched off, links that lead somewhere.

usage: repository_test.py SOURCE_DIR
"""

import os
import pathlib
import re
import subprocess
import sys
import unittest

# Folders of some machine; /usr, /etc, /proc, /dev and /tmp are every machine's.
MACHINE_PATH = re.compile(r"(?:^|[^\w.])(?:/(?:work|farm|root|mnt|Users)/|/home/\w|\.\./shared)")
SWITCHED_OFF = re.compile("DISABLED" "_|GTEST" "_SKIP|pytest[.]mark[.](skip|xfail)|unittest[.]skip")
LINK = re.compile(r"\]\(([^)\s#]+)[^)]*\)")
WITH_README = ("deploy", "deploy/demo", "deploy/demo-fr", "tests", "proto", "server", "client", "extract", "engine")
DATA_SUFFIXES = {".safetensors", ".npy", ".npz", ".gguf", ".png", ".bin", ".gz"}
# A lock and an evaluation text hold what other people wrote: words, not paths of ours.
TEXT_OF_OTHERS = re.compile(r"(^deploy/demo(-fr)?/(eval|heldout|samples)/|tokenizer\.json$|^tests/golden/.*\.(json|jsonl|txt)$)")


def committed_files(top):
    """Paths from the top. Without git (an unpacked archive): every file outside build/."""
    try:
        listed = subprocess.run(["git", "-C", str(top), "-c", "safe.directory=*", "ls-files", "-z"], check=True,
                                capture_output=True)
        paths = [os.fsdecode(path) for path in listed.stdout.split(b"\0") if path]
    except (OSError, subprocess.CalledProcessError):
        paths = [path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()]
    return [path for path in paths if not path.startswith((".git/", "build/")) and (top / path).is_file()]


def text_files(top):
    for path in committed_files(top):
        if pathlib.PurePath(path).suffix not in DATA_SUFFIXES and not TEXT_OF_OTHERS.search(path):
            yield path, (top / path).read_text(errors="replace")


def lines_with(pattern, path, text):
    return [f"{path}:{number}: {line.strip()[:120]}" for number, line in enumerate(text.splitlines(), 1)
            if pattern.search(line)]


class RepositoryTest(unittest.TestCase):

    def check(self, pattern):
        found = [line for path, text in text_files(TOP) for line in lines_with(pattern, path, text)]
        self.assertEqual(found, [], "\n" + "\n".join(found))

    def test_no_file_names_a_path_of_one_machine(self):
        self.check(MACHINE_PATH)

    def test_no_test_is_switched_off(self):
        self.check(SWITCHED_OFF)

    def test_the_patterns_find_what_they_are_for(self):
        for bad in ("/wo" "rk/main", "cd /ro" "ot/x", '"/ho' 'me/ann"', "../sha" "red/x"):
            self.assertTrue(lines_with(MACHINE_PATH, "a", bad), bad)
        for good in ("/usr/share", "/tmp/cpp", "docs/work/a", "$HOME/x", "/dev/null", "tests/root/x"):
            self.assertFalse(lines_with(MACHINE_PATH, "a", good), good)
        self.assertTrue(lines_with(SWITCHED_OFF, "a", "TEST(A, DISABLED" "_B)"))

    def test_every_folder_has_a_readme(self):
        folders = [TOP / folder for folder in WITH_README]
        folders += [path for path in (TOP / "engine").iterdir() if path.is_dir()]
        missing = [str(folder.relative_to(TOP)) for folder in folders if not (folder / "README.md").is_file()]
        self.assertEqual(missing, [])

    def test_links_of_the_readmes_lead_somewhere(self):
        broken = []
        for path, text in text_files(TOP):
            if not path.endswith(".md"):
                continue
            for target in LINK.findall(text):
                if "://" not in target and not (TOP / path).parent.joinpath(target).exists():
                    broken.append(f"{path}: {target}")
        self.assertEqual(broken, [])

    def test_scripts_can_be_run(self):
        scripts = [path for path, text in text_files(TOP) if text.startswith("#!")]
        self.assertGreater(len(scripts), 3)
        self.assertEqual([path for path in scripts if not os.access(TOP / path, os.X_OK)], [])


if __name__ == "__main__":
    TOP = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main()
