"""python -m scion.grow: trains the experts of one new domain, everything else frozen, and proves that it was.

    python -m scion.grow deploy/demo --name sql --text texts/ -o sql
    moe-extract graft deploy/demo --from sql --as sql -o grown

OUT is an ordinary Scion directory of the one domain, with the model's own trunk, and in OUT/training the record
(hashes before and after, text, settings, figures) and the loss curve as CSV and SVG.
"""

import argparse
import pathlib
import re
import sys
import time
from typing import Any

import torch

from scion import __version__
from scion.routes import Route
from scion.training import frozen
from scion.training.donor import find_program, lock, write_donor
from scion.training.errors import TrainingError
from scion.training.loop import Result, train
from scion.training.options import add_arguments, device_of, fingerprint_of, run_program, settings_of, window_of
from scion.training.prepared_text import PreparedText, prepare
from scion.training.progress import Progress
from scion.training.record import figures, publish
from scion.training.slice_model import SliceModel, domain_losses
from scion.training.source import PROJECTIONS, Source
from scion.training.start import start_experts, start_routes
from scion.training.workspace import Workspace

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_RESERVED = ("all", "auto", "default")
_PROBE_WINDOWS = 32  # of the training text, by which the nearest domain is chosen
LEARNING_RATE = 0.02


class Growth:
    """The task of the loop: the new domain's experts, by next-token loss."""

    def __init__(self, slice_model: SliceModel) -> None:
        self.slice_model = slice_model
        self._parameters = {}
        for layer, group in slice_model.groups():
            for number, expert in enumerate(group.experts):
                for projection in PROJECTIONS:
                    parameter = getattr(expert, projection).weight.requires_grad_(True)
                    self._parameters[f"{layer}.{number}.{projection}"] = parameter

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self._parameters

    def loss(self, ids: torch.Tensor, progress: float) -> torch.Tensor:
        return self.slice_model.losses(ids).mean()

    def held_out_loss(self, ids: torch.Tensor) -> torch.Tensor:
        return self.slice_model.losses(ids)

    def trunk_hashes(self) -> dict[str, str]:
        """sha256 of every trunk tensor as it is in memory, fp32."""
        state = self.slice_model.model.state_dict()
        return {name: frozen.tensor_hash(state[name], torch.float32) for name in self.slice_model.source.trunk}


def check_name(name: str, source: Source) -> None:
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise TrainingError(
            f"--name {name!r}: a domain's name is a lower-case letter, then letters, digits, _ or -, at "
            f"most 63; {', '.join(_RESERVED)} are reserved"
        )
    if name in source.domains:
        raise TrainingError(
            f"--name {name}: {source.directory} has this domain; there are: {', '.join(source.domains)}"
        )


def parents_of(init_from: str, source: Source, losses: dict[str, float] | None) -> list[str]:
    """Which domains the experts come from. losses: by domain, for `best`."""
    if init_from == "scratch":
        return []
    if init_from == "average":
        return list(source.domains)
    if init_from == "best":
        assert losses is not None
        return [min(losses, key=lambda domain: losses[domain])]
    return [init_from]


def grow(arguments: argparse.Namespace) -> None:
    source = Source(arguments.model)
    check_name(arguments.name, source)
    if arguments.init_from not in ("scratch", "average", "best", *source.domains):
        raise TrainingError(
            f"--init-from {arguments.init_from}: neither scratch, average, best nor a domain; there are: "
            f"{', '.join(source.domains)}"
        )
    device, settings, program = device_of(arguments), settings_of(arguments), find_program(arguments.moe_extract)
    window = window_of(arguments, source.config.max_position_embeddings)
    num_experts = max(source.domains.values()) if arguments.experts is None else arguments.experts
    if not source.config.num_experts_per_tok <= num_experts <= source.config.vocab_size:
        raise TrainingError(
            f"--experts {num_experts}: outside [{source.config.num_experts_per_tok}, {source.config.vocab_size}]"
        )
    progress, began = Progress("grow"), time.monotonic()
    before = source.hashes()
    with Workspace(arguments.out, arguments.resume) as workspace:
        text = prepare(
            workspace,
            arguments.text,
            arguments.held_out,
            source.encoder(),
            source.config.vocab_size,
            window,
            arguments.max_tokens,
            arguments.seed,
            progress,
        )
        autocast = arguments.precision == "bf16"
        losses = _losses_of_old_domains(source, text, settings.batch_windows, device, autocast, workspace, progress)
        parents = parents_of(arguments.init_from, source, losses)
        slice_model = SliceModel(source, arguments.name, num_experts, device, autocast)
        start_experts(slice_model, parents, arguments.seed)
        routes = start_routes(slice_model, parents, text.histogram(source.config.vocab_size), arguments.seed)
        _say_start(progress, arguments.init_from, parents, routes, text)
        growth = Growth(slice_model)
        trunk_before = growth.trunk_hashes()
        fingerprint = fingerprint_of(arguments, settings, text, window) | {
            "model": frozen.digest_of(before),
            "name": arguments.name,
            "init from": arguments.init_from,
            "experts": num_experts,
        }
        result = train(
            growth, text.train, text.held_out, settings, workspace.folder, fingerprint, progress, arguments.resume
        )
        frozen.check_same("the trunk in memory", trunk_before, growth.trunk_hashes())
        after = source.hashes()
        frozen.check_same(f"{source.directory}", before, after)
        record = {
            "program": f"scion.grow {__version__}",
            "domain": arguments.name,
            "experts": num_experts,
            "init_from": arguments.init_from,
            "parents": parents,
            "old_domains_loss": losses,
            "routes": {
                str(layer): [{"shares": route.shares, "kept": route.kept} for route in rows]
                for layer, rows in routes.items()
            },
            "text": text.notes,
            "settings": fingerprint,
            "result": figures(result),
            "frozen": {"before": before, "after": after},
        }
        _write(arguments, slice_model, result, record, workspace, before, program)
        workspace.finish()
    _say_end(progress, result, losses, arguments, time.monotonic() - began)


