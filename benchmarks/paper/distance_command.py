"""`ivmix bench distance REAL.npy FAKE.npy`: distances of two files of features, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.paper.errors import BenchmarkError

if TYPE_CHECKING:
    from benchmarks.paper.distances import CapResult

DEFAULT_PROTOCOL = "chronomagic-150"
FILE_HELP = "Features, an .npy file (n, d): a row per clip."


def distance(
    real: Annotated[Path, typer.Argument(metavar="REAL.npy", help=FILE_HELP)],
    fake: Annotated[Path, typer.Argument(metavar="FAKE.npy", help="The same of generated clips.")],
    protocol: Annotated[
        str, typer.Option(metavar="NAME", help="Benchmark whose subsets of the rows fd_protocol averages over.")
    ] = DEFAULT_PROTOCOL,
) -> None:
    """Print distances of two files of features as JSON: Frechet of all rows and by protocol, and kernel distance."""
    try:
        report = measure(real, fake, protocol)
    except ModuleNotFoundError as e:
        if e.name != "numpy":
            raise
        raise BenchmarkError("this command needs numpy; install 'ivmix[bench]'") from e
    typer.echo(json.dumps(report, indent=2, allow_nan=False))


def measure(real_file: Path, fake_file: Path, protocol: str) -> dict[str, Any]:
    """Raises BenchmarkError, and InvalidParameter if there is no such protocol."""
    from benchmarks.paper import protocols
    from benchmarks.paper.averagings import averaging_of
    from benchmarks.paper.distances import averaged_frechet, frechet, kernel_distance
    from benchmarks.paper.feature_files import read_features

    averaging = averaging_of(protocols.protocol(protocol))
    real, fake = read_features(real_file), read_features(fake_file)
    if real.shape[1] != fake.shape[1]:
        raise BenchmarkError(
            f"{real_file} has {real.shape[1]} features per clip and {fake_file} has {fake.shape[1]}; take both from "
            "the same network"
        )
    averaged, caps = averaged_frechet(real, fake, averaging)
    kernel = kernel_distance(real, fake)
    return {
        "fd": frechet(real, fake),
        "fd_protocol": averaged,
        "kvd": kernel.value,
        "kvd_spread": kernel.spread,
        "n_real": len(real),
        "n_fake": len(fake),
        "protocol": {
            "name": protocol,
            "covariance": "unbiased" if averaging.unbiased_covariance else "population",
            "seeds": list(averaging.seeds),
            "caps": [_cap(each) for each in caps],
        },
    }


def _cap(result: CapResult) -> dict[str, Any]:
    """`all_rows`: the samples have no more rows than the cap, so it changes nothing."""
    counts = {"cap": result.cap, "n_real": result.n_real, "n_fake": result.n_fake, "all_rows": result.takes_all}
    return counts | {"fd": result.fd, "spread_over_seeds": result.spread}
