"""The broker's answers to what was published on a channel, read off its frames: confirms and returns."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from sagapost.adapters.rabbitmq.confirms import ConfirmLedger
from sagapost.adapters.rabbitmq.contents import ContentError, read_message_id, read_short
from sagapost.adapters.rabbitmq.transport import BODY_FRAME, HEADER_FRAME, METHOD_FRAME

__all__ = ["AnswerReader"]

_BASIC_ACK = bytes((0, 60, 0, 80))
_BASIC_NACK = bytes((0, 60, 0, 120))
_BASIC_RETURN = bytes((0, 60, 0, 50))
_ANSWER = Struct(">QB").unpack_from  # delivery tag, bits (the lowest is "multiple")
_U16 = Struct(">H").unpack_from
_U64 = Struct(">Q").unpack_from


class AnswerReader:
    """Enters the answers of one channel, and of those that succeed it, into a ledger.

    :param returned: called with the topic of each message that is returned.
    :param unmatched: called when that message is not one of the ledger's.
    """

    def __init__(self, ledger: ConfirmLedger, returned: Callable[[str], None], unmatched: Callable[[], None]) -> None:
        self._ledger = ledger
        self._returned = returned
        self._unmatched = unmatched
        self._returning: tuple[str, str, str] | None = None
        self._body_left = 0

    def restart(self) -> None:
        """Begin with another channel: nothing is half read."""
        self._returning = None

    def on_frame(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Take confirms and returns; return False for RPC replies, which go on to the driver."""
        if kind == METHOD_FRAME:
            method = data[start : start + 4]
            if method == _BASIC_ACK:
                tag, bits = _ANSWER(data, start + 4)
                self._ledger.ack(tag, multiple=bits & 1 != 0)
                return True
            if method == _BASIC_NACK:
                tag, bits = _ANSWER(data, start + 4)
                self._ledger.nack(tag, multiple=bits & 1 != 0)
                return True
            if method == _BASIC_RETURN:
                (code,) = _U16(data, start + 4)
                text, at = read_short(data, start + 6)
                exchange, at = read_short(data, at)
                topic, _ = read_short(data, at)
                self._returning = (f"{code} {text}", exchange, topic)
                return True
            return False
        if self._returning is None:
            return False
        if kind == HEADER_FRAME:
            (self._body_left,) = _U64(data, start + 4)
            self._take_return(self._returning, data[start + 12 : stop])
        elif kind == BODY_FRAME:
            self._body_left -= stop - start
        if self._body_left <= 0:
            self._returning = None
        return True

    def _take_return(self, returned: tuple[str, str, str], properties: bytes) -> None:
        reason, exchange, topic = returned
        try:
            message_id = read_message_id(properties)
        except ContentError:
            message_id = None
        self._returned(topic)
        if message_id is None or not self._ledger.returned(message_id, exchange, topic, reason):
            self._unmatched()
