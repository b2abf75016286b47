"""Opens the witness, or makes it on the first start."""

from __future__ import annotations

from pathlib import Path

import structlog

from sealward.kit.errors import StartupError
from sealward.seal.durable import sync_folder
from services.keys.files import write_durable
from services.keys.providers.base import BranchKeys
from services.keys.records import Recorder
from services.keys.witness.cosigning import PURPOSE, TENANT, Clock, SealedWitnessKeys
from services.keys.witness.witness import Witness

_UNFINISHED = ".witness.new"


def open_witness(
    data_dir: Path,
    branches: BranchKeys,
    recorder: Recorder,
    logger: structlog.typing.FilteringBoundLogger,
    *,
    deployment: str,
    trust_domain: str,
    clock: Clock,
) -> Witness:
    """Open the witness below `data_dir`, or make it on the first start.

    Raise StartupError with one line when it is damaged, or when it was there and is not any more:
    its key-encryption key tells. SealwardError when the provider does not answer.
    """
    folder, unfinished = data_dir / "witness", data_dir / _UNFINISHED
    try:
        if not folder.is_dir():
            if not unfinished.is_dir() and (TENANT, PURPOSE) in branches.names():
                raise StartupError(
                    f"{folder} is missing, and with it what the witness knows: restore it"
                )
            name = f"{trust_domain}/witness/{deployment}"
            recorder.record("witness.create", "ok", target=name)
            _create(folder, unfinished, branches, name)
            logger.info("witness.created", name=name)
        keys = SealedWitnessKeys(folder, branches, clock)
        vkeys = "".join(f"{verifier.vkey}\n" for verifier in keys.verifiers)
        _publish(folder / "witness.vkey", vkeys.encode())
        if keys.rewrap():
            logger.info("witness.rewrapped")
    except OSError:
        raise StartupError(f"{folder} cannot be written") from None
    return Witness(folder, keys, recorder, logger, trust_domain=trust_domain, clock=clock)


def begin_anew(data_dir: Path) -> bool:
    """Have the next start make a new witness, with new keys, where there is none; raise OSError.

    For a keystore that is restored without the folder of its witness: what the old one has cosigned
    is not known any more, so its keys must not cosign again. Returns whether there is none.
    """
    if (data_dir / "witness").is_dir():
        return False
    (data_dir / _UNFINISHED).mkdir(mode=0o700, exist_ok=True)
    sync_folder(data_dir)
    return True


def _create(folder: Path, unfinished: Path, branches: BranchKeys, name: str) -> None:
    # This folder is there before the key-encryption key is: a start that died goes on from here.
    unfinished.mkdir(mode=0o700, exist_ok=True)
    sync_folder(unfinished.parent)
    SealedWitnessKeys.create(unfinished, branches, name)
    unfinished.rename(folder)
    sync_folder(folder.parent)


def _publish(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        write_durable(path, data)
