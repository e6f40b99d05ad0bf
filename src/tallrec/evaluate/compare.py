"""Several runs beside each other, in the shape of one result, so that one renderer shows both."""

from collections.abc import Mapping

from tallrec.evaluate.report import best_counting
from tallrec.evaluate.schema import COUNTING, Result, SystemResult


def compare(results: Mapping[str, Result]) -> Result:
    """Merges results of runs on the same test samples.

    A system is renamed after its run; a counting baseline that is the same in every run (such as
    the like-rate, which learns nothing) is shown once. Differences stay those of each run, against
    the best counting baseline on that run's own shots.

    Args:
        results: Results by the name of their run, in the order of the table.

    Raises:
        ValueError: If there is no run, or two were evaluated on different samples.
    """
    if not results:
        raise ValueError("there is no run to compare; name at least one")
    _check_same_test(results)
    names = {run: _names(run, results) for run in results}
    systems: list[SystemResult] = [
        {**system, "name": names[run][system["name"]]}
        for run, result in results.items()
        for system in result["systems"]
    ]
    unique = list({system["name"]: system for system in systems}.values())
    first = next(iter(results.values()))
    return {
        **first,
        "metadata": {
            "test_hash": first["metadata"]["test_hash"],
            "runs": {run: result["metadata"] for run, result in results.items()},
        },
        "systems": sorted(unique, key=lambda system: system["kind"] == COUNTING),
        "best_counting": best_counting(unique),
        "differences": [
            {
                **difference,
                "system": names[run][difference["system"]],
                "baseline": names[run][difference["baseline"]],
            }
            for run, result in results.items()
            for difference in result["differences"]
        ],
        "warnings": _warnings(results),
    }


def _check_same_test(results: Mapping[str, Result]) -> None:
    hashes = {run: result["metadata"].get("test_hash") for run, result in results.items()}
    reference, expected = next(iter(hashes.items()))
    for run, found in hashes.items():
        if found is None:
            raise ValueError(
                f"run {run!r} does not say which test samples it was evaluated on (no test_hash "
                "in its report); evaluate it again"
            )
        if found != expected:
            raise ValueError(
                f"runs {reference!r} and {run!r} were evaluated on different test samples; only "
                "figures on the same samples compare"
            )


def _names(run: str, results: Mapping[str, Result]) -> dict[str, str]:
    """What each system of a run is called in the comparison."""
    systems = results[run]["systems"]
    n_models = sum(system["kind"] != COUNTING for system in systems)
    names = {}
    for system in systems:
        name = system["name"]
        if system["kind"] != COUNTING:
            names[name] = run if n_models == 1 else f"{run}: {name}"
        else:
            names[name] = name if _same_everywhere(system, results) else f"{name} ({run})"
    return names


def _same_everywhere(system: SystemResult, results: Mapping[str, Result]) -> bool:
    """Whether no run gives other figures under this name."""
    return all(
        other["metrics"] == system["metrics"]
        for result in results.values()
        for other in result["systems"]
        if other["name"] == system["name"]
    )


def _warnings(results: Mapping[str, Result]) -> list[str]:
    """What all runs warn of once, the rest with the name of its run."""
    everywhere = set.intersection(*(set(result["warnings"]) for result in results.values()))
    shared = [text for text in next(iter(results.values()))["warnings"] if text in everywhere]
    own = [
        f"{run}: {text}"
        for run, result in results.items()
        for text in result["warnings"]
        if text not in everywhere
    ]
    return shared + own
