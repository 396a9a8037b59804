"""``list`` and ``protocol``: what there is."""

from __future__ import annotations

from rich.table import Table

from engrams.benchmarks.cli.app import app
from engrams.benchmarks.cli.options import ProtocolName, Set, settings_of
from engrams.benchmarks.cli.shown import console


@app.command("list")
def list_() -> None:
    """Show the protocols, the strategies and the studies."""
    from engrams.benchmarks.jobs import suites
    from engrams.benchmarks.protocols import registry
    from engrams.benchmarks.studies import listing
    from engrams.strategies import catalogue

    protocols = Table("protocol", "what it is", "data", title="Protocols", title_justify="left")
    for name, title, data in registry.listed():
        protocols.add_row(name, title, data)
    strategies = Table("strategy", "what it does", title="Strategies", title_justify="left")
    for name, entry in catalogue.CATALOGUE.items():
        strategies.add_row(name, entry.summary)
    for name, point in catalogue.registered().items():
        brought_by = point.dist.name if point.dist else "an installed package"
        strategies.add_row(name, f"of {brought_by}: {point.value}")
    studies = Table("study", "what it asks", title="Studies", title_justify="left")
    for name, title in listing.titles().items():
        studies.add_row(name, title)
    chosen = Table("suite", "what it runs", title="Suites", title_justify="left")
    for name, runs in ((name, suites.runs_of(name)) for name in suites.names()):
        protocols_of = dict.fromkeys(protocol for protocol, _, _ in runs)
        chosen.add_row(name, f"{len(runs)} runs on {', '.join(protocols_of)}")
    for table in (protocols, strategies, studies, chosen):
        console.print(table)


@app.command()
def protocol(name: ProtocolName, set: Set = None) -> None:
    """Print a protocol as TOML, with its sources and the hyperparameters that were chosen, to start your own from."""
    from engrams.benchmarks.protocols import registry

    print(registry.as_toml(registry.get(name, settings_of(set))), end="")


@app.command()
def data() -> None:
    """Show where the data sets are looked for, and which are here."""
    from engrams.benchmarks.data import datasets

    table = Table("data", "where", title="Data", title_justify="left")
    table.add_row("digits", "comes with scikit-learn")
    for name in datasets.SOURCES:
        root = datasets.find(name)
        table.add_row(name, str(root) if root else "not here; looked for in ENGRAMS_DATA, downloaded when first used")
    console.print(table)
