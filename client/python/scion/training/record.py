"""What a run says of itself in OUT/training: record.json, loss.csv, loss.svg."""

import os
import pathlib
from typing import Any

from scion.training import curve
from scion.training.atomic import publish_directory
from scion.training.donor import write_json
from scion.training.loop import Result


def figures(result: Result) -> dict[str, Any]:
    state = result.state
    return {
        "ended": result.reason,
        "steps": state.step,
        "tokens": state.points[-1].tokens,
        "seconds": round(state.points[-1].seconds, 1),
        "best_step": state.best_step,
        "held_out_loss": state.best_loss,
        "held_out_loss_at_start": state.points[0].held_out_loss,
    }


def publish(folder: pathlib.Path, out: pathlib.Path, record: dict[str, Any], result: Result, title: str) -> None:
    """Adds the record to the finished directory and gives it its name."""
    training = folder / "training"
    training.mkdir()
    write_json(training / "record.json", record)
    (training / "loss.csv").write_text(curve.csv(result.state.points), encoding="utf-8")
    (training / "loss.svg").write_text(curve.svg(result.state.points, title), encoding="utf-8")
    publish_directory(folder, pathlib.Path(os.path.abspath(out)))
