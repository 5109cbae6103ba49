"""A scenario from beginning to end: one run, a sweep, or a search."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loadtest.cost import GeneratorCost, generator_cost
from loadtest.mixture import Template, load_of, templates
from loadtest.play import Played, Stage, play
from loadtest.scenario import Scenario
from loadtest.search import Found, Range, highest_rate
from loadtest.sla import Verdict, judge, judge_kinds
from loadtest.summary import Summary, summarise
from loadtest.wire import Origin

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run of a scenario. `rate_per_s`: as the scenario says; None where its arrivals have none."""

    rate_per_s: float | None
    played: Played
    summary: Summary
    kinds: Mapping[str, Summary]
    verdicts: tuple[Verdict, ...]

    @property
    def holds(self) -> bool:
        """Whether the run says something, and every clause is met."""
        return not self.played.invalid and all(verdict.met for verdict in self.verdicts)


@dataclass(frozen=True, slots=True)
class ScenarioResult:
    """All runs of a scenario, in order; what the search found; what the generator costs."""

    scenario: Scenario
    runs: tuple[RunResult, ...]
    found: Found | None
    cost: GeneratorCost | None

    @property
    def holds(self) -> bool:
        """A search: some rate held. Else: every run did."""
        return self.found.highest > 0 if self.found is not None else all(run.holds for run in self.runs)


def run_scenario(scenario: Scenario, environ: Mapping[str, str], *, say: Say, with_cost: bool = True) -> ScenarioResult:
    """Play it.

    Args:
        scenario: checked.
        environ: for the headers.
        say: told a line after every run of a sweep or search.
        with_cost: measure the generator first, for about a second.
    Raises: ScenarioInvalid, TextsInvalid, TargetFailed.
    """
    wanted = templates(scenario, environ)
    cost = _cost(scenario, wanted) if with_cost else None
    runs: list[RunResult] = []

    def run_at(rate_per_s: float | None) -> bool:
        runs.append(run_once(scenario, wanted, rate_per_s=rate_per_s, seed=scenario.seed + len(runs)))
        if rate_per_s is not None:
            say(progress(runs[-1]))
        return runs[-1].holds

    found = None
    if scenario.search is not None:
        search = scenario.search
        found = highest_rate(run_at, Range(search.low_per_s, search.high_per_s, search.precision, search.repeats))
    else:
        for rate in scenario.sweep.rates_per_s if scenario.sweep is not None else (None,):
            run_at(rate)
    return ScenarioResult(scenario, tuple(runs), found, cost)


def _cost(scenario: Scenario, wanted: tuple[Template, ...]) -> GeneratorCost:
    return generator_cost(load_of(scenario, wanted, seed=scenario.seed).shots)


def run_once(scenario: Scenario, wanted: tuple[Template, ...], *, rate_per_s: float | None, seed: int) -> RunResult:
    """One run, at another rate than the scenario's where one is given."""
    if rate_per_s is not None:
        scenario = scenario.model_copy(update={"arrivals": scenario.arrivals.at_rate(rate_per_s)})
    played = play(load_of(scenario, wanted, seed=seed), stage_of(scenario, wanted[0].origin))
    summary = summarise(played.sample, played.seconds)
    kinds = {
        kind.name: summarise(played.sample.where(played.sample.kind == place), played.seconds)
        for place, kind in enumerate(scenario.mixture)
    }
    verdicts = judge(scenario.sla, played.sample, summary) + judge_kinds(
        scenario.mixture, played.sample, played.seconds
    )
    return RunResult(scenario.arrivals.rate_per_s, played, summary, kinds, verdicts)


def stage_of(scenario: Scenario, origin: Origin) -> Stage:
    """Where and how the scenario is played."""
    closed = scenario.arrivals.closed
    return Stage(
        origin,
        scenario.duration_s,
        warm_up_s=scenario.warm_up_s,
        clients=closed.connections if closed is not None else 1,
        most_connections=max(scenario.max_connections, closed.connections if closed is not None else 1),
        timeout_s=scenario.timeout_s,
        max_lag_ms=scenario.max_lag_ms,
    )


def progress(run: RunResult) -> str:
    """A line about a run of a sweep or search."""
    missed = run.played.invalid or ", ".join(verdict.clause for verdict in run.verdicts if not verdict.met)
    end = f"missed: {missed}" if missed else "holds"
    summary = run.summary
    return (
        f"{run.rate_per_s:.6g}/s: answered {summary.ok_per_s:.6g}/s, p50 {summary.latency_ms.p50:.2f} ms, "
        f"p99 {summary.latency_ms.p99:.2f} ms; {end}"
    )
