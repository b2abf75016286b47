"""RA-01: what there is is known, and nothing else listens."""

from __future__ import annotations

from sealward import __version__
from sealward.check import questions
from sealward.check.deployment import Deployment
from sealward.check.row import Notes, Row


def run(deployment: Deployment, notes: Notes) -> None:
    """Hold the inventory against the sockets that are open."""
    known = {
        int(places[kind].rpartition(":")[2]): f"{service} ({kind})"
        for service, places in deployment.endpoints().items()
        for kind in ("address", "metrics")
    }
    listening = deployment.listeners()
    found = {listener.port for listener in listening}
    strangers = [listener for listener in listening if listener.port not in known]
    for listener in strangers:
        notes.fault(f"{listener.owner} listens on port {listener.port}, which is in no inventory")
    for port in sorted(set(known) - found):
        notes.fault(f"{known[port]} is in the inventory and does not listen")
    processes = deployment.processes()
    notes.held(f"{len(processes)} processes of Sealward {__version__}: {', '.join(processes)}")
    notes.held(f"{len(found)} listening sockets, each in the inventory: sealward status")
    models = [f"{model.name} {model.version}" for model in questions.models(deployment)]
    notes.held(f"models: {', '.join(models)}")


ROW = Row(
    id="RA-01",
    title="The inventory of services, ports and models is what is really there",
    current="45 CFR 164.308(a)(1)(ii)(A)",
    nprm="proposed 45 CFR 164.308(a)(1) (technology asset inventory and network map)",
    proves="every listening socket of the processes is in the inventory, and the other way round",
    not_proven="machines, devices and software outside of this deployment; data flows beyond it",
    duty="do the risk analysis itself, keep the inventory and network map of the whole site",
    run=run,
    writes=False,
)