def _losses_of_old_domains(
    source: Source,
    text: PreparedText,
    batch_windows: int,
    device: torch.device,
    autocast: bool,
    workspace: Workspace,
    progress: Progress,
) -> dict[str, float]:
    """Nats per token on windows of the training text, by domain."""
    if (notes := workspace.notes("domains.json")) is not None:
        return notes
    losses = domain_losses(source, text.train.spread(_PROBE_WINDOWS, batch_windows), device, autocast)
    progress.say(
        "loss of the old domains on the text: " + ", ".join(f"{domain} {loss:.3f}" for domain, loss in losses.items())
    )
    workspace.write_notes("domains.json", losses)
    return losses


def _say_start(
    progress: Progress, init_from: str, parents: list[str], routes: dict[int, list[Route]], text: PreparedText
) -> None:
    shares = [share for rows in routes.values() for route in rows for share in route.shares]
    kept = [route.kept for rows in routes.values() for route in rows if route.kept is not None]
    of = f" ({', '.join(parents)})" if parents and init_from != parents[0] else ""
    stay = f", {min(kept):.0%} of the tokens stay with the experts that knew them" if kept else ""
    progress.say(
        f"from {init_from}{of}; {text.notes['train_tokens']} tokens to train on, "
        f"{text.notes['held_out_tokens']} held out; each expert gets {min(shares):.1%} to {max(shares):.1%} of "
        f"them{stay}"
    )


def _write(
    arguments: argparse.Namespace,
    slice_model: SliceModel,
    result: Result,
    record: dict[str, Any],
    workspace: Workspace,
    before: dict[str, str],
    program: str | None,
) -> None:
    folder = workspace.directory()
    write_donor(slice_model, folder, arguments.trunk, arguments.seed)
    trunk = slice_model.source.trunk
    written = {
        name: digest
        for file in slice_model.source.trunk_files
        for name, digest in frozen.file_hashes(folder / file).items()
    }
    frozen.check_same("the written trunk", {name: before[name] for name in trunk}, written)
    lock(folder, program)
    publish(folder, arguments.out, record, result, f"{arguments.name}, from {arguments.init_from}")


def _say_end(
    progress: Progress, result: Result, losses: dict[str, float], arguments: argparse.Namespace, seconds: float
) -> None:
    state = result.state
    progress.say(
        f"{arguments.out}: held-out loss {state.best_loss:.4f} (step {state.best_step}; at the start "
        f"{state.points[0].held_out_loss:.4f}); ended by {result.reason}; {seconds:.0f} s in all; every other "
        "tensor is as it was"
    )
    progress.say(f"next: moe-extract graft {arguments.model} --from {arguments.out} --as {arguments.name} -o NEW")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scion.grow", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=pathlib.Path, help="a Scion directory with domains, of float weights")
    parser.add_argument("--name", required=True, help="of the new domain")
    parser.add_argument("-o", "--out", type=pathlib.Path, required=True, help="the directory to be written")
    parser.add_argument(
        "--init-from",
        default="best",
        metavar="DOMAIN|average|best|scratch",
        help="what the experts begin as; best: the domain with the least loss on the text (default)",
    )
    parser.add_argument("--experts", type=int, help="per sparse layer (default: as many as the largest domain has)")
    parser.add_argument(
        "--trunk",
        choices=("link", "copy"),
        default="link",
        help="how OUT gets the trunk: a hard link where that can be (default), or a copy",
    )
    add_arguments(parser, LEARNING_RATE)
    arguments = parser.parse_args(argv)
    return run_program("grow", lambda: grow(arguments))


if __name__ == "__main__":
    sys.exit(main())
