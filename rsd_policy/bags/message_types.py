"""Decodes the messages that we read, by the definitions in the bag; foreign types are never looked at."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

from rsd_policy.bags.sources import Topic, describe
from rsd_policy.errors import BagError

OWN_MESSAGES = "rsd_msgs/msg/"
IDL_SEPARATOR = "=" * 80 + "\n"


class MessageTypes:
    """Decoders by type name, made when the first message of a type is decoded.

    Args:
        topics: of the bag, with their definitions.
        ros1: the bag is in ROS 1's format.
    """

    def __init__(self, topics: Iterable[Topic], *, ros1: bool) -> None:
        self._definitions = {t.type: t for t in topics if t.definition}
        self._ros1 = ros1
        self._stores: dict[str, Any] = {}

    def decode(self, kind: str, raw: bytes) -> Any:
        """A message.

        Raises:
            BagError: the type is unknown, or the bytes are not one.
        """
        store = self._store(kind)
        try:
            return store.deserialize_ros1(raw, kind) if self._ros1 else store.deserialize_cdr(raw, kind)
        except Exception as error:  # as many types as there are ways to be malformed
            raise BagError(f"a message of {kind} ({len(raw)} bytes) is damaged: {describe(error)}") from error

    def _store(self, kind: str) -> Any:
        if kind not in self._stores:
            self._stores[kind] = self._make(kind)
        return self._stores[kind]

    def _make(self, kind: str) -> Any:
        topic = self._definitions.get(kind)
        if topic is not None:
            store = get_typestore(Stores.EMPTY)
            try:
                store.register(_parse(topic))
            except Exception as error:
                raise BagError(f"the bag's definition of {kind} cannot be read: {describe(error)}") from error
            return store
        store = get_typestore(Stores.ROS1_NOETIC if self._ros1 else Stores.ROS2_JAZZY)
        if kind.startswith(OWN_MESSAGES):
            store.register(own_messages())
        if kind not in store.types:
            raise BagError(f"{kind}: the bag holds no definition of this type, and it is not a standard one")
        return store


def _parse(topic: Topic) -> Any:
    if not topic.idl:
        return get_types_from_msg(topic.definition, topic.type)
    types: dict[str, Any] = {}
    if not topic.definition.startswith(f"{IDL_SEPARATOR}IDL: "):
        return get_types_from_idl(topic.definition)
    for part in topic.definition.split(IDL_SEPARATOR)[1:]:
        types.update(get_types_from_idl(part.split("\n", 1)[1]))
    return types


def own_messages() -> Any:
    """The types of rsd_msgs as in the sources, for bags of old formats that hold no definitions; empty elsewhere."""
    folder = Path(__file__).resolve().parents[2] / "ros2_ws" / "src" / "rsd_msgs" / "msg"
    types: dict[str, Any] = {}
    for path in sorted(folder.glob("*.msg")):
        types.update(get_types_from_msg(path.read_text(encoding="utf-8"), f"{OWN_MESSAGES}{path.stem}"))
    return types


def writable_types(kind: str, share: Path | None = None) -> Any:
    """A store of types that knows `kind`, for writing.

    Args:
        share: folder of installed ROS packages, whose definitions are read when the type is no standard one.

    Raises:
        BagError: nobody knows the type.
    """
    store = get_typestore(Stores.ROS2_JAZZY)
    if kind in store.types:
        return store
    own = own_messages()
    if kind.startswith(OWN_MESSAGES) and own:
        store.register(own)
        return store
    package, _, name = kind.split("/")
    path = None if share is None else share / package / "msg" / f"{name}.msg"
    if path is None or not path.is_file():
        raise BagError(f"{kind}: expected its definition in {path or 'an installed package'}, it is not there")
    for sibling in path.parent.glob("*.msg"):
        store.register(get_types_from_msg(sibling.read_text(encoding="utf-8"), f"{package}/msg/{sibling.stem}"))
    return store
