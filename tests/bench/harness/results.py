"""What was measured, kept in a JSON file after every round, so that a run that was cut off goes on."""

import json
import os
import pathlib


class Results:
    """rows: {name: [round, ...]}, a round {"seconds": wall time, engine: {figure: value}}; limits: [measurement, ...].
    settings are those of the run; ValueError if the file was made with others."""

    def __init__(self, path, settings):
        self.path = pathlib.Path(path) if path else None
        self.data = {"settings": settings, "limits": [], "rows": {}}
        if self.path is not None and self.path.exists():
            self.data = json.loads(self.path.read_text())
            if self.data["settings"] != settings:
                raise ValueError(f"{self.path} was measured with {self.data['settings']}, not {settings}")

    def rounds(self, row, engines):
        """The row's rounds in which all of these engines were measured."""
        return [r for r in self.data["rows"].get(row, []) if all(e in r for e in engines)]

    def add_round(self, row, figures):
        self.data["rows"].setdefault(row, []).append(figures)
        self._save()

    def add_limits(self, limits):
        self.data["limits"].append(limits)
        self._save()

    def _save(self):
        if self.path is None:
            return
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(json.dumps(self.data, indent=1) + "\n")
        os.replace(new, self.path)
