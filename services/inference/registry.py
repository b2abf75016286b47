"""The models that are there, each in its state. One that fails leaves the others alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from sealward.kit.errors import SealwardError
from sealward.kit.reasons import Reason
from services.inference.answers import Encoder
from services.inference.engine import Engine, EngineError
from services.inference.manifest import Manifest
from services.inference.package import KeyDestroyedError, Package, PackageError
from services.inference.runtime import RuntimeSpec
from services.inference.tensors import Decoder


class State(Enum):
    """Where a model stands."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True)
class Model:
    """A model that passed its self-test: what it declares and what runs it."""

    manifest: Manifest
    engine: Engine
    decoder: Decoder
    encoder: Encoder


@dataclass(frozen=True)
class Entry:
    """One version of one model. `manifest` is None when its package could not be opened."""

    name: str
    version: str
    state: State
    reason: str = ""
    manifest: Manifest | None = None
    model: Model | None = None
    destroyed: bool = False


def open_model(
    package: Package, runtime: RuntimeSpec, runtime_digest: str, *, refuse_undeclared: bool = False
) -> Model:
    """Load a package into ONNX Runtime and run its self-test; raise EngineError."""
    manifest = package.manifest
    engine = Engine(manifest, package.onnx, runtime)
    engine.self_test(package.golden)
    decoder = Decoder(manifest, refuse_undeclared=refuse_undeclared)
    return Model(manifest, engine, decoder, Encoder(manifest, runtime_digest))


class Registry:
    """Finds models by name and version. Readers see whole states: entries are only replaced."""

    def __init__(
        self, runtime: RuntimeSpec, runtime_digest: str, *, refuse_undeclared: bool = False
    ) -> None:
        """`refuse_undeclared`: see Decoder."""
        self._refuse_undeclared = refuse_undeclared
        self._runtime = runtime
        self._digest = runtime_digest
        self._entries: dict[tuple[str, str], Entry] = {}
        self._found: dict[tuple[str, str], Entry] = {}

    def open(self, name: str, version: str, load: Callable[[], Package]) -> Entry:
        """Open one model; return its entry, READY or FAILED with the reason.

        What `load` raises besides PackageError goes on to the caller, such as a keys service that
        is not there: it says nothing about the model, which is left out.
        """
        self._put(Entry(name, version, State.LOADING))
        manifest: Manifest | None = None
        try:
            package = load()
            manifest = package.manifest
            model = open_model(
                package,
                self._runtime,
                self._digest,
                refuse_undeclared=self._refuse_undeclared,
            )
        except (PackageError, EngineError) as error:
            gone = isinstance(error, KeyDestroyedError)
            entry = Entry(name, version, State.FAILED, str(error), manifest, destroyed=gone)
        except BaseException:
            self._drop(name, version)
            raise
        else:
            entry = Entry(name, version, State.READY, manifest=manifest, model=model)
        self._put(entry)
        return entry

    def find(self, name: str, version: str) -> Model:
        """Return a model that is ready; no version means the newest.

        The newest is taken as it is: when it failed, an older one does not step in unasked. Raises
        SealwardError.
        """
        entry = self._found.get((name, version))
        if entry is None:
            known = (name, "") in self._found
            raise SealwardError(
                Reason.MODEL_UNKNOWN,
                "no such version of this model" if known else "no such model",
                field="model_version" if known else "model_name",
            )
        if entry.destroyed:
            raise SealwardError(
                Reason.KEY_DESTROYED, "the key of the model was destroyed", field="model_name"
            )
        if entry.model is None:
            raise SealwardError(
                Reason.MODEL_NOT_READY, "the model has not passed its self-test", field="model_name"
            )
        return entry.model

    def close(self, name: str, version: str, reason: str) -> None:
        """Serve a model no more: its key was destroyed."""
        self._put(Entry(name, version, State.FAILED, reason, destroyed=True))

    def entries(self) -> Sequence[Entry]:
        """Return all entries by name and version, oldest version first."""
        return sorted(self._entries.values(), key=_order)

    @property
    def ready(self) -> bool:
        """True when a model can be asked, or there is none whose key was not destroyed."""
        entries = self._entries.values()
        destroyed = bool(entries) and all(entry.destroyed for entry in entries)
        return destroyed or any(entry.state is State.READY for entry in entries)

    def _put(self, entry: Entry) -> None:
        self._publish({**self._entries, (entry.name, entry.version): entry})

    def _drop(self, name: str, version: str) -> None:
        self._publish({k: e for k, e in self._entries.items() if k != (name, version)})

    def _publish(self, entries: dict[tuple[str, str], Entry]) -> None:
        found = dict(entries)
        for entry in sorted(entries.values(), key=_order):
            found[entry.name, ""] = entry
        self._entries, self._found = entries, found


def _order(entry: Entry) -> tuple[str, tuple[int, ...]]:
    return entry.name, tuple(int(part) for part in entry.version.split("."))
