"""What a job may name, over REST: targets, generators, strategies, metrics."""

from __future__ import annotations

from fastapi import APIRouter

from instructzero.contracts import (
    GeneratorView,
    Listing,
    MetricView,
    StrategyView,
    TargetView,
)
from services.optimizer.admission import served_models
from services.optimizer.catalogue import METRICS, strategy_views
from services.optimizer.intake import Deps
from services.optimizer.openapi import problems

router = APIRouter(tags=["catalogue"], responses=problems(401, 500))


@router.get("/targets", responses=problems(503))
async def list_targets(deps: Deps) -> Listing[TargetView]:
    """List the registered targets with their limits and prices."""
    return Listing(data=tuple(await deps.scorer.targets()))


@router.get("/generators")
async def list_generators(deps: Deps) -> Listing[GeneratorView]:
    """List the generator models; empty where this server does not know them."""
    models = await served_models(deps) or ()
    return Listing(data=tuple(GeneratorView(name=name) for name in models))


@router.get("/strategies")
async def list_strategies() -> Listing[StrategyView]:
    """List the search strategies with their options and defaults."""
    return Listing(data=strategy_views())


@router.get("/metrics-catalog")
async def list_metrics() -> Listing[MetricView]:
    """List the metrics that this server computes."""
    return Listing(data=tuple(METRICS.values()))
