"""What the end-to-end tests of moe-extract share: the programs' places, runs of them, and checks of what they leave."""

import argparse
import atexit
import functools
import pathlib
import shutil
import subprocess
import tempfile


class Harness:
    def __init__(self):
        parser = argparse.ArgumentParser()
        parser.add_argument("--moe-extract", required=True)
        parser.add_argument("--make-tiny-model", required=True)
        arguments = parser.parse_args()
        self.program = str(pathlib.Path(arguments.moe_extract).resolve())
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="scion_e2e_"))
        atexit.register(shutil.rmtree, self.work, ignore_errors=True)
        self.model = self.work / "model"
        subprocess.run([arguments.make_tiny_model, self.model], check=True)
        self.model_files = tree(self.model)
        self.plain = self.work / "plain"
        subprocess.run([arguments.make_tiny_model, self.plain, "llama"], check=True)
        self.controls = {}
        self.checks = 0

    def run(self, *arguments, prefix=(), **keywords):
        """Runs moe-extract; the result has returncode, stdout and stderr."""
        command = [*map(str, prefix), self.program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, **keywords)

    def expect(self, condition, message):
        self.checks += 1
        if not condition:
            raise SystemExit(f"FAILED: {message}")

    def expect_code(self, result, code, *texts):
        """The exit code, and each text on stderr."""
        what = f"{result.args} gave {result.returncode}, not {code}:\n{result.stdout}{result.stderr}"
        self.expect(result.returncode == code, what)
        for text in texts:
            self.expect(str(text) in result.stderr, f"{text!r} is not in the messages of {result.args}:\n{result.stderr}")

    def expect_whole(self, cut, when):
        result = self.run("inspect", "--check", cut)
        self.expect(result.returncode == 0, f"{when}: the cut is there but not whole:\n{result.stderr}")

    def expect_export(self, verb, out, when):
        """What the verb (export, its model and format) made at `out` is what an undisturbed run makes."""
        key = str(verb)
        if key not in self.controls:
            control = self.work / f"control{len(self.controls)}"
            self.expect_code(self.run(*verb, "-o", control), 0)
            self.controls[key] = contents(control)
        self.expect(contents(out) == self.controls[key], f"{when}: the export is there but not whole")

    def expect_page(self, out, when):
        text = out.read_text()
        self.expect(text.startswith("<!DOCTYPE html>") and text.endswith("</html>\n"), f"{when}: half a page is there")

    def makers(self):
        """The verbs that make a file or directory, without its place; each with the check that it is whole."""
        makers = [(["slice", self.model, "--domain", "beta"], self.expect_whole),
                  (["densify", self.model, "--domain", "beta"], self.expect_whole),
                  (["quantize", self.model, "--type", "q4_0"], self.expect_whole),
                  (["upcycle", self.plain, "--domains", "a,b", "--experts", "2", "--sparse-layers", "1"],
                   self.expect_whole),
                  (["report", self.model], self.expect_page)]
        for format_ in ("gguf", "hf"):
            verb = ["export", self.plain, "--format", format_]
            makers.append((verb, functools.partial(self.expect_export, verb)))
        return makers

    def expect_model_untouched(self):
        self.expect(tree(self.model) == self.model_files, "the model was written into")

    def done(self):
        self.expect_model_untouched()
        print(f"ok: {self.checks} checks")


def tree(directory):
    """Relative path -> bytes of all files below a directory."""
    return {p.relative_to(directory): p.read_bytes() for p in pathlib.Path(directory).rglob("*") if p.is_file()}


def contents(path):
    return tree(path) if path.is_dir() else path.read_bytes()


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def entries(directory):
    return sorted(p.name for p in pathlib.Path(directory).iterdir())
