"""``list`` and ``protocol``: what there is."""

from __future__ import annotations

from engrams.benchmarks.cli.app import app
from engrams.benchmarks.cli.options import ProtocolName, Set, Wide, settings_of
from engrams.benchmarks.cli.shown import show


@app.command("list")
def list_(wide: Wide = False) -> None:
    """Show the protocols, the strategies and the studies."""
    from engrams.benchmarks.jobs import suites
    from engrams.benchmarks.protocols import registry
    from engrams.benchmarks.studies import listing
    from engrams.reports.render import Sheet
    from engrams.strategies import catalogue

    def sheet(title: str, *rows: dict[str, str]) -> Sheet:
        name, *words = rows[0]
        return Sheet(title, rows, left=(name, *words), words=words)

    protocols = ({"protocol": name, "what it is": title, "data": data} for name, title, data in registry.listed())
    strategies = {name: entry.summary for name, entry in catalogue.CATALOGUE.items()}
    for name, point in catalogue.registered().items():
        brought_by = point.dist.name if point.dist else "an installed package"
        strategies[name] = f"of {brought_by}: {point.value}"
    sheets = [
        sheet("Protocols", *protocols),
        sheet("Strategies", *({"strategy": name, "what it does": text} for name, text in strategies.items())),
        sheet("Studies", *({"study": name, "what it asks": text} for name, text in listing.titles().items())),
        sheet("Suites", *({"suite": name, "what it runs": suites.summary(name)} for name in suites.names())),
    ]
    show(sheets, wide=wide)


@app.command()
def protocol(name: ProtocolName, set: Set = None) -> None:
    """Print a protocol as TOML, with its sources and the hyperparameters that were chosen, to start your own from."""
    from engrams.benchmarks.protocols import registry

    print(registry.as_toml(registry.get(name, settings_of(set))), end="")


@app.command()
def data(wide: Wide = False) -> None:
    """Show where the data sets are looked for, and which are here."""
    from engrams.benchmarks.data.datasets import located
    from engrams.benchmarks.data.sources import SOURCES
    from engrams.reports.render import Sheet

    rows = [{"data": "digits", "where": "comes with scikit-learn"}]
    for name in SOURCES:
        found = located(name)
        where = "not here; looked for in ENGRAMS_DATA, downloaded when first used"
        if found:
            source, root = found
            where = f"{root} ({source.files[0]}, ...)"
        rows.append({"data": name, "where": where})
    show([Sheet("Data", rows, left=("data", "where"), words=("where",))], wide=wide)
