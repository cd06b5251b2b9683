"""What a run with differential privacy cannot do, since the change that one client makes would have no bound."""

from __future__ import annotations

from typing import Any

from fedkd_mpi.config import methods

Config = Any  # schema.Config, which calls this module


def problem(config: Config) -> str | None:
    """Return in one line what stands against differential privacy in a configuration, None where nothing does."""
    settings = config.privacy
    if not settings.differential:
        return None
    if settings.delta is None or settings.delta >= 1 / config.num_clients:
        return (
            f"privacy.delta={settings.delta:g} must be below 1 / num_clients ({1 / config.num_clients:g}): with that"
            " delta a client's update may be published as it is"
        )
    reason = _method(config) or (_server(config) if settings.where == "server" else _client(config))
    return f"privacy.clip_norm: {reason}" if reason else None


def _method(config: Config) -> str | None:
    name = config.method.name
    if not methods.exchanges(name):
        return f"method={name} exchanges nothing: remove the keys of privacy, or choose another method"
    if not methods.has_codec(name):
        return f"method={name} exchanges means per class, not the change of a network that is clipped: choose another"
    if name == "scaffold":
        return "method=scaffold sends control variates beside the update, which nothing clips: choose method=fedavg"
    if name == "feddropout":
        return "method=feddropout leaves out a part of the network, which noise would change too: choose method=fedavg"
    return None


def _server(config: Config) -> str | None:
    if config.server.weighting != "uniform":
        return (
            f"server.weighting={config.server.weighting} lets a client with many samples change the mean more than"
            " others: set uniform, or privacy.where=client"
        )
    if config.server.aggregator != "mean":
        return (
            f"server.aggregator={config.server.aggregator} is no sum, to which noise is added: set mean, or"
            " privacy.where=client"
        )
    if config.compression.error_feedback == "ef21":
        return (
            "compression.error_feedback=ef21 needs the same estimates at client and server, which clipping and noise at"
            " the server part: set ef or none, or privacy.where=client"
        )
    if config.compression.codec == "fetchsgd":
        return (
            "compression.codec=fetchsgd adds up sketches, whose norm is not that of the update: choose another codec,"
            " or privacy.where=client"
        )
    if not config.privacy.secret_cohorts:
        return None
    if config.clients_per_round == config.num_clients:
        return "privacy.secret_cohorts=true, but all clients take part in every round: set it to false"
    if config.sampler != "uniform":
        return f"privacy.secret_cohorts=true needs sampler=uniform, not {config.sampler}"
    return None


def _client(config: Config) -> str | None:
    if config.privacy.secret_cohorts:
        return (
            "privacy.secret_cohorts=true: the server sees with where=client who sends what: set it to false, or"
            " privacy.where=server"
        )
    if config.on_nonfinite == "skip":
        return (
            "on_nonfinite=skip sends a message without noise that there is no update: set on_nonfinite=abort, or"
            " privacy.where=server"
        )
    return None
