"""`python -m cli.simulate`: the simulator as a process of its own, for tests and benchmarks."""

import argparse
import sys
from collections.abc import Sequence

from cli.simulate.config import SimulateConfig, parse_faults, parse_latency
from cli.simulate.faults import BadFlagError
from cli.simulate.server import run

_USAGE_ERROR = 2


def parser(prog: str = "python -m cli.simulate") -> argparse.ArgumentParser:
    default = SimulateConfig()
    flags = argparse.ArgumentParser(prog=prog, description="An endpoint to rehearse against.")
    flags.add_argument("--host", default=default.host)
    flags.add_argument("--port", type=int, default=default.port, help="0 takes a free one")
    flags.add_argument("--latency", type=parse_latency, default=default.latency_seconds, metavar="S|LO-HI")
    flags.add_argument("--rpm", type=float, metavar="N", help="requests per minute and API key")
    flags.add_argument("--tpm", type=float, metavar="N", help="tokens per minute and API key")
    flags.add_argument("--burst-seconds", type=float, default=default.burst_seconds, metavar="S")
    flags.add_argument("--window", choices=("bucket", "strict"), default=default.window)
    flags.add_argument("--max-concurrency", type=int, metavar="N")
    flags.add_argument("--fault", action="append", default=[], metavar="NAME=PERCENT", help="may be repeated")
    flags.add_argument("--hang-seconds", type=float, default=default.hang_seconds, metavar="S")
    flags.add_argument("--drip-seconds", type=float, default=default.drip_seconds, metavar="S")
    flags.add_argument("--retry-after", type=float, default=default.retry_after_seconds, metavar="S")
    flags.add_argument("--seed", type=int, default=default.seed)
    flags.add_argument("--api-key", metavar="KEY", help="the one key that is let in")
    flags.add_argument("--model", action="append", metavar="GLOB", help="serve these only; may be repeated")
    styles = ("both", "together", "openai", "none")
    flags.add_argument("--rate-limit-headers", choices=styles, default=default.rate_limit_headers)
    flags.add_argument("--answer-tokens", type=parse_latency, default=default.answer_tokens, metavar="N|LO-HI")
    return flags


def config_of(arguments: argparse.Namespace) -> SimulateConfig:
    shortest, longest = arguments.answer_tokens
    return SimulateConfig(
        host=arguments.host,
        port=arguments.port,
        latency_seconds=arguments.latency,
        requests_per_minute=arguments.rpm,
        tokens_per_minute=arguments.tpm,
        burst_seconds=arguments.burst_seconds,
        window=arguments.window,
        max_concurrency=arguments.max_concurrency,
        faults=parse_faults(arguments.fault),
        hang_seconds=arguments.hang_seconds,
        drip_seconds=arguments.drip_seconds,
        retry_after_seconds=arguments.retry_after,
        seed=arguments.seed,
        api_key=arguments.api_key,
        models=None if arguments.model is None else tuple(arguments.model),
        rate_limit_headers=arguments.rate_limit_headers,
        answer_tokens=(int(shortest), int(longest)),
    )


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m cli.simulate") -> int:
    try:
        run(config_of(parser(prog).parse_args(argv)))
    except (BadFlagError, OSError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return _USAGE_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
